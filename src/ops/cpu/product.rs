//! Products of activations with packed weights, blocked for the caches and shared among the threads.
//!
//! Weights are kept in panels, `[outputs / columns][taps][steps][columns]` words, so that the microkernel reads them
//! in order. A task is a chunk of rows times a group of panels: within it one block of a panel, small enough for L2,
//! meets all tiles of the chunk before the next is read. Threads share tasks, never a sum, so that their number
//! does not change a result.
#![expect(unsafe_code, reason = "the microkernel takes raw pointers, and threads write disjoint parts of one output")]

use super::element::{Element, build_vec, to_f32};
use super::isa::Isa;
use super::math::Math;
use super::microkernel::{Kernels, MAX_COLUMNS, MAX_ROWS, Tile};
use candle_core::{DType, Result, Tensor};
use half::{bf16, f16};
use rayon::prelude::*;
use std::cell::RefCell;
use std::mem::MaybeUninit;

/// Tiles of rows that share a panel block; with 14 rows of a few thousand floats they stay in L2 or near it.
const CHUNK_TILES: usize = 16;

/// Words of every column in a block of a panel: 384 KiB with 32 columns, which leaves room for rows in 1 MiB.
const BLOCK_STEPS: usize = 3072;

/// Enough that the last task to end is a small part of the whole.
const TASKS_PER_THREAD: usize = 32;

/// Memory aligned for full vectors.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
pub(super) struct Line([u32; 16]);

/// At least `words` words of 0, in lines.
pub(super) fn lines(words: usize) -> Vec<Line> {
    vec![Line([0; 16]); words.div_ceil(16)]
}

/// Makes `lines` hold at least `words` words.
pub(super) fn reserve(lines: &mut Vec<Line>, words: usize) {
    if lines.len() < words.div_ceil(16) {
        lines.resize(words.div_ceil(16), Line([0; 16]));
    }
}

/// What a word of packed weights is.
#[derive(Debug)]
enum Panels {
    /// An f32.
    F32(Vec<Line>),
    /// Two neighbouring bf16, for the instructions that multiply them.
    Bf16Pairs(Vec<Line>),
    /// A bf16, widened to an f32 block by block.
    Bf16(Vec<bf16>),
    /// An f16, widened likewise.
    F16(Vec<f16>),
}

/// A part of the sum of each output: of some taps some steps.
#[derive(Debug, Clone, Copy)]
struct Block {
    tap: usize,
    taps: usize,
    offset: usize,
    steps: usize,
}

/// Weights and bias of a product, in the form that the microkernel reads.
#[derive(Debug)]
pub(super) struct Packed {
    isa: Isa,
    panels: Panels,
    /// Padded with zeros to whole panels.
    bias: Vec<f32>,
    blocks: Vec<Block>,
    taps: usize,
    steps: usize,
    pub(super) inputs: usize,
    pub(super) outputs: usize,
}

impl Packed {
    /// Packs weights `(outputs, inputs, taps)`.
    pub(super) fn new(isa: Isa, weight: &Tensor, bias: Option<&Tensor>, taps: usize) -> Result<Self> {
        let outputs = weight.dim(0)?;
        let inputs = weight.elem_count() / (outputs * taps).max(1);
        let pairs = weight.dtype() == DType::BF16 && isa.bf16_kernels().is_some();
        let steps = if pairs { inputs.div_ceil(2) } else { inputs };
        let columns = isa.kernels().columns();
        let shape = Packing { outputs, inputs, taps, steps, columns, lanes: columns / 2 };
        let weight = weight.contiguous()?;
        let panels = match weight.dtype() {
            DType::F32 => {
                let source = super::element::Elements::<f32>::of(&weight)?;
                let mut panels = lines(shape.words());
                // SAFETY: a line is sixteen words, and every bit pattern is an f32.
                let words = unsafe { std::slice::from_raw_parts_mut(panels.as_mut_ptr().cast::<f32>(), panels.len() * 16) };
                shape.pack(&source, words, 1);
                Panels::F32(panels)
            }
            DType::BF16 if pairs => {
                let source = super::element::Elements::<bf16>::of(&weight)?;
                let mut panels = lines(shape.words());
                // SAFETY: a line is 32 halves of words, and every bit pattern is a bf16.
                let halves = unsafe { std::slice::from_raw_parts_mut(panels.as_mut_ptr().cast::<bf16>(), panels.len() * 32) };
                shape.pack(&source, halves, 2);
                Panels::Bf16Pairs(panels)
            }
            DType::BF16 => {
                let mut panels = vec![bf16::ZERO; shape.words()];
                shape.pack(&super::element::Elements::<bf16>::of(&weight)?, &mut panels, 1);
                Panels::Bf16(panels)
            }
            DType::F16 => {
                let mut panels = vec![f16::ZERO; shape.words()];
                shape.pack(&super::element::Elements::<f16>::of(&weight)?, &mut panels, 1);
                Panels::F16(panels)
            }
            dtype => candle_core::bail!("weights of dtype {dtype:?} are not supported, only f32, bf16 and f16"),
        };
        let mut padded = match bias {
            Some(bias) if bias.elem_count() == outputs => to_f32(bias)?,
            Some(bias) => candle_core::bail!("a bias of shape {:?} for {outputs} outputs", bias.shape()),
            None => vec![0.0; outputs],
        };
        padded.resize(outputs.next_multiple_of(columns), 0.0);
        Ok(Self { isa, panels, bias: padded, blocks: blocks(taps, steps), taps, steps, inputs, outputs })
    }

