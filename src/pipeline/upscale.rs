//! Enlarging an image by a network, tile by tile, so that what it takes in memory does not grow with the image.
//!
//! A tile is computed with some of the image around it, and counts only where that is far enough away; over the seam to its neighbour it
//! gives way evenly. Where a network sees no farther than that, the tiles are the whole image to the last bit but for rounding.

use super::{Observer, Pipeline, Stage};
use crate::device;
use crate::image::{ResizeFilter, resize};
use crate::models::{Scope, Upscaler};
use crate::ops::{Wrap, on_workers};
use crate::settings::{EnlargedBy, Request};
use crate::weights::TensorSource;
use crate::{Error, Result};
use ::image::{RgbImage, imageops};
use candle_core::{DType, Device, Tensor};

/// Pixels of the image around a tile that the network sees too.
const CONTEXT: usize = 32;
/// Half of a seam's width, in pixels of the image.
const RAMP: usize = 8;
/// A tile's side in pixels of the image, at most, and what is not cut any more.
const TILE: usize = 192;
const SMALLEST: usize = 32;
/// Pixels of an enlarged image: more is no file that anything opens.
const MOST_PIXELS: usize = 1 << 30;

/// A network that enlarges images, ready to.
#[derive(Debug)]
pub struct UpscalePipeline {
    network: Upscaler,
    device: Device,
    dtype: DType,
}

impl Pipeline {
    /// The image as its request wants it in the end: enlarged, where that is asked for. `(done, all)` are images of the batch.
    pub(super) fn upscaled(
        &self,
        image: RgbImage,
        request: &Request,
        (done, all): (usize, usize),
        observer: &mut dyn Observer,
    ) -> Result<RgbImage> {
        let Some(EnlargedBy { file, scale, .. }) = &request.passes.upscale else { return Ok(image) };
        let network = self.networks.passes.upscaler(file, &self.device)?;
        let scale = scale.unwrap_or(network.scale() as f64);
        network.run_wrapped(&image, scale, request.wrap(), &mut |_, _| observer.stage(Stage::Decode { done, all }))
    }
}

impl UpscalePipeline {
    /// Reads a network from `source`, which people call `name`.
    ///
    /// # Errors
    /// [`Error::Model`]: it is none that is known, or is not whole.
    pub fn load(source: &dyn TensorSource, name: &str, device: &Device, dtype: DType) -> Result<Self> {
        let network = Upscaler::load(&Scope::root(source, dtype, device)).map_err(|error| match error {
            // The weights' own sentences name the file.
            Error::Model(what) if what.starts_with(name) => Error::Model(what),
            error if error.is_out_of_memory() => error,
            error => Error::Model(format!("{name}: {error}")),
        })?;
        let Some(network) = network else {
            return Err(Error::Model(format!(
                "{name}: is not an upscaler that is known: ESRGAN (RRDBNet), Compact (SRVGGNetCompact), SPAN and SwinIR are"
            )));
        };
        Ok(Self { network, device: device.clone(), dtype })
    }

