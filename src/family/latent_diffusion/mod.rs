//! What Stable Diffusion 1, 2, XL and its refiner share: a UNet, an AutoencoderKL and CLIP text encoders, in a diffusers folder or in
//! one file in the layout of the first Stable Diffusion.

pub(super) mod describe;
pub(super) mod export;
mod single;
pub(super) mod well_known;

use super::keys::{self, Pair, TextLayout};
use super::{FAMILIES, FamilyRow, FolderNames, Format, Marks, row};
use crate::Result;
use crate::error::model_error;
use crate::spec::{ClipTextSpec, ModelSpec, TextEncoderSpec};

/// The folders of the text encoders, in the order in which their embeddings are joined.
pub(super) const FIRST: &str = "text_encoder";
pub(super) const SECOND: &str = "text_encoder_2";

/// The same with the folders of their tokenizers.
const TEXT_ENCODERS: [(&str, &str); 2] = [(FIRST, "tokenizer"), (SECOND, "tokenizer_2")];
/// The token after a text's end where CLIP-L was trained.
const PAD_CLIP: &str = "<|endoftext|>";
/// The same where OpenCLIP was trained: the token 0.
const PAD_OPEN_CLIP: &str = "!";

pub(super) const FORMAT: Format = Format {
    denoiser: "unet",
    marks_of_file: &["model.diffusion_model.input_blocks.0.0.weight"],
    takes_encoders: false,
    describe: describe::describe,
    texts: describe::texts,
    detect: single::detect,
    original,
    folders,
    export: export::texts,
    carried: export::carried,
    marks,
};

/// What tells the families of this format apart.
pub(super) struct Facts {
    /// Whether these text encoders are the family's, beside a UNet that takes pooled text and sizes or does not.
    pub(super) is: fn(&[TextEncoderSpec], bool) -> bool,
    /// What a folder and a single file show it by.
    pub(super) in_folder: &'static str,
    pub(super) in_file: &'static str,
    /// Width and height in pixels of a single file that predicts v, where nothing says so.
    pub(super) size_of_v: usize,
    /// Scaling factor of the latents, and whether their decoder overflows in f16.
    pub(super) latents: (f64, bool),
    /// A missing negative prompt becomes zeros.
    pub(super) zero_missing_negative: bool,
    /// The time ids end in an aesthetic score.
    pub(super) aesthetic_score: bool,
    /// A bias of the UNet tells what it predicts, where nothing says so.
    pub(super) v_by_statistic: bool,
    pub(super) text: &'static [TextSlot],
    /// diffusers' pipelines.
    pub(super) pipelines: &'static [(Input, &'static str)],
    /// Its name in a single file's metadata, of a model that predicts v or does not.
    pub(super) architecture: fn(bool) -> &'static str,
    /// Other programs look for tensors that say what a model predicts.
    pub(super) marked: bool,
}

/// Where a text encoder is: its folder, and its names in a single file.
pub(super) struct TextSlot {
    pub(super) folder: &'static str,
    pub(super) prefix: &'static str,
    pub(super) layout: TextLayout,
}

/// What the UNet sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Input {
    Latents,
    Image,
    MaskAndImage,
}

impl Input {
    fn of(spec: &ModelSpec) -> Self {
        let latents = spec.vae.latent_channels;
        match spec.unet.in_channels {
            n if n == latents => Input::Latents,
            n if n == 2 * latents => Input::Image,
            _ => Input::MaskAndImage,
        }
    }
}

/// The family whose text encoders these are.
fn family(text_encoders: &[TextEncoderSpec], text_time: bool) -> Option<(&'static FamilyRow, &'static Facts)> {
    let rows = FAMILIES.iter().filter_map(|row| Some((*row, row.facts?)));
    rows.into_iter().find(|(_, facts)| (facts.is)(text_encoders, text_time))
}

/// The facts of a model's family.
fn facts(spec: &ModelSpec) -> Result<&'static Facts> {
    let name = spec.family.name();
    row(spec.family).facts.ok_or_else(|| model_error(name, "has another format than Stable Diffusion with a UNet"))
}

fn original(spec: &ModelSpec) -> Result<Vec<Vec<Pair>>> {
    if spec.vae.tiny.is_some() {
        return Err(model_error(spec.family.name(), "has a tiny autoencoder, for which the original layout has no place; write a folder"));
    }
    let mut networks = vec![keys::unet(&spec.unet, single::UNET), keys::vae(&spec.vae, single::VAE[0])];
    let slots = facts(spec)?.text;
    for (i, text) in spec.text_encoders.iter().enumerate() {
        let slot = slots.get(i);
        let slot = slot.ok_or_else(|| {
            model_error(spec.family.name(), format!("has a text encoder {}, for which the original layout has no place", i + 1))
        })?;
        networks.push(keys::text(&text.clip, slot.layout, slot.prefix));
    }
    Ok(networks)
}

fn folders(spec: &ModelSpec) -> Vec<FolderNames> {
    const WEIGHTS: &str = "diffusion_pytorch_model.safetensors";
    let whole = |folder| FolderNames { folder, file: WEIGHTS, tokenizer: None, kept: None, left_out: 0 };
    let mut folders = vec![whole("unet"), whole("vae")];
    for (slot, text) in text_folders(spec).into_iter().zip(&spec.text_encoders) {
        let projected = slot.clip.projection_dim.is_some();
        let names = keys::diffusers_text(&slot.clip).into_iter().map(|pair| pair.name);
        folders.push(FolderNames {
            folder: slot.folder,
            file: "model.safetensors",
            tokenizer: Some(slot.tokenizer),
            kept: Some(names.filter(|name| projected || name != "text_projection.weight").collect()),
            left_out: text.clip.layers.saturating_sub(slot.clip.layers),
        });
    }
    folders
}

/// A text encoder's folder, its tokenizer's, and the spec as the folder has it.
struct TextFolder {
    folder: &'static str,
    tokenizer: &'static str,
    clip: ClipTextSpec,
}

/// The folders of a model's text encoders.
fn text_folders(spec: &ModelSpec) -> Vec<TextFolder> {
    let slots = facts(spec).map_or(&[][..], |facts| facts.text);
    let folder = |(slot, text): (&TextSlot, &TextEncoderSpec)| {
        let (folder, tokenizer) = *TEXT_ENCODERS.iter().find(|(folder, _)| *folder == slot.folder)?;
        Some(TextFolder { folder, tokenizer, clip: in_folder(text) })
    };
    slots.iter().zip(&spec.text_encoders).filter_map(folder).collect()
}

/// As a folder has it: SD 2.x's folders leave out the layers that are never used.
fn in_folder(text: &TextEncoderSpec) -> ClipTextSpec {
    let unused = if text.final_norm { text.skip_layers } else { 0 };
    ClipTextSpec { layers: text.clip.layers.saturating_sub(unused), ..text.clip.clone() }
}

fn marks(spec: &ModelSpec, Marks { v, zero_snr }: Marks) -> (String, Vec<&'static str>) {
    let Some(facts) = row(spec.family).facts else { return (spec.family.id().to_owned(), Vec::new()) };
    let kind = match Input::of(spec) {
        Input::Latents => "",
        Input::Image => "/instruct-pix2pix",
        Input::MaskAndImage => "/inpainting",
    };
    let marks = [("v_pred", v), ("ztsnr", v && zero_snr)].into_iter().filter(|(_, is)| *is && facts.marked);
    (format!("{}{kind}", (facts.architecture)(v)), marks.map(|(mark, _)| mark).collect())
}
