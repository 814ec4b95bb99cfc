//! The configuration files of a diffusers folder → a spec.

use super::super::config::{self, limit};
use super::super::files::{Beside, ConfigFiles, Description, NetworkPlan, present};
use super::super::json::Fields;
use super::super::latent_diffusion::describe::{pad_token, projected, tokenizer_files};
use super::super::{keys, schedule};
use super::{ENCODERS, PADS, ROW, T5, check_latents, check_widths, encoder, keys as own, single};
use crate::Result;
use crate::error::{model_error, quoted};
use crate::spec::{Component, MmditSpec, ModelSpec, T5Spec};

const SCHEDULER: &str = "scheduler/scheduler_config.json";
const TOKENIZER: &str = "tokenizer.json";

/// The texts that [`describe`] may read.
pub(super) fn texts() -> Vec<String> {
    let mut texts: Vec<String> =
        ["model_index.json", schedule::RECOMMENDED, "transformer/config.json", "vae/config.json", SCHEDULER].map(str::to_owned).into();
    for (dir, tokenizer) in ENCODERS {
        texts.push(format!("{dir}/config.json"));
        texts.extend(
            ["vocab.json", "merges.txt", "tokenizer.json", "added_tokens.json", "tokenizer_config.json", "special_tokens_map.json"]
                .map(|name| format!("{tokenizer}/{name}")),
        );
    }
    texts.extend([format!("{}/config.json", T5.0), format!("{}/{TOKENIZER}", T5.1)]);
    texts
}

/// Reads `transformer/config.json`.
pub(super) fn mmdit(fields: &Fields) -> Result<MmditSpec> {
    if let Some(class) = fields.word("_class_name")?.filter(|class| *class != "SD3Transformer2DModel") {
        return Err(fields.wrong("_class_name", format!("{} is not implemented, only SD3Transformer2DModel is", quoted(class))));
    }
    let count = |name: &str, usual: usize, most: usize| fields.count(name, Some(usual), most);
    let layers = count("num_layers", 18, limit::LAYERS)?;
    let (heads, head_size) = (count("num_attention_heads", 18, limit::CHANNELS)?, count("attention_head_dim", 64, limit::CHANNELS)?);
    let width = heads * head_size;
    if width > limit::CHANNELS {
        return Err(fields.wrong("num_attention_heads", format!("{heads} heads of {head_size} are a width of {width}, which no model has")));
    }
    if count("caption_projection_dim", 1152, limit::CHANNELS)? != width {
        return Err(fields.wrong("caption_projection_dim", format!("is not the width of all heads, {width}")));
    }
    let in_channels = count("in_channels", 16, limit::CHANNELS)?;
    let dual_layers = match fields.get("dual_attention_layers").and_then(|value| value.as_array()) {
        None => Vec::new(),
        Some(list) => {
            let layer = |value: &serde_json::Value| value.as_u64().and_then(|i| usize::try_from(i).ok()).filter(|i| *i < layers);
            let known: Option<Vec<usize>> = list.iter().map(layer).collect();
            known.ok_or_else(|| fields.wrong("dual_attention_layers", format!("is not a list of layers from 0 to {}", layers - 1)))?
        }
    };
    Ok(MmditSpec {
        in_channels,
        out_channels: count("out_channels", in_channels, limit::CHANNELS)?,
        patch_size: count("patch_size", 2, 16)?,
        heads,
        head_size,
        layers,
        dual_layers,
        qk_norm: match fields.word("qk_norm")? {
            None => false,
            Some("rms_norm") => true,
            Some(other) => return Err(fields.wrong("qk_norm", format!("{} is not implemented, only rms_norm is", quoted(other)))),
        },
        context_width: count("joint_attention_dim", 4096, limit::CHANNELS)?,
        pooled_width: count("pooled_projection_dim", 2048, limit::CHANNELS)?,
        positions: count("pos_embed_max_size", 96, limit::SAMPLE)?,
    })
}

/// Reads the `config.json` of a T5 encoder.
pub(super) fn t5(fields: &Fields) -> Result<T5Spec> {
    // "gated-gelu" means the tanh form, whatever else is said.
    match fields.word("feed_forward_proj")? {
        Some("gated-gelu") => {}
        other => {
            let found = other.map_or("the first version's".to_owned(), quoted);
            return Err(fields.wrong("feed_forward_proj", format!("{found} is not implemented, only gated-gelu (T5 v1.1) is")));
        }
    }
    Ok(T5Spec {
        vocab_size: fields.count("vocab_size", Some(32_128), limit::VOCABULARY)?,
        width: fields.count("d_model", Some(512), limit::CHANNELS)?,
        wide: fields.count("d_ff", Some(2048), limit::CHANNELS)?,
        layers: fields.count("num_layers", Some(6), limit::LAYERS)?,
        heads: fields.count("num_heads", Some(8), limit::CHANNELS)?,
        head_size: fields.count("d_kv", Some(64), limit::CHANNELS)?,
        buckets: fields.count("relative_attention_num_buckets", Some(32), limit::POSITIONS)?,
        max_distance: fields.count("relative_attention_max_distance", Some(128), limit::POSITIONS)?,
        norm_eps: fields.number("layer_norm_epsilon", 1e-6)?,
    })
}

