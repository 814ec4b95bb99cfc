//! How many steps, and whose noise.

use super::canvas::parse_size;
use super::value::{Said, ValueSlot, not_whole};
use super::{By, Heading, Request, Setting, StepCache, Together, Value, ValueKind};
use crate::noise::Rng;
use crate::sampling::{FirstNoise, Like, Sampler};
use std::num::NonZeroUsize;

settings! {
    /// How the noise becomes an image; the schedule and the solver are [`Request::scheduler`].
    SamplingSettings, SamplingDraft, draft.sampling, by By<'_>, of |request: &Request| Some(&request.sampling);

    /// Denoising steps
    steps: one usize = |by| by.spec.defaults.steps.unwrap_or_else(|| Sampler::default_steps(by.sampler)) => Setting {
        name: "steps", aliases: &["num-inference-steps"], value: "N", default: "by model and sampler", heading: Heading::Sampling,
        range: Some((1.0, f64::INFINITY)), infotext: Some("Steps"), ..Setting::IMAGE
    };

    /// Leave out work that changes little from step to step: spectrum[:window], ucache[:threshold], deepcache[:interval[:branch]] or tgate[:step]
    cache: maybe StepCache => Setting {
        name: "cache", aliases: &["cache-mode"], value: "NAME[:VALUE]", example: "spectrum:2", heading: Heading::Sampling,
        words: || StepCache::NAMES.to_vec(), infotext: Some("Step cache"), ..Setting::IMAGE
    };

    /// Fewer steps, guidance in a part of them and a cache, chosen to keep the composition: about 0.4 (1), 0.3 (2) or 0.2 (3) of the work of 25 guided steps; flags that say otherwise win
    fast: maybe FastLevel => Setting {
        name: "fast", value: "LEVEL", bare: true, example: "2", heading: Heading::Sampling, effect: super::Effect::Scheduler,
        words: || vec!["1", "2", "3"], ..Setting::IMAGE
    };

    /// Follow a tool wherever tools differ: random numbers, first noise, batches, samplers and schedules, prompts, clip skip, steps from an image; other flags still win
    like: maybe Like => Setting {
        name: "like", value: "TOOL", heading: Heading::Sampling, words: || vec!["a1111", "comfyui", "diffusers", "sdcpp"],
        infotext: Some("Like"), ..Setting::IMAGE
    };

    /// Whose random numbers: torch-cpu or torch-cuda
    rng: one Rng = |by| if by.like == Some(Like::SdCpp) { Rng::TorchCuda } else { Rng::TorchCpu } => Setting {
        name: "rng", value: "RNG", default: "torch-cpu", heading: Heading::Sampling, words: || vec!["torch-cpu", "torch-cuda"],
        ..Setting::IMAGE
    };

    /// What the first noise is multiplied by: model (as diffusers), sigma (A1111), full (A1111's "SGM noise multiplier") or full-at-the-top (ComfyUI)
    first_noise: one FirstNoise = |by| first_noise_of(by.like) => Setting {
        name: "first-noise", value: "RULE", default: "model", heading: Heading::Sampling,
        words: || vec!["model", "sigma", "full", "full-at-the-top"], infotext: Some("First noise"), off: Some("model"), follows_like: true,
        ..Setting::IMAGE
    };

    /// A second seed, whose noise is blended in; the first image's, where there are several
    variation_seed: maybe Seed => Setting {
        name: "variation-seed", aliases: &["subseed"], value: "N", default: "random where `variation-strength` asks for it",
        heading: Heading::Sampling, infotext: Some("Variation seed"), together: Together::Free, ..Setting::IMAGE
    };

    /// How much of the variation seed's noise, 0 to 1
    variation_strength: one f64 = |_| 0.0 => Setting {
        name: "variation-strength", aliases: &["subseed-strength"], value: "X", default: "0", heading: Heading::Sampling,
        range: Some((0.0, 1.0)), infotext: Some("Variation seed strength"), off: Some("0"), together: Together::Free, ..Setting::IMAGE
    };

    /// The size that the seed made an image of, whose composition is kept at another one
    seed_resize_from: maybe CanvasSize => Setting {
        name: "seed-resize-from", value: "WxH", example: "512x768", heading: Heading::Sampling, infotext: Some("Seed resize from"),
        together: Together::Free, ..Setting::IMAGE
    };

    /// What is added to the seed for the noise of the steps, which then has a generator of its own
    ensd: one i64 = |by| i64::from(by.like == Some(Like::ComfyUi)) => Setting {
        name: "ensd", value: "N", default: "0", heading: Heading::Sampling, infotext: Some("ENSD"), off: Some("0"), follows_like: true,
        together: Together::Free, ..Setting::IMAGE
    };

    /// The noise of several images: each (from seed + i) or shared (one draw for all of them, as in ComfyUI)
    batch_noise: one BatchNoise = |by| if by.like == Some(Like::ComfyUi) { BatchNoise::Shared } else { BatchNoise::Each } => Setting {
        name: "batch-noise", value: "HOW", default: "each", heading: Heading::Sampling, words: || vec!["each", "shared"],
        infotext: Some("Batch noise"), off: Some("each"), follows_like: true, ..Setting::IMAGE
    };

    /// Which image of a shared draw this is, such as 2/4
    batch_place: maybe BatchPlace => Setting {
        name: "batch-place", value: "I/N", example: "2/4", heading: Heading::Sampling, infotext: Some("Batch place"),
        together: Together::Free, ..Setting::IMAGE
    };
}

