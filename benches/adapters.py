#!/usr/bin/env python3
"""Measures what LoRAs cost: loading Stable Diffusion 1.5's size with three of rank 64 against loading without, swapping one for another against a
load, and the memory.

    pip install torch "diffusers==0.36.0" "transformers<5"
    python benches/adapters.py target/release/sd-gen [--cache DIR] [--dtype bf16] [--rounds 5]

Seconds count from the program's start until the first step of an image of 64×64 is done, so that adapters that are merged after loading count too; a
swap counts from the end of an image to the first step of the next one, less the same without a swap. Every round is a new process of each kind, in
turn; medians are compared. The weights are random, and made once in --cache. Prints one JSON object. Run it on an idle machine.
"""
import argparse, json, pathlib, statistics, subprocess, tempfile, time
import random_sd15


def events(a, arguments):
    """The run's events with the seconds since its start, and its peak memory."""
    start = time.perf_counter()
    common = ["--size", "64x64", "--steps", "1", "--guidance-scale", "1", "--dtype", a.dtype, "--device", "cpu", "--progress", "json", "--no-config"]
    with tempfile.TemporaryDirectory() as folder:
        program = subprocess.Popen([a.sd_gen, *arguments, *common, "--output-dir", folder], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        seen, peak = [], 0
        for line in program.stderr:
            try: event = json.loads(line)
            except ValueError: continue
            seen.append((time.perf_counter() - start, event))
            if event["event"] == "failed": raise SystemExit(line)
            if event["event"] in ("step", "image"):
                status = pathlib.Path(f"/proc/{program.pid}/status")
                peak = max([peak, *(int(row.split()[1]) * 1024 for row in status.read_text().splitlines() if row.startswith("VmHWM"))])
        if program.wait(): raise SystemExit(f"sd-gen failed: {seen[-1:]}")
    return seen, peak


def stepped(event): return event["event"] == "step" and event["step"] >= 1


def load(a, loras):
    seen, peak = events(a, ["-m", a.model, "-p", "x", "--seed", "1", *(part for lora in loras for part in ("--lora", f"{lora}:0.5"))])
    return next(at for at, event in seen if stepped(event)), peak


def swap(a, one, other):
    """Seconds that the steps of images with another adapter wait longer than those with the same."""
    with tempfile.NamedTemporaryFile("w", suffix=".jsonl") as lines:
        for i, lora in enumerate([one, one, other, other]): lines.write(json.dumps({"prompt": "x", "seed": i, "lora": f"{lora}:0.5"}) + "\n")
        lines.flush()
        seen, _ = events(a, ["batch", lines.name, "-m", a.model, "--batch-size", "1"])
    steps = [at for at, event in seen if stepped(event)]
    assert len(steps) == 4, steps
    return steps[2] - steps[1] - (steps[3] - steps[2] + steps[1] - steps[0]) / 2


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("sd_gen"); parser.add_argument("--cache", default="random-sd15"); parser.add_argument("--dtype", default="bf16"); parser.add_argument("--rounds", type=int, default=5)
a = parser.parse_args()
cache = pathlib.Path(a.cache); cache.mkdir(parents=True, exist_ok=True)
a.model = random_sd15.model(cache / "model")
loras = [random_sd15.lora(a.model, cache / f"lora-{i}.safetensors", seed=i) for i in range(3)]
rows = {"plain": [], "three": [], "swap": []}
for _ in range(a.rounds):
    rows["plain"].append(load(a, [])); rows["three"].append(load(a, loras)); rows["swap"].append(swap(a, *loras[:2]))
plain, three = (statistics.median(seconds for seconds, _ in rows[kind]) for kind in ("plain", "three"))
memory = [max(peak for _, peak in rows[kind]) for kind in ("plain", "three")]
swapped = statistics.median(rows["swap"])
print(json.dumps({"dtype": a.dtype, "load": plain, "load_with_three": three, "swap": swapped, "load_ratio": three / plain, "swap_ratio": swapped / plain,
                  "memory": memory[0], "memory_with_three": memory[1], "memory_ratio": memory[1] / memory[0], "bars": {"load_ratio": 1.3, "swap_ratio": 0.5, "memory_ratio": 1.1},
                  "rounds": rows}, indent=1))
