#!/usr/bin/env python3
"""Takes recordings of other tools' noise, for tests that need no other file.

    python take_tools.py RECORDINGS      (a folder with noise.json and noise.safetensors)

A1111's Philox and its noise of pictures (variations, other sizes, ENSD), ComfyUI's draws for a batch and for steps, and the factors of the
first latents. Brownian trees are beside the samplers'.
"""
import json, pathlib, sys
from safetensors.numpy import load_file, save_file

source, out = pathlib.Path(sys.argv[1]), pathlib.Path(__file__).parent
recorded, tensors = json.loads((source / "noise.json").read_text()), load_file(source / "noise.safetensors")
kept = {key: recorded[key] for key in ("philox", "a1111", "comfyui", "comfyui_step_noise", "first_latents")}
entries = [*kept["philox"], *kept["a1111"], *kept["comfyui"], kept["comfyui_step_noise"]]
for entry in entries:
    for shown in ("first", "last"): entry.pop(shown, None)
lines = [f'"{key}": ' + ("[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]" if isinstance(rows, list) else json.dumps(rows)) for key, rows in kept.items()]
(out / "tools.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")
save_file({entry["tensor"]: tensors[entry["tensor"]] for entry in entries if "tensor" in entry}, out / "tools.safetensors")
