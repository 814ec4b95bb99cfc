#!/usr/bin/env python3
"""Makes small adapters for the built-in model and what LyCORIS or PEFT make of its weights with them.

    pip install torch==2.12 safetensors lycoris-lora==4.1.3 peft==0.21.2
    python make_adapters.py            # beside this script; reads ../../../models/emoji

NAME.safetensors is an adapter, in the spelling that the name's owner writes. merged.safetensors holds, for NAME/LAYER, every 13th number
of the layer's weight (or bias) with the adapter merged in at the strength that strengths.json says, computed in f64 by the package itself.
"""
import json, pathlib
import torch
from lycoris.functional import boft, diag_oft, general, locon, loha, lokr
from lycoris.modules import glora, ia3
from safetensors.torch import load_file, save_file

HERE = pathlib.Path(__file__).parent
MODEL = HERE / "../../../models/emoji"
UNET = load_file(MODEL / "unet/diffusion_pytorch_model.safetensors")
TEXT = load_file(MODEL / "text_encoder/model.safetensors")
QUERY = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
CONV = "conv_in"
PROJ = "down_blocks.1.attentions.0.proj_in"
NORM = "down_blocks.1.attentions.0.norm"
FC = "text_model.encoder.layers.0.self_attn.q_proj"
EVERY = 13
# bfloat16 numbers are float16 numbers too.
torch.manual_seed(11)
merged, strengths = {}, {}


def n(*shape, scale=0.2): return (torch.randn(*shape) * scale).bfloat16().double()


def weight(layer, leaf="weight"): return (TEXT if layer.startswith("text_model") else UNET)[f"{layer}.{leaf}"].double()


def kohya(layer): return ("lora_te_" if layer.startswith("text_model") else "lora_unet_") + layer.replace(".", "_")


def write(name, parts, strength, key=lambda layer, leaf: f"{kohya(layer)}.{leaf}", dtype=torch.float16):
    """`parts`: layer -> (tensors, merge), where merge(W) is what the package makes of W at strength 1."""
    out = {}
    for layer, (tensors, merge) in parts.items():
        for leaf, tensor in tensors.items(): out[key(layer, leaf)] = tensor if tensor.dtype in (torch.int64, torch.float32) else tensor.to(dtype).contiguous()
        w = weight(layer); more = merge(w).reshape(w.shape) - w
        if more.any(): merged[f"{name}/{layer}.weight"] = (w + strength * more).flatten()[::EVERY].float().contiguous()
    save_file(out, HERE / f"{name}.safetensors"); strengths[name] = strength


def low_rank(layer, rank=2, alpha=1.0, core=False):
    out, inn, *k = weight(layer).shape; ones = [1] * len(k)
    t = {"lora_up.weight": n(out, rank, *ones), "lora_down.weight": n(rank, inn, *(ones if core else k))}
    if core: t["lora_mid.weight"] = n(rank, rank, *k)
    gamma = 1.0 if alpha is None else alpha / rank
    merge = lambda w: w + locon.diff_weight(t["lora_down.weight"], t["lora_up.weight"], t.get("lora_mid.weight"), gamma=gamma).reshape(w.shape)
    return ({**t, **({} if alpha is None else {"alpha": torch.tensor(alpha, dtype=torch.float64)})}, merge)


def dora(layer, columns=False):
    t, merge = low_rank(layer); w = weight(layer); axes = [i for i in range(w.ndim) if i != (1 if columns else 0)]
    t["dora_scale"] = (w.pow(2).sum(axes, keepdim=True).sqrt() * 1.3 + 0.1).half().double()
    return t, lambda w: general.weight_decompose(merge(w), t["dora_scale"], 1, not columns)


def hada(layer, core=False):
    out, inn, *k = weight(layer).shape; flat = int(torch.Size(k).numel()) if k else 1
    if core: t = {f"hada_w{i}_{x}": n(2, s, scale=0.5) for i in (1, 2) for x, s in (("a", out), ("b", inn))}; t.update({f"hada_t{i}": n(2, 2, *k, scale=0.5) for i in (1, 2)})
    else: t = {f"hada_w{i}_{x}": n(*s, scale=0.5) for i in (1, 2) for x, s in (("a", (out, 2)), ("b", (2, inn * flat)))}
    order = ("hada_w1_b", "hada_w1_a", "hada_w2_b", "hada_w2_a", "hada_t1", "hada_t2")
    return {**t, "alpha": torch.tensor([1.5], dtype=torch.float64)}, lambda w: w + loha.diff_weight(*[t.get(x) for x in order], gamma=torch.tensor(0.75)).reshape(w.shape)


