//! Text in the lowest bits of an image's alpha channel, where it outlives tools that drop chunks.
//!
//! # Source
//! NovelAI's novelai-image-metadata and the web UI's extension sd_webui_stealth_pnginfo: bits column by column, a signature, the
//! payload's length in bits as a big-endian u32, the payload.

use super::container::{LONGEST, Text, bounded};
use std::io::{BufRead, Seek};

/// The most bytes that an image may have when it is unpacked for its alpha channel.
const MOST_PIXELS: usize = 512 << 20;

/// The texts hidden in a PNG's alpha channel; none where there is no signature, or nothing can be made of it.
pub(super) fn read(png: impl BufRead + Seek) -> Vec<Text> {
    payload(png).unwrap_or_default()
}

fn payload(png: impl BufRead + Seek) -> Option<Vec<Text>> {
    let mut decoder = png::Decoder::new_with_limits(png, png::Limits { bytes: MOST_PIXELS });
    decoder.set_transformations(png::Transformations::IDENTITY);
    // A profile of some kilobytes unpacks to a gigabyte, and nothing here needs it.
    decoder.set_ignore_iccp_chunk(true);
    decoder.set_ignore_text_chunk(true);
    let mut reader = decoder.read_info().ok()?;
    if reader.output_color_type() != (png::ColorType::Rgba, png::BitDepth::Eight) {
        return None;
    }
    let size = reader.output_buffer_size().filter(|size| *size <= MOST_PIXELS)?;
    let mut pixels = vec![0; size];
    let frame = reader.next_frame(&mut pixels).ok()?;
    let (width, height) = (frame.width as usize, frame.height as usize);
    let bits = (0..width).flat_map(|x| (0..height).map(move |y| (x, y)));
    let mut bits = bits.map_while(|(x, y)| pixels.get(y * frame.line_size + 4 * x + 3).map(|alpha| alpha & 1));
    let mut byte = || {
        let mut byte = 0u8;
        for _ in 0..8 {
            byte = byte << 1 | bits.next()?;
        }
        Some(byte)
    };
    let signature: Vec<u8> = (0..15).map_while(|_| byte()).collect();
    let packed = match signature.as_slice() {
        b"stealth_pngcomp" => true,
        b"stealth_pnginfo" => false,
        _ => return None,
    };
    let length = u32::from_be_bytes([byte()?, byte()?, byte()?, byte()?]) / 8;
    if u64::from(length) > LONGEST {
        return None;
    }
    let payload: Vec<u8> = (0..length).map_while(|_| byte()).collect();
    let payload = if packed { bounded(flate2::read::GzDecoder::new(payload.as_slice())).ok()? } else { payload };
    let text = String::from_utf8(payload).ok()?;
    // NovelAI's is an object of the chunks that a PNG would have; the web UI's is its parameters.
    Some(match super::object(&text) {
        Some(map) => map.iter().filter_map(|(key, value)| Some(Text::new("alpha channel", key, super::recipe::plain(value)?))).collect(),
        None => vec![Text::new("alpha channel", "parameters", text)],
    })
}
