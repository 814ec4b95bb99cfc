//! The lines of models: what each is known by, how its files are read and written, and what it wants to be told.
//!
//! A family is one folder and one row of `FAMILIES`. How files are laid out is a `Format`, which families share: those of
//! `latent_diffusion` have a UNet, an AutoencoderKL and CLIP text encoders. The networks' names, shapes and configuration files are
//! tables of their own (`keys`, `detect`, `config`) for any format to use.
//!
//! Nothing here opens a file: names, shapes and texts come through `TensorNames` and `ConfigFiles`, which `weights` implements.

pub(crate) mod config;
pub(crate) mod depth_anything;
pub(crate) mod detect;
mod files;
pub(crate) mod json;
pub(crate) mod keys;
pub(crate) mod kinds;
mod latent_diffusion;
pub(crate) mod lean_json;
mod refiner;
pub(crate) mod schedule;
mod sd1;
mod sd2;
mod sd3;
mod sdxl;

use files::CarriedFiles;
pub use files::TokenizerFiles;
pub(crate) use files::{Beside, ConfigFiles, Description, Exported, MAX_TEXT, TensorNames, names_in, too_long};

use crate::spec::{Family, ModelSpec};
use crate::{Error, Result};
use keys::Pair;
use latent_diffusion::Facts;
use serde_json::Value;
use std::collections::BTreeMap;

/// Stable Diffusion 1.x: CLIP-L.
pub const SD1: Family = sd1::ROW.family;
/// Stable Diffusion 2.x: OpenCLIP-H.
pub const SD2: Family = sd2::ROW.family;
/// Stable Diffusion XL base: CLIP-L and OpenCLIP-G.
pub const SDXL: Family = sdxl::ROW.family;
/// Stable Diffusion 3 and 3.5: CLIP-L, CLIP-G and T5, a transformer.
pub const SD3: Family = sd3::ROW.family;
/// Stable Diffusion XL refiner: OpenCLIP-G and an aesthetic score.
pub const SDXL_REFINER: Family = refiner::ROW.family;

/// The metadata key under which a single file carries a folder's configuration files: a JSON object of path and text.
pub(crate) const CONFIGURATION: &str = "sd-gen.configuration";

/// A well-known model: its short name, and what it is.
pub(crate) type WellKnown = (&'static str, fn() -> ModelSpec);

/// What a single file is, and where it says that.
pub(crate) type Detected = (Description, String);

/// The files of tokenizers, each with the folder that it is for.
pub(crate) type TokenizersByFolder<'a> = [(&'a str, TokenizerFiles)];

/// Configuration files by their paths in a folder.
pub(crate) type ConfigTexts = BTreeMap<String, String>;

/// All that is known of one family.
pub(crate) struct FamilyRow {
    pub(crate) family: Family,
    /// How its files are laid out.
    pub(crate) format: &'static Format,
    /// Its well-known models by their short names.
    pub(crate) well_known: &'static [WellKnown],
    /// Width and height in pixels that it was trained at, where nothing says so.
    pub(crate) default_size: usize,
    /// The guidance scale that diffusers takes for it.
    pub(crate) guidance_scale: f64,
    /// Width of the text that its denoiser takes, by which a denoiser or an adapter alone is recognised.
    pub(crate) context_width: usize,
    /// The fields of its first model's `scheduler_config.json` that differ from the others'.
    pub(crate) scheduler: fn() -> Value,
    /// What tells the families of `latent_diffusion` apart; `None` for one of another format.
    facts: Option<&'static Facts>,
}

/// The families. Of two that would take the same model the first counts.
const FAMILIES: &[&FamilyRow] = &[&sd1::ROW, &sd2::ROW, &sdxl::ROW, &refiner::ROW, &sd3::ROW];

