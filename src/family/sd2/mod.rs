//! Stable Diffusion 2.x: OpenCLIP-H, heads of 64 channels, epsilon or v.

use super::FamilyRow;
use super::keys::TextLayout;
use super::latent_diffusion::well_known::{open_clip, scheduler, text, unet};
use super::latent_diffusion::{self, FIRST, Facts, Input, TextSlot};
use crate::spec::{Activation, Family, ModelSpec};
use serde_json::json;

pub(super) const ROW: FamilyRow = FamilyRow {
    family: Family::new("sd2", "Stable Diffusion 2.x"),
    format: &latent_diffusion::FORMAT,
    well_known: &[("sd21", sd21)],
    default_size: 512,
    guidance_scale: 7.5,
    context_width: 1024,
    scheduler: || json!({ "_class_name": "DDIMScheduler", "set_alpha_to_one": false, "clip_sample": false }),
    facts: Some(&Facts {
        is: |text, text_time| !text_time && matches!(text, [one] if one.clip.activation == Activation::Gelu),
        in_folder: "One text encoder with exact GELU: OpenCLIP, as Stable Diffusion 2.x has.",
        in_file: "No label_emb and an OpenCLIP: Stable Diffusion 2.x.",
        size_of_v: 768,
        latents: (0.18215, false),
        zero_missing_negative: false,
        aesthetic_score: false,
        v_by_statistic: true,
        text: &[TextSlot { folder: FIRST, prefix: "cond_stage_model.model.", layout: TextLayout::OpenClip }],
        pipelines: &[
            (Input::Latents, "StableDiffusionPipeline"),
            (Input::MaskAndImage, "StableDiffusionInpaintPipeline"),
            (Input::Image, "StableDiffusionInstructPix2PixPipeline"),
        ],
        architecture: |v| if v { "stable-diffusion-v2-768-v" } else { "stable-diffusion-v2-512" },
        marked: false,
    }),
};

fn sd21() -> ModelSpec {
    // The last of OpenCLIP-H's 24 layers is never used, and diffusers' folder leaves it out.
    let open_clip_h = open_clip(1024, 23, None);
    ModelSpec {
        family: super::SD2,
        evidence: vec!["Stable Diffusion 2.1 was asked for by name.".to_owned()],
        unet: unet(&[(320, 5, 1), (640, 10, 1), (1280, 20, 1), (1280, 20, 0)], 1, 1024, true),
        mmdit: None,
        text_encoders: vec![text(open_clip_h, 0, true)],
        t5: None,
        scheduler: scheduler("DDIMScheduler", "v_prediction"),
        default_size: 768,
        ..super::sd1::sd15()
    }
}
