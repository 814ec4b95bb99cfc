//! Component configurations of a diffusers folder → specs.
//!
//! A field that this program knows to change the result is either read or demanded to have its usual value. Other fields
//! are ignored: fine-tuning programs leave many of their own.

use super::json::{Allowed, Fields, shown};
use crate::Result;
use crate::spec::{
    Activation, AutoencoderTinySpec, ClipTextSpec, ClipVisionSpec, LatentRgb, TextTimeSpec, UNetLevel, UNetMid, UNetSpec, VaeSpec,
};
use serde_json::Value;

/// Limits on what a configuration may claim. Names are written out for every level, block and layer, so that these numbers
/// bound the memory that a hostile file can ask for. All are far above any real model's.
pub(crate) mod limit {
    pub(crate) const LEVELS: usize = 8;
    pub(crate) const BLOCKS: usize = 16;
    pub(crate) const DEPTH: usize = 32;
    pub(crate) const LAYERS: usize = 128;
    pub(crate) const CHANNELS: usize = 1 << 16;
    pub(crate) const VOCABULARY: usize = 1 << 24;
    pub(crate) const POSITIONS: usize = 1 << 16;
    pub(crate) const SAMPLE: usize = 1 << 12;
}

/// `upcast_attention`, which Stable Diffusion 2.1 sets, is not here: it has queries and keys multiplied in f32 because their products
/// overflow in f16. Every attention of ours sums them up in f32 whatever the dtype, on the CPU (`ops/cpu/attention.rs`) and on
/// tensor cores (`m16n8k16.f32` in `ops/cuda/kernels`), and rounds only the softmax's weights, as diffusers then does too.
const UNET_DEMANDS: &[(&str, Allowed)] = &[
    ("act_fn", Allowed::Word(&["silu", "swish"])),
    ("addition_embed_type", Allowed::Word(&["text_time"])),
    ("attention_type", Allowed::Word(&["default"])),
    ("center_input_sample", Allowed::Off),
    ("class_embed_type", Allowed::Off),
    ("class_embeddings_concat", Allowed::Off),
    ("conv_in_kernel", Allowed::Number(3.0)),
    ("conv_out_kernel", Allowed::Number(3.0)),
    ("cross_attention_norm", Allowed::Off),
    ("downsample_padding", Allowed::Number(1.0)),
    ("dual_cross_attention", Allowed::Off),
    ("encoder_hid_dim", Allowed::Off),
    ("encoder_hid_dim_type", Allowed::Off),
    ("mid_block_only_cross_attention", Allowed::Off),
    ("mid_block_scale_factor", Allowed::Number(1.0)),
    ("mid_block_type", Allowed::Word(&["UNetMidBlock2DCrossAttn", "UNetMidBlock2D"])),
    ("num_class_embeds", Allowed::Off),
    ("resnet_out_scale_factor", Allowed::Number(1.0)),
    ("resnet_skip_time_act", Allowed::Off),
    ("resnet_time_scale_shift", Allowed::Word(&["default"])),
    ("time_embedding_act_fn", Allowed::Off),
    ("time_embedding_type", Allowed::Word(&["positional"])),
    ("timestep_post_act", Allowed::Off),
];

const VAE_DEMANDS: &[(&str, Allowed)] =
    &[("act_fn", Allowed::Word(&["silu", "swish"])), ("latents_mean", Allowed::Off), ("latents_std", Allowed::Off)];

/// What the names of tensors do not say of a ControlNet.
const CONTROL_NET_DEMANDS: &[(&str, Allowed)] = &[
    ("act_fn", Allowed::Word(&["silu", "swish"])),
    ("class_embed_type", Allowed::Off),
    ("conditioning_channels", Allowed::Number(3.0)),
    ("controlnet_conditioning_channel_order", Allowed::Word(&["rgb"])),
    ("encoder_hid_dim_type", Allowed::Off),
    ("global_pool_conditions", Allowed::Off),
    ("only_cross_attention", Allowed::Off),
    ("resnet_time_scale_shift", Allowed::Word(&["default"])),
];

/// What a ControlNet's `config.json` says of a network for several kinds of images.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct ConfiguredUnion {
    /// Attention heads of the transformer that joins images, which no tensor says.
    pub(crate) heads: Option<usize>,
    /// Kinds of images.
    pub(crate) kinds: Option<usize>,
}

