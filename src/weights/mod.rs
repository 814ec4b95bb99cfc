//! Opens checkpoints without trusting them and serves their tensors under diffusers' names.

use crate::Result;
use candle_core::{DType, Device, Tensor};

/// Serves the tensors of one network under the names that diffusers gives them.
pub trait TensorSource {
    /// The tensor `name`, converted to `dtype` on `device`.
    ///
    /// # Errors
    /// A missing name or another shape: the message names the file, the key and both shapes.
    fn tensor(&self, name: &str, shape: &[usize], dtype: DType, device: &Device) -> Result<Tensor>;

    /// The shape of `name`, if there is such a tensor.
    fn shape(&self, name: &str) -> Option<Vec<usize>>;
}
