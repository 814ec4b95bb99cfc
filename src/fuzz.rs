//! What a fuzzer drives. No interface of the library: each function takes any bytes, and what it calls must neither panic nor hang, and
//! take no more memory than a small multiple of the bytes. `fuzz/` has the targets for cargo-fuzz.

use crate::batch::Manifest;
use crate::metadata;
use crate::survey::Survey;
use crate::text::ClipTokenizer;
use crate::weights::{Checkpoint, Component, TensorSource, trained_words};
use candle_core::{DType, Device};
use serde_json::{Map, Value, json};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

pub use crate::cli::fuzz::{lines, settings};

/// A function and what it is called.
pub type FuzzTarget = (&'static str, fn(&[u8]));

/// All targets.
pub const TARGETS: [FuzzTarget; 9] = [
    ("header", header),
    ("survey", survey),
    ("configuration", configuration),
    ("tokenizer", tokenizer),
    ("image", image),
    ("input_image", input_image),
    ("lines", lines),
    ("manifest", manifest),
    ("settings", settings),
];

/// Where this thread's file of a target is.
fn file(name: &str, bytes: &[u8]) -> Option<PathBuf> {
    static FOLDER: OnceLock<Option<tempfile::TempDir>> = OnceLock::new();
    let folder = FOLDER.get_or_init(|| tempfile::tempdir().ok()).as_ref()?;
    let path = folder.path().join(format!("{:?}-{name}", std::thread::current().id()));
    std::fs::write(&path, bytes).ok().map(|()| path)
}

/// Any bytes are a model in one file or an error.
pub fn header(bytes: &[u8]) {
    const NAMES: [&str; 6] = [
        "conv_in.weight",
        "down_blocks.0.attentions.0.proj_in.weight",
        "decoder.mid_block.attentions.0.to_q.weight",
        "text_model.encoder.layers.0.self_attn.k_proj.weight",
        "text_model.embeddings.token_embedding.weight",
        "text_projection.weight",
    ];
    let Ok(model) = Checkpoint::from_bytes("fuzz", bytes.to_vec()) else { return };
    let _ = (model.unknown(), model.unused());
    for component in [Component::UNET, Component::VAE, Component::text_encoder(0), Component::text_encoder(1)] {
        let source = model.component(component);
        for name in NAMES {
            if let Some(shape) = source.shape(name) {
                let _ = source.tensor(name, &shape, DType::F32, &Device::Cpu);
            }
        }
    }
}

/// Any bytes in a `.safetensors` file are something that `inspect` can say what it is.
pub fn survey(bytes: &[u8]) {
    static MODEL: OnceLock<Option<Checkpoint>> = OnceLock::new();
    let model = MODEL.get_or_init(|| Checkpoint::open(Path::new("models/emoji")).ok());
    let Some(survey) = file("survey.safetensors", bytes).and_then(|path| Survey::of(&path).ok()) else { return };
    let _ = trained_words(&survey.metadata);
    for component in &survey.components {
        let _ = (component.parameters(), component.bytes());
    }
    if let Some(adapter) = &survey.adapter {
        let _ = (adapter.alphas(), adapter.ranks(), adapter.sites(), adapter.base(), adapter.changes());
        let _ = adapter.check_numbers();
        if let Some(fit) = model.as_ref().map(|model| adapter.fit(model)) {
            assert!(fit.layers <= fit.of && fit.absent.len() >= adapter.unknown.len());
        }
    }
}

/// Any texts, with NUL between them, are the configuration of a model or an error. They travel in the metadata of a file that has just
/// enough tensors to be looked at.
pub fn configuration(bytes: &[u8]) {
    const TEXTS: [&str; 6] = [
        "model_index.json",
        "unet/config.json",
        "vae/config.json",
        "text_encoder/config.json",
        "scheduler/scheduler_config.json",
        "tokenizer/special_tokens_map.json",
    ];
    const TENSORS: [&str; 3] = [
        "model.diffusion_model.input_blocks.0.0.weight",
        "first_stage_model.decoder.conv_in.weight",
        "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight",
    ];
    let text = String::from_utf8_lossy(bytes);
    let texts: Map<String, Value> = TEXTS.iter().zip(text.split('\0')).map(|(path, text)| ((*path).into(), text.into())).collect();
    let mut header = Map::new();
    header.insert("__metadata__".into(), json!({ "sd-gen.configuration": Value::Object(texts).to_string() }));
    for tensor in TENSORS {
        header.insert(tensor.into(), json!({ "dtype": "F32", "shape": [0], "data_offsets": [0, 0] }));
    }
    let header = Value::Object(header).to_string();
    if let Ok(model) = Checkpoint::from_bytes("fuzz", [&(header.len() as u64).to_le_bytes()[..], header.as_bytes()].concat()) {
        let _ = (model.unknown(), model.unused());
    }
}

/// Any texts, with NUL between them, are a vocabulary, merges, a padding token and a prompt, or an error.
pub fn tokenizer(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let mut texts = text.split('\0');
    let mut next = || texts.next().unwrap_or_default();
    let (vocab, merges, pad, prompt) = (next(), next(), next(), next());
    if let Ok(tokenizer) = ClipTokenizer::from_files("fuzz", vocab, merges, pad, 77)
        && let Ok(tokens) = tokenizer.encode(prompt)
    {
        assert!(tokens.ids.len() == 77 && tokens.ids.iter().all(|id| *id <= tokenizer.largest_id()));
    }
}

/// Any bytes are an image with a recipe and a command that a shell reads, an image without one, or an error.
pub fn image(bytes: &[u8]) {
    let Some(path) = file("image", bytes) else { return };
    if let Ok(Some(image)) = metadata::read(&path)
        && let Some(recipe) = image.recipe
    {
        let command = metadata::command(&recipe);
        let words = shlex::split(&command.shell()).unwrap_or_default();
        assert_eq!(words.get(1..), Some(&command.arguments[..]));
        let _ = recipe.json();
    }
}

/// Any bytes are an image that something is made of, or an error.
pub fn input_image(bytes: &[u8]) {
    if let Ok(image) = crate::image::decode(bytes) {
        assert!(image.alpha.is_none_or(|alpha| alpha.dimensions() == image.rgb.dimensions()));
    }
}

/// Any bytes are a manifest, of which lines that are no records are passed over, or an error.
pub fn manifest(bytes: &[u8]) {
    let Some(path) = file("manifest.jsonl", bytes) else { return };
    if let Ok(mut manifest) = Manifest::open(&path) {
        manifest.forgive();
        let _ = (manifest.strange_lines(), manifest.history("emoji", "f32"));
    }
}
