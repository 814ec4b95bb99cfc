#!/usr/bin/env python3
"""Makes a narrow random tiny autoencoder (TAESD) and what diffusers' AutoencoderTiny decodes with it.

    pip install torch "diffusers==0.36.0"
    python make_taesd.py                # beside this script

    diffusers.safetensors    both halves, named as in madebyollin/taesd
    decoder.safetensors      the decoder alone, numbered as in taesd_decoder.safetensors
    golden.safetensors       latents, and the image that they become
"""
import pathlib
import torch
from diffusers import AutoencoderTiny
from safetensors.torch import load_file, save_file

HERE = pathlib.Path(__file__).resolve().parent


@torch.no_grad()
def main():
    torch.manual_seed(0); torch.set_num_threads(1)
    width = (8,) * 4
    model = AutoencoderTiny(encoder_block_out_channels=width, decoder_block_out_channels=width).eval()
    for p in model.parameters():  # so that no weight or bias may be left out without a change in the image
        p.normal_(0, (2 / p[0].numel()) ** 0.5 if p.ndim > 1 else 0.1)
    # A block adds to what it was given; so many of them would drown the latents.
    for name, p in model.named_parameters():
        if name.endswith("conv.4.weight"): p.mul_(0.4)
    latents = torch.randn(2, 4, 5, 3) * 2
    last = [p for p in model.decoder.parameters() if p.ndim > 1][-1]
    last.mul_(0.4 / model.decode(latents).sample.std())
    save_file({k: v.half().contiguous() for k, v in model.state_dict().items()}, HERE / "diffusers.safetensors")
    decoder = {k.removeprefix("decoder.layers."): v for k, v in load_file(HERE / "diffusers.safetensors").items() if k.startswith("decoder.")}
    # The author's sequence begins with the clamp, which diffusers does outside of its own.
    numbered = lambda k: ".".join([str(int(k.split(".")[0]) + 1), *k.split(".")[1:]])
    save_file({numbered(k): v for k, v in decoder.items()}, HERE / "decoder.safetensors")
    model.load_state_dict({k: v.float() for k, v in load_file(HERE / "diffusers.safetensors").items()})
    image = model.decode(latents).sample
    print("latents std", latents.std().item(), "image std", image.std().item(), "mean", image.mean().item())
    save_file({"latents": latents, "image": image.contiguous()}, HERE / "golden.safetensors")


if __name__ == "__main__": main()
