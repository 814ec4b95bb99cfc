#!/usr/bin/env python3
"""Makes very small random ControlNets and an IP-Adapter for the models of tests/data/parity, and what diffusers and transformers compute.

    pip install torch "diffusers==0.36.0" "transformers<5"
    python make_steering.py              # everything, beside this script

    NAME/                the ControlNet of parity's model NAME as a diffusers folder in eight bits
    NAME-original.safetensors  the same in the original layout (sd15)
    ip-adapter*.safetensors, image_encoder/  a plain and a plus adapter for sd15, with their image encoder
    golden.safetensors   inputs and outputs, computed in f32 on the CPU from the stored weights
"""
import pathlib
import sys

import diffusers as d
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

HERE = pathlib.Path(__file__).resolve().parent
PARITY = HERE.parent / "parity"
sys.path.insert(0, str(PARITY))
from make_parity import enliven  # noqa: E402

HEIGHT, WIDTH = 8, 12  # latents
golden = {}


def save(net, folder):
    """As a diffusers folder in eight bits, which are read back into the network."""
    net.save_pretrained(folder)
    file = folder / "diffusion_pytorch_model.safetensors"
    small = {k: v.to(torch.float8_e4m3fn).contiguous() for k, v in load_file(file).items()}
    save_file(small, file)
    net.load_state_dict({k: v.float() for k, v in small.items()})


def controls():
    for name in ("sd15", "sd21-v", "sdxl"):
        unet = d.UNet2DConditionModel.from_pretrained(PARITY / name / "unet", torch_dtype=torch.float32)
        vae = d.AutoencoderKL.from_pretrained(PARITY / name / "vae")
        halvings = len(vae.config.block_out_channels) - 1
        net = d.ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(8, 12, 16, 24)[: halvings + 1])
        enliven(net)
        with torch.no_grad():  # not louder than the UNet's own skips
            for zero in [*net.controlnet_down_blocks, net.controlnet_mid_block]: zero.weight.mul_(0.5)
        save(net, HERE / name)
        (HERE / name / "config.json").write_text((HERE / name / "config.json").read_text() + "\n")
        factor = 2**halvings
        hint = torch.rand(1, 3, HEIGHT * factor, WIDTH * factor)
        latents, context = torch.randn(2, 4, HEIGHT, WIDTH), torch.randn(2, 7, net.config.cross_attention_dim)
        added = {}
        if net.config.addition_embed_type == "text_time":
            width = net.config.projection_class_embeddings_input_dim - 6 * net.config.addition_time_embed_dim
            added = {"text_embeds": torch.randn(2, width), "time_ids": torch.tensor([[32.0, 48, 0, 0, 32, 48], [32, 48, 4, 8, 32, 48]])}
            golden[f"{name}.pooled"], golden[f"{name}.time_ids"] = added["text_embeds"], added["time_ids"]
        with torch.no_grad():
            down, mid = net(latents, 421, context, controlnet_cond=hint, added_cond_kwargs=added or None, return_dict=False)
            wanted = unet(latents, 421, context, added_cond_kwargs=added or None, down_block_additional_residuals=[r * 0.7 for r in down],
                          mid_block_additional_residual=mid * 0.7).sample
        golden.update({f"{name}.hint": hint, f"{name}.latents": latents, f"{name}.context": context, f"{name}.mid": mid, f"{name}.prediction": wanted})
        golden.update({f"{name}.down.{i}": residual for i, residual in enumerate(down)})
        with torch.no_grad(): golden[f"{name}.embedded"] = net.controlnet_cond_embedding(hint)


def original():
    """sd15's ControlNet under the names of the original layout."""
    config = d.ControlNetModel.from_pretrained(HERE / "sd15").config
    per, levels = config.layers_per_block, len(config.block_out_channels)
    resnet = {"norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0", "conv2": "out_layers.3", "conv_shortcut": "skip_connection"}
    blocks = 2 * (len(config.conditioning_embedding_out_channels) - 1)
    names = {"conv_in": "input_blocks.0.0", "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2", "controlnet_mid_block": "middle_block_out.0",
             "controlnet_cond_embedding.conv_in": "input_hint_block.0", "controlnet_cond_embedding.conv_out": f"input_hint_block.{2 * blocks + 2}",
             "mid_block.attentions.0": "middle_block.1", "mid_block.resnets.0": "middle_block.0", "mid_block.resnets.1": "middle_block.2"}
    names.update({f"controlnet_cond_embedding.blocks.{i}": f"input_hint_block.{2 * i + 2}" for i in range(blocks)})
    n = 1
    for i in range(levels):
        for j in range(per):
            names[f"down_blocks.{i}.resnets.{j}"], names[f"down_blocks.{i}.attentions.{j}"] = f"input_blocks.{n}.0", f"input_blocks.{n}.1"
            n += 1
        if i + 1 < levels: names[f"down_blocks.{i}.downsamplers.0.conv"] = f"input_blocks.{n}.0.op"; n += 1
    names.update({f"controlnet_down_blocks.{i}": f"zero_convs.{i}.0" for i in range(n)})
    written = {}
    for key, tensor in load_file(HERE / "sd15/diffusion_pytorch_model.safetensors").items():
        site = max((s for s in names if key.startswith(s + ".")), key=len)
        rest = key[len(site) + 1 :]
        if ".resnets." in site:
            leaf = max((s for s in resnet if rest.startswith(s + ".")), key=len)
            rest = resnet[leaf] + rest[len(leaf) :]
        written[f"control_model.{names[site]}.{rest}"] = tensor
    save_file(written, HERE / "sd15-original.safetensors")


