//! One weight file: its bytes, where they come from, and which tensors were asked for.

use super::disk_file::{DiskFile, ReadBuffers, TensorBytes};
use super::header::{self, Entry, Header};
use super::{decode, model_error, quoted};
use crate::family::TensorNames;
use crate::{Error, Result};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tracing::debug;

/// Where the bytes of a weight file are.
#[derive(Debug)]
pub(crate) enum Blob {
    Disk(DiskFile),
    Static(&'static [u8]),
    Owned(Vec<u8>),
}

impl Blob {
    /// The regular file at `path`.
    ///
    /// # Errors
    /// As [`DiskFile::open`].
    pub(crate) fn open(path: &Path) -> Result<Blob> {
        DiskFile::open(path).map(Blob::Disk)
    }

    /// How many bytes there are.
    pub(crate) fn len(&self) -> u64 {
        match self {
            Blob::Disk(file) => file.len(),
            Blob::Static(bytes) => bytes.len() as u64,
            Blob::Owned(bytes) => bytes.len() as u64,
        }
    }

    /// The bytes of `range`, in a buffer of `buffers` where they come from the disk; `None` where there are not as many.
    ///
    /// # Errors
    /// As [`DiskFile::read`].
    pub(crate) fn read<'a>(&'a self, range: Range<usize>, buffers: &'a ReadBuffers) -> Result<Option<TensorBytes<'a>>> {
        match self {
            Blob::Disk(file) if range.start <= range.end && range.end as u64 <= file.len() => {
                buffers.read(file, range.start as u64, range.len()).map(Some)
            }
            Blob::Disk(_) => Ok(None),
            Blob::Static(bytes) => Ok(bytes.get(range).map(Into::into)),
            Blob::Owned(bytes) => Ok(bytes.get(range).map(Into::into)),
        }
    }
}

/// A safetensors or GGUF file with a header that was checked.
pub(crate) struct WeightFile {
    /// How people know it: a path, or a path inside the program.
    pub(crate) name: String,
    blob: Arc<Blob>,
    header: Header,
    used: Vec<AtomicBool>,
}

impl WeightFile {
    /// Reads the header of `blob`.
    pub(crate) fn new(name: String, blob: Blob) -> Result<WeightFile> {
        let header = header::read(&name, &blob)?;
        debug!(bytes = blob.len(), tensors = header.entries.len(), "opened {name}");
        let used = header.entries.iter().map(|_| AtomicBool::new(false)).collect();
        Ok(WeightFile { name, blob: Arc::new(blob), header, used })
    }

    /// The same file with other names for its tensors.
    ///
    /// # Errors
    /// Two tensors get the same name, or its bytes cannot be shared.
    pub(crate) fn renamed(&self, name_of: impl Fn(&str) -> String) -> Result<WeightFile> {
        let entries = self.entries().iter().map(|entry| Entry { name: name_of(&entry.name), ..entry.clone() }).collect();
        let header = Header::new(&self.name, entries, self.metadata().clone())?;
        let used = header.entries.iter().map(|_| AtomicBool::new(false)).collect();
        Ok(WeightFile { name: self.name.clone(), blob: self.blob.clone(), header, used })
    }

    /// The file's bytes, header and all.
    pub(crate) fn len(&self) -> u64 {
        self.blob.len()
    }

    pub(crate) fn entries(&self) -> &[Entry] {
        &self.header.entries
    }

    pub(crate) fn metadata(&self) -> &BTreeMap<String, String> {
        &self.header.metadata
    }

    /// The number of the tensor `key`.
    pub(crate) fn find(&self, key: &str) -> Option<usize> {
        self.header.find(key)
    }

    /// The tensor `key`.
    pub(crate) fn entry(&self, key: &str) -> Option<&Entry> {
        self.find(key).and_then(|i| self.header.entries.get(i))
    }

    /// The shape of `key`.
    pub(crate) fn shape(&self, key: &str) -> Option<&[usize]> {
        self.entry(key).map(|entry| entry.shape.as_slice())
    }

    /// The bytes of a tensor of this file, in memory of their own where the file is on the disk.
    pub(crate) fn bytes(&self, entry: &Entry) -> Result<Cow<'_, [u8]>> {
        if entry.packed.is_some() {
            return Ok(self.part(entry, 0..entry.number_bytes(), &ReadBuffers::default())?.to_vec().into());
        }
        Ok(match &*self.blob {
            Blob::Disk(file) => {
                let mut bytes = vec![0; entry.range.len()];
                file.read(entry.range.start as u64, &mut bytes)?;
                bytes.into()
            }
            Blob::Static(bytes) => bytes.get(entry.range.clone()).ok_or_else(|| self.has_no_bytes(entry))?.into(),
            Blob::Owned(bytes) => bytes.get(entry.range.clone()).ok_or_else(|| self.has_no_bytes(entry))?.into(),
        })
    }

