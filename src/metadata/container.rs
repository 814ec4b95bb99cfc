//! The texts of an image file: PNG's text chunks, and the EXIF, XMP and comments of PNG, JPEG and WebP.
//!
//! Only headers and text are read, never pixels, but for the alpha channel that some tools hide their text in.
//!
//! # Source
//! PNG third edition §11.3.3; JFIF/Exif 2.32 §4.5; RFC 9649 (WebP).

use super::{exif, stealth};
use crate::{Error, Result};
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom};
use std::path::Path;

/// The longest text that is read, in bytes, packed or not; ComfyUI's workflows have some hundred thousand.
pub(super) const LONGEST: u64 = 16 << 20;
/// All texts of one image together.
const ALL: u64 = 64 << 20;
/// More chunks, segments or texts than any tool writes.
const MOST_CHUNKS: usize = 100_000;

/// One text of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Text {
    /// Where it stands: "PNG tEXt", "EXIF UserComment".
    pub place: &'static str,
    /// PNG's keyword, EXIF's field, or `XMP` or `comment`.
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
    let failed = Error::io(path);
    // Before opening: opening a named pipe would wait for a writer.
    let is_file = std::fs::metadata(path).map(|metadata| metadata.is_file());
    if !is_file.map_err(Error::io(path))? {
        return Ok(None);
    }
    let file = BufReader::new(File::open(path).map_err(failed)?);
    read(file).map_err(|what| Error::Input(format!("{}: {what}", path.display())))
}

/// As [`texts`], from anything that can be read; the error is what is wrong with it.
pub(super) fn read(mut from: impl BufRead + Seek) -> Result<Option<Vec<Text>>, String> {
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
    if reader.texts.is_empty() && start[0] == 0x89 {
        reader.go_to(0)?;
        reader.texts.extend(stealth::read(&mut reader.from));
    }
    Ok(Some(reader.texts))
}

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
        exif::texts(bytes, |text| self.add(text))
    }

    fn png(&mut self) -> Result<(), String> {
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
                        let text = latin1_or_utf8(text);
                        self.add(Text::new("PNG tEXt", latin1(keyword), text))?;
                    }
                }
                b"zTXt" => {
                    let bytes = self.take(length)?;
                    if let Some((keyword, [0, packed @ ..])) = split(&bytes) {
                        let text = latin1_or_utf8(&inflate(packed)?);
                        self.add(Text::new("PNG zTXt", latin1(keyword), text))?;
                    }
                }
                b"iTXt" => {
                    let bytes = self.take(length)?;
                    if let Some(text) = international(&bytes)? {
                        self.add(text)?;
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

    fn jpeg(&mut self) -> Result<(), String> {
        let mut at = 2;
        for _ in 0..MOST_CHUNKS {
            self.go_to(at)?;
            let mut head = [0; 4];
            if self.from.read_exact(&mut head).is_err() {
                return Ok(());
            }
            match head {
                // Fill bytes.
                [0xff, 0xff, ..] => {
                    at += 1;
                    continue;
                }
                // The image begins, or ends: nothing after it is a segment with text.
                [0xff, 0xda | 0xd9, ..] => return Ok(()),
                [0xff, marker, high, low] => {
                    let length = u64::from(u16::from_be_bytes([high, low]));
                    let Some(body) = length.checked_sub(2) else { return Ok(()) };
                    if marker == 0xe1 {
                        let bytes = self.take(body)?;
                        if let Some(exif) = bytes.strip_prefix(b"Exif\0\0") {
                            self.add_exif(exif)?;
                        } else if let Some(xmp) = bytes.strip_prefix(b"http://ns.adobe.com/xap/1.0/\0") {
                            self.add(Text::new("XMP", "XMP", String::from_utf8_lossy(xmp)))?;
                        }
                    } else if marker == 0xfe {
                        let bytes = self.take(body)?;
                        self.add(Text::new("JPEG comment", "comment", latin1_or_utf8(&bytes)))?;
                    }
                    at += 2 + length;
                }
                _ => return Ok(()),
            }
        }
        Err(format!("has more than {MOST_CHUNKS} segments, which no tool writes; it is not read"))
    }

    fn webp(&mut self) -> Result<(), String> {
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
                    self.add_exif(bytes.strip_prefix(b"Exif\0\0").unwrap_or(&bytes))?;
                }
                b"XMP " => {
                    let bytes = self.take(length)?;
                    self.add(Text::new("XMP", "XMP", String::from_utf8_lossy(&bytes)))?;
                }
                _ => {}
            }
            // Chunks begin at even places.
            at += 8 + length + length % 2;
        }
        Err(format!("has more than {MOST_CHUNKS} chunks, which no tool writes; it is not read"))
    }
}

/// What stands before and after the first NUL.
fn split(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let at = bytes.iter().position(|byte| *byte == 0)?;
    Some((bytes.get(..at)?, bytes.get(at + 1..)?))
}

/// An iTXt chunk: keyword, packed or not, language, translated keyword, text.
fn international(bytes: &[u8]) -> Result<Option<Text>, String> {
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
    let keyword = latin1(keyword);
    let keyword = if keyword == "XML:com.adobe.xmp" { "XMP".to_owned() } else { keyword };
    Ok(Some(Text::new("PNG iTXt", keyword, text)))
}

/// Unpacks zlib's format; a text that unpacks to more than any tool writes is refused while it is unpacked.
fn inflate(packed: &[u8]) -> Result<Vec<u8>, String> {
    bounded(flate2::read::ZlibDecoder::new(packed))
}

/// Reads to the end, or to the limit, which is an error.
pub(super) fn bounded(from: impl Read) -> Result<Vec<u8>, String> {
    let mut text = Vec::new();
    from.take(LONGEST + 1).read_to_end(&mut text).map_err(|e| format!("has a packed text that is damaged ({e})"))?;
    if text.len() as u64 > LONGEST {
        return Err(format!("has a text that unpacks to more than {} MiB; it is not read", LONGEST >> 20));
    }
    Ok(text)
}

fn latin1(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| char::from(*byte)).collect()
}

/// PNG's plain texts are Latin-1, but more than one tool writes UTF-8 into them; text that is not ASCII is hardly ever both.
fn latin1_or_utf8(bytes: &[u8]) -> String {
    std::str::from_utf8(bytes).map_or_else(|_| latin1(bytes), str::to_owned)
}
