//! The passes of a run: the loop over one network's steps, a refiner that takes over, and a second pass at a larger size.

use super::encode::{PassNumber, counted_calls};
use super::estimate::WithEstimate;
use super::finite::Checks;
use super::guided_denoiser::{GuidedDenoiser, StepsBefore};
use super::observer::{Observer, Stage};
use super::start::{Start, StartImage};
use super::steering::Steering;
use super::step_cache::cached;
use super::windows::LatentWindows;
use super::{BatchItem, Conditioning, Pipeline, SharedModel, extensions};
use crate::adapter::AdapterSet;
use crate::device::{Pace, free_memory, release};
use crate::extension::RunContext;
use crate::models::Backbone;
use crate::noise::SeededNoise;
use crate::sampling::{Denoiser, Forecast, Schedule, sample};
use crate::settings::{Request, StepCache};
use crate::spec::Component;
use crate::{Error, Result};
use candle_core::Tensor;
use std::cell::RefCell;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use tracing::trace;

/// One pass of a batch.
pub(super) struct Pass<'a> {
    /// The images, with what the network is told in this pass.
    pub(super) batch: Vec<BatchItem<'a>>,
    pub(super) number: PassNumber,
    pub(super) start: Start,
    /// The image that it starts from.
    pub(super) image: Option<&'a StartImage>,
    /// Steps of earlier passes, and of all, as they are shown.
    pub(super) shown: (usize, usize),
}

/// Some steps of a pass that one network takes.
struct Share<'a> {
    /// Which pipeline's network, and how it is adapted.
    pipeline: &'a Pipeline,
    adapters: Arc<AdapterSet>,
    batch: &'a [BatchItem<'a>],
    /// The steps.
    schedule: &'a Schedule,
    /// The steps to the end of the pass, which what works beside the loop goes by.
    whole: &'a Schedule,
    before: StepsBefore,
}

/// The model that takes over, once it is wanted.
pub(super) type LoadedRefiner = Mutex<Option<(PathBuf, Arc<Pipeline>)>>;

impl Pipeline {
    /// Whether the refiner takes part in a pass: it belongs to the last one.
    pub(super) fn is_refined(request: &Request, pass: PassNumber) -> bool {
        let last = if request.passes.hires.is_some() { PassNumber::Second } else { PassNumber::First };
        request.passes.refiner.is_some() && pass == last
    }

