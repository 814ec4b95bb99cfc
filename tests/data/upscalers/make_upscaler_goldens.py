"""Makes the goldens of tests/upscale.rs: what spandrel 0.4.2 makes of small images with small random networks.

Usage: python make_upscaler_goldens.py, in this folder. Needs torch, spandrel, numpy and Pillow.

The weights are not stored: both sides compute them from the tensors' names, by `numbers` here and in the test. A case has the
tensors' names and shapes, so that the test can write the file that the program opens; the images are PNGs.
"""

import json

import numpy as np
import spandrel
import torch
from PIL import Image
from spandrel.architectures.Compact import Compact
from spandrel.architectures.ESRGAN import ESRGAN
from spandrel.architectures.SPAN import SPAN
from spandrel.architectures.SwinIR import SwinIR


def fnv(name):
    value = 0xCBF29CE484222325
    for byte in name.encode():
        value = ((value ^ byte) * 0x100000001B3) & 0xFFFFFFFFFFFFFFFF
    return value


def numbers(name, count):
    """Numbers in [-1, 1) that only depend on the name: splitmix64 over a count."""
    with np.errstate(over="ignore"):
        z = np.uint64(fnv(name)) + np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z ^= z >> np.uint64(31)
    return (z >> np.uint64(40)).astype(np.float64) / 2**23 - 1.0


def tensor(name, shape):
    """A weight of the size that keeps a network's values in order."""
    values = numbers(name, int(np.prod(shape, dtype=np.int64)))
    if name.endswith("relative_position_bias_table"):
        values = values * 2
    elif len(shape) >= 2:
        values = values * (1.5 / np.sqrt(np.prod(shape[1:])))
    elif "norm" in name and name.endswith("weight"):
        values = 1 + values / 4
    else:
        values = values / 8
    return values.astype(np.float32).reshape(shape)


def image(name, width, height):
    """Waves with some noise on them."""
    y, x, c = np.meshgrid(np.arange(height), np.arange(width), np.arange(3), indexing="ij")
    waves = np.sin(x * 0.35 + c) * np.cos(y * 0.23 - c) * 80 + 128
    return np.clip(waves + numbers(name, width * height * 3).reshape(height, width, 3) * 40, 0, 255).astype(np.uint8)


def renamed(state, names):
    return {new: state[old] for old, new in names.items()}


def new_names(state, blocks, ups, style):
    """The old names of an RRDB network as the later files have them."""
    body, block, dense, trunk, up, hr = {
        "real": ("body", "{}", "rdb{}", "conv_body", "conv_up{}", "conv_hr"),
        "bsr": ("RRDB_trunk", "{}", "RDB{}", "trunk_conv", "upconv{}", "HRconv"),
    }[style]
    names = {}
    for kind in ("weight", "bias"):
        names[f"model.0.{kind}"] = f"conv_first.{kind}"
        names[f"model.1.sub.{blocks}.{kind}"] = f"{trunk}.{kind}"
        for b in range(blocks):
            for d in (1, 2, 3):
                for c in (1, 2, 3, 4, 5):
                    names[f"model.1.sub.{b}.RDB{d}.conv{c}.0.{kind}"] = f"{body}.{b}.{dense.format(d)}.conv{c}.{kind}"
        for u in range(1, ups + 1):
            names[f"model.{3 * u}.{kind}"] = f"{up.format(u)}.{kind}"
        names[f"model.{3 * ups + 2}.{kind}"] = f"{hr}.{kind}"
        names[f"model.{3 * ups + 4}.{kind}"] = f"conv_last.{kind}"
    return renamed(state, names)


def rrdb(style="old", blocks=1, **options):
    import math

    model = ESRGAN(num_filters=8, num_blocks=blocks, **options)
    state = model.state_dict()
    return state if style == "old" else new_names(state, blocks, int(math.log2(options["scale"])), style)


def swinir(window=8, **options):
    options = {"img_size": 32, "embed_dim": 24, "depths": [2, 2], "num_heads": [3, 3], "mlp_ratio": 2, "window_size": window} | options
    return SwinIR(**options).state_dict()