def kron(layer, kind):
    out, inn, *k = weight(layer).shape; a, c = 4, 2; b, d = out // a, inn // c; flat = int(torch.Size(k).numel()) if k else 1
    t = {"lokr_w1_a": n(a, 2), "lokr_w1_b": n(2, c)} if kind == "both" else {"lokr_w1": n(a, c)}
    if kind == "full": t["lokr_w2"] = n(b, d, *k)
    elif kind == "core": t.update({"lokr_w2_a": n(2, b), "lokr_w2_b": n(2, d), "lokr_t2": n(2, 2, *k)})
    else: t.update({"lokr_w2_a": n(b, 2), "lokr_w2_b": n(2, d * flat)})
    order = ("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2")
    scale = 1.0 if kind == "full" else 0.5
    return {**t, "alpha": torch.tensor(1.0, dtype=torch.float64)}, lambda w: w + lokr.kron_weight(*[t.get(x) for x in order], scale=scale).reshape(w.shape)


def turn(layer, butterfly=False, limit=0.0):
    w = weight(layer); out = w.shape[0]; b = 4; count = out // b; stages = count.bit_length()
    t = {"oft_blocks": n(*([stages] if butterfly else []), count, b, b), "rescale": 1 + n(out, *[1] * (w.ndim - 1))}
    t["alpha"] = torch.tensor(limit, dtype=torch.float32)
    work = boft if butterfly else diag_oft
    return t, lambda w: w + work.diff_weight(w.float(), t["oft_blocks"].float(), t["rescale"].float(), constraint=limit * out).double()


def glo(layer, old=False):
    out, inn, *k = weight(layer).shape; ones = [1] * len(k)
    t = {"a1.weight": n(inn, 2, *ones, scale=0.1), "a2.weight": n(2, inn, *ones), "b1.weight": n(out, 2, *ones), "b2.weight": n(2, inn, *k)}
    merge = lambda w: w + glora._glora_weight(w, *t.values(), None, 0.5).reshape(w.shape)
    s = {x: t[x.translate(str.maketrans("12", "21"))] for x in t} if old else t
    return {**s, "alpha": torch.tensor(1.0, dtype=torch.float64)}, merge


def factor(layer, on_input):
    t = n(weight(layer).shape[1 if on_input else 0])
    return {"weight": t, "on_input": torch.tensor(int(on_input))}, lambda w: w + ia3._ia3_weight(w, t, on_input, 1.0, True)


both = (QUERY, CONV)
write("kohya", {x: low_rank(x) for x in (*both, PROJ, FC)}, 0.8)
write("kohya-no-alpha", {x: low_rank(x, alpha=None) for x in both}, -0.6, dtype=torch.bfloat16)
write("locon-mid", {CONV: low_rank(CONV, core=True)}, 0.9)
write("dora", {x: dora(x) for x in both}, 1.0)
write("dora-columns", {x: dora(x, columns=True) for x in both}, 0.7)
write("loha", {x: hada(x) for x in both}, 0.8)
write("loha-core", {CONV: hada(CONV, core=True)}, 0.8)
write("lokr", {x: kron(x, "split") for x in both}, 0.8, key=lambda layer, leaf: f"lycoris_{layer.replace('.', '_')}.{leaf}")
write("lokr-both", {QUERY: kron(QUERY, "both")}, 1.1)
write("lokr-full", {x: kron(x, "full") for x in both}, 0.8, dtype=torch.float32)
write("lokr-core", {CONV: kron(CONV, "core")}, 0.8)
write("oft", {x: turn(x) for x in both}, 0.9, dtype=torch.float32)
write("oft-limit", {QUERY: turn(QUERY, limit=0.01)}, 1.0, dtype=torch.float32)
write("boft", {x: turn(x, butterfly=True) for x in both}, 0.5, dtype=torch.float32)
write("glora", {x: glo(x) for x in both}, 0.8)
write("glora-old", {x: glo(x, old=True) for x in both}, 0.8)
write("ia3", {QUERY: factor(QUERY, True), FC: factor(FC, False)}, 0.8)
full = {x: {"diff": n(*weight(x).shape)} for x in (CONV,)}
full[CONV]["diff_b"] = n(64); full[QUERY] = {"diff_b": n(128)}; full[NORM] = {"w_norm": n(128), "b_norm": n(128)}
write("full", {x: (t, lambda w, t=t: w + t.get("diff", t.get("w_norm", torch.zeros_like(w)))) for x, t in full.items()}, 0.8)
for layer, t in full.items():
    more = t.get("diff_b", t.get("b_norm")); has = UNET.get(f"{layer}.bias")
    merged[f"full/{layer}.bias"] = ((0 if has is None else has.double()) + 0.8 * more)[::EVERY].float().contiguous()
