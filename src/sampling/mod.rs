//! The denoising loop's mathematics: which noise levels, and how to step from one to the next.
//!
//! One coordinate (sigma: latents are `alpha · x0 + sigma · noise`, where alpha is 1 or, for flows, 1 − sigma), one contract ([`Denoiser`]), and three independent axes:
//! which levels ([`plan()`]), how to step ([`Solver`]), and how latents are noised and what the network predicts ([`NoiseProcess`]).
//! Solvers never see a model, a device or a seed.
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
mod denoised;
mod few_steps;
mod flow;
mod forecast;
mod like;
#[cfg(test)]
mod oracle_tests;
mod plan;
mod prediction;
mod process;
mod python_json;
mod run;
mod sigmas;
mod solver;
mod table;
#[cfg(test)]
mod tests;

pub use config::{Levels, SchedulerConfig, SchedulerFile};
pub use denoised::{Branch, Branches, Denoised};
pub use few_steps::FewSteps;
pub use forecast::Forecast;
pub use like::{FirstNoise, Like};
pub use plan::{Schedule, plan};
pub use prediction::PredictionType;
pub use process::{Flow, NoiseProcess, VariancePreserving};
pub(crate) use python_json::without_infinities;
pub use run::sample;
pub use sigmas::{SigmaSchedule, TimestepSpacing};
pub use solver::{CloneSolver, Solver};
pub use table::Sampler;

use crate::Result;
use candle_core::Tensor;

/// A point of the noise schedule.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct NoiseLevel {
    /// Standard deviation of the noise in `alpha · x0 + sigma · noise`.
    pub sigma: f64,
    /// What of the clean latents is there.
    pub alpha: f64,
    /// What the network is told: 0 to 999, with fractions where a schedule lies between the trained points.
    pub timestep: f64,
}

impl NoiseLevel {
    /// A level of latents `x0 + sigma · noise`.
    pub fn new(sigma: f64, timestep: f64) -> Self {
        Self { sigma, alpha: 1.0, timestep }
    }

    /// The noise in latents of which the clean ones have their full strength, `sigma / alpha`.
    pub(crate) fn ratio(&self) -> f64 {
        self.sigma / self.alpha
    }

    /// Half the logarithm of the signal-to-noise ratio, `ln(alpha / sigma)`.
    pub fn lambda(&self) -> f64 {
        self.alpha.ln() - self.sigma.ln()
    }
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

/// Where in a run the network is called.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CallPoint {
    /// The step that asks for it.
    pub step: Step,
    /// Steps of the whole run.
    pub steps: usize,
    /// Network calls made before this one.
    pub call: usize,
    /// The level at which the network is called, which solvers of higher order put inside the step or at its end.
    pub level: NoiseLevel,
}

/// D(x; sigma): estimates the clean latents inside noisy ones.
pub trait Denoiser {
    /// The loop is about to take a step.
    ///
    /// # Errors
    /// Something that works beside the loop failed.
    fn begin_step(&mut self, _step: &Step) -> Result<()> {
        Ok(())
    }

    /// # Shapes
    /// `(batch, channels, height, width)`, kept.
    ///
    /// # Errors
    /// The network failed, or gave values that are not finite.
    fn denoise(&mut self, latents: &Tensor, level: NoiseLevel) -> Result<Denoised>;

    /// The solver's question was answered by somebody else: it counts as a call.
    fn pass_over(&mut self) {}

    /// The loop took a step to these latents, and goes on from what is given back.
    ///
    /// # Errors
    /// Something that works beside the loop failed.
    fn end_step(&mut self, _step: &Step, latents: Tensor) -> Result<Tensor> {
        Ok(latents)
    }
}

/// Standard normal noise for ancestral and stochastic steps.
pub trait NoiseSource {
    /// Fresh noise of the shape of `latents`; every image of the batch draws from its own generator.
    ///
    /// # Errors
    /// There are not as many generators as images.
    fn fresh(&mut self, latents: &Tensor) -> Result<Tensor>;

    /// The noise of a step between two sigmas.
    ///
    /// A Brownian path gives noise that belongs to that interval and to its parts alike; other sources draw afresh.
    ///
    /// # Errors
    /// As [`NoiseSource::fresh`].
    fn between(&mut self, latents: &Tensor, _from: f64, _to: f64) -> Result<Tensor> {
        self.fresh(latents)
    }
}

/// `a · x + b · y`.
fn blend(a: f64, x: &Tensor, b: f64, y: &Tensor) -> Result<Tensor> {
    Ok((x.affine(a, 0.0)? + y.affine(b, 0.0)?)?)
}
