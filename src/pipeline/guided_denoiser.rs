//! The UNet as a [`Denoiser`]: scaling, classifier-free guidance, and what the network's output means.

use super::check_finite;
use super::prompt::Conditioning;
use crate::Result;
use crate::models::UNet2DCondition;
use crate::request::GenerationRequest;
use crate::schedulers::{Denoiser, NoiseLevel, PredictionType};
use candle_core::{DType, Tensor};

pub(super) struct GuidedDenoiser<'a> {
    unet: &'a UNet2DCondition,
    dtype: DType,
    prediction: PredictionType,
    guidance: Option<Guidance>,
    conditioning: Conditioning,
}

#[derive(Clone, Copy)]
struct Guidance {
    scale: f64,
    rescale: f64,
}

impl<'a> GuidedDenoiser<'a> {
    pub(super) fn new(
        unet: &'a UNet2DCondition,
        dtype: DType,
        prediction: PredictionType,
        request: &GenerationRequest,
        conditioning: Conditioning,
    ) -> Self {
        let guidance = request.is_guided().then_some(Guidance { scale: request.guidance_scale, rescale: request.guidance_rescale });
        Self { unet, dtype, prediction, guidance, conditioning }
    }
}

impl Denoiser for GuidedDenoiser<'_> {
    fn denoise(&mut self, latents: &Tensor, level: NoiseLevel) -> Result<Tensor> {
        let scaled = latents.affine(self.prediction.input_scale(level.sigma), 0.0)?.to_dtype(self.dtype)?;
        let rows = if self.guidance.is_some() { Tensor::cat(&[&scaled, &scaled], 0)? } else { scaled };
        let output = self.unet.forward(&rows, level.timestep, &self.conditioning.context, self.conditioning.added.as_ref())?;
        let output = output.to_dtype(DType::F32)?;
        check_finite(&output, || {
            let (timestep, dtype) = (level.timestep, self.dtype.as_str());
            format!("the UNet at timestep {timestep:.0} in {dtype}; try --dtype f32, another sampler or a lower --guidance-scale")
        })?;
        let output = match self.guidance {
            Some(guidance) => guidance.apply(&output)?,
            None => output,
        };
        let (c_skip, c_out) = self.prediction.scales(level.sigma);
        Ok((latents.affine(c_skip, 0.0)? + output.affine(c_out, 0.0)?)?)
    }
}

impl Guidance {
    /// Pushes the prediction from the negative rows (the first half) towards the prompt's (the second).
    ///
    /// # Source
    /// "Classifier-Free Diffusion Guidance", equation 6; the rescaling is equation 15 and 16 of
    /// "Common Diffusion Noise Schedules and Sample Steps are Flawed".
    fn apply(self, output: &Tensor) -> Result<Tensor> {
        let pictures = output.dim(0)? / 2;
        let (negative, prompt) = (output.narrow(0, 0, pictures)?, output.narrow(0, pictures, pictures)?);
        let guided = (&negative + (&prompt - &negative)?.affine(self.scale, 0.0)?)?;
        if self.rescale == 0.0 {
            return Ok(guided);
        }
        let ratio = deviation(&prompt)?.div(&deviation(&guided)?)?;
        Ok(guided.broadcast_mul(&ratio.affine(self.rescale, 1.0 - self.rescale)?)?)
    }
}

/// The standard deviation of each picture, `(batch, 1, 1, 1)`.
fn deviation(x: &Tensor) -> Result<Tensor> {
    let flat = x.flatten_from(1)?;
    let centred = flat.broadcast_sub(&flat.mean_keepdim(1)?)?;
    Ok(centred.sqr()?.mean_keepdim(1)?.sqrt()?.reshape((x.dim(0)?, 1, 1, 1))?)
}
