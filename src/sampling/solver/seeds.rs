//! SEEDS: exponential Runge-Kutta steps of two or three stages for the stochastic equation, and their deterministic forms.

use super::{Denoiser, NoiseSource, Solver, Step, ancestral, sum};
use crate::Result;
use crate::sampling::NoiseProcess;
use crate::sampling::plan::{Planner, Schedule};
use candle_core::Tensor;
use std::sync::Arc;

/// Two or three network calls a step; one where the step ends at sigma 0.
///
/// # Source
/// Gonzalez et al. 2023, arXiv:2305.14267, algorithms 2 and 3 in data prediction. Without noise, two stages are RES of second order
/// (Zhang et al. 2023, arXiv:2308.02157, algorithm 1) and, with the second stage at the end, the exponential Heun method.
#[derive(Debug, Clone)]
struct Seeds {
    process: Arc<dyn NoiseProcess>,
    eta: f64,
    s_noise: f64,
    /// The noise of an ancestral step around the deterministic one, as stable-diffusion.cpp's `res_2s` has it.
    ancestral: f64,
    /// Where in the step, in log sigma, the later stages are.
    stages: Vec<f64>,
    /// The second-order weights of two stages (`phi_2`), and not the first-order ones at both ends (`phi_1`).
    second_order: bool,
}

fn seeds(planner: &Planner<'_>, stages: Vec<f64>, second_order: bool) -> Result<Schedule> {
    let (eta, s_noise) = (planner.eta(), planner.option("s_noise"));
    let (ancestral, eta) = if planner.sampler.name() == "res-2s" { (eta, 0.0) } else { (0.0, eta) };
    planner.sigma_space(Box::new(Seeds { process: Arc::clone(&planner.process), eta, s_noise, ancestral, stages, second_order }))
}

/// Plans a run of two stages.
pub(in crate::sampling) fn plan_two(planner: &Planner<'_>) -> Result<Schedule> {
    seeds(planner, vec![planner.option("r")], planner.option("phi") == 2.0)
}

/// Plans a run of three stages.
pub(in crate::sampling) fn plan_three(planner: &Planner<'_>) -> Result<Schedule> {
    seeds(planner, vec![planner.option("r1"), planner.option("r2")], true)
}

/// `h · φ1(h)`.
fn phi_1(h: f64) -> f64 {
    h.exp_m1()
}

/// `h · φ2(h)`.
fn phi_2(h: f64) -> f64 {
    (h.exp_m1() - h) / h
}

impl Seeds {
    /// The weights of the estimates at the end of a stage that begins with the step; `h` has the noise's part.
    fn weights(&self, stage: usize, h: f64) -> Vec<f64> {
        match (stage, self.stages.as_slice()) {
            // To the first inner point: exponential Euler.
            (0, [r, ..]) => vec![phi_1(-r * h)],
            (1, [r]) if self.second_order => vec![phi_1(-h) - phi_2(-h) / r, phi_2(-h) / r],
            (1, [r]) => vec![phi_1(-h) * (1.0 - 0.5 / r), phi_1(-h) * 0.5 / r],
            (1, [r1, r2]) => {
                let late = r2 / r1 * phi_2(-r2 * h);
                vec![phi_1(-r2 * h) - late, late]
            }
            (_, [_, r2]) => vec![phi_1(-h) - phi_2(-h) / r2, 0.0, phi_2(-h) / r2],
            _ => vec![],
        }
    }
}

impl Solver for Seeds {
    fn step(&mut self, step: &Step, latents: &Tensor, denoiser: &mut dyn Denoiser, noise: &mut dyn NoiseSource) -> Result<Tensor> {
        let (from, to) = (step.from.sigma, step.to.sigma);
        let mut estimates = vec![denoiser.denoise(latents, step.from)?.guided];
        if to == 0.0 {
            return Ok(estimates.remove(0));
        }
        let (to, up) = ancestral(from, to, self.ancestral);
        if to == 0.0 {
            return sum(1.0, &estimates.remove(0), &[(self.s_noise * up, &noise.fresh(latents)?)]);
        }
        let h = (from / to).ln();
        let mut added: Option<Tensor> = None;
        let mut reached = (0.0, from);
        for (stage, r) in self.stages.iter().copied().chain([1.0]).enumerate() {
            let level = if stage == self.stages.len() && up == 0.0 { step.to } else { self.process.level((from.ln() - r * h).exp()) };
            let weights = self.weights(stage, h * (1.0 + self.eta));
            let terms: Vec<(f64, &Tensor)> = weights.into_iter().map(|weight| -weight).zip(&estimates).collect();
            let mut x = sum(level.sigma / from * (-r * h * self.eta).exp(), latents, &terms)?;
            if self.eta > 0.0 && self.s_noise > 0.0 {
                // What was added on the way to the last point fades, and the rest of the way adds its own.
                let part = (r - reached.0) * h * self.eta;
                let fresh = noise.between(latents, reached.1, level.sigma)?;
                let grown = (-(-2.0 * part).exp_m1()).sqrt();
                let all = match &added {
                    Some(earlier) => sum((-part).exp(), earlier, &[(grown, &fresh)])?,
                    None => (fresh * grown)?,
                };
                x = sum(1.0, &x, &[(self.s_noise * level.sigma, &all)])?;
                added = Some(all);
            }
            reached = (r, level.sigma);
            if stage == self.stages.len() {
                if up > 0.0 {
                    x = sum(1.0, &x, &[(self.s_noise * up, &noise.fresh(latents)?)])?;
                }
                return Ok(x);
            }
            estimates.push(denoiser.denoise(&x, level)?.guided);
        }
        Ok(latents.clone())
    }

    fn evaluations(&self, step: &Step) -> usize {
        if step.to.sigma > 0.0 { 1 + self.stages.len() } else { 1 }
    }
}
