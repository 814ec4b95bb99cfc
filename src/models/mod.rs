//! The networks, written once over `ops` for every family and device.
//!
//! A model takes a tensor source and its spec; it never sees a path, a file layout or a family.

mod autoencoder_kl;
mod autoencoder_tiny;
mod clip_text_model;
mod embeddings;
mod resnet;
mod transformer_2d;
mod unet_2d_condition;

pub use autoencoder_kl::{AutoencoderKLDecoder, AutoencoderKLEncoder};
pub use autoencoder_tiny::AutoencoderTinyDecoder;
pub use clip_text_model::{ClipTextModel, ClipTextOutput};
pub use embeddings::sinusoidal_embedding;
pub use unet_2d_condition::{AddedCondition, UNet2DCondition};

use crate::Result;
use crate::ops::{Conv2d, GroupNorm, LayerNorm, Linear, Padding};
use crate::weights::TensorSource;
use candle_core::{DType, Device, Tensor};

/// A place in a network's tree of names, and how its tensors are wanted.
#[derive(Clone)]
pub struct Scope<'a> {
    source: &'a dyn TensorSource,
    prefix: String,
    dtype: DType,
    device: &'a Device,
}

impl<'a> Scope<'a> {
    /// The root of a network.
    pub fn root(source: &'a dyn TensorSource, dtype: DType, device: &'a Device) -> Self {
        Self { source, prefix: String::new(), dtype, device }
    }

    /// The place `name` (dots allowed) below this one.
    pub fn at(&self, name: impl std::fmt::Display) -> Self {
        Self { prefix: format!("{}{name}.", self.prefix), ..self.clone() }
    }

    /// The tensor `name` of this place.
    ///
    /// # Errors
    /// It is missing or has another shape.
    pub fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        self.source.tensor(&format!("{}{name}", self.prefix), shape, self.dtype, self.device)
    }

    fn linear(&self, input: usize, output: usize) -> Result<Linear> {
        Ok(Linear::new(self.tensor("weight", &[output, input])?, Some(self.tensor("bias", &[output])?))?)
    }

    fn linear_without_bias(&self, input: usize, output: usize) -> Result<Linear> {
        Ok(Linear::new(self.tensor("weight", &[output, input])?, None)?)
    }

    /// A 1×1 convolution, which on channels-last data is a linear layer.
    fn pointwise(&self, input: usize, output: usize) -> Result<Linear> {
        let weight = self.tensor("weight", &[output, input, 1, 1])?.reshape((output, input))?;
        Ok(Linear::new(weight, Some(self.tensor("bias", &[output])?))?)
    }

    fn conv3x3(&self, input: usize, output: usize, stride: usize, padding: Padding) -> Result<Conv2d> {
        let weight = self.tensor("weight", &[output, input, 3, 3])?;
        Ok(Conv2d::new(weight, Some(self.tensor("bias", &[output])?), stride, padding)?)
    }

    fn conv3x3_without_bias(&self, input: usize, output: usize, stride: usize, padding: Padding) -> Result<Conv2d> {
        Ok(Conv2d::new(self.tensor("weight", &[output, input, 3, 3])?, None, stride, padding)?)
    }

    fn group_norm(&self, channels: usize, groups: usize, eps: f64) -> Result<GroupNorm> {
        Ok(GroupNorm::new(self.tensor("weight", &[channels])?, self.tensor("bias", &[channels])?, groups, eps)?)
    }

    fn layer_norm(&self, channels: usize, eps: f64) -> Result<LayerNorm> {
        Ok(LayerNorm::new(self.tensor("weight", &[channels])?, self.tensor("bias", &[channels])?, eps)?)
    }
}
