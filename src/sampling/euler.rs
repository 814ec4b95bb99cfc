//! Euler's method, and the three samplers that are Euler's method with noise added back.

use super::{Denoiser, NoiseSource, Scheduler, Step, blend, clip};
use crate::Result;
use candle_core::Tensor;

/// One first-order step down to `sigma_down`, then fresh noise up to `step.to`.
///
/// With `sigma_up² = eta² · to² · (from² − to²) / from²` and `sigma_down² = to² − sigma_up²`,
/// `x' = denoised + sigma_down · direction + sigma_up · noise`, this one line is
/// - Euler (Karras et al. 2022, arXiv:2206.00364, algorithm 1 without churn) at `eta` 0,
/// - Euler ancestral (k-diffusion `sampling.py`, `sample_euler_ancestral`) at `eta` 1,
/// - DDIM (Song et al. 2020, arXiv:2010.02502, eq. 12 and 16) for any `eta`: dividing its equation by `sqrt(ᾱ)` leaves exactly this,
/// - DDPM (Ho et al. 2020, arXiv:2006.11239, eq. 7) at `eta` 1, where `sigma_down = to² / from`.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(super) struct Euler {
    /// How much of the ancestral noise is added.
    pub(super) eta: f64,
    /// Bounds the denoised latents.
    pub(super) clip: Option<f64>,
    /// The direction is taken from the clipped estimate (DDPM) and not from the network's own (DDIM).
    pub(super) clip_direction: bool,
    /// DDPM's `fixed_large`: the noise has the variance of the forward step.
    pub(super) large_variance: bool,
}

impl Scheduler for Euler {
    fn step(&mut self, step: Step, latents: &Tensor, denoiser: &mut dyn Denoiser, noise: &mut dyn NoiseSource) -> Result<Tensor> {
        let (from, to) = (step.from.sigma, step.to.sigma);
        let denoised = denoiser.denoise(latents, step.from)?;
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
        let noise = noise.noise_like(latents)?;
        let up = if self.large_variance { forward_deviation(from, to) } else { up };
        blend(1.0, &next, up, &noise)
    }
}

/// `(sigma_down, sigma_up)`: how far to go down so that noise of `sigma_up` brings the latents up to `to`.
pub(super) fn ancestral(from: f64, to: f64, eta: f64) -> (f64, f64) {
    let up = (eta * to * ((from * from - to * to).max(0.0)).sqrt() / from).min(to);
    ((to * to - up * up).max(0.0).sqrt(), up)
}

/// Standard deviation, at `to` and in sigma space, of the forward step from `to` to `from` (the square root of DDPM's beta).
fn forward_deviation(from: f64, to: f64) -> f64 {
    ((from * from - to * to).max(0.0) / (1.0 + from * from) * (1.0 + to * to)).sqrt()
}
