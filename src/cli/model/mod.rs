//! Which model `--model` names.

mod adapter_finder;
pub(in crate::cli) mod download;
#[cfg(test)]
mod memory_tests;
mod named;
mod pass_files;

use crate::adapter::{AdapterCache, AdapterChoice, AdapterSet, EmbeddingFile};
use crate::batch::{Footprint, Load};
use crate::device::{DTypeChoice, free_memory, memory, release};
use crate::hub::{Missing, name_in_cache};
use crate::inputs::{InputFile, InputReader};
use crate::metadata::GeneratedBy;
use crate::ops::cpu_instructions;
use crate::pipeline::{NetworkCache, Observer, Pipeline, batch_bytes, fits};
use crate::settings::{Draft, HiresUpscaler, LoadSettings, ModelParts, Request, VaeTiling};
use crate::weights::{Checkpoint, OpenOptions, TinyAutoencoder};
use crate::{Error, Result};
pub(in crate::cli) use adapter_finder::{AdapterFinder, DepthFinder};
use candle_core::{DType, Device};
use download::DownloadStyle;
pub(in crate::cli) use named::{BUILTIN, Named, ambiguity, models_folder, resolve};
pub(in crate::cli) use pass_files::upscaler_named;
use std::path::Path;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use tracing::info;

#[cfg(feature = "builtin-model")]
macro_rules! builtin_files {
    ($($path:literal),* $(,)?) => { &[$(($path, include_bytes!(concat!("../../../models/emoji/", $path)))),*] };
}

/// The compiled-in model's folder.
#[cfg(feature = "builtin-model")]
static BUILTIN_FILES: &[(&str, &[u8])] = builtin_files![
    "model_index.json",
    "sd-gen.json",
    "scheduler/scheduler_config.json",
    "text_encoder/config.json",
    "text_encoder/model.safetensors",
    "tokenizer/merges.txt",
    "tokenizer/special_tokens_map.json",
    "tokenizer/tokenizer_config.json",
    "tokenizer/vocab.json",
    "unet/config.json",
    "unet/diffusion_pytorch_model.safetensors",
    "vae/config.json",
    "vae/diffusion_pytorch_model.safetensors",
];
#[cfg(not(feature = "builtin-model"))]
static BUILTIN_FILES: &[(&str, &[u8])] = &[];

/// A model that was opened, and what it is to compute in.
pub(in crate::cli) struct Opened {
    pub(in crate::cli) checkpoint: Arc<Checkpoint>,
    /// Its name as people say it.
    pub(in crate::cli) label: Arc<str>,
    pub(in crate::cli) dtype: DType,
    pub(in crate::cli) vae_dtype: DType,
    /// One at least; each gets the weights.
    devices: Vec<Device>,
    /// The dtype is the program's choice.
    is_chosen: bool,
    /// The VAE computes in f32 although it was not asked for.
    upcast: bool,
    vae_tiling: VaeTiling,
    low_memory: bool,
    /// What takes the place of the model's own parts, for an image's text.
    parts: Vec<(&'static str, String)>,
    /// Where adapters are looked for by name, and those that are open.
    pub(in crate::cli) finder: AdapterFinder,
    adapters: Arc<AdapterCache>,
    /// The adapters of the first request, with which the networks are loaded.
    first: OnceLock<AdapterChoice>,
    /// Bytes that an image of the first request takes beside the weights.
    first_image: OnceLock<u64>,
    networks: Arc<NetworkCache>,
}

impl Opened {
    pub(in crate::cli) fn new(checkpoint: Checkpoint, devices: Vec<Device>, settings: &LoadSettings) -> Self {
        let is_chosen = settings.dtype == DTypeChoice::Auto;
        let dtype = settings.dtype.on(devices.first().unwrap_or(&Device::Cpu));
        let vae_dtype = match settings.vae_dtype {
            DTypeChoice::Is(dtype) => dtype,
            DTypeChoice::Auto => checkpoint.spec().vae.dtype_beside(dtype),
        };
        let upcast = settings.vae_dtype == DTypeChoice::Auto && vae_dtype != dtype;
        let label = label(&checkpoint);
        let (vae_tiling, low_memory) = (settings.vae_tiling, settings.low_memory);
        let (checkpoint, label) = (Arc::new(checkpoint), label.into());
        let (finder, adapters) = (AdapterFinder::new(settings), Arc::default());
        let networks = Arc::default();
        Self {
            checkpoint,
            label,
            dtype,
            vae_dtype,
            devices,
            is_chosen,
            upcast,
            vae_tiling,
            low_memory,
            parts: settings.named_parts(),
            finder,
            adapters,
            first: OnceLock::new(),
            first_image: OnceLock::new(),
            networks,
        }
    }

