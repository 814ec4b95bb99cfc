//! Stable Diffusion 3 and 3.5: a transformer over text and image tokens, CLIP-L, CLIP-G and T5, sixteen channels of latents, a flow.

mod describe;
mod export;
pub(super) mod keys;
mod single;

use super::{FamilyRow, FolderNames, Format, Marks};
use crate::Result;
use crate::error::model_error;
use crate::sampling::SchedulerConfig;
use crate::spec::{Activation, ClipTextSpec, Family, MmditSpec, ModelSpec, T5Spec, TextEncoderSpec, VaeSpec};
use serde_json::{Value, json};

pub(super) const ROW: FamilyRow = FamilyRow {
    family: Family::new("sd3", "Stable Diffusion 3"),
    format: &FORMAT,
    well_known: &[("sd3-medium", sd3_medium), ("sd35-medium", sd35_medium), ("sd35-large", sd35_large)],
    default_size: 1024,
    guidance_scale: 7.0,
    context_width: 4096,
    scheduler,
    facts: None,
};

const FORMAT: Format = Format {
    denoiser: "transformer",
    marks_of_file: &["model.diffusion_model.joint_blocks.0.context_block.attn.qkv.weight", "joint_blocks.0.context_block.attn.qkv.weight"],
    takes_encoders: true,
    describe: describe::describe,
    texts: describe::texts,
    detect: single::detect,
    original,
    folders,
    export: export::texts,
    carried: export::carried,
    marks,
};

/// Scale and shift of the latents.
const LATENTS: (f64, f64) = (1.5305, 0.0609);
/// The folders of the text encoders and of their tokenizers.
const ENCODERS: [(&str, &str); 2] = [("text_encoder", "tokenizer"), ("text_encoder_2", "tokenizer_2")];
const T5: (&str, &str) = ("text_encoder_3", "tokenizer_3");
/// The token after a text's end, of CLIP-L and of CLIP-G.
const PADS: [&str; 2] = ["<|endoftext|>", "!"];

