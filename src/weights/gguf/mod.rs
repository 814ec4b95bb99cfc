//! Reads the header of a GGUF file from bytes that nobody vouches for.
//!
//! The layout is that of ggml's `docs/gguf.md` (versions 2 and 3, little-endian). Every number is compared with the bytes that are really
//! there before it is used: what is kept is bounded by the header's own length and by the limits below. The bytes are this module's own
//! before it looks at them. candle's `gguf_file` is not used, because it keeps every array and looks at neither overlaps nor the file's length.
//!
//! Stable-diffusion.cpp writes whole checkpoints under their original names. ComfyUI-GGUF writes a UNet alone, and keeps the shape of a
//! tensor that it had to fold under `comfy.gguf.orig_shape.NAME`. Both have dimensions in reverse order.

mod blocks;
#[cfg(test)]
mod tests;
mod write;

pub(crate) use blocks::BlockKind;
pub(super) use write::{NewTensor, header, padded, quantised, stored_as};

use super::disk_file::ReadBuffers;
use super::file::Blob;
use super::header::{Entry, Header, MAX_HEADER, MAX_RANK, MAX_TENSORS};
use super::{model_error, quoted};
use crate::{Error, Result};
use safetensors::Dtype;
use std::collections::{BTreeMap, HashMap};

/// The first bytes of a GGUF file.
pub(crate) const MAGIC: &[u8] = b"GGUF";
/// The most fields before the tensors; real files have tens, and ComfyUI-GGUF's one more for every folded tensor.
const MAX_FIELDS: u64 = 100_000;
/// Longer texts are no facts about a model.
const MAX_NAME: u64 = 65_535;
/// Where data begin, if the file does not say otherwise.
const ALIGNMENT: u64 = 32;
/// Bytes that are read at once.
const CHUNK: usize = 1 << 20;
const ORIGINAL_SHAPE: &str = "comfy.gguf.orig_shape.";

/// Reads the header of the file called `file`, which begins with [`MAGIC`].
///
/// # Errors
/// [`Error::Model`] that names the file and, where there is one, the field or the tensor.
pub(crate) fn read(file: &str, blob: &Blob) -> Result<Header> {
    let mut cursor = Cursor { file, blob, at: 4, chunk: Vec::new(), begin: 0 };
    let version = cursor.u32()?;
    if !(2..=3).contains(&version) {
        return Err(model_error(file, format!("is a GGUF file of version {version}; versions 2 and 3 are read, little-endian")));
    }
    let (tensors, fields) = (cursor.u64()?, cursor.u64()?);
    if tensors > MAX_TENSORS as u64 || fields > MAX_FIELDS {
        let what = format!("claims {tensors} tensors and {fields} fields; at most {MAX_TENSORS} and {MAX_FIELDS} are read");
        return Err(model_error(file, what));
    }
    let mut known = HeaderFields { metadata: BTreeMap::new(), shapes: HashMap::new(), alignment: ALIGNMENT };
    for _ in 0..fields {
        known.read(&mut cursor)?;
    }
    let mut infos = Vec::new();
    for _ in 0..tensors {
        infos.push(tensor_info(&mut cursor, &known.shapes)?);
    }
    let start = cursor.at.checked_next_multiple_of(known.alignment).ok_or_else(|| cursor.truncated())?;
    infos.sort_by_key(|info| info.offset);
    let mut entries = Vec::with_capacity(infos.len());
    let (mut end, len) = (start, blob.len());
    for TensorInfo { name, kind, shape, bytes, offset } in infos {
        let from = start.checked_add(offset);
        let to = from.and_then(|from| from.checked_add(bytes)).filter(|to| *to <= len);
        let (Some(from), Some(to)) = (from, to) else {
            let what =
                format!("has tensor {} end behind the file's {len} bytes: the file is truncated; download or copy it again", quoted(&name));
            return Err(model_error(file, what));
        };
        if offset % known.alignment != 0 {
            return Err(model_error(
                file,
                format!("has tensor {} at byte {offset}, which is no multiple of {}", quoted(&name), known.alignment),
            ));
        }
        if from < end {
            return Err(model_error(
                file,
                format!("has tensor {} at byte {from}, which overlaps the tensor before it (ends at {end})", quoted(&name)),
            ));
        }
        end = to;
        let place = |byte| usize::try_from(byte).map_err(|_| model_error(file, "is too large for this machine"));
        let (dtype, packed) = match kind {
            TensorKind::Plain(dtype) => (dtype, None),
            TensorKind::Packed(kind) => (Dtype::F32, Some(kind)),
        };
        entries.push(Entry { name, dtype, shape, range: place(from)?..place(to)?, packed });
    }
    Header::new(file, entries, known.metadata)
}

