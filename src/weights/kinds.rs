//! What a file of tensors is that is not a whole model: other families, add-ons, and single networks, told by their tensors' names.

use super::file::WeightFile;

/// A part of keys that only one kind of file has.
pub(crate) struct Foreign {
    /// Stands in a key.
    pub(crate) part: &'static str,
    /// What the file is: "a ControlNet".
    pub(crate) what: &'static str,
    /// Why it cannot be painted with.
    pub(crate) why: &'static str,
}

const NO_MODEL: &str = "an add-on to a model, and not a model";
const TRANSFORMER: &str = "whose denoiser is a transformer; only UNets are implemented";
const NOT_YET: &str = "which is not implemented";
const EDM: &str = "whose noise schedule (EDM) is not implemented";

/// The first row that fits counts.
const FOREIGN: &[Foreign] = &[
    Foreign { part: "lora_", what: "a LoRA", why: "a small change to a model, and not a model" },
    Foreign { part: ".lora.", what: "a LoRA", why: "a small change to a model, and not a model" },
    Foreign { part: ".dora_scale", what: "a LoRA (DoRA)", why: "a small change to a model, and not a model" },
    Foreign { part: "hada_w1", what: "a LyCORIS file (LoHa)", why: "a small change to a model, and not a model" },
    Foreign { part: "lokr_w1", what: "a LyCORIS file (LoKr)", why: "a small change to a model, and not a model" },
    Foreign { part: "oft_blocks", what: "a LyCORIS file (OFT)", why: "a small change to a model, and not a model" },
    Foreign { part: "ip_adapter.", what: "an IP-Adapter", why: NO_MODEL },
    Foreign { part: "image_proj.", what: "an IP-Adapter", why: NO_MODEL },
    Foreign { part: "joint_blocks.", what: "Stable Diffusion 3", why: TRANSFORMER },
    Foreign { part: "double_blocks.", what: "Flux or a relative", why: TRANSFORMER },
    Foreign { part: "single_transformer_blocks.", what: "Flux of a diffusers folder", why: TRANSFORMER },
    Foreign { part: "double_layers.", what: "AuraFlow", why: TRANSFORMER },
    Foreign { part: "noise_refiner.", what: "Lumina 2 or Z-Image", why: TRANSFORMER },
    Foreign { part: "y_embedder.y_embedding", what: "PixArt", why: TRANSFORMER },
    Foreign { part: "mlp_t5.", what: "Hunyuan-DiT", why: TRANSFORMER },
    Foreign { part: "effnet_mapper.", what: "Stable Cascade", why: NOT_YET },
    Foreign { part: "clip_txt_pooled_mapper.", what: "Stable Cascade", why: NOT_YET },
    Foreign { part: "control_model.", what: "a ControlNet", why: NO_MODEL },
    Foreign { part: "controlnet_", what: "a ControlNet", why: NO_MODEL },
    Foreign { part: "input_hint_block.", what: "a ControlNet", why: NO_MODEL },
    Foreign { part: "adapter.body.", what: "a T2I-Adapter", why: NO_MODEL },
    Foreign { part: "motion_modules.", what: "AnimateDiff's motion module", why: NO_MODEL },
    Foreign { part: "time_stack.", what: "Stable Video Diffusion", why: NOT_YET },
    Foreign { part: "edm_mean", what: "Playground 2.5", why: EDM },
    Foreign { part: "edm_vpred.", what: "CosXL", why: EDM },
    Foreign { part: "cond_proj.weight", what: "a latent consistency model with an embedded guidance scale", why: NOT_YET },
    Foreign {
        part: "scaled_fp8",
        what: "a model of scaled eight-bit weights",
        why: "which are not read; use a plain f16 or f8_e4m3 file of the same model",
    },
    Foreign { part: "emb_params", what: "a textual inversion", why: NO_MODEL },
    Foreign { part: ".rdb1.conv1.", what: "an ESRGAN upscaler", why: NO_MODEL },
    Foreign { part: ".RDB1.conv1.", what: "an ESRGAN upscaler", why: NO_MODEL },
    Foreign { part: "layers.0.residual_group.", what: "a SwinIR or HAT upscaler", why: NO_MODEL },
];

/// What the file is by a key that no model of the implemented families has.
pub(crate) fn foreign(file: &WeightFile) -> Option<&'static Foreign> {
    FOREIGN.iter().find(|row| file.entries().iter().any(|entry| entry.name.contains(row.part)))
}

/// Which network a file holds that holds one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Network {
    UNet,
    Vae,
    Text,
}

/// A key that one network has, and what the network is called.
pub(crate) struct Lone {
    pub(crate) key: &'static str,
    pub(crate) what: &'static str,
    pub(crate) network: Network,
}

/// The first row that fits counts.
const LONE: &[Lone] = &[
    Lone { key: "model.diffusion_model.input_blocks.0.0.weight", what: "a UNet", network: Network::UNet },
    Lone { key: "input_blocks.0.0.weight", what: "a UNet", network: Network::UNet },
    Lone { key: "conv_in.weight", what: "a UNet of a diffusers folder", network: Network::UNet },
    Lone { key: "encoder.layers.0.conv.weight", what: "a small autoencoder (TAESD)", network: Network::Vae },
    Lone { key: "first_stage_model.decoder.conv_in.weight", what: "an autoencoder", network: Network::Vae },
    Lone { key: "encoder.conv_in.weight", what: "an autoencoder", network: Network::Vae },
    Lone { key: "decoder.conv_in.weight", what: "an autoencoder", network: Network::Vae },
    Lone { key: "vision_model.embeddings.patch_embedding.weight", what: "CLIP's picture encoder", network: Network::Text },
    Lone { key: "text_model.embeddings.token_embedding.weight", what: "a text encoder", network: Network::Text },
    Lone { key: "token_embedding.weight", what: "a text encoder", network: Network::Text },
    Lone { key: "encoder.block.0.layer.0.SelfAttention.q.weight", what: "a text encoder (T5)", network: Network::Text },
];

/// The network that the file holds, if it is one that is known.
pub(crate) fn lone(file: &WeightFile) -> Option<&'static Lone> {
    LONE.iter().find(|row| file.find(row.key).is_some())
}
