//! Stable Diffusion XL base: CLIP-L and OpenCLIP-G, pooled text and sizes, zeros for a missing negative prompt.

use super::FamilyRow;
use super::keys::TextLayout;
use super::latent_diffusion::well_known::{clip_l, open_clip, scheduler, text, unet, vae};
use super::latent_diffusion::{self, FIRST, Facts, Input, SECOND, TextSlot};
use crate::spec::{Defaults, Family, ModelSpec, TextEncoderSpec, TextTimeSpec};
use serde_json::json;

pub(super) const ROW: FamilyRow = FamilyRow {
    family: Family::new("sdxl", "Stable Diffusion XL"),
    format: &latent_diffusion::FORMAT,
    well_known: &[("sdxl", sdxl)],
    default_size: 1024,
    guidance_scale: 5.0,
    context_width: 2048,
    scheduler: || json!({ "_class_name": "EulerDiscreteScheduler", "use_karras_sigmas": false }),
    facts: Some(&Facts {
        is: |text, text_time| text_time && text.len() == 2,
        in_folder: "The UNet takes pooled text and sizes, and there are two text encoders.",
        in_file: "A label_emb and two text encoders: Stable Diffusion XL.",
        size_of_v: 1024,
        latents: (0.13025, true),
        zero_missing_negative: true,
        aesthetic_score: false,
        v_by_statistic: false,
        text: &[
            TextSlot { folder: FIRST, prefix: "conditioner.embedders.0.transformer.", layout: TextLayout::Clip },
            TextSlot { folder: SECOND, prefix: "conditioner.embedders.1.model.", layout: TextLayout::OpenClip },
        ],
        pipelines: &[
            (Input::Latents, "StableDiffusionXLPipeline"),
            (Input::MaskAndImage, "StableDiffusionXLInpaintPipeline"),
            (Input::Image, "StableDiffusionXLInstructPix2PixPipeline"),
        ],
        architecture: |_| "stable-diffusion-xl-v1-base",
        marked: true,
    }),
};

/// Original size, crop corner and target size.
pub(super) fn time_ids((height, width): (f64, f64)) -> Vec<f64> {
    vec![height, width, 0.0, 0.0, height, width]
}

fn sdxl() -> ModelSpec {
    let mut unet = unet(&[(320, 5, 0), (640, 10, 2), (1280, 20, 10)], 10, 2048, true);
    unet.text_time = Some(TextTimeSpec { time_embed_dim: 256, projection_input_dim: 2816 });
    let pooled = TextEncoderSpec { pooled: true, ..text(open_clip(1280, 32, Some(1280)), 1, false) };
    ModelSpec {
        family: super::SDXL,
        evidence: vec!["Stable Diffusion XL was asked for by name.".to_owned()],
        unet,
        mmdit: None,
        vae: vae(0.13025, true),
        text_encoders: vec![text(clip_l(None), 1, false), pooled],
        t5: None,
        scheduler: scheduler("EulerDiscreteScheduler", "epsilon"),
        default_size: 1024,
        zero_missing_negative: true,
        aesthetic_score: false,
        defaults: Defaults { steps: None, guidance_scale: 5.0 },
    }
}
