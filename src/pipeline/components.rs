//! The networks of a model: all on the device from the start, or only the one at work; each with the adapters of the image at work.

use super::adapted::{AdaptedText, AdaptedUNet, LoadedT5, load_encoder, load_t5, load_text_encoders, load_unet, load_vae};
use super::loading::read_from;
use super::observer::Observer;
use crate::adapter::AdapterSet;
use crate::device;
use crate::models::{BlockStream, ControlNet, DenoisingNetwork, Scope, VaeDecoder, VaeEncoder};
use crate::text::{T5TextEncoder, TextEncoder};
use crate::weights::{Checkpoint, Component, ControlNetFile, ModelSource, TensorSource, VaeFile};
use crate::{Error, Result};
use candle_core::{DType, Device};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock, Weak};

/// A model that can be read again.
pub type SharedModel = Arc<dyn ModelSource + Send + Sync>;

/// Where the networks compute, and in what.
#[derive(Debug, Clone)]
pub(super) struct Placement {
    pub(super) device: Device,
    pub(super) dtype: DType,
    pub(super) vae_dtype: DType,
}

impl Placement {
    pub(super) fn vae_scope<'a>(&'a self, source: &'a dyn TensorSource) -> Scope<'a> {
        Scope::root(source, self.vae_dtype, &self.device)
    }
}

/// The networks.
pub(super) struct Components {
    place: Placement,
    /// What networks are read from again; `None` where they were read from a model that is gone.
    model: Option<SharedModel>,
    /// Where only one network is on the device.
    turn: OnceLock<Arc<Turn>>,
    slots: Arc<Slots>,
    /// Bytes that images take beside the network at work.
    beside: AtomicU64,
    /// It was said that blocks are read again at every step.
    told: AtomicBool,
}

/// Bytes that stay free beside a network at least.
const LEAST_BESIDE: u64 = 128 << 20;

/// The places of a model's networks.
#[derive(Default)]
struct Slots {
    text_encoders: RwLock<Slot<Vec<AdaptedText>>>,
    /// Read when the first text is to be encoded by it.
    t5: RwLock<Slot<LoadedT5>>,
    unet: RwLock<Slot<AdaptedUNet>>,
    vae: RwLock<Slot<VaeDecoder>>,
    /// Read when the first image is to be encoded.
    encoder: RwLock<Slot<VaeEncoder>>,
    /// Those of the last images that wanted any, by their files.
    control_nets: Mutex<Vec<(String, Arc<ControlNet>)>>,
}

/// Models of which one network is on the device; who works with it keeps the others waiting.
#[derive(Default)]
struct Turn {
    work: Mutex<()>,
    models: Mutex<Vec<Weak<Slots>>>,
}

impl Turn {
    fn add(&self, slots: &Arc<Slots>) {
        let mut models = self.models.lock().unwrap_or_else(PoisonError::into_inner);
        models.retain(|model| model.strong_count() > 0 && !std::ptr::eq(model.as_ptr(), Arc::as_ptr(slots)));
        models.push(Arc::downgrade(slots));
    }

    /// Drops every network.
    fn clear(&self, device: &Device) {
        let models: Vec<Arc<Slots>> = self.models.lock().unwrap_or_else(PoisonError::into_inner).iter().filter_map(Weak::upgrade).collect();
        for slots in models {
            empty(&slots.text_encoders);
            empty(&slots.t5);
            empty(&slots.unet);
            empty(&slots.vae);
            empty(&slots.encoder);
            slots.control_nets.lock().unwrap_or_else(PoisonError::into_inner).clear();
        }
        device::release(device);
    }
}

/// A place for a network.
struct Slot<T> {
    network: Option<T>,
    /// [`AdapterSet::signature`] of what was made of it.
    signature: String,
}

impl<T> Default for Slot<T> {
    fn default() -> Self {
        Self { network: None, signature: String::new() }
    }
}

impl std::fmt::Debug for Components {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if self.turn.get().is_some() { "Components(in turn)" } else { "Components(all)" })
    }
}

