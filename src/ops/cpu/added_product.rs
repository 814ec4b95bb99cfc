//! A product of two matrices that is added to weights on their way into a layer.
#![expect(unsafe_code, reason = "the product is written where weights or zeros were")]

use super::super::Weight;
use super::element::build_vec;
use super::isa::Isa;
use super::numbers::Numbers;
use super::output::ProductOutput;
use super::packed::Packed;
use super::rows::Geometry;
use candle_core::{DType, Result};
use std::mem::MaybeUninit;

/// A B, to be added to weights `(out, …)` in f32, where A is `(out, r)` and B `(r, …)`.
#[derive(Debug)]
pub(in super::super) struct AddedProduct {
    a: Vec<f32>,
    rank: usize,
    b: Packed,
}

impl AddedProduct {
    /// `b` is turned, `(…, r)`; its rows are in the order of a row of the weights, whose shape is `shape`.
    ///
    /// # Errors
    /// The shapes do not fit, or are empty.
    pub(in super::super) fn new(a: Vec<f32>, b: &[f32], shape: &[usize]) -> Result<Self> {
        let out = shape.first().copied().unwrap_or(1).max(1);
        let columns = shape.iter().product::<usize>() / out;
        let rank = a.len() / out;
        if rank == 0 || columns == 0 || a.len() != rank * out || b.len() != rank * columns {
            candle_core::bail!("a product of {} and {} numbers does not fit weights of shape {shape:?}", a.len(), b.len());
        }
        let b = Packed::passing(Isa::current()?, &Weight::computed(b, &[columns, rank], DType::F32))?;
        Ok(Self { a, rank, b })
    }

    /// Numbers of a row.
    pub(super) fn columns(&self) -> usize {
        self.b.outputs
    }

    /// Rows of the product from `first` on, as many as `to` has room for.
    pub(super) fn rows(&self, first: usize, to: &mut [f32]) {
        // SAFETY: numbers are written over numbers.
        let to = unsafe { std::slice::from_raw_parts_mut(to.as_mut_ptr().cast::<MaybeUninit<f32>>(), to.len()) };
        self.write(first, to, None);
    }

    /// Rows of the product, and what is added to them.
    fn write(&self, first: usize, to: &mut [MaybeUninit<f32>], more: Option<&[f32]>) {
        let rows = to.len() / self.columns();
        let a = &self.a[first * self.rank..][..rows * self.rank];
        self.b.multiply(a, Geometry::Flat { rows }, &ProductOutput::new(to, self.columns(), 1, None, more));
    }

    /// The sum of weights and product.
    pub(in super::super) fn plus(&self, weights: &Numbers<'_>) -> Result<Vec<f32>> {
        /// Numbers that are in the caches when their product is added: 1 MiB.
        const PART: usize = 1 << 18;
        /// Rows that fill some tiles.
        const LEAST_ROWS: usize = 112;
        let (out, columns, isa) = (self.a.len() / self.rank, self.columns(), Isa::current()?);
        let part_rows = (PART / columns).max(LEAST_ROWS).min(out);
        let mut own = vec![0f32; part_rows * columns];
        let fill = |to: &mut [MaybeUninit<f32>]| {
            for (index, to) in to.chunks_mut(part_rows * columns).enumerate() {
                let own = &mut own[..to.len()];
                weights.widen_all(isa, index * part_rows * columns, own);
                self.write(index * part_rows, to, Some(own));
            }
        };
        // SAFETY: the parts are all of the rows, and a product writes its whole output.
        Ok(unsafe { build_vec(out * columns, fill) })
    }
}
