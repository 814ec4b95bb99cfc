//! Files that are whole or not there: a temporary name first, the disk's word that the bytes are safe, then the file's own name.
//!
//! A temporary file is called `.sd-gen-MACHINE-PROCESS-….part`, lies in the folder of the file that it will be, and is locked by the
//! process that writes it. What a dead process left behind is known by both: its process has ended, and nobody holds the lock.

mod locks;
mod owner;

pub(crate) use locks::{Locks, reach};
pub(crate) use owner::{Owner, owner_of, tag as owner_tag};

use crate::{Error, Result};
use sha2::{Digest, Sha256};
use std::fs::{File, FileType, OpenOptions, TryLockError};
use std::io::{ErrorKind, Read, Write};
use std::path::{Component, Path, PathBuf};
use std::time::Duration;
use tempfile::{NamedTempFile, TempDir};

const PREFIX: &str = ".sd-gen-";
const SUFFIX: &str = ".part";

/// A temporary file of nobody knows whom is left alone for so long after the last byte was written.
const LONG_AGO: Duration = Duration::from_secs(3600);

/// The bytes of a file, safe on the disk under a temporary name.
#[derive(Debug)]
pub(crate) struct Staged {
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
pub(crate) fn stage(folder: &Path, write: impl FnOnce(&mut dyn Write) -> std::io::Result<()>) -> std::io::Result<Staged> {
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
pub(crate) fn temporary(folder: &Path) -> std::io::Result<NamedTempFile> {
    let prefix = format!("{PREFIX}{}", owner::tag());
    let mut builder = tempfile::Builder::new();
    builder.prefix(&prefix).suffix(SUFFIX);
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    let file = builder.tempfile_in(folder)?;
    // Some network file systems have no locks; without one the file only looks abandoned.
    let _ = file.as_file().try_lock();
    Ok(file)
}

/// Bytes that a file in `folder` may still take, where the system says.
pub(crate) fn free_space(folder: &Path) -> Option<u64> {
    #[cfg(unix)]
    {
        let system = rustix::fs::statvfs(folder).ok()?;
        system.f_bavail.checked_mul(system.f_frsize)
    }
    #[cfg(not(unix))]
    {
        let _ = folder;
        None
    }
}

/// As [`temporary`], a folder.
///
/// # Errors
/// The folder cannot be written.
pub(crate) fn temporary_folder(folder: &Path) -> std::io::Result<TempDir> {
    tempfile::Builder::new().prefix(PREFIX).suffix(SUFFIX).tempdir_in(folder)
}

impl Staged {
    /// Gives the file its name. An existing file is only replaced with `overwrite`.
    ///
    /// # Errors
    /// The name is taken ([`ErrorKind::AlreadyExists`]) or cannot be given; the staged file comes back.
    pub(crate) fn publish(self, path: &Path, overwrite: bool) -> Result<(), (std::io::Error, Self)> {
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
pub(crate) fn write_whole(path: &Path, overwrite: bool, write: impl FnOnce(&mut dyn Write) -> std::io::Result<()>) -> Result<()> {
    let failed = |e: std::io::Error| Error::Io { path: path.to_owned(), source: e };
    stage(folder_of(path), write).map_err(failed)?.publish(path, overwrite).map_err(|(e, _)| failed(e))
}

/// The folder that a path is in; `.` where it is a mere name.
pub(crate) fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// The same name with a count, for a name that is taken: `apple.png`, `apple-2.png`, ….
pub(crate) fn counted(path: &Path, count: usize) -> PathBuf {
    let part = |part: Option<&std::ffi::OsStr>| part.map(|part| part.to_string_lossy().into_owned()).unwrap_or_default();
    path.with_file_name(format!("{}-{count}.{}", part(path.file_stem()), part(path.extension())))
}

/// From here on a write beyond the size that the system allows (`ulimit -f`) is an error, which can be said; it would end the process.
pub(crate) fn survive_size_limit() {
    #[cfg(unix)]
    #[expect(unsafe_code, reason = "signals are the C library's")]
    // SAFETY: no function is called when the signal comes: it is ignored.
    unsafe {
        libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
    }
}

/// Opens a regular file to read it. What else a path may name, such as a pipe or a device, could be waited for or read without end.
///
/// # Errors
/// It cannot be opened, or is no regular file.
pub(crate) fn open_regular(path: &Path) -> std::io::Result<File> {
    open_checked(path, File::options().read(true), std::fs::metadata(path))
}

/// Opens a regular file that is to be written, shortened or removed: never another one that a link leads to.
///
/// # Errors
/// As [`open_regular`], or the path is a link.
pub(crate) fn open_own(path: &Path, options: &mut OpenOptions) -> std::io::Result<File> {
    // Where the path is changed in between, the system refuses the link.
    #[cfg(unix)]
    let options = {
        use rustix::fs::OFlags;
        std::os::unix::fs::OpenOptionsExt::custom_flags(options, (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed())
    };
    open_checked(path, options, std::fs::symlink_metadata(path))
}

fn open_checked(path: &Path, options: &OpenOptions, before: std::io::Result<std::fs::Metadata>) -> std::io::Result<File> {
    let check = |metadata: std::fs::Metadata| match metadata.file_type() {
        kind if kind.is_file() => Ok(()),
        kind if kind.is_symlink() => Err(std::io::Error::other("it is a link to another file")),
        _ => Err(std::io::Error::other("it is not a regular file")),
    };
    match before {
        Ok(metadata) => check(metadata)?,
        // The options may be to make it.
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let file = options.open(path)?;
    check(file.metadata()?)?;
    Ok(file)
}

/// Waits until the disk has a folder's names, without which a file may be nameless after a power cut.
///
/// # Errors
/// The folder is not there any more.
pub(crate) fn sync_folder(folder: &Path) -> std::io::Result<()> {
    if cfg!(unix) {
        let opened = File::open(folder)?;
        // A file system that cannot do this for folders does it by itself, or never.
        let _ = opened.sync_all();
    }
    Ok(())
}

/// Removes the temporary files that dead processes left in `folder`; gives their number.
pub(crate) fn sweep(folder: &Path) -> usize {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let is_abandoned = |entry: &std::fs::DirEntry| {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        let owner = name.strip_prefix(PREFIX).filter(|rest| rest.ends_with(SUFFIX)).map(owner_of);
        owner.is_some_and(|owner| is_abandoned(&entry.path(), owner))
    };
    entries.filter(|entry| is_abandoned(entry) && std::fs::remove_file(entry.path()).is_ok()).count()
}

fn is_abandoned(path: &Path, owner: Owner) -> bool {
    let Ok(file) = open_own(path, File::options().read(true)) else { return false };
    let age = || file.metadata().and_then(|metadata| metadata.modified()).ok().and_then(|at| at.elapsed().ok());
    match owner {
        Owner::Living => false,
        Owner::Dead => !matches!(file.try_lock(), Err(TryLockError::WouldBlock)),
        Owner::Unknown => age().is_some_and(|age| age > LONG_AGO) && file.try_lock().is_ok(),
    }
}

/// The SHA-256 of a regular file, and its length; `None` where `stop` said so in between.
///
/// # Errors
/// The file cannot be read.
pub(crate) fn sha256_of(path: &Path, stop: &dyn Fn() -> bool) -> std::io::Result<Option<(u64, [u8; 32])>> {
    let mut file = open_regular(path)?;
    let mut hashing = Hashing { to: std::io::sink(), hash: Sha256::new(), size: 0 };
    while std::io::copy(&mut (&mut file).take(1 << 24), &mut hashing)? > 0 {
        if stop() {
            return Ok(None);
        }
    }
    Ok(Some((hashing.size, hashing.hash.finalize().into())))
}

/// A path as it is from `folder`, where it is below it; otherwise absolute.
pub(crate) fn seen_from(folder: &Path, path: &Path) -> PathBuf {
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
pub(crate) fn read_bounded(path: &Path, most: u64) -> std::io::Result<Vec<u8>> {
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
pub(crate) fn is_file_or_pipe(kind: FileType) -> bool {
    #[cfg(unix)]
    return kind.is_file() || std::os::unix::fs::FileTypeExt::is_fifo(&kind);
    #[cfg(not(unix))]
    return kind.is_file();
}

/// Whether a path leads to a place below a folder, links included; what is not there yet will be made below what is.
pub(crate) fn stays_inside(folder: &Path, path: &Path) -> bool {
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
        assert_eq!(sha256_of(&path, &|| false).unwrap(), Some((5, Sha256::digest(b"other").into())));
        assert_eq!(sha256_of(&path, &|| true).unwrap(), None);
        assert!(sha256_of(folder.path(), &|| false).is_err());
    }

    #[test]
    fn only_abandoned_temporary_files_are_swept() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let living = stage(folder.path(), |to| to.write_all(b"at work")).unwrap();
        // As on a file system whose locks do nothing.
        living.file.as_file().unlock().unwrap();
        std::fs::write(path(".sd-gen-0-1-other.part"), b"of another machine").unwrap();
        let long_ago = std::time::SystemTime::now() - 2 * LONG_AGO;
        for old in [".sd-gen-0-1-old.part", ".sd-gen-old.part", "mine.part"] {
            std::fs::write(path(old), b"left behind").unwrap();
            File::options().write(true).open(path(old)).unwrap().set_modified(long_ago).unwrap();
        }
        std::fs::create_dir(path(".sd-gen-0-1-folder.part")).unwrap();
        #[cfg(not(unix))]
        let swept = 2;
        #[cfg(unix)]
        let swept = {
            let mut child = std::process::Command::new("true").spawn().unwrap();
            let tag = owner::tag().replace(&format!("-{}-", std::process::id()), &format!("-{}-", child.id()));
            let dead = |name: &str| path(&format!(".sd-gen-{tag}{name}.part"));
            std::fs::write(dead("file"), b"").unwrap();
            child.wait().unwrap();
            // Opening a pipe would wait for its writer.
            rustix::fs::mknodat(rustix::fs::CWD, dead("pipe"), rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
            std::os::unix::fs::symlink(path("mine.part"), dead("link")).unwrap();
            3
        };
        let before = std::fs::read_dir(folder.path()).unwrap().count();
        assert_eq!(sweep(folder.path()), swept);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), before - swept);
        assert!(path("mine.part").exists() && path(".sd-gen-0-1-other.part").exists());
        living.publish(&path("done"), false).unwrap();
    }

    #[cfg(unix)]
    #[test]
    fn what_has_no_end_is_not_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        std::fs::write(&path, "12345").unwrap();
        assert_eq!(read_bounded(&path, 5).unwrap(), b"12345");
        assert_eq!(read_bounded(&path, 4).unwrap_err().kind(), ErrorKind::FileTooLarge);
        assert_eq!(read_bounded(Path::new("/dev/zero"), 5).unwrap_err().kind(), ErrorKind::InvalidInput);
        assert_eq!(read_bounded(folder.path(), 5).unwrap_err().kind(), ErrorKind::InvalidInput);
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
