//! The samplers: one row each. A sampler is a solver's file and its row here.

use super::plan::Planner;
use super::solver::{dpm_solver, euler, heun, pndm};
use super::{Schedule, SchedulerConfig, SigmaSchedule, TimestepSpacing};
use crate::{Error, Result};

/// A way to step through the noise levels.
#[derive(Clone, Copy)]
pub struct Sampler(&'static SamplerRow);

/// What there is to know about a sampler.
pub(super) struct SamplerRow {
    /// The canonical name.
    name: &'static str,
    /// The name in A1111's metadata.
    a1111: &'static str,
    /// Other tools' names.
    aliases: &'static [&'static str],
    /// The class in a diffusers `scheduler_config.json`.
    class: &'static str,
    /// What `algorithm_type` says there, where one class has several samplers; the first is what an absent key means.
    pub(super) algorithms: &'static [&'static str],
    /// Steps that give a finished image with guidance, as the field uses it.
    steps: usize,
    /// A1111's schedule "Automatic", where it is not the model's own.
    automatic: Option<SigmaSchedule>,
    /// The noise that it adds by default, where `--eta` scales it.
    eta: Option<f64>,
    /// Sigmas may be laid by a schedule instead of by timesteps.
    takes_sigma_schedule: bool,
    /// The class obeys `use_karras_sigmas` and its kin.
    pub(super) file_names_a_schedule: bool,
    /// The class knows `use_lu_lambdas` and `use_flow_sigmas`.
    pub(super) file_knows_lambdas: bool,
    /// The class obeys `sigma_min`, `sigma_max` and `final_sigmas_type`.
    pub(super) file_sets_the_ends: bool,
    /// The class's `timestep_spacing` where the file has none.
    pub(super) spacing: TimestepSpacing,
    /// The class's first and last beta where the file has none.
    pub(super) betas: (f64, f64),
    /// The class clips latents where the file does not say.
    pub(super) clips: bool,
    /// Judges the keys that only this sampler reads.
    pub(super) check: fn(&SchedulerConfig) -> Result<()>,
    plan: fn(&Planner<'_>) -> Result<Schedule>,
}

/// What most rows have in common: k-diffusion's samplers, in sigma space.
const BASE: SamplerRow = SamplerRow {
    name: "",
    a1111: "",
    aliases: &[],
    class: "",
    algorithms: &[],
    steps: 30,
    automatic: None,
    eta: None,
    takes_sigma_schedule: true,
    file_names_a_schedule: true,
    file_knows_lambdas: false,
    file_sets_the_ends: false,
    spacing: TimestepSpacing::Linspace,
    betas: (0.0001, 0.02),
    clips: false,
    check: |_| Ok(()),
    plan: euler::plan,
};

/// Samplers that walk whole trained timesteps.
const TIMESTEPS: SamplerRow = SamplerRow { steps: 50, takes_sigma_schedule: false, spacing: TimestepSpacing::Leading, ..BASE };

/// diffusers' `DPMSolverMultistepScheduler`.
const DPM: SamplerRow = SamplerRow { class: "DPMSolverMultistepScheduler", file_knows_lambdas: true, check: dpm_solver::check, ..BASE };

#[rustfmt::skip]
const TABLE: &[SamplerRow] = &[
    SamplerRow { name: "pndm", a1111: "PLMS", aliases: &["plms"], class: "PNDMScheduler", plan: pndm::plan, ..TIMESTEPS },
    SamplerRow { name: "ddim", a1111: "DDIM", class: "DDIMScheduler", eta: Some(0.0), clips: true,
        check: |config| config.refuse_true("thresholding", config.file.thresholding), plan: euler::plan_ddim, ..TIMESTEPS },
    SamplerRow { name: "ddpm", a1111: "DDPM", class: "DDPMScheduler", clips: true, check: euler::check_ddpm, plan: euler::plan_ddpm, ..TIMESTEPS },
    SamplerRow { name: "euler", a1111: "Euler", aliases: &["keuler"], class: "EulerDiscreteScheduler", file_sets_the_ends: true,
        check: euler::check, plan: euler::plan, ..BASE },
    SamplerRow { name: "euler-a", a1111: "Euler a", aliases: &["eulerancestral", "keulera", "keulerancestral"],
        class: "EulerAncestralDiscreteScheduler", eta: Some(1.0), file_names_a_schedule: false, plan: euler::plan_ancestral, ..BASE },
    // Heun alone has Stable Diffusion's betas as its defaults.
    SamplerRow { name: "heun", a1111: "Heun", aliases: &["kheun"], class: "HeunDiscreteScheduler", steps: 25, betas: (0.00085, 0.012),
        plan: heun::plan, ..BASE },
    SamplerRow { name: "dpm++2m", a1111: "DPM++ 2M", aliases: &["dpmpp2m", "kdpmpp2m", "dpmpp", "dpmsolver++", "dpmsolverpp", "dpmsolvermultistep"],
        algorithms: &["dpmsolver++", "deis"], steps: 25, automatic: Some(SigmaSchedule::Karras), plan: dpm_solver::plan, ..DPM },
    // ComfyUI's `_gpu` says where its noise is drawn.
    SamplerRow { name: "dpm++2m-sde", a1111: "DPM++ 2M SDE", aliases: &["dpmpp2msde", "kdpmpp2msde", "dpmpp2msdegpu"],
        algorithms: &["sde-dpmsolver++"], automatic: Some(SigmaSchedule::Exponential), plan: dpm_solver::plan_sde, ..DPM },
];

