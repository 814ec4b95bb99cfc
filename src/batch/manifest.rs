//! The manifest: a JSON Lines file with one record an image, in which a run finds again what was generated.
//!
//! Records are appended under the file's lock, by a single write each time, and are safe on the disk before the images get their
//! names. What a kill or a power cut can leave is therefore a record without its image (which is generated again) and half a record
//! at the end (which is cut off by whoever appends next), but never an image that nobody knows of.

use super::key::{Key, from_hex, to_hex};
use crate::disk::open_own;
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::fs::{File, TryLockError};
use std::io::{BufRead, BufReader, ErrorKind, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// What every record begins with, by which half a record is known.
const BEGIN: &str = "{\"key\":\"";

/// Bytes of a line: more than a record of the longest prompt has.
const LONGEST_LINE: u64 = 16 << 20;

/// How long another process may hold the lock, which it does for a few writes.
const PATIENCE: Duration = Duration::from_secs(120);
/// The same when the user wants to stop.
const LITTLE_PATIENCE: Duration = Duration::from_secs(2);

/// How an image ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Status {
    /// It was generated.
    Ok,
    /// It could not be.
    Failed,
}

/// A line of the manifest. `key` comes first.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Record {
    /// What the image is.
    pub key: Key,
    /// How it ended.
    pub status: Status,
    /// Why it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The line of the file that asked for it, counted from 1.
    pub line: usize,
    /// The file, seen from the manifest's folder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// The file's bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
    /// The file's SHA-256.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
    /// The seed.
    pub seed: u64,
    /// The prompt.
    pub prompt: String,
    /// What people call the model.
    pub model: String,
    /// What the UNet computed in.
    pub dtype: String,
    /// Pixels.
    pub width: usize,
    /// Pixels.
    pub height: usize,
    /// Denoising steps.
    pub steps: usize,
    /// Seconds that it took, the others of its batch shared out.
    pub seconds: f64,
}

/// What a manifest knows of an image.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum State {
    /// It is there, if the file is.
    GeneratedImage {
        /// The file, seen from the manifest's folder.
        path: PathBuf,
        /// Its bytes.
        size: u64,
        /// Its SHA-256.
        sha256: [u8; 32],
    },
    /// It failed.
    Failed(String),
}

/// Seconds and work, added up over the images of one model in one dtype: what the next ones will take.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct History {
    /// Images.
    pub images: usize,
    /// Seconds.
    pub seconds: f64,
    /// Pixels times steps.
    pub work: f64,
}

/// An open manifest.
#[derive(Debug)]
pub(crate) struct Manifest {
    path: PathBuf,
    file: File,
    locks: bool,
    /// The user wants to stop.
    stop: fn() -> bool,
    /// Bytes that were read.
    read: u64,
    states: HashMap<Key, State>,
    history: HashMap<(String, String), History>,
    /// Lines that are no records.
    unreadable: usize,
}

