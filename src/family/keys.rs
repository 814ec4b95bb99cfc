//! The names that the layouts give to the same tensors, as tables.
//!
//! A name is a *site* (a residual block, a transformer, a layer) and a *leaf* inside it (`norm1.weight`). The leaf tables
//! below give both spellings of every leaf; the sites follow from a network's spec. Together they are a list of [`Pair`]s
//! that is read from left to right to load a file and from right to left to write one.

use crate::spec::{AutoencoderTinySpec, ClipTextSpec, ControlNetSpec, UNetSpec, VaeSpec};

/// How a stored tensor becomes the one that diffusers has under the name. Every form has an inverse.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    /// As it is.
    Same,
    /// One of three equal parts of the first dimension: query, key and value are stored as one.
    Third(usize),
    /// Rows and columns change places.
    Transposed,
    /// The two halves of the first dimension change places.
    HalvesSwapped,
    /// A 1×1 convolution `(out, in, 1, 1)` that is a matrix `(out, in)`; a matrix is left as it is.
    Squeezed,
}

/// The two spellings of one tensor's name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Pair {
    /// In the file.
    pub(crate) stored: String,
    /// In today's diffusers.
    pub(crate) name: String,
    pub(crate) form: Form,
}

/// What a leaf stands for.
#[derive(Debug, Clone, Copy)]
pub(super) enum Leaf {
    /// A layer: `.weight` and `.bias`.
    Layer,
    /// A layer whose weight is a 1×1 convolution in one spelling and a matrix in the other.
    Conv1x1,
    /// One tensor, spelled out.
    Tensor(Form),
}
use Leaf::Conv1x1;
pub(super) use Leaf::{Layer, Tensor};

/// Rows of the original spelling, diffusers' spelling, and what is there.
pub(super) type Leaves = &'static [(&'static str, &'static str, Leaf)];

const UNET: Leaves = &[
    ("time_embed.0", "time_embedding.linear_1", Layer),
    ("time_embed.2", "time_embedding.linear_2", Layer),
    ("time_embed.cond_proj.weight", "time_embedding.cond_proj.weight", Tensor(Form::Same)),
    ("label_emb.0.0", "add_embedding.linear_1", Layer),
    ("label_emb.0.2", "add_embedding.linear_2", Layer),
    ("input_blocks.0.0", "conv_in", Layer),
    ("out.0", "conv_norm_out", Layer),
    ("out.2", "conv_out", Layer),
];
const UNET_RESNET: Leaves = &[
    ("in_layers.0", "norm1", Layer),
    ("in_layers.2", "conv1", Layer),
    ("emb_layers.1", "time_emb_proj", Layer),
    ("out_layers.0", "norm2", Layer),
    ("out_layers.3", "conv2", Layer),
    ("skip_connection", "conv_shortcut", Layer),
];
const UNET_TRANSFORMER: Leaves = &[("norm", "norm", Layer), ("proj_in", "proj_in", Layer), ("proj_out", "proj_out", Layer)];
const UNET_TRANSFORMER_BLOCK: Leaves = &[
    ("norm1", "norm1", Layer),
    ("norm2", "norm2", Layer),
    ("norm3", "norm3", Layer),
    ("attn1.to_q", "attn1.to_q", Layer),
    ("attn1.to_k", "attn1.to_k", Layer),
    ("attn1.to_v", "attn1.to_v", Layer),
    ("attn1.to_out.0", "attn1.to_out.0", Layer),
    ("attn2.to_q", "attn2.to_q", Layer),
    ("attn2.to_k", "attn2.to_k", Layer),
    ("attn2.to_v", "attn2.to_v", Layer),
    ("attn2.to_out.0", "attn2.to_out.0", Layer),
    ("ff.net.0.proj", "ff.net.0.proj", Layer),
    ("ff.net.2", "ff.net.2", Layer),
];
/// A site that is a layer itself.
const ONE_LAYER: Leaves = &[("weight", "weight", Tensor(Form::Same)), ("bias", "bias", Tensor(Form::Same))];
const UNET_DOWN: Leaves = &[("op", "conv", Layer)];
const CONV: Leaves = &[("conv", "conv", Layer)];

