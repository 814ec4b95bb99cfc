//! SA-Solver: a stochastic Adams predictor, and a corrector that uses the same network call or one of its own.

use super::{Denoiser, NoiseSource, Solver, Step, lagrange_powers, sum};
use crate::Result;
use crate::sampling::SchedulerConfig;
use crate::sampling::plan::{Planner, Schedule};
use candle_core::Tensor;

/// One network call a step; two where the corrected latents are evaluated again (PECE).
///
/// # Source
/// Xue et al. 2023, arXiv:2309.05019, algorithm 1, equations 15 and 18, and appendix D for second order; where the equation is
/// stochastic is diffusers' choice by timestep, and ComfyUI's by sigma.
#[derive(Debug, Clone)]
struct SaSolver {
    predictor: usize,
    corrector: usize,
    /// Second order as appendix D has it.
    simple: bool,
    again: bool,
    /// The timesteps between which noise is added, and how much.
    noisy: (f64, f64, f64),
    /// The interval is that of the step's start, and not of its end.
    at_start: bool,
    /// Orders fall by what is left: the predictor's and the corrector's room beyond the steps after this one.
    room: (usize, usize),
    steps: usize,
    /// `(lambda, estimate)`, newest first.
    history: Vec<(f64, Tensor)>,
    last: Option<Predicted>,
}

/// The step before.
#[derive(Debug, Clone)]
struct Predicted {
    from: f64,
    corrected: Tensor,
    tau: f64,
    noise: Option<Tensor>,
}

/// Judges the keys of `SASolverScheduler`.
pub(in crate::sampling) fn check(config: &SchedulerConfig) -> Result<()> {
    config.choice("algorithm_type", &config.file.algorithm_type, (), &[("data_prediction", ())])?;
    config.refuse_true("thresholding", config.file.thresholding)
}

/// Plans a run as diffusers does.
pub(in crate::sampling) fn plan(planner: &Planner<'_>) -> Result<Schedule> {
    let file = &planner.config.file;
    let order = |key: Option<usize>| key.unwrap_or(2).clamp(1, 4);
    planner.lambda_space(Box::new(SaSolver {
        predictor: order(file.predictor_order),
        corrector: order(file.corrector_order),
        simple: true,
        again: false,
        noisy: (200.0, 800.0, planner.eta()),
        at_start: true,
        room: (1, 3),
        steps: planner.steps,
        history: vec![],
        last: None,
    }))
}

/// Plans a run as ComfyUI does.
pub(in crate::sampling) fn plan_by_sigma(planner: &Planner<'_>) -> Result<Schedule> {
    let most = (planner.table.len() - 1) as f64;
    planner.sigma_space(Box::new(SaSolver {
        predictor: (planner.option("predictor_order") as usize).clamp(1, 4),
        corrector: (planner.option("corrector_order") as usize).clamp(0, 4),
        simple: planner.option("simple_order_2") != 0.0,
        again: planner.option("pece") != 0.0,
        noisy: (0.2 * most, 0.8 * most, planner.eta()),
        at_start: false,
        room: (0, 1),
        steps: planner.steps,
        history: vec![],
        last: None,
    }))
}

impl Solver for SaSolver {
    fn prepare(&mut self, steps: &[Step]) {
        self.steps = steps.len();
    }

    fn step(&mut self, step: &Step, latents: &Tensor, denoiser: &mut dyn Denoiser, noise: &mut dyn NoiseSource) -> Result<Tensor> {
        let (from, to) = (step.from.sigma, step.to.sigma);
        let mut denoised = denoiser.denoise(latents, step.from)?.guided;
        self.history.insert(0, (step.from.lambda(), denoised.clone()));
        self.history.truncate(self.predictor.max(self.corrector));
        let left = self.steps - step.index - 1;
        let mut x = latents.clone();
        let order = self.corrector.min(self.history.len()).min(left + self.room.1);
        if let Some(last) = self.last.take().filter(|_| order > 0 && (to > 0.0 || self.again)) {
            x = self.update(last.from, from, &last.corrected, last.tau, order, true)?;
            if let Some(noise) = &last.noise {
                x = (x + noise)?;
            }
            if self.again {
                denoised = denoiser.denoise(&x, step.from)?.guided;
                self.history[0].1 = denoised.clone();
            }
        }
        if to == 0.0 {
            return Ok(denoised);
        }
        let at = if self.at_start { step.from } else { step.to };
        let tau = if (self.noisy.0..=self.noisy.1).contains(&at.timestep) { self.noisy.2 } else { 0.0 };
        let order = self.predictor.min(self.history.len()).min(left + self.room.0).max(1);
        let mut next = self.update(from, to, &x, tau, order, false)?;
        let mut added = None;
        if tau > 0.0 {
            let up = to * (-(-2.0 * tau * tau * (from / to).ln()).exp_m1()).sqrt();
            let noise = (noise.fresh(latents)? * up)?;
            next = (next + &noise)?;
            added = Some(noise);
        } else if self.at_start {
            // Drawn and not used, as diffusers does, so that the next draw is the same.
            noise.fresh(latents)?;
        }
        self.last = Some(Predicted { from, corrected: x, tau, noise: added });
        Ok(next)
    }

    fn evaluations(&self, step: &Step) -> usize {
        if self.again && step.index > 0 { 2 } else { 1 }
    }
}

impl SaSolver {
    /// The Adams step from `from` to `to`. A corrector's newest estimate is at `to`.
    fn update(&self, from: f64, to: f64, x: &Tensor, tau: f64, order: usize, corrects: bool) -> Result<Tensor> {
        let (h, k) = ((from / to).ln(), 1.0 + tau * tau);
        let nodes: Vec<f64> = self.history.iter().take(order).map(|(lambda, _)| lambda + to.ln()).collect();
        let whole = -(-k * h).exp_m1();
        let weights = match nodes.as_slice() {
            [_, _] if self.simple && corrects => vec![0.5 * k * h, whole - 0.5 * k * h],
            [newest, earlier] if self.simple => {
                let late = 0.5 * k * h * h / (earlier - newest);
                vec![whole - late, late]
            }
            _ => {
                // Moments of k · exp(k · u) over u = lambda − lambda(to), from −h to 0.
                let mut moments = vec![whole];
                for p in 1..nodes.len() {
                    moments.push(-(-h).powi(p as i32) * (-k * h).exp() - p as f64 / k * moments[p - 1]);
                }
                let weight = |j| lagrange_powers(&nodes, j).iter().zip(&moments).map(|(a, m)| a * m).sum();
                (0..nodes.len()).map(weight).collect()
            }
        };
        let terms: Vec<(f64, &Tensor)> = weights.into_iter().zip(self.history.iter().map(|(_, estimate)| estimate)).collect();
        sum(to / from * (-tau * tau * h).exp(), x, &terms)
    }
}
