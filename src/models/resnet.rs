//! The residual block of UNet and autoencoder, and the layers that change the resolution.

use super::Scope;
use crate::Result;
use crate::ops::{Conv2d, Epilogue, GroupNorm, Linear, Padding, silu, upsample_nearest_2x};
use candle_core::Tensor;

/// What all residual blocks of one network share.
#[derive(Debug, Clone, Copy)]
pub(super) struct ResnetConfig {
    pub(super) norm_groups: usize,
    pub(super) norm_eps: f64,
    /// Width of the time embedding; `None` in the autoencoder.
    pub(super) time_embedding: Option<usize>,
}

/// diffusers' `ResnetBlock2D`.
#[derive(Debug)]
pub(super) struct ResnetBlock2D {
    norm1: GroupNorm,
    conv1: Conv2d,
    time_emb_proj: Option<Linear>,
    norm2: GroupNorm,
    conv2: Conv2d,
    conv_shortcut: Option<Linear>,
}

impl ResnetBlock2D {
    pub(super) fn load(scope: &Scope<'_>, config: ResnetConfig, input: usize, output: usize) -> Result<Self> {
        Ok(Self {
            norm1: scope.at("norm1").group_norm(input, config.norm_groups, config.norm_eps)?,
            conv1: scope.at("conv1").conv3x3(input, output, 1, Padding::same(1))?,
            time_emb_proj: config.time_embedding.map(|width| scope.at("time_emb_proj").linear(width, output)).transpose()?,
            norm2: scope.at("norm2").group_norm(output, config.norm_groups, config.norm_eps)?,
            conv2: scope.at("conv2").conv3x3(output, output, 1, Padding::same(1))?,
            conv_shortcut: (input != output).then(|| scope.at("conv_shortcut").pointwise(input, output)).transpose()?,
        })
    }

    /// `(batch, height, width, input)` to `(batch, height, width, output)`; `time` is the activated time embedding.
    pub(super) fn forward(&self, x: &Tensor, time: Option<&Tensor>) -> Result<Tensor> {
        let bias = match (&self.time_emb_proj, time) {
            (Some(projection), Some(time)) => Some(projection.forward(time)?),
            _ => None,
        };
        let h = self.conv1.forward_with(&self.norm1.forward_silu(x)?, Epilogue { row_bias: bias.as_ref(), residual: None })?;
        let h = self.norm2.forward_silu(&h)?;
        let shortcut = match &self.conv_shortcut {
            Some(conv) => conv.forward(x)?,
            None => x.clone(),
        };
        Ok(self.conv2.forward_with(&h, Epilogue { row_bias: None, residual: Some(&shortcut) })?)
    }
}

/// Halves the resolution with a strided convolution.
#[derive(Debug)]
pub(super) struct Downsample2D {
    conv: Conv2d,
}

impl Downsample2D {
    /// `padding` is symmetric in the UNet, and right and below only in the autoencoder.
    pub(super) fn load(scope: &Scope<'_>, channels: usize, padding: Padding) -> Result<Self> {
        Ok(Self { conv: scope.at("conv").conv3x3(channels, channels, 2, padding)? })
    }

    pub(super) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        Ok(self.conv.forward(x)?)
    }
}

/// Doubles the resolution, but for a last line or column that was never there, and convolves.
#[derive(Debug)]
pub(super) struct Upsample2D {
    conv: Conv2d,
}

impl Upsample2D {
    pub(super) fn load(scope: &Scope<'_>, channels: usize) -> Result<Self> {
        Ok(Self { conv: scope.at("conv").conv3x3(channels, channels, 1, Padding::same(1))? })
    }

    /// `size` is the height and width to reach: twice the input's, or one less where an odd size was halved on the way down.
    pub(super) fn forward(&self, x: &Tensor, size: (usize, usize)) -> Result<Tensor> {
        // Nearest interpolation to one less is that to twice the size without its end.
        Ok(self.conv.forward(&upsample_nearest_2x(x)?.narrow(1, 0, size.0)?.narrow(2, 0, size.1)?)?)
    }
}

/// The time embedding as the residual blocks take it.
pub(super) fn activated(time: &Tensor) -> Result<Tensor> {
    Ok(silu(time)?)
}
