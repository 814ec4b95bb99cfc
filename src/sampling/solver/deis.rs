//! DEIS: a polynomial through the last slopes in the time of a variance-preserving diffusion, integrated over the step.

use super::{Denoiser, NoiseSource, Solver, Step, lagrange, slope, sum};
use crate::Result;
use crate::sampling::plan::{Planner, Schedule};
use candle_core::Tensor;

/// tAB-DEIS, one network call a step.
///
/// # Source
/// Zhang & Chen 2022, arXiv:2204.13902, eq. 15; the continuous time and the sum in place of the integral are those of
/// zju-pi/diff-sampler `solver_utils.py`, which ComfyUI and Forge have.
#[derive(Debug, Clone)]
struct Deis {
    order: usize,
    /// `(time, slope)`, newest first.
    history: Vec<(f64, Tensor)>,
}

/// Plans a run.
pub(in crate::sampling) fn plan(planner: &Planner<'_>) -> Result<Schedule> {
    planner.sigma_space(Box::new(Deis { order: (planner.option("order") as usize).clamp(1, 4), history: vec![] }))
}

/// `ln(1 + sigma²)` at the ends of the time, 0.001 and 1, of which the schedule is made.
fn ends() -> (f64, f64) {
    let log = |sigma: f64| (sigma * sigma + 1.0).ln();
    (log(0.002), log(80.0))
}

/// `(beta_min, beta_d)` of the linear schedule `beta(t) = beta_min + beta_d · t`.
fn betas() -> (f64, f64) {
    let start = 1e-3;
    let (least, most) = ends();
    let slope = 2.0 * (least / start - most) / (start - 1.0);
    (most - 0.5 * slope, slope)
}

fn time(sigma: f64) -> f64 {
    let (least, slope) = betas();
    ((least * least + 2.0 * slope * (sigma * sigma + 1.0).ln()).sqrt() - least) / slope
}

/// What a slope is multiplied by at a time: the change of sigma with it.
fn integrand(time: f64) -> f64 {
    let (least, slope) = betas();
    let log_alpha = -0.5 * time * time * slope - time * least;
    let alpha = log_alpha.exp();
    0.5 * (time * slope + least) / (alpha * (1.0 - alpha)).sqrt()
}

impl Solver for Deis {
    fn step(&mut self, step: &Step, latents: &Tensor, denoiser: &mut dyn Denoiser, _: &mut dyn NoiseSource) -> Result<Tensor> {
        const POINTS: usize = 10_000;
        let (from, to) = (step.from.sigma, step.to.sigma);
        let found = slope(latents, &denoiser.denoise(latents, step.from)?.guided, from)?;
        self.history.insert(0, (time(from), found));
        self.history.truncate(self.order);
        if self.history.len() == 1 || to <= 0.0 {
            let found = &self.history[0].1;
            return sum(1.0, latents, &[(to - from, found)]);
        }
        let (start, end) = (time(from), time(to));
        let nodes: Vec<f64> = self.history.iter().map(|(time, _)| *time).collect();
        let mut weights = vec![0.0; nodes.len()];
        for i in 0..POINTS {
            let at = start + (end - start) * i as f64 / (POINTS - 1) as f64;
            let weight = integrand(at) * (end - start) / POINTS as f64;
            weights.iter_mut().enumerate().for_each(|(j, sum)| *sum += weight * lagrange(&nodes, j, at));
        }
        let terms: Vec<(f64, &Tensor)> = weights.into_iter().zip(self.history.iter().map(|(_, slope)| slope)).collect();
        sum(1.0, latents, &terms)
    }
}
