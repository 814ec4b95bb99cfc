//! Numbers as vectors: sinusoids, and the two-layer network behind them.

use super::Scope;
use crate::Result;
use crate::ops::{Linear, silu};
use candle_core::{Device, Tensor};

/// Sines and cosines of `values` at geometrically falling frequencies, in f32.
///
/// Computed on the host: there are a handful of values, and every device then sees the same bits.
///
/// # Shapes
/// `n` values to `(n, width)`; an odd width ends in a zero.
///
/// # Source
/// "Attention Is All You Need", section 3.5; `get_timestep_embedding` in diffusers@v0.36:src/diffusers/models/embeddings.py.
pub fn sinusoidal_embedding(values: &[f64], width: usize, cosines_first: bool, freq_shift: f64, device: &Device) -> Result<Tensor> {
    let half = width / 2;
    let mut rows = Vec::with_capacity(values.len() * width);
    for value in values {
        let angle = |i: usize| {
            // The reference keeps exponent, frequency and product in f32; so do we, to land on the same angles.
            let exponent = -(10000f32.ln()) * i as f32 / (half as f32 - freq_shift as f32);
            f64::from(*value as f32 * exponent.exp())
        };
        let (sines, cosines) = ((0..half).map(|i| angle(i).sin() as f32), (0..half).map(|i| angle(i).cos() as f32));
        if cosines_first {
            rows.extend(cosines.chain(sines));
        } else {
            rows.extend(sines.chain(cosines));
        }
        rows.extend(std::iter::repeat_n(0f32, width % 2));
    }
    Ok(Tensor::from_vec(rows, (values.len(), width), device)?)
}

/// Two linear layers with SiLU between them: diffusers' `TimestepEmbedding`.
#[derive(Debug)]
pub(super) struct TimestepEmbedding {
    /// Of a second embedding, which is added to the first before the layers.
    cond_proj: Option<Linear>,
    linear_1: Linear,
    linear_2: Linear,
}

impl TimestepEmbedding {
    pub(super) fn load(scope: &Scope<'_>, input: usize, output: usize) -> Result<Self> {
        let (linear_1, linear_2) = (scope.at("linear_1").linear(input, output)?, scope.at("linear_2").linear(output, output)?);
        Ok(Self { cond_proj: None, linear_1, linear_2 })
    }

    /// With a second embedding of width `condition`.
    pub(super) fn with_condition(self, scope: &Scope<'_>, condition: usize, input: usize) -> Result<Self> {
        Ok(Self { cond_proj: Some(scope.at("cond_proj").linear_without_bias(condition, input)?), ..self })
    }

    /// `(batch, input)` and `(batch, condition)` to `(batch, output)`.
    pub(super) fn forward_with(&self, x: &Tensor, condition: Option<&Tensor>) -> Result<Tensor> {
        match (&self.cond_proj, condition) {
            (Some(cond_proj), Some(condition)) => self.forward(&(x + cond_proj.forward(condition)?)?),
            _ => self.forward(x),
        }
    }

    /// `(batch, input)` to `(batch, output)`.
    pub(super) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        Ok(self.linear_2.forward(&silu(&self.linear_1.forward(x)?)?)?)
    }
}
