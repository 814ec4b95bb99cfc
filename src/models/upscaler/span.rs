//! SPAN: six blocks whose output is its own attention, without weights for it.

use super::{CHANNELS, Loaded, UpscalerNetwork, length, mean, refused, shape, shuffle_factor, sigmoid};
use crate::Result;
use crate::models::Scope;
use crate::ops::{Conv2d, Linear, Padding, pixel_shuffle, silu};
use candle_core::{D, DType, Device, Tensor};

const BLOCKS: usize = 6;
/// What a network with norm takes an image's values by.
const RANGE: f64 = 255.0;

/// One block: three convolutions.
#[derive(Debug)]
struct SpanBlock {
    convs: [Conv2d; 3],
}

impl SpanBlock {
    /// The block's output, and what it has after its first convolution.
    fn forward(&self, x: &Tensor) -> Result<(Tensor, Tensor)> {
        let [first, second, third] = &self.convs;
        let early = silu(&first.forward(x)?)?;
        let late = third.forward(&silu(&second.forward(&early)?)?)?;
        let attention = sigmoid(&late)?.affine(1.0, -0.5)?;
        Ok((((late + x)? * attention)?, early))
    }
}

/// # Source
/// Wan et al., "Swift Parameter-free Attention Network for Efficient Super-Resolution" (arXiv:2311.12770); hongyuanyu/SPAN,
/// basicsr/archs/span_arch.py
#[derive(Debug)]
struct SpanNetwork {
    normed: bool,
    first: Conv2d,
    blocks: Vec<SpanBlock>,
    last: Conv2d,
    joint: Linear,
    up: Conv2d,
    scale: usize,
}

pub(super) fn load(root: &Scope<'_>) -> Result<Option<Loaded>> {
    let (Some(_), Some(filters)) = (shape(root, "block_1.c1_r.sk.weight"), length(root, "conv_1.sk.weight")) else { return Ok(None) };
    let given = length(root, "upsampler.0.weight").unwrap_or(0);
    let scale = shuffle_factor(given, CHANNELS)
        .ok_or_else(|| refused(format!("upsampler.0 gives {given} channels, which are no colour image's pixels")))?;
    let block = |n: usize| {
        let place = root.at(format!("block_{n}"));
        let conv = |c: usize| merged(&place.at(format!("c{c}_r")), filters, filters);
        Ok(SpanBlock { convs: [conv(1)?, conv(2)?, conv(3)?] })
    };
    let network = SpanNetwork {
        normed: shape(root, "no_norm").is_none(),
        first: merged(&root.at("conv_1"), CHANNELS, filters)?,
        blocks: (1..=BLOCKS).map(block).collect::<Result<_>>()?,
        last: merged(&root.at("conv_2"), filters, filters)?,
        joint: root.at("conv_cat").pointwise(4 * filters, filters)?,
        up: root.at("upsampler.0").conv3x3(filters, given, 1, Padding::same(1))?,
        scale,
    };
    Ok(Some(Loaded { network: Box::new(network), scale, multiple: 1 }))
}

/// The one convolution that four are: 1×1, 3×3 and 1×1 after one another without anything between, and a 1×1 beside them. Files have it
/// as `eval_conv` too, but not always as the others have become.
fn merged(scope: &Scope<'_>, input: usize, output: usize) -> Result<Conv2d> {
    // In f32, whatever the network computes in, and where it is small.
    let place = Scope { dtype: DType::F32, device: &Device::Cpu, ..scope.clone() };
    let conv = |name: &str, shape: [usize; 4]| -> Result<(Tensor, Tensor)> {
        let place = place.at(name);
        Ok((place.tensor("weight", &shape)?, place.tensor("bias", &shape[..1])?))
    };
    let Some(wide) = length(&place, "conv.0.weight") else {
        return scope.at("eval_conv").conv3x3(input, output, 1, Padding::same(1));
    };
    let wider = length(&place, "conv.1.weight").unwrap_or(0);
    let (before, before_bias) = conv("conv.0", [wide, input, 1, 1])?;
    let (middle, middle_bias) = conv("conv.1", [wider, wide, 3, 3])?;
    let (after, after_bias) = conv("conv.2", [output, wider, 1, 1])?;
    let (beside, beside_bias) = conv("sk", [output, input, 1, 1])?;
    let (before, after) = (before.reshape((wide, input))?, after.reshape((output, wider))?);
    // (wider, 9, wide) · (wide, input), then (output, wider) · (wider, 9 input).
    let weight = middle.flatten_from(2)?.transpose(1, 2)?.contiguous()?.reshape((wider * 9, wide))?.matmul(&before)?;
    let weight = after.matmul(&weight.reshape((wider, 9 * input))?)?.reshape((output, 3, 3, input))?.permute((0, 3, 1, 2))?;
    // The one beside stands on the pixel itself.
    let weight = (weight.contiguous()? + beside.pad_with_zeros(2, 1, 1)?.pad_with_zeros(3, 1, 1)?)?;
    let bias = (middle.sum((2, 3))?.matmul(&before_bias.unsqueeze(1)?)?.squeeze(1)? + middle_bias)?;
    let bias = ((after.matmul(&bias.unsqueeze(1)?)?.squeeze(1)? + after_bias)? + beside_bias)?;
    let here = |tensor: Tensor| tensor.to_dtype(scope.dtype)?.to_device(scope.device);
    Ok(Conv2d::new(here(weight)?, Some(here(bias)?), 1, Padding::same(1))?)
}

impl UpscalerNetwork for SpanNetwork {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let x = if self.normed { x.broadcast_sub(&mean(x)?)?.affine(RANGE, 0.0)? } else { x.clone() };
        let first = self.first.forward(&x)?;
        let (mut y, mut early) = (first.clone(), first.clone());
        let mut once = None;
        for block in &self.blocks {
            (y, early) = block.forward(&y)?;
            once.get_or_insert_with(|| y.clone());
        }
        let last = self.last.forward(&y)?;
        let joined = Tensor::cat(&[&first, &last, once.as_ref().unwrap_or(&y), &early], D::Minus1)?;
        Ok(pixel_shuffle(&self.up.forward(&self.joint.forward(&joined)?)?, self.scale)?)
    }
}
