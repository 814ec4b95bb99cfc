//! Which levels a run visits.

use super::config::Levels;
use super::sigmas::{NoiseTable, spaced};
use super::{Like, NoiseLevel, NoiseProcess, Sampler, SchedulerConfig, SigmaSchedule, Solver, Step, TimestepSpacing, VariancePreserving};
use crate::{Error, Result};
use candle_core::Tensor;
use std::sync::Arc;

/// The steps of a run and the solver that takes them.
#[derive(Debug, Clone)]
pub struct Schedule {
    /// From the noisiest level down; never empty.
    pub steps: Vec<Step>,
    /// Unit noise times this is where a run from pure noise starts. An image's latents start at [`NoiseProcess::mix`] of
    /// `steps[0].from.sigma`.
    pub initial_scale: f64,
    /// The last latents times this are the clean latents.
    pub final_scale: f64,
    /// How noise is mixed in, and what the network predicts.
    pub process: Arc<dyn NoiseProcess>,
    /// The sampler.
    pub sampler: Sampler,
    /// The smallest positive sigma and the largest one, where the noise of the steps comes from one Brownian path between them.
    pub brownian: Option<(f64, f64)>,
    pub(super) solver: Box<dyn Solver>,
    /// Between steps, latents keep their variance-preserving value and not their sigma-space one.
    pub(super) variance_preserving: bool,
}

/// Plans `steps` denoising steps.
///
/// # Errors
/// [`Error::Input`] where `steps` is 0 or more than the model was trained on; [`Error::Model`] (or [`Error::Input`] where there is no
/// file) for a value of the configuration that is not implemented.
pub fn plan(config: &SchedulerConfig, steps: usize) -> Result<Schedule> {
    config.check()?;
    let table = config.noise_table()?;
    let trained = table.len();
    let steps = config.levels()?.map_or(steps, |levels| levels.len());
    if steps == 0 || steps > trained {
        return Err(Error::Input(format!("`steps` {steps} is out of range; this model takes 1 to {trained}")));
    }
    let rounds = config.like.is_some_and(Like::rounds_timesteps);
    let process: Arc<dyn NoiseProcess> = match config.is_flow() {
        true => Arc::new(config.flow()),
        false => Arc::new(VariancePreserving::new(table.clone(), config.prediction()?, rounds)),
    };
    let sampler = config.sampler()?;
    let (spacing, schedule) = (config.spacing()?, config.sigma_schedule()?);
    let most = table.sigma((trained - 1) as f64);
    let mut planned = sampler.plan(&Planner { config, sampler, steps, table, spacing, schedule, process })?;
    // Latents that keep their variance start as noise alone in every tool.
    if !planned.variance_preserving
        && !config.is_flow()
        && let Some(scale) = planned.steps.first().and_then(|step| config.first_noise.scale(step.from.sigma, most))
    {
        planned.initial_scale = scale;
    }
    Ok(planned)
}

/// What the planning of every sampler starts from.
#[derive(Clone)]
pub(super) struct Planner<'a> {
    pub(super) config: &'a SchedulerConfig,
    pub(super) sampler: Sampler,
    pub(super) steps: usize,
    pub(super) table: NoiseTable,
    pub(super) spacing: TimestepSpacing,
    pub(super) schedule: SigmaSchedule,
    pub(super) process: Arc<dyn NoiseProcess>,
}

