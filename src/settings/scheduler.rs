//! The noise schedule and the solver: what is said here is laid over the model's own configuration.

use super::{Draft, Heading, NumberList, Setting, Value, ValueKind};
use crate::inputs::InputFile;
use crate::sampling::{Levels, Like, PredictionType, Sampler, SchedulerConfig, SigmaSchedule, TimestepSpacing};
use crate::spec::ModelSpec;
use crate::{Error, Result};

settings! {
    /// What takes the place of the model's own schedule and solver; a request holds the outcome, [`super::Request::scheduler`].
    SchedulerDraft, draft.scheduler;

    /// However another tool spells it: "DPM++ 2M Karras", euler_a, DDIMScheduler
    sampler: maybe String => Setting {
        name: "sampler", aliases: &["scheduler", "sampling-method"], hidden_aliases: &["sampler-name"], value: "NAME",
        default: "the model's own", words: || Sampler::all().map(Sampler::name).collect(), ..Setting::SCHEDULER
    };

    /// How the noise levels are laid: karras, exponential, beta, align_your_steps, …; automatic is what A1111 takes for the sampler
    schedule: maybe ScheduleChoice => Setting {
        name: "schedule", hidden_aliases: &["schedule-type"], value: "NAME", default: "the model's own",
        words: || ["automatic"].into_iter().chain(SigmaSchedule::NAMES.iter().map(|(name, _)| *name)).collect(), ..Setting::SCHEDULER
    };

    /// leading, linspace or trailing, as diffusers means it
    timestep_spacing: maybe TimestepSpacing => Setting {
        name: "timestep-spacing", value: "SPACING", default: "the model's own",
        words: || TimestepSpacing::NAMES.iter().map(|(name, _)| *name).collect(), ..Setting::SCHEDULER
    };

    /// A diffusers scheduler_config.json in place of the model's; the flags here still win
    config: maybe InputFile => Setting { name: "scheduler-config", value: "FILE", limit: 1 << 20, ..Setting::SCHEDULER };

    /// Noise of ancestral samplers (1) and DDIM (0)
    eta: maybe f64 => Setting { name: "eta", value: "X", range: Some((0.0, 1.0)), ..Setting::SCHEDULER };

    /// The noise levels themselves, such as 14.6,5.2,1.8,0.6,0
    sigmas: maybe NumberList => Setting {
        name: "sigmas", value: "LIST", example: "14.6,7.1,1.5,0", infotext: Some("Sigmas"), conflicts: &["timesteps"], ..Setting::SCHEDULER
    };

    /// The timesteps themselves, such as 999,749,499,249
    timesteps: maybe NumberList => Setting { name: "timesteps", value: "LIST", example: "999,749,499,249", infotext: Some("Timesteps"), ..Setting::SCHEDULER };

    /// An option of the sampler's own, such as s_churn=12 or order=2; may be repeated
    options: many SamplerOption => Setting {
        name: "sampler-option", value: "NAME=X", example: "s_noise=0.9", infotext: Some("Sampler option"), ..Setting::SCHEDULER
    };

    /// What the UNet predicts: epsilon or v
    prediction: maybe PredictionType => Setting {
        name: "prediction", value: "WHAT", default: "as detected", heading: Heading::Model, words: || vec!["epsilon", "v"],
        ..Setting::SCHEDULER
    };

    /// Rescale the noise schedule to zero terminal SNR
    zero_snr: maybe bool => Setting { name: "zero-snr", heading: Heading::Model, ..Setting::SCHEDULER };
}

/// How noise levels are laid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ScheduleChoice {
    /// As A1111 has it for the sampler.
    Automatic,
    /// By this one.
    Is(SigmaSchedule),
}

impl From<SigmaSchedule> for ScheduleChoice {
    fn from(schedule: SigmaSchedule) -> Self {
        Self::Is(schedule)
    }
}

impl ScheduleChoice {
    fn from_name(name: &str) -> Result<Self> {
        if name.trim().eq_ignore_ascii_case("automatic") { Ok(Self::Automatic) } else { SigmaSchedule::from_name(name).map(Self::Is) }
    }

    fn name(&self) -> &'static str {
        match self {
            Self::Automatic => "automatic",
            Self::Is(schedule) => schedule.name(),
        }
    }

    /// The schedule for a sampler; `None` where it lays its own levels.
    fn of(self, sampler: Sampler) -> Option<SigmaSchedule> {
        match self {
            Self::Automatic if !sampler.takes_sigma_schedule() => None,
            Self::Automatic => Some(sampler.automatic_schedule().unwrap_or(SigmaSchedule::Normal)),
            Self::Is(schedule) => Some(schedule),
        }
    }
}

words!(ScheduleChoice, ScheduleChoice::from_name, ScheduleChoice::name);
words!(TimestepSpacing, TimestepSpacing::from_name, |spacing: &TimestepSpacing| spacing.name());
words!(PredictionType, PredictionType::from_name, |prediction: &PredictionType| prediction.name());

