//! Models and LoRAs that were distilled to a few steps: how each kind wants to be sampled.

use super::TimestepSpacing;

/// How a model that was distilled to a few steps is sampled.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct FewSteps {
    /// What people call the method.
    pub name: &'static str,
    /// The sampler's name.
    pub sampler: &'static str,
    /// How its timesteps are spread, where that matters.
    pub spacing: Option<TimestepSpacing>,
    /// Steps.
    pub steps: usize,
    /// The guidance scale; `None` where it was distilled with guidance beside it, so that the family's own is right.
    pub guidance_scale: Option<f64>,
    /// Noise of every step, where the method has its own.
    pub eta: Option<f64>,
    /// The timesteps themselves, where the method was trained at these alone.
    pub timesteps: &'static [f64],
    /// With one step the network predicts the clean latents.
    pub predicts_sample: bool,
}

const PLAIN: FewSteps = FewSteps {
    name: "",
    sampler: "euler",
    spacing: None,
    steps: 4,
    guidance_scale: Some(1.0),
    eta: None,
    timesteps: &[],
    predicts_sample: false,
};
const TRAILING: FewSteps = FewSteps { spacing: Some(TimestepSpacing::Trailing), ..PLAIN };

impl FewSteps {
    /// A latent consistency model or LoRA.
    ///
    /// # Source
    /// latent-consistency/lcm-lora-sdv1-5: four to eight steps, guidance 1 to 2.
    pub const LCM: FewSteps = FewSteps { name: "LCM", sampler: "lcm", ..PLAIN };
    /// A one-step model that needs no guidance.
    ///
    /// # Source
    /// IDKiro/sdxs@b833bbfe:README.md
    pub const ONE_STEP: FewSteps = FewSteps { name: "SDXS", steps: 1, ..TRAILING };

    /// What a name of a file or a title says; the words are looked for wherever they stand.
    ///
    /// # Source
    /// The model cards of ByteDance/SDXL-Lightning, ByteDance/Hyper-SD, tianweiy/DMD2, h1t/TCD-SDXL-LoRA, wangfuyun/PCM_Weights,
    /// latent-consistency and stabilityai.
    pub fn named(name: &str) -> Option<FewSteps> {
        let name = name.to_lowercase();
        let words: Vec<&str> = name.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty()).collect();
        let joined = words.concat();
        let is = |word: &str| words.contains(&word);
        let steps = stated_steps(&words);
        let of =
            |few: FewSteps, most: usize| Some(FewSteps { steps: steps.filter(|n| (1..=most).contains(n)).unwrap_or(few.steps), ..few });
        if is("lightning") || joined.contains("sdxllightning") {
            let few = of(FewSteps { name: "Lightning", ..TRAILING }, 8)?;
            return Some(FewSteps { predicts_sample: few.steps == 1, ..few });
        }
        if words.iter().any(|word| word.starts_with("hypersd")) || is("hyper") && words.iter().any(|word| word.starts_with("sd")) {
            let few = of(FewSteps { name: "Hyper-SD", sampler: "ddim", ..TRAILING }, 16)?;
            return Some(match few.steps {
                1 => FewSteps { sampler: "tcd", spacing: None, eta: Some(1.0), ..few },
                _ if is("cfg") => FewSteps { guidance_scale: None, ..few },
                _ => few,
            });
        }
        if words.iter().any(|word| word.starts_with("dmd2")) {
            let one = steps == Some(1);
            let timesteps: &[f64] = if one { &[399.0] } else { &[999.0, 749.0, 499.0, 249.0] };
            return Some(FewSteps { name: "DMD2", steps: timesteps.len(), timesteps, ..Self::LCM });
        }
        if is("tcd") {
            return Some(FewSteps { name: "TCD", sampler: "tcd", eta: Some(0.3), ..PLAIN });
        }
        if is("pcm") {
            let few = of(FewSteps { name: "PCM", sampler: "ddim", ..TRAILING }, 16)?;
            return Some(FewSteps { guidance_scale: few.guidance_scale.filter(|_| !joined.contains("normalcfg")), ..few });
        }
        if words.iter().any(|word| word.starts_with("lcm")) {
            return of(Self::LCM, 8);
        }
        if ["sdturbo", "sdxlturbo"].iter().any(|turbo| joined.contains(turbo)) {
            return Some(FewSteps { name: "Turbo", sampler: "euler-a", steps: 1, ..TRAILING });
        }
        None
    }

    /// What a file's metadata say, or else its name, and the sentence that tells which.
    pub fn of_file<'a>(name: &str, titles: impl Iterator<Item = (&'a str, &'a str)>) -> Option<(FewSteps, String)> {
        for (key, title) in titles {
            if let Some(few) = Self::named(title) {
                return Some((few, format!("The metadata ({key}) say {}: {}.", few.name, few.wants())));
            }
        }
        let stem = std::path::Path::new(name).file_stem()?.to_str()?;
        let few = Self::named(stem)?;
        Some((few, format!("The file's name says {} (a hint, and nothing more): {}.", few.name, few.wants())))
    }

    /// How it is sampled, for people.
    pub fn wants(&self) -> String {
        let steps = if self.steps == 1 { "1 step".to_owned() } else { format!("{} steps", self.steps) };
        let guidance = self.guidance_scale.map(|scale| format!(", guidance {scale}")).unwrap_or_default();
        let spacing = self.spacing.map(|spacing| format!(" with {} timesteps", spacing.name())).unwrap_or_default();
        let eta = self.eta.map(|eta| format!(", eta {eta}")).unwrap_or_default();
        let list: Vec<String> = self.timesteps.iter().map(f64::to_string).collect();
        let timesteps = if list.is_empty() { String::new() } else { format!(", timesteps {}", list.join(",")) };
        format!("{steps}{guidance}, sampler {}{spacing}{eta}{timesteps}", self.sampler)
    }
}

