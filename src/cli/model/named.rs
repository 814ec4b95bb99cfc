//! Which model a name means: a path, a name in the models folder, a hub id, or the one that is compiled in.

use crate::hub::HubId;
use crate::survey::{Kind, Survey};
use crate::weights::{CatalogKind, Found, find_models, is_model_folder};
use crate::{Error, Result};
use std::path::{Path, PathBuf};

/// The name of the model that is compiled in.
pub(in crate::cli) const BUILTIN: &str = "emoji";

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
    let hub_id = HubId::parse(what).map_err(|error| Error::Input(format!("--model {error}")))?;
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

/// Whether a model's name, or the last part of it, is what was meant.
type NameTest<'a> = &'a dyn Fn(&str, &str) -> bool;

/// The models that a name may mean: a whole name comes before the last part of one, and both before a beginning.
fn candidates(what: &str, folder: &Path) -> Vec<Found> {
    let found = find_models(folder);
    let wanted = what.to_lowercase();
    let fits: [NameTest<'_>; 4] =
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
