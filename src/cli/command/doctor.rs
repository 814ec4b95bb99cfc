//! `sd-gen doctor`: what is well on this machine, what is not, and what mends it.

use crate::bench::{Machine, Subject, distance_of_one_step, reference_image};
use crate::cli::model;
use crate::cli::process::cancelled;
use crate::cli::terminal::show::{bytes, several};
use crate::cli::terminal::{answer, listen_for_cancellation};
use crate::device::{self, Backend, DeviceChoice, backends, host_limit};
use crate::hub::HubSettings;
use crate::pipeline::{Observer, Stage};
use crate::weights::find_models;
use crate::{Error, Result, disk, ops};
use candle_core::{DType, Device};
use clap::Args;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::time::Instant;

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  sd-gen doctor                 everything, some seconds
  sd-gen doctor --no-self-test  without generating
  sd-gen doctor --json          for a report of a fault

It ends with 1 if something does not work, and with 0 otherwise.")]
pub(in crate::cli) struct DoctorArgs {
    /// Generate nothing
    #[arg(long)]
    no_self_test: bool,
    /// JSON
    #[arg(long)]
    json: bool,
    /// Where models are looked for by name [default: $SD_GEN_MODELS, else ./models]
    #[arg(long, value_name = "DIR")]
    models_dir: Option<PathBuf>,
}

/// The least memory that generates with a full-size model: Stable Diffusion 1.5 at 512×512 in bf16 (`benches/memory.py`).
const LEAST_MEMORY: u64 = 4_000_000_000;
/// A full-size model in f16 takes 2 to 7 GB on the disk.
const LEAST_DISK: u64 = 8_000_000_000;
/// Width and height of the self-test's image: a tenth of a second a device and dtype.
const TEST_SIZE: (usize, usize) = (64, 64);
/// How far the self-test's image may be from the portable path's in f32, as `bench` says it: a right path is within a quarter of it.
const FARTHEST: [(DType, f64); 3] = [(DType::F32, 1e-3), (DType::F16, 0.02), (DType::BF16, 0.1)];

/// What was looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
struct HealthFinding {
    state: Health,
    what: &'static str,
    is: String,
    /// What mends it.
    mend: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Health {
    Well,
    /// It works, and could be better.
    Note,
    /// It does not work.
    Fault,
}

impl Health {
    fn word(self) -> &'static str {
        match self {
            Health::Well => "ok",
            Health::Note => "note",
            Health::Fault => "fault",
        }
    }
}

impl HealthFinding {
    fn well(what: &'static str, is: impl Into<String>) -> Self {
        Self { state: Health::Well, what, is: is.into(), mend: None }
    }

    fn note(what: &'static str, is: impl Into<String>, mend: impl Into<String>) -> Self {
        Self { state: Health::Note, what, is: is.into(), mend: Some(mend.into()) }
    }

    fn fault(what: &'static str, is: impl Into<String>, mend: impl Into<String>) -> Self {
        Self { state: Health::Fault, ..Self::note(what, is, mend) }
    }

    fn text(&self) -> String {
        let mend = self.mend.as_ref().map_or(String::new(), |mend| format!("\n{:22}{mend}", ""));
        format!("{:5}  {:13}  {}{mend}", self.state.word(), self.what, self.is)
    }

    fn json(&self) -> Value {
        json!({ "state": self.state.word(), "what": self.what, "is": self.is, "mend": self.mend })
    }
}

pub(in crate::cli) fn run(args: &DoctorArgs) -> Result<()> {
    listen_for_cancellation()?;
    let mut findings = Vec::new();
    let mut tell = |finding: HealthFinding| -> Result<()> {
        if !args.json {
            answer(&finding.text())?;
        }
        findings.push(finding);
        if cancelled() { Err(Error::Cancelled) } else { Ok(()) }
    };
    let gpus = backends();
    tell(program(&gpus))?;
    tell(processor())?;
    tell(memory(device::memory(&Device::Cpu).map(|memory| (memory.limit, memory.total)), host_limit()))?;
    for gpu in &gpus {
        tell(graphics(gpu))?;
    }
    tell(models(&model::models_folder(args.models_dir.as_deref()).0))?;
    tell(downloads())?;
    tell(output(Path::new(".")))?;
    if !args.no_self_test {
        self_tests(&gpus, &mut tell)?;
    }
    if args.json {
        let all: Vec<Value> = findings.iter().map(HealthFinding::json).collect();
        answer(&crate::cli::terminal::show::json(&Value::Array(all), true))?;
    }
    let faults = findings.iter().filter(|finding| finding.state == Health::Fault).count();
    if faults == 0 { Ok(()) } else { Err(Error::Image(format!("{} found", several(faults, "fault")))) }
}

