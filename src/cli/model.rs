//! Which model `--model` names.

use super::args::ModelFlags;
use super::progress::Progress;
use crate::batch::{Footprint, Load, Painter};
use crate::device::{DTypeChoice, free_memory, release};
use crate::pipeline::{Observer, Pipeline, VaeTiling};
use crate::request::GenerationRequest;
use crate::weights::Checkpoint;
use crate::{Error, Result};
use candle_core::{DType, Device};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

/// The name of the model that is compiled in.
pub(super) const BUILTIN: &str = "emoji";

#[cfg(feature = "builtin-model")]
macro_rules! builtin_files {
    ($($path:literal),* $(,)?) => { &[$(($path, include_bytes!(concat!("../../models/emoji/", $path)))),*] };
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
pub(super) struct Opened {
    pub(super) checkpoint: Arc<Checkpoint>,
    /// Its name as people say it.
    pub(super) label: Arc<str>,
    pub(super) dtype: DType,
    pub(super) vae_dtype: DType,
    /// One at least; each gets the weights.
    devices: Vec<Device>,
    /// The VAE computes in f32 although it was not asked for.
    upcast: bool,
    vae_tiling: VaeTiling,
    low_memory: bool,
}

impl Opened {
    pub(super) fn new(checkpoint: Checkpoint, devices: Vec<Device>, flags: &ModelFlags) -> Self {
        let dtype = flags.dtype.on(devices.first().unwrap_or(&Device::Cpu));
        let upcast = flags.vae_dtype == DTypeChoice::Auto && dtype == DType::F16 && checkpoint.spec().vae.force_upcast;
        let vae_dtype = match flags.vae_dtype {
            DTypeChoice::Is(dtype) => dtype,
            DTypeChoice::Auto if upcast => DType::F32,
            DTypeChoice::Auto => dtype,
        };
        let label = label(&checkpoint);
        let (vae_tiling, low_memory) = (flags.vae_tiling, flags.low_memory);
        let (checkpoint, label) = (Arc::new(checkpoint), label.into());
        Self { checkpoint, label, dtype, vae_dtype, devices, upcast, vae_tiling, low_memory }
    }

    /// Where it computes; the first of several.
    pub(super) fn device(&self) -> &Device {
        self.devices.first().unwrap_or(&Device::Cpu)
    }

    /// On how many devices.
    pub(super) fn devices(&self) -> usize {
        self.devices.len().max(1)
    }

    /// What the user should know.
    pub(super) fn remark(&self) -> Option<&'static str> {
        self.upcast.then_some("this model's VAE overflows in f16: it computes in f32 (--vae-dtype changes that)")
    }

    /// Says what was concluded, and from what.
    pub(super) fn describe(&self, progress: &Progress) {
        let spec = self.checkpoint.spec();
        progress.say(&format!("{}: {}", self.checkpoint.name(), spec.family.name()));
        for sentence in &spec.evidence {
            progress.say(&format!("  {sentence}"));
        }
        let (dtype, vae_dtype) = (self.dtype.as_str(), self.vae_dtype.as_str());
        for device in &self.devices {
            let name = crate::device::name(device).map(|name| format!(" ({name})")).unwrap_or_default();
            progress.say(&format!("computing on {:?}{name} in {dtype}, VAE in {vae_dtype}", device.location()));
        }
    }

    /// All networks on the device; or, where that is asked for or the memory is too small for it, the one at work.
    fn load(&self, device: usize, observer: &mut dyn Observer) -> Result<Pipeline> {
        const GIB: f64 = (1u64 << 30) as f64;
        let device = self.devices.get(device).unwrap_or(&Device::Cpu);
        let &Self { ref checkpoint, dtype, vae_dtype, vae_tiling, low_memory, .. } = self;
        let in_turn = || Pipeline::in_turn(checkpoint.clone(), device, dtype, vae_dtype);
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
            None => match Pipeline::load(&**checkpoint, device, dtype, vae_dtype, observer) {
                Err(error) if error.is_out_of_memory() => {
                    release(device);
                    observer.warn("the memory is too small for all networks at once: they take turns (--low-memory)");
                    in_turn()?
                }
                loaded => loaded?,
            },
        };
        Ok(pipeline.with_vae_tiling(vae_tiling))
    }

    /// What decides, beside a request, which pixels it paints.
    pub(super) fn painter(&self) -> Result<Painter> {
        let (dtype, vae_dtype) = (self.dtype.as_str(), self.vae_dtype.as_str());
        Ok(Painter { model: self.checkpoint.identity()?, dtype, vae_dtype })
    }

    /// The memory that its weights and a request's pictures take.
    pub(super) fn footprint(&self, request: &GenerationRequest) -> Footprint {
        let weights = Footprint::weights(&self.checkpoint, self.dtype, self.vae_dtype);
        Footprint::new(self.checkpoint.spec(), request, self.dtype, self.vae_dtype, self.device(), weights, free_memory(self.device()))
    }
}

