//! A whole model in one file in the original layout: what it is, where its networks are, and what it is not.

use super::checkpoint::Component;
use super::component::Part;
use super::decode;
use super::describe::{self, Description, PAD_CLIP, PAD_OPEN_CLIP};
use super::detect::{self, Probe};
use super::file::WeightFile;
use super::folder::Folder;
use super::json::Fields;
use super::keys::{self, TextLayout};
use super::kinds::{self, ForeignKind, SingleNetwork};
use super::model_error;
use super::schedule::{self, Prediction};
use crate::Result;
use crate::spec::{Activation, Family, ModelSpec, TextEncoderSpec};
use std::collections::BTreeMap;
use std::sync::Arc;

/// The metadata key under which [`super::convert`] carries a folder's configuration files: a JSON object of path and text.
pub(crate) const CONFIGURATION: &str = "sd-gen.configuration";

pub(crate) const UNET: &str = "model.diffusion_model.";
/// The usual prefix of the autoencoder first.
pub(crate) const VAE: [&str; 2] = ["first_stage_model.", "vae."];
/// Where text encoders are, in the order in which their embeddings are joined.
pub(crate) const TEXT: [(&str, TextLayout); 5] = [
    ("cond_stage_model.transformer.", TextLayout::Clip),
    ("cond_stage_model.model.", TextLayout::OpenClip),
    ("conditioner.embedders.0.transformer.", TextLayout::Clip),
    ("conditioner.embedders.0.model.", TextLayout::OpenClip),
    ("conditioner.embedders.1.model.", TextLayout::OpenClip),
];

/// What a single file turned out to be.
pub(crate) struct Single {
    pub(crate) description: Description,
    pub(crate) parts: Vec<(Component, Part)>,
    pub(crate) concluded: String,
}

/// Understands the file.
pub(crate) fn read(file: &Arc<WeightFile>) -> Result<Single> {
    let (vae_prefix, text) = find(file)?;
    let (description, concluded) = match file.metadata().get(CONFIGURATION) {
        Some(carried) => (carried_description(file, carried)?, "as the configuration that it carries says".to_owned()),
        None => {
            let description = detected_description(file, vae_prefix, &text)?;
            let family = description.spec.family.name();
            (description, format!("{family} was concluded from the names and shapes of its tensors"))
        }
    };
    let spec = &description.spec;
    if spec.text_encoders.len() != text.len() {
        let (has, says) = (text.len(), spec.text_encoders.len());
        return Err(model_error(&file.name, format!("has {has} text encoders, but its configuration says {says}")));
    }
    let files = || vec![file.clone()];
    let mut parts = vec![
        (Component::UNet, Part::new("the UNet", files(), keys::unet(&spec.unet, UNET))?),
        (Component::Vae, Part::new("the autoencoder", files(), keys::vae(&spec.vae, vae_prefix))?),
    ];
    for (i, ((prefix, layout), encoder)) in text.iter().zip(&spec.text_encoders).enumerate() {
        let title = if text.len() > 1 { format!("text encoder {}", i + 1) } else { "the text encoder".to_owned() };
        parts.push((Component::TextEncoder(i), Part::new(title, files(), keys::text(&encoder.clip, *layout, prefix))?));
    }
    Ok(Single { description, parts, concluded })
}

