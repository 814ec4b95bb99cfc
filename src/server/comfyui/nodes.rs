//! The nodes that graphs may have, as ComfyUI describes them.
//!
//! # Source
//! ComfyUI@005f3ba:nodes.py (`INPUT_TYPES`, `RETURN_TYPES`), server.py `node_info`; comfy_extras/nodes_upscale_model.py.

use crate::sampling::{Sampler, SigmaSchedule};
use crate::server::Server;
use crate::server::studio::Nameable;
use serde_json::{Map, Value as Json, json};

/// What an input of a node takes.
#[derive(Debug, Clone, Copy)]
pub(super) enum NodeInput {
    /// Another node's output of this type.
    Link(&'static str),
    /// A whole number: the usual one, the least, the largest, and the step of a form's field.
    Whole(i128, i128, i128, i128),
    /// A number: the usual one, the least, the largest, and the step of a form's field.
    Number(f64, f64, f64, f64),
    /// Text, over several lines.
    Text,
    /// Text in one line.
    Line(&'static str),
    /// One of these words.
    Words(&'static [&'static str]),
    /// One of the samplers.
    Sampler,
    /// One of the schedules of noise levels.
    Schedule,
    /// A file of the server's.
    File(Nameable),
    /// An image that was sent.
    Image,
}

/// An input by its name.
pub(super) type NamedInput = (&'static str, NodeInput);

/// A kind of nodes.
pub(super) struct ComfyNode {
    pub(super) class: &'static str,
    title: &'static str,
    category: &'static str,
    pub(super) required: &'static [NamedInput],
    pub(super) optional: &'static [NamedInput],
    /// Types of the outputs.
    pub(super) outputs: &'static [&'static str],
    /// Graphs are computed for its sake.
    pub(super) is_output: bool,
}

use self::NodeInput::{File, Image, Line, Link, Number, Sampler as SamplerName, Schedule, Text, Whole, Words};

/// What [`Words`] say for yes and no.
const SWITCH: &[&str] = &["enable", "disable"];
const SIDE: NodeInput = Whole(512, 16, 16384, 8);
const STEPS: NodeInput = Whole(20, 1, 10000, 1);
const SEED: NodeInput = Whole(0, 0, u64::MAX as i128, 1);
const CFG: NodeInput = Number(8.0, 0.0, 100.0, 0.1);
const ENLARGING: NodeInput = Words(&["nearest-exact", "bilinear", "area", "bicubic", "bislerp"]);
const STRENGTH: NodeInput = Number(1.0, -100.0, 100.0, 0.01);

const fn node(
    class: &'static str,
    title: &'static str,
    category: &'static str,
    required: &'static [NamedInput],
    outputs: &'static [&'static str],
) -> ComfyNode {
    ComfyNode { class, title, category, required, optional: &[], outputs, is_output: false }
}

const fn output(class: &'static str, title: &'static str, required: &'static [NamedInput]) -> ComfyNode {
    ComfyNode { class, title, category: "image", required, optional: &[], outputs: &[], is_output: true }
}