    /// What people call networks like this one.
    pub fn architecture(&self) -> &'static str {
        self.network.architecture()
    }

    /// How much larger an image becomes.
    pub fn scale(&self) -> usize {
        self.network.scale()
    }

    /// Enlarges an image `scale` times, whatever the network itself does.
    ///
    /// # Errors
    /// As [`UpscalePipeline::run`].
    pub fn run_to(&self, image: &RgbImage, scale: f64, progress: &mut dyn FnMut(usize, usize) -> Result<()>) -> Result<RgbImage> {
        let enlarged = self.run(image, progress)?;
        let side = |side: u32| ((f64::from(side) * scale).round() as u32).max(1);
        let (width, height) = (side(image.width()), side(image.height()));
        Ok(if enlarged.dimensions() == (width, height) { enlarged } else { resize(&enlarged, width, height, ResizeFilter::Lanczos) })
    }

    /// As [`UpscalePipeline::run_to`], of an image that goes on at its other side: the network sees what is there, and so does the filter
    /// that brings its result to the size.
    ///
    /// # Errors
    /// As [`UpscalePipeline::run`].
    pub fn run_wrapped(
        &self,
        image: &RgbImage,
        scale: f64,
        wrap: Wrap,
        progress: &mut dyn FnMut(usize, usize) -> Result<()>,
    ) -> Result<RgbImage> {
        if wrap.is_none() {
            return self.run_to(image, scale, progress);
        }
        let around = CONTEXT.next_multiple_of(self.network.multiple()) as u32;
        let around = (if wrap.x { around } else { 0 }, if wrap.y { around } else { 0 });
        let (width, height) = image.dimensions();
        let enlarged = self.run(&surrounded(image, around), progress)?;
        let native = self.scale() as u32;
        let (across, down) = (width * native, height * native);
        let enlarged = imageops::crop_imm(&enlarged, around.0 * native, around.1 * native, across, down).to_image();
        let side = |side: u32| ((f64::from(side) * scale).round() as u32).max(1);
        let wanted = (side(width), side(height));
        if wanted == (across, down) {
            return Ok(enlarged);
        }
        // As many pixels around as become a whole number of pixels.
        let margin = |wraps: bool, from: u32, to: u32| {
            let common = (1..=from.min(to)).rev().find(|n| from.is_multiple_of(*n) && to.is_multiple_of(*n)).unwrap_or(1);
            let times = (RAMP as u32 * native).div_ceil(from / common);
            if wraps { (from / common * times, to / common * times) } else { (0, 0) }
        };
        let (x, y) = (margin(wrap.x, across, wanted.0), margin(wrap.y, down, wanted.1));
        let larger = surrounded(&enlarged, (x.0, y.0));
        let resized = resize(&larger, wanted.0 + 2 * x.1, wanted.1 + 2 * y.1, ResizeFilter::Lanczos);
        Ok(imageops::crop_imm(&resized, x.1, y.1, wanted.0, wanted.1).to_image())
    }

    /// Enlarges an image; `progress` hears how many tiles of how many are done, and may end it.
    ///
    /// # Errors
    /// The result would be too large, the memory does not suffice for the smallest tile, or `progress` ended it.
    pub fn run(&self, image: &RgbImage, progress: &mut dyn FnMut(usize, usize) -> Result<()>) -> Result<RgbImage> {
        let mut tile = TILE;
        loop {
            match self.run_in_tiles(image, tile, progress) {
                Err(error) if error.is_out_of_memory() && tile > SMALLEST => {
                    tile /= 2;
                    device::release(&self.device);
                }
                result => return result,
            }
        }
    }

    fn run_in_tiles(&self, image: &RgbImage, tile: usize, progress: &mut dyn FnMut(usize, usize) -> Result<()>) -> Result<RgbImage> {
        let scale = self.scale();
        let (width, height) = (image.width() as usize, image.height() as usize);
        let Some(pixels) = (width * scale).checked_mul(height * scale).filter(|pixels| *pixels <= MOST_PIXELS) else {
            return Err(Error::Image(format!("{}x{} pixels are too many for one image", width * scale, height * scale)));
        };
        let multiple = self.network.multiple();
        let (rows, columns) = (cuts(height, tile, multiple), cuts(width, tile, multiple));
        let all = rows.len() * columns.len();
        let mut done = Vec::new();
        done.try_reserve_exact(pixels * 3).map_err(|_| {
            Error::Memory(format!(
                "an image of {}x{} does not fit into the memory that can be had; try a smaller one",
                width * scale,
                height * scale
            ))
        })?;
        let mut enlarged = EnlargedRows { width: width * scale * 3, first: 0, sums: Vec::new(), done };
        for (y, row) in rows.iter().enumerate() {
            for (x, column) in columns.iter().enumerate() {
                progress(y * columns.len() + x, all)?;
                let values = on_workers(&self.device, || self.tile(image, row, column))?;
                enlarged.add(&values, (row, column), (height, width), scale);
            }
            enlarged.finish(if y + 1 == rows.len() { height * scale } else { (row.own_to - RAMP) * scale });
        }
        progress(all, all)?;
        RgbImage::from_raw((width * scale) as u32, (height * scale) as u32, enlarged.done)
            .ok_or_else(|| Error::Image("the tiles do not make an image".into()))
    }

    /// The values of a tile, row by row.
    fn tile(&self, image: &RgbImage, row: &Cut, column: &Cut) -> Result<Vec<f32>> {
        let (height, width) = (row.to - row.from, column.to - column.from);
        let pixels = (row.from..row.to).flat_map(|y| (column.from..column.to).map(move |x| image.get_pixel(x as u32, y as u32).0));
        let values: Vec<f32> = pixels.flatten().map(|value| f32::from(value) / 255.0).collect();
        let x = Tensor::from_vec(values, (1, height, width, 3), &Device::Cpu)?.to_device(&self.device)?.to_dtype(self.dtype)?;
        let y = self.network.forward(&x)?.to_dtype(DType::F32)?.to_device(&Device::Cpu)?;
        let wanted = [1, height * self.scale(), width * self.scale(), 3];
        if y.dims() != wanted {
            return Err(Error::Image(format!("the upscaler made {:?} of a tile where {wanted:?} was wanted", y.dims())));
        }
        Ok(y.flatten_all()?.to_vec1()?)
    }
}

/// An image with so many pixels more on either side, taken from its other side.
fn surrounded(image: &RgbImage, (x, y): (u32, u32)) -> RgbImage {
    let (width, height) = image.dimensions();
    let at = |place: u32, around: u32, side: u32| (i64::from(place) - i64::from(around)).rem_euclid(i64::from(side.max(1))) as u32;
    RgbImage::from_fn(width + 2 * x, height + 2 * y, |i, j| *image.get_pixel(at(i, x, width), at(j, y, height)))
}

