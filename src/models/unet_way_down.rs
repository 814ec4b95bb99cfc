//! A UNet's way down with its middle and its conditions beside the text: what a ControlNet has a copy of.

use super::Scope;
use super::block_stream::Block;
use super::call::{LayerInputs, ModelCall};
use super::embeddings::{TimestepEmbedding, sinusoidal_embedding};
use super::resnet::{Downsample2D, ResnetBlock2D, ResnetConfig, activated};
use super::transformer_2d::{Transformer2D, TransformerConfig};
use crate::ops::{Conv2d, NamedTensors, Padding};
use crate::spec::{UNetLevel, UNetSpec};
use crate::{Error, Result};
use candle_core::Tensor;

/// One residual block and the transformer that may follow it.
#[derive(Debug)]
pub(super) struct Layer {
    resnet: Block<ResnetBlock2D>,
    attention: Option<Transformer2D>,
}

impl Layer {
    /// The layer `index` of the level at `scope`.
    pub(super) fn load(scope: &Scope<'_>, spec: &UNetSpec, level: &UNetLevel, index: usize, input: usize) -> Result<Self> {
        let depth = level.depths.get(index).copied().unwrap_or(0);
        let resnet = resnet(&scope.at("resnets").at(index), spec, input, level.channels)?;
        let config = TransformerConfig { reads_text_only: level.reads_text_only, ..transformers(spec) };
        let transformer = |depth| Transformer2D::load(&scope.at("attentions").at(index), config, level.channels, level.heads, depth);
        Ok(Self { resnet, attention: (depth > 0).then(|| transformer(depth)).transpose()? })
    }

    pub(super) fn forward(&self, x: &Tensor, inputs: LayerInputs<'_>) -> Result<Tensor> {
        let x = self.resnet.with(|resnet| resnet.forward(x, Some(inputs.time)))?;
        match &self.attention {
            Some(transformer) => transformer.forward(&x, inputs),
            None => Ok(x),
        }
    }
}

fn first_channels(spec: &UNetSpec) -> usize {
    spec.down.first().map_or(0, |level| level.channels)
}

fn resnets(spec: &UNetSpec) -> ResnetConfig {
    ResnetConfig { norm_groups: spec.norm_groups, norm_eps: spec.norm_eps, time_embedding: Some(4 * first_channels(spec)) }
}

/// What halves the resolution at `scope`.
fn downsample(scope: &Scope<'_>, channels: usize) -> Result<Block<Downsample2D>> {
    Block::load(scope, move |scope| Downsample2D::load(scope, channels, Padding::same(1)))
}

/// The residual block at `scope`.
fn resnet(scope: &Scope<'_>, spec: &UNetSpec, input: usize, output: usize) -> Result<Block<ResnetBlock2D>> {
    let config = resnets(spec);
    Block::load(scope, move |scope| ResnetBlock2D::load(scope, config, input, output))
}

fn transformers(spec: &UNetSpec) -> TransformerConfig {
    TransformerConfig {
        norm_groups: spec.norm_groups,
        cross_attention_dim: spec.cross_attention_dim,
        linear_projection: spec.linear_projection,
        reads_text_only: false,
    }
}

#[derive(Debug)]
struct DownBlock {
    layers: Vec<Layer>,
    downsample: Option<Block<Downsample2D>>,
}

#[derive(Debug)]
struct MidBlock {
    first: Block<ResnetBlock2D>,
    attention: Option<Transformer2D>,
    last: Option<Block<ResnetBlock2D>>,
}

/// From latents to the middle.
#[derive(Debug)]
pub(super) struct WayDown {
    spec: UNetSpec,
    time_embedding: TimestepEmbedding,
    add_embedding: Option<TimestepEmbedding>,
    conv_in: Conv2d,
    down: Vec<DownBlock>,
    mid: Option<MidBlock>,
    /// Channels of the skip connections, in the order of their making.
    pub(super) skips: Vec<usize>,
}

