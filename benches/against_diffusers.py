#!/usr/bin/env python3
"""Times one guided step and one VAE decode of sd-gen and of diffusers on the CPU, in turn, with the same model folder.

    pip install torch "diffusers==0.36.0" "transformers<5"
    python against_diffusers.py target/release/sd-gen MODEL_FOLDER [--size 512] [--dtype f32] [--rounds 3] [--threads 2]

Prints one JSON object: seconds of every round, medians, and the ratios sd-gen / diffusers. Run it on an idle machine and quote ratios.
"""
import argparse, json, statistics, subprocess, time
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel

STEPS = 4


def sd_gen(a):
    """Seconds of the steps after the first, and of the decoding, from the times at which the program reports them."""
    command = [a.sd_gen, "-m", a.model, "-p", "a lighthouse", "-n", "blurry", "--steps", str(STEPS), "--sampler", "euler", "--size", f"{a.size}x{a.size}",
               "--seed", "1", "--dtype", a.dtype, "--device", "cpu", "--threads", str(a.threads), "--progress", "json", "-o", "-"]
    program = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    at = {}
    for line in program.stderr:
        event = json.loads(line)
        at[(event["event"], event.get("step"))] = time.perf_counter()
    if program.wait(): raise SystemExit("sd-gen failed")
    return (at["step", STEPS] - at["step", 1]) / (STEPS - 1), at["picture", None] - at["decode", None]


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("sd_gen"); ap.add_argument("model"); ap.add_argument("--size", type=int, default=512); ap.add_argument("--dtype", default="f32", choices=["f32", "bf16"])
    ap.add_argument("--rounds", type=int, default=3); ap.add_argument("--threads", type=int, default=2)
    a = ap.parse_args(); torch.set_num_threads(a.threads)
    dtype = {"f32": torch.float32, "bf16": torch.bfloat16}[a.dtype]; side = a.size // 8
    unet = UNet2DConditionModel.from_pretrained(a.model, subfolder="unet", torch_dtype=dtype).to(memory_format=torch.channels_last).eval()
    vae = AutoencoderKL.from_pretrained(a.model, subfolder="vae", torch_dtype=dtype).to(memory_format=torch.channels_last).eval()
    rows, text = torch.randn(2, 4, side, side).to(dtype).to(memory_format=torch.channels_last), torch.randn(2, 77, unet.config.cross_attention_dim).to(dtype)
    added = dict(text_embeds=torch.randn(2, 1280).to(dtype), time_ids=torch.rand(2, 6).to(dtype)) if unet.config.addition_embed_type else None
    def timed(call): start = time.perf_counter(); call(); return time.perf_counter() - start
    ours, theirs = [], []
    with torch.inference_mode():
        step = lambda: unet(rows, torch.tensor(500), text, added_cond_kwargs=added)
        decode = lambda: vae.decode(rows[:1])
        step(); decode()
        for _ in range(a.rounds):
            theirs.append((timed(step), timed(decode))); ours.append(sd_gen(a))
    medians = [[statistics.median(part) for part in zip(*runs)] for runs in (ours, theirs)]
    names = ("guided step", "VAE decode")
    print(json.dumps({"size": a.size, "dtype": a.dtype, "threads": a.threads, "torch": torch.__version__, "sd-gen": dict(zip(names, zip(*ours))), "diffusers": dict(zip(names, zip(*theirs))),
                      "ratio": {name: round(us / them, 3) for name, us, them in zip(names, *medians)}}, indent=1))


if __name__ == "__main__": main()
