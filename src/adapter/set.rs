//! The adapters of one image, ready for a model.

use super::{Adapter, AdapterUse, Deltas, EmbeddingFile};
use crate::Result;
use crate::spec::Component;
use crate::text::LearnedWord;
use crate::weights::Checkpoint;
use std::collections::{HashMap, HashSet};
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

/// Files that stay open, and sets that are kept: a sweep goes round that many.
const KEPT: usize = 64;

/// A LoRA's file and its strengths.
#[derive(Debug, Clone, PartialEq)]
pub struct LoraChoice {
    /// The file.
    pub path: PathBuf,
    /// The strength in the denoiser.
    pub weight: f64,
    /// The strength in the text encoders.
    pub text_weight: f64,
}

/// What is asked for.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct AdapterChoice {
    /// LoRAs, in the order in which they are applied.
    pub loras: Vec<LoraChoice>,
    /// Textual inversions.
    pub embeddings: Vec<PathBuf>,
    /// Of a LoRA that does not fit as a whole, what fits is taken.
    pub partial: bool,
}

impl AdapterChoice {
    /// Nothing is asked for.
    pub fn is_empty(&self) -> bool {
        self.loras.is_empty() && self.embeddings.is_empty()
    }
}

/// The adapters of one image: what they change of a model, and the words that they teach it.
#[derive(Debug, Clone, Default)]
pub struct AdapterSet {
    deltas: Arc<Deltas>,
    words: Vec<Vec<LearnedWord>>,
    /// What the words are, and of which files.
    learned: String,
}

impl AdapterSet {
    /// What is changed.
    pub fn deltas(&self) -> &Arc<Deltas> {
        &self.deltas
    }

    /// The words that the text encoder `index` learns.
    pub fn words(&self, index: usize) -> &[LearnedWord] {
        self.words.get(index).map_or(&[], Vec::as_slice)
    }

    /// Equal for sets that make the same of a network; empty where it stays as it is.
    pub fn signature(&self, component: Component) -> String {
        let words = if component.is_text() { self.learned.as_str() } else { "" };
        format!("{}{words}", self.deltas.signature(component))
    }

    /// The same of all text encoders.
    pub fn text_signature(&self) -> String {
        let all = Component::ALL.into_iter().filter(|component| component.is_text());
        all.map(|component| self.signature(component)).collect::<Vec<_>>().join(";").trim_end_matches(';').to_owned()
    }
}

/// Opens adapters and holds them against one model, each file and each set once.
#[derive(Debug, Default)]
pub struct AdapterCache {
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    loras: HashMap<PathBuf, Arc<Adapter>>,
    embeddings: HashMap<PathBuf, Arc<EmbeddingFile>>,
    /// LoRAs whose numbers were looked at.
    checked: HashSet<PathBuf>,
    /// The latest last.
    sets: Vec<(AdapterChoice, Arc<AdapterSet>)>,
}

impl AdapterCache {
    /// What was asked for, ready for `model`.
    ///
    /// # Errors
    /// A file cannot be read, or does not fit; the message names it and what does not fit.
    pub fn prepare(&self, model: &Checkpoint, choice: &AdapterChoice) -> Result<Arc<AdapterSet>> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, set)) = known.sets.iter().find(|(other, _)| other == choice) {
            return Ok(set.clone());
        }
        let mut uses = Vec::new();
        for LoraChoice { path, weight, text_weight } in &choice.loras {
            let adapter = kept(&mut known.loras, path, Adapter::open)?;
            uses.push(AdapterUse { adapter, weight: *weight, text_weight: *text_weight });
        }
        let deltas = Deltas::bind(model, &uses, choice.partial)?;
        // What does not fit is refused before all of it is read.
        for (LoraChoice { path, .. }, used) in choice.loras.iter().zip(&uses) {
            if !known.checked.contains(path) {
                used.adapter.check_numbers()?;
                known.checked.insert(path.clone());
            }
        }
        let mut set = AdapterSet { deltas: Arc::new(deltas), ..AdapterSet::default() };
        let mut files: Vec<Arc<EmbeddingFile>> = uses.iter().flat_map(|used| used.adapter.words().iter().cloned()).collect();
        for path in &choice.embeddings {
            files.push(kept(&mut known.embeddings, path, EmbeddingFile::open)?);
        }
        for file in files {
            let words = file.words(model.spec())?;
            set.words.resize_with(words.len(), Vec::new);
            set.words.iter_mut().zip(words).for_each(|(all, word)| all.push(word));
            // Writing to a text does not fail.
            let _ = write!(set.learned, "[{} {}]", file.file_name(), file.word);
        }
        let set = Arc::new(set);
        if known.sets.len() >= KEPT {
            known.sets.remove(0);
        }
        known.sets.push((choice.clone(), set.clone()));
        Ok(set)
    }
}

fn kept<T>(known: &mut HashMap<PathBuf, Arc<T>>, path: &Path, open: impl FnOnce(&Path) -> Result<T>) -> Result<Arc<T>> {
    if let Some(file) = known.get(path) {
        return Ok(file.clone());
    }
    let file = Arc::new(open(path)?);
    if known.len() >= KEPT {
        known.clear();
    }
    known.insert(path.to_owned(), file.clone());
    Ok(file)
}
