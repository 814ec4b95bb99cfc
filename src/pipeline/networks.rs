//! Networks in files of their own, beside the model's or in the place of one: each is opened once.

use crate::Result;
use crate::spec::ModelSpec;
use crate::weights::VaeFile;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

/// Files that stay open.
const KEPT: usize = 64;

/// The files that were opened for one model.
#[derive(Debug, Default)]
pub struct NetworkCache {
    vaes: Opened<VaeFile>,
}

/// Files of one kind.
#[derive(Debug)]
struct Opened<T>(Mutex<HashMap<PathBuf, Arc<T>>>);

impl<T> Default for Opened<T> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<T> Opened<T> {
    fn get(&self, path: &Path, open: impl FnOnce() -> Result<T>) -> Result<Arc<T>> {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(file) = known.get(path) {
            return Ok(file.clone());
        }
        let file = Arc::new(open()?);
        if known.len() >= KEPT {
            known.clear();
        }
        known.insert(path.to_owned(), file.clone());
        Ok(file)
    }
}

impl NetworkCache {
    /// The autoencoder in a file or folder, for `model`.
    ///
    /// # Errors
    /// It cannot be read, or is none for this model's latents.
    pub fn vae(&self, path: &Path, model: &ModelSpec) -> Result<Arc<VaeFile>> {
        self.vaes.get(path, || VaeFile::open(path, &model.vae))
    }
}
