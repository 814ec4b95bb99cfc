//! An autoencoder by itself, in a file or a folder, that takes the place of a model's own.

use super::component::{ComponentTensors, Part};
use super::file::{Blob, WeightFile};
use super::folder::{Folder, PICKLE, is_pickle};
use super::{TensorSource, model_error, quoted, tiny};
use crate::Result;
use crate::family::ConfigFiles;
use crate::family::config;
use crate::family::detect::{self, Probe, VaeLayout};
use crate::family::keys;
use crate::spec::VaeSpec;
use candle_core::{DType, Device, Tensor};
use std::path::Path;
use std::sync::Arc;

/// What stands before the names of the original layout: the autoencoder alone, or the one in a whole model.
const PREFIXES: [&str; 3] = ["", "first_stage_model.", "vae."];

/// An opened autoencoder.
#[derive(Debug)]
pub struct VaeFile {
    name: String,
    part: Part,
    spec: VaeSpec,
    concluded: &'static str,
}

impl VaeFile {
    /// Opens a `.safetensors` file or a diffusers folder, in the place of the autoencoder `base`. A file does not say how latents are
    /// scaled: as those of `base`.
    ///
    /// # Errors
    /// [`crate::Error::Model`]: it is no autoencoder, or one of other latents than `base`'s; the message names it.
    pub fn open(path: &Path, base: &VaeSpec) -> Result<Self> {
        let shown = path.display().to_string();
        let opened = if path.is_dir() {
            Self::folder(shown, path, base)?
        } else if is_pickle(path) {
            return Err(model_error(&shown, PICKLE));
        } else {
            Self::file(WeightFile::new(shown, Blob::open(path)?)?, base)?
        };
        opened.checked(base)
    }

    /// Refuses one for other latents.
    fn checked(self, base: &VaeSpec) -> Result<Self> {
        let (has, wanted) = (&self.spec, base);
        if (has.latent_channels, has.factor(), has.image_channels) != (wanted.latent_channels, wanted.factor(), wanted.image_channels) {
            let what = format!(
                "is an autoencoder for {} channels of latents {} times smaller than the image, and the model has {} channels {} times smaller",
                has.latent_channels,
                has.factor(),
                wanted.latent_channels,
                wanted.factor()
            );
            return Err(model_error(&self.name, what));
        }
        Ok(self)
    }

    /// Opens a file's bytes, as [`VaeFile::open`] does a file.
    ///
    /// # Errors
    /// As [`VaeFile::open`].
    pub fn from_bytes(name: &str, bytes: Vec<u8>, base: &VaeSpec) -> Result<Self> {
        Self::file(WeightFile::new(name.to_owned(), Blob::Owned(bytes))?, base)?.checked(base)
    }

    fn folder(name: String, path: &Path, base: &VaeSpec) -> Result<Self> {
        let folder = Folder::Disk(path.to_owned());
        let Some(fields) = (&folder as &dyn ConfigFiles).json("config.json")? else {
            let inside = path.join("vae");
            let what = match inside.is_dir() {
                true => format!("is a whole model; its autoencoder is {}", inside.display()),
                false => "is no autoencoder's folder: it has no config.json".to_owned(),
            };
            return Err(model_error(name, what));
        };
        let spec = config::vae(&fields, base.scaling_factor)?;
        let part = Part::new("the autoencoder", folder.weights("", None)?, keys::diffusers_vae(&spec))?;
        part.check_left_out("")?;
        Ok(Self { name, part, spec, concluded: "as its config.json says" })
    }

    fn file(file: WeightFile, base: &VaeSpec) -> Result<Self> {
        let (name, concluded) = (file.name.clone(), "as the names of its tensors say");
        if let Some((layout, tiny)) = tiny::find(&file) {
            let part = Part::new("the tiny autoencoder", vec![Arc::new(file)], keys::tiny(&tiny, layout))?;
            return Ok(Self { name, part, spec: tiny.as_vae(base.scaling_factor), concluded });
        }
        let has = |name: &str| file.shape(name).is_some();
        let scaled = |layout, prefix| -> Result<VaeSpec> {
            let found = detect::vae(Probe { file: &file, prefix }, layout, base.scaling_factor, base.force_upcast)?;
            Ok(VaeSpec { shift_factor: base.shift_factor, latent_rgb: base.latent_rgb.clone(), ..found })
        };
        let (spec, pairs, prefix) = if has("decoder.conv_norm_out.weight") {
            let spec = scaled(VaeLayout::Diffusers, "")?;
            (spec.clone(), keys::diffusers_vae(&spec), "")
        } else if let Some(prefix) = PREFIXES.into_iter().find(|prefix| has(&format!("{prefix}decoder.norm_out.weight"))) {
            let spec = scaled(VaeLayout::Original, prefix)?;
            (spec.clone(), keys::vae(&spec, prefix), prefix)
        } else {
            let what = match (has("0.weight") && has("1.conv.0.weight"), file.entries().first()) {
                (true, _) => "is a tiny autoencoder's encoder alone; take the file of its decoder, or one with both".to_owned(),
                (_, Some(first)) => format!("is no autoencoder that is known: its tensors have names like {}", quoted(&first.name)),
                (_, None) => "is no autoencoder: it has no tensors".to_owned(),
            };
            return Err(model_error(&name, what));
        };
        let part = Part::new("the autoencoder", vec![Arc::new(file)], pairs)?;
        part.check_left_out(&format!("{prefix}encoder."))?;
        part.check_left_out(&format!("{prefix}decoder."))?;
        Ok(Self { name, part, spec, concluded })
    }

    /// What people call it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What the network is.
    pub fn spec(&self) -> &VaeSpec {
        &self.spec
    }

    /// It has an encoder, too.
    pub fn encodes(&self) -> bool {
        self.spec.tiny.as_ref().is_none_or(|tiny| !tiny.encoder_blocks.is_empty())
    }

    /// How many numbers its tensors have.
    pub fn parameters(&self) -> u64 {
        self.part.parameters()
    }

    fn component(&self) -> ComponentTensors<'_> {
        ComponentTensors::new(&self.part, self.concluded)
    }
}

impl TensorSource for VaeFile {
    fn tensor(&self, name: &str, shape: &[usize], dtype: DType, device: &Device) -> Result<Tensor> {
        self.component().tensor(name, shape, dtype, device)
    }

    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        self.component().shape(name)
    }
}