/// Checks a ControlNet's `config.json`: what it is, its tensors say, but for the heads.
pub(crate) fn control_net(fields: &Fields) -> Result<ConfiguredUnion> {
    match fields.word("_class_name")? {
        // As diffusers and as its author call it.
        Some("ControlNetUnionModel" | "ControlNetModel_Union") => {}
        Some("T2IAdapter") => return Err(fields.wrong("_class_name", "a T2I-Adapter is not implemented; take a ControlNet")),
        _ => class(fields, "ControlNetModel")?,
    }
    fields.demand(CONTROL_NET_DEMANDS)?;
    let count = |name: &str, most| fields.get(name).map(|_| fields.count(name, None, most)).transpose();
    Ok(ConfiguredUnion { heads: count("num_trans_head", limit::CHANNELS)?, kinds: count("num_control_type", limit::LAYERS)? })
}

const TINY_VAE_DEMANDS: &[(&str, Allowed)] = &[
    ("act_fn", Allowed::Word(&["relu"])),
    ("latent_magnitude", Allowed::Number(3.0)),
    ("scaling_factor", Allowed::Number(1.0)),
    ("shift_factor", Allowed::Number(0.0)),
    ("upsample_fn", Allowed::Word(&["nearest"])),
    ("upsampling_scaling_factor", Allowed::Number(2.0)),
];

/// Reads `unet/config.json`.
pub(crate) fn unet(fields: &Fields) -> Result<UNetSpec> {
    class(fields, "UNet2DConditionModel")?;
    fields.demand(UNET_DEMANDS)?;
    let channels = channels(fields)?;
    let levels = channels.len();
    let norm_groups = groups(fields, &channels)?;
    if fields.get("time_embedding_dim").is_some_and(|dim| dim.as_u64() != channels.first().map(|c| 4 * *c as u64)) {
        return Err(fields.wrong("time_embedding_dim", "only four times the first level's channels is implemented"));
    }
    let heads_field = if fields.get("num_attention_heads").is_some() { "num_attention_heads" } else { "attention_head_dim" };
    let eight = Value::from(8);
    let heads = fields.per_level(heads_field, fields.get(heads_field).unwrap_or(&eight), levels)?;
    let heads = heads.into_iter().map(|v| fields.as_count(heads_field, v, limit::CHANNELS)).collect::<Result<Vec<_>>>()?;

    let two = Value::from(2);
    let blocks = fields.per_level("layers_per_block", fields.get("layers_per_block").unwrap_or(&two), levels)?;
    let blocks = blocks.into_iter().map(|v| fields.as_count("layers_per_block", v, limit::BLOCKS)).collect::<Result<Vec<_>>>()?;

    let one = Value::from(1);
    let depths_field = "transformer_layers_per_block";
    let depths = fields.per_level(depths_field, fields.get(depths_field).unwrap_or(&one), levels)?;
    let up_field = "reverse_transformer_layers_per_block";
    let up_depths = match fields.get(up_field) {
        Some(value) => fields.per_level(up_field, value, levels)?,
        None if depths.iter().any(|v| v.is_array()) => {
            return Err(fields.wrong(depths_field, format!("lists in a list need {up_field} too")));
        }
        None => depths.iter().rev().copied().collect(),
    };

    let down_types = types(fields, "down_block_types", &[("DownBlock2D", false), ("CrossAttnDownBlock2D", true)], levels)?;
    let up_types = types(fields, "up_block_types", &[("UpBlock2D", false), ("CrossAttnUpBlock2D", true)], levels)?;
    // The middle obeys it in none of the block types that are implemented.
    let no = Value::Bool(false);
    let only = "only_cross_attention";
    let text_only = fields.per_level(only, fields.get(only).filter(|value| !value.is_null()).unwrap_or(&no), levels)?;
    let flag = |value: &Value| value.as_bool().ok_or_else(|| fields.wrong(only, "is neither true nor false, nor a list of them"));
    let text_only = text_only.into_iter().map(flag).collect::<Result<Vec<_>>>()?;
    let level = |i: usize, attention: bool, depths: Result<Vec<usize>>| {
        let (channels, heads) = (channels.get(i).copied().unwrap_or(0), heads.get(i).copied().unwrap_or(0));
        if attention && (heads == 0 || channels % heads != 0) {
            return Err(fields.wrong(heads_field, format!("{heads} heads do not divide level {i}'s {channels} channels")));
        }
        let reads_text_only = attention && text_only.get(i) == Some(&true);
        Ok(UNetLevel { channels, heads, depths: depths?, resample: false, reads_text_only })
    };
    let mut down = Vec::new();
    let mut up = Vec::new();
    for i in 0..levels {
        let resample = i + 1 < levels;
        let (at, of_up) = (blocks.get(i).copied().unwrap_or(0), levels - 1 - i);
        let attention = down_types.get(i) == Some(&true);
        let depths = block_depths(fields, depths_field, depths.get(i).copied(), attention, at);
        down.push(UNetLevel { resample, ..level(i, attention, depths)? });
        let attention = up_types.get(i) == Some(&true);
        let at = blocks.get(of_up).copied().unwrap_or(0) + 1;
        let depths = block_depths(fields, depths_field, up_depths.get(i).copied(), attention, at);
        up.push(UNetLevel { resample, ..level(of_up, attention, depths)? });
    }
    let last = level(levels.saturating_sub(1), false, Ok(Vec::new()))?;
    // A missing type is the usual one; null is no middle at all.
    let mid_type = if fields.has("mid_block_type") { fields.word("mid_block_type")? } else { Some("UNetMidBlock2DCrossAttn") };
    let mid = match mid_type {
        Some("UNetMidBlock2D") => Some(UNetMid { heads: last.heads, depth: 0, resnets: 1 }),
        Some(_) => {
            // One middle transformer: of a list of depths for the last level's blocks, diffusers takes the first.
            let depth = match depths.last() {
                Some(Value::Array(list)) => list.first().unwrap_or(&one),
                Some(value) => value,
                None => &one,
            };
            if last.heads == 0 || last.channels % last.heads != 0 {
                return Err(fields.wrong(heads_field, format!("{} heads do not divide {} channels", last.heads, last.channels)));
            }
            Some(UNetMid { heads: last.heads, depth: fields.as_count(depths_field, depth, limit::DEPTH)?, resnets: 2 })
        }
        None => None,
    };

    let text_time = match fields.word("addition_embed_type")? {
        None => None,
        Some(_) => Some(TextTimeSpec {
            time_embed_dim: fields.count("addition_time_embed_dim", None, limit::CHANNELS)?,
            projection_input_dim: fields.count("projection_class_embeddings_input_dim", None, limit::CHANNELS)?,
        }),
    };
    let cross = match fields.get("cross_attention_dim") {
        Some(Value::Array(list)) if list.first().is_some_and(|first| list.iter().all(|v| v == first)) => list.first(),
        other => other,
    };
    Ok(UNetSpec {
        in_channels: fields.count("in_channels", Some(4), limit::CHANNELS)?,
        out_channels: fields.count("out_channels", Some(4), limit::CHANNELS)?,
        down,
        mid,
        up,
        cross_attention_dim: cross.map_or(Ok(1280), |v| fields.as_count("cross_attention_dim", v, limit::CHANNELS))?,
        linear_projection: fields.flag("use_linear_projection", false)?,
        norm_groups,
        norm_eps: fields.number("norm_eps", 1e-5)?,
        text_time,
        guidance_embed_dim: match fields.get("time_cond_proj_dim") {
            None | Some(Value::Null) => 0,
            Some(value) => fields.as_count("time_cond_proj_dim", value, limit::CHANNELS)?,
        },
        flip_sin_to_cos: fields.flag("flip_sin_to_cos", true)?,
        freq_shift: fields.number("freq_shift", 0.0)?,
    })
}

