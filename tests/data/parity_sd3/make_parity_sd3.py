#!/usr/bin/env python3
"""Makes very small random models of Stable Diffusion 3 and 3.5 medium, and what diffusers computes with them stage by stage.

    pip install torch "diffusers==0.36.0" "transformers<5" tokenizers ftfy
    python make_parity_sd3.py            # both models, beside this script

Each folder NAME is a diffusers model in f16 with golden.safetensors: inputs and outputs of every stage, computed in f32 on the CPU from the
f16 weights. What the models of other families need is in ../parity/make_parity.py.
"""
import pathlib, shutil, sys

import diffusers as d
import numpy as np
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPTokenizer, T5Config, T5EncoderModel, T5TokenizerFast

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "parity"))
from make_parity import END, REQUEST, START, enliven, set_output_scale  # noqa: E402

TOKENIZERS = {"tokenizer": HERE.parent / "parity/sdxl/tokenizer", "tokenizer_2": HERE.parent / "parity/sdxl/tokenizer_2"}
WIDTH, HEADS, CONTEXT, T5_TOKENS = 32, 4, 64, 24
WEIGHTED = [("a ", 1.0), ("red", 1.3), (" apple on ", 1.0), ("old", 0.5)]
PIECES = ["a", "▁a", "red", "▁red", "apple", "▁apple", "table", "▁table", "s", "▁photo", "▁of", "▁old", "▁best", "▁the", "▁low", "▁blurry", "quality"]


def t5_tokenizer():
    """A unigram vocabulary of letters and a few words."""
    letters = [chr(c) for c in range(ord("!"), ord("~") + 1)]
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)] + [(piece, -1.0 - 0.1 * i) for i, piece in enumerate(PIECES)]
    pieces += [(letter, -6.0 - 0.01 * i) for i, letter in enumerate(letters) if letter not in PIECES]
    made = Tokenizer(models.Unigram(pieces, unk_id=2))
    made.normalizer = normalizers.NFKC()
    made.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
    made.decoder = decoders.Metaspace()
    made.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return T5TokenizerFast(tokenizer_object=made, extra_ids=0, additional_special_tokens=[], model_max_length=512), len(pieces)


def clip(activation):
    config = CLIPTextConfig(vocab_size=END + 1, hidden_size=CONTEXT // 2, intermediate_size=64, projection_dim=CONTEXT // 2 - 8, num_hidden_layers=3,
                            num_attention_heads=4, max_position_embeddings=77, hidden_act=activation, bos_token_id=START, eos_token_id=END)
    return enliven(CLIPTextModelWithProjection(config))


def build(newer):
    words, vocabulary = t5_tokenizer()
    t5 = T5EncoderModel(T5Config(vocab_size=vocabulary, d_model=CONTEXT, d_kv=8, d_ff=96, num_layers=2, num_heads=4, feed_forward_proj="gated-gelu"))
    more = dict(qk_norm="rms_norm", dual_attention_layers=(0, 1)) if newer else {}
    net = enliven(d.SD3Transformer2DModel(sample_size=16, patch_size=2, in_channels=16, out_channels=16, num_layers=3 if newer else 2,
                                          attention_head_dim=WIDTH // HEADS, num_attention_heads=HEADS, joint_attention_dim=CONTEXT,
                                          caption_projection_dim=WIDTH, pooled_projection_dim=CONTEXT - 16, pos_embed_max_size=12, **more))
    vae = enliven(d.AutoencoderKL(block_out_channels=(8, 16), norm_num_groups=4, layers_per_block=1, latent_channels=16, sample_size=64,
                                  down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2, scaling_factor=1.5305,
                                  shift_factor=0.0609, use_quant_conv=False, use_post_quant_conv=False, force_upcast=True))
    with torch.no_grad():
        set_output_scale(vae.decoder.conv_out, lambda: vae.decode(torch.randn(1, 16, 16, 16)).sample, 0.4)
        set_output_scale(net.proj_out, lambda: net(torch.randn(1, 16, 16, 16), torch.randn(1, 9, CONTEXT), torch.randn(1, CONTEXT - 16),
                                                   torch.tensor([500.0])).sample, 1.0)
    return d.StableDiffusion3Pipeline(
        transformer=net, vae=vae, text_encoder=clip("quick_gelu"), tokenizer=CLIPTokenizer.from_pretrained(TOKENIZERS["tokenizer"]), text_encoder_2=clip("gelu"),
        tokenizer_2=CLIPTokenizer.from_pretrained(TOKENIZERS["tokenizer_2"]), text_encoder_3=enliven(t5), tokenizer_3=words, scheduler=d.FlowMatchEulerDiscreteScheduler(shift=3.0))


