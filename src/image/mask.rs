//! Masks: where an image is to be made anew. White is made anew, black is kept.

use super::{ResizeFilter, Span, resize, resize_part};
use image::{GrayImage, ImageBuffer, Pixel, RgbImage, imageops};

/// An image's luma, as Pillow's `convert("L")` rounds it (ITU-R 601-2).
pub(crate) fn luma(rgb: &RgbImage) -> GrayImage {
    let value = |p: &image::Rgb<u8>| {
        let [r, g, b] = p.0.map(u32::from);
        ((r * 19_595 + g * 38_470 + b * 7_471 + 0x8000) >> 16) as u8
    };
    GrayImage::from_raw(rgb.width(), rgb.height(), rgb.pixels().map(value).collect())
        .unwrap_or_else(|| GrayImage::new(rgb.width(), rgb.height()))
}

/// White and black exchanged.
pub(crate) fn invert_mask(mask: &GrayImage) -> GrayImage {
    let mut inverted = mask.clone();
    inverted.pixels_mut().for_each(|p| p.0[0] = 255 - p.0[0]);
    inverted
}

/// Whether nothing is to be made anew.
pub(crate) fn is_empty_mask(mask: &GrayImage) -> bool {
    mask.as_raw().iter().all(|value| *value == 0)
}

/// Feathers a mask by a Gaussian with this deviation in pixels, over `2 · int(2.5 · deviation + 0.5) + 1` of them a side.
///
/// # Source
/// The window is A1111's: AUTOMATIC1111/stable-diffusion-webui@v1.10:modules/processing.py, `StableDiffusionProcessingImg2Img.init`.
/// Beyond the edge the image is mirrored without repeating its last pixel, as OpenCV's `GaussianBlur` does.
pub(crate) fn blur_mask(mask: &GrayImage, deviation: f64) -> GrayImage {
    if deviation <= 0.0 || mask.width() == 0 || mask.height() == 0 {
        return mask.clone();
    }
    let reach = (2.5 * deviation + 0.5) as i64;
    let weights: Vec<f32> = (-reach..=reach).map(|d| (-((d * d) as f64) / (2.0 * deviation * deviation)).exp() as f32).collect();
    let sum: f32 = weights.iter().sum();
    let (width, height) = (mask.width() as usize, mask.height() as usize);
    let mirrored = |at: i64, side: usize| -> usize {
        let last = side as i64 - 1;
        if last == 0 {
            return 0;
        }
        let folded = at.rem_euclid(2 * last);
        folded.min(2 * last - folded) as usize
    };
    let pass = |from: &[f32], along: usize, stride: usize, starts: &dyn Fn(usize) -> usize, lines: usize| {
        let mut to = vec![0.0; from.len()];
        for line in 0..lines {
            let start = starts(line);
            for i in 0..along {
                let near = |(k, weight): (usize, &f32)| {
                    let at = mirrored(i as i64 + k as i64 - reach, along);
                    from.get(start + at * stride).copied().unwrap_or(0.0) * weight
                };
                let value = weights.iter().enumerate().map(near).sum::<f32>() / sum;
                if let Some(to) = to.get_mut(start + i * stride) {
                    *to = value;
                }
            }
        }
        to
    };
    let values: Vec<f32> = mask.as_raw().iter().map(|v| f32::from(*v)).collect();
    let values = pass(&values, width, 1, &|row| row * width, height);
    let values = pass(&values, height, width, &|column| column, width);
    let bytes = values.into_iter().map(|v| v.round().clamp(0.0, 255.0) as u8).collect();
    GrayImage::from_raw(mask.width(), mask.height(), bytes).unwrap_or_else(|| mask.clone())
}

/// A part of an image, in pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Region {
    /// Its left column.
    pub x: u32,
    /// Its top row.
    pub y: u32,
    /// Columns.
    pub width: u32,
    /// Rows.
    pub height: u32,
}

/// The box around what a mask marks, grown by `padding` and then to the shape of `width × height`; `None` where it marks nothing.
///
/// # Source
/// `VaeImageProcessor.get_crop_region` in huggingface/diffusers@v0.36:src/diffusers/image_processor.py, which is A1111's
/// `masking.get_crop_region` and `expand_crop_region`.
pub(crate) fn masked_region(mask: &GrayImage, padding: u32, (width, height): (u32, u32)) -> Option<Region> {
    let marked = mask.enumerate_pixels().filter(|(_, _, p)| p.0[0] != 0).map(|(x, y, _)| (i64::from(x), i64::from(y)));
    let (left, top, right, bottom) = marked.fold(None, |found, (x, y)| match found {
        None => Some((x, y, x, y)),
        Some((l, t, r, b)) => Some((l.min(x), t.min(y), r.max(x), b.max(y))),
    })?;
    let (padding, w, h) = (i64::from(padding), i64::from(mask.width()), i64::from(mask.height()));
    let (mut x1, mut y1) = ((left - padding).max(0), (top - padding).max(0));
    let (mut x2, mut y2) = ((right + 1 + padding).min(w), (bottom + 1 + padding).min(h));
    let wanted = f64::from(width) / f64::from(height);
    if (x2 - x1) as f64 / (y2 - y1) as f64 > wanted {
        let more = ((x2 - x1) as f64 / wanted - (y2 - y1) as f64) as i64;
        (y1, y2) = grown(y1, y2, more, h);
    } else {
        let more = ((y2 - y1) as f64 * wanted - (x2 - x1) as f64) as i64;
        (x1, x2) = grown(x1, x2, more, w);
    }
    let at = |value: i64| u32::try_from(value).ok();
    Some(Region { x: at(x1)?, y: at(y1)?, width: at(x2 - x1)?, height: at(y2 - y1)? })
}

