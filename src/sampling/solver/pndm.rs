//! PNDM: linear multistep on the network's output ("PLMS"), with an optional Runge-Kutta start.

use super::{Denoiser, NoiseLevel, NoiseSource, Solver, Step, rescale};
use crate::sampling::plan::{Planner, Schedule, level};
use crate::sampling::sigmas::NoiseTable;
use crate::sampling::{NoiseProcess, blend};
use crate::{Error, Result};
use candle_core::Tensor;
use std::sync::Arc;

/// Adams-Bashforth weights over the newest outputs, newest first, by how many there are.
pub(super) const ADAMS_BASHFORTH: [&[f64]; 4] =
    [&[1.0], &[3.0 / 2.0, -1.0 / 2.0], &[23.0 / 12.0, -16.0 / 12.0, 5.0 / 12.0], &[55.0 / 24.0, -59.0 / 24.0, 37.0 / 24.0, -9.0 / 24.0]];

/// What happens in one step.
#[derive(Debug, Clone, Copy, PartialEq)]
enum PndmStep {
    /// One call, and the history.
    Multistep,
    /// The first step of PLMS, two calls: predict, then step with the mean of both outputs.
    ///
    /// The sigmas agree with those of the [`Step`] when the timesteps are evenly spaced, and differ as diffusers' do when they are not.
    Pair {
        /// Where the prediction ends.
        predicted: f64,
        /// Where the corrected step starts.
        corrected_from: f64,
    },
    /// Classical Runge-Kutta, four calls.
    RungeKutta {
        /// Sigma half-way, where the first two predictions end.
        middle: f64,
        /// What the network is told half-way.
        told: NoiseLevel,
    },
}

impl PndmStep {
    /// Network calls.
    fn evaluations(self) -> usize {
        match self {
            PndmStep::Multistep => 1,
            PndmStep::Pair { .. } => 2,
            PndmStep::RungeKutta { .. } => 4,
        }
    }
}

/// Keeps the last outputs of the network (noise or velocity, whichever it predicts) and extrapolates them.
///
/// # Source
/// Liu et al. 2022, arXiv:2202.09778, eq. 9, 12, 13 and algorithm 2; the pair that starts PLMS is CompVis latent-diffusion's.
#[derive(Debug, Clone)]
pub(super) struct Pndm {
    process: Arc<dyn NoiseProcess>,
    steps: Vec<PndmStep>,
    calls: Calls,
    /// Newest first.
    outputs: Vec<Tensor>,
}

/// The timesteps of PNDM's network calls: a run that starts in the middle starts in the middle of these.
#[derive(Debug, Clone)]
struct Calls {
    runge_kutta: Vec<i64>,
    multistep: Vec<i64>,
    ratio: i64,
    table: NoiseTable,
    final_sigma: f64,
}

/// Plans a run of PNDM.
pub(in crate::sampling) fn plan(planner: &Planner<'_>) -> Result<Schedule> {
    let timesteps = planner.whole_timesteps();
    let ratio = planner.ratio();
    let mut calls =
        Calls { runge_kutta: vec![], multistep: vec![], ratio, table: planner.table.clone(), final_sigma: planner.final_sigma(false) };
    if planner.config.file.skip_prk_steps.unwrap_or(false) {
        // The second timestep is called twice: by the correction of the first step, and by the second step.
        calls.multistep = timesteps;
        if let Some(second) = calls.multistep.get(1).copied() {
            calls.multistep.insert(1, second);
        }
    } else {
        let (start, rest) = timesteps.split_at_checked(3).filter(|(_, rest)| !rest.is_empty()).ok_or_else(|| {
            Error::Input(format!("`steps` {} is too few for PNDM with its Runge-Kutta start; it takes 4 or more", planner.steps))
        })?;
        calls.runge_kutta = start.iter().copied().chain(rest.first().copied()).collect();
        calls.multistep = rest.to_vec();
    }
    let (steps, kinds) = calls.steps();
    let process = Arc::clone(&planner.process);
    Ok(planner.assemble(steps, Box::new(Pndm { process, steps: kinds, calls, outputs: vec![] })))
}

