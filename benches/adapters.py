#!/usr/bin/env python3
"""Measures what LoRAs cost: loading Stable Diffusion 1.5's size with three of rank 64 against loading without, swapping one for another against a
load, and the memory of each.

    pip install torch "diffusers==0.36.0" "transformers<5"
    python benches/adapters.py target/release/sd-gen [--cache DIR] [--dtype f32,bf16] [--rounds 5] [--model DIR --loras FILE,FILE,FILE]

A load's seconds count from the program's start until the first step of an image of 64×64 is done, so that adapters that are merged after loading
count too. A swap is measured inside one process, by a batch file of lines that differ in LoRAs only: two images of each of three LoRAs against six of
one, from the first image's step to the last one's, and a half of the difference. Every round is a new process of each kind, in turn; medians of
seconds are compared.

The peak of memory is the largest in all rounds: `resident` is what the system counts (VmHWM, as ru_maxrss begins with this script's own), files that
are mapped included; `anonymous` is what is no file, looked at a hundred times a second. The weights are random, and made once in --cache. Prints one JSON object. Run it on an idle
machine.
"""
import argparse, json, pathlib, statistics, subprocess, tempfile, threading, time
import random_sd15


class Peak(threading.Thread):
    """Looks at a process's memory until it ends."""
    def __init__(self, pid): super().__init__(daemon=True); self.status, self.bytes = pathlib.Path(f"/proc/{pid}/status"), {"VmHWM": 0, "RssAnon": 0}

    def run(self):
        while True:
            try: rows = [row.split() for row in self.status.read_text().splitlines()]
            except OSError: return
            now = {row[0][:-1]: int(row[1]) * 1024 for row in rows if row and row[0][:-1] in self.bytes}
            if not now: return
            self.bytes = {name: max(self.bytes[name], bytes) for name, bytes in now.items()}
            time.sleep(0.01)


def run(a, dtype, arguments):
    """The seconds since the start at which each image's step was done, and the peaks of memory."""
    common = ["--size", "64x64", "--steps", "1", "--guidance-scale", "1", "--dtype", dtype, "--device", "cpu", "--progress", "json", "--no-config"]
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        program = subprocess.Popen([a.sd_gen, *arguments, *common, "--output-dir", folder], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        peak, steps, last = Peak(program.pid), [], None
        peak.start()
        for line in program.stderr:
            try: last = json.loads(line)
            except ValueError: continue
            if last["event"] == "step" and last["step"] >= 1: steps.append(time.perf_counter() - start)
            if last["event"] in ("failed", "error"): raise SystemExit(line)
        failed = program.wait()
        peak.join()
        if failed: raise SystemExit(f"sd-gen failed: {last}")
    return {"steps": steps, "resident": peak.bytes["VmHWM"], "anonymous": peak.bytes["RssAnon"]}


def load(a, dtype, loras):
    made = run(a, dtype, ["-m", a.model, "-p", "x", "--seed", "1", *(part for lora in loras for part in ("--lora", f"{lora}:0.5"))])
    return {**made, "seconds": made["steps"][0]}


def batch(a, dtype, loras):
    """One image with each of `loras`."""
    with tempfile.NamedTemporaryFile("w", suffix=".jsonl") as lines:
        for i, lora in enumerate(loras): lines.write(json.dumps({"prompt": "x", "seed": i, **({"lora": f"{lora}:0.5"} if lora else {})}) + "\n")
        lines.flush()
        made = run(a, dtype, ["batch", lines.name, "-m", a.model, "--batch-size", "1"])
    if len(made["steps"]) != len(loras): raise SystemExit(f"{len(made['steps'])} steps of {len(loras)} images")
    return {**made, "seconds": made["steps"][-1] - made["steps"][0]}


def measured(a, dtype):
    one, two, three = a.loras
    kinds = {
        "plain": lambda: load(a, dtype, []),
        "three": lambda: load(a, dtype, a.loras),
        "batch_plain": lambda: batch(a, dtype, [None] * 6),
        "batch_same": lambda: batch(a, dtype, [one] * 6),
        "batch_swapped": lambda: batch(a, dtype, [one, one, two, two, three, three]),
    }
    rows = {kind: [] for kind in kinds}
    for _ in range(a.rounds):
        for kind, measure in kinds.items(): rows[kind].append(measure())
    seconds = {kind: statistics.median(row["seconds"] for row in of_kind) for kind, of_kind in rows.items()}
    peak = {what: {kind: max(row[what] for row in of_kind) for kind, of_kind in rows.items()} for what in ("resident", "anonymous")}
    swap = (seconds["batch_swapped"] - seconds["batch_same"]) / 2
    ratios = {"load_with_three": seconds["three"] / seconds["plain"], "swap": swap / seconds["plain"]}
    for what, bytes in peak.items():
        ratios[f"{what}_three"] = bytes["three"] / bytes["plain"]
        ratios[f"{what}_swapped"] = bytes["batch_swapped"] / bytes["batch_plain"]
    return {"dtype": dtype, "ratios": ratios, "swap_seconds": swap, "seconds": seconds, "peak": peak, "rounds": rows}


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("sd_gen"); parser.add_argument("--cache", default="random-sd15"); parser.add_argument("--dtype", default="f32,bf16"); parser.add_argument("--rounds", type=int, default=5)
parser.add_argument("--model", help="a model's folder, instead of one that is made"); parser.add_argument("--loras", help="three files, instead of those that are made")
a = parser.parse_args()
cache = pathlib.Path(a.cache)
if not (a.model and a.loras): cache.mkdir(parents=True, exist_ok=True)
a.model = pathlib.Path(a.model) if a.model else random_sd15.model(cache / "model")
a.loras = a.loras.split(",") if a.loras else [random_sd15.lora(a.model, cache / f"lora-{i}.safetensors", seed=i) for i in range(3)]
print(json.dumps({"bars": {"load_with_three": 1.3, "swap": 0.5, "memory": 1.1}, "measured": [measured(a, dtype) for dtype in a.dtype.split(",")]}, indent=1))
