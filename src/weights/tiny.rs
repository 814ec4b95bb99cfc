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

/// How the layouts name things; the decoder's first convolution tells which it is.
const LAYOUTS: [TinyLayout; 4] = [
    // madebyollin/taesd on the hub: both halves.
    TinyLayout::Diffusers,
    // Both halves as ComfyUI joins them, or as a file of the author's module has them.
    TinyLayout::Original("taesd_decoder.", "taesd_encoder."),
    TinyLayout::Original("decoder.", "encoder."),
    // taesd_decoder.safetensors: the decoder alone, as torch numbers a sequence.
    TinyLayout::Original("", ""),
];

/// More levels than any has, and more blocks of one.
const MOST: usize = 64;

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
        let Some((layout, spec)) = find(&file) else {
            let encoder = file.shape("0.weight").is_some() && file.shape("1.conv.0.weight").is_some();
            let what = match encoder {
                true => "is a tiny autoencoder's encoder alone; take the file of its decoder, or one with both",
                false => {
                    "is not a tiny autoencoder: it has neither decoder.layers.0.weight nor 1.weight as a 3×3 convolution; \
                     files that work are taesd_decoder.safetensors and the one in madebyollin/taesd"
                }
            };
            return Err(model_error(&file.name, what));
        };
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

/// The layout and the size of the tiny autoencoder in a file, if there is one.
pub(crate) fn find(file: &WeightFile) -> Option<(TinyLayout, AutoencoderTinySpec)> {
    LAYOUTS.iter().find_map(|layout| {
        let (decoder, first, encoder) = layout.places();
        let has = |prefix: &str, n: usize, leaf: &str| file.shape(&format!("{prefix}{n}.{leaf}")).is_some();
        let &[channels, latent_channels, 3, 3] = file.shape(&format!("{decoder}{first}.weight"))? else { return None };
        let blocks = |prefix: &str, from: usize| (from..from + MOST).take_while(|n| has(prefix, *n, "conv.0.weight")).count();
        let mut decoder_blocks = Vec::new();
        let mut next = first + 2;
        let image_channels = loop {
            decoder_blocks.push(blocks(decoder, next));
            next += decoder_blocks.last()?;
            // Where no convolution follows, the level ends in an upsampling.
            match file.shape(&format!("{decoder}{next}.weight")) {
                Some(&[image_channels, ..]) => break image_channels,
                _ if decoder_blocks.len() < MOST && has(decoder, next + 1, "weight") => next += 2,
                _ => return None,
            }
        };
        let mut encoder_blocks = Vec::new();
        if decoder != encoder && has(encoder, 0, "weight") {
            let mut next = 0;
            // The last convolution is the one after the finest level that has a bias.
            while encoder_blocks.is_empty() || has(encoder, next, "weight") && !has(encoder, next, "bias") && encoder_blocks.len() < MOST {
                encoder_blocks.push(blocks(encoder, next + 1));
                next += 1 + encoder_blocks.last()?;
            }
        }
        Some((*layout, AutoencoderTinySpec { image_channels, latent_channels, channels, decoder_blocks, encoder_blocks }))
    })
}

impl TensorSource for TinyAutoencoder {
    fn tensor(&self, name: &str, shape: &[usize], dtype: DType, device: &Device) -> Result<Tensor> {
        self.component().tensor(name, shape, dtype, device)
    }

    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        self.component().shape(name)
    }
}
