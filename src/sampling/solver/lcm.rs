//! Samplers of consistency-distilled models: to the clean latents at once, and back up with fresh noise.

use super::{Denoiser, NoiseSource, Solver, Step, slope, sum};
use crate::sampling::plan::{Planner, Schedule, level};
use crate::sampling::{Like, NoiseLevel, NoiseProcess, SchedulerConfig};
use crate::{Error, Result};
use candle_core::Tensor;
use std::sync::Arc;

/// Latent consistency.
///
/// # Source
/// Luo et al. 2023, arXiv:2310.04378, algorithm 3; the boundary scalings are equation 10's, with diffusers' timestep scaling.
#[derive(Debug, Clone, Copy)]
struct LatentConsistency {
    /// A timestep times this is the time of the boundary scalings, which ComfyUI leaves out.
    boundary: Option<f64>,
    /// The boundary's latents keep their variance, as in diffusers; A1111's do not.
    keeps_variance: bool,
    s_noise: f64,
}

/// Judges the keys of `LCMScheduler` and `TCDScheduler`.
pub(in crate::sampling) fn check(config: &SchedulerConfig) -> Result<()> {
    config.refuse_true("thresholding", config.file.thresholding)?;
    config.refuse_true("clip_sample", config.file.clip_sample)
}

/// The timesteps of a run among those that the model was distilled at, from the last one down.
fn timesteps(planner: &Planner<'_>) -> Result<Vec<i64>> {
    let file = &planner.config.file;
    let (trained, distilled) = (planner.table.len(), file.original_inference_steps.unwrap_or(50));
    if !(1..=trained).contains(&distilled) {
        let choices = format!("1 to {trained}");
        return Err(planner.config.refuse("original_inference_steps", &distilled.to_string(), &choices));
    }
    let every = trained / distilled;
    let distilled = (distilled as f64 * planner.config.distilled_share) as usize;
    if planner.steps > distilled {
        return Err(Error::Input(format!("`steps` {} is too many: this sampler takes 1 to {distilled} here", planner.steps)));
    }
    let index = |i: usize| (i as f64 * distilled as f64 / planner.steps as f64).floor() as usize;
    Ok((0..planner.steps).map(|i| ((distilled - index(i)) * every) as i64 - 1).collect())
}

/// The nearest timestep of a sigma, in log sigma, among those that the model was distilled at.
///
/// # Source
/// lllyasviel/stable-diffusion-webui-forge@dfdcbab6:modules/sd_samplers_lcm.py, `LCMCompVisDenoiser.sigma_to_t`.
fn nearest_distilled(planner: &Planner<'_>, sigma: f64) -> f64 {
    const DISTILLED: usize = 50;
    let every = planner.table.len() / DISTILLED;
    let timesteps = (1..=DISTILLED).map(|i| (i * every) as f64 - 1.0);
    let apart = |timestep: f64| (planner.table.sigma(timestep).ln() - sigma.ln()).abs();
    timesteps.min_by(|a, b| apart(*a).total_cmp(&apart(*b))).unwrap_or(0.0)
}

/// Plans a run.
pub(in crate::sampling) fn plan(planner: &Planner<'_>) -> Result<Schedule> {
    let scaling = planner.config.file.timestep_scaling.unwrap_or(10.0);
    let boundary = (planner.option("boundary") != 0.0).then_some(scaling);
    let like_a1111 = planner.config.like == Some(Like::A1111);
    let solver = Box::new(LatentConsistency { boundary, keeps_variance: !like_a1111, s_noise: planner.option("s_noise") });
    if planner.has_levels() {
        let mut schedule = planner.sigma_space(solver)?;
        if like_a1111 {
            schedule.steps.iter_mut().for_each(|step| step.from.timestep = nearest_distilled(planner, step.from.sigma));
        }
        return Ok(schedule);
    }
    let timesteps = timesteps(planner)?;
    let at = |timestep: i64| level(&planner.table, timestep, 0.0);
    let next = timesteps.iter().copied().skip(1).map(at).chain([NoiseLevel::new(0.0, 0.0)]);
    Ok(planner.assemble(timesteps.iter().copied().map(at).zip(next).collect(), solver))
}

