//! An IP-Adapter's file in the layout of its authors, and the image encoder beside it.

use super::component::{ComponentTensors, Part};
use super::file::{Blob, WeightFile};
use super::folder::{Folder, PICKLE, is_pickle};
use super::{TensorSource, model_error, quoted};
use crate::Result;
use crate::family::ConfigFiles;
use crate::family::config;
use crate::family::keys::{Form, Pair};
use crate::family::{self, TensorNames};
use crate::spec::{Activation, ClipVisionSpec, ImageProjectionSpec, IpAdapterSpec, ModelSpec, UNetSpec};
use candle_core::{DType, Device, Tensor};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Layers that no image projection has more of.
const MOST_LAYERS: usize = 64;
/// Heads of every CLIP's vision tower whose file does not say.
const VISION_HEADS: usize = 16;

/// An opened IP-Adapter.
#[derive(Debug)]
pub struct IpAdapterFile {
    name: String,
    part: Part,
    spec: IpAdapterSpec,
}

/// Every tensor of files under its own name.
fn as_named(title: &str, files: Vec<Arc<WeightFile>>) -> Result<Part> {
    let pair = |name: &String| Pair { stored: name.clone(), name: name.clone(), form: Form::Same };
    let pairs = files.iter().flat_map(|file| file.entries()).map(|entry| pair(&entry.name)).collect();
    Part::new(title, files, pairs)
}

impl IpAdapterFile {
    /// Opens a `.safetensors` file, for a model.
    ///
    /// # Errors
    /// [`crate::Error::Model`]: it is no IP-Adapter, one of a kind that is not implemented, or one for another family.
    pub fn open(path: &Path, model: &ModelSpec) -> Result<Self> {
        let file = open(path)?;
        let name = file.name.clone();
        let spec = describe(&file, &model.unet)?;
        let wanted = model.unet.cross_attention_dim;
        if spec.width != wanted {
            let of = family::of_context(spec.width).map_or(String::new(), |family| format!(" ({})", family.name()));
            let what =
                format!("is an IP-Adapter for text of width {}{of}, and the model has {wanted} ({})", spec.width, model.family.name());
            return Err(model_error(&name, what));
        }
        let count = file.entries().iter().filter(|entry| entry.name.ends_with(".to_k_ip.weight")).count();
        if count != spec.sites.len() {
            let what =
                format!("has {count} layers, and the model has {} to which an image can be added: it belongs to another", spec.sites.len());
            return Err(model_error(&name, what));
        }
        Ok(Self { name, part: as_named("the IP-Adapter", vec![Arc::new(file)])?, spec })
    }

    /// What people call it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What the network is.
    pub fn spec(&self) -> &IpAdapterSpec {
        &self.spec
    }

    /// How many numbers its tensors have.
    pub fn parameters(&self) -> u64 {
        self.part.parameters()
    }
}

fn open(path: &Path) -> Result<WeightFile> {
    let shown = path.display().to_string();
    if is_pickle(path) {
        return Err(model_error(&shown, PICKLE));
    }
    WeightFile::new(shown, Blob::open(path)?)
}

