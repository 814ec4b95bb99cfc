//! A model that was found, understood and opened, and is ready to be read.

use super::assembled::{self, JoinedFiles};
use super::component::{ComponentTensors, Part};
use super::file::{Blob, WeightFile};
use super::folder::{Folder, PICKLE, is_pickle};
use super::{ignorable, model_error};
use crate::Result;
use crate::family::{self, Beside, ConfigFiles, Description, Exported, TensorNames, TokenizerFiles};
use crate::spec::{Component, ModelSpec};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tracing::{debug, info};

/// How to choose between the weight files of a folder.
#[derive(Debug, Clone, Default)]
pub struct OpenOptions {
    /// A variant to take where there is one, such as `fp16`; otherwise full precision is taken where there is one.
    pub prefer_variant: Option<String>,
    /// Files of text encoders that take the place of the model's own, or are what it lacks (Stable Diffusion 3).
    pub clip_l: Option<PathBuf>,
    /// As `clip_l`.
    pub clip_g: Option<PathBuf>,
    /// As `clip_l`.
    pub t5: Option<PathBuf>,
    /// A folder whose tokenizers take the place of the model's own.
    pub tokenizers: Option<PathBuf>,
    /// The autoencoder of a file that holds a denoiser alone; nothing to any other model.
    pub vae: Option<PathBuf>,
}

impl OpenOptions {
    fn encoders(&self) -> Result<Vec<(&'static str, Arc<WeightFile>)>> {
        let given = [("clip_l", &self.clip_l), ("clip_g", &self.clip_g), ("t5", &self.t5)];
        let open = |(folder, path): (&'static str, &Option<PathBuf>)| {
            let path = path.as_ref()?;
            let opened = if folder == "t5" { assembled::t5(path) } else { assembled::open(path) };
            Some(opened.map(|file| (folder, Arc::new(file))))
        };
        given.into_iter().filter_map(open).collect()
    }
}

/// An opened model. Its files stay open; see the module's documentation for what happens when they change.
#[derive(Debug)]
pub struct Checkpoint {
    pub(crate) name: String,
    pub(crate) spec: ModelSpec,
    pub(crate) files: Vec<Arc<WeightFile>>,
    pub(crate) parts: Vec<(Component, Part)>,
    pub(crate) tokenizers: Vec<Option<TokenizerFiles>>,
    /// The text of T5's `tokenizer.json`.
    pub(crate) t5_tokenizer: Option<String>,
    /// The text of `scheduler_config.json`, the model's or its family's.
    pub(crate) scheduler: String,
    concluded: String,
    nothing: Part,
}

impl Checkpoint {
    /// Opens a diffusers folder or a single `.safetensors` or `.gguf` file.
    ///
    /// # Errors
    /// [`crate::Error::Model`] that names the file and the key or field.
    pub fn open(path: &Path) -> Result<Checkpoint> {
        Checkpoint::open_with(path, &OpenOptions::default())
    }

    /// As [`Checkpoint::open`], with a choice between a folder's weight files.
    ///
    /// # Errors
    /// As [`Checkpoint::open`].
    pub fn open_with(path: &Path, options: &OpenOptions) -> Result<Checkpoint> {
        let shown = path.display().to_string();
        let metadata = std::fs::metadata(path).map_err(|e| model_error(&shown, format!("cannot be opened: {e}")))?;
        if metadata.is_dir() {
            return Checkpoint::from_folder(shown, Folder::Disk(path.to_owned()), options);
        }
        if is_pickle(path) {
            return Err(model_error(&shown, PICKLE));
        }
        Checkpoint::from_one(Arc::new(WeightFile::new(shown, Blob::open(path)?)?), options)
    }

    /// Opens a diffusers folder that is compiled into the program: relative paths with `/`, and bytes.
    ///
    /// # Errors
    /// As [`Checkpoint::open`].
    pub fn from_embedded(name: &str, files: &'static [(&'static str, &'static [u8])]) -> Result<Checkpoint> {
        Checkpoint::from_folder(name.to_owned(), Folder::Embedded(name.to_owned(), files), &OpenOptions::default())
    }