/// An interval with `more` pixels, shifted back inside of `side`, and cut off where it is longer.
fn grown(from: i64, to: i64, more: i64, side: i64) -> (i64, i64) {
    let (mut from, mut to) = (from - more.div_euclid(2), to + more - more.div_euclid(2));
    if to >= side {
        (from, to) = (from - (to - side), side);
    }
    if from < 0 {
        (from, to) = (0, to - from);
    }
    (from, to.min(side))
}

/// The image within `width × height`, its shape kept, the rest filled from its nearest edge.
///
/// # Source
/// `_resize_and_fill` in huggingface/diffusers@v0.36:src/diffusers/image_processor.py.
pub(crate) fn resize_and_fill<P: Pixel<Subpixel = u8> + 'static>(
    image: &ImageBuffer<P, Vec<u8>>,
    width: u32,
    height: u32,
) -> ImageBuffer<P, Vec<u8>> {
    let (ratio, shape) = (f64::from(width) / f64::from(height), f64::from(image.width()) / f64::from(image.height()));
    let inner_width = if ratio < shape { width } else { scaled(image.width(), height, image.height()) };
    let inner_height = if ratio >= shape { height } else { scaled(image.height(), width, image.width()) };
    let resized = resize(image, inner_width, inner_height, ResizeFilter::Lanczos);
    let mut filled = ImageBuffer::new(width, height);
    let (x, y) = (i64::from(width / 2) - i64::from(inner_width / 2), i64::from(height / 2) - i64::from(inner_height / 2));
    imageops::replace(&mut filled, &resized, x, y);
    let at = |edge: u32| Span { from: f64::from(edge), to: f64::from(edge) };
    let whole = |side: u32| Span { from: 0.0, to: f64::from(side) };
    // Pillow fills by its default filter.
    let edge = |part: (Span, Span), width, height| resize_part(&resized, part, width, height, ResizeFilter::Bicubic);
    if ratio < shape && y > 0 {
        let columns = whole(inner_width);
        imageops::replace(&mut filled, &edge((columns, at(0)), width, y as u32), 0, 0);
        imageops::replace(&mut filled, &edge((columns, at(inner_height)), width, y as u32), 0, y + i64::from(inner_height));
    } else if ratio > shape && x > 0 {
        let rows = whole(inner_height);
        imageops::replace(&mut filled, &edge((at(0), rows), x as u32, height), 0, 0);
        imageops::replace(&mut filled, &edge((at(inner_width), rows), x as u32, height), x + i64::from(inner_width), 0);
    }
    filled
}

/// The image covering `width × height`, its shape kept, what is beyond cut off.
///
/// # Source
/// `_resize_and_crop` in huggingface/diffusers@v0.36:src/diffusers/image_processor.py.
pub(crate) fn resize_and_crop(image: &RgbImage, width: u32, height: u32) -> RgbImage {
    let (ratio, shape) = (f64::from(width) / f64::from(height), f64::from(image.width()) / f64::from(image.height()));
    let inner_width = if ratio > shape { width } else { scaled(image.width(), height, image.height()) };
    let inner_height = if ratio <= shape { height } else { scaled(image.height(), width, image.width()) };
    let resized = resize(image, inner_width, inner_height, ResizeFilter::Lanczos);
    let mut cropped = RgbImage::new(width, height);
    let (x, y) = (i64::from(width / 2) - i64::from(inner_width / 2), i64::from(height / 2) - i64::from(inner_height / 2));
    imageops::replace(&mut cropped, &resized, x, y);
    cropped
}

fn scaled(side: u32, to: u32, from: u32) -> u32 {
    u32::try_from(u64::from(side) * u64::from(to) / u64::from(from.max(1))).unwrap_or(u32::MAX)
}

/// Puts the original back where the mask is black, and in proportion where it is grey; where it is black no byte of the original changes.
///
/// All three have one size.
///
/// # Source
/// `apply_overlay` in huggingface/diffusers@v0.36:src/diffusers/image_processor.py: the original is pasted by the inverted mask with
/// premultiplied alpha, made straight again, and laid over what was generated; every stage rounds as Pillow's does
/// (src/libImaging/Paste.c, Convert.c `rgba2rgbA` and `rgbA2rgba`, AlphaComposite.c).
pub(crate) fn keep_unmasked(generated: &mut RgbImage, original: &RgbImage, mask: &GrayImage) {
    for ((new, old), mask) in generated.pixels_mut().zip(original.pixels()).zip(mask.pixels()) {
        let alpha = 255 - u32::from(mask.0[0]);
        match alpha {
            0 => {}
            255 => *new = *old,
            _ => {
                for (new, old) in new.0.iter_mut().zip(old.0) {
                    let premultiplied = divided_by_255(u32::from(old) * alpha);
                    let straight = (255 * premultiplied / alpha).min(255);
                    *new = over(straight, alpha, u32::from(*new));
                }
            }
        }
    }
}

/// `x / 255` rounded, as Pillow's `DIV255`.
fn divided_by_255(x: u32) -> u32 {
    let x = x + 128;
    ((x >> 8) + x) >> 8
}

/// A channel over an opaque one.
fn over(source: u32, alpha: u32, below: u32) -> u8 {
    // Seven bits more than a byte while it is added up.
    const BITS: u32 = 7;
    let blended = alpha * 255;
    let whole = blended + 255 * (255 - alpha);
    let share = alpha * 255 * 255 * (1 << BITS) / whole;
    let sum = source * share + below * ((255 << BITS) - share);
    let rounded = sum + (0x80 << BITS);
    ((((rounded >> 8) + rounded) >> 8) >> BITS) as u8
}
