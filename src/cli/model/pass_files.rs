//! Which files the passes after the first one want: upscalers by their names, and a refiner as a model is named.

use super::named::{Named, resolve};
use crate::adapter::UPSCALER_FOLDERS;
use crate::disk::folder_of;
use crate::inputs::InputFile;
use crate::settings::{Draft, HiresUpscaler, ModelFile};
use crate::spec::Component;
use crate::weights::Checkpoint;
use crate::{Error, Result};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// Finds what drafts name, and knows the models that it opened.
pub(super) struct PassFiles {
    /// The models folder, and whether somebody named it.
    models: PathBuf,
    models_dir: Option<PathBuf>,
    refiners: Mutex<HashMap<PathBuf, ModelFile>>,
}

impl PassFiles {
    pub(super) fn new(models: PathBuf, models_dir: Option<PathBuf>) -> Self {
        Self { models, models_dir, refiners: Mutex::default() }
    }

    /// # Errors
    /// There is no file of a name, or it is no model.
    pub(super) fn find(&self, draft: &mut Draft) -> Result<()> {
        let one = |setting: &'static str, file: &mut InputFile| -> Result<()> {
            let found = upscaler_named(setting, file.path(), &self.models)?;
            if found != file.path() {
                *file = InputFile::named(&found);
            }
            Ok(())
        };
        if let Some(upscale) = &mut draft.passes.upscale {
            one("upscale", &mut upscale.file)?;
        }
        if let Some(HiresUpscaler::Network(file)) = &mut draft.passes.hires_upscaler {
            one("hires-upscaler", file)?;
        }
        if let Some(refiner) = &mut draft.passes.refiner {
            *refiner = self.refiner(&refiner.path)?;
        }
        Ok(())
    }

    fn refiner(&self, named: &Path) -> Result<ModelFile> {
        let mut known = self.refiners.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(model) = known.get(named) {
            return Ok(model.clone());
        }
        let wrong = |what: &str| Error::setting("refiner", format!(" {}: {what}", named.display()));
        let path = match resolve(named.to_str(), self.models_dir.as_deref()).map_err(of_refiner)? {
            Named::Path(path) => path,
            Named::Builtin => return Err(wrong("is the built-in model; give a file or folder")),
            Named::Hub(_) => {
                return Err(wrong("is not here; give a file or folder, or generate with it once as --model, which fetches it"));
            }
        };
        let model = Checkpoint::open(&path)?;
        let spec = model.spec();
        let texts = spec.text_components();
        let numbers = texts.chain([Component::UNET]).map(|component| model.parameters(component)).sum();
        let opened = ModelFile { identity: Some(model.identity()?), numbers, path };
        known.insert(named.to_owned(), opened.clone());
        Ok(opened)
    }
}

/// What was said of `--model` is about the refiner.
fn of_refiner(error: Error) -> Error {
    match error {
        Error::Input(what) => Error::Input(what.replace("--model", "--refiner")),
        error => error,
    }
}

/// The file of an upscaler: a path, or a name in a folder of them, however it is spelt.
pub(in crate::cli) fn upscaler_named(setting: &'static str, what: &Path, models: &Path) -> Result<PathBuf> {
    if what.is_file() {
        return Ok(what.to_owned());
    }
    let shown = what.display();
    let is_name = what.components().count() == 1;
    let fold = |name: &str| name.to_lowercase().replace(['-', '_', ' ', '.'], "");
    let wanted = fold(what.to_string_lossy().trim_end_matches(".safetensors"));
    let beside = folder_of(models);
    let folders = std::iter::once(models.to_owned()).chain(UPSCALER_FOLDERS.iter().flat_map(|name| [models.join(name), beside.join(name)]));
    let mut named = Vec::new();
    for entry in folders.filter(|_| is_name).flat_map(|folder| std::fs::read_dir(folder).into_iter().flatten().flatten()) {
        let path = entry.path();
        let is_ours = path.extension().is_some_and(|ending| ending.eq_ignore_ascii_case("safetensors")) && path.is_file();
        if is_ours && fold(&path.file_stem().unwrap_or_default().to_string_lossy()) == wanted && !named.contains(&path) {
            named.push(path);
        }
    }
    named.sort();
    match named.as_slice() {
        [one] => Ok(one.clone()),
        [] => Err(Error::setting(
            setting,
            format!(
                " {shown}: there is no such file, and none of that name in {} or in a folder {} beside or inside it",
                models.display(),
                UPSCALER_FOLDERS.join(", ")
            ),
        )),
        several => {
            let several: Vec<String> = several.iter().map(|path| path.display().to_string()).collect();
            Err(Error::setting(setting, format!(" {shown}: there are several; say which: {}", several.join(", "))))
        }
    }
}
