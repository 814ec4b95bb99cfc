#!/usr/bin/env python3
"""Makes a very small random Depth Anything, and what transformers computes with it.

    pip install torch torchvision "transformers>=4.45" pillow
    python make_depth.py                 # everything, beside this script

    transformers/              the network as a folder in eight bits, with two heads
    original.safetensors       the same weights under the names of its authors, of which one head is concluded
    golden.safetensors         pixels and the depth of both
    picture.png                an image
    {two,one}-heads.png        its maps, from the image to the image, with the size that the authors' own code gives it
"""
import pathlib

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import DepthAnythingConfig, DepthAnythingForDepthEstimation, Dinov2Config

HERE = pathlib.Path(__file__).resolve().parent
MEAN, DEVIATION = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])


def network(heads):
    backbone = Dinov2Config(hidden_size=64, num_hidden_layers=4, num_attention_heads=heads, mlp_ratio=1, image_size=70, patch_size=14, out_indices=[1, 2, 3, 4],
                            apply_layernorm=True, reshape_hidden_states=False)
    return DepthAnythingForDepthEstimation(DepthAnythingConfig(backbone_config=backbone, reassemble_hidden_size=64, neck_hidden_sizes=[8, 16, 24, 32], fusion_hidden_size=8,
                                                               head_hidden_size=6)).eval()


def randomised(net):
    for name, parameter in net.named_parameters():
        with torch.no_grad():
            if parameter.dim() > 1 and "token" not in name and "position" not in name:
                fan = parameter[0].numel() if ".resize." not in name or "layers.3" in name else parameter.shape[0]
                parameter.normal_(0, (1.5 / fan) ** 0.5)
            elif "norm" in name and name.endswith("weight") or "lambda" in name: parameter.normal_(1, 0.2)
            elif "position" in name or "token" in name: parameter.normal_(0, 0.7)
            else: parameter.normal_(0, 0.1)
    with torch.no_grad(): net.head.conv3.weight.abs_(); net.head.conv3.bias.fill_(0.1)
    return net


def original(tensors):
    """Under the names of DepthAnything/Depth-Anything-V2."""
    names = {"backbone.embeddings.cls_token": "pretrained.cls_token", "backbone.embeddings.mask_token": "pretrained.mask_token", "backbone.embeddings.position_embeddings": "pretrained.pos_embed",
             "backbone.embeddings.patch_embeddings.projection": "pretrained.patch_embed.proj", "backbone.layernorm": "pretrained.norm", "head.conv1": "depth_head.scratch.output_conv1",
             "head.conv2": "depth_head.scratch.output_conv2.0", "head.conv3": "depth_head.scratch.output_conv2.2"}
    for i in range(4):
        names.update({f"neck.reassemble_stage.layers.{i}.projection": f"depth_head.projects.{i}", f"neck.reassemble_stage.layers.{i}.resize": f"depth_head.resize_layers.{i}",
                      f"neck.convs.{i}": f"depth_head.scratch.layer{i + 1}_rn"})
        fusion, refine = f"neck.fusion_stage.layers.{i}", f"depth_head.scratch.refinenet{4 - i}"
        names[f"{fusion}.projection"] = f"{refine}.out_conv"
        names.update({f"{fusion}.residual_layer{u}.convolution{c}": f"{refine}.resConfUnit{u}.conv{c}" for u in (1, 2) for c in (1, 2)})
        layer, block = f"backbone.encoder.layer.{i}", f"pretrained.blocks.{i}"
        names.update({f"{layer}.{ours}": f"{block}.{theirs}" for ours, theirs in (("norm1", "norm1"), ("norm2", "norm2"), ("mlp.fc1", "mlp.fc1"), ("mlp.fc2", "mlp.fc2"), ("attention.output.dense", "attn.proj"),
                                                                                 ("layer_scale1.lambda1", "ls1.gamma"), ("layer_scale2.lambda1", "ls2.gamma"))})
    written = {}
    for key, tensor in tensors.items():
        if ".attention.attention." in key: continue
        site = max((s for s in names if key == s or key.startswith(s + ".")), key=len)
        written[names[site] + key[len(site) :]] = tensor
    for i in range(4):
        for leaf in ("weight", "bias"):
            written[f"pretrained.blocks.{i}.attn.qkv.{leaf}"] = torch.cat([tensors[f"backbone.encoder.layer.{i}.attention.attention.{part}.{leaf}"] for part in ("query", "key", "value")])
    assert len(written) == len(tensors) - 4 * 4
    return written


def size(width, height):
    """`Resize(518, 518, keep_aspect_ratio=True, ensure_multiple_of=14, resize_method="lower_bound")` of the authors."""
    scale = max(518 / width, 518 / height)
    def side(x):
        near = int(np.round(x / 14) * 14)
        return near if near >= 518 else int(np.ceil(x / 14) * 14)
    return side(scale * width), side(scale * height)


def depth_map(net, image):
    seen = np.asarray(image.resize(size(*image.size), Image.BICUBIC)) / 255.0
    pixels = torch.from_numpy(((seen - MEAN) / DEVIATION).astype(np.float32)).permute(2, 0, 1)[None]
    with torch.no_grad(): depth = net(pixels).predicted_depth
    depth = torch.nn.functional.interpolate(depth[None], size=image.size[::-1], mode="bicubic", align_corners=False)[0, 0]
    depth = (depth - depth.min()) / (depth.max() - depth.min())
    return Image.fromarray((depth.numpy() * 255).astype(np.uint8))


torch.manual_seed(11)
net = randomised(network(2))
net.save_pretrained(HERE / "transformers")
file = HERE / "transformers/model.safetensors"
small = {k: v.to(torch.float8_e4m3fn).contiguous() for k, v in load_file(file).items()}
save_file(small, file)
config = HERE / "transformers/config.json"
config.write_text(config.read_text().rstrip() + "\n")
save_file(original(small), HERE / "original.safetensors")
y, x = np.mgrid[0:61, 0:97]
picture = Image.fromarray(np.stack([128 + 90 * np.sin(x / 9) * np.cos(y / 7), (x * 2 + y) % 256, 255 * ((x - 50) ** 2 + (y - 30) ** 2 < 400)], -1).astype(np.uint8))
picture.save(HERE / "picture.png")
golden = {"pixels": torch.randn(1, 3, 42, 28)}
for name, heads in (("two", 2), ("one", 1)):
    net = network(heads)
    net.load_state_dict({k: v.float() for k, v in small.items()} if not hasattr(net.backbone.encoder.layer[0].attention, "q_proj") else
                        {k.replace("attention.attention.query", "attention.q_proj").replace("attention.attention.key", "attention.k_proj").replace("attention.attention.value", "attention.v_proj")
                          .replace("attention.output.dense", "attention.o_proj"): v.float() for k, v in small.items()})
    with torch.no_grad(): golden[name] = net(golden["pixels"]).predicted_depth
    made = depth_map(net, picture)
    made.save(HERE / f"{name}-heads.png")
    levels = np.asarray(made)
    print(name, levels.std(), np.unique(levels).size, golden[name].std().item(), (golden[name] == 0).float().mean().item())
save_file({k: v.contiguous() for k, v in golden.items()}, HERE / "golden.safetensors")
