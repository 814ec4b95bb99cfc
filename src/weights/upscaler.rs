//! The file of a network that enlarges images, under the names that it has there.

use super::component::{ComponentTensors, Part};
use super::file::{Blob, WeightFile};
use super::folder::{PICKLE, is_pickle};
use super::{TensorSource, model_error};
use crate::Result;
use crate::family::keys::{Form, Pair};
use candle_core::{DType, Device, Tensor};
use std::path::Path;
use std::sync::Arc;

/// What trainers put before all names.
const WRAPPERS: [&str; 4] = ["params_ema.", "params.", "model_state_dict.", "module."];

/// An opened upscaler.
#[derive(Debug)]
pub struct UpscalerFile {
    part: Part,
}

impl UpscalerFile {
    /// Opens a `.safetensors` file.
    ///
    /// # Errors
    /// [`crate::Error::Model`] that names the file and what is wrong with it.
    pub fn open(path: &Path) -> Result<Self> {
        let shown = path.display().to_string();
        if is_pickle(path) {
            return Err(model_error(&shown, PICKLE));
        }
        Self::read(WeightFile::new(shown, Blob::open(path)?)?)
    }

    /// Opens a file's bytes, as [`UpscalerFile::open`] does a file.
    ///
    /// # Errors
    /// As [`UpscalerFile::open`].
    pub fn from_bytes(name: &str, bytes: Vec<u8>) -> Result<Self> {
        Self::read(WeightFile::new(name.to_owned(), Blob::Owned(bytes))?)
    }

    fn read(file: WeightFile) -> Result<Self> {
        // Of both, the averaged weights are the ones to use.
        let wrapper = WRAPPERS.iter().find(|wrapper| file.entries().iter().any(|entry| entry.name.starts_with(*wrapper))).unwrap_or(&"");
        let pairs = file.entries().iter().filter_map(|entry| {
            let name = entry.name.strip_prefix(wrapper)?.to_owned();
            Some(Pair { stored: entry.name.clone(), name, form: Form::Same })
        });
        let pairs = pairs.collect();
        Ok(Self { part: Part::new("the upscaler", vec![Arc::new(file)], pairs)? })
    }

    fn component(&self) -> ComponentTensors<'_> {
        ComponentTensors::new(&self.part, "as the names of its tensors say")
    }
}

impl TensorSource for UpscalerFile {
    fn tensor(&self, name: &str, shape: &[usize], dtype: DType, device: &Device) -> Result<Tensor> {
        self.component().tensor(name, shape, dtype, device)
    }

    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        self.component().shape(name)
    }
}
