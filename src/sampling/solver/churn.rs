//! Churn: noise that is put back before a step, so that the step starts from a higher sigma.

use super::NoiseSource;
use crate::Result;
use crate::sampling::plan::Planner;
use crate::sampling::{NoiseLevel, NoiseProcess, blend};
use candle_core::Tensor;

/// # Source
/// Karras et al. 2022, arXiv:2206.00364, algorithm 2: `S_churn`, `S_tmin`, `S_tmax`, `S_noise`.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(in crate::sampling) struct Churn {
    /// Steps of the run, over which the churn is spread.
    pub(super) steps: usize,
    churn: f64,
    least: f64,
    most: f64,
    noise: f64,
}

impl Churn {
    /// The options that [`super::super::table`] gives the samplers that take them.
    pub(in crate::sampling) const OPTIONS: [(&str, f64); 4] =
        [("s_churn", 0.0), ("s_tmin", 0.0), ("s_tmax", f64::INFINITY), ("s_noise", 1.0)];

    pub(super) fn of(planner: &Planner<'_>) -> Self {
        let [churn, least, most, noise] = Self::OPTIONS.map(|(name, _)| planner.option(name));
        Self { steps: planner.steps, churn, least, most, noise }
    }

    /// The level from which a step starts, and the latents there.
    pub(super) fn apply(
        &self,
        process: &dyn NoiseProcess,
        from: NoiseLevel,
        latents: &Tensor,
        noise: &mut dyn NoiseSource,
    ) -> Result<(NoiseLevel, Tensor)> {
        let sigma = from.sigma;
        if self.churn <= 0.0 {
            return Ok((from, latents.clone()));
        }
        // Drawn where nothing is churned too, as k-diffusion does, so that the next draw is the same.
        let fresh = noise.fresh(latents)?;
        if sigma < self.least || sigma > self.most {
            return Ok((from, latents.clone()));
        }
        let gamma = (self.churn / self.steps.max(1) as f64).min(std::f64::consts::SQRT_2 - 1.0);
        let raised = sigma * (1.0 + gamma);
        let added = self.noise * (raised * raised - sigma * sigma).sqrt();
        Ok((process.level(raised), blend(1.0, latents, added, &fresh)?))
    }
}
