//! Attention that never holds all scores: a block of queries meets the keys block by block, with the softmax
//! carried along.
//!
//! # Source
//! Milakov, Gimelshein 2018, "Online normalizer calculation for softmax", <https://arxiv.org/abs/1805.02867>, algorithm 3;
//! Rabe, Staats 2021, "Self-attention does not need O(n²) memory", <https://arxiv.org/abs/2112.05682>.
#![expect(unsafe_code, reason = "the microkernel takes raw pointers, and threads write disjoint parts of one output")]

use super::element::{Element, Elements, build, with_element};
use super::isa::Isa;
use super::lines::{CacheLine, elements_mut, lines, reserve, spare_mut};
use super::math::{LANES, Math, reduce};
use super::microkernel::{Kernels, MAX_ROWS, Tile};
use super::product::LEAST_TASK;
use candle_core::{DType, Result, Tensor};
use half::bf16;
use rayon::prelude::*;
use std::cell::RefCell;
use std::mem::MaybeUninit;
use std::ops::Range;

/// Keys whose scores are held at once for a block of queries.
const BLOCK_KEYS: usize = 256;

/// Tiles of queries in a block.
const BLOCK_TILES: usize = 4;

/// See [`crate::ops::attention`].
pub(in super::super) fn attention(q: &Tensor, k: &Tensor, v: &Tensor, heads: usize, causal: bool) -> Result<Tensor> {
    with(Isa::current()?, q, k, v, heads, causal)
}

pub(super) fn with(isa: Isa, q: &Tensor, k: &Tensor, v: &Tensor, heads: usize, causal: bool) -> Result<Tensor> {
    let (&[batch, queries, width], &[key_batch, keys, key_width]) = (q.dims(), k.dims()) else {
        candle_core::bail!("attention: (batch, tokens, channels) is wanted, got {:?} and {:?}", q.shape(), k.shape());
    };
    let fits = (key_batch, key_width) == (batch, width) && k.dims() == v.dims() && q.dtype() == k.dtype() && q.dtype() == v.dtype();
    if !fits || heads == 0 || !width.is_multiple_of(heads) || keys == 0 || width == 0 {
        candle_core::bail!(
            "attention: {heads} heads of q {:?} {:?}, k {:?} {:?}, v {:?} {:?}",
            q.shape(),
            q.dtype(),
            k.shape(),
            k.dtype(),
            v.shape(),
            v.dtype()
        );
    }
    let kernels = match isa.bf16_kernels() {
        Some(kernels) if q.dtype() == DType::BF16 && (width / heads).is_multiple_of(2) => kernels,
        _ => isa.kernels(),
    };
    let pairs = !std::ptr::eq(kernels, isa.kernels());
    let size = width / heads;
    let shape = AttentionShape { batch, queries, keys, heads, size, causal, kernels };
    with_element!("attention", q.dtype(), T => match pairs {
        true => shape.run::<T, bf16>(isa, q, k, v),
        false => shape.run::<T, f32>(isa, q, k, v),
    })
}

#[derive(Clone, Copy)]
struct AttentionShape {
    batch: usize,
    queries: usize,
    keys: usize,
    heads: usize,
    /// Channels of a head.
    size: usize,
    causal: bool,
    kernels: &'static Kernels,
}

/// Keys and values of one head in panels of words.
struct Head {
    /// `[keys / columns][size / depth][columns][depth]`
    keys: Vec<CacheLine>,
    /// `[size / columns][keys / depth][columns][depth]`
    values: Vec<CacheLine>,
}