impl Solver for LatentConsistency {
    fn step(&mut self, step: &Step, latents: &Tensor, denoiser: &mut dyn Denoiser, noise: &mut dyn NoiseSource) -> Result<Tensor> {
        let mut clean = denoiser.denoise(latents, step.from)?.guided;
        if let Some(scaling) = self.boundary {
            const SIGMA_DATA: f64 = 0.5;
            let time = step.from.timestep * scaling;
            let norm = time * time + SIGMA_DATA * SIGMA_DATA;
            let scale = if self.keeps_variance { 1.0 / (1.0 + step.from.sigma * step.from.sigma).sqrt() } else { 1.0 };
            clean = sum(time / norm.sqrt(), &clean, &[(SIGMA_DATA * SIGMA_DATA / norm * scale, latents)])?;
        }
        if step.to.sigma == 0.0 {
            return Ok(clean);
        }
        sum(1.0, &clean, &[(self.s_noise * step.to.sigma, &noise.fresh(latents)?)])
    }
}

/// Trajectory consistency: goes below the next level along the trajectory, and comes back up with noise.
///
/// # Source
/// Zheng et al. 2024, arXiv:2402.19159, algorithm 4 ("strategic stochastic sampling"); `eta` is its gamma.
#[derive(Debug, Clone)]
struct TrajectoryConsistency {
    process: Arc<dyn NoiseProcess>,
    eta: f64,
    /// As stable-diffusion.cpp: by the nearest trained timestep of a sigma, down to the first one, and scaled to the variance of the next
    /// level where no noise is added.
    to_the_first: bool,
}

/// Plans a run of trajectory consistency.
pub(in crate::sampling) fn plan_trajectory(planner: &Planner<'_>) -> Result<Schedule> {
    let solver = Box::new(TrajectoryConsistency {
        process: Arc::clone(&planner.process),
        // diffusers' pipelines call their class without noise, whatever its own default.
        eta: if planner.is_named() { planner.eta() } else { planner.config.eta.unwrap_or(0.0) },
        to_the_first: planner.config.like == Some(Like::SdCpp),
    });
    if planner.has_levels() {
        return planner.sigma_space(solver);
    }
    let timesteps = timesteps(planner)?;
    let at = |timestep: i64| level(&planner.table, timestep, 0.0);
    // The last step ends at the first timestep, not at sigma 0.
    let next = timesteps.iter().copied().skip(1).chain([0]).map(at);
    Ok(planner.assemble(timesteps.iter().copied().map(at).zip(next).collect(), solver))
}

impl Solver for TrajectoryConsistency {
    fn step(&mut self, step: &Step, latents: &Tensor, denoiser: &mut dyn Denoiser, noise: &mut dyn NoiseSource) -> Result<Tensor> {
        let clean = denoiser.denoise(latents, step.from)?.guided;
        let to = step.to.sigma;
        if self.to_the_first {
            let timestep = self.process.timestep(to.max(self.process.range().1));
            let nearest = [timestep.floor(), timestep.ceil()]
                .into_iter()
                .min_by(|a, b| (self.process.sigma(*a) - to).abs().total_cmp(&(self.process.sigma(*b) - to).abs()))
                .unwrap_or(timestep);
            let below = self.process.sigma(((1.0 - self.eta) * nearest).floor());
            let next = sum(1.0, &clean, &[(below, &slope(latents, &clean, step.from.sigma)?)])?;
            if self.eta > 0.0 && to > 0.0 {
                return sum(1.0, &next, &[((to * to - below * below).max(0.0).sqrt(), &noise.fresh(latents)?)]);
            }
            return Ok(next.affine(((1.0 + to * to) / (1.0 + below * below)).sqrt(), 0.0)?);
        }
        let below = match self.eta > 0.0 && to > 0.0 {
            true => self.process.sigma(((1.0 - self.eta) * step.to.timestep).floor()),
            false => to,
        };
        let next = sum(1.0, &clean, &[(below, &slope(latents, &clean, step.from.sigma)?)])?;
        if below >= to {
            return Ok(next);
        }
        sum(1.0, &next, &[((to * to - below * below).sqrt(), &noise.fresh(latents)?)])
    }
}