const VAE: Leaves = &[
    ("quant_conv", "quant_conv", Layer),
    ("post_quant_conv", "post_quant_conv", Layer),
    ("encoder.conv_in", "encoder.conv_in", Layer),
    ("encoder.norm_out", "encoder.conv_norm_out", Layer),
    ("encoder.conv_out", "encoder.conv_out", Layer),
    ("decoder.conv_in", "decoder.conv_in", Layer),
    ("decoder.norm_out", "decoder.conv_norm_out", Layer),
    ("decoder.conv_out", "decoder.conv_out", Layer),
];
const VAE_RESNET: Leaves = &[
    ("norm1", "norm1", Layer),
    ("conv1", "conv1", Layer),
    ("norm2", "norm2", Layer),
    ("conv2", "conv2", Layer),
    ("nin_shortcut", "conv_shortcut", Layer),
];
const VAE_ATTENTION: Leaves = &[
    ("norm", "group_norm", Layer),
    ("q", "to_q", Conv1x1),
    ("k", "to_k", Conv1x1),
    ("v", "to_v", Conv1x1),
    ("proj_out", "to_out.0", Conv1x1),
];

const TINY_BLOCK: Leaves = &[("conv.0", "conv.0", Layer), ("conv.2", "conv.2", Layer), ("conv.4", "conv.4", Layer)];

const CLIP: Leaves = &[
    ("text_model.embeddings.token_embedding.weight", "text_model.embeddings.token_embedding.weight", Tensor(Form::Same)),
    ("text_model.embeddings.position_embedding.weight", "text_model.embeddings.position_embedding.weight", Tensor(Form::Same)),
    ("text_model.final_layer_norm", "text_model.final_layer_norm", Layer),
    ("text_projection.weight", "text_projection.weight", Tensor(Form::Same)),
];
const CLIP_LAYER: Leaves = &[
    ("layer_norm1", "layer_norm1", Layer),
    ("layer_norm2", "layer_norm2", Layer),
    ("self_attn.q_proj", "self_attn.q_proj", Layer),
    ("self_attn.k_proj", "self_attn.k_proj", Layer),
    ("self_attn.v_proj", "self_attn.v_proj", Layer),
    ("self_attn.out_proj", "self_attn.out_proj", Layer),
    ("mlp.fc1", "mlp.fc1", Layer),
    ("mlp.fc2", "mlp.fc2", Layer),
];
const OPEN_CLIP: Leaves = &[
    ("token_embedding.weight", "text_model.embeddings.token_embedding.weight", Tensor(Form::Same)),
    ("positional_embedding", "text_model.embeddings.position_embedding.weight", Tensor(Form::Same)),
    ("ln_final", "text_model.final_layer_norm", Layer),
    ("text_projection", "text_projection.weight", Tensor(Form::Transposed)),
    // As diffusers' own script for SDXL writes it: a layer's weight.
    ("text_projection.weight", "text_projection.weight", Tensor(Form::Same)),
];
const OPEN_CLIP_LAYER: Leaves = &[
    ("ln_1", "layer_norm1", Layer),
    ("ln_2", "layer_norm2", Layer),
    ("attn.in_proj_weight", "self_attn.q_proj.weight", Tensor(Form::Third(0))),
    ("attn.in_proj_weight", "self_attn.k_proj.weight", Tensor(Form::Third(1))),
    ("attn.in_proj_weight", "self_attn.v_proj.weight", Tensor(Form::Third(2))),
    ("attn.in_proj_bias", "self_attn.q_proj.bias", Tensor(Form::Third(0))),
    ("attn.in_proj_bias", "self_attn.k_proj.bias", Tensor(Form::Third(1))),
    ("attn.in_proj_bias", "self_attn.v_proj.bias", Tensor(Form::Third(2))),
    ("attn.out_proj", "self_attn.out_proj", Layer),
    ("mlp.c_fc", "mlp.fc1", Layer),
    ("mlp.c_proj", "mlp.fc2", Layer),
];

