//! Depth Anything's files: the names that its authors and transformers give to the same tensors, its sizes, and its configuration.

use super::TensorNames;
use super::config::limit;
use super::json::{Allowed, Fields};
use super::keys::{Form, Layer, Leaves, Pair, Pairs, Tensor};
use crate::Result;
use crate::error::{model_error, quoted};
use crate::spec::DepthAnythingSpec;

const TOP: Leaves = &[
    ("pretrained.cls_token", "backbone.embeddings.cls_token", Tensor(Form::Same)),
    ("pretrained.mask_token", "backbone.embeddings.mask_token", Tensor(Form::Same)),
    ("pretrained.pos_embed", "backbone.embeddings.position_embeddings", Tensor(Form::Same)),
    ("pretrained.patch_embed.proj", "backbone.embeddings.patch_embeddings.projection", Layer),
    ("pretrained.norm", "backbone.layernorm", Layer),
    ("depth_head.projects.0", "neck.reassemble_stage.layers.0.projection", Layer),
    ("depth_head.projects.1", "neck.reassemble_stage.layers.1.projection", Layer),
    ("depth_head.projects.2", "neck.reassemble_stage.layers.2.projection", Layer),
    ("depth_head.projects.3", "neck.reassemble_stage.layers.3.projection", Layer),
    ("depth_head.resize_layers.0", "neck.reassemble_stage.layers.0.resize", Layer),
    ("depth_head.resize_layers.1", "neck.reassemble_stage.layers.1.resize", Layer),
    ("depth_head.resize_layers.3", "neck.reassemble_stage.layers.3.resize", Layer),
    ("depth_head.scratch.layer1_rn.weight", "neck.convs.0.weight", Tensor(Form::Same)),
    ("depth_head.scratch.layer2_rn.weight", "neck.convs.1.weight", Tensor(Form::Same)),
    ("depth_head.scratch.layer3_rn.weight", "neck.convs.2.weight", Tensor(Form::Same)),
    ("depth_head.scratch.layer4_rn.weight", "neck.convs.3.weight", Tensor(Form::Same)),
    ("depth_head.scratch.output_conv1", "head.conv1", Layer),
    ("depth_head.scratch.output_conv2.0", "head.conv2", Layer),
    ("depth_head.scratch.output_conv2.2", "head.conv3", Layer),
];
const LAYER: Leaves = &[
    ("norm1", "norm1", Layer),
    ("attn.qkv.weight", "attention.attention.query.weight", Tensor(Form::Third(0))),
    ("attn.qkv.weight", "attention.attention.key.weight", Tensor(Form::Third(1))),
    ("attn.qkv.weight", "attention.attention.value.weight", Tensor(Form::Third(2))),
    ("attn.qkv.bias", "attention.attention.query.bias", Tensor(Form::Third(0))),
    ("attn.qkv.bias", "attention.attention.key.bias", Tensor(Form::Third(1))),
    ("attn.qkv.bias", "attention.attention.value.bias", Tensor(Form::Third(2))),
    ("attn.proj", "attention.output.dense", Layer),
    ("ls1.gamma", "layer_scale1.lambda1", Tensor(Form::Same)),
    ("norm2", "norm2", Layer),
    ("mlp.fc1", "mlp.fc1", Layer),
    ("mlp.fc2", "mlp.fc2", Layer),
    ("ls2.gamma", "layer_scale2.lambda1", Tensor(Form::Same)),
];
const FUSION: Leaves = &[
    ("out_conv", "projection", Layer),
    ("resConfUnit1.conv1", "residual_layer1.convolution1", Layer),
    ("resConfUnit1.conv2", "residual_layer1.convolution2", Layer),
    ("resConfUnit2.conv1", "residual_layer2.convolution1", Layer),
    ("resConfUnit2.conv2", "residual_layer2.convolution2", Layer),
];

/// Pixels of a patch along one side; all that there are have 14.
const LARGEST_PATCH: usize = 64;
/// Channels of an attention head in every size that there is.
const HEAD: usize = 64;
/// The states that the size with 24 layers takes; all others take every quarter.
const TAKEN_OF_24: [usize; 4] = [5, 12, 18, 24];

/// The names of both layouts.
pub(crate) fn names(layers: usize) -> Vec<Pair> {
    let mut pairs = Pairs::behind("");
    pairs.add("", "", TOP);
    for i in 0..layers {
        pairs.add(&format!("pretrained.blocks.{i}"), &format!("backbone.encoder.layer.{i}"), LAYER);
    }
    for i in 0..4 {
        pairs.add(&format!("depth_head.scratch.refinenet{}", 4 - i), &format!("neck.fusion_stage.layers.{i}"), FUSION);
    }
    let same = |name: &String| Pair { stored: name.clone(), name: name.clone(), form: Form::Same };
    let own: Vec<Pair> = pairs.pairs.iter().map(|pair| same(&pair.name)).collect();
    pairs.pairs.into_iter().chain(own).collect()
}

/// How many layers the transformer of a file has.
pub(crate) fn layers(file: &dyn TensorNames) -> usize {
    let has = |i: usize| {
        let names = [format!("pretrained.blocks.{i}.norm1.weight"), format!("backbone.encoder.layer.{i}.norm1.weight")];
        names.iter().any(|name| file.shape(name).is_some())
    };
    (0..limit::LAYERS).take_while(|i| has(*i)).count()
}