impl Manifest {
    /// Opens a manifest, or begins one, and reads it.
    ///
    /// # Errors
    /// The file cannot be opened, or is something else.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        Self::open_until(path, || false)
    }

    /// As [`Manifest::open`]; what waits for other processes ends when `stop` says so.
    ///
    /// # Errors
    /// As [`Manifest::open`].
    pub(crate) fn open_until(path: &Path, stop: fn() -> bool) -> Result<Self> {
        let failed = |e| Error::Input(format!("the manifest {} cannot be opened: {e}", path.display()));
        // What the next record is written behind may be cut off, so it must be the file that has this name.
        let file = open_own(path, File::options().read(true).append(true).create(true)).map_err(failed)?;
        let locks = !matches!(file.try_lock_shared(), Err(TryLockError::Error(_)));
        let _ = file.unlock();
        let (states, history) = (HashMap::new(), HashMap::new());
        let mut manifest = Self { path: path.to_owned(), file, locks, stop, read: 0, states, history, unreadable: 0 };
        manifest.locked(|_| Ok(()))?;
        Ok(manifest)
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Whether the file system locks files: without, two processes must not write to one folder.
    pub(crate) fn has_locks(&self) -> bool {
        self.locks
    }

    /// Lines that are no records and were passed over.
    pub(crate) fn unreadable_lines(&self) -> usize {
        self.unreadable
    }

    /// What is known of an image.
    pub(crate) fn state(&self, key: Key) -> Option<&State> {
        self.states.get(&key)
    }

    /// What images of a model in a dtype took.
    pub(crate) fn history(&self, model: &str, dtype: &str) -> Option<History> {
        self.history.get(&(model.to_owned(), dtype.to_owned())).copied()
    }

    /// Forgets the failures that are known so far, so that they are tried again. They stay in the file.
    pub(crate) fn retry_failed(&mut self) {
        self.states.retain(|_, state| !matches!(state, State::Failed(_)));
    }

    /// Does something while no other process does, after reading what others have appended.
    ///
    /// # Errors
    /// The lock is refused or not to be had, or the file is not there any more, or is another one.
    pub(crate) fn locked<T>(&mut self, work: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        if self.locks {
            self.lock()?;
        }
        let done = self.check_place().and_then(|()| self.refresh()).and_then(|()| work(self));
        if self.locks {
            // Closing the file would unlock it too.
            let _ = self.file.unlock();
        }
        done
    }

    /// Waits for the lock. A process that was halted while it had it would keep it for ever.
    fn lock(&self) -> Result<()> {
        let began = Instant::now();
        loop {
            match self.file.try_lock() {
                Ok(()) => return Ok(()),
                Err(TryLockError::Error(e)) => return Err(self.error("cannot be locked", &e)),
                Err(TryLockError::WouldBlock) if (self.stop)() && began.elapsed() > LITTLE_PATIENCE => return Err(Error::Cancelled),
                Err(TryLockError::WouldBlock) if began.elapsed() > PATIENCE => {
                    let e = std::io::Error::new(ErrorKind::TimedOut, "another process has kept it for two minutes; end that one");
                    return Err(self.error("cannot be locked", &e));
                }
                Err(TryLockError::WouldBlock) => std::thread::sleep(Duration::from_millis(5)),
            }
        }
    }

    /// Appends records and waits until the disk has them. To be called inside of [`Manifest::locked`].
    ///
    /// # Errors
    /// The disk is full or gone; the file is then as it was.
    pub(crate) fn append(&mut self, records: &[Record]) -> Result<()> {
        let mut text = Vec::new();
        for record in records {
            serde_json::to_writer(&mut text, record).map_err(|e| Error::Image(format!("a record cannot be written as JSON: {e}")))?;
            text.push(b'\n');
        }
        if let Err(e) = self.file.write_all(&text).and_then(|()| self.file.sync_data()) {
            // Half a record must not stand before those of others.
            let _ = self.file.set_len(self.read);
            return Err(self.error("cannot be written", &e));
        }
        self.read += text.len() as u64;
        for record in records {
            self.note(record);
        }
        Ok(())
    }

    fn error(&self, what: &str, source: &std::io::Error) -> Error {
        Error::Io { path: self.path.clone(), source: std::io::Error::new(source.kind(), format!("the manifest {what}: {source}")) }
    }

    /// An open file goes on taking records when its folder is deleted, but nobody would find them.
    fn check_place(&self) -> Result<()> {
        let there = std::fs::symlink_metadata(&self.path).map_err(|e| self.error("is not there any more", &e))?;
        let ours = self.file.metadata().map_err(|e| self.error("cannot be read", &e))?;
        if is_same(&there, &ours) {
            return Ok(());
        }
        Err(self.error("was replaced by another file while images were generated", &std::io::Error::other("run the same command again")))
    }

    /// Reads what was appended since, and cuts off half a record at the end: under the lock, nobody is at work on it.
    fn refresh(&mut self) -> Result<()> {
        let failed = |this: &Self, e| this.error("cannot be read", &e);
        let end = self.file.metadata().map_err(|e| failed(self, e))?.len();
        if end == self.read {
            return Ok(());
        }
        if end < self.read {
            return Err(self.error("was cut", &std::io::Error::other("another program changed it; run the same command again")));
        }
        self.file.seek(SeekFrom::Start(self.read)).map_err(|e| failed(self, e))?;
        let mut reader = BufReader::new(self.file.try_clone().map_err(|e| failed(self, e))?.take(end - self.read));
        let mut line = Vec::new();
        let mut last_line_ends = true;
        loop {
            match read_line(&mut reader, &mut line) {
                Ok(0) => break,
                Ok(_) => {}
                Err(e) if self.read == 0 && e.kind() == ErrorKind::InvalidData => return Err(not_a_manifest(&self.path)),
                Err(e) => return Err(failed(self, e)),
            }
            let text = without_zeros(&line);
            let record = serde_json::from_slice::<Record>(text).ok();
            if self.read == 0 && record.is_none() && !text.starts_with(BEGIN.as_bytes()) && !BEGIN.as_bytes().starts_with(text) {
                return Err(not_a_manifest(&self.path));
            }
            if !line.ends_with(b"\n") {
                // A record that was cut may still read as JSON only when nothing but its line's end is missing.
                last_line_ends = false;
                break;
            }
            self.read += line.len() as u64;
            match record {
                Some(record) => self.note(&record),
                None if text.iter().all(u8::is_ascii_whitespace) => {}
                None => self.unreadable += 1,
            }
        }
        if !last_line_ends {
            self.file.set_len(self.read).map_err(|e| self.error("cannot be repaired", &e))?;
        }
        Ok(())
    }

    fn note(&mut self, record: &Record) {
        if let Some(state) = record.state() {
            if record.status == Status::Ok {
                let history = self.history.entry((record.model.clone(), record.dtype.clone())).or_default();
                history.images += 1;
                history.seconds += record.seconds;
                history.work += record.work();
            }
            self.states.insert(record.key, state);
        }
    }
}

