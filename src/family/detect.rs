//! Reads architectures off the names and shapes of a single file's tensors.
//!
//! Only what shapes cannot say follows from the family: the number of attention heads, epsilons, and what is done with a
//! text encoder's output.

use super::TensorNames;
use super::config::limit;
use super::keys::{BlockNumbering, TextLayout};
use crate::Result;
use crate::error::{model_error, quoted};
use crate::spec::{
    Activation, ClipTextSpec, ControlNetSpec, ControlUnionSpec, LatentRgb, TextTimeSpec, UNetLevel, UNetMid, UNetSpec, VaeSpec,
};

/// Groups of every group norm; nothing in a file says it.
const GROUPS: usize = 32;
/// Channels of one attention head of Stable Diffusion 2.x and XL, and of every CLIP.
const HEAD: usize = 64;
/// The end of a text in CLIP's own vocabulary.
const CLIP_END: usize = 49_407;
/// Attention heads of Stable Diffusion 1.x.
const SD1_HEADS: usize = 8;

/// The tensors of one network in a file, by their names behind `prefix`.
#[derive(Clone, Copy)]
pub(crate) struct Probe<'a> {
    pub(crate) file: &'a dyn TensorNames,
    pub(crate) prefix: &'static str,
}

impl<'a> Probe<'a> {
    pub(crate) fn shape(&self, key: &str) -> Option<&'a [usize]> {
        self.file.shape(&format!("{}{key}", self.prefix))
    }

    fn has(&self, key: &str) -> bool {
        self.shape(key).is_some()
    }

    /// Whether some name begins so.
    fn has_any(&self, beginning: &str) -> bool {
        let beginning = format!("{}{beginning}", self.prefix);
        self.file.names().any(|name| name.starts_with(&beginning))
    }

    /// How many of `site.0.leaf`, `site.1.leaf`, … there are. What is beyond the limit counts as unknown: names are made for each.
    pub(crate) fn count(&self, site: &str, leaf: &str) -> usize {
        (0..limit::LAYERS).take_while(|i| self.has(&format!("{site}.{i}.{leaf}"))).count()
    }

    fn wrong(&self, key: &str, what: impl std::fmt::Display) -> crate::Error {
        model_error(self.file.name(), format!("tensor {} {what}", quoted(&format!("{}{key}", self.prefix))))
    }

    /// The shape of a tensor that must be there with `N` dimensions, none of them absurd.
    pub(crate) fn need<const N: usize>(&self, key: &str) -> Result<[usize; N]> {
        let shape = self.shape(key).ok_or_else(|| self.wrong(key, "is missing"))?;
        let sane = shape.iter().all(|size| (1..=limit::VOCABULARY).contains(size));
        <[usize; N]>::try_from(shape)
            .ok()
            .filter(|_| sane)
            .ok_or_else(|| self.wrong(key, format!("has shape {shape:?}, where {N} dimensions of sensible sizes were expected")))
    }

    /// Channels that a group norm can divide.
    fn channels(&self, key: &str, channels: usize) -> Result<usize> {
        match channels % GROUPS {
            0 => Ok(channels),
            _ => Err(self.wrong(key, format!("has {channels} channels, which {GROUPS} groups do not divide"))),
        }
    }

    /// How many transformer blocks are at `site`.
    fn depth(&self, site: &str) -> usize {
        self.count(&format!("{site}.transformer_blocks"), "norm1.weight")
    }
}

