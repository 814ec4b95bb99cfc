//! What a family reads of a model's files, and what it concludes.

use super::json::Fields;
use super::keys::Pair;
use super::lean_json::{Lean, LeanBounds};
use crate::error::model_error;
use crate::spec::{Component, ModelSpec};
use crate::{Error, Result};
use serde_json::Value;
use std::collections::BTreeMap;

/// The names, shapes and metadata of a file's tensors.
pub(crate) trait TensorNames {
    /// What people call the file.
    fn name(&self) -> &str;
    /// The shape of the tensor `key`.
    fn shape(&self, key: &str) -> Option<&[usize]>;
    /// The names of all tensors.
    fn names(&self) -> Box<dyn Iterator<Item = &str> + '_>;
    /// What its maker wrote into it.
    fn metadata(&self) -> &BTreeMap<String, String>;
    /// The numbers of the tensor `key`; `None` where it is not there or not of numbers.
    ///
    /// # Errors
    /// Its bytes are not there.
    fn numbers(&self, key: &str) -> Result<Option<Vec<f32>>>;
}

/// The longest configuration or vocabulary file that is read, in bytes. CLIP's vocabulary has one million. Vocabularies take about
/// 25 times their length while a tokenizer is made of them.
pub(crate) const MAX_TEXT: u64 = 16 << 20;

/// An error about a file that is longer than any configuration.
pub(crate) fn too_long(file: &str, len: u64) -> Error {
    model_error(file, format!("has {len} bytes, too many for a configuration file"))
}

/// The configuration files of a diffusers folder, wherever it is. Paths inside it are written with `/`.
pub(crate) trait ConfigFiles {
    /// What people call the file `path` of this folder.
    fn shown(&self, path: &str) -> String;
    /// The names of the files and folders in `dir`, sorted; none where there is no such folder.
    fn names(&self, dir: &str) -> Vec<String>;
    /// The whole file `path`, or `None` where there is none.
    ///
    /// # Errors
    /// A file that cannot be read or is far too long for a text.
    fn text(&self, path: &str) -> Result<Option<Vec<u8>>>;
}

impl dyn ConfigFiles + '_ {
    /// The JSON object in the file `path`, or `None` where there is none.
    pub(crate) fn json(&self, path: &str) -> Result<Option<Fields>> {
        self.text(path)?.map(|text| Fields::parse(self.shown(path), &text)).transpose()
    }

    /// The JSON object in the file `path`, which must be there.
    pub(crate) fn required_json(&self, path: &str) -> Result<Fields> {
        self.json(path)?.ok_or_else(|| model_error(self.shown(path), "is missing"))
    }

    /// The UTF-8 text of the file `path`, or `None` where there is none.
    pub(crate) fn utf8(&self, path: &str) -> Result<Option<String>> {
        let Some(bytes) = self.text(path)? else { return Ok(None) };
        // Some editors begin a file with a byte order mark.
        let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").map_or_else(|| bytes.clone(), <[u8]>::to_vec);
        String::from_utf8(bytes).map(Some).map_err(|_| model_error(self.shown(path), "is not UTF-8 text"))
    }
}

/// Configuration files that a single file carries.
pub(crate) struct CarriedFiles {
    name: String,
    texts: BTreeMap<String, String>,
}

impl CarriedFiles {
    /// From a JSON object of paths and texts in the metadata of the file `name`.
    pub(crate) fn parse(name: &str, carried: &str) -> Result<Self> {
        let wrong = |what: &dyn std::fmt::Display| {
            model_error(name, format!("carries a configuration ({}) that cannot be read: {what}", super::CONFIGURATION))
        };
        let texts = Lean::parse(carried, LeanBounds::TEXTS).map_err(|e| wrong(&e))?.into_texts();
        Ok(Self { name: name.to_owned(), texts: texts.ok_or_else(|| wrong(&"it is no object"))? })
    }
}

impl ConfigFiles for CarriedFiles {
    fn shown(&self, path: &str) -> String {
        format!("{}:{path}", self.name)
    }

    fn names(&self, dir: &str) -> Vec<String> {
        names_in(dir, self.texts.keys().map(String::as_str))
    }

    fn text(&self, path: &str) -> Result<Option<Vec<u8>>> {
        match self.texts.get(path).map(String::as_bytes) {
            Some(text) if text.len() as u64 > MAX_TEXT => Err(too_long(&self.shown(path), text.len() as u64)),
            text => Ok(text.map(<[u8]>::to_vec)),
        }
    }
}

