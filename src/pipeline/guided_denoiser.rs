//! The UNet as a [`Denoiser`]: scaling, classifier-free guidance, and what the network's output means.

use super::BatchItem;
use super::finite::Checks;
use super::prompt::Conditioning;
use crate::Result;
use crate::models::UNet2DCondition;
use crate::sampling::{Denoiser, NoiseLevel, PredictionType};
use crate::settings::Request;
use candle_core::{DType, Device, Tensor};

pub(super) struct GuidedDenoiser<'a> {
    unet: &'a UNet2DCondition,
    dtype: DType,
    prediction: PredictionType,
    guidance: Option<Guidance>,
    conditioning: Conditioning,
    checks: &'a Checks,
}

/// One value an image, `(images, 1, 1, 1)`.
struct Guidance {
    scale: Tensor,
    /// The rescaling and what it leaves, where an image asks for it.
    rescale: Option<(Tensor, Tensor)>,
}

impl<'a> GuidedDenoiser<'a> {
    pub(super) fn new(
        unet: &'a UNet2DCondition,
        dtype: DType,
        prediction: PredictionType,
        batch: &[BatchItem<'_>],
        checks: &'a Checks,
    ) -> Result<Self> {
        let conditioning = Conditioning::join(&batch.iter().map(|sketch| sketch.prompt).collect::<Vec<_>>())?;
        let guided = batch.first().is_some_and(|sketch| sketch.request.is_guided());
        let guidance = guided.then(|| Guidance::new(batch, conditioning.context.device())).transpose()?;
        Ok(Self { unet, dtype, prediction, guidance, conditioning, checks })
    }
}

impl Denoiser for GuidedDenoiser<'_> {
    fn denoise(&mut self, latents: &Tensor, level: NoiseLevel) -> Result<Tensor> {
        let scaled = latents.affine(self.prediction.input_scale(level.sigma), 0.0)?.to_dtype(self.dtype)?;
        let rows = if self.guidance.is_some() { Tensor::cat(&[&scaled, &scaled], 0)? } else { scaled };
        let output = self.unet.forward(&rows, level.timestep, &self.conditioning.context, self.conditioning.added.as_ref())?;
        let output = output.to_dtype(DType::F32)?;
        self.checks.check(&output, || {
            let (timestep, dtype) = (level.timestep, self.dtype.as_str());
            format!("the UNet at timestep {timestep:.0} in {dtype}; try --dtype f32, another sampler or a lower --guidance-scale")
        })?;
        let output = match &self.guidance {
            Some(guidance) => guidance.apply(&output)?,
            None => output,
        };
        let (c_skip, c_out) = self.prediction.scales(level.sigma);
        Ok((latents.affine(c_skip, 0.0)? + output.affine(c_out, 0.0)?)?)
    }
}

impl Guidance {
    fn new(batch: &[BatchItem<'_>], device: &Device) -> Result<Self> {
        let each = |value: &dyn Fn(&Request) -> f64| -> Result<Tensor> {
            let values: Vec<f32> = batch.iter().map(|sketch| value(sketch.request) as f32).collect();
            Ok(Tensor::from_vec(values, (batch.len(), 1, 1, 1), device)?)
        };
        let rescales = batch.first().is_some_and(|sketch| sketch.request.guidance.rescale != 0.0);
        let rescale = || Ok::<_, crate::Error>((each(&|r| r.guidance.rescale)?, each(&|r| 1.0 - r.guidance.rescale)?));
        Ok(Self { scale: each(&|r| r.guidance.scale)?, rescale: rescales.then(rescale).transpose()? })
    }

    /// Pushes the prediction from the negative rows (the first half) towards the prompts' (the second).
    ///
    /// # Source
    /// "Classifier-Free Diffusion Guidance", equation 6; the rescaling is equation 15 and 16 of
    /// "Common Diffusion Noise Schedules and Sample Steps are Flawed".
    fn apply(&self, output: &Tensor) -> Result<Tensor> {
        let images = output.dim(0)? / 2;
        let (negative, prompt) = (output.narrow(0, 0, images)?, output.narrow(0, images, images)?);
        let guided = (&negative + (&prompt - &negative)?.broadcast_mul(&self.scale)?)?;
        let Some((rescale, rest)) = &self.rescale else { return Ok(guided) };
        let ratio = deviation(&prompt)?.div(&deviation(&guided)?)?;
        Ok(guided.broadcast_mul(&(ratio * rescale)?.add(rest)?)?)
    }
}

/// The standard deviation of each image, `(batch, 1, 1, 1)`.
fn deviation(x: &Tensor) -> Result<Tensor> {
    let flat = x.flatten_from(1)?;
    let centred = flat.broadcast_sub(&flat.mean_keepdim(1)?)?;
    Ok(centred.sqr()?.mean_keepdim(1)?.sqrt()?.reshape((x.dim(0)?, 1, 1, 1))?)
}
