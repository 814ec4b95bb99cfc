//! T5's encoder, version 1.1: Stable Diffusion 3's third text encoder.
//!
//! It is written over our ops and not taken from candle-transformers: that one's layers read their tensors from a `VarBuilder`, which
//! knows neither our sources (single files, scaled eight-bit weights, adapters) nor our packed products, and its CPU has no product of bf16.

use super::Scope;
use super::block_stream::Block;
use crate::ops::{Epilogue, Linear, RmsNorm, biased_attention, gelu_tanh, on_workers};
use crate::spec::T5Spec;
use crate::{Error, Result};
use candle_core::{DType, Device, Tensor};

#[derive(Debug)]
struct T5Layer {
    attention_norm: RmsNorm,
    q: Linear,
    k: Linear,
    v: Linear,
    o: Linear,
    wide_norm: RmsNorm,
    gate: Linear,
    up: Linear,
    down: Linear,
}

impl T5Layer {
    fn load(scope: &Scope<'_>, spec: &T5Spec) -> Result<Self> {
        let &T5Spec { width, wide, heads, head_size, norm_eps, .. } = spec;
        let (attention, inner) = (scope.at("layer.0.SelfAttention"), heads * head_size);
        let dense = scope.at("layer.1.DenseReluDense");
        Ok(Self {
            attention_norm: scope.at("layer.0.layer_norm").rms_norm(width, norm_eps)?,
            q: attention.at("q").linear_without_bias(width, inner)?,
            k: attention.at("k").linear_without_bias(width, inner)?,
            v: attention.at("v").linear_without_bias(width, inner)?,
            o: attention.at("o").linear_without_bias(inner, width)?,
            wide_norm: scope.at("layer.1.layer_norm").rms_norm(width, norm_eps)?,
            gate: dense.at("wi_0").linear_without_bias(width, wide)?,
            up: dense.at("wi_1").linear_without_bias(width, wide)?,
            down: dense.at("wo").linear_without_bias(wide, width)?,
        })
    }

    fn forward(&self, x: &Tensor, heads: usize, bias: &Tensor) -> Result<Tensor> {
        let normed = self.attention_norm.forward(x)?;
        let (q, k, v) = (self.q.forward(&normed)?, self.k.forward(&normed)?, self.v.forward(&normed)?);
        let mixed = biased_attention(&q, &k, &v, heads, bias)?;
        let x = self.o.forward_with(&mixed, Epilogue { residual: Some(x), ..Epilogue::default() })?;
        let normed = self.wide_norm.forward(&x)?;
        let hidden = (gelu_tanh(&self.gate.forward(&normed)?)? * self.up.forward(&normed)?)?;
        Ok(self.down.forward_with(&hidden, Epilogue { residual: Some(&x), ..Epilogue::default() })?)
    }
}

/// T5EncoderModel.
///
/// # Source
/// Raffel et al. 2020, arXiv:1910.10683; huggingface/transformers@v4.57:src/transformers/models/t5/modeling_t5.py.
#[derive(Debug)]
pub struct T5Encoder {
    spec: T5Spec,
    embedding: Tensor,
    /// Of each head for each distance, `(buckets, heads)`.
    distances: Tensor,
    layers: Vec<Block<T5Layer>>,
    final_norm: RmsNorm,
}

impl T5Encoder {
    /// Reads the weights that `spec` calls for.
    ///
    /// # Errors
    /// A tensor is missing or has another shape.
    pub fn load(scope: &Scope<'_>, spec: &T5Spec) -> Result<Self> {
        let encoder = scope.at("encoder");
        let layer = |i: usize| {
            let spec = spec.clone();
            Block::load(&encoder.at("block").at(i), move |scope| T5Layer::load(scope, &spec))
        };
        let layers = (0..spec.layers).map(layer);
        let distances = encoder.at("block.0.layer.0.SelfAttention.relative_attention_bias").table(spec.buckets, spec.heads)?;
        Ok(Self {
            embedding: scope.at("shared").table(spec.vocab_size, spec.width)?,
            distances: distances.to_dtype(DType::F32)?,
            layers: layers.collect::<Result<_>>()?,
            final_norm: encoder.at("final_layer_norm").rms_norm(spec.width, spec.norm_eps)?,
            spec: spec.clone(),
        })
    }

    /// Encodes one row of tokens; padding is attended to like all others.
    ///
    /// # Shapes
    /// To `(1, tokens, width)`.
    ///
    /// # Errors
    /// A token is beyond the vocabulary.
    pub fn forward(&self, ids: &[u32]) -> Result<Tensor> {
        if let Some(id) = ids.iter().find(|id| **id as usize >= self.spec.vocab_size) {
            let known = self.spec.vocab_size;
            return Err(Error::Model(format!("the tokenizer of T5 gives the token {id}, and the encoder knows {known}; take its own")));
        }
        let device = self.embedding.device();
        on_workers(device, || {
            let bias = self.bias(ids.len(), device)?;
            let mut x = self.embedding.index_select(&Tensor::new(ids, device)?, 0)?.unsqueeze(0)?;
            for layer in &self.layers {
                x = layer.with(|layer| layer.forward(&x, self.spec.heads, &bias))?;
            }
            Ok(self.final_norm.forward(&x)?)
        })
    }

    /// What is added to every layer's scores, `(heads, tokens, tokens)`.
    fn bias(&self, tokens: usize, device: &Device) -> Result<Tensor> {
        let place = |i: usize| (0..tokens).map(move |j| self.bucket(j as i64 - i as i64));
        let places: Vec<u32> = (0..tokens).flat_map(place).collect();
        let rows = self.distances.index_select(&Tensor::new(places, device)?, 0)?;
        Ok(rows.reshape((tokens, tokens, self.spec.heads))?.permute((2, 0, 1))?.contiguous()?)
    }

    /// The row of a distance from query to key. The logarithm is f32, as in torch, and is cut off.
    fn bucket(&self, distance: i64) -> u32 {
        let half = self.spec.buckets / 2;
        let exact = half / 2;
        let away = distance.unsigned_abs() as usize;
        let after = if distance > 0 { half } else { 0 };
        let place = if away < exact {
            away
        } else {
            let span = (self.spec.max_distance as f64 / exact.max(1) as f64).ln() as f32;
            let steps = (away as f32 / exact.max(1) as f32).ln() / span * (half - exact) as f32;
            (exact + steps as usize).min(half.saturating_sub(1))
        };
        (after + place) as u32
    }
}
