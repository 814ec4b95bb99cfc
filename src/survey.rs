//! What a file or folder of weights is, read from headers: nothing is loaded.

use crate::adapter::{Adapter, Change, Embedding, few_steps_in};
use crate::family::detect;
use crate::family::kinds::{self, AddOn, Network, SingleNetwork};
use crate::family::of_context;
use crate::spec::Family;
use crate::weights::{
    Blob, Checkpoint, Entry, PICKLE, Part, WeightFile, find_tiny_autoencoder, is_model_folder, is_pickle, model_error, quoted,
};
use crate::{Error, Result};
use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The sort of thing that a file or folder is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Kind {
    /// A whole model that this program generates with.
    Model,
    /// A whole model, or the most of one, that it does not generate with.
    OtherModel,
    /// A UNet by itself.
    UNet,
    /// An autoencoder by itself.
    Vae,
    /// A text encoder by itself.
    TextEncoder,
    /// A LoRA or one of its relatives.
    Adapter,
    /// A textual inversion.
    Embedding,
    /// A network that sees an image and steers a model by it.
    ControlNet,
    /// What makes an image a prompt.
    IpAdapter,
    /// A network that enlarges images.
    Upscaler,
    /// An add-on of another kind.
    AddOn,
    /// A file that is not opened.
    Pickle,
    /// Tensors that nothing is known of.
    Unknown,
}

impl Kind {
    /// A word for programs.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Model => "model",
            Kind::OtherModel => "other-model",
            Kind::UNet => "unet",
            Kind::Vae => "vae",
            Kind::TextEncoder => "text-encoder",
            Kind::Adapter => "lora",
            Kind::Embedding => "embedding",
            Kind::ControlNet => "controlnet",
            Kind::IpAdapter => "ip-adapter",
            Kind::Upscaler => "upscaler",
            Kind::AddOn => "add-on",
            Kind::Pickle => "pickle",
            Kind::Unknown => "unknown",
        }
    }

    /// The flag that takes such a file; empty where none does.
    pub fn flag(self) -> &'static str {
        match self {
            Kind::Model => "--model",
            Kind::Vae => "--vae",
            Kind::Adapter => "--lora",
            Kind::Embedding => "--embedding",
            Kind::ControlNet => "--control",
            Kind::IpAdapter => "--ip-adapter",
            Kind::Upscaler => "--upscale",
            Kind::OtherModel | Kind::UNet | Kind::TextEncoder | Kind::AddOn | Kind::Pickle | Kind::Unknown => "",
        }
    }
}

/// Tensors of one type.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredTensors {
    /// The type's name: "F16".
    pub dtype: String,
    /// How many tensors.
    pub tensors: usize,
    /// How many numbers.
    pub parameters: u64,
    /// How many bytes.
    pub bytes: u64,
}

/// One network of a file or folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ComponentSummary {
    /// What people call it.
    pub title: String,
    /// Its tensors, type by type.
    pub stored: Vec<StoredTensors>,
}

impl ComponentSummary {
    /// All of its numbers.
    pub fn parameters(&self) -> u64 {
        self.stored.iter().map(|stored| stored.parameters).sum()
    }

    /// All of its bytes.
    pub fn bytes(&self) -> u64 {
        self.stored.iter().map(|stored| stored.bytes).sum()
    }
}

