//! A ControlNet by itself: a diffusers folder, a file of one, or a file in the original layout.

use super::component::{ComponentTensors, Part};
use super::file::{Blob, WeightFile};
use super::folder::{Folder, PICKLE, is_pickle};
use super::{ModelSource, TensorSource, model_error, quoted};
use crate::Result;
use crate::family::ConfigFiles;
use crate::family::config::{self, ConfiguredUnion};
use crate::family::detect::{self, Probe};
use crate::family::{self, keys};
use crate::spec::{Component, ControlNetSpec, ModelSpec};
use candle_core::{DType, Device, Tensor};
use std::path::Path;
use std::sync::Arc;

/// What stands before the names of the original layout.
const PREFIXES: [&str; 2] = ["control_model.", ""];
/// Tensors of networks that are something else, by a part of their names, and what they are.
const OTHERS: [(&str, &str); 5] = [
    ("lora_controlnet", "is a Control-LoRA, which is not implemented; take the whole ControlNet"),
    ("lllite_", "is a ControlNet-LLLite, which is not implemented; take a ControlNet"),
    ("adapter.body.", "is a T2I-Adapter, which is not implemented; take a ControlNet"),
    ("body.0.", "is a T2I-Adapter, which is not implemented; take a ControlNet"),
    ("ip_adapter.", "is an IP-Adapter; give it with `ip-adapter`"),
];

/// An opened ControlNet.
#[derive(Debug)]
pub struct ControlNetFile {
    name: String,
    part: Part,
    spec: ControlNetSpec,
    /// Its weights are what is to be added to the model's.
    difference: bool,
}

impl ControlNetFile {
    /// Opens a `.safetensors` file or a diffusers folder, for a model.
    ///
    /// # Errors
    /// [`crate::Error::Model`]: it is no ControlNet, or one for another family; the message names it.
    pub fn open(path: &Path, model: &ModelSpec) -> Result<Self> {
        let shown = path.display().to_string();
        if path.is_dir() {
            let folder = Folder::Disk(path.to_owned());
            let said = (&folder as &dyn ConfigFiles).json("config.json")?;
            let said = said.map(|fields| config::control_net(&fields)).transpose()?.unwrap_or_default();
            return Self::read(shown, folder.weights("", None)?, model, said);
        }
        if is_pickle(path) {
            return Err(model_error(&shown, PICKLE));
        }
        Self::read(shown.clone(), vec![Arc::new(WeightFile::new(shown, Blob::open(path)?)?)], model, ConfiguredUnion::default())
    }

    /// Opens a file's bytes, as [`ControlNetFile::open`] does a file.
    ///
    /// # Errors
    /// As [`ControlNetFile::open`].
    pub fn from_bytes(name: &str, bytes: Vec<u8>, model: &ModelSpec) -> Result<Self> {
        Self::read(
            name.to_owned(),
            vec![Arc::new(WeightFile::new(name.to_owned(), Blob::Owned(bytes))?)],
            model,
            ConfiguredUnion::default(),
        )
    }

