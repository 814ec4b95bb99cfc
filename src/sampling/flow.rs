//! The noise levels of flows, and what a `scheduler_config.json` says of them.
//!
//! # Source
//! `FlowMatchEulerDiscreteScheduler`, `FlowMatchHeunDiscreteScheduler`, and the flow branches of `DPMSolverMultistepScheduler` and
//! `UniPCMultistepScheduler` in huggingface/diffusers@v0.36:src/diffusers/schedulers; ComfyUI@a125cd84:comfy/samplers.py and
//! comfy/model_sampling.py, `ModelSamplingDiscreteFlow`, for the schedules that it is known from.

use super::plan::{Planner, single};
use super::sigmas::beta_quantile;
use super::{Flow, Levels, Like, NoiseLevel, PredictionType, Sampler, Schedule, SchedulerConfig, SigmaSchedule, Solver};
use crate::{Error, Result};
use std::sync::Arc;

/// diffusers' classes for flows alone, and the class that each is of its kind.
const CLASSES: &[(&str, &str)] =
    &[("FlowMatchEulerDiscreteScheduler", "EulerDiscreteScheduler"), ("FlowMatchHeunDiscreteScheduler", "HeunDiscreteScheduler")];

/// The samplers whose formulas hold for a flow as they stand: they integrate the network's velocity over sigma, or go by
/// `ln(alpha / sigma)`. The ancestral ones would have to mix noise in by other amounts.
const SAMPLERS: &[&str] = &["euler", "heun", "dpm++2m", "unipc", "dpm2", "heun++2", "lms", "ipndm"];

/// What the first sigma is lowered by where ln(alpha / sigma) has to be finite.
const BELOW_ONE: f64 = 1e-6;

/// The class of a diffusion's scheduler that a flow's is like.
pub(super) fn plain_class(class: &str) -> &str {
    CLASSES.iter().find(|(flow, _)| *flow == class).map_or(class, |(_, plain)| plain)
}

impl SchedulerConfig {
    /// Whether the network was trained on a flow, whose velocity it predicts.
    pub fn is_flow(&self) -> bool {
        let is_class = self.file.class_name.as_deref().is_some_and(|class| class.starts_with("FlowMatch"));
        is_class || self.file.prediction_type.as_deref() == Some(PredictionType::Flow.name())
    }

    /// The shift of the file, wherever its class has it.
    fn flow_shift(&self) -> f64 {
        let is_class = self.file.class_name.as_deref().is_some_and(|class| class.starts_with("FlowMatch"));
        let shift = if is_class { self.file.shift } else { self.file.flow_shift };
        shift.unwrap_or(1.0)
    }

    /// The same flow with another sampler, as diffusers' `from_config` would be told it.
    pub(super) fn with_flow_sampler(&mut self, sampler: Sampler) {
        let shift = self.flow_shift();
        let own = CLASSES.iter().find(|(_, plain)| *plain == sampler.class_name());
        match own {
            Some((flow, _)) => {
                self.file.class_name = Some((*flow).into());
                (self.file.use_flow_sigmas, self.file.prediction_type, self.file.flow_shift) = (None, None, None);
                self.file.shift = Some(shift);
            }
            None => {
                if !sampler.class_name().is_empty() {
                    self.file.class_name = Some(sampler.class_name().into());
                }
                self.file.use_flow_sigmas = Some(true);
                self.file.prediction_type = Some(PredictionType::Flow.name().into());
                (self.file.shift, self.file.flow_shift) = (Some(shift), Some(shift));
            }
        }
    }

    /// How the sigmas of a flow are laid, as the file's flags say.
    pub(super) fn flow_schedule(&self) -> SigmaSchedule {
        let flags = [
            (self.file.use_karras_sigmas, SigmaSchedule::Karras),
            (self.file.use_exponential_sigmas, SigmaSchedule::Exponential),
            (self.file.use_beta_sigmas, SigmaSchedule::Beta),
        ];
        flags.into_iter().find(|(flag, _)| *flag == Some(true)).map_or(SigmaSchedule::Discrete, |(_, schedule)| schedule)
    }

