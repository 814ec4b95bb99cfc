#!/usr/bin/env python3
"""Times one guided step and one VAE decode of diffusers on an NVIDIA GPU: random weights, f16, channels-last, eager and compiled.

    pip install torch "diffusers==0.36.0"
    python peers_cuda.py [--cases sd15:512,sdxl:1024] [--modes eager,compile] [--seconds 240] [--path FOLDER]

Prints one JSON object a line: median seconds and TFLOP/s, and first what the GPU itself reaches in a matrix product and a copy.
No case is begun after --seconds. --path is a folder with diffusers in it where it is not installed.
"""
import argparse, json, statistics, sys, time

START = time.monotonic()
UNETS = {
    "sd15": dict(sample_size=64, cross_attention_dim=768, attention_head_dim=8),
    "sdxl": dict(sample_size=128, block_out_channels=(320, 640, 1280), down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
                 up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"), transformer_layers_per_block=(1, 2, 10), attention_head_dim=(5, 10, 20),
                 cross_attention_dim=2048, use_linear_projection=True, addition_embed_type="text_time", addition_time_embed_dim=256, projection_class_embeddings_input_dim=2816),
}
VAE = dict(block_out_channels=(128, 256, 512, 512), down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4, layers_per_block=2)


def say(**row):
    print(json.dumps({key: round(value, 6) if isinstance(value, float) else value for key, value in row.items()}), flush=True)


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("--cases", default="sd15:512,sdxl:1024,sd15:1024,sdxl:512"); ap.add_argument("--modes", default="eager,compile")
    ap.add_argument("--seconds", type=float, default=240); ap.add_argument("--path"); a = ap.parse_args()
    # Behind what is installed, so that the machine's own torch and numpy stay first.
    if a.path: sys.path.append(a.path)
    import torch
    from torch.utils.flop_counter import FlopCounterMode
    say(torch=torch.__version__, cuda=torch.version.cuda, cudnn=torch.backends.cudnn.version(), gpu=torch.cuda.get_device_name())

    def timed(call, repeat=20):
        for _ in range(5): call()
        torch.cuda.synchronize(); seconds = []
        for _ in range(repeat):
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            begin.record(); call(); end.record(); end.synchronize(); seconds.append(begin.elapsed_time(end) / 1e3)
        return statistics.median(seconds)

    half = dict(device="cuda", dtype=torch.float16)
    m, big = torch.randn(8192, 8192, **half), torch.empty(2**30, device="cuda", dtype=torch.uint8)
    t = timed(lambda: m @ m); say(what="matmul 8192", seconds=t, tflop_s=2 * 8192**3 / t / 1e12)
    t = timed(lambda: big.clone()); say(what="copy 1 GiB", seconds=t, tb_s=2 * 2**30 / t / 1e12)
    del m, big
    from diffusers import AutoencoderKL, UNet2DConditionModel
    with torch.inference_mode():
        for case in a.cases.split(","):
            family, size = case.split(":"); side = int(size) // 8
            last = torch.channels_last
            unet = UNet2DConditionModel(**UNETS[family]).eval().to(**half).to(memory_format=last); vae = AutoencoderKL(**VAE).eval().to(**half).to(memory_format=last)
            x, c, ts = torch.randn(2, 4, side, side, **half).to(memory_format=last), torch.randn(2, 77, unet.config.cross_attention_dim, **half), torch.tensor(500, device="cuda")
            added = dict(text_embeds=torch.randn(2, 1280, **half), time_ids=torch.randn(2, 6, **half)) if family == "sdxl" else None
            with FlopCounterMode(display=False) as step: unet(x, ts, c, added_cond_kwargs=added)
            with FlopCounterMode(display=False) as decode: vae.decode(x[:1])
            for mode in a.modes.split(","):
                if time.monotonic() - START > a.seconds:
                    say(mode=mode, family=family, size=int(size), skipped="no time left"); continue
                try:
                    torch._dynamo.reset()
                    make = (lambda f: torch.compile(f, mode="max-autotune", fullgraph=True)) if mode == "compile" else (lambda f: f)
                    u, d = make(unet), make(vae.decode)
                    t = timed(lambda: u(x, ts, c, added_cond_kwargs=added))
                    say(mode=mode, what="guided step", family=family, size=int(size), seconds=t, tflop_s=step.get_total_flops() / t / 1e12)
                    if time.monotonic() - START > a.seconds: continue
                    t = timed(lambda: d(x[:1]))
                    say(mode=mode, what="VAE decode", family=family, size=int(size), seconds=t, tflop_s=decode.get_total_flops() / t / 1e12)
                except Exception as error:
                    say(mode=mode, family=family, size=int(size), error=str(error)[:300])
            del unet, vae; torch.cuda.empty_cache()


if __name__ == "__main__": main()