/// What the fields say.
struct HeaderFields {
    metadata: BTreeMap<String, String>,
    /// ComfyUI-GGUF's shapes by tensor.
    shapes: HashMap<String, Vec<usize>>,
    alignment: u64,
}

impl HeaderFields {
    fn read(&mut self, cursor: &mut Cursor<'_>) -> Result<()> {
        let key = cursor.text(MAX_NAME)?;
        let wrong = |file: &str, what: String| model_error(file, format!("has a field {} {what}", quoted(&key)));
        let value = match cursor.u32()? {
            kind @ (0..=7 | 10..=12) => cursor.number(kind)?,
            8 => cursor.text(MAX_HEADER as u64)?,
            9 => {
                let (kind, count) = (cursor.u32()?, cursor.u64()?);
                if let (5, Some(tensor)) = (kind, key.strip_prefix(ORIGINAL_SHAPE)) {
                    if count > MAX_RANK as u64 {
                        return Err(wrong(cursor.file, format!("of {count} dimensions; at most {MAX_RANK} are read")));
                    }
                    let mut shape = Vec::new();
                    for _ in 0..count {
                        let size = cursor.u32()?;
                        shape.push(
                            i32::from_le_bytes(size.to_le_bytes())
                                .try_into()
                                .map_err(|_| wrong(cursor.file, "with a negative size".into()))?,
                        );
                    }
                    if self.shapes.insert(tensor.to_owned(), shape).is_some() {
                        return Err(wrong(cursor.file, "twice".into()));
                    }
                    return Ok(());
                }
                match (width(kind), kind) {
                    (Some(width), _) => cursor.skip(count.checked_mul(width).ok_or_else(|| cursor.truncated())?)?,
                    (None, 8) => {
                        for _ in 0..count {
                            let length = cursor.u64()?;
                            cursor.skip(length)?;
                        }
                    }
                    (None, 9) => return Err(wrong(cursor.file, "of arrays in an array, which no model has".into())),
                    _ => return Err(wrong(cursor.file, format!("of the unknown type {kind}: it is damaged"))),
                }
                return Ok(());
            }
            kind => return Err(wrong(cursor.file, format!("of the unknown type {kind}: it is damaged"))),
        };
        if key == "general.alignment" {
            let alignment = value.parse().ok().filter(|alignment: &u64| alignment.is_power_of_two() && *alignment <= 1 << 20);
            self.alignment = alignment.ok_or_else(|| wrong(cursor.file, format!("of {}, which is no power of two", quoted(&value))))?;
        }
        if self.metadata.contains_key(&key) {
            return Err(wrong(cursor.file, "twice".into()));
        }
        self.metadata.insert(key, value);
        Ok(())
    }
}

/// Bytes of one number of a field's type; `None` for texts, arrays and what is unknown.
fn width(kind: u32) -> Option<u64> {
    match kind {
        0 | 1 | 7 => Some(1),
        2 | 3 => Some(2),
        4..=6 => Some(4),
        10..=12 => Some(8),
        _ => None,
    }
}

enum TensorKind {
    Plain(Dtype),
    Packed(BlockKind),
}

struct TensorInfo {
    name: String,
    kind: TensorKind,
    shape: Vec<usize>,
    bytes: u64,
    /// Counted from where the data begin.
    offset: u64,
}

