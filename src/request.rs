//! What is to be generated: a draft in which everything may be missing, and a request in which everything is decided.

use crate::noise::Rng;
use crate::sampling::{PredictionType, Sampler, SchedulerConfig, SigmaSchedule, TimestepSpacing};
use crate::spec::ModelSpec;
use crate::{Error, Result};

/// Pixels along one side that nobody means seriously.
const LARGEST_SIDE: usize = 16_384;

/// Images of one request: more than a disk holds.
const MOST_IMAGES: usize = 10_000_000;
/// Images at once: more than any device holds.
const MOST_AT_ONCE: usize = 1024;

/// What the user said; the rest is left to the model.
#[derive(Debug, Clone, Default)]
pub struct RequestDraft {
    /// What to generate.
    pub prompt: String,
    /// What not to generate; `None` is not the same as an empty text for SDXL.
    pub negative_prompt: Option<String>,
    /// Pixels.
    pub width: Option<usize>,
    /// Pixels.
    pub height: Option<usize>,
    /// Denoising steps.
    pub steps: Option<usize>,
    /// Classifier-free guidance; 1 and less turns it off.
    pub guidance_scale: Option<f64>,
    /// How much of the guided prediction's contrast is taken back, 0 to 1.
    pub guidance_rescale: Option<f64>,
    /// The solver, however another tool spells it; a schedule word may end the name.
    pub sampler: Option<String>,
    /// Which noise levels.
    pub schedule: Option<SigmaSchedule>,
    /// How the trained timesteps are thinned out.
    pub timestep_spacing: Option<TimestepSpacing>,
    /// Takes the place of the model's own.
    pub scheduler_config: Option<SchedulerConfig>,
    /// Overrides what was detected.
    pub prediction: Option<PredictionType>,
    /// Rescale the schedule to zero terminal SNR.
    pub zero_snr: bool,
    /// Noise of ancestral samplers and DDIM.
    pub eta: Option<f64>,
    /// The first image's seed.
    pub seed: u64,
    /// Which generator's numbers.
    pub rng: Rng,
    /// Images.
    pub images: Option<usize>,
    /// Images at once; `None` leaves it to the memory.
    pub batch_size: Option<usize>,
    /// 1 is the layer that the family takes, 2 the one before.
    pub clip_skip: Option<usize>,
}

/// What is generated, everything decided and checked.
#[derive(Debug, Clone)]
pub struct GenerationRequest {
    /// What to generate.
    pub prompt: String,
    /// What not to generate.
    pub negative_prompt: Option<String>,
    /// Pixels.
    pub width: usize,
    /// Pixels.
    pub height: usize,
    /// Denoising steps.
    pub steps: usize,
    /// Classifier-free guidance scale.
    pub guidance_scale: f64,
    /// 0 to 1.
    pub guidance_rescale: f64,
    /// Noise schedule and solver.
    pub scheduler: SchedulerConfig,
    /// The user named a configuration in place of the model's.
    pub scheduler_is_named: bool,
    /// The first image's seed; image i has this plus i.
    pub seed: u64,
    /// Which generator's numbers.
    pub rng: Rng,
    /// Images.
    pub images: usize,
    /// The most images at once; `None` leaves it to the memory.
    pub batch_size: Option<usize>,
    /// Text encoder layers left out beyond what the family leaves out.
    pub skip_layers: usize,
}

