//! `scheduler_config.json`: what a model's folder says about its noise and its sampler.

use super::flow::plain_class;
use super::sigmas::{BetaSchedule, NoiseTable, betas};
use super::{FirstNoise, Like, PredictionType, Sampler, SigmaSchedule, TimestepSpacing, without_infinities};
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The keys of a diffusers `scheduler_config.json`; `None` is an absent key, whose default depends on the class.
///
/// Keys that are not here do not change what is generated.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
#[expect(missing_docs, reason = "diffusers' documentation of the scheduler classes defines every key")]
pub struct SchedulerFile {
    #[serde(rename = "_class_name")]
    pub class_name: Option<String>,
    pub num_train_timesteps: Option<usize>,
    pub beta_start: Option<f64>,
    pub beta_end: Option<f64>,
    pub beta_schedule: Option<String>,
    pub trained_betas: Option<Vec<f64>>,
    pub rescale_betas_zero_snr: Option<bool>,
    pub prediction_type: Option<String>,
    pub timestep_spacing: Option<String>,
    pub timestep_type: Option<String>,
    pub steps_offset: Option<i64>,
    pub set_alpha_to_one: Option<bool>,
    pub skip_prk_steps: Option<bool>,
    pub clip_sample: Option<bool>,
    pub clip_sample_range: Option<f64>,
    pub thresholding: Option<bool>,
    pub variance_type: Option<String>,
    pub interpolation_type: Option<String>,
    pub use_karras_sigmas: Option<bool>,
    pub use_exponential_sigmas: Option<bool>,
    pub use_beta_sigmas: Option<bool>,
    pub use_lu_lambdas: Option<bool>,
    pub use_flow_sigmas: Option<bool>,
    pub sigma_min: Option<f64>,
    pub sigma_max: Option<f64>,
    pub final_sigmas_type: Option<String>,
    pub algorithm_type: Option<String>,
    pub solver_order: Option<usize>,
    pub solver_type: Option<String>,
    pub lower_order_final: Option<bool>,
    pub euler_at_final: Option<bool>,
    pub lambda_min_clipped: Option<f64>,
    pub predict_x0: Option<bool>,
    pub predictor_order: Option<usize>,
    pub corrector_order: Option<usize>,
    pub original_inference_steps: Option<usize>,
    pub timestep_scaling: Option<f64>,
    pub shift: Option<f64>,
    pub flow_shift: Option<f64>,
    pub use_dynamic_shifting: Option<bool>,
    pub base_shift: Option<f64>,
    pub max_shift: Option<f64>,
    pub base_image_seq_len: Option<f64>,
    pub max_image_seq_len: Option<f64>,
    pub time_shift_type: Option<String>,
    pub shift_terminal: Option<f64>,
    pub invert_sigmas: Option<bool>,
    pub stochastic_sampling: Option<bool>,
}

/// Noise levels that the user gave, from the noisiest one down.
#[derive(Debug, Clone, PartialEq)]
pub enum Levels {
    /// Sigmas; a last 0 may be left out.
    Sigmas(Vec<f64>),
    /// Timesteps, from the last of which a step goes to sigma 0.
    Timesteps(Vec<f64>),
}

/// A model's noise schedule and sampler, and what the user put in their place.
///
/// A key means what it means to the sampler that is used in the end, so values are judged by [`SchedulerConfig::check`] and by
/// [`super::plan()`], after all overrides; a value that sd-gen does not implement is an error there, never ignored.
#[derive(Debug, Clone, PartialEq)]
pub struct SchedulerConfig {
    /// The keys of the file.
    pub file: SchedulerFile,
    /// The file's name, for messages; `None` where there is no file.
    pub source: Option<String>,
    /// A schedule that takes the place of the file's.
    pub schedule: Option<SigmaSchedule>,
    /// How much noise the sampler adds, where it takes that ([`Sampler::takes_eta`]).
    pub eta: Option<f64>,
    /// The sampler that the user named.
    pub chosen: Option<Sampler>,
    /// Further options of the sampler, by name.
    pub options: BTreeMap<String, f64>,
    /// Takes the place of any schedule.
    pub levels: Option<Levels>,
    /// The schedules that were found for SDXL hold, and not those for Stable Diffusion 1.
    pub is_sdxl: bool,
    /// The share of the timesteps that a model was distilled at, from the clean end, which a run's are taken from: a run from an image has
    /// less than 1 (diffusers' `LCMScheduler.set_timesteps` with a strength).
    pub distilled_share: f64,
    /// Tokens that an image is in the network, by which some flows move their sigmas (`use_dynamic_shifting`).
    pub image_tokens: Option<usize>,
    /// Whose schedules and timesteps they are, where tools differ.
    pub like: Option<Like>,
    /// What the noise of a run's start is multiplied by.
    pub first_noise: FirstNoise,
}

