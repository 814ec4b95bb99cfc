//! Weights in the order in which the microkernel reads them.
//!
//! They are kept in panels, `[outputs / columns][taps][steps][columns]` words; the last panel may be one vector wide.

use super::element::{Element, Elements, to_f32};
use super::isa::Isa;
use super::lines::{Line, elements_mut, lines};
use super::microkernel::Kernels;
use candle_core::{DType, Result, Tensor};
use half::{bf16, f16};
use rayon::prelude::*;

/// Words of every column in a block of a panel: 384 KiB with 32 columns, which leaves room for rows in 1 MiB.
const BLOCK_STEPS: usize = 3072;

/// Weights of one output that are read in a row: enough for the memory to run ahead, few enough that what a panel's
/// columns write stays near.
const BLOCK_WEIGHTS: usize = 256;

/// What packed weights are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// Words of f32.
    F32,
    /// Words of two neighbouring bf16, for the instructions that multiply them.
    Bf16Pairs,
    /// Halves of words, widened to words of f32 block by block.
    Bf16,
    /// Halves of words, widened likewise.
    F16,
}

impl Form {
    /// What multiplies it.
    pub(super) fn kernels(self, isa: Isa) -> &'static Kernels {
        match self {
            Self::Bf16Pairs => isa.bf16_kernels().unwrap_or(isa.kernels()),
            Self::F32 | Self::Bf16 | Self::F16 => isa.kernels(),
        }
    }
}

/// A part of the sum of each output: of some taps some steps.
#[derive(Debug, Clone, Copy)]
pub(super) struct Block {
    pub(super) tap: usize,
    pub(super) taps: usize,
    pub(super) offset: usize,
    pub(super) steps: usize,
}

/// Weights and bias of a product, in the form that the microkernel reads.
#[derive(Debug)]
pub(super) struct Packed {
    pub(super) isa: Isa,
    pub(super) form: Form,
    pub(super) panels: Vec<Line>,
    /// Padded with zeros to whole panels.
    pub(super) bias: Vec<f32>,
    pub(super) blocks: Vec<Block>,
    pub(super) taps: usize,
    /// Words of an input pixel.
    pub(super) steps: usize,
    pub(super) inputs: usize,
    pub(super) outputs: usize,
}

impl Packed {
    /// Packs weights `(outputs, inputs, taps)`.
    pub(super) fn new(isa: Isa, weight: &Tensor, bias: Option<&Tensor>, taps: usize) -> Result<Self> {
        let outputs = weight.dim(0)?;
        let inputs = weight.elem_count() / (outputs * taps).max(1);
        let form = match weight.dtype() {
            DType::F32 => Form::F32,
            DType::BF16 if isa.bf16_kernels().is_some() => Form::Bf16Pairs,
            DType::BF16 => Form::Bf16,
            DType::F16 => Form::F16,
            dtype => candle_core::bail!("weights of dtype {dtype:?} are not supported, only f32, bf16 and f16"),
        };
        let kernels = form.kernels(isa);
        let steps = if form == Form::Bf16Pairs { inputs.div_ceil(2).next_multiple_of(kernels.depth) } else { inputs };
        let columns = kernels.columns();
        let shape = Packing { outputs, inputs, taps, steps, columns, lanes: kernels.lanes };
        let weight = weight.contiguous()?;
        let mut panels = match form {
            Form::F32 | Form::Bf16Pairs => lines(shape.words()),
            Form::Bf16 | Form::F16 => lines(shape.words().div_ceil(2)),
        };
        match form {
            Form::F32 => shape.pack::<f32, 1>(&Elements::of(&weight)?, &mut panels),
            Form::Bf16Pairs => shape.pack::<bf16, 2>(&Elements::of(&weight)?, &mut panels),
            Form::Bf16 => shape.pack::<bf16, 1>(&Elements::of(&weight)?, &mut panels),
            Form::F16 => shape.pack::<f16, 1>(&Elements::of(&weight)?, &mut panels),
        }
        let mut padded = match bias {
            Some(bias) if bias.elem_count() == outputs => to_f32(bias)?,
            Some(bias) => candle_core::bail!("a bias of shape {:?} for {outputs} outputs", bias.shape()),
            None => vec![0.0; outputs],
        };
        padded.resize(outputs.next_multiple_of(columns), 0.0);
        Ok(Self { isa, form, panels, bias: padded, blocks: blocks(taps, steps), taps, steps, inputs, outputs })
    }
}

/// Cuts `taps × steps` into blocks of at most [`BLOCK_STEPS`], always at the same places.
fn blocks(taps: usize, steps: usize) -> Vec<Block> {
    let mut blocks = Vec::new();
    if steps <= BLOCK_STEPS {
        let most = (BLOCK_STEPS / steps.max(1)).clamp(1, taps.max(1));
        let most = taps.div_ceil(taps.div_ceil(most).max(1));
        for tap in (0..taps).step_by(most.max(1)) {
            blocks.push(Block { tap, taps: most.min(taps - tap), offset: 0, steps });
        }
    } else {
        // Whole tiles of a matrix unit.
        let most = steps.div_ceil(steps.div_ceil(BLOCK_STEPS)).next_multiple_of(16);
        for tap in 0..taps {
            for offset in (0..steps).step_by(most) {
                blocks.push(Block { tap, taps: 1, offset, steps: most.min(steps - offset) });
            }
        }
    }
    blocks
}

struct Packing {
    outputs: usize,
    inputs: usize,
    taps: usize,
    steps: usize,
    columns: usize,
    lanes: usize,
}

impl Packing {
    /// Words of all panels: the last may be one vector wide.
    fn words(&self) -> usize {
        self.outputs.next_multiple_of(self.lanes) * self.taps * self.steps
    }

    /// Writes `source`, `(outputs, inputs, taps)`, into cleared panels of words of `DEPTH` elements.
    fn pack<T: Element, const DEPTH: usize>(&self, source: &[T], panels: &mut [Line]) {
        let &Self { outputs, inputs, taps, steps, columns, lanes } = self;
        let panel = (columns * taps * steps * DEPTH).max(1);
        elements_mut::<T>(panels).par_chunks_mut(panel).enumerate().for_each(|(index, panel)| {
            let first = index * columns;
            let count = columns.min(outputs.saturating_sub(first));
            let width = count.next_multiple_of(lanes);
            // Blocks of inputs, so that the lines written stay in L1 while every column comes by.
            let most = (BLOCK_WEIGHTS / taps).max(16).next_multiple_of(DEPTH);
            for from in (0..inputs).step_by(most) {
                let block = most.min(inputs - from);
                for column in 0..count {
                    let weights = &source[((first + column) * inputs + from) * taps..][..block * taps];
                    for tap in 0..taps {
                        let words = &mut panel[((tap * steps + from / DEPTH) * width + column) * DEPTH..];
                        let mut weights = weights[tap..].iter().step_by(taps);
                        for word in words.chunks_mut(width * DEPTH).take(block.div_ceil(DEPTH)) {
                            for (to, weight) in word.iter_mut().take(DEPTH).zip(&mut weights) {
                                *to = *weight;
                            }
                        }
                    }
                }
            }
        });
    }
}