CASES = {
    "rrdb-old-x4": (lambda: rrdb(scale=4, blocks=2), (20, 14)),
    "rrdb-old-x1": (lambda: rrdb(scale=1), (20, 14)),
    "rrdb-new-x2": (lambda: rrdb("real", scale=2), (19, 14)),
    "rrdb-bsr-x4": (lambda: rrdb("bsr", scale=4), (12, 15)),
    "rrdb-plus-x4": (lambda: rrdb(scale=4, plus=True), (12, 15)),
    "rrdb-unshuffle-x2": (lambda: rrdb("real", in_nc=12, scale=4, shuffle_factor=2), (19, 13)),
    "rrdb-unshuffle-x1": (lambda: rrdb("real", in_nc=48, scale=4, shuffle_factor=4), (23, 18)),
    "compact-x4": (lambda: Compact(num_feat=12, num_conv=3, upscale=4).state_dict(), (20, 14)),
    "compact-x1": (lambda: Compact(num_feat=12, num_conv=2, upscale=1).state_dict(), (20, 14)),
    "span-x2": (lambda: SPAN(num_in_ch=3, num_out_ch=3, feature_channels=12, upscale=2).state_dict(), (20, 14)),
    "span-no-norm-x4": (lambda: SPAN(num_in_ch=3, num_out_ch=3, feature_channels=12, upscale=4, norm=False).state_dict(), (14, 12)),
    "swinir-shuffle-x2": (lambda: swinir(upscale=2, upsampler="pixelshuffle"), (29, 18)),
    "swinir-shuffle-x3": (lambda: swinir(upscale=3, upsampler="pixelshuffle", depths=[2], num_heads=[2]), (17, 18)),
    "swinir-direct-x4": (lambda: swinir(upscale=4, upsampler="pixelshuffledirect", depths=[2], num_heads=[3]), (17, 18)),
    "swinir-nearest-x4": (lambda: swinir(upscale=4, upsampler="nearest+conv", resi_connection="3conv", depths=[2], num_heads=[3]), (17, 18)),
    "swinir-jpeg-x1": (lambda: swinir(window=7, upscale=1, upsampler="", img_size=28, img_range=255.0), (22, 18)),
}

GAINS = {"span-x2": 0.0078125, "span-no-norm-x4": 0.5}


def main():
    cases = []
    for name, (build, (width, height)) in CASES.items():
        stored = build()
        weights = {}
        for key, value in stored.items():
            # What is counted is not drawn; what spandrel computes anew is not stored by everybody.
            if value.dtype.is_floating_point and "attn_mask" not in key:
                drawn = tensor(key, tuple(value.shape))
                # A SPAN with norm takes a range of 255, and its blocks make small values smaller.
                gain = GAINS.get(name, 1.0) if key.startswith("conv_1.") else 1.0
                weights[key] = torch.from_numpy((drawn * np.float32(gain)).astype(np.float32))
            else:
                weights[key] = value
        if "no_norm" in weights:
            weights["no_norm"] = torch.zeros(1)
        shapes = {key: list(value.shape) for key, value in weights.items() if "attn_mask" not in key}
        model = spandrel.ModelLoader().load_from_state_dict(dict(weights)).eval()
        given = image(name, width, height)
        x = torch.from_numpy(given.astype(np.float32) / 255).permute(2, 0, 1)[None]
        with torch.no_grad():
            y = model.model(x)[0].permute(1, 2, 0)
        # Most values must lie within the range of an image, so that levels mean something.
        made = np.rint(y.clamp(0, 1).numpy() * 255).astype(np.uint8)
        inside = np.mean((y.numpy() > 0) & (y.numpy() < 1))
        print(f"{name}: {model.architecture.id}, x{model.scale}, {given.shape} to {made.shape}, {inside:.0%} within the range, std {made.std():.0f}")
        assert inside > 0.3 and made.std() > 5
        Image.fromarray(given).save(f"{name}-input.png", optimize=True)
        Image.fromarray(made).save(f"{name}.png", optimize=True)
        cases.append({"name": name, "architecture": model.architecture.id, "scale": model.scale, "gain": GAINS.get(name, 1.0), "tensors": shapes})
    with open("cases.json", "w") as file:
        json.dump(cases, file, separators=(",", ":"))
        file.write("\n")


if __name__ == "__main__":
    main()
