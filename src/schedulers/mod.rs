//! The denoising loop's mathematics: which noise levels, and how to step from one to the next.
//!
//! One coordinate (sigma: latents are `x0 + sigma · noise`), one contract ([`Denoiser`]), and three independent axes:
//! which levels, how to step, and what the network predicts. Schedulers never see a model, a device or a seed.

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
    /// Noise of the shape of `latents`; every picture of the batch draws from its own generator.
    fn noise_like(&mut self, latents: &Tensor) -> Result<Tensor>;
}

/// Solves one step. Owns its history; not the loop, the model or the randomness.
pub trait Scheduler: Send {
    /// The latents at `step.to`, in f32.
    fn step(&mut self, step: Step, latents: &Tensor, denoiser: &mut dyn Denoiser, noise: &mut dyn NoiseSource) -> Result<Tensor>;
}

/// What `scheduler_config.json` says; see the helper's implementation.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct SchedulerConfig {}