/// The UNet in the original layout.
pub(crate) fn unet(probe: Probe<'_>) -> Result<UNetSpec> {
    let [first, in_channels, ..] = probe.need::<4>("input_blocks.0.0.weight")?;
    let [out_channels, ..] = probe.need::<4>("out.2.weight")?;
    let attention = AttentionHeads::find(probe)?;
    let gaps = numbering(probe) == BlockNumbering::ThreeToALevel;
    let mut down = LevelCollector { probe, attention, levels: Vec::new(), open: false };
    for n in 1..limit::LAYERS {
        let site = format!("input_blocks.{n}");
        if probe.has(&format!("{site}.0.op.weight")) {
            down.close();
        } else if !down.block(&site)? && !gaps {
            break;
        }
    }
    let mut up = LevelCollector { probe, attention, levels: Vec::new(), open: false };
    for n in 0..limit::LAYERS {
        let site = format!("output_blocks.{n}");
        if !up.block(&site)? && !gaps {
            break;
        }
        if probe.has(&format!("{site}.1.conv.weight")) || probe.has(&format!("{site}.2.conv.weight")) {
            up.close();
        }
    }
    let (down, up) = (down.levels, up.levels);
    let (fine, coarse): (Vec<_>, Vec<_>) = (down.iter().map(|l| l.channels).collect(), up.iter().rev().map(|l| l.channels).collect());
    if fine != coarse || fine.first() != Some(&first) {
        let what = format!("has {first} channels, but the levels have {fine:?} on the way down and {coarse:?} on the way up");
        return Err(probe.wrong("input_blocks.0.0.weight", what));
    }
    let ends_well = |levels: &[UNetLevel]| levels.iter().rev().skip(1).all(|l| l.resample) && levels.last().is_some_and(|l| !l.resample);
    if !ends_well(&down) || !ends_well(&up) {
        return Err(probe.wrong("input_blocks.0.0.weight", "begins levels whose resampling layers are not between them"));
    }
    let mid = match probe.has("middle_block.0.in_layers.0.weight") {
        false => None,
        true => {
            let depth = probe.depth("middle_block.1");
            let resnets = if depth > 0 { 2 } else { 1 };
            Some(UNetMid { heads: attention.heads(probe, "middle_block.1", fine.last().copied().unwrap_or(first))?, depth, resnets })
        }
    };
    let text_time = match probe.shape("label_emb.0.0.weight") {
        None => None,
        Some(_) => {
            let [_, projection_input_dim] = probe.need::<2>("label_emb.0.0.weight")?;
            // What of it is pooled text is known when the text encoders are.
            Some(TextTimeSpec { time_embed_dim: 0, projection_input_dim })
        }
    };
    Ok(UNetSpec {
        in_channels,
        out_channels,
        down,
        mid,
        up,
        cross_attention_dim: attention.context,
        linear_projection: attention.linear,
        norm_groups: GROUPS,
        norm_eps: 1e-5,
        text_time,
        guidance_embed_dim: match probe.shape("time_embed.cond_proj.weight") {
            None => 0,
            Some(_) => probe.need::<2>("time_embed.cond_proj.weight")?[1],
        },
        flip_sin_to_cos: true,
        freq_shift: 0.0,
    })
}

/// How the blocks of the UNet are counted: with a level of one residual block, a downsampler that is not the block after it tells.
pub(crate) fn numbering(probe: Probe<'_>) -> BlockNumbering {
    let has = |n: usize| {
        let site = format!("input_blocks.{n}.0");
        probe.has(&format!("{site}.op.weight")) || probe.has(&format!("{site}.in_layers.0.weight"))
    };
    let op = |n: usize| probe.has(&format!("input_blocks.{n}.0.op.weight"));
    match has(1) && !has(2) && op(3) {
        true => BlockNumbering::ThreeToALevel,
        false => BlockNumbering::Dense,
    }
}

/// What all transformers of a UNet have in common.
#[derive(Clone, Copy)]
struct AttentionHeads {
    context: usize,
    linear: bool,
}

impl AttentionHeads {
    /// Reads it off the first transformer on the way down.
    fn find(probe: Probe<'_>) -> Result<AttentionHeads> {
        const TO_K: &str = "1.transformer_blocks.0.attn2.to_k.weight";
        let mut sites = (1..limit::LAYERS).map(|n| format!("input_blocks.{n}")).filter(|site| probe.has(&format!("{site}.{TO_K}")));
        let site =
            sites.next().ok_or_else(|| probe.wrong("input_blocks.1.0.in_layers.0.weight", "begins a UNet without cross-attention"))?;
        let [_, context] = probe.need::<2>(&format!("{site}.{TO_K}"))?;
        let proj_in = format!("{site}.1.proj_in.weight");
        let linear = probe.shape(&proj_in).ok_or_else(|| probe.wrong(&proj_in, "is missing"))?.len() == 2;
        Ok(AttentionHeads { context, linear })
    }

