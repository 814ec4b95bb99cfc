//! LoRA and its relatives, and textual inversions: what their files hold, what of it a model takes, and how it is merged in.
//!
//! An [`Adapter`] is a file whose keys were understood. [`Deltas::bind`] holds adapters against a model; what fits is merged into
//! each weight on its way from the model's file to the layer ([`ModelWithDeltas`]), so that there is no second copy of the model.
//! [`Adapter::fit`] says the same without merging.
//!
//! # What is refused
//! Pickles; keys that meet no layer, and tensors that do not multiply to the layer's shape, unless what fits is asked for; numbers that
//! are not finite. What is allocated is bounded by the layer that is changed.

mod deltas;
mod embedding;
mod few_steps;
mod find;
mod formula;
mod layers;
mod names;
mod set;

pub use deltas::{AdapterUse, Deltas, ModelWithDeltas};
pub use embedding::{Embedding, EmbeddingFile};
pub(crate) use few_steps::few_steps_in;
pub use few_steps::few_steps_of;
pub use find::{AdapterFolders, UPSCALER_FOLDERS};
pub use names::Change;
pub use set::{AdapterCache, AdapterChoice, AdapterSet, LoraChoice};

use crate::family;
use crate::spec::Family;
use crate::weights::{Blob, Checkpoint, PICKLE, ReadBuffers, WeightFile, decode, is_pickle, model_error, quoted};
use crate::{Error, Result};
use formula::Tensors;
use layers::{BlockOrder, FoundLayer, Layers};
use names::{AdapterKey, Role, Site};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::path::Path;
use std::sync::Arc;

/// Tensors of one file: five times what the largest adapters have.
const MOST_TENSORS: usize = 100_000;

/// Bytes that are looked at at once: whole numbers of every type.
const PART: usize = 1 << 24;

/// One layer that is changed.
#[derive(Debug, Clone)]
pub(crate) struct Target {
    site: Site,
    /// The layer's path with underscores.
    path: String,
    /// How it is changed; the weight's own change where its bias is changed, too.
    change: Change,
    /// The tensors' numbers in the file.
    tensors: BTreeMap<Role, usize>,
    /// The scale's numerator.
    alpha: Option<f64>,
    /// The scale's denominator is the rank's root.
    root: bool,
}

/// A file of changes to a model's layers.
#[derive(Debug)]
pub struct Adapter {
    file: Arc<WeightFile>,
    /// What people call it: the file's name without its ending.
    pub name: String,
    /// Whose spelling the keys have.
    pub writer: &'static str,
    targets: Vec<Target>,
    /// Keys that are no part of a change that is known.
    pub unknown: Vec<String>,
    /// Words that were learned with it.
    words: Vec<Arc<EmbeddingFile>>,
}

/// How much of an adapter a model takes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AdapterFit {
    /// Keys of layers that the model has, with fitting shapes.
    pub keys: usize,
    /// Layers that would change.
    pub layers: usize,
    /// Layers that the file is for.
    pub of: usize,
    /// Keys of layers that the model does not have.
    pub absent: Vec<String>,
    /// Keys of layers that have other shapes in the model, with both.
    pub misshapen: Vec<String>,
}

/// What an adapter changes of a model: the layer, in diffusers' names, and the number of the target.
pub(crate) struct Bound {
    pub(crate) component: crate::spec::Component,
    pub(crate) layer: String,
    pub(crate) target: usize,
    /// The bias is changed; the layer may have none.
    pub(crate) bias: bool,
    pub(crate) weight: bool,
    /// The change is of query, key and value as one, and this is one third of it.
    pub(crate) third: Option<usize>,
}

impl Adapter {
    /// Opens a `.safetensors` file.
    ///
    /// # Errors
    /// It cannot be read, is no adapter, or holds numbers that are not finite; the message names the file and the key.
    pub fn open(path: &Path) -> Result<Adapter> {
        let shown = path.display().to_string();
        if is_pickle(path) {
            return Err(model_error(&shown, PICKLE));
        }
        Self::understood(WeightFile::new(shown, Blob::open(path)?)?)
    }

    /// Opens a file's bytes, as [`Adapter::open`] does a file.
    ///
    /// # Errors
    /// As [`Adapter::open`].
    pub fn from_bytes(name: &str, bytes: Vec<u8>) -> Result<Adapter> {
        Self::understood(WeightFile::new(name.to_owned(), Blob::Owned(bytes))?)
    }

