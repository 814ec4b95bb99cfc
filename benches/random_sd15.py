"""Random weights of Stable Diffusion 1.5's size, as a diffusers folder, and random LoRAs for it: what the scripts beside this one measure with.

    pip install torch "diffusers==0.36.0" "transformers<5"
"""
import json, pathlib


def model(folder):
    """The model's folder, in f16; it is made once."""
    folder = pathlib.Path(folder)
    if (folder / "model_index.json").exists(): return folder
    import torch
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel
    torch.manual_seed(1)
    parts = {
        "unet": UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8),
        "vae": AutoencoderKL(block_out_channels=(128, 256, 512, 512), down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
                             layers_per_block=2, sample_size=512),
        "text_encoder": CLIPTextModel(CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12, projection_dim=768)),
    }
    for name, part in parts.items(): part.half().save_pretrained(folder / name)
    (folder / "scheduler").mkdir(exist_ok=True)
    (folder / "scheduler/scheduler_config.json").write_text(json.dumps({"_class_name": "DDIMScheduler", "beta_schedule": "scaled_linear", "beta_start": 0.00085,
                                                                         "beta_end": 0.012, "steps_offset": 1, "clip_sample": False, "set_alpha_to_one": False}))
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionPipeline", "_diffusers_version": "0.36.0", "unet": ["diffusers", "UNet2DConditionModel"],
                                                         "vae": ["diffusers", "AutoencoderKL"], "text_encoder": ["transformers", "CLIPTextModel"],
                                                         "scheduler": ["diffusers", "DDIMScheduler"]}))
    return folder


def lora(model, path, rank=64, seed=0):
    """A LoRA of all attention and feed-forward layers, in kohya's spelling, in f16."""
    path = pathlib.Path(path)
    if path.exists(): return path
    import torch
    from safetensors import safe_open
    from safetensors.torch import save_file
    torch.manual_seed(seed)
    tensors = {}
    for prefix, file in (("lora_unet_", "unet/diffusion_pytorch_model.safetensors"), ("lora_te_", "text_encoder/model.safetensors")):
        with safe_open(model / file, "pt") as weights:
            for key in weights.keys():
                shape, layer = weights.get_slice(key).get_shape(), key.removesuffix(".weight")
                if not key.endswith(".weight") or len(shape) < 2: continue
                if not any(part in layer for part in (".attn", ".ff.", "proj_in", "proj_out", "self_attn", ".mlp.")): continue
                name, ones = prefix + layer.replace(".", "_"), [1] * (len(shape) - 2)
                tensors[f"{name}.lora_down.weight"] = (torch.randn(rank, shape[1], *ones) * 0.02).half()
                tensors[f"{name}.lora_up.weight"] = (torch.randn(shape[0], rank, *ones) * 0.02).half()
                tensors[f"{name}.alpha"] = torch.tensor(float(rank // 2))
    save_file(tensors, path)
    return path
