//! One weight file: its bytes, where they come from, and which tensors were asked for.

use super::header::{self, Entry, Header};
use super::{decode, model_error, quoted};
use crate::Result;
use crate::family::TensorNames;
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use tracing::debug;

/// The bytes of a file.
pub(crate) enum Blob {
    Mapped(memmap2::Mmap),
    Static(&'static [u8]),
    Owned(Vec<u8>),
}

impl Blob {
    /// Maps the file at `path`, which is a regular file and not a device or a pipe.
    pub(crate) fn map(path: &Path) -> Result<Blob> {
        let shown = path.display();
        let failed = |e: std::io::Error| model_error(shown.to_string(), format!("cannot be read: {e}"));
        // Before opening: opening a named pipe would wait for a writer.
        let metadata = std::fs::metadata(path).map_err(failed)?;
        if !metadata.is_file() {
            return Err(model_error(shown, "is not a regular file"));
        }
        let file = File::open(path).map_err(failed)?;
        if metadata.len() == 0 {
            return Ok(Blob::Static(&[]));
        }
        #[expect(unsafe_code, reason = "mapping a file is unsafe because another process can change it")]
        // SAFETY: the map is read-only, and is only ever read as plain bytes that are copied out and converted: no reference
        // into it is kept as another type, and no length or offset in it is read twice. What another process can do to the
        // mapped bytes is stated in the module's documentation.
        let map = unsafe { memmap2::Mmap::map(&file) }.map_err(failed)?;
        Ok(Blob::Mapped(map))
    }

    fn bytes(&self) -> &[u8] {
        match self {
            Blob::Mapped(map) => map,
            Blob::Static(bytes) => bytes,
            Blob::Owned(bytes) => bytes,
        }
    }
}

/// A safetensors file with a header that was checked.
pub(crate) struct WeightFile {
    /// How people know it: a path, or a path inside the program.
    pub(crate) name: String,
    blob: Blob,
    header: Header,
    by_name: HashMap<String, usize>,
    used: Vec<AtomicBool>,
}

impl WeightFile {
    /// Reads the header of `blob`.
    pub(crate) fn new(name: String, blob: Blob) -> Result<WeightFile> {
        let header = header::parse(&name, blob.bytes())?;
        debug!(bytes = blob.bytes().len(), tensors = header.entries.len(), "opened {name}");
        let by_name = header.entries.iter().enumerate().map(|(i, entry)| (entry.name.clone(), i)).collect();
        let used = header.entries.iter().map(|_| AtomicBool::new(false)).collect();
        Ok(WeightFile { name, blob, header, by_name, used })
    }

    /// The file's bytes, header and all.
    pub(crate) fn len(&self) -> u64 {
        self.blob.bytes().len() as u64
    }

    pub(crate) fn entries(&self) -> &[Entry] {
        &self.header.entries
    }

    pub(crate) fn metadata(&self) -> &BTreeMap<String, String> {
        &self.header.metadata
    }

    /// The number of the tensor `key`.
    pub(crate) fn find(&self, key: &str) -> Option<usize> {
        self.by_name.get(key).copied()
    }

    /// The tensor `key`.
    pub(crate) fn entry(&self, key: &str) -> Option<&Entry> {
        self.find(key).and_then(|i| self.header.entries.get(i))
    }

    /// The shape of `key`.
    pub(crate) fn shape(&self, key: &str) -> Option<&[usize]> {
        self.entry(key).map(|entry| entry.shape.as_slice())
    }

    /// The bytes of a tensor of this file.
    pub(crate) fn bytes(&self, entry: &Entry) -> Result<&[u8]> {
        self.blob
            .bytes()
            .get(entry.range.clone())
            .ok_or_else(|| model_error(&self.name, format!("has no bytes for tensor {}", quoted(&entry.name))))
    }

    /// Tells the system that a tensor's bytes were copied out, so that the file's pages do not count as ours beside the weights.
    pub(crate) fn release(&self, entry: &Entry) {
        #[cfg(unix)]
        if let Blob::Mapped(map) = &self.blob {
            #[expect(unsafe_code, reason = "some of these advices destroy what is in memory")]
            // SAFETY: a read-only map of a file has nothing that could be lost: whoever reads the range again gets it from the file.
            // The range was checked to lie in the map when the header was read; the map's own page rounding keeps it there.
            let advised = unsafe { map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, entry.range.start, entry.range.len()) };
            // Only memory is at stake, so a system that refuses is no error.
            drop(advised);
        }
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
        entry.map(|entry| Ok(decode::numbers::<f32>(self.bytes(entry)?, entry.dtype))).transpose()
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
                let mut file = File::options().write(true).open(&path).unwrap();
                while !done.load(Ordering::Relaxed) {
                    for name in [b"\xf4z", b"zz"] {
                        file.seek(SeekFrom::Start(last)).unwrap();
                        file.write_all(name).unwrap();
                    }
                }
            });
            for _ in 0..100 {
                let opened = Blob::map(&path).and_then(|blob| WeightFile::new("a".into(), blob));
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
