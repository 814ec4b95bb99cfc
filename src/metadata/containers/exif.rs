//! The texts of an EXIF block.
//!
//! # Source
//! TIFF 6.0 §2 and Exif 2.32 §4.6: a byte order, a directory of twelve-byte entries, and values behind offsets.
//!
//! # Why not a crate
//! `kamadak-exif` copies every value: a block whose thousand entries point to the same megabytes takes gigabytes with it. And what
//! fails with real files is the text's coding, which it leaves to its callers.

use super::Text;
use super::coding::{guessed, utf16};

/// The fields that tools write their text into.
const FIELDS: &[(u16, &str)] = &[
    (0x010e, "ImageDescription"),
    (0x010f, "Make"),
    (0x0110, "Model"),
    (0x0131, "Software"),
    (0x9286, "UserComment"),
    (0x9c9b, "XPTitle"),
    (0x9c9c, "XPComment"),
    (0x9c9e, "XPKeywords"),
    (0x9c9f, "XPSubject"),
];
/// What UserComment begins with.
const HEADS: &[&[u8; 8]] = &[b"UNICODE\0", b"ASCII\0\0\0", b"JIS\0\0\0\0\0", &[0; 8]];
/// The entry that leads to the directory with UserComment.
const EXIF_DIRECTORY: u16 = 0x8769;
/// Entries of one directory: more than EXIF has tags.
const MOST_ENTRIES: usize = 1000;

/// Hands out the texts in an EXIF block, which begins with its byte order.
///
/// They are handed out one by one, because many entries may point to the same bytes: whoever takes them can stop.
pub(super) fn texts(bytes: &[u8], mut take: impl FnMut(Text) -> Result<(), String>) -> Result<(), String> {
    let little = match bytes {
        [b'I', b'I', ..] => true,
        [b'M', b'M', ..] => false,
        _ => return Ok(()),
    };
    let block = ExifBlock { bytes, little };
    let Some(first) = block.u32(4) else { return Ok(()) };
    // Two directories at most, the second named by the first: no chain that could be a ring.
    if let Some(second) = block.directory(first as usize, &mut take)? {
        block.directory(second, &mut take)?;
    }
    Ok(())
}

struct ExifBlock<'a> {
    bytes: &'a [u8],
    little: bool,
}

impl ExifBlock<'_> {
    fn u16(&self, at: usize) -> Option<u16> {
        let bytes = self.bytes.get(at..at.checked_add(2)?)?.try_into().ok()?;
        Some(if self.little { u16::from_le_bytes(bytes) } else { u16::from_be_bytes(bytes) })
    }

    fn u32(&self, at: usize) -> Option<u32> {
        let bytes = self.bytes.get(at..at.checked_add(4)?)?.try_into().ok()?;
        Some(if self.little { u32::from_le_bytes(bytes) } else { u32::from_be_bytes(bytes) })
    }

    /// Hands out the texts of a directory; gives the place of EXIF's own.
    fn directory(&self, at: usize, take: &mut impl FnMut(Text) -> Result<(), String>) -> Result<Option<usize>, String> {
        let mut exif = None;
        let Some(count) = self.u16(at) else { return Ok(None) };
        let count = usize::from(count).min(MOST_ENTRIES);
        for entry in (0..count).map_while(|i| at.checked_add(2 + 12 * i)) {
            let (Some(tag), Some(kind), Some(length)) = (self.u16(entry), self.u16(entry + 2), self.u32(entry + 4)) else { break };
            if tag == EXIF_DIRECTORY {
                exif = self.u32(entry + 8).map(|offset| offset as usize);
            }
            let Some((_, name)) = FIELDS.iter().find(|(known, _)| *known == tag) else { continue };
            // Bytes, ASCII, undefined and UTF-8: one byte each. Others are no text.
            if !matches!(kind, 1 | 2 | 7 | 129) {
                continue;
            }
            let length = length as usize;
            let start = if length <= 4 { Some(entry + 8) } else { self.u32(entry + 8).map(|offset| offset as usize) };
            let value = start.and_then(|start| self.bytes.get(start..start.checked_add(length)?));
            let Some(value) = value else { continue };
            let text = match *name {
                "UserComment" => self.comment(value),
                name if name.starts_with("XP") => utf16(value, true),
                _ => guessed(value, self.little),
            };
            let text = text.trim_matches('\0');
            if !text.is_empty() {
                take(Text::new("EXIF", *name, text))?;
            }
        }
        Ok(exif)
    }

    /// UserComment: eight bytes name the coding of the rest, which tools take lightly.
    fn comment(&self, value: &[u8]) -> String {
        let rest = match value.split_first_chunk::<8>() {
            Some((head, rest)) if HEADS.iter().any(|known| head.eq_ignore_ascii_case(*known)) => rest,
            _ => value,
        };
        guessed(rest, self.little)
    }
}
