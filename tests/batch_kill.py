#!/usr/bin/env python3
"""The heavy bar for `sd-gen batch`: many lines, killed with -9 at random moments and resumed each time.

    python3 tests/batch_kill.py target/release/sd-gen [--lines 1000] [--kills 20] [--steps 2]

Compares all images with those of an undisturbed run, counts what was generated twice, and gives both runs' images a second.
"""

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("program")
parser.add_argument("--lines", type=int, default=1000)
parser.add_argument("--kills", type=int, default=20)
parser.add_argument("--steps", type=int, default=2)
args = parser.parse_args()
program = str(Path(args.program).resolve())


def images(folder):
    return {path.name: path.read_bytes() for path in folder.glob("*.png")}


def command(folder):
    return [program, "batch", "lines.txt", "--output-dir", folder, "--steps", str(args.steps), "-q"]


with tempfile.TemporaryDirectory() as place:
    place = Path(place)
    words = ["red apple", "cat", "dog", "rocket", "green heart", "pizza", "sunflower"]
    lines = [f"a {words[i % len(words)]} number {i // 50}" for i in range(args.lines)]
    (place / "lines.txt").write_text("\n".join(lines) + "\n")

    start, before = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command("whole"), cwd=place, check=True, stdout=subprocess.DEVNULL)
    took, after = time.monotonic() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    whole = images(place / "whole")
    print(f"undisturbed: {len(whole)} images in {took:.1f} s, {took / len(whole):.3f} s an image, {cpu / took:.2f} cores busy")
    assert len(whole) == args.lines

    kills = 0
    while kills < args.kills:
        child = subprocess.Popen(command("out"), cwd=place, stdout=subprocess.DEVNULL)
        try:
            child.wait(random.uniform(0.02, max(0.2, 1.6 * took / args.kills)))
            print(f"finished after {kills} kills; the rest of them hit runs that have nothing to do", file=sys.stderr)
            kills += 1
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
            kills += 1
    subprocess.run(command("out"), cwd=place, check=True, stdout=subprocess.DEVNULL)
    out = images(place / "out")
    records = [json.loads(line) for line in (place / "out/sd-gen.manifest.jsonl").read_text().splitlines()]
    twice = sum(count - 1 for count in Counter(record["key"] for record in records).values())
    # An empty temporary file may be one that another process is about to lock, and is left alone for a minute.
    strangers = lambda: [path for path in (place / "out").iterdir() if path.suffix not in (".png", ".jsonl")]
    for path in strangers():
        assert path.stat().st_size == 0, path
        os.utime(path, (0, 0))
    subprocess.run(command("out"), cwd=place, check=True, stdout=subprocess.DEVNULL)
    left = [path.name for path in strangers()]
    print(f"killed {kills} times: {len(out)} images, {twice} generated twice ({twice / kills:.1f} a kill), left behind: {left}")
    assert out == whole, "the images differ from those of the undisturbed run"
    assert not left and twice <= 48 * kills
