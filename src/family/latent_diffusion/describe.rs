//! The configuration files of a diffusers folder → a spec.

use super::super::files::{Beside, ConfigFiles, Description, NetworkPlan, TokenizerFiles, present};
use super::super::json::Fields;
use super::super::schedule::{self, Prediction};
use super::super::{config, keys};
use super::{PAD_CLIP, PAD_OPEN_CLIP, TEXT_ENCODERS};
use crate::Result;
use crate::error::{model_error, quoted};
use crate::spec::{Activation, Component, ModelSpec, TextEncoderSpec, UNetSpec, VaeSpec};
use serde_json::Value;
use std::collections::BTreeMap;

const SCHEDULER: &str = "scheduler/scheduler_config.json";

/// Components of other architectures, with what they are.
const FOREIGN_KINDS: &[(&str, &str)] = &[
    ("transformer", "its denoiser is a transformer beside a UNet, which no known model has"),
    ("prior", "it has a prior (unCLIP, Kandinsky or Cascade), which is not implemented"),
    ("decoder", "it has a decoder UNet (unCLIP or Cascade), which is not implemented"),
    ("controlnet", "it has a ControlNet, which is not implemented"),
    ("adapter", "it has a T2I adapter, which is not implemented"),
    ("motion_adapter", "it has a motion adapter (AnimateDiff), which is not implemented"),
    ("movq", "it has a MoVQ autoencoder (Kandinsky), which is not implemented"),
    ("vqvae", "it has a VQ autoencoder (latent diffusion), which is not implemented"),
];

/// The texts that [`describe`] may read.
pub(super) fn texts() -> Vec<String> {
    let mut texts: Vec<String> =
        ["model_index.json", schedule::RECOMMENDED, "unet/config.json", "vae/config.json", SCHEDULER].map(str::to_owned).into();
    for (dir, tokenizer) in TEXT_ENCODERS {
        texts.push(format!("{dir}/config.json"));
        texts.extend(
            ["vocab.json", "merges.txt", "tokenizer.json", "added_tokens.json", "tokenizer_config.json", "special_tokens_map.json"]
                .map(|name| format!("{tokenizer}/{name}")),
        );
    }
    texts
}

