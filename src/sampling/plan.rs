//! Which levels a run visits, and the loop that visits them.

use super::dpm_solver::DpmSolver;
use super::euler::Euler;
use super::heun::Heun;
use super::levels::{NoiseTable, spaced};
use super::pndm::{Pndm, PndmStep, rescale};
use super::{Denoiser, NoiseLevel, NoiseSource, PredictionType, Sampler, Scheduler, SchedulerConfig, SigmaSchedule, Step, TimestepSpacing};
use crate::{Error, Result};
use candle_core::Tensor;

/// The steps of a run and the solver that takes them.
#[derive(Debug, Clone)]
pub struct Schedule {
    /// From the noisiest level down; never empty.
    pub steps: Vec<Step>,
    /// Unit noise times this is where a run from pure noise starts. An image's latents start at `x0 + steps[0].from.sigma · noise`.
    pub initial_scale: f64,
    /// The last latents times this are the clean latents.
    pub final_scale: f64,
    /// What the network predicts.
    pub prediction: PredictionType,
    /// The sampler.
    pub sampler: Sampler,
    solver: Solver,
    /// Between steps, latents keep their variance-preserving value and not their sigma-space one.
    variance_preserving: bool,
}

/// A solver before its first step.
#[derive(Debug, Clone)]
enum Solver {
    Euler(Euler),
    Heun(Heun),
    Pndm { kinds: Vec<PndmStep>, calls: Calls },
    Dpm(DpmSolver),
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

/// Plans `steps` denoising steps.
///
/// # Errors
/// [`Error::Input`] where `steps` is 0 or more than the model was trained on; [`Error::Model`] (or [`Error::Input`] where there is no
/// file) for a value of the configuration that is not implemented.
pub fn plan(config: &SchedulerConfig, steps: usize) -> Result<Schedule> {
    config.check()?;
    let sampler = config.sampler()?;
    let planner = Planner {
        config,
        sampler,
        steps,
        table: config.noise_table()?,
        spacing: config.spacing()?,
        schedule: config.sigma_schedule()?,
        prediction: config.prediction()?,
    };
    let trained = planner.table.len();
    if steps == 0 || steps > trained {
        return Err(Error::Input(format!("--steps {steps} is out of range; this model takes 1 to {trained}")));
    }
    match sampler {
        Sampler::Pndm => planner.pndm(),
        Sampler::Ddim => planner.ddim(),
        Sampler::Ddpm => planner.ddpm(),
        Sampler::Euler | Sampler::EulerAncestral | Sampler::Heun => planner.sigma_space(),
        Sampler::Dpmpp2m | Sampler::Dpmpp2mSde => planner.dpm_solver(),
    }
}

struct Planner<'a> {
    config: &'a SchedulerConfig,
    sampler: Sampler,
    steps: usize,
    table: NoiseTable,
    spacing: TimestepSpacing,
    schedule: SigmaSchedule,
    prediction: PredictionType,
}

