#!/usr/bin/env python3
"""Holds `sd-gen convert --lora` against what PyPI's lycoris makes of the same weights with the same adapter.

    pip install torch safetensors numpy lycoris-lora==4.1.3
    python scripts/merges_against_packages.py SD_GEN MODEL=ADAPTER… [--strength 0.8]

MODEL is a diffusers folder and ADAPTER a .safetensors file for it. Prints for each the layers that changed and the largest difference of one number
over the root mean square of its layer; ends with 1 where one is above 1e-5, or where a key of the file has no place here. The formulas are the
package's own functions in f64, called with the tensors of the file; the file's spellings are read here and not by sd-gen.
"""
import argparse, json, pathlib, re, subprocess, sys, tempfile
import torch
from lycoris.functional import boft, diag_oft, general, locon, loha, lokr
from lycoris.modules import glora, ia3
from safetensors import safe_open
from safetensors.torch import load_file

LEAVES = re.compile(r"\.(lora_up\.weight|lora_down\.weight|lora_mid\.weight|lora_A\.weight|lora_B\.weight|lora\.up\.weight|lora\.down\.weight|lora_linear_layer\.up\.weight|"
                    r"lora_linear_layer\.down\.weight|lora_magnitude_vector|dora_scale|alpha|diff|diff_b|w_norm|b_norm|oft_blocks|rescale|on_input|weight|a1\.weight|a2\.weight|b1\.weight|b2\.weight|"
                    r"hada_[wt][12](?:_[ab])?|lokr_[wt][12](?:_[ab])?)$|_lora\.(up|down)\.weight$")
SAME = {"lora_A.weight": "lora_down.weight", "lora_B.weight": "lora_up.weight"}
PREFIXES = [("lora_te1_", "text_encoder"), ("lora_te2_", "text_encoder_2"), ("lora_te_", "text_encoder"), ("lora_unet_", "unet"), ("lora_unet.", "unet"), ("oft_unet_", "unet"), ("lycoris_", "unet"),
            ("text_encoder_2.", "text_encoder_2"), ("text_encoder.", "text_encoder"), ("unet.", "unet"), ("", "unet")]


def original_names(names):
    """The original layout's names of a UNet's layers, from diffusers'."""
    parts = {"norm1": "in_layers_0", "conv1": "in_layers_2", "time_emb_proj": "emb_layers_1", "norm2": "out_layers_0", "conv2": "out_layers_3", "conv_shortcut": "skip_connection"}
    fixed = {"conv_in": "input_blocks_0_0", "time_embedding.linear_1": "time_embed_0", "time_embedding.linear_2": "time_embed_2", "add_embedding.linear_1": "label_emb_0_0",
             "add_embedding.linear_2": "label_emb_0_2", "conv_norm_out": "out_0", "conv_out": "out_2"}
    numbers = lambda way, kind: {int(m[1]): 1 + max(int(x[1]) for n in names if (x := re.match(rf"{way}\.{m[1]}\.{kind}\.(\d+)\.", n))) for n in names if (m := re.match(rf"{way}\.(\d+)\.{kind}\.", n))}
    down, up, has = numbers("down_blocks", "resnets"), numbers("up_blocks", "resnets"), lambda start: any(n.startswith(start) for n in names)
    sites, n = {}, 1
    for i, count in sorted(down.items()):
        for j in range(count): sites[f"down_blocks.{i}.resnets.{j}"], sites[f"down_blocks.{i}.attentions.{j}"], n = f"input_blocks_{n}_0", f"input_blocks_{n}_1", n + 1
        if has(f"down_blocks.{i}.downsamplers"): sites[f"down_blocks.{i}.downsamplers.0.conv"], n = f"input_blocks_{n}_0_op", n + 1
    n = 0
    for i, count in sorted(up.items()):
        for j in range(count):
            sites[f"up_blocks.{i}.resnets.{j}"], sites[f"up_blocks.{i}.attentions.{j}"] = f"output_blocks_{n}_0", f"output_blocks_{n}_1"
            if j + 1 == count: sites[f"up_blocks.{i}.upsamplers.0.conv"] = f"output_blocks_{n}_{2 if has(f'up_blocks.{i}.attentions') else 1}_conv"
            n += 1
    sites.update({"mid_block.resnets.0": "middle_block_0", "mid_block.attentions.0": "middle_block_1", "mid_block.resnets.1": "middle_block_2"})
    found = {}
    for name in names:
        site = max((s for s in sites if name == s or name.startswith(s + ".")), key=len, default=None)
        if name in fixed: found[fixed[name]] = name
        elif site:
            rest = name[len(site) + 1 :]
            rest = parts.get(rest, rest) if ".resnets." in site else rest
            found[f"{sites[site]}_{rest}".rstrip("_").replace(".", "_")] = name
    return found


