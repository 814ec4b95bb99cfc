//! Files of requests: in the JSON, uploaded beside it, or inside a folder that the server was told to allow. No other file is opened.

use crate::disk::{stays_inside, write_whole};
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE};
use serde_json::Value as Json;
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::path::{Component, Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};

/// Bytes of one file of a request.
const LARGEST: usize = 256 << 20;

/// A file that was sent; it goes when no job needs it any more.
#[derive(Debug)]
pub(super) struct StoredUpload {
    path: PathBuf,
}

impl Drop for StoredUpload {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

/// The folder of files that were sent, each under its content's hash.
#[derive(Debug)]
pub(super) struct UploadFolder {
    folder: PathBuf,
    /// Folders from which requests may name files.
    allowed: Vec<PathBuf>,
    known: Mutex<HashMap<PathBuf, Weak<StoredUpload>>>,
}

impl UploadFolder {
    /// # Errors
    /// The folder cannot be made.
    pub(super) fn new(folder: PathBuf, allowed: Vec<PathBuf>) -> std::io::Result<Self> {
        std::fs::create_dir_all(&folder)?;
        Ok(Self { folder, allowed, known: Mutex::default() })
    }

    /// Keeps bytes for as long as the result lives.
    fn store(&self, bytes: &[u8]) -> Result<Arc<StoredUpload>, String> {
        let name: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
        let ending = match ::image::guess_format(bytes) {
            Ok(format) => format.extensions_str().first().copied().unwrap_or("bin"),
            Err(_) => "bin",
        };
        let path = self.folder.join(format!("{name}.{ending}"));
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|_, upload| upload.strong_count() > 0);
        if let Some(upload) = known.get(&path).and_then(Weak::upgrade) {
            return Ok(upload);
        }
        write_whole(&path, true, |to| to.write_all(bytes)).map_err(|error| format!("cannot be kept: {error}"))?;
        let upload = Arc::new(StoredUpload { path: path.clone() });
        known.insert(path, Arc::downgrade(&upload));
        Ok(upload)
    }

    /// The uploads that a job of an earlier run names.
    pub(super) fn again(&self, text: &str) -> Vec<Arc<StoredUpload>> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let entries = std::fs::read_dir(&self.folder).into_iter().flatten().flatten();
        let named = entries.filter(|entry| entry.file_name().to_str().is_some_and(|name| text.contains(name))).map(|entry| entry.path());
        named
            .map(|path| match known.get(&path).and_then(Weak::upgrade) {
                Some(upload) => upload,
                None => {
                    let upload = Arc::new(StoredUpload { path: path.clone() });
                    known.insert(path, Arc::downgrade(&upload));
                    upload
                }
            })
            .collect()
    }

    /// Removes what no job of an earlier run needs.
    pub(super) fn tidy(&self) {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        for entry in std::fs::read_dir(&self.folder).into_iter().flatten().flatten() {
            let is_ours = entry.file_name().to_str().is_some_and(|name| name.split('.').next().is_some_and(|stem| stem.len() == 64));
            if is_ours && known.get(&entry.path()).is_none_or(|upload| upload.strong_count() == 0) {
                let _ = std::fs::remove_file(entry.path());
            }
        }
    }

    /// Whether a file may be read for a request: it was sent, or lies inside an allowed folder, links included.
    pub(super) fn is_permitted(&self, path: &Path) -> bool {
        std::iter::once(&self.folder).chain(&self.allowed).any(|folder| stays_inside(folder, path))
    }
}

/// The files of one request.
pub(super) struct FileDesk<'a> {
    folder: &'a UploadFolder,
    /// Files of a multipart request by their fields.
    parts: HashMap<String, Vec<u8>>,
    /// What was kept for it.
    pub(super) uploads: Vec<Arc<StoredUpload>>,
}

impl<'a> FileDesk<'a> {
    pub(super) fn new(folder: &'a UploadFolder, parts: HashMap<String, Vec<u8>>) -> Self {
        Self { folder, parts, uploads: Vec::new() }
    }