    /// A draft as a request to this model, its files read and held against the model; and what is said of its adapters.
    ///
    /// # Errors
    /// A setting or a file does not fit the model.
    pub(in crate::cli) fn request(&self, mut draft: Draft, files: &mut InputReader) -> Result<(Arc<Request>, Vec<String>)> {
        self.find_words(&mut draft);
        draft.read_files(files)?;
        let request = Arc::new(draft.resolve(self.checkpoint.spec())?);
        let applied = self.check_files(&request)?;
        Ok((request, applied))
    }

    /// Networks beside the model that are named by their hub ids are fetched.
    pub(in crate::cli) fn downloading(self, showing: DownloadStyle) -> Self {
        Self { finder: self.finder.downloading(showing), ..self }
    }

    /// Adds the textual inversions of the embeddings folder whose words stand in a draft's prompts, and that are this model's.
    pub(in crate::cli) fn find_words(&self, draft: &mut Draft) {
        let texts = draft.prompts.iter().chain(&draft.text.negative_prompt);
        let texts: Vec<String> = texts.map(|text| text.to_lowercase()).collect();
        for found in self.finder.embeddings.all() {
            let word = found.name.rsplit('/').next().unwrap_or_default().to_lowercase();
            let is_known = draft.adapters.embedding.iter().any(|file| file.path() == found.path);
            let fits = || EmbeddingFile::open(&found.path).is_ok_and(|file| file.words(self.checkpoint.spec()).is_ok());
            if !is_known && texts.iter().any(|text| text.contains(&word)) && fits() {
                draft.adapters.embedding.push(InputFile::named(&found.path));
            }
        }
    }

    /// Holds a request's adapters, its refiner and its upscalers against the model, and says what adapters fit.
    ///
    /// # Errors
    /// One cannot be read or does not fit.
    fn check_files(&self, request: &Request) -> Result<Vec<String>> {
        let passes = &request.passes;
        if let Some(refiner) = &passes.refiner {
            self.networks.passes.refiner(refiner, self.checkpoint.spec())?;
        }
        let enlarging = passes.upscale.iter().map(|upscale| &upscale.file);
        let between = passes.hires_upscaler.iter().filter_map(HiresUpscaler::network);
        for file in enlarging.chain(between) {
            self.networks.passes.upscaler(file, self.device())?;
        }
        self.networks.check(request, self.checkpoint.spec())?;
        let choice = request.adapters.choice();
        let _ = self.first.set(choice.clone());
        let image = || batch_bytes(self.checkpoint.spec(), request, 1, self.device(), (self.dtype, self.vae_dtype), self.vae_tiling);
        self.first_image.get_or_init(|| image() + self.steering_bytes(request));
        if choice.is_empty() {
            return Ok(Vec::new());
        }
        Ok(self.adapters.prepare(&self.checkpoint, &choice)?.deltas().applied().to_vec())
    }

    /// Where it computes; the first of several.
    pub(in crate::cli) fn device(&self) -> &Device {
        self.devices.first().unwrap_or(&Device::Cpu)
    }

    /// On how many devices.
    pub(in crate::cli) fn devices(&self) -> usize {
        self.devices.len().max(1)
    }