def table(weights):
    """Layers by their names with underscores, in every spelling."""
    names = {key.rsplit(".", 1)[0] for key in weights}
    found = original_names(names)
    for name in names:
        path = name.replace(".", "_")
        for spelled in {path, path.removeprefix("text_model_")}:
            found[spelled] = name
            for now, then in (("_to_out_0", "_to_out"), ("q_proj", "to_q"), ("k_proj", "to_k"), ("v_proj", "to_v"), ("out_proj", "to_out")):
                if spelled.endswith(now): found[spelled.removesuffix(now) + then] = name
    return found


def read(path, model):
    """(network, layer) -> leaf -> tensor, and what PEFT wrote of its settings."""
    tables, layers, lost = {part: table(weights) for part, weights in model.items()}, {}, []
    with safe_open(path, "pt") as file: settings = json.loads((file.metadata() or {}).get("lora_adapter_metadata", "null"))
    for key, tensor in load_file(path).items():
        match = LEAVES.search(key)
        prefix, part = next((prefix, part) for prefix, part in PREFIXES if key.startswith(prefix))
        name = part if not match or part not in tables else tables[part].get(key[len(prefix) : match.start()].replace(".processor", "").replace(".", "_"))
        if match is None or name is None or name == part: lost.append(key); continue
        leaf = f"lora_{match[2]}.weight" if match[2] else match[1]
        leaf = SAME.get(leaf, leaf.replace("lora_linear_layer.", "lora_").replace("lora.", "lora_"))
        layers.setdefault((part, name), {})[leaf] = tensor
    return layers, settings, lost


def scale(t, part, layer, rank, settings):
    if "alpha" in t: return t["alpha"].double().item() / rank
    if settings and f"{part}.lora_alpha" in settings:
        pattern = settings.get(f"{part}.alpha_pattern") or {}
        alpha = next((a for k, a in pattern.items() if layer == k or layer.endswith("." + k)), settings[f"{part}.lora_alpha"])
        return alpha / (rank**0.5 if settings.get(f"{part}.use_rslora") else rank)
    return 1.0


