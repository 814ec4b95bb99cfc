//! Stable Diffusion 3's denoiser: diffusers' `SD3Transformer2DModel`.

use super::block_stream::Block;
use super::call::{Backbone, ModelCall, ModelOutput, Patch};
use super::embeddings::{TimestepEmbedding, sinusoidal_embedding};
use super::joint_block::JointBlock;
use super::{LayerStore, Scope};
use crate::ops::{GraphCache, LayerNorm, Linear, NamedTensors, on_workers, silu};
use crate::spec::MmditSpec;
use crate::{Error, Result};
use candle_core::{D, Tensor};
use std::ops::Range;
use std::sync::Arc;

/// Width of the sinusoids of the time.
const TIME_WIDTH: usize = 256;

/// Predicts the velocity of a flow in latents, of the tokens of image and text together.
///
/// # Source
/// Esser et al. 2024, arXiv:2403.03206, section 4 and figure 2; huggingface/diffusers@v0.36:src/diffusers/models/transformers/
/// transformer_sd3.py.
#[derive(Debug)]
pub struct Mmdit {
    spec: MmditSpec,
    patches: Linear,
    /// `(side, side, width)`
    positions: Tensor,
    time: TimestepEmbedding,
    pooled: TimestepEmbedding,
    context: Linear,
    blocks: Vec<Block<JointBlock>>,
    norm: LayerNorm,
    norm_out: Linear,
    proj_out: Linear,
    /// The last to be dropped.
    graph_cache: GraphCache,
}

impl Mmdit {
    /// Reads the weights that `spec` calls for.
    ///
    /// # Errors
    /// A tensor is missing or has another shape.
    pub fn load(scope: &Scope<'_>, spec: &MmditSpec) -> Result<Self> {
        let graph_cache = scope.graph_cache()?;
        let scope = &scope.on(graph_cache.device());
        let (width, side) = (spec.width(), spec.positions);
        let table = scope.at("pos_embed").tensor("pos_embed", &[1, side * side, width])?;
        let time = scope.at("time_text_embed");
        let patch = spec.patch_size * spec.patch_size;
        let block = |i: usize| {
            let spec = spec.clone();
            Block::load(&scope.at("transformer_blocks").at(i), move |scope| JointBlock::load(scope, &spec, i))
        };
        Ok(Self {
            patches: scope.at("pos_embed.proj").biased_patches(spec.in_channels, spec.patch_size, width)?,
            positions: table.reshape((side, side, width))?,
            time: TimestepEmbedding::load(&time.at("timestep_embedder"), TIME_WIDTH, width)?,
            pooled: TimestepEmbedding::load(&time.at("text_embedder"), spec.pooled_width, width)?,
            context: scope.at("context_embedder").linear(spec.context_width, width)?,
            blocks: (0..spec.layers).map(block).collect::<Result<_>>()?,
            norm: scope.plain_layer_norm(width)?,
            norm_out: scope.at("norm_out.linear").linear(width, 2 * width)?,
            proj_out: scope.at("proj_out").linear(width, patch * spec.out_channels)?,
            spec: spec.clone(),
            graph_cache,
        })
    }

    /// Drops the network but for the layers that `layers` has, and keeps the place where their weights are.
    pub fn dismantle(self, layers: &LayerStore) {
        let Self { graph_cache, .. } = self;
        layers.keep_graph_cache(graph_cache);
    }

    fn inputs(&self, call: &ModelCall) -> Result<NamedTensors> {
        let (rows, channels, height, width) = call.latents.dims4()?;
        let patch = self.spec.patch_size;
        if channels != self.spec.in_channels {
            return Err(Error::Image(format!("{channels} channels for a transformer that takes {}", self.spec.in_channels)));
        }
        let most = self.spec.positions * patch;
        if !height.is_multiple_of(patch) || !width.is_multiple_of(patch) || height.max(width) > most {
            return Err(Error::Image(format!(
                "latents of {width}x{height} for a transformer that takes even sides up to {most}; try a smaller size"
            )));
        }
        let pooled = call.pooled.as_ref().ok_or_else(|| Error::Image("the transformer was called without pooled text".into()))?;
        let mut inputs = NamedTensors::default();
        inputs.push("latents", call.latents.clone());
        inputs.push("context", call.context.clone());
        inputs.push("pooled", pooled.clone());
        let time = sinusoidal_embedding(&vec![call.timestep; rows], TIME_WIDTH, true, 0.0, call.latents.device())?;
        inputs.push("time", time.to_dtype(call.latents.dtype())?);
        Ok(inputs)
    }

