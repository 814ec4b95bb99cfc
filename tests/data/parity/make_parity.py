#!/usr/bin/env python3
"""Makes very small random Stable Diffusion models, one a family, and what diffusers computes with them stage by stage.

    pip install torch "diffusers==0.36.0" "transformers<5" ftfy
    python make_parity.py                # every model, beside this script
    python make_parity.py --only sdxl --out ELSEWHERE

Each folder NAME is a diffusers model in f16 with two files more:
    request.json         the texts and settings of the run
    golden.safetensors   inputs and outputs of every stage, computed in f32 on the CPU from the f16 weights

The models differ on purpose in everything that a family does not fix: number of levels, channels, norm groups, heads,
blocks a level. All weights are redrawn, so that no norm, bias or attention may be left out without a change in the result.
"""
import argparse, gzip, json, pathlib, shutil, tempfile
import diffusers as d
import numpy as np
import torch
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

HERE = pathlib.Path(__file__).resolve().parent
VOCABULARY = HERE.parents[2] / "src/text/bpe_simple_vocab_16e6.txt.gz"
MERGES = 300  # of CLIP's 48,894
START, END = 512 + MERGES, 512 + MERGES + 1
TEXT_WIDTH = 32
REQUEST = dict(prompt="A photo of a red apple, on 3 old tables! (the best)", negative_prompt="blurry; low quality", width=48, height=32,
               steps=4, guidance_scale=7.5, seed=42)
BETAS = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", num_train_timesteps=1000, steps_offset=1)
MODELS = ["sd15", "sd21-v", "sdxl", "sdxl-refiner"]