impl Record {
    /// What it says of its image; `None` where it contradicts itself.
    pub(crate) fn state(&self) -> Option<State> {
        match self.status {
            Status::Failed => Some(State::Failed(self.reason.clone().unwrap_or_default())),
            Status::Ok => Some(State::GeneratedImage {
                // No other file is an image, whoever says so.
                path: self
                    .path
                    .as_ref()
                    .map(PathBuf::from)
                    .filter(|path| path.extension().is_some_and(|e| e.eq_ignore_ascii_case("png")))?,
                size: self.size?,
                sha256: self.sha256.as_deref().and_then(from_hex)?,
            }),
        }
    }

    /// Pixels times steps.
    fn work(&self) -> f64 {
        self.width as f64 * self.height as f64 * self.steps as f64
    }

    /// Says that the image is in a file.
    pub(crate) fn generated(&mut self, path: &Path, size: u64, sha256: &[u8; 32]) {
        self.status = Status::Ok;
        self.reason = None;
        self.path = Some(path.to_string_lossy().into_owned());
        self.size = Some(size);
        self.sha256 = Some(to_hex(sha256));
    }
}

/// Reads the next line, its end included; gives its length.
///
/// # Errors
/// The file cannot be read, or the line is longer than any record ([`ErrorKind::InvalidData`]).
pub(super) fn read_line(reader: &mut impl BufRead, line: &mut Vec<u8>) -> std::io::Result<usize> {
    line.clear();
    let read = reader.take(LONGEST_LINE).read_until(b'\n', line)?;
    if read as u64 == LONGEST_LINE && !line.ends_with(b"\n") {
        return Err(std::io::Error::new(ErrorKind::InvalidData, "a line is longer than 16 MiB, which no record is"));
    }
    Ok(read)
}

/// A line without what the disk had room for, and did not get before a power cut.
pub(super) fn without_zeros(line: &[u8]) -> &[u8] {
    &line[line.iter().take_while(|byte| **byte == 0).count()..]
}

