//! Who generates what, where several processes share a manifest.
//!
//! Each process keeps a file with the keys of the images that it is generating, and holds a lock on it for as long as it lives. The lock
//! ends with the process, so a file that can be locked is a dead process's, and its images are free. All of this happens under the
//! manifest's lock.

use super::key::Key;
use crate::disk::open_own;
use crate::{Error, Result};
use std::collections::HashSet;
use std::fs::File;
use std::io::{ErrorKind, Read, Seek, Write};
use std::path::{Path, PathBuf};

/// What the name of a process's file begins with.
const PREFIX: &str = "process-";

/// Bytes of claims: many times those of the batches that one process has at work.
const MOST: u64 = 1 << 20;

/// The claims of this process, and a look at those of others.
#[derive(Debug)]
pub(super) struct Claims {
    folder: PathBuf,
    /// Removed from the disk with this.
    file: tempfile::NamedTempFile,
    keys: HashSet<Key>,
}

impl Claims {
    /// Begins to claim beside `manifest`; `None` where a lock keeps nobody out, so that claims would say nothing.
    ///
    /// # Errors
    /// The folder of the claims is something else, or cannot be made or written.
    pub(super) fn open(manifest: &Path) -> Result<Option<Self>> {
        let mut name = manifest.file_name().unwrap_or_default().to_owned();
        name.push(".claims");
        let folder = manifest.with_file_name(name);
        let make = || {
            match folder.symlink_metadata() {
                Ok(there) if there.is_dir() => {}
                Ok(_) => return Err(std::io::Error::from(ErrorKind::NotADirectory)),
                Err(_) => std::fs::create_dir_all(&folder)?,
            }
            tempfile::Builder::new().prefix(PREFIX).tempfile_in(&folder)
        };
        // A process that ends may have removed the folder between the two.
        let file = make().or_else(|_| make()).map_err(|e| match e.kind() {
            ErrorKind::NotADirectory => {
                Error::Input(format!("{}: is not a folder of sd-gen's; remove it, or give another `manifest`", folder.display()))
            }
            _ => Error::io(&folder)(e),
        })?;
        file.as_file().lock().map_err(Error::io(file.path()))?;
        let excludes = File::open(file.path()).map(|again| again.try_lock().is_err()).map_err(Error::io(file.path()))?;
        let claims = Self { folder, file, keys: HashSet::new() };
        Ok(excludes.then_some(claims))
    }

    /// What living processes other than this one are generating; the files of dead ones are removed.
    ///
    /// # Errors
    /// The claims of another process cannot be read.
    pub(super) fn of_others(&self) -> Result<HashSet<Key>> {
        let mut keys = HashSet::new();
        for entry in std::fs::read_dir(&self.folder).map_err(Error::io(&self.folder))? {
            let entry = entry.map_err(Error::io(&self.folder))?;
            let (name, path) = (entry.file_name(), entry.path());
            let is_ours = name.to_string_lossy().starts_with(PREFIX) && entry.file_type().is_ok_and(|kind| kind.is_file());
            if !is_ours || Some(&*name) == self.file.path().file_name() {
                continue;
            }
            let file = match open_own(&path, File::options().read(true)) {
                Ok(file) => file,
                // Its process has ended.
                Err(e) if e.kind() == ErrorKind::NotFound => continue,
                Err(e) => return Err(Error::io(path)(e)),
            };
            let is_dead = file.try_lock().is_ok();
            let mut text = Vec::new();
            (&file).take(MOST).read_to_end(&mut text).map_err(Error::io(&path))?;
            let holds_claims = text.iter().all(|byte| byte.is_ascii_hexdigit() || *byte == b'\n');
            match is_dead {
                // It may come back as nobody's, which is no worse.
                true if holds_claims => drop(std::fs::remove_file(&path)),
                true => {}
                false => keys.extend(String::from_utf8_lossy(&text).lines().filter_map(Key::from_hex)),
            }
        }
        Ok(keys)
    }

