//! Where a run begins: pure noise, or an image that is varied, made anew in part, grown, or changed by an instruction.

use super::finite::check_finite;
use super::observer::Observer;
use super::{Pipeline, vae_tiling};
use crate::extension::{Extension, KeepUnmaskedLatents, MoreChannels};
use crate::image::{
    Growth, Region, ResizeFilter, blur_mask, fill_from_around, grow, keep_unmasked, masked_region, resize, resize_and_crop, resize_and_fill,
};
use crate::models::LatentDistribution;
use crate::noise::SeededNoise;
use crate::ops::Wrap;
use crate::sampling::{Branch, Like, NoiseSource, Schedule, SchedulerConfig, plan};
use crate::settings::{InpaintArea, InpaintFill, Request, StrengthSteps};
use crate::weights::VaeFile;
use crate::{Error, Result};
use ::image::{GrayImage, Luma, RgbImage, imageops};
use candle_core::{DType, Tensor};

/// What a run starts from.
pub(super) struct Start {
    /// At the noise of the schedule's first step.
    pub(super) latents: Tensor,
    /// The steps that are taken; none where the strength is too low for one.
    pub(super) schedule: Schedule,
    /// What of the image works beside the loop.
    pub(super) beside: BesideLoop,
}

/// What of an image works beside the loop, for every network that takes part.
#[derive(Debug, Clone, Default)]
pub(super) struct BesideLoop {
    channels: Option<MoreChannels>,
    keep: Option<KeepUnmaskedLatents>,
}

impl BesideLoop {
    pub(super) fn extensions(&self) -> Vec<Box<dyn Extension>> {
        let channels = self.channels.iter().map(|channels| Box::new(channels.clone()) as Box<dyn Extension>);
        channels.chain(self.keep.iter().map(|keep| Box::new(keep.clone()) as Box<dyn Extension>)).collect()
    }
}

/// An image that a run starts from, as large as the canvas.
#[derive(Debug)]
pub(super) struct StartImage {
    image: RgbImage,
    /// White where it is made anew; black or white, nothing between.
    mask: Option<GrayImage>,
    fill: InpaintFill,
    finish: Finish,
}

/// How the image that was generated becomes the one that is kept.
#[derive(Debug)]
enum Finish {
    /// As it is.
    Whole,
    /// The original stands where the mask is black; both are cut to this size.
    Over { original: RgbImage, mask: GrayImage, size: (u32, u32) },
    /// What was generated is this part of the original.
    Part { original: RgbImage, mask: GrayImage, region: Region },
}

impl StartImage {
    /// Reads what a request starts from; `None` where that is noise alone.
    pub(super) fn of(request: &Request) -> Result<Option<Self>> {
        let inputs = &request.inputs;
        let Some(input) = inputs.read_init_image()? else { return Ok(None) };
        let mask = inputs.read_mask(&input)?;
        let (width, height) = (request.canvas.width as u32, request.canvas.height as u32);
        let fill = inputs.inpaint_fill;
        if let Some(growth) = inputs.outpaint {
            let mut start = Self::grown(&input.rgb, mask, growth, (width, height), request.seed, fill)?;
            if let (Finish::Over { mask, .. }, true) = (&mut start.finish, inputs.no_composite) {
                mask.pixels_mut().for_each(|pixel| pixel.0[0] = 255);
            }
            return Ok(Some(start));
        }
        let original = input.rgb;
        let Some(mask) = mask else {
            let image = resize(&original, width, height, ResizeFilter::Lanczos);
            return Ok(Some(Self { image, mask: None, fill, finish: Finish::Whole }));
        };
        let feathered = blur_mask(&mask, inputs.mask_blur);
        if inputs.inpaint_area == InpaintArea::Masked {
            let region = masked_region(&feathered, u32::try_from(inputs.inpaint_padding).unwrap_or(u32::MAX), (width, height));
            let Some(region) = region else { return Err(Error::setting("mask", ": marks nothing to make anew")) };
            let Region { x, y, width: columns, height: rows } = region;
            let image = resize_and_fill(&imageops::crop_imm(&original, x, y, columns, rows).to_image(), width, height);
            let mask = resize_and_fill(&imageops::crop_imm(&mask, x, y, columns, rows).to_image(), width, height);
            let mut over = feathered;
            if inputs.no_composite {
                over = GrayImage::new(original.width(), original.height());
                imageops::replace(&mut over, &GrayImage::from_pixel(columns, rows, Luma([255])), i64::from(x), i64::from(y));
            }
            let finish = Finish::Part { original, mask: over, region };
            return Ok(Some(Self::filled(image, mask, fill, finish)));
        }
        let resized = |mask: &GrayImage| resize(mask, width, height, ResizeFilter::Lanczos);
        let image = resize(&original, width, height, ResizeFilter::Lanczos);
        let finish = match inputs.no_composite {
            true => Finish::Whole,
            false => Finish::Over { original: image.clone(), mask: resized(&feathered), size: (width, height) },
        };
        Ok(Some(Self::filled(image, resized(&mask), fill, finish)))
    }

