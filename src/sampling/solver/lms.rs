//! Linear multistep: a polynomial through the last slopes, integrated over the step.

use super::{Denoiser, NoiseSource, Solver, Step, lagrange_integrals, slope, sum};
use crate::Result;
use crate::sampling::plan::{Planner, Schedule};
use candle_core::Tensor;

/// Order 4, one network call a step.
///
/// # Source
/// Adams-Bashforth with uneven steps; k-diffusion `sampling.py`, `sample_lms`. ComfyUI's last step takes the estimate instead;
/// leejet/stable-diffusion.cpp@97d29908:src/runtime/denoiser.hpp weighs slopes that are newer by one than those that the weights are for.
#[derive(Debug, Clone)]
struct LinearMultistep {
    order: usize,
    ends_denoised: bool,
    /// By how many calls the slopes before this call's are newer than their weights say, at most this call's predecessor.
    shift: usize,
    /// `(sigma, slope)`, newest first.
    history: Vec<(f64, Tensor)>,
}

/// Plans a run.
pub(in crate::sampling) fn plan(planner: &Planner<'_>) -> Result<Schedule> {
    let (order, ends_denoised) = (planner.option("order") as usize, planner.option("ends_denoised") != 0.0);
    let shift = planner.option("shift") as usize;
    planner.sigma_space(Box::new(LinearMultistep { order, ends_denoised, shift, history: vec![] }))
}

impl Solver for LinearMultistep {
    fn step(&mut self, step: &Step, latents: &Tensor, denoiser: &mut dyn Denoiser, _: &mut dyn NoiseSource) -> Result<Tensor> {
        let (from, to) = (step.from.sigma, step.to.sigma);
        let denoised = denoiser.denoise(latents, step.from)?.guided;
        if to == 0.0 && self.ends_denoised {
            return Ok(denoised);
        }
        self.history.insert(0, (from, slope(latents, &denoised, from)?));
        self.history.truncate(self.order);
        let nodes: Vec<f64> = self.history.iter().map(|(sigma, _)| *sigma).collect();
        let weights = lagrange_integrals(&nodes, from, to);
        let terms: Vec<(f64, &Tensor)> = weights
            .into_iter()
            .enumerate()
            .filter_map(|(i, weight)| {
                let at = if i == 0 { 0 } else { i.saturating_sub(self.shift).max(1) };
                self.history.get(at).map(|(_, slope)| (weight, slope))
            })
            .collect();
        sum(1.0, latents, &terms)
    }
}