/// The models of a run, loaded when their turn comes. Lines that are still being typed may name more of them.
#[derive(Clone, Default)]
pub(super) struct Models {
    opened: Arc<Mutex<Vec<Arc<Opened>>>>,
    /// Of the model with the most.
    devices: usize,
}

impl Models {
    pub(super) fn new(model: Opened) -> Self {
        let models = Self::on(model.devices());
        models.add(model);
        models
    }

    /// For models on up to so many devices.
    pub(super) fn on(devices: usize) -> Self {
        Self { devices, ..Self::default() }
    }

    /// Gives the model's number.
    pub(super) fn add(&self, model: Opened) -> usize {
        let mut models = self.opened.lock().unwrap_or_else(PoisonError::into_inner);
        models.push(Arc::new(model));
        models.len() - 1
    }

    pub(super) fn get(&self, model: usize) -> Option<Arc<Opened>> {
        self.opened.lock().unwrap_or_else(PoisonError::into_inner).get(model).cloned()
    }
}

impl Load for Models {
    fn load(&mut self, model: usize, observer: &mut dyn Observer) -> Result<Pipeline> {
        self.load_on(model, 0, observer)
    }

    fn devices(&self, model: usize) -> usize {
        self.get(model).map_or(1, |opened| opened.devices())
    }

    fn most_devices(&self) -> usize {
        self.devices
    }

    fn load_on(&mut self, model: usize, device: usize, observer: &mut dyn Observer) -> Result<Pipeline> {
        let opened = self.get(model).ok_or_else(|| Error::Model("a model that was not opened".into()))?;
        let checkpoint = &opened.checkpoint;
        let pipeline = opened.load(device, observer)?;
        let unused = checkpoint.unknown();
        if let Some(first) = unused.first() {
            let more = if unused.len() > 1 { format!(" and {} more", unused.len() - 1) } else { String::new() };
            observer.warn(&format!("{}: the model does not use {first:?}{more}", checkpoint.name()));
        }
        Ok(pipeline)
    }

    fn fits_beside(&self, model: usize) -> bool {
        let Some(opened) = self.get(model) else { return false };
        // The other one and its pictures are in memory already, so what is free is left beside them.
        let weights = Footprint::weights(&opened.checkpoint, opened.dtype, opened.vae_dtype);
        free_memory(opened.device()).is_some_and(|free| weights < free / 2)
    }
}

/// Opens what `--model` names: a path, a folder of models, a name in the models folder, or nothing at all.
///
/// # Errors
/// Nothing of that name, or more than one; the message lists what there is.
pub(super) fn open(what: Option<&str>, models_dir: Option<&Path>) -> Result<Checkpoint> {
    let from_environment = std::env::var_os("SD_GEN_MODELS").filter(|dir| !dir.is_empty()).map(PathBuf::from);
    let named = models_dir.map(Path::to_owned).or(from_environment);
    let folder = named.clone().unwrap_or_else(|| PathBuf::from("models"));
    let Some(what) = what else {
        return match candidates(&folder).as_slice() {
            // A pickle that was put there is meant: opening it says why it is not opened.
            [] if let [pickle, ..] = pickles(&folder).as_slice() => Checkpoint::open(pickle),
            [] if named.is_none() => builtin(),
            [] => Err(Error::Input(format!(
                "the models folder {} holds no model; put a .safetensors file or a diffusers folder there",
                folder.display()
            ))),
            several => only_one(several, &folder),
        };
    };
    let path = Path::new(what);
    if path.is_dir() && !is_model_folder(path) {
        return match candidates(path).as_slice() {
            [] => Err(Error::Input(format!(
                "--model {what}: the folder holds no model; a model is a .safetensors file or a folder with unet/, vae/ and text_encoder/"
            ))),
            several => only_one(several, path),
        };
    }
    if path.exists() {
        return Checkpoint::open(path);
    }
    by_name(what, &folder)
}