/// The UNet's latents along one side.
pub(crate) fn sample_size(fields: &Fields) -> Result<Option<usize>> {
    match fields.get("sample_size") {
        None => Ok(None),
        Some(Value::Array(list)) if !list.is_empty() => {
            let sides = list.iter().map(|v| fields.as_count("sample_size", v, limit::SAMPLE)).collect::<Result<Vec<_>>>()?;
            Ok(sides.into_iter().max())
        }
        Some(value) => fields.as_count("sample_size", value, limit::SAMPLE).map(Some),
    }
}

/// Reads `vae/config.json`; `scaling_factor` is that of the large autoencoder whose latents a tiny one would share.
pub(crate) fn vae(fields: &Fields, scaling_factor: f64) -> Result<VaeSpec> {
    if fields.word("_class_name")? == Some("AutoencoderTiny") {
        return tiny_vae(fields, scaling_factor);
    }
    class(fields, "AutoencoderKL")?;
    fields.demand(VAE_DEMANDS)?;
    let block_out_channels = channels(fields)?;
    let levels = block_out_channels.len();
    types(fields, "down_block_types", &[("DownEncoderBlock2D", true)], levels)?;
    types(fields, "up_block_types", &[("UpDecoderBlock2D", true)], levels)?;
    let image_channels = fields.count("in_channels", Some(3), limit::CHANNELS)?;
    if fields.count("out_channels", Some(3), limit::CHANNELS)? != image_channels {
        return Err(fields.wrong("out_channels", format!("is not in_channels, {image_channels}")));
    }
    let scaling_factor = fields.number("scaling_factor", 0.18215)?;
    if scaling_factor <= 0.0 {
        return Err(fields.wrong("scaling_factor", format!("{scaling_factor} is not above zero")));
    }
    let latent_channels = fields.count("latent_channels", Some(4), limit::CHANNELS)?;
    Ok(VaeSpec {
        image_channels,
        latent_channels,
        layers_per_block: fields.count("layers_per_block", Some(1), limit::BLOCKS)?,
        norm_groups: groups(fields, &block_out_channels)?,
        block_out_channels,
        scaling_factor,
        shift_factor: fields.number("shift_factor", 0.0)?,
        force_upcast: fields.flag("force_upcast", true)?,
        quant_conv: fields.flag("use_quant_conv", true)?,
        post_quant_conv: fields.flag("use_post_quant_conv", true)?,
        mid_attention: fields.flag("mid_block_add_attention", true)?,
        latent_rgb: LatentRgb::known(scaling_factor, latent_channels),
        tiny: None,
    })
}

