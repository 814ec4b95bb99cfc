//! What a ControlNet for several kinds of images has beside a ControlNet: which kinds it is shown, and how they are joined.

use super::Scope;
use super::embeddings::{TimestepEmbedding, sinusoidal_embedding};
use crate::Result;
use crate::ops::{Epilogue, LayerNorm, Linear, attention, quick_gelu};
use crate::spec::{ControlUnionSpec, UNetSpec};
use candle_core::{DType, Device, Tensor};

/// A layer of the transformer that joins images, in the names of OpenAI's CLIP.
#[derive(Debug)]
struct UnionLayer {
    ln_1: LayerNorm,
    query: Linear,
    key: Linear,
    value: Linear,
    out_proj: Linear,
    ln_2: LayerNorm,
    c_fc: Linear,
    c_proj: Linear,
}

impl UnionLayer {
    fn load(scope: &Scope<'_>, width: usize) -> Result<Self> {
        let (attention, mlp) = (scope.at("attn"), scope.at("mlp"));
        let projection = |name: &str| attention.at(name).linear(width, width);
        Ok(Self {
            ln_1: scope.at("ln_1").layer_norm(width, 1e-5)?,
            query: projection("q_proj")?,
            key: projection("k_proj")?,
            value: projection("v_proj")?,
            out_proj: projection("out_proj")?,
            ln_2: scope.at("ln_2").layer_norm(width, 1e-5)?,
            c_fc: mlp.at("c_fc").linear(width, 4 * width)?,
            c_proj: mlp.at("c_proj").linear(4 * width, width)?,
        })
    }

    /// `x` is `(branches × images, tokens, width)`. A token attends to the same token of its image's other branches, and not to the
    /// image's other tokens: torch's attention takes rows first, and was given images first, when the network was trained too.
    fn forward(&self, x: &Tensor, heads: usize, branches: usize) -> Result<Tensor> {
        let (rows, tokens, width) = x.dims3()?;
        let images = rows / branches.max(1);
        let grouped = |x: Tensor| -> Result<Tensor> {
            let x = x.reshape((branches, images, tokens, width))?.permute((1, 2, 0, 3))?.contiguous()?;
            Ok(x.reshape((images * tokens, branches, width))?)
        };
        let normed = self.ln_1.forward(x)?;
        let (q, k) = (grouped(self.query.forward(&normed)?)?, grouped(self.key.forward(&normed)?)?);
        let mixed = attention(&q, &k, &grouped(self.value.forward(&normed)?)?, heads, false)?;
        let mixed = mixed.reshape((images, tokens, branches, width))?.permute((2, 0, 1, 3))?.contiguous()?;
        let mixed = mixed.reshape((rows, tokens, width))?;
        let x = self.out_proj.forward_with(&mixed, Epilogue { residual: Some(x), ..Epilogue::default() })?;
        let hidden = quick_gelu(&self.c_fc.forward(&self.ln_2.forward(&x)?)?)?;
        Ok(self.c_proj.forward_with(&hidden, Epilogue { residual: Some(&x), ..Epilogue::default() })?)
    }
}

/// # Source
/// huggingface/diffusers@v0.36:src/diffusers/models/controlnets/controlnet_union.py
#[derive(Debug)]
pub(super) struct ControlUnion {
    spec: ControlUnionSpec,
    /// One row for each kind.
    tasks: Tensor,
    layers: Vec<UnionLayer>,
    projection: Linear,
    embedding: TimestepEmbedding,
}

impl ControlUnion {
    /// `width` is that of the first level.
    pub(super) fn load(scope: &Scope<'_>, spec: &ControlUnionSpec, width: usize) -> Result<Self> {
        let layers = (0..spec.layers).map(|i| UnionLayer::load(&scope.at("transformer_layes").at(i), width));
        Ok(Self {
            tasks: scope.tensor("task_embedding", &[spec.kinds, width])?,
            layers: layers.collect::<Result<_>>()?,
            projection: scope.at("spatial_ch_projs").linear(width, width)?,
            embedding: TimestepEmbedding::load(&scope.at("control_add_embedding"), spec.kinds * spec.kind_width, 4 * width)?,
            spec: spec.clone(),
        })
    }

    /// Which kinds are shown, as sinusoids, `(1, all kinds × width)`.
    pub(super) fn shown(&self, kinds: &[usize], unet: &UNetSpec, dtype: DType, device: &Device) -> Result<Tensor> {
        let marks: Vec<f64> = (0..self.spec.kinds).map(|kind| f64::from(u8::from(kinds.contains(&kind)))).collect();
        let marks = sinusoidal_embedding(&marks, self.spec.kind_width, unet.flip_sin_to_cos, unet.freq_shift, device)?;
        Ok(marks.reshape((1, self.spec.kinds * self.spec.kind_width))?.to_dtype(dtype)?)
    }

    /// What is added to the time embedding, of what [`ControlUnion::shown`] gave.
    pub(super) fn embed(&self, shown: &Tensor) -> Result<Tensor> {
        self.embedding.forward(shown)
    }

    /// The first convolution's output with the images of `kinds` in it; `weights` are there where they are several.
    pub(super) fn join(
        &self,
        sample: &Tensor,
        hints: &[&Tensor],
        kinds: &[usize],
        weights: Option<&Tensor>,
        branches: usize,
    ) -> Result<Tensor> {
        let (rows, _, _, width) = sample.dims4()?;
        let mean = |x: &Tensor| -> Result<Tensor> { Ok(x.to_dtype(DType::F32)?.mean((1, 2))?.to_dtype(x.dtype())?) };
        let weighed = |x: Tensor, i: usize| match weights {
            Some(weights) => Ok(x.broadcast_mul(&weights.narrow(0, i, 1)?)?),
            None => Ok::<_, crate::Error>(x),
        };
        let mut tokens = Vec::new();
        for (i, (hint, kind)) in hints.iter().zip(kinds).enumerate() {
            let token = weighed((mean(hint)? + self.tasks.narrow(0, *kind, 1)?)?, i)?;
            tokens.push(token.unsqueeze(1)?.broadcast_as((rows, 1, width))?.contiguous()?);
        }
        tokens.push(mean(sample)?.unsqueeze(1)?);
        let mut x = Tensor::cat(&tokens, 1)?;
        for layer in &self.layers {
            x = layer.forward(&x, self.spec.heads, branches)?;
        }
        let mut sum = sample.clone();
        for (i, hint) in hints.iter().enumerate() {
            let moved = weighed(self.projection.forward(&x.narrow(1, i, 1)?.squeeze(1)?.contiguous()?)?, i)?;
            let hint = weighed((*hint).clone(), i)?;
            sum = sum.broadcast_add(&hint)?.broadcast_add(&moved.reshape((rows, 1, 1, width))?)?;
        }
        Ok(sum)
    }
}
