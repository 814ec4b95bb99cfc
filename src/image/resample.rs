//! Resizing to the byte as Pillow does it: two passes of fixed-point filters with 8 bits between.
//!
//! A float Lanczos differs from Pillow's by one level here and there, which an image-to-image run makes visible. Crates for this exist,
//! but `fast_image_resize` keeps its weights in 16 bits, and so does not give Pillow's bytes.
//!
//! # Source
//! `precompute_coeffs`, `normalize_coeffs_8bpc` and `ImagingResample*_8bpc` in python-pillow/Pillow@13.0:src/libImaging/Resample.c.

use image::{ImageBuffer, Pixel};

/// The fixed-point weights' fraction.
const PRECISION_BITS: u32 = 32 - 8 - 2;

/// How neighbouring pixels are weighed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ResizeFilter {
    /// Catmull-Rom's cubic with a = -0.5, support 2.
    Bicubic,
    /// A windowed sinc, support 3.
    Lanczos,
}

impl ResizeFilter {
    fn support(self) -> f64 {
        match self {
            ResizeFilter::Bicubic => 2.0,
            ResizeFilter::Lanczos => 3.0,
        }
    }

    fn weight(self, x: f64) -> f64 {
        const A: f64 = -0.5;
        let distance = x.abs();
        match self {
            ResizeFilter::Bicubic if distance < 1.0 => ((A + 2.0) * distance - (A + 3.0)) * distance * distance + 1.0,
            ResizeFilter::Bicubic if distance < 2.0 => (((distance - 5.0) * distance + 8.0) * distance - 4.0) * A,
            ResizeFilter::Bicubic => 0.0,
            ResizeFilter::Lanczos if (-3.0..3.0).contains(&x) => sinc(x) * sinc(x / 3.0),
            ResizeFilter::Lanczos => 0.0,
        }
    }
}

fn sinc(x: f64) -> f64 {
    if x == 0.0 { 1.0 } else { (x * std::f64::consts::PI).sin() / (x * std::f64::consts::PI) }
}

/// A part of one axis, in pixels of the input; it may be empty, and then stands for the edge there.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Span {
    /// Where it begins.
    pub from: f64,
    /// Where it ends.
    pub to: f64,
}

/// The image at another size.
///
/// A side of zero pixels gives an empty image.
pub(crate) fn resize<P: Pixel<Subpixel = u8>>(
    image: &ImageBuffer<P, Vec<u8>>,
    width: u32,
    height: u32,
    filter: ResizeFilter,
) -> ImageBuffer<P, Vec<u8>> {
    let whole = |side: u32| Span { from: 0.0, to: f64::from(side) };
    resize_part(image, (whole(image.width()), whole(image.height())), width, height, filter)
}

/// A part of the image, `(columns, rows)`, at another size.
pub(crate) fn resize_part<P: Pixel<Subpixel = u8>>(
    image: &ImageBuffer<P, Vec<u8>>,
    (columns, rows): (Span, Span),
    width: u32,
    height: u32,
    filter: ResizeFilter,
) -> ImageBuffer<P, Vec<u8>> {
    let is_whole = |span: Span, from: u32, to: u32| from == to && span == Span { from: 0.0, to: f64::from(from) };
    let channels = usize::from(P::CHANNEL_COUNT);
    let mut bytes = image.as_raw().clone();
    let mut current_width = image.width();
    // In Pillow 13 the pass that makes the image smaller goes first where the other one enlarges it.
    let rows_first = width > image.width() && height < image.height();
    for rows_now in [rows_first, !rows_first] {
        if rows_now && !is_whole(rows, image.height(), height) {
            let taps = Taps::of(image.height(), rows, height, filter);
            bytes = vertical(&bytes, current_width as usize * channels, &taps);
        } else if !rows_now && !is_whole(columns, image.width(), width) {
            let taps = Taps::of(image.width(), columns, width, filter);
            bytes = horizontal(&bytes, image.width() as usize, channels, &taps);
            current_width = width;
        }
    }
    ImageBuffer::from_raw(width, height, bytes).unwrap_or_else(|| ImageBuffer::new(width, height))
}

/// For every pixel of the output, the first of the input that it is made of, and their weights.
struct Taps(Vec<(usize, Vec<i32>)>);

impl Taps {
    fn of(input: u32, Span { from, to }: Span, output: u32, filter: ResizeFilter) -> Self {
        let scale = (to - from) / f64::from(output);
        let stretch = scale.max(1.0);
        let support = filter.support() * stretch;
        Self(
            (0..output)
                .map(|i| {
                    let centre = from + (f64::from(i) + 0.5) * scale;
                    // A cast cuts towards zero, as C's does, and lifts what is below it.
                    let first = (centre - support + 0.5) as usize;
                    let end = ((centre + support + 0.5) as usize).min(input as usize);
                    let weights: Vec<f64> = (first..end).map(|x| filter.weight((x as f64 - centre + 0.5) / stretch)).collect();
                    let sum: f64 = weights.iter().sum();
                    let fixed = |weight: f64| {
                        let weight = if sum == 0.0 { weight } else { weight / sum };
                        (weight * f64::from(1 << PRECISION_BITS) + 0.5_f64.copysign(weight)) as i32
                    };
                    (first, weights.into_iter().map(fixed).collect())
                })
                .collect(),
        )
    }
}

/// Adds up in as many bits as Pillow does, and cuts off what is beyond a byte.
fn weighed(pixels: impl Iterator<Item = u8>, weights: &[i32]) -> u8 {
    let half = 1_i32 << (PRECISION_BITS - 1);
    let sum = pixels.zip(weights).fold(half, |sum, (pixel, weight)| sum.wrapping_add(i32::from(pixel).wrapping_mul(*weight)));
    (sum >> PRECISION_BITS).clamp(0, 255) as u8
}

fn horizontal(bytes: &[u8], width: usize, channels: usize, Taps(taps): &Taps) -> Vec<u8> {
    let row_of = |row: &[u8]| {
        let mut output = Vec::with_capacity(taps.len() * channels);
        for (first, weights) in taps {
            for channel in 0..channels {
                let pixels = row.iter().skip(first * channels + channel).step_by(channels).copied();
                output.push(weighed(pixels, weights));
            }
        }
        output
    };
    bytes.chunks(width.max(1) * channels).flat_map(row_of).collect()
}

fn vertical(bytes: &[u8], stride: usize, Taps(taps): &Taps) -> Vec<u8> {
    let mut output = Vec::with_capacity(taps.len() * stride);
    for (first, weights) in taps {
        for column in 0..stride {
            let pixels = bytes.iter().skip(first * stride + column).step_by(stride.max(1)).copied();
            output.push(weighed(pixels, weights));
        }
    }
    output
}