/// How the files of some families are read and written.
pub(crate) struct Format {
    /// The component of a diffusers folder that only this format has.
    pub(crate) denoiser: &'static str,
    /// Tensors of which a single file has one if it is of this format, and otherwise none.
    pub(crate) marks_of_file: &'static [&'static str],
    /// Text encoders may be given in files of their own.
    pub(crate) takes_encoders: bool,
    /// A diffusers folder's texts → what the model is.
    pub(crate) describe: fn(&dyn ConfigFiles, &Beside<'_>) -> Result<Description>,
    /// The texts that `describe` may read.
    pub(crate) texts: fn() -> Vec<String>,
    /// A single file's names and shapes → what the model is, and where it says that.
    /// Where it carries a folder's configuration files, what those say is given.
    pub(crate) detect: fn(&dyn TensorNames, Option<Description>, &Beside<'_>) -> Result<Detected>,
    /// The names of every network in a single file.
    pub(crate) original: fn(&ModelSpec) -> Result<Vec<Vec<Pair>>>,
    /// The names of every network in a folder, with the folder.
    pub(crate) folders: fn(&ModelSpec) -> Vec<FolderNames>,
    /// The configuration files of a folder, given tokenizers for text encoders that have none of their own.
    pub(crate) export: fn(&Exported<'_>, &TokenizersByFolder<'_>) -> Result<ConfigTexts>,
    /// Those of `export` that a single file has to carry.
    pub(crate) carried: fn(&Exported<'_>) -> Result<ConfigTexts>,
    /// What other programs look for in a single file: its architecture, and tensors that say something by their names.
    pub(crate) marks: fn(&ModelSpec, Marks) -> (String, Vec<&'static str>),
}

/// What a scheduler's configuration says that other programs want to know of a single file.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Marks {
    pub(crate) v: bool,
    pub(crate) zero_snr: bool,
}

/// One network of a diffusers folder.
#[derive(Debug)]
pub(crate) struct FolderNames {
    pub(crate) folder: &'static str,
    pub(crate) file: &'static str,
    /// The tokenizer's folder, where it has one.
    pub(crate) tokenizer: Option<&'static str>,
    /// The names that it keeps; `None` where it keeps all.
    pub(crate) kept: Option<Vec<String>>,
    /// Layers at the end that nothing uses and that it leaves out.
    pub(crate) left_out: usize,
}

/// The row of a family.
pub(crate) fn row(family: Family) -> &'static FamilyRow {
    FAMILIES.iter().find(|row| row.family == family).unwrap_or(&&sd1::ROW)
}

/// The family whose denoiser takes text of a width.
pub(crate) fn of_context(width: usize) -> Option<Family> {
    FAMILIES.iter().find(|row| row.context_width == width).map(|row| row.family)
}

/// The short names that [`well_known`] answers to.
pub fn well_known_names() -> impl Iterator<Item = &'static str> {
    FAMILIES.iter().flat_map(|row| row.well_known).map(|(name, _)| *name)
}

/// A model that everybody knows, by its short name, for whoever has no file of it at hand.
///
/// # Source
/// The configuration files of stable-diffusion-v1-5, stable-diffusion-2-1 (768, v-prediction) and stable-diffusion-xl-base-1.0.
pub fn well_known(name: &str) -> Option<ModelSpec> {
    FAMILIES.iter().flat_map(|row| row.well_known).find(|(own, _)| *own == name).map(|(_, spec)| spec())
}

/// Reads the texts of a diffusers folder.
pub(crate) fn describe(folder: &dyn ConfigFiles, beside: &Beside<'_>) -> Result<Description> {
    let index = folder.json("model_index.json")?;
    let format = formats().find(|format| files::present(folder, index.as_ref(), format.denoiser)).unwrap_or(&latent_diffusion::FORMAT);
    check_beside(&folder.shown(""), format, beside)?;
    let mut description = (format.describe)(folder, beside)?;
    with_tokenizers(&mut description, beside)?;
    Ok(description)
}