/// SD3 medium's in diffusers, and that of every 3.5.
fn scheduler() -> Value {
    json!({ "_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 3.0 })
}

/// What is taken of CLIP-L or CLIP-G: the penultimate layer without the last norm, and the pooled vector.
fn encoder(clip: ClipTextSpec, pad_token: String) -> TextEncoderSpec {
    TextEncoderSpec { clip, skip_layers: 1, final_norm: false, pad_token, pooled: true }
}

/// Refuses encoders whose widths are not those that the transformer takes.
fn check_widths(file: &str, mmdit: &MmditSpec, text: &[TextEncoderSpec], t5: Option<&T5Spec>) -> Result<()> {
    let width: usize = text.iter().map(|encoder| encoder.clip.hidden_size).sum();
    let pooled: usize = text.iter().map(|encoder| encoder.clip.projection_dim.unwrap_or(encoder.clip.hidden_size)).sum();
    if width > mmdit.context_width {
        return Err(model_error(file, format!("takes text of width {}, and CLIP-L and CLIP-G give {width}", mmdit.context_width)));
    }
    if pooled != mmdit.pooled_width {
        return Err(model_error(file, format!("takes pooled text of width {}, and CLIP-L and CLIP-G give {pooled}", mmdit.pooled_width)));
    }
    match t5.filter(|t5| t5.width != mmdit.context_width) {
        Some(t5) => Err(model_error(file, format!("takes text of width {}, and T5 gives {}", mmdit.context_width, t5.width))),
        None => Ok(()),
    }
}

fn check_latents(file: &str, mmdit: &MmditSpec, vae: &VaeSpec) -> Result<()> {
    let latents = vae.latent_channels;
    match (mmdit.in_channels, mmdit.out_channels) {
        (input, output) if (input, output) == (latents, latents) => Ok(()),
        (input, output) => Err(model_error(
            file,
            format!("has {input} input and {output} output channels, and the autoencoder has {latents}: only text to image is implemented"),
        )),
    }
}

fn original(spec: &ModelSpec) -> Result<Vec<Vec<super::keys::Pair>>> {
    let Some(mmdit) = &spec.mmdit else { return Err(model_error(spec.family.name(), "has no transformer")) };
    if spec.vae.tiny.is_some() {
        return Err(model_error(spec.family.name(), "has a tiny autoencoder, for which the original layout has no place; write a folder"));
    }
    let mut networks = vec![keys::mmdit(mmdit, single::MMDIT[0]), super::keys::vae(&spec.vae, single::VAE[0])];
    for (text, prefix) in spec.text_encoders.iter().zip(single::ENCODERS) {
        networks.push(super::keys::text(&text.clip, super::keys::TextLayout::Clip, prefix));
    }
    networks.extend(spec.t5.as_ref().map(|t5| keys::t5(t5, single::T5)));
    Ok(networks)
}

fn folders(spec: &ModelSpec) -> Vec<FolderNames> {
    const WEIGHTS: &str = "diffusion_pytorch_model.safetensors";
    let whole = |folder| FolderNames { folder, file: WEIGHTS, tokenizer: None, kept: None, left_out: 0 };
    let mut folders = vec![whole("transformer"), whole("vae")];
    for (folder, tokenizer) in ENCODERS.into_iter().take(spec.text_encoders.len()).chain(spec.t5.is_some().then_some(T5)) {
        folders.push(FolderNames { folder, file: "model.safetensors", tokenizer: Some(tokenizer), kept: None, left_out: 0 });
    }
    folders
}

fn marks(spec: &ModelSpec, _: Marks) -> (String, Vec<&'static str>) {
    let newer = spec.mmdit.as_ref().is_some_and(|mmdit| mmdit.qk_norm);
    let large = spec.mmdit.as_ref().is_some_and(|mmdit| mmdit.layers > 24);
    let name = match (newer, large) {
        (false, _) => "stable-diffusion-v3-medium",
        (true, false) => "stable-diffusion-v3.5-medium",
        (true, true) => "stable-diffusion-v3.5-large",
    };
    (name.to_owned(), Vec::new())
}

/// A model that everybody knows, of blocks of 64 channels a head.
fn well_known(name: &str, layers: usize, positions: usize, qk_norm: bool, dual: usize) -> ModelSpec {
    use super::latent_diffusion::well_known::{clip_l, open_clip, vae};
    let mmdit = MmditSpec {
        in_channels: 16,
        out_channels: 16,
        patch_size: 2,
        heads: layers,
        head_size: 64,
        layers,
        dual_layers: (0..dual).collect(),
        qk_norm,
        context_width: 4096,
        pooled_width: 2048,
        positions,
    };
    let t5 = T5Spec {
        vocab_size: 32_128,
        width: 4096,
        wide: 10_240,
        layers: 24,
        heads: 64,
        head_size: 64,
        buckets: 32,
        max_distance: 128,
        norm_eps: 1e-6,
    };
    let large = ClipTextSpec { activation: Activation::Gelu, ..open_clip(1280, 32, Some(1280)) };
    let [pad_l, pad_g] = PADS.map(str::to_owned);
    let plain = vae(LATENTS.0, true);
    ModelSpec {
        family: super::SD3,
        evidence: vec![format!("{name} was asked for by name.")],
        unet: mmdit.as_unet(),
        mmdit: Some(mmdit),
        vae: VaeSpec { latent_channels: 16, shift_factor: LATENTS.1, quant_conv: false, post_quant_conv: false, latent_rgb: None, ..plain },
        text_encoders: vec![encoder(clip_l(Some(768)), pad_l), encoder(large, pad_g)],
        t5: Some(t5),
        scheduler: SchedulerConfig::from_json(&scheduler().to_string(), super::schedule::USUAL).unwrap_or_default(),
        default_size: ROW.default_size,
        zero_missing_negative: false,
        aesthetic_score: false,
        defaults: crate::spec::Defaults { steps: None, guidance_scale: ROW.guidance_scale },
    }
}

fn sd3_medium() -> ModelSpec {
    well_known("Stable Diffusion 3 medium", 24, 192, false, 0)
}

fn sd35_medium() -> ModelSpec {
    well_known("Stable Diffusion 3.5 medium", 24, 384, true, 13)
}

fn sd35_large() -> ModelSpec {
    well_known("Stable Diffusion 3.5 large", 38, 192, true, 0)
}