impl WayDown {
    /// Reads the weights that `spec` calls for, its `up` apart.
    pub(super) fn load(scope: &Scope<'_>, spec: &UNetSpec) -> Result<Self> {
        let first = spec.down.first().ok_or_else(|| Error::Model("the UNet has no levels".into()))?.channels;
        let deepest = spec.down.last().map_or(first, |level| level.channels);
        let time_width = 4 * first;
        let mut skips = vec![first];
        let mut channels = first;
        let mut down = Vec::new();
        for (i, level) in spec.down.iter().enumerate() {
            let scope = scope.at("down_blocks").at(i);
            let mut layers = Vec::new();
            for j in 0..level.depths.len() {
                layers.push(Layer::load(&scope, spec, level, j, channels)?);
                channels = level.channels;
                skips.push(channels);
            }
            let downsample = level.resample.then(|| downsample(&scope.at("downsamplers.0"), channels)).transpose()?;
            if downsample.is_some() {
                skips.push(channels);
            }
            down.push(DownBlock { layers, downsample });
        }
        let mid = match &spec.mid {
            None => None,
            Some(mid) => {
                let scope = scope.at("mid_block");
                let resnet = |i: usize| resnet(&scope.at("resnets").at(i), spec, deepest, deepest);
                let attention = |depth| Transformer2D::load(&scope.at("attentions.0"), transformers(spec), deepest, mid.heads, depth);
                Some(MidBlock {
                    first: resnet(0)?,
                    attention: (mid.depth > 0).then(|| attention(mid.depth)).transpose()?,
                    last: (mid.resnets > 1).then(|| resnet(1)).transpose()?,
                })
            }
        };
        let add_embedding =
            spec.text_time.as_ref().map(|t| TimestepEmbedding::load(&scope.at("add_embedding"), t.projection_input_dim, time_width));
        let time = scope.at("time_embedding");
        let time_embedding = TimestepEmbedding::load(&time, first, time_width)?;
        Ok(Self {
            time_embedding: match spec.guidance_embed_dim {
                0 => time_embedding,
                width => time_embedding.with_condition(&time, width, first)?,
            },
            add_embedding: add_embedding.transpose()?,
            conv_in: scope.at("conv_in").conv3x3(spec.in_channels, first, 1, Padding::same(1))?,
            down,
            mid,
            skips,
            spec: spec.clone(),
        })
    }

    /// The inputs of a call that are the same for every network of this kind, by name. What is made of numbers on the host is made here:
    /// the rest is the same work for every call.
    pub(super) fn inputs(&self, call: &ModelCall, concat: Option<&Tensor>) -> Result<NamedTensors> {
        let channels = call.latents.dim(1)? + concat.map_or(Ok(0), |more| more.dim(1))?;
        if channels != self.spec.in_channels {
            return Err(Error::Image(format!("this UNet takes {} channels, and was given {channels}", self.spec.in_channels)));
        }
        let mut inputs = NamedTensors::default();
        inputs.push("latents", call.latents.clone());
        if let Some(concat) = concat {
            inputs.push("concat", concat.clone());
        }
        inputs.push("context", call.context.clone());
        inputs.push("sinusoids", self.sinusoids(call.timestep, &call.latents)?);
        if let Some(added) = self.added(call)? {
            inputs.push("added", added);
        }
        if self.spec.guidance_embed_dim > 0 {
            if call.guidance.len() != call.latents.dim(0)? {
                return Err(Error::Image("this UNet wants the guidance scale of every row, and got none".into()));
            }
            // Sines first, and frequencies to the last one, whatever the timestep's are.
            let scaled: Vec<f64> = call.guidance.iter().map(|scale| scale * 1000.0).collect();
            let embedded = sinusoidal_embedding(&scaled, self.spec.guidance_embed_dim, false, 1.0, call.latents.device())?;
            inputs.push("guidance", embedded.to_dtype(call.latents.dtype())?);
        }
        Ok(inputs)
    }

    /// What the network is.
    pub(super) fn spec(&self) -> &UNetSpec {
        &self.spec
    }

