//! How many steps, and whose noise.

use super::value::{Said, ValueSlot, not_whole};
use super::{By, Heading, Request, Setting, Together, Value, ValueKind};
use crate::noise::Rng;
use crate::sampling::Sampler;

settings! {
    /// How the noise becomes an image; the schedule and the solver are [`Request::scheduler`].
    SamplingSettings, SamplingDraft, draft.sampling, by By<'_>, of |request: &Request| Some(&request.sampling);

    /// Denoising steps
    steps: one usize = |by| by.spec.defaults.steps.unwrap_or_else(|| Sampler::default_steps(by.sampler)) => Setting {
        name: "steps", aliases: &["num-inference-steps"], value: "N", default: "by model and sampler", heading: Heading::Sampling,
        range: Some((1.0, f64::INFINITY)), infotext: Some("Steps"), ..Setting::IMAGE
    };

    /// Whose random numbers: torch-cpu or torch-cuda
    rng: one Rng = |_| Rng::default() => Setting {
        name: "rng", value: "RNG", default: "torch-cpu", heading: Heading::Sampling, words: || vec!["torch-cpu", "torch-cuda"],
        ..Setting::IMAGE
    };
}

/// Where a draft says no seed, or a random one, resolving it draws one.
pub(super) const SEED: &[Setting] = &[Setting {
    name: "seed",
    short: Some('s'),
    value: "N",
    help: "Image i has seed + i; negative means random",
    default: "random, and always reported",
    together: Together::Free,
    kind: ValueKind::Whole,
    infotext: Some("Seed"),
    access: super::Access {
        read: |draft, values| draft.seed.read(values),
        given: |draft| draft.seed.typed(),
        decided: |request| vec![request.seed.to_string()],
        json: |request| request.seed.into(),
        ..Setting::IMAGE.access
    },
    // Each image has its own, which its key holds.
    ..Setting::BATCH
}];

/// A seed as it is typed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seed {
    /// One that is drawn.
    Random,
    /// This one.
    Is(u64),
}

impl Value for Seed {
    const KIND: ValueKind = ValueKind::Whole;

    fn parse(text: &str) -> Result<Self, String> {
        match text.parse::<i128>() {
            Ok(n) if n < 0 => Ok(Seed::Random),
            Ok(n) => u64::try_from(n).map(Seed::Is).map_err(|_| format!("at most {}", u64::MAX)),
            Err(_) if !not_whole(text).contains("large") => Err("give a whole number; a negative one means random".into()),
            Err(_) => Err(not_whole(text)),
        }
    }

    fn typed(&self) -> String {
        match self {
            Seed::Random => "-1".into(),
            Seed::Is(seed) => seed.to_string(),
        }
    }
}

words!(Rng, Rng::from_name, |rng: &Rng| rng.name());
