//! The denoiser: diffusers' `UNet2DConditionModel`.

use super::call::{Backbone, LayerInputs, ModelCall, ModelOutput};
use super::embeddings::{TimestepEmbedding, sinusoidal_embedding};
use super::resnet::{Downsample2D, ResnetBlock2D, ResnetConfig, Upsample2D, activated};
use super::transformer_2d::{Transformer2D, TransformerConfig};
use super::{LayerStore, Scope};
use crate::ops::{Conv2d, GraphCache, GroupNorm, NamedTensors, Padding, on_workers, wrapped};
use crate::spec::{UNetLevel, UNetSpec};
use crate::{Error, Result};
use candle_core::{D, Tensor};

/// One residual block and the transformer that may follow it.
#[derive(Debug)]
struct Layer {
    resnet: ResnetBlock2D,
    attention: Option<Transformer2D>,
}

impl Layer {
    fn forward(&self, x: &Tensor, inputs: LayerInputs<'_>) -> Result<Tensor> {
        let x = self.resnet.forward(x, Some(inputs.time))?;
        match &self.attention {
            Some(transformer) => transformer.forward(&x, inputs),
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
            time_embedding: match spec.guidance_embed_dim {
                0 => TimestepEmbedding::load(&scope.at("time_embedding"), first, time_width)?,
                width => {
                    let scope = scope.at("time_embedding");
                    TimestepEmbedding::load(&scope, first, time_width)?.with_condition(&scope, width, first)?
                }
            },
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

    /// The inputs of a call, by name. What is made of numbers on the host is made here: the rest is the same work for every call.
    fn inputs(&self, call: &ModelCall) -> Result<NamedTensors> {
        let channels = call.latents.dim(1)? + call.concat.as_ref().map_or(Ok(0), |more| more.dim(1))?;
        if channels != self.spec.in_channels {
            return Err(Error::Image(format!("this UNet takes {} channels, and was given {channels}", self.spec.in_channels)));
        }
        let mut inputs = NamedTensors::default();
        inputs.push("latents", call.latents.clone());
        if let Some(concat) = &call.concat {
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
        for (i, residual) in call.residuals.down.iter().enumerate() {
            inputs.push(format!("down residual {i}"), residual.clone());
        }
        if let Some(residual) = &call.residuals.mid {
            inputs.push("mid residual", residual.clone());
        }
        for patch in &call.patches {
            for (name, tensor) in patch.inputs() {
                inputs.push(name, tensor);
            }
        }
        Ok(inputs)
    }

    fn predict(&self, inputs: &NamedTensors, call: &ModelCall) -> Result<Tensor> {
        let mut time = self.time_embedding.forward_with(inputs.get("sinusoids")?, inputs.find("guidance"))?;
        if let (Some(embedding), Some(added)) = (&self.add_embedding, inputs.find("added")) {
            time = (time + embedding.forward(added)?)?;
        }
        let time = activated(&time)?;
        let layer = LayerInputs { time: &time, context: inputs.get("context")?, patches: &call.patches, named: inputs };
        let latents = match inputs.find("concat") {
            Some(concat) => Tensor::cat(&[inputs.get("latents")?, concat], 1)?,
            None => inputs.get("latents")?.clone(),
        };
        let mut x = self.conv_in.forward(&latents.permute((0, 2, 3, 1))?.contiguous()?)?;
        let mut skips = vec![x.clone()];
        for block in &self.down {
            for layers in &block.layers {
                x = layers.forward(&x, layer)?;
                skips.push(x.clone());
            }
            if let Some(downsample) = &block.downsample {
                x = downsample.forward(&x)?;
                skips.push(x.clone());
            }
        }
        let residuals = call.residuals.down.len();
        if residuals != 0 && residuals != skips.len() {
            return Err(Error::Image(format!(
                "{residuals} residuals for a UNet with {} skip connections: it belongs to another model",
                skips.len()
            )));
        }
        for (i, skip) in skips.iter_mut().enumerate().take(residuals) {
            *skip = (&*skip + inputs.get(&format!("down residual {i}"))?)?;
        }
        if let Some(mid) = &self.mid {
            x = mid.first.forward(&x, Some(&time))?;
            if let Some(attention) = &mid.attention {
                x = attention.forward(&x, layer)?;
            }
            if let Some(last) = &mid.last {
                x = last.forward(&x, Some(&time))?;
            }
        }
        if let Some(residual) = inputs.find("mid residual") {
            x = (x + residual)?;
        }
        for (i, block) in self.up.iter().enumerate() {
            for layers in &block.layers {
                let mut skip = skips.pop().ok_or_else(|| Error::Image("the UNet ran out of skip connections".into()))?;
                for patch in &call.patches {
                    if let Some(changed) = patch.up_block(i, &x, &skip, inputs)? {
                        (x, skip) = changed;
                    }
                }
                x = layers.forward(&Tensor::cat(&[&x, &skip], D::Minus1)?, layer)?;
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

impl Backbone for UNet2DCondition {
    /// # Shapes
    /// Latents and further channels make `spec.in_channels`; the prediction has `spec.out_channels`.
    fn call(&self, call: &ModelCall) -> Result<ModelOutput> {
        wrapped(call.wrap, || {
            on_workers(call.latents.device(), || {
                let mut key: Vec<String> = call.patches.iter().map(|patch| patch.key()).collect();
                key.extend((!call.wrap.is_none()).then(|| format!("{:?}", call.wrap)));
                let work = |inputs: &NamedTensors| Ok::<_, Error>(vec![self.predict(inputs, call)?]);
                let mut outputs = self.graph_cache.run(&key.join(" "), &self.inputs(call)?, work)?;
                let prediction = outputs.pop().ok_or_else(|| Error::Image("the UNet gave no output".into()))?;
                Ok(ModelOutput { prediction })
            })
        })
    }

    fn weights_changed(&self) {
        self.graph_cache.invalidate();
    }
}
