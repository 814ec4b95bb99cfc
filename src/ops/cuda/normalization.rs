//! Normalisations over groups of channels and over channels.

use super::gpu::Gpu;
use super::plan;
use candle_core::{D, DType, Result, Tensor, bail};

/// Weight and bias in f32, whatever the activations are.
#[derive(Debug, Clone)]
struct Affine {
    weight: Tensor,
    bias: Tensor,
}

impl Affine {
    fn new(op: &str, weight: &Tensor, bias: &Tensor) -> Result<Self> {
        if weight.dims1()? != bias.dims1()? {
            bail!("{op}: weight {:?} and bias {:?} do not fit", weight.shape(), bias.shape());
        }
        let f32 = |x: &Tensor| x.to_dtype(DType::F32)?.contiguous();
        Ok(Self { weight: f32(weight)?, bias: f32(bias)? })
    }

    fn check(&self, op: &str, x: &Tensor) -> Result<usize> {
        let channels = self.weight.dims1()?;
        if x.rank() < 2 || x.dim(D::Minus1)? != channels {
            bail!("{op}: {:?} does not end in {channels} channels", x.shape());
        }
        Ok(channels)
    }
}

/// Normalisation over groups of channels and all positions.
#[derive(Debug, Clone)]
pub(in super::super) struct CudaGroupNorm {
    affine: Affine,
    groups: usize,
    eps: f64,
}

impl CudaGroupNorm {
    pub(in super::super) fn new(weight: &Tensor, bias: &Tensor, groups: usize, eps: f64) -> Result<Self> {
        let channels = weight.dims1()?;
        if groups == 0 || channels % groups != 0 {
            bail!("group_norm: {channels} channels cannot be normalised in {groups} groups");
        }
        Ok(Self { affine: Affine::new("group_norm", weight, bias)?, groups, eps })
    }

    pub(in super::super) fn forward(&self, x: &Tensor, with_silu: bool) -> Result<Tensor> {
        let channels = self.affine.check("group_norm", x)?;
        let gpu = Gpu::of(x)?;
        let x = x.contiguous()?;
        let y = gpu.make(x.shape(), x.dtype())?;
        if x.elem_count() == 0 {
            return Ok(y);
        }
        let batch = x.dim(0)?;
        let norm = plan::GroupNormPlan {
            dtype: x.dtype(),
            batch,
            positions: x.elem_count() / (batch * channels),
            channels,
            groups: self.groups,
            eps: self.eps as f32,
            with_silu,
        };
        let scratch = gpu.make(norm.scratch(), DType::F32)?;
        let (weight, bias) = (gpu.address(&self.affine.weight)?, gpu.address(&self.affine.bias)?);
        for launch in norm.launches(gpu.address(&x)?, gpu.address(&scratch)?, weight, bias, gpu.address(&y)?)? {
            gpu.launch(launch)?;
        }
        Ok(y)
    }
}

/// Normalisation over the channels.
#[derive(Debug, Clone)]
pub(in super::super) struct CudaLayerNorm {
    affine: Affine,
    eps: f64,
}

impl CudaLayerNorm {
    pub(in super::super) fn new(weight: &Tensor, bias: &Tensor, eps: f64) -> Result<Self> {
        Ok(Self { affine: Affine::new("layer_norm", weight, bias)?, eps })
    }

    pub(in super::super) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let channels = self.affine.check("layer_norm", x)?;
        let gpu = Gpu::of(x)?;
        let x = x.contiguous()?;
        let y = gpu.make(x.shape(), x.dtype())?;
        let addresses = [gpu.address(&x)?, gpu.address(&self.affine.weight)?, gpu.address(&self.affine.bias)?, gpu.address(&y)?];
        gpu.launch(plan::layer_norm(x.dtype(), addresses, x.elem_count() / channels.max(1), channels, self.eps as f32)?)?;
        Ok(y)
    }
}
