//! The request as text inside an image, in the form that A1111's web UI writes and that the field's tools read.
//!
//! What A1111 has a key for stands under it; what decides the pixels beyond that has keys of ours, which `a1111` reads back, so that
//! the command that an image's text becomes generates the same pixels.
//!
//! # Source
//! `create_infotext` in stable-diffusion-webui@v1.10:modules/processing.py.

use super::control_net;
use super::read::a1111::NEGATIVE;
use crate::Result;
use crate::inputs::InputFile;
use crate::noise::Rng;
use crate::sampling::{Levels, SigmaSchedule};
use crate::settings::{NumberList, Request, Value, table};
use candle_core::DType;
use std::sync::Arc;

/// The PNG keyword.
pub const KEYWORD: &str = "parameters";

/// What generates, beside the request.
#[derive(Debug, Clone)]
pub struct GeneratedBy {
    /// What people call the model.
    pub label: Arc<str>,
    /// What UNet and text encoders compute in.
    pub dtype: DType,
    /// What the VAE computes in.
    pub vae_dtype: DType,
    /// What takes the place of the model's own parts: the key that it is written under, and its name.
    pub parts: Vec<(&'static str, String)>,
}

/// What made an image: prompt, negative prompt, and one line of `Key: value` pairs.
///
/// # Errors
/// The scheduler's configuration names something that is not implemented.
pub fn parameters(request: &Request, seed: u64, generator: &GeneratedBy) -> Result<String> {
    let scheduler = &request.scheduler;
    let schedule = scheduler.sigma_schedule()?;
    // A1111 has no name for this one, and no reader minds one more.
    let schedule = if schedule == SigmaSchedule::Lu { "Lu" } else { scheduler.a1111_schedule_name()? };
    let mut pairs = vec![
        ("Steps".to_owned(), request.sampling.steps.to_string()),
        ("Sampler".into(), scheduler.sampler()?.a1111_name().to_owned()),
        ("Schedule type".into(), schedule.to_owned()),
        ("CFG scale".into(), request.guidance.scale.to_string()),
        ("Seed".into(), seed.to_string()),
        ("Size".into(), format!("{}x{}", request.canvas.width, request.canvas.height)),
        ("Model".into(), generator.label.to_string()),
    ];
    pairs.extend(generator.parts.iter().map(|(key, name)| ((*key).to_owned(), name.clone())));
    for (at, control) in request.adapters.control.iter().enumerate() {
        pairs.push((format!("{}{at}", control_net::KEY), control_net::written(control)));
    }
    for row in table().iter().filter(|row| row.name != "control") {
        let Some(key) = row.infotext.filter(|key| pairs.iter().all(|(written, _)| written != key)) else { continue };
        for (at, value) in row.written(request).into_iter().enumerate() {
            pairs.push((if at == 0 { key.to_owned() } else { format!("{key} {}", at + 1) }, value));
        }
    }
    // As A1111 calls it, which has one strength for both.
    if let (Some(strength), None) = (request.passes.hires_strength, &request.inputs.init_image) {
        pairs.push(("Denoising strength".into(), strength.to_string()));
    }
    match &scheduler.levels {
        Some(Levels::Sigmas(sigmas)) => pairs.push(("Sigmas".into(), NumberList(sigmas.clone()).typed())),
        Some(Levels::Timesteps(timesteps)) => pairs.push(("Timesteps".into(), NumberList(timesteps.clone()).typed())),
        None => {}
    }
    for (at, (name, value)) in scheduler.options.iter().enumerate() {
        let key = if at == 0 { "Sampler option".to_owned() } else { format!("Sampler option {}", at + 1) };
        pairs.push((key, format!("{name}={value}")));
    }
    // As A1111 names them: a LoRA by its tensors, an embedding by its whole file.
    let hashes = |files: &mut dyn Iterator<Item = (&InputFile, Option<String>)>| {
        let short = |(file, hash): (&InputFile, Option<String>)| {
            Some(format!("{}: {}", file.path().file_stem()?.to_string_lossy(), hash?.get(..12)?))
        };
        files.filter_map(short).collect::<Vec<_>>().join(", ")
    };
    let adapters = &request.adapters;
    let loras = hashes(&mut adapters.lora.iter().map(|lora| (&lora.file, lora.file.tensors_sha256())));
    let embeddings = hashes(&mut adapters.embedding.iter().map(|file| (file, file.sha256())));
    if let Some(hash) = adapters.vae.as_ref().and_then(|vae| vae.0.sha256()) {
        pairs.push(("VAE hash".into(), hash.get(..10).unwrap_or_default().to_owned()));
    }
    pairs.extend([("Lora hashes".to_owned(), loras), ("TI hashes".to_owned(), embeddings)].into_iter().filter(|(_, all)| !all.is_empty()));
    if let Some(eta) = scheduler.eta {
        pairs.push(("Eta".into(), eta.to_string()));
    }
    pairs.push(("Prediction".into(), scheduler.prediction()?.name().to_owned()));
    if scheduler.file.rescale_betas_zero_snr == Some(true) {
        pairs.push(("Zero SNR".into(), "True".into()));
    }
    pairs.push(("Timestep spacing".into(), scheduler.spacing()?.name().to_owned()));
    if request.scheduler_is_named {
        let config = serde_json::to_string(scheduler).unwrap_or_default();
        pairs.push(("Scheduler config".into(), config));
    }
    // A1111 calls its own generator on the host, which counts like CUDA's, "NV".
    let rng = match request.sampling.rng {
        Rng::TorchCpu => "CPU",
        Rng::TorchCuda => "NV",
    };
    pairs.push(("RNG".into(), rng.into()));
    // Both or none: the one decides what the other is by itself.
    if generator.dtype != DType::F32 || generator.vae_dtype != DType::F32 {
        pairs.push(("Precision".into(), generator.dtype.as_str().to_owned()));
        pairs.push(("VAE precision".into(), generator.vae_dtype.as_str().to_owned()));
    }
    pairs.push(("Version".into(), format!("sd-gen {}", env!("CARGO_PKG_VERSION"))));
    let line: Vec<String> = pairs.iter().map(|(key, value)| format!("{key}: {}", quoted(value))).collect();
    // An empty negative prompt is not the same as none to every model.
    let negative = request.text.negative_prompt.as_deref().map(|text| format!("\n{NEGATIVE} {text}")).unwrap_or_default();
    Ok(format!("{}{negative}\n{}", request.prompt, line.join(", ")))
}

/// A value that would be mistaken for more than one is written as a JSON string.
pub(super) fn quoted(value: &str) -> String {
    if value.contains([',', '\n', ':', '"']) { serde_json::Value::from(value).to_string() } else { value.to_owned() }
}
