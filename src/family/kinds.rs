//! What a file of tensors is that is not a whole model: other families, add-ons, and single networks, told by their tensors' names.

use super::TensorNames;

/// What goes beside a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AddOn {
    ControlNet,
    IpAdapter,
    Upscaler,
    /// One that is not used.
    Other,
}

/// A part of keys that only one kind of file has.
pub(crate) struct ForeignKind {
    /// Stands in a key.
    pub(crate) part: &'static str,
    /// What the file is: "a ControlNet".
    pub(crate) what: &'static str,
    /// Why it cannot be generated with.
    pub(crate) why: &'static str,
    /// It is a whole model, or the most of one.
    pub(crate) is_model: bool,
    /// What it goes beside a model as.
    pub(crate) add_on: AddOn,
}

const fn model(part: &'static str, what: &'static str, why: &'static str) -> ForeignKind {
    ForeignKind { part, what, why, is_model: true, add_on: AddOn::Other }
}

const fn add_on(part: &'static str, what: &'static str) -> ForeignKind {
    as_add_on(part, what, AddOn::Other)
}

const fn as_add_on(part: &'static str, what: &'static str, add_on: AddOn) -> ForeignKind {
    ForeignKind { part, what, why: "an add-on to a model, and not a model", is_model: false, add_on }
}

const fn change(part: &'static str, what: &'static str) -> ForeignKind {
    ForeignKind { part, what, why: "a small change to a model, and not a model", is_model: false, add_on: AddOn::Other }
}

const TRANSFORMER: &str = "whose denoiser is a transformer; only UNets are implemented";
const QUANTISED: &str = "a model of quantised weights (comfy_quant)";
const PLAIN: &str = "which are not read; use an f16, f8_e4m3 or scaled_fp8 file of the same model";
const NOT_YET: &str = "which is not implemented";
const EDM: &str = "whose noise schedule (EDM) is not implemented";

/// The first row that fits counts.
const FOREIGN_KINDS: &[ForeignKind] = &[
    change("lora_", "a LoRA"),
    change(".lora.", "a LoRA"),
    change(".dora_scale", "a LoRA (DoRA)"),
    change("hada_w1", "a LyCORIS file (LoHa)"),
    change("lokr_w1", "a LyCORIS file (LoKr)"),
    change("oft_blocks", "a LyCORIS file (OFT)"),
    as_add_on("ip_adapter.", "an IP-Adapter", AddOn::IpAdapter),
    as_add_on("image_proj.", "an IP-Adapter", AddOn::IpAdapter),
    model("double_blocks.", "Flux or a relative", TRANSFORMER),
    model("single_transformer_blocks.", "Flux of a diffusers folder", TRANSFORMER),
    model("double_layers.", "AuraFlow", TRANSFORMER),
    model("noise_refiner.", "Lumina 2 or Z-Image", TRANSFORMER),
    model("y_embedder.y_embedding", "PixArt", TRANSFORMER),
    model("mlp_t5.", "Hunyuan-DiT", TRANSFORMER),
    model("effnet_mapper.", "Stable Cascade", NOT_YET),
    model("clip_txt_pooled_mapper.", "Stable Cascade", NOT_YET),
    as_add_on("control_add_embedding", "a ControlNet Union", AddOn::ControlNet),
    add_on("lllite_", "a ControlNet-LLLite"),
    add_on("depth_head.scratch.", "a depth network (Depth Anything)"),
    add_on("neck.reassemble_stage.", "a depth network (Depth Anything)"),
    as_add_on("control_model.", "a ControlNet", AddOn::ControlNet),
    as_add_on("controlnet_", "a ControlNet", AddOn::ControlNet),
    as_add_on("input_hint_block.", "a ControlNet", AddOn::ControlNet),
    add_on("adapter.body.", "a T2I-Adapter"),
    add_on("body.0.in_conv.", "a T2I-Adapter"),
    add_on("body.0.block1.", "a T2I-Adapter"),
    add_on("body.0.resnets.", "a T2I-Adapter"),
    add_on("motion_modules.", "AnimateDiff's motion module"),
    model("time_stack.", "Stable Video Diffusion", NOT_YET),
    model("edm_mean", "Playground 2.5", EDM),
    model("edm_vpred.", "CosXL", EDM),
    model(".comfy_quant", QUANTISED, PLAIN),
    add_on("emb_params", "a textual inversion"),
    as_add_on(".rdb1.conv1.", "an ESRGAN upscaler", AddOn::Upscaler),
    as_add_on(".RDB1.conv1.", "an ESRGAN upscaler", AddOn::Upscaler),
    as_add_on("block_1.c1_r.", "a SPAN upscaler", AddOn::Upscaler),
    as_add_on("layers.0.residual_group.", "a SwinIR or HAT upscaler", AddOn::Upscaler),
];

/// What the file is by a key that no model of the implemented families has.
pub(crate) fn foreign(file: &dyn TensorNames) -> Option<&'static ForeignKind> {
    FOREIGN_KINDS.iter().find(|row| file.names().any(|name| name.contains(row.part)))
}

/// Which network a file holds that holds one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Network {
    UNet,
    Vae,
    Text,
}

/// A key that one network has, and what the network is called.
pub(crate) struct SingleNetwork {
    pub(crate) key: &'static str,
    pub(crate) what: &'static str,
    pub(crate) network: Network,
}

/// The first row that fits counts.
const SINGLE_NETWORKS: &[SingleNetwork] = &[
    SingleNetwork { key: "model.diffusion_model.input_blocks.0.0.weight", what: "a UNet", network: Network::UNet },
    SingleNetwork { key: "input_blocks.0.0.weight", what: "a UNet", network: Network::UNet },
    SingleNetwork { key: "conv_in.weight", what: "a UNet of a diffusers folder", network: Network::UNet },
    SingleNetwork { key: "encoder.layers.0.conv.weight", what: "a small autoencoder (TAESD)", network: Network::Vae },
    SingleNetwork { key: "first_stage_model.decoder.conv_in.weight", what: "an autoencoder", network: Network::Vae },
    SingleNetwork { key: "encoder.conv_in.weight", what: "an autoencoder", network: Network::Vae },
    SingleNetwork { key: "decoder.conv_in.weight", what: "an autoencoder", network: Network::Vae },
    SingleNetwork { key: "vision_model.embeddings.patch_embedding.weight", what: "CLIP's image encoder", network: Network::Text },
    SingleNetwork { key: "text_model.embeddings.token_embedding.weight", what: "a text encoder", network: Network::Text },
    SingleNetwork { key: "token_embedding.weight", what: "a text encoder", network: Network::Text },
    SingleNetwork { key: "encoder.block.0.layer.0.SelfAttention.q.weight", what: "a text encoder (T5)", network: Network::Text },
];

/// The network that the file holds, if it is one that is known.
pub(crate) fn lone(file: &dyn TensorNames) -> Option<&'static SingleNetwork> {
    SINGLE_NETWORKS.iter().find(|row| file.shape(row.key).is_some())
}
