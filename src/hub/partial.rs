//! A file that is not whole yet: one of this process alone, which is left for the next run when it is not finished.
//!
//! Locks are no protection where a file system's do nothing, so no two processes write to one file: what an earlier run left is taken by
//! giving it a name of this process, which only one can. The name says whose it is, so that the file of a process that was killed is taken
//! up too.

use super::client::{ContentHash, Metadata};
use crate::disk::{Owner, folder_of, open_own, owner_of, owner_tag};
use crate::{Error, Result};
use sha1::Sha1;
use sha2::{Digest, Sha256};
use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

const ENDING: &str = ".incomplete";
/// A download that wrote nothing for so long is not at work any more, whoever made it.
const STALE: Duration = Duration::from_secs(600);
const CHUNK: usize = 1 << 18;

/// The beginning of a file.
pub(super) struct Partial {
    blob: PathBuf,
    /// The name that it has meanwhile; `None` once it has another.
    path: Option<PathBuf>,
    file: File,
    pub(super) length: u64,
}

impl Partial {
    /// Takes up what an earlier run left of the content that will be `blob`, or begins.
    pub(super) fn take(blob: &Path, size: Option<u64>) -> std::io::Result<Partial> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let own = format!("{}{}", owner_tag(), COUNT.fetch_add(1, Ordering::Relaxed));
        let path = with_ending(blob, &format!(".{own}{ENDING}"));
        for left in left_over(blob, size) {
            if std::fs::rename(&left, &path).is_err() {
                // Another process was faster.
                continue;
            }
            if let Ok(file) = open_own(&path, OpenOptions::new().read(true).append(true)) {
                let length = file.metadata()?.len();
                return Ok(Partial { blob: blob.to_owned(), path: Some(path), file, length });
            }
            std::fs::remove_file(&path)?;
        }
        let file = open_own(&path, OpenOptions::new().read(true).append(true).create_new(true))?;
        Ok(Partial { blob: blob.to_owned(), path: Some(path), file, length: 0 })
    }

    pub(super) fn append(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.file.write_all(bytes)?;
        self.length += bytes.len() as u64;
        Ok(())
    }

    /// Begins again.
    pub(super) fn restart(&mut self) -> std::io::Result<()> {
        self.length = 0;
        self.file.set_len(0)
    }

    /// Whether the file, read again from the disk, is what the hub says.
    ///
    /// # Errors
    /// It cannot be read, or `going_on` says to stop.
    pub(super) fn is_right(&mut self, metadata: &Metadata, going_on: &mut dyn FnMut() -> Result<()>) -> Result<bool> {
        let failed = |e| Error::Io { path: self.blob.clone(), source: e };
        let length = self.file.metadata().map_err(failed)?.len();
        if length != self.length || metadata.size.is_some_and(|size| size != length) {
            return Ok(false);
        }
        let hex = match metadata.hash() {
            None => return Ok(true),
            Some(ContentHash::Sha256) => self.hash(Sha256::new(), going_on)?,
            Some(ContentHash::Git) => self.hash(Sha1::new_with_prefix(format!("blob {length}\0")), going_on)?,
        };
        Ok(hex.eq_ignore_ascii_case(&metadata.etag))
    }

    fn hash<D: Digest>(&mut self, mut hash: D, going_on: &mut dyn FnMut() -> Result<()>) -> Result<String> {
        let failed = |e| Error::Io { path: self.blob.clone(), source: e };
        self.file.rewind().map_err(failed)?;
        let mut chunk = vec![0; CHUNK];
        loop {
            going_on()?;
            let read = self.file.read(&mut chunk).map_err(failed)?;
            if read == 0 {
                return Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect());
            }
            hash.update(chunk.get(..read).unwrap_or_default());
        }
    }

    /// Throws away what was received.
    pub(super) fn discard(&mut self) {
        self.length = 0;
    }

    /// Gives the whole file its name.
    pub(super) fn publish(mut self) -> std::io::Result<()> {
        self.file.sync_all()?;
        if let Some(path) = &self.path {
            std::fs::rename(path, &self.blob)?;
        }
        self.path = None;
        // What other runs left of it is of no use any more.
        for left in left_over(&self.blob, None) {
            let _ = std::fs::remove_file(left);
        }
        Ok(())
    }
}

impl Drop for Partial {
    /// What was received is left for the next run.
    fn drop(&mut self) {
        let Some(path) = self.path.take() else { return };
        let left =
            if self.length > 0 { std::fs::rename(&path, with_ending(&self.blob, ENDING)) } else { Err(std::io::ErrorKind::Other.into()) };
        if left.is_err() {
            let _ = std::fs::remove_file(path);
        }
    }
}