/// What `config.json` says and tensors do not.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct ConfiguredDepth {
    heads: Option<usize>,
    taken: Option<[usize; 4]>,
    layer_norm_eps: Option<f64>,
}

const DEMANDS: &[(&str, Allowed)] =
    &[("head_in_index", Allowed::Number(-1.0)), ("model_type", Allowed::Word(&["depth_anything"])), ("max_depth", Allowed::Number(1.0))];
const BACKBONE_DEMANDS: &[(&str, Allowed)] = &[
    ("hidden_act", Allowed::Word(&["gelu"])),
    ("model_type", Allowed::Word(&["dinov2"])),
    ("reshape_hidden_states", Allowed::Off),
    ("use_swiglu_ffn", Allowed::Off),
];

/// Reads transformers' `config.json`.
pub(crate) fn configured(fields: &Fields) -> Result<ConfiguredDepth> {
    if fields.word("depth_estimation_type")?.is_some_and(|kind| kind != "relative") {
        let what = "the network measures metres, and a ControlNet wants what is near to be white: take one without Metric in its name";
        return Err(fields.wrong("depth_estimation_type", what));
    }
    fields.demand(DEMANDS)?;
    let Some(backbone) = fields.object("backbone_config") else { return Ok(ConfiguredDepth::default()) };
    backbone.demand(BACKBONE_DEMANDS)?;
    let taken = match backbone.get("out_indices") {
        None => None,
        Some(_) => {
            let wrong = || backbone.wrong("out_indices", "four layers in their order were expected");
            let list = backbone.list("out_indices", 4)?;
            let list = list.iter().map(|value| backbone.as_count("out_indices", value, limit::LAYERS)).collect::<Result<Vec<_>>>()?;
            let taken = <[usize; 4]>::try_from(list).map_err(|_| wrong())?;
            Some(taken).filter(|taken| taken.is_sorted_by(|one, next| one < next)).map_or_else(|| Err(wrong()), |taken| Ok(Some(taken)))?
        }
    };
    let heads = backbone.get("num_attention_heads").map(|_| backbone.count("num_attention_heads", None, limit::CHANNELS));
    Ok(ConfiguredDepth { heads: heads.transpose()?, taken, layer_norm_eps: Some(backbone.number("layer_norm_eps", 1e-6)?) })
}

/// The network's sizes, of the shapes of its tensors under transformers' names.
pub(crate) fn sized(
    file: &str,
    shape: &dyn Fn(&str) -> Option<Vec<usize>>,
    layers: usize,
    said: ConfiguredDepth,
) -> Result<DepthAnythingSpec> {
    let need = |name: &str, sides: usize| -> Result<Vec<usize>> {
        let found = shape(name).ok_or_else(|| model_error(file, format!("lacks the tensor {} of a depth network", quoted(name))))?;
        match found.len() == sides && found.iter().all(|side| (1..=limit::CHANNELS).contains(side)) {
            true => Ok(found),
            false => Err(model_error(file, format!("has tensor {} of shape {found:?}, where {sides} sides were expected", quoted(name)))),
        }
    };
    let positions = need("backbone.embeddings.position_embeddings", 3)?;
    let (width, patches) = (positions[2], positions[1] - 1);
    let side = patches.isqrt();
    let patch = need("backbone.embeddings.patch_embeddings.projection.weight", 4)?;
    if side == 0 || side * side != patches || patch[2] != patch[3] || patch[2] > LARGEST_PATCH {
        return Err(model_error(file, "is a depth network whose patches make no square"));
    }
    if shape("backbone.encoder.layer.0.mlp.fc1.weight").is_none() {
        return Err(model_error(file, "is a depth network whose transformer has no plain feed-forward layers, which is not implemented"));
    }
    let heads = said.heads.unwrap_or(width / HEAD);
    if heads == 0 || !width.is_multiple_of(heads) {
        return Err(model_error(file, format!("is a depth network of width {width}, which {heads} heads do not divide")));
    }
    let taken = match (said.taken, layers) {
        (Some(taken), _) => taken,
        (None, 24) => TAKEN_OF_24,
        (None, layers) => [1, 2, 3, 4].map(|quarter| quarter * layers / 4),
    };
    if !taken.is_sorted_by(|one, next| one < next) || taken[0] == 0 || taken[3] > layers {
        return Err(model_error(file, format!("is a depth network with {layers} layers, of which those after {taken:?} cannot be taken")));
    }
    let channels = |i: usize| need(&format!("neck.reassemble_stage.layers.{i}.projection.weight"), 4).map(|shape| shape[0]);
    Ok(DepthAnythingSpec {
        width,
        wide: need("backbone.encoder.layer.0.mlp.fc1.weight", 2)?[0],
        heads,
        patch_size: patch[2],
        positions: side,
        taken,
        layer_norm_eps: said.layer_norm_eps.unwrap_or(1e-6),
        neck_channels: [channels(0)?, channels(1)?, channels(2)?, channels(3)?],
        fusion_channels: need("neck.convs.0.weight", 4)?[0],
        head_channels: need("head.conv2.weight", 4)?[0],
    })
}