    /// What the user should know.
    pub(in crate::cli) fn remark(&self) -> Option<&'static str> {
        self.upcast.then_some("this model's VAE overflows in f16: it computes in f32 (--vae-dtype changes that)")
    }

    /// Says what was concluded, and from what.
    pub(in crate::cli) fn describe(&self) {
        let (dtype, vae_dtype) = (self.dtype.as_str(), self.vae_dtype.as_str());
        let chosen = if self.is_chosen { " (--dtype auto: the fastest that is right here)" } else { "" };
        for device in &self.devices {
            let name = match device {
                Device::Cpu => cpu_instructions().map(|instructions| format!(" with {instructions}")).ok(),
                device => crate::device::name(device).map(|name| format!(" ({name})")),
            };
            let (place, name) = (device.location(), name.unwrap_or_default());
            info!("computing on {place:?}{name} in {dtype}{chosen}, VAE in {vae_dtype}");
        }
    }

    /// All networks on the device; or, where that is asked for or the memory is too small for it, the one at work.
    fn load(&self, device: usize, observer: &mut dyn Observer) -> Result<Pipeline> {
        const GIB: f64 = (1u64 << 30) as f64;
        let device = self.devices.get(device).unwrap_or(&Device::Cpu);
        let &Self { ref checkpoint, dtype, vae_dtype, vae_tiling, low_memory, .. } = self;
        let in_turn = || {
            // Nothing is read before: the system would end the program in the middle of it.
            self.check_turns(memory(device).map(|memory| memory.limit))?;
            Pipeline::in_turn(checkpoint.clone(), device, dtype, vae_dtype)
        };
        let weights = Footprint::weights(checkpoint, dtype, vae_dtype);
        // Of a GPU the driver tells what is too much, and an image may still be made in parts there.
        let image = if device.is_cpu() { self.first_image.get().copied().unwrap_or(0) } else { 0 };
        let free = free_memory(device).filter(|free| weights > *free || !fits(image, *free - weights));
        let pipeline = match free {
            _ if low_memory => in_turn()?,
            Some(free) => {
                let (weights, free, image) = (weights as f64 / GIB, free as f64 / GIB, image as f64 / GIB);
                let beside = if weights > free { String::new() } else { format!(", an image {image:.1} GiB") };
                observer.warn(&format!(
                    "the weights take {weights:.1} GiB{beside} and {free:.1} GiB of memory are free: the networks take turns (--low-memory)"
                ));
                in_turn()?
            }
            None => match Pipeline::load_adapted(checkpoint.clone(), &*self.first_adapters()?, device, (dtype, vae_dtype), observer) {
                Err(error) if error.is_out_of_memory() => {
                    release(device);
                    observer.warn("the memory is too small for all networks at once: they take turns (--low-memory)");
                    in_turn()?
                }
                loaded => loaded?,
            },
        };
        Ok(pipeline.with_vae_tiling(vae_tiling).with_adapters(self.adapters.clone()).with_networks(self.networks.clone()))
    }

    /// # Errors
    /// Even the largest network alone, streamed block by block where it can be, is more than `limit`, which is all that can be had.
    fn check_turns(&self, limit: Option<u64>) -> Result<()> {
        let (network, bytes) = self.checkpoint.least_turn(self.dtype, self.vae_dtype);
        match limit {
            Some(limit) if bytes > limit => Err(Error::Model(format!(
                "{}: its {network} alone takes at least {} of memory in {}, and {} can be had; {}end other programs, or take a smaller model",
                self.label,
                gigabytes(bytes),
                self.dtype.as_str(),
                gigabytes(limit),
                if self.dtype == DType::F32 { "try --dtype bf16, " } else { "" },
            ))),
            _ => Ok(()),
        }
    }

    /// What is too much for the memory about a request's images, one at a time; nothing where it fits or nobody knows.
    pub(in crate::cli) fn excess(&self, request: &Request) -> Option<String> {
        let device = self.device();
        self.excess_of(request, memory(device).map(|memory| (memory.free, memory.limit))?)
    }