    /// The image on a larger canvas, of which `size` is what the network's steps make of it.
    fn grown(image: &RgbImage, mask: Option<GrayImage>, growth: Growth, size: (u32, u32), seed: u64, fill: InpaintFill) -> Result<Self> {
        let too_large = || Error::setting("outpaint", ": the canvas becomes too large; give fewer pixels");
        let wanted = growth.of(image.dimensions()).ok_or_else(too_large)?;
        // What is beyond the canvas that was asked for is generated too, and cut off.
        let beyond = |wanted: u32, is: u32| is.checked_sub(wanted).ok_or_else(too_large);
        let padded =
            Growth { right: growth.right + beyond(wanted.0, size.0)?, bottom: growth.bottom + beyond(wanted.1, size.1)?, ..growth };
        let (canvas, mut marked) = grow(image, padded, seed).ok_or_else(too_large)?;
        if let Some(mask) = mask {
            for (x, y, pixel) in mask.enumerate_pixels() {
                let marked = marked.get_pixel_mut(x + growth.left, y + growth.top);
                marked.0[0] = marked.0[0].max(pixel.0[0]);
            }
        }
        let finish = Finish::Over { original: canvas.clone(), mask: marked.clone(), size: wanted };
        Ok(Self::filled(canvas, marked, fill, finish))
    }

    fn filled(image: RgbImage, mut mask: GrayImage, fill: InpaintFill, finish: Finish) -> Self {
        mask.pixels_mut().for_each(|pixel| pixel.0[0] = if pixel.0[0] >= 128 { 255 } else { 0 });
        let image = if fill == InpaintFill::Blur { fill_from_around(&image, &mask) } else { image };
        Self { image, mask: Some(mask), fill, finish }
    }

    /// The part of another image that lies where the part lies that is generated of this one; `None` where all of it is.
    pub(super) fn part(&self, other: &RgbImage, (width, height): (u32, u32)) -> Option<RgbImage> {
        let Finish::Part { original, region, .. } = &self.finish else { return None };
        let (columns, rows) = original.dimensions();
        let other = match other.dimensions() == (columns, rows) {
            true => other.clone(),
            false => resize(other, columns, rows, ResizeFilter::Lanczos),
        };
        let part = imageops::crop_imm(&other, region.x, region.y, region.width, region.height).to_image();
        Some(resize_and_fill(&part, width, height))
    }

    /// The image that is kept, of the one that was generated.
    pub(super) fn finish(&self, mut generated: RgbImage) -> Result<RgbImage> {
        match &self.finish {
            Finish::Whole => Ok(generated),
            Finish::Over { original, mask, size } => {
                keep_unmasked(&mut generated, original, mask);
                let cut = *size != generated.dimensions();
                Ok(if cut { imageops::crop_imm(&generated, 0, 0, size.0, size.1).to_image() } else { generated })
            }
            Finish::Part { original, mask, region } => {
                let part = resize_and_crop(&generated, region.width, region.height);
                let mut whole = RgbImage::new(original.width(), original.height());
                imageops::replace(&mut whole, &part, i64::from(region.x), i64::from(region.y));
                keep_unmasked(&mut whole, original, mask);
                Ok(whole)
            }
        }
    }