/// Reads an adapter's size off its tensors.
fn describe(file: &WeightFile, unet: &UNetSpec) -> Result<IpAdapterSpec> {
    let refused = |what: &str| Err(model_error(&file.name, what));
    let starts = |beginning: &str| file.entries().iter().any(|entry| entry.name.starts_with(beginning));
    if file.entries().iter().any(|entry| entry.name.contains("_lora.")) || starts("image_proj.perceiver_resampler.") {
        return refused("is an IP-Adapter for faces (FaceID), which needs a network that recognises faces, and is not implemented");
    }
    if starts("image_proj.proj.0.") {
        return refused("is an IP-Adapter for whole images of faces (full-face), which is not implemented; take the plain or the plus one");
    }
    let shape = |name: &str| file.shape(name).map(<[usize]>::to_vec);
    let need = |name: &str, sides: usize| -> Result<Vec<usize>> {
        let found = shape(name).ok_or_else(|| model_error(&file.name, format!("lacks the tensor {}", quoted(name))))?;
        match found.len() == sides && found.iter().all(|side| (1..1 << 20).contains(side)) {
            true => Ok(found),
            false => {
                Err(model_error(&file.name, format!("has tensor {} of shape {found:?}, where {sides} sides were expected", quoted(name))))
            }
        }
    };
    let sites = sites(unet);
    if shape("image_proj.latents").is_some() {
        let latents = need("image_proj.latents", 3)?;
        let (out, proj_in) = (need("image_proj.proj_out.weight", 2)?, need("image_proj.proj_in.weight", 2)?);
        let layers = (0..MOST_LAYERS).take_while(|i| shape(&format!("image_proj.layers.{i}.0.to_q.weight")).is_some()).count();
        let (inner, wide) = (need("image_proj.layers.0.0.to_q.weight", 2)?, need("image_proj.layers.0.1.1.weight", 2)?);
        if !inner[0].is_multiple_of(64) {
            return refused("has attention over the image that heads of 64 channels do not divide");
        }
        let projection = ImageProjectionSpec::Perceiver { width: latents[2], layers, inner: inner[0], wide: wide[0] };
        return Ok(IpAdapterSpec { width: out[0], tokens: latents[1], input: proj_in[1], projection, sites });
    }
    if shape("image_proj.proj.weight").is_some() {
        let (proj, norm) = (need("image_proj.proj.weight", 2)?, need("image_proj.norm.weight", 1)?);
        if proj[0] % norm[0] != 0 {
            return refused("makes tokens of an image that are not as wide as its norm");
        }
        let (width, tokens) = (norm[0], proj[0] / norm[0]);
        return Ok(IpAdapterSpec { width, tokens, input: proj[1], projection: ImageProjectionSpec::Linear, sites });
    }
    let first = file.entries().first().map(|entry| format!(": its tensors have names like {}", quoted(&entry.name)));
    refused(&format!("is no IP-Adapter that is known{}", first.unwrap_or_default()))
}

/// The UNet's transformer blocks in the order in which adapters number them: down, up, middle.
fn sites(unet: &UNetSpec) -> Vec<(String, usize)> {
    let mut sites = Vec::new();
    for (way, levels) in [("down_blocks", &unet.down), ("up_blocks", &unet.up)] {
        for (i, level) in levels.iter().enumerate() {
            for (j, depth) in level.depths.iter().enumerate() {
                sites.extend((0..*depth).map(|k| (format!("{way}.{i}.attentions.{j}.transformer_blocks.{k}"), level.channels)));
            }
        }
    }
    let (channels, depth) = (unet.down.last().map_or(0, |level| level.channels), unet.mid.as_ref().map_or(0, |mid| mid.depth));
    sites.extend((0..depth).map(|k| (format!("mid_block.attentions.0.transformer_blocks.{k}"), channels)));
    sites
}

impl TensorSource for IpAdapterFile {
    fn tensor(&self, name: &str, shape: &[usize], dtype: DType, device: &Device) -> Result<Tensor> {
        ComponentTensors::new(&self.part, "as the model has it").tensor(name, shape, dtype, device)
    }

    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        self.part.shape(name)
    }
}

/// An opened image encoder of CLIP.
#[derive(Debug)]
pub struct ImageEncoderFile {
    name: String,
    part: Part,
    spec: ClipVisionSpec,
}

impl ImageEncoderFile {
    /// Opens a folder with `config.json`, or a `.safetensors` file, whose tensors say what they can.
    ///
    /// # Errors
    /// [`crate::Error::Model`]: it is no image encoder of CLIP.
    pub fn open(path: &Path) -> Result<Self> {
        let name = path.display().to_string();
        let (files, spec) = if path.is_dir() {
            let folder = Folder::Disk(path.to_owned());
            let files = folder.weights("", None)?;
            let said = (&folder as &dyn ConfigFiles).json("config.json")?;
            (files, said.map(|fields| config::clip_vision(&fields)).transpose()?)
        } else {
            (vec![Arc::new(open(path)?)], None)
        };
        let spec = match (spec, files.as_slice()) {
            (Some(spec), _) => spec,
            (None, [file]) => detect_encoder(file)?,
            (None, _) => return Err(model_error(&name, "has no config.json beside its weights")),
        };
        Ok(Self { name, part: as_named("the image encoder", files)?, spec })
    }

    /// What people call it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What the network is.
    pub fn spec(&self) -> &ClipVisionSpec {
        &self.spec
    }

    /// How many numbers its tensors have.
    pub fn parameters(&self) -> u64 {
        self.part.parameters()
    }

