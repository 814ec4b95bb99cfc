//! Values that are not numbers are found where they arise, and never generated.

use crate::{Error, Result};
use candle_core::{DType, Device, Tensor};
use std::cell::RefCell;

/// Fails when a value is NaN or infinite; `stage` says where, and what to try.
pub(super) fn check_finite(tensor: &Tensor, stage: impl FnOnce() -> String) -> Result<()> {
    if mean(tensor)?.to_scalar::<f32>()?.is_finite() { Ok(()) } else { Err(not_numbers(&stage())) }
}

/// One bad value makes the mean bad, which large but finite values do not overflow.
fn mean(tensor: &Tensor) -> Result<Tensor> {
    Ok(tensor.to_dtype(DType::F32)?.affine(1.0 / tensor.elem_count().max(1) as f64, 0.0)?.sum_all()?)
}

fn not_numbers(stage: &str) -> Error {
    Error::Image(format!("values that are not numbers (NaN or infinity) arose in {stage}"))
}

/// The checks of a run of steps. On a GPU they are looked at together at its end: looking at a value waits for all work before it, and
/// what is bad stays bad.
pub(super) struct Checks {
    later: bool,
    waiting: RefCell<Vec<(Tensor, String)>>,
}

impl Checks {
    pub(super) fn on(device: &Device) -> Self {
        Self { later: device.is_cuda(), waiting: RefCell::default() }
    }

    /// Fails now or at the end when a value is not finite.
    pub(super) fn check(&self, tensor: &Tensor, stage: impl FnOnce() -> String) -> Result<()> {
        if !self.later {
            return check_finite(tensor, stage);
        }
        self.waiting.borrow_mut().push((mean(tensor)?, stage()));
        Ok(())
    }

    /// Fails with the first stage whose values were not finite.
    pub(super) fn finish(&self) -> Result<()> {
        let waiting = self.waiting.take();
        if waiting.is_empty() {
            return Ok(());
        }
        let means = Tensor::stack(&waiting.iter().map(|(mean, _)| mean).collect::<Vec<_>>(), 0)?.to_vec1::<f32>()?;
        match waiting.iter().zip(means).find(|(_, mean)| !mean.is_finite()) {
            Some(((_, stage), _)) => Err(not_numbers(stage)),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_looked_at_later_names_the_first_bad_stage() -> Result<()> {
        let tensor = |values: &[f32]| Tensor::new(values, &Device::Cpu);
        let stages = [tensor(&[1.0, 2.0])?, tensor(&[f32::MAX, f32::MAX])?, tensor(&[0.0, f32::NAN])?, tensor(&[f32::INFINITY])?];
        for later in [false, true] {
            let checks = Checks { later, waiting: RefCell::default() };
            let run = || {
                for (i, values) in stages.iter().enumerate() {
                    checks.check(values, || format!("step {i}"))?;
                }
                checks.finish()
            };
            let error = run().expect_err("a NaN").to_string();
            assert!(error.ends_with("step 2"), "{error}");
        }
        Checks { later: true, waiting: RefCell::default() }.finish()
    }
}
