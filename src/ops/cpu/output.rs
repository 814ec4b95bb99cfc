//! What happens to sums before they are stored.
#![expect(unsafe_code, reason = "threads write disjoint parts of one output")]

use super::element::Element;
#[cfg(target_arch = "x86_64")]
use super::element::Vectors;
use super::math::Math;
use super::microkernel::MAX_COLUMNS;
#[cfg(target_arch = "x86_64")]
use super::sixteens;
use std::marker::PhantomData;
use std::mem::MaybeUninit;

/// Even and odd lines, even and odd columns.
const PHASES: usize = 4;

/// Every other line and every other column of an image that is twice as wide and high as the product's rows.
#[derive(Debug, Clone, Copy)]
pub(super) struct PixelPhase {
    /// 0 for even lines, 1 for odd ones.
    pub(super) line: usize,
    /// The same of columns.
    pub(super) column: usize,
}

/// Where a product goes, and what is added on the way.
pub(super) struct ProductOutput<'a, T> {
    to: *mut MaybeUninit<T>,
    /// Elements of `to`, which is borrowed.
    len: usize,
    borrowed: PhantomData<&'a mut [MaybeUninit<T>]>,
    /// Where rows of a product are not rows of the output: the pixels of a line of the product, and which lines and columns they are.
    spread: Option<(usize, PixelPhase)>,
    /// Elements between rows of `to`, `row_bias` and `residual`.
    outputs: usize,
    row_bias: Option<&'a [T]>,
    /// Rows that share one row of `row_bias`.
    rows_per_bias: usize,
    residual: Option<&'a [T]>,
}

// SAFETY: tasks share the biases and the residual, and write elements to disjoint parts of `to`.
unsafe impl<T: Send + Sync> Sync for ProductOutput<'_, T> {}

impl<'a, T: Element> ProductOutput<'a, T> {
    /// The lengths are those of `to`, of whole rows of `outputs`.
    pub(super) fn new(
        to: &'a mut [MaybeUninit<T>],
        outputs: usize,
        batch: usize,
        row_bias: Option<&'a [T]>,
        residual: Option<&'a [T]>,
    ) -> Self {
        let rows_per_bias = (to.len() / (outputs * batch).max(1)).max(1);
        let (len, borrowed) = (to.len(), PhantomData);
        Self { to: to.as_mut_ptr(), len, borrowed, spread: None, outputs, row_bias, rows_per_bias, residual }
    }

    /// `to` is images of lines of `2 width` pixels, of which the product's rows are those of one phase.
    pub(super) fn of_phase(to: &'a mut [MaybeUninit<T>], outputs: usize, width: usize, phase: PixelPhase) -> Self {
        Self { spread: Some((width, phase)), ..Self::new(to, outputs, 1, None, None) }
    }

    /// Whether it is where a product of some rows and columns goes.
    pub(super) fn is_of(&self, rows: usize, outputs: usize) -> bool {
        let phases = if self.spread.is_some() { PHASES } else { 1 };
        let is_whole = self.spread.is_none_or(|(width, _)| width > 0 && rows.is_multiple_of(width));
        self.outputs == outputs && is_whole && self.len == rows * outputs * phases
    }

    /// Writes some rows of some columns.
    ///
    /// # Safety
    /// They must be [of](ProductOutput::is_of) the output, and no other thread may write them.
    #[inline(always)]
    #[expect(clippy::too_many_arguments, reason = "where, what and how")]
    pub(super) unsafe fn write(
        &self,
        math: Math,
        first_row: usize,
        first_column: usize,
        outputs: usize,
        sums: &[f32],
        width: usize,
        bias: &[f32],
    ) {
        // A loop of known length is a few instructions.
        const { assert!(MAX_COLUMNS == 32) };
        // SAFETY: the caller's promise.
        unsafe {
            match (outputs, width) {
                (32, 32) => self.write_rows(math, first_row, first_column, 32, sums, 32, bias),
                (16, 16) => self.write_rows(math, first_row, first_column, 16, sums, 16, bias),
                _ => self.write_rows(math, first_row, first_column, outputs, sums, width, bias),
            }
        }
    }

    /// # Safety
    /// As [`ProductOutput::write`].
    #[inline(always)]
    #[expect(clippy::too_many_arguments, reason = "as above")]
    unsafe fn write_rows(
        &self,
        math: Math,
        first_row: usize,
        first_column: usize,
        outputs: usize,
        sums: &[f32],
        width: usize,
        bias: &[f32],
    ) {
        let bias = &bias[..outputs];
        for (i, sums) in sums.chunks_exact(width).enumerate() {
            let row = first_row + i;
            let place = match self.spread {
                None => row,
                Some((width, phase)) => (2 * (row / width) + phase.line) * 2 * width + 2 * (row % width) + phase.column,
            };
            let at = place * self.outputs + first_column;
            #[cfg(target_arch = "x86_64")]
            if math.sixteens && outputs.is_multiple_of(16) {
                // SAFETY: the caller's promise, and there are the vectors.
                unsafe { self.write_sixteens(math, row, at, first_column, sums, bias) };
                continue;
            }
            let mut values = [0.0; MAX_COLUMNS];
            let values = &mut values[..outputs];
            for ((value, sum), bias) in values.iter_mut().zip(sums).zip(bias) {
                *value = sum + bias;
            }
            if let Some(row_bias) = self.row_bias {
                let from = row / self.rows_per_bias * self.outputs + first_column;
                for (value, extra) in values.iter_mut().zip(&row_bias[from..from + outputs]) {
                    *value += extra.widen();
                }
            }
            if let Some(residual) = self.residual {
                for (value, extra) in values.iter_mut().zip(&residual[at..at + outputs]) {
                    *value += extra.widen();
                }
            }
            // SAFETY: the caller's promise.
            let to = unsafe { std::slice::from_raw_parts_mut(self.to.add(at), outputs) };
            T::narrow_all(math, values, to);
        }
    }

    /// One row, whose bias is whole sixteens.
    ///
    /// # Safety
    /// As [`ProductOutput::write`], with [`Math::sixteens`].
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn write_sixteens(&self, math: Math, row: usize, at: usize, first_column: usize, sums: &[f32], bias: &[f32]) {
        let outputs = bias.len();
        let sums = &sums[..outputs];
        let row_bias = self.row_bias.map(|row_bias| &row_bias[row / self.rows_per_bias * self.outputs + first_column..][..outputs]);
        let residual = self.residual.map(|residual| &residual[at..][..outputs]);
        for column in (0..outputs).step_by(16) {
            // SAFETY: the caller's promise, and all slices are `outputs` long.
            unsafe {
                let mut values = sixteens::add(Vectors::load(sums.as_ptr().add(column)), Vectors::load(bias.as_ptr().add(column)));
                for extra in [row_bias, residual].into_iter().flatten() {
                    values = sixteens::add(values, Vectors::load(extra.as_ptr().add(column)));
                }
                Vectors::store(math, values, self.to.add(at + column).cast::<T>());
            }
        }
    }
}
