//! Hashes by which the field names model files, and a cache of them.
//!
//! # Source
//! `sha256` and `addnet_hash_safetensors` in stable-diffusion-webui@v1.10:modules/hashes.py; Civitai calls them AutoV2 and AutoV3.

use crate::{Error, Result, disk};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

/// Bytes that are read at once.
const BLOCK: usize = 4 << 20;
/// The longest cache that is read, in bytes: some hundred thousand files.
const LONGEST_CACHE: u64 = 64 << 20;

/// A file's hashes, in lower-case hexadecimal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hashes {
    /// SHA-256 of the whole file.
    pub sha256: String,
    /// SHA-256 of a safetensors file's tensors, without the header.
    pub tensors: Option<String>,
}

impl Hashes {
    /// A1111's "Model hash".
    pub fn model_hash(&self) -> &str {
        self.sha256.get(..10).unwrap_or(&self.sha256)
    }

    /// Civitai's AutoV2, which is A1111's hash in capitals.
    pub fn autov2(&self) -> String {
        self.model_hash().to_uppercase()
    }

    /// Civitai's AutoV3, which stays the same when only metadata change.
    pub fn autov3(&self) -> Option<String> {
        self.tensors.as_ref().map(|hash| hash.get(..12).unwrap_or(hash).to_uppercase())
    }
}

/// Hashes a file; `progress` is told how many bytes were read, and stops the work with an error.
///
/// # Errors
/// The file cannot be read, or `progress` gave an error.
pub fn hash(path: &Path, mut progress: impl FnMut(u64) -> Result<()>) -> Result<Hashes> {
    let file = disk::open_regular(path).map_err(Error::io(path))?;
    // No more than there was: another process may write to the file without end.
    let mut file = file.metadata().map(|metadata| file.take(metadata.len())).map_err(Error::io(path))?;
    let mut block = vec![0; BLOCK];
    let (mut whole, mut tensors) = (Sha256::new(), Sha256::new());
    let mut header = None;
    let mut done = 0u64;
    loop {
        let length = fill(&mut file, &mut block).map_err(Error::io(path))?;
        let Some(bytes) = block.get(..length).filter(|bytes| !bytes.is_empty()) else { break };
        // The first eight bytes are the header's length.
        let start = *header.get_or_insert_with(|| {
            bytes.first_chunk::<8>().map(|length| u64::from_le_bytes(*length)).filter(|length| *length < 1 << 30).map(|length| length + 8)
        });
        let skip = start.map_or(bytes.len(), |start| usize::try_from(start.saturating_sub(done)).unwrap_or(bytes.len()).min(bytes.len()));
        let data = bytes.get(skip..).unwrap_or_default();
        rayon::join(|| whole.update(bytes), || tensors.update(data));
        done += length as u64;
        progress(done)?;
    }
    let is_safetensors = path.extension().is_some_and(|e| e.eq_ignore_ascii_case("safetensors"));
    let has_tensors = is_safetensors && header.flatten().is_some_and(|start| start <= done);
    Ok(Hashes { sha256: format!("{:x}", whole.finalize()), tensors: has_tensors.then(|| format!("{:x}", tensors.finalize())) })
}

