//! Improved PNDM: Adams-Bashforth on slopes, with the weights of even steps or of those that were taken.

use super::pndm::ADAMS_BASHFORTH;
use super::{Denoiser, NoiseSource, Solver, Step, slope, sum};
use crate::Result;
use crate::sampling::plan::{Planner, Schedule};
use candle_core::Tensor;

/// Order 4, one network call a step.
///
/// # Source
/// Zhang & Chen 2022, arXiv:2204.13902, appendix B (iPNDM); the variable steps are those of zju-pi/diff-sampler `solvers.py`.
/// A1111's last step is as the others; ComfyUI's takes the estimate. stable-diffusion.cpp's variable weights end at the second order.
#[derive(Debug, Clone)]
struct ImprovedPndm {
    order: usize,
    ends_denoised: bool,
    /// The weights follow the lengths of the steps up to this order, and are even beyond it.
    variable: usize,
    /// `(sigma, slope)`, newest first.
    history: Vec<(f64, Tensor)>,
}

fn solver(planner: &Planner<'_>, variable: usize) -> Result<Schedule> {
    let (order, ends_denoised) = (planner.option("order") as usize, planner.option("ends_denoised") != 0.0);
    planner.sigma_space(Box::new(ImprovedPndm { order: order.clamp(1, 4), ends_denoised, variable, history: vec![] }))
}

/// Plans a run with even weights.
pub(in crate::sampling) fn plan(planner: &Planner<'_>) -> Result<Schedule> {
    solver(planner, 0)
}

/// Plans a run with weights by the steps.
pub(in crate::sampling) fn plan_variable(planner: &Planner<'_>) -> Result<Schedule> {
    solver(planner, planner.option("variable_to") as usize)
}

impl Solver for ImprovedPndm {
    fn step(&mut self, step: &Step, latents: &Tensor, denoiser: &mut dyn Denoiser, _: &mut dyn NoiseSource) -> Result<Tensor> {
        let (from, to) = (step.from.sigma, step.to.sigma);
        let denoised = denoiser.denoise(latents, step.from)?.guided;
        if to == 0.0 && self.ends_denoised {
            return Ok(denoised);
        }
        self.history.insert(0, (from, slope(latents, &denoised, from)?));
        self.history.truncate(self.order);
        let even = ADAMS_BASHFORTH.get(self.history.len().saturating_sub(1)).copied().unwrap_or_default();
        let weights = if self.history.len() <= self.variable { self.weights(to) } else { even.to_vec() };
        let terms: Vec<(f64, &Tensor)> =
            weights.into_iter().map(|weight| weight * (to - from)).zip(self.history.iter().map(|(_, slope)| slope)).collect();
        sum(1.0, latents, &terms)
    }
}

impl ImprovedPndm {
    /// The weights of a step to `to`, newest first.
    fn weights(&self, to: f64) -> Vec<f64> {
        let nodes: Vec<f64> = std::iter::once(to).chain(self.history.iter().map(|(sigma, _)| *sigma)).collect();
        let lengths: Vec<f64> = nodes.windows(2).map(|pair| pair[0] - pair[1]).collect();
        let [h, rest @ ..] = lengths.as_slice() else { return vec![1.0] };
        let [h1, rest @ ..] = rest else { return vec![1.0] };
        let (h, h1, ratio) = (*h, *h1, h / h1);
        let two = [(2.0 + ratio) / 2.0, -ratio / 2.0];
        let [h2, rest @ ..] = rest else { return two.to_vec() };
        let h2 = *h2;
        let third = h / (3.0 * (h + h1));
        let a = (1.0 - third * (h * (h + h1)) / (h1 * (h1 + h2))) / 2.0;
        let three = [two[0] + a, two[1] - (1.0 + h1 / h2) * a, a * h1 / h2];
        let [h3, ..] = rest else { return three.to_vec() };
        let h3 = *h3;
        let b = ((1.0 - third) / 2.0 + (1.0 - h / (2.0 * (h + h1))) * h / (6.0 * (h + h1 + h2))) * (h * (h + h1) * (h + h1 + h2))
            / (h1 * (h1 + h2) * (h1 + h2 + h3));
        let c = h1 * (h1 + h2) / (h2 * (h2 + h3));
        vec![three[0] + b, three[1] - (1.0 + h1 / h2 + c) * b, three[2] + (h1 / h2 + c * (1.0 + h2 / h3)) * b, -b * c * h1 / h2]
    }
}