fn program(gpus: &[Backend]) -> HealthFinding {
    let mut parts: Vec<&str> = gpus.iter().filter(|gpu| gpu.compiled_in).filter_map(|gpu| gpu.name.split(':').next()).collect();
    parts.dedup();
    parts.extend(cfg!(feature = "hub").then_some("hub"));
    parts.extend(cfg!(feature = "serve").then_some("serve"));
    let with = if parts.is_empty() { String::new() } else { format!(" with {}", parts.join(", ")) };
    HealthFinding::well("program", format!("sd-gen {}{with}", env!("CARGO_PKG_VERSION")))
}

fn processor() -> HealthFinding {
    let machine = Machine::here();
    let is = format!("{}, {} of {}", machine.cpu, several(machine.threads, "thread"), several(machine.cores, "core"));
    match ops::cpu_kernels() {
        Ok(kernels) => HealthFinding::well("processor", format!("{is}; {} for f32 and f16, {} for bf16", kernels.chosen, kernels.bf16)),
        Err(error) => HealthFinding::fault("processor", format!("{is}; {error}"), "unset SD_GEN_CPU_ISA"),
    }
}

/// `had` is what can be had now, and all; `limit` what a container or job may have.
fn memory(had: Option<(u64, u64)>, limit: Option<u64>) -> HealthFinding {
    let Some((free, total)) = had else { return HealthFinding::well("memory", "the system does not say how much there is") };
    let of = limit.map_or(String::new(), |limit| format!(", {} for this container or job", bytes(limit)));
    let is = format!("{} can be had of {}{of}", bytes(free), bytes(total));
    if free < LEAST_MEMORY {
        let mend = format!(
            "Stable Diffusion 1.5 at 512x512 wants {} in bf16: end other programs, or take --low-memory and a smaller --size",
            bytes(LEAST_MEMORY)
        );
        return HealthFinding::note("memory", is, mend);
    }
    HealthFinding::well("memory", is)
}

fn graphics(gpu: &Backend) -> HealthFinding {
    let name: &'static str = if gpu.name.starts_with("metal") { "Metal" } else { "CUDA" };
    let what = gpu.what.as_ref().map_or(String::new(), |what| format!("{what}: "));
    let why = gpu.why.clone().unwrap_or_default();
    let size = gpu.memory.map_or(String::new(), |(all, free)| format!(", {} of {} free", bytes(free), bytes(all)));
    match (gpu.found, gpu.compiled_in) {
        (true, _) => HealthFinding::well(name, format!("{} is ready{size}", gpu.name)),
        // It was asked for when the program was built.
        (false, true) => HealthFinding::fault(name, format!("{what}{why}"), "without it, --device cpu works"),
        (false, false) if gpu.what.is_some() => HealthFinding::note(name, format!("{what}{why}"), "cargo install --path . --features cuda"),
        (false, false) => HealthFinding::well(name, why),
    }
}

fn models(folder: &Path) -> HealthFinding {
    let found = find_models(folder).len();
    let shown = folder.display();
    match found {
        0 => HealthFinding::note(
            "models",
            format!("none in {shown}"),
            format!("put a .safetensors file or a model's folder into {shown}; until then the built-in model generates"),
        ),
        found => HealthFinding::well("models", format!("{} in {shown}; sd-gen models lists them", several(found, "model"))),
    }
}

/// The folder that downloads go to.
fn downloads() -> HealthFinding {
    if !cfg!(feature = "hub") {
        return HealthFinding::well("downloads", "this program was built without them");
    }
    let settings = match HubSettings::from_environment() {
        Ok(settings) => settings,
        Err(error) => return HealthFinding::fault("downloads", error.to_string(), "correct the variable"),
    };
    let token = if settings.token.is_some() { "with a token" } else { "without a token" };
    let offline = settings.offline.map_or(String::new(), |name| format!(", offline by {name}"));
    let is = format!("{}, {token}{offline}", settings.cache.display());
    // What is not there yet is made in the folder above it.
    let there = settings.cache.ancestors().find(|folder| folder.is_dir());
    let Some(there) = there else { return HealthFinding::fault("downloads", is, "set HF_HOME to a folder") };
    folder("downloads", is, there, "set HF_HOME to a folder on another disk")
}

fn output(here: &Path) -> HealthFinding {
    let shown = here.canonicalize().unwrap_or_else(|_| here.to_owned());
    folder("output", shown.display().to_string(), here, "take --output-dir")
}

