//! Reads the header of a safetensors file from bytes that nobody vouches for.
//!
//! Every number is compared with the bytes that are really there before it is used, and nothing is allocated by a number
//! that the file claims: what this module allocates is bounded by the length of the header text itself, which is at most
//! 100 MB. The bytes are this module's own before it looks at them, so that nobody else can change them in between.
//!
//! The `safetensors` crate's own reader accepts a name that occurs twice (the last one wins) and reports a bad shape without
//! its tensor's name, so that the entries are read here, with that crate's [`Dtype`].

use super::disk_file::ReadBuffers;
use super::file::Blob;
use super::gguf::{self, BlockKind};
use super::{model_error, quoted};
use crate::Result;
use crate::family::lean_json::LeanBounds;
use safetensors::Dtype;
use serde::de::{Deserialize, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};
use std::collections::BTreeMap;
use std::ops::Range;

/// The longest header text that is read, in bytes; the format's reference implementation has the same limit.
pub(super) const MAX_HEADER: usize = 100_000_000;
/// The most dimensions of one tensor; a network's have at most four.
pub(super) const MAX_RANK: usize = 16;
/// The most tensors of a file: far above any real one's, and what bounds the memory for their names.
pub(super) const MAX_TENSORS: usize = 1_000_000;
/// Bytes by which other kinds of files are recognised.
const RECOGNISED: usize = 512;

/// One tensor as the header describes it.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub(crate) name: String,
    pub(crate) dtype: Dtype,
    pub(crate) shape: Vec<usize>,
    /// Where its bytes lie, counted from the beginning of the file.
    pub(crate) range: Range<usize>,
    /// How the bytes are quantised; the numbers are `dtype` (f32) once they are widened.
    pub(crate) packed: Option<BlockKind>,
}

impl Entry {
    /// Bytes of its numbers as they are served: more than the file has of them where they are quantised.
    pub(crate) fn number_bytes(&self) -> usize {
        self.packed.map_or(self.range.len(), |kind| self.range.len() / kind.bytes() * kind.numbers() * 4)
    }

    /// What people call the type in which it is stored.
    pub(crate) fn type_name(&self) -> String {
        self.packed.map_or_else(|| self.dtype.to_string(), |kind| format!("{kind:?}"))
    }
}

/// A header whose every range lies inside the file.
#[derive(Debug, Default)]
pub(crate) struct Header {
    /// In the order of the file.
    pub(crate) entries: Vec<Entry>,
    pub(crate) metadata: BTreeMap<String, String>,
    /// Numbers of entries, in the order of their names.
    by_name: Vec<u32>,
}

impl Header {
    /// # Errors
    /// A name that occurs twice in the file called `file`.
    pub(super) fn new(file: &str, entries: Vec<Entry>, metadata: BTreeMap<String, String>) -> Result<Header> {
        let mut by_name: Vec<u32> = (0..).take(entries.len()).collect();
        let name = |i: &u32| entries.get(*i as usize).map_or("", |entry| entry.name.as_str());
        by_name.sort_unstable_by(|one, other| name(one).cmp(name(other)));
        if let Some(twice) = by_name.iter().zip(by_name.iter().skip(1)).find(|(one, other)| name(one) == name(other)) {
            return Err(model_error(file, format!("has the tensor {} twice", quoted(name(twice.0)))));
        }
        Ok(Header { entries, by_name, metadata })
    }

    /// The number of the entry `name`.
    pub(crate) fn find(&self, name: &str) -> Option<usize> {
        let named = |i: &u32| self.entries.get(*i as usize).map_or("", |entry| &entry.name);
        let at = self.by_name.binary_search_by(|i| named(i).cmp(name)).ok()?;
        self.by_name.get(at).map(|i| *i as usize)
    }
}