    fn heads(&self, probe: Probe<'_>, site: &str, channels: usize) -> Result<usize> {
        let (heads, rule) = match self.linear {
            // A tensor's shape does not tell heads apart. Linear projections came together with heads of a fixed size.
            true => (channels.is_multiple_of(HEAD).then_some(channels / HEAD), "heads of 64 channels"),
            false => (channels.is_multiple_of(SD1_HEADS).then_some(SD1_HEADS), "8 heads"),
        };
        heads.ok_or_else(|| probe.wrong(site, format!("has {channels} channels, which {rule} do not divide")))
    }
}

/// Collects the levels of one side of a UNet.
struct LevelCollector<'a> {
    probe: Probe<'a>,
    attention: AttentionHeads,
    levels: Vec<UNetLevel>,
    /// The last level goes on.
    open: bool,
}

impl LevelCollector<'_> {
    /// Adds the residual block at `site` and its transformer; false where there is none.
    fn block(&mut self, site: &str) -> Result<bool> {
        let LevelCollector { probe, attention, .. } = *self;
        if !probe.has(&format!("{site}.0.in_layers.0.weight")) {
            return Ok(false);
        }
        let key = format!("{site}.0.out_layers.3.weight");
        let [channels, ..] = probe.need::<4>(&key)?;
        let channels = probe.channels(&key, channels)?;
        let depth = probe.depth(&format!("{site}.1"));
        let first = probe.shape(&format!("{site}.1.transformer_blocks.0.attn1.to_k.weight"));
        let reads_text_only = matches!(first, Some(&[_, input]) if input != channels && input == attention.context);
        let heads = match depth {
            0 => 1,
            // SDXS 0.9's level whose first attention reads the text has one head. stable-diffusion.cpp@122076b7:src/model/diffusion/unet.hpp
            _ if reads_text_only => 1,
            _ => attention.heads(probe, &format!("{site}.1"), channels)?,
        };
        match self.levels.last_mut().filter(|_| self.open) {
            Some(level) if level.channels == channels => {
                level.depths.push(depth);
                level.heads = level.heads.max(heads);
            }
            Some(level) => {
                let what = format!("has {channels} channels in a level of {}", level.channels);
                return Err(probe.wrong(&key, what));
            }
            None => self.levels.push(UNetLevel { channels, heads, depths: vec![depth], resample: false, reads_text_only }),
        }
        self.open = true;
        Ok(true)
    }

    /// A layer that changes the resolution ends the level.
    fn close(&mut self) {
        if let Some(level) = self.levels.last_mut() {
            level.resample = true;
        }
        self.open = false;
    }
}

/// A ControlNet for a model with the denoiser `base`: which of its transformers are there, and what sees the image. What shapes cannot say
/// is as in `base`, of which it was a copy.
pub(crate) fn control_net(probe: Probe<'_>, diffusers: bool, base: &UNetSpec) -> Result<ControlNetSpec> {
    let depth = |n: usize, level: usize, layer: usize| match diffusers {
        true => probe.depth(&format!("down_blocks.{level}.attentions.{layer}")),
        false => probe.depth(&format!("input_blocks.{n}.1")),
    };
    let mut n = 1;
    let mut down = base.down.clone();
    for (i, level) in down.iter_mut().enumerate() {
        for (j, own) in level.depths.iter_mut().enumerate() {
            *own = depth(n, i, j);
            n += 1;
        }
        n += usize::from(level.resample);
    }
    let (attention, last) = match diffusers {
        true => ("mid_block.attentions.0", "mid_block.resnets.1.conv1.weight"),
        false => ("middle_block.1", "middle_block.2.in_layers.2.weight"),
    };
    let (depth, resnets) = (probe.depth(attention), 1 + usize::from(probe.has(last)));
    let heads = base.mid.as_ref().map(|mid| mid.heads).or(base.down.last().map(|level| level.heads)).unwrap_or(1);
    let (first, last) = match diffusers {
        true => ("controlnet_cond_embedding.conv_in.weight", "controlnet_cond_embedding.blocks"),
        false => ("input_hint_block.0.weight", "input_hint_block"),
    };
    let [width, image_channels, _, _] = probe.need::<4>(first)?;
    let conv = |i: usize| match diffusers {
        true => format!("{last}.{i}.weight"),
        false => format!("{last}.{}.weight", 2 * (i + 1)),
    };
    // The original's last convolution is counted with the others.
    let convs = (0..2 * limit::LEVELS).take_while(|i| probe.has(&conv(*i))).count();
    let blocks = if diffusers { convs } else { convs.saturating_sub(1) };
    let mut hint_channels = vec![width];
    for i in (1..blocks).step_by(2) {
        let [wider, ..] = probe.need::<4>(&conv(i))?;
        hint_channels.push(wider);
    }
    let [_, in_channels, ..] = probe.need::<4>(if diffusers { "conv_in.weight" } else { "input_blocks.0.0.weight" })?;
    let mid = Some(UNetMid { heads, depth, resnets });
    let unet = UNetSpec { in_channels, down, mid, up: Vec::new(), guidance_embed_dim: 0, ..base.clone() };
    let union = if probe.has(UNION_MARK) { Some(control_union(probe, &unet)?) } else { None };
    Ok(ControlNetSpec { unet, image_channels, hint_channels, union })
}