    /// Judges what a flow's configuration says.
    pub(super) fn check_flow(&self) -> Result<()> {
        let file = &self.file;
        let sampler = self.sampler()?;
        if !SAMPLERS.contains(&sampler.name()) {
            return Err(Error::Input(format!(
                "`sampler` {} does not go with this model, whose noise is a flow; it can be {}",
                sampler.name(),
                SAMPLERS.join(", ")
            )));
        }
        for (key, value) in
            [("shift", file.shift), ("flow_shift", file.flow_shift), ("base_shift", file.base_shift), ("max_shift", file.max_shift)]
        {
            if let Some(value) = value.filter(|value| !(*value > 0.0 && *value < 1e4)) {
                return Err(self.refuse(key, &value.to_string(), "a positive number"));
            }
        }
        self.refuse_true("invert_sigmas", file.invert_sigmas)?;
        self.refuse_true("stochastic_sampling", file.stochastic_sampling)?;
        self.refuse_true("rescale_betas_zero_snr", file.rescale_betas_zero_snr)?;
        if let Some(terminal) = file.shift_terminal.filter(|terminal| *terminal != 0.0) {
            return Err(self.refuse("shift_terminal", &terminal.to_string(), "null"));
        }
        if let Some((base, most)) =
            file.base_image_seq_len.zip(file.max_image_seq_len).filter(|(base, most)| base == most || !(base + most).is_finite())
        {
            return Err(self.refuse("max_image_seq_len", &most.to_string(), &format!("another number than base_image_seq_len {base}")));
        }
        self.choice("time_shift_type", &file.time_shift_type, (), &[("exponential", ()), ("linear", ())])?;
        if let Some(eta) = self.eta {
            return Err(Error::Input(format!("`eta` {eta} does not go with this model, whose noise is a flow; leave it out")));
        }
        if let Some((name, value)) = self.options.iter().find(|(_, value)| **value != 0.0 && value.is_finite()) {
            let is_known = sampler.row().options.iter().any(|(known, usual)| known == name && usual == value);
            if !is_known {
                return Err(Error::Input(format!("`sampler-option` {name}={value} does not go with this model, whose noise is a flow")));
            }
        }
        self.levels()?;
        match sampler.name() {
            "dpm++2m" | "unipc" => (sampler.row().check)(self),
            _ => Ok(()),
        }
    }

    /// The process of a flow.
    pub(super) fn flow(&self) -> Flow {
        Flow { timesteps: self.trained_steps() as f64, shift: self.flow_shift() }
    }

    /// A sigma among evenly spaced ones, moved as the image's size wants it where the file says so.
    fn moved(&self, flow: Flow, sigma: f64) -> f64 {
        let file = &self.file;
        if file.use_dynamic_shifting != Some(true) {
            return flow.shifted(sigma);
        }
        let (base, most) = (file.base_image_seq_len.unwrap_or(256.0), file.max_image_seq_len.unwrap_or(4096.0));
        let (base_shift, max_shift) = (file.base_shift.unwrap_or(0.5), file.max_shift.unwrap_or(1.15));
        let slope = (max_shift - base_shift) / (most - base);
        let mu = self.image_tokens.unwrap_or(base as usize) as f64 * slope + base_shift - slope * base;
        let power = if file.time_shift_type.as_deref() == Some("linear") { mu } else { mu.exp() };
        power / (power + (1.0 / sigma - 1.0))
    }
}

