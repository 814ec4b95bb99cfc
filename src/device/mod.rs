//! Which device computes, in which dtype, and how much memory it has.
//!
//! The only place beside `ops` that knows which backends were compiled in.

mod backends;
#[cfg(feature = "cuda")]
mod cuda;
#[cfg(feature = "cuda")]
mod library;
mod memory;

pub use backends::{Backend, backends};
#[cfg(feature = "cuda")]
pub(crate) use cuda::{Queue, undisturbed};
#[cfg(feature = "cuda")]
pub(crate) use library::Library;
pub use memory::{Memory, free_memory, host_limit, limit_memory, memory, memory_limit, resident};

use crate::{Error, Result, ops};
use candle_core::{DType, Device, DeviceLocation};
use std::str::FromStr;
use std::sync::OnceLock;

/// What `--device` may say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum DeviceChoice {
    /// The best backend that was compiled in and is there.
    Auto,
    /// The processor.
    Cpu,
    /// An NVIDIA GPU by its number.
    Cuda(usize),
    /// An Apple GPU.
    Metal,
}

impl FromStr for DeviceChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, number) = text.split_once(':').map_or((text, None), |(name, number)| (name, Some(number)));
        let number = number.map(|n| n.parse().map_err(|_| format!("{n:?} is no device number"))).transpose()?;
        match (name.to_ascii_lowercase().as_str(), number) {
            ("auto", None) => Ok(DeviceChoice::Auto),
            ("cpu", None) => Ok(DeviceChoice::Cpu),
            ("cuda" | "gpu", n) => Ok(DeviceChoice::Cuda(n.unwrap_or(0))),
            ("metal" | "mps", None) => Ok(DeviceChoice::Metal),
            _ => Err("give auto, cpu, cuda, cuda:N or metal".into()),
        }
    }
}

impl std::fmt::Display for DeviceChoice {
    /// As it is typed.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            DeviceChoice::Auto => f.write_str("auto"),
            DeviceChoice::Cpu => f.write_str("cpu"),
            DeviceChoice::Cuda(number) => write!(f, "cuda:{number}"),
            DeviceChoice::Metal => f.write_str("metal"),
        }
    }
}

/// Opens the device; the second value is a remark for the user, when the choice needs one.
///
/// # Errors
/// The backend is not compiled in, or there is no such device.
pub fn open(choice: DeviceChoice) -> Result<(Device, Option<String>)> {
    match choice {
        DeviceChoice::Cpu => cpu(),
        DeviceChoice::Cuda(number) => {
            if !cfg!(feature = "cuda") {
                return Err(Error::Input(
                    "`device` cuda: this program was built without CUDA; build it with --features cuda, or use `device` cpu".into(),
                ));
            }
            let device = open_cuda(number).map_err(|why| {
                Error::Input(format!("`device` cuda:{number}: the GPU cannot be used: {why}; `device` cpu generates without"))
            })?;
            Ok((device, None))
        }
        DeviceChoice::Metal => {
            if !cfg!(feature = "metal") {
                return Err(Error::Input(
                    "`device` metal: this program was built without Metal; build it with --features metal, or use `device` cpu".into(),
                ));
            }
            let device = Device::new_metal(0);
            let device = device.map_err(|e| Error::Input(format!("`device` metal: the GPU cannot be opened ({e}); see `device` cpu")))?;
            Ok((device, None))
        }
        DeviceChoice::Auto => {
            let compiled_in = [(cfg!(feature = "cuda"), DeviceChoice::Cuda(0)), (cfg!(feature = "metal"), DeviceChoice::Metal)];
            match compiled_in.into_iter().find(|(there, _)| *there) {
                None => cpu(),
                Some((_, gpu)) => open(gpu).or_else(|e| Ok((cpu()?.0, Some(format!("no GPU in use, the CPU generates: {e}"))))),
            }
        }
    }
}

/// The processor, with the instructions that were asked for.
fn cpu() -> Result<(Device, Option<String>)> {
    ops::cpu_instructions().map_err(|e| Error::Input(e.to_string()))?;
    Ok((Device::Cpu, None))
}

/// Opens every device of a list once, with the remarks for the user.
///
/// # Errors
/// As [`open`].
pub fn open_all(choices: &[DeviceChoice]) -> Result<(Vec<Device>, Vec<String>)> {
    let (mut devices, mut remarks) = (Vec::new(), Vec::new());
    for (i, choice) in choices.iter().enumerate().filter(|(i, choice)| !choices[..*i].contains(choice)) {
        if choices.len() > 1 && *choice == DeviceChoice::Auto {
            return Err(Error::Input(format!("`device`: auto is the {}. of several; name them, as in cuda:0,cuda:1", i + 1)));
        }
        let (device, remark) = open(*choice)?;
        devices.push(device);
        remarks.extend(remark);
    }
    Ok((devices, remarks))
}

