//! The denoising loop's mathematics: which noise levels, and how to step from one to the next.
//!
//! One coordinate (sigma: latents are `x0 + sigma · noise`), one contract ([`Denoiser`]), and three independent axes:
//! which levels ([`plan()`]), how to step ([`Scheduler`]), and what the network predicts ([`PredictionType`]).
//! Schedulers never see a model, a device or a seed.
//!
//! ```text
//! SchedulerConfig ──plan(steps)──▶ Schedule ──sample(latents, denoiser, noise)──▶ clean latents
//! ```
//!
//! Half of the field's samplers (DDIM, DDPM, PNDM, DPM-Solver) are written for variance-preserving latents,
//! `x / sqrt(1 + sigma²)`. Here they run in sigma space too, where most of them become shorter; the two ends convert
//! ([`Schedule::initial_scale`], [`Schedule::final_scale`]). Timesteps, sigmas and the order in which noise is drawn are those
//! of diffusers 0.36, so a trajectory can be laid beside its.
//!
//! **Zero terminal SNR.** A rescaled schedule ends in pure noise: ᾱ = 0, sigma infinite. Every sampler here floors that last ᾱ at
//! 2⁻²⁴ (sigma 4096), as diffusers does for Euler and DPM-Solver. Its DDIM and DDPM keep the 0, so their first step differs from
//! ours by about 2⁻¹² of the noise. Its PNDM and Heun do not know `rescale_betas_zero_snr`; ours obey it.
//!
//! # Source
//! The formulation is that of Karras et al. 2022 (arXiv:2206.00364); each solver's file names its own paper.

mod config;
mod dpm_solver;
mod euler;
mod heun;
mod levels;
mod plan;
mod pndm;
mod prediction;
mod python_json;
mod sampler;
#[cfg(test)]
mod tests;

pub use config::{SchedulerConfig, SchedulerFile};
pub use levels::{SigmaSchedule, TimestepSpacing};
pub use plan::{Schedule, plan, sample};
pub use prediction::PredictionType;
pub(crate) use python_json::without_infinities;
pub use sampler::Sampler;

use crate::Result;
use candle_core::Tensor;

/// A point of the noise schedule.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct NoiseLevel {
    /// Standard deviation of the noise in `x0 + sigma · noise`.
    pub sigma: f64,
    /// What the network is told: 0 to 999, with fractions where a schedule lies between the trained points.
    pub timestep: f64,
}

/// One step of the loop.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Step {
    /// Counts from 0.
    pub index: usize,
    /// Where the latents are.
    pub from: NoiseLevel,
    /// Where they go.
    pub to: NoiseLevel,
}

/// D(x; sigma): estimates the clean latents inside noisy ones.
pub trait Denoiser {
    /// # Shapes
    /// `(batch, channels, height, width)`, kept.
    fn denoise(&mut self, latents: &Tensor, level: NoiseLevel) -> Result<Tensor>;
}

/// Fresh standard normal noise for ancestral and stochastic steps.
pub trait NoiseSource {
    /// Noise of the shape of `latents`; every image of the batch draws from its own generator.
    fn noise_like(&mut self, latents: &Tensor) -> Result<Tensor>;
}

/// Solves one step. Owns its history; not the loop, the model or the randomness.
pub trait Scheduler: Send {
    /// The latents at `step.to`, in f32.
    fn step(&mut self, step: Step, latents: &Tensor, denoiser: &mut dyn Denoiser, noise: &mut dyn NoiseSource) -> Result<Tensor>;
}

/// `a · x + b · y`.
fn blend(a: f64, x: &Tensor, b: f64, y: &Tensor) -> Result<Tensor> {
    Ok((x.affine(a, 0.0)? + y.affine(b, 0.0)?)?)
}

/// Clamps to `[-range, range]` where a configuration asks for it.
fn clip(x: &Tensor, range: Option<f64>) -> Result<Tensor> {
    Ok(match range {
        Some(range) => x.clamp(-range, range)?,
        None => x.clone(),
    })
}