/// Of a ControlNet for several kinds of images, which diffusers alone has.
const UNION: Leaves = &[
    ("task_embedding", "task_embedding", Tensor(Form::Same)),
    ("spatial_ch_projs", "spatial_ch_projs", Layer),
    ("control_add_embedding.linear_1", "control_add_embedding.linear_1", Layer),
    ("control_add_embedding.linear_2", "control_add_embedding.linear_2", Layer),
];
const UNION_LAYER: Leaves = &[
    ("ln_1", "ln_1", Layer),
    ("ln_2", "ln_2", Layer),
    ("attn.in_proj_weight", "attn.q_proj.weight", Tensor(Form::Third(0))),
    ("attn.in_proj_weight", "attn.k_proj.weight", Tensor(Form::Third(1))),
    ("attn.in_proj_weight", "attn.v_proj.weight", Tensor(Form::Third(2))),
    ("attn.in_proj_bias", "attn.q_proj.bias", Tensor(Form::Third(0))),
    ("attn.in_proj_bias", "attn.k_proj.bias", Tensor(Form::Third(1))),
    ("attn.in_proj_bias", "attn.v_proj.bias", Tensor(Form::Third(2))),
    ("attn.out_proj", "attn.out_proj", Layer),
    ("mlp.c_fc", "mlp.c_fc", Layer),
    ("mlp.c_proj", "mlp.c_proj", Layer),
];

/// Names that older diffusers gave to parts of names: now, then.
const OLD_VAE: &[(&str, &str)] = &[
    (".attentions.0.to_q.", ".attentions.0.query."),
    (".attentions.0.to_k.", ".attentions.0.key."),
    (".attentions.0.to_v.", ".attentions.0.value."),
    (".attentions.0.to_out.0.", ".attentions.0.proj_attn."),
];
/// Names that trainers gave to the attention of an autoencoder in the original layout: the original, theirs.
const TRAINERS_VAE: &[(&str, &str)] = &[
    (".mid.attn_1.norm.", ".mid.attn_1.group_norm."),
    (".mid.attn_1.q.", ".mid.attn_1.to_q."),
    (".mid.attn_1.k.", ".mid.attn_1.to_k."),
    (".mid.attn_1.v.", ".mid.attn_1.to_v."),
    (".mid.attn_1.proj_out.", ".mid.attn_1.to_out.0."),
    (".mid.attn_1.q.", ".mid.attn_1.query."),
    (".mid.attn_1.k.", ".mid.attn_1.key."),
    (".mid.attn_1.v.", ".mid.attn_1.value."),
    (".mid.attn_1.proj_out.", ".mid.attn_1.proj_attn."),
];
const OLD_CLIP: &[(&str, &str)] = &[("text_model.", "")];

/// How a text encoder's tensors are named.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TextLayout {
    /// As in transformers' CLIPTextModel, with or without the first `text_model.`.
    Clip,
    /// As in OpenCLIP.
    OpenClip,
}

/// Collects the pairs of one network.
pub(super) struct Pairs {
    prefix: &'static str,
    pub(super) pairs: Vec<Pair>,
}

impl Pairs {
    /// None yet, whose stored names stand behind `prefix`.
    pub(super) fn behind(prefix: &'static str) -> Self {
        Self { prefix, pairs: Vec::new() }
    }

    pub(super) fn add(&mut self, stored: &str, name: &str, leaves: Leaves) {
        let join = |site: &str, leaf: &str| if site.is_empty() { leaf.to_owned() } else { format!("{site}.{leaf}") };
        for (stored_leaf, leaf, kind) in leaves {
            let (stored, name) = (format!("{}{}", self.prefix, join(stored, stored_leaf)), join(name, leaf));
            let forms = match kind {
                Layer => vec![(".weight", Form::Same), (".bias", Form::Same)],
                Conv1x1 => vec![(".weight", Form::Squeezed), (".bias", Form::Same)],
                Tensor(form) => vec![("", *form)],
            };
            let spelled =
                |(suffix, form): &(&str, Form)| Pair { stored: format!("{stored}{suffix}"), name: format!("{name}{suffix}"), form: *form };
            self.pairs.extend(forms.iter().map(spelled));
        }
    }