/// Reads until the block is full or the file ends.
fn fill(file: &mut impl Read, block: &mut [u8]) -> std::io::Result<usize> {
    let mut length = 0;
    while let Some(rest) = block.get_mut(length..).filter(|rest| !rest.is_empty()) {
        match file.read(rest) {
            Ok(0) => break,
            Ok(read) => length += read,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(length)
}

/// Hashes that were computed before, by path, size and time of change.
///
/// A cache that cannot be read is an empty one: it only saves time.
#[derive(Debug, Default)]
pub struct HashCache {
    file: Option<PathBuf>,
    known: BTreeMap<String, CachedHash>,
    changed: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct CachedHash {
    size: u64,
    /// Nanoseconds since 1970.
    modified: u64,
    hashes: Hashes,
}

impl HashCache {
    /// The cache in `file`; without a file nothing is remembered.
    pub fn open(file: Option<PathBuf>) -> HashCache {
        let read = |path: &PathBuf| {
            let mut bytes = Vec::new();
            disk::open_regular(path).ok()?.take(LONGEST_CACHE).read_to_end(&mut bytes).ok()?;
            serde_json::from_slice(&bytes).ok()
        };
        let known = file.as_ref().and_then(read).unwrap_or_default();
        HashCache { file, known, changed: false }
    }

    /// What is known of the file, if it has not changed since.
    pub fn get(&self, path: &Path) -> Option<Hashes> {
        let (key, size, modified) = identity(path)?;
        let known = self.known.get(&key)?;
        (known.size == size && known.modified == modified).then(|| known.hashes.clone())
    }

    /// The file's hashes, from the cache or computed and noted.
    ///
    /// # Errors
    /// As [`hash`].
    pub fn hash(&mut self, path: &Path, progress: impl FnMut(u64) -> Result<()>) -> Result<Hashes> {
        if let Some(known) = self.get(path) {
            return Ok(known);
        }
        // Before hashing: a file that changes meanwhile must not be taken for the one that was hashed.
        let before = identity(path);
        let hashes = hash(path, progress)?;
        if let Some((key, size, modified)) = before {
            self.known.insert(key, CachedHash { size, modified, hashes: hashes.clone() });
            self.changed = true;
        }
        Ok(hashes)
    }

    /// Writes the cache, whole or not at all. One that cannot be written is no error: it only saves time.
    pub fn save(&mut self) {
        let Some(file) = self.file.as_ref().filter(|_| self.changed) else { return };
        let Some(folder) = file.parent() else { return };
        let written = std::fs::create_dir_all(folder).and_then(|()| {
            let mut temporary = tempfile::NamedTempFile::new_in(folder)?;
            serde_json::to_writer(&mut temporary, &self.known)?;
            temporary.persist(file).map_err(|e| e.error)
        });
        self.changed = written.is_err();
    }
}

/// What tells a file, as it is now, from others.
fn identity(path: &Path) -> Option<(String, u64, u64)> {
    let path = path.canonicalize().ok()?;
    let metadata = std::fs::metadata(&path).ok()?;
    let modified = metadata.modified().ok()?.duration_since(UNIX_EPOCH).ok()?;
    Some((path.to_str()?.to_owned(), metadata.len(), u64::try_from(modified.as_nanos()).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_are_those_of_the_field() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("a.safetensors");
        std::fs::write(&path, [&2u64.to_le_bytes()[..], b"{}", b"abc"].concat()).expect("write");
        let hashes = hash(&path, |_| Ok(())).expect("hash");
        // sha256sum of the file, and of "abc" (FIPS 180-2, B.1).
        assert_eq!(hashes.autov3().as_deref(), Some("BA7816BF8F01"));
        assert_eq!(hashes.sha256.len(), 64);
        assert_eq!(hashes.autov2(), hashes.model_hash().to_uppercase());
        std::fs::write(&path, b"abc").expect("write");
        let hashes = hash(&path, |_| Ok(())).expect("hash");
        assert_eq!((hashes.model_hash(), hashes.tensors.clone()), ("ba7816bf8f", None));
        assert!(matches!(hash(&path, |_| Err(Error::Cancelled)), Err(Error::Cancelled)));
    }

    #[test]
    fn the_cache_forgets_what_changed_and_survives_damage() {
        let folder = tempfile::tempdir().expect("folder");
        let (path, store) = (folder.path().join("a.safetensors"), folder.path().join("cache/hashes.json"));
        std::fs::write(&path, b"abc").expect("write");
        let mut cache = HashCache::open(Some(store.clone()));
        let hashes = cache.hash(&path, |_| Ok(())).expect("hash");
        cache.save();
        let again = || HashCache::open(Some(store.clone())).get(&path);
        assert_eq!(again(), Some(hashes));
        std::fs::write(&path, b"abcd").expect("write");
        assert_eq!(again(), None);
        for damage in [&b"{"[..], b"[]", b"\xff", b"", b"{\"/a\": 1}"] {
            std::fs::write(&store, damage).expect("write");
            assert_eq!(again(), None);
            let mut cache = HashCache::open(Some(store.clone()));
            cache.hash(&path, |_| Ok(())).expect("hash");
            cache.save();
            assert!(again().is_some(), "{damage:?}");
        }
    }
}
