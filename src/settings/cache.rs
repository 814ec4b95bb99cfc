//! What is left out of some steps.

use super::{Draft, Request, Value, ValueKind};
use crate::spec::ModelSpec;
use crate::{Error, Result};

/// Work that is taken from one step to the next in the place of computing it. A value of 0 leaves nothing out (of `deepcache`, 1).
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub enum StepCache {
    /// Estimates are forecast from those before.
    Spectrum {
        /// Steps of which one is computed, at the beginning; it grows.
        window: f64,
    },
    /// The network's change of its input is taken again while an error is small.
    UCache {
        /// The error up to which a step is left out.
        threshold: f64,
    },
    /// Only the last layers of the UNet are computed.
    DeepCache {
        /// Steps of which one is computed as a whole.
        interval: usize,
        /// How many layers more than one are computed.
        branch: usize,
    },
    /// The attention to the text ends at a step, and guidance with it.
    TGate {
        /// The step.
        step: usize,
    },
}

impl StepCache {
    /// The names.
    pub const NAMES: [&str; 4] = ["spectrum", "ucache", "deepcache", "tgate"];

    /// Whether one image's numbers decide what is left out, so that images of a batch are generated one at a time.
    pub fn looks_at_numbers(self) -> bool {
        matches!(self, Self::UCache { .. })
    }

    /// Whether it works inside a UNet.
    fn is_inside(self) -> bool {
        matches!(self, Self::DeepCache { .. } | Self::TGate { .. })
    }
}

impl Value for StepCache {
    const KIND: ValueKind = ValueKind::Word;

    fn parse(text: &str) -> Result<Self, String> {
        let mut parts = text.split(':').map(str::trim);
        let name = parts.next().unwrap_or_default().to_lowercase();
        let (value, more) = (parts.next(), parts.next());
        if parts.next().is_some() || more.is_some() && name != "deepcache" {
            return Err("give a name, and a number after it such as ucache:0.5".into());
        }
        let number = |usual: f64, most: f64| match value.map(str::parse::<f64>) {
            None => Ok(usual),
            Some(Ok(number)) if (0.0..=most).contains(&number) => Ok(number),
            Some(_) => Err(format!("{name} takes a number from 0 to {most}")),
        };
        let whole = |text: Option<&str>, usual: usize, range: std::ops::RangeInclusive<usize>| match text.map(str::parse::<usize>) {
            None => Ok(usual),
            Some(Ok(number)) if range.contains(&number) => Ok(number),
            Some(_) => Err(format!("{name} takes whole numbers from {} to {}", range.start(), range.end())),
        };
        match name.as_str() {
            "spectrum" => Ok(Self::Spectrum { window: number(2.0, 100.0)? }),
            "ucache" => Ok(Self::UCache { threshold: number(1.0, 100.0)? }),
            "deepcache" => Ok(Self::DeepCache { interval: whole(value, 3, 1..=1000)?, branch: whole(more, 0, 0..=100)? }),
            "tgate" => Ok(Self::TGate { step: whole(value, 10, 0..=1000)? }),
            _ => Err(format!("there are {}, each with a number after it such as ucache:0.5", Self::NAMES.join(", "))),
        }
    }

    fn typed(&self) -> String {
        match self {
            Self::Spectrum { window } => format!("spectrum:{window}"),
            Self::UCache { threshold } => format!("ucache:{threshold}"),
            Self::DeepCache { interval, branch: 0 } => format!("deepcache:{interval}"),
            Self::DeepCache { interval, branch } => format!("deepcache:{interval}:{branch}"),
            Self::TGate { step } => format!("tgate:{step}"),
        }
    }
}

/// What does not go together is said before any work.
pub(super) fn check(request: &Request, spec: &ModelSpec) -> Result<()> {
    let Some(cache) = request.sampling.cache else { return Ok(()) };
    let refuse = |what: &str| Err(Error::setting("cache", format!("{}: {what}", cache.typed())));
    if cache.is_inside() && spec.mmdit.is_some() {
        return refuse("works inside a UNet, and this model is a transformer; take spectrum or ucache");
    }
    if cache.is_inside() && request.passes.hires_window.is_some() {
        return refuse("what it keeps is of an image that is seen whole; leave it or `hires-window` out, or take spectrum");
    }
    if matches!(cache, StepCache::UCache { .. }) && request.inputs.edit {
        return refuse("does not go with a model that edits; take spectrum or deepcache");
    }
    if request.guidance.sag_scale != 0.0 && !matches!(cache, StepCache::Spectrum { .. }) {
        return refuse("does not go with `sag-scale`, which calls the network twice; take spectrum, or leave one of them out");
    }
    if !matches!(cache, StepCache::TGate { step } if step > 0) {
        return Ok(());
    }
    let guidance = &request.guidance;
    for (given, what) in [
        (request.inputs.edit, "a model that edits by instruction"),
        (request.part_weights().is_some(), "a prompt with AND"),
        (guidance.pag_scale != 0.0, "`pag-scale`"),
        (guidance.apg.is_some(), "`apg`"),
        (guidance.start > 0.0 || guidance.end < 1.0, "`guidance-start` and `guidance-end`"),
        (guidance.ngms > 0.0 || guidance.skip_early > 0.0, "`ngms` and `skip-early-cfg`"),
        (!request.adapters.ip_adapter.is_empty(), "`ip-adapter`"),
    ] {
        if given {
            return refuse(&format!("decides itself where the text counts, and does not go with {what}; leave one of them out"));
        }
    }
    Ok(())
}

/// The sets of settings of `--fast`, by level: steps on the schedule "align your steps", the share of the steps that is guided, and whether
/// estimates are forecast.
const FAST: [(usize, f64, bool); 3] = [(20, 0.5, true), (10, 0.5, false), (10, 0.4, true)];