/// The number before or in the word "step" or "steps": "4step", "4 steps".
fn stated_steps(words: &[&str]) -> Option<usize> {
    words.iter().enumerate().find_map(|(at, word)| {
        let before = word.strip_suffix("steps").or_else(|| word.strip_suffix("step"))?;
        match before.is_empty() {
            true => words.get(at.checked_sub(1)?)?.parse().ok(),
            false => before.parse().ok(),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn published_files_are_known_by_their_names() {
        for (name, method, steps, sampler, guidance) in [
            ("lcm-lora-sdv1-5", "LCM", 4, "lcm", Some(1.0)),
            ("pytorch_lora_weights_lcm", "LCM", 4, "lcm", Some(1.0)),
            ("sdxl_lightning_8step_lora", "Lightning", 8, "euler", Some(1.0)),
            ("sdxl_lightning_1step_x0", "Lightning", 1, "euler", Some(1.0)),
            ("Hyper-SD15-1step-lora", "Hyper-SD", 1, "tcd", Some(1.0)),
            ("Hyper-SDXL-8steps-CFG-lora", "Hyper-SD", 8, "ddim", None),
            ("Hyper-SDXL-2steps-lora", "Hyper-SD", 2, "ddim", Some(1.0)),
            ("dmd2_sdxl_4step_lora_fp16", "DMD2", 4, "lcm", Some(1.0)),
            ("TCD-SDXL-LoRA", "TCD", 4, "tcd", Some(1.0)),
            ("pcm_sdxl_normalcfg_16step_converted", "PCM", 16, "ddim", None),
            ("pcm_sd15_smallcfg_2step_converted", "PCM", 2, "ddim", Some(1.0)),
            ("sd_xl_turbo_1.0_fp16", "Turbo", 1, "euler-a", Some(1.0)),
        ] {
            let few = FewSteps::named(name).unwrap_or_else(|| panic!("{name}"));
            assert_eq!((few.name, few.steps, few.sampler, few.guidance_scale), (method, steps, sampler, guidance), "{name}");
            assert!(super::super::Sampler::from_name(few.sampler).is_ok(), "{name}");
        }
        for name in ["dreamshaper_8", "hyperrealism", "stepping", "v1-5-pruned", "lightningstrike", "helmcontrol", "hyper detail 4 steps"] {
            assert_eq!(FewSteps::named(name), None, "{name}");
        }
        assert!(FewSteps::named("sdxl_lightning_1step_x0").unwrap().predicts_sample);
        assert_eq!(FewSteps::named("dmd2_sdxl_1step").unwrap().timesteps, [399.0]);
    }

    #[test]
    fn metadata_come_before_the_name() {
        let titles = [("modelspec.title", "my TCD")];
        let (few, why) = FewSteps::of_file("lcm.safetensors", titles.into_iter()).unwrap();
        assert!(few.name == "TCD" && why.contains("modelspec.title"), "{why}");
        let (few, why) = FewSteps::of_file("a/lcm.safetensors", [].into_iter()).unwrap();
        assert!(few.name == "LCM" && why.contains("hint"), "{why}");
    }
}
