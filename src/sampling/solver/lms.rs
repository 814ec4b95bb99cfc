//! Linear multistep: a polynomial through the last slopes, integrated over the step.

use super::{Denoiser, NoiseSource, Solver, Step, lagrange_integrals, slope, sum};
use crate::Result;
use crate::sampling::plan::{Planner, Schedule};
use candle_core::Tensor;

/// Order 4, one network call a step.
///
/// # Source
/// Adams-Bashforth with uneven steps; k-diffusion `sampling.py`, `sample_lms`. ComfyUI's last step takes the estimate instead.
#[derive(Debug, Clone)]
struct LinearMultistep {
    order: usize,
    ends_denoised: bool,
    /// `(sigma, slope)`, newest first.
    history: Vec<(f64, Tensor)>,
}

/// Plans a run.
pub(in crate::sampling) fn plan(planner: &Planner<'_>) -> Result<Schedule> {
    let (order, ends_denoised) = (planner.option("order") as usize, planner.option("ends_denoised") != 0.0);
    planner.sigma_space(Box::new(LinearMultistep { order, ends_denoised, history: vec![] }))
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
        let terms: Vec<(f64, &Tensor)> = weights.into_iter().zip(self.history.iter().map(|(_, slope)| slope)).collect();
        sum(1.0, latents, &terms)
    }
}
