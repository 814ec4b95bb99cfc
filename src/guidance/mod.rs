//! Guidance: which rows a call of the network has for each image, and how its outputs become one.
//!
//! A guider decides call by call, so that guidance in a part of the steps, or with a third row, is no special case. It sees numbers only:
//! no prompt, no model, no noise level but the one it is asked about. What works on the latents or on the network itself is an extension.

mod adaptive_projected;
mod classifier_free;
mod conjunction;
mod instruction_edit;

pub(crate) use adaptive_projected::{AdaptiveProjected, Projection};
pub(crate) use classifier_free::{ClassifierFree, GuidanceScales, LeftOut};
pub(crate) use conjunction::Conjunction;
pub(crate) use instruction_edit::InstructionEdit;

use crate::Result;
use crate::sampling::{Branch, Branches, CallPoint};
use candle_core::Tensor;

/// Turns the network's outputs for several conditions into one.
pub(crate) trait Guider: Send + std::fmt::Debug {
    /// The rows of each image in a call, in the order in which the network gets them; never empty.
    fn branches(&self, at: &CallPoint) -> Vec<Branch>;

    /// The guided output, `(images, channels, height, width)`, from those of [`Guider::branches`].
    ///
    /// # Errors
    /// A branch is missing.
    fn combine(&mut self, at: &CallPoint, outputs: &Branches) -> Result<Tensor>;

    /// Whether it is given estimates of the clean latents, and makes one, in the place of the network's outputs.
    fn reads_estimates(&self) -> bool {
        false
    }
}

/// One value an image, `(images, 1, 1, 1)`.
fn each_image(values: impl Iterator<Item = f64>, device: &candle_core::Device) -> Result<Tensor> {
    let values: Vec<f32> = values.map(|value| value as f32).collect();
    let images = values.len();
    Ok(Tensor::from_vec(values, (images, 1, 1, 1), device)?)
}

/// A call that tests make.
#[cfg(test)]
fn point(index: usize) -> CallPoint {
    use crate::sampling::{NoiseLevel, Step};
    let level = NoiseLevel::new(1.0, 500.0);
    CallPoint { step: Step { index, from: level, to: NoiseLevel::new(0.0, 0.0) }, steps: 4, call: index, level }
}