    /// Refuses an adapter that was trained with another encoder.
    ///
    /// # Errors
    /// The message names both widths.
    pub fn check(&self, adapter: &IpAdapterFile) -> Result<()> {
        match input(&self.spec, &adapter.spec) == adapter.spec.input {
            true => Ok(()),
            false => {
                let (has, wants) = (input(&self.spec, &adapter.spec), adapter.spec.input);
                let what = format!(
                    "is an image encoder of width {has}, and {} was trained with one of {wants}: name the folder of that one with encoder=",
                    adapter.name
                );
                Err(model_error(&self.name, what))
            }
        }
    }
}

/// The width of what an adapter reads of an encoder.
fn input(encoder: &ClipVisionSpec, adapter: &IpAdapterSpec) -> usize {
    match adapter.projection {
        ImageProjectionSpec::Linear => encoder.projection_dim,
        ImageProjectionSpec::Perceiver { .. } => encoder.hidden_size,
    }
}

fn detect_encoder(file: &WeightFile) -> Result<ClipVisionSpec> {
    const EMBEDDINGS: &str = "vision_model.embeddings";
    let shape = |name: &str| TensorNames::shape(file, name);
    let wrong = || {
        model_error(&file.name, "is no image encoder of CLIP: it has no vision_model.embeddings.patch_embedding.weight of a known shape")
    };
    let Some(&[hidden_size, 3, patch_size, _]) = shape(&format!("{EMBEDDINGS}.patch_embedding.weight")) else { return Err(wrong()) };
    let Some(&[positions, _]) = shape(&format!("{EMBEDDINGS}.position_embedding.weight")) else { return Err(wrong()) };
    let Some(&[intermediate_size, _]) = shape("vision_model.encoder.layers.0.mlp.fc1.weight") else { return Err(wrong()) };
    let Some(&[projection_dim, _]) = shape("visual_projection.weight") else { return Err(wrong()) };
    let layers =
        (0..config::limit::LAYERS).take_while(|i| shape(&format!("vision_model.encoder.layers.{i}.mlp.fc1.weight")).is_some()).count();
    if !hidden_size.is_multiple_of(VISION_HEADS) || positions < 2 {
        return Err(wrong());
    }
    Ok(ClipVisionSpec {
        hidden_size,
        intermediate_size,
        layers,
        heads: VISION_HEADS,
        image_size: (positions - 1).isqrt() * patch_size,
        patch_size,
        // OpenAI's own are the only ones with the quick one.
        activation: if hidden_size == 1024 && patch_size == 14 { Activation::QuickGelu } else { Activation::Gelu },
        projection_dim,
        layer_norm_eps: 1e-5,
    })
}

impl TensorSource for ImageEncoderFile {
    fn tensor(&self, name: &str, shape: &[usize], dtype: DType, device: &Device) -> Result<Tensor> {
        ComponentTensors::new(&self.part, "as its configuration says").tensor(name, shape, dtype, device)
    }

    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        self.part.shape(name)
    }
}

/// The image encoder of an adapter: `named`, from here or from where the adapter lies, or the one of its authors' layout that fits.
///
/// # Errors
/// There is none; the message says where it was looked for.
pub fn find_image_encoder(adapter: &Path, named: Option<&Path>) -> Result<PathBuf> {
    let beside = adapter.parent().unwrap_or(Path::new(""));
    if let Some(named) = named {
        let places = [named.to_owned(), beside.join(named)];
        let found = places.iter().find(|path| path.exists());
        return found.cloned().ok_or_else(|| model_error(named.display(), "is named as an IP-Adapter's image encoder, and is not there"));
    }
    let usual = [beside.join("image_encoder"), beside.join("..").join("models").join("image_encoder")];
    let there: Vec<&PathBuf> = usual.iter().filter(|folder| folder.is_dir()).collect();
    // Only where there is a choice does it matter what they are.
    if let [first, _, ..] = there.as_slice() {
        let file = open(adapter)?;
        let input_of = |weight: &str| file.shape(weight).and_then(|shape| shape.last().copied());
        let fits = |folder: &&&PathBuf| {
            ImageEncoderFile::open(folder).is_ok_and(|encoder| {
                input_of("image_proj.proj.weight").is_some_and(|width| width == encoder.spec.projection_dim)
                    || input_of("image_proj.proj_in.weight").is_some_and(|width| width == encoder.spec.hidden_size)
            })
        };
        return Ok(there.iter().find(fits).map_or_else(|| (*first).clone(), |folder| (*folder).clone()));
    }
    there.first().map(|folder| (*folder).clone()).ok_or_else(|| {
        let what = format!("has no image encoder beside it ({}); name its folder with encoder=", usual[0].display());
        model_error(adapter.display(), what)
    })
}
