//! Samplers by name, however another tool spells them.

use super::SigmaSchedule;
use crate::{Error, Result};

/// A way to step through the noise levels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Sampler {
    /// Pseudo linear multistep; Stable Diffusion 1.x's own.
    Pndm,
    /// Denoising diffusion implicit models.
    Ddim,
    /// Ancestral sampling of the trained chain.
    Ddpm,
    /// First order, deterministic.
    Euler,
    /// First order with fresh noise at every step.
    EulerAncestral,
    /// Second order, two network calls a step.
    Heun,
    /// DPM-Solver++, multistep.
    Dpmpp2m,
    /// DPM-Solver++, multistep, of the stochastic equation.
    Dpmpp2mSde,
}

/// One row a sampler.
struct SamplerRow {
    sampler: Sampler,
    canonical: &'static str,
    a1111: &'static str,
    class: &'static str,
    /// Steps that give a finished image with guidance, as the field uses it.
    steps: usize,
    /// Folded.
    aliases: &'static [&'static str],
}

#[rustfmt::skip]
const NAMES: &[SamplerRow] = &[
    SamplerRow { sampler: Sampler::Pndm, canonical: "pndm", a1111: "PLMS", class: "PNDMScheduler", steps: 50, aliases: &["plms"] },
    SamplerRow { sampler: Sampler::Ddim, canonical: "ddim", a1111: "DDIM", class: "DDIMScheduler", steps: 50, aliases: &[] },
    SamplerRow { sampler: Sampler::Ddpm, canonical: "ddpm", a1111: "DDPM", class: "DDPMScheduler", steps: 50, aliases: &[] },
    SamplerRow { sampler: Sampler::Euler, canonical: "euler", a1111: "Euler", class: "EulerDiscreteScheduler", steps: 30, aliases: &["keuler"] },
    SamplerRow { sampler: Sampler::EulerAncestral, canonical: "euler-a", a1111: "Euler a", class: "EulerAncestralDiscreteScheduler", steps: 30,
            aliases: &["eulerancestral", "keulera", "keulerancestral"] },
    SamplerRow { sampler: Sampler::Heun, canonical: "heun", a1111: "Heun", class: "HeunDiscreteScheduler", steps: 25, aliases: &["kheun"] },
    SamplerRow { sampler: Sampler::Dpmpp2m, canonical: "dpm++2m", a1111: "DPM++ 2M", class: "DPMSolverMultistepScheduler", steps: 25,
            aliases: &["dpmpp2m", "kdpmpp2m", "dpmpp", "dpmsolver++", "dpmsolverpp", "dpmsolvermultistep"] },
    SamplerRow { sampler: Sampler::Dpmpp2mSde, canonical: "dpm++2m-sde", a1111: "DPM++ 2M SDE", class: "DPMSolverMultistepScheduler", steps: 30,
            // ComfyUI's `_gpu` says where its noise is drawn.
            aliases: &["dpmpp2msde", "kdpmpp2msde", "dpmpp2msdegpu"] },
];

/// Words that other tools append to a sampler's name, folded.
const SCHEDULE_WORDS: &[(&str, SigmaSchedule)] =
    &[("karras", SigmaSchedule::Karras), ("exponential", SigmaSchedule::Exponential), ("k", SigmaSchedule::Karras)];

impl Sampler {
    fn names(self) -> &'static SamplerRow {
        NAMES.iter().find(|n| n.sampler == self).unwrap_or(&NAMES[0])
    }

    /// Steps to take when neither the user nor the model says.
    pub fn default_steps(self) -> usize {
        self.names().steps
    }

    /// Every sampler.
    pub fn all() -> impl Iterator<Item = Sampler> {
        NAMES.iter().map(|n| n.sampler)
    }

    /// The canonical name.
    pub fn name(self) -> &'static str {
        self.names().canonical
    }

    /// The name in A1111's metadata.
    pub fn a1111_name(self) -> &'static str {
        self.names().a1111
    }

    /// The class in a diffusers `scheduler_config.json`.
    pub fn class_name(self) -> &'static str {
        self.names().class
    }

    /// The sampler of a diffusers class; DPM-Solver's two are told apart by `algorithm_type`.
    pub(super) fn from_class(class: &str) -> Option<Self> {
        // Flax repositories carry the same files with a prefixed class.
        let class = class.strip_prefix("Flax").unwrap_or(class);
        NAMES.iter().find(|n| n.class == class).map(|n| n.sampler)
    }

    /// Whether sigmas may be laid by a schedule instead of by timesteps.
    pub fn takes_sigma_schedule(self) -> bool {
        !matches!(self, Sampler::Pndm | Sampler::Ddim | Sampler::Ddpm)
    }

    /// Whether the sampler adds noise of its own, scaled by eta.
    pub fn takes_eta(self) -> bool {
        matches!(self, Sampler::Ddim | Sampler::EulerAncestral)
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
        let all: Vec<&str> = NAMES.iter().map(|n| n.canonical).collect();
        let hint = nearest(&folded).map(|n| format!(" (did you mean {n}?)")).unwrap_or_default();
        Err(Error::Input(format!("--sampler `{name}` is not available{hint}; it can be {}", all.join(", "))))
    }
}

fn fold(name: &str) -> String {
    // A plus is folded to a letter, so that DPM++ 2M and dpmpp_2m are one name and DPM2 another.
    name.chars().filter(|c| !" -_()".contains(*c)).flat_map(char::to_lowercase).map(|c| if c == '+' { 'p' } else { c }).collect()
}

fn spellings(names: &'static SamplerRow) -> impl Iterator<Item = String> {
    [names.canonical, names.a1111, names.class].into_iter().chain(names.aliases.iter().copied()).map(fold)
}

fn lookup(folded: &str) -> Option<Sampler> {
    NAMES.iter().find(|n| spellings(n).any(|s| s == folded)).map(|n| n.sampler)
}

/// The canonical name whose spelling is nearest, if one is near enough to be a slip of the finger.
fn nearest(folded: &str) -> Option<&'static str> {
    let near = |n: &'static SamplerRow| spellings(n).map(|s| strsim::damerau_levenshtein(&s, folded)).min();
    let (distance, name) = NAMES.iter().filter_map(|n| Some((near(n)?, n.canonical))).min()?;
    (distance <= 2.max(folded.chars().count() / 3)).then_some(name)
}