impl Components {
    /// All networks of `model`, which is read once, with adapters in them; `again` is the same model where it can be read again.
    pub(super) fn all(
        model: &dyn ModelSource,
        again: Option<SharedModel>,
        adapters: &AdapterSet,
        place: &Placement,
        observer: &mut dyn Observer,
    ) -> Result<Self> {
        let components = Self::empty(again, place.clone());
        let text_encoders = load_text_encoders(model, place, adapters, None, observer)?;
        let unet = load_unet(model, place, adapters.deltas(), None, None, observer)?;
        let vae = load_vae(model, None, place, observer)?;
        if components.model.is_none() && model.spec().t5.is_some() {
            fill(&components.slots.t5, load_t5(model, place, None, observer)?, String::new());
        }
        fill(&components.slots.text_encoders, text_encoders, adapters.text_signature());
        fill(&components.slots.unet, unet, adapters.signature(Component::UNET));
        fill(&components.slots.vae, vae, String::new());
        Ok(components)
    }

    /// The model's files, where it can be read again.
    pub(super) fn checkpoint(&self) -> Option<&Checkpoint> {
        self.model.as_ref()?.checkpoint()
    }

    pub(super) fn in_turn(model: SharedModel, place: Placement) -> Self {
        let components = Self::empty(Some(model), place);
        components.begin_turns();
        components
    }

    /// Images take so many bytes beside the network at work.
    pub(super) fn make_room(&self, bytes: u64) {
        // Only a number: it orders nothing else.
        self.beside.store(bytes, Ordering::Relaxed);
    }

    /// Bytes of blocks that stay until another network has its turn.
    pub(super) fn kept_bytes(&self) -> u64 {
        let unet = self.slots.unet.try_read();
        let stream = unet.as_ref().ok().and_then(|slot| slot.network.as_ref()?.stream.as_ref());
        stream.map_or(0, |stream| stream.kept_bytes())
    }

    /// The model to stream blocks from, where networks take turns.
    fn streamed(&self) -> Option<&SharedModel> {
        self.model.as_ref().filter(|_| self.turn.get().is_some())
    }

    /// Decides which of a network's blocks stay in memory.
    fn fit(&self, stream: Option<&Arc<BlockStream>>, component: Component, observer: &mut dyn Observer) {
        let Some(stream) = stream else { return };
        let all = stream.bytes();
        let beside = self.beside.load(Ordering::Relaxed).max(LEAST_BESIDE);
        let room = |memory: device::Memory| (memory.free + stream.kept_bytes()) / 10 * 9;
        let stays = stream.fit(device::memory(&self.place.device).map_or(all, |memory| room(memory).saturating_sub(beside)));
        if stays < all && component == Component::UNET && !self.told.swap(true, Ordering::Relaxed) {
            let (share, all) = (stays as f64 / all as f64 * 100.0, all as f64 / 1e9);
            observer.warn(&format!(
                "the {}'s weights take {all:.1} GB: {share:.0} % of them fit into the memory and stay, the others are read again at every \
                 step (--low-memory)",
                component.title()
            ));
        }
    }

    /// Where networks take turns, the bytes by which the largest is larger than the one that is in memory now; otherwise none.
    pub(super) fn bytes_of_turn(&self) -> u64 {
        let (Some(_), Some(checkpoint)) = (self.turn.get(), self.checkpoint()) else { return 0 };
        let &Placement { dtype, vae_dtype, .. } = &self.place;
        // Who writes to a slot loads its network, which is then not counted as there.
        let is_loaded = |component| match component {
            Component::UNET => self.slots.unet.try_read().is_ok_and(|slot| slot.network.is_some()),
            Component::T5 => self.slots.t5.try_read().is_ok_and(|slot| slot.network.is_some()),
            Component::VAE => self.slots.vae.try_read().is_ok_and(|slot| slot.network.is_some()),
            _ => self.slots.text_encoders.try_read().is_ok_and(|slot| slot.network.is_some()),
        };
        let bytes = |component| checkpoint.least_bytes(component, dtype, vae_dtype);
        let loaded: u64 = Component::ALL.into_iter().filter(|component| is_loaded(*component)).map(bytes).sum();
        checkpoint.least_turn(dtype, vae_dtype).1.saturating_sub(loaded)
    }