    /// The activated time embedding, `(rows, width)`.
    pub(super) fn time(&self, inputs: &NamedTensors) -> Result<Tensor> {
        activated(&self.embedded_time(inputs)?)
    }

    /// The same with `more` in it, `(1, width)`.
    pub(super) fn time_with(&self, inputs: &NamedTensors, more: &Tensor) -> Result<Tensor> {
        activated(&self.embedded_time(inputs)?.broadcast_add(more)?)
    }

    fn embedded_time(&self, inputs: &NamedTensors) -> Result<Tensor> {
        let mut time = self.time_embedding.forward_with(inputs.get("sinusoids")?, inputs.find("guidance"))?;
        if let (Some(embedding), Some(added)) = (&self.add_embedding, inputs.find("added")) {
            time = (time + embedding.forward(added)?)?;
        }
        Ok(time)
    }

    /// The first convolution, `(rows, height, width, channels)`.
    pub(super) fn enter(&self, inputs: &NamedTensors) -> Result<Tensor> {
        let latents = match inputs.find("concat") {
            Some(concat) => Tensor::cat(&[inputs.get("latents")?, concat], 1)?,
            None => inputs.get("latents")?.clone(),
        };
        Ok(self.conv_in.forward(&latents.permute((0, 2, 3, 1))?.contiguous()?)?)
    }

    /// Every skip connection on the way down from `x`, which is the first; the last is what the middle reads. At most the first `most`.
    pub(super) fn down(&self, x: Tensor, layer: LayerInputs<'_>, most: usize) -> Result<Vec<Tensor>> {
        let mut skips = vec![x.clone()];
        let mut x = x;
        for block in &self.down {
            for layers in &block.layers {
                if skips.len() >= most {
                    return Ok(skips);
                }
                x = layers.forward(&x, layer)?;
                skips.push(x.clone());
            }
            if let Some(downsample) = block.downsample.as_ref().filter(|_| skips.len() < most) {
                x = downsample.with(|downsample| downsample.forward(&x))?;
                skips.push(x.clone());
            }
        }
        Ok(skips)
    }

    /// Through the middle.
    pub(super) fn middle(&self, x: &Tensor, layer: LayerInputs<'_>) -> Result<Tensor> {
        let Some(mid) = &self.mid else { return Ok(x.clone()) };
        let mut x = mid.first.with(|first| first.forward(x, Some(layer.time)))?;
        if let Some(attention) = &mid.attention {
            x = attention.forward(&x, layer)?;
        }
        match &mid.last {
            Some(last) => last.with(|last| last.forward(&x, Some(layer.time))),
            None => Ok(x),
        }
    }

    /// The timestep for every row, `(batch, first level's channels)`.
    fn sinusoids(&self, timestep: f64, latents: &Tensor) -> Result<Tensor> {
        self.embed(&vec![timestep; latents.dim(0)?], first_channels(&self.spec), latents)
    }

    /// Pooled text and time ids, `(rows, projection_input_dim)`, where the UNet wants them.
    fn added(&self, call: &ModelCall) -> Result<Option<Tensor>> {
        let Some(spec) = &self.spec.text_time else { return Ok(None) };
        let Some(pooled) = call.pooled.as_ref().filter(|_| !call.time_ids.is_empty()) else {
            return Err(Error::Image("this UNet wants pooled text and time ids, and got none".into()));
        };
        let rows = call.latents.dim(0)?;
        let ids: Vec<f64> = call.time_ids.iter().flatten().copied().collect();
        let ids = self.embed(&ids, spec.time_embed_dim, &call.latents)?.reshape((rows, ids.len() / rows * spec.time_embed_dim))?;
        Ok(Some(Tensor::cat(&[&pooled.to_dtype(call.latents.dtype())?, &ids], 1)?))
    }

    fn embed(&self, values: &[f64], width: usize, like: &Tensor) -> Result<Tensor> {
        let embedded = sinusoidal_embedding(values, width, self.spec.flip_sin_to_cos, self.spec.freq_shift, like.device())?;
        Ok(embedded.to_dtype(like.dtype())?)
    }
}
