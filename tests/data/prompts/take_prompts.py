#!/usr/bin/env python3
"""Takes a part of a `prompts.json` that is small enough for this repository.

    python take_prompts.py PROMPTS.json > prompts.json

PROMPTS.json holds what A1111's parsers (as Forge dfdcbab keeps them), ComfyUI's (a125cd84) and dynamicprompts 0.31.0 answer to prompts.
Everything that people would write is taken, and a few of the prompts that were put together at random. Of the tokens of a chunk the end
is cut where it is padding, of the combinations of a template all but the first 60.
"""
import json
import sys


def short(entries, key, longest, most):
    """All entries up to `longest` letters, and `most` of the longer ones."""
    more = [entry for entry in entries if len(entry[key]) > longest]
    kept = [entry for entry in entries if len(entry[key]) <= longest]
    return kept + sorted(more, key=lambda entry: len(entry[key]))[:: max(1, len(more) // most)][:most]


def cut(chunks):
    for chunk in chunks["tokens"]:
        while len(chunk) > 2 and chunk[-1] == chunk[-2] == 49407:
            chunk.pop()
    return chunks


def main():
    whole = json.load(open(sys.argv[1]))
    part = {
        "attention": short(whole["attention"], "text", 90, 8),
        "schedules": short(whole["schedules"], "text", 60, 8),
        "and": short(whole["and"], "text", 60, 4),
        "networks": whole["networks"],
        "comments": whole["comments"],
        "chunks": [{**entry, "a1111": cut(entry["a1111"]), "comfyui": cut(entry["comfyui"])} for entry in short(whole["chunks"], "text", 420, 2)],
        "wildcards": whole["wildcards"],
        "dynamic": short(whole["dynamic"], "template", 60, 4),
    }
    for entry in part["dynamic"]:
        if len(entry.get("combinations", [])) > 60 and not entry.get("endless"):
            entry["combinations"] = entry["combinations"][:60]
            entry["cut"] = True
    lines = []
    for key, entries in part.items():
        compact = lambda entry: json.dumps(entry, ensure_ascii=False, separators=(",", ":"))
        body = ",\n".join(map(compact, entries)) if isinstance(entries, list) else compact(entries)
        lines.append(f"{json.dumps(key)}:" + (f"[\n{body}\n]" if isinstance(entries, list) else body))
    print("{\n" + ",\n".join(lines) + "\n}")


main()
