//! SwinIR: transformer blocks whose attention stays within windows, which every second block shifts by half.

use super::{CHANNELS, Loaded, UpscalerNetwork, count, length, mean, refused, shape, shuffle_factor, unshuffle_of};
use crate::Result;
use crate::models::Scope;
use crate::ops::{
    Conv2d, Epilogue, LayerNorm, Linear, Padding, UpsamplingConv2d, gelu, leaky_relu, pixel_shuffle, pixel_unshuffle, window_attention,
};
use candle_core::{D, Device, Tensor};

const EPS: f64 = 1e-5;
const LARGEST_WINDOW: usize = 32;
const SLOPE: f32 = 0.2;
/// What torch's LeakyReLU has where nobody says.
const USUAL_SLOPE: f32 = 0.01;
/// The window of the networks against JPEG's artefacts, which were trained on values up to 255.
const JPEG_WINDOW: usize = 7;
/// What hides a pixel of another part of the image.
const HIDDEN: f32 = -100.0;

/// A convolution, or three narrower ones.
#[derive(Debug)]
enum Convs {
    One(Conv2d),
    Three(Conv2d, Linear, Conv2d),
}

impl Convs {
    fn load(scope: &Scope<'_>, channels: usize) -> Result<Self> {
        if shape(scope, "weight").is_some() {
            return Ok(Self::One(scope.conv3x3(channels, channels, 1, Padding::same(1))?));
        }
        let narrow = channels / 4;
        Ok(Self::Three(
            scope.at(0).conv3x3(channels, narrow, 1, Padding::same(1))?,
            scope.at(2).pointwise(narrow, narrow)?,
            scope.at(4).conv3x3(narrow, channels, 1, Padding::same(1))?,
        ))
    }

    fn forward_with(&self, x: &Tensor, residual: &Tensor) -> Result<Tensor> {
        let extra = Epilogue { residual: Some(residual), ..Epilogue::default() };
        Ok(match self {
            Self::One(conv) => conv.forward_with(x, extra)?,
            Self::Three(first, second, third) => {
                let narrow = leaky_relu(&first.forward(x)?, SLOPE)?;
                third.forward_with(&leaky_relu(&second.forward(&narrow)?, SLOPE)?, extra)?
            }
        })
    }
}

/// An image as windows, and how.
struct WindowLayout {
    side: usize,
    shift: usize,
    /// `(windows, tokens, tokens)`, for a shifted image: its ends meet in the last windows, and must not see each other.
    mask: Option<Tensor>,
}

impl WindowLayout {
    fn new(side: usize, shift: usize, (height, width): (usize, usize), device: &Device) -> Result<Self> {
        if shift == 0 {
            return Ok(Self { side, shift, mask: None });
        }
        // Which part of the unshifted image a row or a column is of.
        let part = |at: usize, length: usize| usize::from(at + side >= length) + usize::from(at + shift >= length);
        let mut mask = Vec::with_capacity(height * width * side * side);
        for top in (0..height).step_by(side) {
            for left in (0..width).step_by(side) {
                let tokens: Vec<(usize, usize)> =
                    (0..side * side).map(|token| (part(top + token / side, height), part(left + token % side, width))).collect();
                mask.extend(tokens.iter().flat_map(|a| tokens.iter().map(move |b| if a == b { 0.0 } else { HIDDEN })));
            }
        }
        let mask = Tensor::from_vec(mask, (height / side * (width / side), side * side, side * side), device)?;
        Ok(Self { side, shift, mask: Some(mask) })
    }

    /// `(1, height, width, channels)` to `(windows, tokens, channels)`.
    fn split(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        let (_, height, width, channels) = x.dims4()?;
        let (side, shift) = (self.side, -(self.shift as i32));
        let x = if shift == 0 { x.clone() } else { x.roll(shift, 1)?.roll(shift, 2)? };
        let x = x.contiguous()?.reshape((height / side, side, width / side, side, channels))?.permute((0, 2, 1, 3, 4))?;
        x.contiguous()?.reshape((height / side * (width / side), side * side, channels))
    }