impl Solver for Pndm {
    fn step(&mut self, step: &Step, latents: &Tensor, denoiser: &mut dyn Denoiser, _: &mut dyn NoiseSource) -> Result<Tensor> {
        let process = Arc::clone(&self.process);
        // The network's output at a level, recovered from the denoised latents.
        let mut output = |x: &Tensor, level: NoiseLevel| process.output(x, &denoiser.denoise(x, level)?.guided, level.sigma);
        let (from, to) = (step.from.sigma, step.to.sigma);
        let first = output(latents, step.from)?;
        let kind = self.steps.get(step.index).copied().unwrap_or(PndmStep::Multistep);
        let (start, slope) = match kind {
            PndmStep::Multistep => {
                self.remember(first);
                (from, self.extrapolated()?)
            }
            PndmStep::Pair { predicted, corrected_from } => {
                let x = rescale(&self.transfer(latents, from, predicted, &first)?, predicted, to)?;
                let second = output(&x, step.to)?;
                self.remember(first.clone());
                (corrected_from, ((first + second)? * 0.5)?)
            }
            PndmStep::RungeKutta { middle, told } => {
                let at = |x: Tensor, level: f64| rescale(&x, level, told.sigma);
                let second = output(&at(self.transfer(latents, from, middle, &first)?, middle)?, told)?;
                let third = output(&at(self.transfer(latents, from, told.sigma, &second)?, told.sigma)?, told)?;
                let fourth = output(&self.transfer(latents, from, to, &third)?, step.to)?;
                self.remember(first.clone());
                let outer = blend(1.0 / 6.0, &first, 1.0 / 6.0, &fourth)?;
                let inner = blend(1.0 / 3.0, &second, 1.0 / 3.0, &third)?;
                (from, (outer + inner)?)
            }
        };
        self.transfer(&rescale(latents, from, start)?, start, to, &slope)
    }

    fn skips_empty_steps(&self) -> bool {
        false
    }

    fn evaluations(&self, step: &Step) -> usize {
        self.steps.get(step.index).map_or(1, |kind| kind.evaluations())
    }

    fn skip(&mut self, steps: usize) -> Option<Vec<(NoiseLevel, NoiseLevel)>> {
        if !self.calls.runge_kutta.is_empty() {
            self.steps.drain(..steps.min(self.steps.len()));
            return None;
        }
        self.calls.multistep.drain(..steps.min(self.calls.multistep.len()));
        let (pairs, kinds) = self.calls.steps();
        self.steps = kinds;
        Some(pairs)
    }
}

impl Pndm {
    /// Multistep between pairs of levels, after an improved Euler step from the first level to the second.
    pub(super) fn improved_euler_first(planner: &Planner<'_>, pairs: &[(NoiseLevel, NoiseLevel)]) -> Self {
        let mut steps = vec![PndmStep::Multistep; pairs.len()];
        if let (Some(first), Some((from, to))) = (steps.first_mut(), pairs.first()) {
            *first = PndmStep::Pair { predicted: to.sigma, corrected_from: from.sigma };
        }
        // These timesteps are not cut as diffusers cuts its own.
        let calls = Calls { runge_kutta: vec![0], multistep: vec![], ratio: 1, table: planner.table.clone(), final_sigma: 0.0 };
        Self { process: Arc::clone(&planner.process), steps, calls, outputs: vec![] }
    }

    fn remember(&mut self, output: Tensor) {
        self.outputs.insert(0, output);
        self.outputs.truncate(ADAMS_BASHFORTH.len());
    }

    fn extrapolated(&self) -> Result<Tensor> {
        let weights = ADAMS_BASHFORTH.get(self.outputs.len().saturating_sub(1)).copied().unwrap_or(&[]);
        let mut terms = weights.iter().zip(&self.outputs).map(|(w, o)| o.affine(*w, 0.0));
        let mut sum = terms.next().unwrap_or_else(|| Err(candle_core::Error::Msg("PNDM has no history".into())))?;
        for term in terms {
            sum = (sum + term?)?;
        }
        Ok(sum)
    }

    /// Eq. 9 of the paper in sigma space: along the noise that `output` means at `from`.
    fn transfer(&self, x: &Tensor, from: f64, to: f64, output: &Tensor) -> Result<Tensor> {
        let denoised = self.process.denoised(x, output, from)?;
        blend(to / from, x, 1.0 - to / from, &denoised)
    }
}

impl Calls {
    fn at(&self, timestep: i64) -> NoiseLevel {
        level(&self.table, timestep, self.final_sigma)
    }

    /// The steps that these calls make, and how each is solved.
    fn steps(&self) -> (Vec<(NoiseLevel, NoiseLevel)>, Vec<PndmStep>) {
        let half = self.ratio / 2;
        let runge_kutta = self.runge_kutta.windows(2).map(|pair| {
            let told = self.at(pair[1] + half);
            ((self.at(pair[0]), self.at(pair[1])), PndmStep::RungeKutta { middle: self.at(pair[0] - half).sigma, told })
        });
        let pair = match self.multistep.as_slice() {
            [first, second, ..] if self.runge_kutta.is_empty() => Some((*first, *second)),
            _ => None,
        };
        let pair_step = pair.map(|(first, second)| {
            let kind = PndmStep::Pair { predicted: self.at(first - self.ratio).sigma, corrected_from: self.at(second + self.ratio).sigma };
            ((self.at(first), self.at(second)), kind)
        });
        let rest = self.multistep.iter().skip(if pair.is_some() { 2 } else { 0 });
        let rest = rest.map(|t| ((self.at(*t), self.at(*t - self.ratio)), PndmStep::Multistep));
        runge_kutta.chain(pair_step).chain(rest).unzip()
    }
}
