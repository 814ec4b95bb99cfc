//! One file from the hub to the disk: resumed where it broke off, and checked before it gets its name.

use super::client::{Client, Failure, Metadata};
use super::store::Store;
use super::{Event, HubId, Observer};
use crate::{Error, Result};
use sha2::{Digest, Sha256};
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use ureq::Body;
use ureq::http::{Response, StatusCode, header::CONTENT_RANGE};

/// Connections in a row that may bring nothing before a file is given up.
const FRUITLESS: u32 = 4;
/// More than a configuration or a vocabulary has, in bytes; a file whose length nobody says may not be longer either.
const LONGEST_TEXT: u64 = 64 << 20;
const CHUNK: usize = 1 << 18;

/// Fetches the content that `metadata` names, unless it is there.
pub(super) fn fetch(
    client: &Client<'_>,
    store: &Store,
    id: &HubId,
    (commit, path): (&str, &str),
    metadata: &Metadata,
    observer: Observer<'_>,
) -> Result<(), Failure> {
    if let Some(size) = metadata.size.filter(|size| *size > LONGEST_TEXT && !path.ends_with(".safetensors")) {
        return Err(Failure::Refused(Error::Model(format!("{id}: {path} has {size} bytes, too many for a configuration file"))));
    }
    let blob = store.blob(&metadata.etag);
    if store.has(metadata) {
        return Ok(());
    }
    store.make_room(&blob).map_err(Failure::Refused)?;
    let mut said = false;
    let lock = store.lock(&metadata.etag, &mut || {
        let note = if said { "" } else { "another process is fetching the same file; waiting for it" };
        said = true;
        observer(Event::Note(note))
    });
    let _lock = lock.map_err(Failure::Refused)?;
    if store.has(metadata) {
        return Ok(());
    }
    let mut partial = Partial::open(with_ending(&blob, ".incomplete"), metadata).map_err(|e| Failure::Refused(store.unwritable(&e)))?;
    let resumed = partial.length > 0;
    receive_all(client, store, id, (commit, path), metadata, &mut partial, observer)?;
    if !partial.is_right(metadata) && resumed {
        // What was left by an earlier run may be to blame.
        partial.restart().map_err(|e| Failure::Refused(store.unwritable(&e)))?;
        receive_all(client, store, id, (commit, path), metadata, &mut partial, observer)?;
    }
    if !partial.is_right(metadata) {
        let _ = std::fs::remove_file(&partial.path);
        let what = format!("{id}: {path} arrived, but it is not what the hub says it is (SHA-256); it was thrown away, so try again");
        return Err(Failure::Refused(Error::Model(what)));
    }
    let finished = partial.file.sync_all().and_then(|()| std::fs::rename(&partial.path, &blob));
    finished.map_err(|e| Failure::Refused(store.unwritable(&e)))
}

/// Receives until the file has its length, over as many connections as it takes.
fn receive_all(
    client: &Client<'_>,
    store: &Store,
    id: &HubId,
    (commit, path): (&str, &str),
    metadata: &Metadata,
    partial: &mut Partial,
    observer: Observer<'_>,
) -> Result<(), Failure> {
    let mut fruitless = 0;
    while metadata.size.is_none_or(|size| partial.length < size) {
        let before = partial.length;
        let answer = client.patiently(&mut |note| observer(Event::Note(note)), || client.content(commit, path, before))?;
        match receive(answer, path, metadata, partial, observer) {
            Ok(()) if metadata.size.is_none() => return Ok(()),
            Ok(()) | Err(Broken::Connection) => {}
            Err(Broken::Disk(error)) => return Err(Failure::Refused(store.unwritable(&error))),
            Err(Broken::Stopped(error)) => return Err(Failure::Refused(error)),
            Err(Broken::TooLong) => {
                let _ = std::fs::remove_file(&partial.path);
                let what = format!("{id}: {path} is longer than the hub says; it was thrown away, so try again, or another HF_ENDPOINT");
                return Err(Failure::Refused(Error::Model(what)));
            }
        }
        fruitless = if partial.length > before { 0 } else { fruitless + 1 };
        if fruitless >= FRUITLESS {
            let what =
                format!("the connection breaks again and again while {path} is fetched; run again to go on at {} bytes", partial.length);
            return Err(Failure::Unreachable(what));
        }
    }
    Ok(())
}

