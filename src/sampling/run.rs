//! The denoising loop, once.

use super::solver::rescale;
use super::{Denoiser, NoiseSource, Schedule, Step};
use crate::Result;
use candle_core::Tensor;

/// Runs a schedule: the one denoising loop of the crate.
///
/// `latents` are at `schedule.steps[0].from`; what comes back are clean latents. The denoiser is told of every step before it is taken and
/// may change the latents after it ([`Denoiser::begin_step`], [`Denoiser::end_step`]). Then `on_step` sees the step and the latents at its
/// end, and may stop the run by an error such as [`crate::Error::Cancelled`].
///
/// # Shapes
/// `(batch, channels, height, width)` in f32, kept.
///
/// # Errors
/// Those of the denoiser, the noise and `on_step`.
pub fn sample(
    schedule: &Schedule,
    latents: &Tensor,
    denoiser: &mut dyn Denoiser,
    noise: &mut dyn NoiseSource,
    on_step: &mut dyn FnMut(&Step, &Tensor) -> Result<()>,
) -> Result<Tensor> {
    let mut solver = schedule.solver();
    let mut latents = latents.clone();
    let mut at = None;
    for step in &schedule.steps {
        if let Some(sigma) = at.filter(|_| schedule.variance_preserving) {
            // Nothing happens where a step starts at the level at which the last one ended, which is nearly always.
            latents = rescale(&latents, sigma, step.from.sigma)?;
        }
        denoiser.begin_step(step)?;
        let next = if schedule.is_empty(step) { latents.clone() } else { solver.step(step, &latents, denoiser, noise)? };
        latents = denoiser.end_step(step, next)?;
        at = Some(step.to.sigma);
        on_step(step, &latents)?;
    }
    if schedule.final_scale == 1.0 { Ok(latents) } else { Ok(latents.affine(schedule.final_scale, 0.0)?) }
}