impl Planner<'_> {
    /// An option of the sampler: the user's, or its row's.
    pub(super) fn option(&self, name: &str) -> f64 {
        let row = || self.sampler.row().options.iter().find(|(known, _)| *known == name).map(|(_, value)| *value);
        self.config.options.get(name).copied().or_else(row).unwrap_or(if name == "s_noise" { 1.0 } else { 0.0 })
    }

    /// How much noise the sampler adds.
    pub(super) fn eta(&self) -> f64 {
        self.config.eta.unwrap_or_else(|| self.option("eta"))
    }

    /// The levels were given, or laid by a schedule, and not by the sampler's own timesteps.
    pub(super) fn has_levels(&self) -> bool {
        self.config.levels.is_some() || self.schedule != SigmaSchedule::Discrete
    }

    /// The user named the sampler, so that it is the field's own and not diffusers' class of it.
    pub(super) fn is_named(&self) -> bool {
        self.config.chosen.is_some()
    }

    /// The levels that the user gave, without the last one.
    fn given_levels(&self) -> Result<Option<Vec<NoiseLevel>>> {
        let Some(levels) = self.config.levels()? else { return Ok(None) };
        let level = |value: f64| match self.config.levels {
            Some(Levels::Timesteps(_)) => NoiseLevel::new(single(self.table.sigma(value)), value),
            _ => NoiseLevel::new(single(value), self.process.timestep(value)),
        };
        Ok(Some(levels.iter().copied().map(level).collect()))
    }

    /// The levels of a schedule that other tools lay over the trained table, and where the last step ends.
    fn scheduled_levels(&self) -> Result<Option<(Vec<NoiseLevel>, NoiseLevel)>> {
        let like = self.config.like;
        // stable-diffusion.cpp leaves none out.
        let discards = usize::from(self.is_named() && self.sampler.row().discards && like != Some(Like::SdCpp));
        let (steps, always) = (self.steps + discards, discards > 0 || like.is_some_and(|like| like != Like::Diffusers));
        let Some(mut sigmas) = self.schedule.over_table(&self.table, steps, self.config.is_sdxl, always, like)? else {
            return Ok(None);
        };
        let end = sigmas.pop().unwrap_or(0.0);
        if discards > 0 && sigmas.len() > 1 {
            sigmas.pop();
        }
        let level = |sigma: f64| NoiseLevel::new(single(sigma), single(self.process.timestep(sigma)));
        let end = if end == 0.0 { NoiseLevel::new(0.0, 0.0) } else { level(end) };
        Ok(Some((sigmas.into_iter().map(level).collect(), end)))
    }

    pub(super) fn offset(&self) -> f64 {
        self.config.file.steps_offset.unwrap_or(0) as f64
    }

    /// Whole timesteps, descending, inside the table (diffusers fails where an offset leaves it).
    pub(super) fn whole_timesteps(&self) -> Vec<i64> {
        let trained = self.table.len();
        let spaced = spaced(self.spacing, trained, trained, self.steps, self.steps, self.offset());
        spaced.into_iter().map(|t| (t.round_ties_even() as i64).clamp(0, trained as i64 - 1)).collect()
    }

    /// Trained timesteps to a step, rounded down: how far DDIM and PNDM look ahead whatever the spacing.
    pub(super) fn ratio(&self) -> i64 {
        (self.table.len() / self.steps) as i64
    }

    /// Sigma behind the last timestep of DDIM and PNDM.
    pub(super) fn final_sigma(&self, default_to_one: bool) -> f64 {
        if self.config.file.set_alpha_to_one.unwrap_or(default_to_one) { 0.0 } else { self.table.sigma(0.0) }
    }

    /// The run of a sampler that works in sigma space (Euler, Heun and k-diffusion's other ones), as diffusers lays it.
    pub(super) fn sigma_space(&self, solver: Box<dyn Solver>) -> Result<Schedule> {
        if self.config.is_flow() {
            return self.flow_run(solver);
        }
        let end = match self.config.levels_end() {
            0.0 => NoiseLevel::new(0.0, 0.0),
            sigma => NoiseLevel::new(single(sigma), self.process.timestep(sigma)),
        };
        let given = self.given_levels()?.map(|levels| (levels, end));
        if let Some((levels, end)) = given.map_or_else(|| self.scheduled_levels(), |levels| Ok(Some(levels)))? {
            let largest = levels.iter().map(|level| level.sigma).fold(0.0, f64::max);
            let ends: Vec<NoiseLevel> = levels.into_iter().chain([end]).collect();
            let steps = ends.windows(2).map(|pair| (pair[0], pair[1])).collect();
            let schedule = self.assemble(steps, solver);
            return Ok(Schedule { initial_scale: largest, final_scale: 1.0, variance_preserving: false, ..schedule });
        }
        let obeys_the_ends = self.sampler.row().file_sets_the_ends;
        let trained = self.table.len();
        let timesteps: Vec<f64> =
            spaced(self.spacing, trained, trained, self.steps, self.steps, self.offset()).into_iter().map(single).collect();
        let sigmas: Vec<f64> = timesteps.iter().map(|t| self.table.sigma(*t)).collect();
        let (mut max, mut min) = (sigmas.first().copied().unwrap_or(0.0), sigmas.last().copied().unwrap_or(0.0));
        if obeys_the_ends {
            (max, min) = (self.config.file.sigma_max.unwrap_or(max), self.config.file.sigma_min.unwrap_or(min));
        }
        let mut levels: Vec<NoiseLevel> = match self.schedule {
            SigmaSchedule::Discrete => timesteps.iter().zip(&sigmas).map(|(t, s)| NoiseLevel::new(single(*s), *t)).collect(),
            schedule => {
                let rounds = schedule == SigmaSchedule::Karras && self.sampler.row().rounds_karras;
                let told = |sigma: f64| {
                    let timestep = self.table.timestep(sigma);
                    NoiseLevel::new(single(sigma), if rounds { timestep.round_ties_even() } else { single(timestep) })
                };
                schedule.sigmas(max, min, self.steps).into_iter().map(told).collect()
            }
        };
        let largest = levels.iter().map(|l| l.sigma).fold(0.0, f64::max);
        let zero = !obeys_the_ends || self.config.ends_at_zero()?;
        levels.push(NoiseLevel::new(if zero { 0.0 } else { self.table.sigma(0.0) }, 0.0));
        let steps = levels.windows(2).map(|pair| (pair[0], pair[1])).collect();
        // The latents' own variance is left out where the run starts from the noisiest level.
        let initial_scale = if self.spacing == TimestepSpacing::Leading { (largest * largest + 1.0).sqrt() } else { largest };
        let schedule = self.assemble(steps, solver);
        Ok(Schedule { initial_scale, final_scale: 1.0, variance_preserving: false, ..schedule })
    }

    /// A run in sigma space between pairs of sigmas.
    pub(super) fn sigma_pairs(&self, pairs: &[(f64, f64)], solver: Box<dyn Solver>) -> Result<Schedule> {
        let level = |sigma: f64| match sigma == 0.0 {
            true => NoiseLevel::new(0.0, 0.0),
            false => self.process.level(sigma),
        };
        let plain = self.sigma_space(solver.clone())?;
        let mut schedule = self.assemble(pairs.iter().map(|(from, to)| (level(*from), level(*to))).collect(), solver);
        schedule.brownian = plain.brownian;
        Ok(Schedule { initial_scale: plain.initial_scale, final_scale: 1.0, variance_preserving: false, ..schedule })
    }

    /// Where a run in `t = −ln sigma` begins and ends: at the first sigma and at the last positive one.
    pub(super) fn time_ends(&self) -> Result<(f64, f64)> {
        let plain = super::solver::euler::plan(self)?;
        let ends = plain.steps.first().zip(plain.steps.last());
        Ok(ends.map_or((0.0, 0.0), |(first, last)| (-first.from.sigma.ln(), -last.from.sigma.ln())))
    }

    /// The run of a sampler that works along `lambda = −ln sigma` (DPM-Solver and its kin), as diffusers lays it.
    pub(super) fn lambda_space(&self, solver: Box<dyn Solver>) -> Result<Schedule> {
        if self.config.is_flow() {
            return self.flow_run(solver);
        }
        if self.given_levels()?.is_some() || self.scheduled_levels()?.is_some() {
            return self.sigma_space(solver);
        }
        let trained = self.table.len();
        let file = &self.config.file;
        let usable = self.table.count_above(file.lambda_min_clipped.unwrap_or(f64::NEG_INFINITY));
        let ends_at_zero = self.config.ends_at_zero()? && !self.sampler.row().ends_at_trained;
        if self.schedule == SigmaSchedule::Discrete && self.spacing == TimestepSpacing::Leading && usable <= self.steps {
            let most = usable.saturating_sub(1);
            return Err(Error::Input(format!("`steps` {} is too many for leading timesteps; this sampler takes up to {most}", self.steps)));
        }
        let mut levels: Vec<NoiseLevel> = match self.schedule {
            SigmaSchedule::Discrete => {
                let whole = spaced(self.spacing, trained, usable, self.steps, self.steps + 1, self.offset());
                whole.into_iter().map(f64::round_ties_even).map(|t| NoiseLevel::new(single(self.table.sigma(t)), t)).collect()
            }
            schedule => {
                // The timesteps are whole numbers: rounded for Karras and Lu, except on a cosine schedule, and cut off otherwise.
                let rounds = schedule != SigmaSchedule::Exponential && file.beta_schedule.as_deref() != Some("squaredcos_cap_v2");
                let (max, min) = (self.table.sigma((trained - 1) as f64), self.table.sigma(0.0));
                let told = |sigma: f64| {
                    let t = self.table.timestep(sigma);
                    NoiseLevel::new(single(sigma), if rounds { t.round_ties_even() } else { t.trunc() })
                };
                schedule.sigmas(max, min, self.steps).into_iter().map(told).collect()
            }
        };
        levels.push(NoiseLevel::new(if ends_at_zero { 0.0 } else { self.table.sigma(0.0) }, 0.0));
        let steps = levels.windows(2).map(|pair| (pair[0], pair[1])).collect();
        Ok(self.assemble(steps, solver))
    }

    /// The schedule of variance-preserving latents.
    pub(super) fn assemble(&self, pairs: Vec<(NoiseLevel, NoiseLevel)>, mut solver: Box<dyn Solver>) -> Schedule {
        let (initial_scale, final_scale) = ends(&pairs);
        let (process, sampler) = (Arc::clone(&self.process), self.sampler);
        let positive = pairs.iter().flat_map(|(from, to)| [from.sigma, to.sigma]).filter(|sigma| *sigma > 0.0);
        let ends = (positive.clone().fold(f64::INFINITY, f64::min), positive.fold(0.0, f64::max));
        // stable-diffusion.cpp draws every step's noise afresh.
        let has_path = self.sampler.row().brownian && self.is_named() && self.config.like != Some(Like::SdCpp);
        let brownian = has_path.then_some(ends);
        let steps = numbered(pairs);
        solver.prepare(&steps);
        Schedule { steps, initial_scale, final_scale, process, sampler, brownian, solver, variance_preserving: true }
    }
}

