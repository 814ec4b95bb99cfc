//! How noise is mixed into latents, and what the network's output says about both.
//!
//! A solver never asks which process it runs on: it sees clean estimates and [`NoiseLevel`]s.

mod flow;
mod variance_preserving;

pub use flow::Flow;
pub use variance_preserving::VariancePreserving;

use super::{NoiseLevel, blend};
use crate::Result;
use candle_core::Tensor;

/// A family of noisy latents `alpha(sigma) · x0 + sigma · noise`, and the network that was trained on it.
pub trait NoiseProcess: Send + Sync + std::fmt::Debug {
    /// What of the clean latents is left at a sigma.
    fn alpha(&self, sigma: f64) -> f64;

    /// The largest trained sigma and the smallest one.
    fn range(&self) -> (f64, f64);

    /// Sigma at a timestep, interpolated between the trained ones.
    fn sigma(&self, timestep: f64) -> f64;

    /// What the network is told at a sigma.
    fn timestep(&self, sigma: f64) -> f64;

    /// What latents are multiplied by before the network sees them.
    fn input_scale(&self, sigma: f64) -> f64;

    /// `(c_skip, c_out)` such that `denoised = c_skip · latents + c_out · output`.
    fn scales(&self, sigma: f64) -> (f64, f64);

    /// The level of a sigma.
    fn level(&self, sigma: f64) -> NoiseLevel {
        NoiseLevel { sigma, alpha: self.alpha(sigma), timestep: self.timestep(sigma) }
    }

    /// Noisy latents at a sigma, from clean ones and unit noise.
    ///
    /// # Errors
    /// The shapes differ.
    fn mix(&self, clean: &Tensor, noise: &Tensor, sigma: f64) -> Result<Tensor> {
        blend(self.alpha(sigma), clean, sigma, noise)
    }

    /// The clean latents that an output of the network means.
    ///
    /// # Errors
    /// The shapes differ.
    fn denoised(&self, latents: &Tensor, output: &Tensor, sigma: f64) -> Result<Tensor> {
        let (c_skip, c_out) = self.scales(sigma);
        blend(c_skip, latents, c_out, output)
    }

    /// The output of the network that an estimate of the clean latents means: the inverse of [`NoiseProcess::denoised`].
    ///
    /// # Errors
    /// The shapes differ.
    fn output(&self, latents: &Tensor, denoised: &Tensor, sigma: f64) -> Result<Tensor> {
        let (c_skip, c_out) = self.scales(sigma);
        blend(1.0 / c_out, denoised, -c_skip / c_out, latents)
    }
}