/// The names of the files and folders in `dir` among the paths of a folder, sorted.
pub(crate) fn names_in<'a>(dir: &str, paths: impl Iterator<Item = &'a str>) -> Vec<String> {
    let inside = |path: &str| {
        let rest = if dir.is_empty() { Some(path) } else { path.strip_prefix(dir).and_then(|rest| rest.strip_prefix('/')) };
        rest.and_then(|rest| rest.split('/').next()).map(str::to_owned)
    };
    let mut names: Vec<String> = paths.filter_map(inside).collect();
    names.sort_unstable();
    names.dedup();
    names
}

/// Whether the folder has the component: its index says so, or, where the index is silent, its configuration is there.
pub(super) fn present(folder: &dyn ConfigFiles, index: Option<&Fields>, component: &str) -> bool {
    let entry = index.filter(|index| index.has(component)).map(|index| index.get(component));
    match entry {
        Some(Some(Value::Array(list))) => list.iter().any(|v| !v.is_null()),
        Some(_) => false,
        None => folder.names(component).iter().any(|name| name == "config.json"),
    }
}

/// The files of a text encoder's tokenizer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenizerFiles {
    /// Tokens and their ids: `vocab.json`.
    pub vocab_json: String,
    /// Pairs in the order in which they are merged: `merges.txt`.
    pub merges: String,
    /// The token after the end of a text.
    pub pad_token: Option<String>,
    /// Tokens of one text, with start and end.
    pub model_max_length: Option<usize>,
    /// Words that were added to the vocabulary, with their numbers, which follow it.
    pub added: Vec<(String, u32)>,
}

/// What is given beside a model's own files.
#[derive(Clone, Copy, Default)]
pub(crate) struct Beside<'a> {
    /// Text encoders in files of their own; their networks' folders are then "clip_l", "clip_g" and "t5".
    pub(crate) clip_l: Option<&'a dyn TensorNames>,
    pub(crate) clip_g: Option<&'a dyn TensorNames>,
    pub(crate) t5: Option<&'a dyn TensorNames>,
    /// A folder of tokenizers, which takes the place of the model's own.
    pub(crate) tokenizers: Option<&'a dyn ConfigFiles>,
}

impl<'a> Beside<'a> {
    /// CLIP-L (0) or CLIP-G (1), where it is given, and the name of its folder.
    pub(crate) fn clip(&self, index: usize) -> Option<(&'a dyn TensorNames, &'static str)> {
        match index {
            0 => self.clip_l.map(|file| (file, "clip_l")),
            1 => self.clip_g.map(|file| (file, "clip_g")),
            _ => None,
        }
    }
}

/// One network, and under which names its tensors are stored.
#[derive(Debug)]
pub(crate) struct NetworkPlan {
    pub(crate) component: Component,
    /// What people call it: "the UNet".
    pub(crate) title: String,
    /// Its folder in a diffusers folder; of a single file its component's name.
    pub(crate) folder: &'static str,
    /// What all of its tensors' names begin with in the file.
    pub(crate) prefix: &'static str,
    pub(crate) pairs: Vec<Pair>,
}

/// All that a model's files say before a weight is read.
#[derive(Debug)]
pub(crate) struct Description {
    pub(crate) spec: ModelSpec,
    pub(crate) networks: Vec<NetworkPlan>,
    pub(crate) tokenizers: Vec<Option<TokenizerFiles>>,
    /// The text of T5's `tokenizer.json`.
    pub(crate) t5_tokenizer: Option<String>,
    /// The text of `scheduler_config.json`, the model's or its family's.
    pub(crate) scheduler: String,
}

/// A model whose configuration files are to be written.
pub(crate) struct Exported<'a> {
    pub(crate) name: &'a str,
    pub(crate) spec: &'a ModelSpec,
    pub(crate) tokenizers: &'a [Option<TokenizerFiles>],
    pub(crate) t5_tokenizer: Option<&'a str>,
    pub(crate) scheduler: &'a str,
}

impl Exported<'_> {
    pub(crate) fn tokenizer(&self, index: usize) -> Option<&TokenizerFiles> {
        self.tokenizers.get(index)?.as_ref()
    }

    pub(crate) fn scheduler(&self) -> Result<Fields> {
        Fields::parse(self.name, self.scheduler.as_bytes())
    }

    /// An error about the model.
    pub(crate) fn wrong(&self, what: impl std::fmt::Display) -> Error {
        model_error(self.name, what)
    }
}