/// Words that other tools append to a sampler's name, folded.
const SCHEDULE_WORDS: &[(&str, SigmaSchedule)] =
    &[("karras", SigmaSchedule::Karras), ("exponential", SigmaSchedule::Exponential), ("k", SigmaSchedule::Karras)];

impl PartialEq for Sampler {
    fn eq(&self, other: &Self) -> bool {
        self.0.name == other.0.name
    }
}

impl Eq for Sampler {}

impl std::fmt::Debug for Sampler {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Sampler({})", self.0.name)
    }
}

impl Sampler {
    pub(super) fn row(self) -> &'static SamplerRow {
        self.0
    }

    pub(super) fn plan(self, planner: &Planner<'_>) -> Result<Schedule> {
        (self.0.plan)(planner)
    }

    /// Steps to take when neither the user nor the model says.
    pub fn default_steps(self) -> usize {
        self.0.steps
    }

    /// Every sampler.
    pub fn all() -> impl Iterator<Item = Sampler> {
        TABLE.iter().map(Sampler)
    }

    /// The canonical name.
    pub fn name(self) -> &'static str {
        self.0.name
    }

    /// The name in A1111's metadata.
    pub fn a1111_name(self) -> &'static str {
        self.0.a1111
    }

    /// What A1111's schedule "Automatic" is for it; `None` is the model's own.
    pub fn automatic_schedule(self) -> Option<SigmaSchedule> {
        self.0.automatic
    }

    /// The class in a diffusers `scheduler_config.json`.
    pub fn class_name(self) -> &'static str {
        self.0.class
    }

    /// The samplers of a diffusers class, which `algorithm_type` tells apart where there are several.
    pub(super) fn of_class(class: &str) -> impl Iterator<Item = Sampler> {
        // Flax repositories carry the same files with a prefixed class.
        let class = class.strip_prefix("Flax").unwrap_or(class);
        TABLE.iter().filter(move |row| row.class == class).map(Sampler)
    }

    /// Whether sigmas may be laid by a schedule instead of by timesteps.
    pub fn takes_sigma_schedule(self) -> bool {
        self.0.takes_sigma_schedule
    }

    /// Whether the sampler adds noise of its own, scaled by eta.
    pub fn takes_eta(self) -> bool {
        self.0.eta.is_some()
    }

    /// Eta where the user does not say.
    pub(super) fn default_eta(self) -> f64 {
        self.0.eta.unwrap_or(0.0)
    }

    /// Reads a sampler's name and the schedule word that may end it; case, spaces, `+`, `-`, `_` and brackets do not matter.
    ///
    /// # Errors
    /// [`Error::Input`] that lists the names, and the nearest one first.
    pub fn from_name(name: &str) -> Result<(Self, Option<SigmaSchedule>)> {
        let folded = fold(name);
        if let Some(sampler) = lookup(&folded) {
            return Ok((sampler, None));
        }
        for (word, schedule) in SCHEDULE_WORDS {
            if let Some(sampler) = folded.strip_suffix(word).and_then(lookup) {
                return Ok((sampler, Some(*schedule)));
            }
        }
        let all: Vec<&str> = TABLE.iter().map(|row| row.name).collect();
        let hint = nearest(&folded).map(|n| format!(" (did you mean {n}?)")).unwrap_or_default();
        Err(Error::Input(format!("--sampler `{name}` is not available{hint}; it can be {}", all.join(", "))))
    }
}

fn fold(name: &str) -> String {
    // A plus is folded to a letter, so that DPM++ 2M and dpmpp_2m are one name and DPM2 another.
    name.chars().filter(|c| !" -_()".contains(*c)).flat_map(char::to_lowercase).map(|c| if c == '+' { 'p' } else { c }).collect()
}

fn spellings(row: &'static SamplerRow) -> impl Iterator<Item = String> {
    [row.name, row.a1111, row.class].into_iter().chain(row.aliases.iter().copied()).map(fold)
}

fn lookup(folded: &str) -> Option<Sampler> {
    TABLE.iter().find(|row| spellings(row).any(|s| s == folded)).map(Sampler)
}

/// The canonical name whose spelling is nearest, if one is near enough to be a slip of the finger.
fn nearest(folded: &str) -> Option<&'static str> {
    let near = |row: &'static SamplerRow| spellings(row).map(|s| strsim::damerau_levenshtein(&s, folded)).min();
    let (distance, name) = TABLE.iter().filter_map(|row| Some((near(row)?, row.name))).min()?;
    (distance <= 2.max(folded.chars().count() / 3)).then_some(name)
}