# The older spellings of the same tensors.
queries = low_rank(QUERY, alpha=None), low_rank(FC, alpha=None)
spelled = lambda layer, leaf: layer.replace("attn1.", "attn1.processor.") + "_lora." + leaf.removeprefix("lora_")
write("processors", {QUERY: queries[0]}, 1.0, key=lambda layer, leaf: "unet." + spelled(layer, leaf))
write("processors-bare", {QUERY: queries[0]}, 1.0, key=spelled)
write("linear-layer", {QUERY: queries[0], FC: queries[1]}, 1.0, key=lambda layer, leaf: f"unet.{layer}.lora.{leaf.removeprefix('lora_')}" if layer == QUERY else f"text_encoder.{layer}.lora_linear_layer.{leaf.removeprefix('lora_')}")
write("onetrainer", {QUERY: low_rank(QUERY)}, 1.0, key=lambda layer, leaf: f"lora_unet.{layer}.{leaf}")
ldm = {QUERY: "input_blocks.4.1.transformer_blocks.0.attn1.to_q", CONV: "input_blocks.0.0", PROJ: "input_blocks.4.1.proj_in"}
write("kohya-ldm", {x: low_rank(x) for x in (CONV,)}, 1.0, key=lambda layer, leaf: f"lora_unet_{ldm[layer].replace('.', '_')}.{leaf}")


class Tree(torch.nn.Module):
    """Modules under dotted names."""
    def __init__(self, layers):
        super().__init__()
        for name, module in layers.items():
            at = self; *path, last = name.split(".")
            for part in path:
                if not hasattr(at, part): at.add_module(part, torch.nn.Module())
                at = getattr(at, part)
            at.add_module(last, module)


def by_peft(name, metadata=None, **config):
    from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
    w, c = weight(QUERY).float(), weight(CONV).float()
    linear, conv = torch.nn.Linear(*reversed(w.shape), bias=False), torch.nn.Conv2d(4, 64, 3, padding=1)
    linear.weight.data, conv.weight.data = w.clone(), c.clone()
    model = get_peft_model(Tree({QUERY: linear, CONV: conv}), LoraConfig(target_modules=["to_q", "conv_in"], init_lora_weights=False, **config))
    with torch.no_grad():
        for key, p in model.named_parameters():
            if "lora_magnitude" in key: p.mul_(1.2)
    save_file({k: v.contiguous() for k, v in get_peft_model_state_dict(model).items()}, HERE / f"{name}.safetensors", metadata=metadata)
    whole = dict(model.merge_and_unload().named_modules())
    for layer in (QUERY, CONV): merged[f"{name}/{layer}.weight"] = whole[layer].weight.detach().flatten()[::EVERY].float().contiguous()
    strengths[name] = 1.0


by_peft("peft", r=3, lora_alpha=3)
by_peft("peft-dora", r=3, lora_alpha=3, use_dora=True)
by_peft("peft-rslora", r=4, lora_alpha=6, use_rslora=True, metadata={"format": "pt", "lora_adapter_metadata": json.dumps({"unet.r": 4, "unet.lora_alpha": 6, "unet.use_rslora": True})})
save_file(merged, HERE / "merged.safetensors")
(HERE / "strengths.json").write_text(json.dumps(strengths, indent=1) + "\n")
