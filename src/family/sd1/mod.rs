//! Stable Diffusion 1.x: CLIP-L, 1×1 convolutions in the transformers, epsilon.

use super::FamilyRow;
use super::keys::TextLayout;
use super::latent_diffusion::well_known::{clip_l, text, unet, vae};
use super::latent_diffusion::{self, FIRST, Facts, Input, TextSlot};
use crate::sampling::SchedulerConfig;
use crate::spec::{Activation, Defaults, Family, ModelSpec};
use serde_json::json;

pub(super) const ROW: FamilyRow = FamilyRow {
    family: Family::new("sd1", "Stable Diffusion 1.x"),
    format: &latent_diffusion::FORMAT,
    well_known: &[("sd15", sd15)],
    default_size: 512,
    guidance_scale: 7.5,
    context_width: 768,
    scheduler: || json!({ "_class_name": "PNDMScheduler", "set_alpha_to_one": false, "skip_prk_steps": true }),
    facts: Some(&Facts {
        is: |text, text_time| !text_time && matches!(text, [one] if one.clip.activation == Activation::QuickGelu),
        in_folder: "One text encoder with quick GELU: CLIP-L, as Stable Diffusion 1.x has.",
        in_file: "No label_emb and a CLIP-L: Stable Diffusion 1.x.",
        size_of_v: 512,
        latents: (0.18215, false),
        zero_missing_negative: false,
        aesthetic_score: false,
        v_by_statistic: false,
        text: &[TextSlot { folder: FIRST, prefix: "cond_stage_model.transformer.", layout: TextLayout::Clip }],
        pipelines: &[
            (Input::Latents, "StableDiffusionPipeline"),
            (Input::MaskAndImage, "StableDiffusionInpaintPipeline"),
            (Input::Image, "StableDiffusionInstructPix2PixPipeline"),
        ],
        architecture: |_| "stable-diffusion-v1",
        marked: false,
    }),
};

pub(super) fn sd15() -> ModelSpec {
    ModelSpec {
        family: super::SD1,
        evidence: vec!["Stable Diffusion 1.5 was asked for by name.".to_owned()],
        unet: unet(&[(320, 8, 1), (640, 8, 1), (1280, 8, 1), (1280, 8, 0)], 1, 768, false),
        mmdit: None,
        vae: vae(0.18215, false),
        text_encoders: vec![text(clip_l(None), 0, true)],
        t5: None,
        scheduler: SchedulerConfig::default(),
        default_size: 512,
        zero_missing_negative: false,
        aesthetic_score: false,
        defaults: Defaults { steps: None, guidance_scale: 7.5 },
    }
}