/// Every kind of nodes that is understood.
pub(super) const NODES: &[ComfyNode] = &[
    node("CheckpointLoaderSimple", "Load Checkpoint", "loaders", &[("ckpt_name", File(Nameable::Model))], &["MODEL", "CLIP", "VAE"]),
    node("VAELoader", "Load VAE", "loaders", &[("vae_name", File(Nameable::Vae))], &["VAE"]),
    node(
        "LoraLoader",
        "Load LoRA",
        "loaders",
        &[
            ("model", Link("MODEL")),
            ("clip", Link("CLIP")),
            ("lora_name", File(Nameable::Lora)),
            ("strength_model", STRENGTH),
            ("strength_clip", STRENGTH),
        ],
        &["MODEL", "CLIP"],
    ),
    node(
        "LoraLoaderModelOnly",
        "LoraLoaderModelOnly",
        "loaders",
        &[("model", Link("MODEL")), ("lora_name", File(Nameable::Lora)), ("strength_model", STRENGTH)],
        &["MODEL"],
    ),
    node(
        "CLIPSetLastLayer",
        "CLIP Set Last Layer",
        "conditioning",
        &[("clip", Link("CLIP")), ("stop_at_clip_layer", Whole(-1, -24, -1, 1))],
        &["CLIP"],
    ),
    node("CLIPTextEncode", "CLIP Text Encode (Prompt)", "conditioning", &[("text", Text), ("clip", Link("CLIP"))], &["CONDITIONING"]),
    node("ControlNetLoader", "Load ControlNet Model", "loaders", &[("control_net_name", File(Nameable::ControlNet))], &["CONTROL_NET"]),
    node(
        "ControlNetApply",
        "Apply ControlNet (OLD)",
        "conditioning/controlnet",
        &[
            ("conditioning", Link("CONDITIONING")),
            ("control_net", Link("CONTROL_NET")),
            ("image", Link("IMAGE")),
            ("strength", Number(1.0, 0.0, 10.0, 0.01)),
        ],
        &["CONDITIONING"],
    ),
    ComfyNode {
        optional: &[("vae", Link("VAE"))],
        ..node(
            "ControlNetApplyAdvanced",
            "Apply ControlNet",
            "conditioning/controlnet",
            &[
                ("positive", Link("CONDITIONING")),
                ("negative", Link("CONDITIONING")),
                ("control_net", Link("CONTROL_NET")),
                ("image", Link("IMAGE")),
                ("strength", Number(1.0, 0.0, 10.0, 0.01)),
                ("start_percent", Number(0.0, 0.0, 1.0, 0.001)),
                ("end_percent", Number(1.0, 0.0, 1.0, 0.001)),
            ],
            &["CONDITIONING", "CONDITIONING"],
        )
    },
    node(
        "EmptyLatentImage",
        "Empty Latent Image",
        "latent",
        &[("width", SIDE), ("height", SIDE), ("batch_size", Whole(1, 1, 4096, 1))],
        &["LATENT"],
    ),
    node("LoadImage", "Load Image", "image", &[("image", Image)], &["IMAGE", "MASK"]),
    node(
        "LoadImageMask",
        "Load Image (as Mask)",
        "mask",
        &[("image", Image), ("channel", Words(&["alpha", "red", "green", "blue"]))],
        &["MASK"],
    ),
    node("VAEEncode", "VAE Encode", "latent", &[("pixels", Link("IMAGE")), ("vae", Link("VAE"))], &["LATENT"]),
    node(
        "VAEEncodeForInpaint",
        "VAE Encode (for Inpainting)",
        "latent/inpaint",
        &[("pixels", Link("IMAGE")), ("vae", Link("VAE")), ("mask", Link("MASK")), ("grow_mask_by", Whole(6, 0, 64, 1))],
        &["LATENT"],
    ),
    node(
        "SetLatentNoiseMask",
        "Set Latent Noise Mask",
        "latent/inpaint",
        &[("samples", Link("LATENT")), ("mask", Link("MASK"))],
        &["LATENT"],
    ),
    node(
        "KSampler",
        "KSampler",
        "sampling",
        &[
            ("model", Link("MODEL")),
            ("seed", SEED),
            ("steps", STEPS),
            ("cfg", CFG),
            ("sampler_name", SamplerName),
            ("scheduler", Schedule),
            ("positive", Link("CONDITIONING")),
            ("negative", Link("CONDITIONING")),
            ("latent_image", Link("LATENT")),
            ("denoise", Number(1.0, 0.0, 1.0, 0.01)),
        ],
        &["LATENT"],
    ),
    node(
        "KSamplerAdvanced",
        "KSampler (Advanced)",
        "sampling",
        &[
            ("model", Link("MODEL")),
            ("add_noise", Words(SWITCH)),
            ("noise_seed", SEED),
            ("steps", STEPS),
            ("cfg", CFG),
            ("sampler_name", SamplerName),
            ("scheduler", Schedule),
            ("positive", Link("CONDITIONING")),
            ("negative", Link("CONDITIONING")),
            ("latent_image", Link("LATENT")),
            ("start_at_step", Whole(0, 0, 10000, 1)),
            ("end_at_step", Whole(10000, 0, 10000, 1)),
            ("return_with_leftover_noise", Words(&["disable", "enable"])),
        ],
        &["LATENT"],
    ),
    node(
        "LatentUpscale",
        "Upscale Latent",
        "latent",
        &[
            ("samples", Link("LATENT")),
            ("upscale_method", ENLARGING),
            ("width", Whole(512, 0, 16384, 8)),
            ("height", Whole(512, 0, 16384, 8)),
            ("crop", Words(&["disabled", "center"])),
        ],
        &["LATENT"],
    ),
    node(
        "LatentUpscaleBy",
        "Upscale Latent By",
        "latent",
        &[("samples", Link("LATENT")), ("upscale_method", ENLARGING), ("scale_by", Number(1.5, 0.01, 8.0, 0.01))],
        &["LATENT"],
    ),
    node("VAEDecode", "VAE Decode", "latent", &[("samples", Link("LATENT")), ("vae", Link("VAE"))], &["IMAGE"]),
    node("UpscaleModelLoader", "Load Upscale Model", "loaders", &[("model_name", File(Nameable::Upscaler))], &["UPSCALE_MODEL"]),
    node(
        "ImageUpscaleWithModel",
        "Upscale Image (using Model)",
        "image/upscaling",
        &[("upscale_model", Link("UPSCALE_MODEL")), ("image", Link("IMAGE"))],
        &["IMAGE"],
    ),
    output("SaveImage", "Save Image", &[("images", Link("IMAGE")), ("filename_prefix", Line("ComfyUI"))]),
    output("PreviewImage", "Preview Image", &[("images", Link("IMAGE"))]),
];

