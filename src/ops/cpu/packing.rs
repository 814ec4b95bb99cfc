//! From the order of the files to the order of the microkernel, straight from the numbers as they are stored.
//!
//! A strip of up to sixteen outputs is read in runs: each is converted to f32 in the first-level cache, which the memory serves
//! at its full rate, and then turned, so that the sixteen weights that a word's column needs are written as one vector.
#![cfg_attr(target_arch = "x86_64", expect(unsafe_code, reason = "a tile is turned by instructions"))]

use super::added_product::AddedProduct;
use super::element::Element;
use super::isa::Isa;
use super::lines::elements_mut;
use super::numbers::Numbers;
use super::packed::PackedForm;
use super::weight_arena::WeightArena;
use candle_core::Result;
use half::{bf16, f16};
use rayon::prelude::*;

/// Outputs that are read side by side, and the side of a tile.
const STRIP: usize = 16;

/// Weights of an output that are read in a row: 16 KiB of f32 for a strip, and as much where they go.
const RUN: usize = 256;

/// Numbers of a product that are added to weights at once: 1 MiB.
const PRODUCT: usize = 1 << 18;

/// Panels whose rows fill the tiles of a product.
const MOST_PANELS: usize = 7;

/// Weights and where they go.
pub(super) struct Packing {
    pub(super) isa: Isa,
    pub(super) form: PackedForm,
    pub(super) outputs: usize,
    pub(super) inputs: usize,
    pub(super) taps: usize,
    pub(super) steps: usize,
    pub(super) columns: usize,
    pub(super) lanes: usize,
    /// It is for one product.
    pub(super) passing: bool,
}

impl Packing {
    /// The panels of `weights`, `(outputs, inputs, taps)`, and of what is added to them.
    pub(super) fn pack(&self, weights: &Numbers<'_>, product: Option<&AddedProduct>) -> Result<WeightArena> {
        // The last panel may be one vector wide.
        let words = self.outputs.next_multiple_of(self.lanes) * self.taps * self.steps;
        match self.form {
            PackedForm::F32 => self.panels(
                words,
                weights,
                product,
                #[inline(always)]
                |to: &mut f32, _, x| *to = x,
            ),
            PackedForm::Bf16Pairs => self.panels(
                words,
                weights,
                product,
                // The first of a pair comes first, and clears the place of the second.
                #[inline(always)]
                |to: &mut f32, input, x| {
                    let bits = u32::from(<bf16 as Element>::narrow(x).to_bits());
                    *to = f32::from_bits(if input % 2 == 0 { bits } else { to.to_bits() | bits << 16 });
                },
            ),
            PackedForm::Bf16 => self.panels(
                words.div_ceil(2),
                weights,
                product,
                #[inline(always)]
                |to: &mut bf16, _, x| *to = Element::narrow(x),
            ),
            PackedForm::F16 => self.panels(
                words.div_ceil(2),
                weights,
                product,
                #[inline(always)]
                |to: &mut f16, _, x| *to = Element::narrow(x),
            ),
        }
    }

    /// Panels in `words` words, of places of type `T` that `put` puts the weight of an input into.
    fn panels<T: Element>(
        &self,
        words: usize,
        weights: &Numbers<'_>,
        product: Option<&AddedProduct>,
        put: impl Fn(&mut T, usize, f32) + Copy + Sync,
    ) -> Result<WeightArena> {
        // Words of inputs that are not there are multiplied with zeros; outputs that are not there are left out.
        let is_full = self.form != PackedForm::Bf16Pairs || self.inputs == 2 * self.steps;
        let mut weight_arena = match (self.passing, is_full) {
            (true, _) => WeightArena::passing(words)?,
            (false, true) => WeightArena::uncleared(words)?,
            (false, false) => WeightArena::new(words)?,
        };
        let panel = (self.columns * self.taps * self.steps).max(1);
        // Rows of a product are computed some panels at a time, and packed from the caches.
        let row = self.inputs * self.taps;
        let group = product.map_or(1, |_| (PRODUCT / (self.columns * row).max(1)).clamp(1, MOST_PANELS));
        let pack = |added: &mut Vec<f32>, (index, panels): (usize, &mut [T])| {
            let first = index * group * self.columns;
            let rows = (group * self.columns).min(self.outputs.saturating_sub(first));
            if let Some(product) = product {
                added.resize(rows * row, 0.0);
                product.rows(first, added);
            }
            for (index, panel) in panels.chunks_mut(panel).enumerate() {
                let offset = index * self.columns;
                let count = self.columns.min(rows.saturating_sub(offset));
                let added = product.map(|_| &added[(offset * row).min(added.len())..]);
                for column in (0..count).step_by(STRIP) {
                    let columns = column..count.min(column + STRIP);
                    self.isa.vectorize(
                        #[inline(always)]
                        |_| self.strip(weights, added, first + offset, columns, count.next_multiple_of(self.lanes), panel, put),
                    );
                }
            }
        };
        let panels = elements_mut::<T>(&mut weight_arena).par_chunks_mut(panel * group).enumerate();
        panels.for_each_init(Vec::new, pack);
        Ok(weight_arena)
    }