    fn pixels(&self, hide: Option<&GrayImage>) -> Result<Tensor> {
        values_of(&self.image, hide)
    }
}

/// An image in [-1, 1], `(1, 3, height, width)`; with a mask, grey where it is white.
pub(super) fn values_of(image: &RgbImage, hide: Option<&GrayImage>) -> Result<Tensor> {
    let (width, height) = image.dimensions();
    let mut values = vec![0f32; 3 * (width * height) as usize];
    let plane = (width * height) as usize;
    for (i, pixel) in image.pixels().enumerate() {
        let hidden = hide.and_then(|mask| mask.as_raw().get(i)).is_some_and(|value| *value >= 128);
        for (c, value) in pixel.0.iter().enumerate() {
            if let Some(to) = values.get_mut(c * plane + i).filter(|_| !hidden) {
                *to = 2.0 * (f32::from(*value) / 255.0) - 1.0;
            }
        }
    }
    Ok(Tensor::from_vec(values, (1, 3, height as usize, width as usize), &candle_core::Device::Cpu)?)
}

/// The mask of the latents, `(1, 1, height, width)`: the first pixel of each decides, as the nearest one does in the reference.
fn latent_mask(mask: &GrayImage, factor: usize) -> Result<Tensor> {
    let (width, height) = (mask.width() as usize / factor, mask.height() as usize / factor);
    let at = |i: usize| mask.get_pixel((i % width * factor) as u32, (i / width * factor) as u32).0[0];
    let values: Vec<f32> = (0..width * height).map(|i| if at(i) >= 128 { 1.0 } else { 0.0 }).collect();
    Ok(Tensor::from_vec(values, (1, 1, height, width), &candle_core::Device::Cpu)?)
}

