//! The request as text inside a picture, in the form that A1111's web UI writes and that the field's tools read.
//!
//! # Source
//! `create_infotext` in stable-diffusion-webui@v1.10:modules/processing.py.

use crate::Result;
use crate::noise::Rng;
use crate::request::GenerationRequest;

/// The PNG keyword.
pub const KEYWORD: &str = "parameters";

/// What made a picture: prompt, negative prompt, and one line of `Key: value` pairs.
///
/// # Errors
/// The scheduler's configuration names something that is not implemented.
pub fn parameters(request: &GenerationRequest, seed: u64, model: &str) -> Result<String> {
    let scheduler = &request.scheduler;
    let mut pairs = vec![
        ("Steps", request.steps.to_string()),
        ("Sampler", scheduler.sampler()?.a1111_name().to_owned()),
        ("Schedule type", scheduler.a1111_schedule_name()?.to_owned()),
        ("CFG scale", request.guidance_scale.to_string()),
        ("Seed", seed.to_string()),
        ("Size", format!("{}x{}", request.width, request.height)),
        ("Model", model.to_owned()),
    ];
    if request.skip_layers > 0 {
        pairs.push(("Clip skip", (request.skip_layers + 1).to_string()));
    }
    if request.guidance_rescale > 0.0 {
        pairs.push(("CFG Rescale", request.guidance_rescale.to_string()));
    }
    if let Some(eta) = scheduler.eta {
        pairs.push(("Eta", eta.to_string()));
    }
    let prediction = scheduler.prediction()?.name();
    if prediction != "epsilon" {
        pairs.push(("Prediction", prediction.to_owned()));
    }
    if scheduler.file.rescale_betas_zero_snr == Some(true) {
        pairs.push(("Zero SNR", "True".into()));
    }
    pairs.push(("Timestep spacing", scheduler.spacing()?.name().to_owned()));
    // A1111 calls its own generator on the host, which counts like CUDA's, "NV".
    let rng = match request.rng {
        Rng::TorchCpu => "CPU",
        Rng::TorchCuda => "NV",
    };
    pairs.push(("RNG", rng.into()));
    pairs.push(("Version", format!("sd-gen {}", env!("CARGO_PKG_VERSION"))));
    let line: Vec<String> = pairs.iter().map(|(key, value)| format!("{key}: {}", quoted(value))).collect();
    let negative = request.negative_prompt.as_deref().filter(|n| !n.is_empty());
    let negative = negative.map(|n| format!("\nNegative prompt: {n}")).unwrap_or_default();
    Ok(format!("{}{negative}\n{}", request.prompt, line.join(", ")))
}

/// A value that would be mistaken for more than one is written as a JSON string.
fn quoted(value: &str) -> String {
    if value.contains([',', '\n', ':']) { serde_json::Value::from(value).to_string() } else { value.to_owned() }
}
