//! CFG++ on Euler's method and on DPM++ 2M: from the guided estimate along the unguided noise.

use super::{Denoiser, NoiseSource, Solver, Step, ancestral, slope, sum};
use crate::Result;
use crate::sampling::plan::{Planner, Schedule};
use candle_core::Tensor;

/// Euler's method, with ancestral noise where `eta` is not 0.
///
/// # Source
/// Chung et al. 2024, arXiv:2406.08070, algorithm 1; ComfyUI `comfy/k_diffusion/sampling.py`, `sample_euler_ancestral_cfg_pp`.
#[derive(Debug, Clone, Copy)]
struct EulerCfgPlusPlus {
    eta: f64,
    s_noise: f64,
}

/// Plans a run of Euler's method.
pub(in crate::sampling) fn plan_euler(planner: &Planner<'_>) -> Result<Schedule> {
    planner.sigma_space(Box::new(EulerCfgPlusPlus { eta: planner.eta(), s_noise: planner.option("s_noise") }))
}

impl Solver for EulerCfgPlusPlus {
    fn step(&mut self, step: &Step, latents: &Tensor, denoiser: &mut dyn Denoiser, noise: &mut dyn NoiseSource) -> Result<Tensor> {
        let estimate = denoiser.denoise(latents, step.from)?;
        if step.to.sigma == 0.0 {
            return Ok(estimate.guided);
        }
        let (down, up) = ancestral(step.from.sigma, step.to.sigma, self.eta);
        let next = sum(1.0, &estimate.guided, &[(down, &slope(latents, estimate.unguided(), step.from.sigma)?)])?;
        if self.eta <= 0.0 {
            return Ok(next);
        }
        sum(1.0, &next, &[(self.s_noise * up, &noise.fresh(latents)?)])
    }
}

/// DPM++ 2M.
///
/// # Source
/// As above; ComfyUI `comfy/k_diffusion/sampling.py`, `sample_dpmpp_2m_cfg_pp`.
#[derive(Debug, Clone, Default)]
struct Dpmpp2mCfgPlusPlus {
    /// `(sigma, unguided estimate)` of the step before.
    last: Option<(f64, Tensor)>,
}

/// Plans a run of DPM++ 2M.
pub(in crate::sampling) fn plan_2m(planner: &Planner<'_>) -> Result<Schedule> {
    planner.sigma_space(Box::<Dpmpp2mCfgPlusPlus>::default())
}

impl Solver for Dpmpp2mCfgPlusPlus {
    fn step(&mut self, step: &Step, latents: &Tensor, denoiser: &mut dyn Denoiser, _: &mut dyn NoiseSource) -> Result<Tensor> {
        let (from, to) = (step.from.sigma, step.to.sigma);
        let estimate = denoiser.denoise(latents, step.from)?;
        let ratio = to / from;
        let mut next = sum(1.0, &estimate.guided, &[(-ratio, estimate.unguided()), (ratio, latents)])?;
        if let Some((earlier, unguided)) = self.last.as_ref().filter(|_| to > 0.0) {
            let weight = (1.0 - ratio) / 2.0 * (from / to).ln() / (earlier / from).ln();
            next = sum(1.0, &next, &[(weight, &estimate.guided), (-weight, unguided)])?;
        }
        self.last = Some((from, estimate.unguided().clone()));
        Ok(next)
    }
}