    /// The way back.
    fn join(&self, windows: &Tensor, (height, width): (usize, usize)) -> candle_core::Result<Tensor> {
        let (side, shift, channels) = (self.side, self.shift as i32, windows.dim(D::Minus1)?);
        let x = windows.reshape((height / side, width / side, side, side, channels))?.permute((0, 2, 1, 3, 4))?;
        let x = x.contiguous()?.reshape((1, height, width, channels))?;
        if shift == 0 { Ok(x) } else { x.roll(shift, 1)?.roll(shift, 2)?.contiguous() }
    }
}

#[derive(Debug)]
struct SwinBlock {
    norm1: LayerNorm,
    qkv: Linear,
    heads: usize,
    /// `(heads, tokens, tokens)`, by how two pixels of a window lie to each other.
    bias: Tensor,
    proj: Linear,
    norm2: LayerNorm,
    fc1: Linear,
    fc2: Linear,
}

impl SwinBlock {
    fn load(scope: &Scope<'_>, channels: usize, window: usize) -> Result<Self> {
        let (attention, mlp) = (scope.at("attn"), scope.at("mlp"));
        let places = (2 * window - 1).pow(2);
        let heads = shape(&attention, "relative_position_bias_table").and_then(|shape| shape.get(1).copied()).unwrap_or(0);
        if heads == 0 || !channels.is_multiple_of(heads) {
            return Err(refused(format!("{channels} channels cannot be shared by {heads} heads")));
        }
        let table = attention.tensor("relative_position_bias_table", &[places, heads])?.to_dtype(candle_core::DType::F32)?;
        let of = |token: usize| (token / window, token % window);
        let tokens = window * window;
        let index = (0..tokens * tokens).map(|pair| {
            let ((y, x), (other_y, other_x)) = (of(pair / tokens), of(pair % tokens));
            ((y + window - 1 - other_y) * (2 * window - 1) + x + window - 1 - other_x) as u32
        });
        let index = Tensor::from_vec(index.collect::<Vec<_>>(), tokens * tokens, table.device())?;
        let bias = table.index_select(&index, 0)?.t()?.contiguous()?.reshape((heads, tokens, tokens))?;
        let hidden = length(&mlp, "fc1.bias").unwrap_or(0);
        let qkv = attention.at("qkv");
        let has_bias = shape(&qkv, "bias").is_some();
        Ok(Self {
            norm1: scope.at("norm1").layer_norm(channels, EPS)?,
            qkv: if has_bias { qkv.linear(channels, 3 * channels)? } else { qkv.linear_without_bias(channels, 3 * channels)? },
            heads,
            bias,
            proj: attention.at("proj").linear(channels, channels)?,
            norm2: scope.at("norm2").layer_norm(channels, EPS)?,
            fc1: mlp.at("fc1").linear(channels, hidden)?,
            fc2: mlp.at("fc2").linear(hidden, channels)?,
        })
    }

    fn forward(&self, x: &Tensor, windows: &WindowLayout) -> Result<Tensor> {
        let (_, height, width, channels) = x.dims4()?;
        let qkv = self.qkv.forward(&windows.split(&self.norm1.forward(x)?)?)?;
        let part = |n: usize| qkv.narrow(D::Minus1, n * channels, channels)?.contiguous();
        let seen = window_attention(&part(0)?, &part(1)?, &part(2)?, self.heads, &self.bias, windows.mask.as_ref())?;
        let x = (windows.join(&self.proj.forward(&seen)?, (height, width))? + x)?;
        let wide = gelu(&self.fc1.forward(&self.norm2.forward(&x)?)?)?;
        Ok(self.fc2.forward_with(&wide, Epilogue { residual: Some(&x), ..Epilogue::default() })?)
    }
}

