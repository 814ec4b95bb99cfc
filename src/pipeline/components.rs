//! The networks of a model: all on the device from the start, or only the one at work.

use super::loading::read;
use super::observer::Observer;
use crate::device;
use crate::models::{AutoencoderKLDecoder, Scope, UNet2DCondition};
use crate::spec::ModelSpec;
use crate::text::{ClipTokenizer, TextEncoder};
use crate::weights::{Component, ModelSource, TensorSource};
use crate::{Error, Result};
use candle_core::{DType, Device};
use std::sync::{Arc, Mutex, PoisonError};

/// A model that can be read again.
pub type SharedModel = Arc<dyn ModelSource + Send + Sync>;

/// Where the networks compute, and in what.
#[derive(Debug, Clone)]
pub(super) struct Placement {
    pub(super) device: Device,
    pub(super) dtype: DType,
    pub(super) vae_dtype: DType,
}

/// The networks.
pub(super) enum Components {
    /// All of them.
    All { text_encoders: Vec<TextEncoder>, unet: Box<UNet2DCondition>, vae: Box<AutoencoderKLDecoder> },
    /// One after the other; who works with one keeps the others waiting.
    InTurn { model: SharedModel, place: Placement, loaded: Mutex<LoadedNetwork> },
}

/// What is on the device.
pub(super) enum LoadedNetwork {
    Nothing,
    TextEncoders(Vec<TextEncoder>),
    UNet(Box<UNet2DCondition>),
    Vae(Box<AutoencoderKLDecoder>),
}

impl std::fmt::Debug for Components {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Components::All { .. } => "Components::All",
            Components::InTurn { .. } => "Components::InTurn",
        })
    }
}

/// Takes the network out of what is loaded, or loads it after the others were dropped.
macro_rules! with {
    ($components:expr, $observer:expr, $work:expr, $variant:ident, $all:ident, $load:ident) => {
        match $components {
            Components::All { $all, .. } => $work($all, $observer),
            Components::InTurn { model, place, loaded } => {
                let mut loaded = loaded.lock().unwrap_or_else(PoisonError::into_inner);
                if !matches!(*loaded, LoadedNetwork::$variant(_)) {
                    *loaded = LoadedNetwork::Nothing;
                    device::release(&place.device);
                    *loaded = LoadedNetwork::$variant($load(&**model, place, $observer)?);
                }
                match &*loaded {
                    LoadedNetwork::$variant(network) => $work(network, $observer),
                    _ => Err(Error::Image("a network that was loaded is gone".into())),
                }
            }
        }
    };
}

impl Components {
    pub(super) fn all(model: &dyn ModelSource, place: &Placement, observer: &mut dyn Observer) -> Result<Self> {
        Ok(Components::All {
            text_encoders: load_text_encoders(model, place, observer)?,
            unet: load_unet(model, place, observer)?,
            vae: load_vae(model, place, observer)?,
        })
    }

    pub(super) fn in_turn(model: SharedModel, place: Placement) -> Self {
        Components::InTurn { model, place, loaded: Mutex::new(LoadedNetwork::Nothing) }
    }

    pub(super) fn with_text_encoders<T>(
        &self,
        observer: &mut dyn Observer,
        work: impl FnOnce(&[TextEncoder], &mut dyn Observer) -> Result<T>,
    ) -> Result<T> {
        with!(self, observer, work, TextEncoders, text_encoders, load_text_encoders)
    }

    pub(super) fn with_unet<T>(
        &self,
        observer: &mut dyn Observer,
        work: impl FnOnce(&UNet2DCondition, &mut dyn Observer) -> Result<T>,
    ) -> Result<T> {
        with!(self, observer, work, UNet, unet, load_unet)
    }

    pub(super) fn with_vae<T>(
        &self,
        observer: &mut dyn Observer,
        work: impl FnOnce(&AutoencoderKLDecoder, &mut dyn Observer) -> Result<T>,
    ) -> Result<T> {
        with!(self, observer, work, Vae, vae, load_vae)
    }
}

/// Refuses models that the pipeline cannot generate with.
pub(super) fn check(name: &str, spec: &ModelSpec) -> Result<()> {
    if spec.unet.in_channels == spec.vae.latent_channels {
        return Ok(());
    }
    Err(Error::Model(format!(
        "{name}: the UNet takes {} channels; models that regenerate (9) or edit (8) need an image to start from, which this version cannot give yet",
        spec.unet.in_channels
    )))
}

fn load_text_encoders(model: &dyn ModelSource, place: &Placement, observer: &mut dyn Observer) -> Result<Vec<TextEncoder>> {
    let load = |(i, encoder): (usize, &crate::spec::TextEncoderSpec)| {
        let length = encoder.clip.max_positions;
        let tokenizer = match model.tokenizer(i) {
            Some(files) => {
                let length = files.model_max_length.unwrap_or(length).min(length);
                ClipTokenizer::from_files(model.name(), &files.vocab_json, &files.merges, &encoder.pad_token, length)?
            }
            None => ClipTokenizer::clip(&encoder.pad_token, length)?,
        };
        read(model, Component::text_encoder(i), place.dtype, observer, |source| {
            TextEncoder::load(&Scope::root(source, place.dtype, &place.device), encoder, tokenizer)
        })
    };
    model.spec().text_encoders.iter().enumerate().map(load).collect()
}

fn load_unet(model: &dyn ModelSource, place: &Placement, observer: &mut dyn Observer) -> Result<Box<UNet2DCondition>> {
    let load = |source: &dyn TensorSource| UNet2DCondition::load(&Scope::root(source, place.dtype, &place.device), &model.spec().unet);
    read(model, Component::UNET, place.dtype, observer, load).map(Box::new)
}

fn load_vae(model: &dyn ModelSource, place: &Placement, observer: &mut dyn Observer) -> Result<Box<AutoencoderKLDecoder>> {
    let load =
        |source: &dyn TensorSource| AutoencoderKLDecoder::load(&Scope::root(source, place.vae_dtype, &place.device), &model.spec().vae);
    read(model, Component::VAE, place.vae_dtype, observer, load).map(Box::new)
}
