//! A whole model in one file in the original layout: what it is, where its networks are, and what it is not.

use super::super::Detected;
use super::super::config::limit;
use super::super::detect::{self, Probe, VaeLayout};
use super::super::files::{Beside, ConfigFiles, Description, NetworkPlan, TensorNames};
use super::super::json::Fields;
use super::super::keys::{self, TextLayout};
use super::super::kinds::{self, ForeignKind, SingleNetwork};
use super::super::schedule::{self, Prediction};
use super::{Facts, PAD_CLIP, PAD_OPEN_CLIP, describe};
use crate::Result;
use crate::error::{model_error, quoted};
use crate::spec::{Activation, Component, ModelSpec, TextEncoderSpec};

pub(super) const UNET: &str = "model.diffusion_model.";
/// The usual prefix of the autoencoder first.
pub(super) const VAE: [&str; 2] = ["first_stage_model.", "vae."];
/// Where text encoders are, in the order in which their embeddings are joined.
pub(super) const TEXT: [(&str, TextLayout); 6] = [
    ("cond_stage_model.transformer.", TextLayout::Clip),
    ("cond_stage_model.model.", TextLayout::OpenClip),
    ("conditioner.embedders.0.transformer.", TextLayout::Clip),
    ("conditioner.embedders.0.model.", TextLayout::OpenClip),
    ("conditioner.embedders.1.model.", TextLayout::OpenClip),
    // Of a model whose networks lie in files of their own.
    ("conditioner.embedders.1.transformer.", TextLayout::Clip),
];

/// Understands the file; `carried` is what the configuration files in it say.
pub(super) fn detect(file: &dyn TensorNames, carried: Option<Description>, beside: &Beside<'_>) -> Result<Detected> {
    let (vae_prefix, text) = find(file)?;
    let (mut description, concluded) = match carried {
        Some(carried) => (carried, "as the configuration that it carries says".to_owned()),
        None => {
            let description = concluded(file, vae_prefix, &text, beside.tokenizers)?;
            let family = description.spec.family.name();
            (description, format!("{family} was concluded from the names and shapes of its tensors"))
        }
    };
    let spec = &description.spec;
    if spec.text_encoders.len() != text.len() {
        let (has, says) = (text.len(), spec.text_encoders.len());
        return Err(model_error(file.name(), format!("has {has} text encoders, but its configuration says {says}")));
    }
    let plan = |component: Component, title: &str, prefix, pairs| NetworkPlan {
        component,
        title: title.to_owned(),
        folder: component.name(),
        prefix,
        pairs,
    };
    let mut networks = vec![
        plan(Component::UNET, "the UNet", UNET, keys::numbered_unet(&spec.unet, UNET, detect::numbering(Probe { file, prefix: UNET }))),
        plan(Component::VAE, "the autoencoder", vae_prefix, keys::vae(&spec.vae, vae_prefix)),
    ];
    for (i, ((prefix, layout), encoder)) in text.iter().zip(&spec.text_encoders).enumerate() {
        let title = if text.len() > 1 { format!("text encoder {}", i + 1) } else { "the text encoder".to_owned() };
        networks.push(plan(Component::text_encoder(i), &title, prefix, keys::text(&encoder.clip, *layout, prefix)));
    }
    description.networks = networks;
    Ok((description, concluded))
}

