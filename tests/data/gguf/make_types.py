"""One GGUF file with a tensor of every type that is read, and the numbers that PyPI `gguf` makes of them.

Run: python make_types.py   (numpy, gguf, safetensors)
"""

from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType as T
from safetensors.numpy import save_file

HERE = Path(__file__).parent
QUANTISED = [T.Q4_0, T.Q4_1, T.Q5_0, T.Q5_1, T.Q8_0, T.Q2_K, T.Q3_K, T.Q4_K, T.Q5_K, T.Q6_K]
# Where a block has its f16 numbers; all others are random bits.
HALVES = {T.Q4_1: [0, 2], T.Q5_1: [0, 2], T.Q2_K: [80, 82], T.Q3_K: [108], T.Q4_K: [0, 2], T.Q5_K: [0, 2], T.Q6_K: [208]}
rng = np.random.default_rng(16)
writer = gguf.GGUFWriter(HERE / "types.gguf", "sd1")
writer.add_array("tokens", ["skipped", "texts"])
writer.add_array("scores", [1.5, 2.5])
expected = {}


def add(name, data, kind):
    writer.add_tensor(name, data, raw_dtype=kind)
    expected[name] = gguf.quants.dequantize(data, kind)


for kind in QUANTISED:
    numbers, width = gguf.GGML_QUANT_SIZES[kind]
    count = 3 * 512 // numbers
    blocks = rng.integers(0, 256, (count, width), dtype=np.uint8)
    for at in HALVES.get(kind, [0]):
        blocks[:, at : at + 2] = rng.normal(0, 0.1, (count, 1)).astype(np.float16).view(np.uint8)
    add(kind.name, blocks.reshape(3, -1), kind)
for kind, data in [(T.F32, rng.normal(size=(2, 3, 5)).astype(np.float32)), (T.F16, rng.normal(size=(7,)).astype(np.float16))]:
    add(kind.name, data, kind)
add("BF16", gguf.quants.quantize(rng.normal(size=(2, 8)).astype(np.float32), T.BF16), T.BF16)
# As ComfyUI-GGUF folds a convolution whose rows are no multiple of 32.
folded = rng.normal(size=(6, 4, 4, 3)).astype(np.float32)
blocks = gguf.quants.quantize(folded.reshape(-1, 32), T.Q8_0)
writer.add_array("comfy.gguf.orig_shape.folded", list(folded.shape))
add("folded", blocks, T.Q8_0)
expected["folded"] = expected["folded"].reshape(folded.shape)

writer.write_header_to_file()
writer.write_kv_data_to_file()
writer.write_tensors_to_file()
writer.close()
save_file({name: np.ascontiguousarray(data, dtype=np.float32) for name, data in expected.items()}, HERE / "types.safetensors")

# And what the package makes of numbers. It cannot make blocks of 256.
values = rng.normal(0, 0.1, size=(3, 512)).astype(np.float32)
values[0, :32] = 0
values[1, :64] *= 1e-6
MADE = [T.Q4_0, T.Q4_1, T.Q5_0, T.Q5_1, T.Q8_0]
save_file({"values": values} | {kind.name: gguf.quants.quantize(values, kind) for kind in MADE}, HERE / "quantised.safetensors")