/// What nobody works on any more of the content that will be `blob`, the longest first.
fn left_over(blob: &Path, size: Option<u64>) -> Vec<PathBuf> {
    let Some(name) = blob.file_name().and_then(|name| name.to_str()) else { return Vec::new() };
    let entries = std::fs::read_dir(folder_of(blob)).into_iter().flatten().flatten();
    let mut found: Vec<(u64, PathBuf)> = entries
        .filter_map(|entry| {
            let file = entry.file_name().into_string().ok()?;
            let owner = file.strip_prefix(name)?.strip_suffix(ENDING)?;
            let there = entry.path().symlink_metadata().ok()?;
            let idle = || there.modified().ok().and_then(|at| at.elapsed().ok()).is_some_and(|idle| idle > STALE);
            // More than the whole file is not its beginning; what has another name too is somebody's.
            let usable = there.is_file() && is_only_name(&there) && there.len() > 0 && size.is_none_or(|size| there.len() <= size);
            let free = owner.is_empty()
                || owner.strip_prefix('.').is_some_and(|owner| match owner_of(owner) {
                    Owner::Living => false,
                    Owner::Dead => true,
                    Owner::Unknown => idle(),
                });
            (usable && free).then(|| (there.len(), entry.path()))
        })
        .collect();
    found.sort_by(|a, b| b.cmp(a));
    found.into_iter().map(|(_, path)| path).collect()
}

#[cfg(unix)]
fn is_only_name(there: &std::fs::Metadata) -> bool {
    std::os::unix::fs::MetadataExt::nlink(there) == 1
}

#[cfg(not(unix))]
fn is_only_name(_: &std::fs::Metadata) -> bool {
    true
}

fn with_ending(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(ending);
    PathBuf::from(name)
}

#[cfg(test)]
mod tests {

    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<String> = std::fs::read_dir(folder)
            .expect("folder")
            .map(|entry| entry.expect("entry").file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn every_process_has_a_file_of_its_own_and_the_hash_is_of_that_file() {
        let folder = tempfile::tempdir().expect("folder");
        let blob = folder.path().join("e69de29bb2d1d6434b8b29ae775ad8c2e48c5391");
        let metadata = |etag: &str, size| Metadata { etag: etag.into(), size: Some(size) };
        let (mut one, mut two) = (Partial::take(&blob, None).expect("one"), Partial::take(&blob, None).expect("two"));
        one.append(b"hello ").expect("written");
        two.append(b"hello\n").expect("written");
        one.append(b"world").expect("written");
        // `printf 'hello\n' | git hash-object --stdin`
        let git = metadata("ce013625030ba8dba906f756967f9e9ca394464a", 6);
        assert!(two.is_right(&git, &mut || Ok(())).expect("read") && !one.is_right(&git, &mut || Ok(())).expect("read"));
        let sha256 = metadata("b94d27b9934d3e08a52e52d7da7dabfac484efe37a5380ee9088f7ace2efcde9", 11);
        assert!(one.is_right(&sha256, &mut || Ok(())).expect("read"));
        // Somebody else writes to it meanwhile.
        let path = one.path.clone().expect("a name");
        std::fs::write(path, b"hello wOrld").expect("write");
        assert!(!one.is_right(&sha256, &mut || Ok(())).expect("read"));
        two.publish().expect("named");
        assert_eq!(std::fs::read(&blob).expect("read"), b"hello\n");
        drop(one);
        assert_eq!(names(folder.path()).len(), 2, "{:?}", names(folder.path()));
    }

    #[cfg(unix)]
    #[test]
    fn what_a_dead_process_left_is_taken_up_and_what_a_living_one_writes_is_not() {
        let folder = tempfile::tempdir().expect("folder");
        let blob = folder.path().join("blob");
        let living = Partial::take(&blob, None).expect("begun");
        let mut living = living;
        living.append(b"at work, longest").expect("written");
        let left = |owner: &str, text: &str| std::fs::write(folder.path().join(format!("blob{owner}.incomplete")), text).expect("write");
        // No process has the largest number.
        let dead = owner_tag().replace(&format!("-{}-", std::process::id()), &format!("-{}-", i32::MAX));
        left(&format!(".{dead}0"), "killed");
        left("", "left");
        left(".0000000f-1-0", "of another machine");
        left(".nobody", "no owner");
        let taken = |size| Partial::take(&blob, size).expect("taken");
        let first = taken(Some(100));
        assert_eq!(first.length, 6);
        let second = taken(Some(100));
        assert_eq!(second.length, 4);
        let third = taken(Some(100));
        assert_eq!(third.length, 0);
        drop((second, third));
        assert_eq!(taken(Some(3)).length, 0);
        assert_eq!(taken(Some(4)).length, 4);
    }

    #[cfg(unix)]
    #[test]
    fn no_link_is_followed() {
        let folder = tempfile::tempdir().expect("folder");
        let (blob, victim) = (folder.path().join("blob"), folder.path().join("victim"));
        let incomplete = folder.path().join("blob.incomplete");
        let link: [fn(&Path, &Path) -> std::io::Result<()>; 2] =
            [|from, to| std::os::unix::fs::symlink(from, to), |from, to| std::fs::hard_link(from, to)];
        for link in link {
            std::fs::write(&victim, "theirs").expect("write");
            link(&victim, &incomplete).expect("link");
            let mut partial = Partial::take(&blob, None).expect("begun");
            partial.append(b"ours").expect("written");
            partial.publish().expect("named");
            assert_eq!(
                (std::fs::read(&victim).expect("read"), std::fs::read(&blob).expect("read")),
                (b"theirs".to_vec(), b"ours".to_vec())
            );
            std::fs::remove_file(&incomplete).expect("removed");
        }
    }
}
