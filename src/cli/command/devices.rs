//! `sd-gen devices`: what can compute here, and why something cannot.

use crate::Result;
use crate::bench::Machine;
use crate::cli::terminal::answer;
use crate::cli::terminal::show::{bytes, facts};
use crate::device::{Backend, DTypeChoice, backends, host_limit};
use crate::ops;
use candle_core::Device;
use clap::Args;
use serde_json::{Value, json};

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  sd-gen devices
  sd-gen devices --json

SD_GEN_CPU_ISA=avx2 takes plainer kernels than the processor has, to compare.")]
pub(in crate::cli) struct DevicesArgs {
    /// JSON
    #[arg(long)]
    json: bool,
}

pub(in crate::cli) fn run(args: &DevicesArgs) -> Result<()> {
    let machine = Machine::here();
    // What the environment asks for and the processor does not have is a thing to say here, not to fail of.
    let kernels = ops::cpu_kernels();
    let gpus = backends();
    if args.json {
        return answer(&crate::cli::terminal::show::json(&as_json(&machine, &kernels, &gpus), true));
    }
    answer(&cpu_text(&machine, &kernels))?;
    gpus.iter().try_for_each(|gpu| answer(&gpu_text(gpu)))
}

fn cpu_text(machine: &Machine, kernels: &candle_core::Result<ops::CpuKernels>) -> String {
    let mut lines = vec![
        ("memory".to_owned(), machine.memory_bytes.map(|all| memory_text(all, host_limit())).into_iter().collect()),
        ("threads".to_owned(), vec![format!("{} on {} cores", machine.threads, machine.cores)]),
    ];
    match kernels {
        Ok(kernels) => {
            lines.push(("instructions".into(), vec![kernels.available.join(", ")]));
            lines.push(("kernels".into(), vec![format!("{} for f32 and f16, {} for bf16", kernels.chosen, kernels.bf16)]));
        }
        Err(error) => lines.push(("problem".into(), vec![error.to_string()])),
    }
    lines.push(("dtypes".into(), dtypes(&cpu_dtypes()).into_iter().collect()));
    facts(&format!("cpu: {}", machine.cpu), &lines)
}

/// The memory that may be had, and of how much it is a part.
fn memory_text(all: u64, limit: Option<u64>) -> String {
    match limit {
        Some(limit) => format!("{}, the limit of this container or job; the machine has {}", bytes(limit), bytes(all)),
        None => bytes(all),
    }
}

/// The dtypes that the processor computes in, the one that it takes by itself first.
fn cpu_dtypes() -> Vec<&'static str> {
    let mut dtypes = vec!["bf16", "f32", "f16"];
    let auto = DTypeChoice::Auto.on(&Device::Cpu);
    // The others stay in the order of their speed.
    dtypes.sort_by_key(|dtype| *dtype != auto.as_str());
    dtypes
}

fn dtypes(all: &[&str]) -> Option<String> {
    all.split_first().map(|(first, rest)| format!("{first} (taken by itself), {}", rest.join(", ")))
}

fn gpu_text(gpu: &Backend) -> String {
    let state = match (gpu.compiled_in, gpu.found) {
        (_, true) => "ready",
        (true, false) => "compiled in, but not usable",
        (false, false) => "not compiled in",
    };
    let lines = [
        ("memory".to_owned(), gpu.memory.map(|(all, free)| format!("{}, {} free", bytes(all), bytes(free))).into_iter().collect()),
        ("driver".to_owned(), gpu.what.iter().cloned().collect()),
        ("dtypes".to_owned(), dtypes(gpu.dtypes).into_iter().collect()),
        ("why".to_owned(), gpu.why.iter().cloned().collect()),
    ];
    facts(&format!("{}: {state}", gpu.name), &lines)
}

fn as_json(machine: &Machine, kernels: &candle_core::Result<ops::CpuKernels>, gpus: &[Backend]) -> Value {
    let cpu = json!({
        "name": "cpu",
        "compiled_in": true,
        "found": kernels.is_ok(),
        "what": machine.cpu,
        "why": kernels.as_ref().err().map(ToString::to_string),
        "memory_bytes": machine.memory_bytes,
        "memory_limit_bytes": host_limit(),
        "threads": machine.threads,
        "cores": machine.cores,
        "instructions": kernels.as_ref().ok().map(|k| &k.available),
        "kernels": kernels.as_ref().ok().map(|k| json!({ "f32": k.chosen, "f16": k.chosen, "bf16": k.bf16 })),
        "dtypes": cpu_dtypes(),
    });
    let gpu = |gpu: &Backend| {
        json!({
            "name": gpu.name,
            "compiled_in": gpu.compiled_in,
            "found": gpu.found,
            "what": gpu.what,
            "why": gpu.why,
            "memory_bytes": gpu.memory.map(|(all, _)| all),
            "memory_free_bytes": gpu.memory.map(|(_, free)| free),
            "dtypes": gpu.dtypes,
        })
    };
    std::iter::once(cpu).chain(gpus.iter().map(gpu)).collect()
}

#[cfg(test)]
mod tests {
    use super::memory_text;

    #[test]
    fn the_memory_that_is_said_is_the_memory_that_may_be_had() {
        assert_eq!(memory_text(25_000_000_000, None), "25.00 GB");
        assert_eq!(
            memory_text(25_000_000_000, Some(4_000_000_000)),
            "4.00 GB, the limit of this container or job; the machine has 25.00 GB"
        );
    }
}