/// Only a ControlNet for several kinds of images has it.
const UNION_MARK: &str = "task_embedding";
/// Heads of the transformer that joins images, in all of those.
const UNION_HEADS: usize = 8;

/// What a ControlNet for several kinds of images has beside a ControlNet.
fn control_union(probe: Probe<'_>, unet: &UNetSpec) -> Result<ControlUnionSpec> {
    let [kinds, width] = probe.need::<2>(UNION_MARK)?;
    let embedding = "control_add_embedding.linear_1.weight";
    let [_, marks] = probe.need::<2>(embedding)?;
    let first = unet.down.first().map_or(0, |level| level.channels);
    if kinds > limit::LAYERS || width != first {
        let what =
            format!("has shape [{kinds}, {width}], where at most {} kinds of images by {first} channels were expected", limit::LAYERS);
        return Err(probe.wrong(UNION_MARK, what));
    }
    // Sinusoids as wide as those of a time id.
    let kind_width = unet.text_time.as_ref().map_or(marks / kinds, |added| added.time_embed_dim);
    if marks != kinds * kind_width {
        return Err(
            probe.wrong(embedding, format!("reads {marks} numbers, where {kind_width} for each of {kinds} kinds of images were expected"))
        );
    }
    // Misspelled there.
    let layers = probe.count("transformer_layes", "ln_1.weight");
    Ok(ControlUnionSpec { kinds, kind_width, layers, heads: UNION_HEADS })
}

/// The width of the text that the network reads in its first attention to it.
pub(crate) fn text_width(file: &dyn TensorNames) -> Option<usize> {
    let name = file.names().filter(|name| name.ends_with("attn2.to_k.weight")).min()?;
    match file.shape(name)? {
        &[_, width] => Some(width),
        _ => None,
    }
}

/// How an autoencoder's tensors are named.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum VaeLayout {
    /// As in the original.
    Original,
    /// As in diffusers.
    Diffusers,
}

impl VaeLayout {
    /// The encoder's levels, the first norm's convolution of one of their blocks, and the decoder's attention.
    fn names(self) -> (&'static str, &'static str, &'static str) {
        match self {
            VaeLayout::Original => ("encoder.down", "block", "decoder.mid.attn_1."),
            VaeLayout::Diffusers => ("encoder.down_blocks", "resnets", "decoder.mid_block.attentions.0."),
        }
    }
}

