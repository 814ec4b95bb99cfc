//! Files that are inputs of an image: named by the user, bounded, hashed. What decides the pixels is their content, so its SHA-256 is
//! part of an image's key; their names go into its metadata, their bytes nowhere.
//!
//! Nothing here knows what a file means.

use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::fs::File;
use std::io::{IsTerminal, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Bytes that are read at once.
const CHUNK: usize = 1 << 20;

/// A file that is an input: its name, and once it was read, what its content is.
///
/// A regular file is read again where its bytes are wanted, so that a batch of ten thousand images does not keep ten thousand files in
/// the memory; the hash says that it is still the same. What comes from a pipe can be read only once, and is kept.
#[derive(Debug, Clone)]
pub struct InputFile {
    path: PathBuf,
    /// It may be a folder, whose files are one input.
    folder: bool,
    /// What people call it, where that is not its path: an id of the hub, from which it was fetched.
    name: Option<String>,
    content: Option<InputContent>,
}

#[derive(Debug, Clone)]
struct InputContent {
    sha256: [u8; 32],
    /// Of what follows the header of a safetensors file.
    tensors: [u8; 32],
    length: u64,
    kept: Option<Arc<[u8]>>,
}

impl PartialEq for InputFile {
    /// By the content, where it is known; else by the name.
    fn eq(&self, other: &Self) -> bool {
        match (&self.content, &other.content) {
            (Some(one), Some(other)) => one.sha256 == other.sha256,
            _ => self.path == other.path,
        }
    }
}

impl InputFile {
    /// A file that was named and not read.
    pub fn named(path: &Path) -> Self {
        Self { path: path.to_owned(), folder: false, name: None, content: None }
    }

    /// A file, or a folder of a network's weights with their configuration, that was named and not read.
    pub fn of_network(path: &Path) -> Self {
        Self { folder: true, ..Self::named(path) }
    }

    /// The same input where it was found.
    #[must_use]
    pub fn found_at(&self, path: &Path) -> Self {
        Self { path: path.to_owned(), content: None, ..self.clone() }
    }

    /// The same input by what people call it: it is recorded and told by this name, and not by its path.
    #[must_use]
    pub fn called(self, name: impl Into<String>) -> Self {
        Self { name: Some(name.into()), ..self }
    }

    /// What people call it, where that is not its path.
    pub fn name(&self) -> Option<&str> {
        self.name.as_deref()
    }

    /// Bytes that are no file, under a name.
    pub fn of_bytes(name: impl Into<PathBuf>, bytes: impl Into<Arc<[u8]>>) -> Self {
        let bytes = bytes.into();
        let mut hash = TensorHash::default();
        hash.update(&bytes);
        let content =
            InputContent { sha256: Sha256::digest(&bytes).into(), tensors: hash.finalize(), length: bytes.len() as u64, kept: Some(bytes) };
        Self { path: name.into(), folder: false, name: None, content: Some(content) }
    }

    /// The name as it was given, or the path at which it was found.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The content's SHA-256 in hexadecimal digits, once it was read.
    pub fn sha256(&self) -> Option<String> {
        self.content.as_ref().map(|content| hex(&content.sha256))
    }

    /// The SHA-256 of a safetensors file's tensors, without the header, once it was read: A1111 knows LoRAs by it.
    pub fn tensors_sha256(&self) -> Option<String> {
        self.content.as_ref().map(|content| hex(&content.tensors))
    }

    /// The bytes.
    ///
    /// # Errors
    /// A sentence: the file was not read before, cannot be read again, or is no longer what it was.
    pub fn bytes(&self) -> Result<Arc<[u8]>, String> {
        let name = self.path.display();
        let content = self.content.as_ref().ok_or_else(|| format!("{name}: was not read"))?;
        if let Some(bytes) = &content.kept {
            return Ok(bytes.clone());
        }
        let (mut file, _) = open(&self.path)?;
        let mut bytes = Vec::with_capacity(usize::try_from(content.length).unwrap_or(0).min(CHUNK));
        file.by_ref().take(content.length + 1).read_to_end(&mut bytes).map_err(|e| format!("{name}: cannot be read: {e}"))?;
        if Sha256::digest(&bytes)[..] != content.sha256 {
            return Err(format!("{name}: changed after the run began; run the command again"));
        }
        Ok(bytes.into())
    }
}

/// Reads inputs, each file once.
#[derive(Debug, Default)]
pub struct InputReader {
    known: HashMap<PathBuf, InputContent>,
}

impl InputReader {
    /// Reads and hashes a file of at most `limit` bytes, if that was not done.
    ///
    /// # Errors
    /// A sentence: the file is not there, is a folder or a device, cannot be read, or is larger.
    pub fn read(&mut self, file: &mut InputFile, limit: u64) -> Result<(), String> {
        if file.content.is_some() {
            return Ok(());
        }
        let content = match self.known.get(&file.path) {
            Some(known) => known.clone(),
            None => {
                let content = match file.folder && file.path.is_dir() {
                    true => content_of_folder(&file.path, limit)?,
                    false => content_of(&file.path, limit)?,
                };
                self.known.insert(file.path.clone(), content.clone());
                content
            }
        };
        if content.length > limit {
            return Err(too_large(&file.path, limit));
        }
        file.content = Some(content);
        Ok(())
    }
}

fn too_large(path: &Path, limit: u64) -> String {
    format!("{}: is larger than {}, which is too large to be such a file", path.display(), size(limit))
}

fn size(bytes: u64) -> String {
    if bytes >= 1 << 20 { format!("{} MiB", bytes >> 20) } else { format!("{bytes} bytes") }
}

/// The name that stands for standard input.
pub(crate) const STANDARD_INPUT: &str = "-";

/// The files that a name stands for: those of a folder with one of the endings, those that a pattern with `*` or `?` in its last part
/// matches, or the one that has the name. In the order of their names, numbers in them counted.
///
/// # Errors
/// A sentence: there is none, or the folder cannot be read.
pub(crate) fn files_named(path: &Path, endings: &[&str]) -> Result<Vec<PathBuf>, String> {
    let shown = path.display();
    let last = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let is_folder = path.is_dir();
    if !is_folder && (path.exists() || !last.contains(['*', '?'])) {
        return Ok(vec![path.to_owned()]);
    }
    let folder = if is_folder { Some(path) } else { path.parent() };
    let folder = folder.filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let entries = std::fs::read_dir(folder).map_err(|e| format!("{shown}: the folder cannot be read: {e}"))?;
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry.map_err(|e| format!("{shown}: the folder cannot be read: {e}"))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let has_ending =
            || Path::new(&name).extension().is_some_and(|ending| endings.iter().any(|known| ending.eq_ignore_ascii_case(known)));
        let fits = if is_folder { has_ending() && !name.starts_with('.') } else { matches(&last, &name) };
        if fits && entry.path().is_file() {
            let named = if is_folder || path.parent().is_some_and(|parent| !parent.as_os_str().is_empty()) {
                entry.path()
            } else {
                name.clone().into()
            };
            found.push((counted(&name), named));
        }
    }
    if found.is_empty() {
        let what = if is_folder { "the folder holds no image" } else { "no file has such a name" };
        return Err(format!("{shown}: {what}"));
    }
    found.sort();
    Ok(found.into_iter().map(|(_, path)| path).collect())
}

