//! What stands where an image is to be made anew: colours from around, so that a model goes on from them.

use super::decode::colour;
use image::{GrayImage, RgbImage};

/// Pixels of new canvas at each side.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash)]
pub struct Growth {
    /// At the left.
    pub left: u32,
    /// At the right.
    pub right: u32,
    /// At the top.
    pub top: u32,
    /// At the bottom.
    pub bottom: u32,
}

impl Growth {
    /// Nothing is added.
    pub fn is_none(self) -> bool {
        self == Self::default()
    }

    /// `(width, height)` of an image of that size after it has grown; `None` where no number holds it.
    pub fn of(self, (width, height): (u32, u32)) -> Option<(u32, u32)> {
        let along = |side: u32, a: u32, b: u32| side.checked_add(a)?.checked_add(b);
        Some((along(width, self.left, self.right)?, along(height, self.top, self.bottom)?))
    }
}

/// The image on a larger canvas, and the mask of what is new.
///
/// New pixels are the image mirrored at its edge, which with the distance from it gives way to a blur, then to the mean colour, under
/// growing noise: structure goes on near the edge, and further out the model is free. The image's own bytes are kept.
pub(crate) fn grow(image: &RgbImage, growth: Growth, seed: u64) -> Option<(RgbImage, GrayImage)> {
    let (width, height) = growth.of(image.dimensions())?;
    let (inner_width, inner_height) = image.dimensions();
    if inner_width == 0 || inner_height == 0 {
        return None;
    }
    let outside = |at: u32, before: u32, side: u32| i64::from(at) - i64::from(before) - if at < before { 0 } else { i64::from(side) - 1 };
    // How far a coordinate is beyond the image, 0 inside.
    let beyond = |at: u32, before: u32, side: u32| {
        if at >= before && at < before + side { 0 } else { outside(at, before, side).unsigned_abs() as u32 }
    };
    let mirrored_at = |at: u32, before: u32, side: u32| {
        let folded = (i64::from(at) - i64::from(before)).rem_euclid(2 * i64::from(side));
        folded.min(2 * i64::from(side) - 1 - folded) as u32
    };
    let mirrored = RgbImage::from_fn(width, height, |x, y| {
        *image.get_pixel(mirrored_at(x, growth.left, inner_width), mirrored_at(y, growth.top, inner_height))
    });
    let largest = growth.left.max(growth.right).max(growth.top).max(growth.bottom).max(1);
    let mut planes = Planes::of(&mirrored, None);
    planes.blur(f64::from(largest) / 6.0);
    let count = f64::from(inner_width) * f64::from(inner_height);
    let mean = [0, 1, 2].map(|c| (image.pixels().map(|p| f64::from(p.0.get(c).copied().unwrap_or(0))).sum::<f64>() / count) as f32);
    let mut random = seed;
    let mut mask = GrayImage::new(width, height);
    let mut canvas = mirrored;
    for (i, (x, y, pixel)) in canvas.enumerate_pixels_mut().enumerate() {
        let distance = beyond(x, growth.left, inner_width).max(beyond(y, growth.top, inner_height));
        if distance == 0 {
            continue;
        }
        mask.get_pixel_mut(x, y).0[0] = 255;
        let far = distance as f32 / largest as f32;
        let blurred = (far * 3.0).min(1.0);
        for (c, value) in pixel.0.iter_mut().enumerate() {
            let soft = planes.value(c, i) * (1.0 - far * far) + mean.get(c).copied().unwrap_or(0.0) * far * far;
            let noise = (uniform(&mut random) - 0.5) * 64.0 * far;
            *value = (f32::from(*value) * (1.0 - blurred) + soft * blurred + noise).round().clamp(0.0, 255.0) as u8;
        }
    }
    Some((canvas, mask))
}

/// What the mask marks, filled with the colours around it, further away the softer.
///
/// # Source
/// `masking.fill` in AUTOMATIC1111/stable-diffusion-webui@v1.10:modules/masking.py, its radii and repeats; in floats.
pub(crate) fn fill_from_around(image: &RgbImage, mask: &GrayImage) -> RgbImage {
    let mut filled = vec![[0.0_f32; 4]; image.pixels().len()];
    for (radius, repeats) in [(256.0, 1), (64.0, 1), (16.0, 2), (4.0, 4), (2.0, 2), (0.0, 1)] {
        let mut planes = Planes::of(image, Some(mask));
        planes.blur(radius);
        for _ in 0..repeats {
            for (i, below) in filled.iter_mut().enumerate() {
                let alpha = planes.value(3, i) / 255.0;
                for (c, below) in below.iter_mut().enumerate() {
                    // Premultiplied: what is laid over has its alpha in it.
                    *below = planes.value(c, i) + *below * (1.0 - alpha);
                }
            }
        }
    }
    let straight = |[r, g, b, a]: [f32; 4]| {
        let scale = if a > 0.0 { 255.0 / a } else { 0.0 };
        [r, g, b].map(|v| (v * scale).round().clamp(0.0, 255.0) as u8)
    };
    colour(image.width(), image.height(), filled.into_iter().map(straight))
}

