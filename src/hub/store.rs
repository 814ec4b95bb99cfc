//! The hub's cache on the disk: `blobs` by content, `snapshots` by commit, `refs` by revision, and locks, as Python has them.

use super::HubId;
use super::client::{Listed, Metadata};
use crate::disk::{folder_of, open_own, read_bounded, stays_inside, write_whole};
use crate::{Error, Result};
use hf_hub::{Cache, CacheRepo, Repo, RepoType};
use std::fs::{File, OpenOptions, TryLockError};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The longest text of a reference: a commit.
const LONGEST_REFERENCE: u64 = 256;
/// Folders inside folders that a snapshot is looked through.
const DEEPEST: usize = 8;

/// One repository's part of the cache.
pub(super) struct Store {
    root: PathBuf,
    repo: Repo,
    files: CacheRepo,
    shown: String,
}

impl Store {
    pub(super) fn new(root: &Path, id: &HubId) -> Store {
        let repo = Repo::with_revision(id.repository.clone(), RepoType::Model, id.revision.clone());
        Store { root: root.to_owned(), files: Cache::new(root.to_owned()).repo(repo.clone()), repo, shown: id.to_string() }
    }

    /// The folder of the repository.
    fn folder(&self) -> PathBuf {
        self.root.join(self.repo.folder_name())
    }

    /// Where the files of `commit` are, each under its own name.
    pub(super) fn snapshot(&self, commit: &str) -> PathBuf {
        self.files.pointer_path(commit)
    }

    /// Where the content `etag` is.
    pub(super) fn blob(&self, etag: &str) -> PathBuf {
        self.files.blob_path(etag)
    }

    /// Whether the whole content is here.
    pub(super) fn has(&self, content: &Metadata) -> bool {
        let there = self.blob(&content.etag).metadata();
        there.is_ok_and(|there| there.is_file() && content.size.is_none_or(|size| size == there.len()))
    }