    fn excess_of(&self, request: &Request, (free, limit): (u64, u64)) -> Option<String> {
        let dtypes = (self.dtype, self.vae_dtype);
        let all = Footprint::weights(&self.checkpoint, self.dtype, self.vae_dtype);
        let image = batch_bytes(self.checkpoint.spec(), request, 1, self.device(), dtypes, self.vae_tiling);
        let least = self.checkpoint.least_turn(self.dtype, self.vae_dtype).1;
        let in_turn = self.low_memory || all > free || self.device().is_cpu() && !fits(image, free - all);
        let weights = if in_turn { least } else { all } + self.steering_bytes(request);
        let left = limit.saturating_sub(weights);
        let (wanted, limit) = (gigabytes(weights + image), gigabytes(limit));
        (!fits(image, left))
            .then(|| format!("too large for the memory: one image takes about {wanted} with the model, and {limit} can be had"))
    }

    /// What decides, beside a request, which pixels it generates.
    pub(in crate::cli) fn generator(&self) -> GeneratedBy {
        GeneratedBy { label: self.label.clone(), dtype: self.dtype, vae_dtype: self.vae_dtype, parts: self.parts.clone() }
    }

    /// The memory that its weights and a request's images take.
    pub(in crate::cli) fn footprint(&self, request: &Request) -> Footprint {
        let refiner = request.passes.refiner.as_ref().map_or(0, |refiner| refiner.numbers * self.dtype.size_in_bytes() as u64);
        let weights = Footprint::weights(&self.checkpoint, self.dtype, self.vae_dtype) + refiner + self.steering_bytes(request);
        Footprint::new(self.checkpoint.spec(), request, self.dtype, self.vae_dtype, self.device(), weights, free_memory(self.device()))
    }
}

impl Opened {
    /// The adapters that the networks are loaded with.
    fn first_adapters(&self) -> Result<Arc<AdapterSet>> {
        match self.first.get().filter(|choice| !choice.is_empty()) {
            Some(choice) => self.adapters.prepare(&self.checkpoint, choice),
            None => Ok(Arc::default()),
        }
    }

    /// Bytes of a request's ControlNets and IP-Adapters.
    fn steering_bytes(&self, request: &Request) -> u64 {
        self.networks.bytes(request, self.checkpoint.spec(), self.dtype, &|_| false)
    }
}

fn gigabytes(bytes: u64) -> String {
    format!("{:.1} GB", bytes as f64 / 1e9)
}

/// The models of a run, loaded when their turn comes. Lines that are still being typed may name more of them.
#[derive(Clone, Default)]
pub(in crate::cli) struct Models {
    opened: Arc<Mutex<Vec<Arc<Opened>>>>,
    /// Shows what is forming.
    tiny: Option<Arc<TinyAutoencoder>>,
    /// Of the model with the most.
    devices: usize,
}

impl Models {
    pub(in crate::cli) fn new(model: Opened) -> Self {
        let models = Self::on(model.devices());
        models.add(model);
        models
    }

    /// Forming images of all of them are shown by a tiny autoencoder, where there is one.
    pub(in crate::cli) fn showing(self, tiny: Option<TinyAutoencoder>) -> Self {
        Self { tiny: tiny.map(Arc::new), ..self }
    }

    /// For models on up to so many devices.
    pub(in crate::cli) fn on(devices: usize) -> Self {
        Self { devices, ..Self::default() }
    }

    /// Gives the model's number.
    pub(in crate::cli) fn add(&self, model: Opened) -> usize {
        let mut models = self.opened.lock().unwrap_or_else(PoisonError::into_inner);
        models.push(Arc::new(model));
        models.len() - 1
    }

    pub(in crate::cli) fn get(&self, model: usize) -> Option<Arc<Opened>> {
        self.opened.lock().unwrap_or_else(PoisonError::into_inner).get(model).cloned()
    }
}

impl Load for Models {
    fn devices(&self, model: usize) -> usize {
        self.get(model).map_or(1, |opened| opened.devices())
    }

