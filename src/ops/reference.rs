//! The portable reference of every op, in candle's tensor operations: right on every device, fast on none.
//!
//! Normalisations, softmax and activations compute in f32 whatever the storage dtype, as torch's kernels do.

use super::{Epilogue, Padding};
use candle_core::{D, DType, Device, Result, Tensor};

fn epilogue(y: Tensor, extra: Epilogue<'_>) -> Result<Tensor> {
    let y = match extra.row_bias {
        Some(bias) => {
            let (batch, out) = bias.dims2()?;
            let mut shape = vec![1; y.rank()];
            shape[0] = batch;
            shape[y.rank() - 1] = out;
            y.broadcast_add(&bias.reshape(shape)?)?
        }
        None => y,
    };
    match extra.residual {
        Some(residual) => y + residual,
        None => Ok(y),
    }
}

/// The dtype in which a product can be computed: candle's CPU has no bf16 product.
fn product_dtype(x: &Tensor) -> DType {
    match (x.device(), x.dtype()) {
        (Device::Cpu, _) => DType::F32,
        (_, dtype) => dtype,
    }
}

#[derive(Debug, Clone)]
pub(super) struct ReferenceLinear {
    weight: Tensor,
    bias: Option<Tensor>,
}

impl ReferenceLinear {
    pub(super) fn new(weight: Tensor, bias: Option<Tensor>) -> Result<Self> {
        Ok(Self { weight, bias })
    }

    pub(super) fn forward(&self, x: &Tensor, extra: Epilogue<'_>) -> Result<Tensor> {
        let mut shape = x.dims().to_vec();
        let (out, features) = self.weight.dims2()?;
        let rows = x.elem_count() / features.max(1);
        let dtype = product_dtype(x);
        let y = x.contiguous()?.reshape((rows, features))?.to_dtype(dtype)?;
        let mut y = y.matmul(&self.weight.to_dtype(dtype)?.t()?)?;
        if let Some(bias) = &self.bias {
            y = y.broadcast_add(&bias.to_dtype(dtype)?)?;
        }
        if let Some(last) = shape.last_mut() {
            *last = out;
        }
        epilogue(y.to_dtype(x.dtype())?.reshape(shape)?, extra)
    }
}

#[derive(Debug, Clone)]
pub(super) struct ReferenceConv2d {
    weight: Tensor,
    bias: Option<Tensor>,
    stride: usize,
    padding: Padding,
}

impl ReferenceConv2d {
    pub(super) fn new(weight: Tensor, bias: Option<Tensor>, stride: usize, padding: Padding) -> Result<Self> {
        Ok(Self { weight, bias, stride, padding })
    }

    pub(super) fn forward(&self, x: &Tensor, extra: Epilogue<'_>) -> Result<Tensor> {
        let dtype = product_dtype(x);
        let Padding { height, width } = self.padding;
        let nchw = x.permute((0, 3, 1, 2))?.to_dtype(dtype)?;
        let nchw = nchw.pad_with_zeros(2, height.0, height.1)?.pad_with_zeros(3, width.0, width.1)?.contiguous()?;
        let y = nchw.conv2d(&self.weight.to_dtype(dtype)?, 0, self.stride, 1, 1)?.permute((0, 2, 3, 1))?.contiguous()?;
        let y = match &self.bias {
            Some(bias) => y.broadcast_add(&bias.to_dtype(dtype)?)?,
            None => y,
        };
        epilogue(y.to_dtype(x.dtype())?, extra)
    }
}

#[derive(Debug, Clone)]
pub(super) struct ReferenceGroupNorm {
    weight: Tensor,
    bias: Tensor,
    groups: usize,
    eps: f64,
}

impl ReferenceGroupNorm {
    pub(super) fn new(weight: Tensor, bias: Tensor, groups: usize, eps: f64) -> Result<Self> {
        let channels = weight.dims1()?;
        if groups == 0 || channels % groups != 0 {
            candle_core::bail!("{channels} channels cannot be normalised in {groups} groups");
        }
        Ok(Self { weight: weight.to_dtype(DType::F32)?, bias: bias.to_dtype(DType::F32)?, groups, eps })
    }

