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

/// Scores in f32 that are in memory at once.
const SCORES: usize = 16 << 20;

/// How much each token is attended to: the weights of [`super::attention`], summed over the queries, as the mean of the heads. On the
/// average it is 1.
///
/// # Shapes
/// `q` and `k` `(batch, tokens, heads × size)` to `(batch, tokens)` in f32.
pub fn attention_received(q: &Tensor, k: &Tensor, heads: usize) -> Result<Tensor> {
    let (batch, tokens, width) = q.dims3()?;
    if heads == 0 || width % heads != 0 || k.dims() != q.dims() {
        candle_core::bail!("attention_received: {:?} and {:?} do not fit {heads} heads", q.shape(), k.shape());
    }
    let run = || {
        let scale = 1.0 / ((width / heads) as f64).sqrt();
        let at_once = (SCORES / (tokens * tokens).max(1)).clamp(1, heads);
        // Row by row, so that none depends on what stands beside it.
        let rows = (0..batch).map(|row| {
            let split = |x: &Tensor| -> Result<Tensor> {
                x.narrow(0, row, 1)?.to_dtype(DType::F32)?.reshape((tokens, heads, width / heads))?.transpose(0, 1)?.contiguous()
            };
            let (q, k) = ((split(q)? * scale)?, split(k)?);
            let parts = (0..heads).step_by(at_once).map(|first| {
                let of = |x: &Tensor| x.narrow(0, first, at_once.min(heads - first));
                let weights = candle_nn::ops::softmax_last_dim(&of(&q)?.matmul(&of(&k)?.t()?)?)?;
                weights.sum(1)
            });
            Tensor::cat(&parts.collect::<Result<Vec<_>>>()?, 0)?.mean_keepdim(0)
        });
        Tensor::cat(&rows.collect::<Result<Vec<_>>>()?, 0)
    };
    profile::timed(q, run, |_| {
        let shapes = format!("{}, {heads} heads", profile::dims(q));
        profile::call("attention_received", shapes, 2.0 * q.elem_count() as f64 * tokens as f64)
    })
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