impl AttentionShape {
    /// `T` is stored, `W` is what the kernels multiply.
    fn run<T: Element, W: Element>(&self, isa: Isa, q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Tensor> {
        let (q, k, v) = (q.contiguous()?, k.contiguous()?, v.contiguous()?);
        let shape = q.dims();
        let (q, k, v) = (Elements::<T>::of(&q)?, Elements::<T>::of(&k)?, Elements::<T>::of(&v)?);
        let (k, v): (&[T], &[T]) = (&k, &v);
        let heads: Vec<Head> = (0..self.batch * self.heads)
            .into_par_iter()
            .map(|head| {
                isa.vectorize(
                    #[inline(always)]
                    |_| Head { keys: self.pack_keys::<T, W>(k, head), values: self.pack_values::<T, W>(v, head) },
                )
            })
            .collect();
        let block = BLOCK_TILES * self.kernels.rows;
        let blocks = self.queries.div_ceil(block);
        let words = block.min(self.queries) * (self.keys * self.steps::<W>(self.size) + self.size * self.steps::<W>(self.keys));
        let least = LEAST_TASK.div_ceil(words.max(1));
        let fill = |out: &mut [MaybeUninit<T>]| {
            let out = SharedOutput(out.as_mut_ptr());
            (0..heads.len() * blocks).into_par_iter().with_min_len(least).with_max_len(least).for_each(|task| {
                let (head, first) = (task / blocks, task % blocks * block);
                let range = first..self.queries.min(first + block);
                SCRATCH.with_borrow_mut(|scratch| {
                    isa.vectorize(
                        #[inline(always)]
                        |math| self.block::<T, W>(math, &q, &heads[head], head, range, scratch, &out),
                    );
                });
            });
        };
        // SAFETY: the tasks write every query of every head.
        unsafe { build(shape, fill) }
    }

    /// Words that hold some elements, as many as the kernels want.
    fn steps<W>(&self, elements: usize) -> usize {
        elements.div_ceil(depth::<W>()).next_multiple_of(self.kernels.depth)
    }

    /// Channels of all heads.
    fn width(&self) -> usize {
        self.heads * self.size
    }

    /// Where a head's channels of a token start, among `tokens` in each batch row.
    fn at(&self, head: usize, tokens: usize, token: usize) -> usize {
        (head / self.heads * tokens + token) * self.width() + head % self.heads * self.size
    }

    /// The width of the panel that starts at `column` of `columns`: the last may be one vector.
    fn panel_width(&self, column: usize, columns: usize) -> usize {
        (columns - column).next_multiple_of(self.kernels.lanes).min(self.kernels.columns())
    }

    #[inline(always)]
    fn pack_keys<T: Element, W: Element>(&self, k: &[T], head: usize) -> Vec<CacheLine> {
        let (depth, steps) = (depth::<W>(), self.steps::<W>(self.size));
        let mut panels = lines(self.keys.next_multiple_of(self.kernels.lanes) * steps);
        let to = elements_mut::<W>(&mut panels);
        for first in (0..self.keys).step_by(self.kernels.columns()) {
            let width = self.panel_width(first, self.keys);
            let panel = &mut to[first * steps * depth..][..width * steps * depth];
            for key in first..self.keys.min(first + width) {
                let k = &k[self.at(head, self.keys, key)..][..self.size];
                let to = &mut panel[(key - first) * depth..];
                for (to, k) in to.chunks_mut(width * depth).zip(k.chunks_exact(depth)) {
                    for i in 0..depth {
                        to[i] = W::narrow(k[i].widen());
                    }
                }
            }
        }
        panels
    }

    #[inline(always)]
    fn pack_values<T: Element, W: Element>(&self, v: &[T], head: usize) -> Vec<CacheLine> {
        let (depth, steps) = (depth::<W>(), self.steps::<W>(self.keys));
        let mut panels = lines(self.size.next_multiple_of(self.kernels.lanes) * steps);
        let to = elements_mut::<W>(&mut panels);
        for first in (0..self.size).step_by(self.kernels.columns()) {
            let width = self.panel_width(first, self.size);
            let panel = &mut to[first * steps * depth..][..width * steps * depth];
            for key in 0..self.keys {
                let v = &v[self.at(head, self.keys, key) + first..][..width.min(self.size - first)];
                let to = &mut panel[key / depth * width * depth + key % depth..];
                for (to, v) in to.iter_mut().step_by(depth).zip(v) {
                    *to = W::narrow(v.widen());
                }
            }
        }
        panels
    }

    /// The output of some queries of one head.
    #[inline(always)]
    #[expect(clippy::too_many_arguments, reason = "the body of a parallel loop")]
    fn block<T: Element, W: Element>(
        &self,
        math: Math,
        q: &[T],
        packed: &Head,
        head: usize,
        range: Range<usize>,
        scratch: &mut AttentionScratch,
        out: &SharedOutput<T>,
    ) {
        // SAFETY: an `Isa` comes from `available`, which asked the processor.
        let _session = unsafe { self.kernels.session() };
        let count = range.len();
        let (key_steps, value_steps) = (self.steps::<W>(self.size), self.steps::<W>(self.keys));
        let filled = key_steps * depth::<W>();
        let room = count.next_multiple_of(self.kernels.rows);
        let padded = self.size.next_multiple_of(self.kernels.lanes);
        let AttentionScratch { q: converted, scores, weights, sums, states } = scratch;
        reserve(converted, count * key_steps);
        reserve(scores, self.kernels.rows * BLOCK_KEYS);
        reserve(weights, self.kernels.rows * BLOCK_KEYS);
        reserve(sums, room * padded);
        let (scores, sums) = (elements_mut::<f32>(scores), &mut elements_mut::<f32>(sums)[..room * padded]);
        let queries = if T::DTYPE == W::DTYPE && filled == self.size {
            AttentionRows { base: q[self.at(head, self.queries, range.start)..].as_ptr().cast(), stride: self.width() * size_of::<T>() }
        } else {
            let converted = elements_mut::<W>(converted);
            for (to, query) in converted.chunks_exact_mut(filled).zip(range.clone()) {
                let (to, rest) = to.split_at_mut(self.size);
                rest.fill(W::narrow(0.0));
                for (to, q) in to.iter_mut().zip(&q[self.at(head, self.queries, query)..][..self.size]) {
                    *to = W::narrow(q.widen());
                }
            }
            AttentionRows { base: converted.as_ptr().cast(), stride: filled * size_of::<W>() }
        };
        sums.fill(0.0);
        states.clear();
        states.resize(count, SoftmaxState { greatest: f32::NEG_INFINITY, sum: 0.0 });
        // Exponents are in powers of two: the exponential is shorter.
        let scale = (std::f64::consts::LOG2_E / (self.size as f64).sqrt()) as f32;
        let seen = if self.causal { self.keys.min(range.end) } else { self.keys };
        // SAFETY: only finished weights are written to it.
        let weights = unsafe { spare_mut::<W>(weights) };
        for first in (0..seen).step_by(BLOCK_KEYS) {
            let keys = BLOCK_KEYS.min(seen - first);
            let width = keys.next_multiple_of(LANES.max(self.kernels.columns()));
            // One tile's scores and weights stay in L1, while the block's keys and values come from L2.
            for tile in (0..count).step_by(self.kernels.rows) {
                let rows = self.kernels.rows.min(count - tile);
                let pointers = queries.pointers(tile, rows);
                for column in (first..first + keys).step_by(self.kernels.columns()) {
                    let vectors = self.panel_width(column, self.keys) / self.kernels.lanes;
                    // SAFETY: the panel starts at its column, and `width` holds whole panels.
                    unsafe {
                        self.kernels.tiles[vectors - 1][rows - 1](&Tile {
                            rows: pointers.as_ptr(),
                            taps: 1,
                            offset: 0,
                            steps: key_steps,
                            panel: packed.keys.as_ptr().cast::<u32>().add(column * key_steps),
                            tap_stride: 0,
                            out: scores.as_mut_ptr().add(column - first),
                            out_stride: width,
                            accumulate: false,
                        });
                    }
                }
                // All rows' greatest before any weights: a row's weights wait for its greatest, but not for another's.
                let mut greatest = [0.0; MAX_ROWS];
                for (i, greatest) in greatest[..rows].iter_mut().enumerate() {
                    let query = range.start + tile + i;
                    let seen = if self.causal { (query + 1).saturating_sub(first).min(keys) } else { keys };
                    let scores = &mut scores[i * width..][..width];
                    scores[seen..].fill(f32::NEG_INFINITY);
                    *greatest = states[tile + i].greatest_with(scale, scores);
                }
                for (i, &greatest) in greatest[..rows].iter().enumerate() {
                    let (scores, weights) = (&mut scores[i * width..][..width], &mut weights[i * width..][..width]);
                    let factor = states[tile + i].fold(math, scale, greatest, scores, weights);
                    if factor != 1.0 {
                        sums[(tile + i) * padded..][..padded].iter_mut().for_each(|sum| *sum *= factor);
                    }
                }
                let weights: *const u8 = if W::DTYPE == DType::F32 { scores.as_ptr().cast() } else { weights.as_ptr().cast() };
                let pointers = AttentionRows { base: weights, stride: width * size_of::<W>() }.pointers(0, rows);
                for column in (0..self.size).step_by(self.kernels.columns()) {
                    let panel = self.panel_width(column, self.size);
                    // SAFETY: the panel starts at its column and key, and `padded` holds whole panels.
                    unsafe {
                        self.kernels.tiles[panel / self.kernels.lanes - 1][rows - 1](&Tile {
                            rows: pointers.as_ptr(),
                            taps: 1,
                            offset: 0,
                            steps: self.steps::<W>(keys),
                            panel: packed.values.as_ptr().cast::<u32>().add(column * value_steps + first / depth::<W>() * panel),
                            tap_stride: 0,
                            out: sums.as_mut_ptr().add(tile * padded + column),
                            out_stride: padded,
                            accumulate: true,
                        });
                    }
                }
            }
        }
        for (i, state) in states.iter().enumerate() {
            let inverse = 1.0 / state.sum;
            // SAFETY: this task alone writes these channels of this query.
            let to = unsafe { std::slice::from_raw_parts_mut(out.0.add(self.at(head, self.queries, range.start + i)), self.size) };
            for (to, sum) in to.iter_mut().zip(&sums[i * padded..]) {
                to.write(T::narrow(sum * inverse));
            }
        }
    }
}

/// The left-hand side of a product: a first row and the bytes to the next.
#[derive(Clone, Copy)]
struct AttentionRows {
    base: *const u8,
    stride: usize,
}

impl AttentionRows {
    fn pointers(self, first: usize, count: usize) -> [*const u32; MAX_ROWS] {
        let pointer = |i| if i < count { self.base.wrapping_add((first + i) * self.stride).cast() } else { std::ptr::null() };
        std::array::from_fn(pointer)
    }
}

/// The softmax of one query so far.
#[derive(Clone, Copy)]
struct SoftmaxState {
    greatest: f32,
    sum: f32,
}

impl SoftmaxState {
    /// The greatest exponent with more scores, which are whole lanes.
    #[inline(always)]
    fn greatest_with(&self, scale: f32, scores: &[f32]) -> f32 {
        let mut most = [f32::NEG_INFINITY; LANES];
        for scores in scores.chunks_exact(LANES) {
            for (most, score) in most.iter_mut().zip(scores) {
                *most = if *score > *most { *score } else { *most };
            }
        }
        let most = scale
            * reduce(
                most,
                #[inline(always)]
                |a, b| if a > b { a } else { b },
            );
        if most > self.greatest { most } else { self.greatest }
    }