fn not_a_manifest(path: &Path) -> Error {
    Error::Input(format!("{} is not a manifest of sd-gen, and is left as it is; give another name with `manifest`", path.display()))
}

#[cfg(unix)]
fn is_same(a: &std::fs::Metadata, b: &std::fs::Metadata) -> bool {
    use std::os::unix::fs::MetadataExt;
    (a.dev(), a.ino()) == (b.dev(), b.ino())
}

#[cfg(not(unix))]
fn is_same(_: &std::fs::Metadata, _: &std::fs::Metadata) -> bool {
    // An open file cannot be deleted or replaced.
    true
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in super::super) fn record(n: u8, status: Status) -> Record {
        let mut record = Record {
            key: Key::from_hex(&format!("{n:02x}").repeat(32)).unwrap(),
            status,
            reason: Some("why".into()),
            line: usize::from(n),
            path: None,
            size: None,
            sha256: None,
            seed: u64::MAX,
            prompt: "a \"cat\"\n東京".into(),
            model: "emoji".into(),
            dtype: "f32".into(),
            width: 128,
            height: 128,
            steps: 2,
            seconds: 0.25,
        };
        if status == Status::Ok {
            record.generated(Path::new("a.png"), 7, &[n; 32]);
        }
        record
    }

    fn append(manifest: &mut Manifest, record: &Record) {
        manifest.locked(|manifest| manifest.append(std::slice::from_ref(record))).unwrap();
    }

    #[test]
    fn what_was_appended_is_read_again_by_this_and_by_other_processes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("m.jsonl");
        let mut one = Manifest::open(&path).unwrap();
        let mut two = Manifest::open(&path).unwrap();
        let (a, b) = (record(1, Status::Ok), record(2, Status::Failed));
        append(&mut one, &a);
        append(&mut two, &b);
        one.locked(|_| Ok(())).unwrap();
        let mut three = Manifest::open(&path).unwrap();
        for manifest in [&one, &two, &three] {
            assert_eq!(manifest.state(a.key), a.state().as_ref());
            assert_eq!(manifest.state(b.key), Some(&State::Failed("why".into())));
            assert_eq!(manifest.history("emoji", "f32").unwrap().images, 1);
        }
        three.retry_failed();
        assert_eq!((three.state(b.key), three.state(a.key).is_some()), (None, true));
        append(&mut three, &record(2, Status::Ok));
        assert!(
            matches!(Manifest::open(&path).unwrap().state(b.key), Some(State::GeneratedImage { size: 7, .. })),
            "the last record counts"
        );
    }

    #[test]
    fn half_a_record_is_cut_off_wherever_it_ends() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("m.jsonl");
        append(&mut Manifest::open(&path).unwrap(), &record(1, Status::Ok));
        let whole = std::fs::read(&path).unwrap();
        for cut in 1..whole.len() {
            std::fs::write(&path, [&whole[..], &whole[..cut]].concat()).unwrap();
            let mut manifest = Manifest::open(&path).unwrap();
            append(&mut manifest, &record(2, Status::Ok));
            assert_eq!(std::fs::read_to_string(&path).unwrap().lines().count(), 2, "cut at {cut}");
            assert_eq!(Manifest::open(&path).unwrap().unreadable_lines(), 0);
            // The first record may be the torn one.
            std::fs::write(&path, &whole[..cut]).unwrap();
            assert!(Manifest::open(&path).is_ok(), "cut at {cut}");
            assert_eq!(std::fs::metadata(&path).unwrap().len(), 0);
        }
    }

    #[test]
    fn zeros_of_a_power_cut_are_passed_over() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("m.jsonl");
        let mut line = serde_json::to_vec(&record(1, Status::Ok)).unwrap();
        line.push(b'\n');
        for (before, after) in [(&[][..], 0), (&line[..], 1)] {
            std::fs::write(&path, [before, &[0; 5000]].concat()).unwrap();
            let mut manifest = Manifest::open(&path).unwrap();
            assert_eq!((manifest.states.len(), std::fs::metadata(&path).unwrap().len()), (after, before.len() as u64));
            // Another program may have written behind them.
            std::fs::write(&path, [before, &[0; 5000], &line, &line].concat()).unwrap();
            append(&mut manifest, &record(2, Status::Ok));
            assert_eq!((manifest.states.len(), manifest.unreadable_lines()), (2, 0));
        }
    }

    #[test]
    fn a_line_without_end_is_not_read_to_its_end() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("m.jsonl");
        let sparse = |bytes: &[u8]| {
            std::fs::write(&path, bytes).unwrap();
            File::options().write(true).open(&path).unwrap().set_len(1 << 40).unwrap();
        };
        sparse(b"");
        assert!(Manifest::open(&path).unwrap_err().to_string().contains("not a manifest"));
        let mut line = serde_json::to_vec(&record(1, Status::Ok)).unwrap();
        line.push(b'\n');
        sparse(&line);
        assert!(Manifest::open(&path).unwrap_err().to_string().contains("longer than 16 MiB"));
        assert_eq!(std::fs::metadata(&path).unwrap().len(), 1 << 40);
    }

    #[test]
    fn a_lock_that_is_never_given_back_is_not_waited_for_by_one_who_wants_to_stop() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("m.jsonl");
        let halted = Manifest::open(&path).unwrap();
        halted.file.lock().unwrap();
        assert!(matches!(Manifest::open_until(&path, || true), Err(Error::Cancelled)));
        drop(halted);
        assert!(Manifest::open(&path).is_ok());
    }

    #[test]
    fn no_other_file_passes_for_an_image() {
        let mut record = record(1, Status::Ok);
        for (path, is_image) in [("a.png", true), ("b/A.PNG", true), ("/etc/passwd", false), ("png", false), ("", false)] {
            record.path = Some(path.into());
            assert_eq!(record.state().is_some(), is_image, "{path}");
        }
    }

    #[test]
    fn another_file_is_not_touched() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("prompts.txt");
        for other in ["a cat\na dog\n", "a cat", "{\"prompt\":\"a cat\"}\n", "\u{feff}x"] {
            std::fs::write(&path, other).unwrap();
            assert!(Manifest::open(&path).unwrap_err().to_string().contains("not a manifest"), "{other}");
            assert_eq!(std::fs::read_to_string(&path).unwrap(), other);
        }
        assert_eq!(Manifest::open(folder.path()).unwrap_err().exit_code(), 2);
    }

    #[cfg(unix)]
    #[test]
    fn a_link_is_not_followed() {
        let folder = tempfile::tempdir().unwrap();
        let (path, victim) = (folder.path().join("m.jsonl"), folder.path().join("victim"));
        std::os::unix::fs::symlink(&victim, &path).unwrap();
        for made in [false, true] {
            let refused = Manifest::open(&path).unwrap_err();
            assert!(refused.exit_code() == 2 && refused.to_string().contains("is a link"), "{refused}");
            assert_eq!(victim.exists(), made);
            std::fs::write(&victim, "").unwrap();
        }
    }

    #[test]
    fn a_damaged_line_is_passed_over_and_a_vanished_file_is_noticed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("m.jsonl");
        let mut manifest = Manifest::open(&path).unwrap();
        append(&mut manifest, &record(1, Status::Ok));
        let mut text = std::fs::read(&path).unwrap();
        text.extend(b"{\"key\":\"no\"}\n\xff\xfe\n\n");
        std::fs::write(&path, &text).unwrap();
        append(&mut manifest, &record(2, Status::Ok));
        assert_eq!((manifest.unreadable_lines(), Manifest::open(&path).unwrap().states.len()), (2, 2));
        std::fs::remove_file(&path).unwrap();
        assert!(manifest.locked(|_| Ok(())).unwrap_err().to_string().contains("not there any more"));
        std::fs::write(&path, "").unwrap();
        assert!(manifest.locked(|_| Ok(())).is_err());
    }
}
