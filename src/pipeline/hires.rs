//! A second pass: the first one's result made larger, and generated again over that.

use super::encode::PassNumber;
use super::observer::Observer;
use super::passes::{Pass, conditioned};
use super::start::{BesideLoop, Start, values_of};
use super::{BatchItem, Pipeline, image_noise};
use crate::image::{ResizeFilter, resize, to_rgb};
use crate::noise::SeededNoise;
use crate::settings::{HiresPass, HiresUpscaler, Request};
use crate::weights::VaeFile;
use crate::{Error, Result};
use candle_core::{Device, Tensor};

impl Pipeline {
    /// The latents of the second pass, from those of the first one.
    ///
    /// # Source
    /// `sample_hr_pass` in stable-diffusion-webui@v1.10:modules/processing.py: noise is drawn anew from the image's seed, in the new size. An
    /// image that was enlarged becomes the mean of what the encoder says of it; A1111 draws from that with a generator that nobody seeds.
    pub(super) fn run_second_pass(
        &self,
        latents: &Tensor,
        batch: &[BatchItem<'_>],
        hires: HiresPass,
        shown: (usize, usize),
        observer: &mut dyn Observer,
    ) -> Result<Tensor> {
        let Some(BatchItem { request, .. }) = batch.first() else { return Ok(latents.clone()) };
        let upscaler = request.passes.hires_upscaler.as_ref().unwrap_or(&HiresUpscaler::Latent);
        let clean = self.enlarged(latents, upscaler, hires.size, request, observer)?;
        let Some(schedule) = hires.schedule else { return Ok(clean) };
        let images = batch.iter().map(|item| image_noise(&item.request.sampling, item.seed)).collect();
        let mut noise = SeededNoise::of_images(request.sampling.rng, images).with_brownian(schedule.brownian);
        let drawn = noise.first(&clean)?;
        let first = schedule.steps.first().map_or(0.0, |step| step.from.sigma);
        let latents = schedule.process.mix(&clean, &drawn, first)?;
        let batch = conditioned(batch, |prompt| prompt.second.as_deref())?;
        let start = Start { latents, schedule, beside: BesideLoop::default() };
        self.run_pass(&Pass { batch, number: PassNumber::Second, start, image: None, shown }, &mut noise, observer)
    }

    fn enlarged(
        &self,
        latents: &Tensor,
        upscaler: &HiresUpscaler,
        (width, height): (usize, usize),
        request: &Request,
        observer: &mut dyn Observer,
    ) -> Result<Tensor> {
        let factor = self.spec.vae.factor().max(1);
        let network = match upscaler {
            HiresUpscaler::Latent => return interpolated(latents, (height / factor, width / factor), &LINEAR),
            HiresUpscaler::LatentBicubic => return interpolated(latents, (height / factor, width / factor), &CUBIC),
            HiresUpscaler::Lanczos => None,
            HiresUpscaler::Network(file) => Some(self.networks.passes.upscaler(file, &self.device)?),
        };
        let vae = self.vae(request)?;
        // A file with the decoder alone leaves encoding to the model's own.
        let encoder = vae.as_deref().filter(|file| file.encodes());
        let spec = encoder.map_or(&self.spec.vae, VaeFile::spec);
        let row = |i: usize, observer: &mut dyn Observer| {
            let mut image = to_rgb(&self.decode_observed(&latents.narrow(0, i, 1)?, vae.as_deref(), request.wrap(), observer)?)?;
            if let Some(network) = &network {
                let scale = network.scale() as f64;
                image = network.run_wrapped(&image, scale, request.wrap(), &mut |_, _| {
                    observer.stage(super::Stage::Decode { done: i, all: latents.dim(0)? })
                })?;
            }
            let image = resize(&image, width as u32, height as u32, ResizeFilter::Lanczos);
            spec.scaled(&self.encode(&values_of(&image, None)?, encoder, request.wrap(), observer)?.mean)
        };
        let rows: Vec<Tensor> = (0..latents.dim(0)?).map(|i| row(i, observer)).collect::<Result<_>>()?;
        Ok(Tensor::cat(&rows, 0)?)
    }
}

/// How far a kernel reaches, and what it weighs.
struct Kernel {
    reach: i64,
    weight: fn(f64) -> f64,
    /// A place before the first pixel's middle is taken for that.
    clamps: bool,
}

const LINEAR: Kernel = Kernel { reach: 1, weight: |x| (1.0 - x.abs()).max(0.0), clamps: true };
const CUBIC: Kernel = Kernel { reach: 2, weight: cubic, clamps: false };

/// Keys' cubic with a = -0.75, torch's.
fn cubic(x: f64) -> f64 {
    const A: f64 = -0.75;
    let x = x.abs();
    match x {
        _ if x <= 1.0 => ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0,
        _ if x < 2.0 => ((A * x - 5.0 * A) * x + 8.0 * A) * x - 4.0 * A,
        _ => 0.0,
    }
}

/// Latents at another size, as `torch.nn.functional.interpolate` makes them without `align_corners` and `antialias`.
///
/// # Source
/// A1111's `latent_upscale_modes` in stable-diffusion-webui@v1.10:modules/shared_items.py; `area_pixel_compute_source_index` in
/// pytorch@v2.5:aten/src/ATen/native/UpSample.h.
fn interpolated(latents: &Tensor, (height, width): (usize, usize), kernel: &Kernel) -> Result<Tensor> {
    let (batch, channels, old_height, old_width) = latents.dims4()?;
    if [height, width, old_height, old_width].contains(&0) {
        return Err(Error::Image("there is nothing to enlarge".into()));
    }
    let (rows, columns) = (taps(old_height, height, kernel), taps(old_width, width, kernel));
    let values: Vec<f32> = latents.to_device(&Device::Cpu)?.flatten_all()?.to_vec1()?;
    let mut result = Vec::with_capacity(batch * channels * height * width);
    for plane in values.chunks_exact(old_height * old_width) {
        let across: Vec<f64> = plane
            .chunks_exact(old_width)
            .flat_map(|row| {
                let at = |index: &usize| row.get(*index).copied().map_or(0.0, f64::from);
                columns.iter().map(move |taps| taps.iter().map(|(index, weight)| at(index) * weight).sum::<f64>())
            })
            .collect();
        for taps in &rows {
            let at = |index: &usize, x: usize| across.get(index * width + x).copied().unwrap_or(0.0);
            result.extend((0..width).map(|x| taps.iter().map(|(index, weight)| at(index, x) * weight).sum::<f64>() as f32));
        }
    }
    Ok(Tensor::from_vec(result, (batch, channels, height, width), &Device::Cpu)?.to_device(latents.device())?)
}

/// For every place of the output, places of the input and their weights.
fn taps(old: usize, new: usize, kernel: &Kernel) -> Vec<Vec<(usize, f64)>> {
    let scale = old as f64 / new as f64;
    let of = |place: usize| {
        let centre = (place as f64 + 0.5) * scale - 0.5;
        let centre = if kernel.clamps { centre.max(0.0) } else { centre };
        let first = centre.floor() as i64;
        let inside = |index: i64| index.clamp(0, old as i64 - 1) as usize;
        (first - kernel.reach + 1..=first + kernel.reach).map(|index| (inside(index), (kernel.weight)(index as f64 - centre))).collect()
    };
    (0..new).map(of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// From torch 2.9: `interpolate(arange(6.).view(1, 1, 2, 3) ** 2, size=(3, 5), mode=…)`.
    #[test]
    fn latents_become_larger_as_torch_makes_them() {
        let values: Vec<f32> = (0..6).map(|i| (i * i) as f32).collect();
        let latents = Tensor::from_vec(values, (1, 1, 2, 3), &Device::Cpu).unwrap();
        for (kernel, wanted) in [(&LINEAR, LINEAR_VALUES), (&CUBIC, CUBIC_VALUES)] {
            let made: Vec<f32> = interpolated(&latents, (3, 5), kernel).unwrap().flatten_all().unwrap().to_vec1().unwrap();
            let apart = made.iter().zip(wanted).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(made.len() == wanted.len() && apart < 1e-5, "{made:?}");
        }
    }

    const LINEAR_VALUES: [f32; 15] = [0.0, 0.4, 1.0, 2.8, 4.0, 4.5, 6.1, 8.5, 12.1, 14.5, 9.0, 11.8, 16.0, 21.4, 25.0];
    const CUBIC_VALUES: [f32; 15] =
        [-0.82725, -0.77383, -0.30208, 1.24967, 2.41508, 4.116, 5.62, 8.5, 12.46, 15.076, 9.05925, 12.01384, 17.30208, 23.67033, 27.73692];
}