/// Whether a name is of a pattern: `*` stands for any letters, `?` for one.
fn matches(pattern: &str, name: &str) -> bool {
    let (pattern, name): (Vec<char>, Vec<char>) = (pattern.chars().collect(), name.chars().collect());
    // Where the last star stands, and what of the name it has taken.
    let (mut p, mut n, mut star) = (0, 0, None);
    while n < name.len() {
        match pattern.get(p) {
            Some('*') => {
                star = Some((p, n));
                p += 1;
            }
            Some(c) if *c == '?' || Some(c) == name.get(n) => (p, n) = (p + 1, n + 1),
            _ => match star {
                Some((at, taken)) => {
                    star = Some((at, taken + 1));
                    (p, n) = (at + 1, taken + 1);
                }
                None => return false,
            },
        }
    }
    pattern.iter().skip(p).all(|c| *c == '*')
}

/// A name with its numbers filled up, so that 10 comes after 9.
fn counted(name: &str) -> String {
    let mut result = String::new();
    let mut digits = String::new();
    for c in name.chars().chain(['\0']) {
        if c.is_ascii_digit() {
            digits.push(c);
            continue;
        }
        if !digits.is_empty() {
            result += &format!("{:0>20}", std::mem::take(&mut digits));
        }
        result.push(c);
    }
    result
}

