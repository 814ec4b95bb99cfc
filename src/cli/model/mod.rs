//! Which model `--model` names.

pub(in crate::cli) mod download;
mod pass_files;

use crate::adapter::{AdapterCache, AdapterFolders, EmbeddingFile};
use crate::batch::{Footprint, Load};
use crate::device::{DTypeChoice, free_memory, memory, release};
use crate::hub::{HubId, Missing, name_in_cache};
use crate::inputs::InputFile;
use crate::metadata::GeneratedBy;
use crate::ops::cpu_instructions;
use crate::pipeline::{NetworkCache, Observer, Pipeline, batch_bytes, fits};
use crate::prompt::{LoraTag, NetworkTag};
use crate::settings::{Draft, HiresUpscaler, LoadSettings, ModelParts, Request, SourcePath, VaeTiling, WeightedFile};
use crate::survey::{Kind, Survey};
use crate::weights::{CatalogKind, Checkpoint, Found, OpenOptions, TinyAutoencoder, find_image_encoder, find_models, is_model_folder};
use crate::{Error, Result};
use candle_core::{DType, Device};
use download::DownloadStyle;
use pass_files::PassFiles;
pub(in crate::cli) use pass_files::upscaler_named;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use tracing::info;

/// The name of the model that is compiled in.
pub(in crate::cli) const BUILTIN: &str = "emoji";

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
    /// Where adapters are looked for by name, and those that are open.
    pub(in crate::cli) finder: AdapterFinder,
    adapters: Arc<AdapterCache>,
    networks: Arc<NetworkCache>,
}