/// What a file or folder is.
#[derive(Debug)]
pub struct Survey {
    /// Where it is.
    pub path: PathBuf,
    /// The sort of thing.
    pub kind: Kind,
    /// One phrase: "a LoRA for Stable Diffusion XL".
    pub what: String,
    /// The line of models, where one is known.
    pub family: Option<&'static str>,
    /// What that rests on, one sentence each.
    pub evidence: Vec<String>,
    /// What it is for: "generates", "inpaints".
    pub does: &'static str,
    /// The networks.
    pub components: Vec<ComponentSummary>,
    /// What the UNet predicts, and from what that is known.
    pub prediction: Option<(&'static str, String)>,
    /// Width and height that it was trained at.
    pub size: Option<usize>,
    /// Keys that have no place in the networks.
    pub unused: Vec<String>,
    /// Keys that the networks need and the file does not have.
    pub missing: Vec<String>,
    /// What its makers wrote into it.
    pub metadata: BTreeMap<String, String>,
    /// The layers that a LoRA changes.
    pub adapter: Option<Adapter>,
    /// The words that an embedding holds.
    pub embedding: Option<Embedding>,
    /// Why it cannot be generated with, or what is wrong with it.
    pub problem: Option<String>,
    /// The files that it is made of.
    pub files: Vec<PathBuf>,
    /// Bytes of all of its weight files.
    pub bytes: u64,
}

impl Survey {
    /// Finds out what is at `path`. A file that is damaged or refused is no error: it is what there is to say about it.
    ///
    /// # Errors
    /// There is nothing at `path`, or it cannot be read.
    pub fn of(path: &Path) -> Result<Survey> {
        let metadata = std::fs::metadata(path).map_err(Error::io(path))?;
        let mut survey = Survey::nothing(path);
        if metadata.is_dir() {
            match network_file(path) {
                None => survey.take_model(Checkpoint::open(path)),
                Some(file) => {
                    let inside = Survey::of(&file)?;
                    survey = Survey { path: path.to_owned(), ..inside };
                }
            }
            return Ok(survey);
        }
        survey.files.push(path.to_owned());
        survey.bytes = metadata.len();
        if is_pickle(path) {
            survey.kind = Kind::Pickle;
            survey.what = "a pickle (PyTorch's format)".into();
            survey.problem = Some(model_error(path.display(), PICKLE).to_string());
            return Ok(survey);
        }
        match Blob::open(path).and_then(|blob| WeightFile::new(path.display().to_string(), blob)) {
            Ok(file) => survey.take_file(file),
            Err(error) => {
                survey.what = "a file that holds no tensors to be read".into();
                survey.problem = Some(error.to_string());
            }
        }
        Ok(survey)
    }

    /// What there is to say about a model that is open already.
    pub fn of_model(model: Checkpoint) -> Survey {
        let mut survey = Survey::nothing(Path::new(&model.name));
        survey.take_model(Ok(model));
        survey
    }

    fn nothing(path: &Path) -> Survey {
        Survey {
            path: path.to_owned(),
            kind: Kind::Unknown,
            what: "nothing that is known".into(),
            family: None,
            evidence: Vec::new(),
            does: "",
            components: Vec::new(),
            prediction: None,
            size: None,
            unused: Vec::new(),
            missing: Vec::new(),
            metadata: BTreeMap::new(),
            adapter: None,
            embedding: None,
            problem: None,
            files: Vec::new(),
            bytes: 0,
        }
    }

