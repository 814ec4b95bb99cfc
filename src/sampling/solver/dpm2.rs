//! DPM-Solver-2: Euler to the middle of the step in log sigma, and the slope found there for the whole step.

use super::churn::Churn;
use super::{Denoiser, NoiseSource, Solver, Step, ancestral, slope};
use crate::Result;
use crate::sampling::plan::{Planner, Schedule};
use crate::sampling::{NoiseLevel, NoiseProcess, blend};
use candle_core::Tensor;
use std::sync::Arc;

/// Second order, two network calls a step; one where the step ends at sigma 0.
///
/// # Source
/// Lu et al. 2022, arXiv:2206.00927, algorithm 1, in the sigma space of Karras et al. 2022; with noise as Euler ancestral adds it.
#[derive(Debug, Clone)]
struct Dpm2 {
    process: Arc<dyn NoiseProcess>,
    churn: Churn,
    eta: f64,
    s_noise: f64,
}

/// Plans a run without noise.
pub(in crate::sampling) fn plan(planner: &Planner<'_>) -> Result<Schedule> {
    let process = Arc::clone(&planner.process);
    planner.sigma_space(Box::new(Dpm2 { process, churn: Churn::of(planner), eta: 0.0, s_noise: 1.0 }))
}

/// Plans a run with ancestral noise.
pub(in crate::sampling) fn plan_ancestral(planner: &Planner<'_>) -> Result<Schedule> {
    let process = Arc::clone(&planner.process);
    planner.sigma_space(Box::new(Dpm2 { process, churn: Churn::default(), eta: planner.eta(), s_noise: planner.option("s_noise") }))
}

impl Dpm2 {
    fn middle(&self, from: f64, to: f64) -> NoiseLevel {
        self.process.level((0.5 * (from.ln() + to.ln())).exp())
    }
}

impl Solver for Dpm2 {
    fn prepare(&mut self, steps: &[Step]) {
        self.churn.steps = steps.len();
    }

    fn step(&mut self, step: &Step, latents: &Tensor, denoiser: &mut dyn Denoiser, noise: &mut dyn NoiseSource) -> Result<Tensor> {
        let (from, latents) = self.churn.apply(&*self.process, step.from, latents, noise)?;
        let (down, up) = ancestral(from.sigma, step.to.sigma, self.eta);
        let first = slope(&latents, &denoiser.denoise(&latents, from)?.guided, from.sigma)?;
        if down == 0.0 {
            return blend(1.0, &latents, -from.sigma, &first);
        }
        let middle = self.middle(from.sigma, down);
        let x = blend(1.0, &latents, middle.sigma - from.sigma, &first)?;
        let second = slope(&x, &denoiser.denoise(&x, middle)?.guided, middle.sigma)?;
        let next = blend(1.0, &latents, down - from.sigma, &second)?;
        if self.eta <= 0.0 {
            return Ok(next);
        }
        blend(1.0, &next, self.s_noise * up, &noise.fresh(&latents)?)
    }

    fn evaluations(&self, step: &Step) -> usize {
        if step.to.sigma > 0.0 { 2 } else { 1 }
    }
}