#[cfg(feature = "cuda")]
fn open_cuda(number: usize) -> Result<Device, String> {
    cuda::open(number)
}

#[cfg(not(feature = "cuda"))]
fn open_cuda(_: usize) -> Result<Device, String> {
    Err("this program was built without CUDA".into())
}

/// The most bytes that tensors took on a GPU since [`reset_peak`], where the backend counts them.
pub fn peak(device: &Device) -> Option<u64> {
    match device {
        #[cfg(feature = "cuda")]
        Device::Cuda(device) => cuda::peak(device),
        _ => None,
    }
}

/// Starts [`peak`] anew.
pub fn reset_peak(device: &Device) {
    match device {
        #[cfg(feature = "cuda")]
        Device::Cuda(device) => cuda::reset_peak(device),
        _ => {}
    }
}

/// How the program's allocator gives back what was freed.
static RELEASE: OnceLock<fn()> = OnceLock::new();

/// From here on [`release`] calls `give_back` where memory of the processor is wanted; the first to say so decides.
pub fn on_release(give_back: fn()) {
    let _ = RELEASE.set(give_back);
}

/// Gives memory that no tensor holds any more back to the system.
pub fn release(device: &Device) {
    match device {
        Device::Cpu => {
            if let Some(give_back) = RELEASE.get() {
                give_back();
            }
        }
        #[cfg(feature = "cuda")]
        Device::Cuda(device) => cuda::release(device),
        _ => {}
    }
}

/// Lets the program run ahead of a GPU by one step and no more: progress then tells the truth, and a wish to stop is obeyed soon.
#[derive(Debug)]
pub struct Pace {
    #[cfg(feature = "cuda")]
    cuda: Option<cuda::WorkMarks>,
}

impl Pace {
    /// At the beginning of a run of steps; on the CPU nobody runs ahead.
    pub fn on(device: &Device) -> Self {
        #[cfg(not(feature = "cuda"))]
        let _ = device;
        Self {
            #[cfg(feature = "cuda")]
            cuda: device.as_cuda_device().ok().map(cuda::WorkMarks::new),
        }
    }

    /// All work of a step was asked for: waits until that of the step before is done.
    ///
    /// # Errors
    /// The GPU failed in it.
    pub fn step(&mut self) -> Result<()> {
        #[cfg(feature = "cuda")]
        if let Some(marks) = &mut self.cuda {
            marks.step()?;
        }
        Ok(())
    }
}

/// A device as `--device` names it.
pub fn place(device: &Device) -> String {
    match device.location() {
        DeviceLocation::Cpu => "cpu".to_owned(),
        DeviceLocation::Cuda { gpu_id } => format!("cuda:{gpu_id}"),
        DeviceLocation::Metal { .. } => "metal".to_owned(),
    }
}

/// The device's name, for people.
pub fn name(device: &Device) -> Option<String> {
    match device {
        #[cfg(feature = "cuda")]
        Device::Cuda(device) => cuda::name(device),
        _ => None,
    }
}

/// What `--dtype` may say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DTypeChoice {
    /// The fastest that is right: f16 on a GPU; on a CPU bf16 where it has products of bf16, f32 elsewhere.
    Auto,
    /// The one named.
    Is(DType),
}

impl DTypeChoice {
    /// The dtype on `device`.
    ///
    /// bf16 on the CPU halves time and memory. What it costs in likeness is in `src/ops/NOTES.md`: half a level of 255 at the end
    /// of the built-in model's images.
    pub fn on(self, device: &Device) -> DType {
        match self {
            DTypeChoice::Is(dtype) => dtype,
            // An instruction set that is not here is an error where the first layer is made.
            DTypeChoice::Auto if device.is_cpu() && ops::cpu_multiplies_bf16().unwrap_or(false) => DType::BF16,
            DTypeChoice::Auto if device.is_cpu() => DType::F32,
            DTypeChoice::Auto => DType::F16,
        }
    }
}

impl FromStr for DTypeChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.to_ascii_lowercase().as_str() {
            "auto" => Ok(DTypeChoice::Auto),
            "f32" | "fp32" | "float32" => Ok(DTypeChoice::Is(DType::F32)),
            "f16" | "fp16" | "float16" | "half" => Ok(DTypeChoice::Is(DType::F16)),
            "bf16" | "bfloat16" => Ok(DTypeChoice::Is(DType::BF16)),
            _ => Err("give auto, f32, f16 or bf16".into()),
        }
    }
}