impl Draft {
    /// With what `fast` chooses, as far as nothing else was said; and what that is, as flags without their dashes.
    ///
    /// A model that was distilled to a few steps has its own fewest already, and keeps them.
    pub(super) fn with_fast(&self, spec: &ModelSpec) -> Draft {
        let mut draft = self.clone();
        let Some(super::FastLevel(level)) = draft.sampling.fast.take() else { return draft };
        let Some((steps, guided, forecast)) = level.checked_sub(1).and_then(|at| FAST.get(at)).copied() else { return draft };
        let mut chosen = Vec::new();
        let scheduler = &draft.scheduler;
        // The schedule's tables are for noise that is added, not for flows.
        let own_schedule = spec.mmdit.is_none()
            && scheduler.sigmas.is_none()
            && scheduler.timesteps.is_none()
            && scheduler.schedule.is_none()
            && scheduler.config.is_none()
            && scheduler.sampler.is_none();
        let few = draft.sampling.steps.or(spec.defaults.steps).is_some_and(|steps| steps <= 8);
        if !few && own_schedule {
            draft.scheduler.sampler = Some("dpm++2m".into());
            chosen.push("sampler dpm++2m".to_owned());
            draft.scheduler.schedule = Some(crate::sampling::SigmaSchedule::AlignYourSteps.into());
            chosen.push("schedule align_your_steps".to_owned());
        }
        if !few && draft.sampling.steps.is_none() && draft.scheduler.sigmas.is_none() && draft.scheduler.timesteps.is_none() {
            draft.sampling.steps = Some(steps);
            chosen.push(format!("steps {steps}"));
        }
        let plain = draft.guidance.pag_scale.is_none_or(|scale| scale == 0.0) && draft.inputs.edit != Some(true);
        if !few
            && plain
            && draft.guidance.end.is_none()
            && draft.guidance.start.is_none_or(|start| start < guided)
            && draft.sampling.cache.is_none()
        {
            draft.guidance.end = Some(guided);
            chosen.push(format!("guidance-end {guided}"));
        }
        if !few && forecast && draft.sampling.cache.is_none() {
            draft.sampling.cache = Some(StepCache::Spectrum { window: 2.0 });
            chosen.push("cache spectrum:2".to_owned());
        }
        match chosen.is_empty() {
            true => {
                tracing::warn!("`fast`: the model takes few steps by itself, or all that it would choose was said: nothing was changed")
            }
            false => tracing::warn!("`fast` chose {}; each flag that is given wins", chosen.join(", ")),
        }
        draft
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn caches_are_read_as_they_are_written() {
        for (text, typed) in [
            ("spectrum", "spectrum:2"),
            ("ucache:0.5", "ucache:0.5"),
            ("DeepCache", "deepcache:3"),
            ("deepcache:5:1", "deepcache:5:1"),
            ("tgate", "tgate:10"),
        ] {
            let cache = StepCache::parse(text).unwrap_or_else(|what| panic!("{text}: {what}"));
            assert_eq!((cache.typed().as_str(), StepCache::parse(&cache.typed())), (typed, Ok(cache)), "{text}");
        }
        for bad in ["", "teacache", "ucache:x", "ucache:-1", "deepcache:0", "tgate:1.5", "spectrum:2:1", "deepcache:3:1:1"] {
            assert!(StepCache::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn fast_chooses_what_was_not_said() {
        let spec = crate::family::well_known("sd15").unwrap();
        let resolved = |change: fn(&mut Draft)| {
            let draft = Draft::new("a cat").with(|draft| draft.set("fast", ["3"]).unwrap()).with(change);
            draft.resolve(&spec).unwrap()
        };
        let request = resolved(|_| ());
        assert_eq!((request.sampling.steps, request.guidance.end, request.sampling.fast), (10, 0.4, None));
        assert_eq!(request.sampling.cache, Some(StepCache::Spectrum { window: 2.0 }));
        assert_eq!(request.scheduler.schedule, Some(crate::sampling::SigmaSchedule::AlignYourSteps));
        let said = resolved(|draft| {
            draft.sampling.steps = Some(30);
            draft.guidance.end = Some(1.0);
            draft.set("cache", ["deepcache"]).unwrap();
        });
        assert_eq!((said.sampling.steps, said.guidance.end), (30, 1.0));
        assert_eq!(said.sampling.cache, Some(StepCache::DeepCache { interval: 3, branch: 0 }));
        // A model of a few steps has its own.
        assert_eq!(resolved(|draft| draft.sampling.steps = Some(4)).sampling.cache, None);
    }

    #[test]
    fn a_lora_of_a_few_steps_brings_its_defaults() {
        let folder = tempfile::tempdir().unwrap();
        let header = br#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#;
        let bytes = [(header.len() as u64).to_le_bytes().as_slice(), header, &[0; 4]].concat();
        let lora = folder.path().join("dmd2_sdxl_4step_lora.safetensors");
        std::fs::write(&lora, bytes).unwrap();
        let spec = crate::family::well_known("sdxl").unwrap();
        let draft = Draft::new("a cat").with(|draft| draft.set("lora", [lora.as_os_str()]).unwrap());
        let request = draft.resolve(&spec).unwrap();
        assert_eq!((request.sampling.steps, request.guidance.scale), (4, 1.0));
        assert_eq!(request.scheduler.sampler().unwrap().name(), "lcm");
        assert_eq!(request.scheduler.levels().unwrap(), Some(vec![999.0, 749.0, 499.0, 249.0]));
        let said = draft.with(|draft| draft.sampling.steps = Some(6)).resolve(&spec).unwrap();
        assert_eq!((said.sampling.steps, said.scheduler.levels().unwrap()), (6, None));
    }
}
