//! Networks in files of their own, beside the model's or in the place of one: each is opened once.

use super::PassNetworks;
use crate::image::Preprocessor;
use crate::inputs::InputFile;
use crate::settings::{ControlChoice, ControlKind, ImagePrompt, Request};
use crate::spec::ModelSpec;
use crate::weights::{ControlNetFile, DepthFile, ImageEncoderFile, IpAdapterFile, VaeFile, find_image_encoder};
use crate::{Error, Result};
use candle_core::DType;
use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

/// Files that stay open.
const KEPT: usize = 64;

/// The files that were opened for one model.
#[derive(Debug, Default)]
pub struct NetworkCache {
    /// Refiners and upscalers.
    pub passes: PassNetworks,
    vaes: OpenedFiles<VaeFile>,
    control_nets: OpenedFiles<ControlNetFile>,
    ip_adapters: OpenedFiles<IpAdapterFile>,
    image_encoders: OpenedFiles<ImageEncoderFile>,
    depths: OpenedFiles<DepthFile>,
}

/// Files of one kind.
#[derive(Debug)]
struct OpenedFiles<T>(Mutex<HashMap<PathBuf, Arc<T>>>);

impl<T> Default for OpenedFiles<T> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<T> OpenedFiles<T> {
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

    /// The ControlNet in a file or folder, for `model`.
    ///
    /// # Errors
    /// It cannot be read, or is none for this model.
    pub fn control_net(&self, path: &Path, model: &ModelSpec) -> Result<Arc<ControlNetFile>> {
        self.control_nets.get(path, || ControlNetFile::open(path, model))
    }

    /// The IP-Adapter in a file, for `model`.
    ///
    /// # Errors
    /// It cannot be read, or is none for this model.
    pub fn ip_adapter(&self, path: &Path, model: &ModelSpec) -> Result<Arc<IpAdapterFile>> {
        self.ip_adapters.get(path, || IpAdapterFile::open(path, model))
    }

    /// The image encoder of an IP-Adapter: the one that was named, or the one beside it.
    ///
    /// # Errors
    /// There is none, or it cannot be read.
    pub fn image_encoder(&self, prompt: &ImagePrompt) -> Result<Arc<ImageEncoderFile>> {
        let path = find_image_encoder(prompt.model.path(), prompt.encoder.as_ref().map(InputFile::path))?;
        self.image_encoders.get(&path, || ImageEncoderFile::open(&path))
    }

    /// The depth network that a control names.
    ///
    /// # Errors
    /// It names none, or it cannot be read.
    pub fn depth(&self, control: &ControlChoice) -> Result<Arc<DepthFile>> {
        let none = || Error::setting("control", format!(": {}", DepthFile::missing()));
        let path = control.depth_model.as_ref().ok_or_else(none)?.path();
        self.depths.get(path, || DepthFile::open(path))
    }

    /// Bytes of the networks that steer a request's images in `dtype`, without those that `is_there` says are on the device by their
    /// files' names. ControlNets stay while the image is denoised; of IP-Adapters, their
    /// encoders and depth networks one is there at a time.
    pub fn bytes(&self, request: &Request, model: &ModelSpec, dtype: DType, is_there: &dyn Fn(&str) -> bool) -> u64 {
        let mut seen = HashSet::new();
        let controls = request.adapters.control.iter().filter(|control| control.weight != 0.0);
        let controls = controls.filter_map(|control| self.control_net(control.model.path(), model).ok());
        let controls = controls.filter(|file| seen.insert(file.name().to_owned()) && !is_there(file.name()));
        let stay: u64 = controls.map(|file| file.parameters()).sum();
        let passing = request.adapters.ip_adapter.iter().filter(|prompt| prompt.weight != 0.0).filter_map(|prompt| {
            let adapter = self.ip_adapter(prompt.model.path(), model).ok().filter(|file| !is_there(file.name()))?;
            Some(adapter.parameters().max(self.image_encoder(prompt).ok()?.parameters()))
        });
        let depths = request.adapters.control.iter().filter(|control| control.weight != 0.0 && control.depth_model.is_some());
        let depths =
            depths.filter_map(|control| self.depth(control).ok()).map(|file| file.parameters() * DType::F32.size_in_bytes() as u64);
        let width = dtype.size_in_bytes() as u64;
        stay * width + (passing.max().unwrap_or(0) * width).max(depths.max().unwrap_or(0))
    }

    /// Opens everything that a request names, and reads its images, so that what is wrong with them is known before any work.
    ///
    /// # Errors
    /// A file cannot be read, or does not go with `model`.
    pub fn check(&self, request: &Request, model: &ModelSpec) -> Result<()> {
        let adapters = &request.adapters;
        if let Some(vae) = &adapters.vae {
            self.vae(vae.0.path(), model)?;
        }
        for control in &adapters.control {
            kind_of(control, &*self.control_net(control.model.path(), model)?)?;
            if control.preprocess == Some(Preprocessor::Depth) {
                self.depth(control)?;
            }
            control.read_image()?;
        }
        for prompt in &adapters.ip_adapter {
            self.image_encoder(prompt)?.check(&*self.ip_adapter(prompt.model.path(), model)?)?;
            prompt.read_image()?;
        }
        Ok(())
    }
}

/// The number of the kind of image that a control shows a network for several of them; `None` for a network for one.
///
/// # Errors
/// It does not say which, says one that the network does not know, or the network is one for one kind.
pub(super) fn kind_of(control: &ControlChoice, file: &ControlNetFile) -> Result<Option<usize>> {
    let wrong = |what: String| Err(Error::setting("control", format!(" {}: {what}", file.name())));
    let Some(union) = &file.spec().union else {
        return match control.kind {
            Some(kind) => wrong(format!("is a ControlNet for one kind of image; leave type={} out", kind.name())),
            None => Ok(None),
        };
    };
    let names = ControlKind::NAMES.into_iter().take(union.kinds).collect::<Vec<_>>().join(", ");
    match control.shown_kind() {
        Some(kind) if kind.number() < union.kinds => Ok(Some(kind.number())),
        Some(kind) => wrong(format!("is a ControlNet Union that does not know {}; it knows {names}", kind.name())),
        None => wrong(format!("is a ControlNet Union: say what it is shown with type=, one of {names}")),
    }
}