/// The kind of a name.
pub(super) fn find(class: &str) -> Option<&'static ComfyNode> {
    NODES.iter().find(|node| node.class == class)
}

/// ComfyUI's samplers, in its order.
const SAMPLERS: &[&str] = &[
    "euler",
    "euler_cfg_pp",
    "euler_ancestral",
    "euler_ancestral_cfg_pp",
    "heun",
    "heunpp2",
    "dpm_2",
    "dpm_2_ancestral",
    "lms",
    "dpm_fast",
    "dpm_adaptive",
    "dpmpp_2s_ancestral",
    "dpmpp_2s_ancestral_cfg_pp",
    "dpmpp_sde",
    "dpmpp_sde_gpu",
    "dpmpp_2m",
    "dpmpp_2m_cfg_pp",
    "dpmpp_2m_sde",
    "dpmpp_2m_sde_gpu",
    "dpmpp_2m_sde_heun",
    "dpmpp_3m_sde",
    "dpmpp_3m_sde_gpu",
    "ddpm",
    "lcm",
    "ipndm",
    "ipndm_v",
    "deis",
    "res_multistep",
    "res_multistep_cfg_pp",
    "res_multistep_ancestral",
    "gradient_estimation",
    "er_sde",
    "seeds_2",
    "seeds_3",
    "ddim",
    "uni_pc",
    "uni_pc_bh2",
];

/// ComfyUI's schedules, in its order.
const SCHEDULES: &[&str] =
    &["simple", "sgm_uniform", "karras", "exponential", "ddim_uniform", "beta", "normal", "linear_quadratic", "kl_optimal"];

/// A whole number in JSON.
fn json(number: i128) -> Json {
    u64::try_from(number).map_or_else(|_| i64::try_from(number).unwrap_or_default().into(), Json::from)
}

impl NodeInput {
    /// What ComfyUI calls its type.
    pub(super) fn kind(self) -> &'static str {
        match self {
            Link(kind) => kind,
            Whole(..) => "INT",
            Number(..) => "FLOAT",
            Text | Line(_) => "STRING",
            _ => "COMBO",
        }
    }

    /// What may be chosen, where it is one of a list.
    pub(super) fn choices(self, server: &Server) -> Option<Vec<String>> {
        let own = |names: &[&str]| Some(names.iter().map(|name| (*name).to_owned()).collect());
        match self {
            Words(words) => own(words),
            SamplerName => own(&SAMPLERS.iter().copied().filter(|name| Sampler::from_name(name).is_ok()).collect::<Vec<_>>()),
            Schedule => own(&SCHEDULES.iter().copied().filter(|name| SigmaSchedule::from_name(name).is_ok()).collect::<Vec<_>>()),
            File(kind) => Some(server.studio.list(kind).into_iter().map(|file| file.name).collect()),
            Image => Some(server.comfyui.inputs.list()),
            Link(_) | Whole(..) | Number(..) | Text | Line(_) => None,
        }
    }

    /// As `/object_info` says it.
    fn described(self, server: &Server) -> Json {
        match self {
            Link(kind) => json!([kind]),
            Whole(usual, least, most, step) => {
                json!(["INT", { "default": json(usual), "min": json(least), "max": json(most), "step": json(step) }])
            }
            Number(usual, least, most, step) => json!(["FLOAT", { "default": usual, "min": least, "max": most, "step": step }]),
            Text => json!(["STRING", { "multiline": true }]),
            Line(usual) => json!(["STRING", { "default": usual }]),
            Image => json!([self.choices(server), { "image_upload": true }]),
            Words(_) | SamplerName | Schedule | File(_) => json!([self.choices(server)]),
        }
    }
}

impl ComfyNode {
    /// What `/object_info` says of it.
    pub(super) fn info(&self, server: &Server) -> Json {
        let described = |inputs: &[NamedInput]| -> Map<String, Json> {
            inputs.iter().map(|(name, input)| ((*name).to_owned(), input.described(server))).collect()
        };
        let names = |inputs: &[NamedInput]| -> Vec<&str> { inputs.iter().map(|(name, _)| *name).collect() };
        let mut input = json!({ "required": described(self.required) });
        let mut order = json!({ "required": names(self.required) });
        if let (false, Some(input), Some(order)) = (self.optional.is_empty(), input.as_object_mut(), order.as_object_mut()) {
            input.insert("optional".into(), described(self.optional).into());
            order.insert("optional".into(), names(self.optional).into());
        }
        json!({
            "input": input, "input_order": order, "output": self.outputs, "output_is_list": vec![false; self.outputs.len()],
            "output_name": self.outputs, "name": self.class, "display_name": self.title, "description": "", "python_module": "nodes",
            "category": self.category, "output_node": self.is_output,
        })
    }
}
