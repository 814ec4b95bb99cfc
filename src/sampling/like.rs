//! The tools whose rules may hold: where they differ about noise levels and samplers of one name, this says whose word counts.

use super::sigmas::{by_name, name_of};
use super::{Sampler, SigmaSchedule};
use crate::Result;

/// A tool whose rules hold wherever tools differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Like {
    /// AUTOMATIC1111's web UI, and Forge.
    A1111,
    /// ComfyUI.
    ComfyUi,
    /// diffusers.
    Diffusers,
    /// stable-diffusion.cpp.
    SdCpp,
}

/// What the noise of a run's start is multiplied by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum FirstNoise {
    /// As diffusers' class of the sampler does.
    #[default]
    Model,
    /// The first sigma (A1111, stable-diffusion.cpp).
    Sigma,
    /// `sqrt(1 + sigma²)` (A1111 with its option "SGM noise multiplier").
    Full,
    /// `sqrt(1 + sigma²)` from the largest trained sigma on, and sigma below it (ComfyUI).
    FullAtTheTop,
}

impl Like {
    /// Every tool by its name; the aliases follow the names.
    pub const NAMES: &[(&str, Like)] = &[
        ("a1111", Like::A1111),
        ("comfyui", Like::ComfyUi),
        ("diffusers", Like::Diffusers),
        ("sdcpp", Like::SdCpp),
        ("automatic1111", Like::A1111),
        ("forge", Like::A1111),
        ("comfy", Like::ComfyUi),
        ("stable_diffusion.cpp", Like::SdCpp),
        ("sd.cpp", Like::SdCpp),
    ];

    /// The canonical name.
    pub fn name(self) -> &'static str {
        name_of(Self::NAMES, self)
    }

    /// Reads a name as `--like` takes it.
    ///
    /// # Errors
    /// [`crate::Error::Input`] for any other name.
    pub fn from_name(name: &str) -> Result<Self> {
        by_name(Self::NAMES, name)
    }

    /// What the tool takes where it is told no sampler; `None` is the model's own.
    pub fn usual_sampler(self) -> Option<&'static str> {
        match self {
            Like::A1111 => Some("dpm++2m"),
            Like::ComfyUi => Some("euler"),
            Like::SdCpp => Some("euler-a"),
            Like::Diffusers => None,
        }
    }

    /// What the tool lays the noise levels by where it is told no schedule; `None` is the model's own.
    pub fn usual_schedule(self, sampler: Sampler) -> Option<SigmaSchedule> {
        if !sampler.takes_sigma_schedule() {
            return None;
        }
        match self {
            // Both take the steps that such models were distilled at.
            Like::A1111 | Like::SdCpp if sampler.name() == "lcm" => Some(SigmaSchedule::Lcm),
            Like::A1111 => Some(sampler.automatic_schedule().unwrap_or(SigmaSchedule::Normal)),
            Like::ComfyUi | Like::SdCpp => Some(SigmaSchedule::Normal),
            Like::Diffusers => None,
        }
    }

    /// The sampler that the tool has under a name, and the options in which it is another one.
    ///
    /// # Source
    /// ComfyUI@a125cd84:comfy/samplers.py and comfy/k_diffusion/sampling.py; lllyasviel/stable-diffusion-webui-forge@dfdcbab6:modules;
    /// leejet/stable-diffusion.cpp@97d29908:src/runtime/denoiser.hpp.
    pub fn sampler(self, named: Sampler) -> (Sampler, &'static [(&'static str, f64)]) {
        const ENDS_DENOISED: &[(&str, f64)] = &[("ends_denoised", 1.0)];
        const TO_THE_END: &[(&str, f64)] = &[("ends_denoised", 0.0)];
        const ENDS_EARLY: &[(&str, f64)] = &[("ends_denoised", 0.0), ("variable_to", 2.0)];
        const NO_BOUNDARY: &[(&str, f64)] = &[("boundary", 0.0)];
        let (name, options): (&str, &'static [(&'static str, f64)]) = match (self, named.name()) {
            (Like::A1111, "ddim") => ("ddim-a1111", &[]),
            (Like::A1111, "pndm") => ("plms-a1111", &[]),
            (Like::A1111, "unipc") => ("unipc-a1111", &[]),
            (Like::A1111 | Like::ComfyUi, "ddpm") => ("euler-a", &[]),
            (Like::A1111 | Like::ComfyUi, "deis") => ("deis-tab", &[]),
            (Like::SdCpp, "tcd") => ("tcd", &[("eta", 0.0)]),
            (Like::SdCpp, "ipndm-v") => ("ipndm-v", ENDS_EARLY),
            (Like::A1111 | Like::SdCpp, name @ ("ipndm" | "ipndm-v")) => (name, TO_THE_END),
            (Like::ComfyUi, "ddim") => ("euler", &[]),
            (Like::ComfyUi, "unipc") => ("uni-pc-bh1", &[]),
            (Like::ComfyUi, "lms") => ("lms", ENDS_DENOISED),
            (Like::SdCpp, "lms") => ("lms", &[("shift", 1.0)]),
            (Like::ComfyUi | Like::SdCpp, "lcm") => ("lcm", NO_BOUNDARY),
            (Like::ComfyUi, "sa-solver") => ("sa-solver-sigma", &[]),
            (_, name) => (name, &[]),
        };
        (Sampler::all().find(|sampler| sampler.name() == name).unwrap_or(named), options)
    }

    /// Whether the network is told the nearest trained timestep of a sigma, and no fraction.
    pub fn rounds_timesteps(self) -> bool {
        self == Like::ComfyUi
    }
}