    fn transformer(&mut self, stored: &str, name: &str, depth: usize) {
        self.add(stored, name, UNET_TRANSFORMER);
        for block in 0..depth {
            let block = format!("transformer_blocks.{block}");
            self.add(&format!("{stored}.{block}"), &format!("{name}.{block}"), UNET_TRANSFORMER_BLOCK);
        }
    }
}

/// How the blocks of a UNet in the original layout are counted. The two are the same where a level has two residual blocks.
///
/// # Source
/// `from_single_file` in diffusers@v0.36:src/diffusers/loaders/single_file_utils.py counts on; its
/// scripts/convert_diffusers_to_original_stable_diffusion.py, and kohya-ss/sd-scripts after it, count three to a level.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BlockNumbering {
    /// One after the other.
    Dense,
    /// Three to a level, however many there are.
    ThreeToALevel,
}

/// The UNet's names in the original layout, behind `prefix`, which ends in a dot or is empty.
pub(crate) fn unet(spec: &UNetSpec, prefix: &'static str) -> Vec<Pair> {
    numbered_unet(spec, prefix, BlockNumbering::Dense)
}

/// The same in a numbering. Files differ in where they have an upsampler beside a level's last block, so that each is there twice.
pub(crate) fn numbered_unet(spec: &UNetSpec, prefix: &'static str, numbering: BlockNumbering) -> Vec<Pair> {
    let gaps = numbering == BlockNumbering::ThreeToALevel;
    let mut pairs = Pairs { prefix, pairs: Vec::new() };
    pairs.add("", "", UNET);
    let mut n = 1;
    for (i, level) in spec.down.iter().enumerate() {
        if gaps {
            n = 3 * i + 1;
        }
        for (j, &depth) in level.depths.iter().enumerate() {
            pairs.add(&format!("input_blocks.{n}.0"), &format!("down_blocks.{i}.resnets.{j}"), UNET_RESNET);
            if depth > 0 {
                pairs.transformer(&format!("input_blocks.{n}.1"), &format!("down_blocks.{i}.attentions.{j}"), depth);
            }
            n += 1;
        }
        if level.resample {
            if gaps {
                n = 3 * (i + 1);
            }
            pairs.add(&format!("input_blocks.{n}.0"), &format!("down_blocks.{i}.downsamplers.0"), UNET_DOWN);
            n += 1;
        }
    }
    if let Some(mid) = &spec.mid {
        pairs.add("middle_block.0", "mid_block.resnets.0", UNET_RESNET);
        if mid.depth > 0 {
            pairs.transformer("middle_block.1", "mid_block.attentions.0", mid.depth);
        }
        if mid.resnets > 1 {
            pairs.add("middle_block.2", "mid_block.resnets.1", UNET_RESNET);
        }
    }
    n = 0;
    let mut elsewhere = Vec::new();
    for (i, level) in spec.up.iter().enumerate() {
        if gaps {
            n = 3 * i;
        }
        for (j, &depth) in level.depths.iter().enumerate() {
            pairs.add(&format!("output_blocks.{n}.0"), &format!("up_blocks.{i}.resnets.{j}"), UNET_RESNET);
            if depth > 0 {
                pairs.transformer(&format!("output_blocks.{n}.1"), &format!("up_blocks.{i}.attentions.{j}"), depth);
            }
            if level.resample && j + 1 == level.depths.len() {
                let n = if gaps { 3 * i + 2 } else { n };
                let (slot, other) = if depth > 0 && !(gaps && i == 0) { (2, 1) } else { (1, 2) };
                let name = format!("up_blocks.{i}.upsamplers.0");
                pairs.add(&format!("output_blocks.{n}.{slot}"), &name, CONV);
                elsewhere.push((format!("output_blocks.{n}.{other}"), name));
            }
            n += 1;
        }
    }
    if gaps {
        elsewhere.iter().for_each(|(stored, name)| pairs.add(stored, name, CONV));
    }
    pairs.pairs
}