/// Reads the texts of `folder`.
pub(super) fn describe(folder: &dyn ConfigFiles, _: &Beside<'_>) -> Result<Description> {
    let index = folder.json("model_index.json")?;
    let mut evidence = Vec::new();
    if let Some(index) = &index
        && let Some(class) = index.word("_class_name")?
    {
        evidence.push(format!("{} names the pipeline {}.", index.file, quoted(class)));
    }
    for (component, what) in FOREIGN_KINDS {
        if present(folder, index.as_ref(), component) {
            return Err(model_error(folder.shown(""), format!("has a component {}: {what}", quoted(component))));
        }
    }
    for component in ["unet", "vae"] {
        if !present(folder, index.as_ref(), component) {
            let said = evidence.first().map(|sentence| format!(" ({sentence})")).unwrap_or_default();
            let component = quoted(component);
            let what = format!("lacks the component {component}{said}; sd-gen generates with Stable Diffusion 1.x, 2.x, XL and 3");
            return Err(model_error(folder.shown(""), what));
        }
    }
    let unet_json = folder.required_json("unet/config.json")?;
    let unet = config::unet(&unet_json)?;
    let vae_json = folder.required_json("vae/config.json")?;
    // A tiny autoencoder shares the latents of its family's.
    let mut vae = config::vae(&vae_json, if unet.text_time.is_some() { 0.13025 } else { 0.18215 })?;
    check_latents(&unet_json.file, &unet, &vae)?;

    let xl = unet.text_time.is_some();
    let mut text_folders = Vec::new();
    let mut text_encoders = Vec::new();
    let mut tokenizers = Vec::new();
    for (dir, tokenizer) in TEXT_ENCODERS {
        if !present(folder, index.as_ref(), dir) {
            continue;
        }
        let fields = folder.required_json(&format!("{dir}/config.json"))?;
        let clip = config::clip_text(&fields, projected(index.as_ref(), dir, &fields)?)?;
        let files = tokenizer_files(folder, tokenizer)?;
        let (pad, usual) = match clip.activation {
            Activation::QuickGelu => (PAD_CLIP, "quick GELU"),
            Activation::Gelu => (PAD_OPEN_CLIP, "exact GELU"),
        };
        evidence.push(format!("{} says a CLIP of width {} with {} layers and {usual}.", fields.file, clip.hidden_size, clip.layers));
        text_folders.push(dir);
        text_encoders.push(TextEncoderSpec {
            skip_layers: usize::from(xl),
            final_norm: !xl,
            pad_token: pad_token(folder, tokenizer)?.unwrap_or_else(|| pad.to_owned()),
            pooled: false,
            clip,
        });
        tokenizers.push(files);
    }
    let (row, facts) = super::family(&text_encoders, xl).ok_or_else(|| model_error(folder.shown(""), "lacks a text encoder"))?;
    evidence.push(facts.in_folder.to_owned());
    let aesthetic = index.as_ref().map(|index| (index.has("requires_aesthetics_score"), index.flag("requires_aesthetics_score", false)));
    let aesthetic = match aesthetic {
        Some((true, said)) => Some(said?),
        _ => None,
    };
    let aesthetic_score = finish_conditioning(&unet_json.file, &unet, &mut text_encoders, aesthetic)?;
    let zeros = facts.zero_missing_negative;
    let zero_missing_negative = match &index {
        Some(index) if xl => index.flag("force_zeros_for_empty_prompt", zeros)?,
        _ => zeros,
    };

    let (scheduler_file, scheduler_text) = match folder.utf8(SCHEDULER)? {
        Some(text) => (folder.shown(SCHEDULER), text),
        None => {
            evidence.push("There is no scheduler/scheduler_config.json: the family's usual one is taken.".to_owned());
            (schedule::USUAL.to_owned(), schedule::of_family(row, Prediction { v: false, zero_snr: false }))
        }
    };
    let scheduler = Fields::parse(&scheduler_file, scheduler_text.as_bytes())?;
    if let Some(prediction) = scheduler.word("prediction_type")? {
        evidence.push(format!("{} says that the UNet predicts {}.", scheduler.file, quoted(prediction)));
    }
    let (mut defaults, distilled) = schedule::defaults(row, &scheduler)?;
    match schedule::of_tensors(&unet, &vae) {
        // The folder names its sampler itself.
        Some((few, why)) => {
            defaults =
                crate::spec::Defaults { steps: Some(few.steps), guidance_scale: few.guidance_scale.unwrap_or(defaults.guidance_scale) };
            evidence.push(why);
        }
        None => evidence.extend(distilled),
    }
    if let Some(fields) = folder.json(schedule::RECOMMENDED)? {
        defaults = schedule::recommended(&fields, defaults)?;
        vae.latent_rgb = schedule::latent_rgb(&fields, vae.latent_channels)?.or(vae.latent_rgb);
        evidence.push(format!("{} recommends steps and guidance.", fields.file));
    }
    let latents = config::sample_size(&unet_json)?.unwrap_or(row.default_size / 8);
    let plan = |component: Component, title: String, folder, pairs| NetworkPlan { component, title, folder, prefix: "", pairs };
    let mut networks = vec![
        plan(Component::UNET, "the UNet".to_owned(), "unet", keys::diffusers_unet(&unet)),
        plan(Component::VAE, "the autoencoder".to_owned(), "vae", keys::diffusers_vae(&vae)),
    ];
    for (i, (dir, text)) in text_folders.into_iter().zip(&text_encoders).enumerate() {
        networks.push(plan(Component::text_encoder(i), format!("the {dir}"), dir, keys::diffusers_text(&text.clip)));
    }
    let spec = ModelSpec {
        family: row.family,
        evidence,
        default_size: latents * vae.factor(),
        unet,
        mmdit: None,
        vae,
        text_encoders,
        t5: None,
        scheduler: schedule::parse(&scheduler_file, &scheduler_text)?,
        zero_missing_negative,
        aesthetic_score,
        defaults,
    };
    Ok(Description { spec, networks, tokenizers, t5_tokenizer: None, scheduler: scheduler_text })
}