/// Reads the texts of `folder`.
pub(super) fn describe(folder: &dyn ConfigFiles, beside: &Beside<'_>) -> Result<Description> {
    let index = folder.json("model_index.json")?;
    let mut evidence = Vec::new();
    if let Some(index) = &index
        && let Some(class) = index.word("_class_name")?
    {
        evidence.push(format!("{} names the pipeline {}.", index.file, quoted(class)));
        if !class.starts_with("StableDiffusion3") {
            let what = format!("is a pipeline {}, which is not implemented; sd-gen generates with Stable Diffusion", quoted(class));
            return Err(model_error(folder.shown(""), what));
        }
    }
    let transformer_json = folder.required_json("transformer/config.json")?;
    let mmdit = mmdit(&transformer_json)?;
    let sample = transformer_json.count("sample_size", Some(128), limit::SAMPLE)?;
    let vae_json = folder.required_json("vae/config.json")?;
    let mut vae = config::vae(&vae_json, super::LATENTS.0)?;
    check_latents(&transformer_json.file, &mmdit, &vae)?;
    let plan =
        |component: Component, title: &str, folder, pairs| NetworkPlan { component, title: title.to_owned(), folder, prefix: "", pairs };
    let mut networks = vec![
        plan(Component::UNET, "the transformer", "transformer", own::diffusers_mmdit(&mmdit)),
        plan(Component::VAE, "the autoencoder", "vae", keys::diffusers_vae(&vae)),
    ];
    let mut text_encoders = Vec::new();
    let mut tokenizers = Vec::new();
    for (i, ((dir, tokenizer), usual)) in ENCODERS.into_iter().zip(PADS).enumerate() {
        let files = tokenizer_files(folder, tokenizer)?;
        let pad = pad_token(folder, tokenizer)?.unwrap_or_else(|| usual.to_owned());
        let (clip, at) = match beside.clip(i) {
            Some((file, name)) => (single::clip(file, "", i)?, name),
            None => {
                let fields = folder.required_json(&format!("{dir}/config.json"))?;
                (config::clip_text(&fields, projected(index.as_ref(), dir, &fields)?)?, dir)
            }
        };
        evidence.push(format!("The {dir} is a CLIP of width {} with {} layers.", clip.hidden_size, clip.layers));
        networks.push(plan(Component::text_encoder(i), &format!("the {dir}"), at, keys::diffusers_text(&clip)));
        text_encoders.push(encoder(clip, pad));
        tokenizers.push(files);
    }
    let t5 = match beside.t5 {
        Some(file) => Some((single::t5(file, "")?, "t5")),
        None if present(folder, index.as_ref(), T5.0) => Some((t5(&folder.required_json(&format!("{}/config.json", T5.0))?)?, T5.0)),
        None => None,
    };
    evidence.push(match &t5 {
        Some((t5, _)) => format!("There is a T5 of width {} with {} layers.", t5.width, t5.layers),
        None => "There is no T5: its tokens are zeros.".to_owned(),
    });
    if let Some((t5, at)) = &t5 {
        networks.push(plan(Component::T5, "the T5 encoder", at, own::t5(t5, "")));
    }
    let t5 = t5.map(|(t5, _)| t5);
    check_widths(&transformer_json.file, &mmdit, &text_encoders, t5.as_ref())?;
    let (scheduler_file, scheduler) = match folder.utf8(SCHEDULER)? {
        Some(text) => (folder.shown(SCHEDULER), text),
        None => {
            evidence.push("There is no scheduler/scheduler_config.json: the family's usual one is taken.".to_owned());
            (schedule::USUAL.to_owned(), format!("{:#}\n", super::scheduler()))
        }
    };
    let (mut defaults, _) = schedule::defaults(&ROW, &Fields::parse(&scheduler_file, scheduler.as_bytes())?)?;
    if let Some(fields) = folder.json(schedule::RECOMMENDED)? {
        defaults = schedule::recommended(&fields, defaults)?;
        vae.latent_rgb = schedule::latent_rgb(&fields, vae.latent_channels)?.or(vae.latent_rgb);
        evidence.push(format!("{} recommends steps and guidance.", fields.file));
    }
    let spec = ModelSpec {
        family: ROW.family,
        evidence,
        default_size: sample * vae.factor(),
        unet: mmdit.as_unet(),
        mmdit: Some(mmdit),
        vae,
        text_encoders,
        t5,
        scheduler: schedule::parse(&scheduler_file, &scheduler)?,
        zero_missing_negative: false,
        aesthetic_score: false,
        defaults,
    };
    let t5_tokenizer = folder.utf8(&format!("{}/{TOKENIZER}", T5.1))?;
    Ok(Description { spec, networks, tokenizers, t5_tokenizer, scheduler })
}
