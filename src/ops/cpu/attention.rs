//! Attention that never holds all scores: a block of queries meets the keys block by block, with the softmax
//! carried along.
//!
//! # Source
//! Milakov, Gimelshein 2018, "Online normalizer calculation for softmax", <https://arxiv.org/abs/1805.02867>, algorithm 3;
//! Rabe, Staats 2021, "Self-attention does not need O(n²) memory", <https://arxiv.org/abs/2112.05682>.
#![expect(unsafe_code, reason = "the microkernel takes raw pointers, and threads write disjoint parts of one output")]

use super::element::{Element, Elements, build, with_element};
use super::isa::Isa;
use super::math::{LANES, Math, reduce};
use super::microkernel::{Kernels, MAX_ROWS, Tile};
use super::product::{Line, lines, reserve};
use candle_core::{Result, Tensor};
use rayon::prelude::*;
use std::cell::RefCell;
use std::mem::MaybeUninit;

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
    let shape = Shape { batch, queries, keys, heads, size: width / heads, causal, kernels: isa.kernels() };
    with_element!("attention", q.dtype(), T => shape.run::<T>(isa, q, k, v))
}

#[derive(Clone, Copy)]
struct Shape {
    batch: usize,
    queries: usize,
    keys: usize,
    heads: usize,
    /// Channels of a head.
    size: usize,
    causal: bool,
    kernels: &'static Kernels,
}

/// Keys and values of one head in panels.
struct Head {
    /// `[keys / columns][size][columns]`
    keys: Vec<Line>,
    /// `[size / columns][keys][columns]`
    values: Vec<Line>,
}

