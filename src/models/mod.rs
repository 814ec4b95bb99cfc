//! The networks, written once over `ops` for every family and device.
//!
//! A model takes a tensor source and its spec; it never sees a path, a file layout or a family.

mod autoencoder_kl;
mod autoencoder_tiny;
mod call;
mod clip_text_model;
mod embeddings;
mod resnet;
mod transformer_2d;
mod unet_2d_condition;

pub use autoencoder_kl::{AutoencoderKLDecoder, AutoencoderKLEncoder};
pub use autoencoder_tiny::AutoencoderTinyDecoder;
pub use call::{AttentionSite, Backbone, ModelCall, ModelOutput, Patch, Residuals};
pub use clip_text_model::{ClipTextModel, ClipTextOutput};
pub use embeddings::sinusoidal_embedding;
pub use unet_2d_condition::UNet2DCondition;

use crate::Result;
use crate::ops::{Conv2d, GroupNorm, LayerNorm, Linear, Padding, UpsamplingConv2d, Weight};
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

    /// The same place, for tensors on another device.
    fn on<'b>(&self, device: &'b Device) -> Scope<'b>
    where
        'a: 'b,
    {
        Scope { device, ..self.clone() }
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
        self.weight(name, shape, |weight| Ok(weight.into_tensor()?))
    }

    /// Gives `make` the weights `name` of this place: where they are stored if `ops` reads them there, as a tensor if not.
    fn weight<T>(&self, name: &str, shape: &[usize], make: impl FnOnce(Weight<'_>) -> Result<T>) -> Result<T> {
        let name = format!("{}{name}", self.prefix);
        if let Some(stored) = self.source.in_place(&name, shape)?
            && let Some(weight) = Weight::in_place(stored.bytes(), stored.dtype(), shape, self.dtype, self.device)
        {
            return make(weight);
        }
        make(self.source.tensor(&name, shape, self.dtype, self.device)?.into())
    }

    fn linear(&self, input: usize, output: usize) -> Result<Linear> {
        self.weight("weight", &[output, input], |weight| Ok(Linear::new(weight, Some(self.tensor("bias", &[output])?))?))
    }

    fn linear_without_bias(&self, input: usize, output: usize) -> Result<Linear> {
        self.weight("weight", &[output, input], |weight| Ok(Linear::new(weight, None)?))
    }

    /// A 1×1 convolution, which on channels-last data is a linear layer.
    fn pointwise(&self, input: usize, output: usize) -> Result<Linear> {
        self.weight("weight", &[output, input, 1, 1], |weight| {
            Ok(Linear::new(weight.reshape(&[output, input])?, Some(self.tensor("bias", &[output])?))?)
        })
    }

    fn conv3x3(&self, input: usize, output: usize, stride: usize, padding: Padding) -> Result<Conv2d> {
        self.weight("weight", &[output, input, 3, 3], |weight| {
            Ok(Conv2d::new(weight, Some(self.tensor("bias", &[output])?), stride, padding)?)
        })
    }

    fn upsampling_conv3x3(&self, input: usize, output: usize) -> Result<UpsamplingConv2d> {
        self.weight("weight", &[output, input, 3, 3], |weight| Ok(UpsamplingConv2d::new(weight, Some(self.tensor("bias", &[output])?))?))
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
