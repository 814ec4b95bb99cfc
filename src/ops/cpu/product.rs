//! Products of activations with packed weights, blocked for the caches and shared among the threads.
//!
//! A task is a chunk of rows times a group of panels: within it one block of a panel, small enough for L2,
//! meets all tiles of the chunk before the next is read. Threads share tasks, never a sum, so that their number
//! does not change a result.
#![expect(unsafe_code, reason = "the microkernel takes raw pointers, and threads write disjoint parts of one output")]

use super::element::{Element, build_vec};
use super::isa::Isa;
use super::lines::{CacheLine, elements, elements_mut, reserve};
use super::math::Math;
use super::microkernel::{MAX_ROWS, Tile};
use super::output::ProductOutput;
use super::packed::{Packed, PackedBlock, PackedForm};
use super::rows::{Geometry, Rows};
use candle_core::DType;
use half::{bf16, f16};
use rayon::prelude::*;
use std::cell::RefCell;
use std::mem::MaybeUninit;
use std::ops::Range;

/// Rows that share a panel block; of a few thousand floats they stay in L2 or near it.
const CHUNK_ROWS: usize = 256;

/// Enough that the last task to end is a small part of the whole.
const TASKS_PER_THREAD: usize = 32;

/// Products of words that are worth a task: some microseconds, as another thread must wake up for it.
pub(super) const LEAST_TASK: usize = 1 << 19;

impl Packed {
    /// Multiplies `geometry.rows()` rows of pixels by the weights into `out`.
    pub(super) fn multiply<T: Element>(&self, x: &[T], geometry: Geometry, out: &ProductOutput<'_, T>) {
        if !self.multiply_transformed(x, geometry, out) {
            self.multiply_plain(x, geometry, out);
        }
    }