def image_prompts():
    unet = d.UNet2DConditionModel.from_pretrained(PARITY / "sd15/unet", torch_dtype=torch.float32)
    cross = unet.config.cross_attention_dim
    encoder = enliven(CLIPVisionModelWithProjection(CLIPVisionConfig(hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4, image_size=56,
                                                                      patch_size=14, projection_dim=24, hidden_act="gelu")))
    encoder.half().save_pretrained(HERE / "image_encoder")
    encoder = encoder.float()
    (HERE / "image_encoder/config.json").write_text((HERE / "image_encoder/config.json").read_text() + "\n")
    y, x = torch.meshgrid(torch.arange(70), torch.arange(100), indexing="ij")
    picture = torch.stack([(x * 5 + y) % 256, (x * y) % 256, (y * 7 + x // 3) % 256], -1).byte().numpy()
    pixels = CLIPImageProcessor(size={"shortest_edge": 56}, crop_size=56)(Image.fromarray(picture), return_tensors="pt").pixel_values
    with torch.no_grad():
        seen, zeros = encoder(pixels, output_hidden_states=True), encoder(torch.zeros_like(pixels), output_hidden_states=True)
    golden.update({"encoder.zeros": zeros.hidden_states[-2], "encoder.pixels": pixels, "encoder.projected": seen.image_embeds, "encoder.penultimate": seen.hidden_states[-2]})
    attention = [p for n, p in unet.named_modules() if n.endswith("attn2")]
    order = [*[n for n, _ in unet.named_modules() if n.endswith("attn2") and n.startswith("down")], *[n for n, _ in unet.named_modules() if n.endswith("attn2") and n.startswith("up")],
             *[n for n, _ in unet.named_modules() if n.endswith("attn2") and n.startswith("mid")]]
    assert len(order) == len(attention)
    n = lambda *shape: torch.randn(*shape) * shape[-1] ** -0.5
    words = {f"ip_adapter.{2 * i + 1}.to_{kind}_ip.weight": n(unet.get_submodule(name).to_k.out_features, cross) for i, name in enumerate(order) for kind in "kv"}
    plain = {"image_proj.proj.weight": n(4 * cross, 24), "image_proj.proj.bias": 0.1 * torch.randn(4 * cross), "image_proj.norm.weight": 1 + 0.2 * torch.randn(cross), "image_proj.norm.bias": 0.1 * torch.randn(cross)}
    plus = {"latents": torch.randn(1, 5, 32), "proj_in.weight": n(32, 32), "proj_in.bias": 0.1 * torch.randn(32), "proj_out.weight": n(cross, 32), "proj_out.bias": 0.1 * torch.randn(cross),
            "norm_out.weight": 1 + 0.2 * torch.randn(cross), "norm_out.bias": 0.1 * torch.randn(cross)}
    for i in range(4):  # diffusers always builds four
        plus.update({f"layers.{i}.0.to_q.weight": n(64, 32), f"layers.{i}.0.to_kv.weight": n(128, 32), f"layers.{i}.0.to_out.weight": n(32, 64), f"layers.{i}.1.1.weight": n(128, 32), f"layers.{i}.1.3.weight": n(32, 128)})
        for norm in (f"layers.{i}.0.norm1", f"layers.{i}.0.norm2", f"layers.{i}.1.0"): plus.update({f"{norm}.weight": 1 + 0.2 * torch.randn(32), f"{norm}.bias": 0.1 * torch.randn(32)})
    latents, context = torch.randn(2, 4, HEIGHT, WIDTH), torch.randn(2, 7, cross)
    golden.update({"ip.latents": latents, "ip.context": context})
    for kind, projection in (("plain", plain), ("plus", {f"image_proj.{k}": v for k, v in plus.items()})):
        file = HERE / ("ip-adapter.safetensors" if kind == "plain" else "ip-adapter-plus.safetensors")
        save_file({k: v.half().contiguous() for k, v in {**projection, **words}.items()}, file)
        tensors = {k: v.float() for k, v in load_file(file).items()}
        state = {part: {k[len(part) + 1 :]: v for k, v in tensors.items() if k.startswith(part + ".")} for part in ("image_proj", "ip_adapter")}
        fresh = d.UNet2DConditionModel.from_pretrained(PARITY / "sd15/unet", torch_dtype=torch.float32)
        fresh._load_ip_adapter_weights([state])
        for processor in fresh.attn_processors.values():
            if hasattr(processor, "scale"): processor.scale = [0.8]
        embeds = (torch.zeros_like(seen.image_embeds), seen.image_embeds) if kind == "plain" else (zeros.hidden_states[-2], seen.hidden_states[-2])
        with torch.no_grad():
            given = [torch.cat(embeds)[:, None]]
            golden[f"ip.{kind}.tokens"] = fresh.encoder_hid_proj(given)[0].squeeze(1)
            golden[f"ip.{kind}"] = fresh(latents, 421, context, added_cond_kwargs={"image_embeds": given}).sample


torch.manual_seed(7)
controls()
original()
image_prompts()
save_file({k: v.contiguous() for k, v in golden.items()}, HERE / "golden.safetensors")