/// Opens a regular file, or a pipe that somebody writes to; and whether it can be read twice.
fn open(path: &Path) -> Result<(File, bool), String> {
    let name = path.display();
    let metadata = std::fs::metadata(path).map_err(|e| format!("{name}: cannot be read: {e}"))?;
    if !metadata.is_file() && !is_pipe(&metadata) {
        // A folder has no bytes, and a device may have no end.
        return Err(format!("{name}: is not a file"));
    }
    let file = File::open(path).map_err(|e| format!("{name}: cannot be read: {e}"))?;
    // What was opened counts, not what was there a moment before.
    let opened = file.metadata().map_err(|e| format!("{name}: cannot be read: {e}"))?;
    match opened.is_file() {
        true => Ok((file, true)),
        false if is_pipe(&opened) => Ok((file, false)),
        false => Err(format!("{name}: is not a file")),
    }
}

#[cfg(unix)]
fn is_pipe(metadata: &std::fs::Metadata) -> bool {
    std::os::unix::fs::FileTypeExt::is_fifo(&metadata.file_type())
}

#[cfg(not(unix))]
fn is_pipe(_metadata: &std::fs::Metadata) -> bool {
    false
}

fn content_of(path: &Path, limit: u64) -> Result<InputContent, String> {
    let (mut file, again): (Box<dyn Read>, bool) = match path.as_os_str() == STANDARD_INPUT {
        true if std::io::stdin().is_terminal() => {
            return Err("-: standard input is a terminal; send a file into it, as in < image.png".into());
        }
        true => (Box::new(std::io::stdin()), false),
        false => open(path).map(|(file, again)| (Box::new(file) as Box<dyn Read>, again))?,
    };
    let (mut hash, mut tensors) = (Sha256::new(), TensorHash::default());
    let mut length = 0u64;
    let mut kept = Vec::new();
    let mut chunk = vec![0; CHUNK];
    loop {
        let count = match file.read(&mut chunk) {
            Ok(0) => break,
            Ok(count) => count,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(format!("{}: cannot be read: {e}", path.display())),
        };
        let read = chunk.get(..count).unwrap_or_default();
        length += count as u64;
        if length > limit {
            return Err(too_large(path, limit));
        }
        rayon::join(|| hash.update(read), || tensors.update(read));
        if !again {
            kept.extend_from_slice(read);
        }
    }
    Ok(InputContent { sha256: hash.finalize().into(), tensors: tensors.finalize(), length, kept: (!again).then(|| kept.into()) })
}

/// What is hashed of a network's folder: the weights and what says how to read them.
fn content_of_folder(path: &Path, limit: u64) -> Result<InputContent, String> {
    let entries = std::fs::read_dir(path).map_err(|e| format!("{}: cannot be read: {e}", path.display()))?;
    let mut names: Vec<String> = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect();
    names.retain(|name| !name.starts_with('.') && (name.ends_with(".safetensors") || name.ends_with(".json")));
    names.sort_unstable();
    if names.is_empty() {
        return Err(format!("{}: is a folder without .safetensors and .json files", path.display()));
    }
    let (mut hash, mut length) = (Sha256::new(), 0u64);
    for name in names {
        let content = content_of(&path.join(&name), limit.saturating_sub(length))?;
        length += content.length;
        hash.update(format!("{name:?} {}\n", hex(&content.sha256)));
    }
    let sha256: [u8; 32] = hash.finalize().into();
    Ok(InputContent { sha256, tensors: sha256, length, kept: None })
}

