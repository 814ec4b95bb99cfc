//! Specs → the configuration files of a diffusers folder.
//!
//! What is written is read back and compared, so that a network that diffusers' configuration cannot express is an error.

use super::super::files::{Exported, TokenizerFiles};
use super::super::json::Fields;
use super::super::{ConfigTexts, TokenizersByFolder, config, row, schedule};
use super::{Input, PAD_CLIP, TEXT_ENCODERS, TextFolder, facts, text_folders};
use crate::Result;
use crate::spec::{Activation, AutoencoderTinySpec, ClipTextSpec, LatentRgb, UNetLevel, UNetSpec, VaeSpec};
use serde_json::{Map, Value, json};

/// The version of diffusers whose fields are written.
pub(in crate::family) const DIFFUSERS: &str = "0.36.0";
/// Entries of CLIP's own vocabulary, which nobody has to be given.
const CLIP_VOCABULARY: usize = 49408;

/// All texts of the folder of `model`, by path; `usual` are tokenizers by folder for encoders that bring none.
pub(super) fn texts(model: &Exported<'_>, usual: &TokenizersByFolder<'_>) -> Result<ConfigTexts> {
    let spec = model.spec;
    let mut texts = ConfigTexts::new();
    let mut put = |path: String, value: &Value| texts.insert(path, format!("{value:#}\n"));
    put("model_index.json".into(), &model_index(model)?);
    put("unet/config.json".into(), &unet(model, &spec.unet, spec.default_size / spec.vae.factor())?);
    put("vae/config.json".into(), &vae(&spec.vae, spec.default_size));
    for TextFolder { folder, clip, .. } in text_folders(spec) {
        put(format!("{folder}/config.json"), &clip_text(&clip));
    }
    texts.insert("scheduler/scheduler_config.json".into(), model.scheduler.to_owned());
    texts.extend(recommended(model)?);
    for (i, TextFolder { tokenizer: folder, clip, .. }) in text_folders(spec).iter().enumerate() {
        let own = model.tokenizer(i).or_else(|| usual.iter().find(|(own, _)| own == folder).map(|(_, files)| files));
        let pad = spec.text_encoders.get(i).map_or(PAD_CLIP, |text| &text.pad_token);
        texts.extend(tokenizer(
            folder,
            pad,
            model.tokenizer(i).and_then(|files| files.model_max_length).unwrap_or(clip.max_positions),
            own,
        ));
    }
    Ok(texts)
}