    /// Some of the bytes of a tensor's numbers, in a buffer of `buffers`; quantised ones are widened.
    pub(crate) fn part<'a>(&'a self, entry: &Entry, part: Range<usize>, buffers: &'a ReadBuffers) -> Result<TensorBytes<'a>> {
        let Some(kind) = entry.packed else { return self.stored(entry, part, buffers) };
        // Whole blocks: a part may begin inside of one where the file folded the tensor's rows.
        let width = kind.numbers() * size_of::<f32>();
        let (first, last) = (part.start / width, part.end.div_ceil(width));
        let mut numbers = kind.widened(&self.stored(entry, first * kind.bytes()..last * kind.bytes(), buffers)?);
        numbers.truncate(part.end - first * width);
        numbers.drain(..part.start - first * width);
        Ok(numbers.into())
    }

    /// Some of the bytes of a tensor as the file has them, in a buffer of `buffers`.
    pub(crate) fn stored<'a>(&'a self, entry: &Entry, part: Range<usize>, buffers: &'a ReadBuffers) -> Result<TensorBytes<'a>> {
        let from = entry.range.start;
        let bytes = self.blob.read(from + part.start..from + part.end, buffers)?;
        bytes.ok_or_else(|| self.has_no_bytes(entry))
    }

    fn has_no_bytes(&self, entry: &Entry) -> Error {
        model_error(&self.name, format!("has no bytes for tensor {}", quoted(&entry.name)))
    }

    /// Notes that somebody asked for the tensor.
    pub(crate) fn mark_used(&self, index: usize) {
        if let Some(flag) = self.used.get(index) {
            // Only a mark: it orders nothing else.
            flag.store(true, Ordering::Relaxed);
        }
    }

    /// Whether somebody asked for the tensor.
    pub(crate) fn is_used(&self, index: usize) -> bool {
        self.used.get(index).is_some_and(|flag| flag.load(Ordering::Relaxed))
    }
}

impl TensorNames for WeightFile {
    fn name(&self) -> &str {
        &self.name
    }

    fn shape(&self, key: &str) -> Option<&[usize]> {
        WeightFile::shape(self, key)
    }

    fn names(&self) -> Box<dyn Iterator<Item = &str> + '_> {
        Box::new(self.entries().iter().map(|entry| entry.name.as_str()))
    }

    fn metadata(&self) -> &BTreeMap<String, String> {
        WeightFile::metadata(self)
    }

    fn numbers(&self, key: &str) -> Result<Option<Vec<f32>>> {
        let entry = self.entry(key).filter(|entry| decode::readable(entry.dtype));
        entry.map(|entry| Ok(decode::numbers::<f32>(&self.bytes(entry)?, entry.dtype))).transpose()
    }
}

impl std::fmt::Debug for WeightFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "WeightFile({}, {} tensors)", self.name, self.header.entries.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Seek, SeekFrom, Write};

    #[test]
    fn a_header_that_others_write_to_is_text_or_an_error() {
        const TENSORS: usize = 20_000;
        let info = r#"{"dtype":"F32","shape":[0],"data_offsets":[0,0]}"#;
        let header = format!("{{{}}}", (0..TENSORS).map(|i| format!("\"zz{i:06}\":{info}")).collect::<Vec<_>>().join(","));
        let bytes = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes()].concat();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.safetensors");
        std::fs::write(&path, &bytes).unwrap();
        let last = 8 + header.rfind("zz").unwrap() as u64;
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut file = std::fs::File::options().write(true).open(&path).unwrap();
                while !done.load(Ordering::Relaxed) {
                    for name in [b"\xf4z", b"zz"] {
                        file.seek(SeekFrom::Start(last)).unwrap();
                        file.write_all(name).unwrap();
                    }
                }
            });
            for _ in 0..100 {
                let opened = Blob::open(&path).and_then(|blob| WeightFile::new("a".into(), blob));
                for entry in opened.iter().flat_map(WeightFile::entries) {
                    // What `str` promises, of bytes that it never looks at again.
                    if std::str::from_utf8(std::hint::black_box(entry.name.as_bytes())).is_err() {
                        done.store(true, Ordering::Relaxed);
                        panic!("a name that is not UTF-8");
                    }
                }
            }
            done.store(true, Ordering::Relaxed);
        });
    }
}
