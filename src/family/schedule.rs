//! The scheduler that a model asks for, and what each family has where nothing says so.

use super::FamilyRow;
use super::files::TensorNames;
use super::json::Fields;
use crate::Result;
use crate::sampling::{FewSteps, Sampler, SchedulerConfig};
use crate::spec::{Defaults, LatentRgb, UNetSpec, VaeSpec};
use serde_json::{Value, json};

/// What messages call a scheduler configuration that no file has.
pub(crate) const USUAL: &str = "the family's usual scheduler";

/// Parses the text of a `scheduler_config.json`. The only place that knows how.
pub(crate) fn parse(file: &str, text: &str) -> Result<SchedulerConfig> {
    SchedulerConfig::from_json(text, file)
}

/// What the network predicts, when a single file had to be read for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Prediction {
    /// v-prediction instead of epsilon.
    pub(crate) v: bool,
    /// The noise schedule ends in pure noise.
    pub(crate) zero_snr: bool,
}

/// The `scheduler_config.json` that the family's first model has in diffusers.
pub(crate) fn of_family(row: &FamilyRow, prediction: Prediction) -> String {
    let mut config = json!({
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "beta_start": 0.00085,
        "num_train_timesteps": 1000,
        "prediction_type": if prediction.v { "v_prediction" } else { "epsilon" },
        "steps_offset": 1,
        "timestep_spacing": "leading",
        "trained_betas": null,
    });
    let own = (row.scheduler)();
    if let (Value::Object(config), Value::Object(own)) = (&mut config, own) {
        config.extend(own);
        if prediction.zero_snr {
            config.insert("rescale_betas_zero_snr".into(), Value::Bool(true));
            // Leading timesteps never visit the last one, which is the one that the rescaling is about.
            config.insert("timestep_spacing".into(), "trailing".into());
            if config.get("_class_name").is_some_and(|class| class == "PNDMScheduler") {
                // PNDM has no such option.
                config.remove("skip_prk_steps");
                config.insert("_class_name".into(), "DDIMScheduler".into());
                config.insert("clip_sample".into(), Value::Bool(false));
            }
        }
    }
    format!("{config:#}\n")
}

/// The metadata that say what a file is called.
pub(crate) const TITLES: [&str; 3] = ["modelspec.title", "modelspec.architecture", "ss_output_name"];

/// What a single file was distilled to: its tensors tell, or its metadata, or its name as a hint.
pub(crate) fn few_steps(file: &dyn TensorNames, unet: &UNetSpec, vae: &VaeSpec) -> Option<(FewSteps, String)> {
    let known = of_tensors(unet, vae);
    known.or_else(|| FewSteps::of_file(file.name(), TITLES.iter().filter_map(|key| Some((*key, file.metadata().get(*key)?.as_str())))))
}

/// What the shape of a model's networks tells.
pub(crate) fn of_tensors(unet: &UNetSpec, vae: &VaeSpec) -> Option<(FewSteps, String)> {
    if unet.guidance_embed_dim > 0 {
        let few = FewSteps { guidance_scale: Some(TOLD_GUIDANCE), ..FewSteps::LCM };
        return Some((few, format!("The UNet is told the guidance scale (cond_proj), as latent consistency models are: {}.", few.wants())));
    }
    let reads_text_only = unet.down.iter().any(|level| level.reads_text_only);
    let fine_without = unet.down.first().is_some_and(|level| level.depths.iter().all(|depth| *depth == 0));
    if unet.mid.is_none() && (reads_text_only || fine_without && vae.tiny.is_some()) {
        let few = FewSteps::ONE_STEP;
        return Some((few, format!("A UNet without a middle, whose first level has no self-attention: SDXS: {}.", few.wants())));
    }
    None
}

/// diffusers' default where the network is told the guidance scale (`LatentConsistencyModelPipeline`).
const TOLD_GUIDANCE: f64 = 8.5;

