//! DPM-Solver++, single step, over the levels of the schedule, and DEIS in log-rho: diffusers' classes beside `dpm_solver`.

use super::{Denoiser, NoiseSource, Solver, Step, exponential, slope, sum};
use crate::Result;
use crate::sampling::SchedulerConfig;
use crate::sampling::plan::{Planner, Schedule};
use candle_core::Tensor;

/// Second order: one step of first order, and a step of second order over both levels from where the first one started.
///
/// # Source
/// Lu et al. 2022, arXiv:2211.01095, algorithm 1; the order of the orders is that of diffusers@v0.36
/// `scheduling_dpmsolver_singlestep.py`, `get_order_list`.
#[derive(Debug, Clone, Default)]
struct Singlestep {
    orders: Vec<usize>,
    /// Where the last step of first order started: its sigma, latents and estimate.
    base: Option<(f64, Tensor, Tensor)>,
}

/// Judges the keys of `DPMSolverSinglestepScheduler`.
pub(in crate::sampling) fn check(config: &SchedulerConfig) -> Result<()> {
    config.ends_at_zero()?;
    config.choice("algorithm_type", &config.file.algorithm_type, (), &[("dpmsolver++", ())])?;
    config.choice("solver_type", &config.file.solver_type, (), &[("midpoint", ()), ("bh1", ()), ("bh2", ()), ("logrho", ())])?;
    config.choice("solver_order", &config.file.solver_order.map(|order| order.to_string()), (), &[("2", ())])?;
    config.refuse_true("use_flow_sigmas", config.file.use_flow_sigmas)?;
    config.refuse_true("thresholding", config.file.thresholding)
}

/// Plans a run.
pub(in crate::sampling) fn plan(planner: &Planner<'_>) -> Result<Schedule> {
    planner.lambda_space(Box::<Singlestep>::default())
}

impl Solver for Singlestep {
    fn prepare(&mut self, steps: &[Step]) {
        self.orders = (0..steps.len()).map(|i| 1 + i % 2).collect();
        if let Some(last) = self.orders.last_mut().filter(|_| steps.last().is_some_and(|step| step.to.sigma == 0.0)) {
            *last = 1;
        }
    }

    fn step(&mut self, step: &Step, latents: &Tensor, denoiser: &mut dyn Denoiser, _: &mut dyn NoiseSource) -> Result<Tensor> {
        let (from, to) = (step.from.sigma, step.to.sigma);
        let denoised = denoiser.denoise(latents, step.from)?.guided;
        let second = self.orders.get(step.index) == Some(&2);
        if let Some((start, x, first)) = self.base.take().filter(|_| second) {
            // The slope between both estimates, for the half of the whole step.
            let r = (start / from).ln() / (start / to).ln();
            let estimate = sum(1.0 - 0.5 / r, &first, &[(0.5 / r, &denoised)])?;
            return exponential(&x, &estimate, start, to);
        }
        let next = exponential(latents, &denoised, from, to)?;
        self.base = Some((from, latents.clone(), denoised));
        Ok(next)
    }
}

/// DEIS in log-rho: the polynomial is in ln sigma, whose integral has a closed form.
///
/// # Source
/// Zhang & Chen 2022, arXiv:2204.13902, section 3.3 (ρAB with a logarithm); diffusers@v0.36 `scheduling_deis_multistep.py`.
#[derive(Debug, Clone)]
struct LogRhoDeis {
    order: usize,
    lower_order_final: bool,
    steps: usize,
    /// `(sigma, slope)`, newest first.
    history: Vec<(f64, Tensor)>,
}

/// Judges the keys of `DEISMultistepScheduler`.
pub(in crate::sampling) fn check_deis(config: &SchedulerConfig) -> Result<()> {
    // Other classes' values, which diffusers' DEIS reads as its own.
    let solver_types = ["logrho", "midpoint", "heun", "bh1", "bh2"].map(|name| (name, ()));
    config.choice("algorithm_type", &config.file.algorithm_type, (), &[("deis", ()), ("dpmsolver", ()), ("dpmsolver++", ())])?;
    config.choice("solver_type", &config.file.solver_type, (), &solver_types)?;
    let orders = ["1", "2", "3"].map(|order| (order, ()));
    config.choice("solver_order", &config.file.solver_order.map(|order| order.to_string()), (), &orders)?;
    config.refuse_true("use_flow_sigmas", config.file.use_flow_sigmas)?;
    config.refuse_true("thresholding", config.file.thresholding)
}

/// Plans a run of DEIS.
pub(in crate::sampling) fn plan_deis(planner: &Planner<'_>) -> Result<Schedule> {
    let file = &planner.config.file;
    let (order, lower_order_final) = (file.solver_order.unwrap_or(2).clamp(1, 3), file.lower_order_final.unwrap_or(true));
    let solver = LogRhoDeis { order, lower_order_final, steps: planner.steps, history: vec![] };
    planner.lambda_space(Box::new(solver))
}

impl Solver for LogRhoDeis {
    fn prepare(&mut self, steps: &[Step]) {
        self.steps = steps.len();
    }

    fn step(&mut self, step: &Step, latents: &Tensor, denoiser: &mut dyn Denoiser, _: &mut dyn NoiseSource) -> Result<Tensor> {
        let (from, to) = (step.from.sigma, step.to.sigma);
        let found = slope(latents, &denoiser.denoise(latents, step.from)?.guided, from)?;
        self.history.insert(0, (from, found));
        self.history.truncate(self.order);
        let left = self.steps - step.index;
        let order = if self.lower_order_final && self.steps < 15 { left } else { self.order };
        let used = self.history.iter().take(order);
        let logs: Vec<f64> = used.clone().map(|(sigma, _)| sigma.ln()).collect();
        let integral = |j: usize, at: f64| -> f64 {
            if at == 0.0 {
                return 0.0;
            }
            let t = at.ln();
            let others: Vec<f64> = (0..logs.len()).filter(|k| *k != j).map(|k| logs[k]).collect();
            let scale: f64 = others.iter().map(|other| logs[j] - other).product();
            // ∫ dσ, ∫ (t − c) dσ and ∫ (t − c)(t − d) dσ over σ = e^t.
            let whole = match others.as_slice() {
                [c] => t - c - 1.0,
                [c, d] => t * t - (2.0 + c + d) * t + 2.0 + c + d + c * d,
                _ => 1.0,
            };
            at * whole / scale
        };
        let weights = (0..logs.len()).map(|j| integral(j, to) - integral(j, from));
        let terms: Vec<(f64, &Tensor)> = weights.zip(used.map(|(_, slope)| slope)).collect();
        sum(1.0, latents, &terms)
    }
}
