//! JPEG's texts: the segments of EXIF, XMP and Photoshop, and the comments.
//!
//! # Source
//! ITU-T T.81 annex B; Exif 2.32 §4.5.

use super::coding::utf8_or_latin1;
use super::{EXIF_HEAD, MOST_CHUNKS, PHOTOSHOP_HEAD, Text, TextChunks, XMP_HEAD};
use std::io::{BufRead, Seek};

impl<R: BufRead + Seek> TextChunks<R> {
    pub(super) fn jpeg(&mut self) -> Result<(), String> {
        let mut at = 2;
        for _ in 0..MOST_CHUNKS {
            self.go_to(at)?;
            let mut head = [0; 4];
            if self.from.read_exact(&mut head).is_err() {
                return Ok(());
            }
            match head {
                // Fill bytes.
                [0xff, 0xff, ..] => at += 1,
                // Markers that stand alone.
                [0xff, 0x01 | 0xd0..=0xd8, ..] => at += 2,
                // The image begins, or ends: nothing after it is a segment with text.
                [0xff, 0xda | 0xd9, ..] => return Ok(()),
                [0xff, marker, high, low] => {
                    let length = u64::from(u16::from_be_bytes([high, low]));
                    let Some(body) = length.checked_sub(2) else { return Ok(()) };
                    self.segment(marker, body)?;
                    at += 2 + length;
                }
                _ => return Ok(()),
            }
        }
        Err(format!("has more than {MOST_CHUNKS} segments, which no tool writes; it is not read"))
    }

    fn segment(&mut self, marker: u8, length: u64) -> Result<(), String> {
        if !matches!(marker, 0xe1 | 0xed | 0xfe) {
            return Ok(());
        }
        let bytes = self.take(length)?;
        if marker == 0xfe {
            self.add(Text::new("JPEG comment", "comment", utf8_or_latin1(&bytes)))
        } else if bytes.starts_with(EXIF_HEAD) {
            self.add_exif(&bytes)
        } else if let Some(xmp) = bytes.strip_prefix(XMP_HEAD) {
            self.add_xmp(xmp)
        } else if let Some(resources) = bytes.strip_prefix(PHOTOSHOP_HEAD) {
            self.add_photoshop(resources)
        } else {
            Ok(())
        }
    }
}