/// Refuses a UNet whose latents are not those of the autoencoder.
pub(super) fn check_latents(file: &str, unet: &UNetSpec, vae: &VaeSpec) -> Result<()> {
    let latents = vae.latent_channels;
    if unet.out_channels != latents {
        return Err(model_error(file, format!("has {} output channels, but the autoencoder has {latents} channels", unet.out_channels)));
    }
    // Plain; latents and an image to edit; latents, a mask and a masked image.
    if ![latents, 2 * latents, 2 * latents + 1].contains(&unet.in_channels) {
        let what = match unet.in_channels {
            5 => " (a depth-guided model)",
            7 => " (an upscaler)",
            _ => "",
        };
        return Err(model_error(
            file,
            format!("has {} input channels{what}: only text to image, editing and inpainting are implemented", unet.in_channels),
        ));
    }
    Ok(())
}

/// Decides whose pooled embedding is used and whether there is an aesthetic score, and checks that the widths fit.
pub(super) fn finish_conditioning(file: &str, unet: &UNetSpec, text: &mut [TextEncoderSpec], aesthetic: Option<bool>) -> Result<bool> {
    let width: usize = text.iter().map(|t| t.clip.hidden_size).sum();
    if unet.cross_attention_dim != width {
        let widths: Vec<String> = text.iter().map(|t| t.clip.hidden_size.to_string()).collect();
        let widths = widths.join(" + ");
        return Err(model_error(file, format!("takes text of width {}, but the text encoders give {widths}", unet.cross_attention_dim)));
    }
    let Some(added) = &unet.text_time else { return Ok(false) };
    let Some((last, pooled)) = text.last_mut().and_then(|last| last.clip.projection_dim.map(|dim| (last, dim))) else {
        return Err(model_error(file, "takes a pooled text embedding, but the last text encoder has no text_projection"));
    };
    last.pooled = true;
    // Original size, crop and target size; or, for a refiner, original size, crop and score.
    let ids = |aesthetic: bool| pooled + added.time_embed_dim * if aesthetic { 5 } else { 6 };
    let fits = |aesthetic: &bool| added.time_embed_dim > 0 && ids(*aesthetic) == added.projection_input_dim;
    let candidates = aesthetic.map_or(vec![false, true], |said| vec![said]);
    candidates.into_iter().find(fits).ok_or_else(|| {
        let (wanted, dim) = (added.projection_input_dim, added.time_embed_dim);
        model_error(file, format!("takes {wanted} numbers beside the text, which is not {pooled} pooled and 5 or 6 sizes of {dim}"))
    })
}

/// Whether the text encoder in `dir` ends in a projection.
pub(in crate::family) fn projected(index: Option<&Fields>, dir: &str, fields: &Fields) -> Result<bool> {
    let from_index = index.and_then(|index| index.get(dir)?.as_array()?.get(1)?.as_str());
    let from_config = fields.get("architectures").and_then(|list| list.as_array()?.first()?.as_str());
    match from_index.or(from_config) {
        None | Some("CLIPTextModel" | "CLIPModel") => Ok(false),
        Some("CLIPTextModelWithProjection") => Ok(true),
        Some(other) => Err(fields.wrong("architectures", format!("{other:?} is not implemented, only CLIP's text models are"))),
    }
}