/// A tile along one side: what is its own, and what the network sees.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Cut {
    from: usize,
    own_from: usize,
    own_to: usize,
    to: usize,
}

/// A side in tiles of about `tile` pixels. What the network sees begins at a multiple, and ends at one or with the image.
fn cuts(side: usize, tile: usize, multiple: usize) -> Vec<Cut> {
    let number = side.div_ceil(tile).max(1);
    let length = side.div_ceil(number).next_multiple_of(multiple.max(1)).max(2 * RAMP);
    let mut own: Vec<usize> = (0..side).step_by(length).collect();
    // A seam must not reach beyond the tile after it.
    if own.len() > 1 && own.last().is_some_and(|last| side - last < 2 * RAMP) {
        own.pop();
    }
    let ends = own.iter().skip(1).copied().chain([side]);
    own.iter()
        .zip(ends)
        .map(|(&own_from, own_to)| {
            let from = own_from.saturating_sub(CONTEXT);
            let to = (own_to + CONTEXT).next_multiple_of(multiple.max(1)).min(side);
            Cut { from: from - from % multiple.max(1), own_from, own_to, to }
        })
        .collect()
}

impl Cut {
    /// How much each pixel of the enlarged tile counts, from the first to the last.
    fn weights(&self, side: usize, scale: usize) -> Vec<f32> {
        let ramp = (2 * RAMP) as f32;
        let weight = |at: usize| {
            let place = self.from as f32 + (at as f32 + 0.5) / scale as f32;
            let since = if self.own_from == 0 { 1.0 } else { (place - (self.own_from - RAMP) as f32) / ramp };
            let until = if self.own_to == side { 1.0 } else { ((self.own_to + RAMP) as f32 - place) / ramp };
            since.clamp(0.0, 1.0) * until.clamp(0.0, 1.0)
        };
        (0..(self.to - self.from) * scale).map(weight).collect()
    }
}

/// The rows of the enlarged image: those that tiles are still to be added to, and those that are finished.
struct EnlargedRows {
    /// Values of a row.
    width: usize,
    /// The first row of `sums`.
    first: usize,
    sums: Vec<f32>,
    done: Vec<u8>,
}

impl EnlargedRows {
    fn add(&mut self, values: &[f32], (row, column): (&Cut, &Cut), (height, width): (usize, usize), scale: usize) {
        let (down, across) = (row.weights(height, scale), column.weights(width, scale));
        let needed = (row.to * scale - self.first) * self.width;
        if self.sums.len() < needed {
            self.sums.resize(needed, 0.0);
        }
        for (y, (values, down)) in values.chunks_exact(across.len() * 3).zip(down).enumerate() {
            // What counts for nothing may lie before the rows that are kept.
            let Some(below) = (row.from * scale + y).checked_sub(self.first).filter(|_| down > 0.0) else { continue };
            let start = below * self.width + column.from * scale * 3;
            for ((to, values), across) in self.sums[start..].chunks_exact_mut(3).zip(values.chunks_exact(3)).zip(&across) {
                for (to, value) in to.iter_mut().zip(values) {
                    *to += down * across * value;
                }
            }
        }
    }

    /// No tile is added any more above a row.
    fn finish(&mut self, row: usize) {
        let values = (row - self.first) * self.width;
        self.done.extend(self.sums.drain(..values).map(|value| (value.clamp(0.0, 1.0) * 255.0).round_ties_even() as u8));
        self.first = row;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_are_the_side_and_their_weights_one() {
        for (side, tile, multiple) in
            [(1, 192, 1), (15, 192, 8), (200, 192, 1), (1000, 192, 8), (1000, 32, 7), (193, 64, 4), (97, 32, 1), (48, 32, 8)]
        {
            let cuts = cuts(side, tile, multiple);
            assert_eq!((cuts[0].own_from, cuts[cuts.len() - 1].own_to), (0, side), "{side} {tile} {multiple}");
            let mut sums = vec![0.0; side * 2];
            for (at, cut) in cuts.iter().enumerate() {
                assert!(cut.from % multiple == 0 && (cut.to % multiple == 0 || cut.to == side), "{cut:?}");
                assert!(
                    at == 0 || (cuts[at - 1].own_to == cut.own_from && (cut.from == 0 || cut.from + CONTEXT <= cut.own_from)),
                    "{cut:?}"
                );
                assert!(cut.to == side || cut.own_to + CONTEXT <= cut.to, "{cut:?}");
                for (sum, weight) in sums[cut.from * 2..].iter_mut().zip(cut.weights(side, 2)) {
                    *sum += weight;
                }
            }
            assert!(sums.iter().all(|sum: &f32| (sum - 1.0).abs() < 1e-5), "{side} {tile} {multiple}: {sums:?}");
        }
    }
}