    pub(super) fn forward(&self, x: &Tensor, with_silu: bool) -> Result<Tensor> {
        let (batch, channels) = (x.dim(0)?, x.dim(D::Minus1)?);
        let positions = x.elem_count() / (batch * channels).max(1);
        let grouped = x.to_dtype(DType::F32)?.reshape((batch, positions, self.groups, channels / self.groups))?;
        let mean = grouped.mean_keepdim((1, 3))?;
        let centred = grouped.broadcast_sub(&mean)?;
        let variance = centred.sqr()?.mean_keepdim((1, 3))?;
        let normed = centred.broadcast_div(&(variance + self.eps)?.sqrt()?)?.reshape(x.shape())?;
        let y = normed.broadcast_mul(&self.weight)?.broadcast_add(&self.bias)?;
        let y = if with_silu { silu(&y)? } else { y };
        y.to_dtype(x.dtype())
    }
}

#[derive(Debug, Clone)]
pub(super) struct ReferenceLayerNorm {
    weight: Tensor,
    bias: Tensor,
    eps: f64,
}

impl ReferenceLayerNorm {
    pub(super) fn new(weight: Tensor, bias: Tensor, eps: f64) -> Result<Self> {
        Ok(Self { weight: weight.to_dtype(DType::F32)?, bias: bias.to_dtype(DType::F32)?, eps })
    }

    pub(super) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let y = x.to_dtype(DType::F32)?;
        let centred = y.broadcast_sub(&y.mean_keepdim(D::Minus1)?)?;
        let variance = centred.sqr()?.mean_keepdim(D::Minus1)?;
        let normed = centred.broadcast_div(&(variance + self.eps)?.sqrt()?)?;
        normed.broadcast_mul(&self.weight)?.broadcast_add(&self.bias)?.to_dtype(x.dtype())
    }
}

pub(super) fn attention(q: &Tensor, k: &Tensor, v: &Tensor, heads: usize, causal: bool) -> Result<Tensor> {
    let (batch, queries, width) = q.dims3()?;
    let keys = k.dim(1)?;
    let split = |x: &Tensor| {
        let (batch, tokens, width) = x.dims3()?;
        x.to_dtype(DType::F32)?.reshape((batch, tokens, heads, width / heads))?.transpose(1, 2)?.contiguous()
    };
    let scale = 1.0 / ((width / heads) as f64).sqrt();
    let scores = (split(q)? * scale)?.matmul(&split(k)?.t()?)?;
    let scores = if causal {
        let mask: Vec<f32> = (0..queries).flat_map(|i| (0..keys).map(move |j| if j > i { f32::NEG_INFINITY } else { 0.0 })).collect();
        scores.broadcast_add(&Tensor::from_vec(mask, (queries, keys), q.device())?)?
    } else {
        scores
    };
    let weights = candle_nn::ops::softmax_last_dim(&scores)?;
    weights.matmul(&split(v)?)?.transpose(1, 2)?.reshape((batch, queries, width))?.to_dtype(q.dtype())
}

pub(super) fn geglu(x: &Tensor) -> Result<Tensor> {
    let halves = x.chunk(2, D::Minus1)?;
    match halves.as_slice() {
        [a, b] => a.contiguous()? * gelu(&b.contiguous()?)?,
        _ => candle_core::bail!("GEGLU wants an even number of channels, got {:?}", x.shape()),
    }
}

/// Applies `f` in f32 and rounds back.
fn in_f32(x: &Tensor, f: impl Fn(&Tensor) -> Result<Tensor>) -> Result<Tensor> {
    f(&x.to_dtype(DType::F32)?)?.to_dtype(x.dtype())
}

pub(super) fn silu(x: &Tensor) -> Result<Tensor> {
    in_f32(x, Tensor::silu)
}

pub(super) fn gelu(x: &Tensor) -> Result<Tensor> {
    in_f32(x, Tensor::gelu_erf)
}

pub(super) fn quick_gelu(x: &Tensor) -> Result<Tensor> {
    in_f32(x, |x| x / ((x * -1.702)?.exp()? + 1.0)?)
}

pub(super) fn upsample_nearest_2x(x: &Tensor) -> Result<Tensor> {
    let (batch, height, width, channels) = x.dims4()?;
    let wide = x.reshape((batch, height, 1, width, 1, channels))?;
    wide.broadcast_as((batch, height, 2, width, 2, channels))?.reshape((batch, 2 * height, 2 * width, channels))
}
