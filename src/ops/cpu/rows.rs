//! Where the left-hand side of a product is: pixels, reached through pointers.
#![expect(unsafe_code, reason = "the microkernel takes raw row pointers")]

use super::microkernel::MAX_ROWS;
use std::ops::{Range, RangeInclusive};

/// Which pixels an output row reads.
#[derive(Debug, Clone, Copy)]
pub(super) enum Geometry {
    /// Row `i` reads pixel `i`: a plain product.
    Flat { rows: usize },
    /// A window that slides over images.
    Windows {
        batch: usize,
        /// Height and width of the input.
        input: (usize, usize),
        /// Height and width of the output.
        output: (usize, usize),
        kernel: (usize, usize),
        stride: usize,
        /// Rows above and columns to the left that are zero.
        padding: (usize, usize),
    },
}

impl Geometry {
    /// Input pixels.
    pub(super) fn pixels(&self) -> usize {
        match *self {
            Self::Flat { rows } => rows,
            Self::Windows { batch, input, .. } => batch * input.0 * input.1,
        }
    }

    /// Output rows.
    pub(super) fn rows(&self) -> usize {
        match *self {
            Self::Flat { rows } => rows,
            Self::Windows { batch, output, .. } => batch * output.0 * output.1,
        }
    }
}

/// Lines of so many pixels have rows of a tile that end outside of the image often enough that a frame of zeros costs less than to copy
/// those rows for every panel; shorter lines have no sixteen rows at equal distances.
const FRAMED: RangeInclusive<usize> = 16..=128;

impl Geometry {
    /// The same windows over images with the zeros around them as pixels, if that is worth it: the rows of a tile are at equal distances
    /// then.
    pub(super) fn framed(self) -> Option<Self> {
        match self {
            Self::Windows { batch, output, kernel, stride: 1, padding, .. } if padding != (0, 0) && FRAMED.contains(&output.1) => {
                let input = (output.0 + kernel.0 - 1, output.1 + kernel.1 - 1);
                Some(Self::Windows { batch, input, output, kernel, stride: 1, padding: (0, 0) })
            }
            _ => None,
        }
    }
}

/// Where the pixels are.
#[derive(Clone, Copy)]
pub(super) struct Rows {
    pub(super) base: *const u8,
    pub(super) pixel_bytes: usize,
    pub(super) geometry: Geometry,
}

// SAFETY: the pixels are only read, and outlive the call that made this.
unsafe impl Sync for Rows {}
// SAFETY: as above.
unsafe impl Send for Rows {}

impl Rows {
    /// Fills `[taps][MAX_ROWS]` pointers for some output rows; those outside an image point at zeros.
    pub(super) fn point(&self, range: Range<usize>, zeros: &[u32], to: &mut [[*const u32; MAX_ROWS]]) {
        let pixel = |index: usize| self.base.wrapping_add(index * self.pixel_bytes).cast::<u32>();
        match self.geometry {
            Geometry::Flat { .. } => {
                for (row, to) in range.zip(&mut to[0]) {
                    *to = pixel(row);
                }
            }
            Geometry::Windows { input, output, kernel, stride, padding, .. } => {
                for (i, row) in range.enumerate() {
                    let (line, x) = (row / output.1, row % output.1);
                    let (image, y) = (line / output.0, line % output.0);
                    for ky in 0..kernel.0 {
                        let y = (y * stride + ky).wrapping_sub(padding.0);
                        for kx in 0..kernel.1 {
                            let x = (x * stride + kx).wrapping_sub(padding.1);
                            let inside = y < input.0 && x < input.1;
                            to[ky * kernel.1 + kx][i] = if inside { pixel((image * input.0 + y) * input.1 + x) } else { zeros.as_ptr() };
                        }
                    }
                }
            }
        }
    }
}
