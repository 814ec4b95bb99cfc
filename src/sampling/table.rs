//! The samplers: one row each. A sampler is a solver's file and its row here.

use super::plan::Planner;
use super::solver::churn::Churn;
use super::solver::{
    a1111, cfg_pp, deis, dpm_single, dpm_singlestep, dpm_solver, dpm2, dpmpp_2s, dpmpp_sde, er_sde, euler, gradient_estimation, heun,
    heunpp2, ipndm, lcm, lms, pndm, res_multistep, restart, sa_solver, seeds, unipc,
};
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
    /// Its options and their defaults; `eta` scales the noise that it adds.
    pub(super) options: &'static [(&'static str, f64)],
    /// Sigmas may be laid by a schedule instead of by timesteps.
    takes_sigma_schedule: bool,
    /// A schedule has one sigma more for it, and its next-to-last one is left out (A1111's and ComfyUI's).
    pub(super) discards: bool,
    /// The noise of its steps comes from one Brownian path.
    pub(super) brownian: bool,
    /// It reads the unguided estimate too (CFG++), which is computed for it whatever the guidance scale.
    pub(super) unguided: bool,
    /// The length of its steps depends on the latents.
    pub(super) adapts: bool,
    /// The class ends at the smallest trained sigma.
    pub(super) ends_at_trained: bool,
    /// The class obeys `use_karras_sigmas` and its kin.
    pub(super) file_names_a_schedule: bool,
    /// The class rounds the timesteps of its Karras sigmas.
    pub(super) rounds_karras: bool,
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
    options: &[],
    takes_sigma_schedule: true,
    discards: false,
    brownian: false,
    unguided: false,
    adapts: false,
    ends_at_trained: false,
    file_names_a_schedule: true,
    rounds_karras: false,
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
const DPM: SamplerRow =
    SamplerRow { class: "DPMSolverMultistepScheduler", file_knows_lambdas: true, check: dpm_solver::check, steps: 25, ..BASE };

/// Samplers of models that were distilled to a few steps.
const FEW_STEPS: SamplerRow = SamplerRow { steps: 4, check: lcm::check, file_names_a_schedule: false, ..BASE };

const NOISE: &[(&str, f64)] = &[("eta", 1.0), ("s_noise", 1.0)];

/// Stable Diffusion's betas, which only some of diffusers' classes have as their defaults.
const OWN_BETAS: (f64, f64) = (0.00085, 0.012);

