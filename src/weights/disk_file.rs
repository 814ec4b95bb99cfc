//! A file on the disk that is read where and when its bytes are wanted, and that must stay what it was when it was opened.
//!
//! It is not mapped. What another process does to a mapped file happens in this one's memory: a shorter file is a signal
//! (SIGBUS) that ends the process without a word, and a check holds only until the next look. Reading into memory that
//! is used again takes as much of the processor as a mapping: 0.21 s for a gigabyte in the page cache, against 0.21 s with
//! `MADV_DONTNEED` after each tensor, and 0.64 s where each tensor has fresh memory (Linux 6.18, two cores, C, getrusage).

use super::model_error;
use crate::{Error, Result, disk};
use rayon::prelude::*;
use std::fs::File;
use std::io::{ErrorKind, Result as IoResult};
use std::ops::Deref;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

/// Bytes that one thread reads.
const SHARE: usize = 4 << 20;

/// A regular file, open.
#[derive(Debug)]
pub(crate) struct DiskFile {
    file: File,
    shown: String,
    len: u64,
    /// `None` where the file system does not say it.
    modified: Option<SystemTime>,
}

impl DiskFile {
    /// # Errors
    /// It is not there, cannot be read, or is a pipe, a device or a folder.
    pub(crate) fn open(path: &Path) -> Result<DiskFile> {
        let shown = path.display().to_string();
        let opened = disk::open_regular(path).and_then(|file| Ok((file.metadata()?, file)));
        match opened {
            Ok((metadata, file)) => Ok(DiskFile { file, shown, len: metadata.len(), modified: metadata.modified().ok() }),
            Err(e) => Err(model_error(shown, format!("cannot be read: {e}"))),
        }
    }

    /// Bytes of the file when it was opened.
    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    /// Fills `to` with the bytes from `start` on.
    ///
    /// # Errors
    /// The disk fails, or the file is not what it was when it was opened.
    pub(crate) fn read(&self, start: u64, to: &mut [u8]) -> Result<()> {
        let read = match to.len() <= SHARE {
            true => read_exact_at(&self.file, start, to),
            false => to.par_chunks_mut(SHARE).enumerate().try_for_each(|(i, to)| read_exact_at(&self.file, start + (i * SHARE) as u64, to)),
        };
        match read.and_then(|()| self.is_unchanged()) {
            Ok(true) => Ok(()),
            Ok(false) => Err(self.changed()),
            Err(e) if e.kind() == ErrorKind::UnexpectedEof => Err(self.changed()),
            Err(e) => Err(model_error(&self.shown, format!("cannot be read: {e}"))),
        }
    }

    fn is_unchanged(&self) -> IoResult<bool> {
        let now = self.file.metadata()?;
        Ok(now.len() == self.len && now.modified().ok() == self.modified)
    }

    fn changed(&self) -> Error {
        let what = "was truncated or overwritten while it was in use; run the command again, and replace a model by renaming a new file";
        model_error(&self.shown, what)
    }
}

#[cfg(unix)]
fn read_exact_at(file: &File, start: u64, to: &mut [u8]) -> IoResult<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, to, start)
}

#[cfg(windows)]
fn read_exact_at(file: &File, mut start: u64, mut to: &mut [u8]) -> IoResult<()> {
    while !to.is_empty() {
        match std::os::windows::fs::FileExt::seek_read(file, to, start) {
            Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
            Ok(read) => {
                to = to.get_mut(read..).unwrap_or_default();
                start += read as u64;
            }
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// Memory for the bytes of one tensor after the other.
#[derive(Debug, Default)]
pub(crate) struct ReadBuffers(Mutex<Vec<Vec<u8>>>);

impl ReadBuffers {
    /// The bytes of `file` from `start` on.
    ///
    /// # Errors
    /// As [`DiskFile::read`].
    pub(crate) fn read(&self, file: &DiskFile, start: u64, len: usize) -> Result<TensorBytes<'_>> {
        let free = self.0.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let mut buffer = free.filter(|buffer| buffer.len() >= len).unwrap_or_default();
        if buffer.len() < len {
            buffer = vec![0; len];
        }
        file.read(start, buffer.get_mut(..len).unwrap_or_default())?;
        Ok(TensorBytes(ReadSource::Read { buffer, len, buffers: self }))
    }
}

/// The bytes of a tensor.
#[derive(Debug)]
pub(crate) struct TensorBytes<'a>(ReadSource<'a>);

#[derive(Debug)]
enum ReadSource<'a> {
    Lent(&'a [u8]),
    Owned(Vec<u8>),
    Numbers(Vec<f32>),
    /// The buffer goes back to where it is from.
    Read {
        buffer: Vec<u8>,
        len: usize,
        buffers: &'a ReadBuffers,
    },
}

impl Deref for TensorBytes<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match &self.0 {
            ReadSource::Lent(bytes) => bytes,
            ReadSource::Owned(bytes) => bytes,
            ReadSource::Numbers(numbers) => bytemuck::cast_slice(numbers),
            ReadSource::Read { buffer, len, .. } => buffer.get(..*len).unwrap_or_default(),
        }
    }
}