/// A scheduler's configuration with what a distilled model wants, and those defaults.
pub(crate) fn distilled(row: &FamilyRow, text: &str, few: &FewSteps) -> Result<(String, Defaults)> {
    let fields = Fields::parse(USUAL, text.as_bytes())?;
    let mut config = fields.value();
    let (sampler, _) = Sampler::from_name(few.sampler)?;
    if let Value::Object(config) = &mut config {
        if !sampler.class_name().is_empty() {
            config.insert("_class_name".into(), sampler.class_name().into());
        }
        config.remove("skip_prk_steps");
        config.insert("clip_sample".into(), Value::Bool(false));
        if let Some(spacing) = few.spacing {
            config.insert("timestep_spacing".into(), spacing.name().into());
        }
        if few.predicts_sample {
            config.insert("prediction_type".into(), "sample".into());
        }
    }
    let guidance_scale = few.guidance_scale.unwrap_or(row.guidance_scale);
    Ok((format!("{config:#}\n"), Defaults { steps: Some(few.steps), guidance_scale }))
}

/// What a model's maker recommends: `sd-gen.json` beside `model_index.json`, sd-gen's own, with `steps`, `guidance_scale` and `latent_rgb`.
pub(crate) const RECOMMENDED: &str = "sd-gen.json";

/// `defaults` with what the maker recommends in their place.
pub(crate) fn recommended(fields: &Fields, defaults: Defaults) -> Result<Defaults> {
    let steps = if fields.has("steps") { Some(fields.count("steps", None, 1000)?) } else { defaults.steps };
    Ok(Defaults { steps, guidance_scale: fields.number("guidance_scale", defaults.guidance_scale)? })
}

/// How the latents look: for each channel its red, green and blue, and a last row for where all channels are 0.
pub(crate) fn latent_rgb(fields: &Fields, channels: usize) -> Result<Option<LatentRgb>> {
    const NAME: &str = "latent_rgb";
    if !fields.has(NAME) {
        return Ok(None);
    }
    let number = |value: &Value| value.as_f64().filter(|x| x.is_finite());
    let row = |row: &Value| -> Option<[f64; 3]> { row.as_array()?.iter().map(number).collect::<Option<Vec<f64>>>()?.try_into().ok() };
    let rows: Option<Vec<[f64; 3]>> = fields.list(NAME, channels + 1)?.iter().map(row).collect();
    match rows.as_deref() {
        Some([factors @ .., bias]) if factors.len() == channels => Ok(Some(LatentRgb { factors: factors.to_vec(), bias: *bias })),
        _ => Err(fields.wrong(NAME, format!("is not a list of {channels} rows and a last one, each of three numbers"))),
    }
}

/// Schedulers that only distilled models ask for: class, timestep spacing where it matters, steps, guidance scale.
const DISTILLED: &[(&str, Option<&str>, usize, f64)] = &[
    ("EulerAncestralDiscreteScheduler", Some("trailing"), 1, 0.0),
    ("EulerDiscreteScheduler", Some("trailing"), 1, 0.0),
    ("LCMScheduler", None, 4, 1.0),
    ("TCDScheduler", None, 4, 0.0),
];

/// The guidance that diffusers takes for the family, or those of a distilled model with the reason.
pub(crate) fn defaults(row: &FamilyRow, fields: &Fields) -> Result<(Defaults, Option<String>)> {
    let class = fields.word("_class_name")?.unwrap_or_default();
    let spacing = fields.word("timestep_spacing")?;
    // Zero-terminal-SNR models use trailing timesteps too, and are not distilled.
    let plain = fields.word("prediction_type")?.is_none_or(|p| p == "epsilon") && !fields.flag("rescale_betas_zero_snr", false)?;
    let distilled = DISTILLED.iter().find(|(name, only, ..)| *name == class && (only.is_none() || *only == spacing)).filter(|_| plain);
    if let Some((_, _, steps, guidance_scale)) = distilled {
        let spacing = spacing.map_or(String::new(), |spacing| format!(" with {spacing} timesteps"));
        let reason = format!("{} asks for {class}{spacing}, as distilled models do.", fields.file);
        return Ok((Defaults { steps: Some(*steps), guidance_scale: *guidance_scale }, Some(reason)));
    }
    Ok((Defaults { steps: None, guidance_scale: row.guidance_scale }, None))
}