    fn kernels(&self) -> &'static Kernels {
        match self.panels {
            Panels::Bf16Pairs(_) => self.isa.bf16_kernels().unwrap_or(self.isa.kernels()),
            _ => self.isa.kernels(),
        }
    }

    /// Multiplies `geometry.rows()` rows of pixels by the weights into `out`.
    pub(super) fn multiply<T: Element>(&self, x: &[T], geometry: Geometry, out: &Output<'_, T>) {
        match self.panels {
            Panels::Bf16Pairs(_) if T::DTYPE == DType::BF16 && self.inputs.is_multiple_of(2) => {
                self.run(Rows { base: x.as_ptr().cast(), pixel_bytes: 2 * self.inputs, geometry }, out);
            }
            Panels::Bf16Pairs(_) => {
                // An odd number of channels gets a zero for company.
                let width = 2 * self.steps;
                let rows = convert(self.isa, x, self.inputs, width, <bf16 as Element>::narrow);
                self.run(Rows { base: rows.as_ptr().cast(), pixel_bytes: 2 * width, geometry }, out);
            }
            _ if T::DTYPE == DType::F32 => self.run(Rows { base: x.as_ptr().cast(), pixel_bytes: 4 * self.inputs, geometry }, out),
            _ => {
                let rows = convert(self.isa, x, self.inputs, self.inputs, |x| x);
                self.run(Rows { base: rows.as_ptr().cast(), pixel_bytes: 4 * self.inputs, geometry }, out);
            }
        }
    }

    fn run<T: Element>(&self, rows: Rows, out: &Output<'_, T>) {
        let kernels = self.kernels();
        let count = rows.geometry.rows();
        let (tiles, panels) = (count.div_ceil(kernels.rows), self.outputs.div_ceil(kernels.columns()));
        if tiles == 0 || panels == 0 {
            return;
        }
        let chunks = tiles.div_ceil(CHUNK_TILES);
        let chunk_rows = tiles.div_ceil(chunks) * kernels.rows;
        let chunks = count.div_ceil(chunk_rows);
        let group = panels.div_ceil((TASKS_PER_THREAD * rayon::current_num_threads()).div_ceil(chunks).min(panels));
        let groups = panels.div_ceil(group);
        let zeros = vec![0u32; self.steps];
        (0..chunks * groups).into_par_iter().with_max_len(1).for_each(|task| {
            let first = task / groups * chunk_rows;
            let chunk = first..count.min(first + chunk_rows);
            let panels = task % groups * group..panels.min((task % groups + 1) * group);
            SCRATCH.with_borrow_mut(|scratch| {
                self.isa.vectorize(
                    #[inline(always)]
                    |math| self.task(math, rows, &zeros, out, chunk, panels, scratch),
                );
            });
        });
    }

    #[inline(always)]
    #[expect(clippy::too_many_arguments, reason = "the body of a parallel loop")]
    fn task<T: Element>(
        &self,
        math: Math,
        rows: Rows,
        zeros: &[u32],
        out: &Output<'_, T>,
        chunk: std::ops::Range<usize>,
        panels: std::ops::Range<usize>,
        scratch: &mut Scratch,
    ) {
        let kernels = self.kernels();
        let columns = kernels.columns();
        let tiles = chunk.len().div_ceil(kernels.rows);
        let Scratch { pointers, sums, block: widened } = scratch;
        pointers.resize(pointers.len().max(tiles * self.taps), [std::ptr::null(); MAX_ROWS]);
        for (tile, pointers) in pointers.chunks_exact_mut(self.taps).take(tiles).enumerate() {
            let first = chunk.start + tile * kernels.rows;
            rows.point(first..chunk.end.min(first + kernels.rows), zeros, pointers);
        }
        reserve(sums, tiles * kernels.rows * columns);
        let sums = sums.as_mut_ptr().cast::<f32>();
        for panel in panels {
            let first_column = panel * columns;
            let outputs = columns.min(self.outputs - first_column);
            let vectors = outputs.div_ceil(kernels.lanes);
            let width = vectors * kernels.lanes;
            for (index, block) in self.blocks.iter().enumerate() {
                let start = first_column * self.taps * self.steps + (block.tap * self.steps + block.offset) * width;
                let (panel, tap_stride) = match &self.panels {
                    // SAFETY: `start` is within the panels by their construction.
                    Panels::F32(lines) | Panels::Bf16Pairs(lines) => {
                        (unsafe { lines.as_ptr().cast::<u32>().add(start) }, self.steps * width)
                    }
                    Panels::Bf16(halves) => widen_block(math, halves, start, self.steps * width, *block, width, widened),
                    Panels::F16(halves) => widen_block(math, halves, start, self.steps * width, *block, width, widened),
                };
                for tile in 0..tiles {
                    let first = chunk.start + tile * kernels.rows;
                    let count = kernels.rows.min(chunk.end - first);
                    // SAFETY: the pointers are good for `steps` words of each row; the sums have room for a tile.
                    let sums = unsafe {
                        let sums = sums.add(tile * kernels.rows * columns);
                        kernels.tiles[vectors - 1][count - 1](&Tile {
                            rows: pointers.as_ptr().add(tile * self.taps + block.tap).cast(),
                            taps: block.taps,
                            offset: block.offset,
                            steps: block.steps,
                            panel,
                            tap_stride,
                            out: sums,
                            out_stride: width,
                            accumulate: index > 0,
                        });
                        std::slice::from_raw_parts(sums, count * width)
                    };
                    if index + 1 == self.blocks.len() {
                        out.write(math, first, first_column, outputs, sums, width, &self.bias[first_column..]);
                    }
                }
            }
        }
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
        let most = steps.div_ceil(steps.div_ceil(BLOCK_STEPS));
        for tap in 0..taps {
            for offset in (0..steps).step_by(most) {
                blocks.push(Block { tap, taps: 1, offset, steps: most.min(steps - offset) });
            }
        }
    }
    blocks
}