/// Reads the header of the file called `file`.
///
/// # Errors
/// [`crate::Error::Model`] that names the file and, where there is one, the tensor.
pub(crate) fn read(file: &str, blob: &Blob) -> Result<Header> {
    let (buffers, all) = (ReadBuffers::default(), usize::try_from(blob.len()).unwrap_or(usize::MAX));
    let bytes = |range: Range<usize>| -> Result<Vec<u8>> {
        blob.read(range, &buffers)?.map(|bytes| bytes.to_vec()).ok_or_else(|| model_error(file, "is shorter than it was"))
    };
    let start = bytes(0..all.min(RECOGNISED))?;
    // As a safetensors header's length this would be more than a gigabyte; a `{` at byte 8 is 123 tensors.
    if start.starts_with(gguf::MAGIC) {
        return gguf::read(file, blob);
    }
    if let Some(what) = recognise(&start) {
        return Err(model_error(file, what));
    }
    let Some((length, _)) = start.split_first_chunk::<8>() else {
        return Err(model_error(file, format!("is only {all} bytes long, too short for a safetensors file")));
    };
    let claimed = u64::from_le_bytes(*length);
    let rest = all - 8;
    let length = match usize::try_from(claimed) {
        Ok(length) if length <= MAX_HEADER && length <= rest => length,
        _ => {
            return Err(model_error(
                file,
                format!("claims a header of {claimed} bytes but has {rest} bytes left: it is truncated or no safetensors file"),
            ));
        }
    };
    let text = bytes(8..8 + length)?;
    let text = String::from_utf8(text).map_err(|_| model_error(file, "has a header that is not UTF-8 text: it is damaged"))?;
    let raw: RawHeader = serde_json::from_str(text.trim_end_matches(['\0', ' ']))
        .map_err(|e| model_error(file, format!("has a header that cannot be read: {}", quoted_tail(&e.to_string()))))?;
    drop(text);
    check(file, raw, rest - length, 8 + length)
}

/// Compares shapes, ranges and the file's length, and moves the ranges to where the data begin.
fn check(file: &str, raw: RawHeader, data_len: usize, data_start: usize) -> Result<Header> {
    let mut tensors = raw.tensors;
    tensors.sort_by_key(|(_, info)| info.data_offsets);
    let mut entries = Vec::with_capacity(tensors.len());
    let mut end = 0;
    for (name, info) in tensors {
        let (from, to) = info.data_offsets;
        let (shown, shape) = (quoted(&name), info.shape.0);
        if from > to {
            return Err(model_error(file, format!("has tensor {shown} end at byte {to} before its begin {from}")));
        }
        if to > data_len {
            return Err(model_error(
                file,
                format!("has tensor {shown} end at byte {to} of {data_len}: the file is truncated; download or copy it again"),
            ));
        }
        if from != end && entries.iter().any(|entry: &Entry| entry.name == name) {
            return Err(model_error(file, format!("has the tensor {shown} twice")));
        }
        if from != end {
            let what = if from < end { "overlaps the tensor before it" } else { "leaves a gap before it" };
            return Err(model_error(file, format!("has tensor {shown} at bytes {from} to {to}, which {what} (ends at {end})")));
        }
        let bits = shape.iter().try_fold(info.dtype.bitsize(), |product, &size| product.checked_mul(size));
        if bits.is_none_or(|bits| bits % 8 != 0 || bits / 8 != to - from) {
            return Err(model_error(
                file,
                format!("gives tensor {shown} the shape {:?} of {} in {} bytes, which do not agree", shape, info.dtype, to - from),
            ));
        }
        end = to;
        entries.push(Entry { name, dtype: info.dtype, shape, range: data_start + from..data_start + to, packed: None });
    }
    if end != data_len {
        return Err(model_error(file, format!("has {} bytes after its last tensor: it is damaged", data_len - end)));
    }
    Header::new(file, entries, raw.metadata.unwrap_or_default())
}

