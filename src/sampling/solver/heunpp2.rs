//! Heun++: slopes at the ends of this step and of the next one, weighted by their sigmas.

use super::{Denoiser, NoiseLevel, NoiseSource, Solver, Step, slope, sum};
use crate::Result;
use crate::sampling::blend;
use crate::sampling::plan::{Planner, Schedule};
use candle_core::Tensor;

/// Three network calls a step; two before the last step, and one there.
///
/// # Source
/// Carzit/sd-webui-samplers-scheduler, `heunpp2` (no paper).
#[derive(Debug, Clone, Default)]
struct HeunPlusPlus {
    /// The ends of all steps, after the level where the first one starts.
    levels: Vec<NoiseLevel>,
}

/// Plans a run.
pub(in crate::sampling) fn plan(planner: &Planner<'_>) -> Result<Schedule> {
    planner.sigma_space(Box::<HeunPlusPlus>::default())
}

impl HeunPlusPlus {
    fn calls(&self, index: usize) -> usize {
        self.levels.len().saturating_sub(index + 1).clamp(1, 3)
    }
}

impl Solver for HeunPlusPlus {
    fn prepare(&mut self, steps: &[Step]) {
        self.levels = steps.first().map(|step| step.from).into_iter().chain(steps.iter().map(|step| step.to)).collect();
    }

    fn step(&mut self, step: &Step, latents: &Tensor, denoiser: &mut dyn Denoiser, _: &mut dyn NoiseSource) -> Result<Tensor> {
        let calls = self.calls(step.index);
        let largest = self.levels.first().map_or(step.from.sigma, |level| level.sigma);
        let mut slopes = Vec::new();
        let mut x = latents.clone();
        for pair in self.levels.get(step.index..).unwrap_or_default().windows(2).take(calls) {
            let found = slope(&x, &denoiser.denoise(&x, pair[0])?.guided, pair[0].sigma)?;
            x = blend(1.0, &x, pair[1].sigma - pair[0].sigma, &found)?;
            slopes.push((pair[0].sigma / (calls as f64 * largest), found));
        }
        // What the later slopes leave is the first one's weight.
        let rest = 1.0 - slopes.iter().skip(1).map(|(weight, _)| weight).sum::<f64>();
        if let Some((weight, _)) = slopes.first_mut() {
            *weight = rest;
        }
        let length = step.to.sigma - step.from.sigma;
        let terms: Vec<(f64, &Tensor)> = slopes.iter().map(|(weight, found)| (weight * length, found)).collect();
        sum(1.0, latents, &terms)
    }

    fn evaluations(&self, step: &Step) -> usize {
        self.calls(step.index)
    }
}