    /// See [`UploadFolder::is_permitted`].
    pub(super) fn is_permitted(&self, path: &Path) -> bool {
        self.folder.is_permitted(path)
    }

    /// Keeps bytes; gives their path.
    pub(super) fn keep(&mut self, bytes: &[u8]) -> Result<String, String> {
        if bytes.is_empty() {
            return Err("is empty; give an image".into());
        }
        if bytes.len() > LARGEST {
            return Err(format!("is larger than {} MiB", LARGEST >> 20));
        }
        let upload = self.folder.store(bytes)?;
        let path = upload.path.to_str().map(str::to_owned).ok_or("the server's folder has a name that is not text")?;
        self.uploads.push(upload);
        Ok(path)
    }

    /// The path of a file that a value stands for.
    ///
    /// # Errors
    /// A sentence's end: it is none of the ways to give a file.
    pub(super) fn file(&mut self, value: &Json) -> Result<String, String> {
        const HOW: &str =
            "give a data URL, {\"data\": BASE64}, {\"part\": NAME} of a multipart request, or a path inside a folder of --allow-dir";
        match value {
            Json::String(text) if text.starts_with("data:") => {
                let bytes = from_base64(text)?;
                self.keep(&bytes)
            }
            Json::String(path) => self.allowed(path).map_err(|what| format!("{what}; else {HOW}")),
            Json::Object(object) => match (object.get("data"), object.get("part"), object.get("path"), object.len()) {
                (Some(Json::String(data)), None, None, 1) => {
                    let bytes = from_base64(data)?;
                    self.keep(&bytes)
                }
                (None, Some(Json::String(part)), None, 1) => {
                    let bytes = self.parts.get(part).cloned().ok_or_else(|| format!("there is no part {part:?} in the request"))?;
                    self.keep(&bytes)
                }
                (None, None, Some(Json::String(path)), 1) => self.allowed(path),
                _ => Err(HOW.into()),
            },
            _ => Err(HOW.into()),
        }
    }

    /// A path inside an allowed folder: absolute, or seen from the first allowed folder that has it.
    pub(super) fn allowed(&self, path: &str) -> Result<String, String> {
        let refused = || "is not a file inside a folder that the server allows".to_owned();
        let named = Path::new(path);
        if path.is_empty() || path.contains('\0') {
            return Err(refused());
        }
        let candidates = self.folder.allowed.iter().map(|folder| folder.join(named));
        let found =
            candidates.into_iter().find(|file| self.folder.allowed.iter().any(|folder| stays_inside(folder, file)) && file.exists());
        found.and_then(|file| file.to_str().map(str::to_owned)).ok_or_else(refused)
    }

    /// That a name of a network leads to no other folder than those of networks.
    pub(super) fn name(&self, name: &str) -> Result<(), String> {
        let path = Path::new(name);
        let is_plain = path.components().all(|part| matches!(part, Component::Normal(_)));
        if is_plain && !name.contains('\\') && !name.starts_with('~') || self.is_permitted(path) {
            Ok(())
        } else {
            Err("give the name of a file in the server's folders, not a path".into())
        }
    }
}

/// The bytes of base64, with or without `data:…;base64,` before it.
///
/// # Errors
/// A sentence's end.
pub(super) fn from_base64(text: &str) -> Result<Vec<u8>, String> {
    let data = match text.strip_prefix("data:") {
        Some(rest) => rest.split_once(";base64,").ok_or("is a data URL without ;base64,")?.1,
        None => text,
    };
    let compact: String = data.chars().filter(|c| !c.is_ascii_whitespace()).collect();
    let engines = [&STANDARD, &STANDARD_NO_PAD, &URL_SAFE];
    engines.iter().find_map(|engine| engine.decode(&compact).ok()).ok_or_else(|| "is not base64".into())
}

/// Base64 of bytes.
pub(super) fn to_base64(bytes: &[u8]) -> String {
    STANDARD.encode(bytes)
}
