//! DPM-Solver++, multistep: the estimates of earlier steps extrapolate the present one.

use super::{Denoiser, NoiseLevel, NoiseSource, Solver, Step};
use crate::sampling::plan::{Planner, Schedule, single};
use crate::sampling::sigmas::spaced;
use crate::sampling::{SchedulerConfig, SigmaSchedule, TimestepSpacing, blend};
use crate::{Error, Result};
use candle_core::Tensor;

/// How the second-order term is weighted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(in super::super) enum SolverType {
    #[default]
    Midpoint,
    Heun,
}

/// DPM-Solver++ of order 1, 2 ("2M") or 3, and its SDE form.
///
/// In sigma space, with `h = ln(from / to)`, `k` = 1 (2 for the SDE) and `e = exp(−k·h)`:
/// `x' = e·x + (1 − e)·D0 + weights · differences of the history`. The `sqrt(ᾱ)` of the paper's variance-preserving form cancel.
///
/// # Source
/// Lu et al. 2022, arXiv:2211.01095, eq. 8 and algorithm 2; order 3 as in arXiv:2206.00927, appendix B.
#[derive(Debug, Clone)]
pub(in super::super) struct DpmSolver {
    pub(in super::super) order: usize,
    pub(in super::super) solver_type: SolverType,
    /// The SDE: draws noise at every step.
    pub(in super::super) stochastic: bool,
    /// For each step, the highest order that may be used there.
    pub(in super::super) order_limits: Vec<usize>,
    /// `(lambda = −ln sigma, denoised)`, newest first.
    pub(in super::super) history: Vec<(f64, Tensor)>,
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
    plan_with(planner, false)
}

/// Plans a run of the stochastic equation.
pub(in crate::sampling) fn plan_sde(planner: &Planner<'_>) -> Result<Schedule> {
    plan_with(planner, true)
}

fn plan_with(planner: &Planner<'_>, stochastic: bool) -> Result<Schedule> {
    let trained = planner.table.len();
    let file = &planner.config.file;
    let usable = planner.table.count_above(file.lambda_min_clipped.unwrap_or(f64::NEG_INFINITY));
    let ends_at_zero = planner.config.ends_at_zero()?;
    if planner.schedule == SigmaSchedule::Discrete && planner.spacing == TimestepSpacing::Leading && usable <= planner.steps {
        let most = usable.saturating_sub(1);
        return Err(Error::Input(format!("--steps {} is too many for leading timesteps; this sampler takes up to {most}", planner.steps)));
    }
    let mut levels: Vec<NoiseLevel> = match planner.schedule {
        SigmaSchedule::Discrete => {
            let whole = spaced(planner.spacing, trained, usable, planner.steps, planner.steps + 1, planner.offset());
            whole.into_iter().map(f64::round_ties_even).map(|t| NoiseLevel::new(single(planner.table.sigma(t)), t)).collect()
        }
        schedule => {
            // The timesteps are whole numbers: rounded for Karras and Lu, except on a cosine schedule, and cut off otherwise.
            let rounds = schedule != SigmaSchedule::Exponential && file.beta_schedule.as_deref() != Some("squaredcos_cap_v2");
            let (max, min) = (planner.table.sigma((trained - 1) as f64), planner.table.sigma(0.0));
            let told = |sigma: f64| {
                let t = planner.table.timestep(sigma);
                NoiseLevel::new(single(sigma), if rounds { t.round_ties_even() } else { t.trunc() })
            };
            schedule.sigmas(max, min, planner.steps).into_iter().map(told).collect()
        }
    };
    levels.push(NoiseLevel::new(if ends_at_zero { 0.0 } else { planner.table.sigma(0.0) }, 0.0));
    let order = solver_order(planner.config)?;
    let lower = file.lower_order_final.unwrap_or(true) && planner.steps < 15;
    let limit = |i: usize| match planner.steps - i {
        1 if lower || ends_at_zero || file.euler_at_final.unwrap_or(false) => 1,
        2 if lower => 2,
        _ => order,
    };
    let solver = DpmSolver {
        order,
        solver_type: solver_type(planner.config)?,
        stochastic,
        order_limits: (0..planner.steps).map(limit).collect(),
        history: vec![],
    };
    let steps = levels.windows(2).map(|pair| (pair[0], pair[1])).collect();
    Ok(planner.assemble(steps, Box::new(solver)))
}

impl Solver for DpmSolver {
    fn step(&mut self, step: &Step, latents: &Tensor, denoiser: &mut dyn Denoiser, noise: &mut dyn NoiseSource) -> Result<Tensor> {
        let (from, to) = (step.from.sigma, step.to.sigma);
        if from == to {
            // Rounded timesteps coincide when there are nearly as many steps as trained levels; diffusers divides by 0 here.
            return Ok(latents.clone());
        }
        let denoised = denoiser.denoise(latents, step.from)?.guided;
        self.history.insert(0, (-from.ln(), denoised.clone()));
        self.history.truncate(self.order);
        let order = self.history.len().min(self.order_limits.get(step.index).copied().unwrap_or(1));

        let h = (from / to).ln();
        let k = if self.stochastic { 2.0 } else { 1.0 };
        let e = (to / from).powf(k);
        let mut next = blend(e, latents, 1.0 - e, &denoised)?;
        for (weight, difference) in self.weights(k * h, e, order).into_iter().zip(self.differences(h, order)?) {
            next = blend(1.0, &next, weight, &difference)?;
        }
        if self.stochastic {
            next = blend(1.0, &next, to * (1.0 - e).sqrt(), &noise.fresh(latents)?)?;
        }
        Ok(next)
    }

    fn evaluations(&self, step: &Step) -> usize {
        usize::from(step.from.sigma != step.to.sigma)
    }

    fn skip(&mut self, steps: usize) -> Option<Vec<(NoiseLevel, NoiseLevel)>> {
        self.order_limits.drain(..steps.min(self.order_limits.len()));
        None
    }
}

impl DpmSolver {
    /// What the first and second difference are multiplied by; `kh` is h, doubled for the SDE.
    fn weights(&self, kh: f64, e: f64, order: usize) -> Vec<f64> {
        let linear = 1.0 - (1.0 - e) / kh;
        match (order, self.solver_type) {
            (0 | 1, _) => vec![],
            (2, SolverType::Midpoint) => vec![0.5 * (1.0 - e)],
            (2, SolverType::Heun) => vec![linear],
            // The sign of the SDE's half is diffusers'; its papers have no third-order SDE.
            _ => vec![linear, if self.stochastic { -0.5 } else { 0.5 } - (e - 1.0 + kh) / (kh * kh)],
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