    fn understood(file: WeightFile) -> Result<Adapter> {
        let shown = file.name.clone();
        let file = Arc::new(file);
        if file.entries().len() > MOST_TENSORS {
            return Err(model_error(&shown, format!("has {} tensors; no LoRA has more than {MOST_TENSORS}", file.entries().len())));
        }
        let Some(adapter) = Adapter::read(&file)? else {
            let what = match Embedding::read(&file) {
                Some(_) => "is a textual inversion; give it with `embedding`".to_owned(),
                None => {
                    let first = file
                        .entries()
                        .first()
                        .map_or(String::new(), |entry| format!(": its tensors have names like {}", quoted(&entry.name)));
                    format!("is no LoRA that is known{first}")
                }
            };
            return Err(model_error(&shown, what));
        };
        Ok(adapter)
    }

    /// The adapter in a file; `None` where it is none.
    ///
    /// # Errors
    /// Two tensors are the same part of the same layer.
    pub(crate) fn read(file: &Arc<WeightFile>) -> Result<Option<Adapter>> {
        let settings = PeftSettings::of(file);
        let mut found: BTreeMap<(Site, String), Target> = BTreeMap::new();
        let mut unknown = Vec::new();
        let mut words: BTreeMap<String, Vec<String>> = BTreeMap::new();
        let mut writers: BTreeMap<&'static str, usize> = BTreeMap::new();
        let mut shows = false;
        for (i, entry) in file.entries().iter().enumerate() {
            if let Some(word) = names::bundled_word(&entry.name, file.metadata()) {
                words.entry(word).or_default().push(entry.name.clone());
                continue;
            }
            let Some(AdapterKey { site, writer, path, change, role }) = names::parse(&entry.name) else {
                unknown.push(entry.name.clone());
                continue;
            };
            shows |= change.is_some();
            *writers.entry(writer).or_default() += 1;
            let target = found.entry((site, path.clone())).or_insert_with(|| Target {
                site,
                path,
                change: change.unwrap_or(Change::Full),
                tensors: BTreeMap::new(),
                alpha: None,
                root: false,
            });
            if let Some(change) = change.filter(|change| target.change == Change::Full || *change != Change::Full) {
                target.change = change;
            }
            if let Some(other) = target.tensors.insert(role, i)
                && let Some(other) = file.entries().get(other)
            {
                let what = format!("has both {} and {}, which are the same part of one layer", quoted(&other.name), quoted(&entry.name));
                return Err(model_error(&file.name, what));
            }
        }
        let Some((writer, _)) = writers.into_iter().max_by_key(|(_, count)| *count).filter(|_| shows) else { return Ok(None) };
        let mut targets: Vec<Target> = found.into_values().collect();
        for target in &mut targets {
            target.alpha = one_number(file, target, Role::Alpha);
            if !target.tensors.contains_key(&Role::Alpha)
                && let Some((alpha, root)) = settings.as_ref().and_then(|settings| settings.of_layer(target))
            {
                (target.alpha, target.root) = (Some(alpha), root);
            }
        }
        let name = Path::new(&file.name).file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let words = words.into_iter().map(|(word, keys)| Arc::new(EmbeddingFile::bundled(file, word, keys))).collect();
        Ok(Some(Adapter { file: file.clone(), name, writer, targets, unknown, words }))
    }

    /// What people call the file.
    pub fn file_name(&self) -> &str {
        &self.file.name
    }

    /// How many tensors the file has.
    pub fn keys(&self) -> usize {
        self.file.entries().len()
    }

    /// Words that were learned with it.
    pub fn word_names(&self) -> impl Iterator<Item = &str> {
        self.words.iter().map(|file| file.word.as_str())
    }

    /// Their files.
    pub(crate) fn words(&self) -> &[Arc<EmbeddingFile>] {
        &self.words
    }

    /// The kinds of changes, each once.
    pub fn changes(&self) -> Vec<Change> {
        self.targets.iter().map(|target| target.change).collect::<BTreeSet<_>>().into_iter().collect()
    }

    /// Whether some layer's magnitudes are set too.
    pub fn is_dora(&self) -> bool {
        self.targets.iter().any(|target| target.tensors.contains_key(&Role::DoraScale) || target.tensors.contains_key(&Role::Magnitude))
    }