pub(in crate::family) fn tokenizer_files(folder: &dyn ConfigFiles, dir: &str) -> Result<Option<TokenizerFiles>> {
    let text = |name: &str| folder.utf8(&format!("{dir}/{name}"));
    let whole = folder.json(&format!("{dir}/tokenizer.json"))?;
    let (vocab_json, merges) = match (text("vocab.json")?, text("merges.txt")?) {
        (Some(vocab), Some(merges)) => (vocab, merges),
        _ => match &whole {
            Some(whole) => vocabulary(whole)?,
            None => return Ok(None),
        },
    };
    let config = folder.json(&format!("{dir}/tokenizer_config.json"))?;
    // "No limit" is written as a number beyond any integer.
    let added = added_words(&vocab_json, folder.json(&format!("{dir}/added_tokens.json"))?.as_ref(), config.as_ref(), whole.as_ref());
    let longest = config.and_then(|fields| fields.get("model_max_length")?.as_u64());
    let model_max_length = longest.and_then(|n| usize::try_from(n).ok()).filter(|n| (2..=config::limit::POSITIONS).contains(n));
    Ok(Some(TokenizerFiles { vocab_json, merges, pad_token: pad_token(folder, dir)?, model_max_length, added }))
}

/// The texts of vocab.json and merges.txt that a tokenizer.json stands for; transformers 5 saves nothing else.
fn vocabulary(whole: &Fields) -> Result<(String, String)> {
    let wrong = |what: &str| whole.wrong("model", what);
    let model = whole.object("model").ok_or_else(|| wrong("is missing"))?;
    let vocab = model.get("vocab").filter(|vocab| vocab.is_object()).ok_or_else(|| wrong("has no vocab"))?;
    let merges = model.get("merges").and_then(Value::as_array).ok_or_else(|| wrong("has no merges"))?;
    // "a b</w>", or since tokenizers 0.20 a pair.
    let line = |merge: &Value| match merge {
        Value::String(line) => Some(line.clone()),
        Value::Array(pair) => match pair.as_slice() {
            [Value::String(one), Value::String(other)] => Some(format!("{one} {other}")),
            _ => None,
        },
        _ => None,
    };
    let lines: Option<Vec<String>> = merges.iter().map(line).collect();
    Ok((vocab.to_string(), lines.ok_or_else(|| wrong("has merges that are no pairs of tokens"))?.join("\n")))
}

/// The words that `save_pretrained` wrote beside the vocabulary after a training added them, by their numbers.
fn added_words(vocab_json: &str, list: Option<&Fields>, config: Option<&Fields>, whole: Option<&Fields>) -> Vec<(String, u32)> {
    let vocab: serde_json::Map<String, Value> = serde_json::from_str(vocab_json).unwrap_or_default();
    let number = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
    let content = |token: &Value| token.as_str().or_else(|| token.get("content")?.as_str()).map(str::to_owned);
    let mut words = BTreeMap::new();
    if let Some(Value::Object(list)) = list.map(Fields::value) {
        words.extend(list.iter().filter_map(|(word, id)| Some((number(id)?, word.clone()))));
    }
    if let Some(Value::Object(decoder)) = config.and_then(|config| config.get("added_tokens_decoder")) {
        words.extend(decoder.iter().filter_map(|(id, token)| Some((id.parse().ok()?, content(token)?))));
    }
    if let Some(Value::Array(list)) = whole.and_then(|whole| whole.get("added_tokens")) {
        words.extend(list.iter().filter_map(|token| Some((number(token.get("id")?)?, content(token)?))));
    }
    // CLIP's own special tokens are in its vocabulary.
    words.into_iter().filter(|(_, word)| !vocab.contains_key(word)).map(|(id, word)| (word, id)).collect()
}

/// The padding token: text, or an object with the text in `content`.
pub(in crate::family) fn pad_token(folder: &dyn ConfigFiles, dir: &str) -> Result<Option<String>> {
    for name in ["special_tokens_map.json", "tokenizer_config.json"] {
        let Some(fields) = folder.json(&format!("{dir}/{name}"))? else { continue };
        let Some(value) = fields.get("pad_token") else { continue };
        let text = value.as_str().or_else(|| value.get("content")?.as_str());
        return text
            .map(|text| Some(text.to_owned()))
            .ok_or_else(|| fields.wrong("pad_token", "is neither text nor an object with content"));
    }
    Ok(None)
}
