//! A model's networks as they are loaded: with adapters in them, and with blocks that are streamed where they do not all fit.

use super::components::{Placement, SharedModel};
use super::loading::{read, read_from};
use super::observer::Observer;
use crate::adapter::{AdapterSet, Deltas, ModelWithDeltas};
use crate::models::{BlockStream, DenoisingNetwork, LayerStore, Scope, StreamedTensors, VaeDecoder, VaeEncoder};
use crate::spec::TextEncoderSpec;
use crate::text::{ClipTokenizer, T5TextEncoder, T5Tokenizer, TextEncoder};
use crate::weights::{Component, ModelSource, TensorSource, VaeFile};
use crate::{Error, Result};
use candle_core::{DType, Device};
use std::collections::BTreeSet;
use std::sync::Arc;

/// A network whose layers can be given other weights.
pub(super) struct AdaptedUNet {
    /// Dropped before the network, which holds the place where the weights are.
    pub(super) layers: LayerStore,
    pub(super) changed: BTreeSet<String>,
    pub(super) network: DenoisingNetwork,
    pub(super) stream: Option<Arc<BlockStream>>,
}

/// T5, whose blocks may be streamed.
pub(super) struct LoadedT5 {
    pub(super) network: T5TextEncoder,
    pub(super) stream: Option<Arc<BlockStream>>,
}

/// A model's network with adapters in it, for the thread that reads its blocks.
struct StreamedNetwork {
    model: SharedModel,
    deltas: Arc<Deltas>,
    component: Component,
}

impl StreamedTensors for StreamedNetwork {
    fn serve(&self, work: &mut dyn FnMut(&dyn TensorSource)) {
        work(&*ModelWithDeltas::new(&*self.model, self.deltas.clone()).tensors(self.component));
    }
}

/// A text encoder whose layers can be given other weights.
pub(super) struct AdaptedText {
    pub(super) layers: LayerStore,
    pub(super) changed: BTreeSet<String>,
    pub(super) network: TextEncoder,
}

pub(super) fn load_text_encoders(
    model: &dyn ModelSource,
    place: &Placement,
    adapters: &AdapterSet,
    old: Option<Vec<AdaptedText>>,
    observer: &mut dyn Observer,
) -> Result<Vec<AdaptedText>> {
    let mut old = old.unwrap_or_default().into_iter();
    let load = |(i, encoder): (usize, &TextEncoderSpec)| {
        let component = Component::text_encoder(i);
        let changed = adapters.deltas().layers(component);
        let (layers, tokenizer) = match old.next() {
            None => (LayerStore::default(), tokenizer(model, i, encoder)?),
            Some(AdaptedText { layers, changed: before, network }) => {
                let mut tokenizer = network.into_tokenizer();
                tokenizer.unlearn();
                layers.forget(before.union(&changed).map(String::as_str));
                (layers, tokenizer)
            }
        };
        let source = ModelWithDeltas::new(model, adapters.deltas().clone());
        let mut network = read(&source, component, place.dtype, observer, |source| {
            TextEncoder::load(&Scope::root(source, place.dtype, &place.device).with_layers(&layers), encoder, tokenizer)
        })?;
        network.learn(adapters.words(i))?;
        Ok(AdaptedText { layers, changed, network })
    };
    model.spec().text_encoders.iter().enumerate().map(load).collect()
}

/// Reads a network, of which only what is no block is read where they are `streamed`: how much that is, is not known beforehand.
fn read_without_blocks<T>(
    model: &dyn ModelSource,
    component: Component,
    dtype: DType,
    streamed: bool,
    observer: &mut dyn Observer,
    load: impl FnOnce(&dyn TensorSource) -> Result<T>,
) -> Result<T> {
    let parameters = model.parameters(component).filter(|_| !streamed);
    read_from(component.title(), &*model.tensors(component), parameters, dtype, observer, load)
}

/// Starts the stream of a network that was loaded with its blocks noted.
fn start(
    stream: Option<&Arc<BlockStream>>,
    model: Option<&SharedModel>,
    (component, deltas): (Component, &Arc<Deltas>),
    dtype: DType,
    device: &Device,
) -> Result<()> {
    if let (Some(stream), Some(model)) = (stream, model) {
        stream.start(StreamedNetwork { model: model.clone(), deltas: deltas.clone(), component }, dtype, device)?;
    }
    Ok(())
}