    /// The ranks, smallest first, each once.
    pub fn ranks(&self) -> Vec<usize> {
        self.targets.iter().filter_map(|target| self.tensors(target).rank()).collect::<BTreeSet<_>>().into_iter().collect()
    }

    /// The alphas, each once, in the order of the layers.
    pub fn alphas(&self) -> Vec<f32> {
        let mut seen = HashSet::new();
        let alphas = self.targets.iter().filter_map(|target| target.alpha.map(|alpha| alpha as f32));
        alphas.filter(|alpha| seen.insert(alpha.to_bits())).collect()
    }

    /// The family whose shapes it has, and the evidence.
    pub fn base(&self) -> Option<(Family, String)> {
        let input = |target: &Target| self.tensors(target).input();
        let cross = self.targets.iter().find(|t| t.site == Site::UNet && t.path.ends_with("attn2_to_k") && input(t).is_some());
        if let Some(target) = cross {
            let width = input(target)?;
            return Some((family::of_context(width)?, format!("{} takes text of width {width}", target.path)));
        }
        // Of layers that only have numbers, those that take text have a width that no other layer has.
        let numbered = self.targets.iter().filter(|t| t.site == Site::UNet && t.path.starts_with('#'));
        if let Some(width) = numbered.filter_map(input).find(|width| matches!(width, 768 | 1024 | 2048)) {
            return Some((family::of_context(width)?, format!("some of its layers take text of width {width}")));
        }
        if let Some(target) = self.targets.iter().find(|t| t.site == Site::Text(1)) {
            return Some((family::SDXL, format!("it changes a second text encoder ({})", target.path)));
        }
        let text = self.targets.iter().find(|t| t.site == Site::Text(0) && t.path.ends_with("_q_proj") && input(t).is_some())?;
        let width = input(text)?;
        let family = if width == 1024 { family::SD2 } else { family::SD1 };
        Some((family, format!("the text encoder's {} has width {width}", text.path)))
    }

    /// A transformer's adapter, which no model of an implemented family takes.
    pub fn is_of_a_transformer(&self) -> bool {
        self.targets.iter().any(|target| target.site == Site::Transformer)
    }

    /// How many layers of which network it changes.
    pub fn sites(&self) -> Vec<(String, usize)> {
        let mut counts: BTreeMap<Site, usize> = BTreeMap::new();
        for target in &self.targets {
            *counts.entry(target.site).or_default() += 1;
        }
        counts.into_iter().map(|(site, count)| (site.name(), count)).collect()
    }

    /// Holds the adapter against a model: which of its keys would change a layer, and which would not.
    pub fn fit(&self, model: &Checkpoint) -> AdapterFit {
        self.bind(model).1
    }

    /// [`Adapter::fit`], with the layers.
    pub(crate) fn bind(&self, model: &Checkpoint) -> (Vec<Bound>, AdapterFit) {
        let numbered = |order| {
            let layers = Layers::of(model, order);
            let fits = |target: &&Target| {
                let layer = layers.find(target.site, &target.path);
                layer.is_some_and(|layer| self.tensors(target).check(layer.weight.as_deref().unwrap_or_default(), None).is_ok())
            };
            (self.targets.iter().filter(fits).count(), layers)
        };
        // Layers that go by numbers were counted in one of two orders; the shapes tell which.
        let (first, second) = (numbered(BlockOrder::FeedForwardBetween), numbered(BlockOrder::FeedForwardLast));
        let layers = if second.0 > first.0 { second.1 } else { first.1 };
        let mut fit = AdapterFit { absent: self.unknown.clone(), of: self.targets.len(), ..AdapterFit::default() };
        let mut bound = Vec::new();
        for (i, target) in self.targets.iter().enumerate() {
            let keys = || target.tensors.values().filter_map(|i| self.file.entries().get(*i)).map(|entry| entry.name.clone());
            let found = layers.all(target.site, &target.path);
            let tensors = self.tensors(target);
            if let [one, _, _] = found.as_slice() {
                let whole: Option<Vec<usize>> =
                    one.weight.as_ref().and_then(|shape| Some([&[3 * shape.first()?], shape.get(1..)?].concat()));
                let wrong = match tensors.is_low_rank() {
                    true => tensors.check(whole.as_deref().unwrap_or_default(), None).err(),
                    false => Some("of query, key and value as one, only plain LoRAs are implemented".to_owned()),
                };
                if let Some(why) = wrong {
                    fit.misshapen.extend(keys().map(|key| format!("{key} ({why})")));
                    continue;
                }
                fit.keys += target.tensors.len();
                fit.layers += 1;
                for (third, FoundLayer { component, name, .. }) in found.into_iter().enumerate() {
                    bound.push(Bound { component, layer: name.to_owned(), target: i, bias: false, weight: true, third: Some(third) });
                }
                continue;
            }
            let Some(FoundLayer { component, name, weight, bias }) = found.into_iter().next() else {
                fit.absent.extend(keys());
                continue;
            };
            if let Err(why) = tensors.check(weight.as_deref().unwrap_or_default(), bias.as_deref()) {
                fit.misshapen.extend(keys().map(|key| format!("{key} ({why})")));
                continue;
            }
            fit.keys += target.tensors.len();
            fit.layers += 1;
            let (weight, bias) = (tensors.changes_weight(), tensors.has(Role::DiffBias));
            bound.push(Bound { component, layer: name.to_owned(), target: i, bias, weight, third: None });
        }
        fit.absent.sort_unstable();
        (bound, fit)
    }

