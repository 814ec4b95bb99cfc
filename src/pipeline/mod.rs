//! The whole way from a request to pictures: encode the prompt, draw noise, denoise, decode.
//!
//! Pictures of different prompts, seeds and guidance scales go through the networks together as long as they agree in their
//! [`GenerationRequest::shape`]; what stands beside a picture changes none of its bits, because every op computes a row of the
//! batch as it would compute it alone.
//!
//! The pipeline knows no family: it obeys the spec. It neither reads files nor prints; an [`Observer`] hears what is
//! going on and may stop it.

mod guided_denoiser;
mod observer;
mod prompt;

pub use observer::{Observer, Silent, Stage};
pub use prompt::{Conditioning, EncodedText, PromptText, texts as prompt_texts};

use crate::image::to_rgb;
use crate::models::{AutoencoderKLDecoder, Scope, UNet2DCondition};
use crate::noise::SeededNoise;
use crate::request::GenerationRequest;
use crate::schedulers::{NoiseSource, plan, sample};
use crate::spec::ModelSpec;
use crate::text::{ClipTokenizer, TextEncoder};
use crate::weights::{Component, ModelSource};
use crate::{Error, Result};
use ::image::RgbImage;
use candle_core::{DType, Device, Tensor};
use guided_denoiser::GuidedDenoiser;

/// Counts the changes of this program after which a request gives other pixels.
///
/// It is part of what identifies a picture in a manifest: raise it with every such change, so that a resumed run paints anew what
/// would not fit to the rest.
pub const PAINTS: u32 = 1;

/// A loaded model, ready to paint.
#[derive(Debug)]
pub struct Pipeline {
    spec: ModelSpec,
    device: Device,
    dtype: DType,
    vae_dtype: DType,
    text_encoders: Vec<TextEncoder>,
    unet: UNet2DCondition,
    vae: AutoencoderKLDecoder,
}

/// One picture of a batch that is yet to be painted.
#[derive(Debug, Clone, Copy)]
pub struct Sketch<'a> {
    /// What is asked for.
    pub request: &'a GenerationRequest,
    /// The request's texts, encoded.
    pub prompt: &'a Conditioning,
    /// The noise that it starts from.
    pub seed: u64,
}

impl<'a> Sketch<'a> {
    /// One request's pictures.
    pub fn of_seeds(request: &'a GenerationRequest, prompt: &'a Conditioning, seeds: &[u64]) -> Vec<Self> {
        seeds.iter().map(|&seed| Self { request, prompt, seed }).collect()
    }
}

/// A finished picture.
#[derive(Debug)]
pub struct Painted {
    /// The seed that made it.
    pub seed: u64,
    /// The picture.
    pub picture: RgbImage,
    /// The final latents, `(1, channels, height, width)`, f32, unscaled.
    pub latents: Tensor,
}

impl Pipeline {
    /// Reads a model's weights onto `device`.
    ///
    /// # Errors
    /// A tensor is missing or wrong, a tokenizer is unusable, or the observer stops it.
    pub fn load(model: &dyn ModelSource, device: &Device, dtype: DType, vae_dtype: DType, observer: &mut dyn Observer) -> Result<Self> {
        let spec = model.spec().clone();
        if spec.unet.in_channels != spec.vae.latent_channels {
            return Err(Error::Model(format!(
                "{}: the UNet takes {} channels; models that repaint (9) or edit (8) need a picture to start from, which this version cannot give yet",
                model.name(),
                spec.unet.in_channels
            )));
        }
        let mut text_encoders = Vec::new();
        for (i, encoder) in spec.text_encoders.iter().enumerate() {
            observer.stage(Stage::Load { component: "text encoder" })?;
            let length = encoder.clip.max_positions;
            let tokenizer = match model.tokenizer(i) {
                Some(files) => {
                    let length = files.model_max_length.unwrap_or(length).min(length);
                    ClipTokenizer::from_files(model.name(), &files.vocab_json, &files.merges, &encoder.pad_token, length)?
                }
                None => ClipTokenizer::clip(&encoder.pad_token, length)?,
            };
            let source = model.tensors(Component::TextEncoder(i));
            text_encoders.push(TextEncoder::load(&Scope::root(&*source, dtype, device), encoder, tokenizer)?);
        }
        observer.stage(Stage::Load { component: "UNet" })?;
        let unet = UNet2DCondition::load(&Scope::root(&*model.tensors(Component::UNet), dtype, device), &spec.unet)?;
        observer.stage(Stage::Load { component: "VAE" })?;
        let vae = AutoencoderKLDecoder::load(&Scope::root(&*model.tensors(Component::Vae), vae_dtype, device), &spec.vae)?;
        Ok(Self { spec, device: device.clone(), dtype, vae_dtype, text_encoders, unet, vae })
    }