impl Shape {
    fn run<T: Element>(&self, isa: Isa, q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Tensor> {
        let (q, k, v) = (q.contiguous()?, k.contiguous()?, v.contiguous()?);
        let shape = q.dims();
        let (q, k, v) = (Elements::<T>::of(&q)?, Elements::<T>::of(&k)?, Elements::<T>::of(&v)?);
        let (k, v): (&[T], &[T]) = (&k, &v);
        let heads: Vec<Head> = (0..self.batch * self.heads)
            .into_par_iter()
            .map(|head| {
                isa.vectorize(
                    #[inline(always)]
                    |_| Head { keys: self.pack_keys(k, head), values: self.pack_values(v, head) },
                )
            })
            .collect();
        let block = BLOCK_TILES * self.kernels.rows;
        let blocks = self.queries.div_ceil(block);
        let fill = |out: &mut [MaybeUninit<T>]| {
            let out = SharedOutput(out.as_mut_ptr());
            (0..heads.len() * blocks).into_par_iter().with_max_len(1).for_each(|task| {
                let (head, first) = (task / blocks, task % blocks * block);
                let range = first..self.queries.min(first + block);
                SCRATCH.with_borrow_mut(|scratch| {
                    isa.vectorize(
                        #[inline(always)]
                        |math| self.block(math, &q, &heads[head], head, range, scratch, &out),
                    );
                });
            });
        };
        // SAFETY: the tasks write every query of every head.
        unsafe { build(shape, fill) }
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
    fn pack_keys<T: Element>(&self, k: &[T], head: usize) -> Vec<Line> {
        let mut panels = lines(self.keys.next_multiple_of(self.kernels.lanes) * self.size);
        let words = floats(&mut panels);
        for first in (0..self.keys).step_by(self.kernels.columns()) {
            let width = self.panel_width(first, self.keys);
            let panel = &mut words[first * self.size..][..width * self.size];
            for key in first..self.keys.min(first + width) {
                let k = &k[self.at(head, self.keys, key)..][..self.size];
                for (to, k) in panel[key - first..].iter_mut().step_by(width).zip(k) {
                    *to = k.widen();
                }
            }
        }
        panels
    }

    #[inline(always)]
    fn pack_values<T: Element>(&self, v: &[T], head: usize) -> Vec<Line> {
        let mut panels = lines(self.keys * self.size.next_multiple_of(self.kernels.lanes));
        let words = floats(&mut panels);
        for first in (0..self.size).step_by(self.kernels.columns()) {
            let width = self.panel_width(first, self.size);
            let panel = &mut words[first * self.keys..][..width * self.keys];
            for (key, to) in panel.chunks_exact_mut(width).enumerate() {
                let v = &v[self.at(head, self.keys, key) + first..][..width.min(self.size - first)];
                for (to, v) in to.iter_mut().zip(v) {
                    *to = v.widen();
                }
            }
        }
        panels
    }

    /// The output of some queries of one head.
    #[inline(always)]
    #[expect(clippy::too_many_arguments, reason = "the body of a parallel loop")]
    fn block<T: Element>(
        &self,
        math: Math,
        q: &[T],
        packed: &Head,
        head: usize,
        range: std::ops::Range<usize>,
        scratch: &mut Scratch,
        out: &SharedOutput<T>,
    ) {
        let count = range.len();
        let padded = self.size.next_multiple_of(self.kernels.lanes);
        let Scratch { q: queries, scores, sums, states } = scratch;
        reserve(queries, count * self.size);
        reserve(scores, count * BLOCK_KEYS);
        reserve(sums, count * padded);
        let (queries, scores, sums) = (floats(queries), floats(scores), &mut floats(sums)[..count * padded]);
        // Scores in powers of two: the exponential is one step shorter.
        let scale = (std::f64::consts::LOG2_E / (self.size as f64).sqrt()) as f32;
        for (to, query) in queries.chunks_exact_mut(self.size.max(1)).zip(range.clone()) {
            for (to, q) in to.iter_mut().zip(&q[self.at(head, self.queries, query)..][..self.size]) {
                *to = q.widen() * scale;
            }
        }
        sums.fill(0.0);
        states.clear();
        states.resize(count, State { greatest: f32::NEG_INFINITY, sum: 0.0 });
        let seen = if self.causal { self.keys.min(range.end) } else { self.keys };
        for first in (0..seen).step_by(BLOCK_KEYS) {
            let keys = BLOCK_KEYS.min(seen - first);
            let width = keys.next_multiple_of(LANES).max(keys.next_multiple_of(self.kernels.columns()));
            let scores = &mut scores[..count * width];
            self.score(&queries[..count * self.size], packed, first, keys, scores, width);
            for (i, state) in states.iter_mut().enumerate() {
                let row = &mut scores[i * width..][..width];
                let seen = if self.causal { (range.start + i + 1).saturating_sub(first).min(keys) } else { keys };
                let factor = state.fold(math, row, seen);
                if factor != 1.0 {
                    sums[i * padded..][..padded].iter_mut().for_each(|sum| *sum *= factor);
                }
            }
            self.gather(scores, width, packed, first, keys, sums);
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

    /// Scores of a block of queries with the keys from `first` on.
    #[inline(always)]
    fn score(&self, queries: &[f32], packed: &Head, first: usize, keys: usize, scores: &mut [f32], width: usize) {
        let rows = queries.len() / self.size;
        for tile in (0..rows).step_by(self.kernels.rows) {
            let count = self.kernels.rows.min(rows - tile);
            let pointers = pointers(&queries[tile * self.size..], self.size, count);
            for column in (first..first + keys).step_by(self.kernels.columns()) {
                let vectors = self.panel_width(column, self.keys) / self.kernels.lanes;
                // SAFETY: the rows have `size` floats, the panel starts at its column, and `width` holds whole panels.
                unsafe {
                    self.kernels.tiles[vectors - 1][count - 1](&Tile {
                        rows: pointers.as_ptr(),
                        taps: 1,
                        offset: 0,
                        steps: self.size,
                        panel: packed.keys.as_ptr().cast::<u32>().add(column * self.size),
                        tap_stride: 0,
                        out: scores.as_mut_ptr().add(tile * width + column - first),
                        out_stride: width,
                        accumulate: false,
                    });
                }
            }
        }
    }

    /// Adds the values of the keys from `first` on, weighted.
    #[inline(always)]
    fn gather(&self, weights: &[f32], width: usize, packed: &Head, first: usize, keys: usize, sums: &mut [f32]) {
        let rows = weights.len() / width;
        let padded = sums.len() / rows;
        for tile in (0..rows).step_by(self.kernels.rows) {
            let count = self.kernels.rows.min(rows - tile);
            let pointers = pointers(&weights[tile * width..], width, count);
            for column in (0..self.size).step_by(self.kernels.columns()) {
                let panel = self.panel_width(column, self.size);
                // SAFETY: the rows have `keys` floats, the panel starts at its key, and `padded` holds whole panels.
                unsafe {
                    self.kernels.tiles[panel / self.kernels.lanes - 1][count - 1](&Tile {
                        rows: pointers.as_ptr(),
                        taps: 1,
                        offset: 0,
                        steps: keys,
                        panel: packed.values.as_ptr().cast::<u32>().add(column * self.keys + first * panel),
                        tap_stride: 0,
                        out: sums.as_mut_ptr().add(tile * padded + column),
                        out_stride: padded,
                        accumulate: true,
                    });
                }
            }
        }
    }
}

/// The softmax of one query so far.
#[derive(Clone, Copy)]
struct State {
    greatest: f32,
    sum: f32,
}

impl State {
    /// Turns scores into weights relative to the greatest so far; gives the factor for what was summed before.
    /// Only the first `seen` count, the rest become 0. The scores are whole lanes.
    #[inline(always)]
    fn fold(&mut self, math: Math, scores: &mut [f32], seen: usize) -> f32 {
        scores[seen..].fill(f32::NEG_INFINITY);
        let mut most = [self.greatest; LANES];
        for scores in scores.chunks_exact(LANES) {
            for (most, score) in most.iter_mut().zip(scores) {
                *most = if *score > *most { *score } else { *most };
            }
        }
        let greatest = reduce(
            most,
            #[inline(always)]
            |a, b| if a > b { a } else { b },
        );
        let mut sums = [0.0f32; LANES];
        for scores in scores.chunks_exact_mut(LANES) {
            for (sum, score) in sums.iter_mut().zip(scores) {
                *score = math.exp2(*score - greatest);
                *sum += *score;
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

/// The floats of some lines.
fn floats(lines: &mut [Line]) -> &mut [f32] {
    // SAFETY: a line is sixteen words, and every bit pattern is an f32.
    unsafe { std::slice::from_raw_parts_mut(lines.as_mut_ptr().cast(), lines.len() * 16) }
}

/// Pointers to `count` rows, `stride` floats apart.
#[inline(always)]
fn pointers(rows: &[f32], stride: usize, count: usize) -> [*const u32; MAX_ROWS] {
    let mut pointers = [std::ptr::null(); MAX_ROWS];
    for (pointer, row) in pointers.iter_mut().zip(rows.chunks(stride)).take(count) {
        *pointer = row.as_ptr().cast();
    }
    pointers
}

struct SharedOutput<T>(*mut MaybeUninit<T>);

// SAFETY: tasks write disjoint parts.
unsafe impl<T: Send> Sync for SharedOutput<T> {}

#[derive(Default)]
struct Scratch {
    q: Vec<Line>,
    scores: Vec<Line>,
    sums: Vec<Line>,
    states: Vec<State>,
}

thread_local! {
    /// Kept between calls: a task is too short to ask for memory.
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}