/// The steps between pairs of levels.
fn numbered(pairs: Vec<(NoiseLevel, NoiseLevel)>) -> Vec<Step> {
    pairs.into_iter().enumerate().map(|(index, (from, to))| Step { index, from, to }).collect()
}

/// The scales of variance-preserving latents at both ends.
fn ends(pairs: &[(NoiseLevel, NoiseLevel)]) -> (f64, f64) {
    let norm = |sigma: f64| (1.0 + sigma * sigma).sqrt();
    (pairs.first().map_or(1.0, |p| norm(p.0.sigma)), pairs.last().map_or(1.0, |p| 1.0 / norm(p.1.sigma)))
}

/// Sigmas and fractional timesteps are f32 in diffusers.
pub(super) fn single(x: f64) -> f64 {
    f64::from(x as f32)
}

/// The level of a whole timestep; before the first one, `end`.
pub(super) fn level(table: &NoiseTable, timestep: i64, end: f64) -> NoiseLevel {
    if timestep < 0 {
        return NoiseLevel::new(end, 0.0);
    }
    let timestep = timestep as f64;
    NoiseLevel::new(table.sigma(timestep), timestep)
}

impl Schedule {
    /// A solver with no history.
    pub fn solver(&self) -> Box<dyn Solver> {
        self.solver.clone()
    }

