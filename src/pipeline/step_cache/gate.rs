//! After a step the text has said what it has to say: its attention is an average of then, and nothing is guided any more.

use crate::models::{AttentionReuse, Backbone, Kept, ModelCall, ModelOutput, Reuse};
use crate::{Error, Result};
use candle_core::Tensor;
use std::sync::{Mutex, PoisonError};

/// Calls at the beginning that are computed as a whole.
const WARM_UP: usize = 2;
/// Before the gate, the attention to the image itself is computed in every so many calls.
const INTERVAL: usize = 5;

/// A UNet that takes the attention to the text from the call before a gate, and leaves out the negative prompt from there on.
///
/// # Source
/// Zhang et al. 2024, "T-GATE", arXiv:2404.02747; HaozheLiu-ST/T-GATE@ec117166:tgate/tgate_utils.py, `tgate_scheduler` and
/// `tgate_processor`: gate 10, intervals 5 and 1, warm-up 2. Which of the two prompts stands beside the kept attention is the prompt here.
#[derive(Debug)]
pub(in crate::pipeline) struct TemporalGate<'a> {
    network: &'a dyn Backbone,
    /// Branches of guidance before the gate.
    branches: usize,
    /// The first call behind the gate; 0 is no gate.
    gate: usize,
    state: Mutex<GateState>,
}

#[derive(Debug, Default)]
struct GateState {
    calls: usize,
    own: Vec<Tensor>,
    text: Vec<Tensor>,
}

impl<'a> TemporalGate<'a> {
    pub(in crate::pipeline) fn new(network: &'a dyn Backbone, branches: usize, gate: usize) -> Self {
        Self { network, branches, gate, state: Mutex::default() }
    }

    /// The call of the prompt's rows alone, which are the last.
    fn of_prompt(&self, call: &ModelCall, images: usize) -> Result<ModelCall> {
        let rows = call.latents.dim(0)?;
        let last = |x: &Tensor| x.narrow(0, rows - images, images)?.contiguous();
        let tail = |list: &[Vec<f64>]| list.get(list.len().saturating_sub(images)..).unwrap_or_default().to_vec();
        let residuals = crate::models::Residuals {
            down: call.residuals.down.iter().map(last).collect::<candle_core::Result<_>>()?,
            mid: call.residuals.mid.as_ref().map(last).transpose()?,
        };
        Ok(ModelCall {
            latents: last(&call.latents)?,
            context: last(&call.context)?,
            pooled: call.pooled.as_ref().map(last).transpose()?,
            time_ids: tail(&call.time_ids),
            guidance: call.guidance.get(call.guidance.len().saturating_sub(images)..).unwrap_or_default().to_vec(),
            concat: call.concat.as_ref().map(last).transpose()?,
            residuals,
            ..call.clone()
        })
    }
}

impl Backbone for TemporalGate<'_> {
    fn call(&self, call: &ModelCall) -> Result<ModelOutput> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let at = state.calls;
        state.calls += 1;
        if self.gate == 0 {
            return self.network.call(call);
        }
        let rows = call.latents.dim(0)?;
        let is_like = |kept: &[Tensor]| kept.first().is_some_and(|first| first.dims().first() == Some(&rows));
        if at >= self.gate && !state.text.is_empty() {
            let images = state.text.first().map_or(Ok(1), |first| first.dim(0))?;
            let times = rows / images.max(1);
            let mut own = self.of_prompt(call, images)?;
            own.reuse = Reuse { cross_attention: AttentionReuse::Take(state.text.clone()), ..Reuse::default() };
            let prediction = self.network.call(&own)?.prediction;
            // Guidance between equal predictions is none.
            return Ok(ModelOutput::of(Tensor::cat(&vec![prediction; times], 0)?));
        }
        let mut own = call.clone();
        own.reuse.self_attention = match at {
            _ if at + 1 == self.gate || at < WARM_UP => AttentionReuse::Off,
            _ if at != WARM_UP && !at.is_multiple_of(INTERVAL) && is_like(&state.own) => AttentionReuse::Take(state.own.clone()),
            _ => AttentionReuse::Keep,
        };
        if at + 1 >= self.gate {
            own.reuse.cross_attention = AttentionReuse::Keep;
        }
        let ModelOutput { prediction, kept: Kept { self_attention, cross_attention, .. } } = self.network.call(&own)?;
        if !self_attention.is_empty() {
            state.own = self_attention;
        }
        if !cross_attention.is_empty() {
            let branches = if rows.is_multiple_of(self.branches) && rows >= self.branches { self.branches } else { 1 };
            let images = rows / branches;
            let mean = |x: &Tensor| -> Result<Tensor> {
                let mut sum = x.narrow(0, 0, images)?;
                for branch in 1..branches {
                    sum = (sum + x.narrow(0, branch * images, images)?)?;
                }
                Ok(sum.affine(1.0 / branches as f64, 0.0)?.contiguous()?)
            };
            state.text = cross_attention.iter().map(mean).collect::<Result<_>>()?;
            state.own.clear();
        }
        if at + 1 >= self.gate && state.text.is_empty() {
            return Err(Error::Image("the network gave no attention to keep; leave `cache` tgate out".into()));
        }
        Ok(ModelOutput::of(prediction))
    }

    fn weights_changed(&self) {
        self.network.weights_changed();
    }
}
