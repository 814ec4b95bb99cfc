//! Text in the lowest bits of a PNG's pixels, where it outlives tools that drop chunks.
//!
//! # Source
//! NovelAI's novelai-image-metadata and the web UI's extension sd_webui_stealth_pnginfo: bits column by column, of the alpha channel or
//! of red, green and blue, a signature, the payload's length in bits as a big-endian u32, the payload.

use super::{LONGEST, Text, bounded};
use std::io::{BufRead, Seek};

/// The most bytes that an image may have when it is unpacked.
const MOST_PIXELS: usize = 512 << 20;
/// Bytes of a signature.
const SIGNATURE: usize = 15;

/// The signatures, the samples of a pixel that carry bits (of RGBA), and whether the payload is packed.
const MODES: &[(&[u8; SIGNATURE], &[usize], bool)] = &[
    (b"stealth_pnginfo", &[3], false),
    (b"stealth_pngcomp", &[3], true),
    (b"stealth_rgbinfo", &[0, 1, 2], false),
    (b"stealth_rgbcomp", &[0, 1, 2], true),
];

/// The texts hidden in a PNG's pixels; none where there is no signature, or nothing can be made of it.
pub(super) fn read(png: impl BufRead + Seek) -> Vec<Text> {
    payload(png).unwrap_or_default()
}

/// The rows of an image that have been unpacked so far.
struct UnpackedRows {
    samples: Vec<u8>,
    width: usize,
    height: usize,
    channels: usize,
}

impl UnpackedRows {
    /// `count` bytes after `skip` others, from the lowest bits of `carriers`; fewer where the rows end.
    fn bytes(&self, carriers: &[usize], skip: usize, count: usize) -> Option<Vec<u8>> {
        let bit = |i: usize| {
            let (pixel, carrier) = (i / carriers.len(), carriers.get(i % carriers.len())?);
            let (x, y) = (pixel / self.height, pixel % self.height);
            let at = (y * self.width + x) * self.channels + carrier;
            (x < self.width && *carrier < self.channels).then(|| self.samples.get(at)).flatten().map(|sample| sample & 1)
        };
        (skip..skip + count).map(|byte| (0..8).try_fold(0u8, |value, i| Some(value << 1 | bit(byte * 8 + i)?))).collect()
    }
}

fn payload(png: impl BufRead + Seek) -> Option<Vec<Text>> {
    let mut decoder = png::Decoder::new_with_limits(png, png::Limits { bytes: MOST_PIXELS });
    decoder.set_transformations(png::Transformations::IDENTITY);
    // A profile of some kilobytes unpacks to a gigabyte, and nothing here needs it.
    decoder.set_ignore_iccp_chunk(true);
    decoder.set_ignore_text_chunk(true);
    let mut reader = decoder.read_info().ok()?;
    let channels = match reader.output_color_type() {
        (png::ColorType::Rgba, png::BitDepth::Eight) => 4,
        (png::ColorType::Rgb, png::BitDepth::Eight) => 3,
        _ => return None,
    };
    // No tool that hides text writes interlaced images.
    if reader.info().interlaced {
        return None;
    }
    let size = reader.output_buffer_size().filter(|size| *size <= MOST_PIXELS)?;
    let (width, height) = (reader.info().width as usize, reader.info().height as usize);
    let mut rows = UnpackedRows { samples: Vec::new(), width, height, channels };
    let mut unpack = |rows: &mut UnpackedRows, count: usize| {
        while rows.samples.len() < size.min(count.saturating_mul(width * channels)) {
            rows.samples.extend_from_slice(reader.next_row().ok()??.data());
        }
        Some(())
    };
    // The signature stands in the first columns; where they are long enough, its rows are all that is unpacked of other images.
    let columns = (SIGNATURE * 8).div_ceil(height);
    unpack(&mut rows, if columns > 1 { height } else { SIGNATURE * 8 })?;
    let found = |(signature, carriers, _): &&(&[u8; SIGNATURE], &[usize], bool)| {
        rows.bytes(carriers, 0, SIGNATURE).is_some_and(|bytes| bytes == **signature)
    };
    let (_, carriers, packed) = MODES.iter().find(found)?;
    unpack(&mut rows, height)?;
    let length = rows.bytes(carriers, SIGNATURE, 4)?;
    let length = u32::from_be_bytes(length.try_into().ok()?) as usize / 8;
    if length as u64 > LONGEST {
        return None;
    }
    let payload = rows.bytes(carriers, SIGNATURE + 4, length)?;
    let payload = if *packed { bounded(flate2::read::GzDecoder::new(payload.as_slice())).ok()? } else { payload };
    let text = String::from_utf8(payload).ok()?;
    let place = if carriers.len() == 1 { "alpha channel" } else { "pixels" };
    Some(vec![Text::new(place, "parameters", text)])
}
