//! Only the last layers of a UNet are computed in most calls; the hidden state that enters them is an earlier call's.

use crate::Result;
use crate::models::{Backbone, DeepReuse, Kept, ModelCall, ModelOutput};
use candle_core::Tensor;
use std::sync::{Mutex, PoisonError};

/// A UNet of which every so many calls one is computed as a whole.
///
/// # Source
/// Ma et al. 2023, arXiv:2312.00858, section 3.3; horseee/DeepCache@1691a3ab.
#[derive(Debug)]
pub(in crate::pipeline) struct DeepCache<'a> {
    network: &'a dyn Backbone,
    interval: usize,
    layers: usize,
    /// Calls until now, and what entered the last layers in the last whole one.
    state: Mutex<(usize, Option<Tensor>)>,
}

impl<'a> DeepCache<'a> {
    /// Branch 0 is the shallowest: one layer is computed.
    pub(in crate::pipeline) fn new(network: &'a dyn Backbone, interval: usize, branch: usize) -> Self {
        Self { network, interval: interval.max(1), layers: branch + 1, state: Mutex::default() }
    }
}

impl Backbone for DeepCache<'_> {
    fn call(&self, call: &ModelCall) -> Result<ModelOutput> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let (count, hidden) = &mut *state;
        let whole = count.is_multiple_of(self.interval);
        *count += 1;
        let mut call = call.clone();
        let rows = call.latents.dim(0)?;
        // Guidance that begins or ends changes the rows.
        let fitting = hidden.clone().filter(|hidden| !whole && hidden.dims().first() == Some(&rows));
        call.reuse.deep = match fitting {
            Some(hidden) => DeepReuse::Take(self.layers, hidden),
            None => DeepReuse::Keep(self.layers),
        };
        let output = self.network.call(&call)?;
        if let Some(deep) = output.kept.deep {
            *hidden = Some(deep);
        }
        Ok(ModelOutput { kept: Kept::default(), ..output })
    }

    fn weights_changed(&self) {
        self.network.weights_changed();
    }
}