/// No network was trained on more; a table of as many betas as a file says must not fill the memory.
const MOST_TIMESTEPS: usize = 100_000;

impl Default for SchedulerConfig {
    /// Stable Diffusion 1.5: PNDM without the Runge-Kutta start.
    fn default() -> Self {
        let file = SchedulerFile {
            class_name: Some("PNDMScheduler".into()),
            num_train_timesteps: Some(1000),
            beta_start: Some(0.00085),
            beta_end: Some(0.012),
            beta_schedule: Some("scaled_linear".into()),
            clip_sample: Some(false),
            set_alpha_to_one: Some(false),
            skip_prk_steps: Some(true),
            steps_offset: Some(1),
            ..SchedulerFile::default()
        };
        Self::of_file(file, None)
    }
}

impl Serialize for SchedulerConfig {
    /// As a `scheduler_config.json` that diffusers reads.
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut file = self.file.clone();
        if let Some(schedule) = self.schedule {
            file.use_karras_sigmas = Some(schedule == SigmaSchedule::Karras);
            file.use_exponential_sigmas = Some(schedule == SigmaSchedule::Exponential);
            file.use_lu_lambdas = Some(schedule == SigmaSchedule::Lu);
            file.use_beta_sigmas = Some(self.is_flow() && schedule == SigmaSchedule::Beta);
        }
        // diffusers takes a null for a value; an absent key is what we mean.
        let mut keys = serde_json::to_value(file).map_err(serde::ser::Error::custom)?;
        if let Some(keys) = keys.as_object_mut() {
            keys.retain(|_, value| !value.is_null());
        }
        // What no file of diffusers can say.
        if let Some(keys) = keys.as_object_mut() {
            if let Some(sampler) = self.chosen.filter(|sampler| !sampler.is_its_class()) {
                keys.insert("sampler".into(), sampler.name().into());
            }
            if !self.options.is_empty() {
                keys.insert("sampler_options".into(), serde_json::to_value(&self.options).map_err(serde::ser::Error::custom)?);
            }
            match &self.levels {
                Some(Levels::Sigmas(sigmas)) => drop(keys.insert("sigmas".into(), sigmas.clone().into())),
                Some(Levels::Timesteps(timesteps)) => drop(keys.insert("timesteps".into(), timesteps.clone().into())),
                None => {}
            }
        }
        keys.serialize(serializer)
    }
}

impl SchedulerConfig {
    /// Reads a `scheduler_config.json`; `where_` names the file in messages.
    ///
    /// # Errors
    /// [`Error::Model`] where the text is not JSON, or a key's value has the wrong type.
    pub fn from_json(text: &str, where_: &str) -> Result<Self> {
        // A struct can be read from a list too, which no configuration is.
        let file = serde_json::from_slice::<serde_json::Map<String, serde_json::Value>>(&without_infinities(text.as_bytes()))
            .and_then(|object| serde_json::from_value::<SchedulerFile>(object.into()))
            .map_err(|e| Error::Model(format!("{where_} is not a scheduler's configuration: {e}")))?;
        Ok(Self::of_file(file, Some(where_.into())))
    }

    fn of_file(file: SchedulerFile, source: Option<String>) -> Self {
        Self {
            file,
            source,
            schedule: None,
            eta: None,
            chosen: None,
            options: BTreeMap::new(),
            levels: None,
            is_sdxl: false,
            distilled_share: 1.0,
            image_tokens: None,
            like: None,
            first_noise: FirstNoise::Model,
        }
    }

