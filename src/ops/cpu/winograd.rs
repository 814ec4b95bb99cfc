//! Convolutions with fewer products: a tile of outputs is 36 products of transformed numbers, channel by channel, where the taps
//! themselves would need 144 (3×3 taps, tiles of 4×4) or 100 (2×2 taps, tiles of 5×5).
//!
//! Both forms take 6×6 pixels and evaluate at the same points, so that the pixels' transform and the products between are
//! the same code. Nothing transformed goes through memory: a task transforms the pixels of some tiles into a scratch of its own, and of
//! the weights a block of channels at a time, straight from the panels that the plain products read. So the weights take no more
//! memory than without, and 16-bit weights give f32 products.
//!
//! A sum is taken in blocks of channels whose places are fixed, and a tile's place is its own: neither the batch nor the number of
//! threads changes a bit.
//!
//! # Source
//! Lavin, Gray 2015, "Fast algorithms for convolutional neural networks", <https://arxiv.org/abs/1509.09308>: F(4×4, 3×3), and by the
//! same construction F(5×5, 2×2).
#![expect(unsafe_code, reason = "kernels take raw pointers, and threads write disjoint parts of one output")]

use super::element::Element;
use super::lines::{CacheLine, elements, elements_mut, reserve};
use super::math::{LANES, Math};
use super::microkernel::{Kernels, MAX_ROWS, Tile};
use super::output::ProductOutput;
use super::packed::{Packed, PackedForm};
use super::rows::Geometry;
use super::transform::{POINTS, Plane, SIDE, Transforms};
use half::{bf16, f16};
use rayon::prelude::*;
use std::cell::RefCell;
use std::ops::Range;

/// Channels that are summed before the next are transformed: the weights of 32 outputs are 288 KiB.
const BLOCK: usize = 64;

/// Channels whose weights are widened at once, where they are not f32.
const WIDENED: usize = 16;

/// Transformed pixels of a task, at most, if not of two tiles of the microkernel: 4 MiB.
const MOST_PIXELS: usize = 1 << 20;

/// Tiles of a task, at most: the transform of the weights is a small part of their work.
const MOST_TILES: usize = 112;

/// Tasks for every thread, at least, if the panels can be shared.
const TASKS_PER_THREAD: usize = 4;

/// What the transforms cost: of the pixels for every input channel in products with an output, of the outputs for every output channel in
/// products with an input, and of a weight in all. Measured (`NOTES.md`).
const PIXELS_COST: f64 = 32.0;
const OUTPUTS_COST: f64 = 32.0;
const WEIGHTS_COST: f64 = 150.0;

/// A sliding window of stride 1, and its tiles.
#[derive(Clone, Copy)]
struct TileGrid {
    input: (usize, usize),
    output: (usize, usize),
    padding: (usize, usize),
    /// Outputs along the side of a tile.
    side: usize,
    /// Tiles of an image, along the height and the width.
    grid: (usize, usize),
    /// Of all images.
    tiles: usize,
}

impl TileGrid {
    /// The image of a tile, and the line and column of its first output.
    fn place(&self, tile: usize) -> (usize, usize, usize) {
        let (image, tile) = (tile / (self.grid.0 * self.grid.1), tile % (self.grid.0 * self.grid.1));
        (image, tile / self.grid.1 * self.side, tile % self.grid.1 * self.side)
    }
}

impl Packed {
    /// Multiplies by [transformed](self) tiles, where that is done for such windows; says whether it was.
    pub(super) fn multiply_transformed<T: Element>(&self, x: &[T], geometry: Geometry, out: &ProductOutput<'_, T>) -> bool {
        match self.tiling(geometry) {
            Some((transforms, tiling)) if self.pays(&tiling) => {
                self.run_transformed(transforms, x, geometry, &tiling, out);
                true
            }
            _ => false,
        }
    }

    /// How windows are tiled, where there is a transform for their taps.
    fn tiling(&self, geometry: Geometry) -> Option<(&'static Transforms, TileGrid)> {
        let Geometry::Windows { batch, input, output, kernel, stride: 1, padding } = geometry else { return None };
        let transforms = match kernel {
            (3, 3) => self.isa.transforms(3),
            (2, 2) => self.isa.transforms(2),
            _ => return None,
        };
        let side = transforms.outputs_side;
        let grid = (output.0.div_ceil(side), output.1.div_ceil(side));
        let tiling = TileGrid { input, output, padding, side, grid, tiles: batch * grid.0 * grid.1 };
        // Whole vectors of channels, and panels that are as wide as those of the products of f32.
        let fits = self.inputs.is_multiple_of(LANES) && self.form.kernels(self.isa).lanes == self.isa.kernels().lanes;
        fits.then_some((transforms, tiling))
    }