    fn take_file(&mut self, file: WeightFile) {
        self.metadata = file.metadata().clone();
        let file = Arc::new(file);
        match Adapter::read(&file) {
            Ok(None) => {}
            Ok(Some(adapter)) => return self.take_adapter(&file, adapter),
            Err(error) => {
                self.kind = Kind::Adapter;
                self.what = "a LoRA that cannot be applied".into();
                self.components = vec![summary("tensors", file.entries())];
                self.problem = Some(error.to_string());
                return;
            }
        }
        if let Some(embedding) = Embedding::read(&file) {
            self.kind = Kind::Embedding;
            self.family = Some(embedding.family.name());
            self.does = "adds a word";
            self.what = format!("a textual inversion for {}", embedding.family.name());
            self.components = vec![summary("words", file.entries())];
            self.embedding = Some(embedding);
        } else if let Some(row) = kinds::foreign(&*file) {
            self.kind = match row.add_on {
                AddOn::Other if row.is_model => Kind::OtherModel,
                AddOn::Other => Kind::AddOn,
                AddOn::ControlNet => Kind::ControlNet,
                AddOn::IpAdapter => Kind::IpAdapter,
                AddOn::Upscaler => Kind::Upscaler,
            };
            self.does = match row.add_on {
                AddOn::ControlNet => "steers by an image",
                AddOn::IpAdapter => "takes an image as a prompt",
                AddOn::Upscaler => "enlarges images",
                AddOn::Other => "",
            };
            self.family = match row.add_on {
                AddOn::ControlNet => detect::text_width(&*file),
                AddOn::IpAdapter => file.shape("ip_adapter.1.to_k_ip.weight").and_then(|shape| shape.get(1).copied()),
                _ => None,
            }
            .and_then(of_context)
            .map(Family::name);
            self.what = format!("{}{}", row.what, self.family.map(|family| format!(" for {family}")).unwrap_or_default());
            self.evidence.push(format!("A tensor's name contains \"{}\".", row.part));
            self.components = vec![summary("tensors", file.entries())];
            self.problem = row.is_model.then(|| format!("{} is {}, {}", file.name, row.what, row.why));
        } else if let Some((_, tiny)) = find_tiny_autoencoder(&file) {
            self.take_vae("a small autoencoder (TAESD)", Some(tiny.latent_channels));
            self.components = vec![summary("tensors", file.entries())];
        } else if is_compact(&file) {
            self.kind = Kind::Upscaler;
            (self.what, self.does) = ("a Compact upscaler".into(), "enlarges images");
            self.components = vec![summary("tensors", file.entries())];
        } else {
            let lone = kinds::lone(&*file);
            let context =
                file.entries().iter().find(|entry| entry.name.ends_with("attn2.to_k.weight")).and_then(|e| e.shape.get(1).copied());
            let shape = ["model.diffusion_model.input_blocks.0.0.weight", "input_blocks.0.0.weight", "conv_in.weight"];
            let channels = shape.iter().find_map(|key| file.shape(key)?.get(1).copied());
            let all = summary("tensors", file.entries());
            match Checkpoint::from_shared(file.clone()) {
                Ok(model) => self.take_model(Ok(model)),
                Err(error) => {
                    self.components = vec![all];
                    self.take_network(&file, lone, context, channels);
                    // An autoencoder by itself is as it ought to be.
                    self.problem = (self.kind != Kind::Vae).then(|| error.to_string());
                }
            }
        }
    }

    fn take_model(&mut self, opened: Result<Checkpoint>) {
        let model = match opened {
            Ok(model) => model,
            Err(error) => {
                self.kind = Kind::OtherModel;
                self.what = "a folder that cannot be opened as a model".into();
                self.problem = Some(error.to_string());
                return;
            }
        };
        let spec = model.spec();
        self.kind = Kind::Model;
        self.family = Some(spec.family.name());
        self.evidence = spec.evidence.clone();
        self.size = Some(spec.default_size);
        let latents = spec.vae.latent_channels;
        self.does = match spec.unet.in_channels {
            _ if spec.aesthetic_score => "refines",
            channels if channels == 2 * latents + 1 => "inpaints",
            channels if channels == 2 * latents => "edits",
            _ => "generates",
        };
        let sort = match self.does {
            "inpaints" => " for inpainting",
            "edits" => " for editing by instruction",
            _ => "",
        };
        let layout = if self.files.is_empty() { "a diffusers folder" } else { "one file" };
        self.what = format!("{}{sort}, {layout}", spec.family.name());
        if let Ok(prediction) = spec.scheduler.prediction() {
            let said = spec.evidence.iter().find(|sentence| sentence.contains("predict"));
            let source = spec.scheduler.source.clone().unwrap_or_else(|| "the family's usual".into());
            self.prediction = Some((prediction.name(), said.cloned().unwrap_or(source)));
        }
        for (_, part) in &model.parts {
            let mut seen = HashSet::new();
            let stored = part.stored(|_| true).filter(|(file, i)| seen.insert((Arc::as_ptr(file), *i)));
            self.components.push(summary(part.title.trim_start_matches("the "), stored.filter_map(|(file, i)| file.entries().get(i))));
            self.missing.extend(missing(part));
        }
        self.missing.sort_unstable();
        self.unused = model.unknown();
        // A single file was counted already.
        if self.files.is_empty() {
            let mut seen = HashSet::new();
            for file in model.files.iter().filter(|file| seen.insert(file.name.clone())) {
                self.bytes += file.len();
                self.files.push(PathBuf::from(&file.name));
                self.metadata.extend(file.metadata().iter().filter(|(key, _)| *key != "format").map(|(k, v)| (k.clone(), v.clone())));
            }
        }
        self.problem = match self.missing.as_slice() {
            [] => None,
            [first, rest @ ..] => Some(format!("lacks {} tensors, the first is {first}", rest.len() + 1)),
        };
    }