#[rustfmt::skip]
const TABLE: &[SamplerRow] = &[
    SamplerRow { name: "pndm", a1111: "PLMS", aliases: &["plms"], class: "PNDMScheduler", plan: pndm::plan, ..TIMESTEPS },
    SamplerRow { name: "ddim", a1111: "DDIM", class: "DDIMScheduler", options: &[("eta", 0.0)], clips: true,
        check: |config| config.refuse_true("thresholding", config.file.thresholding), plan: euler::plan_ddim, ..TIMESTEPS },
    SamplerRow { name: "ddim-trailing", options: &[("eta", 0.0)], plan: euler::plan_ddim_trailing, ..TIMESTEPS },
    SamplerRow { name: "ddim-a1111", options: &[("eta", 0.0)], plan: a1111::plan_ddim, ..TIMESTEPS },
    SamplerRow { name: "ddim-cfg++", a1111: "DDIM CFG++", aliases: &["ddimcfgpp"], unguided: true, plan: a1111::plan_ddim_cfg_pp, ..TIMESTEPS },
    SamplerRow { name: "plms-a1111", plan: a1111::plan_plms, ..TIMESTEPS },
    SamplerRow { name: "unipc-a1111", steps: 20, options: &[("bh", 1.0), ("order", 3.0), ("lower_order_final", 1.0), ("skip", 0.0)],
        plan: a1111::plan_unipc, ..TIMESTEPS },
    SamplerRow { name: "ddpm", a1111: "DDPM", class: "DDPMScheduler", clips: true, check: euler::check_ddpm, plan: euler::plan_ddpm, ..TIMESTEPS },
    SamplerRow { name: "euler", a1111: "Euler", aliases: &["keuler"], class: "EulerDiscreteScheduler", options: &Churn::OPTIONS,
        file_sets_the_ends: true, check: euler::check, plan: euler::plan, ..BASE },
    SamplerRow { name: "euler-a", a1111: "Euler a", aliases: &["eulerancestral", "keulera", "keulerancestral"],
        class: "EulerAncestralDiscreteScheduler", options: NOISE, file_names_a_schedule: false, plan: euler::plan_ancestral, ..BASE },
    SamplerRow { name: "euler-cfg++", aliases: &["eulercfgpp"], unguided: true, plan: cfg_pp::plan_euler, ..BASE },
    SamplerRow { name: "euler-a-cfg++", aliases: &["eulerancestralcfgpp", "euleracfgpp"], options: NOISE, unguided: true,
        plan: cfg_pp::plan_euler, ..BASE },
    SamplerRow { name: "heun", a1111: "Heun", aliases: &["kheun"], class: "HeunDiscreteScheduler", options: &Churn::OPTIONS, steps: 25,
        betas: OWN_BETAS, plan: heun::plan, ..BASE },
    SamplerRow { name: "heun++2", a1111: "HeunPP2", aliases: &["heunpp2"], steps: 20, plan: heunpp2::plan, ..BASE },
    SamplerRow { name: "dpm2", a1111: "DPM2", aliases: &["kdpm2", "kdpm2discrete"], class: "KDPM2DiscreteScheduler", steps: 25,
        options: &Churn::OPTIONS, automatic: Some(SigmaSchedule::Karras), discards: true, rounds_karras: true,
        betas: OWN_BETAS, plan: dpm2::plan, ..BASE },
    SamplerRow { name: "dpm2-a", a1111: "DPM2 a", aliases: &["kdpm2a", "dpm2ancestral", "kdpm2ancestral"],
        class: "KDPM2AncestralDiscreteScheduler", steps: 25, options: NOISE, automatic: Some(SigmaSchedule::Karras), discards: true,
        rounds_karras: true, betas: OWN_BETAS, plan: dpm2::plan_ancestral, ..BASE },
    SamplerRow { name: "lms", a1111: "LMS", aliases: &["klms"], class: "LMSDiscreteScheduler",
        options: &[("order", 4.0), ("ends_denoised", 0.0), ("shift", 0.0)], plan: lms::plan, ..BASE },
    SamplerRow { name: "dpm-fast", a1111: "DPM fast", aliases: &["kdpmfast"], options: &[("eta", 0.0), ("s_noise", 1.0)],
        plan: dpm_single::plan_fast, ..BASE },
    SamplerRow { name: "dpm-adaptive", a1111: "DPM adaptive", aliases: &["kdpmad", "kdpmadaptive"],
        adapts: true, options: &[("eta", 0.0), ("s_noise", 1.0), ("rtol", 0.05), ("atol", 0.0078)], plan: dpm_single::plan_adaptive, ..BASE },
    SamplerRow { name: "dpm++2s", class: "DPMSolverSinglestepScheduler", aliases: &["dpmpp2s"], steps: 25, file_knows_lambdas: true,
        check: dpm_singlestep::check, plan: dpm_singlestep::plan, ..BASE },
    SamplerRow { name: "dpm++2s-a", a1111: "DPM++ 2S a", aliases: &["dpmpp2sa", "kdpmpp2sa", "dpmpp2sancestral"], steps: 25, options: NOISE,
        automatic: Some(SigmaSchedule::Karras), plan: dpmpp_2s::plan, ..BASE },
    SamplerRow { name: "dpm++2s-a-cfg++", aliases: &["dpmpp2sancestralcfgpp"], steps: 25, options: NOISE, unguided: true,
        plan: dpmpp_2s::plan, ..BASE },
    SamplerRow { name: "dpm++sde", a1111: "DPM++ SDE", aliases: &["dpmppsde", "kdpmppsde", "dpmppsdegpu"], steps: 20, brownian: true,
        options: &[("eta", 1.0), ("s_noise", 1.0), ("r", 0.5)], automatic: Some(SigmaSchedule::Karras), plan: dpmpp_sde::plan, ..BASE },
    SamplerRow { name: "dpm++2m", a1111: "DPM++ 2M", aliases: &["dpmpp2m", "kdpmpp2m", "dpmpp", "dpmsolver++", "dpmsolverpp", "dpmsolvermultistep"],
        algorithms: &["dpmsolver++", "deis"], automatic: Some(SigmaSchedule::Karras), plan: dpm_solver::plan, ..DPM },
    SamplerRow { name: "dpm++2m-v2", aliases: &["dpm++2mv2", "dpmpp2mv2"], class: "", plan: dpm_solver::plan_averaged, ..DPM },
    SamplerRow { name: "dpm++2m-cfg++", aliases: &["dpmpp2mcfgpp"], unguided: true, steps: 25, plan: cfg_pp::plan_2m, ..BASE },
    // ComfyUI's `_gpu` says where its noise is drawn.
    SamplerRow { name: "dpm++2m-sde", a1111: "DPM++ 2M SDE", aliases: &["dpmpp2msde", "kdpmpp2msde", "dpmpp2msdegpu", "dpm++2msdebt"],
        algorithms: &["sde-dpmsolver++"], steps: 30, options: NOISE, brownian: true, automatic: Some(SigmaSchedule::Exponential),
        plan: dpm_solver::plan_sde, ..DPM },
    SamplerRow { name: "dpm++2m-sde-heun", a1111: "DPM++ 2M SDE Heun", aliases: &["dpmpp2msdeheun", "kdpmpp2msdeheun", "dpmpp2msdeheungpu"],
        options: NOISE, brownian: true, automatic: Some(SigmaSchedule::Exponential), plan: dpm_solver::plan_sde_heun, ..BASE },
    SamplerRow { name: "dpm++3m-sde", a1111: "DPM++ 3M SDE", aliases: &["dpmpp3msde", "kdpmpp3msde", "dpmpp3msdegpu"], options: NOISE,
        brownian: true, automatic: Some(SigmaSchedule::Exponential), discards: true, plan: dpm_solver::plan_3m_sde, ..BASE },
    SamplerRow { name: "dpm", algorithms: &["dpmsolver"], aliases: &["dpmsolver"], ends_at_trained: true,
        check: dpm_solver::check_noise, plan: dpm_solver::plan_noise, ..DPM },
    SamplerRow { name: "unipc", a1111: "UniPC", aliases: &["unipcmultistep"], class: "UniPCMultistepScheduler", steps: 20,
        file_knows_lambdas: true, check: unipc::check, plan: unipc::plan, ..BASE },
    SamplerRow { name: "uni-pc-bh1", aliases: &["unipcbh1"], steps: 20, options: &[("bh", 1.0)], discards: true,
        plan: unipc::plan_to_the_end, ..BASE },
    SamplerRow { name: "uni-pc-bh2", aliases: &["unipcbh2"], steps: 20, options: &[("bh", 2.0)], discards: true,
        plan: unipc::plan_to_the_end, ..BASE },
    SamplerRow { name: "deis", a1111: "DEIS", aliases: &["deismultistep"], class: "DEISMultistepScheduler", ends_at_trained: true,
        check: dpm_singlestep::check_deis, plan: dpm_singlestep::plan_deis, ..BASE },
    SamplerRow { name: "deis-tab", options: &[("order", 3.0)], plan: deis::plan, ..BASE },
    SamplerRow { name: "ipndm", a1111: "IPNDM", options: &[("order", 4.0), ("ends_denoised", 1.0)], plan: ipndm::plan, ..BASE },
    SamplerRow { name: "ipndm-v", a1111: "IPNDM_V", options: &[("order", 4.0), ("ends_denoised", 1.0), ("variable_to", 4.0)], plan: ipndm::plan_variable, ..BASE },
    SamplerRow { name: "lcm", a1111: "LCM", aliases: &["klcm"], class: "LCMScheduler", options: &[("boundary", 1.0), ("s_noise", 1.0)],
        betas: OWN_BETAS, plan: lcm::plan, ..FEW_STEPS },
    SamplerRow { name: "tcd", class: "TCDScheduler", options: &[("eta", 0.3)], betas: OWN_BETAS, plan: lcm::plan_trajectory, ..FEW_STEPS },
    SamplerRow { name: "restart", a1111: "Restart", options: &[("s_noise", 1.0)], automatic: Some(SigmaSchedule::Karras),
        plan: restart::plan, ..BASE },
    SamplerRow { name: "res-multistep", steps: 20, options: &[("s_noise", 1.0)], plan: res_multistep::plan, ..BASE },
    SamplerRow { name: "res-multistep-a", aliases: &["resmultistepancestral"], options: NOISE, plan: res_multistep::plan, ..BASE },
    SamplerRow { name: "res-multistep-cfg++", aliases: &["resmultistepcfgpp"], unguided: true, plan: res_multistep::plan, ..BASE },
    SamplerRow { name: "res-multistep-a-cfg++", aliases: &["resmultistepancestralcfgpp"], options: NOISE, unguided: true,
        plan: res_multistep::plan, ..BASE },
    SamplerRow { name: "res-2s", options: &[("eta", 0.0), ("s_noise", 1.0), ("r", 0.5), ("phi", 2.0)], plan: seeds::plan_two, ..BASE },
    SamplerRow { name: "er-sde", options: &[("eta", 1.0), ("s_noise", 1.0), ("max_stage", 3.0)], plan: er_sde::plan, ..BASE },
    SamplerRow { name: "seeds-2", options: &[("eta", 1.0), ("s_noise", 1.0), ("r", 0.5), ("phi", 1.0)], plan: seeds::plan_two, ..BASE },
    SamplerRow { name: "seeds-3", options: &[("eta", 1.0), ("s_noise", 1.0), ("r1", 1.0 / 3.0), ("r2", 2.0 / 3.0)],
        plan: seeds::plan_three, ..BASE },
    SamplerRow { name: "exp-heun-2-x0", options: &[("eta", 0.0), ("s_noise", 1.0), ("r", 1.0), ("phi", 2.0)], plan: seeds::plan_two, ..BASE },
    SamplerRow { name: "exp-heun-2-x0-sde", options: &[("eta", 1.0), ("s_noise", 1.0), ("r", 1.0), ("phi", 2.0)],
        plan: seeds::plan_two, ..BASE },
    SamplerRow { name: "sa-solver", class: "SASolverScheduler", options: &[("eta", 1.0)], ends_at_trained: true,
        check: sa_solver::check, plan: sa_solver::plan, ..BASE },
    SamplerRow { name: "sa-solver-sigma", aliases: &["sasolvercomfyui"], plan: sa_solver::plan_by_sigma,
        options: &[("eta", 1.0), ("predictor_order", 3.0), ("corrector_order", 4.0), ("simple_order_2", 0.0), ("pece", 0.0)], ..BASE },
    SamplerRow { name: "sa-solver-pece", plan: sa_solver::plan_by_sigma,
        options: &[("eta", 1.0), ("predictor_order", 3.0), ("corrector_order", 4.0), ("simple_order_2", 0.0), ("pece", 1.0)], ..BASE },
    SamplerRow { name: "gradient-estimation", aliases: &["eulerge"], options: &[("gamma", 2.0), ("eta", 0.0)], plan: gradient_estimation::plan, ..BASE },
    SamplerRow { name: "gradient-estimation-cfg++", aliases: &["gradientestimationcfgpp"], options: &[("gamma", 2.0)], unguided: true,
        plan: gradient_estimation::plan, ..BASE },
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

    /// The name in A1111's metadata; its own where A1111 has no such sampler.
    pub fn a1111_name(self) -> &'static str {
        if self.0.a1111.is_empty() { self.0.name } else { self.0.a1111 }
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
        self.0.options.iter().any(|(name, _)| *name == "eta")
    }

    /// Whether it reads the unguided estimate, which is then computed whatever the guidance scale is.
    pub fn reads_unguided(self) -> bool {
        self.0.unguided
    }

    /// Whether the length of its steps depends on the latents, so that images are generated one by one.
    pub fn adapts(self) -> bool {
        self.0.adapts
    }

    /// Whether a `scheduler_config.json` says the same as its name.
    pub(super) fn is_its_class(self) -> bool {
        !self.0.class.is_empty() && !self.0.brownian
    }

    /// Reads a sampler's name and the schedule word that may end it; case, spaces, `+`, `-`, `_` and brackets do not matter.
    ///
    /// # Errors
    /// [`Error::Input`] that lists the names, and the nearest three first.
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
        let hint = match nearest(&folded).as_slice() {
            [] => String::new(),
            [one] => format!(" (did you mean {one}?)"),
            [others @ .., last] => format!(" (did you mean {} or {last}?)", others.join(", ")),
        };
        Err(Error::Input(format!("`sampler` `{name}` is not available{hint}; it can be {}", all.join(", "))))
    }
}