    /// Whether the transformed products of one image and what they cost besides are less than the plain ones. The batch does not
    /// count: an image is the same alone and among others.
    fn pays(&self, tiling: &TileGrid) -> bool {
        let TileGrid { output, grid, .. } = *tiling;
        let plain = (output.0 * output.1 * self.taps) as f64 / self.form.kernels(self.isa).speed;
        let (inputs, outputs) = (self.inputs as f64, self.outputs as f64);
        let tile = POINTS as f64 * (1.0 + PIXELS_COST / outputs + OUTPUTS_COST / inputs);
        (grid.0 * grid.1) as f64 * tile + WEIGHTS_COST < plain
    }

    fn run_transformed<T: Element>(
        &self,
        transforms: &Transforms,
        x: &[T],
        geometry: Geometry,
        tiling: &TileGrid,
        out: &ProductOutput<'_, T>,
    ) {
        assert!(out.is_of(geometry.rows(), self.outputs), "a convolution does not fit where it goes");
        let x = &x[..geometry.pixels() * self.inputs];
        let kernels = self.isa.kernels();
        let panels = self.outputs.div_ceil(kernels.columns());
        if tiling.tiles == 0 || panels == 0 {
            return;
        }
        let most = (MOST_PIXELS / (POINTS * self.inputs)).clamp(2 * kernels.rows, MOST_TILES) / kernels.rows * kernels.rows;
        let chunks = tiling.tiles.div_ceil(most);
        let chunk_tiles = tiling.tiles.div_ceil(chunks).next_multiple_of(kernels.rows);
        let chunks = tiling.tiles.div_ceil(chunk_tiles);
        let groups = (TASKS_PER_THREAD * rayon::current_num_threads()).div_ceil(chunks).min(panels);
        let group = panels.div_ceil(groups);
        let groups = panels.div_ceil(group);
        (0..chunks * groups).into_par_iter().with_max_len(1).for_each(|task| {
            let first = task / groups * chunk_tiles;
            let task = TransformTask {
                packed: self,
                kernels,
                transforms,
                tiling,
                tiles: first..tiling.tiles.min(first + chunk_tiles),
                panels: task % groups * group..panels.min((task % groups + 1) * group),
            };
            SCRATCH.with_borrow_mut(|scratch| {
                self.isa.vectorize(
                    #[inline(always)]
                    |math| task.run(math, x, scratch, out),
                );
            });
        });
    }
}

/// Some tiles of some panels.
struct TransformTask<'a> {
    packed: &'a Packed,
    kernels: &'a Kernels,
    transforms: &'a Transforms,
    tiling: &'a TileGrid,
    tiles: Range<usize>,
    panels: Range<usize>,
}

