//! Linear layers on packed weights.
#![expect(unsafe_code, reason = "the output is written by the product")]

use super::super::{Epilogue, Weight};
use super::element::{Element, Elements, build, with_element};
use super::isa::Isa;
use super::output::ProductOutput;
use super::packed::Packed;
use super::rows::Geometry;
use candle_core::{Result, Tensor};
use std::sync::Arc;

/// A linear layer; clones share the weights.
#[derive(Debug, Clone)]
pub(in super::super) struct CpuLinear {
    packed: Arc<Packed>,
}

impl CpuLinear {
    pub(in super::super) fn new(weight: Weight<'_>, bias: Option<&Tensor>) -> Result<Self> {
        Self::with(Isa::current()?, weight, bias)
    }

    pub(super) fn with<'a>(isa: Isa, weight: impl Into<Weight<'a>>, bias: Option<&Tensor>) -> Result<Self> {
        let weight = weight.into();
        if weight.dims().len() != 2 {
            candle_core::bail!("linear: weights are (out, in), got {:?}", weight.dims());
        }
        Ok(Self { packed: Arc::new(Packed::new(isa, &weight, bias, 1)?) })
    }

    pub(in super::super) fn forward(&self, x: &Tensor, extra: Epilogue<'_>) -> Result<Tensor> {
        let mut shape = x.dims().to_vec();
        match shape.last_mut() {
            Some(last) if *last == self.packed.inputs => *last = self.packed.outputs,
            _ => candle_core::bail!("linear: {:?} does not end in {} features", x.shape(), self.packed.inputs),
        }
        let rows = shape.iter().rev().skip(1).product();
        with_element!("linear", x.dtype(), T => multiply::<T>("linear", &self.packed, x, &shape, Geometry::Flat { rows }, extra))
    }
}

/// One product with its epilogue, as a tensor of `shape`, whose first dimension is the batch.
pub(super) fn multiply<T: Element>(
    op: &str,
    packed: &Packed,
    x: &Tensor,
    shape: &[usize],
    geometry: Geometry,
    extra: Epilogue<'_>,
) -> Result<Tensor> {
    // Of a single row of features the batch is 1.
    let batch = if shape.len() > 1 { shape[0] } else { 1 };
    let fits = |name: &str, tensor: Option<&Tensor>, wanted: &[usize]| match tensor {
        Some(tensor) if tensor.dims() != wanted => {
            candle_core::bail!("{op}: a {name} of shape {:?} does not fit an output of shape {shape:?}", tensor.shape())
        }
        Some(tensor) => tensor.to_dtype(T::DTYPE)?.contiguous().map(Some),
        None => Ok(None),
    };
    let row_bias = fits("row bias", extra.row_bias, &[batch, packed.outputs])?;
    let residual = fits("residual", extra.residual, shape)?;
    let x = x.contiguous()?;
    let x = Elements::<T>::of(&x)?;
    let row_bias = row_bias.as_ref().map(Elements::<T>::of).transpose()?;
    let residual = residual.as_ref().map(Elements::<T>::of).transpose()?;
    let fill = |to: &mut [_]| {
        let out = ProductOutput::new(to, packed.outputs, batch, row_bias.as_deref(), residual.as_deref());
        packed.multiply(&x, geometry, &out);
    };
    // SAFETY: a product writes its whole output.
    unsafe { build(shape, fill) }
}
