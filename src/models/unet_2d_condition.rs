//! The denoiser: diffusers' `UNet2DConditionModel`.

use super::embeddings::{TimestepEmbedding, sinusoidal_embedding};
use super::resnet::{Downsample2D, ResnetBlock2D, ResnetConfig, Upsample2D, activated};
use super::transformer_2d::{Transformer2D, TransformerConfig};
use super::{LayerStore, Scope};
use crate::ops::{Conv2d, GraphCache, GroupNorm, Padding, on_workers};
use crate::spec::{UNetLevel, UNetSpec};
use crate::{Error, Result};
use candle_core::{D, Tensor};

/// SDXL's condition beside the text: `addition_embed_type = "text_time"`.
#[derive(Debug, Clone)]
pub struct AddedCondition {
    /// Pooled text, `(batch, pooled width)`.
    pub pooled: Tensor,
    /// Sizes, crops and scores of each row, `batch × ids`.
    pub time_ids: Vec<Vec<f64>>,
}

/// One residual block and the transformer that may follow it.
#[derive(Debug)]
struct Layer {
    resnet: ResnetBlock2D,
    attention: Option<Transformer2D>,
}

impl Layer {
    fn forward(&self, x: &Tensor, time: &Tensor, context: &Tensor) -> Result<Tensor> {
        let x = self.resnet.forward(x, Some(time))?;
        match &self.attention {
            Some(transformer) => transformer.forward(&x, context),
            None => Ok(x),
        }
    }
}

#[derive(Debug)]
struct DownBlock {
    layers: Vec<Layer>,
    downsample: Option<Downsample2D>,
}

#[derive(Debug)]
struct UpBlock {
    layers: Vec<Layer>,
    upsample: Option<Upsample2D>,
}

#[derive(Debug)]
struct MidBlock {
    first: ResnetBlock2D,
    attention: Option<Transformer2D>,
    last: Option<ResnetBlock2D>,
}

/// Predicts the noise, or the velocity, in latents.
#[derive(Debug)]
pub struct UNet2DCondition {
    spec: UNetSpec,
    time_embedding: TimestepEmbedding,
    add_embedding: Option<TimestepEmbedding>,
    conv_in: Conv2d,
    down: Vec<DownBlock>,
    mid: Option<MidBlock>,
    up: Vec<UpBlock>,
    conv_norm_out: GroupNorm,
    conv_out: Conv2d,
    /// The last to be dropped.
    graph_cache: GraphCache,
}

impl UNet2DCondition {
    /// Reads the weights that `spec` calls for.
    ///
    /// # Errors
    /// A tensor is missing or has another shape, or the spec contradicts itself.
    pub fn load(scope: &Scope<'_>, spec: &UNetSpec) -> Result<Self> {
        let graph_cache = scope.graph_cache()?;
        let scope = &scope.on(graph_cache.device());
        let first = spec.down.first().ok_or_else(|| Error::Model("the UNet has no levels".into()))?.channels;
        let deepest = spec.down.last().map_or(first, |level| level.channels);
        let time_width = 4 * first;
        let resnets = ResnetConfig { norm_groups: spec.norm_groups, norm_eps: spec.norm_eps, time_embedding: Some(time_width) };
        let transformers = TransformerConfig {
            norm_groups: spec.norm_groups,
            cross_attention_dim: spec.cross_attention_dim,
            linear_projection: spec.linear_projection,
        };
        let layer = |scope: &Scope<'_>, index: usize, attention: usize, level: &UNetLevel, input: usize| -> Result<Layer> {
            let depth = level.depths.get(index).copied().unwrap_or(0);
            let resnet = ResnetBlock2D::load(&scope.at("resnets").at(index), resnets, input, level.channels)?;
            let transformer =
                |depth| Transformer2D::load(&scope.at("attentions").at(attention), transformers, level.channels, level.heads, depth);
            Ok(Layer { resnet, attention: (depth > 0).then(|| transformer(depth)).transpose()? })
        };

        // What the up path will take from the down path, in the order of its making.
        let mut skips = vec![first];
        let mut channels = first;
        let mut down = Vec::new();
        for (i, level) in spec.down.iter().enumerate() {
            let scope = scope.at("down_blocks").at(i);
            let mut layers = Vec::new();
            for j in 0..level.depths.len() {
                layers.push(layer(&scope, j, j, level, channels)?);
                channels = level.channels;
                skips.push(channels);
            }
            let downsample =
                level.resample.then(|| Downsample2D::load(&scope.at("downsamplers.0"), channels, Padding::same(1))).transpose()?;
            if downsample.is_some() {
                skips.push(channels);
            }
            down.push(DownBlock { layers, downsample });
        }

        let mid = match &spec.mid {
            None => None,
            Some(mid) => {
                let scope = scope.at("mid_block");
                let resnet = |i: usize| ResnetBlock2D::load(&scope.at("resnets").at(i), resnets, deepest, deepest);
                let attention = |depth| Transformer2D::load(&scope.at("attentions.0"), transformers, deepest, mid.heads, depth);
                Some(MidBlock {
                    first: resnet(0)?,
                    attention: (mid.depth > 0).then(|| attention(mid.depth)).transpose()?,
                    last: (mid.resnets > 1).then(|| resnet(1)).transpose()?,
                })
            }
        };

        let mut up = Vec::new();
        for (i, level) in spec.up.iter().enumerate() {
            let scope = scope.at("up_blocks").at(i);
            let mut layers = Vec::new();
            for j in 0..level.depths.len() {
                let skip =
                    skips.pop().ok_or_else(|| Error::Model(format!("up_blocks.{i} of the UNet has more layers than the way down made")))?;
                layers.push(layer(&scope, j, j, level, channels + skip)?);
                channels = level.channels;
            }
            let upsample = level.resample.then(|| Upsample2D::load(&scope.at("upsamplers.0"), channels)).transpose()?;
            up.push(UpBlock { layers, upsample });
        }
        if !skips.is_empty() {
            return Err(Error::Model(format!("the UNet's way up uses {} layers too few of its way down", skips.len())));
        }

