//! Convolutions as products: every kernel tap is a product of shifted pixels, and all taps are one sum.

use super::super::{Epilogue, Padding, Weight};
use super::element::with_element;
use super::isa::Isa;
use super::linear::multiply;
use super::packed::Packed;
use super::rows::Geometry;
use candle_core::{Result, Tensor};
use std::sync::Arc;

/// A convolution; clones share the weights.
#[derive(Debug, Clone)]
pub(in super::super) struct CpuConv2d {
    packed: Arc<Packed>,
    kernel: (usize, usize),
    stride: usize,
    padding: Padding,
}

impl CpuConv2d {
    pub(in super::super) fn new(weight: Weight<'_>, bias: Option<&Tensor>, stride: usize, padding: Padding) -> Result<Self> {
        Self::with(Isa::current()?, weight, bias, stride, padding)
    }

    pub(super) fn with<'a>(
        isa: Isa,
        weight: impl Into<Weight<'a>>,
        bias: Option<&Tensor>,
        stride: usize,
        padding: Padding,
    ) -> Result<Self> {
        let weight = weight.into();
        let &[_, _, height, width] = weight.dims() else {
            candle_core::bail!("conv2d: weights are (out, in, height, width), got {:?}", weight.dims());
        };
        if stride == 0 || height * width == 0 {
            candle_core::bail!("conv2d: a kernel of {height}×{width} with stride {stride}");
        }
        let packed = Arc::new(Packed::new(isa, &weight, bias, height * width)?);
        Ok(Self { packed, kernel: (height, width), stride, padding })
    }

    pub(in super::super) fn forward(&self, x: &Tensor, extra: Epilogue<'_>) -> Result<Tensor> {
        let &[batch, height, width, channels] = x.dims() else {
            candle_core::bail!("conv2d: images are (batch, height, width, channels), got {:?}", x.shape());
        };
        if channels != self.packed.inputs {
            candle_core::bail!("conv2d: {:?} does not have {} channels", x.shape(), self.packed.inputs);
        }
        let Padding { height: vertical, width: horizontal } = self.padding;
        let size = |input: usize, (before, after): (usize, usize), kernel: usize| {
            (input + before + after).checked_sub(kernel).map(|most| most / self.stride + 1)
        };
        let (Some(out_height), Some(out_width)) = (size(height, vertical, self.kernel.0), size(width, horizontal, self.kernel.1)) else {
            candle_core::bail!("conv2d: a kernel of {:?} is larger than {:?} with padding {:?}", self.kernel, x.shape(), self.padding);
        };
        let geometry = if self.kernel == (1, 1) && self.stride == 1 && self.padding == Padding::default() {
            Geometry::Flat { rows: batch * height * width }
        } else {
            Geometry::Windows {
                batch,
                input: (height, width),
                output: (out_height, out_width),
                kernel: self.kernel,
                stride: self.stride,
                padding: (vertical.0, horizontal.0),
            }
        };
        let shape = [batch, out_height, out_width, self.packed.outputs];
        with_element!("conv2d", x.dtype(), T => multiply::<T>("conv2d", &self.packed, x, &shape, geometry, extra))
    }
}
