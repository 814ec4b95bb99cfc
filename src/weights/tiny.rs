//! The tiny autoencoder's file, in the layout of diffusers or of its author.

use super::component::{ComponentTensors, Part};
use super::file::{Blob, WeightFile};
use super::folder::{PICKLE, is_pickle};
use super::{TensorSource, model_error};
use crate::Result;
use crate::family::keys::{self, TinyLayout};
use crate::spec::AutoencoderTinySpec;
use candle_core::{DType, Device, Tensor};
use std::path::Path;
use std::sync::Arc;

/// How the three layouts name the first convolution of the decoder.
const LAYOUTS: [(TinyLayout, &str); 3] = [
    // madebyollin/taesd on the hub: both halves.
    (TinyLayout::Diffusers, "decoder.layers.0.weight"),
    // taesd_decoder.safetensors: the decoder alone, as torch numbers a sequence; the clamp before it is counted.
    (TinyLayout::Original(""), "1.weight"),
    // Both halves of the original in one file.
    (TinyLayout::Original("decoder."), "decoder.1.weight"),
];

/// An opened tiny autoencoder (TAESD).
#[derive(Debug)]
pub struct TinyAutoencoder {
    part: Part,
    spec: AutoencoderTinySpec,
}

impl TinyAutoencoder {
    /// Opens a `.safetensors` file, or a diffusers folder that has one.
    ///
    /// # Errors
    /// [`crate::Error::Model`] that names the file and what is wrong with it.
    pub fn open(path: &Path) -> Result<Self> {
        let path = if path.is_dir() { path.join("diffusion_pytorch_model.safetensors") } else { path.to_owned() };
        let shown = path.display().to_string();
        if is_pickle(&path) {
            return Err(model_error(&shown, PICKLE));
        }
        Self::read(WeightFile::new(shown, Blob::open(&path)?)?)
    }

    /// Opens a file's bytes, as [`TinyAutoencoder::open`] does a file.
    ///
    /// # Errors
    /// As [`TinyAutoencoder::open`].
    pub fn from_bytes(name: &str, bytes: Vec<u8>) -> Result<Self> {
        Self::read(WeightFile::new(name.to_owned(), Blob::Owned(bytes))?)
    }

    fn read(file: WeightFile) -> Result<Self> {
        let found = LAYOUTS.iter().find_map(|(layout, first)| Some((*layout, file.shape(first)?)));
        let Some((layout, [channels, latent_channels, 3, 3])) = found else {
            let what = "is not a tiny autoencoder: it has neither decoder.layers.0.weight nor 1.weight as a 3×3 convolution; \
                        files that work are taesd_decoder.safetensors and the one in madebyollin/taesd";
            return Err(model_error(&file.name, what));
        };
        let spec = AutoencoderTinySpec::taesd(*channels, *latent_channels);
        let part = Part::new("the tiny autoencoder", vec![Arc::new(file)], keys::tiny(&spec, layout))?;
        Ok(Self { part, spec })
    }

    /// What the network is.
    pub fn spec(&self) -> &AutoencoderTinySpec {
        &self.spec
    }
}

impl TinyAutoencoder {
    fn component(&self) -> ComponentTensors<'_> {
        ComponentTensors::new(&self.part, "as the names of its tensors say")
    }
}

impl TensorSource for TinyAutoencoder {
    fn tensor(&self, name: &str, shape: &[usize], dtype: DType, device: &Device) -> Result<Tensor> {
        self.component().tensor(name, shape, dtype, device)
    }

    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        self.component().shape(name)
    }
}