    /// Claims more.
    ///
    /// # Errors
    /// The claims cannot be written.
    pub(super) fn add(&mut self, keys: impl IntoIterator<Item = Key>) -> Result<()> {
        self.keys.extend(keys);
        self.write()
    }

    /// Gives back what is done.
    ///
    /// # Errors
    /// The claims cannot be written.
    pub(super) fn remove<'a>(&mut self, keys: impl IntoIterator<Item = &'a Key>) -> Result<()> {
        for key in keys {
            self.keys.remove(key);
        }
        self.write()
    }

    fn write(&mut self) -> Result<()> {
        let text: String = self.keys.iter().map(|key| format!("{key}\n")).collect();
        let file = self.file.as_file_mut();
        let written = file.set_len(0).and_then(|()| file.rewind()).and_then(|()| file.write_all(text.as_bytes()));
        written.map_err(Error::io(self.file.path()))
    }
}

impl Drop for Claims {
    fn drop(&mut self) {
        // The file goes before the folder, which goes when it is empty. The first of these fails where somebody else did it.
        let _ = std::fs::remove_file(self.file.path());
        let _ = std::fs::remove_dir(&self.folder);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Everything below a folder, with its bytes.
    fn files(folder: &Path) -> Vec<(PathBuf, Vec<u8>)> {
        let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
        let bytes = |path: &Path| if path.is_file() { std::fs::read(path).unwrap() } else { Vec::new() };
        let mut files: Vec<_> = entries.map(|path| (path.clone(), bytes(&path))).collect();
        files.sort();
        files
    }

    #[cfg(unix)]
    #[test]
    fn a_link_in_the_place_of_the_claims_leads_nowhere() {
        let folder = tempfile::tempdir().unwrap();
        let (manifest, precious) = (folder.path().join("m.jsonl"), folder.path().join("precious"));
        std::fs::create_dir(&precious).unwrap();
        std::fs::write(precious.join("thesis"), "mine").unwrap();
        std::fs::write(precious.join("process-thesis"), "mine").unwrap();
        let before = files(&precious);
        std::os::unix::fs::symlink(&precious, folder.path().join("m.jsonl.claims")).unwrap();
        let refused = Claims::open(&manifest).unwrap_err();
        assert!(refused.exit_code() == 2 && refused.to_string().contains("m.jsonl.claims"), "{refused}");
        std::fs::remove_file(folder.path().join("m.jsonl.claims")).unwrap();
        std::os::unix::fs::symlink(folder.path().join("nowhere"), folder.path().join("m.jsonl.claims")).unwrap();
        assert_eq!(Claims::open(&manifest).unwrap_err().exit_code(), 2);
        assert!(files(&precious) == before && !folder.path().join("nowhere").exists());
    }

    #[cfg(unix)]
    #[test]
    fn only_files_of_dead_processes_are_removed() {
        let folder = tempfile::tempdir().unwrap();
        let claims = Claims::open(&folder.path().join("m.jsonl")).unwrap().unwrap();
        let place = folder.path().join("m.jsonl.claims");
        let victim = folder.path().join("victim");
        std::fs::write(&victim, "").unwrap();
        std::fs::write(place.join("notes.txt"), "mine").unwrap();
        std::fs::write(place.join("process-notes.txt"), "mine").unwrap();
        std::fs::create_dir(place.join("process-folder")).unwrap();
        std::os::unix::fs::symlink(&victim, place.join("process-link")).unwrap();
        // Opening a pipe would wait for its writer.
        rustix::fs::mknodat(rustix::fs::CWD, place.join("process-pipe"), rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
        let kept = files(&place);
        std::fs::write(place.join("process-dead"), "0123456789abcdef\n").unwrap();
        std::fs::write(place.join("process-begun"), "").unwrap();
        assert!(claims.of_others().unwrap().is_empty());
        assert_eq!(files(&place), kept);
        assert!(victim.exists());
    }
}
