//! Any texts are the configuration of a model or an error.
//!
//! The texts travel in the metadata of a file that has just enough tensors to be looked at.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sd_gen::weights::Checkpoint;
use serde_json::{Map, Value, json};

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

fuzz_target!(|text: &str| {
    // One text after the other, between NUL characters.
    let texts: Map<String, Value> = TEXTS.iter().zip(text.split('\0')).map(|(path, text)| ((*path).into(), text.into())).collect();
    let mut header = Map::new();
    header.insert("__metadata__".into(), json!({ "sd-gen.configuration": Value::Object(texts).to_string() }));
    for tensor in TENSORS {
        header.insert(tensor.into(), json!({ "dtype": "F32", "shape": [0], "data_offsets": [0, 0] }));
    }
    let header = Value::Object(header).to_string();
    let bytes = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes()].concat();
    if let Ok(model) = Checkpoint::from_bytes("fuzz", bytes) {
        let _ = (model.unknown(), model.unused());
    }
});