impl FirstNoise {
    /// Every rule by its name.
    pub const NAMES: &[(&str, FirstNoise)] = &[
        ("model", FirstNoise::Model),
        ("sigma", FirstNoise::Sigma),
        ("full", FirstNoise::Full),
        ("full-at-the-top", FirstNoise::FullAtTheTop),
        // As A1111 writes its option "SGM noise multiplier".
        ("true", FirstNoise::Full),
    ];

    /// The canonical name.
    pub fn name(self) -> &'static str {
        name_of(Self::NAMES, self)
    }

    /// Reads a name as `--first-noise` takes it.
    ///
    /// # Errors
    /// [`crate::Error::Input`] for any other name.
    pub fn from_name(name: &str) -> Result<Self> {
        by_name(Self::NAMES, name)
    }

    /// The factor at a run's first sigma, where the largest trained one is `most`; `None` leaves it as it was planned.
    ///
    /// # Source
    /// ComfyUI@a125cd84:comfy/samplers.py `KSAMPLER.max_denoise` and comfy/model_sampling.py `EPS.noise_scaling`; A1111
    /// `modules/sd_samplers_kdiffusion.py`, `sample`.
    pub(super) fn scale(self, sigma: f64, most: f64) -> Option<f64> {
        let full = (1.0 + sigma * sigma).sqrt();
        match self {
            FirstNoise::Model => None,
            FirstNoise::Sigma => Some(sigma),
            FirstNoise::Full => Some(full),
            FirstNoise::FullAtTheTop => Some(if sigma >= most * (1.0 - 1e-5) { full } else { sigma }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_latents_are_scaled_as_each_tool_does() {
        let recorded: serde_json::Value = serde_json::from_str(include_str!("../../tests/data/noise/tools.json")).unwrap();
        for case in recorded["first_latents"].as_array().unwrap() {
            let number = |key: &str| case[key].as_f64().unwrap();
            for (rule, key) in [
                (FirstNoise::Sigma, "a1111_factor"),
                (FirstNoise::Full, "a1111_sgm_noise_multiplier_factor"),
                (FirstNoise::FullAtTheTop, "comfyui_factor"),
            ] {
                let got = rule.scale(number("sigma"), 14.614641).unwrap();
                assert!((got - number(key)).abs() < 1e-5 * number(key), "{case}: {got}");
            }
        }
        assert_eq!(FirstNoise::Model.scale(1.0, 14.6), None);
    }

    #[test]
    fn names_are_read_back_and_every_sampler_is_there() {
        for (name, like) in Like::NAMES {
            assert_eq!(Like::from_name(name).unwrap(), *like);
            for named in Sampler::all() {
                let (sampler, options) = like.sampler(named);
                let known = |option: &str| sampler.row().options.iter().any(|(name, _)| *name == option);
                assert!(options.iter().all(|(option, _)| known(option)), "{name} {}", named.name());
                // Twice is once: an image's text has the name that the tool's became.
                assert_eq!(like.sampler(sampler).0, sampler);
            }
        }
        assert!(Like::from_name("midjourney").unwrap_err().to_string().contains("comfyui"));
    }
}
