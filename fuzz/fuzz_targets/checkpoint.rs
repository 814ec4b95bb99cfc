//! Any bytes are a model or an error.
#![no_main]

use candle_core::{DType, Device};
use libfuzzer_sys::fuzz_target;
use sd_gen::weights::{Checkpoint, Component, TensorSource};

const NAMES: [&str; 6] = [
    "conv_in.weight",
    "down_blocks.0.attentions.0.proj_in.weight",
    "decoder.mid_block.attentions.0.to_q.weight",
    "text_model.encoder.layers.0.self_attn.k_proj.weight",
    "text_model.embeddings.token_embedding.weight",
    "text_projection.weight",
];

fuzz_target!(|bytes: &[u8]| {
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
});