/// Reads the `config.json` of a tiny autoencoder.
fn tiny_vae(fields: &Fields, scaling_factor: f64) -> Result<VaeSpec> {
    fields.demand(TINY_VAE_DEMANDS)?;
    let image_channels = fields.count("in_channels", Some(3), limit::CHANNELS)?;
    if fields.count("out_channels", Some(3), limit::CHANNELS)? != image_channels {
        return Err(fields.wrong("out_channels", format!("is not in_channels, {image_channels}")));
    }
    let side = |name: &str, usual: [usize; 4]| -> Result<(Vec<usize>, usize)> {
        let (of_blocks, of_channels) = (format!("num_{name}_blocks"), format!("{name}_block_out_channels"));
        let numbers = |field: &str, usual: Vec<usize>, most: usize| match fields.get(field) {
            None => Ok(usual),
            Some(_) => fields.list(field, limit::LEVELS)?.iter().map(|v| fields.as_count(field, v, most)).collect::<Result<Vec<_>>>(),
        };
        let blocks = numbers(&of_blocks, usual.to_vec(), limit::BLOCKS)?;
        let widths = numbers(&of_channels, vec![64; blocks.len()], limit::CHANNELS)?;
        match widths.first() {
            Some(first) if widths.len() == blocks.len() && widths.iter().all(|width| width == first) => Ok((blocks, *first)),
            _ => Err(fields.wrong(&of_channels, "must have the same number for every level")),
        }
    };
    let (encoder_blocks, channels) = side("encoder", [1, 3, 3, 3])?;
    let (decoder_blocks, of_decoder) = side("decoder", [3, 3, 3, 1])?;
    if (channels, encoder_blocks.len()) != (of_decoder, decoder_blocks.len()) {
        return Err(fields.wrong("decoder_block_out_channels", "is not that of the encoder"));
    }
    let latent_channels = fields.count("latent_channels", Some(4), limit::CHANNELS)?;
    let spec = AutoencoderTinySpec { image_channels, latent_channels, channels, decoder_blocks, encoder_blocks };
    Ok(spec.as_vae(scaling_factor))
}

/// Reads the `config.json` of a text encoder; `projected` is whether the model has a projection.
pub(crate) fn clip_text(fields: &Fields, projected: bool) -> Result<ClipTextSpec> {
    let inner = fields.object("text_config").filter(|_| fields.word("model_type").ok().flatten() == Some("clip"));
    let fields = inner.as_ref().unwrap_or(fields);
    let hidden_size = fields.count("hidden_size", Some(512), limit::CHANNELS)?;
    let heads = fields.count("num_attention_heads", Some(8), limit::CHANNELS)?;
    if hidden_size % heads != 0 {
        return Err(fields.wrong("num_attention_heads", format!("{heads} heads do not divide the width {hidden_size}")));
    }
    Ok(ClipTextSpec {
        vocab_size: fields.count("vocab_size", Some(49408), limit::VOCABULARY)?,
        hidden_size,
        intermediate_size: fields.count("intermediate_size", Some(2048), limit::CHANNELS)?,
        layers: fields.count("num_hidden_layers", Some(12), limit::LAYERS)?,
        heads,
        max_positions: fields.count("max_position_embeddings", Some(77), limit::POSITIONS)?,
        activation: activation(fields)?,
        projection_dim: match projected {
            true => Some(fields.count("projection_dim", Some(512), limit::CHANNELS)?),
            false => None,
        },
        layer_norm_eps: fields.number("layer_norm_eps", 1e-5)?,
        eos_token_id: fields.count("eos_token_id", Some(49407), limit::VOCABULARY)? as u32,
    })
}