impl Draft {
    /// The schedule and the solver that are used with a model.
    ///
    /// # Errors
    /// A name that is not available, or a configuration that is none.
    pub(super) fn scheduler_for(&self, spec: &ModelSpec) -> Result<SchedulerConfig> {
        let said = &self.scheduler;
        let mut scheduler = match &said.config {
            Some(file) => config_of(file)?,
            None => spec.scheduler.clone(),
        };
        let like = self.sampling.like;
        scheduler.like = like;
        if let Some(name) = &said.sampler {
            scheduler = with_sampler(scheduler, name)?;
        }
        let mut usual = None;
        if let Some(like) = like.filter(|like| *like != Like::Diffusers) {
            // A model that was distilled to a few steps has its own sampler everywhere.
            let few_steps = spec.defaults.steps.is_some();
            if let Some(name) = like.usual_sampler().filter(|_| said.sampler.is_none() && said.config.is_none() && !few_steps) {
                scheduler = scheduler.with_sampler(name)?;
            }
            let named = scheduler.sampler()?;
            let (sampler, options) = like.sampler(named);
            if scheduler.chosen.is_none() || sampler != named {
                let schedule = scheduler.schedule.take();
                scheduler = scheduler.with_sampler(sampler.name())?;
                scheduler.schedule = schedule;
            }
            scheduler.options = options.iter().map(|(name, value)| ((*name).to_owned(), *value)).collect();
            usual = like.usual_schedule(sampler).filter(|_| scheduler.schedule.is_none());
        }
        let schedule = match said.schedule {
            Some(choice) => choice.of(scheduler.sampler()?),
            None => usual,
        };
        // What is so already is left as it is, so that an image has one key whether its scheduler was named or not.
        if let Some(schedule) = schedule.filter(|schedule| !scheduler.sigma_schedule().is_ok_and(|own| own == *schedule)) {
            scheduler = scheduler.with_schedule(schedule);
        }
        if let Some(spacing) = said.timestep_spacing.filter(|spacing| !scheduler.spacing().is_ok_and(|own| own == *spacing)) {
            scheduler = scheduler.with_spacing(spacing);
        }
        if let Some(prediction) = said.prediction.filter(|prediction| !scheduler.prediction().is_ok_and(|own| own == *prediction)) {
            scheduler = scheduler.with_prediction(prediction);
        }
        if let Some(zero_snr) = said.zero_snr.filter(|zero_snr| *zero_snr != scheduler.file.rescale_betas_zero_snr.unwrap_or(false)) {
            scheduler = scheduler.with_zero_snr(zero_snr);
        }
        self.check_flow(&scheduler, spec)?;
        if let Some(eta) = said.eta {
            scheduler = scheduler.with_eta(eta);
        }
        let lists = [(&said.sigmas, Levels::Sigmas as fn(Vec<f64>) -> Levels), (&said.timesteps, Levels::Timesteps)];
        for (list, kind) in lists {
            scheduler.levels = list.clone().map(|list| kind(list.0)).or(scheduler.levels);
        }
        scheduler.options.extend(said.options.iter().map(|option| (option.name.clone(), option.value)));
        scheduler.is_sdxl = spec.unet.text_time.is_some();
        Ok(scheduler)
    }
}

impl Draft {
    /// What is said of a schedule is of the kind that the model was trained on.
    fn check_flow(&self, scheduler: &SchedulerConfig, spec: &ModelSpec) -> Result<()> {
        let said = &self.scheduler;
        let kind = |flow: bool| if flow { "a flow" } else { "a diffusion" };
        let flow = spec.scheduler.is_flow();
        if scheduler.is_flow() != flow {
            let name = if said.config.is_some() { "scheduler-config" } else { "prediction" };
            return Err(Error::setting(name, format!(": is for {}, and this model was trained on {}", kind(!flow), kind(flow))));
        }
        let others = [
            ("prediction", said.prediction.is_some_and(|prediction| prediction != PredictionType::Flow)),
            ("timestep-spacing", said.timestep_spacing.is_some_and(|spacing| spec.scheduler.spacing().is_ok_and(|own| own != spacing))),
            ("zero-snr", said.zero_snr == Some(true)),
        ];
        match others.into_iter().find(|(_, given)| *given && flow) {
            Some((name, _)) => Err(Error::setting(name, ": does not go with this model, which was trained on a flow; leave it out")),
            None => Ok(()),
        }
    }
}

/// An option of a sampler's own: `NAME=X`.
#[derive(Debug, Clone, PartialEq)]
pub struct SamplerOption {
    /// Its name, as the sampler's original has it.
    pub name: String,
    /// Its value.
    pub value: f64,
}

impl Value for SamplerOption {
    const KIND: ValueKind = ValueKind::Word;

    fn parse(text: &str) -> Result<Self, String> {
        let (name, value) = text.split_once('=').ok_or("give a name and a number, such as s_churn=12")?;
        let value =
            value.trim().parse().ok().filter(|value: &f64| !value.is_nan()).ok_or("give a number after the =, such as s_churn=12")?;
        Ok(Self { name: name.trim().to_lowercase().replace('-', "_"), value })
    }

    fn typed(&self) -> String {
        format!("{}={}", self.name, self.value)
    }
}

/// The file was named by the user: what is wrong in it is bad input, not a bad model.
fn config_of(file: &InputFile) -> Result<SchedulerConfig> {
    let wrong = |what: String| Error::setting("scheduler-config", what);
    let name = file.path().display().to_string();
    let bytes = file.bytes().map_err(wrong)?;
    let text = std::str::from_utf8(&bytes).map_err(|_| wrong(format!("{name}: is not UTF-8 text")))?;
    SchedulerConfig::from_json(text, &name).map_err(|e| wrong(e.to_string()))
}

/// The sampler of a name; the configuration's own changes nothing of it, whatever its class has for defaults.
pub(super) fn with_sampler(scheduler: SchedulerConfig, name: &str) -> Result<SchedulerConfig> {
    let (sampler, schedule) = Sampler::from_name(name)?;
    if scheduler.sampler().is_ok_and(|own| own == sampler) {
        return Ok(match schedule.filter(|schedule| !scheduler.sigma_schedule().is_ok_and(|own| own == *schedule)) {
            Some(schedule) => scheduler.with_schedule(schedule),
            None => scheduler,
        });
    }
    scheduler.with_sampler(name)
}
