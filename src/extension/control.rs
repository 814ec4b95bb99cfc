//! What a ControlNet adds to the calls of a part of the steps.

use super::{Extension, RunContext};
use crate::Result;
use crate::models::{ControlNet, ModelCall, ShownControl};
use crate::sampling::{Branch, CallPoint};
use candle_core::Tensor;
use std::sync::Arc;

/// The calls in which something acts: of all of a run's, those that lie in a range as a whole.
///
/// # Source
/// `controlnet_keep` in huggingface/diffusers@v0.36:src/diffusers/pipelines/controlnet/pipeline_controlnet.py
#[derive(Debug, Clone, Copy)]
pub(super) struct ActiveCalls {
    range: (f64, f64),
    /// Calls of the network in a run, once it is known.
    calls: usize,
}

impl ActiveCalls {
    pub(super) fn in_range(range: (f64, f64)) -> Self {
        Self { range, calls: 0 }
    }

    pub(super) fn prepare(&mut self, run: &RunContext<'_>) {
        self.calls = run.schedule.steps.iter().map(|step| run.schedule.evaluations(step)).sum();
    }

    pub(super) fn is_on(&self, at: &CallPoint) -> bool {
        let (call, calls, (start, end)) = (at.call as f64, self.calls.max(1) as f64, self.range);
        // A sampler that adapts makes more calls than it was planned to.
        call >= calls || !(call / calls < start || (call + 1.0) / calls > end)
    }
}

/// Adds a ControlNet's residuals to every row.
///
/// # Source
/// Zhang et al. 2023, arXiv:2302.05543, equation 2.
#[derive(Debug)]
pub struct Control {
    network: Arc<ControlNet>,
    /// What the network sees of its image, `(1, height, width, channels)`.
    hint: Tensor,
    weight: f64,
    active: ActiveCalls,
}

impl Control {
    /// For a network, what it made of its image ([`ControlNet::hint`]), the residuals' weight, and the range of the calls.
    pub fn new(network: Arc<ControlNet>, hint: Tensor, weight: f64, range: (f64, f64)) -> Self {
        Self { network, hint, weight, active: ActiveCalls::in_range(range) }
    }
}

impl Extension for Control {
    fn prepare(&mut self, run: &RunContext<'_>) -> Result<()> {
        self.active.prepare(run);
        Ok(())
    }

    fn before_call(&mut self, at: &CallPoint, _: &[Branch], call: &mut ModelCall) -> Result<()> {
        if !self.active.is_on(at) {
            return Ok(());
        }
        let residuals = self.network.residuals(call, &self.hint)?.weighed(self.weight)?;
        call.residuals.add(residuals)
    }
}

/// An image of one kind, and the calls in which it is shown.
#[derive(Debug)]
struct UnionImage {
    shown: ShownControl,
    active: ActiveCalls,
}

/// Adds the residuals of a ControlNet for several kinds of images, which is shown one or more.
///
/// In the calls in which none acts the network is not called; where some do, the others weigh nothing.
///
/// # Source
/// huggingface/diffusers@v0.36:src/diffusers/pipelines/controlnet/pipeline_controlnet_union_sd_xl.py
#[derive(Debug)]
pub struct UnionControl {
    network: Arc<ControlNet>,
    images: Vec<UnionImage>,
}

impl UnionControl {
    /// For a network that is shown nothing yet.
    pub fn new(network: Arc<ControlNet>) -> Self {
        Self { network, images: Vec::new() }
    }

    /// Shows it an image more in a range of the calls.
    pub fn show(&mut self, shown: ShownControl, range: (f64, f64)) {
        self.images.push(UnionImage { shown, active: ActiveCalls::in_range(range) });
    }
}

impl Extension for UnionControl {
    fn prepare(&mut self, run: &RunContext<'_>) -> Result<()> {
        self.images.iter_mut().for_each(|image| image.active.prepare(run));
        Ok(())
    }

    fn before_call(&mut self, at: &CallPoint, branches: &[Branch], call: &mut ModelCall) -> Result<()> {
        if !self.images.iter().any(|image| image.active.is_on(at)) {
            return Ok(());
        }
        let now = |UnionImage { shown, active }: &UnionImage| {
            let weight = if active.is_on(at) { shown.weight } else { 0.0 };
            ShownControl { weight, ..shown.clone() }
        };
        let shown: Vec<ShownControl> = self.images.iter().map(now).collect();
        call.residuals.add(self.network.union_residuals(call, &shown, branches.len())?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sampling::{NoiseLevel, Step};

    #[test]
    fn a_call_acts_where_it_lies_in_the_range_as_a_whole() {
        let on = |range, calls| -> Vec<bool> {
            let active = ActiveCalls { range, calls };
            let level = NoiseLevel::new(1.0, 500.0);
            let at = |call| CallPoint { step: Step { index: call, from: level, to: level }, steps: calls, call, level };
            (0..calls).map(|call| active.is_on(&at(call))).collect()
        };
        assert_eq!(on((0.0, 1.0), 3), [true; 3]);
        assert_eq!(on((0.2, 0.7), 6), [false, false, true, true, false, false]);
        assert_eq!(on((0.5, 1.0), 4), [false, false, true, true]);
        assert_eq!(on((0.0, 0.1), 4), [false; 4]);
    }
}
