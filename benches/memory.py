#!/usr/bin/env python3
"""Measures the memory of the two largest things that are asked for on small machines: an image of 2048×2048 by two passes of Stable Diffusion 1.5 in
bf16 (at most 6 GB), and the enlarging of 2048×2048 four times by an ESRGAN (at most 3 GB).

    pip install torch "diffusers==0.36.0" "transformers<5" pillow
    python benches/memory.py target/release/sd-gen [--cache DIR] [--only hires,upscale]

The peak is what the system counts (ru_maxrss of the process). The weights are random: of Stable Diffusion 1.5's size, and of ESRGAN's usual one (23
blocks of 64 channels). Prints one JSON object. It takes minutes, as the images are computed.
"""
import argparse, json, os, pathlib, subprocess, tempfile, time
import random_sd15


def esrgan(path):
    """RRDBNet of 64 channels, 23 blocks and 4 times, with the names of Real-ESRGAN's files."""
    if path.exists(): return path
    import torch
    from safetensors.torch import save_file
    torch.manual_seed(3)
    tensors = {}
    def conv(name, given, taken):
        tensors[f"{name}.weight"], tensors[f"{name}.bias"] = torch.randn(given, taken, 3, 3) * 0.1 * (taken * 9) ** -0.5, torch.zeros(given)
    conv("conv_first", 64, 3)
    for i in range(23):
        for j in (1, 2, 3):
            for k in range(5): conv(f"body.{i}.rdb{j}.conv{k + 1}", 32 if k < 4 else 64, 64 + 32 * k)
    for name in ("conv_body", "conv_up1", "conv_up2", "conv_hr"): conv(name, 64, 64)
    conv("conv_last", 3, 64)
    save_file(tensors, path)
    return path


def picture(path):
    if path.exists(): return path
    from PIL import Image
    small = Image.frombytes("RGB", (64, 64), bytes(x * 7 % 256 for x in range(64 * 64 * 3)))
    small.resize((2048, 2048)).save(path)
    return path


def peak(command):
    """Seconds and peak bytes of a command."""
    start = time.perf_counter()
    program = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    said = program.stderr.read()
    _, status, usage = os.wait4(program.pid, 0)
    if status: raise SystemExit(f"{' '.join(map(str, command))}: {said[-500:]}")
    return {"seconds": time.perf_counter() - start, "bytes": usage.ru_maxrss * 1024}


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("sd_gen"); parser.add_argument("--cache", default="random-sd15"); parser.add_argument("--only", default="hires,upscale"); parser.add_argument("--source", default="1024x1024")
a = parser.parse_args()
cache = pathlib.Path(a.cache); cache.mkdir(parents=True, exist_ok=True)
made = {}
with tempfile.TemporaryDirectory() as folder:
    if "hires" in a.only:
        model = random_sd15.model(cache / "model")
        made["hires"] = peak([a.sd_gen, "-m", model, "-p", "x", "--seed", "1", "--size", a.source, "--steps", "1", "--hires", "2", "--hires-steps", "1", "--hires-strength", "1",
                              "--dtype", "bf16", "--device", "cpu", "--quiet", "--no-config", "-o", f"{folder}/hires.png"])
    if "upscale" in a.only:
        made["upscale"] = peak([a.sd_gen, "upscale", picture(cache / "picture.png"), "--upscaler", esrgan(cache / "esrgan.safetensors"), "--device", "cpu", "--quiet",
                                "--output-dir", folder])
bars = {"hires": 6e9, "upscale": 3e9}
print(json.dumps({name: {**row, "at_most": bars[name], "holds": row["bytes"] <= bars[name]} for name, row in made.items()}, indent=1))
