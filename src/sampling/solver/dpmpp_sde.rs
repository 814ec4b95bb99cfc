//! DPM-Solver++ of the stochastic equation, single step.

use super::{Denoiser, NoiseSource, Solver, Step, ancestral, exponential};
use crate::Result;
use crate::sampling::plan::{Planner, Schedule};
use crate::sampling::{NoiseProcess, blend};
use candle_core::Tensor;
use std::sync::Arc;

/// Two network calls a step, each after its own noise; one where the step ends at sigma 0.
///
/// # Source
/// Lu et al. 2022, arXiv:2211.01095, section 5; k-diffusion `sampling.py`, `sample_dpmpp_sde`.
#[derive(Debug, Clone)]
struct DpmPlusPlusSde {
    process: Arc<dyn NoiseProcess>,
    eta: f64,
    s_noise: f64,
    /// Where in the step, in log sigma, the second call is.
    r: f64,
}

/// Plans a run.
pub(in crate::sampling) fn plan(planner: &Planner<'_>) -> Result<Schedule> {
    let (eta, s_noise, r) = (planner.eta(), planner.option("s_noise"), planner.option("r"));
    planner.sigma_space(Box::new(DpmPlusPlusSde { process: Arc::clone(&planner.process), eta, s_noise, r }))
}

impl Solver for DpmPlusPlusSde {
    fn step(&mut self, step: &Step, latents: &Tensor, denoiser: &mut dyn Denoiser, noise: &mut dyn NoiseSource) -> Result<Tensor> {
        let (from, to) = (step.from.sigma, step.to.sigma);
        let first = denoiser.denoise(latents, step.from)?.guided;
        if to == 0.0 {
            return Ok(first);
        }
        let middle = self.process.level((from.ln() + self.r * (to / from).ln()).exp());
        let mut noisy = |estimate: &Tensor, end: f64| -> Result<Tensor> {
            let (down, up) = ancestral(from, end, self.eta);
            let x = exponential(latents, estimate, from, down)?;
            if self.eta <= 0.0 {
                return Ok(x);
            }
            blend(1.0, &x, self.s_noise * up, &noise.between(latents, from, end)?)
        };
        let x = noisy(&first, middle.sigma)?;
        let second = denoiser.denoise(&x, middle)?.guided;
        let share = 1.0 / (2.0 * self.r);
        noisy(&blend(1.0 - share, &first, share, &second)?, to)
    }

    fn evaluations(&self, step: &Step) -> usize {
        if step.to.sigma > 0.0 { 2 } else { 1 }
    }
}