impl TransformTask<'_> {
    #[inline(always)]
    fn run<T: Element>(&self, math: Math, x: &[T], scratch: &mut TransformScratch, out: &ProductOutput<'_, T>) {
        let Self { packed, kernels, tiling, .. } = *self;
        let (count, columns) = (self.tiles.len(), kernels.columns());
        let room = count.next_multiple_of(kernels.rows);
        let TransformScratch { pixels, weights, sums, widened } = scratch;
        let block = BLOCK.min(packed.inputs);
        reserve(pixels, POINTS * count * packed.inputs);
        reserve(weights, POINTS * block * columns);
        reserve(sums, POINTS * room * columns);
        reserve(widened, (POINTS * block).max(packed.taps * WIDENED * columns));
        let (pixels, weights) = (elements_mut::<f32>(pixels), elements_mut::<f32>(weights));
        let (sums, widened) = (elements_mut::<f32>(sums), elements_mut::<f32>(widened));
        self.transform_pixels(x, pixels, widened);
        for panel in self.panels.clone() {
            let first_column = panel * columns;
            let outputs = columns.min(packed.outputs - first_column);
            let width = outputs.next_multiple_of(kernels.lanes);
            for first in (0..packed.inputs).step_by(BLOCK) {
                let channels = BLOCK.min(packed.inputs - first);
                self.transform_weights(first_column, width, first..first + channels, weights, widened);
                let pixels = &pixels[first * POINTS * count..][..POINTS * count * channels];
                // The weights of a point stay in the first cache while all tiles meet them.
                for point in 0..POINTS {
                    for tile in (0..count).step_by(kernels.rows) {
                        let rows = kernels.rows.min(count - tile);
                        let pixels = &pixels[(point * count + tile) * channels..][..rows * channels];
                        let pointers: [*const u32; MAX_ROWS] =
                            std::array::from_fn(|row| pixels.as_ptr().wrapping_add(row * channels).cast());
                        let to = &mut sums[(point * room + tile) * width..][..kernels.rows * width];
                        // SAFETY: rows lie `channels` words of every point; the weights of a point are `channels` rows of `width`; the sums have
                        // room for a whole tile of rows.
                        unsafe {
                            kernels.tiles[width / kernels.lanes - 1][rows - 1](&Tile {
                                rows: pointers.as_ptr(),
                                taps: 1,
                                offset: 0,
                                steps: channels,
                                panel: weights[point * channels * width..].as_ptr().cast(),
                                tap_stride: 0,
                                out: to.as_mut_ptr(),
                                out_stride: width,
                                accumulate: first > 0,
                            });
                        }
                    }
                }
            }
            for (place, tile) in self.tiles.clone().enumerate() {
                // SAFETY: a tile has `width` sums at every point, and there is room for its outputs.
                unsafe {
                    let from = Plane::new(sums[place * width..].as_ptr(), room * width);
                    (self.transforms.outputs)(&from, widened.as_mut_ptr(), width, width);
                }
                let (image, top, left) = tiling.place(tile);
                let right = tiling.side.min(tiling.output.1 - left);
                for (y, values) in (top..tiling.output.0).zip(widened.chunks(tiling.side * width)).take(tiling.side) {
                    let row = (image * tiling.output.0 + y) * tiling.output.1 + left;
                    let bias = &packed.bias[first_column..];
                    // SAFETY: the outputs are the product's, and the task has these alone.
                    unsafe { out.write(math, row, first_column, outputs, &values[..right * width], width, bias) };
                }
            }
        }
    }

    /// The pixels of all tiles: `[channels / BLOCK][POINTS][tiles][BLOCK]`.
    #[inline(always)]
    fn transform_pixels<T: Element>(&self, x: &[T], to: &mut [f32], widened: &mut [f32]) {
        let (tiling, inputs, count) = (self.tiling, self.packed.inputs, self.tiles.len());
        for (place, tile) in self.tiles.clone().enumerate() {
            let (image, top, left) = tiling.place(tile);
            for first in (0..inputs).step_by(BLOCK) {
                let channels = BLOCK.min(inputs - first);
                for (at, widened) in widened.chunks_exact_mut(channels).take(POINTS).enumerate() {
                    let (y, x_) = ((top + at / SIDE).wrapping_sub(tiling.padding.0), (left + at % SIDE).wrapping_sub(tiling.padding.1));
                    if y < tiling.input.0 && x_ < tiling.input.1 {
                        let from = &x[((image * tiling.input.0 + y) * tiling.input.1 + x_) * inputs + first..][..channels];
                        widened.iter_mut().zip(from).for_each(|(to, from)| *to = from.widen());
                    } else {
                        widened.fill(0.0);
                    }
                }
                let to = &mut to[first * POINTS * count + place * channels..];
                // SAFETY: there are `channels` pixels at every point, and so much room `count` times.
                unsafe { (self.transforms.pixels)(&Plane::new(widened.as_ptr(), channels), to.as_mut_ptr(), count * channels, channels) };
            }
        }
    }

    /// The weights of some outputs for some input channels: `[POINTS][channels][width]`.
    #[inline(always)]
    fn transform_weights(&self, first_column: usize, width: usize, channels: Range<usize>, to: &mut [f32], widened: &mut [f32]) {
        let packed = self.packed;
        let start = first_column * packed.taps * packed.steps;
        let stride = channels.len() * width;
        if packed.form == PackedForm::F32 {
            let from = &elements::<f32>(&packed.panels)[start + channels.start * width..];
            // SAFETY: the taps of a panel are `steps` rows of `width` words apart.
            unsafe { (self.transforms.weights)(&Plane::new(from.as_ptr(), packed.steps * width), to.as_mut_ptr(), stride, stride) };
            return;
        }
        for first in channels.clone().step_by(WIDENED) {
            let some = first..channels.end.min(first + WIDENED);
            let len = some.len() * width;
            for (tap, widened) in widened.chunks_exact_mut(len).take(packed.taps).enumerate() {
                let start = start + tap * packed.steps * width;
                match packed.form {
                    PackedForm::F32 => {}
                    PackedForm::Bf16 => widen(&elements::<bf16>(&packed.panels)[start + first * width..], widened),
                    PackedForm::F16 => widen(&elements::<f16>(&packed.panels)[start + first * width..], widened),
                    PackedForm::Bf16Pairs => {
                        let pairs = elements::<f32>(&packed.panels)[start + first / 2 * width..].chunks_exact(width);
                        for (to, pairs) in widened.chunks_mut(2 * width).zip(pairs) {
                            // The first of a pair is the lower half.
                            let (even, odd) = to.split_at_mut(width);
                            even.iter_mut().zip(pairs).for_each(|(to, pair)| *to = f32::from_bits(pair.to_bits() << 16));
                            odd.iter_mut().zip(pairs).for_each(|(to, pair)| *to = f32::from_bits(pair.to_bits() & 0xffff_0000));
                        }
                    }
                }
            }
            let to = &mut to[(first - channels.start) * width..];
            // SAFETY: the widened taps are `len` words apart, and there is room for `stride` words of every point.
            unsafe { (self.transforms.weights)(&Plane::new(widened.as_ptr(), len), to.as_mut_ptr(), stride, len) };
        }
    }
}

