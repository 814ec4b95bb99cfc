//! What is loaded, where, and how it computes. Requests hold nothing of it: it is decided before a model is known.

use super::{Heading, NetworkFile, Setting, SourcePath, Value, ValueKind};
use crate::device::{DTypeChoice, DeviceChoice};
use candle_core::DType;
use std::path::PathBuf;

settings! {
    /// The model, and how it is loaded; requests with equal ones share a pipeline.
    LoadSettings [Eq, Hash], LoadDraft, draft.load, by (), of |_| None;

    /// A path (folder or .safetensors file), a folder of models, a name in the models folder, or a hub id: org/name[@revision][:file]
    model: maybe String => Setting {
        name: "model", short: Some('m'), hidden_aliases: &["sd-model", "ckpt-name", "checkpoint"], value: "WHAT",
        infotext: Some("Model"), ..Setting::MODEL
    };

    /// Where models are looked for by name
    models_dir: maybe SourcePath => Setting { name: "models-dir", value: "DIR", default: "$SD_GEN_MODELS, else ./models", ..Setting::MODEL };

    /// Where LoRAs are looked for by name
    lora_dir: maybe SourcePath => Setting {
        name: "lora-dir", aliases: &["lora-model-dir"], value: "DIR", default: "loras and Lora in the models folder, or beside it",
        heading: Heading::Adapters, ..Setting::MODEL
    };

    /// Where textual inversions are looked for by name, and found by their words in the prompts
    embeddings_dir: maybe SourcePath => Setting {
        name: "embeddings-dir", aliases: &["embd-dir"], value: "DIR", default: "embeddings in the models folder, or beside it",
        heading: Heading::Adapters, ..Setting::MODEL
    };

    /// auto, cpu, cuda, cuda:N or metal; several, as in cuda:0,cuda:1, share the images out
    device: many DeviceChoice => Setting {
        name: "device", value: "DEVICE,…", default: "auto", heading: Heading::Machine, delimiter: Some(','),
        words: || vec!["auto", "cpu", "cuda", "metal"], ..Setting::MODEL
    };

    /// What UNet and text encoders compute in: auto, f32, f16 or bf16
    dtype: one DTypeChoice = |()| DTypeChoice::Auto => Setting {
        name: "dtype", aliases: &["precision"], value: "DTYPE", default: "auto", heading: Heading::Machine, words: dtypes,
        infotext: Some("Precision"), ..Setting::MODEL
    };

    /// What the VAE computes in, f32 where f16 would overflow
    vae_dtype: one DTypeChoice = |()| DTypeChoice::Auto => Setting {
        name: "vae-dtype", value: "DTYPE", default: "as --dtype", heading: Heading::Machine, words: dtypes,
        infotext: Some("VAE precision"), ..Setting::MODEL
    };

    /// Decode images in tiles: auto (where the memory is too small for the whole), on or off
    vae_tiling: one VaeTiling = |()| VaeTiling::Auto => Setting {
        name: "vae-tiling", value: "WHEN", default: "auto", heading: Heading::Machine, words: || vec!["auto", "on", "off"],
        ..Setting::MODEL
    };

    /// A file of CLIP-L, for a Stable Diffusion 3 file without text encoders, or for a UNet alone
    clip_l: maybe SourcePath => Setting { name: "clip-l", value: "FILE", infotext: Some("CLIP-L"), ..Setting::MODEL };

    /// A file of CLIP-G, for a Stable Diffusion 3 file without text encoders, or for an XL UNet alone
    clip_g: maybe SourcePath => Setting { name: "clip-g", value: "FILE", infotext: Some("CLIP-G"), ..Setting::MODEL };

    /// A file of T5's encoder (.safetensors or .gguf), for a Stable Diffusion 3 file without it
    t5: maybe SourcePath => Setting { name: "t5", aliases: &["t5xxl"], value: "FILE", infotext: Some("T5"), ..Setting::MODEL };

    /// A folder with tokenizer, tokenizer_2 and tokenizer_3 in it, for a file of another vocabulary
    tokenizers: maybe SourcePath => Setting { name: "tokenizers", value: "DIR", infotext: Some("Tokenizers"), ..Setting::MODEL };

    /// Keep only the network at work in the device's memory, and of it what fits; slower
    low_memory: one bool = |()| false => Setting { name: "low-memory", heading: Heading::Machine, ..Setting::MODEL };
}