impl Planner<'_> {
    fn offset(&self) -> f64 {
        self.config.file.steps_offset.unwrap_or(0) as f64
    }

    /// Whole timesteps, descending, inside the table (diffusers fails where an offset leaves it).
    fn whole_timesteps(&self) -> Vec<i64> {
        let trained = self.table.len();
        let spaced = spaced(self.spacing, trained, trained, self.steps, self.steps, self.offset());
        spaced.into_iter().map(|t| (t.round_ties_even() as i64).clamp(0, trained as i64 - 1)).collect()
    }

    /// Trained timesteps to a step, rounded down: how far DDIM and PNDM look ahead whatever the spacing.
    fn ratio(&self) -> i64 {
        (self.table.len() / self.steps) as i64
    }

    /// Sigma behind the last timestep of DDIM and PNDM.
    fn final_sigma(&self, default_to_one: bool) -> f64 {
        if self.config.file.set_alpha_to_one.unwrap_or(default_to_one) { 0.0 } else { self.table.sigma(0.0) }
    }

    fn ddim(self) -> Result<Schedule> {
        let euler = Euler { eta: self.config.eta.unwrap_or(0.0), clip: self.config.clip_range()?, ..Euler::default() };
        let (ratio, end) = (self.ratio(), self.final_sigma(true));
        let steps = self.whole_timesteps().into_iter().map(|t| (level(&self.table, t, end), level(&self.table, t - ratio, end))).collect();
        Ok(self.assemble(steps, Solver::Euler(euler)))
    }

    fn ddpm(self) -> Result<Schedule> {
        let large_variance = self.config.large_variance()?;
        let euler = Euler { eta: 1.0, clip: self.config.clip_range()?, clip_direction: true, large_variance };
        let timesteps = self.whole_timesteps();
        let next = timesteps.iter().copied().skip(1).chain([-1]);
        let steps = timesteps.iter().zip(next).map(|(t, next)| (level(&self.table, *t, 0.0), level(&self.table, next, 0.0))).collect();
        Ok(self.assemble(steps, Solver::Euler(euler)))
    }

    fn pndm(self) -> Result<Schedule> {
        let timesteps = self.whole_timesteps();
        let ratio = self.ratio();
        let mut calls =
            Calls { runge_kutta: vec![], multistep: vec![], ratio, table: self.table.clone(), final_sigma: self.final_sigma(false) };
        if self.config.file.skip_prk_steps.unwrap_or(false) {
            // The second timestep is called twice: by the correction of the first step, and by the second step.
            calls.multistep = timesteps;
            if let Some(second) = calls.multistep.get(1).copied() {
                calls.multistep.insert(1, second);
            }
        } else {
            let (start, rest) = timesteps.split_at_checked(3).filter(|(_, rest)| !rest.is_empty()).ok_or_else(|| {
                Error::Input(format!("--steps {} is too few for PNDM with its Runge-Kutta start; it takes 4 or more", self.steps))
            })?;
            calls.runge_kutta = start.iter().copied().chain(rest.first().copied()).collect();
            calls.multistep = rest.to_vec();
        }
        let (steps, kinds) = calls.steps();
        Ok(self.assemble(steps, Solver::Pndm { kinds, calls }))
    }

    /// Euler, Euler ancestral and Heun.
    fn sigma_space(self) -> Result<Schedule> {
        let trained = self.table.len();
        let timesteps: Vec<f64> =
            spaced(self.spacing, trained, trained, self.steps, self.steps, self.offset()).into_iter().map(single).collect();
        let sigmas: Vec<f64> = timesteps.iter().map(|t| self.table.sigma(*t)).collect();
        let (mut max, mut min) = (sigmas.first().copied().unwrap_or(0.0), sigmas.last().copied().unwrap_or(0.0));
        if self.sampler == Sampler::Euler {
            (max, min) = (self.config.file.sigma_max.unwrap_or(max), self.config.file.sigma_min.unwrap_or(min));
        }
        let mut levels: Vec<NoiseLevel> = match self.schedule {
            SigmaSchedule::Discrete => timesteps.iter().zip(&sigmas).map(|(t, s)| NoiseLevel { sigma: single(*s), timestep: *t }).collect(),
            schedule => {
                let told = |sigma: f64| NoiseLevel { sigma: single(sigma), timestep: single(self.table.timestep(sigma)) };
                schedule.sigmas(max, min, self.steps).into_iter().map(told).collect()
            }
        };
        let largest = levels.iter().map(|l| l.sigma).fold(0.0, f64::max);
        let zero = self.sampler != Sampler::Euler || self.config.ends_at_zero()?;
        levels.push(NoiseLevel { sigma: if zero { 0.0 } else { self.table.sigma(0.0) }, timestep: 0.0 });
        let eta = if self.sampler == Sampler::Euler { 0.0 } else { self.config.eta.unwrap_or(1.0) };
        let solver = match self.sampler {
            Sampler::Heun => Solver::Heun(Heun { clip: self.config.clip_range()? }),
            _ => Solver::Euler(Euler { eta, ..Euler::default() }),
        };
        let steps = levels.windows(2).map(|pair| (pair[0], pair[1])).collect();
        // The latents' own variance is left out where the run starts from the noisiest level.
        let initial_scale = if self.spacing == TimestepSpacing::Leading { (largest * largest + 1.0).sqrt() } else { largest };
        let schedule = self.assemble(steps, solver);
        Ok(Schedule { initial_scale, final_scale: 1.0, variance_preserving: false, ..schedule })
    }

    fn dpm_solver(self) -> Result<Schedule> {
        let trained = self.table.len();
        let file = &self.config.file;
        let usable = self.table.count_above(file.lambda_min_clipped.unwrap_or(f64::NEG_INFINITY));
        let ends_at_zero = self.config.ends_at_zero()?;
        if self.schedule == SigmaSchedule::Discrete && self.spacing == TimestepSpacing::Leading && usable <= self.steps {
            let most = usable.saturating_sub(1);
            return Err(Error::Input(format!("--steps {} is too many for leading timesteps; this sampler takes up to {most}", self.steps)));
        }
        let mut levels: Vec<NoiseLevel> = match self.schedule {
            SigmaSchedule::Discrete => {
                let whole = spaced(self.spacing, trained, usable, self.steps, self.steps + 1, self.offset());
                whole
                    .into_iter()
                    .map(f64::round_ties_even)
                    .map(|t| NoiseLevel { sigma: single(self.table.sigma(t)), timestep: t })
                    .collect()
            }
            schedule => {
                // The timesteps are whole numbers: rounded for Karras and Lu, except on a cosine schedule, and cut off otherwise.
                let rounds = schedule != SigmaSchedule::Exponential && file.beta_schedule.as_deref() != Some("squaredcos_cap_v2");
                let (max, min) = (self.table.sigma((trained - 1) as f64), self.table.sigma(0.0));
                let told = |sigma: f64| {
                    let t = self.table.timestep(sigma);
                    NoiseLevel { sigma: single(sigma), timestep: if rounds { t.round_ties_even() } else { t.trunc() } }
                };
                schedule.sigmas(max, min, self.steps).into_iter().map(told).collect()
            }
        };
        levels.push(NoiseLevel { sigma: if ends_at_zero { 0.0 } else { self.table.sigma(0.0) }, timestep: 0.0 });
        let order = self.config.solver_order()?;
        let lower = file.lower_order_final.unwrap_or(true) && self.steps < 15;
        let limit = |i: usize| match self.steps - i {
            1 if lower || ends_at_zero || file.euler_at_final.unwrap_or(false) => 1,
            2 if lower => 2,
            _ => order,
        };
        let solver = DpmSolver {
            order,
            solver_type: self.config.solver_type()?,
            stochastic: self.sampler == Sampler::Dpmpp2mSde,
            order_limits: (0..self.steps).map(limit).collect(),
            history: vec![],
        };
        let steps = levels.windows(2).map(|pair| (pair[0], pair[1])).collect();
        Ok(self.assemble(steps, Solver::Dpm(solver)))
    }

    /// The schedule of variance-preserving latents.
    fn assemble(&self, pairs: Vec<(NoiseLevel, NoiseLevel)>, solver: Solver) -> Schedule {
        let (initial_scale, final_scale) = ends(&pairs);
        let steps = pairs.into_iter().enumerate().map(|(index, (from, to))| Step { index, from, to }).collect();
        let (prediction, sampler) = (self.prediction, self.sampler);
        Schedule { steps, initial_scale, final_scale, prediction, sampler, solver, variance_preserving: true }
    }
}

