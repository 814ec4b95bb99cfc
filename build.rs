//! With the feature `cuda`, compiles the project's kernels with the `nvcc` on the `PATH`; else does nothing.

use std::ffi::OsStr;
use std::path::PathBuf;
use std::process::Command;

const SOURCE: &str = "src/ops/cuda/kernels/kernels.cu";

/// Machine code for these, and portable code of the first for all that are newer.
const ARCHITECTURES: [&str; 4] = ["80", "86", "89", "90"];

fn main() -> Result<(), String> {
    println!("cargo::rerun-if-changed=build.rs");
    if std::env::var_os("CARGO_FEATURE_CUDA").is_none() {
        return Ok(());
    }
    println!("cargo::rerun-if-changed=src/ops/cuda/kernels");
    println!("cargo::rerun-if-env-changed=NVCC");
    let nvcc = std::env::var_os("NVCC").unwrap_or_else(|| "nvcc".into());
    let out = PathBuf::from(std::env::var_os("OUT_DIR").ok_or("cargo gives OUT_DIR")?).join("kernels.fatbin");
    let mut command = Command::new(&nvcc);
    command.args(["-std=c++17", "-O3", "-fatbin"]);
    for architecture in ARCHITECTURES {
        command.arg(format!("-gencode=arch=compute_{architecture},code=sm_{architecture}"));
    }
    command.arg(format!("-gencode=arch=compute_{0},code=compute_{0}", ARCHITECTURES[0]));
    println!("cargo::rustc-env=SD_GEN_CUDA_VERSION={}", version(&nvcc).unwrap_or(12_000));
    let status = command.arg(SOURCE).arg("-o").arg(&out).status();
    match status {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(format!("{} could not compile {SOURCE}: {status}", nvcc.display())),
        Err(error) => Err(format!(
            "the feature cuda wants the CUDA toolkit's {} on the PATH ({error}); scripts/cuda-toolkit.sh fetches one",
            nvcc.display()
        )),
    }
}

/// 13000 of "Cuda compilation tools, release 13.0, V13.0.88", as the driver counts versions.
fn version(nvcc: &OsStr) -> Option<u32> {
    let output = Command::new(nvcc).arg("--version").output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let (_, release) = text.split_once("release ")?;
    let (major, minor) = release.split(',').next()?.split_once('.')?;
    Some(major.parse::<u32>().ok()? * 1000 + minor.parse::<u32>().ok()? * 10)
}