    /// Opens a single file's bytes, by the same way that [`Checkpoint::open`] takes for a file.
    ///
    /// # Errors
    /// As [`Checkpoint::open`].
    pub fn from_bytes(name: &str, bytes: Vec<u8>) -> Result<Checkpoint> {
        Checkpoint::from_file(WeightFile::new(name.to_owned(), Blob::Owned(bytes))?)
    }

    fn from_folder(name: String, folder: Folder, options: &OpenOptions) -> Result<Checkpoint> {
        let names = folder.names("");
        if !names.iter().any(|n| n == "model_index.json" || n == "unet" || n == "transformer") {
            let named = |is: fn(&str) -> bool| names.iter().find(|name| is(name));
            let hint = match (named(|n| n.ends_with(".safetensors")), named(|n| n == "snapshots")) {
                (Some(single), _) => format!("; it has {single}, which may be a model: give that file's path"),
                (_, Some(_)) => "; it looks like a download cache: give the path of a folder in its snapshots".to_owned(),
                _ => String::new(),
            };
            return Err(model_error(name, format!("is not a diffusers folder: it has no model_index.json and no unet folder{hint}")));
        }
        let (encoders, tokenizers) = (options.encoders()?, options.tokenizers.clone().map(Folder::Disk));
        let description = family::describe(&folder, &beside(&encoders, tokenizers.as_ref()))?;
        let prefer = options.prefer_variant.as_deref();
        Checkpoint::assemble(name, description, "as its configuration files say".to_owned(), |dir| {
            let given = encoders.iter().find(|(folder, _)| *folder == dir);
            given.map_or_else(|| folder.weights(dir, prefer), |(_, file)| Ok(vec![file.clone()]))
        })
    }

    fn from_file(file: WeightFile) -> Result<Checkpoint> {
        Checkpoint::from_shared(Arc::new(file))
    }

    /// As [`Checkpoint::open`], of a file whose header was read already.
    pub(crate) fn from_shared(file: Arc<WeightFile>) -> Result<Checkpoint> {
        Checkpoint::from_one(file, &OpenOptions::default())
    }

    fn from_one(file: Arc<WeightFile>, options: &OpenOptions) -> Result<Checkpoint> {
        if let Some(joined) = assembled::joined(&file, options)? {
            return Checkpoint::from_joined(&joined, options);
        }
        let (encoders, tokenizers) = (options.encoders()?, options.tokenizers.clone().map(Folder::Disk));
        let (description, concluded) = family::detect(&*file, &beside(&encoders, tokenizers.as_ref()))?;
        Checkpoint::assemble(file.name.clone(), description, concluded, |dir| {
            let given = encoders.iter().find(|(folder, _)| *folder == dir);
            Ok(vec![given.map_or(&file, |(_, file)| file).clone()])
        })
    }

    /// A denoiser and what is beside it, of which a UNet's text encoders are in the files already.
    fn from_joined(joined: &JoinedFiles, options: &OpenOptions) -> Result<Checkpoint> {
        let is_unet = joined.shape("model.diffusion_model.input_blocks.0.0.weight").is_some();
        let encoders = if is_unet { Vec::new() } else { options.encoders()? };
        let tokenizers = options.tokenizers.clone().map(Folder::Disk);
        let (description, concluded) = family::detect(joined, &beside(&encoders, tokenizers.as_ref()))?;
        Checkpoint::assemble(joined.name().to_owned(), description, concluded, |dir| {
            let given = encoders.iter().find(|(folder, _)| *folder == dir);
            Ok(given.map_or_else(|| joined.files.clone(), |(_, file)| vec![file.clone()]))
        })
    }

