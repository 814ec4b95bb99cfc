//! The autoencoder between images and latents: diffusers' `AutoencoderKL`, its two halves apart.

use super::Scope;
use super::resnet::{Downsample2D, ResnetBlock2D, ResnetConfig};
use crate::ops::{Conv2d, Epilogue, GroupNorm, Linear, Padding, UpsamplingConv2d, attention, on_workers};
use crate::spec::VaeSpec;
use crate::{Error, Result};
use candle_core::{D, DType, Tensor};

/// Epsilon of every norm of the autoencoder.
const NORM_EPS: f64 = 1e-6;

fn resnets(spec: &VaeSpec) -> ResnetConfig {
    ResnetConfig { norm_groups: spec.norm_groups, norm_eps: NORM_EPS, time_embedding: None }
}

/// Attention over all pixels with one head.
#[derive(Debug)]
struct PixelAttention {
    group_norm: GroupNorm,
    to_q: Linear,
    to_k: Linear,
    to_v: Linear,
    to_out: Linear,
}

impl PixelAttention {
    fn load(scope: &Scope<'_>, channels: usize, groups: usize) -> Result<Self> {
        let linear = |name: &str| scope.at(name).linear(channels, channels);
        Ok(Self {
            group_norm: scope.at("group_norm").group_norm(channels, groups, NORM_EPS)?,
            to_q: linear("to_q")?,
            to_k: linear("to_k")?,
            to_v: linear("to_v")?,
            to_out: linear("to_out.0")?,
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let (batch, height, width, channels) = x.dims4()?;
        let residual = x.reshape((batch, height * width, channels))?;
        let normed = self.group_norm.forward(&residual)?;
        let (q, k, v) = (self.to_q.forward(&normed)?, self.to_k.forward(&normed)?, self.to_v.forward(&normed)?);
        let mixed = attention(&q, &k, &v, 1, false)?;
        let y = self.to_out.forward_with(&mixed, Epilogue { residual: Some(&residual), ..Epilogue::default() })?;
        Ok(y.reshape((batch, height, width, channels))?)
    }
}

#[derive(Debug)]
struct VaeMidBlock {
    first: ResnetBlock2D,
    attention: Option<PixelAttention>,
    last: ResnetBlock2D,
}

impl VaeMidBlock {
    fn load(scope: &Scope<'_>, spec: &VaeSpec, channels: usize) -> Result<Self> {
        let resnet = |i: usize| ResnetBlock2D::load(&scope.at("resnets").at(i), resnets(spec), channels, channels);
        let attention = || PixelAttention::load(&scope.at("attentions.0"), channels, spec.norm_groups);
        Ok(Self { first: resnet(0)?, attention: spec.mid_attention.then(attention).transpose()?, last: resnet(1)? })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let mut x = self.first.forward(x, None)?;
        if let Some(attention) = &self.attention {
            x = attention.forward(&x)?;
        }
        self.last.forward(&x, None)
    }
}

fn coarsest(spec: &VaeSpec) -> Result<usize> {
    spec.block_out_channels.last().copied().ok_or_else(|| Error::Model("the autoencoder has no levels".into()))
}

/// Latents to image.
#[derive(Debug)]
pub struct AutoencoderKLDecoder {
    spec: VaeSpec,
    post_quant_conv: Option<Linear>,
    conv_in: Conv2d,
    mid: VaeMidBlock,
    up: Vec<(Vec<ResnetBlock2D>, Option<UpsamplingConv2d>)>,
    conv_norm_out: GroupNorm,
    conv_out: Conv2d,
}

impl AutoencoderKLDecoder {
    /// Reads the decoder's weights.
    ///
    /// # Errors
    /// A tensor is missing or has another shape.
    pub fn load(root: &Scope<'_>, spec: &VaeSpec) -> Result<Self> {
        let scope = root.at("decoder");
        let latents = spec.latent_channels;
        let mut channels = coarsest(spec)?;
        let (conv_in, mid) = (
            scope.at("conv_in").conv3x3(latents, channels, 1, Padding::same(1))?,
            VaeMidBlock::load(&scope.at("mid_block"), spec, channels)?,
        );
        let mut up = Vec::new();
        let levels = spec.block_out_channels.len();
        for (i, &output) in spec.block_out_channels.iter().rev().enumerate() {
            let scope = scope.at("up_blocks").at(i);
            let mut blocks = Vec::new();
            for j in 0..=spec.layers_per_block {
                blocks.push(ResnetBlock2D::load(&scope.at("resnets").at(j), resnets(spec), channels, output)?);
                channels = output;
            }
            let upsample = (i + 1 < levels).then(|| scope.at("upsamplers.0.conv").upsampling_conv3x3(output, output)).transpose()?;
            up.push((blocks, upsample));
        }
        Ok(Self {
            post_quant_conv: spec.post_quant_conv.then(|| root.at("post_quant_conv").pointwise(latents, latents)).transpose()?,
            conv_in,
            mid,
            up,
            conv_norm_out: scope.at("conv_norm_out").group_norm(channels, spec.norm_groups, NORM_EPS)?,
            conv_out: scope.at("conv_out").conv3x3(channels, spec.image_channels, 1, Padding::same(1))?,
            spec: spec.clone(),
        })
    }

    /// Decodes latents as the denoising loop leaves them: the scaling is undone here.
    ///
    /// # Shapes
    /// `(batch, latent channels, height, width)` in the compute dtype to
    /// `(batch, 3, factor × height, factor × width)`, nominally in [-1, 1].
    pub fn decode(&self, latents: &Tensor) -> Result<Tensor> {
        on_workers(latents.device(), || self.image(latents))
    }

    fn image(&self, latents: &Tensor) -> Result<Tensor> {
        let unscaled = latents.affine(1.0 / self.spec.scaling_factor, self.spec.shift_factor)?;
        let mut x = unscaled.permute((0, 2, 3, 1))?.contiguous()?;
        if let Some(conv) = &self.post_quant_conv {
            x = conv.forward(&x)?;
        }
        x = self.mid.forward(&self.conv_in.forward(&x)?)?;
        for (blocks, upsample) in &self.up {
            for block in blocks {
                x = block.forward(&x, None)?;
            }
            if let Some(upsample) = upsample {
                x = upsample.forward(&x)?;
            }
        }
        let x = self.conv_out.forward(&self.conv_norm_out.forward_silu(&x)?)?;
        Ok(x.permute((0, 3, 1, 2))?.contiguous()?)
    }
}

/// What the encoder says of an image's latents, before scaling: `(batch, latent channels, height, width)` each.
#[derive(Debug, Clone)]
pub struct LatentDistribution {
    /// The mean.
    pub mean: Tensor,
    /// The standard deviation.
    pub deviation: Tensor,
}

impl LatentDistribution {
    /// One draw, from unit noise.
    ///
    /// # Errors
    /// The noise has another shape.
    pub fn sample(&self, noise: &Tensor) -> Result<Tensor> {
        Ok(self.mean.broadcast_add(&noise.broadcast_mul(&self.deviation)?)?)
    }
}

impl VaeSpec {
    /// The encoder's latents as the denoising loop wants them.
    ///
    /// # Errors
    /// The device has no memory left.
    pub fn scaled(&self, latents: &Tensor) -> Result<Tensor> {
        Ok(latents.affine(self.scaling_factor, -self.shift_factor * self.scaling_factor)?)
    }
}

/// Image to latents.
#[derive(Debug)]
pub struct AutoencoderKLEncoder {
    spec: VaeSpec,
    conv_in: Conv2d,
    down: Vec<(Vec<ResnetBlock2D>, Option<Downsample2D>)>,
    mid: VaeMidBlock,
    conv_norm_out: GroupNorm,
    conv_out: Conv2d,
    quant_conv: Option<Linear>,
}

impl AutoencoderKLEncoder {
    /// Reads the encoder's weights.
    ///
    /// # Errors
    /// A tensor is missing or has another shape.
    pub fn load(root: &Scope<'_>, spec: &VaeSpec) -> Result<Self> {
        let scope = root.at("encoder");
        let deepest = coarsest(spec)?;
        let mut channels = spec.block_out_channels.first().copied().unwrap_or(deepest);
        let conv_in = scope.at("conv_in").conv3x3(spec.image_channels, channels, 1, Padding::same(1))?;
        let mut down = Vec::new();
        let levels = spec.block_out_channels.len();
        for (i, &output) in spec.block_out_channels.iter().enumerate() {
            let scope = scope.at("down_blocks").at(i);
            let mut blocks = Vec::new();
            for j in 0..spec.layers_per_block {
                blocks.push(ResnetBlock2D::load(&scope.at("resnets").at(j), resnets(spec), channels, output)?);
                channels = output;
            }
            // The autoencoder pads to the right and below only, unlike the UNet.
            let padding = Padding { height: (0, 1), width: (0, 1) };
            let downsample = (i + 1 < levels).then(|| Downsample2D::load(&scope.at("downsamplers.0"), output, padding)).transpose()?;
            down.push((blocks, downsample));
        }
        let moments = 2 * spec.latent_channels;
        Ok(Self {
            conv_in,
            down,
            mid: VaeMidBlock::load(&scope.at("mid_block"), spec, deepest)?,
            conv_norm_out: scope.at("conv_norm_out").group_norm(deepest, spec.norm_groups, NORM_EPS)?,
            conv_out: scope.at("conv_out").conv3x3(deepest, moments, 1, Padding::same(1))?,
            quant_conv: spec.quant_conv.then(|| root.at("quant_conv").pointwise(moments, moments)).transpose()?,
            spec: spec.clone(),
        })
    }

    /// The latents' distribution.
    ///
    /// # Shapes
    /// `(batch, 3, height, width)` in [-1, 1] to `(batch, latent channels, height / factor, width / factor)`.
    pub fn encode(&self, image: &Tensor) -> Result<LatentDistribution> {
        on_workers(image.device(), || self.distribution(image))
    }

    /// The mean of the distribution, scaled as the denoising loop wants it.
    ///
    /// # Shapes
    /// As [`AutoencoderKLEncoder::encode`].
    pub fn encode_mean(&self, image: &Tensor) -> Result<Tensor> {
        self.spec.scaled(&self.encode(image)?.mean)
    }

    fn distribution(&self, image: &Tensor) -> Result<LatentDistribution> {
        let mut x = self.conv_in.forward(&image.permute((0, 2, 3, 1))?.contiguous()?)?;
        for (blocks, downsample) in &self.down {
            for block in blocks {
                x = block.forward(&x, None)?;
            }
            if let Some(downsample) = downsample {
                x = downsample.forward(&x)?;
            }
        }
        let mut x = self.conv_out.forward(&self.conv_norm_out.forward_silu(&self.mid.forward(&x)?)?)?;
        if let Some(conv) = &self.quant_conv {
            x = conv.forward(&x)?;
        }
        let channels = self.spec.latent_channels;
        let part = |at: usize| x.narrow(D::Minus1, at, channels)?.permute((0, 3, 1, 2))?.contiguous();
        let log_variance = part(channels)?.to_dtype(DType::F32)?.clamp(-30.0, 20.0)?;
        Ok(LatentDistribution { mean: part(0)?, deviation: log_variance.affine(0.5, 0.0)?.exp()? })
    }
}