def golden_text(pipe):
    golden, texts = {}, [REQUEST["negative_prompt"], REQUEST["prompt"]]
    for i, (tokens, encoder) in enumerate([(pipe.tokenizer, pipe.text_encoder), (pipe.tokenizer_2, pipe.text_encoder_2)]):
        ids = tokens(texts, padding="max_length", max_length=77, truncation=True, return_tensors="pt").input_ids
        said = encoder(ids, output_hidden_states=True)
        golden.update({f"text.{i}.hidden": said.hidden_states[-2], f"text.{i}.pooled": said.text_embeds})
    ids = pipe.tokenizer_3(texts, padding="max_length", max_length=T5_TOKENS, truncation=True, add_special_tokens=True, return_tensors="pt").input_ids
    assert (ids == 2).sum() == 0, "a letter is missing in the vocabulary"
    golden.update({"t5.ids": ids, "t5.hidden": pipe.text_encoder_3(ids)[0]})
    # As ComfyUI weighs words, comfy/sd1_clip.py: each stretch by itself, and how far each token goes from that of no words.
    stretches = [(pipe.tokenizer_3(text, add_special_tokens=False).input_ids, weight) for text, weight in WEIGHTED]
    ids, weights = [i for part, _ in stretches for i in part], [w for part, w in stretches for _ in part]
    row = lambda ids: pipe.text_encoder_3(torch.tensor([ids + [1] + [0] * (T5_TOKENS - 1 - len(ids))]))[0]
    weights = torch.tensor(weights + [1.0] * (T5_TOKENS - len(weights)))[None, :, None]
    golden["t5.weighted"] = (row(ids) - row([])) * weights + row([])
    return golden


def golden_transformer(net):
    golden = {}
    for case, batch, height, width, timestep in [("square", 2, 16, 16, 501.0), ("wide", 1, 6, 20, 37.25)]:
        values = dict(latents=torch.randn(batch, 16, height, width), context=torch.randn(batch, 19, CONTEXT), pooled=torch.randn(batch, CONTEXT - 16))
        made = net(values["latents"], values["context"], values["pooled"], torch.full((batch,), timestep)).sample
        golden.update({f"net.{case}.{key}": value for key, value in dict(**values, timestep=torch.tensor([timestep]), output=made).items()})
    return golden


def golden_vae(vae):
    scale, shift = vae.config.scaling_factor, vae.config.shift_factor
    latents, image = torch.randn(2, 16, 6, 5), torch.rand(1, 3, 24, 16) * 2 - 1
    return {"vae.latents": latents, "vae.decoded": vae.decode(latents / scale + shift).sample,
            "vae.image": image, "vae.mean": (vae.encode(image).latent_dist.mean - shift) * scale}


def golden_run(pipe):
    r = REQUEST
    latents = pipe(prompt=r["prompt"], negative_prompt=r["negative_prompt"], num_inference_steps=r["steps"], guidance_scale=r["guidance_scale"],
                   generator=torch.Generator("cpu").manual_seed(r["seed"]), output_type="latent", max_sequence_length=T5_TOKENS,
                   width=r["width"], height=r["height"]).images
    decoded = pipe.vae.decode(latents / pipe.vae.config.scaling_factor + pipe.vae.config.shift_factor).sample
    image = ((decoded / 2 + 0.5).clamp(0, 1)[0].permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)
    return {"run.latents": latents, "run.image": torch.from_numpy(image)}


@torch.no_grad()
def main():
    torch.set_num_threads(1)  # the order of sums, and so the last bits, depends on it
    for seed, name in enumerate(["sd3", "sd35-medium"]):
        torch.manual_seed(seed)
        folder = HERE / name
        shutil.rmtree(folder, ignore_errors=True)
        build(name != "sd3").to(torch.float16).save_pretrained(folder)
        # As other versions of the library write them.
        for own, other in TOKENIZERS.items():
            shutil.rmtree(folder / own)
            shutil.copytree(other, folder / own)
        pipe = d.StableDiffusion3Pipeline.from_pretrained(folder, torch_dtype=torch.float32)
        pipe.set_progress_bar_config(disable=True)
        golden = {**golden_text(pipe), **golden_transformer(pipe.transformer), **golden_vae(pipe.vae), **golden_run(pipe)}
        save_file({key: value.detach().contiguous() for key, value in golden.items()}, folder / "golden.safetensors")
        (folder / "README.md").unlink(missing_ok=True)
        print(name, f"latents std {golden['run.latents'].std():.2f}")


if __name__ == "__main__": main()