type TextSlot = (&'static str, TextLayout);

/// The prefixes of the autoencoder and of the text encoders.
fn find(file: &WeightFile) -> Result<(&'static str, Vec<TextSlot>)> {
    if let Some(ForeignKind { part, what, why, .. }) = kinds::foreign(file) {
        return Err(model_error(&file.name, format!("is {what}, {why} (a tensor's name contains \"{part}\")")));
    }
    let has = |key: &str| file.find(key).is_some();
    let unet = has(&format!("{UNET}input_blocks.0.0.weight"));
    let vae = VAE.into_iter().find(|prefix| has(&format!("{prefix}decoder.conv_in.weight")));
    let tokens = ["text_model.embeddings.token_embedding.weight", "embeddings.token_embedding.weight", "token_embedding.weight"];
    let text: Vec<TextSlot> = TEXT.into_iter().filter(|(prefix, _)| tokens.iter().any(|key| has(&format!("{prefix}{key}")))).collect();
    if !unet && vae.is_none() && text.is_empty() {
        return Err(match kinds::lone(file) {
            Some(SingleNetwork { key, what, .. }) => {
                let rest =
                    "a whole model is needed: a diffusers folder, or one file that has the UNet, the autoencoder and the text encoder";
                model_error(&file.name, format!("holds only {what} (it has {key}); {rest}"))
            }
            None if file.entries().is_empty() => model_error(&file.name, "holds no tensors"),
            None => {
                let first = file.entries().first().map_or(String::new(), |entry| super::quoted(&entry.name));
                model_error(
                    &file.name,
                    format!("is no Stable Diffusion model that this program knows: its tensors have names like {first}"),
                )
            }
        });
    }
    let wanted = [
        (!unet, format!("the UNet ({UNET}…)")),
        (vae.is_none(), format!("the autoencoder ({}…)", VAE[0])),
        (text.is_empty(), "the text encoder (cond_stage_model.… or conditioner.embedders.…)".to_owned()),
    ];
    let missing: Vec<String> = wanted.into_iter().filter(|(missing, _)| *missing).map(|(_, what)| what).collect();
    match vae {
        Some(vae) if missing.is_empty() => Ok((vae, text)),
        _ => Err(model_error(&file.name, format!("lacks {}; a whole model is needed", missing.join(" and ")))),
    }
}

/// Reads the configuration files that the file carries.
fn carried_description(file: &WeightFile, carried: &str) -> Result<Description> {
    let what = |e: String| model_error(&file.name, format!("carries a configuration ({CONFIGURATION}) that cannot be read: {e}"));
    let texts: BTreeMap<String, String> = serde_json::from_str(carried).map_err(|e| what(e.to_string()))?;
    let mut description = describe::describe(&Folder::Texts(file.name.clone(), texts))?;
    description.spec.evidence.insert(0, format!("{} carries the configuration of the folder that it was made from.", file.name));
    Ok(description)
}

/// Concludes the specs from names and shapes.
fn detected_description(file: &WeightFile, vae_prefix: &'static str, text: &[TextSlot]) -> Result<Description> {
    let mut evidence = Vec::new();
    let unet_probe = Probe { file, prefix: UNET };
    let mut unet = detect::unet(unet_probe)?;
    let xl = unet.text_time.is_some();
    let channels: Vec<usize> = unet.down.iter().map(|level| level.channels).collect();
    evidence.push(format!("The UNet has levels of {channels:?} channels and takes text of width {}.", unet.cross_attention_dim));
    let (projection, heads) =
        if unet.linear_projection { ("linear layers", "heads of 64 channels") } else { ("1×1 convolutions", "8 heads") };
    evidence.push(format!("Its transformers project with {projection}: {heads}."));

    let last = text.len().saturating_sub(1);
    let mut text_encoders = Vec::new();
    for (i, (prefix, layout)) in text.iter().enumerate() {
        let clip = detect::clip_text(Probe { file, prefix }, *layout, xl && i == last)?;
        evidence.push(format!("{prefix}… is a CLIP of width {} with {} layers.", clip.hidden_size, clip.layers));
        let (skip_layers, final_norm) = match (xl, layout) {
            (true, _) => (1, false),
            (false, TextLayout::Clip) => (0, true),
            // Of OpenCLIP-H's 24 layers the last is never used. Who converts a diffusers folder has 23, and no text_projection.
            (false, TextLayout::OpenClip) => {
                let whole = clip.layers == 24 || clip.layers != 23 && file.find(&format!("{prefix}text_projection")).is_some();
                evidence.push(match whole {
                    true => "It is a whole OpenCLIP, whose penultimate layer is taken.".to_owned(),
                    false => "It has 23 layers or no text_projection: the layer that is never used was left out already.".to_owned(),
                });
                (usize::from(whole), true)
            }
        };
        let pad = if clip.activation == Activation::QuickGelu { PAD_CLIP } else { PAD_OPEN_CLIP };
        text_encoders.push(TextEncoderSpec { clip, skip_layers, final_norm, pad_token: pad.to_owned(), pooled: false });
    }
    let family = describe::family(&text_encoders, xl).ok_or_else(|| {
        let added = if xl { "with" } else { "without" };
        model_error(&file.name, format!("has {} text encoders and a UNet {added} label_emb, which no known model has", text.len()))
    })?;
    evidence.push(match family {
        Family::Sd1 => "No label_emb and a CLIP-L: Stable Diffusion 1.x.".to_owned(),
        Family::Sd2 => "No label_emb and an OpenCLIP: Stable Diffusion 2.x.".to_owned(),
        Family::Sdxl => "A label_emb and two text encoders: Stable Diffusion XL.".to_owned(),
        Family::SdxlRefiner => "A label_emb and one text encoder: Stable Diffusion XL's refiner.".to_owned(),
    });
    let (scaling_factor, force_upcast) = if xl { (0.13025, true) } else { (0.18215, false) };
    let vae = detect::vae(Probe { file, prefix: vae_prefix }, scaling_factor, force_upcast)?;
    describe::check_latents(&file.name, &unet, &vae)?;
    let refiner = family == Family::SdxlRefiner;
    let pooled = text_encoders.last().and_then(|t| t.clip.projection_dim);
    if let (Some(added), Some(pooled)) = (&mut unet.text_time, pooled) {
        added.time_embed_dim = added.projection_input_dim.saturating_sub(pooled) / if refiner { 5 } else { 6 };
    }
    let aesthetic_score = describe::finish_conditioning(&file.name, &unet, &mut text_encoders, xl.then_some(refiner))?;

    let prediction = prediction(file, family, unet.in_channels, &mut evidence)?;
    let scheduler = schedule::of_family(family, prediction);
    let fields = Fields::parse(describe::USUAL_SCHEDULER, scheduler.as_bytes())?;
    let (defaults, _) = schedule::defaults(family, &fields)?;
    let spec = ModelSpec {
        family,
        default_size: resolution(file, &mut evidence).unwrap_or(match (family, prediction.v) {
            (Family::Sd2, true) => 768,
            _ => describe::default_size(family),
        }),
        evidence,
        unet,
        vae,
        text_encoders,
        scheduler: schedule::parse(describe::USUAL_SCHEDULER, &scheduler)?,
        zero_missing_negative: family == Family::Sdxl,
        aesthetic_score,
        defaults,
    };
    let tokenizers = spec.text_encoders.iter().map(|_| None).collect();
    Ok(Description { spec, text_folders: Vec::new(), tokenizers, scheduler })
}

/// The size in the metadata, where it is a sensible one.
fn resolution(file: &WeightFile, evidence: &mut Vec<String>) -> Option<usize> {
    let text = file.metadata().get("modelspec.resolution")?;
    let (width, height) = text.split_once('x')?;
    let (width, height): (usize, usize) = (width.trim().parse().ok()?, height.trim().parse().ok()?);
    let side = width.max(height);
    if !(64..=4096).contains(&side) || side % 8 != 0 {
        return None;
    }
    evidence.push(format!("The metadata says a resolution of {width}x{height}."));
    Some(side)
}

/// What the network predicts: the metadata say so, or marks among the tensors, or a statistic of Stable Diffusion 2's.
fn prediction(file: &WeightFile, family: Family, in_channels: usize, evidence: &mut Vec<String>) -> Result<Prediction> {
    let zero_snr = file.find("ztsnr").is_some();
    if zero_snr {
        evidence.push("The tensor ztsnr says that the noise schedule ends in pure noise.".to_owned());
    }
    let said = |v: bool| Prediction { v, zero_snr };
    let metadata = |key: &str| file.metadata().get(key).map(String::as_str).unwrap_or_default();
    let v = match metadata("modelspec.prediction_type").to_ascii_lowercase().as_str() {
        "v" | "v_prediction" | "v-prediction" => Some(true),
        "epsilon" | "eps" => Some(false),
        _ => None,
    };
    if let Some(v) = v {
        evidence.push(format!("The metadata (modelspec.prediction_type) say that the UNet predicts {}.", if v { "v" } else { "epsilon" }));
        return Ok(said(v));
    }
    if file.find("v_pred").is_some() {
        evidence.push("The tensor v_pred says that the UNet predicts v.".to_owned());
        return Ok(said(true));
    }
    if metadata("modelspec.architecture").contains("-768-v") {
        evidence.push("The metadata (modelspec.architecture) say that the UNet predicts v.".to_owned());
        return Ok(said(true));
    }
    if family == Family::Sd2 && in_channels == 4 {
        // The two kinds differ in how far apart this bias's values are: about 0.04 for epsilon and 0.2 for v. ComfyUI decides so.
        let blocks = (0..).take_while(|n| file.find(&format!("{UNET}output_blocks.{n}.0.in_layers.0.weight")).is_some());
        let keys = blocks.map(|n| format!("{UNET}output_blocks.{n}.1.transformer_blocks.0.norm1.bias"));
        if let Some(entry) = keys.filter_map(|key| file.entry(&key)).last().filter(|entry| decode::readable(entry.dtype)) {
            let deviation = deviation(&decode::numbers::<f32>(file.bytes(entry)?, entry.dtype));
            let v = deviation > 0.09;
            let (sign, what) = if v { ("above", "v") } else { ("not above", "epsilon") };
            evidence.push(format!("The deviation of {} is {deviation:.3}, {sign} 0.09: the UNet predicts {what}.", entry.name));
            return Ok(said(v));
        }
    }
    evidence.push("Nothing says what the UNet predicts: epsilon is the usual.".to_owned());
    Ok(said(false))
}

fn deviation(values: &[f32]) -> f64 {
    let n = values.len().max(2) as f64;
    let mean = values.iter().map(|&x| f64::from(x)).sum::<f64>() / n;
    (values.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum::<f64>() / (n - 1.0)).sqrt()
}