    fn read(name: String, files: Vec<Arc<WeightFile>>, model: &ModelSpec, said: ConfiguredUnion) -> Result<Self> {
        let [file] = files.as_slice() else {
            return Err(model_error(&name, format!("has its weights in {} files; a ControlNet is read from one", files.len())));
        };
        for (mark, what) in OTHERS {
            if file.entries().iter().any(|entry| entry.name.contains(mark)) {
                return Err(model_error(&name, what));
            }
        }
        let has = |name: &str| file.shape(name).is_some();
        let diffusers = has("controlnet_cond_embedding.conv_in.weight");
        let original = PREFIXES.into_iter().find(|prefix| has(&format!("{prefix}input_hint_block.0.weight")));
        let Some(prefix) = original.or(diffusers.then_some("")) else {
            let first = file.entries().first().map(|entry| format!(": its tensors have names like {}", quoted(&entry.name)));
            return Err(model_error(&name, format!("is no ControlNet that is known{}", first.unwrap_or_default())));
        };
        let wanted = model.unet.cross_attention_dim;
        if let Some(width) = detect::text_width(&**file).filter(|width| *width != wanted) {
            let of = family::of_context(width).map_or(String::new(), |family| format!(" ({})", family.name()));
            let what = format!("is a ControlNet for text of width {width}{of}, and the model has {wanted} ({})", model.family.name());
            return Err(model_error(&name, what));
        }
        let mut spec = detect::control_net(Probe { file: &**file, prefix }, diffusers, &model.unet)?;
        let width = spec.unet.down.first().map_or(0, |level| level.channels);
        if let Some(union) = &mut spec.union {
            union.heads = said.heads.unwrap_or(union.heads);
            let wrong = |what: String| model_error(&name, format!("is a ControlNet Union {what}"));
            if let Some(kinds) = said.kinds.filter(|kinds| *kinds != union.kinds) {
                return Err(wrong(format!(
                    "for {} kinds of images, and its config.json says num_control_type {kinds}: they belong to different networks",
                    union.kinds
                )));
            }
            if !width.is_multiple_of(union.heads) {
                return Err(wrong(format!("of width {width}, which {} heads do not divide", union.heads)));
            }
            if !diffusers {
                return Err(wrong("in another layout than diffusers', which is not implemented".into()));
            }
        }
        let factor = 1 << spec.hint_channels.len().saturating_sub(1);
        if (spec.image_channels, spec.unet.in_channels, factor) != (3, model.vae.latent_channels, model.vae.factor()) {
            let what = format!(
                "is a ControlNet that takes images of {} channels {factor} times as large as its {} channels of latents, and the model has \
                 images of 3 channels {} times as large as its {}",
                spec.image_channels,
                spec.unet.in_channels,
                model.vae.factor(),
                model.vae.latent_channels
            );
            return Err(model_error(&name, what));
        }
        let difference = has("difference");
        let pairs = if diffusers { keys::diffusers_control_net(&spec) } else { keys::control_net(&spec, prefix) };
        let part = Part::new("the ControlNet", files, pairs)?;
        if !difference {
            part.check_left_out(prefix)?;
        }
        Ok(Self { name, part, spec, difference })
    }

    /// What people call it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What the network is.
    pub fn spec(&self) -> &ControlNetSpec {
        &self.spec
    }

    /// How many numbers its tensors have.
    pub fn parameters(&self) -> u64 {
        self.part.parameters()
    }

    /// Its tensors, where it is used with `model`.
    ///
    /// # Errors
    /// It says what is to be added to the model's weights, and the model cannot be read.
    pub fn tensors<'a>(&'a self, model: Option<&'a dyn ModelSource>) -> Result<ControlNetTensors<'a>> {
        let component = ComponentTensors::new(&self.part, "as a copy of the model's denoiser has it");
        let base = match (self.difference, model) {
            (false, _) => None,
            (true, Some(model)) => Some(model.tensors(Component::UNET)),
            (true, None) => {
                let what = "has what is to be added to the model's weights, which cannot be read again: load the pipeline with Pipeline::load_shared";
                return Err(model_error(&self.name, what));
            }
        };
        Ok(ControlNetTensors { component, base })
    }
}

/// A ControlNet's tensors.
pub struct ControlNetTensors<'a> {
    component: ComponentTensors<'a>,
    /// What they are added to.
    base: Option<Box<dyn TensorSource + 'a>>,
}

impl TensorSource for ControlNetTensors<'_> {
    fn tensor(&self, name: &str, shape: &[usize], dtype: DType, device: &Device) -> Result<Tensor> {
        let base = self.base.as_ref().filter(|base| base.shape(name).as_deref() == Some(shape));
        let Some(base) = base else { return self.component.tensor(name, shape, dtype, device) };
        let sum = (self.component.tensor(name, shape, DType::F32, device)? + base.tensor(name, shape, DType::F32, device)?)?;
        Ok(sum.to_dtype(dtype)?)
    }

    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        self.component.shape(name)
    }
}
