//! DPM-Solver++, multistep: the estimates of earlier steps extrapolate the present one.

use super::{Denoiser, NoiseLevel, NoiseSource, Solver, Step, slope};
use crate::Result;
use crate::sampling::plan::{Planner, Schedule};
use crate::sampling::{SchedulerConfig, blend};
use candle_core::Tensor;

/// How the second-order term is weighted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(in super::super) enum SolverType {
    #[default]
    Midpoint,
    Heun,
}

/// What the polynomial is of, and how a step ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) enum Algorithm {
    /// DPM-Solver++: of the estimates.
    Data,
    /// The same with the geometric mean of the last two steps (stable-diffusion.cpp's "v2").
    DataAveraged,
    /// DPM-Solver: of the noise.
    Noise,
}

/// DPM-Solver++ of order 1, 2 ("2M") or 3 ("3M"), its SDE form, and DPM-Solver.
///
/// In sigma space, with `h = ln(from / to)`, `k = 1 + eta` and `e = exp(−k·h)`:
/// `x' = e·x + (1 − e)·D0 + weights · differences of the history`. The `sqrt(ᾱ)` of the paper's variance-preserving form cancel.
///
/// # Source
/// Lu et al. 2022, arXiv:2211.01095, eq. 8 and algorithm 2; order 3 and the noise form as in arXiv:2206.00927, appendix B and
/// algorithm 2.
#[derive(Debug, Clone)]
pub(in super::super) struct DpmSolver {
    pub(in super::super) order: usize,
    pub(in super::super) solver_type: SolverType,
    pub(in super::super) algorithm: Algorithm,
    /// The SDE: how much noise is drawn at every step.
    pub(in super::super) eta: f64,
    pub(in super::super) s_noise: f64,
    /// The sign of the third-order term's half: diffusers' SDE has −0.5, where k-diffusion's and the ODE have 0.5.
    pub(in super::super) half: f64,
    /// For each step, the highest order that may be used there.
    pub(in super::super) order_limits: Vec<usize>,
    /// `(lambda = −ln sigma, what the polynomial is of)`, newest first.
    pub(in super::super) history: Vec<(f64, Tensor)>,
}

/// Judges the keys of `DPMSolverMultistepScheduler` for its noise form, which cannot reach sigma 0.
pub(in crate::sampling) fn check_noise(config: &SchedulerConfig) -> Result<()> {
    check(config)?;
    let ends = &config.file.final_sigmas_type;
    config.choice("final_sigmas_type", ends, (), &[("sigma_min", ())])
}

/// Judges the keys of `DPMSolverMultistepScheduler`.
pub(in crate::sampling) fn check(config: &SchedulerConfig) -> Result<()> {
    solver_order(config)?;
    solver_type(config)?;
    config.ends_at_zero()?;
    config.choice("variance_type", &config.file.variance_type, (), &[])?;
    config.refuse_true("thresholding", config.file.thresholding)
}

fn solver_type(config: &SchedulerConfig) -> Result<SolverType> {
    // The last three are other classes' values, which diffusers' DPM-Solver reads as its own default.
    use SolverType::{Heun, Midpoint};
    let types = [("midpoint", Midpoint), ("heun", Heun), ("bh1", Midpoint), ("bh2", Midpoint), ("logrho", Midpoint)];
    config.choice("solver_type", &config.file.solver_type, Midpoint, &types)
}

fn solver_order(config: &SchedulerConfig) -> Result<usize> {
    match config.file.solver_order.unwrap_or(2) {
        order @ 1..=3 => Ok(order),
        order => Err(config.refuse("solver_order", &order.to_string(), "1, 2, 3")),
    }
}

/// Plans a run of the ordinary equation.
pub(in crate::sampling) fn plan(planner: &Planner<'_>) -> Result<Schedule> {
    planner.lambda_space(Box::new(solver(planner, Algorithm::Data, 0.0)?))
}

/// Plans a run of the ordinary equation with averaged steps.
pub(in crate::sampling) fn plan_averaged(planner: &Planner<'_>) -> Result<Schedule> {
    let solver = DpmSolver { order: 2, solver_type: SolverType::Midpoint, ..solver(planner, Algorithm::DataAveraged, 0.0)? };
    planner.lambda_space(Box::new(solver))
}

/// Plans a run of the ordinary equation's noise form.
pub(in crate::sampling) fn plan_noise(planner: &Planner<'_>) -> Result<Schedule> {
    planner.lambda_space(Box::new(solver(planner, Algorithm::Noise, 0.0)?))
}

/// Plans a run of the stochastic equation, of second order.
pub(in crate::sampling) fn plan_sde(planner: &Planner<'_>) -> Result<Schedule> {
    planner.lambda_space(Box::new(solver(planner, Algorithm::Data, planner.eta())?))
}

/// Plans a run of the stochastic equation, of second order with Heun's weights.
pub(in crate::sampling) fn plan_sde_heun(planner: &Planner<'_>) -> Result<Schedule> {
    let solver = DpmSolver { solver_type: SolverType::Heun, ..solver(planner, Algorithm::Data, planner.eta())? };
    planner.sigma_space(Box::new(solver))
}

/// Plans a run of the stochastic equation, of third order (k-diffusion's "3M SDE").
pub(in crate::sampling) fn plan_3m_sde(planner: &Planner<'_>) -> Result<Schedule> {
    let solver = solver(planner, Algorithm::Data, planner.eta())?;
    planner.sigma_space(Box::new(DpmSolver { order: 3, solver_type: SolverType::Heun, half: 0.5, order_limits: vec![], ..solver }))
}