/// Widens one block of a panel into `to`; gives its address and the words between its taps.
#[inline(always)]
fn widen_block<H: Element>(
    _: Math,
    from: &[H],
    start: usize,
    tap_stride: usize,
    block: Block,
    width: usize,
    to: &mut Vec<Line>,
) -> (*const u32, usize) {
    let len = block.steps * width;
    reserve(to, block.taps * len);
    // SAFETY: a line is sixteen words, and every bit pattern is an f32.
    let words = unsafe { std::slice::from_raw_parts_mut(to.as_mut_ptr().cast::<f32>(), block.taps * len) };
    for tap in 0..block.taps {
        let from = &from[start + tap * tap_stride..][..len];
        for (to, from) in words[tap * len..][..len].iter_mut().zip(from) {
            *to = from.widen();
        }
    }
    (to.as_ptr().cast(), len)
}

/// Rewrites rows of `from` elements as rows of `to ≥ from`, the rest zeros.
fn convert<T: Element, U: Element>(isa: Isa, x: &[T], from: usize, to: usize, f: impl Fn(f32) -> U + Sync) -> Vec<U> {
    let rows = x.len() / from.max(1);
    let some = (16_384 / to.max(1)).max(1);
    let fill = |spare: &mut [MaybeUninit<U>]| {
        spare.par_chunks_mut(some * to).zip(x.par_chunks(some * from)).for_each(|(y, x)| {
            isa.vectorize(
                #[inline(always)]
                |_| {
                    for (y, x) in y.chunks_exact_mut(to).zip(x.chunks_exact(from)) {
                        let (y, rest) = y.split_at_mut(from);
                        for (y, x) in y.iter_mut().zip(x) {
                            y.write(f(x.widen()));
                        }
                        for y in rest {
                            y.write(f(0.0));
                        }
                    }
                },
            );
        });
    };
    // SAFETY: all rows are written in full.
    unsafe { build_vec(rows * to, fill) }
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

    /// Writes `source`, `(outputs, inputs, taps)`, into cleared panels of words of `depth` elements.
    fn pack<T: Element>(&self, source: &[T], panels: &mut [T], depth: usize) {
        let &Self { inputs, taps, steps, columns, lanes, outputs } = self;
        let panel = (columns * taps * steps * depth).max(1);
        panels.par_chunks_mut(panel).enumerate().for_each(|(index, panel)| {
            let first = index * columns;
            let count = columns.min(outputs.saturating_sub(first));
            let width = count.next_multiple_of(lanes);
            // Blocks of inputs, so that the lines written stay in L1 while every column comes by.
            for from in (0..inputs).step_by(32) {
                let block = from..inputs.min(from + 32);
                for column in 0..count {
                    let row = &source[(first + column) * inputs * taps..][..inputs * taps];
                    for tap in 0..taps {
                        for k in block.clone() {
                            panel[((tap * steps + k / depth) * width + column) * depth + k % depth] = row[k * taps + tap];
                        }
                    }
                }
            }
        });
    }
}

