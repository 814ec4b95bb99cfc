#!/usr/bin/env python3
"""What diffusers computes with self-attention guidance, with the small models of tests/data/parity.

    pip install torch "diffusers==0.36.0" "transformers<5"
    python make_guidance.py

Writes self_attention.safetensors beside this script: the final latents of each case that tests/passes.rs names, in f32 on the CPU. A
case's name says the model, the sampler, the guidance scale and the scale of self-attention guidance.
"""
import pathlib
import types
import diffusers as d
import torch
from diffusers.pipelines.stable_diffusion_sag import pipeline_stable_diffusion_sag as sag
from safetensors.torch import save_file

HERE = pathlib.Path(__file__).resolve().parent
MODELS = HERE.parent / "parity"
BETAS = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", num_train_timesteps=1000, steps_offset=1)
CASES = [("sd15", "own", 7.5, 0.75), ("sd15", "ddim", 5, 2), ("sd15", "dpm++2m", 1, 1), ("sd21-v", "own", 7.5, 0.75), ("sd21-v", "own", 1, 1.5),
         ("sdxl", "ddim", 5, 0.75), ("sdxl", "ddim", 1, 1)]
SAID = dict(prompt="A red apple on a table", negative_prompt="blurry")
WIDTH, HEIGHT, STEPS = 48, 32, 5


def scheduler(name):
    if name == "ddim": return d.DDIMScheduler(**BETAS, clip_sample=False, set_alpha_to_one=False)
    return d.DPMSolverMultistepScheduler(**BETAS)


def xl(pipe, guidance, scale):
    """The loop of the pipeline for the others, with what SDXL's network is told beside the text."""
    said = pipe.encode_prompt(**SAID, do_classifier_free_guidance=guidance > 1)
    ids = torch.tensor([[HEIGHT, WIDTH, 0, 0, HEIGHT, WIDTH]]).float()
    told = [(said[0], said[2])] if guidance <= 1 else [(said[1], said[3]), (said[0], said[2])]
    mid = pipe.unet.mid_block.attentions[0]
    store, size = sag.CrossAttnStoreProcessor(), []
    mid.transformer_blocks[0].attn1.processor = store
    mid.register_forward_hook(lambda module, given, made: size.append(made[0].shape[-2:]))
    degrade = lambda *given: sag.StableDiffusionSAGPipeline.sag_masking(types.SimpleNamespace(unet=pipe.unet, scheduler=pipe.scheduler), *given)
    call = lambda latents, t, text: pipe.unet(latents, t, text[0], added_cond_kwargs=dict(text_embeds=text[1], time_ids=ids)).sample
    pipe.scheduler.set_timesteps(STEPS)
    latents = torch.randn(1, 4, HEIGHT // 2, WIDTH // 2, generator=torch.Generator().manual_seed(7))
    for t in pipe.scheduler.timesteps:
        plain = call(latents, t, told[0])
        attention, alpha = store.attention_probs, pipe.scheduler.alphas_cumprod[t]
        made = plain if guidance <= 1 else plain + guidance * (call(latents, t, told[1]) - plain)
        clean = (latents - (1 - alpha) ** 0.5 * plain) / alpha**0.5
        made = made + scale * (plain - call(degrade(clean, attention, size[-1], t, plain), t, told[0]))
        latents = pipe.scheduler.step(made, t, latents).prev_sample
    return latents


@torch.no_grad()
def run(model, sampler, guidance, scale):
    kind = d.StableDiffusionXLPipeline if model == "sdxl" else d.StableDiffusionSAGPipeline
    pipe = kind.from_pretrained(MODELS / model, torch_dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    if sampler != "own": pipe.scheduler = scheduler(sampler)
    if model == "sdxl": return xl(pipe, guidance, scale)
    return pipe(**SAID, width=WIDTH, height=HEIGHT, num_inference_steps=STEPS, guidance_scale=guidance, sag_scale=scale,
                generator=torch.Generator().manual_seed(7), output_type="latent").images


if __name__ == "__main__":
    d.utils.logging.set_verbosity_error()
    torch.set_num_threads(1)  # the order of sums, and so the last bits, depends on it
    # How near a place is to being hidden, where the last bits decide.
    margins = []
    masking = sag.StableDiffusionSAGPipeline.sag_masking

    def watched(self, clean, attention, *rest):
        received = attention.mean(0).sum(0)
        margins.append(((received - 1).abs().min().item(), (received > 1).float().mean().item()))
        return masking(self, clean, attention, *rest)

    sag.StableDiffusionSAGPipeline.sag_masking = watched
    made = {}
    for case in CASES:
        margins.clear()
        made["/".join(map(str, case))] = run(*case)
        print(case, "nearest to 1: %.1e," % min(m[0] for m in margins), "hidden:", ["%.2f" % m[1] for m in margins])
    save_file({name: latents.float().contiguous() for name, latents in made.items()}, HERE / "self_attention.safetensors")
