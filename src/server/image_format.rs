//! Images as they are sent: PNG as it was kept, JPEG and WebP with the same metadata.

use crate::image::write_png;
use crate::{Error, Result};
use ::image::codecs::jpeg::JpegEncoder;
use ::image::codecs::webp::WebPEncoder;
use ::image::{ExtendedColorType, ImageEncoder, RgbImage};
use std::path::Path;

/// How an image is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SentFormat {
    Png,
    Jpeg,
    WebP,
}

impl SentFormat {
    pub(super) fn from_name(name: &str) -> Option<Self> {
        match name.to_ascii_lowercase().as_str() {
            "png" => Some(Self::Png),
            "jpeg" | "jpg" => Some(Self::Jpeg),
            "webp" => Some(Self::WebP),
            _ => None,
        }
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Png => "png",
            Self::Jpeg => "jpeg",
            Self::WebP => "webp",
        }
    }

    pub(super) fn mime(self) -> &'static str {
        match self {
            Self::Png => "image/png",
            Self::Jpeg => "image/jpeg",
            Self::WebP => "image/webp",
        }
    }
}

/// The bytes of a kept image in a format; `quality` is JPEG's.
///
/// # Errors
/// The file is not there any more.
pub(super) fn kept_image(path: &Path, infotext: &str, format: SentFormat, quality: u8) -> Result<Vec<u8>> {
    let bytes = std::fs::read(path).map_err(Error::io(path))?;
    if format == SentFormat::Png {
        return Ok(bytes);
    }
    let image = crate::image::decode(&bytes)?.rgb;
    encode(&image, infotext, format, quality)
}

/// An image in a format.
///
/// # Errors
/// It is larger than the format allows.
pub(super) fn encode(image: &RgbImage, infotext: &str, format: SentFormat, quality: u8) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let failed = |error: ::image::ImageError| Error::Image(format!("the image cannot be written as {}: {error}", format.name()));
    let (width, height) = image.dimensions();
    let texts = exif(infotext);
    match format {
        SentFormat::Png => {
            let texts: &[(&str, std::borrow::Cow<'_, str>)] = &[(crate::metadata::KEYWORD, infotext.into())];
            let texts = if infotext.is_empty() { &[] } else { texts };
            write_png(image, texts, &mut bytes).map_err(Error::io("the PNG"))?;
        }
        SentFormat::Jpeg => {
            let mut encoder = JpegEncoder::new_with_quality(&mut bytes, quality.clamp(1, 100));
            if let Some(texts) = texts {
                // One that is too long for a JPEG's segment is left out.
                let _ = encoder.set_exif_metadata(texts);
            }
            encoder.write_image(image, width, height, ExtendedColorType::Rgb8).map_err(failed)?;
        }
        SentFormat::WebP => {
            let mut encoder = WebPEncoder::new_lossless(&mut bytes);
            if let Some(texts) = texts {
                let _ = encoder.set_exif_metadata(texts);
            }
            encoder.write_image(image, width, height, ExtendedColorType::Rgb8).map_err(failed)?;
        }
    }
    Ok(bytes)
}

/// EXIF whose user comment is the text, as A1111 and its kin write it into JPEG and WebP: UTF-16, big endian.
fn exif(text: &str) -> Option<Vec<u8>> {
    if text.is_empty() {
        return None;
    }
    let mut comment = b"UNICODE\0".to_vec();
    comment.extend(text.encode_utf16().flat_map(u16::to_be_bytes));
    // A segment of a JPEG holds 64 KiB.
    let length = u32::try_from(comment.len()).ok().filter(|length| *length < 65_000)?;
    let mut tiff = b"MM\0\x2a\0\0\0\x08".to_vec();
    let entry = |tiff: &mut Vec<u8>, tag: u16, kind: u16, count: u32, value: u32| {
        tiff.extend(tag.to_be_bytes());
        tiff.extend(kind.to_be_bytes());
        tiff.extend(count.to_be_bytes());
        tiff.extend(value.to_be_bytes());
    };
    // The first directory leads to the EXIF one at 26, whose only entry leads to the text at 44.
    tiff.extend(1u16.to_be_bytes());
    entry(&mut tiff, 0x8769, 4, 1, 26);
    tiff.extend(0u32.to_be_bytes());
    tiff.extend(1u16.to_be_bytes());
    entry(&mut tiff, 0x9286, 7, length, 44);
    tiff.extend(0u32.to_be_bytes());
    tiff.extend(comment);
    Some(tiff)
}
