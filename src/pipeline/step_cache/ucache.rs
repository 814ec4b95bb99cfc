//! A network is not called where its output would change little: what it changed of its input last time is changed again.

use crate::Result;
use crate::models::{Backbone, ModelCall, ModelOutput};
use candle_core::{DType, Tensor};
use std::sync::{Mutex, PoisonError};

/// The shares of the calls from which and up to which calls may be left out.
const ACTIVE: (f64, f64) = (0.15, 0.95);
/// The error's scale against the running mean of the output's changes.
const NORM_GAIN: f64 = 1.6;
/// The threshold's factors in the first and in the last fifth of the run.
const EARLY_AND_LATE: (f64, f64) = (0.5, 1.5);

/// A network that is called when the error of leaving calls out adds up to a threshold.
///
/// What decides is one number of the whole batch, so that images are generated one at a time.
///
/// # Source
/// leejet/stable-diffusion.cpp@5b4f692b:src/runtime/ucache.hpp, with its constants: threshold 1, from 0.15 to 0.95 of the steps, relative.
#[derive(Debug)]
pub(in crate::pipeline) struct UCache<'a> {
    network: &'a dyn Backbone,
    threshold: f64,
    calls: usize,
    state: Mutex<UCacheState>,
}

#[derive(Debug, Default)]
struct UCacheState {
    call: usize,
    /// Output less input of every row, f32.
    change: Option<Tensor>,
    /// The prompt's input and output of the last call that was made, f32.
    last: Option<(Tensor, Tensor)>,
    output_norm: f64,
    /// By how much the output changes where the input changes by 1.
    rate: Option<f64>,
    /// The running mean of the output's changes.
    mean_change: Option<f64>,
    computed: usize,
    in_a_row: usize,
    error: f64,
}

impl<'a> UCache<'a> {
    pub(in crate::pipeline) fn new(network: &'a dyn Backbone, calls: usize, threshold: f64) -> Self {
        Self { network, threshold, calls, state: Mutex::default() }
    }

    /// The threshold at this point of the run.
    fn threshold_now(&self, computed: usize) -> f64 {
        let progress = (computed as f64 / self.calls.max(1) as f64).clamp(0.0, 1.0);
        let factor = if progress < 0.2 {
            EARLY_AND_LATE.0
        } else if progress > 0.8 {
            EARLY_AND_LATE.1
        } else {
            1.0
        };
        self.threshold * factor
    }
}

/// The mean distance of the numbers of two tensors.
fn distance(a: &Tensor, b: &Tensor) -> Result<f64> {
    Ok(f64::from((a - b)?.abs()?.mean_all()?.to_scalar::<f32>()?))
}

impl Backbone for UCache<'_> {
    fn call(&self, call: &ModelCall) -> Result<ModelOutput> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let state = &mut *state;
        let at = state.call;
        state.call += 1;
        let bound = |share: f64| ((share * self.calls as f64) as usize).min(self.calls.saturating_sub(1));
        if at < bound(ACTIVE.0) || at >= bound(ACTIVE.1) {
            return self.network.call(call);
        }
        let rows = call.latents.dim(0)?;
        let latents = call.latents.to_dtype(DType::F32)?;
        // The negative prompt's row is the first where there are several.
        let of_prompt = |x: &Tensor| x.narrow(0, usize::from(rows > 1), 1);
        let input = of_prompt(&latents)?;
        let mut moved = None;
        let change = state.change.clone().filter(|change| change.dims() == latents.dims());
        if let (Some((last, _)), Some(change)) = (&state.last, change) {
            let by = distance(&input, last)?;
            moved = Some(by);
            if let Some(rate) = state.rate.filter(|_| by > 0.0 && state.output_norm > 0.0) {
                let base = state.output_norm.max(1e-6);
                let scale = (base * state.mean_change.map_or(base, |mean| (mean * NORM_GAIN).max(1e-6))).sqrt();
                state.error += rate * by / scale * (1.0 + 0.5 * state.in_a_row as f64);
                if state.error < self.threshold_now(state.computed) {
                    state.in_a_row += 1;
                    return Ok(ModelOutput::of((latents + change)?.to_dtype(call.latents.dtype())?));
                }
                state.error = 0.0;
            }
        }
        let output = self.network.call(call)?;
        let prediction = output.prediction.to_dtype(DType::F32)?;
        // Where the network predicts fewer channels than it reads, those are the latents'.
        state.change = Some((&prediction - &latents)?);
        state.computed += 1;
        state.in_a_row = 0;
        let predicted = of_prompt(&prediction)?;
        let changed = match &state.last {
            Some((_, last)) => distance(&predicted, last)?,
            None => 0.0,
        };
        if changed > 0.0 && changed.is_finite() {
            state.mean_change = Some(state.mean_change.map_or(changed, |mean| 0.8 * mean + 0.2 * changed));
            if let Some(by) = moved.filter(|by| *by > 0.0) {
                state.rate = Some(changed / by);
            }
        }
        state.output_norm = f64::from(predicted.abs()?.mean_all()?.to_scalar::<f32>()?);
        state.last = Some((input, predicted));
        Ok(output)
    }

    fn weights_changed(&self) {
        self.network.weights_changed();
    }
}