    /// The request's refiner, whose networks are read when they are wanted. Where there is no room for both, all networks take turns.
    ///
    /// # Errors
    /// It cannot be opened, or does not go with this model.
    pub fn refiner(&self, request: &Request, observer: &mut dyn Observer) -> Result<Option<Arc<Pipeline>>> {
        let Some(file) = &request.passes.refiner else { return Ok(None) };
        let mut loaded = self.refiner.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, pipeline)) = loaded.as_ref().filter(|(path, _)| *path == file.path) {
            return Ok(Some(Arc::clone(pipeline)));
        }
        let model = self.networks.passes.refiner(file, &self.spec)?;
        let spec = model.spec().clone();
        if request.guidance.sag_scale != 0.0 && !spec.unet.attends_in_the_middle() {
            let refiner = file.path.display();
            return Err(Error::setting(
                "sag-scale",
                format!(": the refiner {refiner} has no attention in its middle; leave one of them out"),
            ));
        }
        let texts = spec.text_components();
        let numbers: u64 = texts.chain([Component::UNET]).map(|component| model.parameters(component)).sum();
        let bytes = numbers * self.dtype.size_in_bytes() as u64;
        let pipeline = self.beside(model as SharedModel, spec);
        let is_short = free_memory(&self.device).is_some_and(|free| bytes > free / 10 * 9);
        if self.components.are_in_turn() || is_short {
            if !self.components.are_in_turn() {
                observer.warn("the memory is too small for the refiner beside the model: the networks take turns");
            }
            self.components.take_turns_with(&pipeline.components);
        }
        let pipeline = Arc::new(pipeline);
        *loaded = Some((file.path.clone(), Arc::clone(&pipeline)));
        Ok(Some(pipeline))
    }

    /// The latents at the end of a pass.
    pub(super) fn run_pass(&self, pass: &Pass<'_>, noise: &mut SeededNoise, observer: &mut dyn Observer) -> Result<Tensor> {
        let Pass { batch, start, .. } = pass;
        let Start { latents, schedule, .. } = start;
        let Some(BatchItem { request, .. }) = batch.first() else { return Ok(latents.clone()) };
        if schedule.steps.is_empty() {
            return Ok(latents.clone());
        }
        let own = |schedule, whole| -> Result<Share<'_>> {
            let adapters = self.adapters(request)?;
            Ok(Share { pipeline: self, adapters, batch, schedule, whole, before: StepsBefore::default() })
        };
        let refiner = if Self::is_refined(request, pass.number) { self.refiner(request, observer)? } else { None };
        let Some(refiner) = refiner else { return self.take_steps(pass, &own(schedule, schedule)?, latents, noise, observer) };
        // The rule of diffusers: by the timestep, not by the number of the step.
        let trained = request.scheduler.trained_steps() as f64;
        let switch = (trained - request.passes.refiner_switch.unwrap_or(0.8) * trained).round_ties_even();
        let (first, second) = schedule.split_at(switch);
        let mut latents = latents.clone();
        if let Some(first) = &first {
            latents = self.take_steps(pass, &own(first, schedule)?, &latents, noise, observer)?;
        }
        let Some(second) = &second else { return Ok(latents) };
        let mut before = StepsBefore { steps: 0, calls: 0, all: schedule.steps.len() };
        if let Some(first) = &first {
            latents = second.resume(&latents)?;
            before.steps = schedule.steps.len().saturating_sub(second.steps.len());
            before.calls = first.steps.iter().map(|step| first.evaluations(step)).sum();
        }
        let batch = conditioned(&pass.batch, |prompt| prompt.refiner.as_deref())?;
        let share = || Share { pipeline: &refiner, adapters: Arc::default(), batch: &batch, schedule: second, whole: second, before };
        let again = noise.clone();
        match self.take_steps(pass, &share(), &latents, noise, observer) {
            Err(error) if error.is_out_of_memory() && !self.components.are_in_turn() => {
                observer.warn("the memory is too small for the refiner beside the model: the networks take turns");
                self.components.take_turns_with(&refiner.components);
                release(&self.device);
                *noise = again;
                self.take_steps(pass, &share(), &latents, noise, observer)
            }
            latents => latents,
        }
    }

    /// The loop.
    fn take_steps(
        &self,
        pass: &Pass<'_>,
        share: &Share<'_>,
        latents: &Tensor,
        noise: &mut SeededNoise,
        observer: &mut dyn Observer,
    ) -> Result<Tensor> {
        let Some(BatchItem { request, .. }) = share.batch.first() else { return Ok(latents.clone()) };
        let seeds: Vec<u64> = share.batch.iter().map(|item| item.seed).collect();
        let (shown_before, shown_all) = pass.shown;
        let steps_before = shown_before + share.before.steps;
        observer.stage(Stage::Denoise { step: steps_before, steps: shown_all, images: &seeds })?;
        let factor = self.spec.vae.factor().max(1);
        let window = request.passes.hires_window.filter(|_| pass.number == PassNumber::Second).map(|pixels| pixels / factor);
        let size = if pass.number == PassNumber::First { (request.canvas.width, request.canvas.height) } else { request.last_size() };
        // What steers the model is not made for a refiner.
        let steering = match std::ptr::eq(self, share.pipeline) {
            true => self.steering(request, pass.image, size, observer)?,
            false => Steering::default(),
        };
        share.pipeline.components.with_unet(&share.adapters, observer, |unet, observer| {
            let (checks, mut pace) = (Checks::on(&self.device), Pace::on(&self.device));
            let run = RunContext { schedule: share.whole, latents, dtype: self.dtype };
            let mut beside = extensions(request);
            beside.extend(pass.start.beside.extensions());
            beside.extend(self.steered(&steering, observer)?);
            let windows = window.map(|side| LatentWindows::new(unet, side));
            let backbone = windows.as_ref().map_or(unet as &dyn Backbone, |windows| windows);
            let calls = counted_calls(request, pass.number, &pass.start.schedule)?;
            let share_calls = share.schedule.steps.iter().map(|step| share.schedule.evaluations(step)).sum();
            let cached = cached(backbone, request, share_calls);
            let backbone = cached.as_deref().unwrap_or(backbone);
            let mut denoiser = GuidedDenoiser::new(backbone, &run, share.batch, calls, beside, &checks)?.after(share.before);
            let mut forecast;
            let asked: &mut dyn Denoiser = match request.sampling.cache {
                Some(StepCache::Spectrum { window }) => {
                    forecast = Forecast::new(&mut denoiser, share_calls, window);
                    &mut forecast
                }
                _ => &mut denoiser,
            };
            let denoised = RefCell::new(None);
            let mut watched = WithEstimate::new(asked, &denoised);
            let latents = sample(share.schedule, latents, &mut watched, noise, &mut |step, latents| {
                let number = steps_before + step.index + 1;
                checks.check(latents, || format!("the sampler's step {number} of {shown_all}; try another `sampler` or more `steps`"))?;
                pace.step()?;
                trace!(step = number, steps = shown_all, sigma = step.to.sigma, "a step is done");
                observer.stage(Stage::Denoise { step: number, steps: shown_all, images: &seeds })?;
                if let Some(denoised) = denoised.take() {
                    observer.forming(&|| self.estimate(&denoised));
                }
                Ok(())
            })?;
            checks.finish()?;
            Ok(latents)
        })
    }
}

/// The images, with what another network or another pass is told.
///
/// # Errors
/// The prompt was encoded for another request.
pub(super) fn conditioned<'a>(
    batch: &[BatchItem<'a>],
    of: impl Fn(&'a Conditioning) -> Option<&'a Conditioning>,
) -> Result<Vec<BatchItem<'a>>> {
    let missing = || Error::Image("the prompt was not encoded for all passes of this request".into());
    batch.iter().map(|item| Ok(BatchItem { prompt: of(item.prompt).ok_or_else(missing)?, ..*item })).collect()
}