    /// Whether the solver reads the estimates of the branches beside the guided one.
    pub fn reads_branches(&self) -> bool {
        self.sampler.reads_unguided()
    }

    /// The smallest positive sigma and the largest one.
    pub fn positive_ends(&self) -> Option<(f64, f64)> {
        let positive = self.steps.iter().flat_map(|step| [step.from.sigma, step.to.sigma]).filter(|sigma| *sigma > 0.0);
        let ends = (positive.clone().fold(f64::INFINITY, f64::min), positive.fold(0.0, f64::max));
        (ends.1 > 0.0).then_some(ends)
    }

    /// Whether nothing happens in a step.
    pub(super) fn is_empty(&self, step: &Step) -> bool {
        step.from.sigma == step.to.sigma && self.solver.skips_empty_steps()
    }

    /// Network calls that a step of [`Schedule::steps`] makes.
    pub fn evaluations(&self, step: &Step) -> usize {
        if self.is_empty(step) { 0 } else { self.solver.evaluations(step) }
    }

    /// The steps at timesteps from `timestep` on, and those below it: what two networks share of one run, as diffusers' `denoising_end` and
    /// `denoising_start` cut it. The first part ends at the noise at which the second begins; its solver goes by the whole run, and that of
    /// the second begins anew. A part without steps is `None`.
    ///
    /// Heun's timesteps stand twice in diffusers' list, at the end of one step and the start of the next: its first part ends with the first
    /// call of a step, and the second part takes that step from its start, of latents that are a step ahead.
    pub fn split_at(&self, timestep: f64) -> (Option<Schedule>, Option<Schedule>) {
        let first = self.steps.iter().position(|step| step.from.timestep < timestep).unwrap_or(self.steps.len());
        if first == 0 {
            return (None, Some(self.clone()));
        }
        if first == self.steps.len() {
            return (Some(self.clone()), None);
        }
        let mut part = self.clone();
        part.steps.truncate(first);
        if part.solver.end_within(first - 1) {
            return (Some(part), Some(self.without(first - 1)));
        }
        if self.variance_preserving {
            let pairs: Vec<_> = part.steps.iter().map(|step| (step.from, step.to)).collect();
            part.final_scale = ends(&pairs).1;
        }
        // PNDM counts calls.
        let counts_calls = self.solver.clone().skip(0).is_some();
        let index = if counts_calls { part.steps.iter().map(|step| self.solver.evaluations(step)).sum() } else { first };
        (Some(part), Some(self.without(index)))
    }