    fn most_devices(&self) -> usize {
        self.devices
    }

    fn load(&mut self, model: usize, device: usize, observer: &mut dyn Observer) -> Result<Pipeline> {
        let opened = self.get(model).ok_or_else(|| Error::Model("a model that was not opened".into()))?;
        let checkpoint = &opened.checkpoint;
        let mut pipeline = opened.load(device, observer)?;
        if let Some(tiny) = &self.tiny {
            pipeline.estimate_with(tiny)?;
        }
        let unused = checkpoint.unknown();
        if let Some((first, others)) = unused.split_first() {
            let more = if others.is_empty() { String::new() } else { format!(" and {} more (-v names them)", others.len()) };
            observer.warn(&format!("{}: the model does not use {first:?}{more}", checkpoint.name()));
            for key in others {
                info!("  {key:?}");
            }
        }
        Ok(pipeline)
    }

    fn fits_beside(&self, model: usize) -> bool {
        let Some(opened) = self.get(model) else { return false };
        // The other one and its images are in memory already, so what is free is left beside them.
        let weights = Footprint::weights(&opened.checkpoint, opened.dtype, opened.vae_dtype);
        free_memory(opened.device()).is_some_and(|free| weights < free / 2)
    }
}

/// Opens what `--model` names, in full precision where there is a choice.
///
/// # Errors
/// As [`open_for`].
pub(in crate::cli) fn open(what: Option<&str>, models_dir: Option<&Path>) -> Result<Checkpoint> {
    open_for(what, models_dir, DType::F32, DownloadStyle::default(), ModelParts::default())
}

/// Opens what `--model` names; a hub id that names nothing here is fetched, in the variant for `dtype`.
///
/// # Errors
/// As [`resolve`], and what is wrong with the model.
pub(in crate::cli) fn open_for(
    what: Option<&str>,
    models_dir: Option<&Path>,
    dtype: DType,
    showing: DownloadStyle,
    parts: ModelParts,
) -> Result<Checkpoint> {
    let ModelParts { clip_l, clip_g, t5, tokenizers, vae } = parts;
    let options = OpenOptions { prefer_variant: None, clip_l, clip_g, t5, tokenizers, vae };
    match resolve(what, models_dir)? {
        Named::Path(path) => Checkpoint::open_with(&path, &options),
        Named::Builtin => builtin(),
        Named::Hub(id) => download::open(&id, dtype, showing, options),
    }
}

/// The weights that [`open_for`] would fetch.
///
/// # Errors
/// As [`open_for`], as far as it can be known before.
pub(in crate::cli) fn to_fetch(
    what: Option<&str>,
    models_dir: Option<&Path>,
    dtype: DType,
    showing: DownloadStyle,
) -> Result<Vec<Missing>> {
    match resolve(what, models_dir)? {
        Named::Hub(id) => download::to_fetch(&id, dtype, showing),
        Named::Path(_) | Named::Builtin => Ok(Vec::new()),
    }
}

/// The model that is compiled in.
pub(in crate::cli) fn builtin() -> Result<Checkpoint> {
    if BUILTIN_FILES.is_empty() {
        return Err(Error::Input("no model: this program was built without its built-in one; give a file or folder with --model".into()));
    }
    Checkpoint::from_embedded(BUILTIN, BUILTIN_FILES)
}

/// A model's name as people say it: without folder and ending.
pub(in crate::cli) fn label(checkpoint: &Checkpoint) -> String {
    let path = Path::new(checkpoint.name());
    if let Some(name) = name_in_cache(path) {
        return name.to_owned();
    }
    // Only "." and ".." need the file system; a link keeps the name that its owner gave it.
    match path.file_name() {
        Some(_) => name_of(path),
        None => name_of(&path.canonicalize().unwrap_or_else(|_| path.to_owned())),
    }
}

fn name_of(path: &Path) -> String {
    let name = if path.is_dir() { path.file_name() } else { path.file_stem() };
    name.map(|n| n.to_string_lossy().into_owned()).unwrap_or_default()
}