    /// The positions of a grid, from the middle of the table: `(1, height × width, channels)`.
    fn positions(&self, height: usize, width: usize) -> Result<Tensor> {
        let (top, left) = ((self.spec.positions - height) / 2, (self.spec.positions - width) / 2);
        let part = self.positions.narrow(0, top, height)?.narrow(1, left, width)?.contiguous()?;
        Ok(part.reshape((1, height * width, self.spec.width()))?)
    }

    fn predict(&self, inputs: &NamedTensors, changes: &[Arc<dyn Patch>]) -> Result<Tensor> {
        let (patch, latents) = (self.spec.patch_size, inputs.get("latents")?);
        let (rows, channels, height, width) = latents.dims4()?;
        let (down, across) = (height / patch, width / patch);
        let tokens = latents.reshape((rows, channels, down, patch, across, patch))?.permute((0, 2, 4, 1, 3, 5))?.contiguous()?;
        let tokens = self.patches.forward(&tokens.reshape((rows, down * across, channels * patch * patch))?)?;
        let mut x = tokens.broadcast_add(&self.positions(down, across)?)?;
        let time = (self.time.forward(inputs.get("time")?)? + self.pooled.forward(inputs.get("pooled")?)?)?;
        let time = silu(&time)?;
        let mut context = self.context.forward(inputs.get("context")?)?;
        for (i, block) in self.blocks.iter().enumerate() {
            let skipped = changes.iter().find_map(|change| change.skipped_rows(i)).unwrap_or(0..0);
            let parts = (&x, &context, &time);
            (x, context) = block.with(|block| without(&skipped, parts, |x, context, time| block.forward(x, context, time)))?;
        }
        let modulation = self.norm_out.forward(&time)?.unsqueeze(1)?;
        let inner = self.spec.width();
        let (scale, shift) = (modulation.narrow(D::Minus1, 0, inner)?, modulation.narrow(D::Minus1, inner, inner)?);
        let x = self.norm.forward(&x)?.broadcast_mul(&(scale + 1.0)?)?.broadcast_add(&shift)?;
        let x = self.proj_out.forward(&x)?.reshape((rows, down, across, patch, patch, self.spec.out_channels))?;
        Ok(x.permute((0, 5, 1, 3, 2, 4))?.contiguous()?.reshape((rows, self.spec.out_channels, height, width))?)
    }
}

/// Runs `block` on all rows but the skipped ones, which stay as they are.
fn without(
    skipped: &Range<usize>,
    (x, context, time): (&Tensor, &Tensor, &Tensor),
    block: impl Fn(&Tensor, &Tensor, &Tensor) -> Result<(Tensor, Tensor)>,
) -> Result<(Tensor, Tensor)> {
    if skipped.is_empty() {
        return block(x, context, time);
    }
    let rows = x.dim(0)?;
    let (mut images, mut texts) = (Vec::new(), Vec::new());
    for (part, is_skipped) in [(0..skipped.start, false), (skipped.clone(), true), (skipped.end..rows, false)] {
        if part.is_empty() {
            continue;
        }
        let of = |x: &Tensor| x.narrow(0, part.start, part.len())?.contiguous();
        let (image, text) = if is_skipped { (of(x)?, of(context)?) } else { block(&of(x)?, &of(context)?, &of(time)?)? };
        images.push(image);
        texts.push(text);
    }
    Ok((Tensor::cat(&images, 0)?, Tensor::cat(&texts, 0)?))
}

impl Backbone for Mmdit {
    /// # Shapes
    /// Latents have `spec.in_channels`; the prediction has `spec.out_channels`.
    fn call(&self, call: &ModelCall) -> Result<ModelOutput> {
        if !call.wrap.is_none() {
            return Err(Error::Image("an image that repeats needs a network of convolutions; leave `tiling` out for this model".into()));
        }
        on_workers(call.latents.device(), || {
            let key: Vec<String> = call.patches.iter().map(|patch| patch.key()).collect();
            let work = |inputs: &NamedTensors| Ok::<_, Error>(vec![self.predict(inputs, &call.patches)?]);
            let mut outputs = self.graph_cache.run(&key.join(" "), &self.inputs(call)?, work)?;
            let prediction = outputs.pop().ok_or_else(|| Error::Image("the transformer gave no output".into()))?;
            Ok(ModelOutput::of(prediction))
        })
    }

    fn weights_changed(&self) {
        self.graph_cache.invalidate();
    }
}
