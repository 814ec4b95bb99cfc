//! Heun's method: an Euler step, corrected by the slope at its end.

use super::churn::Churn;
use super::{Denoiser, NoiseLevel, NoiseSource, Solver, Step, clip};
use crate::Result;
use crate::sampling::plan::{Planner, Schedule};
use crate::sampling::{NoiseProcess, blend};
use candle_core::Tensor;
use std::sync::Arc;

/// Second order, two network calls a step; one where the step ends at sigma 0, where there is no slope.
///
/// # Source
/// Karras et al. 2022, arXiv:2206.00364, algorithm 1.
#[derive(Debug, Clone)]
pub(in crate::sampling) struct Heun {
    process: Arc<dyn NoiseProcess>,
    churn: Churn,
    /// Bounds the denoised latents.
    clip: Option<f64>,
    /// The step that is not corrected.
    uncorrected: Option<usize>,
}

/// Plans a run.
pub(in crate::sampling) fn plan(planner: &Planner<'_>) -> Result<Schedule> {
    planner.sigma_space(Box::new(Heun { churn: Churn::of(planner), clip: planner.config.clip_range()?, ..Heun::new(planner) }))
}

impl Heun {
    /// Without churn and bounds.
    pub(super) fn new(planner: &Planner<'_>) -> Self {
        Self { process: Arc::clone(&planner.process), churn: Churn::default(), clip: None, uncorrected: None }
    }
}

impl Solver for Heun {
    fn skips_empty_steps(&self) -> bool {
        false
    }

    fn step(&mut self, step: &Step, latents: &Tensor, denoiser: &mut dyn Denoiser, noise: &mut dyn NoiseSource) -> Result<Tensor> {
        let (start, latents) = self.churn.apply(&*self.process, step.from, latents, noise)?;
        let latents = &latents;
        let (from, to) = (start.sigma, step.to.sigma);
        let mut slope = |x: &Tensor, level: NoiseLevel| -> Result<Tensor> {
            let denoised = clip(&denoiser.denoise(x, level)?.guided, self.clip)?;
            Ok(((x - denoised)? / level.sigma)?)
        };
        let first = slope(latents, start)?;
        let predicted = blend(1.0, latents, to - from, &first)?;
        if to == 0.0 || self.uncorrected == Some(step.index) {
            return Ok(predicted);
        }
        let second = slope(&predicted, step.to)?;
        blend(1.0, latents, (to - from) / 2.0, &(first + second)?)
    }

    fn prepare(&mut self, steps: &[Step]) {
        self.churn.steps = steps.len();
    }

    fn evaluations(&self, step: &Step) -> usize {
        if step.to.sigma > 0.0 && self.uncorrected != Some(step.index) { 2 } else { 1 }
    }

    fn end_within(&mut self, index: usize) -> bool {
        self.uncorrected = Some(index);
        true
    }
}
