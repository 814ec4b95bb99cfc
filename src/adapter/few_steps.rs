//! LoRAs that distil a model to a few steps.

use crate::family::schedule::TITLES;
use crate::sampling::FewSteps;
use crate::weights::{Blob, WeightFile};
use std::collections::HashMap;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

/// Files whose headers were read that are remembered.
const KEPT: usize = 256;

type KnownFewSteps = HashMap<(String, String), Option<(FewSteps, String)>>;

/// How a LoRA wants its model to be sampled, and the sentence that tells from what that is known; `None` for one that is no distillation,
/// or cannot be read. `content` is the hash of its bytes: a file's header is read once.
pub fn few_steps_of(path: &Path, content: &str) -> Option<(FewSteps, String)> {
    static KNOWN: Mutex<Option<KnownFewSteps>> = Mutex::new(None);
    let key = (content.to_owned(), path.file_name().unwrap_or_default().to_string_lossy().into_owned());
    let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    let known = known.get_or_insert_with(HashMap::new);
    if let Some(few) = known.get(&key) {
        return few.clone();
    }
    let name = path.display().to_string();
    let few = Blob::open(path).and_then(|blob| WeightFile::new(name, blob)).ok().and_then(|file| few_steps_in(&file));
    if known.len() >= KEPT {
        known.clear();
    }
    known.insert(key, few.clone());
    few
}

/// The same of a file that is open.
pub(crate) fn few_steps_in(file: &WeightFile) -> Option<(FewSteps, String)> {
    let titles = TITLES.iter().filter_map(|key| Some((*key, file.metadata().get(*key)?.as_str())));
    FewSteps::of_file(&file.name, titles)
}