impl Opened {
    pub(in crate::cli) fn new(checkpoint: Checkpoint, devices: Vec<Device>, settings: &LoadSettings) -> Self {
        let is_chosen = settings.dtype == DTypeChoice::Auto;
        let dtype = settings.dtype.on(devices.first().unwrap_or(&Device::Cpu));
        let upcast = settings.vae_dtype == DTypeChoice::Auto && dtype == DType::F16 && checkpoint.spec().vae.force_upcast;
        let vae_dtype = match settings.vae_dtype {
            DTypeChoice::Is(dtype) => dtype,
            DTypeChoice::Auto if upcast => DType::F32,
            DTypeChoice::Auto => dtype,
        };
        let label = label(&checkpoint);
        let (vae_tiling, low_memory) = (settings.vae_tiling, settings.low_memory);
        let (checkpoint, label) = (Arc::new(checkpoint), label.into());
        let (finder, adapters) = (AdapterFinder::new(settings), Arc::default());
        let networks = Arc::default();
        Self { checkpoint, label, dtype, vae_dtype, devices, is_chosen, upcast, vae_tiling, low_memory, finder, adapters, networks }
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
    pub(in crate::cli) fn check_files(&self, request: &Request) -> Result<Vec<String>> {
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
        let free = free_memory(device).filter(|free| weights > *free);
        let pipeline = match free {
            _ if low_memory => in_turn()?,
            Some(free) => {
                let (weights, free) = (weights as f64 / GIB, free as f64 / GIB);
                observer.warn(&format!(
                    "the weights take {weights:.1} GiB and {free:.1} GiB of memory are free: the networks take turns (--low-memory)"
                ));
                in_turn()?
            }
            None => match Pipeline::load_shared(checkpoint.clone(), device, dtype, vae_dtype, observer) {
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
    /// Even the largest network alone is more than `limit`, which is all that can be had.
    fn check_turns(&self, limit: Option<u64>) -> Result<()> {
        let (network, bytes) = self.checkpoint.largest_turn(self.dtype, self.vae_dtype);
        match limit {
            Some(limit) if bytes > limit => Err(Error::Model(format!(
                "{}: its {network} alone takes {} of memory in {}, and {} can be had; {}end other programs, or take a smaller model",
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
        let largest = self.checkpoint.largest_turn(self.dtype, self.vae_dtype).1;
        let weights = if self.low_memory || all > free { largest } else { all };
        let image = batch_bytes(self.checkpoint.spec(), request, 1, self.device(), dtypes, self.vae_tiling);
        let left = limit.saturating_sub(weights);
        let (wanted, limit) = (gigabytes(weights + image), gigabytes(limit));
        (!fits(image, left))
            .then(|| format!("too large for the memory: one image takes about {wanted} with the model, and {limit} can be had"))
    }

    /// What decides, beside a request, which pixels it generates.
    pub(in crate::cli) fn generator(&self) -> GeneratedBy {
        GeneratedBy { label: self.label.clone(), dtype: self.dtype, vae_dtype: self.vae_dtype }
    }

    /// The memory that its weights and a request's images take.
    pub(in crate::cli) fn footprint(&self, request: &Request) -> Footprint {
        let refiner = request.passes.refiner.as_ref().map_or(0, |refiner| refiner.numbers * self.dtype.size_in_bytes() as u64);
        let weights = Footprint::weights(&self.checkpoint, self.dtype, self.vae_dtype) + refiner;
        Footprint::new(self.checkpoint.spec(), request, self.dtype, self.vae_dtype, self.device(), weights, free_memory(self.device()))
    }
}

fn gigabytes(bytes: u64) -> String {
    format!("{:.1} GB", bytes as f64 / 1e9)
}

/// Where adapters are looked for by the names that people write.
pub(in crate::cli) struct AdapterFinder {
    loras: AdapterFolders,
    embeddings: AdapterFolders,
    passes: PassFiles,
    vaes: AdapterFolders,
    control_nets: AdapterFolders,
    ip_adapters: AdapterFolders,
}

impl AdapterFinder {
    pub(in crate::cli) fn new(settings: &LoadSettings) -> Self {
        let folder = |named: &Option<SourcePath>| named.as_ref().map(|folder| folder.0.clone());
        let (models, _) = models_folder(folder(&settings.models_dir).as_deref());
        Self {
            loras: AdapterFolders::loras(folder(&settings.lora_dir).as_deref(), &models),
            embeddings: AdapterFolders::embeddings(folder(&settings.embeddings_dir).as_deref(), &models),
            vaes: AdapterFolders::vaes(&models),
            control_nets: AdapterFolders::control_nets(&models),
            ip_adapters: AdapterFolders::ip_adapters(&models),
            passes: PassFiles::new(models, folder(&settings.models_dir)),
        }
    }

    /// Adds the LoRAs of `<lora:name:weight>` in the prompt. One that a flag names too has the flag's weights, so that the command of an
    /// image, which has both, generates it again.
    fn find_tags(&self, draft: &mut Draft) -> Result<()> {
        let syntax = draft.prompt_syntax();
        let flags: Vec<PathBuf> = draft.adapters.lora.iter().map(|lora| lora.file.path().to_owned()).collect();
        let tags = draft.prompts.iter().flat_map(|prompt| NetworkTag::of_prompt(prompt, syntax));
        for tag in tags.filter_map(|tag| tag.as_lora()).collect::<Vec<_>>() {
            let LoraTag { name, text_weight, unet_weight, rank } = tag?;
            if rank.is_some() {
                return Err(Error::Input(format!(
                    "<lora:{name}:…> in the prompt: a LoRA is not cut to a rank; leave the fourth value out"
                )));
            }
            let found = self.loras.named(&name)?;
            if !flags.contains(&found) {
                draft.adapters.lora.push(WeightedFile { file: InputFile::named(&found), weights: vec![unet_weight, text_weight] });
            }
        }
        Ok(())
    }

    /// Finds the files of adapters, upscalers and a refiner that a draft names.
    ///
    /// # Errors
    /// There is no file of a name, or more than one.
    pub(in crate::cli) fn find(&self, draft: &mut Draft) -> Result<()> {
        let one = |folders: &AdapterFolders, file: &mut InputFile| -> Result<()> {
            let found = folders.find(&file.path().to_string_lossy())?;
            if found != file.path() {
                *file = file.found_at(&found);
            }
            Ok(())
        };
        draft.adapters.lora.iter_mut().try_for_each(|lora| one(&self.loras, &mut lora.file))?;
        draft.adapters.embedding.iter_mut().try_for_each(|file| one(&self.embeddings, file))?;
        draft.adapters.vae.iter_mut().try_for_each(|vae| one(&self.vaes, &mut vae.0))?;
        draft.adapters.control.iter_mut().try_for_each(|control| one(&self.control_nets, &mut control.model))?;
        for prompt in &mut draft.adapters.ip_adapter {
            one(&self.ip_adapters, &mut prompt.model)?;
            // Named or not, it decides the pixels.
            let encoder = find_image_encoder(prompt.model.path(), prompt.encoder.as_ref().map(InputFile::path))?;
            prompt.encoder = Some(InputFile::of_network(&encoder));
        }
        self.find_tags(draft)?;
        self.passes.find(draft)
    }
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

/// What `--model` names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::cli) enum Named {
    /// A file or folder.
    Path(PathBuf),
    /// The model that is compiled in.
    Builtin,
    /// A repository of the hub.
    Hub(HubId),
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
    let ModelParts { clip_l, clip_g, t5, tokenizers } = parts;
    let options = OpenOptions { prefer_variant: None, clip_l, clip_g, t5, tokenizers };
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

/// The folder in which models are looked for by name, and whether somebody named it.
pub(in crate::cli) fn models_folder(models_dir: Option<&Path>) -> (PathBuf, bool) {
    let from_environment = std::env::var_os("SD_GEN_MODELS").filter(|dir| !dir.is_empty()).map(PathBuf::from);
    let named = models_dir.map(Path::to_owned).or(from_environment);
    (named.clone().unwrap_or_else(|| PathBuf::from("models")), named.is_some())
}

/// Finds what `--model` names: a path, a folder of models, a name in the models folder, a hub id, or nothing at all. What is here wins.
/// Opens nothing but headers, and fetches nothing.
///
/// # Errors
/// Nothing of that name, or more than one; the message lists what there is.
pub(in crate::cli) fn resolve(what: Option<&str>, models_dir: Option<&Path>) -> Result<Named> {
    let (folder, is_named) = models_folder(models_dir);
    let Some(what) = what else {
        return match find_models(&folder).as_slice() {
            [] if !is_named => Ok(Named::Builtin),
            [] => Err(Error::Input(format!(
                "the models folder {} holds no model; put a .safetensors file or a diffusers folder there",
                folder.display()
            ))),
            several => only_one(several, &folder),
        };
    };
    let path = Path::new(what);
    if path.is_dir() && !is_model_folder(path) {
        return match find_models(path).as_slice() {
            [] => Err(Error::Input(format!(
                "--model {what}: the folder holds no model; a model is a .safetensors file or a folder with unet/, vae/ and text_encoder/"
            ))),
            several => only_one(several, path),
        };
    }
    if path.exists() {
        return Ok(Named::Path(path.to_owned()));
    }
    let hub_id = HubId::parse(what)?;
    match (by_name(what, hub_id.is_none(), &folder)?, hub_id) {
        (Some(named), _) => Ok(named),
        (None, Some(_)) if path.parent().is_some_and(|parent| !parent.as_os_str().is_empty() && parent.is_dir()) => {
            // A path that was misspelt is nothing to ask the network about.
            Err(Error::Input(format!("--model {what}: there is no such file or folder; if the hub's is meant, write hf://{what}")))
        }
        (None, Some(id)) => Ok(Named::Hub(id)),
        (None, None) => {
            let found = find_models(&folder);
            let there = if found.is_empty() { format!("{BUILTIN} (built in)") } else { names(&found.iter().collect::<Vec<_>>()) };
            Err(Error::Input(format!("--model {what}: no file, folder or model of that name; in {}: {there}", folder.display())))
        }
    }
}

/// The one model of a folder. What is no whole model steps back where there is one, and so does the built-in model's own folder;
/// a pickle is meant where there is nothing else, and opening it says why it is not opened.
fn only_one(found: &[Found], folder: &Path) -> Result<Named> {
    let (pickles, rest): (Vec<&Found>, Vec<&Found>) = found.iter().partition(|found| found.holds == CatalogKind::Pickle);
    let is_model = |found: &&&Found| Survey::of(&found.path).is_ok_and(|survey| survey.kind == Kind::Model);
    let models: Vec<&Found> = if rest.len() > 1 { rest.iter().filter(is_model).copied().collect() } else { Vec::new() };
    let others: Vec<&Found> = models.iter().filter(|found| found.name != BUILTIN).copied().collect();
    match (others.as_slice(), models.as_slice(), rest.as_slice(), pickles.as_slice()) {
        ([only], ..) | (_, [only], ..) | (_, _, [only], _) | (_, _, [], [only, ..]) => Ok(Named::Path(only.path.clone())),
        (_, [], ..) => Err(Error::Input(format!("{} holds no whole model, only {}", folder.display(), names(&rest)))),
        _ => Err(Error::Input(format!("{} holds several models; say which with --model: {}", folder.display(), names(&models)))),
    }
}

/// The model of a name; `None` where there is none.
fn by_name(what: &str, may_be_a_path: bool, folder: &Path) -> Result<Option<Named>> {
    let in_folder = folder.join(what);
    if !what.is_empty() && (in_folder.is_file() || is_model_folder(&in_folder)) {
        return Ok(Some(Named::Path(in_folder)));
    }
    let looks_like_a_path = what.ends_with(".safetensors") || what.starts_with(['.', '/', '~']) || what.contains('\\');
    if looks_like_a_path && may_be_a_path {
        return Err(Error::Input(format!("--model {what}: there is no such file or folder")));
    }
    match candidates(what, folder).as_slice() {
        [only] => Ok(Some(Named::Path(only.path.clone()))),
        [] => Ok((what.to_lowercase() == BUILTIN).then_some(Named::Builtin)),
        several => Err(Error::Input(format!("--model {what}: {}", which_of(several)))),
    }
}

/// What the end of a sentence says where a name means several models.
fn which_of(several: &[Found]) -> String {
    format!("several models start so; say which: {}", names(&several.iter().collect::<Vec<_>>()))
}

/// Why a name that is no file's means no model, where that is because it means several; the end of a sentence.
pub(in crate::cli) fn ambiguity(what: &str, models_dir: Option<&Path>) -> Option<String> {
    let found = candidates(what, &models_folder(models_dir).0);
    (found.len() > 1).then(|| which_of(&found))
}

/// The models that a name may mean: a whole name comes before the last part of one, and both before a beginning.
fn candidates(what: &str, folder: &Path) -> Vec<Found> {
    let found = find_models(folder);
    let wanted = what.to_lowercase();
    let fits: [&dyn Fn(&str, &str) -> bool; 4] =
        [&|name, _| name == what, &|name, _| name.to_lowercase() == wanted, &|_, last| last.to_lowercase() == wanted, &|name, last| {
            name.to_lowercase().starts_with(&wanted) || last.to_lowercase().starts_with(&wanted)
        }];
    let chosen = fits.iter().find_map(|fits| {
        let named = found.iter().filter(|found| fits(&found.name, found.name.rsplit('/').next().unwrap_or(&found.name)));
        let (pickles, rest): (Vec<&Found>, Vec<&Found>) = named.partition(|found| found.holds == CatalogKind::Pickle);
        // Opening a pickle says why it is not opened, which helps where nothing else has the name.
        Some(if rest.is_empty() { pickles } else { rest }).filter(|chosen| !chosen.is_empty())
    });
    chosen.unwrap_or_default().into_iter().cloned().collect()
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

fn names(found: &[&Found]) -> String {
    const MOST: usize = 40;
    let more = if found.len() > MOST { format!(" and {} more", found.len() - MOST) } else { String::new() };
    let name = |one: &&&Found| match found.iter().filter(|other| other.name == one.name).count() {
        1 => one.name.clone(),
        // A file and another with the same name: the ending tells them apart.
        _ => {
            let file = one.path.file_name().unwrap_or_default().to_string_lossy();
            one.name.rsplit_once('/').map_or_else(|| file.to_string(), |(folder, _)| format!("{folder}/{file}"))
        }
    };
    format!("{}{more}", found.iter().take(MOST).map(|found| name(&found)).collect::<Vec<_>>().join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_in_the_prompt_are_loras_unless_a_flag_names_the_file() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["one", "two"] {
            let from = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/adapters/full.safetensors");
            std::fs::copy(from, folder.path().join(name).with_extension("safetensors")).unwrap();
        }
        let load = Draft::default().with(|draft| draft.load.lora_dir = Some(SourcePath(folder.path().into()))).load.decide(&());
        let finder = AdapterFinder::new(&load);
        let found = |change: &dyn Fn(&mut Draft)| {
            let mut draft = Draft::new("<lora:one:0.5:0.7> a <lora:two:te=0.2>").with(change);
            finder.find(&mut draft)?;
            let named = |lora: &WeightedFile| (lora.file.path().file_stem().unwrap().to_owned(), lora.weight(), lora.second_weight());
            Ok::<_, Error>(draft.adapters.lora.iter().map(named).collect::<Vec<_>>())
        };
        assert_eq!(found(&|_| {}).unwrap(), [("one".into(), 0.7, 0.5), ("two".into(), 0.2, 0.2)]);
        let flag = |draft: &mut Draft| draft.set("lora", ["two:0.9"]).unwrap();
        assert_eq!(found(&flag).unwrap(), [("two".into(), 0.9, 0.9), ("one".into(), 0.7, 0.5)]);
        assert!(found(&|draft| draft.set("prompt-syntax", ["plain"]).unwrap()).unwrap().is_empty());
        for (prompt, said) in [("<lora:none:1>", "no LoRA \"none\""), ("<lora:one:x>", "no weight"), ("<lora:one:1:1:8>", "rank")] {
            let error = found(&|draft| draft.prompts = vec![prompt.into()]).unwrap_err().to_string();
            assert!(error.contains(said), "{prompt}: {error}");
        }
        // A prompt names files in the folder only.
        let path = folder.path().join("one.safetensors").display().to_string();
        let elsewhere = AdapterFinder::new(&Draft::default().load.decide(&()));
        assert!(elsewhere.find(&mut Draft::new(format!("<lora:{path}:1>"))).is_err());
    }
}
