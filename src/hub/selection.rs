//! Which files of a repository are the model, and nothing else.

use super::HubId;
use super::client::Listed;
use super::id::is_plain_path;
use crate::weights::{PICKLE, choose, is_pickle};
use crate::{Error, Result};

/// How many candidates a message lists.
const MOST_SHOWN: usize = 12;

/// In which form a repository has its model.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum SelectionForm {
    /// A diffusers folder.
    Folder,
    /// One file.
    File(String),
}

/// The form of the model among `files`.
///
/// # Errors
/// No model, only pickles, several candidates, or no such file: the message lists what there is.
pub(super) fn form(id: &HubId, files: &[Listed]) -> Result<SelectionForm> {
    let wrong = |what: String| Error::Model(format!("{id}: {what}"));
    // A path that leads elsewhere is nobody's model.
    let plain = || files.iter().map(|file| file.path.as_str()).filter(|path| is_plain_path(path));
    let singles: Vec<&str> = plain().filter(|path| path.ends_with(".safetensors")).collect();
    if let Some(named) = &id.file {
        return match plain().any(|path| path == named) {
            _ if is_pickle(named) => Err(wrong(format!("{named} {PICKLE}"))),
            true if named.ends_with(".safetensors") => Ok(SelectionForm::File(named.clone())),
            true => Err(wrong(format!("{named} is no .safetensors file; {}", there_are(&singles)))),
            false => Err(wrong(format!("the repository has no file {named}; {}", there_are(&singles)))),
        };
    }
    if plain().any(|path| path == "model_index.json" || path == "unet/config.json") {
        return Ok(SelectionForm::Folder);
    }
    match singles.as_slice() {
        [only] => Ok(SelectionForm::File((*only).to_owned())),
        [] => match plain().find(|path| is_pickle(path)) {
            Some(pickle) => Err(wrong(format!("the repository has no .safetensors file, and {pickle} {PICKLE}"))),
            None => Err(wrong("the repository has no model: neither model_index.json nor a .safetensors file".into())),
        },
        several => {
            let name = &id.repository;
            Err(wrong(format!("the repository has several models; say which, as in {name}:{}; {}", several[0], there_are(several))))
        }
    }
}

/// The weight file, or the index of shards, of the network in the folder `dir`.
///
/// # Errors
/// There is none that is not a pickle.
pub(super) fn weights(id: &HubId, files: &[Listed], dir: &str, prefer: Option<&str>) -> Result<String> {
    let inside = files.iter().filter_map(|file| file.path.strip_prefix(dir)?.strip_prefix('/'));
    let names: Vec<String> = inside.filter(|name| !name.contains('/') && is_plain_path(name)).map(str::to_owned).collect();
    if let Some(chosen) = choose(&names, prefer) {
        return Ok(format!("{dir}/{chosen}"));
    }
    Err(Error::Model(match names.iter().find(|name| is_pickle(name)) {
        Some(pickle) => format!("{id}: {dir} has no .safetensors file, and {dir}/{pickle} {PICKLE}"),
        None => format!("{id}: {dir} has no weights: neither model.safetensors nor diffusion_pytorch_model.safetensors"),
    }))
}

fn there_are(singles: &[&str]) -> String {
    if singles.is_empty() {
        return "it has no .safetensors file".to_owned();
    }
    let shown = singles.iter().take(MOST_SHOWN).copied().collect::<Vec<_>>().join(", ");
    match singles.len().saturating_sub(MOST_SHOWN) {
        0 => format!("it has {shown}"),
        more => format!("it has {shown} and {more} more"),
    }
}