enum Broken {
    Connection,
    TooLong,
    Disk(std::io::Error),
    Stopped(Error),
}

/// Appends what one answer brings.
fn receive(answer: Response<Body>, path: &str, metadata: &Metadata, partial: &mut Partial, observer: Observer<'_>) -> Result<(), Broken> {
    let from = match answer.status() {
        StatusCode::PARTIAL_CONTENT => {
            let range = answer.headers().get(CONTENT_RANGE).and_then(|range| range.to_str().ok());
            range.and_then(|range| range.strip_prefix("bytes ")?.split_once('-')?.0.trim().parse::<u64>().ok())
        }
        // The whole file, whatever was asked for.
        StatusCode::OK => Some(0),
        _ => None,
    };
    if from != Some(partial.length) {
        partial.restart().map_err(Broken::Disk)?;
    }
    match from {
        Some(0) => {}
        Some(from) if from == partial.length => {}
        // Not what was asked for: the next connection begins at the beginning.
        _ => return Err(Broken::Connection),
    }
    let longest = metadata.size.unwrap_or(LONGEST_TEXT);
    let mut reader = answer.into_body().into_reader();
    let mut chunk = vec![0; CHUNK];
    loop {
        let event = Event::Received { path, done: partial.length, size: metadata.size };
        observer(event).map_err(Broken::Stopped)?;
        let read = match reader.read(&mut chunk) {
            Ok(0) => return Ok(()),
            Ok(read) => read,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(_) => return Err(Broken::Connection),
        };
        let bytes = chunk.get(..read).unwrap_or_default();
        if partial.length + bytes.len() as u64 > longest {
            return Err(Broken::TooLong);
        }
        partial.append(bytes).map_err(Broken::Disk)?;
    }
}

/// The beginning of a file, and its hash so far.
struct Partial {
    path: PathBuf,
    file: File,
    length: u64,
    hash: Option<Sha256>,
}

impl Partial {
    /// Takes up what an earlier run left.
    fn open(path: PathBuf, metadata: &Metadata) -> std::io::Result<Partial> {
        let mut file = OpenOptions::new().read(true).append(true).create(true).open(&path)?;
        let mut hash = metadata.sha256().map(|_| Sha256::new());
        let mut length = 0;
        let mut chunk = vec![0; CHUNK];
        // More than the whole file is not its beginning.
        let left = file.metadata().map(|there| if metadata.size.is_none_or(|size| there.len() > size) { 0 } else { there.len() })?;
        while length < left {
            let read = file.read(&mut chunk)?;
            if read == 0 {
                break;
            }
            let bytes = chunk.get(..read).unwrap_or_default();
            length += bytes.len() as u64;
            hash.as_mut().map(|hash| hash.update(bytes)).unwrap_or_default();
        }
        let mut partial = Partial { path, file, length, hash };
        if length == 0 {
            partial.restart()?;
        }
        Ok(partial)
    }

    fn append(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.file.write_all(bytes)?;
        self.length += bytes.len() as u64;
        if let Some(hash) = &mut self.hash {
            hash.update(bytes);
        }
        Ok(())
    }

    fn restart(&mut self) -> std::io::Result<()> {
        if self.file.metadata()?.len() > 0 {
            self.file.set_len(0)?;
        }
        self.length = 0;
        self.hash = self.hash.take().map(|_| Sha256::new());
        Ok(())
    }

    fn is_right(&self, metadata: &Metadata) -> bool {
        let length = metadata.size.is_none_or(|size| size == self.length);
        let hex = self.hash.as_ref().map(|hash| format!("{:x}", hash.clone().finalize()));
        length && hex.as_deref().zip(metadata.sha256()).is_none_or(|(is, wanted)| is.eq_ignore_ascii_case(wanted))
    }
}

fn with_ending(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(ending);
    PathBuf::from(name)
}
