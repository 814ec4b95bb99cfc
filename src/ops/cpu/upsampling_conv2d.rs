//! An image enlarged to twice its size by repeating pixels and then convolved with 3×3 taps: four convolutions of the small image
//! with 2×2 taps.
//!
//! Where neighbours in the enlarged image are one pixel of the small one, their taps are added once, at load. Which those are depends
//! on whether the line and the column that are computed are even or odd. Of nine products a pixel four are left.
#![expect(unsafe_code, reason = "the output is written by four products")]

use super::super::Weight;
use super::element::{Elements, build, with_element};
use super::isa::Isa;
use super::numbers::Numbers;
use super::output::{PixelPhase, ProductOutput};
use super::packed::Packed;
use super::rows::Geometry;
use candle_core::{Result, Tensor};
use rayon::prelude::*;
use std::sync::Arc;

/// The taps along one axis that meet each of two neighbouring pixels, where even and where odd lines or columns are computed.
const TAPS: [[&[usize]; 2]; 2] = [[&[0], &[1, 2]], [&[0, 1], &[2]]];

/// Even and odd lines, even and odd columns.
const PHASES: [PixelPhase; 4] = [
    PixelPhase { line: 0, column: 0 },
    PixelPhase { line: 0, column: 1 },
    PixelPhase { line: 1, column: 0 },
    PixelPhase { line: 1, column: 1 },
];

/// See [`crate::ops::UpsamplingConv2d`]; clones share the weights.
#[derive(Debug, Clone)]
pub(in super::super) struct CpuUpsamplingConv2d {
    phases: Arc<[Packed; 4]>,
}

impl CpuUpsamplingConv2d {
    pub(in super::super) fn new(weight: Weight<'_>, bias: Option<&Tensor>) -> Result<Self> {
        Self::with(Isa::current()?, weight, bias)
    }

    pub(super) fn with<'a>(isa: Isa, weight: impl Into<Weight<'a>>, bias: Option<&Tensor>) -> Result<Self> {
        let weight = weight.into();
        let &[outputs, inputs, 3, 3] = weight.dims() else {
            candle_core::bail!("upsampling conv2d: weights are (out, in, 3, 3), got {:?}", weight.dims());
        };
        let dtype = weight.dtype();
        let packed = |phase: PixelPhase| -> Result<Packed> {
            let sums = weight.with_numbers(|numbers| sums(numbers, outputs, inputs, phase))?;
            Packed::new(isa, &Weight::computed(&sums, &[outputs, inputs, 2, 2], dtype), bias, 4)
        };
        let [a, b, c, d] = PHASES;
        Ok(Self { phases: Arc::new([packed(a)?, packed(b)?, packed(c)?, packed(d)?]) })
    }

    pub(in super::super) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let [first, ..] = &*self.phases;
        let &[batch, height, width, channels] = x.dims() else {
            candle_core::bail!("upsampling conv2d: images are (batch, height, width, channels), got {:?}", x.shape());
        };
        if channels != first.inputs {
            candle_core::bail!("upsampling conv2d: {:?} does not have {} channels", x.shape(), first.inputs);
        }
        let shape = [batch, 2 * height, 2 * width, first.outputs];
        let x = x.contiguous()?;
        with_element!("upsampling conv2d", x.dtype(), T => {
            let x = Elements::<T>::of(&x)?;
            let fill = |to: &mut [_]| {
                for (packed, phase) in self.phases.iter().zip(PHASES) {
                    let geometry = Geometry::Windows {
                        batch,
                        input: (height, width),
                        output: (height, width),
                        kernel: (2, 2),
                        stride: 1,
                        // Even lines and columns begin with the pixel before.
                        padding: (1 - phase.line, 1 - phase.column),
                    };
                    packed.multiply(&x, geometry, &ProductOutput::of_phase(to, packed.outputs, width, phase));
                }
            };
            // SAFETY: the four products write all lines and columns, each its own.
            unsafe { build(&shape, fill) }
        })
    }
}

/// The sums of taps that a phase needs, `(outputs, inputs, 2, 2)`, of weights `(outputs, inputs, 3, 3)`.
fn sums(weights: &Numbers<'_>, outputs: usize, inputs: usize, phase: PixelPhase) -> Vec<f32> {
    let mut sums = vec![0.0; outputs * inputs * 4];
    sums.par_chunks_mut((inputs * 4).max(1)).enumerate().for_each_init(
        || vec![0.0; inputs * 9],
        |taps, (output, sums)| {
            weights.widen(output * inputs * 9, taps);
            for (sums, taps) in sums.as_chunks_mut::<4>().0.iter_mut().zip(taps.as_chunks::<9>().0) {
                for (i, sum) in sums.iter_mut().enumerate() {
                    let (lines, columns) = (TAPS[phase.line][i / 2], TAPS[phase.column][i % 2]);
                    *sum = lines.iter().flat_map(|line| columns.iter().map(move |column| taps[3 * line + column])).sum();
                }
            }
        },
    );
    sums
}
