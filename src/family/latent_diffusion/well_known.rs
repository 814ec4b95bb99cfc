//! The parts that well-known models have in common, as data.

use crate::sampling::{SchedulerConfig, SchedulerFile};
use crate::spec::{Activation, ClipTextSpec, LatentRgb, TextEncoderSpec, UNetLevel, UNetMid, UNetSpec, VaeSpec};

/// From levels as channels, heads and transformer blocks behind each residual block, fine to coarse.
pub(crate) fn unet(levels: &[(usize, usize, usize)], mid_depth: usize, cross_attention_dim: usize, linear_projection: bool) -> UNetSpec {
    let last = levels.len().saturating_sub(1);
    let level = |(channels, heads, depth): (usize, usize, usize), blocks, resample| UNetLevel {
        channels,
        heads,
        depths: vec![depth; blocks],
        resample,
        reads_text_only: false,
    };
    UNetSpec {
        in_channels: 4,
        out_channels: 4,
        down: levels.iter().enumerate().map(|(i, &row)| level(row, 2, i != last)).collect(),
        mid: levels.last().map(|&(_, heads, _)| UNetMid { heads, depth: mid_depth, resnets: 2 }),
        up: levels.iter().rev().enumerate().map(|(i, &row)| level(row, 3, i != last)).collect(),
        cross_attention_dim,
        linear_projection,
        norm_groups: 32,
        norm_eps: 1e-5,
        text_time: None,
        flip_sin_to_cos: true,
        guidance_embed_dim: 0,
        freq_shift: 0.0,
    }
}

pub(crate) fn vae(scaling_factor: f64, force_upcast: bool) -> VaeSpec {
    VaeSpec {
        image_channels: 3,
        latent_channels: 4,
        block_out_channels: vec![128, 256, 512, 512],
        layers_per_block: 2,
        norm_groups: 32,
        scaling_factor,
        shift_factor: 0.0,
        force_upcast,
        quant_conv: true,
        post_quant_conv: true,
        mid_attention: true,
        latent_rgb: LatentRgb::known(scaling_factor, 4),
        tiny: None,
    }
}

pub(crate) fn text(clip: ClipTextSpec, skip_layers: usize, final_norm: bool) -> TextEncoderSpec {
    let pad_token = if clip.activation == Activation::QuickGelu { "<|endoftext|>" } else { "!" };
    TextEncoderSpec { clip, skip_layers, final_norm, pad_token: pad_token.to_owned(), pooled: false }
}

pub(crate) fn clip_l(projection_dim: Option<usize>) -> ClipTextSpec {
    ClipTextSpec {
        vocab_size: 49_408,
        hidden_size: 768,
        intermediate_size: 3072,
        layers: 12,
        heads: 12,
        max_positions: 77,
        activation: Activation::QuickGelu,
        projection_dim,
        layer_norm_eps: 1e-5,
        eos_token_id: 49_407,
    }
}

pub(crate) fn open_clip(width: usize, layers: usize, projection_dim: Option<usize>) -> ClipTextSpec {
    ClipTextSpec {
        hidden_size: width,
        intermediate_size: 4 * width,
        layers,
        heads: width / 64,
        activation: Activation::Gelu,
        ..clip_l(projection_dim)
    }
}

pub(crate) fn scheduler(class: &str, prediction: &str) -> SchedulerConfig {
    let mut config = SchedulerConfig::default();
    config.file = SchedulerFile {
        class_name: Some(class.to_owned()),
        prediction_type: Some(prediction.to_owned()),
        timestep_spacing: Some("leading".to_owned()),
        skip_prk_steps: None,
        ..config.file
    };
    config
}
