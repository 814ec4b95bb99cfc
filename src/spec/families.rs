//! The well-known models as data, for whoever has no file of them at hand.

use super::{
    Activation, ClipTextSpec, Defaults, Family, LatentRgb, ModelSpec, TextEncoderSpec, TextTimeSpec, UNetLevel, UNetMid, UNetSpec, VaeSpec,
};
use crate::sampling::{SchedulerConfig, SchedulerFile};

impl ModelSpec {
    /// The names that [`ModelSpec::well_known`] answers to.
    pub const WELL_KNOWN: [&str; 3] = ["sd15", "sd21", "sdxl"];

    /// Stable Diffusion 1.5, 2.1 (768, v-prediction) or XL base, by its short name.
    ///
    /// # Source
    /// The configuration files of stable-diffusion-v1-5, stable-diffusion-2-1 and stable-diffusion-xl-base-1.0.
    pub fn well_known(name: &str) -> Option<ModelSpec> {
        match name {
            "sd15" => Some(sd15()),
            "sd21" => Some(sd21()),
            "sdxl" => Some(sdxl()),
            _ => None,
        }
    }
}

fn sd15() -> ModelSpec {
    ModelSpec {
        family: Family::Sd1,
        evidence: vec!["Stable Diffusion 1.5 was asked for by name.".to_owned()],
        unet: unet(&[(320, 8, 1), (640, 8, 1), (1280, 8, 1), (1280, 8, 0)], 1, 768, false),
        vae: vae(0.18215, false),
        text_encoders: vec![text(clip_l(None), 0, true)],
        scheduler: SchedulerConfig::default(),
        default_size: 512,
        zero_missing_negative: false,
        aesthetic_score: false,
        defaults: Defaults { steps: None, guidance_scale: 7.5 },
    }
}

fn sd21() -> ModelSpec {
    // The last of OpenCLIP-H's 24 layers is never used, and diffusers' folder leaves it out.
    let open_clip_h = open_clip(1024, 23, None);
    ModelSpec {
        family: Family::Sd2,
        evidence: vec!["Stable Diffusion 2.1 was asked for by name.".to_owned()],
        unet: unet(&[(320, 5, 1), (640, 10, 1), (1280, 20, 1), (1280, 20, 0)], 1, 1024, true),
        text_encoders: vec![text(open_clip_h, 0, true)],
        scheduler: scheduler("DDIMScheduler", "v_prediction"),
        default_size: 768,
        ..sd15()
    }
}

fn sdxl() -> ModelSpec {
    let mut unet = unet(&[(320, 5, 0), (640, 10, 2), (1280, 20, 10)], 10, 2048, true);
    unet.text_time = Some(TextTimeSpec { time_embed_dim: 256, projection_input_dim: 2816 });
    let pooled = TextEncoderSpec { pooled: true, ..text(open_clip(1280, 32, Some(1280)), 1, false) };
    ModelSpec {
        family: Family::Sdxl,
        evidence: vec!["Stable Diffusion XL was asked for by name.".to_owned()],
        unet,
        vae: vae(0.13025, true),
        text_encoders: vec![text(clip_l(None), 1, false), pooled],
        scheduler: scheduler("EulerDiscreteScheduler", "epsilon"),
        default_size: 1024,
        zero_missing_negative: true,
        aesthetic_score: false,
        defaults: Defaults { steps: None, guidance_scale: 5.0 },
    }
}

/// From levels as channels, heads and transformer blocks behind each residual block, fine to coarse.
fn unet(levels: &[(usize, usize, usize)], mid_depth: usize, cross_attention_dim: usize, linear_projection: bool) -> UNetSpec {
    let last = levels.len().saturating_sub(1);
    let level = |(channels, heads, depth): (usize, usize, usize), blocks, resample| UNetLevel {
        channels,
        heads,
        depths: vec![depth; blocks],
        resample,
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
        freq_shift: 0.0,
    }
}

fn vae(scaling_factor: f64, force_upcast: bool) -> VaeSpec {
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
    }
}

fn text(clip: ClipTextSpec, skip_layers: usize, final_norm: bool) -> TextEncoderSpec {
    let pad_token = if clip.activation == Activation::QuickGelu { "<|endoftext|>" } else { "!" };
    TextEncoderSpec { clip, skip_layers, final_norm, pad_token: pad_token.to_owned(), pooled: false }
}

fn clip_l(projection_dim: Option<usize>) -> ClipTextSpec {
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

fn open_clip(width: usize, layers: usize, projection_dim: Option<usize>) -> ClipTextSpec {
    ClipTextSpec {
        hidden_size: width,
        intermediate_size: 4 * width,
        layers,
        heads: width / 64,
        activation: Activation::Gelu,
        ..clip_l(projection_dim)
    }
}

fn scheduler(class: &str, prediction: &str) -> SchedulerConfig {
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
