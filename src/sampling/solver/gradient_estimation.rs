//! Gradient estimation: Euler's method along a slope that is corrected by how it changed.

use super::{Denoiser, NoiseSource, Solver, Step, ancestral, slope, sum};
use crate::Result;
use crate::sampling::plan::{Planner, Schedule};
use candle_core::Tensor;

/// One network call a step.
///
/// # Source
/// Permenter & Yuan 2023, arXiv:2306.04848, algorithm 2 (`gamma` 2); CFG++ of Chung et al. 2024, arXiv:2406.08070, as ComfyUI applies it.
#[derive(Debug, Clone)]
struct GradientEstimation {
    gamma: f64,
    /// Goes along the unguided slope from the guided estimate.
    cfg_pp: bool,
    /// Ancestral noise (stable-diffusion.cpp's form of it).
    eta: f64,
    last: Option<Tensor>,
}

/// Plans a run.
pub(in crate::sampling) fn plan(planner: &Planner<'_>) -> Result<Schedule> {
    let (gamma, cfg_pp) = (planner.option("gamma"), planner.sampler.row().unguided);
    planner.sigma_space(Box::new(GradientEstimation { gamma, cfg_pp, eta: planner.eta(), last: None }))
}

impl Solver for GradientEstimation {
    fn step(&mut self, step: &Step, latents: &Tensor, denoiser: &mut dyn Denoiser, noise: &mut dyn NoiseSource) -> Result<Tensor> {
        let (from, to) = (step.from.sigma, step.to.sigma);
        let estimate = denoiser.denoise(latents, step.from)?;
        if to == 0.0 {
            return Ok(estimate.guided);
        }
        let (to, up) = ancestral(from, to, self.eta);
        let along = slope(latents, if self.cfg_pp { estimate.unguided() } else { &estimate.guided }, from)?;
        let mut next = match self.cfg_pp {
            true => sum(1.0, &estimate.guided, &[(to, &along)])?,
            false => sum(1.0, latents, &[(to - from, &along)])?,
        };
        if let Some(last) = &self.last {
            let change = (self.gamma - 1.0) * (to - from);
            next = sum(1.0, &next, &[(change, &along), (-change, last)])?;
        }
        self.last = Some(along);
        if up > 0.0 {
            next = sum(1.0, &next, &[(up, &noise.fresh(latents)?)])?;
        }
        Ok(next)
    }
}