    /// Finds the tensors of every network in the files that `files` gives for its folder.
    fn assemble(
        name: String,
        description: Description,
        concluded: String,
        files: impl Fn(&str) -> Result<Vec<Arc<WeightFile>>>,
    ) -> Result<Checkpoint> {
        let Description { spec, networks, tokenizers, t5_tokenizer, scheduler } = description;
        let parts = networks.into_iter().map(|plan| {
            let part = Part::new(plan.title, files(plan.folder)?, plan.pairs)?;
            part.check_left_out(plan.prefix)?;
            Ok((plan.component, part))
        });
        let parts = parts.collect::<Result<Vec<(Component, Part)>>>()?;
        info!("{name}: {}", spec.family.name());
        for sentence in &spec.evidence {
            info!("  {sentence}");
        }
        for (component, part) in &parts {
            debug!(?component, parameters = part.parameters(), files = part.files.len(), "found {}", part.title);
        }
        let mut files: Vec<Arc<WeightFile>> = Vec::new();
        for file in parts.iter().flat_map(|(_, part)| &part.files) {
            if !files.iter().any(|known| Arc::ptr_eq(known, file)) {
                files.push(file.clone());
            }
        }
        let nothing = Part::empty("a network that the model does not have", files.clone());
        Ok(Checkpoint { name, spec, files, parts, tokenizers, t5_tokenizer, scheduler, concluded, nothing })
    }

    /// What people call the model: its path, or its name inside the program.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What the model is.
    pub fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    /// The tensors of one network.
    pub fn component(&self, component: Component) -> ComponentTensors<'_> {
        ComponentTensors::new(self.part(component).unwrap_or(&self.nothing), &self.concluded)
    }

    pub(crate) fn part(&self, component: Component) -> Option<&Part> {
        self.parts.iter().find(|(c, _)| *c == component).map(|(_, part)| part)
    }

    /// What its configuration files are written from.
    pub(crate) fn exported(&self) -> Exported<'_> {
        let Self { name, spec, tokenizers, t5_tokenizer, scheduler, .. } = self;
        Exported { name, spec, tokenizers, t5_tokenizer: t5_tokenizer.as_deref(), scheduler }
    }

    /// The tokenizer of the text encoder `index`; `None` where the model brings none and CLIP's own is meant.
    pub fn tokenizer(&self, index: usize) -> Option<&TokenizerFiles> {
        self.tokenizers.get(index)?.as_ref()
    }

    /// Stored tensors that nobody has asked for, except those that are known to be of no use for generating. Sorted.
    pub fn unused(&self) -> Vec<String> {
        self.keys_without(|file, i| file.is_used(i))
    }

    /// Stored tensors that have no place in the networks that the model was found to have. Sorted.
    ///
    /// In contrast to [`Checkpoint::unused`], this does not depend on what was loaded.
    pub fn unknown(&self) -> Vec<String> {
        let placed: std::collections::HashSet<(*const WeightFile, usize)> =
            self.parts.iter().flat_map(|(_, part)| part.stored(|_| true)).map(|(file, i)| (Arc::as_ptr(file), i)).collect();
        self.keys_without(|file, i| placed.contains(&(Arc::as_ptr(file), i)))
    }

    fn keys_without(&self, accounted: impl Fn(&Arc<WeightFile>, usize) -> bool) -> Vec<String> {
        let mut keys: Vec<String> = Vec::new();
        for file in &self.files {
            let rest = file.entries().iter().enumerate().filter(|(i, entry)| !accounted(file, *i) && !ignorable::is(&entry.name));
            keys.extend(rest.map(|(_, entry)| entry.name.clone()));
        }
        keys.sort_unstable();
        keys
    }
}

/// Encoders by the names of their folders, and tokenizers, as families see them.
fn beside<'a>(encoders: &'a [(&'static str, Arc<WeightFile>)], tokenizers: Option<&'a Folder>) -> Beside<'a> {
    let file = |folder: &str| encoders.iter().find(|(name, _)| *name == folder).map(|(_, file)| &**file as &dyn family::TensorNames);
    Beside {
        clip_l: file("clip_l"),
        clip_g: file("clip_g"),
        t5: file("t5"),
        tokenizers: tokenizers.map(|folder| folder as &dyn ConfigFiles),
    }
}