impl Pipeline {
    /// The latents that an image's run begins with. `empty` has their shape.
    ///
    /// Noise is drawn in diffusers' order: the encoder's sample, the run's noise, the masked image's sample.
    ///
    /// # Source
    /// `prepare_latents` and `get_timesteps` of the pipelines StableDiffusionImg2Img, -Inpaint and -InstructPix2Pix in
    /// huggingface/diffusers@v0.36:src/diffusers/pipelines/stable_diffusion.
    pub(super) fn start(
        &self,
        start: &StartImage,
        request: &Request,
        schedule: Schedule,
        empty: &Tensor,
        noise: &mut SeededNoise,
        observer: &mut dyn Observer,
    ) -> Result<Start> {
        let latent_channels = self.spec.vae.latent_channels;
        // A file with the decoder alone leaves encoding to the model's own.
        let file = self.vae(request)?.filter(|file| file.encodes());
        let file = file.as_deref();
        let vae = file.map_or(&self.spec.vae, VaeFile::spec);
        // The other tools' first draw is the run's noise, and what their encoders draw, if they do, is not known from the seed.
        let draws = matches!(request.sampling.like, None | Some(Like::Diffusers));
        // One that is certain of its latents has nothing to draw.
        let draws = draws && vae.tiny.is_none();
        let sample = |image: &Tensor, noise: &mut SeededNoise, fresh: Option<Tensor>, observer: &mut dyn Observer| {
            let encoded = self.encode(image, file, request.wrap(), observer)?;
            if !draws {
                return vae.scaled(&encoded.mean.broadcast_as(empty.shape())?.contiguous()?);
            }
            let drawn = fresh.map_or_else(|| noise.fresh(empty), Ok)?;
            vae.scaled(&encoded.sample(&drawn)?)
        };
        if self.spec.unet.in_channels == 2 * latent_channels {
            let latents = noise.first(empty)?.affine(schedule.initial_scale, 0.0)?;
            let image =
                self.encode(&start.pixels(None)?, file, request.wrap(), observer)?.mean.broadcast_as(empty.shape())?.contiguous()?;
            let channels = MoreChannels::new(image).blind_in(Branch::Negative);
            return Ok(Start { latents, schedule, beside: BesideLoop { channels: Some(channels), keep: None } });
        }
        let strength = request.inputs.strength();
        let repaints = self.spec.unet.in_channels == 2 * latent_channels + 1;
        let pure_noise = start.mask.is_some() && strength >= 1.0;
        let mut clean = match pure_noise && repaints {
            true => None,
            false => Some(sample(&start.pixels(None)?, noise, None, observer)?),
        };
        let drawn = noise.first(empty)?;
        let mut beside = BesideLoop::default();
        if let Some(mask) = &start.mask {
            let latent_mask = latent_mask(mask, self.spec.vae.factor())?.to_device(&self.device)?;
            if let Some(clean) = &mut clean {
                let kept = clean.broadcast_mul(&latent_mask.affine(-1.0, 1.0)?)?;
                *clean = match start.fill {
                    InpaintFill::Original | InpaintFill::Blur => clean.clone(),
                    InpaintFill::Noise => (kept + drawn.broadcast_mul(&latent_mask)?)?,
                    InpaintFill::Zero => kept,
                };
            }
            // diffusers encodes the masked image for every model, and draws for it.
            let masked_noise = draws.then(|| noise.fresh(empty)).transpose()?;
            if repaints {
                let masked = sample(&start.pixels(Some(mask))?, noise, masked_noise, observer)?;
                let (images, _, height, width) = masked.dims4()?;
                let mask = latent_mask.broadcast_as((images, 1, height, width))?;
                beside.channels = Some(MoreChannels::new(Tensor::cat(&[&mask.contiguous()?, &masked], 1)?));
            } else if let Some(clean) = &clean {
                beside.keep = Some(KeepUnmaskedLatents::new(clean.clone(), drawn.clone(), latent_mask));
            }
        }
        let Some(clean) = clean.filter(|_| !pure_noise) else {
            return Ok(Start { latents: drawn.affine(schedule.initial_scale, 0.0)?, schedule, beside });
        };
        let steps = request.sampling.steps;
        // A network that was distilled with its guidance takes all steps, over the part of its own timesteps that the strength leaves.
        let distilled = request.guidance_is_embedded
            && request.inputs.strength_steps == StrengthSteps::Share
            && request.scheduler.levels.is_none()
            && request.scheduler.sampler().is_ok_and(|sampler| sampler.name() == "lcm");
        let (mut schedule, kept) = match request.inputs.strength_steps {
            StrengthSteps::Share if distilled && strength > 0.0 => {
                let scheduler = SchedulerConfig { distilled_share: strength, ..request.scheduler.clone() };
                (plan(&scheduler, steps)?, steps)
            }
            // Its pipelines cut with fractions.
            StrengthSteps::Share if self.spec.mmdit.is_some() => {
                (schedule, steps.saturating_sub((steps as f64 - (steps as f64 * strength).min(steps as f64)) as usize))
            }
            StrengthSteps::Share => (schedule, ((steps as f64 * strength) as usize).min(steps)),
            StrengthSteps::ShareAndOne => (schedule, ((strength.min(0.999) * steps as f64) as usize + 1).min(steps)),
            StrengthSteps::All if strength <= 0.0 => (schedule, 0),
            StrengthSteps::All if strength > 0.9999 => (schedule, steps),
            StrengthSteps::All => (plan(&request.scheduler, (steps as f64 / strength) as usize)?, steps),
        };
        if kept == 0 {
            observer.warn(&format!("`strength` {strength} of {steps} steps is less than one: the image is only encoded and decoded"));
            schedule.steps.clear();
            return Ok(Start { latents: clean, schedule, beside: BesideLoop::default() });
        }
        // A schedule may have fewer steps than were asked for, or more.
        let left_out = if request.inputs.strength_steps == StrengthSteps::Share { steps } else { schedule.steps.len() };
        let schedule = schedule.starting_at(left_out.saturating_sub(kept))?;
        if request.inputs.strength_steps == StrengthSteps::All {
            noise.set_brownian(schedule.brownian.and(schedule.positive_ends()));
        }
        let first = schedule.steps.first().map_or(0.0, |step| step.from.sigma);
        Ok(Start { latents: schedule.process.mix(&clean, &drawn, first)?, schedule, beside })
    }