    /// Networks that are read when they are wanted, and stay.
    pub(super) fn when_wanted(model: SharedModel, place: Placement) -> Self {
        Self::empty(Some(model), place)
    }

    fn empty(model: Option<SharedModel>, place: Placement) -> Self {
        let (beside, told) = (AtomicU64::new(0), AtomicBool::new(false));
        Self { place, model, turn: OnceLock::new(), slots: Arc::default(), beside, told }
    }

    fn begin_turns(&self) -> &Arc<Turn> {
        let turn = self.turn.get_or_init(Arc::default);
        turn.add(&self.slots);
        turn
    }

    /// From now on only one network of these and of another model is on the device. Does nothing where these cannot be read again.
    pub(super) fn take_turns_with(&self, other: &Components) {
        if self.model.is_none() || other.turn.get().is_some() {
            return;
        }
        let turn = self.begin_turns();
        turn.add(&other.slots);
        let _ = other.turn.set(Arc::clone(turn));
    }

    /// Only one network is on the device.
    pub(super) fn are_in_turn(&self) -> bool {
        self.turn.get().is_some()
    }

    pub(super) fn with_text_encoders<T>(
        &self,
        adapters: &AdapterSet,
        observer: &mut dyn Observer,
        work: impl FnOnce(&[&TextEncoder], &mut dyn Observer) -> Result<T>,
    ) -> Result<T> {
        let signature = adapters.text_signature();
        let load =
            |old, model: &dyn ModelSource, observer: &mut dyn Observer| load_text_encoders(model, &self.place, adapters, old, observer);
        self.with(&self.slots.text_encoders, &signature, observer, load, |texts: &Vec<AdaptedText>, observer| {
            work(&texts.iter().map(|text| &text.network).collect::<Vec<_>>(), observer)
        })
    }

    pub(super) fn with_t5<T>(
        &self,
        observer: &mut dyn Observer,
        work: impl FnOnce(&T5TextEncoder, &mut dyn Observer) -> Result<T>,
    ) -> Result<T> {
        let load = |_, model: &dyn ModelSource, observer: &mut dyn Observer| load_t5(model, &self.place, self.streamed(), observer);
        self.with(&self.slots.t5, "", observer, load, |t5: &LoadedT5, observer| {
            self.fit(t5.stream.as_ref(), Component::T5, observer);
            work(&t5.network, observer)
        })
    }

    pub(super) fn with_unet<T>(
        &self,
        adapters: &AdapterSet,
        observer: &mut dyn Observer,
        work: impl FnOnce(&DenoisingNetwork, &mut dyn Observer) -> Result<T>,
    ) -> Result<T> {
        let signature = adapters.signature(Component::UNET);
        let load = |old, model: &dyn ModelSource, observer: &mut dyn Observer| {
            load_unet(model, &self.place, adapters.deltas(), old, self.streamed(), observer)
        };
        self.with(&self.slots.unet, &signature, observer, load, |unet: &AdaptedUNet, observer| {
            self.fit(unet.stream.as_ref(), Component::UNET, observer);
            work(&unet.network, observer)
        })
    }

    /// `file` takes the place of the model's own.
    pub(super) fn with_vae<T>(
        &self,
        file: Option<&VaeFile>,
        observer: &mut dyn Observer,
        work: impl FnOnce(&VaeDecoder, &mut dyn Observer) -> Result<T>,
    ) -> Result<T> {
        let load = |_, model: &dyn ModelSource, observer: &mut dyn Observer| load_vae(model, file, &self.place, observer);
        self.with(&self.slots.vae, file.map_or("", VaeFile::name), observer, load, |vae: &VaeDecoder, observer| work(vae, observer))
    }