/// Reads the `config.json` of an image encoder.
pub(crate) fn clip_vision(fields: &Fields) -> Result<ClipVisionSpec> {
    let inner = fields.object("vision_config").filter(|_| fields.word("model_type").ok().flatten() == Some("clip"));
    let projection_dim = fields.count("projection_dim", Some(512), limit::CHANNELS)?;
    let fields = inner.as_ref().unwrap_or(fields);
    let hidden_size = fields.count("hidden_size", Some(768), limit::CHANNELS)?;
    let heads = fields.count("num_attention_heads", Some(12), limit::CHANNELS)?;
    if hidden_size % heads != 0 {
        return Err(fields.wrong("num_attention_heads", format!("{heads} heads do not divide the width {hidden_size}")));
    }
    let image_size = fields.count("image_size", Some(224), limit::SAMPLE)?;
    let patch_size = fields.count("patch_size", Some(32), limit::SAMPLE)?;
    if image_size % patch_size != 0 {
        return Err(fields.wrong("patch_size", format!("patches of {patch_size} do not divide {image_size} pixels")));
    }
    Ok(ClipVisionSpec {
        hidden_size,
        intermediate_size: fields.count("intermediate_size", Some(3072), limit::CHANNELS)?,
        layers: fields.count("num_hidden_layers", Some(12), limit::LAYERS)?,
        heads,
        image_size,
        patch_size,
        activation: activation(fields)?,
        projection_dim,
        layer_norm_eps: fields.number("layer_norm_eps", 1e-5)?,
    })
}

fn activation(fields: &Fields) -> Result<Activation> {
    match fields.word("hidden_act")? {
        None | Some("quick_gelu") => Ok(Activation::QuickGelu),
        Some("gelu") => Ok(Activation::Gelu),
        Some(other) => Err(fields.wrong("hidden_act", format!("{other:?} is not implemented, only quick_gelu and gelu are"))),
    }
}

/// Refuses another class than the one that is implemented.
fn class(fields: &Fields, wanted: &str) -> Result<()> {
    match fields.word("_class_name")? {
        None => Ok(()),
        Some(class) if class == wanted => Ok(()),
        Some(class) => Err(fields.wrong("_class_name", format!("{class:?} is not implemented, only {wanted} is"))),
    }
}

fn channels(fields: &Fields) -> Result<Vec<usize>> {
    let list = fields.list("block_out_channels", limit::LEVELS)?;
    list.iter().map(|v| fields.as_count("block_out_channels", v, limit::CHANNELS)).collect()
}

fn groups(fields: &Fields, channels: &[usize]) -> Result<usize> {
    let groups = fields.count("norm_num_groups", Some(32), limit::CHANNELS)?;
    match channels.iter().find(|channels| *channels % groups != 0) {
        Some(channels) => Err(fields.wrong("norm_num_groups", format!("{groups} groups do not divide {channels} channels"))),
        None => Ok(groups),
    }
}

/// For each level what its type says.
fn types(fields: &Fields, name: &str, known: &[(&str, bool)], levels: usize) -> Result<Vec<bool>> {
    let list = fields.list(name, limit::LEVELS)?;
    if list.len() != levels {
        return Err(fields.wrong(name, format!("has {} values for {levels} levels", list.len())));
    }
    let meaning = |value: &Value| {
        let row = known.iter().find(|(word, _)| value.as_str() == Some(word));
        row.map(|(_, meaning)| *meaning).ok_or_else(|| {
            let words: Vec<&str> = known.iter().map(|(word, _)| *word).collect();
            fields.wrong(name, format!("{} is not implemented, only {} is", shown(value), words.join(" or ")))
        })
    };
    list.iter().map(meaning).collect()
}

/// The depths of one level's transformers, one for each of its `blocks`.
fn block_depths(fields: &Fields, name: &str, value: Option<&Value>, attention: bool, blocks: usize) -> Result<Vec<usize>> {
    match value {
        _ if !attention => Ok(vec![0; blocks]),
        None => Err(fields.wrong(name, "is missing")),
        Some(Value::Array(list)) if list.len() == blocks => list.iter().map(|v| fields.as_count(name, v, limit::DEPTH)).collect(),
        Some(Value::Array(list)) => Err(fields.wrong(name, format!("has {} values for {blocks} blocks", list.len()))),
        Some(value) => Ok(vec![fields.as_count(name, value, limit::DEPTH)?; blocks]),
    }
}
