//! A network that sees latents larger than it was trained on through windows that overlap.
//!
//! Every call is made once for each window, and the predictions are blended where windows overlap, so that all windows agree on one image
//! at every step.
//!
//! # Source
//! Bar-Tal et al. 2023, "MultiDiffusion", arXiv:2302.08113, eq. 5 with weights that fall off towards a window's edge.

use super::vae_tiling::{starts, weights};
use crate::Result;
use crate::models::{Backbone, ModelCall, ModelOutput};
use candle_core::{DType, Tensor};

/// A network behind windows of a number of latents a side.
#[derive(Debug)]
pub(super) struct LatentWindows<'a> {
    network: &'a dyn Backbone,
    side: usize,
}

impl<'a> LatentWindows<'a> {
    pub(super) fn new(network: &'a dyn Backbone, side: usize) -> Self {
        // Networks halve their grid three times.
        Self { network, side: (side / 8 * 8).max(8) }
    }
}

impl Backbone for LatentWindows<'_> {
    fn call(&self, call: &ModelCall) -> Result<ModelOutput> {
        let (_, _, height, width) = call.latents.dims4()?;
        if height <= self.side && width <= self.side {
            return self.network.call(call);
        }
        let (device, dtype) = (call.latents.device(), call.latents.dtype());
        let mut sum: Option<(Tensor, Tensor)> = None;
        for top in starts(height, self.side) {
            let rows = weights(top, height, self.side, 1);
            let rows = Tensor::from_slice(&rows, (1, 1, rows.len(), 1), device)?;
            for left in starts(width, self.side) {
                let columns = weights(left, width, self.side, 1);
                let columns = Tensor::from_slice(&columns, (1, 1, 1, columns.len()), device)?;
                let part = |x: &Tensor| x.narrow(2, top, self.side.min(height))?.narrow(3, left, self.side.min(width))?.contiguous();
                let concat = call.concat.as_ref().map(part).transpose()?;
                let seen = ModelCall { latents: part(&call.latents)?, concat, ..call.clone() };
                let prediction = self.network.call(&seen)?.prediction.to_dtype(DType::F32)?;
                let weight = rows.broadcast_mul(&columns)?;
                let placed = |x: Tensor| -> candle_core::Result<Tensor> {
                    let (_, _, rows, columns) = x.dims4()?;
                    x.pad_with_zeros(2, top, height - top - rows)?.pad_with_zeros(3, left, width - left - columns)
                };
                let (prediction, weight) = (placed(prediction.broadcast_mul(&weight)?)?, placed(weight)?);
                sum = Some(match sum {
                    None => (prediction, weight),
                    Some((predictions, weights)) => ((predictions + prediction)?, (weights + weight)?),
                });
            }
        }
        match sum {
            Some((predictions, weights)) => Ok(ModelOutput::of(predictions.broadcast_div(&weights)?.to_dtype(dtype)?)),
            None => self.network.call(call),
        }
    }

    fn weights_changed(&self) {
        self.network.weights_changed();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;
    use std::sync::Mutex;

    /// Predicts the latents themselves, and remembers the shapes that it saw.
    #[derive(Debug, Default)]
    struct Same(Mutex<Vec<Vec<usize>>>);

    impl Backbone for Same {
        fn call(&self, call: &ModelCall) -> Result<ModelOutput> {
            self.0.lock().unwrap().push(call.latents.dims().to_vec());
            Ok(ModelOutput::of(call.latents.clone()))
        }

        fn weights_changed(&self) {}
    }

    #[test]
    fn windows_of_what_sees_one_place_are_the_whole() {
        let values: Vec<f32> = (0..2 * 4 * 40 * 23).map(|i| ((i * 7919) % 1009) as f32 / 500.0 - 1.0).collect();
        let latents = Tensor::from_vec(values, (2, 4, 40, 23), &Device::Cpu).unwrap();
        let context = Tensor::zeros((2, 1, 1), DType::F32, &Device::Cpu).unwrap();
        let network = Same::default();
        let call = ModelCall::new(latents.clone(), 1.0, context);
        let seen = LatentWindows::new(&network, 17).call(&call).unwrap().prediction;
        let apart = (seen - &latents).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
        assert!(apart < 1e-6, "{apart}");
        assert_eq!(network.0.lock().unwrap().iter().filter(|shape| **shape == [2, 4, 16, 16]).count(), 6);
        assert_eq!(LatentWindows::new(&network, 64).call(&call).unwrap().prediction.dims(), [2, 4, 40, 23]);
    }
}
