//! The tiny autoencoder (TAESD): between latents and images in a fraction of the time, for looking while generating or in the place of
//! the large one.

use super::Scope;
use crate::Result;
use crate::ops::{Conv2d, Padding, on_workers, upsample_nearest_2x};
use crate::spec::AutoencoderTinySpec;
use candle_core::Tensor;

/// Three convolutions around which the input is led.
#[derive(Debug)]
struct TinyBlock {
    conv: [Conv2d; 3],
}

impl TinyBlock {
    fn load(scope: &Scope<'_>, channels: usize) -> Result<Self> {
        // What lies between the convolutions has no weights, but is counted.
        let conv = |i: usize| scope.at("conv").at(i).conv3x3(channels, channels, 1, Padding::same(1));
        Ok(Self { conv: [conv(0)?, conv(2)?, conv(4)?] })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let [first, second, third] = &self.conv;
        let y = third.forward(&second.forward(&first.forward(x)?.relu()?)?.relu()?)?;
        Ok((y + x)?.relu()?)
    }
}

/// One resolution: blocks, a doubling where a finer level follows, and a convolution.
#[derive(Debug)]
struct Level {
    blocks: Vec<TinyBlock>,
    upsample: bool,
    conv: Conv2d,
}

/// Latents to image; diffusers' `DecoderTiny`.
///
/// # Source
/// madebyollin/taesd, taesd.py; diffusers 0.36, models/autoencoders/vae.py
#[derive(Debug)]
pub struct AutoencoderTinyDecoder {
    conv_in: Conv2d,
    levels: Vec<Level>,
}

impl AutoencoderTinyDecoder {
    /// Reads the decoder's weights.
    ///
    /// # Errors
    /// A tensor is missing or has another shape.
    pub fn load(root: &Scope<'_>, spec: &AutoencoderTinySpec) -> Result<Self> {
        let layers = root.at("decoder.layers");
        let channels = spec.channels;
        let conv_in = layers.at(0).conv3x3(spec.latent_channels, channels, 1, Padding::same(1))?;
        let mut levels = Vec::new();
        // A ReLU follows the first convolution.
        let mut next = 2;
        for (i, &blocks) in spec.decoder_blocks.iter().enumerate() {
            let last = i + 1 == spec.decoder_blocks.len();
            let blocks = (next..next + blocks).map(|n| TinyBlock::load(&layers.at(n), channels)).collect::<Result<Vec<_>>>()?;
            next += blocks.len() + usize::from(!last);
            let scope = layers.at(next);
            let conv = match last {
                true => scope.conv3x3(channels, spec.image_channels, 1, Padding::same(1))?,
                false => scope.conv3x3_without_bias(channels, channels, 1, Padding::same(1))?,
            };
            next += 1;
            levels.push(Level { blocks, upsample: !last, conv });
        }
        Ok(Self { conv_in, levels })
    }

    /// Decodes latents as the denoising loop has them: this network learnt the scaled ones.
    ///
    /// # Shapes
    /// `(batch, latent channels, height, width)` to `(batch, 3, factor × height, factor × width)`, nominally in [-1, 1].
    pub fn decode(&self, latents: &Tensor) -> Result<Tensor> {
        on_workers(latents.device(), || self.image(latents))
    }

    fn image(&self, latents: &Tensor) -> Result<Tensor> {
        let bounded = latents.affine(1.0 / 3.0, 0.0)?.tanh()?.affine(3.0, 0.0)?;
        let mut x = self.conv_in.forward(&bounded.permute((0, 2, 3, 1))?.contiguous()?)?.relu()?;
        for level in &self.levels {
            for block in &level.blocks {
                x = block.forward(&x)?;
            }
            if level.upsample {
                x = upsample_nearest_2x(&x)?;
            }
            x = level.conv.forward(&x)?;
        }
        Ok(x.permute((0, 3, 1, 2))?.contiguous()?.affine(2.0, -1.0)?)
    }
}

/// Image to latents; diffusers' `EncoderTiny`.
///
/// # Source
/// madebyollin/taesd, taesd.py; diffusers 0.36, models/autoencoders/vae.py
#[derive(Debug)]
pub struct AutoencoderTinyEncoder {
    /// A convolution, which halves but at the finest level, and the blocks behind it.
    levels: Vec<(Conv2d, Vec<TinyBlock>)>,
    conv_out: Conv2d,
}

impl AutoencoderTinyEncoder {
    /// Reads the encoder's weights.
    ///
    /// # Errors
    /// A tensor is missing or has another shape.
    pub fn load(root: &Scope<'_>, spec: &AutoencoderTinySpec) -> Result<Self> {
        let layers = root.at("encoder.layers");
        let channels = spec.channels;
        let mut levels = Vec::new();
        let mut next = 0;
        for (i, &blocks) in spec.encoder_blocks.iter().enumerate() {
            let conv = match i {
                0 => layers.at(next).conv3x3(spec.image_channels, channels, 1, Padding::same(1))?,
                _ => layers.at(next).conv3x3_without_bias(channels, channels, 2, Padding::same(1))?,
            };
            let blocks = (next + 1..=next + blocks).map(|n| TinyBlock::load(&layers.at(n), channels)).collect::<Result<Vec<_>>>()?;
            next += blocks.len() + 1;
            levels.push((conv, blocks));
        }
        let conv_out = layers.at(next).conv3x3(channels, spec.latent_channels, 1, Padding::same(1))?;
        Ok(Self { levels, conv_out })
    }

    /// The latents of an image, as the denoising loop has them.
    ///
    /// # Shapes
    /// `(batch, 3, height, width)` in [-1, 1] to `(batch, latent channels, height / factor, width / factor)`.
    pub fn encode(&self, image: &Tensor) -> Result<Tensor> {
        on_workers(image.device(), || self.latents(image))
    }

    fn latents(&self, image: &Tensor) -> Result<Tensor> {
        let mut x = image.affine(0.5, 0.5)?.permute((0, 2, 3, 1))?.contiguous()?;
        for (conv, blocks) in &self.levels {
            x = conv.forward(&x)?;
            for block in blocks {
                x = block.forward(&x)?;
            }
        }
        Ok(self.conv_out.forward(&x)?.permute((0, 3, 1, 2))?.contiguous()?)
    }
}
