#!/usr/bin/env python3
"""Writes the numbers of torch's CPU generator that the tests of src/noise.rs compare with.

    pip install torch numpy
    python make_goldens.py > torch_cpu.json      # on a machine with AVX2

`values` are written with 9 digits, which is exact for f32; `crc32` is of the little-endian bytes of all values of a draw.
"""
import json, zlib
import numpy as np, torch

SEEDS = [0, 1, 42, 1234567890, 2**32 - 1, 2**32 + 5, 2**63 - 1]


def crc(t):
    return zlib.crc32(t.numpy().astype("<f4").tobytes())


def values(t):
    return [float(f"{x:.9g}") for x in t.tolist()]


def main():
    draws = []
    for seed in SEEDS:
        for size in [*range(1, 101), 16384, 65536 + 5]:
            g = torch.Generator("cpu").manual_seed(seed)
            draws.append([seed, size, crc(torch.randn(size, generator=g))])
    g = torch.Generator("cpu").manual_seed(7)
    # Short and long draws from one generator: the spare value of a short draw outlives a long one.
    mixed = [[n, values(torch.randn(n, generator=g))] for n in (3, 16, 2, 21, 1)]
    g = torch.Generator("cpu").manual_seed(42)
    plain = values(torch.randn(37, generator=g))
    print(json.dumps(dict(torch=torch.__version__, capability=torch.backends.cpu.get_cpu_capability(), seed_42=plain, seed_7_mixed=mixed, crc32=draws)))


main()