/// A ControlNet's names in the original layout, behind `prefix`.
pub(crate) fn control_net(spec: &ControlNetSpec, prefix: &'static str) -> Vec<Pair> {
    let mut pairs = Pairs { prefix, pairs: unet(&spec.unet, prefix) };
    let skips: usize = 1 + spec.unet.down.iter().map(|level| level.depths.len() + usize::from(level.resample)).sum::<usize>();
    for i in 0..skips {
        pairs.add(&format!("zero_convs.{i}.0"), &format!("controlnet_down_blocks.{i}"), ONE_LAYER);
    }
    pairs.add("middle_block_out.0", "controlnet_mid_block", ONE_LAYER);
    // Activations lie between the convolutions and are counted.
    let blocks = 2 * spec.hint_channels.len().saturating_sub(1);
    pairs.add("input_hint_block.0", "controlnet_cond_embedding.conv_in", ONE_LAYER);
    for i in 0..blocks {
        pairs.add(&format!("input_hint_block.{}", 2 * (i + 1)), &format!("controlnet_cond_embedding.blocks.{i}"), ONE_LAYER);
    }
    pairs.add(&format!("input_hint_block.{}", 2 * (blocks + 1)), "controlnet_cond_embedding.conv_out", ONE_LAYER);
    pairs.pairs
}

/// As [`diffusers_unet`].
pub(crate) fn diffusers_control_net(spec: &ControlNetSpec) -> Vec<Pair> {
    let mut pairs = Pairs { prefix: "", pairs: control_net(spec, "").into_iter().map(diffusers).collect() };
    if let Some(union) = &spec.union {
        pairs.add("", "", UNION);
        for i in 0..union.layers {
            pairs.add(&format!("transformer_layes.{i}"), &format!("transformer_layes.{i}"), UNION_LAYER);
        }
    }
    pairs.pairs
}

/// The autoencoder's names in the original layout, behind `prefix`, and after them those that trainers write.
pub(crate) fn vae(spec: &VaeSpec, prefix: &'static str) -> Vec<Pair> {
    with_old_names(original_vae(spec, prefix), TRAINERS_VAE)
}

fn original_vae(spec: &VaeSpec, prefix: &'static str) -> Vec<Pair> {
    let mut pairs = Pairs { prefix, pairs: Vec::new() };
    pairs.add("", "", VAE);
    let levels = spec.block_out_channels.len();
    for side in ["encoder", "decoder"] {
        for (stored, name) in [("block_1", "resnets.0"), ("block_2", "resnets.1")] {
            pairs.add(&format!("{side}.mid.{stored}"), &format!("{side}.mid_block.{name}"), VAE_RESNET);
        }
        if spec.mid_attention {
            pairs.add(&format!("{side}.mid.attn_1"), &format!("{side}.mid_block.attentions.0"), VAE_ATTENTION);
        }
    }
    for i in 0..levels {
        let up = levels - 1 - i;
        for j in 0..spec.layers_per_block {
            pairs.add(&format!("encoder.down.{i}.block.{j}"), &format!("encoder.down_blocks.{i}.resnets.{j}"), VAE_RESNET);
        }
        for j in 0..=spec.layers_per_block {
            // The original counts the decoder's levels from fine to coarse, diffusers in the order of their use.
            pairs.add(&format!("decoder.up.{up}.block.{j}"), &format!("decoder.up_blocks.{i}.resnets.{j}"), VAE_RESNET);
        }
        if i + 1 < levels {
            pairs.add(&format!("encoder.down.{i}.downsample"), &format!("encoder.down_blocks.{i}.downsamplers.0"), CONV);
            pairs.add(&format!("decoder.up.{up}.upsample"), &format!("decoder.up_blocks.{i}.upsamplers.0"), CONV);
        }
    }
    pairs.pairs
}

/// How a tiny autoencoder's tensors are named.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TinyLayout {
    /// As in diffusers' AutoencoderTiny.
    Diffusers,
    /// As its author's sequences of layers, behind the prefixes of decoder and encoder; the decoder counts a clamp before its first
    /// convolution. A file without a prefix has the decoder alone.
    Original(&'static str, &'static str),
}

impl TinyLayout {
    /// The decoder's prefix and the number of its first convolution, and the encoder's prefix.
    pub(crate) fn places(self) -> (&'static str, usize, &'static str) {
        match self {
            TinyLayout::Diffusers => ("decoder.layers.", 0, "encoder.layers."),
            TinyLayout::Original(decoder, encoder) => (decoder, 1, encoder),
        }
    }
}