    /// With a sampler by name, as `--sampler` takes it; a schedule word in the name is obeyed.
    ///
    /// Keys of the file go on to mean what they meant. Where the file does not say, latents are not clipped and PNDM does not start
    /// with Runge-Kutta steps, whatever the class's defaults: those are for networks that generate pixels.
    ///
    /// # Errors
    /// [`Error::Input`] for a name that is not available.
    pub fn with_sampler(mut self, name: &str) -> Result<Self> {
        let (sampler, schedule) = Sampler::from_name(name)?;
        if self.is_flow() {
            self.with_flow_sampler(sampler);
        } else if !sampler.class_name().is_empty() {
            self.file.class_name = Some(sampler.class_name().into());
        }
        self.chosen = Some(sampler);
        self.file.clip_sample = self.file.clip_sample.or(Some(false));
        self.file.skip_prk_steps = self.file.skip_prk_steps.or(Some(true));
        // Another class's key means nothing to this sampler, or something else.
        self.file.algorithm_type = sampler.row().algorithms.first().map(|algorithm| (*algorithm).into());
        self.schedule = schedule.or(self.schedule);
        Ok(self)
    }

    /// With another spacing of the timesteps.
    pub fn with_spacing(mut self, spacing: TimestepSpacing) -> Self {
        self.file.timestep_spacing = Some(spacing.name().into());
        self
    }

    /// With another schedule of the sigmas.
    pub fn with_schedule(mut self, schedule: SigmaSchedule) -> Self {
        self.schedule = Some(schedule);
        self
    }

    /// With another meaning of the network's output.
    pub fn with_prediction(mut self, prediction: PredictionType) -> Self {
        self.file.prediction_type = Some(prediction.name().into());
        self
    }

    /// With betas rescaled to zero terminal SNR, or not.
    pub fn with_zero_snr(mut self, zero_snr: bool) -> Self {
        self.file.rescale_betas_zero_snr = Some(zero_snr);
        self
    }

    /// With another amount of noise; see [`Sampler::takes_eta`].
    pub fn with_eta(mut self, eta: f64) -> Self {
        self.eta = Some(eta);
        self
    }

    /// The sampler that the configuration asks for.
    ///
    /// # Errors
    /// [`Error::Model`] for a class or an algorithm that is not implemented.
    pub fn sampler(&self) -> Result<Sampler> {
        if let Some(sampler) = self.chosen {
            return Ok(sampler);
        }
        let class = self.file.class_name.as_deref().unwrap_or("missing");
        let of_class: Vec<Sampler> = Sampler::of_class(plain_class(class)).collect();
        let Some(first) = of_class.first() else {
            let mut known: Vec<&str> = Sampler::all().map(Sampler::class_name).collect();
            known.retain(|class| !class.is_empty());
            known.sort_unstable();
            known.dedup();
            return Err(self.refuse("_class_name", &format!("{class:?}"), &format!("{}; name another with `sampler`", known.join(", "))));
        };
        let algorithms = of_class.iter().flat_map(|sampler| sampler.row().algorithms.iter().map(|name| (*name, *sampler)));
        let algorithms: Vec<(&str, Sampler)> = algorithms.collect();
        if algorithms.is_empty() {
            return Ok(*first);
        }
        self.choice("algorithm_type", &self.file.algorithm_type, *first, &algorithms)
    }

    /// What the network predicts.
    ///
    /// # Errors
    /// [`Error::Model`] for a type that is not implemented.
    pub fn prediction(&self) -> Result<PredictionType> {
        if self.is_flow() {
            return Ok(PredictionType::Flow);
        }
        self.choice("prediction_type", &self.file.prediction_type, PredictionType::Epsilon, &PredictionType::NAMES[..3])
    }

    /// How timesteps are spread.
    ///
    /// # Errors
    /// [`Error::Model`] for a spacing that is not implemented.
    pub fn spacing(&self) -> Result<TimestepSpacing> {
        self.choice("timestep_spacing", &self.file.timestep_spacing, self.sampler()?.row().spacing, TimestepSpacing::NAMES)
    }

