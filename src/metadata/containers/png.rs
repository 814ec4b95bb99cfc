//! PNG's texts: its three text chunks, its EXIF, and the profiles that other programs keep in a text as hexadecimal digits.
//!
//! # Source
//! PNG third edition §11.3.3; ImageMagick's coders/png.c for the profiles.

use super::coding::{latin1, utf8_or_latin1};
use super::{LONGEST, MOST_CHUNKS, PHOTOSHOP_HEAD, Text, TextChunks, XMP_HEAD, bounded};
use std::io::{BufRead, Seek};

/// What the keyword of a profile begins with; its kind follows.
const PROFILE: &str = "Raw profile type ";

impl<R: BufRead + Seek> TextChunks<R> {
    pub(super) fn png(&mut self) -> Result<(), String> {
        let mut at = 8;
        for _ in 0..MOST_CHUNKS {
            self.go_to(at)?;
            let mut head = [0; 8];
            if self.from.read_exact(&mut head).is_err() {
                // Without IEND it is truncated, but what was said before counts.
                return Ok(());
            }
            let [a, b, c, d, kind @ ..] = head;
            let length = u64::from(u32::from_be_bytes([a, b, c, d]));
            match &kind {
                b"tEXt" => {
                    let bytes = self.take(length)?;
                    if let Some((keyword, text)) = split(&bytes) {
                        self.add_keyed("PNG tEXt", latin1(keyword), utf8_or_latin1(text))?;
                    }
                }
                b"zTXt" => {
                    let bytes = self.take(length)?;
                    if let Some((keyword, [0, packed @ ..])) = split(&bytes) {
                        self.add_keyed("PNG zTXt", latin1(keyword), utf8_or_latin1(&inflate(packed)?))?;
                    }
                }
                b"iTXt" => {
                    let bytes = self.take(length)?;
                    if let Some((keyword, text)) = international(&bytes)? {
                        self.add_keyed("PNG iTXt", keyword, text)?;
                    }
                }
                b"eXIf" => {
                    let bytes = self.take(length)?;
                    self.add_exif(&bytes)?;
                }
                b"IEND" => return Ok(()),
                _ => {}
            }
            at += 12 + length;
        }
        Err(format!("has more than {MOST_CHUNKS} chunks, which no tool writes; it is not read"))
    }

    fn add_keyed(&mut self, place: &'static str, keyword: String, text: String) -> Result<(), String> {
        match keyword.strip_prefix(PROFILE).and_then(|kind| Some((kind, profile(&text)?))) {
            Some(("exif" | "EXIF", bytes)) => self.add_exif(&bytes),
            Some(("xmp" | "XMP", bytes)) => self.add_xmp(&bytes),
            // Whatever JPEG's segment of that number held.
            Some(("APP1", bytes)) => match bytes.strip_prefix(XMP_HEAD) {
                Some(xmp) => self.add_xmp(xmp),
                None => self.add_exif(&bytes),
            },
            Some(("iptc" | "8bim" | "IPTC" | "8BIM", bytes)) => {
                let resources = bytes.strip_prefix(PHOTOSHOP_HEAD).unwrap_or(&bytes);
                if resources.starts_with(b"8BIM") { self.add_photoshop(resources) } else { self.add_iptc(resources) }
            }
            _ if keyword == "XML:com.adobe.xmp" => self.add(Text::new(place, "XMP", text)),
            _ => self.add(Text::new(place, keyword, text)),
        }
    }
}

/// The bytes of a profile: its name and its length on lines of their own, then pairs of hexadecimal digits.
fn profile(text: &str) -> Option<Vec<u8>> {
    let mut lines = text.trim_start().splitn(3, '\n');
    let (_name, length, digits) = (lines.next()?, lines.next()?, lines.next()?);
    let length: usize = length.trim().parse().ok().filter(|length| *length as u64 <= LONGEST)?;
    let digits: Vec<u8> = digits.bytes().filter_map(|byte| char::from(byte).to_digit(16)).map(|digit| digit as u8).collect();
    let bytes: Vec<u8> = digits.as_chunks::<2>().0.iter().map(|[high, low]| high << 4 | low).take(length).collect();
    (bytes.len() == length).then_some(bytes)
}

/// What stands before and after the first NUL.
fn split(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let at = bytes.iter().position(|byte| *byte == 0)?;
    Some((bytes.get(..at)?, bytes.get(at + 1..)?))
}

/// An iTXt chunk: keyword, packed or not, language, translated keyword, text.
fn international(bytes: &[u8]) -> Result<Option<(String, String)>, String> {
    let parts = || {
        let (keyword, rest) = split(bytes)?;
        let [packed, method, rest @ ..] = rest else { return None };
        let (_, rest) = split(rest)?;
        let (_, text) = split(rest)?;
        Some((keyword, (*packed, *method), text))
    };
    let Some((keyword, packing, text)) = parts() else { return Ok(None) };
    let text = match packing {
        (0, _) => String::from_utf8_lossy(text).into_owned(),
        (1, 0) => String::from_utf8_lossy(&inflate(text)?).into_owned(),
        _ => return Ok(None),
    };
    Ok(Some((latin1(keyword), text)))
}

/// Unpacks zlib's format; a text that unpacks to more than any tool writes is refused while it is unpacked.
fn inflate(packed: &[u8]) -> Result<Vec<u8>, String> {
    bounded(flate2::read::ZlibDecoder::new(packed))
}
