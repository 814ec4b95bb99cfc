#!/usr/bin/env python3
"""Takes a small part of recordings of other tools' samplers, schedules and Brownian trees, for tests that need no other file.

    python make_subset.py RECORDINGS      (a folder with samplers/, schedules.json, noise.json, noise.safetensors)

Of each sampler the run on 8 Karras sigmas is kept (or the first one, where there is none), and of its path the end alone.
"""
import json, pathlib, sys
import numpy as np
from safetensors.numpy import load_file, save_file

source, out = pathlib.Path(sys.argv[1]), pathlib.Path(__file__).parent
index = json.loads((source / "samplers/index.json").read_text())
paths, common = load_file(source / "samplers/paths.safetensors"), load_file(source / "samplers/common.safetensors")
kept, tensors, schedules = [], {}, {}
# A path that several tools take is stored once; sd.cpp's and Forge's own runs add names, not paths.
for run in index["runs"]:
    same = [r for r in index["runs"] if (r["peer"], r["sampler"]) == (run["peer"], run["sampler"])]
    wanted = next((r for r in same if r["schedule"] == "karras-8"), same[0])
    if run is not wanted or run["path"].split("@")[0] != f"{run['peer']}/{run['sampler']}" or "space" in run and run["peer"] == "a1111": continue
    kept.append(run)
    tensors[run["path"] + "/x"] = paths[run["path"] + "/x"][-1:]
    if "noise" in run: tensors[run["noise"]] = paths[run["noise"]]
    schedules[run["schedule"]] = index["schedules"][run["schedule"]]
dump = lambda value: json.dumps(value, ensure_ascii=False)
runs = ",\n".join(dump(run) for run in kept)
rest = {k: index[k] for k in ("mixtures", "guidance")} | {"schedules": schedules}
(out / "index.json").write_text(dump(rest)[:-1] + ', "runs": [\n' + runs + "\n]}\n")
save_file({k: np.ascontiguousarray(v) for k, v in tensors.items()}, out / "paths.safetensors")
save_file({k: np.ascontiguousarray(v[:24] if k == "noise" else v) for k, v in common.items() if k != "sigma_table"}, out / "common.safetensors")

recorded = json.loads((source / "schedules.json").read_text())["schedules"]
lines = []
# diffusers' classes have tests of their own; A1111's "Normal" is its "Uniform" twice, and its old range of Karras is not offered.
for name, tools in recorded.items():
    for tool, families in tools.items():
        if tool not in ("a1111", "forge", "comfyui", "sd.cpp") or name.endswith("(old range)"): continue
        # Forge has what A1111 has.
        if tool == "forge" and "a1111" in tools: continue
        for family in ("sd1", "sdxl"):
            for steps, sigmas in families.get(family, {}).items():
                if sigmas and steps in ("1", "2", "5", "10", "30"): lines.append(dump([name, tool, family, int(steps), sigmas]))
(out / "schedules.json").write_text("[\n" + ",\n".join(lines) + "\n]\n")

noise, drawn = json.loads((source / "noise.json").read_text()), load_file(source / "noise.safetensors")
trees = [{k: tree[k] for k in ("rng", "seed", "shape", "min", "max", "queries")} | {"answers": [[float(str(x)) for x in answer.ravel()] for answer in drawn[tree["tensor"]]]}
         for tree in (noise["brownian"][i] for i in (0, 3, 5))]
(out / "brownian.json").write_text("[\n" + ",\n".join(dump(tree) for tree in trees) + "\n]\n")
