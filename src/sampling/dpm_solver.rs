//! DPM-Solver++, multistep: the estimates of earlier steps extrapolate the present one.

use super::{Denoiser, NoiseSource, Scheduler, Step, blend};
use crate::Result;
use candle_core::Tensor;

/// How the second-order term is weighted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum SolverType {
    #[default]
    Midpoint,
    Heun,
}

/// DPM-Solver++ of order 1, 2 ("2M") or 3, and its SDE form.
///
/// In sigma space, with `h = ln(from / to)`, `k` = 1 (2 for the SDE) and `e = exp(−k·h)`:
/// `x' = e·x + (1 − e)·D0 + weights · differences of the history`. The `sqrt(ᾱ)` of the paper's variance-preserving form cancel.
///
/// # Source
/// Lu et al. 2022, arXiv:2211.01095, eq. 8 and algorithm 2; order 3 as in arXiv:2206.00927, appendix B.
#[derive(Debug, Clone)]
pub(super) struct DpmSolver {
    pub(super) order: usize,
    pub(super) solver_type: SolverType,
    /// The SDE: draws noise at every step.
    pub(super) stochastic: bool,
    /// For each step, the highest order that may be used there.
    pub(super) order_limits: Vec<usize>,
    /// `(lambda = −ln sigma, denoised)`, newest first.
    pub(super) history: Vec<(f64, Tensor)>,
}

impl Scheduler for DpmSolver {
    fn step(&mut self, step: Step, latents: &Tensor, denoiser: &mut dyn Denoiser, noise: &mut dyn NoiseSource) -> Result<Tensor> {
        let (from, to) = (step.from.sigma, step.to.sigma);
        if from == to {
            // Rounded timesteps coincide when there are nearly as many steps as trained levels; diffusers divides by 0 here.
            return Ok(latents.clone());
        }
        let denoised = denoiser.denoise(latents, step.from)?;
        self.history.insert(0, (-from.ln(), denoised.clone()));
        self.history.truncate(self.order);
        let order = self.history.len().min(self.order_limits.get(step.index).copied().unwrap_or(1));

        let h = (from / to).ln();
        let k = if self.stochastic { 2.0 } else { 1.0 };
        let e = (to / from).powf(k);
        let mut next = blend(e, latents, 1.0 - e, &denoised)?;
        for (weight, difference) in self.weights(k * h, e, order).into_iter().zip(self.differences(h, order)?) {
            next = blend(1.0, &next, weight, &difference)?;
        }
        if self.stochastic {
            next = blend(1.0, &next, to * (1.0 - e).sqrt(), &noise.noise_like(latents)?)?;
        }
        Ok(next)
    }
}

impl DpmSolver {
    /// What the first and second difference are multiplied by; `kh` is h, doubled for the SDE.
    fn weights(&self, kh: f64, e: f64, order: usize) -> Vec<f64> {
        let linear = 1.0 - (1.0 - e) / kh;
        match (order, self.solver_type) {
            (0 | 1, _) => vec![],
            (2, SolverType::Midpoint) => vec![0.5 * (1.0 - e)],
            (2, SolverType::Heun) => vec![linear],
            // The sign of the SDE's half is diffusers'; its papers have no third-order SDE.
            _ => vec![linear, if self.stochastic { -0.5 } else { 0.5 } - (e - 1.0 + kh) / (kh * kh)],
        }
    }

    /// Divided differences of the history along lambda, scaled by this step's `h`.
    fn differences(&self, h: f64, order: usize) -> Result<Vec<Tensor>> {
        let slope = |newer: usize| -> Result<Option<(f64, Tensor)>> {
            let (Some((l0, d0)), Some((l1, d1))) = (self.history.get(newer), self.history.get(newer + 1)) else { return Ok(None) };
            let r = (l0 - l1) / h;
            Ok(Some((r, ((d0 - d1)? / r)?)))
        };
        let Some((r0, first)) = (if order >= 2 { slope(0)? } else { None }) else { return Ok(vec![]) };
        let Some((r1, earlier)) = (if order >= 3 { slope(1)? } else { None }) else { return Ok(vec![first]) };
        let change = (&first - earlier)?;
        Ok(vec![blend(1.0, &first, r0 / (r0 + r1), &change)?, (change / (r0 + r1))?])
    }
}