    /// Some columns of the panel whose first output is `first`, and which is `width` columns wide; rows of `added` are added to theirs.
    #[inline(always)]
    #[expect(clippy::too_many_arguments, reason = "the body of a parallel loop")]
    fn strip<T: Element>(
        &self,
        weights: &Numbers<'_>,
        added: Option<&[f32]>,
        first: usize,
        columns: std::ops::Range<usize>,
        width: usize,
        panel: &mut [T],
        put: impl Fn(&mut T, usize, f32),
    ) {
        let depth = if self.form == PackedForm::Bf16Pairs { 2 } else { 1 };
        let row = self.inputs * self.taps;
        let mut run = [[0f32; RUN]; STRIP];
        let mut tile = [[0f32; STRIP]; STRIP];
        let (mut input, mut tap) = (0, 0);
        for from in (0..row).step_by(RUN) {
            let len = RUN.min(row - from);
            for (run, column) in run.iter_mut().zip(columns.clone()) {
                weights.widen((first + column) * row + from, &mut run[..len]);
                if let Some(added) = added {
                    run[..len].iter_mut().zip(&added[column * row + from..]).for_each(|(x, more)| *x += more);
                }
            }
            for at in (0..len).step_by(STRIP) {
                self.turn(&run, at, &mut tile);
                for values in tile.iter().take(len - at) {
                    let place = (tap * self.steps + input / depth) * width;
                    let to = &mut panel[place..][columns.clone()];
                    for (to, value) in to.iter_mut().zip(values) {
                        put(to, input, *value);
                    }
                    tap += 1;
                    if tap == self.taps {
                        (tap, input) = (0, input + 1);
                    }
                }
            }
        }
    }

    /// Rows become columns: `tile[i][j]` is `run[j][at + i]`.
    #[inline(always)]
    fn turn(&self, run: &[[f32; RUN]; STRIP], at: usize, tile: &mut [[f32; STRIP]; STRIP]) {
        #[cfg(target_arch = "x86_64")]
        if matches!(self.isa, Isa::Avx512 | Isa::Avx512Bf16 | Isa::Amx) {
            // SAFETY: this `Isa` was detected; `at` is a multiple of the strip below the run's length.
            return unsafe { turn_avx512(run.as_ptr().cast::<f32>().add(at), tile) };
        }
        for (i, tile) in tile.iter_mut().enumerate() {
            for (to, run) in tile.iter_mut().zip(run) {
                *to = run[at + i];
            }
        }
    }
}

/// # Safety
/// Sixteen rows of sixteen, [`RUN`] apart, must be there to read.
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn turn_avx512(from: *const f32, tile: &mut [[f32; STRIP]; STRIP]) {
    use std::arch::x86_64::*;
    // Fours of lanes first, by loading quarters of rows where they belong; then pairs and ones.
    // SAFETY: the caller's promise.
    let quarter = |row: usize, quarter: usize| unsafe { _mm_loadu_ps(from.add(row * RUN + 4 * quarter)) };
    for part in 0..4 {
        let four = |row: usize| {
            let low = _mm512_insertf32x4::<1>(_mm512_castps128_ps512(quarter(row, part)), quarter(row + 4, part));
            _mm512_insertf32x4::<3>(_mm512_insertf32x4::<2>(low, quarter(row + 8, part)), quarter(row + 12, part))
        };
        let (a, b, c, d) = (four(0), four(1), four(2), four(3));
        let (ab, ab2) = (_mm512_castps_pd(_mm512_unpacklo_ps(a, b)), _mm512_castps_pd(_mm512_unpackhi_ps(a, b)));
        let (cd, cd2) = (_mm512_castps_pd(_mm512_unpacklo_ps(c, d)), _mm512_castps_pd(_mm512_unpackhi_ps(c, d)));
        let columns = [_mm512_unpacklo_pd(ab, cd), _mm512_unpackhi_pd(ab, cd), _mm512_unpacklo_pd(ab2, cd2), _mm512_unpackhi_pd(ab2, cd2)];
        for (to, column) in tile[4 * part..].iter_mut().zip(columns) {
            // SAFETY: a row of the tile is sixteen numbers.
            unsafe { _mm512_storeu_ps(to.as_mut_ptr(), _mm512_castpd_ps(column)) };
        }
    }
}