/// The texts of a tokenizer's folder, by path.
pub(in crate::family) fn tokenizer(folder: &str, pad: &str, longest: usize, files: Option<&TokenizerFiles>) -> ConfigTexts {
    let mut texts = ConfigTexts::new();
    let mut put = |name: &str, text: String| texts.insert(format!("{folder}/{name}"), text);
    let words = json!({ "bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "pad_token": pad, "unk_token": "<|endoftext|>" });
    put("special_tokens_map.json", format!("{words:#}\n"));
    let mut config = json!({ "do_lower_case": true, "model_max_length": longest, "tokenizer_class": "CLIPTokenizer" });
    if let (Value::Object(config), Value::Object(words)) = (&mut config, words) {
        config.extend(words);
    }
    put("tokenizer_config.json", format!("{config:#}\n"));
    if let Some(files) = files {
        put("vocab.json", files.vocab_json.clone());
        put("merges.txt", files.merges.clone());
        if !files.added.is_empty() {
            let added: Map<String, Value> = files.added.iter().map(|(word, id)| (word.clone(), json!(id))).collect();
            put("added_tokens.json", format!("{:#}\n", Value::Object(added)));
        }
    }
    texts
}

/// `sd-gen.json`, with what the scheduler and the family do not say already.
pub(in crate::family) fn recommended(model: &Exported<'_>) -> Result<Option<(String, String)>> {
    let spec = model.spec;
    let (implied, _) = schedule::defaults(row(spec.family), &model.scheduler()?)?;
    let latent_rgb =
        spec.vae.latent_rgb.clone().filter(|own| LatentRgb::known(spec.vae.scaling_factor, own.factors.len()).as_ref() != Some(own));
    if implied == spec.defaults && latent_rgb.is_none() {
        return Ok(None);
    }
    let mut recommended = json!({ "guidance_scale": spec.defaults.guidance_scale });
    if let Some(steps) = spec.defaults.steps {
        recommended["steps"] = json!(steps);
    }
    if let Some(LatentRgb { factors, bias }) = latent_rgb {
        let rows: Vec<[f64; 3]> = factors.into_iter().chain([bias]).collect();
        recommended["latent_rgb"] = json!(rows);
    }
    Ok(Some((schedule::RECOMMENDED.into(), format!("{recommended:#}\n"))))
}

/// Those of [`texts`] that a single file has to carry: all but CLIP's own vocabulary.
pub(super) fn carried(model: &Exported<'_>) -> Result<ConfigTexts> {
    let mut texts = texts(model, &[])?;
    for TextFolder { tokenizer, clip, .. } in text_folders(model.spec) {
        if clip.vocab_size == CLIP_VOCABULARY {
            texts.remove(&format!("{tokenizer}/vocab.json"));
            texts.remove(&format!("{tokenizer}/merges.txt"));
        }
    }
    Ok(texts)
}

fn model_index(model: &Exported<'_>) -> Result<Value> {
    let spec = model.spec;
    let xl = spec.unet.text_time.is_some();
    let (facts, input) = (facts(spec)?, Input::of(spec));
    let row = facts.pipelines.iter().find(|(sees, _)| *sees == input);
    let (_, class) = row.ok_or_else(|| model.wrong("is a kind of model for which diffusers has no pipeline"))?;
    let mut index = Map::new();
    index.insert("_class_name".into(), json!(class));
    index.insert("_diffusers_version".into(), json!(DIFFUSERS));
    if xl {
        index.insert("force_zeros_for_empty_prompt".into(), json!(spec.zero_missing_negative));
        if facts.aesthetic_score {
            index.insert("requires_aesthetics_score".into(), json!(spec.aesthetic_score));
        }
    } else {
        index.insert("requires_safety_checker".into(), json!(false));
        index.insert("safety_checker".into(), json!([null, null]));
    }
    for absent in ["feature_extractor", "image_encoder"] {
        index.insert(absent.into(), json!([null, null]));
    }
    let scheduler: Value = model.scheduler()?.value();
    let scheduler = scheduler.get("_class_name").cloned().unwrap_or_else(|| json!("PNDMScheduler"));
    index.insert("scheduler".into(), json!(["diffusers", scheduler]));
    let folders = text_folders(spec);
    for (folder, tokenizer) in TEXT_ENCODERS.into_iter().take(if xl { 2 } else { 1 }) {
        let text = folders.iter().find(|text| text.folder == folder);
        let class = text.map(|text| if text.clip.projection_dim.is_some() { "CLIPTextModelWithProjection" } else { "CLIPTextModel" });
        index.insert(folder.into(), class.map_or(json!([null, null]), |class| json!(["transformers", class])));
        index.insert(tokenizer.into(), class.map_or(json!([null, null]), |_| json!(["transformers", "CLIPTokenizer"])));
    }
    index.insert("unet".into(), json!(["diffusers", "UNet2DConditionModel"]));
    index.insert("vae".into(), json!(["diffusers", if spec.vae.tiny.is_some() { "AutoencoderTiny" } else { "AutoencoderKL" }]));
    Ok(Value::Object(index))
}

/// `unet/config.json`.
fn unet(model: &Exported<'_>, spec: &UNetSpec, sample_size: usize) -> Result<Value> {
    let attention = |level: &UNetLevel| level.depths.iter().any(|depth| *depth > 0);
    let types = |levels: &[UNetLevel], side: &str| -> Vec<String> {
        levels.iter().map(|level| format!("{}{side}Block2D", if attention(level) { "CrossAttn" } else { "" })).collect()
    };
    // One number where all blocks of a level have the same depth; a level without attention may have any.
    let depth = |level: &UNetLevel, any: usize| match level.depths.as_slice() {
        [first, rest @ ..] if attention(level) && rest.iter().all(|depth| depth == first) => json!(first),
        depths if attention(level) => json!(depths),
        _ => json!(any),
    };
    let mid_depth = spec.mid.as_ref().map_or(1, |mid| mid.depth.max(1));
    let down: Vec<Value> = spec.down.iter().map(|level| depth(level, mid_depth)).collect();
    let up: Vec<Value> =
        spec.up.iter().zip(spec.down.iter().rev()).map(|(up, down)| depth(up, if attention(down) { 1 } else { mid_depth })).collect();
    let mirrored = spec.up.iter().zip(&up).zip(down.iter().rev()).all(|((level, up), down)| !attention(level) || up == down);
    let nested = down.iter().any(Value::is_array);
    let heads: Vec<usize> = spec
        .down
        .iter()
        .zip(spec.up.iter().rev())
        .enumerate()
        .map(|(i, (down, up))| {
            let mid = spec.mid.as_ref().filter(|_| i + 1 == spec.down.len());
            if attention(down) {
                down.heads
            } else if attention(up) {
                up.heads
            } else {
                mid.map_or(down.heads, |mid| mid.heads)
            }
        })
        .collect();
    let mut config = json!({
        "_class_name": "UNet2DConditionModel",
        "_diffusers_version": DIFFUSERS,
        "act_fn": "silu",
        "attention_head_dim": heads,
        "block_out_channels": spec.down.iter().map(|level| level.channels).collect::<Vec<_>>(),
        "center_input_sample": false,
        "cross_attention_dim": spec.cross_attention_dim,
        "down_block_types": types(&spec.down, "Down"),
        "downsample_padding": 1,
        "flip_sin_to_cos": spec.flip_sin_to_cos,
        "freq_shift": spec.freq_shift,
        "in_channels": spec.in_channels,
        "layers_per_block": spec.down.iter().map(|level| level.depths.len()).collect::<Vec<_>>(),
        "mid_block_type": spec.mid.as_ref().map(|mid| if mid.depth > 0 { "UNetMidBlock2DCrossAttn" } else { "UNetMidBlock2D" }),
        "norm_eps": spec.norm_eps,
        "norm_num_groups": spec.norm_groups,
        "out_channels": spec.out_channels,
        "reverse_transformer_layers_per_block": if mirrored && !nested { Value::Null } else { json!(up) },
        "sample_size": sample_size,
        "transformer_layers_per_block": down,
        "up_block_types": types(&spec.up, "Up"),
        "use_linear_projection": spec.linear_projection,
    });
    if spec.guidance_embed_dim > 0
        && let Value::Object(config) = &mut config
    {
        config.insert("time_cond_proj_dim".into(), json!(spec.guidance_embed_dim));
    }
    if spec.down.iter().any(|level| level.reads_text_only)
        && let Value::Object(config) = &mut config
    {
        let levels: Vec<bool> = spec.down.iter().map(|level| level.reads_text_only).collect();
        config.insert("only_cross_attention".into(), json!(levels));
    }
    if let (Some(added), Value::Object(config)) = (&spec.text_time, &mut config) {
        config.insert("addition_embed_type".into(), json!("text_time"));
        config.insert("addition_time_embed_dim".into(), json!(added.time_embed_dim));
        config.insert("projection_class_embeddings_input_dim".into(), json!(added.projection_input_dim));
    }
    for value in config.as_object_mut().into_iter().flat_map(|config| config.values_mut()) {
        // As people write it: one number where all levels have the same.
        if let Some([first, rest @ ..]) = value.as_array().map(Vec::as_slice)
            && first.is_u64()
            && rest.iter().all(|other| other == first)
        {
            *value = first.clone();
        }
    }
    let read = config::unet(&Fields::parse(format!("{}'s UNet", model.name), config.to_string().as_bytes())?)?;
    match without_idle_heads(read) == without_idle_heads(spec.clone()) {
        true => Ok(config),
        false => Err(model.wrong("has a UNet whose shape diffusers' configuration cannot express")),
    }
}

/// With the heads of levels that have no attention at zero: they mean nothing.
fn without_idle_heads(mut spec: UNetSpec) -> UNetSpec {
    for level in spec.down.iter_mut().chain(&mut spec.up) {
        if level.depths.iter().all(|depth| *depth == 0) {
            level.heads = 0;
        }
    }
    if let Some(mid) = spec.mid.as_mut().filter(|mid| mid.depth == 0) {
        mid.heads = 0;
    }
    spec
}

fn tiny_vae(spec: &AutoencoderTinySpec) -> Value {
    let widths = vec![spec.channels; spec.decoder_blocks.len()];
    json!({
        "_class_name": "AutoencoderTiny",
        "_diffusers_version": DIFFUSERS,
        "act_fn": "relu",
        "block_out_channels": widths,
        "decoder_block_out_channels": widths,
        "encoder_block_out_channels": widths,
        "in_channels": spec.image_channels,
        "latent_channels": spec.latent_channels,
        "latent_magnitude": 3,
        "latent_shift": 0.5,
        "num_decoder_blocks": spec.decoder_blocks,
        "num_encoder_blocks": spec.encoder_blocks,
        "out_channels": spec.image_channels,
        "scaling_factor": 1.0,
        "upsampling_scaling_factor": 2,
    })
}

pub(in crate::family) fn vae(spec: &VaeSpec, sample_size: usize) -> Value {
    if let Some(tiny) = &spec.tiny {
        return tiny_vae(tiny);
    }
    let levels = spec.block_out_channels.len();
    json!({
        "_class_name": "AutoencoderKL",
        "_diffusers_version": DIFFUSERS,
        "act_fn": "silu",
        "block_out_channels": spec.block_out_channels,
        "down_block_types": vec!["DownEncoderBlock2D"; levels],
        "force_upcast": spec.force_upcast,
        "in_channels": spec.image_channels,
        "latent_channels": spec.latent_channels,
        "layers_per_block": spec.layers_per_block,
        "mid_block_add_attention": spec.mid_attention,
        "norm_num_groups": spec.norm_groups,
        "out_channels": spec.image_channels,
        "sample_size": sample_size,
        "scaling_factor": spec.scaling_factor,
        "shift_factor": if spec.shift_factor == 0.0 { Value::Null } else { json!(spec.shift_factor) },
        "up_block_types": vec!["UpDecoderBlock2D"; levels],
        "use_post_quant_conv": spec.post_quant_conv,
        "use_quant_conv": spec.quant_conv,
    })
}

pub(in crate::family) fn clip_text(spec: &ClipTextSpec) -> Value {
    json!({
        "architectures": [if spec.projection_dim.is_some() { "CLIPTextModelWithProjection" } else { "CLIPTextModel" }],
        "attention_dropout": 0.0,
        "bos_token_id": spec.vocab_size.saturating_sub(2),
        "eos_token_id": spec.eos_token_id,
        "hidden_act": match spec.activation {
            Activation::QuickGelu => "quick_gelu",
            Activation::Gelu => "gelu",
        },
        "hidden_size": spec.hidden_size,
        "intermediate_size": spec.intermediate_size,
        "layer_norm_eps": spec.layer_norm_eps,
        "max_position_embeddings": spec.max_positions,
        "model_type": "clip_text_model",
        "num_attention_heads": spec.heads,
        "num_hidden_layers": spec.layers,
        "pad_token_id": 1,
        "projection_dim": spec.projection_dim.unwrap_or(spec.hidden_size),
        "vocab_size": spec.vocab_size,
    })
}
