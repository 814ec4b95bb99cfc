//! Weights in the order in which the microkernel reads them.
//!
//! They are kept in panels, `[outputs / columns][taps][steps][columns]` words; the last panel may be one vector wide.

use super::super::Weight;
use super::element::to_f32;
use super::isa::Isa;
use super::microkernel::Kernels;
use super::packing::Packing;
use super::weight_arena::WeightArena;
use candle_core::{DType, Result, Tensor};

/// Words of every column in a block of a panel: 384 KiB with 32 columns, which leaves room for rows in 1 MiB.
const BLOCK_STEPS: usize = 3072;

/// What packed weights are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PackedForm {
    /// Words of f32.
    F32,
    /// Words of two neighbouring bf16, for the instructions that multiply them.
    Bf16Pairs,
    /// Halves of words, widened to words of f32 block by block.
    Bf16,
    /// Halves of words, widened likewise.
    F16,
}

impl PackedForm {
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
pub(super) struct PackedBlock {
    pub(super) tap: usize,
    pub(super) taps: usize,
    pub(super) offset: usize,
    pub(super) steps: usize,
}

/// Weights and bias of a product, in the form that the microkernel reads.
#[derive(Debug)]
pub(super) struct Packed {
    pub(super) isa: Isa,
    pub(super) form: PackedForm,
    pub(super) panels: WeightArena,
    /// Padded with zeros to whole panels.
    pub(super) bias: Vec<f32>,
    pub(super) blocks: Vec<PackedBlock>,
    pub(super) taps: usize,
    /// Words of an input pixel.
    pub(super) steps: usize,
    pub(super) inputs: usize,
    pub(super) outputs: usize,
}

impl Packed {
    /// Packs weights `(outputs, inputs, taps)`.
    pub(super) fn new(isa: Isa, weight: &Weight<'_>, bias: Option<&Tensor>, taps: usize) -> Result<Self> {
        Self::pack(isa, weight, bias, taps, false)
    }

    /// Packs `(outputs, inputs)` for one product, after which it is dropped.
    pub(super) fn passing(isa: Isa, weight: &Weight<'_>) -> Result<Self> {
        Self::pack(isa, weight, None, 1, true)
    }

    fn pack(isa: Isa, weight: &Weight<'_>, bias: Option<&Tensor>, taps: usize, passing: bool) -> Result<Self> {
        let shape = weight.dims();
        let outputs = shape.first().copied().unwrap_or(1);
        let inputs = shape.iter().product::<usize>() / (outputs * taps).max(1);
        let form = match weight.dtype() {
            DType::F32 => PackedForm::F32,
            DType::BF16 if isa.bf16_kernels().is_some() => PackedForm::Bf16Pairs,
            DType::BF16 => PackedForm::Bf16,
            DType::F16 => PackedForm::F16,
            dtype => candle_core::bail!("weights of dtype {dtype:?} are not supported, only f32, bf16 and f16"),
        };
        let kernels = form.kernels(isa);
        let steps = if form == PackedForm::Bf16Pairs { inputs.div_ceil(2).next_multiple_of(kernels.depth) } else { inputs };
        let columns = kernels.columns();
        let packing = Packing { isa, form, outputs, inputs, taps, steps, columns, lanes: kernels.lanes, passing };
        let panels = weight.with_parts(|numbers, product| packing.pack(numbers, product))??;
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
fn blocks(taps: usize, steps: usize) -> Vec<PackedBlock> {
    let mut blocks = Vec::new();
    if steps <= BLOCK_STEPS {
        let most = (BLOCK_STEPS / steps.max(1)).clamp(1, taps.max(1));
        let most = taps.div_ceil(taps.div_ceil(most).max(1));
        for tap in (0..taps).step_by(most.max(1)) {
            blocks.push(PackedBlock { tap, taps: most.min(taps - tap), offset: 0, steps });
        }
    } else {
        // Whole tiles of a matrix unit.
        let most = steps.div_ceil(steps.div_ceil(BLOCK_STEPS)).next_multiple_of(16);
        for tap in 0..taps {
            for offset in (0..steps).step_by(most) {
                blocks.push(PackedBlock { tap, taps: 1, offset, steps: most.min(steps - offset) });
            }
        }
    }
    blocks
}
