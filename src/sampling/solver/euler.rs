//! Euler's method, and the three samplers that are Euler's method with noise added back.

use super::churn::Churn;
use super::{Denoiser, NoiseSource, Solver, Step, ancestral, clip};
use crate::Result;
use crate::sampling::plan::{Planner, Schedule, level};
use crate::sampling::{NoiseProcess, PredictionType, SchedulerConfig, TimestepSpacing, blend};
use candle_core::Tensor;
use std::sync::Arc;

/// One first-order step down to `sigma_down`, then fresh noise up to `step.to`.
///
/// With `sigma_up² = eta² · to² · (from² − to²) / from²` and `sigma_down² = to² − sigma_up²`,
/// `x' = denoised + sigma_down · direction + sigma_up · noise`, this one line is
/// - Euler (Karras et al. 2022, arXiv:2206.00364, algorithm 1 without churn) at `eta` 0,
/// - Euler ancestral (k-diffusion `sampling.py`, `sample_euler_ancestral`) at `eta` 1,
/// - DDIM (Song et al. 2020, arXiv:2010.02502, eq. 12 and 16) for any `eta`: dividing its equation by `sqrt(ᾱ)` leaves exactly this,
/// - DDPM (Ho et al. 2020, arXiv:2006.11239, eq. 7) at `eta` 1, where `sigma_down = to² / from`.
#[derive(Debug, Clone)]
pub(in crate::sampling) struct Euler {
    process: Arc<dyn NoiseProcess>,
    churn: Churn,
    /// How much of the ancestral noise is added.
    eta: f64,
    s_noise: f64,
    /// Bounds the denoised latents.
    clip: Option<f64>,
    /// The direction is taken from the clipped estimate (DDPM) and not from the network's own (DDIM).
    clip_direction: bool,
    /// DDPM's `fixed_large`: the noise has the variance of the forward step.
    large_variance: bool,
}

/// Judges the keys of `EulerDiscreteScheduler`.
pub(in crate::sampling) fn check(config: &SchedulerConfig) -> Result<()> {
    config.ends_at_zero()?;
    config.choice("interpolation_type", &config.file.interpolation_type, (), &[("linear", ())])?;
    // diffusers reads `timestep_type` for v-prediction only.
    let is_v = config.prediction()? == PredictionType::VPrediction;
    let timestep_type = config.file.timestep_type.clone().filter(|_| is_v);
    config.choice("timestep_type", &timestep_type, (), &[("discrete", ())])
}

/// Judges the keys of `DDPMScheduler`.
pub(in crate::sampling) fn check_ddpm(config: &SchedulerConfig) -> Result<()> {
    large_variance(config)?;
    config.refuse_true("thresholding", config.file.thresholding)
}

/// DDPM's variance: true is `fixed_large`.
fn large_variance(config: &SchedulerConfig) -> Result<bool> {
    // The logarithm is undone where it is used, so `fixed_small_log` is `fixed_small`.
    let types = [("fixed_small", false), ("fixed_small_log", false), ("fixed_large", true)];
    config.choice("variance_type", &config.file.variance_type, false, &types)
}

/// Plans a run of Euler's method.
pub(in crate::sampling) fn plan(planner: &Planner<'_>) -> Result<Schedule> {
    planner.sigma_space(Box::new(Euler { churn: Churn::of(planner), ..Euler::new(planner, 0.0) }))
}

/// Plans a run of Euler ancestral.
pub(in crate::sampling) fn plan_ancestral(planner: &Planner<'_>) -> Result<Schedule> {
    planner.sigma_space(Box::new(Euler { s_noise: planner.option("s_noise"), ..Euler::new(planner, planner.eta()) }))
}

/// Plans a run of DDIM: from each timestep to the one a whole ratio before it.
pub(in crate::sampling) fn plan_ddim(planner: &Planner<'_>) -> Result<Schedule> {
    let euler = Euler { clip: planner.config.clip_range()?, ..Euler::new(planner, planner.eta()) };
    if planner.has_levels() {
        return planner.sigma_space(Box::new(euler));
    }
    let (ratio, end) = (planner.ratio(), planner.final_sigma(true));
    let at = |timestep: i64| level(&planner.table, timestep, end);
    let steps = planner.whole_timesteps().into_iter().map(|t| (at(t), at(t - ratio))).collect();
    Ok(planner.assemble(steps, Box::new(euler)))
}

/// Plans a run of DDIM with trailing timesteps, down to sigma 0 (stable-diffusion.cpp's `ddim_trailing`).
pub(in crate::sampling) fn plan_ddim_trailing(planner: &Planner<'_>) -> Result<Schedule> {
    let mut planner = planner.clone();
    planner.spacing = TimestepSpacing::Trailing;
    plan_ddim(&planner)
}

/// Plans a run of DDPM: from each timestep to the next.
pub(in crate::sampling) fn plan_ddpm(planner: &Planner<'_>) -> Result<Schedule> {
    let large_variance = large_variance(planner.config)?;
    let euler = Euler { clip: planner.config.clip_range()?, clip_direction: true, large_variance, ..Euler::new(planner, 1.0) };
    let timesteps = planner.whole_timesteps();
    let next = timesteps.iter().copied().skip(1).chain([-1]);
    let at = |timestep: i64| level(&planner.table, timestep, 0.0);
    let steps = timesteps.iter().zip(next).map(|(t, next)| (at(*t), at(next))).collect();
    Ok(planner.assemble(steps, Box::new(euler)))
}

impl Euler {
    /// Without churn, bounds or anything else of a sampler's own.
    pub(super) fn new(planner: &Planner<'_>, eta: f64) -> Self {
        let (process, churn) = (Arc::clone(&planner.process), Churn::default());
        Self { process, churn, eta, s_noise: 1.0, clip: None, clip_direction: false, large_variance: false }
    }
}

impl Solver for Euler {
    fn prepare(&mut self, steps: &[Step]) {
        self.churn.steps = steps.len();
    }

    fn skips_empty_steps(&self) -> bool {
        false
    }

    fn step(&mut self, step: &Step, latents: &Tensor, denoiser: &mut dyn Denoiser, noise: &mut dyn NoiseSource) -> Result<Tensor> {
        let (level, latents) = self.churn.apply(&*self.process, step.from, latents, noise)?;
        let latents = &latents;
        let (from, to) = (level.sigma, step.to.sigma);
        let denoised = denoiser.denoise(latents, level)?.guided;
        let clipped = clip(&denoised, self.clip)?;
        let origin = if self.clip_direction { &clipped } else { &denoised };
        let (down, up) = ancestral(from, to, self.eta);
        let direction = ((latents - origin)? / from)?;
        let next = blend(1.0, &clipped, down, &direction)?;
        // No trained chain adds noise at timestep 0, and `fixed_large` alone would add some there.
        if self.eta <= 0.0 || (self.large_variance && step.from.timestep == 0.0) {
            return Ok(next);
        }
        // Drawn even where it is multiplied by 0: the next draw must be the one that diffusers makes there.
        let noise = noise.fresh(latents)?;
        let up = if self.large_variance { forward_deviation(from, to) } else { up };
        blend(1.0, &next, self.s_noise * up, &noise)
    }
}

/// Standard deviation, at `to` and in sigma space, of the forward step from `to` to `from` (the square root of DDPM's beta).
fn forward_deviation(from: f64, to: f64) -> f64 {
    ((from * from - to * to).max(0.0) / (1.0 + from * from) * (1.0 + to * to)).sqrt()
}