    fn take_adapter(&mut self, file: &WeightFile, adapter: Adapter) {
        self.kind = Kind::Adapter;
        self.does = "changes a model";
        let changes: Vec<&str> = adapter.changes().into_iter().map(Change::name).collect();
        let dora = if adapter.is_dora() { " with DoRA" } else { "" };
        let base = adapter.base();
        let base_name = match &base {
            _ if adapter.is_of_a_transformer() => Some("a transformer (Flux, Stable Diffusion 3 or a relative)"),
            Some((family, _)) => Some(family.name()),
            None => None,
        };
        self.family = base.as_ref().filter(|_| !adapter.is_of_a_transformer()).map(|(family, _)| family.name());
        self.what = format!(
            "{}{dora} ({} keys){}",
            changes.join(" and "),
            adapter.writer,
            base_name.map(|name| format!(" for {name}")).unwrap_or_default()
        );
        self.evidence.extend(base.map(|(_, why)| format!("{why}.")));
        self.evidence.extend(few_steps_in(file).map(|(_, why)| why));
        self.components = vec![summary("tensors", file.entries())];
        self.unused.clone_from(&adapter.unknown);
        self.adapter = Some(adapter);
    }

    /// An autoencoder for so many channels of latents, which is all that tells whose it may be.
    fn take_vae(&mut self, what: &str, latents: Option<usize>) {
        self.kind = Kind::Vae;
        self.does = "encodes and decodes";
        self.evidence.extend(latents.map(|latents| format!("Its latents have {latents} channels.")));
        self.family = match latents {
            Some(4) => Some("Stable Diffusion 1.x, 2.x and XL"),
            Some(16) => Some("Stable Diffusion 3"),
            _ => None,
        };
        self.what = format!("{what}{}", self.family.map(|family| format!(" for {family}")).unwrap_or_default());
    }

