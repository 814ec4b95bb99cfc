//! Which GPU backends there could be, which there are, and why one is missing.

use super::{DeviceChoice, open};
use std::path::Path;

/// GPUs that are looked for.
const MOST_GPUS: usize = 64;

/// One GPU, or one backend without any.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Backend {
    /// What `--device` takes.
    pub name: String,
    /// The backend is part of this program.
    pub compiled_in: bool,
    /// The device can be used.
    pub found: bool,
    /// What is there, as far as it can be told without the backend.
    pub what: Option<String>,
    /// Why it cannot be used, and what to do.
    pub why: Option<String>,
    /// Bytes of its memory: all, and free.
    pub memory: Option<(u64, u64)>,
    /// The dtypes that it computes in, the one that it takes by itself first.
    pub dtypes: &'static [&'static str],
}

/// Every GPU that there is, and each backend that has none with the reason.
pub fn backends() -> Vec<Backend> {
    let mut found = cuda();
    found.push(metal());
    found
}

fn cuda() -> Vec<Backend> {
    let driver = nvidia_driver();
    let missing = |compiled_in: bool, why: String| Backend {
        name: "cuda".into(),
        compiled_in,
        found: false,
        what: driver.clone(),
        why: Some(why),
        memory: None,
        dtypes: &[],
    };
    if !cfg!(feature = "cuda") {
        let more = if driver.is_some() { "" } else { "; no NVIDIA driver is here either" };
        return vec![missing(false, format!("this program was built without CUDA; build it with --features cuda{more}"))];
    }
    let mut found = Vec::new();
    for number in 0..MOST_GPUS {
        match open(DeviceChoice::Cuda(number)) {
            Ok((device, _)) => found.push(Backend {
                name: format!("cuda:{number}"),
                compiled_in: true,
                found: true,
                what: driver.clone(),
                why: None,
                memory: memory(&device),
                dtypes: &["f16", "bf16", "f32"],
            }),
            Err(error) if number == 0 => {
                let driver = if driver.is_some() { "" } else { "; no NVIDIA driver was found, install one" };
                return vec![missing(true, format!("{error}{driver}"))];
            }
            Err(_) => break,
        }
    }
    found
}

fn metal() -> Backend {
    let opened = cfg!(feature = "metal").then(|| open(DeviceChoice::Metal));
    let why = match &opened {
        Some(Ok(_)) => None,
        Some(Err(error)) => Some(error.to_string()),
        None if cfg!(target_os = "macos") => Some("this program was built without Metal; build it with --features metal".into()),
        None => Some("Metal is Apple's; this is another system".into()),
    };
    let found = why.is_none();
    Backend {
        name: "metal".into(),
        compiled_in: opened.is_some(),
        found,
        what: None,
        why,
        memory: None,
        dtypes: if found { &["f16", "bf16", "f32"] } else { &[] },
    }
}

/// The driver's version where Linux has one.
fn nvidia_driver() -> Option<String> {
    let version = std::fs::read_to_string("/proc/driver/nvidia/version").ok();
    let line = version.as_deref().and_then(|text| text.lines().next()).map(str::to_owned);
    line.or_else(|| Path::new("/dev/nvidia0").exists().then(|| "an NVIDIA device (/dev/nvidia0)".to_owned()))
}

#[cfg(feature = "cuda")]
fn memory(device: &candle_core::Device) -> Option<(u64, u64)> {
    let stream = device.as_cuda_device().ok()?.cuda_stream();
    let (free, total) = stream.context().mem_get_info().ok()?;
    Some((total as u64, free as u64))
}

#[cfg(not(feature = "cuda"))]
fn memory(_: &candle_core::Device) -> Option<(u64, u64)> {
    None
}
