//! A model whose networks lie in files of their own: a UNet or a transformer alone (as ComfyUI keeps and ComfyUI-GGUF writes them), with
//! text encoders and autoencoder beside it. Their tensors are given the names that they have in a whole file, which is then understood as
//! any other.

use super::checkpoint::OpenOptions;
use super::file::{Blob, WeightFile};
use super::folder::{PICKLE, is_pickle};
use super::model_error;
use crate::family::TensorNames;
use crate::{Error, Result};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

/// What is before a denoiser's names in a whole file.
const DENOISER: &str = "model.diffusion_model.";
/// What is before an autoencoder's.
const VAE: &str = "first_stage_model.";
/// A tensor of every UNet that no ControlNet has, and one of every transformer of Stable Diffusion 3.
const UNET: &str = "output_blocks.0.0.in_layers.0.weight";
const MMDIT: &str = "joint_blocks.0.context_block.attn.qkv.weight";
/// What is before the names of tensors that nobody asks for.
pub(super) const UNUSED: &str = "sd-gen.unused.";
const DECODER: &str = "decoder.conv_in.weight";

/// Several files as one.
#[derive(Debug)]
pub(super) struct JoinedFiles {
    name: String,
    pub(super) files: Vec<Arc<WeightFile>>,
    metadata: BTreeMap<String, String>,
}

impl TensorNames for JoinedFiles {
    fn name(&self) -> &str {
        &self.name
    }

    fn shape(&self, key: &str) -> Option<&[usize]> {
        self.files.iter().find_map(|file| file.shape(key))
    }

    fn names(&self) -> Box<dyn Iterator<Item = &str> + '_> {
        Box::new(self.files.iter().flat_map(|file| file.entries().iter().map(|entry| entry.name.as_str())))
    }

    fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    fn numbers(&self, key: &str) -> Result<Option<Vec<f32>>> {
        self.files.iter().find(|file| file.shape(key).is_some()).map_or(Ok(None), |file| TensorNames::numbers(&**file, key))
    }
}

/// The file of a network, which is no pickle.
pub(super) fn open(path: &Path) -> Result<WeightFile> {
    let shown = path.display().to_string();
    if is_pickle(path) {
        return Err(model_error(&shown, PICKLE));
    }
    Blob::open(path).and_then(|blob| WeightFile::new(shown, blob))
}

/// A denoiser alone with what `options` gives beside it; `None` where the file is something else, or has an autoencoder.
///
/// # Errors
/// Something that the model needs is not given, or is no such network.
pub(super) fn joined(file: &Arc<WeightFile>, options: &OpenOptions) -> Result<Option<JoinedFiles>> {
    let has = |key: &str| file.shape(key).is_some();
    let found = [(UNET, true), (MMDIT, false)].into_iter().find_map(|(mark, is_unet)| {
        let prefix = ["", DENOISER].into_iter().find(|prefix| has(&format!("{prefix}{mark}")))?;
        Some((prefix, is_unet))
    });
    let whole = ["first_stage_model.", "vae."].iter().any(|prefix| has(&format!("{prefix}{DECODER}")));
    let Some((prefix, is_unet)) = found.filter(|_| !whole) else { return Ok(None) };
    // A whole model from which something is missing says itself what.
    if !prefix.is_empty() && options.vae.is_none() {
        return Ok(None);
    }
    let what = if is_unet { "a UNet" } else { "a transformer" };
    // Linear projections came with OpenCLIP's text, and the added embedding with two text encoders.
    let is_linear = file.entries().iter().any(|entry| entry.name.ends_with(".1.proj_in.weight") && entry.shape.len() == 2);
    let encoders = match (is_unet, has(&format!("{prefix}label_emb.0.0.weight")), is_linear) {
        (false, ..) => Vec::new(),
        (true, true, _) => vec![
            ("clip-l", &options.clip_l, "conditioner.embedders.0.transformer."),
            ("clip-g", &options.clip_g, "conditioner.embedders.1.transformer."),
        ],
        (true, false, false) => vec![("clip-l", &options.clip_l, "cond_stage_model.transformer.")],
        (true, false, true) => {
            let what = "holds only a UNet of Stable Diffusion 2, whose text encoder cannot be given beside it; take a whole model";
            return Err(model_error(&file.name, what));
        }
    };
    let missing: Vec<String> = encoders
        .iter()
        .map(|(setting, path, _)| (*setting, path.is_some()))
        .chain([("vae", options.vae.is_some())])
        .filter(|(_, is_given)| !is_given)
        .map(|(setting, _)| format!("`{setting}`"))
        .collect();
    if !missing.is_empty() {
        let what = format!("holds only {what}; give the files of the rest with {}, or take a whole model", missing.join(" and "));
        return Err(model_error(&file.name, what));
    }
    let given = [("clip-l", &options.clip_l), ("clip-g", &options.clip_g), ("t5", &options.t5)];
    let is_taken = |setting: &str| !is_unet || encoders.iter().any(|(taken, ..)| *taken == setting);
    if let Some((setting, _)) = given.iter().find(|(setting, path)| path.is_some() && !is_taken(setting)) {
        return Err(Error::setting(setting, format!(": the UNet of {} takes no such text encoder; leave it out", file.name)));
    }
    let denoiser = if prefix.is_empty() { Arc::new(file.renamed(|name| format!("{DENOISER}{name}"))?) } else { file.clone() };
    let mut files = vec![denoiser];
    for (setting, path, prefix) in encoders {
        if let Some(path) = path {
            files.push(Arc::new(text_encoder(path, setting, prefix)?));
        }
    }
    if let Some(path) = &options.vae {
        files.push(Arc::new(vae(path)?));
    }
    let metadata = file.metadata().clone();
    Ok(Some(JoinedFiles { name: file.name.clone(), files, metadata }))
}