fn fold(name: &str) -> String {
    // A plus is folded to a letter, so that DPM++ 2M and dpmpp_2m are one name and DPM2 another.
    name.chars().filter(|c| !" -_()".contains(*c)).flat_map(char::to_lowercase).map(|c| if c == '+' { 'p' } else { c }).collect()
}

fn spellings(row: &'static SamplerRow) -> impl Iterator<Item = String> {
    [row.name, row.a1111, row.class].into_iter().filter(|name| !name.is_empty()).chain(row.aliases.iter().copied()).map(fold)
}

fn lookup(folded: &str) -> Option<Sampler> {
    TABLE.iter().find(|row| spellings(row).any(|s| s == folded)).map(Sampler)
}

/// The canonical names whose spellings are nearest, at most three, if they are near enough to be a slip of the finger.
fn nearest(folded: &str) -> Vec<&'static str> {
    const MOST: usize = 3;
    let near = |row: &'static SamplerRow| spellings(row).map(|s| strsim::damerau_levenshtein(&s, folded)).min();
    let mut near: Vec<(usize, &str)> = TABLE.iter().filter_map(|row| Some((near(row)?, row.name))).collect();
    near.sort();
    let enough = 2.max(folded.chars().count() / 3);
    near.into_iter().take(MOST).take_while(|(distance, _)| *distance <= enough).map(|(_, name)| name).collect()
}