    /// Latents that another part of the run left, as this one begins with them.
    ///
    /// # Errors
    /// The device has no memory left.
    pub fn resume(&self, latents: &Tensor) -> Result<Tensor> {
        if self.variance_preserving { Ok(latents.affine(self.initial_scale, 0.0)?) } else { Ok(latents.clone()) }
    }

    /// The schedule without its first `index` steps, as diffusers' image to image pipelines cut it; steps count from 0 again.
    ///
    /// A run from here starts at [`NoiseProcess::mix`] of `steps[0].from.sigma`. PNDM counts network calls there, of which its first step
    /// makes two, so that its run starts one timestep earlier.
    ///
    /// # Errors
    /// [`Error::Input`] where no step would be left.
    pub fn starting_at(&self, index: usize) -> Result<Schedule> {
        if index >= self.steps.len() {
            return Err(Error::Input(format!("`strength` is too low: none of the {} steps would be taken", self.steps.len())));
        }
        Ok(if index == 0 { self.clone() } else { self.without(index) })
    }

    fn without(&self, index: usize) -> Schedule {
        let mut rest = self.clone();
        let others = rest.solver.skip(index);
        let pairs = others.unwrap_or_else(|| self.steps.iter().skip(index).map(|s| (s.from, s.to)).collect());
        if self.variance_preserving {
            (rest.initial_scale, rest.final_scale) = ends(&pairs);
        }
        rest.steps = numbered(pairs);
        rest.solver.prepare(&rest.steps);
        rest
    }
}