        let add_embedding =
            spec.text_time.as_ref().map(|t| TimestepEmbedding::load(&scope.at("add_embedding"), t.projection_input_dim, time_width));
        Ok(Self {
            time_embedding: TimestepEmbedding::load(&scope.at("time_embedding"), first, time_width)?,
            add_embedding: add_embedding.transpose()?,
            conv_in: scope.at("conv_in").conv3x3(spec.in_channels, first, 1, Padding::same(1))?,
            down,
            mid,
            up,
            conv_norm_out: scope.at("conv_norm_out").group_norm(channels, spec.norm_groups, spec.norm_eps)?,
            conv_out: scope.at("conv_out").conv3x3(channels, spec.out_channels, 1, Padding::same(1))?,
            spec: spec.clone(),
            graph_cache,
        })
    }

    /// Drops the network but for the layers that `layers` has, and keeps the place where their weights are.
    pub fn dismantle(self, layers: &LayerStore) {
        let Self { graph_cache, .. } = self;
        layers.keep_graph_cache(graph_cache);
    }

    /// One call of the network.
    ///
    /// # Shapes
    /// `latents` `(batch, in channels, height, width)` and `context` `(batch, tokens, cross_attention_dim)`, both in the
    /// compute dtype, to `(batch, out channels, height, width)`.
    pub fn forward(&self, latents: &Tensor, timestep: f64, context: &Tensor, added: Option<&AddedCondition>) -> Result<Tensor> {
        on_workers(latents.device(), || {
            // What is made of numbers on the host is made out here: the rest is the same work for every call.
            let mut inputs = vec![latents.clone(), context.clone(), self.sinusoids(timestep, latents)?];
            inputs.extend(self.condition(latents, added)?);
            self.graph_cache.run(&inputs, |inputs| self.predict(inputs))
        })
    }

    /// Latents, context, the timestep's sinusoids and the added condition, in this order.
    fn predict(&self, inputs: &[Tensor]) -> Result<Tensor> {
        let [latents, context, sinusoids, added @ ..] = inputs else { return Err(Error::Image("a UNet without its inputs".into())) };
        let mut time = self.time_embedding.forward(sinusoids)?;
        if let (Some(embedding), [added]) = (&self.add_embedding, added) {
            time = (time + embedding.forward(added)?)?;
        }
        let time = activated(&time)?;
        let mut x = self.conv_in.forward(&latents.permute((0, 2, 3, 1))?.contiguous()?)?;
        let mut skips = vec![x.clone()];
        for block in &self.down {
            for layer in &block.layers {
                x = layer.forward(&x, &time, context)?;
                skips.push(x.clone());
            }
            if let Some(downsample) = &block.downsample {
                x = downsample.forward(&x)?;
                skips.push(x.clone());
            }
        }
        if let Some(mid) = &self.mid {
            x = mid.first.forward(&x, Some(&time))?;
            if let Some(attention) = &mid.attention {
                x = attention.forward(&x, context)?;
            }
            if let Some(last) = &mid.last {
                x = last.forward(&x, Some(&time))?;
            }
        }
        for block in &self.up {
            for layer in &block.layers {
                let skip = skips.pop().ok_or_else(|| Error::Image("the UNet ran out of skip connections".into()))?;
                x = layer.forward(&Tensor::cat(&[&x, &skip], D::Minus1)?, &time, context)?;
            }
            if let Some(upsample) = &block.upsample {
                // The next skip tells the size, which is odd where an odd size was halved.
                let (_, height, width, _) = x.dims4()?;
                let size = skips.last().map_or(Ok((2 * height, 2 * width)), |skip| skip.dims4().map(|(_, h, w, _)| (h, w)))?;
                x = upsample.forward(&x, size)?;
            }
        }
        let x = self.conv_out.forward(&self.conv_norm_out.forward_silu(&x)?)?;
        Ok(x.permute((0, 3, 1, 2))?.contiguous()?)
    }

    /// The timestep for every row, `(batch, first level's channels)`.
    fn sinusoids(&self, timestep: f64, latents: &Tensor) -> Result<Tensor> {
        let width = self.spec.down.first().map_or(0, |level| level.channels);
        self.embed(&vec![timestep; latents.dim(0)?], width, latents)
    }

    /// Pooled text and time ids, `(batch, projection_input_dim)`, where the UNet wants them.
    fn condition(&self, latents: &Tensor, added: Option<&AddedCondition>) -> Result<Option<Tensor>> {
        let Some(spec) = &self.spec.text_time else { return Ok(None) };
        let added = added.ok_or_else(|| Error::Image("this UNet wants pooled text and time ids, and got none".into()))?;
        let batch = latents.dim(0)?;
        let ids: Vec<f64> = added.time_ids.iter().flatten().copied().collect();
        let ids = self.embed(&ids, spec.time_embed_dim, latents)?.reshape((batch, ids.len() / batch * spec.time_embed_dim))?;
        Ok(Some(Tensor::cat(&[&added.pooled.to_dtype(latents.dtype())?, &ids], 1)?))
    }

    fn embed(&self, values: &[f64], width: usize, like: &Tensor) -> Result<Tensor> {
        let embedded = sinusoidal_embedding(values, width, self.spec.flip_sin_to_cos, self.spec.freq_shift, like.device())?;
        Ok(embedded.to_dtype(like.dtype())?)
    }
}
