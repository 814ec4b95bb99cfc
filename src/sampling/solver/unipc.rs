//! UniPC: a multistep predictor, and a corrector that uses the same network call.

use super::{Denoiser, NoiseLevel, NoiseSource, Solver, Step, solve, sum};
use crate::Result;
use crate::sampling::SchedulerConfig;
use crate::sampling::plan::{Planner, Schedule};
use candle_core::Tensor;

/// One network call a step.
///
/// # Source
/// Zhao et al. 2023, arXiv:2302.04867, algorithms 5 to 8 in data prediction, with `B(h)` = h (bh1) or e^h − 1 (bh2).
#[derive(Debug, Clone)]
pub(super) struct UniPc {
    order: usize,
    /// `B(h)` is e^h − 1.
    bh2: bool,
    /// The last steps are of lower order.
    lower_order_final: bool,
    steps: usize,
    /// `(lambda, estimate)`, newest first.
    history: Vec<(f64, Tensor)>,
    /// The step before: where it started, the corrected latents there, and its order.
    last: Option<(NoiseLevel, Tensor, usize)>,
}

/// Judges the keys of `UniPCMultistepScheduler`.
pub(in crate::sampling) fn check(config: &SchedulerConfig) -> Result<()> {
    config.ends_at_zero()?;
    variant(config)?;
    config.choice("predict_x0", &config.file.predict_x0.map(|x| x.to_string()), (), &[("true", ())])?;
    config.refuse_true("use_flow_sigmas", config.file.use_flow_sigmas.filter(|_| !config.is_flow()))?;
    config.refuse_true("thresholding", config.file.thresholding)
}

/// Whether it is bh2.
fn variant(config: &SchedulerConfig) -> Result<bool> {
    // Other classes' values, which diffusers' UniPC reads as its own default.
    let types = [("bh2", true), ("bh1", false), ("midpoint", true), ("heun", true), ("logrho", true)];
    config.choice("solver_type", &config.file.solver_type, true, &types)
}

/// Plans a run as diffusers does.
pub(in crate::sampling) fn plan(planner: &Planner<'_>) -> Result<Schedule> {
    let file = &planner.config.file;
    let (order, lower) = (file.solver_order.unwrap_or(2).clamp(1, 3), file.lower_order_final.unwrap_or(true));
    planner.lambda_space(Box::new(UniPc::new(order, variant(planner.config)?, lower)))
}

/// Plans a run as ComfyUI does: of third order, to a last sigma of 0.001 where the schedule ends at 0.
pub(in crate::sampling) fn plan_to_the_end(planner: &Planner<'_>) -> Result<Schedule> {
    let bh2 = planner.option("bh") == 2.0;
    let plain = planner.sigma_space(Box::new(UniPc::new(3, bh2, true)))?;
    let order = plain.steps.len().saturating_sub(1).clamp(1, 3);
    let ends: Vec<(f64, f64)> =
        plain.steps.iter().map(|step| (step.from.sigma, if step.to.sigma == 0.0 { 1e-3 } else { step.to.sigma })).collect();
    planner.sigma_pairs(&ends, Box::new(UniPc::new(order, bh2, true)))
}

impl Solver for UniPc {
    fn prepare(&mut self, steps: &[Step]) {
        self.steps = steps.len();
    }

    fn step(&mut self, step: &Step, latents: &Tensor, denoiser: &mut dyn Denoiser, _: &mut dyn NoiseSource) -> Result<Tensor> {
        let (from, to) = (step.from, step.to);
        let denoised = denoiser.denoise(latents, step.from)?.guided;
        let corrected = match &self.last {
            Some((start, before, order)) => self.update(*start, from, before, *order, Some(&denoised))?,
            None => latents.clone(),
        };
        self.history.insert(0, (step.from.lambda(), denoised));
        self.history.truncate(self.order);
        let room = if self.lower_order_final { self.steps - step.index } else { self.order };
        let order = self.order.min(room).min(self.history.len());
        let next = self.update(from, to, &corrected, order, None)?;
        self.last = Some((from, corrected, order));
        Ok(next)
    }
}

impl UniPc {
    pub(super) fn new(order: usize, bh2: bool, lower_order_final: bool) -> Self {
        Self { order, bh2, lower_order_final, steps: 0, history: vec![], last: None }
    }

    /// From the newest estimate to `to`; with the estimate there, the correction of what was predicted without.
    fn update(&self, from: NoiseLevel, to: NoiseLevel, x: &Tensor, order: usize, there: Option<&Tensor>) -> Result<Tensor> {
        let Some((newest, estimate)) = self.history.first() else { return Ok(x.clone()) };
        let h = -(from.ratio() / to.ratio()).ln();
        let base = sum(to.sigma / from.sigma, x, &[(-h.exp_m1() * to.alpha, estimate)])?;
        let points: Vec<(f64, &Tensor)> =
            self.history.iter().skip(1).take(order - 1).map(|(lambda, earlier)| ((lambda - newest) / -h, earlier)).collect();
        if points.is_empty() && there.is_none() {
            return Ok(base);
        }
        let step = if self.bh2 { h.exp_m1() } else { h };
        let scale = step * to.alpha;
        // The moments that the weights must reproduce.
        let (mut moments, mut phi, mut factorial) = (Vec::new(), h.exp_m1() / h - 1.0, 1.0);
        for i in 1..=order {
            moments.push(phi * factorial / step);
            factorial *= (i + 1) as f64;
            phi = phi / h - 1.0 / factorial;
        }
        let mut nodes: Vec<f64> = points.iter().map(|(r, _)| *r).collect();
        if there.is_some() {
            nodes.push(1.0);
        }
        let weights = match (nodes.len(), order, there) {
            // As the originals round the only weight.
            (1, 1, Some(_)) | (1, 2, None) => vec![0.5],
            (count, ..) => {
                let rows = (0..count).map(|i| nodes.iter().map(|r| r.powi(i as i32)).collect()).collect();
                solve(rows, moments.into_iter().take(count).collect())
            }
        };
        let mut terms = Vec::new();
        for (weight, (r, earlier)) in weights.iter().zip(&points) {
            terms.extend([(-scale * weight / r, *earlier), (scale * weight / r, estimate)]);
        }
        if let (Some(there), Some(weight)) = (there, weights.last()) {
            terms.extend([(-scale * weight, there), (scale * weight, estimate)]);
        }
        sum(1.0, &base, &terms)
    }
}