impl Planner<'_> {
    /// The run of a flow.
    pub(super) fn flow_run(&self, solver: Box<dyn Solver>) -> Result<Schedule> {
        let config = self.config;
        let flow = config.flow();
        // DPM-Solver and UniPC have levels of their own, and tell the network whole timesteps.
        let by_lambda = self.sampler.row().file_knows_lambdas;
        let sigmas = match config.levels()? {
            Some(levels) => levels
                .into_iter()
                .map(|level| if matches!(config.levels, Some(Levels::Timesteps(_))) { level / flow.timesteps } else { level })
                .collect(),
            None => self.flow_sigmas(flow, by_lambda)?,
        };
        let level = |sigma: f64| {
            let timestep = sigma * flow.timesteps;
            let timestep = if by_lambda { timestep.trunc() } else { single(timestep) };
            NoiseLevel { sigma: single(sigma), alpha: 1.0 - single(sigma), timestep }
        };
        let end = match config.levels_end() {
            0.0 => NoiseLevel::new(0.0, 0.0),
            sigma => level(sigma),
        };
        let levels: Vec<NoiseLevel> = sigmas.into_iter().map(level).chain([end]).collect();
        let pairs = levels.windows(2).map(|pair| (pair[0], pair[1])).collect();
        Ok(Schedule {
            initial_scale: 1.0,
            final_scale: 1.0,
            variance_preserving: false,
            process: Arc::new(flow),
            ..self.assemble(pairs, solver)
        })
    }

    /// The sigmas of a run, without the 0 at its end.
    fn flow_sigmas(&self, flow: Flow, by_lambda: bool) -> Result<Vec<f64>> {
        let (config, steps) = (self.config, self.steps);
        let least = 1.0 / flow.timesteps;
        let share = |i: usize, of: usize| if of == 0 { 0.0 } else { i as f64 / of as f64 };
        let moved = |sigma: f64| config.moved(flow, sigma);
        if by_lambda && self.schedule == SigmaSchedule::Discrete {
            return Ok(match self.sampler.name() {
                "unipc" => (0..steps)
                    .map(|i| moved(1.0 + share(i, steps) * (least - 1.0)))
                    .map(|sigma| if (sigma - 1.0).abs() < BELOW_ONE { sigma - BELOW_ONE } else { sigma })
                    .collect(),
                _ => (1..=steps).rev().map(|i| moved(share(i, steps) * (1.0 - least))).collect(),
            });
        }
        // The shift is in the first and the last sigma already, and is applied to what lies between them once more.
        let last = if config.file.use_dynamic_shifting == Some(true) { least } else { flow.shifted(least) };
        let even = |count: usize, of: usize| -> Vec<f64> { (0..count).map(|i| moved(1.0 + share(i, of) * (last - 1.0))).collect() };
        let plain = even(steps, steps - 1);
        let (max, min) = (plain.first().copied().unwrap_or(1.0), plain.last().copied().unwrap_or(1.0));
        let trained = |i: usize| moved((i + 1) as f64 / flow.timesteps);
        let count = flow.timesteps as usize;
        let mut sigmas: Vec<f64> = match self.schedule {
            SigmaSchedule::Discrete | SigmaSchedule::Normal => plain,
            schedule @ (SigmaSchedule::Karras | SigmaSchedule::Exponential) => schedule.sigmas(max, min, steps),
            // diffusers' flag means sigmas by the distribution, ComfyUI's name timesteps.
            SigmaSchedule::Beta if config.schedule.is_none() || config.like == Some(Like::Diffusers) => {
                (0..steps).map(|i| min + beta_quantile(1.0 - share(i, steps - 1), 0.6, 0.6) * (max - min)).collect()
            }
            SigmaSchedule::Beta => {
                let at = |i: usize| (beta_quantile(1.0 - share(i, steps), 0.6, 0.6) * (count - 1) as f64).round_ties_even() as usize;
                let mut places: Vec<usize> = (0..steps).map(at).collect();
                places.dedup();
                places.into_iter().map(trained).collect()
            }
            SigmaSchedule::SgmUniform => even(steps, steps),
            SigmaSchedule::Simple => (0..steps).map(|i| trained(count - 1 - (i as f64 * count as f64 / steps as f64) as usize)).collect(),
            SigmaSchedule::DdimUniform => {
                let mut sigmas: Vec<f64> = (1..count).step_by((count / steps).max(1)).map(trained).collect();
                sigmas.reverse();
                sigmas
            }
            other => {
                let able = "discrete, normal, karras, exponential, beta, sgm_uniform, simple, ddim_uniform";
                return Err(Error::Input(format!(
                    "`schedule` {} does not go with this model, whose noise is a flow; it can be {able}",
                    other.name()
                )));
            }
        };
        if by_lambda && let Some(first) = sigmas.first_mut() {
            *first = first.min(1.0 - BELOW_ONE);
        }
        Ok(sigmas)
    }
}