    /// What the model is.
    pub fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    /// Encodes a request's texts, once for all of its pictures.
    ///
    /// # Errors
    /// The observer stops it, or a value stops being finite.
    pub fn encode_prompt(&self, request: &GenerationRequest, observer: &mut dyn Observer) -> Result<Conditioning> {
        observer.stage(Stage::EncodePrompt)?;
        let texts = prompt::texts(request);
        let encoded: Vec<EncodedText> = texts.iter().map(|text| self.encode_text(text, observer)).collect::<Result<_>>()?;
        self.condition(request, &encoded.iter().collect::<Vec<_>>())
    }

    /// Encodes one of the texts that [`prompt_texts`] names; equal texts of several requests need it once.
    ///
    /// # Errors
    /// As [`Pipeline::encode_prompt`].
    pub fn encode_text(&self, text: &PromptText<'_>, observer: &mut dyn Observer) -> Result<EncodedText> {
        prompt::encode(self, text, observer)
    }

    /// What the UNet is told, from the encodings of [`prompt_texts`] in their order.
    ///
    /// # Errors
    /// The texts are not those of the request.
    pub fn condition(&self, request: &GenerationRequest, texts: &[&EncodedText]) -> Result<Conditioning> {
        prompt::condition(&self.spec, request, texts)
    }

    /// Paints the pictures of a batch, all at once.
    ///
    /// # Errors
    /// The observer stops it, the pictures do not go together, or a value stops being finite; the message names the stage.
    pub fn paint(&self, batch: &[Sketch<'_>], observer: &mut dyn Observer) -> Result<Vec<Painted>> {
        let latents = self.denoise(batch, observer)?;
        observer.stage(Stage::Decode)?;
        let mut painted = Vec::new();
        for (i, sketch) in batch.iter().enumerate() {
            // One picture at a time: the decoder's working memory is the largest of all.
            let latents = latents.narrow(0, i, 1)?;
            let picture = to_rgb(&self.decode(&latents)?)?;
            painted.push(Painted { seed: sketch.seed, picture, latents: latents.to_device(&Device::Cpu)? });
        }
        Ok(painted)
    }

    /// The final latents of a batch: the first half of [`Pipeline::paint`].
    ///
    /// # Shapes
    /// `(pictures, channels, height, width)`, f32, unscaled.
    ///
    /// # Errors
    /// As [`Pipeline::paint`].
    pub fn denoise(&self, batch: &[Sketch<'_>], observer: &mut dyn Observer) -> Result<Tensor> {
        let Some(Sketch { request, .. }) = batch.first() else { return Err(Error::Picture("a batch without pictures".into())) };
        if batch.iter().any(|other| other.request.shape() != request.shape()) {
            return Err(Error::Picture("pictures of different size, steps or sampler cannot be painted at once".into()));
        }
        let schedule = plan(&request.scheduler, request.steps)?;
        let factor = self.spec.vae.factor();
        let shape = (batch.len(), self.spec.vae.latent_channels, request.height / factor, request.width / factor);
        let seeds: Vec<u64> = batch.iter().map(|sketch| sketch.seed).collect();
        let mut noise = SeededNoise::new(request.rng, &seeds);
        let latents = noise.noise_like(&Tensor::zeros(shape, DType::F32, &self.device)?)?.affine(schedule.initial_scale, 0.0)?;
        observer.stage(Stage::Denoise { step: 0, steps: schedule.steps.len(), pictures: &seeds })?;
        let mut denoiser = GuidedDenoiser::new(&self.unet, self.dtype, schedule.prediction, batch)?;
        let steps = schedule.steps.len();
        sample(&schedule, &latents, &mut denoiser, &mut noise, &mut |step, latents| {
            let (number, steps) = (step.index + 1, steps);
            check_finite(latents, || format!("the sampler's step {number} of {steps}; try another --sampler or more --steps"))?;
            observer.stage(Stage::Denoise { step: step.index + 1, steps, pictures: &seeds })
        })
    }

    /// The pictures of latents: the second half of [`Pipeline::paint`], before it is rounded to bytes.
    ///
    /// # Shapes
    /// `(batch, channels, height, width)` to `(batch, 3, factor × height, factor × width)`, f32, nominally in [-1, 1].
    ///
    /// # Errors
    /// A value is not finite.
    pub fn decode(&self, latents: &Tensor) -> Result<Tensor> {
        let decoded = self.vae.decode(&latents.to_dtype(self.vae_dtype)?)?.to_dtype(DType::F32)?;
        check_finite(&decoded, || format!("the VAE's picture in {}; try --vae-dtype f32", self.vae_dtype.as_str()))?;
        Ok(decoded)
    }
}

/// Fails when a value is NaN or infinite; `stage` says where, and what to try.
fn check_finite(tensor: &Tensor, stage: impl FnOnce() -> String) -> Result<()> {
    // One bad value makes the sum bad. The mean keeps large but finite values from overflowing.
    let mean = tensor.to_dtype(DType::F32)?.affine(1.0 / tensor.elem_count().max(1) as f64, 0.0)?.sum_all()?.to_scalar::<f32>()?;
    if mean.is_finite() {
        return Ok(());
    }
    Err(Error::Picture(format!("values that are not numbers (NaN or infinity) arose in {}", stage())))
}
