//! Stable Diffusion XL's refiner: OpenCLIP-G alone, and an aesthetic score in the place of a target size.

use super::FamilyRow;
use super::keys::TextLayout;
use super::latent_diffusion::{self, Facts, Input, SECOND, TextSlot};
use crate::spec::Family;

pub(super) const ROW: FamilyRow = FamilyRow {
    family: Family::new("sdxl-refiner", "Stable Diffusion XL refiner"),
    format: &latent_diffusion::FORMAT,
    well_known: &[],
    default_size: 1024,
    guidance_scale: 5.0,
    context_width: 1280,
    scheduler: super::sdxl::ROW.scheduler,
    facts: Some(&Facts {
        is: |text, text_time| text_time && text.len() == 1,
        in_folder: "The UNet takes pooled text and sizes, and there is one text encoder.",
        in_file: "A label_emb and one text encoder: Stable Diffusion XL's refiner.",
        size_of_v: 1024,
        latents: (0.13025, true),
        zero_missing_negative: false,
        aesthetic_score: true,
        v_by_statistic: false,
        text: &[TextSlot { folder: SECOND, prefix: "conditioner.embedders.0.model.", layout: TextLayout::OpenClip }],
        pipelines: &[(Input::Latents, "StableDiffusionXLImg2ImgPipeline")],
        architecture: |_| "stable-diffusion-xl-v1-refiner",
        marked: true,
    }),
};

/// Original size, crop corner and score.
pub(super) fn time_ids((height, width): (f64, f64), score: f64) -> Vec<f64> {
    vec![height, width, 0.0, 0.0, score]
}