/// The autoencoder. Its scale is the family's.
pub(crate) fn vae(probe: Probe<'_>, layout: VaeLayout, scaling_factor: f64, force_upcast: bool) -> Result<VaeSpec> {
    let (site, block, attention) = layout.names();
    let [_, image_channels, ..] = probe.need::<4>("encoder.conv_in.weight")?;
    let [_, latent_channels, ..] = probe.need::<4>("decoder.conv_in.weight")?;
    let levels = probe.count(site, &format!("{block}.0.conv1.weight"));
    let mut block_out_channels = Vec::new();
    for i in 0..levels {
        let key = format!("{site}.{i}.{block}.0.conv1.weight");
        let [channels, ..] = probe.need::<4>(&key)?;
        block_out_channels.push(probe.channels(&key, channels)?);
    }
    if levels == 0 || levels > limit::LEVELS {
        return Err(probe.wrong("encoder.conv_in.weight", format!("begins an encoder of {levels} levels")));
    }
    Ok(VaeSpec {
        image_channels,
        latent_channels,
        block_out_channels,
        layers_per_block: probe.count(&format!("{site}.0.{block}"), "conv1.weight"),
        norm_groups: GROUPS,
        scaling_factor,
        shift_factor: 0.0,
        force_upcast,
        quant_conv: probe.has("quant_conv.weight"),
        post_quant_conv: probe.has("post_quant_conv.weight"),
        // Under any of its names: what is then missing of it is missed.
        mid_attention: probe.has_any(attention),
        latent_rgb: LatentRgb::known(scaling_factor, latent_channels),
        tiny: None,
    })
}

/// A text encoder; `projected` is whether its projection is used. Shapes do not tell heads: they have 64 channels, unless `heads` are known.
pub(crate) fn clip_text(probe: Probe<'_>, layout: TextLayout, projected: bool, heads: Option<usize>) -> Result<ClipTextSpec> {
    let names = match layout {
        TextLayout::Clip if probe.has("text_model.embeddings.token_embedding.weight") => &CLIP,
        TextLayout::Clip => &OLD_CLIP,
        TextLayout::OpenClip => &OPEN_CLIP,
    };
    let [vocab_size, hidden_size] = probe.need::<2>(names.tokens)?;
    let [max_positions, _] = probe.need::<2>(names.positions)?;
    let layers = probe.count(names.layers, names.norm);
    let fc1 = format!("{}.0.{}", names.layers, names.fc1);
    let [intermediate_size, _] = probe.need::<2>(&fc1)?;
    let heads = heads.or(hidden_size.is_multiple_of(HEAD).then_some(hidden_size / HEAD));
    let Some(heads) = heads.filter(|heads| *heads > 0 && hidden_size.is_multiple_of(*heads)) else {
        let advice = "`tokenizers` with the folder of the model that it comes from tells its heads";
        return Err(probe.wrong(names.tokens, format!("has a width of {hidden_size}, which heads of {HEAD} do not divide; {advice}")));
    };
    let projection_dim = match (projected, layout) {
        (false, _) => None,
        (true, TextLayout::OpenClip) if probe.has("text_projection.weight") => Some(probe.need::<2>("text_projection.weight")?[0]),
        (true, TextLayout::OpenClip) => Some(probe.need::<2>("text_projection")?[1]),
        (true, TextLayout::Clip) => Some(probe.need::<2>("text_projection.weight")?[0]),
    };
    Ok(ClipTextSpec {
        vocab_size,
        hidden_size,
        intermediate_size,
        layers,
        heads,
        max_positions,
        activation: match layout {
            TextLayout::Clip => Activation::QuickGelu,
            TextLayout::OpenClip => Activation::Gelu,
        },
        projection_dim,
        layer_norm_eps: 1e-5,
        // CLIP's vocabularies end in the start and the end of a text, and learned words come after them.
        eos_token_id: (vocab_size - 1).min(CLIP_END) as u32,
    })
}

/// Where a text encoder's sizes are read.
struct TextNames {
    tokens: &'static str,
    positions: &'static str,
    layers: &'static str,
    norm: &'static str,
    fc1: &'static str,
}

const CLIP: TextNames = TextNames {
    tokens: "text_model.embeddings.token_embedding.weight",
    positions: "text_model.embeddings.position_embedding.weight",
    layers: "text_model.encoder.layers",
    norm: "layer_norm1.weight",
    fc1: "mlp.fc1.weight",
};
const OLD_CLIP: TextNames = TextNames {
    tokens: "embeddings.token_embedding.weight",
    positions: "embeddings.position_embedding.weight",
    layers: "encoder.layers",
    norm: "layer_norm1.weight",
    fc1: "mlp.fc1.weight",
};
const OPEN_CLIP: TextNames = TextNames {
    tokens: "token_embedding.weight",
    positions: "positional_embedding",
    layers: "transformer.resblocks",
    norm: "ln_1.weight",
    fc1: "mlp.c_fc.weight",
};