fn dtypes() -> Vec<&'static str> {
    vec!["auto", "f32", "f16", "bf16"]
}

/// Files that take the place of a model's own parts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ModelParts {
    /// CLIP-L.
    pub clip_l: Option<PathBuf>,
    /// CLIP-G.
    pub clip_g: Option<PathBuf>,
    /// T5's encoder.
    pub t5: Option<PathBuf>,
    /// A folder of tokenizers.
    pub tokenizers: Option<PathBuf>,
    /// The autoencoder, for a file that holds a denoiser alone.
    pub vae: Option<PathBuf>,
}

/// Whether images are decoded in tiles.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum VaeTiling {
    /// Where the memory is too small for the whole image.
    #[default]
    Auto,
    /// Always, where the image is larger than a tile.
    On,
    /// Never.
    Off,
}

impl VaeTiling {
    fn from_name(name: &str) -> Result<Self, &'static str> {
        match name.to_ascii_lowercase().as_str() {
            "auto" => Ok(VaeTiling::Auto),
            "on" => Ok(VaeTiling::On),
            "off" => Ok(VaeTiling::Off),
            _ => Err("give auto, on or off"),
        }
    }

    fn name(&self) -> &'static str {
        match self {
            VaeTiling::Auto => "auto",
            VaeTiling::On => "on",
            VaeTiling::Off => "off",
        }
    }
}

words!(VaeTiling, VaeTiling::from_name, VaeTiling::name);

impl Value for DTypeChoice {
    const KIND: ValueKind = ValueKind::Word;

    fn parse(text: &str) -> Result<Self, String> {
        text.parse()
    }

    fn typed(&self) -> String {
        match self {
            DTypeChoice::Auto => "auto",
            DTypeChoice::Is(dtype) => DType::as_str(dtype),
        }
        .into()
    }
}

impl Value for DeviceChoice {
    const KIND: ValueKind = ValueKind::Word;

    fn parse(text: &str) -> Result<Self, String> {
        text.parse()
    }

    fn typed(&self) -> String {
        self.to_string()
    }
}

impl LoadSettings {
    /// What takes the place of the model's own parts; `vae` is that of the images.
    pub fn beside(&self, vae: Option<&NetworkFile>) -> ModelParts {
        let path = |named: &Option<SourcePath>| named.as_ref().map(|path| path.0.clone());
        let (clip_l, clip_g, t5, tokenizers) = (path(&self.clip_l), path(&self.clip_g), path(&self.t5), path(&self.tokenizers));
        ModelParts { clip_l, clip_g, t5, tokenizers, vae: vae.map(|vae| vae.0.path().to_owned()) }
    }

    /// The same for an image's text: under which key, and the file's or folder's name.
    pub fn named_parts(&self) -> Vec<(&'static str, String)> {
        let parts = [("CLIP-L", &self.clip_l), ("CLIP-G", &self.clip_g), ("T5", &self.t5), ("Tokenizers", &self.tokenizers)];
        let name = |path: &SourcePath| path.0.file_name().map(|name| name.to_string_lossy().into_owned());
        parts.into_iter().filter_map(|(key, path)| Some((key, name(path.as_ref()?)?))).collect()
    }

    /// The devices, of which there is one at least.
    pub fn devices(&self) -> &[DeviceChoice] {
        if self.device.is_empty() { &[DeviceChoice::Auto] } else { &self.device }
    }
}