/// Whether a folder can be written to, and has room.
fn folder(what: &'static str, is: String, folder: &Path, mend: &str) -> HealthFinding {
    if let Err(error) = disk::temporary(folder) {
        return HealthFinding::fault(what, format!("{is}: nothing can be written there: {error}"), mend);
    }
    match disk::free_space(folder) {
        Some(free) if free < LEAST_DISK => HealthFinding::note(what, format!("{is}; {} free", bytes(free)), mend),
        Some(free) => HealthFinding::well(what, format!("{is}; {} free", bytes(free))),
        None => HealthFinding::well(what, is),
    }
}

/// Ends the work where the user wants it ended.
struct Stoppable;

impl Observer for Stoppable {
    fn stage(&mut self, _: Stage<'_>) -> Result<()> {
        if cancelled() { Err(Error::Cancelled) } else { Ok(()) }
    }

    fn warn(&mut self, _: &str) {}
}

fn self_tests(gpus: &[Backend], tell: &mut dyn FnMut(HealthFinding) -> Result<()>) -> Result<()> {
    let subject = Subject { name: "self-test".into(), open: Box::new(|| Ok(std::sync::Arc::new(model::builtin()?))), made: false };
    let size = Some(TEST_SIZE);
    let reference = match reference_image(&subject, size, &mut Stoppable) {
        Ok(reference) => reference,
        Err(Error::Cancelled) => return Err(Error::Cancelled),
        // A program without the built-in model has nothing to test with.
        Err(error) => return tell(HealthFinding::note("self-test", error.to_string(), "build with the feature builtin-model")),
    };
    let names = std::iter::once("cpu").chain(gpus.iter().filter(|gpu| gpu.found).map(|gpu| gpu.name.as_str()));
    for name in names {
        let device = name.parse::<DeviceChoice>().map_err(Error::Input).and_then(device::open).map(|(device, _)| device);
        for (dtype, farthest) in FARTHEST {
            let begin = Instant::now();
            let taken = match &device {
                Ok(device) => distance_of_one_step(&subject, (device, dtype), size, &reference, &mut Stoppable),
                Err(error) => Err(Error::Image(error.to_string())),
            };
            let what = format!("{name} {}", dtype.as_str());
            tell(match taken {
                Err(Error::Cancelled) => return Err(Error::Cancelled),
                Err(error) => HealthFinding::fault("self-test", format!("{what}: {error}"), instead(name, dtype)),
                Ok(apart) if apart <= farthest => {
                    HealthFinding::well("self-test", format!("{what}: right to {apart:.1e}, {:.2} s", begin.elapsed().as_secs_f64()))
                }
                Ok(apart) => HealthFinding::fault(
                    "self-test",
                    format!("{what}: {apart:.1e} from the portable path, where {farthest} is right"),
                    instead(name, dtype),
                ),
            })?;
        }
    }
    Ok(())
}

/// What to generate with where a device or a dtype does not work.
fn instead(name: &str, dtype: DType) -> String {
    match (name, dtype) {
        ("cpu", DType::F32) => {
            "please report it with the output of sd-gen doctor --json; SD_GEN_CPU_ISA=portable may work meanwhile".into()
        }
        ("cpu", _) => "take --dtype f32, and please report it".into(),
        _ => format!("take another --dtype than {}, or --device cpu, and please report it", dtype.as_str()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn little_memory_is_said_with_what_helps() {
        assert_eq!(memory(Some((8_000_000_000, 16_000_000_000)), None), HealthFinding::well("memory", "8.00 GB can be had of 16.00 GB"));
        let little = memory(Some((1_000_000_000, 16_000_000_000)), Some(2_000_000_000));
        assert_eq!((little.state, little.is.as_str()), (Health::Note, "1.00 GB can be had of 16.00 GB, 2.00 GB for this container or job"));
        assert!(little.text().contains("--low-memory"), "{}", little.text());
    }

    #[test]
    fn gpus_are_well_where_nobody_asked_for_one() {
        let gpu = |compiled_in, what: Option<&str>| Backend {
            name: "cuda".into(),
            compiled_in,
            found: false,
            what: what.map(str::to_owned),
            why: Some("no".into()),
            memory: None,
            dtypes: &[],
        };
        let states = [gpu(false, None), gpu(false, Some("driver 570")), gpu(true, None)].map(|gpu| graphics(&gpu).state);
        assert_eq!(states, [Health::Well, Health::Note, Health::Fault]);
    }

    #[test]
    fn a_folder_that_cannot_be_written_to_is_a_fault() {
        assert_eq!(folder("output", "x".into(), Path::new("/nowhere/at/all"), "y").state, Health::Fault);
        assert_ne!(folder("output", "x".into(), &std::env::temp_dir(), "y").state, Health::Fault);
    }
}
