//! Who generates what, where several processes share a manifest.
//!
//! Each process keeps a file with the keys of the images that it is generating, and holds a lock on it for as long as it lives. The lock
//! ends with the process, so a file that can be locked is a dead process's, and its images are free. All of this happens under the
//! manifest's lock.

use super::key::Key;
use crate::{Error, Result};
use std::collections::HashSet;
use std::fs::File;
use std::io::{Read, Seek, Write};
use std::path::{Path, PathBuf};

/// The claims of this process, and a look at those of others.
#[derive(Debug)]
pub(super) struct Claims {
    folder: PathBuf,
    /// Removed from the disk with this.
    file: tempfile::NamedTempFile,
    keys: HashSet<Key>,
}

impl Claims {
    /// Begins to claim beside `manifest`.
    ///
    /// # Errors
    /// The folder of the claims cannot be made or written.
    pub(super) fn open(manifest: &Path) -> Result<Self> {
        let mut name = manifest.file_name().unwrap_or_default().to_owned();
        name.push(".claims");
        let folder = manifest.with_file_name(name);
        let make = || {
            std::fs::create_dir_all(&folder)?;
            tempfile::Builder::new().prefix("process-").tempfile_in(&folder)
        };
        // A process that ends may have removed the folder between the two.
        let file = make().or_else(|_| make()).map_err(Error::io(&folder))?;
        file.as_file().lock().map_err(Error::io(file.path()))?;
        Ok(Self { folder, file, keys: HashSet::new() })
    }

    /// What living processes other than this one are generating; the files of dead ones are removed.
    pub(super) fn of_others(&self) -> HashSet<Key> {
        let entries = std::fs::read_dir(&self.folder).into_iter().flatten().flatten().map(|entry| entry.path());
        let mut keys = HashSet::new();
        for path in entries.filter(|path| path.file_name() != self.file.path().file_name()) {
            let Ok(mut file) = File::open(&path) else { continue };
            if file.try_lock().is_ok() {
                // It may come back as nobody's, which is no worse.
                let _ = std::fs::remove_file(&path);
                continue;
            }
            let mut text = String::new();
            if file.read_to_string(&mut text).is_ok() {
                keys.extend(text.lines().filter_map(Key::from_hex));
            }
        }
        keys
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