    /// How sigmas are laid. A file's flags are obeyed where diffusers obeys them: not by the samplers that walk whole timesteps,
    /// nor by Euler ancestral.
    ///
    /// # Errors
    /// [`Error::Model`] for a schedule that is not implemented; [`Error::Input`] where the user asked for one that the sampler cannot take.
    pub fn sigma_schedule(&self) -> Result<SigmaSchedule> {
        let sampler = self.sampler()?;
        if let Some(schedule) = self.schedule {
            if schedule != SigmaSchedule::Discrete && !sampler.takes_sigma_schedule() {
                let able: Vec<&str> = Sampler::all().filter(|s| s.takes_sigma_schedule()).map(Sampler::name).collect();
                let (schedule, name) = (schedule.name(), sampler.name());
                return Err(Error::Input(format!(
                    "`schedule` {schedule} does not go with `sampler` {name}; it goes with {}",
                    able.join(", ")
                )));
            }
            return Ok(schedule);
        }
        if !sampler.takes_sigma_schedule() || !sampler.row().file_names_a_schedule {
            return Ok(SigmaSchedule::Discrete);
        }
        if self.is_flow() {
            return Ok(self.flow_schedule());
        }
        let knows_lambdas = sampler.row().file_knows_lambdas;
        self.refuse_true("use_beta_sigmas", self.file.use_beta_sigmas)?;
        self.refuse_true("use_flow_sigmas", self.file.use_flow_sigmas.filter(|_| knows_lambdas))?;
        let flags = [
            (self.file.use_karras_sigmas, SigmaSchedule::Karras),
            (self.file.use_lu_lambdas.filter(|_| knows_lambdas), SigmaSchedule::Lu),
            (self.file.use_exponential_sigmas, SigmaSchedule::Exponential),
        ];
        Ok(flags.into_iter().find(|(flag, _)| *flag == Some(true)).map_or(SigmaSchedule::Discrete, |(_, s)| s))
    }