#[derive(Debug)]
struct Group {
    blocks: Vec<SwinBlock>,
    conv: Convs,
}

/// How features become an image.
#[derive(Debug)]
enum Reconstruction {
    /// Pixels out of channels, in steps.
    Shuffle { before: Conv2d, ups: Vec<(Conv2d, usize)>, last: Conv2d },
    /// The same at once.
    Direct { up: Conv2d, factor: usize },
    /// Doubled pixels and convolutions.
    Nearest { before: Conv2d, ups: Vec<UpsamplingConv2d>, hr: Conv2d, last: Conv2d },
    /// An image of the same size, as a difference.
    Same { last: Conv2d },
}

/// # Source
/// Liang et al., "SwinIR" (arXiv:2108.10257); JingyunLiang/SwinIR, models/network_swinir.py
#[derive(Debug)]
struct SwinIr {
    unshuffle: usize,
    range: f64,
    window: usize,
    first: Conv2d,
    embed_norm: Option<LayerNorm>,
    groups: Vec<Group>,
    norm: LayerNorm,
    after: Convs,
    reconstruction: Reconstruction,
}

pub(super) fn load(root: &Scope<'_>) -> Result<Option<Loaded>> {
    let table = "layers.0.residual_group.blocks.0.attn.relative_position_bias_table";
    let first_name = if shape(root, "conv_first.1.weight").is_some() { "conv_first.1" } else { "conv_first" };
    let (Some(places), Some(first)) = (length(root, table), shape(root, &format!("{first_name}.weight"))) else { return Ok(None) };
    let window = places.isqrt().div_ceil(2);
    let [channels, input, 3, 3] = *first.as_slice() else { return Ok(None) };
    // What attention takes in memory grows with the fourth power of the window.
    if !(1..=LARGEST_WINDOW).contains(&window) || (2 * window - 1).pow(2) != places {
        return Err(refused(format!("{places} places of attention are none of a window of up to {LARGEST_WINDOW} pixels")));
    }
    if shape(root, "absolute_pos_embed").is_some() {
        return Err(refused("it learnt absolute positions, and works at one size alone".into()));
    }
    let (reconstruction, enlarged, output) = reconstruction(root, channels)?;
    let unshuffle = unshuffle_of(input, output)?;
    let group = |i: usize| {
        let place = root.at(format!("layers.{i}"));
        let blocks = place.at("residual_group.blocks");
        let number = count(0, |j| shape(&blocks, &format!("{j}.norm1.weight")).is_some());
        let blocks = (0..number).map(|j| SwinBlock::load(&blocks.at(j), channels, window)).collect::<Result<_>>()?;
        Ok(Group { blocks, conv: Convs::load(&place.at("conv"), channels)? })
    };
    let groups = count(0, |i| shape(root, &format!("layers.{i}.residual_group.blocks.0.norm1.weight")).is_some());
    let embed_norm = match shape(root, "patch_embed.norm.weight") {
        Some(_) => Some(root.at("patch_embed.norm").layer_norm(channels, EPS)?),
        None => None,
    };
    let network = SwinIr {
        unshuffle,
        range: if window == JPEG_WINDOW { 255.0 } else { 1.0 },
        window,
        first: root.at(first_name).conv3x3(input, channels, 1, Padding::same(1))?,
        embed_norm,
        groups: (0..groups).map(group).collect::<Result<_>>()?,
        norm: root.at("norm").layer_norm(channels, EPS)?,
        after: Convs::load(&root.at("conv_after_body"), channels)?,
        reconstruction,
    };
    Ok(Some(Loaded { network: Box::new(network), scale: enlarged / unshuffle, multiple: window * unshuffle }))
}

