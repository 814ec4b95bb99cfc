//! DPM-Solver++(2S): an exponential step to the middle in log sigma, and the estimate found there for the whole step.

use super::{Denoiser, NoiseSource, Solver, Step, ancestral, exponential, sum};
use crate::Result;
use crate::sampling::plan::{Planner, Schedule};
use crate::sampling::{NoiseProcess, blend};
use candle_core::Tensor;
use std::sync::Arc;

/// Second order, two network calls a step; one where the step ends at sigma 0.
///
/// # Source
/// Lu et al. 2022, arXiv:2211.01095, algorithm 1, with noise as Euler ancestral adds it (k-diffusion `sampling.py`,
/// `sample_dpmpp_2s_ancestral`); CFG++ of Chung et al. 2024, arXiv:2406.08070, as ComfyUI applies it.
#[derive(Debug, Clone)]
struct DpmPlusPlus2S {
    process: Arc<dyn NoiseProcess>,
    eta: f64,
    s_noise: f64,
    /// Steps from latents that the guidance has moved.
    cfg_pp: bool,
}

/// Plans a run.
pub(in crate::sampling) fn plan(planner: &Planner<'_>) -> Result<Schedule> {
    let (eta, s_noise, cfg_pp) = (planner.eta(), planner.option("s_noise"), planner.sampler.row().unguided);
    planner.sigma_space(Box::new(DpmPlusPlus2S { process: Arc::clone(&planner.process), eta, s_noise, cfg_pp }))
}

impl Solver for DpmPlusPlus2S {
    fn step(&mut self, step: &Step, latents: &Tensor, denoiser: &mut dyn Denoiser, noise: &mut dyn NoiseSource) -> Result<Tensor> {
        let from = step.from.sigma;
        let (down, up) = ancestral(from, step.to.sigma, self.eta);
        let estimate = denoiser.denoise(latents, step.from)?;
        let mut next = if down == 0.0 {
            estimate.guided
        } else {
            // CFG++ moves the latents by the guidance that was found last.
            let moved = |unguided: &Tensor| match self.cfg_pp {
                true => sum(1.0, latents, &[(1.0, &estimate.guided), (-1.0, unguided)]),
                false => Ok(latents.clone()),
            };
            let middle = self.process.level((from * down).sqrt());
            let x = exponential(&moved(estimate.unguided())?, &estimate.guided, from, middle.sigma)?;
            let second = denoiser.denoise(&x, middle)?;
            exponential(&moved(second.unguided())?, &second.guided, from, down)?
        };
        if step.to.sigma > 0.0 && self.eta > 0.0 {
            next = blend(1.0, &next, self.s_noise * up, &noise.fresh(latents)?)?;
        }
        Ok(next)
    }

    fn evaluations(&self, step: &Step) -> usize {
        if step.to.sigma > 0.0 { 2 } else { 1 }
    }
}