fn tensor_info(cursor: &mut Cursor<'_>, shapes: &HashMap<String, Vec<usize>>) -> Result<TensorInfo> {
    let name = cursor.text(MAX_NAME)?;
    let file = cursor.file;
    let wrong = |what: String| model_error(file, format!("has tensor {} {what}", quoted(&name)));
    let rank = cursor.u32()?;
    if rank as usize > MAX_RANK {
        return Err(wrong(format!("of {rank} dimensions; at most {MAX_RANK} are read")));
    }
    let mut shape = Vec::new();
    for _ in 0..rank {
        let size = cursor.u64()?;
        shape.push(usize::try_from(size).map_err(|_| wrong(format!("of size {size}, which is too large")))?);
    }
    let row = shape.first().copied().unwrap_or(1);
    shape.reverse();
    let kind = match cursor.u32()? {
        0 => TensorKind::Plain(Dtype::F32),
        1 => TensorKind::Plain(Dtype::F16),
        24 => TensorKind::Plain(Dtype::I8),
        25 => TensorKind::Plain(Dtype::I16),
        26 => TensorKind::Plain(Dtype::I32),
        27 => TensorKind::Plain(Dtype::I64),
        28 => TensorKind::Plain(Dtype::F64),
        30 => TensorKind::Plain(Dtype::BF16),
        number => match BlockKind::of(number) {
            Some(kind) => TensorKind::Packed(kind),
            None => {
                let read = "F32, F16, BF16, Q8_0, Q6_K, Q5_K, Q5_1, Q5_0, Q4_K, Q4_1, Q4_0, Q3_K and Q2_K are read";
                return Err(wrong(format!("of GGML's type {number}; {read}")));
            }
        },
    };
    let offset = cursor.u64()?;
    // Bits, so that what is computed from the numbers cannot overflow either.
    let count = shape.iter().try_fold(1usize, |count, &size| count.checked_mul(size)).filter(|count| count.checked_mul(64).is_some());
    let count = count.ok_or_else(|| wrong(format!("of shape {shape:?}, which is too large")))?;
    let bytes = match kind {
        TensorKind::Plain(dtype) => count * (dtype.bitsize() / 8),
        TensorKind::Packed(kind) if row % kind.numbers() == 0 => count / kind.numbers() * kind.bytes(),
        TensorKind::Packed(kind) => {
            return Err(wrong(format!("of shape {shape:?}, whose rows are no multiple of {kind:?}'s {} numbers", kind.numbers())));
        }
    };
    if let Some(original) = shapes.get(&name) {
        if original.iter().try_fold(1usize, |count, &size| count.checked_mul(size)) != Some(count) {
            return Err(wrong(format!("of shape {shape:?}, which cannot be the {original:?} that {ORIGINAL_SHAPE}… says")));
        }
        shape.clone_from(original);
    }
    Ok(TensorInfo { name, kind, shape, bytes: bytes as u64, offset })
}

/// Reads one thing after the other out of the file, in bytes of its own.
struct Cursor<'a> {
    file: &'a str,
    blob: &'a Blob,
    at: u64,
    chunk: Vec<u8>,
    /// Where `chunk` begins in the file.
    begin: u64,
}

impl Cursor<'_> {
    fn truncated(&self) -> Error {
        model_error(self.file, format!("ends inside its GGUF header, after {} bytes: it is truncated or damaged", self.blob.len()))
    }

    fn skip(&mut self, count: u64) -> Result<()> {
        let to = self.at.checked_add(count).filter(|to| *to <= self.blob.len()).ok_or_else(|| self.truncated())?;
        if to > MAX_HEADER as u64 {
            return Err(model_error(self.file, format!("has a GGUF header of more than {MAX_HEADER} bytes")));
        }
        self.at = to;
        Ok(())
    }

    /// The next `count` bytes.
    fn take(&mut self, count: usize) -> Result<&[u8]> {
        let from = self.at;
        self.skip(count as u64)?;
        if from < self.begin || self.at > self.begin + self.chunk.len() as u64 {
            let begin = usize::try_from(from).map_err(|_| self.truncated())?;
            let end = usize::try_from(self.blob.len()).unwrap_or(usize::MAX).min(begin + count.max(CHUNK));
            let buffers = ReadBuffers::default();
            let bytes = self.blob.read(begin..end, &buffers)?.map(|bytes| bytes.to_vec());
            self.chunk = bytes.ok_or_else(|| self.truncated())?;
            self.begin = from;
        }
        let from = (from - self.begin) as usize;
        self.chunk.get(from..from + count).ok_or_else(|| model_error(self.file, "is shorter than it was"))
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }

    fn u32(&mut self) -> Result<u32> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64> {
        self.array().map(u64::from_le_bytes)
    }

    fn text(&mut self, longest: u64) -> Result<String> {
        let (file, length) = (self.file, self.u64()?);
        if length > longest {
            return Err(model_error(file, format!("has a text of {length} bytes in its GGUF header; at most {longest} are read")));
        }
        let bytes = self.take(length as usize)?.to_vec();
        String::from_utf8(bytes).map_err(|_| model_error(file, "has a text in its GGUF header that is not UTF-8: it is damaged"))
    }

    /// A field's number as text.
    fn number(&mut self, kind: u32) -> Result<String> {
        Ok(match kind {
            0 => self.array().map(u8::from_le_bytes)?.to_string(),
            1 => self.array().map(i8::from_le_bytes)?.to_string(),
            2 => self.array().map(u16::from_le_bytes)?.to_string(),
            3 => self.array().map(i16::from_le_bytes)?.to_string(),
            4 => self.u32()?.to_string(),
            5 => self.array().map(i32::from_le_bytes)?.to_string(),
            6 => self.array().map(f32::from_le_bytes)?.to_string(),
            7 => (self.array::<1>()? != [0]).to_string(),
            10 => self.u64()?.to_string(),
            11 => self.array().map(i64::from_le_bytes)?.to_string(),
            _ => self.array().map(f64::from_le_bytes)?.to_string(),
        })
    }
}
