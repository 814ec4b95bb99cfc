//! The autoencoder of a model, whichever it is.

use super::{AutoencoderKLDecoder, AutoencoderKLEncoder, AutoencoderTinyDecoder, AutoencoderTinyEncoder, LatentDistribution, Scope};
use crate::Result;
use crate::spec::VaeSpec;
use candle_core::Tensor;

/// Latents to image.
#[derive(Debug)]
pub enum VaeDecoder {
    /// The usual one.
    Kl(Box<AutoencoderKLDecoder>),
    /// The tiny one.
    Tiny(AutoencoderTinyDecoder),
}

impl VaeDecoder {
    /// Reads the decoder's weights.
    ///
    /// # Errors
    /// A tensor is missing or has another shape.
    pub fn load(root: &Scope<'_>, spec: &VaeSpec) -> Result<Self> {
        Ok(match &spec.tiny {
            None => Self::Kl(Box::new(AutoencoderKLDecoder::load(root, spec)?)),
            Some(tiny) => Self::Tiny(AutoencoderTinyDecoder::load(root, tiny)?),
        })
    }

    /// Decodes latents as the denoising loop leaves them.
    ///
    /// # Shapes
    /// As [`AutoencoderKLDecoder::decode`].
    pub fn decode(&self, latents: &Tensor) -> Result<Tensor> {
        match self {
            Self::Kl(decoder) => decoder.decode(latents),
            Self::Tiny(decoder) => decoder.decode(latents),
        }
    }
}

/// Image to latents.
#[derive(Debug)]
pub enum VaeEncoder {
    /// The usual one.
    Kl(Box<AutoencoderKLEncoder>),
    /// The tiny one.
    Tiny(AutoencoderTinyEncoder),
}

impl VaeEncoder {
    /// Reads the encoder's weights.
    ///
    /// # Errors
    /// A tensor is missing or has another shape.
    pub fn load(root: &Scope<'_>, spec: &VaeSpec) -> Result<Self> {
        Ok(match &spec.tiny {
            None => Self::Kl(Box::new(AutoencoderKLEncoder::load(root, spec)?)),
            Some(tiny) => Self::Tiny(AutoencoderTinyEncoder::load(root, tiny)?),
        })
    }

    /// The latents' distribution; the tiny autoencoder is certain of them, so that its deviation is zero.
    ///
    /// # Shapes
    /// As [`AutoencoderKLEncoder::encode`].
    pub fn encode(&self, image: &Tensor) -> Result<LatentDistribution> {
        match self {
            Self::Kl(encoder) => encoder.encode(image),
            Self::Tiny(encoder) => {
                let mean = encoder.encode(image)?;
                Ok(LatentDistribution { deviation: mean.zeros_like()?, mean })
            }
        }
    }
}
