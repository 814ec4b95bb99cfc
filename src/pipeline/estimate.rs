//! Quick images of latents that are still forming.

use super::Pipeline;
use crate::image::to_rgb;
use crate::models::{AutoencoderTinyDecoder, Scope};
use crate::sampling::{Denoised, Denoiser, NoiseLevel, Step};
use crate::spec::LatentRgb;
use crate::weights::TinyAutoencoder;
use crate::{Error, Result};
use ::image::RgbImage;
use candle_core::{DType, Device, Tensor};
use std::cell::RefCell;

/// Keeps a denoiser's last estimate of the clean latents, for a look between the steps.
pub(super) struct WithEstimate<'a> {
    denoiser: &'a mut dyn Denoiser,
    last: &'a RefCell<Option<Tensor>>,
}

impl<'a> WithEstimate<'a> {
    pub(super) fn new(denoiser: &'a mut dyn Denoiser, last: &'a RefCell<Option<Tensor>>) -> Self {
        Self { denoiser, last }
    }
}

impl Denoiser for WithEstimate<'_> {
    fn begin_step(&mut self, step: &Step) -> Result<()> {
        self.denoiser.begin_step(step)
    }

    fn denoise(&mut self, latents: &Tensor, level: NoiseLevel) -> Result<Denoised> {
        let denoised = self.denoiser.denoise(latents, level)?;
        *self.last.borrow_mut() = Some(denoised.guided.clone());
        Ok(denoised)
    }

    fn end_step(&mut self, step: &Step, latents: Tensor) -> Result<Tensor> {
        self.denoiser.end_step(step, latents)
    }
}

impl Pipeline {
    /// Makes [`Pipeline::estimate`] use a tiny autoencoder in the place of a linear map.
    ///
    /// # Errors
    /// It is one for other latents, or a tensor of it is missing.
    pub fn estimate_with(&mut self, tiny: &TinyAutoencoder) -> Result<()> {
        let (has, wanted) = (tiny.spec(), &self.spec.vae);
        if (has.latent_channels, has.factor()) != (wanted.latent_channels, wanted.factor()) {
            return Err(Error::Model(format!(
                "the tiny autoencoder is for {} channels of latents {} times smaller than the image, and the model has {} channels {} times smaller",
                has.latent_channels,
                has.factor(),
                wanted.latent_channels,
                wanted.factor()
            )));
        }
        self.tiny = Some(AutoencoderTinyDecoder::load(&Scope::root(tiny, self.vae_dtype, &self.device), has)?);
        Ok(())
    }

    /// Quick images of latents that need not be finished, one a row: by the tiny autoencoder where there is one, else a pixel a latent.
    ///
    /// # Shapes
    /// `(batch, channels, height, width)`.
    ///
    /// # Errors
    /// Nothing is known about how this model's latents look.
    pub fn estimate(&self, latents: &Tensor) -> Result<Vec<RgbImage>> {
        let rows = 0..latents.dim(0)?;
        match (&self.tiny, &self.spec.vae.latent_rgb) {
            // One image at a time, as the autoencoder.
            (Some(tiny), _) => {
                rows.map(|i| to_rgb(&tiny.decode(&latents.narrow(0, i, 1)?.to_dtype(self.vae_dtype)?)?.to_dtype(DType::F32)?)).collect()
            }
            (None, Some(map)) => {
                let colours = coloured(map, &latents.to_device(&Device::Cpu)?)?;
                rows.map(|i| to_rgb(&colours.narrow(0, i, 1)?)).collect()
            }
            (None, None) => Err(Error::Image(
                "nothing is known about how this model's latents look; a tiny autoencoder (`taesd` FILE) can show them".into(),
            )),
        }
    }
}

/// `(batch, channels, height, width)` to `(batch, 3, height, width)`.
fn coloured(map: &LatentRgb, latents: &Tensor) -> Result<Tensor> {
    let (batch, channels, height, width) = latents.dims4()?;
    if channels != map.factors.len() {
        return Err(Error::Image(format!("the latents have {channels} channels, and {} colours are known", map.factors.len())));
    }
    let single = |values: &[f64]| values.iter().map(|x| *x as f32).collect::<Vec<f32>>();
    let factors = Tensor::from_vec(single(map.factors.as_flattened()), (channels, 3), &Device::Cpu)?.t()?.contiguous()?;
    let bias = Tensor::from_vec(single(&map.bias), (1, 3, 1), &Device::Cpu)?;
    let flat = latents.to_dtype(DType::F32)?.reshape((batch, channels, height * width))?.contiguous()?;
    let colours = factors.unsqueeze(0)?.broadcast_matmul(&flat)?.broadcast_add(&bias)?;
    Ok(colours.reshape((batch, 3, height, width))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_linear_map_colours_each_place() {
        let map = LatentRgb { factors: vec![[1.0, 0.5, 0.0], [0.0, 0.0, -1.0]], bias: [0.0, 0.25, 1.0] };
        let latents = Tensor::new(&[[[[1.0f32, -1.0]], [[0.5, 2.0]]], [[[0.0, 0.0]], [[0.0, 1.0]]]], &Device::Cpu).unwrap();
        let colours: Vec<f32> = coloured(&map, &latents).unwrap().flatten_all().unwrap().to_vec1().unwrap();
        assert_eq!(colours, [1.0, -1.0, 0.75, -0.25, 0.5, -1.0, 0.0, 0.0, 0.25, 0.25, 1.0, 0.0]);
        let three = Tensor::zeros((1, 3, 1, 1), DType::F32, &Device::Cpu).unwrap();
        assert!(coloured(&map, &three).unwrap_err().to_string().contains("3 channels"));
    }
}
