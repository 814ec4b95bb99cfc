//! WebP's texts: its chunks of EXIF and XMP.
//!
//! # Source
//! RFC 9649 §2.7.

use super::{MOST_CHUNKS, TextChunks};
use std::io::{BufRead, Seek};

impl<R: BufRead + Seek> TextChunks<R> {
    pub(super) fn webp(&mut self) -> Result<(), String> {
        let mut at = 12;
        for _ in 0..MOST_CHUNKS {
            self.go_to(at)?;
            let mut head = [0; 8];
            if self.from.read_exact(&mut head).is_err() {
                return Ok(());
            }
            let [kind @ .., a, b, c, d] = head;
            let length = u64::from(u32::from_le_bytes([a, b, c, d]));
            match &kind {
                b"EXIF" => {
                    let bytes = self.take(length)?;
                    self.add_exif(&bytes)?;
                }
                b"XMP " => {
                    let bytes = self.take(length)?;
                    self.add_xmp(&bytes)?;
                }
                _ => {}
            }
            // Chunks begin at even places.
            at += 8 + length + length % 2;
        }
        Err(format!("has more than {MOST_CHUNKS} chunks, which no tool writes; it is not read"))
    }
}
