#!/usr/bin/env python3
"""What diffusers computes where SDXL's refiner takes over from the base model, with the small models of tests/data/parity.

    pip install torch "diffusers==0.36.0" "transformers<5"
    python make_passes.py

Writes ensemble.safetensors beside this script: the final latents of each case that tests/passes.rs names, in f32 on the CPU.
"""
import pathlib
import diffusers as d
import torch
from safetensors.torch import save_file

HERE = pathlib.Path(__file__).resolve().parent
MODELS = HERE.parent / "parity"
BETAS = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", num_train_timesteps=1000, steps_offset=1)
SCHEDULERS = {
    "euler": d.EulerDiscreteScheduler(**BETAS),
    "euler-a": d.EulerAncestralDiscreteScheduler(**BETAS),
    "ddim": d.DDIMScheduler(**BETAS, clip_sample=False, set_alpha_to_one=False),
    "heun": d.HeunDiscreteScheduler(**BETAS),
    "dpm++2m": d.DPMSolverMultistepScheduler(**BETAS, use_karras_sigmas=True),
}


def run(scheduler, switch, steps, guidance, scores):
    base = d.StableDiffusionXLPipeline.from_pretrained(MODELS / "sdxl", torch_dtype=torch.float32)
    refiner = d.StableDiffusionXLImg2ImgPipeline.from_pretrained(MODELS / "sdxl-refiner", torch_dtype=torch.float32)
    base.scheduler = type(scheduler).from_config(scheduler.config)
    refiner.scheduler = type(scheduler).from_config(scheduler.config)
    for pipe in (base, refiner): pipe.set_progress_bar_config(disable=True)
    said = dict(prompt="A red apple on a table", negative_prompt="blurry", num_inference_steps=steps, guidance_scale=guidance,
                generator=torch.Generator().manual_seed(7), output_type="latent")
    with torch.no_grad():
        latents = base(width=48, height=32, denoising_end=switch, **said).images
        return refiner(image=latents, denoising_start=switch, aesthetic_score=scores[0], negative_aesthetic_score=scores[1], **said).images


if __name__ == "__main__":
    d.utils.logging.set_verbosity_error()
    made = {}
    for name, scheduler in SCHEDULERS.items():
        made[f"{name}/0.8"] = run(scheduler, 0.8, 6, 5.0, (6.0, 2.5))
        made[f"{name}/0.5"] = run(scheduler, 0.5, 7, 5.0, (8.0, 1.0))
    made["unguided"] = run(SCHEDULERS["euler"], 0.6, 5, 1.0, (6.0, 2.5))
    save_file({name: latents.float().contiguous() for name, latents in made.items()}, HERE / "ensemble.safetensors")
