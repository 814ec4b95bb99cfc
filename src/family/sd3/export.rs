//! Specs → the configuration files of a diffusers folder.

use super::super::files::Exported;
use super::super::latent_diffusion::export::{DIFFUSERS, clip_text, recommended, tokenizer, vae};
use super::super::{ConfigTexts, TokenizersByFolder};
use super::{ENCODERS, T5};
use crate::Result;
use crate::spec::{MmditSpec, T5Spec};
use serde_json::{Map, Value, json};

/// Entries of CLIP's own vocabulary, which nobody has to be given.
const CLIP_VOCABULARY: usize = 49408;

/// All texts of the folder of `model`, by path; `usual` are tokenizers by folder for encoders that bring none.
pub(super) fn texts(model: &Exported<'_>, usual: &TokenizersByFolder<'_>) -> Result<ConfigTexts> {
    let spec = model.spec;
    let Some(own) = &spec.mmdit else { return Err(model.wrong("has no transformer")) };
    let mut texts = ConfigTexts::new();
    let mut put = |path: String, value: &Value| texts.insert(path, format!("{value:#}\n"));
    put("model_index.json".into(), &model_index(model)?);
    put("transformer/config.json".into(), &mmdit(own, spec.default_size / spec.vae.factor().max(1)));
    put("vae/config.json".into(), &vae(&spec.vae, spec.default_size));
    for ((folder, _), text) in ENCODERS.into_iter().zip(&spec.text_encoders) {
        put(format!("{folder}/config.json"), &clip_text(&text.clip));
    }
    if let Some(own) = &spec.t5 {
        put(format!("{}/config.json", T5.0), &t5(own));
    }
    for (i, ((_, folder), text)) in ENCODERS.into_iter().zip(&spec.text_encoders).enumerate() {
        let files = model.tokenizer(i).or_else(|| usual.iter().find(|(own, _)| *own == folder).map(|(_, files)| files));
        texts.extend(tokenizer(folder, &text.pad_token, text.clip.max_positions, files));
    }
    if let (Some(text), Some(_)) = (model.t5_tokenizer, &spec.t5) {
        texts.insert(format!("{}/tokenizer.json", T5.1), text.to_owned());
        let config = json!({ "eos_token": "</s>", "model_max_length": 512, "pad_token": "<pad>", "tokenizer_class": "T5TokenizerFast", "unk_token": "<unk>" });
        texts.insert(format!("{}/tokenizer_config.json", T5.1), format!("{config:#}\n"));
    }
    texts.insert("scheduler/scheduler_config.json".into(), model.scheduler.to_owned());
    texts.extend(recommended(model)?);
    Ok(texts)
}

/// Those of [`texts`] that a single file has to carry: all but CLIP's own vocabulary.
pub(super) fn carried(model: &Exported<'_>) -> Result<ConfigTexts> {
    let mut texts = texts(model, &[])?;
    for ((_, folder), text) in ENCODERS.into_iter().zip(&model.spec.text_encoders) {
        if text.clip.vocab_size == CLIP_VOCABULARY {
            texts.remove(&format!("{folder}/vocab.json"));
            texts.remove(&format!("{folder}/merges.txt"));
        }
    }
    Ok(texts)
}

fn model_index(model: &Exported<'_>) -> Result<Value> {
    let spec = model.spec;
    let mut index = Map::new();
    index.insert("_class_name".into(), json!("StableDiffusion3Pipeline"));
    index.insert("_diffusers_version".into(), json!(DIFFUSERS));
    for absent in ["feature_extractor", "image_encoder"] {
        index.insert(absent.into(), json!([null, null]));
    }
    let scheduler: Value = model.scheduler()?.value();
    let scheduler = scheduler.get("_class_name").cloned().unwrap_or_else(|| json!("FlowMatchEulerDiscreteScheduler"));
    index.insert("scheduler".into(), json!(["diffusers", scheduler]));
    for ((folder, tokenizer), text) in ENCODERS.into_iter().zip(&spec.text_encoders) {
        let class = if text.clip.projection_dim.is_some() { "CLIPTextModelWithProjection" } else { "CLIPTextModel" };
        index.insert(folder.into(), json!(["transformers", class]));
        index.insert(tokenizer.into(), json!(["transformers", "CLIPTokenizer"]));
    }
    let is_there = |class: &str| if spec.t5.is_some() { json!(["transformers", class]) } else { json!([null, null]) };
    index.insert(T5.0.into(), is_there("T5EncoderModel"));
    index.insert(T5.1.into(), is_there("T5TokenizerFast"));
    index.insert("transformer".into(), json!(["diffusers", "SD3Transformer2DModel"]));
    index.insert("vae".into(), json!(["diffusers", if spec.vae.tiny.is_some() { "AutoencoderTiny" } else { "AutoencoderKL" }]));
    Ok(Value::Object(index))
}

fn mmdit(spec: &MmditSpec, sample_size: usize) -> Value {
    json!({
        "_class_name": "SD3Transformer2DModel",
        "_diffusers_version": DIFFUSERS,
        "attention_head_dim": spec.head_size,
        "caption_projection_dim": spec.width(),
        "dual_attention_layers": spec.dual_layers,
        "in_channels": spec.in_channels,
        "joint_attention_dim": spec.context_width,
        "num_attention_heads": spec.heads,
        "num_layers": spec.layers,
        "out_channels": spec.out_channels,
        "patch_size": spec.patch_size,
        "pooled_projection_dim": spec.pooled_width,
        "pos_embed_max_size": spec.positions,
        "qk_norm": if spec.qk_norm { json!("rms_norm") } else { Value::Null },
        "sample_size": sample_size,
    })
}

fn t5(spec: &T5Spec) -> Value {
    json!({
        "architectures": ["T5EncoderModel"],
        "d_ff": spec.wide,
        "d_kv": spec.head_size,
        "d_model": spec.width,
        "dense_act_fn": "gelu_new",
        "eos_token_id": 1,
        "feed_forward_proj": "gated-gelu",
        "is_encoder_decoder": false,
        "is_gated_act": true,
        "layer_norm_epsilon": spec.norm_eps,
        "model_type": "t5",
        "num_heads": spec.heads,
        "num_layers": spec.layers,
        "pad_token_id": 0,
        "relative_attention_max_distance": spec.max_distance,
        "relative_attention_num_buckets": spec.buckets,
        "tie_word_embeddings": false,
        "vocab_size": spec.vocab_size,
    })
}
