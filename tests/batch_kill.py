#!/usr/bin/env python3
"""The heavy bar for `sd-gen batch`: many lines, killed with -9 at random moments and resumed each time.

    python3 tests/batch_kill.py target/release/sd-gen [--lines 1000] [--kills 20] [--steps 2] [--processes 4] [--slow 50]

Compares all images with those of an undisturbed run, counts what was generated twice, and gives the undisturbed run's images a second.
With several processes they share one folder and a random one is killed each time. With `--slow MS`, strace makes every rename take so
much longer, as a network file system does.
"""

import argparse
import json
import os
import random
import resource
import signal
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
parser.add_argument("--processes", type=int, default=1)
parser.add_argument("--slow", type=int, default=0, metavar="MS")
args = parser.parse_args()
program = str(Path(args.program).resolve())


def images(folder):
    return {path.name: path.read_bytes() for path in folder.glob("*.png")}


def command(folder, threads=None):
    flags = ["-t", str(threads)] if threads else []
    return [program, "batch", "lines.txt", "--output-dir", folder, "--steps", str(args.steps), "-q", *flags]


class Run:
    """A process of its own, behind strace where renames are slow."""

    def __init__(self, place):
        slow = ["strace", "-f", "-o", "/dev/null", "-e", "trace=renameat2", "-e", f"inject=renameat2:delay_enter={args.slow * 1000}"]
        self.traced = args.slow > 0
        words = command("out", 1 if args.processes > 1 else None)
        self.child = subprocess.Popen([*slow, *words] if self.traced else words, cwd=place, stdout=subprocess.DEVNULL)

    def has_ended(self):
        return self.child.poll() is not None

    def kill(self):
        # Of strace, the process that it watches: strace alone would leave it to go on.
        pids = subprocess.run(["pgrep", "-P", str(self.child.pid)], capture_output=True, text=True).stdout.split() if self.traced else []
        for pid in map(int, pids):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        if not self.traced and not self.has_ended():
            self.child.kill()
        self.child.wait()


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

    runs, kills = [Run(place) for _ in range(args.processes)], 0
    while kills < args.kills:
        time.sleep(random.uniform(0.02, max(0.2, 1.6 * took / args.kills)))
        run = random.choice(runs)
        if run.has_ended():
            print(f"finished after {kills} kills; the rest of them hit runs that have nothing to do", file=sys.stderr)
        run.kill()
        runs.remove(run)
        kills += 1
        runs.append(Run(place))
    for run in runs:
        assert run.child.wait() == 0, "a run that nobody killed failed"
    subprocess.run(command("out"), cwd=place, check=True, stdout=subprocess.DEVNULL)
    out = images(place / "out")
    records = [json.loads(line) for line in (place / "out/sd-gen.manifest.jsonl").read_text().splitlines()]
    twice = sum(count - 1 for count in Counter(record["key"] for record in records).values())
    left = [path.name for path in (place / "out").iterdir() if path.suffix not in (".png", ".jsonl")]
    print(f"killed {kills} times: {len(out)} images, {twice} generated twice ({twice / kills:.1f} a kill), left behind: {left}")
    assert set(out) == set(whole), f"names: {sorted(set(out) ^ set(whole))[:9]}"
    assert out == whole, "the images differ from those of the undisturbed run"
    assert not left and twice <= 48 * kills