/// The blocks are streamed from `streamed`, where that is given.
pub(super) fn load_t5(
    model: &dyn ModelSource,
    place: &Placement,
    streamed: Option<&SharedModel>,
    observer: &mut dyn Observer,
) -> Result<LoadedT5> {
    let spec = model.spec().t5.as_ref().ok_or_else(|| Error::Model(format!("{} has no T5", model.name())))?;
    let tokenizer = match model.t5_tokenizer() {
        Some(text) => T5Tokenizer::from_json(model.name(), text)?,
        None => T5Tokenizer::usual()?,
    };
    // Its feed-forward layers overflow in f16.
    let dtype = if place.dtype == DType::F16 { DType::BF16 } else { place.dtype };
    let stream = streamed.map(|_| Arc::default());
    let load = |source: &dyn TensorSource| {
        T5TextEncoder::load(&Scope::root(source, dtype, &place.device).with_stream(stream.as_ref()), spec, tokenizer)
    };
    let network = read_without_blocks(model, Component::T5, dtype, stream.is_some(), observer, load)?;
    start(stream.as_ref(), streamed, (Component::T5, &Arc::default()), dtype, &place.device)?;
    Ok(LoadedT5 { network, stream })
}

fn tokenizer(model: &dyn ModelSource, index: usize, encoder: &TextEncoderSpec) -> Result<ClipTokenizer> {
    let length = encoder.clip.max_positions;
    match model.tokenizer(index) {
        Some(files) => {
            let length = files.model_max_length.unwrap_or(length).min(length);
            let mut tokenizer = ClipTokenizer::from_files(model.name(), &files.vocab_json, &files.merges, &encoder.pad_token, length)?;
            tokenizer.add_words(model.name(), &files.added)?;
            Ok(tokenizer)
        }
        None => ClipTokenizer::clip(&encoder.pad_token, length),
    }
}

pub(super) fn load_unet(
    model: &dyn ModelSource,
    place: &Placement,
    deltas: &Arc<Deltas>,
    old: Option<AdaptedUNet>,
    streamed: Option<&SharedModel>,
    observer: &mut dyn Observer,
) -> Result<AdaptedUNet> {
    let changed = deltas.layers(Component::UNET);
    let layers = match old {
        None => LayerStore::default(),
        Some(AdaptedUNet { layers, changed: before, network, .. }) => {
            network.dismantle(&layers);
            layers.forget(before.union(&changed).map(String::as_str));
            layers
        }
    };
    let source = ModelWithDeltas::new(model, deltas.clone());
    let stream = streamed.map(|_| Arc::default());
    let load = |source: &dyn TensorSource| {
        let scope = Scope::root(source, place.dtype, &place.device);
        DenoisingNetwork::load(&scope.with_layers(&layers).with_stream(stream.as_ref()), model.spec())
    };
    let network = read_without_blocks(&source, Component::UNET, place.dtype, stream.is_some(), observer, load)?;
    start(stream.as_ref(), streamed, (Component::UNET, deltas), place.dtype, &place.device)?;
    Ok(AdaptedUNet { layers, changed, network, stream })
}

pub(super) fn load_vae(
    model: &dyn ModelSource,
    file: Option<&VaeFile>,
    place: &Placement,
    observer: &mut dyn Observer,
) -> Result<VaeDecoder> {
    match file {
        None => {
            read(model, Component::VAE, place.vae_dtype, observer, |source| VaeDecoder::load(&place.vae_scope(source), &model.spec().vae))
        }
        Some(file) => {
            let load = |source: &dyn TensorSource| VaeDecoder::load(&place.vae_scope(source), file.spec());
            read_from(Component::VAE.title(), file, Some(file.parameters()), place.vae_dtype, observer, load)
        }
    }
}

pub(super) fn load_encoder(
    model: &dyn ModelSource,
    file: Option<&VaeFile>,
    place: &Placement,
    observer: &mut dyn Observer,
) -> Result<VaeEncoder> {
    match file {
        None => {
            read(model, Component::VAE, place.vae_dtype, observer, |source| VaeEncoder::load(&place.vae_scope(source), &model.spec().vae))
        }
        Some(file) => {
            let load = |source: &dyn TensorSource| VaeEncoder::load(&place.vae_scope(source), file.spec());
            read_from(Component::VAE.title(), file, Some(file.parameters()), place.vae_dtype, observer, load)
        }
    }
}