/// Says what a file is that people take for a safetensors file, by its first bytes.
fn recognise(bytes: &[u8]) -> Option<&'static str> {
    const PICKLE: &str = "is a pickle (PyTorch's .ckpt format), which runs code when it is read; \
                          convert it to safetensors in a sandbox, or download the .safetensors file of the same model";
    const KNOWN: [(&[u8], &str); 7] = [
        (b"version https://git-lfs", "is a Git LFS pointer, not the model itself; run `git lfs pull` in its repository"),
        (b"PK\x03\x04", PICKLE),
        (b"\x80\x02", PICKLE),
        (b"\x80\x04", PICKLE),
        (b"\x89HDF", "is an HDF5 file; only safetensors and GGUF files are read"),
        (b"\x1f\x8b", "is compressed with gzip; unpack it first"),
        (b"\x08\0\0\0TFL3", "is a TensorFlow Lite file; only safetensors and GGUF files are read"),
    ];
    if bytes.is_empty() {
        return Some("is empty: the download did not finish");
    }
    // A pickle's first bytes could in theory be a header's length, but then a `{` follows at byte 8.
    if bytes.get(8) == Some(&b'{') {
        return None;
    }
    if let Some((_, what)) = KNOWN.iter().find(|(magic, _)| bytes.starts_with(magic)) {
        return Some(what);
    }
    let start: Vec<u8> =
        bytes.iter().copied().take(512).skip_while(u8::is_ascii_whitespace).take(14).map(|b| b.to_ascii_lowercase()).collect();
    if start.starts_with(b"<!doctype") || start.starts_with(b"<html") || start.starts_with(b"<?xml") {
        return Some("is a web page, not a model: the download answered with an error or asks for a login");
    }
    // Eight letters as a little-endian length would be a header of 2^60 bytes.
    let text = bytes.get(..8).unwrap_or(bytes).iter().all(|b| b.is_ascii_graphic() || b.is_ascii_whitespace());
    text.then_some("is a text file, not a safetensors file")
}

/// The JSON decoder's message, without control characters that a file could have put there.
fn quoted_tail(message: &str) -> String {
    message.chars().take(300).map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// One value of the header's object. Other fields are ignored, as the format's readers do.
#[derive(serde::Deserialize)]
struct RawInfo {
    dtype: Dtype,
    shape: TensorShape,
    data_offsets: (usize, usize),
}

/// The sizes of a tensor, no more than [`MAX_RANK`].
struct TensorShape(Vec<usize>);

impl<'de> Deserialize<'de> for TensorShape {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ShapeVisitor;
        impl<'de> Visitor<'de> for ShapeVisitor {
            type Value = TensorShape;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a list of sizes")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<TensorShape, A::Error> {
                let mut shape = Vec::new();
                while let Some(size) = list.next_element()? {
                    if shape.len() == MAX_RANK {
                        return Err(A::Error::custom(format!("it has more than {MAX_RANK} dimensions")));
                    }
                    shape.push(size);
                }
                Ok(TensorShape(shape))
            }
        }
        deserializer.deserialize_seq(ShapeVisitor)
    }
}

#[derive(Default)]
struct RawHeader {
    tensors: Vec<(String, RawInfo)>,
    metadata: Option<BTreeMap<String, String>>,
}

impl<'de> Deserialize<'de> for RawHeader {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = RawHeader;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object of tensors")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<RawHeader, A::Error> {
                let mut header = RawHeader::default();
                while let Some(name) = map.next_key::<String>()? {
                    let wrong = |e: A::Error| A::Error::custom(format!("tensor {}: {e}", quoted(&name)));
                    if name != "__metadata__" {
                        if header.tensors.len() == MAX_TENSORS {
                            return Err(A::Error::custom(format!("it has more than {MAX_TENSORS} tensors")));
                        }
                        let info = map.next_value::<RawInfo>().map_err(wrong)?;
                        header.tensors.push((name, info));
                    } else if header.metadata.is_none() {
                        // The format wants strings; what else is there cannot change a tensor.
                        let metadata = map.next_value_seed(LeanBounds::TEXTS).map_err(wrong)?.into_texts();
                        header.metadata = Some(metadata.ok_or_else(|| wrong(A::Error::custom("it is no object")))?);
                    } else {
                        return Err(wrong(A::Error::custom("it occurs twice")));
                    }
                }
                while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
                Ok(header)
            }
        }
        deserializer.deserialize_map(Entries)
    }
}
