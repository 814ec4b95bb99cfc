//! Files that are whole or not there: a temporary name first, the disk's word that the bytes are safe, then the file's own name.
//!
//! A temporary file is called `.sd-gen-….part`, lies in the folder of the file that it will be, and is locked by the process that
//! writes it. A lock ends with its process, however that ends, so what a dead process left behind is known by having none.

use crate::{Error, Result};
use sha2::{Digest, Sha256};
use std::fs::{File, FileType, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::path::{Component, Path, PathBuf};
use std::time::Duration;
use tempfile::{NamedTempFile, TempDir};

const PREFIX: &str = ".sd-gen-";
const SUFFIX: &str = ".part";

/// An empty temporary file may be one that its process is about to lock.
const YOUNG: Duration = Duration::from_secs(60);

/// The bytes of a file, safe on the disk under a temporary name.
#[derive(Debug)]
pub struct Staged {
    file: NamedTempFile,
    /// Bytes.
    pub size: u64,
    /// SHA-256 of the bytes.
    pub sha256: [u8; 32],
}

/// Writes a file under a temporary name in `folder`, and waits until the disk has it.
///
/// # Errors
/// The folder cannot be written, or the disk is full.
pub fn stage(folder: &Path, write: impl FnOnce(&mut dyn Write) -> std::io::Result<()>) -> std::io::Result<Staged> {
    let file = temporary(folder)?;
    let (size, sha256) = {
        let mut hashing = Hashing { to: std::io::BufWriter::new(file.as_file()), hash: Sha256::new(), size: 0 };
        write(&mut hashing)?;
        hashing.flush()?;
        (hashing.size, hashing.hash.clone().finalize().into())
    };
    file.as_file().sync_all()?;
    Ok(Staged { file, size, sha256 })
}

/// An empty file under a temporary name in `folder`, which goes when it is dropped without a name of its own.
///
/// # Errors
/// The folder cannot be written.
pub fn temporary(folder: &Path) -> std::io::Result<NamedTempFile> {
    let mut builder = tempfile::Builder::new();
    builder.prefix(PREFIX).suffix(SUFFIX);
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    let file = builder.tempfile_in(folder)?;
    // Some network file systems have no locks; without one the file only looks abandoned.
    let _ = file.as_file().try_lock();
    Ok(file)
}

/// As [`temporary`], a folder.
///
/// # Errors
/// The folder cannot be written.
pub fn temporary_folder(folder: &Path) -> std::io::Result<TempDir> {
    tempfile::Builder::new().prefix(PREFIX).suffix(SUFFIX).tempdir_in(folder)
}

impl Staged {
    /// Gives the file its name. An existing file is only replaced with `overwrite`.
    ///
    /// # Errors
    /// The name is taken ([`ErrorKind::AlreadyExists`]) or cannot be given; the staged file comes back.
    pub fn publish(self, path: &Path, overwrite: bool) -> Result<(), (std::io::Error, Self)> {
        let Self { file, size, sha256 } = self;
        let named = if overwrite { file.persist(path) } else { file.persist_noclobber(path) };
        named.map(drop).map_err(|e| (e.error, Self { file: e.file, size, sha256 }))
    }
}

/// Writes a file under a temporary name beside its place, and gives it its name when it is whole.
///
/// An existing file is only replaced with `overwrite`.
///
/// # Errors
/// The folder cannot be written, the disk is full, or the file exists.
pub fn write_whole(path: &Path, overwrite: bool, write: impl FnOnce(&mut dyn Write) -> std::io::Result<()>) -> Result<()> {
    let failed = |e: std::io::Error| Error::Io { path: path.to_owned(), source: e };
    stage(folder_of(path), write).map_err(failed)?.publish(path, overwrite).map_err(|(e, _)| failed(e))
}

/// The folder that a path is in; `.` where it is a mere name.
pub fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// The same name with a count, for a name that is taken: `apple.png`, `apple-2.png`, ….
pub fn counted(path: &Path, count: usize) -> PathBuf {
    let part = |part: Option<&std::ffi::OsStr>| part.map(|part| part.to_string_lossy().into_owned()).unwrap_or_default();
    path.with_file_name(format!("{}-{count}.{}", part(path.file_stem()), part(path.extension())))
}

/// Whether the next image would meet the same.
pub fn stops_all(error: &Error) -> bool {
    let Error::Io { source, .. } = error else { return false };
    matches!(
        source.kind(),
        ErrorKind::StorageFull
            | ErrorKind::QuotaExceeded
            | ErrorKind::ReadOnlyFilesystem
            | ErrorKind::NotFound
            | ErrorKind::PermissionDenied
            | ErrorKind::StaleNetworkFileHandle
            | ErrorKind::NotConnected
            | ErrorKind::TimedOut
    )
}

/// Waits until the disk has a folder's names, without which a file may be nameless after a power cut.
///
/// # Errors
/// The folder is not there any more.
pub fn sync_folder(folder: &Path) -> std::io::Result<()> {
    if cfg!(unix) {
        let opened = File::open(folder)?;
        // A file system that cannot do this for folders does it by itself, or never.
        let _ = opened.sync_all();
    }
    Ok(())
}

/// Removes the temporary files that dead processes left in `folder`; gives their number.
pub fn sweep(folder: &Path) -> usize {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let ours = entries.filter(|entry| {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        name.starts_with(PREFIX) && name.ends_with(SUFFIX)
    });
    ours.filter(|entry| is_abandoned(&entry.path()) && std::fs::remove_file(entry.path()).is_ok()).count()
}

fn is_abandoned(path: &Path) -> bool {
    let Ok(file) = File::open(path) else { return false };
    let Ok(metadata) = file.metadata() else { return false };
    let age = metadata.modified().ok().and_then(|at| at.elapsed().ok()).unwrap_or_default();
    // Its process locks a file before it writes the first byte.
    metadata.is_file() && (metadata.len() > 0 || age > YOUNG) && file.try_lock().is_ok()
}

/// The SHA-256 of a file, and its length.
///
/// # Errors
/// The file cannot be read.
pub fn sha256_of(path: &Path) -> std::io::Result<(u64, [u8; 32])> {
    let mut hashing = Hashing { to: std::io::sink(), hash: Sha256::new(), size: 0 };
    std::io::copy(&mut File::open(path)?, &mut hashing)?;
    Ok((hashing.size, hashing.hash.finalize().into()))
}

/// A path as it is from `folder`, where it is below it; otherwise absolute.
pub fn seen_from(folder: &Path, path: &Path) -> PathBuf {
    if let Ok(below) = path.strip_prefix(folder) {
        return below.to_owned();
    }
    let absolute = |path: &Path| std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let (folder, path) = (absolute(folder), absolute(path));
    path.strip_prefix(&folder).map(Path::to_owned).unwrap_or(path)
}

/// The bytes of a regular file, or of a pipe that somebody named; at most `most`.
///
/// # Errors
/// It cannot be read, has more bytes, or is something else: a device may have no end.
pub fn read_bounded(path: &Path, most: u64) -> std::io::Result<Vec<u8>> {
    // Before opening: a device may do something then.
    if !is_file_or_pipe(std::fs::metadata(path)?.file_type()) {
        return Err(std::io::Error::new(ErrorKind::InvalidInput, "it is neither a file nor a pipe"));
    }
    let mut bytes = Vec::new();
    File::open(path)?.take(most + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > most {
        return Err(std::io::Error::new(ErrorKind::FileTooLarge, format!("it has more than {most} bytes")));
    }
    Ok(bytes)
}

/// Whether it is a regular file, or a pipe, which somebody made on purpose: `<(…)` of a shell is one.
pub fn is_file_or_pipe(kind: FileType) -> bool {
    #[cfg(unix)]
    return kind.is_file() || std::os::unix::fs::FileTypeExt::is_fifo(&kind);
    #[cfg(not(unix))]
    return kind.is_file();
}

/// Opens a file of the program's own: a regular one, and never through a link, which whoever may write to the folder could have put there.
///
/// # Errors
/// It cannot be opened, or is no such file.
pub fn open_own(path: &Path, options: &mut OpenOptions) -> std::io::Result<File> {
    let wrong = || std::io::Error::new(ErrorKind::InvalidInput, format!("{} is no regular file; remove it", path.display()));
    if path.symlink_metadata().is_ok_and(|there| !there.is_file()) {
        return Err(wrong());
    }
    // Between the two somebody may have been quick.
    #[cfg(unix)]
    {
        use rustix::fs::OFlags;
        use std::os::unix::fs::OpenOptionsExt;
        options.custom_flags((OFlags::NOFOLLOW | OFlags::NONBLOCK).bits() as i32);
    }
    let file = options.open(path)?;
    if file.metadata()?.is_file() { Ok(file) } else { Err(wrong()) }
}

/// Whether a path leads to a place below a folder, links included; what is not there yet will be made below what is.
pub fn stays_inside(folder: &Path, path: &Path) -> bool {
    let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
    resolved(folder).zip(resolved(path)).is_some_and(|(folder, path)| path.starts_with(folder))
}

/// Where a path leads; `None` where nobody can say, as through a link that points nowhere.
fn resolved(path: &Path) -> Option<PathBuf> {
    let path = std::path::absolute(path).ok()?;
    let there = path.ancestors().find(|part| part.symlink_metadata().is_ok())?;
    let rest = path.strip_prefix(there).ok()?;
    let plain = rest.components().all(|part| matches!(part, Component::Normal(_)));
    plain.then(|| there.canonicalize().ok()).flatten().map(|there| there.join(rest))
}

/// Counts and hashes what passes through.
struct Hashing<W> {
    to: W,
    hash: Sha256,
    size: u64,
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let written = self.to.write(bytes)?;
        self.hash.update(&bytes[..written]);
        self.size += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.to.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_whole_or_not_there_and_replaces_nothing_unasked() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        let broken = write_whole(&path, false, |to| {
            to.write_all(b"half")?;
            Err(std::io::Error::other("no more"))
        });
        assert!(broken.is_err() && std::fs::read_dir(folder.path()).unwrap().next().is_none());
        write_whole(&path, false, |to| to.write_all(b"whole")).unwrap();
        assert!(matches!(write_whole(&path, false, |to| to.write_all(b"other")), Err(Error::Io { .. })));
        assert_eq!(std::fs::read(&path).unwrap(), b"whole");
        write_whole(&path, true, |to| to.write_all(b"other")).unwrap();
        assert_eq!(sha256_of(&path).unwrap(), (5, Sha256::digest(b"other").into()));
    }

    #[test]
    fn only_abandoned_temporary_files_are_swept() {
        let folder = tempfile::tempdir().unwrap();
        let living = stage(folder.path(), |to| to.write_all(b"at work")).unwrap();
        std::fs::write(folder.path().join(".sd-gen-dead.part"), b"left behind").unwrap();
        std::fs::write(folder.path().join(".sd-gen-young.part"), b"").unwrap();
        std::fs::write(folder.path().join("mine.part"), b"not ours").unwrap();
        assert_eq!(sweep(folder.path()), 1);
        assert!(!folder.path().join(".sd-gen-dead.part").exists());
        living.publish(&folder.path().join("done"), false).unwrap();
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 3);
    }

    #[cfg(unix)]
    #[test]
    fn what_has_no_end_is_not_read_and_what_is_not_ours_not_opened() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        std::fs::write(&path, "12345").unwrap();
        assert_eq!(read_bounded(&path, 5).unwrap(), b"12345");
        assert_eq!(read_bounded(&path, 4).unwrap_err().kind(), ErrorKind::FileTooLarge);
        assert_eq!(read_bounded(Path::new("/dev/zero"), 5).unwrap_err().kind(), ErrorKind::InvalidInput);
        assert_eq!(read_bounded(folder.path(), 5).unwrap_err().kind(), ErrorKind::InvalidInput);
        let link = folder.path().join("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        let mut options = OpenOptions::new();
        options.write(true).create(true);
        open_own(&path, &mut options).unwrap();
        for other in [&link, folder.path(), Path::new("/dev/null")] {
            assert!(open_own(other, &mut options).unwrap_err().to_string().contains("no regular file"), "{}", other.display());
        }
        assert_eq!(std::fs::read(&path).unwrap(), b"12345");
    }

    #[cfg(unix)]
    #[test]
    fn a_path_leaves_its_folder_by_dots_and_by_links() {
        let (inside, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let root = inside.path();
        std::fs::create_dir(root.join("here")).unwrap();
        std::os::unix::fs::symlink(outside.path(), root.join("link")).unwrap();
        std::os::unix::fs::symlink(root.join("here"), root.join("within")).unwrap();
        std::os::unix::fs::symlink(outside.path().join("nothing"), root.join("dangling")).unwrap();
        for (path, stays) in [
            ("", true),
            ("here/new/er", true),
            ("new", true),
            ("within/new", true),
            ("here/../here", true),
            ("here/..", true),
            ("link", false),
            ("link/new", false),
            ("dangling", false),
            ("dangling/new", false),
            ("here/../..", false),
            ("new/../here", false),
            ("../x", false),
            ("/tmp", false),
        ] {
            assert_eq!(stays_inside(root, &root.join(path)), stays, "{path}");
        }
        // Neither is there yet.
        assert!(stays_inside(&root.join("out"), &root.join("out/a")) && !stays_inside(&root.join("out"), &root.join("a")));
    }

    #[test]
    fn paths_below_a_folder_are_told_from_it() {
        for (folder, path, seen) in [("out", "out/a/b.png", "a/b.png"), (".", "b.png", "b.png"), ("/x", "/y/b.png", "/y/b.png")] {
            assert_eq!(seen_from(Path::new(folder), Path::new(path)), Path::new(seen));
        }
    }
}