#[inline(always)]
fn widen<T: Element>(from: &[T], to: &mut [f32]) {
    to.iter_mut().zip(from).for_each(|(to, from)| *to = from.widen());
}

#[derive(Default)]
struct TransformScratch {
    pixels: Vec<CacheLine>,
    weights: Vec<CacheLine>,
    sums: Vec<CacheLine>,
    /// A tile's pixels, its outputs, or some weights.
    widened: Vec<CacheLine>,
}

thread_local! {
    /// Kept between calls: entering fresh memory takes longer than filling it.
    static SCRATCH: RefCell<TransformScratch> = RefCell::default();
}

#[cfg(test)]
mod tests {
    use super::super::super::Weight;
    use super::super::isa::Isa;
    use super::*;
    use candle_core::{DType, Device, Result, Tensor};
    use std::mem::MaybeUninit;

    fn random(len: usize, seed: u32) -> Vec<f32> {
        let mut state = seed.wrapping_mul(2_654_435_761).max(1);
        std::iter::repeat_with(|| {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            (state >> 8) as f32 / 8_388_608.0 - 1.0
        })
        .take(len)
        .collect()
    }

    fn written<T: Element>(len: usize, write: impl FnOnce(&mut [MaybeUninit<T>])) -> Vec<T> {
        let mut to = vec![MaybeUninit::new(T::narrow(f32::NAN)); len];
        write(&mut to);
        // SAFETY: everything has been written once, above.
        to.into_iter().map(|x| unsafe { x.assume_init() }).collect()
    }

    /// The product of some images by transforms, by plain tiles, and in f64.
    fn products<T: Element>(packed: &Packed, weights: &[f32], x: &[T], geometry: Geometry) -> (Vec<T>, Vec<T>, Vec<f64>) {
        let Geometry::Windows { batch, input, output, kernel, padding, .. } = geometry else { unreachable!("windows") };
        let len = geometry.rows() * packed.outputs;
        let (transforms, tiling) = packed.tiling(geometry).expect("there is a transform");
        let transformed = written(len, |to| {
            packed.run_transformed(transforms, x, geometry, &tiling, &ProductOutput::new(to, packed.outputs, batch, None, None));
        });
        let plain = written(len, |to| packed.multiply_plain(x, geometry, &ProductOutput::new(to, packed.outputs, batch, None, None)));
        let mut exact = Vec::new();
        for row in 0..geometry.rows() {
            let (image, y, column) = (row / (output.0 * output.1), row / output.1 % output.0, row % output.1);
            for out in 0..packed.outputs {
                let mut sum = f64::from(packed.bias[out]);
                for (tap, channel) in (0..packed.taps).flat_map(|tap| (0..packed.inputs).map(move |channel| (tap, channel))) {
                    let (y, x_) = ((y + tap / kernel.1).wrapping_sub(padding.0), (column + tap % kernel.1).wrapping_sub(padding.1));
                    if y < input.0 && x_ < input.1 {
                        let pixel = x[((image * input.0 + y) * input.1 + x_) * packed.inputs + channel].widen();
                        sum += f64::from(pixel) * f64::from(weights[(out * packed.inputs + channel) * packed.taps + tap]);
                    }
                }
                exact.push(sum);
            }
        }
        (transformed, plain, exact)
    }

