//! DPM-Solver, single step, of first to third order; fast with as many calls as steps, and adaptive with an error bound.

use super::{Denoiser, NoiseSource, Solver, Step, ancestral, slope, sum};
use crate::sampling::plan::{Planner, Schedule};
use crate::sampling::{NoiseLevel, NoiseProcess};
use crate::{Error, Result};
use candle_core::{DType, Tensor};
use std::sync::Arc;

/// The slopes of a step, each found once. Time is `t = −ln sigma`.
///
/// # Source
/// Lu et al. 2022, arXiv:2206.00927, equations 3.7 (order 1), algorithm 1 (order 2) and algorithm 2 (order 3).
struct Slopes<'a> {
    process: &'a dyn NoiseProcess,
    denoiser: &'a mut dyn Denoiser,
    x: &'a Tensor,
    t: f64,
    start: Tensor,
    /// At a third of the step; the step of third order and the one of second order inside it share it.
    third: Option<Tensor>,
}

impl<'a> Slopes<'a> {
    fn new(process: &'a dyn NoiseProcess, denoiser: &'a mut dyn Denoiser, x: &'a Tensor, from: NoiseLevel) -> Result<Self> {
        let start = slope(x, &denoiser.denoise(x, from)?.guided, from.sigma)?;
        Ok(Self { process, denoiser, x, t: -from.sigma.ln(), start, third: None })
    }

    fn at(&mut self, x: &Tensor, t: f64) -> Result<Tensor> {
        let level = self.process.level((-t).exp());
        slope(x, &self.denoiser.denoise(x, level)?.guided, level.sigma)
    }

    fn first(&self, end: f64) -> Result<Tensor> {
        sum(1.0, self.x, &[(-(-end).exp() * (end - self.t).exp_m1(), &self.start)])
    }

    /// The slope at the share `r` of the step, after an Euler step there.
    fn inner(&mut self, end: f64, r: f64) -> Result<Tensor> {
        let s = self.t + r * (end - self.t);
        let x = self.first(s)?;
        self.at(&x, s)
    }

    fn second(&mut self, end: f64, r: f64) -> Result<Tensor> {
        let inner = self.inner(end, r)?;
        let x = self.second_with(end, r, &inner);
        self.third = Some(inner);
        x
    }

    fn second_with(&self, end: f64, r: f64, inner: &Tensor) -> Result<Tensor> {
        let weight = -(-end).exp() * (end - self.t).exp_m1();
        let late = weight / (2.0 * r);
        sum(1.0, self.x, &[(weight - late, &self.start), (late, inner)])
    }

    fn third(&mut self, end: f64) -> Result<Tensor> {
        let (r1, r2, h) = (1.0 / 3.0, 2.0 / 3.0, end - self.t);
        let inner = match self.third.take() {
            Some(inner) => inner,
            None => self.inner(end, r1)?,
        };
        let s = self.t + r2 * h;
        let scale = -(-s).exp();
        let late = scale * (r2 / r1) * ((r2 * h).exp_m1() / (r2 * h) - 1.0);
        let x = sum(1.0, self.x, &[(scale * (r2 * h).exp_m1() - late, &self.start), (late, &inner)])?;
        let outer = self.at(&x, s)?;
        let scale = -(-end).exp();
        let late = scale / r2 * (h.exp_m1() / h - 1.0);
        sum(1.0, self.x, &[(scale * h.exp_m1() - late, &self.start), (late, &outer)])
    }
}

/// DPM-Solver-fast: steps of third order, and what is left over at the end.
///
/// # Source
/// Lu et al. 2022, arXiv:2206.00927, section 3.4; k-diffusion `sampling.py`, `dpm_solver_fast`.
#[derive(Debug, Clone)]
struct DpmFast {
    process: Arc<dyn NoiseProcess>,
    eta: f64,
    s_noise: f64,
    orders: Vec<usize>,
    /// Where the run ends.
    last: f64,
}

/// Plans a run of as many network calls as steps were asked for.
pub(in crate::sampling) fn plan_fast(planner: &Planner<'_>) -> Result<Schedule> {
    let calls = planner.steps;
    let mut orders = vec![3; (calls / 3 + 1).saturating_sub(if calls.is_multiple_of(3) { 2 } else { 1 })];
    orders.extend(match calls % 3 {
        0 => &[2, 1][..],
        1 => &[1],
        _ => &[2],
    });
    let solver =
        DpmFast { process: Arc::clone(&planner.process), eta: planner.eta(), s_noise: planner.option("s_noise"), orders, last: 0.0 };
    let count = solver.orders.len();
    let (start, end) = planner.time_ends()?;
    let at = |i: usize| (-(start + (end - start) * i as f64 / count as f64)).exp();
    let pairs: Vec<(f64, f64)> = (0..count).map(|i| (at(i), at(i + 1))).collect();
    planner.sigma_pairs(&pairs, Box::new(solver))
}

