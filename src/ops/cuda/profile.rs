//! Where the time goes, by kernel, when `SD_GEN_CUDA_PROFILE` is set: every launch is then waited for, so that the whole is slower.

use candle_core::Result;
use candle_core::cuda_backend::WrapErr;
use candle_core::cuda_backend::cudarc::driver::CudaStream;
use candle_core::cuda_backend::cudarc::driver::sys::CUevent_flags;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, OnceLock};

/// Launches and milliseconds by name.
static TIMES: Mutex<BTreeMap<String, (usize, f64)>> = Mutex::new(BTreeMap::new());

pub(super) fn wanted() -> bool {
    static WANTED: OnceLock<bool> = OnceLock::new();
    *WANTED.get_or_init(|| std::env::var_os("SD_GEN_CUDA_PROFILE").is_some_and(|value| !value.is_empty() && value != "0"))
}

/// Runs `launch`, between two events where times are wanted.
pub(super) fn timed(stream: &Arc<CudaStream>, name: impl FnOnce() -> String, launch: impl FnOnce() -> Result<()>) -> Result<()> {
    if !wanted() {
        return launch();
    }
    let record = || stream.record_event(Some(CUevent_flags::CU_EVENT_DEFAULT)).w();
    let before = record()?;
    launch()?;
    let after = record()?;
    after.synchronize().w()?;
    let milliseconds = f64::from(before.elapsed_ms(&after).w()?);
    let mut times = super::gpu::lock(&TIMES);
    let (launches, total) = times.entry(name()).or_default();
    *launches += 1;
    *total += milliseconds;
    Ok(())
}

/// What was measured since the last call: names, launches and milliseconds, the longest first.
pub(in super::super) fn take() -> Vec<(String, usize, f64)> {
    let times = std::mem::take(&mut *super::gpu::lock(&TIMES));
    let mut times: Vec<_> = times.into_iter().map(|(name, (launches, milliseconds))| (name, launches, milliseconds)).collect();
    times.sort_by(|a, b| b.2.total_cmp(&a.2));
    times
}