    fn take_network(&mut self, file: &WeightFile, lone: Option<&SingleNetwork>, context: Option<usize>, channels: Option<usize>) {
        let Some(SingleNetwork { key, what, network }) = lone else {
            let first = file.entries().first().map(|entry| quoted(&entry.name));
            self.what = "tensors of nothing that is known".into();
            self.evidence.extend(first.map(|name| format!("Its tensors have names like {name}.")));
            return;
        };
        self.evidence.push(format!("It has the tensor {key}."));
        let family = match network {
            Network::UNet => {
                self.kind = Kind::UNet;
                self.evidence.extend(context.map(|width| format!("Its cross-attention takes text of width {width}.")));
                self.does = match channels {
                    Some(5) => "generates after a depth map",
                    Some(7) => "enlarges",
                    Some(8) => "edits",
                    Some(9) => "inpaints",
                    _ => "generates",
                };
                context.and_then(of_context).map(Family::name)
            }
            Network::Vae => {
                let keys = ["decoder.conv_in.weight", "first_stage_model.decoder.conv_in.weight"];
                return self.take_vae(what, keys.iter().find_map(|key| file.shape(key)?.get(1).copied()));
            }
            Network::Text => {
                self.kind = Kind::TextEncoder;
                self.does = "reads the prompt";
                let width = ["text_model.embeddings.token_embedding.weight", "token_embedding.weight"]
                    .iter()
                    .find_map(|key| file.shape(key)?.get(1));
                self.evidence.extend(width.map(|width| format!("Its width is {width}.")));
                match width {
                    Some(768) => Some("CLIP-L (Stable Diffusion 1.x and XL)"),
                    Some(1024) => Some("OpenCLIP-H (Stable Diffusion 2.x)"),
                    Some(1280) => Some("OpenCLIP-G (Stable Diffusion XL)"),
                    _ => None,
                }
            }
        };
        self.family = family;
        self.what = format!("{what}{}", family.map(|family| format!(" of {family}")).unwrap_or_default());
    }
}

/// The only file of weights of a folder that holds one network, or the first variant of it.
fn network_file(folder: &Path) -> Option<PathBuf> {
    if is_model_folder(folder) || !folder.join("config.json").is_file() {
        return None;
    }
    let names = ["diffusion_pytorch_model", "diffusion_pytorch_model.fp16", "model", "model.fp16"];
    names.iter().map(|name| folder.join(format!("{name}.safetensors"))).find(|file| file.is_file())
}

/// SRVGGNetCompact: a line of convolutions and PReLUs, and nothing else.
fn is_compact(file: &WeightFile) -> bool {
    let names = || file.entries().iter().map(|entry| entry.name.rsplit_once("body.").map_or("", |(_, rest)| rest));
    let numbered = |rest: &str| {
        rest.split_once('.').is_some_and(|(number, leaf)| number.parse::<usize>().is_ok() && ["weight", "bias"].contains(&leaf))
    };
    let sides = |name: &str| file.entries().iter().find(|entry| entry.name.ends_with(name)).map(|entry| entry.shape.len());
    names().all(numbered) && sides("body.0.weight") == Some(4) && sides("body.1.weight") == Some(1)
}

/// Counts tensors by their type.
fn summary<'a>(title: &str, entries: impl IntoIterator<Item = &'a Entry>) -> ComponentSummary {
    let mut stored: BTreeMap<String, StoredTensors> = BTreeMap::new();
    for entry in entries {
        let dtype = entry.type_name();
        let row = stored.entry(dtype.clone()).or_insert(StoredTensors { dtype, tensors: 0, parameters: 0, bytes: 0 });
        row.tensors += 1;
        row.parameters += entry.shape.iter().map(|&size| size as u64).product::<u64>();
        row.bytes += entry.range.len() as u64;
    }
    let mut stored: Vec<StoredTensors> = stored.into_values().collect();
    stored.sort_by_key(|row| std::cmp::Reverse(row.bytes));
    ComponentSummary { title: title.to_owned(), stored }
}

/// The stored names of what a network needs and does not have.
fn missing(part: &Part) -> Vec<String> {
    let mut seen = HashSet::new();
    let absent = part.absent.iter().filter(|pair| is_needed(part, &pair.name) && seen.insert(&pair.name));
    absent.map(|pair| pair.stored.clone()).collect()
}

/// Whether every network with such a layer needs the tensor.
fn is_needed(part: &Part, name: &str) -> bool {
    // UNets' queries, keys and values have no bias; autoencoders' and text encoders' have.
    if part.title == "the UNet" && [".to_q.bias", ".to_k.bias", ".to_v.bias"].iter().any(|end| name.ends_with(end)) {
        return false;
    }
    if name.starts_with("add_embedding.") {
        return part.shape("add_embedding.linear_1.weight").is_some();
    }
    // Of consistency models that are told the guidance scale alone.
    if name == "time_embedding.cond_proj.weight" {
        return false;
    }
    if name.contains("quant_conv.") {
        let sibling = if name.ends_with(".bias") { name.replace(".bias", ".weight") } else { name.replace(".weight", ".bias") };
        return part.shape(&sibling).is_some();
    }
    // A shortcut changes the number of channels, and is there where they change.
    if let Some((site, _)) = name.split_once(".conv_shortcut.") {
        let input = part.shape(&format!("{site}.norm1.weight")).and_then(|shape| shape.first().copied());
        let output = part.shape(&format!("{site}.conv1.weight")).and_then(|shape| shape.first().copied());
        return input != output;
    }
    name != "text_projection.weight"
}