fn first_noise_of(like: Option<Like>) -> FirstNoise {
    match like {
        None | Some(Like::Diffusers) => FirstNoise::Model,
        Some(Like::A1111 | Like::SdCpp) => FirstNoise::Sigma,
        Some(Like::ComfyUi) => FirstNoise::FullAtTheTop,
    }
}

/// Where the noise of several images comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BatchNoise {
    /// Each image has its own seed and generator.
    Each,
    /// All images have one seed, and each draw is for all of them.
    Shared,
}

impl BatchNoise {
    fn name(&self) -> &'static str {
        match self {
            Self::Each => "each",
            Self::Shared => "shared",
        }
    }

    fn from_name(name: &str) -> Result<Self, &'static str> {
        match name {
            "each" => Ok(Self::Each),
            "shared" => Ok(Self::Shared),
            _ => Err("give each or shared"),
        }
    }
}

words!(BatchNoise, BatchNoise::from_name, BatchNoise::name);
words!(Like, Like::from_name, |like: &Like| like.name());
words!(FirstNoise, FirstNoise::from_name, |rule: &FirstNoise| rule.name());

/// How much `fast` leaves out, 1 to 3.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FastLevel(pub usize);

impl Value for FastLevel {
    const KIND: ValueKind = ValueKind::Word;

    fn parse(text: &str) -> Result<Self, String> {
        match text {
            // Without a value.
            "true" => Ok(Self(2)),
            _ => text.parse().ok().filter(|level| (1..=3).contains(level)).map(Self).ok_or_else(|| "give 1, 2 or 3".to_owned()),
        }
    }

    fn typed(&self) -> String {
        self.0.to_string()
    }
}

/// Images that one draw may be for: more would draw and throw away most.
const MOST_TOGETHER: usize = 4096;

/// One image of several whose noise is one draw.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchPlace {
    /// Counts from 0.
    pub index: usize,
    /// How many there are.
    pub images: NonZeroUsize,
}

impl BatchPlace {
    /// The place of an image among so many; `None` where there is none, or there are more than one draw is for.
    pub fn of(index: usize, images: usize) -> Option<Self> {
        let images = NonZeroUsize::new(images).filter(|images| index < images.get() && images.get() <= MOST_TOGETHER)?;
        Some(Self { index, images })
    }
}

impl Value for BatchPlace {
    const KIND: ValueKind = ValueKind::Word;

    fn parse(text: &str) -> Result<Self, String> {
        let parts = text.split_once('/').and_then(|(place, images)| Some((place.trim().parse().ok()?, images.trim().parse().ok()?)));
        let of = |(place, images): (usize, usize)| Self::of(place.checked_sub(1)?, images);
        parts.and_then(of).ok_or_else(|| format!("give the image and how many there are, such as 2/4; at most {MOST_TOGETHER}"))
    }

    fn typed(&self) -> String {
        format!("{}/{}", self.index + 1, self.images)
    }
}

/// Width and height in pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CanvasSize {
    /// Pixels.
    pub width: usize,
    /// Pixels.
    pub height: usize,
}

/// Pixels along one side that a seed's first size may have.
const LARGEST_SIDE: usize = 16_384;

impl Value for CanvasSize {
    const KIND: ValueKind = ValueKind::Word;

    fn parse(text: &str) -> Result<Self, String> {
        let (width, height) = parse_size(text)?;
        match [width, height].into_iter().all(|side| (8..=LARGEST_SIDE).contains(&side)) {
            true => Ok(Self { width, height }),
            false => Err(format!("each side has 8 to {LARGEST_SIDE} pixels")),
        }
    }

    fn typed(&self) -> String {
        format!("{}x{}", self.width, self.height)
    }
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