    /// The same by a product for every tap.
    pub(super) fn multiply_plain<T: Element>(&self, x: &[T], geometry: Geometry, out: &ProductOutput<'_, T>) {
        // The microkernel reads through pointers: whether all pixels are there is seen here.
        let x = &x[..geometry.pixels() * self.inputs];
        match self.form {
            PackedForm::Bf16Pairs if T::DTYPE == DType::BF16 && self.inputs == 2 * self.steps => {
                let pixel_bytes = 2 * self.inputs;
                if let (true, Some(framed)) = (self.form.kernels(self.isa).session.is_some(), geometry.framed()) {
                    let pixels = frame(x, self.inputs, geometry, framed);
                    self.run(Rows { base: pixels.as_ptr().cast(), pixel_bytes, geometry: framed }, out);
                } else {
                    self.run(Rows { base: x.as_ptr().cast(), pixel_bytes, geometry }, out);
                }
            }
            PackedForm::Bf16Pairs => {
                // Channels that do not fill the words, or the tiles, get zeros for company.
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

    fn run<T: Element>(&self, rows: Rows, out: &ProductOutput<'_, T>) {
        let kernels = self.form.kernels(self.isa);
        let count = rows.geometry.rows();
        let (tiles, panels) = (count.div_ceil(kernels.rows), self.outputs.div_ceil(kernels.columns()));
        if tiles == 0 || panels == 0 {
            return;
        }
        assert!(out.is_of(count, self.outputs), "a product of {count} rows of {} does not fit where it goes", self.outputs);
        let chunks = tiles.div_ceil((CHUNK_ROWS / kernels.rows).max(1));
        let chunk_rows = tiles.div_ceil(chunks) * kernels.rows;
        let chunks = count.div_ceil(chunk_rows);
        let words = count * self.outputs * self.taps * self.steps;
        let tasks = (TASKS_PER_THREAD * rayon::current_num_threads()).min(words / LEAST_TASK + 1);
        let group = panels.div_ceil(tasks.div_ceil(chunks).min(panels));
        let least = (LEAST_TASK * chunks * panels.div_ceil(group) / words.max(1)).max(1);
        let groups = panels.div_ceil(group);
        let zeros = vec![0u32; self.steps];
        (0..chunks * groups).into_par_iter().with_min_len(least).with_max_len(least).for_each(|task| {
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
        out: &ProductOutput<'_, T>,
        chunk: Range<usize>,
        panels: Range<usize>,
        scratch: &mut ProductScratch,
    ) {
        let kernels = self.form.kernels(self.isa);
        // SAFETY: an `Isa` comes from `available`, which asked the processor.
        let _session = unsafe { kernels.session() };
        let columns = kernels.columns();
        let tiles = chunk.len().div_ceil(kernels.rows);
        let ProductScratch { pointers, sums, block: widened } = scratch;
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
                let tap_stride = self.steps * width;
                let (panel, tap_stride) = match self.form {
                    // SAFETY: `start` is within the panels by their construction.
                    PackedForm::F32 | PackedForm::Bf16Pairs => (unsafe { self.panels.as_ptr().cast::<u32>().add(start) }, tap_stride),
                    PackedForm::Bf16 => widen_block(&elements::<bf16>(&self.panels)[start..], tap_stride, *block, width, widened),
                    PackedForm::F16 => widen_block(&elements::<f16>(&self.panels)[start..], tap_stride, *block, width, widened),
                };
                for tile in 0..tiles {
                    let first = chunk.start + tile * kernels.rows;
                    let count = kernels.rows.min(chunk.end - first);
                    // SAFETY: the pointers are good for `steps` words of each row, as all pixels are; so is the panel; the sums have room
                    // for a tile.
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
                        // SAFETY: rows and columns are the product's, which is the output's; the task has them alone.
                        unsafe { out.write(math, first, first_column, outputs, sums, width, &self.bias[first_column..]) };
                    }
                }
            }
        }
    }
}

/// Widens the block of a panel that starts with `from`; gives its address and the words between its taps.
#[inline(always)]
fn widen_block<H: Element>(
    from: &[H],
    tap_stride: usize,
    block: PackedBlock,
    width: usize,
    to: &mut Vec<CacheLine>,
) -> (*const u32, usize) {
    let len = block.steps * width;
    reserve(to, block.taps * len);
    let words = elements_mut::<f32>(to);
    for tap in 0..block.taps {
        for (to, from) in words[tap * len..][..len].iter_mut().zip(&from[tap * tap_stride..]) {
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

/// Copies images into the zeros around them that `framed`, which is `geometry` with them, counts as pixels.
fn frame<T: Element>(x: &[T], channels: usize, geometry: Geometry, framed: Geometry) -> Vec<T> {
    let (Geometry::Windows { input, padding, .. }, Geometry::Windows { input: whole, .. }) = (geometry, framed) else { return Vec::new() };
    let fill = |spare: &mut [MaybeUninit<T>]| {
        spare.par_chunks_mut((whole.1 * channels).max(1)).enumerate().for_each(|(line, to)| {
            let (image, y) = (line / whole.0, (line % whole.0).wrapping_sub(padding.0));
            let zero = MaybeUninit::new(T::narrow(0.0));
            if y >= input.0 {
                to.fill(zero);
                return;
            }
            let (before, rest) = to.split_at_mut(padding.1 * channels);
            let (inside, after) = rest.split_at_mut(input.1 * channels);
            before.fill(zero);
            inside.write_copy_of_slice(&x[(image * input.0 + y) * input.1 * channels..][..input.1 * channels]);
            after.fill(zero);
        });
    };
    // SAFETY: every line is written in full.
    unsafe { build_vec(framed.pixels() * channels, fill) }
}

#[derive(Default)]
struct ProductScratch {
    pointers: Vec<[*const u32; MAX_ROWS]>,
    sums: Vec<CacheLine>,
    block: Vec<CacheLine>,
}

thread_local! {
    /// Kept between calls: a task is too short to ask for memory.
    static SCRATCH: RefCell<ProductScratch> = RefCell::default();
}