def byte_letters():
    """The letter that stands for each byte, printable bytes first and as themselves."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    return [chr(b) for b in printable] + [chr(256 + i) for i in range(256 - len(printable))]


def tokenizer(pad):
    """CLIP's public byte-pair vocabulary, cut short."""
    merges = gzip.open(VOCABULARY).read().decode().split("\n")[1 : MERGES + 1]
    letters = byte_letters()
    tokens = letters + [c + "</w>" for c in letters] + ["".join(m.split()) for m in merges] + ["<|startoftext|>", "<|endoftext|>"]
    with tempfile.TemporaryDirectory() as tmp:
        tmp = pathlib.Path(tmp)
        (tmp / "vocab.json").write_text(json.dumps({t: i for i, t in enumerate(tokens)}))
        (tmp / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
        made = CLIPTokenizer(tmp / "vocab.json", tmp / "merges.txt", pad_token=pad, model_max_length=77)
    assert made.fix_text is not None, "install ftfy"
    return made


def enliven(model):
    """Redraws every weight: matrices that keep the variance, norms that are not 1, biases that are not 0."""
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name.endswith(("token_embedding.weight", "position_embedding.weight")): p.normal_(0, 0.5)
            elif p.ndim > 1: p.normal_(0, p[0].numel() ** -0.5)
            elif name.endswith("weight"): p.normal_(1, 0.2)
            else: p.normal_(0, 0.1)
    return model.eval()


def set_output_scale(layer, run, wanted):
    """Scales a network's last layer so that what `run` returns has the standard deviation `wanted`."""
    with torch.no_grad():
        layer.weight.mul_(wanted / run().std())


def text_encoder(layers, activation, projected=False):
    config = CLIPTextConfig(vocab_size=END + 1, hidden_size=TEXT_WIDTH, intermediate_size=4 * TEXT_WIDTH, projection_dim=24, num_hidden_layers=layers,
                            num_attention_heads=4, max_position_embeddings=77, hidden_act=activation, bos_token_id=START, eos_token_id=END)
    return enliven((CLIPTextModelWithProjection if projected else CLIPTextModel)(config))


def vae(channels, groups, layers=1, **more):
    levels = len(channels)
    model = enliven(d.AutoencoderKL(block_out_channels=channels, norm_num_groups=groups, layers_per_block=layers, latent_channels=4, sample_size=64,
                                    down_block_types=("DownEncoderBlock2D",) * levels, up_block_types=("UpDecoderBlock2D",) * levels, **more))
    set_output_scale(model.decoder.conv_out, lambda: model.decode(torch.randn(1, 4, 16, 16)).sample, 0.4)
    return model


def unet(channels, groups, down, layers, **more):
    """`down` has a letter a level: c with cross attention, d without."""
    blocks = {"c": ("CrossAttnDownBlock2D", "CrossAttnUpBlock2D"), "d": ("DownBlock2D", "UpBlock2D")}
    model = enliven(d.UNet2DConditionModel(sample_size=16, block_out_channels=channels, norm_num_groups=groups, layers_per_block=layers,
                                           down_block_types=tuple(blocks[b][0] for b in down), up_block_types=tuple(blocks[b][1] for b in down[::-1]), **more))
    set_output_scale(model.conv_out, lambda: model(torch.randn(1, 4, 16, 16), 500, torch.randn(1, 77, model.config.cross_attention_dim),
                                                   added_cond_kwargs=added_condition(model, 1)).sample, 1.0)
    return model


def time_id_count(unet):
    """How many sizes and scores the network is told beside the pooled text; 0 before SDXL."""
    c = unet.config
    return (c.projection_class_embeddings_input_dim - 24) // c.addition_time_embed_dim if c.addition_embed_type else 0


def added_condition(unet, batch):
    count = time_id_count(unet)
    return dict(text_embeds=torch.randn(batch, 24), time_ids=torch.randint(0, 100, (batch, count)).float()) if count else None


XL = dict(use_linear_projection=True, addition_embed_type="text_time", addition_time_embed_dim=8)


def build(name):
    ends, exclamations = tokenizer("<|endoftext|>"), tokenizer("!")
    no_checker = dict(safety_checker=None, feature_extractor=None, requires_safety_checker=False)
    xl_vae = dict(scaling_factor=0.13025, force_upcast=True)
    euler = d.EulerDiscreteScheduler(timestep_spacing="leading", **BETAS)
    if name == "sd15":
        return d.StableDiffusionPipeline(
            text_encoder=text_encoder(3, "quick_gelu"), tokenizer=ends, vae=vae((16, 32), 16),
            unet=unet((32, 32), 32, "cd", 1, attention_head_dim=4, cross_attention_dim=32),
            scheduler=d.PNDMScheduler(skip_prk_steps=True, set_alpha_to_one=False, **BETAS), **no_checker)
    if name == "sd21-v":
        return d.StableDiffusionPipeline(
            text_encoder=text_encoder(2, "gelu"), tokenizer=exclamations, vae=vae((8, 16), 4, 2),
            unet=unet((16, 16, 32), 16, "ccd", 1, attention_head_dim=(2, 4, 8), cross_attention_dim=32, use_linear_projection=True),
            scheduler=d.DDIMScheduler(set_alpha_to_one=False, clip_sample=False, prediction_type="v_prediction", **BETAS), **no_checker)
    if name == "sdxl":
        return d.StableDiffusionXLPipeline(
            text_encoder=text_encoder(3, "quick_gelu"), tokenizer=ends, text_encoder_2=text_encoder(3, "gelu", projected=True), tokenizer_2=exclamations,
            vae=vae((16, 32), 8, 1, **xl_vae), scheduler=euler, force_zeros_for_empty_prompt=True,
            unet=unet((16, 32), 8, "dc", 2, attention_head_dim=(2, 4), transformer_layers_per_block=(1, 2), cross_attention_dim=64,
                      projection_class_embeddings_input_dim=24 + 6 * 8, **XL))
    if name == "sdxl-refiner":
        return d.StableDiffusionXLImg2ImgPipeline(
            text_encoder=None, tokenizer=None, text_encoder_2=text_encoder(3, "gelu", projected=True), tokenizer_2=exclamations,
            vae=vae((32, 32), 16, **xl_vae), scheduler=euler, force_zeros_for_empty_prompt=False, requires_aesthetics_score=True,
            unet=unet((16, 32), 4, "dc", 1, attention_head_dim=(2, 4), transformer_layers_per_block=2, cross_attention_dim=32,
                      projection_class_embeddings_input_dim=24 + 5 * 8, **XL))
    raise SystemExit(f"no model named {name}")


def golden_text(pipe):
    """Rows 0 and 1 are the negative prompt and the prompt."""
    golden = {}
    parts = [(pipe.tokenizer, pipe.text_encoder), (getattr(pipe, "tokenizer_2", None), getattr(pipe, "text_encoder_2", None))]
    xl = "XL" in type(pipe).__name__
    for i, (tokens, encoder) in enumerate(part for part in parts if part[1] is not None):
        ids = tokens([REQUEST["negative_prompt"], REQUEST["prompt"]], padding="max_length", max_length=77, truncation=True, return_tensors="pt").input_ids
        said = encoder(ids, output_hidden_states=True)
        golden[f"text.{i}.ids"] = ids
        # SDXL takes the state before the last layer as it is, the others the last one, normed. "skipped" is one layer earlier.
        golden[f"text.{i}.hidden"] = said.hidden_states[-2] if xl else said.last_hidden_state
        golden[f"text.{i}.hidden_skipped"] = said.hidden_states[-3] if xl else encoder.text_model.final_layer_norm(said.hidden_states[-2])
        if hasattr(encoder, "text_projection"): golden[f"text.{i}.pooled"] = said.text_embeds
    return golden


def golden_unet(unet):
    golden = {}
    for case, batch, height, width, timestep in [("even", 2, 8, 12, 501.0), ("odd", 1, 9, 7, 37.25)]:
        latents, context = torch.randn(batch, 4, height, width), torch.randn(batch, 19, unet.config.cross_attention_dim)
        added = added_condition(unet, batch)
        made = unet(latents, torch.tensor(timestep), context, added_cond_kwargs=added).sample
        values = dict(latents=latents, context=context, timestep=torch.tensor([timestep]), output=made)
        if added: values.update(pooled=added["text_embeds"], time_ids=added["time_ids"])
        golden.update({f"unet.{case}.{key}": value for key, value in values.items()})
    return golden


def golden_vae(vae):
    scale = vae.config.scaling_factor
    latents, image = torch.randn(2, 4, 6, 5), torch.rand(1, 3, 24, 16) * 2 - 1
    return {"vae.latents": latents, "vae.decoded": vae.decode(latents / scale).sample,
            "vae.image": image, "vae.mean": vae.encode(image).latent_dist.mean * scale}


def golden_run(pipe, name, negative_prompt, **more):
    r = REQUEST
    draw = lambda: torch.Generator("cpu").manual_seed(r["seed"])
    asked = dict(prompt=r["prompt"], negative_prompt=negative_prompt, num_inference_steps=r["steps"], guidance_scale=r["guidance_scale"],
                 generator=draw(), output_type="latent", **more)
    if "Img2Img" in type(pipe).__name__:
        # The refiner's pipeline starts from an image's latents and adds sigma times the noise. From nothing it starts as the base model
        # does, at init_noise_sigma times the noise: what is missing is handed over as the image.
        pipe.scheduler.set_timesteps(r["steps"])
        noise = torch.randn(1, 4, r["height"] // 2, r["width"] // 2, generator=draw())
        asked.update(image=noise * (pipe.scheduler.init_noise_sigma - pipe.scheduler.sigmas[0]), strength=1.0)
    else:
        asked.update(width=r["width"], height=r["height"])
    latents = pipe(**asked).images
    decoded = pipe.vae.decode(latents / pipe.vae.config.scaling_factor).sample
    image = ((decoded / 2 + 0.5).clamp(0, 1)[0].permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)
    print(f"  {name}: latents std {latents.std():.2f}, {((image == 0) | (image == 255)).mean():.1%} of the image's values saturated")
    return {f"{name}.latents": latents, f"{name}.image": torch.from_numpy(image)}


@torch.no_grad()
def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, default=HERE)
    parser.add_argument("--only", default=",".join(MODELS))
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # the order of sums, and so the last bits, depends on it
    for name in arguments.only.split(","):
        torch.manual_seed(MODELS.index(name))
        folder = arguments.out / name
        shutil.rmtree(folder, ignore_errors=True)
        pipe = build(name)
        pipe.to(torch.float16).save_pretrained(folder)
        print(name)
        pipe = type(pipe).from_pretrained(folder, torch_dtype=torch.float32)
        pipe.set_progress_bar_config(disable=True)
        golden = {}
        golden.update(golden_text(pipe))
        golden.update(golden_unet(pipe.unet))
        golden.update(golden_vae(pipe.vae))
        golden.update(golden_run(pipe, "run", REQUEST["negative_prompt"]))
        golden.update(golden_run(pipe, "bare", None, clip_skip=1, guidance_rescale=0.7))
        save_file({key: value.detach().contiguous() for key, value in golden.items()}, folder / "golden.safetensors")
        (folder / "request.json").write_text(json.dumps(REQUEST, indent=1) + "\n")


if __name__ == "__main__": main()