impl Solver for DpmFast {
    fn step(&mut self, step: &Step, latents: &Tensor, denoiser: &mut dyn Denoiser, noise: &mut dyn NoiseSource) -> Result<Tensor> {
        let to = step.to.sigma;
        let (down, _) = ancestral(step.from.sigma, to, self.eta);
        let end = (-down.ln()).min(-self.last.ln());
        let mut slopes = Slopes::new(&*self.process, denoiser, latents, step.from)?;
        let next = match self.orders.get(step.index) {
            Some(3) => slopes.third(end)?,
            Some(2) => slopes.second(end, 0.5)?,
            _ => slopes.first(end)?,
        };
        if self.eta <= 0.0 {
            return Ok(next);
        }
        let up = (to * to - (-2.0 * end).exp()).max(0.0).sqrt();
        sum(1.0, &next, &[(self.s_noise * up, &noise.fresh(latents)?)])
    }

    fn evaluations(&self, step: &Step) -> usize {
        self.orders.get(step.index).copied().unwrap_or(1)
    }

    fn prepare(&mut self, steps: &[Step]) {
        self.last = steps.last().map_or(0.0, |step| step.to.sigma);
    }
}

/// DPM-Solver-23: a step of third order, whose distance from one of second order decides how long the next one is.
///
/// # Source
/// Lu et al. 2022, arXiv:2206.00927, appendix C; the controller is k-diffusion's `PIDStepSizeController` with its defaults.
#[derive(Debug, Clone)]
struct DpmAdaptive {
    process: Arc<dyn NoiseProcess>,
    eta: f64,
    s_noise: f64,
    relative: f64,
    absolute: f64,
}

/// Plans a run: one step of the loop from the first sigma to the last positive one, however many calls that takes.
pub(in crate::sampling) fn plan_adaptive(planner: &Planner<'_>) -> Result<Schedule> {
    let [s_noise, relative, absolute] = ["s_noise", "rtol", "atol"].map(|name| planner.option(name));
    let solver = DpmAdaptive { process: Arc::clone(&planner.process), eta: planner.eta(), s_noise, relative, absolute };
    let (start, end) = planner.time_ends()?;
    planner.sigma_pairs(&[((-start).exp(), (-end).exp())], Box::new(solver))
}

impl DpmAdaptive {
    /// How far apart two results are, in units of what is tolerated.
    fn error(&self, low: &Tensor, high: &Tensor, before: &Tensor) -> Result<f64> {
        let scale = (low.abs()?.maximum(&before.abs()?)? * self.relative)?.clamp(self.absolute, f64::INFINITY)?;
        let apart = (low - high)?.div(&scale)?.sqr()?.mean_all()?.to_dtype(DType::F64)?;
        Ok(apart.to_scalar::<f64>()?.sqrt())
    }
}

impl Solver for DpmAdaptive {
    fn step(&mut self, step: &Step, latents: &Tensor, denoiser: &mut dyn Denoiser, noise: &mut dyn NoiseSource) -> Result<Tensor> {
        /// Rejected steps in a row after which the error cannot be brought down.
        const MOST_REJECTED: usize = 50;
        let (first, last) = (-step.from.sigma.ln(), -step.to.sigma.ln());
        let order = if self.eta > 0.0 { 1.5 } else { 3.0 };
        let (mut t, mut h, mut rejected) = (first, 0.05, 0);
        let (mut x, mut before) = (latents.clone(), latents.clone());
        while t < last - 1e-5 {
            let end = last.min(t + h);
            let (from, to) = ((-t).exp(), (-end).exp());
            let (down, _) = ancestral(from, to, self.eta);
            let below = if self.eta > 0.0 { last.min(-down.ln()) } else { end };
            let mut slopes = Slopes::new(&*self.process, denoiser, &x, self.process.level(from))?;
            let low = slopes.second(below, 1.0 / 3.0)?;
            let high = slopes.third(below)?;
            let factor = (1.0 / (self.error(&low, &high, &before)? + 1e-8)).powf(1.0 / order);
            let factor = 1.0 + (factor - 1.0).atan();
            h *= factor;
            if factor < 0.81 {
                rejected += 1;
                if rejected > MOST_REJECTED || !h.is_finite() {
                    return Err(Error::Image("the adaptive sampler finds no step that is short enough; try another `sampler`".into()));
                }
                continue;
            }
            rejected = 0;
            before = low;
            x = high;
            if self.eta > 0.0 {
                let up = (to * to - (-2.0 * below).exp()).max(0.0).sqrt();
                x = sum(1.0, &x, &[(self.s_noise * up, &noise.fresh(latents)?)])?;
            }
            t = end;
        }
        Ok(x)
    }

    fn evaluations(&self, _: &Step) -> usize {
        // About what Stable Diffusion takes between its largest and its smallest sigma.
        30
    }
}