    /// A1111's "Schedule type" for these choices.
    ///
    /// # Errors
    /// As [`SchedulerConfig::sigma_schedule`].
    pub fn a1111_schedule_name(&self) -> Result<&'static str> {
        Ok(match (self.sigma_schedule()?, self.spacing()?) {
            (SigmaSchedule::Karras, _) => "Karras",
            (SigmaSchedule::Exponential | SigmaSchedule::Lu, _) => "Exponential",
            (SigmaSchedule::Discrete, TimestepSpacing::Trailing) => "SGM Uniform",
            (SigmaSchedule::Discrete, _) => "Uniform",
            (SigmaSchedule::Normal, _) => "Normal",
            (SigmaSchedule::Polyexponential, _) => "Polyexponential",
            (SigmaSchedule::SgmUniform, _) => "SGM Uniform",
            (SigmaSchedule::Simple, _) => "Simple",
            (SigmaSchedule::DdimUniform, _) => "DDIM",
            (SigmaSchedule::Beta, _) => "Beta",
            (SigmaSchedule::KlOptimal, _) => "KL Optimal",
            (SigmaSchedule::AlignYourSteps, _) => "Align Your Steps",
            (SigmaSchedule::Gits, _) => "Align Your Steps GITS",
            (SigmaSchedule::Turbo, _) => "Turbo",
            (SigmaSchedule::LinearQuadratic, _) => "linear_quadratic",
            (SigmaSchedule::Smoothstep, _) => "smoothstep",
            (SigmaSchedule::AlignYourSteps11, _) => "Align Your Steps 11",
            (SigmaSchedule::AlignYourSteps32, _) => "Align Your Steps 32",
            (SigmaSchedule::Lcm, _) => "lcm",
            (SigmaSchedule::BongTangent, _) => "bong_tangent",
            (SigmaSchedule::Laplace, _) => "laplace",
            (SigmaSchedule::Vp, _) => "vp",
        })
    }

    /// Judges every value in the light of the sampler that is used.
    ///
    /// # Errors
    /// [`Error::Model`] (or [`Error::Input`], where the fault is not a file's) that names the file and the key.
    pub fn check(&self) -> Result<()> {
        if self.is_flow() {
            return self.check_flow();
        }
        let sampler = self.sampler()?;
        self.prediction()?;
        self.spacing()?;
        self.sigma_schedule()?;
        self.noise_table()?;
        let known: Vec<&str> = sampler.row().options.iter().map(|(name, _)| *name).collect();
        if let Some((name, value)) = self.options.iter().find(|(name, value)| !known.contains(&name.as_str()) || value.is_nan()) {
            let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
            let sampler = sampler.name();
            return Err(Error::Input(format!("`sampler-option` {name}={value} does not go with `sampler` {sampler}; it takes {known}")));
        }
        self.levels()?;
        if let Some(eta) = self.eta {
            if !sampler.takes_eta() {
                let able: Vec<&str> = Sampler::all().filter(|s| s.takes_eta()).map(Sampler::name).collect();
                return Err(Error::Input(format!("`eta` does not go with `sampler` {}; it goes with {}", sampler.name(), able.join(", "))));
            }
            if !(0.0..=1.0).contains(&eta) {
                return Err(Error::Input(format!("`eta` {eta} is out of range; it goes from 0 to 1")));
            }
        }
        (sampler.row().check)(self)
    }

    /// Where a run over levels that the user gave ends: at 0, or, by the rules of a tool that takes the list as it stands, at the last one.
    pub fn levels_end(&self) -> f64 {
        match &self.levels {
            Some(Levels::Sigmas(sigmas)) if self.like.is_some_and(|like| like != Like::Diffusers) && sigmas.len() > 1 => {
                sigmas.last().copied().unwrap_or(0.0)
            }
            _ => 0.0,
        }
    }

    /// The levels that the user gave, without the one that the run ends at ([`SchedulerConfig::levels_end`]).
    ///
    /// # Errors
    /// [`Error::Input`] where they are not descending positive numbers, or timesteps that the model was not trained on.
    pub fn levels(&self) -> Result<Option<Vec<f64>>> {
        let most = self.file.num_train_timesteps.unwrap_or(1000) as f64 - if self.is_flow() { 0.0 } else { 1.0 };
        let (flag, levels, range, example) = match &self.levels {
            None => return Ok(None),
            Some(Levels::Sigmas(sigmas)) if self.is_flow() => ("`sigmas`", sigmas, f64::MIN_POSITIVE..=1.0, "1,0.9,0.7,0.4,0"),
            Some(Levels::Sigmas(sigmas)) => ("`sigmas`", sigmas, f64::MIN_POSITIVE..=1e6, "14.6,5.2,1.8,0.6,0"),
            Some(Levels::Timesteps(timesteps)) => ("`timesteps`", timesteps, 0.0..=most, "999,749,499,249"),
        };
        let mut levels = levels.clone();
        let end = self.levels_end();
        if matches!(self.levels, Some(Levels::Sigmas(_))) && levels.len() > 1 && levels.last() == Some(&end) {
            levels.pop();
        }
        if let Some(wrong) = levels.iter().find(|level| !range.contains(*level)) {
            return Err(Error::Input(format!("{flag} {wrong} is out of range; it goes from 0 to {}", range.end())));
        }
        if levels.is_empty() || levels.windows(2).any(|pair| pair[0] <= pair[1]) {
            return Err(Error::Input(format!(
                "{flag}: the numbers must fall from the noisiest level to the cleanest, as in {flag} {example}"
            )));
        }
        Ok(Some(levels))
    }

    /// How many timesteps the network was trained on.
    pub fn trained_steps(&self) -> usize {
        self.file.num_train_timesteps.unwrap_or(1000)
    }

    pub(super) fn noise_table(&self) -> Result<NoiseTable> {
        let file = &self.file;
        let schedules =
            [("linear", BetaSchedule::Linear), ("scaled_linear", BetaSchedule::ScaledLinear), ("squaredcos_cap_v2", BetaSchedule::Cosine)];
        let (start, end) = self.sampler()?.row().betas;
        let count = file.num_train_timesteps.unwrap_or(1000);
        let positive = [("sigma_min", file.sigma_min), ("sigma_max", file.sigma_max), ("clip_sample_range", file.clip_sample_range)];
        for (key, value) in positive {
            if let Some(value) = value.filter(|v| !(*v > 0.0 && *v < 1e6)) {
                return Err(self.refuse(key, &value.to_string(), "a positive number"));
            }
        }
        if let Some(offset) = file.steps_offset.filter(|offset| !(0..=MOST_TIMESTEPS as i64).contains(offset)) {
            return Err(self.refuse("steps_offset", &offset.to_string(), "0 or 1"));
        }
        if !(2..=MOST_TIMESTEPS).contains(&count) {
            return Err(self.refuse("num_train_timesteps", &count.to_string(), &format!("2 to {MOST_TIMESTEPS}")));
        }
        let (start, end) = (file.beta_start.unwrap_or(start), file.beta_end.unwrap_or(end));
        let plain = file.trained_betas.is_none() && file.rescale_betas_zero_snr != Some(true);
        if self.like == Some(Like::ComfyUi) && plain && 0.0 < start && start < 1.0 && 0.0 < end && end < 1.0 {
            match self.choice("beta_schedule", &file.beta_schedule, BetaSchedule::Linear, &schedules)? {
                BetaSchedule::Cosine => {}
                schedule => return Ok(NoiseTable::comfyui(schedule == BetaSchedule::ScaledLinear, start, end, count)),
            }
        }
        let betas = match &file.trained_betas {
            Some(betas) => betas.iter().map(|b| *b as f32).collect(),
            None => {
                let schedule = self.choice("beta_schedule", &file.beta_schedule, BetaSchedule::Linear, &schedules)?;
                betas(schedule, start, end, count)
            }
        };
        if betas.len() != count {
            let found = format!("{} for {count} timesteps", betas.len());
            return Err(self.refuse("trained_betas", &found, "one for each of `num_train_timesteps`"));
        }
        // `!(…)` so that a NaN is refused too.
        if betas.iter().any(|b| !(*b > 0.0 && *b < 1.0)) {
            return Err(self.refuse("beta_start", &format!("{start} with `beta_end` {end}"), "betas between 0 and 1"));
        }
        Ok(NoiseTable::new(&betas, file.rescale_betas_zero_snr.unwrap_or(false)))
    }

    /// The bound on denoised latents, for the samplers that have one.
    pub(super) fn clip_range(&self) -> Result<Option<f64>> {
        let default = self.sampler()?.row().clips;
        Ok(self.file.clip_sample.unwrap_or(default).then(|| self.file.clip_sample_range.unwrap_or(1.0)))
    }

    /// Whether the last sigma is 0 and not the smallest trained one.
    pub(super) fn ends_at_zero(&self) -> Result<bool> {
        self.choice("final_sigmas_type", &self.file.final_sigmas_type, true, &[("zero", true), ("sigma_min", false)])
    }

    /// The value of a key among the names that are implemented.
    pub(super) fn choice<T: Copy>(&self, key: &str, value: &Option<String>, default: T, choices: &[(&str, T)]) -> Result<T> {
        let Some(value) = value else { return Ok(default) };
        choices.iter().find(|(name, _)| name == value).map(|(_, choice)| *choice).ok_or_else(|| {
            let names: Vec<&str> = choices.iter().map(|(name, _)| *name).collect();
            self.refuse(key, &format!("{value:?}"), &names.join(", "))
        })
    }

    pub(super) fn refuse_true(&self, key: &str, value: Option<bool>) -> Result<()> {
        if value == Some(true) { Err(self.refuse(key, "true", "false")) } else { Ok(()) }
    }

    pub(super) fn refuse(&self, key: &str, value: &str, choices: &str) -> Error {
        let choices = if choices.is_empty() { "absent" } else { choices };
        match &self.source {
            Some(file) => Error::Model(format!("{file}: `{key}` is {value}, which sd-gen does not implement; it can be {choices}")),
            None => Error::Input(format!("the scheduler's `{key}` is {value}, which sd-gen does not implement; it can be {choices}")),
        }
    }
}