fn solver(planner: &Planner<'_>, algorithm: Algorithm, eta: f64) -> Result<DpmSolver> {
    let file = &planner.config.file;
    let half = if planner.sampler.row().options.iter().any(|(name, _)| *name == "eta") { -0.5 } else { 0.5 };
    Ok(DpmSolver {
        order: solver_order(planner.config)?,
        solver_type: solver_type(planner.config)?,
        algorithm,
        eta,
        s_noise: planner.option("s_noise"),
        half,
        order_limits: vec![],
        history: vec![],
    }
    .limited(
        planner.steps,
        file.lower_order_final.unwrap_or(true),
        planner.config.ends_at_zero()?,
        file.euler_at_final.unwrap_or(false),
    ))
}

impl Solver for DpmSolver {
    fn step(&mut self, step: &Step, latents: &Tensor, denoiser: &mut dyn Denoiser, noise: &mut dyn NoiseSource) -> Result<Tensor> {
        // Latents without alpha are those of a diffusion with these sigmas.
        let (from, to) = (step.from.ratio(), step.to.ratio());
        let denoised = denoiser.denoise(latents, step.from)?.guided;
        let of = if self.algorithm == Algorithm::Noise { slope(latents, &denoised, from)? } else { denoised };
        self.history.insert(0, (step.from.lambda(), of.clone()));
        self.history.truncate(self.order.max(1));
        let limit = if to == 0.0 { 1 } else { self.order_limits.get(step.index).copied().unwrap_or(self.order) };
        let order = self.history.len().min(limit);

        let h = (from / to).ln();
        let k = 1.0 + self.eta;
        let e = (to / from).powf(k);
        let mut next = match self.algorithm {
            Algorithm::Noise => blend(1.0, latents, to - from, &of)?,
            Algorithm::DataAveraged if order == 2 => return self.averaged(latents, from, to),
            _ => blend(self.kept(step, e), latents, (1.0 - e) * step.to.alpha, &of)?,
        };
        for (weight, difference) in self.weights(from, to, order).into_iter().zip(self.differences(h, order)?) {
            next = blend(1.0, &next, weight * step.to.alpha, &difference)?;
        }
        if self.eta > 0.0 && to > 0.0 {
            let up = to * (1.0 - (to / from).powf(2.0 * self.eta)).sqrt();
            next = blend(1.0, &next, self.s_noise * up, &noise.between(latents, from, to)?)?;
        }
        Ok(next)
    }

    fn skip(&mut self, steps: usize) -> Option<Vec<(NoiseLevel, NoiseLevel)>> {
        self.order_limits.drain(..steps.min(self.order_limits.len()));
        None
    }
}

impl DpmSolver {
    /// How much of the latents is left, where `e` of them would be without alpha.
    fn kept(&self, step: &Step, e: f64) -> f64 {
        match (step.from.alpha, step.to.alpha) {
            (1.0, 1.0) => e,
            // Also where nothing of the clean latents is there yet.
            _ => step.to.sigma / step.from.sigma * (step.to.ratio() / step.from.ratio()).powf(self.eta),
        }
    }

    /// A step of second order over the mean length of this step and of the last one.
    ///
    /// # Source
    /// stable-diffusion.cpp `src/runtime/denoiser.hpp`, `dpm++2mv2`.
    fn averaged(&self, latents: &Tensor, from: f64, to: f64) -> Result<Tensor> {
        let [(newest, d0), (earlier, d1), ..] = self.history.as_slice() else { return Ok(latents.clone()) };
        let (h, last) = ((from / to).ln(), newest - earlier);
        let share = h.min(last) / (2.0 * h.max(last));
        let estimate = blend(1.0 + share, d0, -share, d1)?;
        blend(to / from, latents, -(-(h + last) / 2.0).exp_m1(), &estimate)
    }

    /// With the orders that diffusers allows at each step.
    fn limited(self, steps: usize, lower_order_final: bool, ends_at_zero: bool, euler_at_final: bool) -> Self {
        let lower = lower_order_final && steps < 15;
        let limit = |i: usize| match steps - i {
            1 if lower || ends_at_zero || euler_at_final => 1,
            2 if lower => 2,
            _ => 3,
        };
        Self { order_limits: (0..steps).map(limit).collect(), ..self }
    }

    /// What the first and second difference are multiplied by.
    fn weights(&self, from: f64, to: f64, order: usize) -> Vec<f64> {
        let h = (from / to).ln();
        if self.algorithm == Algorithm::Noise {
            let first = match self.solver_type {
                SolverType::Midpoint if order == 2 => 0.5 * (to - from),
                _ => to - (from - to) / h,
            };
            return match order {
                0 | 1 => vec![],
                2 => vec![first],
                _ => vec![first, 0.5 * to - (from - to - to * h) / (h * h)],
            };
        }
        // h, with the noise's part.
        let kh = h * (1.0 + self.eta);
        let e = (to / from).powf(1.0 + self.eta);
        let linear = 1.0 - (1.0 - e) / kh;
        match (order, self.solver_type) {
            (0 | 1, _) => vec![],
            (2, SolverType::Midpoint) => vec![0.5 * (1.0 - e)],
            (2, SolverType::Heun) => vec![linear],
            _ => vec![linear, self.half - (e - 1.0 + kh) / (kh * kh)],
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
