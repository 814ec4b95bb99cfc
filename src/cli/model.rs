//! Which model `--model` names.

use super::download::{self, Showing};
use crate::hub::{HubId, name_in_cache};
use crate::weights::Checkpoint;
use crate::{Error, Result};
use candle_core::DType;
use std::path::{Path, PathBuf};

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

/// Opens what `--model` names, in full precision where there is a choice.
///
/// # Errors
/// As [`open_for`].
pub(super) fn open(what: Option<&str>, models_dir: Option<&Path>) -> Result<Checkpoint> {
    open_for(what, models_dir, DType::F32, Showing::default())
}

/// Opens what `--model` names: a path, a folder of models, a name in the models folder, a hub id, or nothing at all.
///
/// What is here wins; only a hub id that names nothing here is fetched, in the variant for `dtype`.
///
/// # Errors
/// Nothing of that name, or more than one; the message lists what there is.
pub(super) fn open_for(what: Option<&str>, models_dir: Option<&Path>, dtype: DType, showing: Showing) -> Result<Checkpoint> {
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
    let hub_id = HubId::parse(what)?;
    match (by_name(what, hub_id.is_none(), &folder)?, hub_id) {
        (Some(checkpoint), _) => Ok(checkpoint),
        (None, Some(_)) if path.parent().is_some_and(|parent| !parent.as_os_str().is_empty() && parent.is_dir()) => {
            // A path that was misspelt is nothing to ask the network about.
            Err(Error::Input(format!("--model {what}: there is no such file or folder; if the hub's is meant, write hf://{what}")))
        }
        (None, Some(id)) => download::open(&id, dtype, showing),
        (None, None) => {
            let found = candidates(&folder);
            let there = if found.is_empty() { format!("{BUILTIN} (built in)") } else { names(&found) };
            Err(Error::Input(format!("--model {what}: no file, folder or model of that name; in {}: {there}", folder.display())))
        }
    }
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

/// The model of that name in the models folder, or the built-in one; `None` where there is none.
fn by_name(what: &str, may_be_a_path: bool, folder: &Path) -> Result<Option<Checkpoint>> {
    let in_folder = folder.join(what);
    if !what.is_empty() && (in_folder.is_file() || is_model_folder(&in_folder)) {
        return Checkpoint::open(&in_folder).map(Some);
    }
    let looks_like_a_path = what.ends_with(".safetensors") || what.starts_with(['.', '/', '~']) || what.contains('\\');
    if looks_like_a_path && may_be_a_path {
        return Err(Error::Input(format!("--model {what}: there is no such file or folder")));
    }
    let found = candidates(folder);
    let wanted = what.to_lowercase();
    let matching =
        |test: &dyn Fn(&str) -> bool| found.iter().filter(|path| test(&name_of(path).to_lowercase())).cloned().collect::<Vec<_>>();
    let exact = matching(&|name| name == wanted);
    let chosen = if exact.is_empty() { matching(&|name| name.starts_with(&wanted)) } else { exact };
    match chosen.as_slice() {
        [only] => Checkpoint::open(only).map(Some),
        [] if wanted == BUILTIN => builtin().map(Some),
        // Opening a pickle says why it is not opened.
        [] => {
            let pickle = pickles(folder).into_iter().find(|path| name_of(path).to_lowercase() == wanted);
            pickle.map(|pickle| Checkpoint::open(&pickle)).transpose()
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

fn names(paths: &[PathBuf]) -> String {
    paths.iter().map(|path| name_of(path)).collect::<Vec<_>>().join(", ")
}
