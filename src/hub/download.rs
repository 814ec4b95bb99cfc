//! One file from the hub to the disk: resumed where it broke off, and checked before it gets its name.

use super::client::{Client, ContentHash, Failure, Metadata, whole_length};
use super::partial::Partial;
use super::store::Store;
use super::{FetchEvent, FetchObserver, HubId};
use crate::{Error, Result};
use std::io::Read;
use std::time::{Duration, Instant};
use ureq::Body;
use ureq::http::{Response, StatusCode, header::CONTENT_RANGE};

/// Connections in a row that may bring next to nothing before a file is given up.
const FRUITLESS: u32 = 4;
/// What a connection must bring to count, where the file does not end before.
const LEAST_OF_CONNECTION: u64 = 64 << 10;
/// Bytes a second below which an answer counts as none.
const LEAST_SPEED: f64 = 1000.0;
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
    observer: FetchObserver<'_>,
) -> Result<(), Failure> {
    if let Some(size) = metadata.size.filter(|size| *size > LONGEST_TEXT && !path.ends_with(".safetensors")) {
        return Err(Failure::Refused(Error::Model(format!("{id}: {path} has {size} bytes, too many for a configuration file"))));
    }
    let blob = store.blob(&metadata.etag);
    if store.has(metadata) {
        return Ok(());
    }
    store.make_room_for_blob(&blob).map_err(Failure::Refused)?;
    let mut said = false;
    let lock = store.lock(&metadata.etag, &mut || {
        let note = if said { "" } else { "another process is fetching the same file; waiting for it" };
        said = true;
        observer(FetchEvent::Note(note))
    });
    let _lock = lock.map_err(Failure::Refused)?;
    if store.has(metadata) {
        return Ok(());
    }
    let disk = |e: std::io::Error| Failure::Refused(store.unwritable(&e));
    let mut partial = Partial::take(&blob, metadata.size).map_err(disk)?;
    if metadata.hash().is_none() {
        // Nobody could say whether what was left is the beginning.
        partial.restart().map_err(disk)?;
    }
    let resumed = partial.length > 0;
    receive_all(client, store, id, (commit, path), metadata, &mut partial, observer)?;
    let mut right = partial.is_right(metadata, &mut || observer(FetchEvent::Note(""))).map_err(Failure::Refused)?;
    if !right && resumed {
        // What was left by an earlier run may be to blame.
        partial.restart().map_err(disk)?;
        receive_all(client, store, id, (commit, path), metadata, &mut partial, observer)?;
        right = partial.is_right(metadata, &mut || observer(FetchEvent::Note(""))).map_err(Failure::Refused)?;
    }
    if !right {
        partial.discard();
        let hash = if metadata.hash() == Some(ContentHash::Git) { "git's hash" } else { "SHA-256" };
        let what = format!("{id}: {path} arrived, but it is not what the hub says it is ({hash}); it was thrown away, so try again");
        return Err(Failure::Refused(Error::Model(what)));
    }
    partial.publish().map_err(disk)
}

/// Receives until the file has its length, over as many connections as it takes.
fn receive_all(
    client: &Client<'_>,
    store: &Store,
    id: &HubId,
    (commit, path): (&str, &str),
    metadata: &Metadata,
    partial: &mut Partial,
    observer: FetchObserver<'_>,
) -> Result<(), Failure> {
    let mut fruitless = 0;
    let mut farthest = partial.length;
    while metadata.size.is_none_or(|size| partial.length < size) {
        let before = partial.length;
        let mut note = |note: &str| observer(FetchEvent::Note(note));
        let answer = client.patiently(&mut note, || client.content(commit, path, before))?;
        let whole = whole_length(&answer);
        if let (Some(size), Some(whole)) = (metadata.size, whole)
            && size != whole
        {
            let what = format!("has {size} bytes by the hub's word, and {whole} where it is kept; try again later, or another HF_ENDPOINT");
            return Err(Failure::Refused(Error::Model(format!("{id}: {path} {what}"))));
        }
        match receive(answer, client.patience(), path, metadata, partial, observer) {
            Ok(()) if metadata.size.is_none() && whole.is_none_or(|whole| whole == partial.length) => return Ok(()),
            Ok(()) | Err(Broken::Connection) => {}
            Err(Broken::Slow) => {
                let what =
                    format!("{path} comes at less than {LEAST_SPEED} bytes a second; run again to go on at {} bytes", partial.length);
                return Err(Failure::Unreachable(what));
            }
            Err(Broken::Disk(error)) => return Err(Failure::Refused(store.unwritable(&error))),
            Err(Broken::Stopped(error)) => return Err(Failure::Refused(error)),
            Err(Broken::TooLong) => {
                partial.discard();
                let what = format!("{id}: {path} is longer than the hub says; it was thrown away, so try again, or another HF_ENDPOINT");
                return Err(Failure::Refused(Error::Model(what)));
            }
        }
        if metadata.size.is_some_and(|size| partial.length >= size) {
            break;
        }
        // What was received before, and is received again, is nothing new.
        fruitless = if partial.length >= farthest + LEAST_OF_CONNECTION { 0 } else { fruitless + 1 };
        farthest = farthest.max(partial.length);
        if fruitless >= FRUITLESS {
            let what =
                format!("the connection breaks again and again while {path} is fetched; run again to go on at {} bytes", partial.length);
            return Err(Failure::Unreachable(what));
        }
        client.pause(fruitless.max(1), &mut |note| observer(FetchEvent::Note(note)))?;
    }
    Ok(())
}

enum Broken {
    Connection,
    Slow,
    TooLong,
    Disk(std::io::Error),
    Stopped(Error),
}

/// Appends what one answer brings.
fn receive(
    answer: Response<Body>,
    patience: Duration,
    path: &str,
    metadata: &Metadata,
    partial: &mut Partial,
    observer: FetchObserver<'_>,
) -> Result<(), Broken> {
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
    // A byte now and then keeps every single read within its time.
    let (mut since, mut brought) = (Instant::now(), partial.length);
    loop {
        let (elapsed, length) = (since.elapsed(), partial.length);
        if elapsed > patience * 3 {
            if (length.saturating_sub(brought) as f64) < LEAST_SPEED * elapsed.as_secs_f64() {
                return Err(Broken::Slow);
            }
            (since, brought) = (Instant::now(), length);
        }
        let event = FetchEvent::Received { path, done: partial.length, size: metadata.size };
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