    /// The tensors of the change of one layer.
    pub(crate) fn tensors<'a>(&'a self, target: &'a Target) -> Tensors<'a> {
        Tensors { file: &self.file, target }
    }

    pub(crate) fn target(&self, index: usize) -> Option<&Target> {
        self.targets.get(index)
    }

    /// Refuses a file with numbers that are not finite. Reads all of it.
    ///
    /// # Errors
    /// The message names the first such tensor.
    pub fn check_numbers(&self) -> Result<()> {
        let buffers = ReadBuffers::default();
        for entry in self.file.entries().iter().filter(|entry| decode::readable(entry.dtype)) {
            // In parts: a file may say that a tensor has more bytes than there is memory.
            let length = entry.number_bytes();
            let mut parts = (0..length).step_by(PART).map(|from| self.file.part(entry, from..(from + PART).min(length), &buffers));
            let finite = parts.try_fold(true, |finite, part| Ok::<_, Error>(finite && decode::are_finite(&part?, entry.dtype)))?;
            if !finite {
                let what = format!(
                    "has values that are not numbers (NaN or infinity) in {}: the training went wrong; take another file of it",
                    quoted(&entry.name)
                );
                return Err(model_error(&self.file.name, what));
            }
        }
        Ok(())
    }
}

/// The only number of a tensor, where it is one.
fn one_number(file: &WeightFile, target: &Target, role: Role) -> Option<f64> {
    let entry = target.tensors.get(&role).and_then(|i| file.entries().get(*i))?;
    if !decode::readable(entry.dtype) || entry.shape.iter().product::<usize>() != 1 {
        return None;
    }
    decode::numbers::<f64>(&file.bytes(entry).ok()?, entry.dtype).first().copied()
}

/// What diffusers writes of PEFT's configuration into a file's header.
///
/// # Source
/// `LORA_ADAPTER_METADATA_KEY` in diffusers@v0.34:src/diffusers/loaders/lora_base.py
struct PeftSettings(serde_json::Map<String, Value>);

impl PeftSettings {
    fn of(file: &WeightFile) -> Option<PeftSettings> {
        let text = file.metadata().get("lora_adapter_metadata")?;
        serde_json::from_str(text).ok().map(PeftSettings)
    }

    /// The alpha of a layer, and whether it is divided by the rank's root.
    fn of_layer(&self, target: &Target) -> Option<(f64, bool)> {
        let network = match target.site {
            Site::UNet => "unet",
            Site::Text(0) => "text_encoder",
            Site::Text(_) => "text_encoder_2",
            Site::Transformer => "transformer",
        };
        let field = |name: &str| self.0.get(&format!("{network}.{name}"));
        let own = field("alpha_pattern").and_then(Value::as_object).and_then(|pattern| {
            let is = |key: &String| target.path == key.replace('.', "_") || target.path.ends_with(&format!("_{}", key.replace('.', "_")));
            pattern.iter().find(|(key, _)| is(key)).map(|(_, alpha)| alpha)
        });
        let alpha = own.or_else(|| field("lora_alpha"))?.as_f64().filter(|alpha| alpha.is_finite())?;
        Some((alpha, field("use_rslora").and_then(Value::as_bool).unwrap_or(false)))
    }
}
