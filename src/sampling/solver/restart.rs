//! Restart: Heun's method, which goes back up once or more where the sigmas are small.

use super::heun::Heun;
use super::{Denoiser, NoiseSource, Solver, Step};
use crate::Result;
use crate::sampling::SigmaSchedule;
use crate::sampling::blend;
use crate::sampling::plan::{Planner, Schedule};
use candle_core::Tensor;

/// # Source
/// Xu et al. 2023, arXiv:2306.14878, algorithm 1; how many steps are spent on it, and where, is A1111's `modules/sd_samplers_extra.py`.
#[derive(Debug, Clone)]
struct Restart {
    heun: Heun,
    s_noise: f64,
    at: Option<f64>,
}

/// Plans a run: from 20 steps on, some of them climb from 0.1 back to 2.
pub(in crate::sampling) fn plan(planner: &Planner<'_>) -> Result<Schedule> {
    let solver = Restart { heun: Heun::new(planner), s_noise: planner.option("s_noise"), at: None };
    let plain = planner.sigma_space(Box::new(solver.clone()))?;
    let steps = plain.steps.len();
    let positive = plain.steps.iter().map(|step| step.from.sigma);
    let (Some(most), Some(least), true) = (positive.clone().next(), positive.clone().next_back(), steps >= 20) else { return Ok(plain) };
    let (length, times) = if steps >= 36 { (steps / 4, 2) } else { (9, 1) };
    let mut sigmas = SigmaSchedule::Karras.sigmas(most, least, steps - length * times);
    sigmas.push(0.0);
    let nearest = |wanted: f64| {
        let apart = |i: &usize| (sigmas[*i] - wanted).abs();
        (0..sigmas.len()).min_by(|a, b| apart(a).total_cmp(&apart(b))).unwrap_or(0)
    };
    let (low, high) = (nearest(0.1), nearest(2.0));
    let mut pairs = Vec::new();
    for (i, pair) in sigmas.windows(2).enumerate() {
        pairs.push((pair[0], pair[1]));
        if i + 1 == low && high < low {
            let again = SigmaSchedule::Karras.sigmas(sigmas[high], sigmas[low], length + 1);
            for _ in 0..times {
                pairs.extend(again.windows(2).map(|pair| (pair[0], pair[1])));
            }
        }
    }
    planner.sigma_pairs(&pairs, Box::new(solver))
}

impl Solver for Restart {
    fn step(&mut self, step: &Step, latents: &Tensor, denoiser: &mut dyn Denoiser, noise: &mut dyn NoiseSource) -> Result<Tensor> {
        let from = step.from.sigma;
        let mut latents = latents.clone();
        if let Some(at) = self.at.filter(|at| *at < from) {
            latents = blend(1.0, &latents, self.s_noise * (from * from - at * at).sqrt(), &noise.fresh(&latents)?)?;
        }
        self.at = Some(step.to.sigma);
        self.heun.step(step, &latents, denoiser, noise)
    }

    fn evaluations(&self, step: &Step) -> usize {
        self.heun.evaluations(step)
    }
}
