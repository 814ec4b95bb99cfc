//! Where the time goes, op by op.

use candle_core::{Result, Tensor};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// What calls of one op took together.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct OpTime {
    /// The op, as `ops` calls it.
    pub op: String,
    /// What it was called with: shapes, and what else decides the work.
    pub shapes: String,
    /// How often.
    pub calls: usize,
    /// Seconds of all calls, the device waited for.
    pub seconds: f64,
    /// Floating-point operations of all calls as the op is defined, though there may be a way with fewer; 0 where only bytes are moved.
    pub flop: f64,
}

impl OpTime {
    /// Adds the calls of `other`.
    pub fn add(&mut self, other: &Self) {
        self.calls += other.calls;
        self.seconds += other.seconds;
        self.flop += other.flop;
    }
}

/// By op and shapes.
type Times = BTreeMap<(String, String), OpTime>;

/// Asked for at every op, so it must cost nothing.
static WANTED: AtomicBool = AtomicBool::new(false);
static TIMES: Mutex<Times> = Mutex::new(Times::new());

fn times() -> MutexGuard<'static, Times> {
    TIMES.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs `work` and gives what its ops took, the longest first.
///
/// Every op is waited for, so the whole is slower on a GPU. Ops of other threads in that time are counted too.
pub fn profiled<T>(work: impl FnOnce() -> T) -> (T, Vec<OpTime>) {
    struct StopOnDrop;
    impl Drop for StopOnDrop {
        fn drop(&mut self) {
            WANTED.store(false, Ordering::Relaxed);
        }
    }
    times().clear();
    WANTED.store(true, Ordering::Relaxed);
    let stop = StopOnDrop;
    let made = work();
    drop(stop);
    let mut longest_first: Vec<OpTime> = std::mem::take(&mut *times()).into_values().collect();
    longest_first.sort_by(|a, b| b.seconds.total_cmp(&a.seconds));
    (made, longest_first)
}

/// Whether [`profiled`] runs, and times are wanted of each op rather than of a replayed whole.
pub(super) fn is_wanted() -> bool {
    WANTED.load(Ordering::Relaxed)
}

/// Runs an op on `x`; `call` says what it was, given its result, all but how long it took.
pub(super) fn timed(x: &Tensor, run: impl FnOnce() -> Result<Tensor>, call: impl FnOnce(&Tensor) -> OpTime) -> Result<Tensor> {
    if !is_wanted() {
        return run();
    }
    x.device().synchronize()?;
    let start = Instant::now();
    let y = run()?;
    x.device().synchronize()?;
    let seconds = start.elapsed().as_secs_f64();
    let time = OpTime { seconds, ..call(&y) };
    times()
        .entry((time.op.clone(), time.shapes.clone()))
        .or_insert_with(|| OpTime { calls: 0, seconds: 0.0, flop: 0.0, ..time.clone() })
        .add(&time);
    Ok(y)
}

/// `2x64x64x320`
pub(super) fn dims(x: &Tensor) -> String {
    x.dims().iter().map(usize::to_string).collect::<Vec<_>>().join("x")
}

/// One call of an op.
pub(super) fn call(op: &str, shapes: String, flop: f64) -> OpTime {
    OpTime { op: op.to_owned(), shapes, calls: 1, seconds: 0.0, flop }
}

/// A call of an op that moves bytes more than it computes.
pub(super) fn over(op: &str, x: &Tensor) -> OpTime {
    call(op, dims(x), 0.0)
}

#[cfg(test)]
mod tests {
    use super::super::{Linear, attention, silu};
    use super::*;
    use candle_core::Device;

    #[test]
    fn what_ran_is_counted_with_its_shapes_and_operations() -> Result<()> {
        // Sizes that no other test uses, as their ops may run meanwhile.
        let ones = |shape: &[usize]| Tensor::ones(shape, candle_core::DType::F32, &Device::Cpu);
        let linear = Linear::new(ones(&[13, 29])?, None)?;
        let x = ones(&[1, 31, 29])?;
        let q = ones(&[1, 31, 26])?;
        let (done, times) = profiled(|| -> Result<()> {
            linear.forward(&x)?;
            linear.forward(&x)?;
            attention(&q, &q, &q, 2, false)?;
            silu(&x).map(drop)
        });
        done?;
        let of = |op: &str, shapes: &str| times.iter().find(|time| time.op == op && time.shapes == shapes).map(|t| (t.calls, t.flop));
        assert_eq!(of("linear", "1x31x29 to 1x31x13"), Some((2, 2.0 * 2.0 * 31.0 * 29.0 * 13.0)));
        assert_eq!(of("attention", "1x31x26, 31 keys, 2 heads"), Some((1, 4.0 * 31.0 * 31.0 * 26.0)));
        assert_eq!(of("silu", "1x31x29"), Some((1, 0.0)));
        assert!(times.windows(2).all(|pair| pair[0].seconds >= pair[1].seconds));
        Ok(())
    }
}
