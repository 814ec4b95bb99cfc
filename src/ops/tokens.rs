//! What transformers of text and image tokens need beside the UNet's ops: composed of candle's operations on every device.

use super::profile;
use candle_core::{D, DType, Result, Tensor};

/// Normalisation by the root of the mean square over the channels.
#[derive(Debug, Clone)]
pub struct RmsNorm {
    /// f32, as it is computed.
    weight: Tensor,
    eps: f64,
}

impl RmsNorm {
    /// # Shapes
    /// `weight` `(channels)`.
    pub fn new(weight: Tensor, eps: f64) -> Result<Self> {
        Ok(Self { weight: weight.to_dtype(DType::F32)?, eps })
    }

    /// # Shapes
    /// `(…, channels)`, kept.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let run = || {
            let y = x.contiguous()?.to_dtype(DType::F32)?;
            candle_nn::ops::rms_norm(&y, &self.weight, self.eps as f32)?.to_dtype(x.dtype())
        };
        profile::timed(x, run, |_| profile::over("rms_norm", x))
    }
}

/// `0.5 x (1 + tanh(√(2/π) (x + 0.044715 x³)))`
pub fn gelu_tanh(x: &Tensor) -> Result<Tensor> {
    profile::timed(x, || x.to_dtype(DType::F32)?.gelu()?.to_dtype(x.dtype()), |_| profile::over("gelu_tanh", x))
}

/// Attention whose scores are not scaled, and have a bias.
///
/// # Shapes
/// `q`, `k` and `v` `(batch, tokens, heads × size)`, kept; `bias` `(heads, tokens, tokens)` in f32.
pub fn biased_attention(q: &Tensor, k: &Tensor, v: &Tensor, heads: usize, bias: &Tensor) -> Result<Tensor> {
    let (batch, tokens, width) = q.dims3()?;
    let run = || {
        let split = |x: &Tensor| x.to_dtype(DType::F32)?.reshape((batch, tokens, heads, width / heads))?.transpose(1, 2)?.contiguous();
        let scores = split(q)?.matmul(&split(k)?.t()?)?.broadcast_add(bias)?;
        let weights = candle_nn::ops::softmax(&scores, D::Minus1)?;
        weights.matmul(&split(v)?)?.transpose(1, 2)?.reshape((batch, tokens, width))?.to_dtype(q.dtype())
    };
    profile::timed(q, run, |_| {
        let shapes = format!("{}, {tokens} keys, {heads} heads", profile::dims(q));
        profile::call("biased_attention", shapes, 4.0 * q.elem_count() as f64 * tokens as f64)
    })
}
