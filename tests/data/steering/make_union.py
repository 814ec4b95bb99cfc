#!/usr/bin/env python3
"""Makes a very small random ControlNet Union for tests/data/parity/sdxl, and what diffusers computes with it.

    pip install torch "diffusers==0.36.0" "transformers<5"
    python make_union.py                 # everything, beside this script

    union/                     the network as a diffusers folder in eight bits
    union-golden.safetensors   inputs, residuals and predictions, for one image and for two, and the latents of whole runs
    union-{a,b}.png            what the runs are shown
    union-{one,two,part}.png   whole images: of one image, of two, and of two in parts of the steps
"""
import inspect
import json
import pathlib
import sys

import diffusers as d
import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

HERE = pathlib.Path(__file__).resolve().parent
PARITY = HERE.parent / "parity"
sys.path.insert(0, str(PARITY))
from make_parity import enliven  # noqa: E402

MODEL = PARITY / "sdxl"
HEIGHT, WIDTH = 8, 12  # latents
REQUEST = json.loads((MODEL / "request.json").read_text())

torch.manual_seed(19)
unet = d.UNet2DConditionModel.from_pretrained(MODEL / "unet", torch_dtype=torch.float32)
factor = 2 ** (len(d.AutoencoderKL.load_config(MODEL / "vae")["block_out_channels"]) - 1)
kept = {k: v for k, v in unet.config.items() if k in inspect.signature(d.ControlNetUnionModel.__init__).parameters}
width = unet.config.block_out_channels[0]
net = d.ControlNetUnionModel(**{**kept, "conditioning_embedding_out_channels": (8, 12, 16, 24)[: factor.bit_length()], "num_control_type": 6, "transformer_layers_per_block": 1, "num_trans_channel": width,
                                "num_proj_channel": width, "num_trans_head": 4})
enliven(net)
with torch.no_grad():
    net.task_embedding.normal_(0, 0.5)
    for zero in [*net.controlnet_down_blocks, net.controlnet_mid_block]: zero.weight.mul_(0.5)
net.save_pretrained(HERE / "union")
file = HERE / "union/diffusion_pytorch_model.safetensors"
small = {k: v.to(torch.float8_e4m3fn).contiguous() for k, v in load_file(file).items()}
save_file(small, file)
net.load_state_dict({k: v.float() for k, v in small.items()})
config = HERE / "union/config.json"
config.write_text(config.read_text().rstrip() + "\n")

golden = {}
hints = [torch.rand(1, 3, HEIGHT * factor, WIDTH * factor) for _ in range(2)]
latents, context = torch.randn(2, 4, HEIGHT, WIDTH), torch.randn(2, 7, net.config.cross_attention_dim)
pooled = torch.randn(2, net.config.projection_class_embeddings_input_dim - 6 * net.config.addition_time_embed_dim)
time_ids = torch.tensor([[32.0, 48, 0, 0, 32, 48], [32, 48, 4, 8, 32, 48]])
golden.update({"latents": latents, "context": context, "pooled": pooled, "time_ids": time_ids, "hint.0": hints[0], "hint.1": hints[1]})
for name, kinds, weights in (("one", [3], [0.7]), ("two", [3, 1], [0.7, 0.4])):
    control_type = torch.zeros(6).scatter_(0, torch.tensor(kinds), 1).reshape(1, -1).repeat(2, 1)
    with torch.no_grad():
        down, mid = net(latents, 421, context, controlnet_cond=[hint.repeat(2, 1, 1, 1) for hint in hints[: len(kinds)]], control_type=control_type, control_type_idx=kinds, conditioning_scale=weights,
                        added_cond_kwargs={"text_embeds": pooled, "time_ids": time_ids}, return_dict=False)
    golden[f"{name}.mid"] = mid
    golden.update({f"{name}.down.{i}": residual for i, residual in enumerate(down)})

y, x = np.mgrid[0 : REQUEST["height"], 0 : REQUEST["width"]]
pictures = [np.stack([(x * 5 + y) % 256, (x * y) % 256, (y * 7 + x // 3) % 256], -1), np.stack([255 - 5 * x, 8 * y, 128 + 0 * x], -1)]
pictures = [Image.fromarray(picture.clip(0, 255).astype(np.uint8)) for picture in pictures]
for name, picture in zip("ab", pictures): picture.save(HERE / f"union-{name}.png")
pipe = d.StableDiffusionXLControlNetUnionPipeline.from_pretrained(MODEL, controlnet=net, torch_dtype=torch.float32)
pipe.set_progress_bar_config(disable=True)
RUNS = {"one": ([3], 0.8, 0.0, 1.0), "two": ([3, 1], [0.8, 0.5], 0.0, 1.0), "part": ([3, 1], [0.8, 0.5], [0.0, 0.5], [1.0, 1.0])}
for name, (kinds, weights, start, end) in RUNS.items():
    asked = dict(prompt=REQUEST["prompt"], negative_prompt=REQUEST["negative_prompt"], control_image=pictures[: len(kinds)], control_mode=kinds, width=REQUEST["width"],
                 height=REQUEST["height"], num_inference_steps=REQUEST["steps"], guidance_scale=REQUEST["guidance_scale"], controlnet_conditioning_scale=weights,
                 control_guidance_start=start, control_guidance_end=end, generator=torch.Generator("cpu").manual_seed(REQUEST["seed"]))
    pipe(**asked).images[0].save(HERE / f"union-{name}.png")
plain = d.StableDiffusionXLPipeline(**{k: v for k, v in pipe.components.items() if k != "controlnet"})
plain.set_progress_bar_config(disable=True)
without = np.asarray(plain(prompt=REQUEST["prompt"], negative_prompt=REQUEST["negative_prompt"], width=REQUEST["width"], height=REQUEST["height"], num_inference_steps=REQUEST["steps"],
                           guidance_scale=REQUEST["guidance_scale"], generator=torch.Generator("cpu").manual_seed(REQUEST["seed"])).images[0]).astype(int)
made = {name: np.asarray(Image.open(HERE / f"union-{name}.png")).astype(int) for name in RUNS}
print({name: np.abs(image - without).max() for name, image in made.items()}, np.abs(made["two"] - made["part"]).max(), without.std())
save_file({k: v.contiguous() for k, v in golden.items()}, HERE / "union-golden.safetensors")
