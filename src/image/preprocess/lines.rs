//! Lines by the difference of an image and its blur.
//!
//! # Source
//! `lineart_standard` and `scribble_xdog` in Mikubill/sd-webui-controlnet@56cec5b:annotator/util and scripts/processor.py.

use super::grey;
use ::image::RgbImage;

/// An image's colours as numbers, row by row.
struct GreyLevels {
    width: usize,
    height: usize,
    values: Vec<[f32; 3]>,
}

impl GreyLevels {
    fn of(image: &RgbImage) -> Self {
        let values = image.pixels().map(|pixel| pixel.0.map(f32::from)).collect();
        Self { width: image.width() as usize, height: image.height() as usize, values }
    }

    /// Blurred with a Gaussian of this deviation, mirrored at the edges, which are not repeated: OpenCV's `GaussianBlur` of floats.
    fn blurred(&self, deviation: f64) -> Self {
        let radius = ((deviation * 8.0 + 1.0).round() as usize | 1) / 2;
        let weight = |i: usize| (-((i as f64 - radius as f64).powi(2)) / (2.0 * deviation * deviation)).exp();
        let weights: Vec<f64> = (0..=2 * radius).map(weight).collect();
        let sum: f64 = weights.iter().sum();
        let weights: Vec<f32> = weights.into_iter().map(|weight| (weight / sum) as f32).collect();
        let mirrored = |at: isize, side: usize| {
            let period = (2 * side).saturating_sub(2).max(1) as isize;
            let at = at.rem_euclid(period) as usize;
            if at < side { at } else { period as usize - at }
        };
        let pass = |from: &[[f32; 3]], along_rows: bool| -> Vec<[f32; 3]> {
            let place = |i: usize, step: isize| {
                let (x, y) = (i % self.width, i / self.width);
                match along_rows {
                    true => y * self.width + mirrored(x as isize + step, self.width),
                    false => mirrored(y as isize + step, self.height) * self.width + x,
                }
            };
            let blurred = |i: usize| {
                let mut sum = [0f32; 3];
                for (k, weight) in weights.iter().enumerate() {
                    let colours = from.get(place(i, k as isize - radius as isize)).copied().unwrap_or_default();
                    sum.iter_mut().zip(colours).for_each(|(sum, colour)| *sum += weight * colour);
                }
                sum
            };
            (0..from.len()).map(blurred).collect()
        };
        let values = pass(&pass(&self.values, true), false);
        Self { values, ..*self }
    }

    /// The least difference of these colours from others.
    fn least_above(&self, other: &Self) -> impl Iterator<Item = f32> {
        self.values.iter().zip(&other.values).map(|(own, other)| own.iter().zip(other).map(|(a, b)| a - b).fold(f32::INFINITY, f32::min))
    }
}

/// How much darker than its surroundings each pixel is, the usual line at half of white.
pub(super) fn lineart(image: &RgbImage) -> RgbImage {
    let levels = GreyLevels::of(image);
    let darkness: Vec<f32> = levels.blurred(6.0).least_above(&levels).map(|x| x.clamp(0.0, 255.0)).collect();
    let mut lines: Vec<f32> = darkness.iter().copied().filter(|x| *x > 8.0).collect();
    lines.sort_by(f32::total_cmp);
    let middle = lines.len() / 2;
    let usual = match lines.as_slice() {
        [] => 16.0,
        lines if lines.len() % 2 == 1 => lines[middle],
        lines => (lines[middle - 1] + lines[middle]) / 2.0,
    };
    let usual = usual.max(16.0);
    grey(image.width(), image.height(), darkness.into_iter().map(|x| (x / usual * 127.0).clamp(0.0, 255.0) as u8))
}

/// White where a wide blur is lighter than a narrow one, in eight bits that wrap around as there.
pub(super) fn scribble(image: &RgbImage) -> RgbImage {
    const THRESHOLD: u8 = 32;
    let levels = GreyLevels::of(image);
    let (narrow, wide) = (levels.blurred(0.5), levels.blurred(5.0));
    let darkness: Vec<f32> = wide.least_above(&narrow).collect();
    let is_line = |x: f32| {
        let difference = (255.0 - x).clamp(0.0, 255.0) as u8;
        (255 - difference).wrapping_mul(2) > THRESHOLD
    };
    grey(image.width(), image.height(), darkness.into_iter().map(|x| if is_line(x) { 255 } else { 0 }))
}
