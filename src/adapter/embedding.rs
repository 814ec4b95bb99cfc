//! Textual inversions: words that a text encoder learnt beside its own.
//!
//! The word is the file's name without its ending, as A1111 has it; a key in the file does not matter.
//!
//! # Source
//! lllyasviel/stable-diffusion-webui-forge@dfdcbab:modules_forge, backend/text_processing/textual_inversion.py; diffusers
//! `loaders/textual_inversion.py`.

use crate::Result;
use crate::family;
use crate::spec::{Family, ModelSpec};
use crate::text::LearnedWord;
use crate::weights::{Blob, Entry, PICKLE, WeightFile, decode, is_pickle, model_error, quoted};
use candle_core::{Device, Tensor};
use std::path::Path;
use std::sync::Arc;

/// Vectors of one word: as many as a text has places.
const MOST_VECTORS: usize = 75;

/// Words that a text encoder learnt beside its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Embedding {
    /// The family whose text encoders have its widths.
    pub family: Family,
    /// Vectors of one word.
    pub vectors: usize,
    /// Who writes such files.
    pub writer: &'static str,
    /// The word, where the file says it.
    pub word: Option<String>,
}

impl Embedding {
    /// The textual inversion in a file; `None` where it is none.
    pub(crate) fn read(file: &WeightFile) -> Option<Embedding> {
        // Vectors of a width, or one vector.
        let size = |key: &str| match file.shape(key)? {
            [width] => Some((1, *width)),
            [vectors, width] => Some((*vectors, *width)),
            _ => None,
        };
        if let (Some((vectors, 768)), Some((_, 1280))) = (size("clip_l"), size("clip_g")) {
            return Some(Embedding { family: family::SDXL, vectors, writer: "kohya", word: None });
        }
        let key = match file.entries() {
            [only] => only.name.as_str(),
            _ => "emb_params",
        };
        let (vectors, width) = size(key)?;
        let family = match width {
            768 => family::SD1,
            1024 => family::SD2,
            1280 => family::SDXL,
            _ => return None,
        };
        let word = (key != "emb_params").then(|| key.to_owned());
        // One tensor of any name may be anything; a word is in brackets, or the name is the known one.
        let known = key == "emb_params" || key.starts_with('<') || key.starts_with("string_to_param");
        known.then_some(Embedding { family, vectors, writer: if key == "emb_params" { "A1111" } else { "diffusers" }, word })
    }
}

/// A textual inversion, opened to be used.
#[derive(Debug)]
pub struct EmbeddingFile {
    file: Arc<WeightFile>,
    /// What is written in a prompt to use it.
    pub word: String,
    /// The tensors that may hold its vectors.
    keys: Vec<String>,
}

impl EmbeddingFile {
    /// Opens a `.safetensors` file.
    ///
    /// # Errors
    /// It cannot be read, or holds no vectors; the message names the file.
    pub fn open(path: &Path) -> Result<EmbeddingFile> {
        let shown = path.display().to_string();
        if is_pickle(path) {
            return Err(model_error(&shown, PICKLE));
        }
        Ok(Self::named(WeightFile::new(shown, Blob::open(path)?)?))
    }

    /// Opens a file's bytes, as [`EmbeddingFile::open`] does a file.
    ///
    /// # Errors
    /// As [`EmbeddingFile::open`].
    pub fn from_bytes(name: &str, bytes: Vec<u8>) -> Result<EmbeddingFile> {
        Ok(Self::named(WeightFile::new(name.to_owned(), Blob::Owned(bytes))?))
    }

    fn named(file: WeightFile) -> EmbeddingFile {
        let word = Path::new(&file.name).file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let keys = file.entries().iter().map(|entry| entry.name.clone()).collect();
        EmbeddingFile { file: Arc::new(file), word, keys }
    }

    /// A word that is bundled with a LoRA.
    pub(super) fn bundled(file: &Arc<WeightFile>, word: String, keys: Vec<String>) -> EmbeddingFile {
        EmbeddingFile { file: file.clone(), word, keys }
    }

    /// What people call the file.
    pub fn file_name(&self) -> &str {
        &self.file.name
    }

    /// The word for each of a model's text encoders.
    ///
    /// # Errors
    /// Its vectors are of other widths than the text encoders', or not finite.
    pub fn words(&self, spec: &ModelSpec) -> Result<Vec<LearnedWord>> {
        let widths: Vec<usize> = spec.text_encoders.iter().map(|text| text.clip.hidden_size).collect();
        let entry = |end: &str| self.file.entry(self.keys.iter().find(|key| key.rsplit('.').next() == Some(end))?);
        let (large, giant) = (entry("clip_l"), entry("clip_g"));
        let all: Vec<&Entry> = self.keys.iter().filter_map(|key| self.file.entry(key)).collect();
        let entries: Vec<&Entry> = match (large, giant, all.as_slice()) {
            (Some(large), Some(giant), _) if widths.len() == 1 => {
                // A refiner has the second encoder only, and a Stable Diffusion 1 the first.
                vec![if width(giant) == widths.first().copied() { giant } else { large }]
            }
            (Some(large), Some(giant), _) => vec![large, giant],
            (_, _, [only]) => vec![only],
            _ => vec![entry("emb_params").ok_or_else(|| {
                self.wrong("is no textual inversion: it has neither emb_params, nor clip_l and clip_g, nor a single tensor")
            })?],
        };
        let has: Vec<usize> = entries.iter().filter_map(|entry| width(entry)).collect();
        if has != widths {
            let list = |widths: &[usize]| widths.iter().map(usize::to_string).collect::<Vec<_>>().join(" and ");
            let (name, has, wants) = (spec.family.name(), list(&has), list(&widths));
            return Err(self.wrong(format!(
                "has vectors of width {has}, and the text of this {name} model has {wants}; take an embedding made for it"
            )));
        }
        entries.into_iter().map(|entry| self.vectors(entry)).collect()
    }

    fn vectors(&self, entry: &Entry) -> Result<LearnedWord> {
        let key = quoted(&entry.name);
        let (count, width) = match *entry.shape.as_slice() {
            [width] => (1, width),
            [count, width] => (count, width),
            _ => return Err(self.wrong(format!("has {key} of shape {:?}, which is no list of vectors", entry.shape))),
        };
        if count == 0 || count > MOST_VECTORS {
            return Err(self.wrong(format!("has {count} vectors in {key}; a text has room for 1 to {MOST_VECTORS}")));
        }
        if !decode::readable(entry.dtype) {
            return Err(self.wrong(format!("stores {key} as {}, which is not read", entry.dtype)));
        }
        let values = decode::numbers::<f32>(&self.file.bytes(entry)?, entry.dtype);
        if values.iter().any(|x| !x.is_finite()) {
            return Err(self.wrong(format!("has values that are not numbers (NaN or infinity) in {key}")));
        }
        Ok(LearnedWord { word: self.word.clone(), vectors: Tensor::from_vec(values, (count, width), &Device::Cpu)? })
    }

    fn wrong(&self, what: impl std::fmt::Display) -> crate::Error {
        model_error(&self.file.name, what)
    }
}

/// The width of the vectors in a tensor.
fn width(entry: &Entry) -> Option<usize> {
    entry.shape.last().copied()
}