    fn error<T: Element>(values: &[T], exact: &[f64]) -> f64 {
        let square = |x: f64| x * x;
        let difference: f64 = values.iter().zip(exact).map(|(x, exact)| square(f64::from(x.widen()) - exact)).sum();
        (difference / exact.iter().copied().map(square).sum::<f64>()).sqrt()
    }

    fn check<T: Element>(isa: Isa, kernel: usize, size: (usize, usize), inputs: usize, outputs: usize, bars: (f64, f64)) -> Result<()> {
        let weights: Vec<f32> = random(outputs * inputs * kernel * kernel, 7).into_iter().map(|x| T::narrow(x).widen()).collect();
        let weight = Tensor::from_slice(&weights, (outputs, inputs, kernel, kernel), &Device::Cpu)?.to_dtype(T::DTYPE)?;
        let bias = Tensor::new(random(outputs, 5), &Device::Cpu)?;
        let packed = Packed::new(isa, &Weight::from(&weight), Some(&bias), kernel * kernel)?;
        if isa == Isa::AmxModel && T::DTYPE == DType::BF16 {
            return Ok(()); // The model's panels are wider than those of plain Rust.
        }
        let geometry = |batch| Geometry::Windows {
            batch,
            input: size,
            output: (size.0 + 3 - kernel, size.1 + 3 - kernel),
            kernel: (kernel, kernel),
            stride: 1,
            padding: (1, 1),
        };
        let x: Vec<T> = random(3 * size.0 * size.1 * inputs, 3).into_iter().map(T::narrow).collect();
        let (transformed, plain, exact) = products(&packed, &weights, &x, geometry(3));
        let what = format!("{} {:?} {kernel}×{kernel} of {size:?}, {inputs} to {outputs}", isa.name(), T::DTYPE);
        assert!(error(&plain, &exact) < bars.0, "{what}: plain {}", error(&plain, &exact));
        assert!(error(&transformed, &exact) < bars.1, "{what}: {}", error(&transformed, &exact));
        // The last image alone has the same bits.
        let (alone, ..) = products(&packed, &weights, &x[2 * size.0 * size.1 * inputs..], geometry(1));
        let bits = |values: &[T]| values.iter().map(|x| x.widen().to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(&alone), bits(&transformed[2 * alone.len()..]), "{what}: alone and in a batch");
        Ok(())
    }

    #[test]
    fn transformed_tiles_are_the_plain_convolution() -> Result<()> {
        for isa in Isa::available() {
            for (kernel, size, inputs, outputs) in
                [(3, (1, 1), 16, 3), (3, (9, 6), 32, 40), (3, (8, 12), 80, 16), (2, (5, 7), 16, 33), (2, (4, 11), 96, 8)]
            {
                check::<f32>(isa, kernel, size, inputs, outputs, (6e-7, 1.2e-6))?;
                // Products of what is rounded are exact here, and the result is rounded once.
                check::<bf16>(isa, kernel, size, inputs, outputs, (3e-3, 3e-3))?;
                check::<f16>(isa, kernel, size, inputs, outputs, (4e-4, 4e-4))?;
            }
        }
        Ok(())
    }

    #[test]
    fn what_is_chosen_depends_on_the_image_and_not_on_the_batch() -> Result<()> {
        let weight = Tensor::zeros((64, 64, 3, 3), DType::F32, &Device::Cpu)?;
        let packed = Packed::new(Isa::Portable, &Weight::from(&weight), None, 9)?;
        let chosen = |batch, size| {
            let windows = Geometry::Windows { batch, input: size, output: size, kernel: (3, 3), stride: 1, padding: (1, 1) };
            packed.tiling(windows).is_some_and(|(_, tiling)| packed.pays(&tiling))
        };
        assert!(chosen(1, (64, 64)) && chosen(8, (64, 64)));
        assert!(!chosen(1, (2, 2)) && !chosen(64, (2, 2)), "a tile that is mostly empty");
        Ok(())
    }
}