    /// What the encoder says of an image, in f32.
    pub(super) fn encode(
        &self,
        image: &Tensor,
        file: Option<&VaeFile>,
        wrap: Wrap,
        observer: &mut dyn Observer,
    ) -> Result<LatentDistribution> {
        let image = image.to_device(&self.device)?.to_dtype(self.vae_dtype)?;
        let spec = file.map_or(&self.spec.vae, VaeFile::spec);
        let LatentDistribution { mean, deviation } = self.components.with_encoder(file, observer, |encoder, observer| {
            let encode = |image: &Tensor| encoder.encode(image);
            vae_tiling::encode(spec, &image, (self.vae_tiling, wrap), &encode, &mut |remark| observer.warn(remark))
        })?;
        let mean = mean.to_dtype(DType::F32)?;
        check_finite(&mean, || format!("the VAE's latents of the image in {}; try `vae-dtype` f32", self.vae_dtype.as_str()))?;
        Ok(LatentDistribution { mean, deviation: deviation.to_dtype(DType::F32)? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inputs::InputFile;
    use crate::settings::Draft;

    fn file(name: &str, image: ::image::DynamicImage) -> InputFile {
        let mut bytes = std::io::Cursor::new(Vec::new());
        image.write_to(&mut bytes, ::image::ImageFormat::Png).unwrap();
        InputFile::of_bytes(name, bytes.into_inner())
    }

    fn pattern(width: u32, height: u32, of: u32) -> RgbImage {
        RgbImage::from_fn(width, height, |x, y| ::image::Rgb([(x * of % 256) as u8, (y * 7 * of % 256) as u8, ((x ^ y) * of % 256) as u8]))
    }

    fn request(change: impl FnOnce(&mut Draft)) -> Result<Request> {
        Draft::new("a cat").with(change).resolve(&crate::family::well_known("sd15").unwrap())
    }

    /// Holes, edges, single pixels, soft and full ones: everything that people paint.
    fn masks(width: u32, height: u32) -> Vec<GrayImage> {
        let rectangle = |x0: u32, y0: u32, x1: u32, y1: u32, value: u8| {
            GrayImage::from_fn(width, height, |x, y| Luma([if (x0..x1).contains(&x) && (y0..y1).contains(&y) { value } else { 0 }]))
        };
        let mut masks =
            vec![rectangle(0, 0, width, height, 255), rectangle(0, 0, 1, 1, 255), rectangle(width - 1, height - 1, width, height, 255)];
        for i in 0..12 {
            masks.push(rectangle(i * 3, i * 2, i * 3 + 1 + i * 2, i * 2 + 5 + i, 255));
            masks.push(rectangle(0, i * 4, width, i * 4 + 3, 255));
            masks.push(rectangle(i * 5, 0, i * 5 + 2, height, if i % 2 == 0 { 255 } else { 140 }));
        }
        masks.push(GrayImage::from_fn(width, height, |x, _| Luma([(x * 255 / width) as u8])));
        masks
    }

    #[test]
    fn outside_of_the_feathered_mask_no_byte_changes() {
        let (original, generated) = (pattern(64, 48, 5), pattern(64, 48, 11));
        let masks = masks(64, 48);
        assert_eq!(masks.len(), 40);
        for (i, mask) in masks.iter().enumerate() {
            for (blur, area) in [(0.0, "whole"), (4.0, "whole"), (3.0, "masked")] {
                let request = request(|draft| {
                    draft.inputs.init_image = Some(file("a.png", original.clone().into()));
                    draft.inputs.mask = Some(file("m.png", mask.clone().into()));
                    draft.inputs.mask_blur = Some(blur);
                    draft.set("inpaint-area", [area]).unwrap();
                    draft.set_size((area == "masked").then_some((64, 48)));
                })
                .unwrap();
                let start = StartImage::of(&request).unwrap().unwrap();
                let finished = start.finish(generated.clone()).unwrap();
                assert_eq!(finished.dimensions(), (64, 48));
                let feathered = blur_mask(mask, blur);
                for ((kept, was), marked) in finished.pixels().zip(original.pixels()).zip(feathered.pixels()) {
                    assert!(marked.0[0] > 0 || kept == was, "mask {i}, {area}, {blur}");
                }
                if area == "whole" && blur == 0.0 {
                    let new = finished.pixels().zip(generated.pixels()).zip(mask.pixels());
                    assert!(new.into_iter().all(|((kept, new), mask)| mask.0[0] < 255 || kept == new), "mask {i}: what is white is new");
                }
            }
        }
    }

    #[test]
    fn a_grown_image_keeps_its_own_pixels() {
        let original = pattern(61, 43, 5);
        for sides in ["left=20", "right=3,top=9", "all=16", "bottom=64", "left=64,right=64"] {
            let request = request(|draft| {
                draft.inputs.init_image = Some(file("a.png", original.clone().into()));
                draft.set("outpaint", [sides]).unwrap();
            })
            .unwrap();
            let growth = request.inputs.outpaint.unwrap();
            assert!(request.canvas.width.is_multiple_of(8) && request.canvas.height.is_multiple_of(8));
            let start = StartImage::of(&request).unwrap().unwrap();
            let finished = start.finish(pattern(request.canvas.width as u32, request.canvas.height as u32, 3)).unwrap();
            assert_eq!(Some(finished.dimensions()), growth.of((61, 43)), "{sides}");
            let inside = |image: &RgbImage| imageops::crop_imm(image, growth.left, growth.top, 61, 43).to_image();
            assert!(inside(&finished) == original, "{sides}");
            let mut request = request;
            request.inputs.no_composite = true;
            let start = StartImage::of(&request).unwrap().unwrap();
            let generated = pattern(request.canvas.width as u32, request.canvas.height as u32, 3);
            assert!(inside(&start.finish(generated.clone()).unwrap()) == inside(&generated), "{sides}: nothing is put back");
        }
    }

    #[test]
    fn what_does_not_go_together_is_said_before_any_work() {
        let image = || Some(file("a.png", pattern(16, 16, 3).into()));
        let grey = |width: u32, value: u8| Some(file("m.png", GrayImage::from_pixel(width, 16, Luma([value])).into()));
        let said = |change: &dyn Fn(&mut Draft)| request(|draft| change(draft)).unwrap_err().to_string();
        let sentences = [
            (said(&|d| d.inputs.mask = grey(16, 255)), "init-image"),
            (said(&|d| (d.inputs.init_image, d.inputs.mask) = (image(), grey(8, 255))), "8x16"),
            (said(&|d| (d.inputs.init_image, d.inputs.mask) = (image(), grey(16, 0))), "marks nothing"),
            (said(&|d| (d.inputs.init_image, d.inputs.mask) = (image(), image())), "transparent"),
            (said(&|d| (d.inputs.init_image, d.inputs.edit) = (image(), Some(true))), "8 input channels"),
            (said(&|d| d.inputs.init_image = Some(InputFile::of_bytes("a.png", *b"a text"))), "not an image"),
            (said(&|d| (d.inputs.init_image, d.inputs.strength) = (image(), Some(1.5))), "from 0 to 1"),
        ];
        for (said, word) in sentences {
            assert!(said.contains(word) && !said.contains('\n'), "{said}");
        }
    }

    #[test]
    fn an_images_size_is_its_own_unless_another_is_given() {
        let size = |change: &dyn Fn(&mut Draft)| {
            let request = request(|draft| {
                draft.inputs.init_image = Some(file("a.png", pattern(70, 50, 3).into()));
                change(draft);
            });
            let canvas = request.unwrap().canvas;
            (canvas.width, canvas.height)
        };
        assert_eq!(size(&|_| ()), (64, 48));
        assert_eq!(size(&|draft| draft.set_size(Some((128, 64)))), (128, 64));
    }
}
