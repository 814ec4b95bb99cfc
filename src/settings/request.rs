//! What is generated, everything decided and checked.

use super::{
    AdapterSettings, BatchNoise, BatchPlace, CanvasSettings, Effect, GuidanceSettings, InputSettings, OutputSettings, PassSettings,
    SamplingSettings, Seed, TextSettings, Together, table,
};
use crate::prompt::Prompt;
use crate::sampling::{Sampler, SchedulerConfig};
use serde_json::{Map, Value as Json, json};
use std::sync::Arc;

/// What is generated, everything decided and checked: what [`super::Draft::resolve`] makes of a draft for a model.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Request {
    /// What to generate.
    pub prompt: String,
    /// The first image's seed; image i has this plus i.
    pub seed: u64,
    /// The texts beside the prompt.
    pub text: TextSettings,
    /// Layers of the text encoder that are left out beyond those that the family leaves out.
    pub skip_layers: usize,
    /// The image's size.
    pub canvas: CanvasSettings,
    /// Steps and noise.
    pub sampling: SamplingSettings,
    /// Noise schedule and solver.
    pub scheduler: SchedulerConfig,
    /// The user named a configuration in place of the model's.
    pub scheduler_is_named: bool,
    /// Classifier-free guidance.
    pub guidance: GuidanceSettings,
    /// The network was distilled with the guidance scale, which it is told.
    pub guidance_is_embedded: bool,
    /// The images that it is made from.
    pub inputs: InputSettings,
    /// What follows the first pass.
    pub passes: PassSettings,
    /// LoRAs and textual inversions.
    pub adapters: AdapterSettings,
    /// How many images.
    pub output: OutputSettings,
}

/// What images that are generated at once have in common: equal ones take the same steps, with the same calls of the network.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Shape(String);

impl Request {
    /// The network sees the negative prompt too: classifier-free guidance is on, or the prompt has parts that add up; a third row where
    /// it edits an image.
    pub fn is_guided(&self) -> bool {
        if self.inputs.edit {
            return self.guidance.scale > 1.0 && self.inputs.image_guidance_scale >= 1.0;
        }
        let reads_unguided = self.scheduler.sampler().is_ok_and(Sampler::reads_unguided);
        (self.guidance.scale > 1.0 && !self.guidance_is_embedded) || reads_unguided || self.part_weights().is_some()
    }

    /// The weights of the prompt's parts (`AND`); `None` where the prompt is one part that weighs 1.
    pub fn part_weights(&self) -> Option<Vec<f64>> {
        let weights = Prompt::part_weights(&self.prompt, self.text.prompt_syntax);
        (weights != [1.0]).then_some(weights)
    }

    /// Rows of the network for each image, where all branches of its guidance are computed.
    pub fn rows(&self) -> usize {
        let parts = self.part_weights().map_or(1, |weights| weights.len());
        let (guided, edits) = (self.is_guided(), self.inputs.edit);
        parts
            + usize::from(guided)
            + usize::from(guided && edits)
            + usize::from(self.guidance.pag_scale != 0.0)
            + usize::from(self.guidance.skip_layers.is_some())
    }

    /// The images, each with its seed and what is to be made of it: image i has the first one's seed plus i.
    ///
    /// Where noise is varied, all images have one seed, and the variation's seed counts on, as in A1111; where all images' noise is one
    /// draw, they have one seed and a place in it.
    pub fn each(self: &Arc<Self>) -> impl Iterator<Item = (Arc<Request>, u64)> + use<> {
        let request = Arc::clone(self);
        (0..self.output.images).map(move |i| request.image(i))
    }

    /// The seeds of the images, where each has its own.
    pub fn seeds(&self) -> impl Iterator<Item = u64> + use<> {
        let first = self.seed;
        (0..self.output.images as u64).map(move |i| first.wrapping_add(i))
    }

    fn image(self: &Arc<Self>, i: usize) -> (Arc<Self>, u64) {
        let images = self.output.images;
        let (varied, shared) = (self.sampling.variation_strength != 0.0, self.sampling.batch_noise == BatchNoise::Shared);
        if images == 1 || !(varied || shared) {
            return (Arc::clone(self), self.seed.wrapping_add(i as u64));
        }
        let mut request = Self::clone(self);
        if shared {
            request.sampling.batch_place = BatchPlace::of(i, images);
        }
        if let (true, Some(Seed::Is(seed))) = (varied, request.sampling.variation_seed) {
            request.sampling.variation_seed = Some(Seed::Is(seed.wrapping_add(i as u64)));
        }
        // It is this one image, whose text and key say nothing of the others.
        request.output.images = 1;
        (Arc::new(request), self.seed)
    }

    /// What images that are generated at once must have in common.
    pub fn shape(&self) -> Shape {
        let rows = table().iter().filter(|row| row.effect == Effect::Image);
        let mut shape: Map<String, Json> = rows
            .filter_map(|row| match row.together {
                Together::Equal => Some((row.name.to_owned(), (row.access.json)(self))),
                Together::Class(class) => Some((row.name.to_owned(), class(self).into())),
                Together::Free => None,
            })
            .collect();
        shape.insert("scheduler".into(), self.scheduler_json());
        shape.insert("parts".into(), self.part_weights().map_or(0, |weights| weights.len()).into());
        Shape(Json::Object(shape).to_string())
    }

    /// Everything that decides the pixels beside the model and the seed, by the settings' names in alphabetical order. What changes
    /// nothing is not there.
    pub fn canonical(&self) -> Json {
        let rows = table().iter().filter(|row| row.effect == Effect::Image && !row.written(self).is_empty());
        let mut all: Vec<(String, Json)> = rows.map(|row| (row.name.to_owned(), (row.access.json)(self))).collect();
        all.push(("scheduler".into(), self.scheduler_json()));
        all.sort_by(|a, b| a.0.cmp(&b.0));
        Json::Object(all.into_iter().collect())
    }

    fn scheduler_json(&self) -> Json {
        let scheduler = &self.scheduler;
        json!({ "config": scheduler, "schedule": scheduler.schedule.map(|schedule| schedule.name()), "eta": scheduler.eta })
    }
}