/// A CLIP with the names of the transformers library, behind `prefix`; one of OpenCLIP behind the name that is usual for it.
fn text_encoder(path: &Path, setting: &'static str, prefix: &str) -> Result<WeightFile> {
    let file = open(path)?;
    let has = |key: &str| file.shape(key).is_some();
    if has("token_embedding.weight") && setting == "clip-g" {
        let prefix = prefix.replace("transformer.", "model.");
        return file.renamed(|name| format!("{prefix}{name}"));
    }
    // What CLIP-L's files have beside it is of no use here.
    let is_used = |name: &str| name.starts_with("text_model.") || setting == "clip-g" && name == "text_projection.weight";
    match has("text_model.embeddings.token_embedding.weight") {
        true => file.renamed(|name| if is_used(name) { format!("{prefix}{name}") } else { format!("{UNUSED}{name}") }),
        false => Err(Error::setting(
            setting,
            format!(
                " {}: is no text encoder that is known; one with the tensor text_model.embeddings.token_embedding.weight is",
                file.name
            ),
        )),
    }
}

/// An autoencoder in the original layout.
fn vae(path: &Path) -> Result<WeightFile> {
    let wrong = |name: &str, what: &str| Err(Error::setting("vae", format!(" {name}: {what}")));
    let shown = path.display().to_string();
    if path.is_dir() {
        return wrong(&shown, "a denoiser alone needs the autoencoder's file in the original layout; a folder is not taken");
    }
    let file = open(path)?;
    let has = |key: &str| file.shape(key).is_some();
    if has("decoder.conv_norm_out.weight") {
        return wrong(&shown, "has diffusers' names; a denoiser alone needs an autoencoder with those of the original layout");
    }
    match [VAE, "vae.", ""].into_iter().find(|prefix| has(&format!("{prefix}{DECODER}"))) {
        // Of a whole model the autoencoder alone.
        Some(prefix) => {
            let inside = |name: &str| name.strip_prefix(prefix).map_or_else(|| format!("{UNUSED}{name}"), |name| format!("{VAE}{name}"));
            file.renamed(inside)
        }
        None => wrong(&shown, "is no autoencoder that is known"),
    }
}

/// llama.cpp's names of T5's parts, and the usual ones.
///
/// # Source
/// city96/ComfyUI-GGUF@b3ec875:loader.py (`T5_SD_MAP`).
const T5_NAMES: [(&str, &str); 13] = [
    ("token_embd", "shared"),
    ("output_norm", "final_layer_norm"),
    ("attn_q", "layer.0.SelfAttention.q"),
    ("attn_k", "layer.0.SelfAttention.k"),
    ("attn_v", "layer.0.SelfAttention.v"),
    ("attn_o", "layer.0.SelfAttention.o"),
    ("attn_norm", "layer.0.layer_norm"),
    ("attn_rel_b", "layer.0.SelfAttention.relative_attention_bias"),
    ("ffn_gate", "layer.1.DenseReluDense.wi_0"),
    ("ffn_up", "layer.1.DenseReluDense.wi_1"),
    ("ffn_down", "layer.1.DenseReluDense.wo"),
    ("ffn_norm", "layer.1.layer_norm"),
    ("blk", "block"),
];

/// A T5 encoder under its usual names, whoever named it.
pub(super) fn t5(path: &Path) -> Result<WeightFile> {
    let file = open(path)?;
    if file.shape("enc.blk.0.attn_q.weight").is_none() {
        return Ok(file);
    }
    file.renamed(|name| {
        let known = |part: &str| T5_NAMES.iter().find(|(own, _)| *own == part).map(|(_, usual)| (*usual).to_owned());
        let part = |(i, part): (usize, &str)| match part {
            "enc" if i == 0 => "encoder".to_owned(),
            part => known(part).unwrap_or_else(|| part.to_owned()),
        };
        name.split('.').enumerate().map(part).collect::<Vec<_>>().join(".")
    })
}