/// Refuses text encoders beside a model that takes none.
fn check_beside(name: &str, format: &Format, beside: &Beside<'_>) -> Result<()> {
    let given = [("clip-l", beside.clip_l.is_some()), ("clip-g", beside.clip_g.is_some()), ("t5", beside.t5.is_some())];
    match given.into_iter().find(|(_, is_given)| *is_given && !format.takes_encoders) {
        Some((setting, _)) => Err(Error::setting(setting, format!(": {name} has text encoders of its own; leave it out"))),
        None => Ok(()),
    }
}

/// Takes tokenizers from a folder that is given beside the model.
fn with_tokenizers(description: &mut Description, beside: &Beside<'_>) -> Result<()> {
    const FOLDERS: [&str; 2] = ["tokenizer", "tokenizer_2"];
    let Some(folder) = beside.tokenizers else { return Ok(()) };
    let mut found = false;
    for (i, (slot, text)) in description.tokenizers.iter_mut().zip(&mut description.spec.text_encoders).enumerate() {
        for name in [FOLDERS.get(i), FOLDERS.get(1 - i.min(1))].into_iter().flatten() {
            if let Some(files) = latent_diffusion::describe::tokenizer_files(folder, name)? {
                text.pad_token = files.pad_token.clone().unwrap_or_else(|| text.pad_token.clone());
                *slot = Some(files);
                found = true;
                break;
            }
        }
    }
    if description.spec.t5.is_some()
        && let Some(text) = folder.utf8("tokenizer_3/tokenizer.json")?
    {
        description.t5_tokenizer = Some(text);
        found = true;
    }
    match found {
        true => Ok(()),
        false => Err(Error::setting("tokenizers", format!(" {}: has no tokenizer, tokenizer_2 or tokenizer_3 folder", folder.shown("")))),
    }
}

/// The texts that [`describe`] may read.
#[cfg(feature = "hub")]
pub(crate) fn texts() -> Vec<String> {
    let mut texts = Vec::new();
    for text in formats().flat_map(|format| (format.texts)()) {
        if !texts.contains(&text) {
            texts.push(text);
        }
    }
    texts
}

/// Concludes what a single file is, and from what, for messages.
pub(crate) fn detect(file: &dyn TensorNames, beside: &Beside<'_>) -> Result<Detected> {
    let carried = match file.metadata().get(CONFIGURATION) {
        None => None,
        Some(carried) => {
            let mut description = describe(&CarriedFiles::parse(file.name(), carried)?, &Beside::default())?;
            let sentence = format!("{} carries the configuration of the folder that it was made from.", file.name());
            description.spec.evidence.insert(0, sentence);
            Some(description)
        }
    };
    let has = |format: &&Format| format.marks_of_file.iter().any(|mark| file.shape(mark).is_some());
    let format = formats().find(has).unwrap_or(&latent_diffusion::FORMAT);
    check_beside(file.name(), format, beside)?;
    let (mut description, concluded) = (format.detect)(file, carried, beside)?;
    with_tokenizers(&mut description, beside)?;
    Ok((description, concluded))
}

/// The names of a transformer's tensors in the original layout; none of a model with a UNet.
pub(crate) fn transformer_names(spec: &ModelSpec) -> Vec<Pair> {
    spec.mmdit.as_ref().map_or(Vec::new(), |mmdit| sd3::keys::mmdit(mmdit, ""))
}

fn formats() -> impl Iterator<Item = &'static Format> {
    FAMILIES.iter().map(|row| row.format)
}

/// What a denoiser is told of an image's size and quality beside the text: one row of numbers.
///
/// # Source
/// `_get_add_time_ids` in diffusers@v0.36:src/diffusers/pipelines/stable_diffusion_xl.
pub(crate) fn time_ids(spec: &ModelSpec, (height, width): (f64, f64), aesthetic_score: f64) -> Vec<f64> {
    match spec.aesthetic_score {
        true => refiner::time_ids((height, width), aesthetic_score),
        false => sdxl::time_ids((height, width)),
    }
}