impl RequestDraft {
    /// Decides what the draft leaves open by what the model is, and checks all of it.
    ///
    /// # Errors
    /// A value is out of its range; the message names the flag.
    pub fn resolve(&self, spec: &ModelSpec) -> Result<GenerationRequest> {
        let factor = spec.vae.factor();
        // A model with fewer resolutions than SD's takes smaller steps; the flag's contract is a multiple of 8.
        let multiple = factor.max(8);
        let side = |flag: &str, pixels: Option<usize>| {
            let pixels = pixels.unwrap_or(spec.default_size);
            let flag = if self.width == self.height && self.width.is_some() { "--size, --width or --height" } else { flag };
            if pixels == 0 || !pixels.is_multiple_of(multiple) {
                let near = (pixels + multiple / 2) / multiple * multiple;
                return Err(Error::Input(format!("{flag} {pixels}: must be a multiple of {multiple}; {} is near", near.max(multiple))));
            }
            if pixels > LARGEST_SIDE {
                return Err(Error::Input(format!("{flag} {pixels}: at most {LARGEST_SIDE} pixels a side; generate smaller and enlarge")));
            }
            Ok(pixels)
        };
        let (width, height) = (side("--width", self.width)?, side("--height", self.height)?);
        let at_least_one = |flag: &str, value: usize| match value {
            0 => Err(Error::Input(format!("{flag} 0: must be at least 1"))),
            _ => Ok(value),
        };
        let finite = |flag: &str, value: f64, least: f64, most: f64| {
            if value.is_finite() && (least..=most).contains(&value) {
                return Ok(value);
            }
            Err(Error::Input(format!("{flag} {value}: must be a number from {least} to {most}")))
        };
        let guidance_scale = finite("--guidance-scale", self.guidance_scale.unwrap_or(spec.defaults.guidance_scale), 0.0, 1000.0)?;
        let guidance_rescale = finite("--guidance-rescale", self.guidance_rescale.unwrap_or(0.0), 0.0, 1.0)?;

        let mut scheduler = self.scheduler_config.clone().unwrap_or_else(|| spec.scheduler.clone());
        if let Some(sampler) = &self.sampler {
            scheduler = scheduler.with_sampler(sampler)?;
        }
        if let Some(schedule) = self.schedule {
            scheduler = scheduler.with_schedule(schedule);
        }
        if let Some(spacing) = self.timestep_spacing {
            scheduler = scheduler.with_spacing(spacing);
        }
        if let Some(prediction) = self.prediction {
            scheduler = scheduler.with_prediction(prediction);
        }
        if self.zero_snr {
            scheduler = scheduler.with_zero_snr(true);
        }
        if let Some(eta) = self.eta {
            scheduler = scheduler.with_eta(finite("--eta", eta, 0.0, 1.0)?);
        }
        let steps = self.steps.or(spec.defaults.steps);
        let steps = steps.map_or_else(|| scheduler.sampler().map(Sampler::default_steps), Ok)?;
        let steps = at_least_one("--steps", steps)?;
        // Planning finds out whether sampler, schedule and steps go together, before a weight is read.
        // A file named on the command line is input, however alike it is to a model's own.
        let named_by_user = self.scheduler_config.is_some();
        crate::sampling::plan(&scheduler, steps).map_err(|error| match error {
            Error::Model(what) if named_by_user => Error::Input(what),
            other => other,
        })?;

        let at_most = |flag: &str, value: usize, most: usize| match value > most {
            true => Err(Error::Input(format!("{flag} {value}: at most {most}"))),
            false => Ok(value),
        };
        let images = at_most("--images", at_least_one("--images", self.images.unwrap_or(1))?, MOST_IMAGES)?;
        let batch_size = self.batch_size.map(|n| at_most("--batch-size", at_least_one("--batch-size", n)?, MOST_AT_ONCE)).transpose()?;
        let clip_skip = at_least_one("--clip-skip", self.clip_skip.unwrap_or(1))?;
        let layers = spec.text_encoders.iter().map(|encoder| encoder.clip.layers.saturating_sub(encoder.skip_layers)).min().unwrap_or(0);
        if clip_skip > layers.max(1) {
            return Err(Error::Input(format!("--clip-skip {clip_skip}: the text encoder has {layers} layers to choose from")));
        }
        Ok(GenerationRequest {
            prompt: self.prompt.clone(),
            negative_prompt: self.negative_prompt.clone(),
            width,
            height,
            steps,
            guidance_scale,
            guidance_rescale,
            scheduler,
            scheduler_is_named: named_by_user,
            seed: self.seed,
            rng: self.rng,
            images,
            batch_size,
            skip_layers: clip_skip - 1,
        })
    }
}

impl GenerationRequest {
    /// Classifier-free guidance is on: the UNet sees two rows an image.
    pub fn is_guided(&self) -> bool {
        self.guidance_scale > 1.0
    }

    /// The seeds of the images.
    pub fn seeds(&self) -> impl Iterator<Item = u64> + use<> {
        let first = self.seed;
        (0..self.images as u64).map(move |i| first.wrapping_add(i))
    }

    /// What images that are generated at once must have in common.
    pub fn shape(&self) -> Shape<'_> {
        Shape {
            width: self.width,
            height: self.height,
            steps: self.steps,
            scheduler: &self.scheduler,
            rng: self.rng,
            guided: self.is_guided(),
            rescaled: self.guidance_rescale != 0.0,
        }
    }
}

/// What images that are generated at once have in common: they take the same steps, with as many rows of the UNet.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Shape<'a> {
    /// Pixels.
    pub width: usize,
    /// Pixels.
    pub height: usize,
    /// Denoising steps.
    pub steps: usize,
    /// Noise schedule and solver.
    pub scheduler: &'a SchedulerConfig,
    /// Whose random numbers.
    pub rng: Rng,
    /// Guidance is on.
    pub guided: bool,
    /// Guidance is rescaled.
    pub rescaled: bool,
}
