//! The networks, written once over `ops` for every family and device.
//!
//! A model takes a tensor source and its spec; it never sees a path, a file layout or a family.

mod autoencoder;
mod autoencoder_kl;
mod autoencoder_tiny;
mod block_stream;
mod call;
mod clip_text_model;
mod clip_vision_model;
mod control_net;
mod control_union;
mod denoising_network;
mod depth_anything;
mod embeddings;
mod ip_adapter;
mod joint_block;
mod layer_store;
mod mmdit;
mod resnet;
mod reuse;
mod t5_encoder;
mod transformer_2d;
mod unet_2d_condition;
mod unet_way_down;
mod upscaler;

pub use autoencoder::{VaeDecoder, VaeEncoder};
pub use autoencoder_kl::{AutoencoderKLDecoder, AutoencoderKLEncoder, LatentDistribution};
pub use autoencoder_tiny::{AutoencoderTinyDecoder, AutoencoderTinyEncoder};
pub use block_stream::{BlockStream, StreamedTensors};
pub use call::{AttentionSite, Backbone, ModelCall, ModelOutput, Patch, Residuals};
pub use clip_text_model::{ClipTextModel, ClipTextOutput};
pub use clip_vision_model::{ClipVisionModel, ClipVisionOutput};
pub use control_net::{ControlNet, ShownControl};
pub use denoising_network::DenoisingNetwork;
pub use depth_anything::DepthAnything;
pub use embeddings::sinusoidal_embedding;
pub use ip_adapter::{ImageKeys, IpAdapter};
pub use layer_store::LayerStore;
pub use mmdit::Mmdit;
pub use reuse::{AttentionReuse, DeepReuse, Kept, Reuse};
pub use t5_encoder::T5Encoder;
pub use unet_2d_condition::UNet2DCondition;
pub use upscaler::Upscaler;

use crate::Result;
use crate::ops::{Conv2d, GraphCache, GroupNorm, LayerNorm, Linear, Padding, RmsNorm, UpsamplingConv2d, Weight};
use crate::weights::TensorSource;
use candle_core::{DType, Device, Tensor};
use layer_store::Stored;
use std::sync::Arc;

/// A place in a network's tree of names, and how its tensors are wanted.
#[derive(Clone)]
pub struct Scope<'a> {
    source: &'a dyn TensorSource,
    prefix: String,
    dtype: DType,
    device: &'a Device,
    layers: Option<&'a LayerStore>,
    stream: Option<&'a Arc<BlockStream>>,
}

impl<'a> Scope<'a> {
    /// The root of a network.
    pub fn root(source: &'a dyn TensorSource, dtype: DType, device: &'a Device) -> Self {
        Self { source, prefix: String::new(), dtype, device, layers: None, stream: None }
    }

    /// The same place, whose layers are kept in `layers`, and taken from there where they are there.
    pub fn with_layers(self, layers: &'a LayerStore) -> Self {
        Self { layers: Some(layers), ..self }
    }

    /// The same place, whose blocks are not read now but noted in `stream`.
    pub fn with_stream(self, stream: Option<&'a Arc<BlockStream>>) -> Self {
        Self { stream, ..self }
    }

    /// What is kept of a network's calls, on the device of the layers that are there already.
    fn graph_cache(&self) -> Result<GraphCache> {
        if self.stream.is_some() {
            return Ok(GraphCache::unrecorded(self.device));
        }
        let kept = self.layers.and_then(LayerStore::take_graph_cache);
        kept.map_or_else(|| Ok(GraphCache::new(self.device)?), Ok)
    }

    /// The layer of this place: the one that is there, or the one that `make` makes.
    fn layer<T: Stored>(&self, make: impl FnOnce() -> Result<T>) -> Result<T> {
        let Some(layers) = self.layers else { return make() };
        let name = self.prefix.trim_end_matches('.');
        if let Some(layer) = layers.get(name) {
            return Ok(layer);
        }
        let layer = make()?;
        layers.put(name, layer.clone());
        Ok(layer)
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
        if Weight::reads_in_place(self.dtype, self.device)
            && let Some(mut stored) = self.source.in_place(&name, shape)?
        {
            let product = stored.take_product();
            if let Some(weight) = Weight::in_place(stored.bytes(), stored.dtype(), shape, self.dtype, self.device) {
                return make(match product {
                    Some((a, b)) => weight.plus_product(a, &b)?,
                    None => weight,
                });
            }
        }
        make(self.source.tensor(&name, shape, self.dtype, self.device)?.into())
    }