/// Which pixels an output row reads.
#[derive(Debug, Clone, Copy)]
pub(super) enum Geometry {
    /// Row `i` reads pixel `i`: a plain product.
    Flat { rows: usize },
    /// A window that slides over pictures.
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
    fn rows(&self) -> usize {
        match *self {
            Self::Flat { rows } => rows,
            Self::Windows { batch, output, .. } => batch * output.0 * output.1,
        }
    }
}

/// Where the pixels are.
#[derive(Clone, Copy)]
struct Rows {
    base: *const u8,
    pixel_bytes: usize,
    geometry: Geometry,
}

// SAFETY: the pixels are only read, and outlive the call that made this.
unsafe impl Sync for Rows {}
// SAFETY: as above.
unsafe impl Send for Rows {}

impl Rows {
    /// Fills `[taps][MAX_ROWS]` pointers for some output rows; those outside a picture point at zeros.
    fn point(&self, range: std::ops::Range<usize>, zeros: &[u32], to: &mut [[*const u32; MAX_ROWS]]) {
        // SAFETY: a pixel's index is below the number of pixels.
        let pixel = |index: usize| unsafe { self.base.add(index * self.pixel_bytes).cast::<u32>() };
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

/// Where a product goes, and what is added on the way.
pub(super) struct Output<'a, T> {
    to: *mut T,
    /// Elements between rows of `to`, `row_bias` and `residual`.
    outputs: usize,
    row_bias: Option<&'a [T]>,
    /// Rows that share one row of `row_bias`.
    rows_per_bias: usize,
    residual: Option<&'a [T]>,
}

// SAFETY: tasks write disjoint parts of `to`.
unsafe impl<T: Sync> Sync for Output<'_, T> {}

impl<'a, T: Element> Output<'a, T> {
    /// The lengths are those of `to`, of whole rows of `outputs`.
    pub(super) fn new(
        to: &mut [MaybeUninit<T>],
        outputs: usize,
        batch: usize,
        row_bias: Option<&'a [T]>,
        residual: Option<&'a [T]>,
    ) -> Self {
        let rows_per_bias = (to.len() / (outputs * batch).max(1)).max(1);
        Self { to: to.as_mut_ptr().cast(), outputs, row_bias, rows_per_bias, residual }
    }

    /// Writes some rows of some columns.
    #[inline(always)]
    #[expect(clippy::too_many_arguments, reason = "where, what and how")]
    fn write(&self, math: Math, first_row: usize, first_column: usize, outputs: usize, sums: &[f32], width: usize, bias: &[f32]) {
        let bias = &bias[..outputs];
        for (i, sums) in sums.chunks_exact(width).enumerate() {
            let row = first_row + i;
            let at = row * self.outputs + first_column;
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
            // SAFETY: row and columns are within the output, and no other task has them.
            let to = unsafe { std::slice::from_raw_parts_mut(self.to.add(at).cast::<MaybeUninit<T>>(), outputs) };
            T::narrow_all(math, values, to);
        }
    }
}

#[derive(Default)]
struct Scratch {
    pointers: Vec<[*const u32; MAX_ROWS]>,
    sums: Vec<Line>,
    block: Vec<Line>,
}

thread_local! {
    /// Kept between calls: a task is too short to ask for memory.
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}