fn hex(hash: &[u8]) -> String {
    hash.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Hashes what follows a safetensors file's header, whose length the first eight bytes say.
#[derive(Default)]
struct TensorHash {
    length: Vec<u8>,
    /// Bytes of the header that are still to come.
    header: u64,
    hash: Sha256,
}

impl TensorHash {
    fn update(&mut self, mut bytes: &[u8]) {
        if self.length.len() < 8 {
            let (length, rest) = bytes.split_at(bytes.len().min(8 - self.length.len()));
            self.length.extend_from_slice(length);
            bytes = rest;
            if let Some(length) = self.length.first_chunk::<8>() {
                self.header = u64::from_le_bytes(*length);
            }
        }
        let skipped = usize::try_from(self.header).unwrap_or(bytes.len()).min(bytes.len());
        self.header -= skipped as u64;
        self.hash.update(bytes.get(skipped..).unwrap_or_default());
    }

    fn finalize(self) -> [u8; 32] {
        self.hash.finalize().into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_known_by_their_content() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, bytes: &[u8]| {
            std::fs::write(folder.path().join(name), bytes).unwrap();
            InputFile::named(&folder.path().join(name))
        };
        let (mut one, mut copy, mut other) = (write("one", b"abc"), write("copy", b"abc"), write("other", b"abd"));
        let mut reader = InputReader::default();
        for file in [&mut one, &mut copy, &mut other] {
            reader.read(file, 3).unwrap();
        }
        assert_eq!(one.sha256().as_deref(), Some("ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"));
        assert!(one == copy && one != other);
        assert_eq!(&*one.bytes().unwrap(), b"abc");
        std::fs::write(folder.path().join("one"), b"abcd").unwrap();
        assert!(one.bytes().unwrap_err().contains("changed"));
        assert_eq!(InputFile::of_bytes("x", *b"abc"), copy);
    }

    #[test]
    fn a_name_may_stand_for_several_files() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["b10.png", "b9.png", "a.JPG", "notes.txt", ".hidden.png"] {
            std::fs::write(folder.path().join(name), b"x").unwrap();
        }
        let named = |name: &str| {
            let found = files_named(&folder.path().join(name), &["png", "jpg"])?;
            Ok::<_, String>(found.iter().map(|path| path.file_name().unwrap().to_string_lossy().into_owned()).collect::<Vec<_>>())
        };
        assert_eq!(named("").unwrap(), ["a.JPG", "b9.png", "b10.png"]);
        assert_eq!(named("b*.png").unwrap(), ["b9.png", "b10.png"]);
        assert_eq!(named("?.*").unwrap(), ["a.JPG"]);
        assert_eq!(named("none.png").unwrap(), ["none.png"], "whoever reads it says that it is not there");
        assert!(named("*.gif").unwrap_err().contains("no file"));
        assert!(matches("*a*b", "xaab") && !matches("a?", "a") && matches("a**", "a") && !matches("b*", "ab"));
    }

    #[test]
    fn folders_devices_and_what_is_too_large_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("large"), [0; 4]).unwrap();
        let mut reader = InputReader::default();
        let mut said = |name: &str| reader.read(&mut InputFile::named(&folder.path().join(name)), 3).unwrap_err();
        assert!(said("").contains("is not a file"));
        assert!(said("none").contains("cannot be read"));
        assert!(said("large").contains("larger than 3 bytes"));
        // Once read for a setting that allows more, it is still too large for one that does not.
        reader.read(&mut InputFile::named(&folder.path().join("large")), 9).unwrap();
        assert!(reader.read(&mut InputFile::named(&folder.path().join("large")), 3).is_err());
        #[cfg(unix)]
        assert!(reader.read(&mut InputFile::named(Path::new("/dev/zero")), 3).unwrap_err().contains("is not a file"));
    }

    #[cfg(unix)]
    #[test]
    fn a_pipe_is_read_once_and_kept() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pipe");
        let made = std::process::Command::new("mkfifo").arg(&path).status().unwrap();
        assert!(made.success());
        let writer = std::thread::spawn({
            let path = path.clone();
            move || std::fs::write(path, b"abc").unwrap()
        });
        let mut file = InputFile::named(&path);
        InputReader::default().read(&mut file, 3).unwrap();
        writer.join().unwrap();
        assert_eq!(&*file.bytes().unwrap(), b"abc");
        assert_eq!(&*file.clone().bytes().unwrap(), b"abc");
    }
}