/// What makes the image, how much larger than the features it is, and its channels.
fn reconstruction(root: &Scope<'_>, channels: usize) -> Result<(Reconstruction, usize, usize)> {
    let conv = |name: &str, input, output| root.at(name).conv3x3(input, output, 1, Padding::same(1));
    let output = length(root, "conv_last.weight").unwrap_or(CHANNELS);
    let Some(features) = length(root, "conv_before_upsample.0.weight") else {
        let Some(given) = length(root, "upsample.0.weight") else {
            return Ok((Reconstruction::Same { last: conv("conv_last", channels, output)? }, 1, output));
        };
        let factor = shuffle_factor(given, output)
            .ok_or_else(|| refused(format!("upsample.0 gives {given} channels, which are no colour image's pixels")))?;
        return Ok((Reconstruction::Direct { up: conv("upsample.0", channels, given)?, factor }, factor, output));
    };
    let before = conv("conv_before_upsample.0", channels, features)?;
    let last = conv("conv_last", features, output)?;
    let doublings = count(1, |u| shape(root, &format!("conv_up{u}.weight")).is_some());
    if doublings > 0 {
        let ups = (1..=doublings).map(|u| root.at(format!("conv_up{u}")).upsampling_conv3x3(features, features)).collect::<Result<_>>()?;
        let hr = conv("conv_hr", features, features)?;
        return Ok((Reconstruction::Nearest { before, ups, hr, last }, 1 << doublings.min(16), output));
    }
    let mut ups = Vec::new();
    let mut scale = 1;
    // Each convolution is followed by a shuffle, which is counted.
    while let Some(given) = length(root, &format!("upsample.{}.weight", 2 * ups.len())) {
        let name = format!("upsample.{}", 2 * ups.len());
        let factor = shuffle_factor(given, features).ok_or_else(|| refused(format!("{name} gives {given} channels of {features}")))?;
        ups.push((conv(&name, features, given)?, factor));
        scale = factor.saturating_mul(scale);
    }
    Ok((Reconstruction::Shuffle { before, ups, last }, scale, output))
}

impl SwinIr {
    fn features(&self, first: &Tensor) -> Result<Tensor> {
        let (_, height, width, _) = first.dims4()?;
        let plain = WindowLayout::new(self.window, 0, (height, width), first.device())?;
        let shifted = WindowLayout::new(self.window, self.window / 2, (height, width), first.device())?;
        let mut x = match &self.embed_norm {
            Some(norm) => norm.forward(first)?,
            None => first.clone(),
        };
        for group in &self.groups {
            let mut y = x.clone();
            for (j, block) in group.blocks.iter().enumerate() {
                y = block.forward(&y, if j % 2 == 0 { &plain } else { &shifted })?;
            }
            x = group.conv.forward_with(&y, &x)?;
        }
        self.after.forward_with(&self.norm.forward(&x)?, first)
    }
}

impl UpscalerNetwork for SwinIr {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let mean = mean(x)?;
        let x = x.broadcast_sub(&mean)?.affine(self.range, 0.0)?;
        let features = self.features(&self.first.forward(&pixel_unshuffle(&x, self.unshuffle)?)?)?;
        let y = match &self.reconstruction {
            Reconstruction::Shuffle { before, ups, last } => {
                let mut y = leaky_relu(&before.forward(&features)?, USUAL_SLOPE)?;
                for (conv, factor) in ups {
                    y = pixel_shuffle(&conv.forward(&y)?, *factor)?;
                }
                last.forward(&y)?
            }
            Reconstruction::Direct { up, factor } => pixel_shuffle(&up.forward(&features)?, *factor)?,
            Reconstruction::Nearest { before, ups, hr, last } => {
                let mut y = leaky_relu(&before.forward(&features)?, USUAL_SLOPE)?;
                for up in ups {
                    y = leaky_relu(&up.forward(&y)?, SLOPE)?;
                }
                last.forward(&leaky_relu(&hr.forward(&y)?, SLOPE)?)?
            }
            Reconstruction::Same { last } => last.forward_with(&features, Epilogue { residual: Some(&x), ..Epilogue::default() })?,
        };
        Ok(y.affine(1.0 / self.range, 0.0)?.broadcast_add(&mean)?)
    }
}