def merged(w, t, part, layer, settings):
    """The whole weight at strength 1."""
    t = {k: v.double() if v.is_floating_point() else v for k, v in t.items()}
    plain = {k: v.double() for k, v in t.items() if k != "alpha"}
    if "diff" in t or "w_norm" in t: return w + (t["diff"] if "diff" in t else t["w_norm"]).reshape(w.shape)
    if "oft_blocks" in t:
        work = boft if t["oft_blocks"].ndim == 4 else diag_oft
        alpha = t["alpha"].item() if "alpha" in t else 0.0
        return w + work.diff_weight(w.float(), t["oft_blocks"].float(), t["rescale"].float() if "rescale" in t else None, constraint=alpha * w.shape[0] if alpha else 0.0).reshape(w.shape)
    if "on_input" in t: return w + ia3._ia3_weight(w, plain["weight"].flatten(), bool(t["on_input"].item()), 1.0, True).reshape(w.shape)
    if "a1.weight" in t:
        order = [plain[f"{x}.weight"] for x in ("a1", "a2", "b1", "b2")]
        if order[0].shape[0] != w.shape[1]: order = [order[i] for i in (1, 0, 3, 2)]
        return w + glora._glora_weight(w, *order, None, scale(t, part, layer, order[0].shape[1], settings)).reshape(w.shape)
    if "lora_up.weight" in t:
        up, down, mid = plain["lora_up.weight"], plain["lora_down.weight"], plain.get("lora_mid.weight")
        more = locon.diff_weight(down, up, mid, gamma=scale(t, part, layer, down.shape[0], settings))
    elif any(k.startswith("hada_") for k in t):
        order = [plain.get(x) for x in ("hada_w1_b", "hada_w1_a", "hada_w2_b", "hada_w2_a", "hada_t1", "hada_t2")]
        more = loha.diff_weight(*order, gamma=torch.tensor(scale(t, part, layer, order[0].shape[0], settings), dtype=torch.float64))
    else:
        order = [plain.get(x) for x in ("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2")]
        rank = next((x.shape[0] for x in (order[5], order[2]) if x is not None), None)
        more = lokr.kron_weight(*order, scale=1.0 if rank is None else scale(t, part, layer, rank, settings))
    more = more.reshape(w.shape)
    if "dora_scale" in t or "lora_magnitude_vector" in t:
        m = plain.get("dora_scale")
        rows = m is None or m.shape[0] != 1
        if m is None: m = plain["lora_magnitude_vector"].reshape(-1, *[1] * (w.ndim - 1))
        return general.weight_decompose(w + more, m, 1, rows)
    return w + more


def worst(sd_gen, model, adapter, strength):
    parts = {p.name: load_file(next(iter(sorted(p.glob("*.safetensors"))))) for p in sorted(pathlib.Path(model).iterdir()) if p.name in ("unet", "text_encoder", "text_encoder_2")}
    layers, settings, lost = read(adapter, parts)
    with tempfile.TemporaryDirectory() as folder:
        out = pathlib.Path(folder) / "merged"
        subprocess.run([sd_gen, "convert", model, out, "--lora", f"{adapter}:{strength}", "--dtype", "f32"], check=True, capture_output=True, text=True)
        made = {part: load_file(next(iter(sorted((out / part).glob("*.safetensors"))))) for part in parts}
    far, where, changed = 0.0, "", 0
    for part, weights in parts.items():
        for key, stored in weights.items():
            if not stored.is_floating_point() or key not in made[part]: continue
            layer, leaf = key.rsplit(".", 1)
            w, t = stored.double(), layers.get((part, layer), {})
            want = w
            if leaf == "weight" and set(t) - {"diff_b", "b_norm", "alpha"}: want = w + strength * (merged(w, t, part, layer, settings) - w)
            if leaf == "bias" and (more := t.get("diff_b", t.get("b_norm"))) is not None: want = w + strength * more.double()
            changed += not torch.equal(want, w)
            apart = ((made[part][key].double() - want).abs().max() / want.square().mean().sqrt().clamp_min(1e-30)).item()
            if not apart <= far: far, where = apart, f"{part}.{key}"
    return far, where, changed, lost


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("sd_gen"); parser.add_argument("pairs", nargs="+", metavar="MODEL=ADAPTER"); parser.add_argument("--strength", type=float, default=0.8)
a = parser.parse_args()
bad, all_worst = 0, 0.0
for pair in a.pairs:
    model, adapter = pair.split("=", 1)
    try: far, where, changed, lost = worst(a.sd_gen, model, adapter, a.strength)
    except subprocess.CalledProcessError as e: print(f"{adapter}: sd-gen: {e.stderr.strip()[-300:]}"); bad += 1; continue
    bad += far > 1e-5 or bool(lost); all_worst = max(all_worst, far)
    print(f"{far:.1e}  {changed:4} tensors  {adapter}  {where}" + (f"  {len(lost)} keys without a place: {lost[0]}" if lost else ""), flush=True)
print(f"worst of {len(a.pairs)}: {all_worst:.1e}; {bad} above 1e-5 or not understood")
sys.exit(bad > 0)
