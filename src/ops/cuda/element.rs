//! Functions of each element, and copies.

use super::gpu::Gpu;
use super::plan::{self, CudaActivation};
use candle_core::{D, Result, Tensor, bail};

fn activation(x: &Tensor, function: CudaActivation) -> Result<Tensor> {
    let gpu = Gpu::of(x)?;
    let x = x.contiguous()?;
    let y = gpu.make(x.shape(), x.dtype())?;
    gpu.launch(plan::activation(x.dtype(), function, gpu.address(&x)?, gpu.address(&y)?, x.elem_count())?)?;
    Ok(y)
}

/// `x · sigmoid(x)`
pub(in super::super) fn silu(x: &Tensor) -> Result<Tensor> {
    activation(x, CudaActivation::Silu)
}

/// `x · Φ(x)`
pub(in super::super) fn gelu(x: &Tensor) -> Result<Tensor> {
    activation(x, CudaActivation::Gelu)
}

/// `x · sigmoid(1.702 x)`
pub(in super::super) fn quick_gelu(x: &Tensor) -> Result<Tensor> {
    activation(x, CudaActivation::QuickGelu)
}

/// `a · gelu(b)` of the halves `a` and `b` of the channels.
pub(in super::super) fn geglu(x: &Tensor) -> Result<Tensor> {
    let mut shape = x.dims().to_vec();
    let channels = x.dim(D::Minus1)?;
    if !channels.is_multiple_of(2) {
        bail!("geglu: an odd number of channels in {:?}", x.shape());
    }
    if let Some(last) = shape.last_mut() {
        *last /= 2;
    }
    let gpu = Gpu::of(x)?;
    let x = x.contiguous()?;
    let y = gpu.make(shape, x.dtype())?;
    let rows = x.elem_count() / channels.max(1);
    gpu.launch(plan::geglu(x.dtype(), gpu.address(&x)?, gpu.address(&y)?, rows, channels / 2)?)?;
    Ok(y)
}

/// Every pixel becomes two by two.
pub(in super::super) fn upsample_nearest_2x(x: &Tensor) -> Result<Tensor> {
    let (batch, height, width, channels) = x.dims4()?;
    let gpu = Gpu::of(x)?;
    let x = x.contiguous()?;
    let y = gpu.make((batch, 2 * height, 2 * width, channels), x.dtype())?;
    gpu.launch(plan::upsample(x.dtype(), gpu.address(&x)?, gpu.address(&y)?, [batch, height, width, channels])?)?;
    Ok(y)
}

/// `x` with `rows`, `(batch, columns)`, added to every row of its batch.
pub(super) fn add_rows(gpu: &Gpu, x: &Tensor, rows: &Tensor) -> Result<Tensor> {
    let (batch, columns) = rows.dims2()?;
    let y = gpu.make(x.shape(), x.dtype())?;
    let of_a_batch = x.elem_count() / (batch * columns).max(1);
    let rows = rows.contiguous()?;
    let addresses = (gpu.address(x)?, gpu.address(&rows)?, gpu.address(&y)?);
    gpu.launch(plan::add_rows(x.dtype(), addresses.0, addresses.1, addresses.2, [batch, of_a_batch, columns])?)?;
    Ok(y)
}
