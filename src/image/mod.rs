//! Images: from the network's numbers to a PNG file with the request inside, and from an input file to pixels.

mod decode;
mod fill;
mod mask;
mod preprocess;
mod resample;
#[cfg(test)]
mod tests;

pub use decode::InputImage;
pub(crate) use decode::decode;
pub use fill::Growth;
pub(crate) use fill::{fill_from_around, grow};
pub(crate) use mask::{
    Region, blur_mask, invert_mask, is_empty_mask, keep_unmasked, luma, masked_region, resize_and_crop, resize_and_fill,
};
pub use preprocess::Preprocessor;
pub(crate) use resample::{ResizeFilter, Span, resize, resize_part};

use crate::{Error, Result};
use ::image::RgbImage;
use candle_core::Tensor;
use std::borrow::Cow;
use std::io::Write;

/// A decoded image, `(1, 3, height, width)` with values nominally in [-1, 1], as 8-bit RGB.
///
/// # Errors
/// The tensor has another shape.
pub(crate) fn to_rgb(decoded: &Tensor) -> Result<RgbImage> {
    rounded(decoded, f32::round_ties_even)
}

/// [`to_rgb`], where what is behind the point is cut off, as A1111, ComfyUI and stable-diffusion.cpp do.
///
/// # Errors
/// The tensor has another shape.
pub(crate) fn to_rgb_cut_off(decoded: &Tensor) -> Result<RgbImage> {
    rounded(decoded, f32::trunc)
}

fn rounded(decoded: &Tensor, round: impl Fn(f32) -> f32) -> Result<RgbImage> {
    let (_, channels, height, width) = decoded.dims4()?;
    if channels != 3 {
        return Err(Error::Image(format!("the VAE made {channels} channels where an image has 3")));
    }
    let values: Vec<f32> = decoded.squeeze(0)?.permute((1, 2, 0))?.contiguous()?.flatten_all()?.to_vec1()?;
    let bytes = values.into_iter().map(|v| round((v / 2.0 + 0.5).clamp(0.0, 1.0) * 255.0) as u8).collect();
    let (width, height) = (width as u32, height as u32);
    RgbImage::from_raw(width, height, bytes).ok_or_else(|| Error::Image("the image's size and its values do not agree".into()))
}

/// Writes a PNG with text chunks; a keyword or text beyond Latin-1 goes into an international chunk.
///
/// # Errors
/// The image cannot be encoded or written.
pub(crate) fn write_png(image: &RgbImage, texts: &[(&str, Cow<'_, str>)], to: &mut dyn Write) -> std::io::Result<()> {
    encode_png(image, texts, to).map_err(|e| match e {
        // What the disk said is said as it was.
        png::EncodingError::IoError(e) => e,
        other => std::io::Error::other(other),
    })
}

fn encode_png(image: &RgbImage, texts: &[(&str, Cow<'_, str>)], to: &mut dyn Write) -> Result<(), png::EncodingError> {
    let mut encoder = png::Encoder::new(to, image.width(), image.height());
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    for (keyword, text) in texts {
        if text.chars().all(|c| (c as u32) < 256) {
            encoder.add_text_chunk((*keyword).into(), text.clone().into_owned())?;
        } else {
            encoder.add_itxt_chunk((*keyword).into(), text.clone().into_owned())?;
        }
    }
    encoder.write_header()?.write_image_data(image.as_raw())
}