/// Red, green, blue and alpha as floats, colours multiplied by alpha.
struct Planes {
    width: usize,
    height: usize,
    channels: [Vec<f32>; 4],
}

impl Planes {
    /// Where the mask is white there is no colour.
    fn of(image: &RgbImage, mask: Option<&GrayImage>) -> Self {
        let alpha: Vec<f32> = match mask {
            Some(mask) => mask.as_raw().iter().map(|v| 255.0 - f32::from(*v)).collect(),
            None => vec![255.0; image.pixels().len()],
        };
        let channel =
            |c: usize| image.pixels().zip(&alpha).map(|(p, a)| f32::from(p.0.get(c).copied().unwrap_or(0)) * a / 255.0).collect::<Vec<_>>();
        let (width, height) = (image.width() as usize, image.height() as usize);
        Self { width, height, channels: [channel(0), channel(1), channel(2), alpha] }
    }

    fn value(&self, channel: usize, at: usize) -> f32 {
        self.channels.get(channel).and_then(|channel| channel.get(at)).copied().unwrap_or(0.0)
    }

    /// Three box blurs, whose edges are weighed so that together they have a Gaussian's deviation.
    ///
    /// # Source
    /// "Theoretical Foundations of Gaussian Convolution by Extended Box Filtering" (Gwosdek et al. 2011), as Pillow's GaussianBlur.
    fn blur(&mut self, deviation: f64) {
        if deviation <= 0.0 {
            return;
        }
        let variance = deviation * deviation / 3.0;
        let length = (12.0 * variance + 1.0).sqrt();
        let whole = ((length - 1.0) / 2.0).floor();
        let edge = (2.0 * whole + 1.0) * (whole * (whole + 1.0) - 3.0 * variance) / (6.0 * (variance - (whole + 1.0) * (whole + 1.0)));
        let (radius, edge) = (whole as usize, edge as f32);
        let (width, height) = (self.width, self.height);
        for channel in &mut self.channels {
            for _ in 0..3 {
                let mut line = Vec::with_capacity(width.max(height));
                for row in channel.chunks_mut(width.max(1)) {
                    line.clear();
                    line.extend_from_slice(row);
                    box_blur(&line, radius, edge, |i, value| {
                        if let Some(to) = row.get_mut(i) {
                            *to = value;
                        }
                    });
                }
                for column in 0..width {
                    line.clear();
                    line.extend(channel.iter().skip(column).step_by(width).copied());
                    box_blur(&line, radius, edge, |i, value| {
                        if let Some(to) = channel.get_mut(i * width + column) {
                            *to = value;
                        }
                    });
                }
            }
        }
    }
}

/// The mean over `radius` values each side and `edge` of the next; beyond the ends stand the last values.
fn box_blur(line: &[f32], radius: usize, edge: f32, mut put: impl FnMut(usize, f32)) {
    let last = line.len().saturating_sub(1);
    let at = |i: i64| line.get(usize::try_from(i.max(0)).unwrap_or(0).min(last)).copied().unwrap_or(0.0);
    let reach = radius as i64;
    let mut sum: f64 = (-reach..=reach).map(|i| f64::from(at(i))).sum();
    let weight = f64::from(2.0 * radius as f32 + 1.0 + 2.0 * edge);
    for i in 0..line.len() as i64 {
        let outer = f64::from(edge) * f64::from(at(i - reach - 1) + at(i + reach + 1));
        put(i as usize, ((sum + outer) / weight) as f32);
        sum += f64::from(at(i + reach + 1)) - f64::from(at(i - reach));
    }
}

/// A number in [0, 1).
///
/// # Source
/// "Fast Splittable Pseudorandom Number Generators" (Steele et al. 2014): SplitMix64.
fn uniform(state: &mut u64) -> f32 {
    *state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    ((z ^ (z >> 31)) >> 40) as f32 / (1u64 << 24) as f32
}