impl Drop for TensorBytes<'_> {
    fn drop(&mut self) {
        if let ReadSource::Read { buffer, buffers, .. } = &mut self.0 {
            buffers.0.lock().unwrap_or_else(PoisonError::into_inner).push(std::mem::take(buffer));
        }
    }
}

impl<'a> From<&'a [u8]> for TensorBytes<'a> {
    fn from(bytes: &'a [u8]) -> Self {
        Self(ReadSource::Lent(bytes))
    }
}

/// The bytes of numbers as they are in memory, which are little-endian.
impl From<Vec<f32>> for TensorBytes<'_> {
    fn from(numbers: Vec<f32>) -> Self {
        const { assert!(cfg!(target_endian = "little"), "numbers in memory are read as little-endian") };
        Self(ReadSource::Numbers(numbers))
    }
}

impl From<Vec<u8>> for TensorBytes<'_> {
    fn from(bytes: Vec<u8>) -> Self {
        Self(ReadSource::Owned(bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    /// A file of `len` bytes, each its number.
    fn numbered(folder: &Path, len: usize) -> (std::path::PathBuf, Vec<u8>) {
        let (path, bytes) = (folder.join("a"), (0..len).map(|i| (i / 3) as u8).collect::<Vec<_>>());
        std::fs::write(&path, &bytes).unwrap();
        (path, bytes)
    }

    #[test]
    fn every_range_is_read_across_shares_and_buffers_are_used_again() {
        let folder = tempfile::tempdir().unwrap();
        let (path, bytes) = numbered(folder.path(), 2 * SHARE + 5);
        let (file, buffers) = (DiskFile::open(&path).unwrap(), ReadBuffers::default());
        for (start, len) in [(0, bytes.len()), (1, 0), (SHARE - 1, 2), (3, SHARE), (2, 2 * SHARE + 3), (bytes.len(), 0)] {
            let (one, other) = (buffers.read(&file, start as u64, len).unwrap(), buffers.read(&file, 7, 1).unwrap());
            assert!(*one == bytes[start..start + len] && *other == bytes[7..8]);
        }
        assert!(buffers.0.lock().unwrap().len() <= 2);
    }

    #[test]
    fn a_file_that_is_changed_while_it_is_open_is_an_error_that_says_so() {
        let folder = tempfile::tempdir().unwrap();
        let change: [fn(&Path); 4] = [
            |path| File::options().write(true).open(path).unwrap().set_len(100).unwrap(),
            |path| File::options().append(true).open(path).unwrap().write_all(b"more").unwrap(),
            |path| std::fs::write(path, vec![9; SHARE + 9]).unwrap(),
            |path| File::create(path).map(drop).unwrap(),
        ];
        for change in change {
            let (path, _) = numbered(folder.path(), SHARE + 9);
            let old = SystemTime::now() - std::time::Duration::from_secs(100);
            File::options().write(true).open(&path).unwrap().set_modified(old).unwrap();
            let file = DiskFile::open(&path).unwrap();
            let mut to = vec![0; SHARE + 5];
            file.read(2, &mut to).unwrap();
            change(&path);
            let error = file.read(2, &mut to).unwrap_err().to_string();
            assert!(error.contains("was truncated or overwritten while it was in use"), "{error}");
        }
        // Replacing by renaming, or removing, does not touch what is open.
        let (path, bytes) = numbered(folder.path(), 1000);
        let file = DiskFile::open(&path).unwrap();
        std::fs::write(folder.path().join("b"), b"other").unwrap();
        std::fs::rename(folder.path().join("b"), &path).unwrap();
        let mut to = vec![0; 1000];
        file.read(0, &mut to).unwrap();
        assert_eq!(to, bytes);
    }

    #[test]
    fn only_a_regular_file_is_opened() {
        let folder = tempfile::tempdir().unwrap();
        for path in [folder.path(), &folder.path().join("none")] {
            assert!(DiskFile::open(path).is_err());
        }
        #[cfg(unix)]
        {
            let fifo = folder.path().join("fifo");
            assert!(std::process::Command::new("mkfifo").arg(&fifo).status().unwrap().success());
            for path in [&fifo, Path::new("/dev/zero")] {
                let error = DiskFile::open(path).unwrap_err().to_string();
                assert!(error.contains("not a regular file"), "{error}");
            }
        }
    }
}