    /// `file` takes the place of the model's own.
    pub(super) fn with_encoder<T>(
        &self,
        file: Option<&VaeFile>,
        observer: &mut dyn Observer,
        work: impl FnOnce(&VaeEncoder, &mut dyn Observer) -> Result<T>,
    ) -> Result<T> {
        let load = |_, model: &dyn ModelSource, observer: &mut dyn Observer| load_encoder(model, file, &self.place, observer);
        self.with(&self.slots.encoder, file.map_or("", VaeFile::name), observer, load, |encoder: &VaeEncoder, observer| {
            work(encoder, observer)
        })
    }

    /// The ControlNet of a file is on the device.
    pub(super) fn has_control_net(&self, file: &str) -> bool {
        self.slots.control_nets.lock().unwrap_or_else(PoisonError::into_inner).iter().any(|(name, _)| name == file)
    }

    /// The ControlNets of these files; those of others are dropped.
    pub(super) fn control_nets(&self, files: &[&ControlNetFile], observer: &mut dyn Observer) -> Result<Vec<Arc<ControlNet>>> {
        if files.is_empty() {
            return Ok(Vec::new());
        }
        let mut loaded = self.slots.control_nets.lock().unwrap_or_else(PoisonError::into_inner);
        loaded.retain(|(name, _)| files.iter().any(|file| file.name() == name));
        let mut networks = Vec::new();
        for file in files {
            if let Some((_, network)) = loaded.iter().find(|(name, _)| name == file.name()) {
                networks.push(network.clone());
                continue;
            }
            let source = file.tensors(self.model.as_deref().map(|model| model as &dyn ModelSource))?;
            let load =
                |source: &dyn TensorSource| ControlNet::load(&Scope::root(source, self.place.dtype, &self.place.device), file.spec());
            let network = read_from("ControlNet", &source, Some(file.parameters()), self.place.dtype, observer, load)?;
            let network = Arc::new(network);
            loaded.push((file.name().to_owned(), network.clone()));
            networks.push(network);
        }
        Ok(networks)
    }

    /// Works with a network as `signature` wants it; `load` makes it so, of the one that is there or of none.
    fn with<N, T>(
        &self,
        slot: &RwLock<Slot<N>>,
        signature: &str,
        observer: &mut dyn Observer,
        load: impl Fn(Option<N>, &dyn ModelSource, &mut dyn Observer) -> Result<N>,
        work: impl FnOnce(&N, &mut dyn Observer) -> Result<T>,
    ) -> Result<T> {
        let turn = self.turn.get();
        let _working = turn.map(|turn| turn.work.lock().unwrap_or_else(PoisonError::into_inner));
        loop {
            {
                let slot = slot.read().unwrap_or_else(PoisonError::into_inner);
                if let Some(network) = slot.network.as_ref().filter(|_| slot.signature == signature) {
                    return work(network, observer);
                }
            }
            // Whoever works with the network as it is ends first.
            let is_empty = slot.read().unwrap_or_else(PoisonError::into_inner).network.is_none();
            if let Some(turn) = turn.filter(|_| is_empty) {
                turn.clear(&self.place.device);
            }
            let mut slot = slot.write().unwrap_or_else(PoisonError::into_inner);
            if slot.network.is_none() || slot.signature != signature {
                let Some(model) = &self.model else {
                    return Err(Error::Model("a network that was loaded is gone, and its model cannot be read again".into()));
                };
                // What fails half-way leaves nothing, and is read as a whole the next time.
                let old = slot.network.take();
                slot.network = Some(load(old, &**model, observer)?);
                slot.signature = signature.to_owned();
            }
        }
    }
}

fn fill<T>(slot: &RwLock<Slot<T>>, network: T, signature: String) {
    *slot.write().unwrap_or_else(PoisonError::into_inner) = Slot { network: Some(network), signature };
}

fn empty<T>(slot: &RwLock<Slot<T>>) {
    *slot.write().unwrap_or_else(PoisonError::into_inner) = Slot::default();
}
