//! Convolutions over channels-last images: the project's own kernel, or cuDNN where it was asked for.

use super::super::{Epilogue, Padding};
use super::cudnn::ConvolutionKey;
use super::element::add_rows;
use super::gpu::{Gpu, lock};
use super::plan::{Extras, Product};
use candle_core::{DType, Result, Tensor, bail};
use std::sync::Arc;

/// A convolution; clones share the weights.
#[derive(Debug, Clone)]
pub(in super::super) struct CudaConv2d {
    gpu: Arc<Gpu>,
    /// `(out, height, width, in)`, the last filled up with zeros to whole chunks.
    weight: Tensor,
    /// In f32 for the kernel, and in the weights' dtype for cuDNN.
    bias: Option<(Tensor, Tensor)>,
    inputs: usize,
    stride: usize,
    padding: Padding,
}

impl CudaConv2d {
    pub(in super::super) fn new(weight: &Tensor, bias: Option<&Tensor>, stride: usize, padding: Padding) -> Result<Self> {
        let &[outputs, inputs, height, width] = weight.dims() else {
            bail!("conv2d: weights are (out, in, height, width), got {:?}", weight.shape());
        };
        if stride == 0 || height * width == 0 {
            bail!("conv2d: a kernel of {height}×{width} with stride {stride}");
        }
        let bias = match bias {
            Some(bias) if bias.dims() != [outputs] => bail!("conv2d: a bias of shape {:?} for {outputs} channels", bias.shape()),
            Some(bias) => Some((bias.to_dtype(DType::F32)?.contiguous()?, bias.to_dtype(weight.dtype())?.contiguous()?)),
            None => None,
        };
        let gpu = Gpu::of(weight)?;
        let packed = filled_up(&weight.permute((0, 2, 3, 1))?.contiguous()?)?;
        Ok(Self { weight: gpu.aligned(&packed)?, gpu, bias, inputs, stride, padding })
    }

    pub(in super::super) fn forward(&self, x: &Tensor, extra: Epilogue<'_>) -> Result<Tensor> {
        let gpu = &*self.gpu;
        let &[batch, height, width, channels] = x.dims() else {
            bail!("conv2d: images are (batch, height, width, channels), got {:?}", x.shape());
        };
        let (outputs, kernel_height, kernel_width, filled) = self.weight.dims4()?;
        if channels != self.inputs {
            bail!("conv2d: {:?} does not have {} channels", x.shape(), self.inputs);
        }
        if x.dtype() != self.weight.dtype() {
            bail!("conv2d: an image in {:?} for weights in {:?}", x.dtype(), self.weight.dtype());
        }
        let kernel = (kernel_height, kernel_width);
        let shape = [batch, height, width, filled];
        let Some(product) = Product::convolution(x.dtype(), shape, outputs, kernel, self.stride, self.padding)? else {
            bail!("conv2d: a kernel of {kernel:?} is larger than {:?} with padding {:?}", x.shape(), self.padding);
        };
        let (out_height, out_width) = product.output_size();
        let out = [batch, out_height, out_width, outputs];
        let fits = |name: &str, tensor: Option<&Tensor>, wanted: &[usize]| match tensor {
            Some(tensor) if tensor.dims() != wanted => {
                bail!("conv2d: a {name} of shape {:?} does not fit an output of shape {out:?}", tensor.shape())
            }
            Some(tensor) => gpu.aligned(&tensor.to_dtype(x.dtype())?).map(Some),
            None => Ok(None),
        };
        let row_bias = fits("row bias", extra.row_bias, &[batch, outputs])?;
        let residual = fits("residual", extra.residual, &out)?;
        let x = gpu.aligned(&filled_up(&x.contiguous()?)?)?;
        let y = gpu.make(&out, x.dtype())?;
        if y.elem_count() == 0 {
            return Ok(y);
        }
        let address = |tensor: Option<&Tensor>| tensor.map_or(Ok(0), |tensor| gpu.address(tensor));
        let (from, weight, to) = (gpu.address(&x)?, gpu.address(&self.weight)?, gpu.address(&y)?);

        if let Some(cudnn) = &gpu.cudnn {
            let key = ConvolutionKey { dtype: x.dtype(), shape, out, kernel, stride: self.stride, padding: self.padding };
            let bias = address(self.bias.as_ref().map(|(_, bias)| bias))?;
            let done = lock(cudnn).convolve(gpu, key, from, weight, bias, address(residual.as_ref())?, to)?;
            if done {
                return match &row_bias {
                    Some(rows) => add_rows(gpu, &y, rows),
                    None => Ok(y),
                };
            }
        }
        let scratch = gpu.make(product.scratch(gpu.limits).max(1), DType::F32)?;
        let extras = Extras {
            bias: address(self.bias.as_ref().map(|(bias, _)| bias))?,
            row_bias: address(row_bias.as_ref())?,
            residual: address(residual.as_ref())?,
            ..Extras::default()
        };
        for launch in product.launches(gpu.limits, from, weight, to, gpu.address(&scratch)?, extras)? {
            gpu.launch(launch)?;
        }
        Ok(y)
    }
}

/// Zeros behind the last dimension, up to whole chunks.
fn filled_up(x: &Tensor) -> Result<Tensor> {
    let last = x.rank() - 1;
    let channels = x.dim(last)?;
    let filled = channels.next_multiple_of(Product::channel_multiple(x.dtype()));
    if filled == channels { Ok(x.clone()) } else { x.pad_with_zeros(last, 0, filled - channels)?.contiguous() }
}