    /// The commit that the revision was when it was last asked for.
    pub(super) fn commit(&self) -> Option<String> {
        let revision = self.repo.revision();
        let said = read_bounded(&self.folder().join("refs").join(revision), LONGEST_REFERENCE).ok();
        let said = said.map(|text| String::from_utf8_lossy(&text).trim().to_owned());
        let commit = said.unwrap_or_else(|| revision.to_owned());
        let is_commit = (40..=64).contains(&commit.len()) && commit.bytes().all(|b| b.is_ascii_hexdigit());
        // Who fills a cache by hand gives the snapshot a name of his own; it must be a plain one.
        let is_plain =
            !commit.is_empty() && !commit.starts_with('.') && commit.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c));
        (is_commit || is_plain && self.snapshot(&commit).is_dir()).then_some(commit)
    }

    /// Remembers which commit the revision is.
    pub(super) fn remember(&self, commit: &str) -> Result<()> {
        if self.repo.revision() == commit {
            return Ok(());
        }
        let reference = self.folder().join("refs").join(self.repo.revision());
        self.make_room(&self.folder(), &reference)?;
        // Under another name first: a link in its place is replaced, and not followed.
        write_whole(&reference, true, |to| to.write_all(commit.as_bytes())).map_err(|error| match error {
            Error::Io { source, .. } => self.unwritable(&source),
            other => other,
        })
    }

    /// Makes the folder of the content of an etag.
    pub(super) fn make_room_for_blob(&self, blob: &Path) -> Result<()> {
        self.make_room(&self.folder(), blob)
    }

    /// Makes the folder of `path`, which lies below `top` and not where a link in it leads.
    fn make_room(&self, top: &Path, path: &Path) -> Result<()> {
        let folder = folder_of(path);
        if !stays_inside(top, folder) {
            let what = format!("{}: a link leads out of {} there; remove it", folder.display(), top.display());
            return Err(self.unwritable(&std::io::Error::other(what)));
        }
        std::fs::create_dir_all(folder).map_err(|e| self.unwritable(&e))
    }

    /// Holds the content `etag` for this process alone, for as long as the file is kept open. `waiting` is called while another holds it.
    pub(super) fn lock(&self, etag: &str, waiting: &mut dyn FnMut() -> Result<()>) -> Result<Option<File>> {
        let path = self.root.join(".locks").join(self.repo.folder_name()).join(format!("{etag}.lock"));
        self.make_room(&self.root.join(".locks"), &path)?;
        let file = open_own(&path, OpenOptions::new().write(true).create(true)).map_err(|e| self.unwritable(&e))?;
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(Some(file)),
                Err(TryLockError::WouldBlock) => waiting()?,
                // Some network file systems know no locks. Every process has a file of its own, so the worst is a download that is made twice.
                Err(TryLockError::Error(_)) => return Ok(None),
            }
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    /// Shows the content `etag` as the file `path` of `commit`.
    pub(super) fn link(&self, etag: &str, commit: &str, path: &str) -> Result<()> {
        let shown = self.snapshot(commit).join(path);
        self.make_room(&self.folder(), &shown)?;
        #[cfg(unix)]
        let content = PathBuf::from(format!("{}blobs/{etag}", "../".repeat(2 + path.matches('/').count())));
        // Another process was faster, and may be reading it.
        #[cfg(unix)]
        if std::fs::read_link(&shown).is_ok_and(|there| there == content) {
            return Ok(());
        }
        // A link to other content, or the content itself where a system has no links.
        let _ = std::fs::remove_file(&shown);
        #[cfg(unix)]
        let linked = std::os::unix::fs::symlink(content, &shown);
        // Links to names need a privilege elsewhere.
        #[cfg(not(unix))]
        let linked = std::fs::hard_link(self.blob(etag), &shown).or_else(|_| std::fs::copy(self.blob(etag), &shown).map(|_| ()));
        match linked {
            // Another process was faster.
            Err(_) if shown.is_file() => Ok(()),
            linked => linked.map_err(|e| self.unwritable(&e)),
        }
    }

    /// The files of `commit` that are here.
    pub(super) fn listed(&self, commit: &str) -> Vec<Listed> {
        fn walk(folder: &Path, prefix: &str, depth: usize, into: &mut Vec<Listed>) {
            for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
                let Ok(name) = entry.file_name().into_string() else { continue };
                let path = format!("{prefix}{name}");
                // Through links: what points nowhere is not here.
                match std::fs::metadata(entry.path()) {
                    Ok(metadata) if metadata.is_dir() && depth < DEEPEST => walk(&entry.path(), &format!("{path}/"), depth + 1, into),
                    Ok(metadata) if metadata.is_file() => into.push(Listed { path, size: Some(metadata.len()) }),
                    _ => {}
                }
            }
        }
        let mut files = Vec::new();
        walk(&self.snapshot(commit), "", 0, &mut files);
        files.sort_by(|a, b| a.path.cmp(&b.path));
        files
    }

    /// What to say when the cache cannot be written.
    pub(super) fn unwritable(&self, error: &std::io::Error) -> Error {
        let (id, cache) = (&self.shown, self.root.display());
        Error::Model(match error.kind() {
            std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => format!(
                "{id}: the disk with {cache} is full; free some space and run again, which goes on where this stopped, \
                 or set HF_HOME to a folder on another disk"
            ),
            _ => format!("{id}: {cache} cannot be written ({error}); set HF_HOME to a folder that can"),
        })
    }
}

#[cfg(test)]
mod tests {

    use super::*;

    #[test]
    fn a_full_disk_says_what_to_do() {
        let id = HubId::parse("org/model").expect("well-formed").expect("an id");
        let store = Store::new(Path::new("/cache"), &id);
        let sentence = store.unwritable(&std::io::ErrorKind::StorageFull.into()).to_string();
        assert!(sentence.contains("the disk with /cache is full") && sentence.contains("HF_HOME"), "{sentence}");
    }
}
