//! An input image, from the bytes of a file that nobody vouches for.
//!
//! It is read as Pillow's `convert("RGB")` would after `exif_transpose`: alpha is put aside and not composited, a palette's transparent
//! index keeps its colour, the camera's orientation is applied. 16 bits become their high byte, also where Pillow clips grey at 255.

use super::luma;
use crate::{Error, Result};
use image::{DynamicImage, GrayImage, ImageDecoder, ImageFormat, Limits, Rgb, RgbImage};
use std::io::Cursor;

/// Pixels along one side.
const LARGEST_SIDE: u32 = 32_768;
/// Pixels in all: beyond what Pillow too takes for a decompression bomb.
const MOST_PIXELS: u64 = 178_956_970;
/// Pixels that any file may have, however small it is: decoding them takes less than 400 MB.
const PLAUSIBLE_PIXELS: u64 = 1 << 24;
/// Beyond that, pixels for each byte of the file. One colour in a PNG of one bit a pixel comes to 8,256, as deflate makes a byte at most 1,032.
const MOST_PIXELS_A_BYTE: u64 = 10_000;

/// An image that something is to be made of.
#[derive(Debug, Clone)]
pub struct InputImage {
    /// What it shows.
    pub rgb: RgbImage,
    /// How opaque it is, where it says so: 255 is opaque.
    pub alpha: Option<GrayImage>,
}

impl InputImage {
    /// The image as a mask: its luma.
    pub fn luma(&self) -> GrayImage {
        luma(&self.rgb)
    }
}

/// Reads PNG, JPEG, WebP, BMP, TIFF and GIF, by content and not by name.
///
/// # Errors
/// It is no image, is broken, has several frames, is CMYK, or is too large. The sentence names no file: the caller does.
pub(crate) fn decode(bytes: &[u8]) -> Result<InputImage> {
    let input = |what: String| Error::Input(what);
    if bytes.is_empty() {
        return Err(input("is empty; give an image".into()));
    }
    let format = image::guess_format(bytes)
        .map_err(|_| input("is not an image that can be read; give a PNG, JPEG, WebP, BMP, TIFF or GIF file".into()))?;
    if frames(bytes, format) > 1 {
        return Err(input("is an animation; give one frame of it".into()));
    }
    if format == ImageFormat::Jpeg && jpeg_components(bytes) == Some(4) {
        return Err(input("is a CMYK JPEG; save it as RGB".into()));
    }
    let broken = |e: image::ImageError| match e {
        image::ImageError::Unsupported(e) => input(format!("is an image of a kind that cannot be read ({e}); save it as an 8-bit PNG")),
        image::ImageError::Limits(_) => input("is too large to be read".into()),
        e => input(format!("is a broken image ({e}); save it anew")),
    };
    let mut reader = image::ImageReader::new(Cursor::new(bytes));
    reader.set_format(format);
    let mut decoder = reader.into_decoder().map_err(broken)?;
    let (width, height) = decoder.dimensions();
    if width == 0 || height == 0 {
        return Err(input("has no pixels; give another image".into()));
    }
    let pixels = u64::from(width) * u64::from(height);
    if width > LARGEST_SIDE || height > LARGEST_SIDE || pixels > MOST_PIXELS {
        return Err(input(format!("has {width}x{height} pixels, which is too large; make it smaller first")));
    }
    if pixels > PLAUSIBLE_PIXELS && pixels / MOST_PIXELS_A_BYTE > bytes.len() as u64 {
        return Err(input(format!("says that it has {width}x{height} pixels, in {} bytes; make it smaller first", bytes.len())));
    }
    // What a decoder may ask for beside the image itself, which 16 bits and alpha make eight bytes a pixel.
    let mut limits = Limits::no_limits();
    limits.max_alloc = Some(pixels * 16 + (64 << 20));
    decoder.set_limits(limits).map_err(broken)?;
    let orientation = decoder.orientation().map_err(broken)?;
    let mut decoded = DynamicImage::from_decoder(decoder).map_err(broken)?;
    decoded.apply_orientation(orientation);
    Ok(convert(decoded))
}