    /// The bias that an adapter adds to a layer that has none.
    fn added_bias(&self, output: usize) -> Result<Option<Tensor>> {
        self.source.adds(&format!("{}bias", self.prefix)).then(|| self.tensor("bias", &[output])).transpose()
    }

    /// Rows of numbers that are looked up.
    fn table(&self, rows: usize, width: usize) -> Result<Tensor> {
        self.layer(|| self.tensor("weight", &[rows, width]))
    }

    fn linear(&self, input: usize, output: usize) -> Result<Linear> {
        let make = |weight: Weight<'_>| Ok(Linear::new(weight, Some(self.tensor("bias", &[output])?))?);
        self.layer(|| self.weight("weight", &[output, input], make))
    }

    fn linear_without_bias(&self, input: usize, output: usize) -> Result<Linear> {
        let make = |weight: Weight<'_>| Ok(Linear::new(weight, self.added_bias(output)?)?);
        self.layer(|| self.weight("weight", &[output, input], make))
    }

    /// A 1×1 convolution, which on channels-last data is a linear layer.
    fn pointwise(&self, input: usize, output: usize) -> Result<Linear> {
        let make = |weight: Weight<'_>| Ok(Linear::new(weight.reshape(&[output, input])?, Some(self.tensor("bias", &[output])?))?);
        self.layer(|| self.weight("weight", &[output, input, 1, 1], make))
    }

    /// A convolution without bias whose kernel steps by its own size: a linear layer on patches, `(channels, rows, columns)` each.
    fn patches(&self, channels: usize, side: usize, output: usize) -> Result<Linear> {
        let make = |weight: Weight<'_>| Ok(Linear::new(weight.reshape(&[output, channels * side * side])?, None)?);
        self.layer(|| self.weight("weight", &[output, channels, side, side], make))
    }

    /// The same with a bias.
    fn biased_patches(&self, channels: usize, side: usize, output: usize) -> Result<Linear> {
        let make = |weight: Weight<'_>| {
            let weight = weight.reshape(&[output, channels * side * side])?;
            Ok(Linear::new(weight, Some(self.tensor("bias", &[output])?))?)
        };
        self.layer(|| self.weight("weight", &[output, channels, side, side], make))
    }

    fn conv3x3(&self, input: usize, output: usize, stride: usize, padding: Padding) -> Result<Conv2d> {
        let make = |weight: Weight<'_>| Ok(Conv2d::new(weight, Some(self.tensor("bias", &[output])?), stride, padding)?);
        self.layer(|| self.weight("weight", &[output, input, 3, 3], make))
    }

    fn upsampling_conv3x3(&self, input: usize, output: usize) -> Result<UpsamplingConv2d> {
        let make = |weight: Weight<'_>| Ok(UpsamplingConv2d::new(weight, Some(self.tensor("bias", &[output])?))?);
        self.layer(|| self.weight("weight", &[output, input, 3, 3], make))
    }

    fn conv3x3_without_bias(&self, input: usize, output: usize, stride: usize, padding: Padding) -> Result<Conv2d> {
        self.layer(|| Ok(Conv2d::new(self.tensor("weight", &[output, input, 3, 3])?, self.added_bias(output)?, stride, padding)?))
    }

    fn group_norm(&self, channels: usize, groups: usize, eps: f64) -> Result<GroupNorm> {
        let tensor = |name| self.tensor(name, &[channels]);
        self.layer(|| Ok(GroupNorm::new(tensor("weight")?, tensor("bias")?, groups, eps)?))
    }

    fn rms_norm(&self, channels: usize, eps: f64) -> Result<RmsNorm> {
        self.layer(|| Ok(RmsNorm::new(self.tensor("weight", &[channels])?, eps)?))
    }

    /// A norm without weights, for who changes what it gives by the time.
    fn plain_layer_norm(&self, channels: usize) -> Result<LayerNorm> {
        let full = |value: f32| Tensor::full(value, channels, self.device)?.to_dtype(self.dtype);
        Ok(LayerNorm::new(full(1.0)?, full(0.0)?, 1e-6)?)
    }

    fn layer_norm(&self, channels: usize, eps: f64) -> Result<LayerNorm> {
        let tensor = |name| self.tensor(name, &[channels]);
        self.layer(|| Ok(LayerNorm::new(tensor("weight")?, tensor("bias")?, eps)?))
    }
}
