//! The texts of an image file: PNG's text chunks, and the EXIF, XMP, IPTC and comments of PNG, JPEG and WebP.
//!
//! Only headers and text are read, never pixels; [`hidden`] is asked for the text that some tools keep in the pixels.
//!
//! # What is refused
//! More text than any tool writes, before it is read. A damaged text is an error; a damaged image is none of this module's business.

mod coding;
mod exif;
mod jpeg;
mod png;
mod stealth;
mod webp;

use crate::{Error, Result};
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom};
use std::path::Path;

/// The longest text that is read, in bytes, packed or not; ComfyUI's workflows have some hundred thousand.
const LONGEST: u64 = 16 << 20;
/// All texts of one image together.
const ALL: u64 = 64 << 20;
/// More chunks, segments or texts than any tool writes.
const MOST_CHUNKS: usize = 100_000;

/// One text of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Text {
    /// Where it stands: "PNG tEXt", "EXIF UserComment".
    pub place: &'static str,
    /// PNG's keyword, EXIF's field, or `XMP`, `Caption` or `comment`.
    pub keyword: String,
    /// The text.
    pub text: String,
}

impl Text {
    pub(super) fn new(place: &'static str, keyword: impl Into<String>, text: impl Into<String>) -> Self {
        Text { place, keyword: keyword.into(), text: text.into() }
    }
}

/// The texts of the image at `path`; `None` where it is no PNG, JPEG or WebP.
///
/// # Errors
/// The file cannot be read, ends too early, or holds more text than any tool writes.
pub fn texts(path: &Path) -> Result<Option<Vec<Text>>> {
    // Before opening: opening a named pipe would wait for a writer.
    let is_file = std::fs::metadata(path).map(|metadata| metadata.is_file());
    if !is_file.map_err(Error::io(path))? {
        return Ok(None);
    }
    read(open(path)?).map_err(|what| Error::Input(format!("{}: {what}", path.display())))
}

/// The texts that are hidden in the pixels of the PNG at `path`; none in other files.
///
/// # Errors
/// The file cannot be opened.
pub(super) fn hidden(path: &Path) -> Result<Vec<Text>> {
    Ok(stealth::read(open(path)?))
}

fn open(path: &Path) -> Result<BufReader<File>> {
    Ok(BufReader::new(File::open(path).map_err(Error::io(path))?))
}

/// As [`texts`], from anything that can be read; the error is what is wrong with it.
fn read(mut from: impl BufRead + Seek) -> Result<Option<Vec<Text>>, String> {
    let mut start = [0; 12];
    if from.read_exact(&mut start).is_err() {
        return Ok(None);
    }
    let mut reader = TextChunks { from, texts: Vec::new(), length: 0 };
    match &start {
        [0x89, b'P', b'N', b'G', b'\r', b'\n', 0x1a, b'\n', ..] => reader.png()?,
        [0xff, 0xd8, 0xff, ..] => reader.jpeg()?,
        [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P'] => reader.webp()?,
        _ => return Ok(None),
    }
    Ok(Some(reader.texts))
}

/// A container at work: each format walks its own chunks and adds the texts that it finds.
struct TextChunks<R> {
    from: R,
    texts: Vec<Text>,
    /// Bytes of text so far.
    length: u64,
}

impl<R: BufRead + Seek> TextChunks<R> {
    fn go_to(&mut self, at: u64) -> Result<(), String> {
        self.from.seek(SeekFrom::Start(at)).map(drop).map_err(|e| format!("cannot be read: {e}"))
    }

    /// `length` bytes of text from here; more than any text has is refused before it is read.
    fn take(&mut self, length: u64) -> Result<Vec<u8>, String> {
        self.count(length)?;
        let mut bytes = Vec::new();
        self.from.by_ref().take(length).read_to_end(&mut bytes).map_err(|e| format!("cannot be read: {e}"))?;
        if bytes.len() as u64 != length {
            return Err("ends in the middle of a text: the file is truncated".into());
        }
        Ok(bytes)
    }

    fn count(&mut self, length: u64) -> Result<(), String> {
        self.length = self.length.saturating_add(length);
        if length > LONGEST || self.length > ALL {
            return Err(format!("holds more than {} MiB of text, which no tool writes; it is not read", LONGEST >> 20));
        }
        Ok(())
    }

    fn add(&mut self, text: Text) -> Result<(), String> {
        self.count(text.text.len() as u64)?;
        self.texts.push(text);
        Ok(())
    }

    fn add_exif(&mut self, bytes: &[u8]) -> Result<(), String> {
        // JPEG's head of the segment stands in other files too.
        exif::texts(bytes.strip_prefix(EXIF_HEAD).unwrap_or(bytes), |text| self.add(text))
    }

    fn add_xmp(&mut self, bytes: &[u8]) -> Result<(), String> {
        self.add(Text::new("XMP", "XMP", String::from_utf8_lossy(bytes)))
    }

    /// The captions of an IPTC block: datasets of a marker, a record, a number and a length.
    ///
    /// # Source
    /// IPTC-NAA Information Interchange Model 4.2, §1.5 and dataset 2:120.
    fn add_iptc(&mut self, mut bytes: &[u8]) -> Result<(), String> {
        while let [0x1c, record, number, high, low, rest @ ..] = bytes {
            let length = usize::from(u16::from_be_bytes([*high, *low]));
            let Some((value, left)) = rest.split_at_checked(length) else { break };
            if (*record, *number) == (2, 120) {
                self.add(Text::new("IPTC", "Caption", coding::utf8_or_latin1(value).trim_end_matches('\0')))?;
            }
            bytes = left;
        }
        Ok(())
    }

    /// The blocks of Photoshop's resources, of which one is IPTC's.
    ///
    /// # Source
    /// Adobe Photoshop file formats specification, "Image resource blocks".
    fn add_photoshop(&mut self, mut bytes: &[u8]) -> Result<(), String> {
        const IPTC: [u8; 2] = [0x04, 0x04];
        while let [b'8', b'B', b'I', b'M', id_high, id_low, name, rest @ ..] = bytes {
            // The name's length and the name, and then the value, each padded to even.
            let name = usize::from(*name);
            let Some(rest) = rest.get(name + usize::from(name % 2 == 0)..) else { break };
            let Some((length, rest)) = rest.split_first_chunk::<4>() else { break };
            let length = u32::from_be_bytes(*length) as usize;
            let Some((value, left)) = rest.split_at_checked(length) else { break };
            if [*id_high, *id_low] == IPTC {
                self.add_iptc(value)?;
            }
            bytes = left.get(length % 2..).unwrap_or_default();
        }
        Ok(())
    }
}

/// What JPEG's segments of each kind begin with.
const EXIF_HEAD: &[u8] = b"Exif\0\0";
const XMP_HEAD: &[u8] = b"http://ns.adobe.com/xap/1.0/\0";
const PHOTOSHOP_HEAD: &[u8] = b"Photoshop 3.0\0";

/// Reads to the end, or to the limit, which is an error.
fn bounded(from: impl Read) -> Result<Vec<u8>, String> {
    let mut text = Vec::new();
    from.take(LONGEST + 1).read_to_end(&mut text).map_err(|e| format!("has a packed text that is damaged ({e})"))?;
    if text.len() as u64 > LONGEST {
        return Err(format!("has a text that unpacks to more than {} MiB; it is not read", LONGEST >> 20));
    }
    Ok(text)
}