/// The names of a tiny autoencoder.
pub(crate) fn tiny(spec: &AutoencoderTinySpec, layout: TinyLayout) -> Vec<Pair> {
    let (decoder, shift, encoder) = layout.places();
    let mut pairs = Pairs { prefix: decoder, pairs: Vec::new() };
    let mut add = |n: usize, leaves| pairs.add(&format!("{}", n + shift), &format!("decoder.layers.{n}"), leaves);
    add(0, ONE_LAYER);
    // A ReLU follows the first convolution, and an upsampling every level but the last.
    let mut next = 2;
    for (i, blocks) in spec.decoder_blocks.iter().enumerate() {
        (next..next + blocks).for_each(|n| add(n, TINY_BLOCK));
        next += blocks + usize::from(i + 1 < spec.decoder_blocks.len());
        add(next, ONE_LAYER);
        next += 1;
    }
    let mut all = pairs.pairs;
    let mut pairs = Pairs { prefix: encoder, pairs: Vec::new() };
    let mut next = 0;
    let mut add = |n: usize, leaves| pairs.add(&format!("{n}"), &format!("encoder.layers.{n}"), leaves);
    for blocks in &spec.encoder_blocks {
        add(next, ONE_LAYER);
        (next + 1..=next + blocks).for_each(|n| add(n, TINY_BLOCK));
        next += blocks + 1;
    }
    if !spec.encoder_blocks.is_empty() {
        add(next, ONE_LAYER);
    }
    all.extend(pairs.pairs);
    all
}

/// A text encoder's names behind `prefix`.
pub(crate) fn text(spec: &ClipTextSpec, layout: TextLayout, prefix: &'static str) -> Vec<Pair> {
    let mut pairs = Pairs { prefix, pairs: Vec::new() };
    let (top, layer, site) = match layout {
        TextLayout::Clip => (CLIP, CLIP_LAYER, "text_model.encoder.layers"),
        TextLayout::OpenClip => (OPEN_CLIP, OPEN_CLIP_LAYER, "transformer.resblocks"),
    };
    pairs.add("", "", top);
    for i in 0..spec.layers {
        pairs.add(&format!("{site}.{i}"), &format!("text_model.encoder.layers.{i}"), layer);
    }
    match layout {
        TextLayout::Clip => with_old_names(pairs.pairs, OLD_CLIP),
        TextLayout::OpenClip => pairs.pairs,
    }
}

/// The names of a diffusers folder: today's, and after them those that older versions wrote.
pub(crate) fn diffusers_unet(spec: &UNetSpec) -> Vec<Pair> {
    unet(spec, "").into_iter().map(diffusers).collect()
}

/// As [`diffusers_unet`].
pub(crate) fn diffusers_vae(spec: &VaeSpec) -> Vec<Pair> {
    if let Some(spec) = &spec.tiny {
        return tiny(spec, TinyLayout::Diffusers);
    }
    with_old_names(original_vae(spec, "").into_iter().map(diffusers).collect(), OLD_VAE)
}

/// As [`diffusers_unet`].
pub(crate) fn diffusers_text(spec: &ClipTextSpec) -> Vec<Pair> {
    text(spec, TextLayout::Clip, "")
}

fn diffusers(pair: Pair) -> Pair {
    Pair { stored: pair.name.clone(), ..pair }
}

/// Adds, after all of `pairs`, what their stored names were when the parts of names in `old` were spelled otherwise.
fn with_old_names(mut pairs: Vec<Pair>, old: &[(&str, &str)]) -> Vec<Pair> {
    let older: Vec<Pair> = pairs
        .iter()
        .flat_map(|pair| old.iter().map(move |(now, then)| (pair, now, then)))
        .filter(|(pair, now, _)| pair.stored.contains(*now))
        .map(|(pair, now, then)| Pair { stored: pair.stored.replacen(now, then, 1), ..pair.clone() })
        .collect();
    pairs.extend(older);
    pairs
}
