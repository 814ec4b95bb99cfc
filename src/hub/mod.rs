//! Models by their name on the hub: what `org/name[@revision][:file]` means, and the few files that it takes.
//!
//! [`fetch`] downloads the files of a model into the cache and gives the path to open. Only safetensors and texts are fetched; of a
//! diffusers folder only what is read, its texts first, so that a model that cannot be generated with costs kilobytes and
//! not gigabytes.
//!
//! # The cache
//! It is that of Python's `huggingface_hub`, folder for folder: content under its hash in `blobs`, links to it in
//! `snapshots/<commit>`, the commit of a branch in `refs`, what is left of a download in `blobs/<hash>.incomplete`, and the same locks. What
//! one of the two programs has fetched the other takes up, and this one also what Python has begun to fetch.
//!
//! # What is trusted
//! Nothing that an answer says becomes a path, unless it is a plain one. A list is read to a bound. A large file must have the SHA-256 and
//! the length that the hub says before it gets its name, a small one git's hash. What is received is written to a file of this process
//! alone, never through a link, and the hash is that of the file that gets the name. An answer that is too slow ends. The token is sent to the endpoint and to no host that an answer points
//! to. Nothing is asked of the network but what a hub id needs.
//!
//! # Why not all of it is the crate `hf-hub`
//! Its names, addresses and the layout of its cache are used ([`Repo`](https://docs.rs/hf-hub)), and its HTTP client, ureq, with rustls and
//! ring. Its own download (0.5) sends the token to the host that a redirect names, appends a whole file to a half one where the
//! server ignores the range, knows no time limit and no hash, and panics on some answers. Version 1.0 does not resume, and needs 225
//! crates where 0.5 needs 22.
//!
//! Without the feature `hub` there is no network code at all: [`fetch`] says so.

#[cfg(feature = "hub")]
mod client;
#[cfg(feature = "hub")]
mod download;
mod id;
#[cfg(feature = "hub")]
mod partial;
#[cfg(feature = "hub")]
mod selection;
mod settings;
#[cfg(feature = "hub")]
mod store;

pub use id::HubId;
pub use settings::{HubSettings, Token};

#[cfg(feature = "hub")]
use crate::family::{Beside, describe, texts};
#[cfg(feature = "hub")]
use crate::weights::Folder;
use crate::{Error, Result};
#[cfg(feature = "hub")]
use client::{Client, Failure, Listed};
use std::path::{Path, PathBuf};
#[cfg(feature = "hub")]
use store::Store;

/// What happens while a model is fetched.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub enum FetchEvent<'a> {
    /// Something to tell the user; empty while only time passes.
    Note(&'a str),
    /// So much of a file is on the disk.
    Received {
        /// The file's path in its repository.
        path: &'a str,
        /// Bytes on the disk.
        done: u64,
        /// Bytes in all, where the hub says so.
        size: Option<u64>,
    },
}

/// A file that is not here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Missing {
    /// Its path in its repository.
    pub path: String,
    /// Bytes, where the hub says so.
    pub size: Option<u64>,
}

