//! Heun's method: an Euler step, corrected by the slope at its end.

use super::{Denoiser, NoiseSource, Scheduler, Step, blend, clip};
use crate::Result;
use candle_core::Tensor;

/// Second order, two network calls a step; one where the step ends at sigma 0, where there is no slope.
///
/// # Source
/// Karras et al. 2022, arXiv:2206.00364, algorithm 1.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(super) struct Heun {
    /// Bounds the denoised latents.
    pub(super) clip: Option<f64>,
}

impl Scheduler for Heun {
    fn step(&mut self, step: Step, latents: &Tensor, denoiser: &mut dyn Denoiser, _: &mut dyn NoiseSource) -> Result<Tensor> {
        let (from, to) = (step.from.sigma, step.to.sigma);
        let mut slope = |x: &Tensor, level: super::NoiseLevel| -> Result<Tensor> {
            let denoised = clip(&denoiser.denoise(x, level)?, self.clip)?;
            Ok(((x - denoised)? / level.sigma)?)
        };
        let first = slope(latents, step.from)?;
        let predicted = blend(1.0, latents, to - from, &first)?;
        if to == 0.0 {
            return Ok(predicted);
        }
        let second = slope(&predicted, step.to)?;
        blend(1.0, latents, (to - from) / 2.0, &(first + second)?)
    }
}