type FoundText = (&'static str, TextLayout);

/// The prefixes of the autoencoder and of the text encoders.
fn find(file: &dyn TensorNames) -> Result<(&'static str, Vec<FoundText>)> {
    if let Some(ForeignKind { part, what, why, .. }) = kinds::foreign(file) {
        return Err(model_error(file.name(), format!("is {what}, {why} (a tensor's name contains \"{part}\")")));
    }
    let has = |key: &str| file.shape(key).is_some();
    let unet = has(&format!("{UNET}input_blocks.0.0.weight"));
    let vae = VAE.into_iter().find(|prefix| has(&format!("{prefix}decoder.conv_in.weight")));
    let tokens = ["text_model.embeddings.token_embedding.weight", "embeddings.token_embedding.weight", "token_embedding.weight"];
    let text: Vec<FoundText> = TEXT.into_iter().filter(|(prefix, _)| tokens.iter().any(|key| has(&format!("{prefix}{key}")))).collect();
    if !unet && vae.is_none() && text.is_empty() {
        return Err(match kinds::lone(file) {
            Some(SingleNetwork { key, what, .. }) => {
                let rest =
                    "a whole model is needed: a diffusers folder, or one file that has the UNet, the autoencoder and the text encoder";
                model_error(file.name(), format!("holds only {what} (it has {key}); {rest}"))
            }
            None => match file.names().next().map(quoted) {
                None => model_error(file.name(), "holds no tensors"),
                Some(first) => model_error(
                    file.name(),
                    format!("is no Stable Diffusion model that this program knows: its tensors have names like {first}"),
                ),
            },
        });
    }
    let wanted = [
        (!unet, format!("the UNet ({UNET}…)")),
        (vae.is_none(), format!("the autoencoder ({}…)", VAE[0])),
        (
            text.is_empty(),
            half_text_encoder(file).unwrap_or_else(|| "the text encoder (cond_stage_model.… or conditioner.embedders.…)".to_owned()),
        ),
    ];
    let missing: Vec<String> = wanted.into_iter().filter(|(missing, _)| *missing).map(|(_, what)| what).collect();
    match vae {
        Some(vae) if missing.is_empty() => Ok((vae, text)),
        _ => Err(model_error(file.name(), format!("lacks {}; a whole model is needed", missing.join(" and ")))),
    }
}

/// A text encoder that is there but for its vocabulary: which tensor is missing, and which one looks like it.
fn half_text_encoder(file: &dyn TensorNames) -> Option<String> {
    let (prefix, layout) = TEXT.into_iter().find(|(prefix, _)| file.names().any(|name| name.starts_with(prefix)))?;
    let missing = match layout {
        TextLayout::Clip => "text_model.embeddings.token_embedding.weight",
        TextLayout::OpenClip => "token_embedding.weight",
    };
    let there = file.names().filter(|name| name.starts_with(prefix)).count();
    let alike = file.names().find(|name| name.starts_with(prefix) && name.contains("token_embedding"));
    let alike = alike.map(|name| format!("; {} looks like it", quoted(name))).unwrap_or_default();
    Some(format!("the tensor {prefix}{missing} of the text encoder, of which {there} others are there{alike}"))
}

/// The heads of a text encoder, where the folder that brings the tokenizers has its configuration too.
fn heads_of_text(model: &dyn ConfigFiles, index: usize) -> Result<Option<usize>> {
    let Some(dir) = ["text_encoder", "text_encoder_2"].get(index) else { return Ok(None) };
    let file = format!("{dir}/config.json");
    let Some(text) = model.utf8(&file)? else { return Ok(None) };
    let fields = Fields::parse(model.shown(&file), text.as_bytes())?;
    fields.get("num_attention_heads").map(|heads| fields.as_count("num_attention_heads", heads, limit::CHANNELS)).transpose()
}

/// Concludes the specs from names and shapes.
fn concluded(file: &dyn TensorNames, vae_prefix: &'static str, text: &[FoundText], model: Option<&dyn ConfigFiles>) -> Result<Description> {
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
        let heads = model.map(|model| heads_of_text(model, i)).transpose()?.flatten();
        let mut clip = detect::clip_text(Probe { file, prefix }, *layout, xl && i == last, heads)?;
        if xl && i == last {
            clip.activation = Activation::Gelu;
        }
        evidence.push(format!("{prefix}… is a CLIP of width {} with {} layers.", clip.hidden_size, clip.layers));
        let (skip_layers, final_norm) = match (xl, layout) {
            (true, _) => (1, false),
            (false, TextLayout::Clip) => (0, true),
            // Of OpenCLIP-H's 24 layers the last is never used. Who converts a diffusers folder has 23, and no text_projection.
            (false, TextLayout::OpenClip) => {
                let projection =
                    ["text_projection", "text_projection.weight"].iter().any(|key| file.shape(&format!("{prefix}{key}")).is_some());
                let whole = clip.layers == 24 || clip.layers != 23 && projection;
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
    let (row, facts) = super::family(&text_encoders, xl).ok_or_else(|| {
        let added = if xl { "with" } else { "without" };
        model_error(file.name(), format!("has {} text encoders and a UNet {added} label_emb, which no known model has", text.len()))
    })?;
    evidence.push(facts.in_file.to_owned());
    let (scaling_factor, force_upcast) = facts.latents;
    let vae = detect::vae(Probe { file, prefix: vae_prefix }, VaeLayout::Original, scaling_factor, force_upcast)?;
    describe::check_latents(file.name(), &unet, &vae)?;
    let refiner = facts.aesthetic_score;
    let pooled = text_encoders.last().and_then(|t| t.clip.projection_dim);
    if let (Some(added), Some(pooled)) = (&mut unet.text_time, pooled) {
        added.time_embed_dim = added.projection_input_dim.saturating_sub(pooled) / if refiner { 5 } else { 6 };
    }
    let aesthetic_score = describe::finish_conditioning(file.name(), &unet, &mut text_encoders, xl.then_some(refiner))?;

    let prediction = prediction(file, facts, unet.in_channels, &mut evidence)?;
    let mut scheduler = schedule::of_family(row, prediction);
    let fields = Fields::parse(schedule::USUAL, scheduler.as_bytes())?;
    let (mut defaults, _) = schedule::defaults(row, &fields)?;
    if let Some((few, why)) = schedule::few_steps(file, &unet, &vae).filter(|_| !prediction.v) {
        (scheduler, defaults) = schedule::distilled(row, &scheduler, &few)?;
        evidence.push(why);
    }
    let spec = ModelSpec {
        family: row.family,
        default_size: resolution(file, &mut evidence).unwrap_or(if prediction.v { facts.size_of_v } else { row.default_size }),
        evidence,
        unet,
        mmdit: None,
        vae,
        text_encoders,
        t5: None,
        scheduler: schedule::parse(schedule::USUAL, &scheduler)?,
        zero_missing_negative: facts.zero_missing_negative,
        aesthetic_score,
        defaults,
    };
    let tokenizers = spec.text_encoders.iter().map(|_| None).collect();
    Ok(Description { spec, networks: Vec::new(), tokenizers, t5_tokenizer: None, scheduler })
}

/// The size in the metadata, where it is a sensible one.
fn resolution(file: &dyn TensorNames, evidence: &mut Vec<String>) -> Option<usize> {
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
fn prediction(file: &dyn TensorNames, facts: &Facts, in_channels: usize, evidence: &mut Vec<String>) -> Result<Prediction> {
    let zero_snr = file.shape("ztsnr").is_some();
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
    if file.shape("v_pred").is_some() {
        evidence.push("The tensor v_pred says that the UNet predicts v.".to_owned());
        return Ok(said(true));
    }
    if metadata("modelspec.architecture").contains("-768-v") {
        evidence.push("The metadata (modelspec.architecture) say that the UNet predicts v.".to_owned());
        return Ok(said(true));
    }
    if facts.v_by_statistic && in_channels == 4 {
        // The two kinds differ in how far apart this bias's values are: about 0.04 for epsilon and 0.2 for v. ComfyUI decides so.
        let keys = (0..limit::LAYERS).map(|n| format!("{UNET}output_blocks.{n}.1.transformer_blocks.0.norm1.bias"));
        let key = keys.filter(|key| file.shape(key).is_some()).last();
        if let Some(key) = key
            && let Some(bias) = file.numbers(&key)?
        {
            let deviation = deviation(&bias);
            let v = deviation > 0.09;
            let (sign, what) = if v { ("above", "v") } else { ("not above", "epsilon") };
            evidence.push(format!("The deviation of {key} is {deviation:.3}, {sign} 0.09: the UNet predicts {what}."));
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