/// The scales of variance-preserving latents at both ends.
fn ends(pairs: &[(NoiseLevel, NoiseLevel)]) -> (f64, f64) {
    let norm = |sigma: f64| (1.0 + sigma * sigma).sqrt();
    (pairs.first().map_or(1.0, |p| norm(p.0.sigma)), pairs.last().map_or(1.0, |p| 1.0 / norm(p.1.sigma)))
}

/// Sigmas and fractional timesteps are f32 in diffusers.
fn single(x: f64) -> f64 {
    f64::from(x as f32)
}

/// The level of a whole timestep; before the first one, `end`.
fn level(table: &NoiseTable, timestep: i64, end: f64) -> NoiseLevel {
    if timestep < 0 {
        return NoiseLevel { sigma: end, timestep: 0.0 };
    }
    let timestep = timestep as f64;
    NoiseLevel { sigma: table.sigma(timestep), timestep }
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

impl Schedule {
    /// A solver with no history.
    pub fn solver(&self) -> Box<dyn Scheduler> {
        match &self.solver {
            Solver::Euler(euler) => Box::new(*euler),
            Solver::Heun(heun) => Box::new(*heun),
            Solver::Pndm { kinds, .. } => Box::new(Pndm { prediction: self.prediction, steps: kinds.clone(), outputs: vec![] }),
            Solver::Dpm(solver) => Box::new(solver.clone()),
        }
    }

    /// Network calls that a step of [`Schedule::steps`] makes.
    pub fn evaluations(&self, step: &Step) -> usize {
        match &self.solver {
            Solver::Heun(_) if step.to.sigma > 0.0 => 2,
            Solver::Dpm(_) if step.from.sigma == step.to.sigma => 0,
            Solver::Pndm { kinds, .. } => kinds.get(step.index).map_or(1, |k| k.evaluations()),
            _ => 1,
        }
    }

    /// The schedule without its first `index` steps, as diffusers' image to image pipelines cut it; steps count from 0 again.
    ///
    /// A run from here starts at `x0 + steps[0].from.sigma · noise`. PNDM counts network calls there, of which its first step makes two,
    /// so that its run starts one timestep earlier.
    ///
    /// # Errors
    /// [`Error::Input`] where no step would be left.
    pub fn starting_at(&self, index: usize) -> Result<Schedule> {
        if index >= self.steps.len() {
            return Err(Error::Input(format!("--strength is too low: none of the {} steps would be taken", self.steps.len())));
        }
        if index == 0 {
            return Ok(self.clone());
        }
        let mut rest = self.clone();
        let mut pairs: Vec<_> = self.steps.iter().skip(index).map(|s| (s.from, s.to)).collect();
        match &mut rest.solver {
            Solver::Dpm(solver) => drop(solver.order_limits.drain(..index)),
            Solver::Pndm { kinds, calls } if calls.runge_kutta.is_empty() => {
                calls.multistep.drain(..index);
                (pairs, *kinds) = calls.steps();
            }
            Solver::Pndm { kinds, .. } => drop(kinds.drain(..index)),
            Solver::Euler(_) | Solver::Heun(_) => {}
        }
        if self.variance_preserving {
            (rest.initial_scale, rest.final_scale) = ends(&pairs);
        }
        rest.steps = pairs.into_iter().enumerate().map(|(index, (from, to))| Step { index, from, to }).collect();
        Ok(rest)
    }
}

/// Runs a schedule: the one denoising loop of the crate.
///
/// `latents` are in sigma space at `schedule.steps[0].from`; what comes back are clean latents. After each step `on_step` sees the
/// step and the latents at its end, in sigma space, and may stop the run by an error such as [`Error::Cancelled`].
///
/// # Shapes
/// `(batch, channels, height, width)` in f32, kept.
pub fn sample(
    schedule: &Schedule,
    latents: &Tensor,
    denoiser: &mut dyn Denoiser,
    noise: &mut dyn NoiseSource,
    on_step: &mut dyn FnMut(&Step, &Tensor) -> Result<()>,
) -> Result<Tensor> {
    let mut solver = schedule.solver();
    let mut latents = latents.clone();
    let mut at = None;
    for step in &schedule.steps {
        if let Some(sigma) = at.filter(|_| schedule.variance_preserving) {
            // Nothing happens where a step starts at the level at which the last one ended, which is nearly always.
            latents = rescale(&latents, sigma, step.from.sigma)?;
        }
        latents = solver.step(*step, &latents, denoiser, noise)?;
        at = Some(step.to.sigma);
        on_step(step, &latents)?;
    }
    if schedule.final_scale == 1.0 { Ok(latents) } else { Ok(latents.affine(schedule.final_scale, 0.0)?) }
}