    /// Turns scores into weights relative to `greatest`; gives the factor for what was summed before.
    /// The scores are whole lanes; weights in f32 take their place.
    #[inline(always)]
    fn fold<W: Element>(&mut self, math: Math, scale: f32, greatest: f32, scores: &mut [f32], weights: &mut [MaybeUninit<W>]) -> f32 {
        let mut sums = [0.0f32; LANES];
        if W::DTYPE == DType::F32 {
            for scores in scores.chunks_exact_mut(LANES) {
                for (sum, score) in sums.iter_mut().zip(scores) {
                    *score = weigh::<W>(math, *score, scale, greatest);
                    *sum += *score;
                }
            }
        } else {
            for (weights, scores) in weights.chunks_exact_mut(LANES).zip(scores.chunks_exact(LANES)) {
                let mut values = [0.0; LANES];
                for ((sum, value), score) in sums.iter_mut().zip(&mut values).zip(scores) {
                    *value = weigh::<W>(math, *score, scale, greatest);
                    *sum += *value;
                }
                W::narrow_all(math, &values, weights);
            }
        }
        let factor = math.exp2(self.greatest - greatest);
        *self = Self {
            greatest,
            sum: self.sum * factor
                + reduce(
                    sums,
                    #[inline(always)]
                    |a, b| a + b,
                ),
        };
        factor
    }
}

/// The weight of a score, as exact as `W` is.
#[inline(always)]
fn weigh<W: Element>(math: Math, score: f32, scale: f32, greatest: f32) -> f32 {
    let exponent = math.mul_add(score, scale, -greatest);
    if W::DTYPE == DType::BF16 { math.exp2_coarse(exponent) } else { math.exp2(exponent) }
}

/// Elements in a word of the kernels: an f32, or two bf16.
const fn depth<W>() -> usize {
    size_of::<u32>() / size_of::<W>()
}

struct SharedOutput<T>(*mut MaybeUninit<T>);

// SAFETY: tasks write disjoint parts.
unsafe impl<T: Send> Sync for SharedOutput<T> {}

#[derive(Default)]
struct AttentionScratch {
    /// Queries in another dtype than they are stored in.
    q: Vec<CacheLine>,
    scores: Vec<CacheLine>,
    weights: Vec<CacheLine>,
    sums: Vec<CacheLine>,
    states: Vec<SoftmaxState>,
}

thread_local! {
    /// Kept between calls: a task is too short to ask for memory.
    static SCRATCH: RefCell<AttentionScratch> = RefCell::default();
}