/// High bytes of 16 bits, and alpha apart.
fn convert(decoded: DynamicImage) -> InputImage {
    let high = |value: u16| (value >> 8) as u8;
    let alpha = decoded.color().has_alpha().then(|| match &decoded {
        DynamicImage::ImageLumaA8(image) => grey(image.width(), image.height(), image.pixels().map(|p| p.0[1])),
        DynamicImage::ImageLumaA16(image) => grey(image.width(), image.height(), image.pixels().map(|p| high(p.0[1]))),
        DynamicImage::ImageRgba16(image) => grey(image.width(), image.height(), image.pixels().map(|p| high(p.0[3]))),
        DynamicImage::ImageRgba8(image) => grey(image.width(), image.height(), image.pixels().map(|p| p.0[3])),
        other => {
            let image = other.to_rgba8();
            grey(image.width(), image.height(), image.pixels().map(|p| p.0[3]))
        }
    });
    let rgb = match &decoded {
        DynamicImage::ImageLuma16(image) => colour(image.width(), image.height(), image.pixels().map(|p| [high(p.0[0]); 3])),
        DynamicImage::ImageLumaA16(image) => colour(image.width(), image.height(), image.pixels().map(|p| [high(p.0[0]); 3])),
        DynamicImage::ImageRgb16(image) => colour(image.width(), image.height(), image.pixels().map(|p| p.0.map(high))),
        DynamicImage::ImageRgba16(image) => {
            colour(image.width(), image.height(), image.pixels().map(|p| [high(p.0[0]), high(p.0[1]), high(p.0[2])]))
        }
        other => other.to_rgb8(),
    };
    InputImage { rgb, alpha: alpha.filter(|alpha| alpha.as_raw().iter().any(|a| *a != 255)) }
}

fn grey(width: u32, height: u32, values: impl Iterator<Item = u8>) -> GrayImage {
    GrayImage::from_raw(width, height, values.collect()).unwrap_or_else(|| GrayImage::new(width, height))
}

pub(super) fn colour(width: u32, height: u32, values: impl Iterator<Item = [u8; 3]>) -> RgbImage {
    let mut image = RgbImage::new(width, height);
    for (pixel, value) in image.pixels_mut().zip(values) {
        *pixel = Rgb(value);
    }
    image
}

/// Frames of an animation, counted to two; 1 where it is none or cannot be told.
fn frames(bytes: &[u8], format: ImageFormat) -> usize {
    match format {
        ImageFormat::Gif => gif_frames(bytes),
        ImageFormat::Png => image::codecs::png::PngDecoder::new(Cursor::new(bytes))
            .ok()
            .and_then(|decoder| decoder.is_apng().ok())
            .map_or(1, |animated| if animated { 2 } else { 1 }),
        ImageFormat::WebP => {
            image::codecs::webp::WebPDecoder::new(Cursor::new(bytes)).map_or(1, |decoder| if decoder.has_animation() { 2 } else { 1 })
        }
        _ => 1,
    }
}

/// Frames, counted to two by the blocks' lengths: nothing is decoded, as a frame may be as large as the file likes to say.
///
/// # Source
/// GIF89a specification, sections 17 to 26.
fn gif_frames(bytes: &[u8]) -> usize {
    let mut frames = 0;
    // Ends where the bytes do.
    let mut walk = || -> Option<()> {
        let byte = |at: usize| bytes.get(at).copied();
        let colours = |flags: u8| if flags & 0x80 == 0 { 0 } else { 3 << ((flags & 7) + 1) };
        let mut at = 13 + colours(byte(10)?);
        while frames < 2 {
            match byte(at)? {
                // An extension, and its label.
                0x21 => at += 2,
                // A frame's place and size, its colours, and how its codes begin.
                0x2C => {
                    frames += 1;
                    at += 11 + colours(byte(at + 9)?);
                }
                _ => break,
            }
            while byte(at)? != 0 {
                at += 1 + usize::from(byte(at)?);
            }
            at += 1;
        }
        Some(())
    };
    walk();
    frames
}

/// The number of colour components that the frame's header names.
///
/// # Source
/// ITU-T T.81, B.2.2: the markers SOF0 to SOF15 but DHT, JPG and DAC.
fn jpeg_components(bytes: &[u8]) -> Option<u8> {
    let mut at = 2;
    loop {
        while *bytes.get(at)? != 0xFF {
            at += 1;
        }
        while *bytes.get(at)? == 0xFF {
            at += 1;
        }
        let marker = *bytes.get(at)?;
        at += 1;
        match marker {
            0xC0..=0xCF if ![0xC4, 0xC8, 0xCC].contains(&marker) => return bytes.get(at + 7).copied(),
            0x01 | 0xD0..=0xD8 => {}
            0xD9 | 0xDA => return None,
            _ => at += usize::from(u16::from_be_bytes([*bytes.get(at)?, *bytes.get(at + 1)?])),
        }
    }
}