/// Hears what happens; its error ends the work, and what was received is kept.
pub type FetchObserver<'a> = &'a mut dyn FnMut(FetchEvent<'_>) -> Result<()>;

/// Brings the model `id` into the cache, where it is not there yet, and gives the path to open: a folder or a file.
///
/// Of several variants of a diffusers folder's weights, `prefer` (such as `fp16`) is taken where there is one. Where the hub cannot
/// be reached, what the cache has of the revision is taken, if it is whole.
///
/// # Errors
/// [`Error::Model`] that says what to try; [`Error::Input`] for settings that cannot be meant.
#[cfg(feature = "hub")]
pub fn fetch(settings: &HubSettings, id: &HubId, prefer: Option<&str>, observer: FetchObserver<'_>) -> Result<PathBuf> {
    fetch_files(settings, id, prefer, observer, None)
}

/// The weights that [`fetch`] would download. Of the rest it downloads what is not cached, a few megabytes: that says which weights are read.
///
/// # Errors
/// As [`fetch`].
#[cfg(feature = "hub")]
pub fn missing(settings: &HubSettings, id: &HubId, prefer: Option<&str>, observer: FetchObserver<'_>) -> Result<Vec<Missing>> {
    let mut missing = Vec::new();
    fetch_files(settings, id, prefer, observer, Some(&mut missing))?;
    Ok(missing)
}

/// Brings what is not here; weights are only noted where there is a list for them.
#[cfg(feature = "hub")]
fn fetch_files(
    settings: &HubSettings,
    id: &HubId,
    prefer: Option<&str>,
    observer: FetchObserver<'_>,
    mut missing: Option<&mut Vec<Missing>>,
) -> Result<PathBuf> {
    let store = Store::new(&settings.cache, id);
    if let Some(forbids) = settings.offline {
        let cache = settings.cache.display();
        return match cached(&store, id, prefer) {
            Some(Ok(path)) => Ok(path),
            Some(Err(e)) => Err(Error::Model(format!("{e} (that is what {cache} has of it, and {forbids} forbids fetching more)"))),
            None => Err(Error::Model(format!("{id} is not in {cache}, and {forbids} forbids fetching it; run once without {forbids}"))),
        };
    }
    let client = Client::new(settings, id)?;
    let listing = match client.patiently(&mut |note| observer(FetchEvent::Note(note)), || client.listing()) {
        Ok(listing) => listing,
        Err(Failure::Unreachable(why)) => {
            return match cached(&store, id, prefer) {
                Some(Ok(path)) => {
                    observer(FetchEvent::Note(&format!("{why}: {id} is taken as it was fetched before")))?;
                    Ok(path)
                }
                _ => Err(stopped(id, Failure::Unreachable(why))),
            };
        }
        Err(failure) => return Err(stopped(id, failure)),
    };
    let commit = &listing.commit;
    let path = gather(&store, id, commit, &listing.files, prefer, &mut |path| {
        let said = listing.files.iter().find(|file| file.path == path);
        let Some(said) = said else { return Ok(false) };
        let here = store.snapshot(commit).join(path).metadata();
        if here.is_ok_and(|here| here.is_file() && said.size.is_none_or(|size| size == here.len())) {
            return Ok(true);
        }
        let mut fetch_file = || {
            let metadata = client.patiently(&mut |note| observer(FetchEvent::Note(note)), || client.metadata(commit, path));
            let mut metadata = metadata?;
            let refused = |what: String| Err(Failure::Refused(Error::Model(format!("{id}: {path} {what}"))));
            metadata.size = match (metadata.size, said.size) {
                (Some(size), Some(listed)) if size != listed => {
                    return refused(format!(
                        "has {listed} bytes in the hub's list and {size} where it is asked for; try again later, or another HF_ENDPOINT"
                    ));
                }
                (size, listed) => size.or(listed),
            };
            if metadata.size == Some(0) && path.ends_with(".safetensors") {
                return refused("is empty on the hub; look for another copy of the model".into());
            }
            // Another commit may have brought the same content.
            if let Some(missing) = missing.as_deref_mut().filter(|_| path.ends_with(".safetensors") && !store.has(&metadata)) {
                missing.push(Missing { path: path.to_owned(), size: metadata.size });
                return Ok(());
            }
            download::fetch(&client, &store, id, (commit, path), &metadata, observer)?;
            store.link(&metadata.etag, commit, path).map_err(Failure::Refused)
        };
        fetch_file().map_err(|failure| stopped(id, failure))?;
        Ok(true)
    })?;
    // Offline, the commit that is remembered is the one that is opened.
    if missing.is_none_or(|missing| missing.is_empty()) {
        store.remember(commit)?;
    }
    Ok(path)
}

/// Without the feature `hub` nothing is fetched.
///
/// # Errors
/// Always: [`Error::Input`].
#[cfg(not(feature = "hub"))]
pub fn fetch(_: &HubSettings, id: &HubId, _: Option<&str>, _: FetchObserver<'_>) -> Result<PathBuf> {
    let what = "this program was built without downloads; download the model and give its path, or build with --features hub";
    Err(Error::Input(format!("`model` {id}: there is no such file or folder, and {what}")))
}

/// Without the feature `hub` nothing is known of what is not here.
///
/// # Errors
/// Always: [`Error::Input`].
#[cfg(not(feature = "hub"))]
pub fn missing(settings: &HubSettings, id: &HubId, prefer: Option<&str>, observer: FetchObserver<'_>) -> Result<Vec<Missing>> {
    fetch(settings, id, prefer, observer).map(|_| Vec::new())
}

/// What people call the model in the snapshot `path` of a cache: its repository's name, and not the commit.
pub fn name_in_cache(path: &Path) -> Option<&str> {
    let snapshots = path.parent()?;
    let folder = snapshots.parent()?.file_name()?.to_str()?;
    let is_snapshot = snapshots.file_name()? == "snapshots";
    folder.strip_prefix("models--").filter(|_| is_snapshot)?.split_once("--").map(|(_, name)| name)
}

/// Has `ensure` fetch each file of the model that `files` has, in the order in which they are understood. `ensure` says whether there is
/// such a file.
#[cfg(feature = "hub")]
fn gather(
    store: &Store,
    id: &HubId,
    commit: &str,
    files: &[Listed],
    prefer: Option<&str>,
    ensure: &mut dyn FnMut(&str) -> Result<bool>,
) -> Result<PathBuf> {
    let snapshot = store.snapshot(commit);
    let mut need = |path: &str| match ensure(path)? {
        true => Ok(()),
        false => Err(Error::Model(format!("{id}: the repository lacks {path}; look for another copy of the model"))),
    };
    if let selection::SelectionForm::File(file) = selection::form(id, files)? {
        need(&file)?;
        return Ok(snapshot.join(file));
    }
    for text in texts().iter().filter(|text| files.iter().any(|file| file.path == **text)) {
        need(text)?;
    }
    let folder = Folder::Disk(snapshot.clone());
    let networks = describe(&folder, &Beside::default())?.networks;
    // All are chosen before one is fetched: it would be for nothing where another has only a pickle.
    let chosen = networks
        .iter()
        .map(|network| Ok((network.folder, selection::weights(id, files, network.folder, prefer)?)))
        .collect::<Result<Vec<_>>>()?;
    for (dir, path) in chosen {
        need(&path)?;
        if path.ends_with(".json") {
            for shard in folder.shards(&path)? {
                need(&format!("{dir}/{shard}"))?;
            }
        }
    }
    Ok(snapshot)
}

/// The model as the cache has it; `None` where it has nothing of it.
#[cfg(feature = "hub")]
fn cached(store: &Store, id: &HubId, prefer: Option<&str>) -> Option<Result<PathBuf>> {
    let commit = store.commit()?;
    let files = store.listed(&commit);
    if files.is_empty() {
        return None;
    }
    Some(gather(store, id, &commit, &files, prefer, &mut |path| Ok(files.iter().any(|file| file.path == path))))
}

/// The sentence for a failure that ends the work.
#[cfg(feature = "hub")]
fn stopped(id: &HubId, failure: Failure) -> Error {
    match failure {
        Failure::Refused(error) => error,
        Failure::Unreachable(why) | Failure::Unlucky(why) => {
            Error::Model(format!("{id}: {why}; check the network, the proxy and HF_ENDPOINT, or give the path of a model that is here"))
        }
        Failure::Later(_) => Error::Model(format!("{id}: the hub limits how often it may be asked; try again later")),
    }
}