/// The one model of a folder; the built-in model's own folder steps back where there is another.
fn only_one(found: &[PathBuf], folder: &Path) -> Result<Checkpoint> {
    let others: Vec<&PathBuf> = found.iter().filter(|path| name_of(path) != BUILTIN).collect();
    match (found, others.as_slice()) {
        ([only], _) => Checkpoint::open(only),
        (_, [only]) => Checkpoint::open(only),
        _ => Err(Error::Input(format!("{} holds several models; say which with --model: {}", folder.display(), names(found)))),
    }
}

fn by_name(what: &str, folder: &Path) -> Result<Checkpoint> {
    let in_folder = folder.join(what);
    if !what.is_empty() && in_folder.is_file() {
        return Checkpoint::open(&in_folder);
    }
    let looks_like_a_path = what.ends_with(".safetensors") || what.starts_with(['.', '/', '~']) || what.contains('\\');
    if looks_like_a_path {
        return Err(Error::Input(format!("--model {what}: there is no such file or folder")));
    }
    let found = candidates(folder);
    let wanted = what.to_lowercase();
    let matching =
        |test: &dyn Fn(&str) -> bool| found.iter().filter(|path| test(&name_of(path).to_lowercase())).cloned().collect::<Vec<_>>();
    let exact = matching(&|name| name == wanted);
    let chosen = if exact.is_empty() { matching(&|name| name.starts_with(&wanted)) } else { exact };
    match chosen.as_slice() {
        [only] => Checkpoint::open(only),
        [] if wanted == BUILTIN => builtin(),
        // Opening a pickle says why it is not opened.
        [] if let Some(pickle) = pickles(folder).into_iter().find(|path| name_of(path).to_lowercase() == wanted) => {
            Checkpoint::open(&pickle)
        }
        [] if what.matches('/').count() == 1 => Err(Error::Input(format!(
            "--model {what}: there is no such file, and this version does not download from a hub; download the model and give its path"
        ))),
        [] => {
            let there = if found.is_empty() { format!("{BUILTIN} (built in)") } else { names(&found) };
            Err(Error::Input(format!("--model {what}: no file, folder or model of that name; in {}: {there}", folder.display())))
        }
        several => Err(Error::Input(format!("--model {what}: several models start so; say which: {}", names(several)))),
    }
}

/// The model that is compiled in.
pub(super) fn builtin() -> Result<Checkpoint> {
    if BUILTIN_FILES.is_empty() {
        return Err(Error::Input("no model: this program was built without its built-in one; give a file or folder with --model".into()));
    }
    Checkpoint::from_embedded(BUILTIN, BUILTIN_FILES)
}

/// The models of a folder, sorted by name.
fn candidates(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    let is_model = |path: &PathBuf| is_model_folder(path) || (path.is_file() && path.extension().is_some_and(|e| e == "safetensors"));
    let mut found: Vec<PathBuf> = entries.filter(is_model).collect();
    found.sort();
    found
}

/// Files that hold models in a form that is not opened.
fn pickles(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    entries.filter(|path| path.extension().is_some_and(|e| ["ckpt", "pt", "pth", "bin"].iter().any(|pickle| e == *pickle))).collect()
}

fn is_model_folder(path: &Path) -> bool {
    path.join("model_index.json").is_file() || path.join("unet").is_dir()
}

/// A model's name as people say it: without folder and ending.
pub(super) fn label(checkpoint: &Checkpoint) -> String {
    let path = Path::new(checkpoint.name());
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

fn names(paths: &[PathBuf]) -> String {
    paths.iter().map(|path| name_of(path)).collect::<Vec<_>>().join(", ")
}
