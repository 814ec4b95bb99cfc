//! The whole way from a request to images: encode the prompt, draw noise, denoise, decode.
//!
//! Images of different prompts, seeds and guidance scales go through the networks together as long as they agree in their
//! [`Request::shape`]; what stands beside an image changes none of its bits, because every op computes a row of the
//! batch as it would compute it alone.
//!
//! The pipeline knows no family: it obeys the spec. It neither reads files nor prints; an [`Observer`] hears what is
//! going on and may stop it.

mod adapted;
mod components;
mod depth;
mod encode;
mod estimate;
mod finite;
mod guided_denoiser;
mod hires;
mod loading;
mod memory;
mod networks;
mod observer;
mod open;
mod pass_networks;
mod passes;
mod prompt;
mod self_attention;
mod start;
mod steering;
mod step_cache;
mod strips;
#[cfg(test)]
mod tests;
mod upscale;
mod vae_tiling;
mod windows;

pub use components::SharedModel;
pub use depth::depth_map;
pub use encode::{EncodedText, PromptText, TextKey};
pub use memory::{batch_bytes, denoising_bytes, fits};
pub use networks::NetworkCache;
pub use observer::{Estimate, Observer, Silent, Stage};
pub use open::PipelineBuilder;
pub use pass_networks::PassNetworks;
pub use prompt::Conditioning;
pub use upscale::UpscalePipeline;
pub use vae_tiling::decoding_bytes;

use crate::adapter::{AdapterCache, AdapterSet};
use crate::extension::{Extension, FreeU, PerturbedAttention, SkipLayers};
use crate::image::{to_rgb, to_rgb_cut_off};
use crate::models::AutoencoderTinyDecoder;
use crate::noise::{ImageNoise, SeededNoise};
use crate::ops::Wrap;
use crate::sampling::{Like, plan};
use crate::settings::{PixelRounding, Request, SamplingSettings, Seed, StepCache, VaeTiling};
use crate::spec::ModelSpec;
use crate::weights::{ModelSource, VaeFile};
use crate::{Error, Result};
use ::image::RgbImage;
use candle_core::{DType, Device, Tensor};
use components::{Components, Placement};
use encode::PassNumber;
use finite::check_finite;
use memory::MemoryPromise;
use passes::{LoadedRefiner, Pass};
use start::{BesideLoop, Start, StartImage};
use std::sync::Arc;
use std::time::Instant;
use tracing::{debug, debug_span};

/// Counts the changes of this program after which a request gives other pixels.
///
/// It is part of what identifies an image in a manifest: raise it with every such change, so that a resumed run generates anew what
/// would not fit to the rest.
pub const OUTPUT_VERSION: u32 = 5;

/// A loaded model, ready to generate.
#[derive(Debug)]
pub struct Pipeline {
    spec: ModelSpec,
    device: Device,
    dtype: DType,
    vae_dtype: DType,
    components: Components,
    vae_tiling: VaeTiling,
    /// Quick images of latents that are still forming.
    tiny: Option<AutoencoderTinyDecoder>,
    adapters: Arc<AdapterCache>,
    networks: Arc<NetworkCache>,
    known_keys: steering::KnownKeys,
    known_depth_maps: steering::KnownDepthMaps,
    refiner: LoadedRefiner,
}

/// One image of a batch that is yet to be generated.
#[derive(Debug, Clone, Copy)]
pub struct BatchItem<'a> {
    /// What is asked for.
    pub request: &'a Request,
    /// The request's texts, encoded.
    pub prompt: &'a Conditioning,
    /// The noise that it starts from.
    pub seed: u64,
}

impl<'a> BatchItem<'a> {
    /// One request's images.
    pub fn of_seeds(request: &'a Request, prompt: &'a Conditioning, seeds: &[u64]) -> Vec<Self> {
        seeds.iter().map(|&seed| Self { request, prompt, seed }).collect()
    }
}

/// A finished image.
#[derive(Debug)]
pub struct GeneratedImage {
    /// The seed that made it.
    pub seed: u64,
    /// The image.
    pub image: RgbImage,
    /// The final latents, `(1, channels, height, width)`, f32, unscaled.
    pub latents: Tensor,
}

/// How a text is encoded by a pipeline with adapters: anew, or as it was before.
pub type TextEncoding<'a> = dyn FnMut(&Pipeline, &PromptText, &AdapterSet, &mut dyn Observer) -> Result<Arc<EncodedText>> + 'a;

/// What the noise of one image is drawn by.
fn image_noise(sampling: &SamplingSettings, seed: u64) -> ImageNoise {
    /// Pixels of a latent, whatever the VAE, where a seed's first size is meant as A1111 means it.
    const FACTOR: usize = 8;
    let variation = match sampling.variation_seed {
        Some(Seed::Is(other)) => Some((other, sampling.variation_strength)),
        _ => None,
    };
    // ComfyUI's steps have a generator of their own in any case.
    let apart = sampling.ensd != 0 || sampling.like == Some(Like::ComfyUi);
    ImageNoise {
        seed,
        variation,
        resized_from: sampling.seed_resize_from.map(|size| (size.height / FACTOR, size.width / FACTOR)),
        steps_seed: apart.then(|| seed.wrapping_add_signed(sampling.ensd)),
        place: sampling.batch_place.map_or((0, 1), |place| (place.index, place.images.get())),
    }
}

/// What works beside the loop for a batch, whose images agree in it.
fn extensions(request: &Request) -> Vec<Box<dyn Extension>> {
    let guidance = &request.guidance;
    let mut extensions: Vec<Box<dyn Extension>> = vec![];
    if guidance.pag_scale != 0.0 {
        let layers = guidance.pag_layers.split(',').map(|layer| layer.trim().to_owned()).collect();
        extensions.push(Box::new(PerturbedAttention::new(layers)));
    }
    if let Some(layers) = guidance.skipped_layers() {
        extensions.push(Box::new(SkipLayers::new(layers)));
    }
    if let Some(factors) = guidance.freeu {
        extensions.push(Box::new(FreeU { backbone: factors.backbone, skip: factors.skip }));
    }
    extensions
}

impl Pipeline {
    /// Reads a model's weights onto `device`.
    ///
    /// # Errors
    /// A tensor is missing or wrong, a tokenizer is unusable, or the observer stops it.
    pub fn load(model: &dyn ModelSource, device: &Device, dtype: DType, vae_dtype: DType, observer: &mut dyn Observer) -> Result<Self> {
        let place = Placement { device: device.clone(), dtype, vae_dtype };
        let components = Components::all(model, None, &AdapterSet::default(), &place, observer)?;
        Ok(Self::of(model.spec().clone(), place, components))
    }

    /// [`Pipeline::load`] of a model that can be read again, as adapters need it.
    ///
    /// # Errors
    /// As [`Pipeline::load`].
    pub fn load_shared(model: SharedModel, device: &Device, dtype: DType, vae_dtype: DType, observer: &mut dyn Observer) -> Result<Self> {
        Self::load_adapted(model, &AdapterSet::default(), device, (dtype, vae_dtype), observer)
    }

    /// [`Pipeline::load_shared`], with the adapters of the first image merged in while the weights are read: they are not read twice.
    /// `(dtype, vae_dtype)` are what the networks and the VAE compute in.
    ///
    /// # Errors
    /// As [`Pipeline::load`].
    pub fn load_adapted(
        model: SharedModel,
        adapters: &AdapterSet,
        device: &Device,
        (dtype, vae_dtype): (DType, DType),
        observer: &mut dyn Observer,
    ) -> Result<Self> {
        let place = Placement { device: device.clone(), dtype, vae_dtype };
        let components = Components::all(&*model, Some(model.clone()), adapters, &place, observer)?;
        Ok(Self::of(model.spec().clone(), place, components))
    }

    /// A pipeline that keeps only the network at work on `device`, and reads it from the model when its turn comes.
    ///
    /// # Errors
    /// The model cannot be generated with. What is wrong with its tensors shows when they are read.
    pub fn in_turn(model: SharedModel, device: &Device, dtype: DType, vae_dtype: DType) -> Result<Self> {
        let place = Placement { device: device.clone(), dtype, vae_dtype };
        Ok(Self::of(model.spec().clone(), place.clone(), Components::in_turn(model, place)))
    }

    fn of(spec: ModelSpec, Placement { device, dtype, vae_dtype }: Placement, components: Components) -> Self {
        Self {
            spec,
            device,
            dtype,
            vae_dtype,
            components,
            vae_tiling: VaeTiling::default(),
            tiny: None,
            adapters: Arc::default(),
            networks: Arc::default(),
            known_keys: steering::KnownKeys::default(),
            known_depth_maps: steering::KnownDepthMaps::default(),
            refiner: LoadedRefiner::default(),
        }
    }

    /// Another model in the same place, whose networks are read when they are wanted.
    fn beside(&self, model: SharedModel, spec: ModelSpec) -> Self {
        let place = Placement { device: self.device.clone(), dtype: self.dtype, vae_dtype: self.vae_dtype };
        Self::of(spec, place.clone(), Components::when_wanted(model, place))
    }

    /// Takes adapters that were opened before.
    pub fn with_adapters(self, adapters: Arc<AdapterCache>) -> Self {
        Self { adapters, ..self }
    }

    /// Takes networks in files beside the model's that were opened before.
    pub fn with_networks(self, networks: Arc<NetworkCache>) -> Self {
        Self { networks, ..self }
    }

    /// Decides whether images are decoded in tiles.
    pub fn with_vae_tiling(self, vae_tiling: VaeTiling) -> Self {
        Self { vae_tiling, ..self }
    }

    /// What the model is.
    pub fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    /// Encodes a request's texts, once for all of its images.
    ///
    /// # Errors
    /// The observer stops it, or a value stops being finite.
    pub fn encode_prompt(&self, request: &Request, observer: &mut dyn Observer) -> Result<Conditioning> {
        let _span = debug_span!("encode_prompt").entered();
        observer.stage(Stage::EncodePrompt)?;
        self.encode_prompt_with(request, observer, &mut |pipeline, text, adapters, observer| {
            pipeline.encode_text(text, adapters, observer).map(Arc::new)
        })
    }

    /// The same, each text encoded by `encode`, which may know it: equal texts with equal [`AdapterSet::text_signature`]s need it once
    /// for a pipeline, which is this one or its refiner.
    ///
    /// # Errors
    /// As [`Pipeline::encode_prompt`].
    pub fn encode_prompt_with(
        &self,
        request: &Request,
        observer: &mut dyn Observer,
        encode: &mut TextEncoding<'_>,
    ) -> Result<Conditioning> {
        let adapters = self.adapters(request)?;
        let mut conditioning = self.condition_pass(request, PassNumber::First, &adapters, observer, encode)?;
        if request.passes.hires.is_some() {
            conditioning.second = Some(Box::new(self.condition_pass(request, PassNumber::Second, &adapters, observer, encode)?));
        }
        if let Some(refiner) = self.refiner(request, observer)? {
            let none = AdapterSet::default();
            let mut refined =
                |pass, observer: &mut dyn Observer| refiner.condition_pass(request, pass, &none, observer, encode).map(Box::new);
            match &mut conditioning.second {
                Some(second) => second.refiner = Some(refined(PassNumber::Second, observer)?),
                None => conditioning.refiner = Some(refined(PassNumber::First, observer)?),
            }
        }
        Ok(conditioning)
    }

    /// What this pipeline's network is told in one pass.
    fn condition_pass(
        &self,
        request: &Request,
        pass: PassNumber,
        adapters: &AdapterSet,
        observer: &mut dyn Observer,
        encode: &mut TextEncoding<'_>,
    ) -> Result<Conditioning> {
        let texts = encode::texts(request, pass)?;
        let encoded = |text: PromptText| encode(self, &text, adapters, observer).map(|encoded| (text, encoded));
        let texts: Vec<_> = texts.into_iter().map(encoded).collect::<Result<_>>()?;
        prompt::condition(&self.spec, request, pass, &texts)
    }

    /// A request's adapters, held against the model and ready to be used. The networks get them when they are used next.
    ///
    /// # Errors
    /// A file cannot be read or does not fit, or the model cannot be read again.
    pub fn adapters(&self, request: &Request) -> Result<Arc<AdapterSet>> {
        let choice = request.adapters.choice();
        match self.components.checkpoint() {
            _ if choice.is_empty() => Ok(Arc::default()),
            Some(model) => self.adapters.prepare(model, &choice),
            None => Err(Error::Model("adapters need a model that can be read again: load the pipeline with Pipeline::load_shared".into())),
        }
    }

    /// Encodes one of the texts of [`Pipeline::encode_prompt_with`].
    ///
    /// # Errors
    /// As [`Pipeline::encode_prompt`].
    pub fn encode_text(&self, text: &PromptText, adapters: &AdapterSet, observer: &mut dyn Observer) -> Result<EncodedText> {
        encode::encode(self, text, adapters, observer)
    }

    /// Generates the images of a batch, all at once.
    ///
    /// # Errors
    /// The observer stops it, the images do not go together, the memory is too small for them, or a value stops being finite; the
    /// message names the stage.
    pub fn generate_batch(&self, batch: &[BatchItem<'_>], observer: &mut dyn Observer) -> Result<Vec<GeneratedImage>> {
        let dtypes = (self.dtype, self.vae_dtype);
        let is_there = |name: &str| self.components.has_control_net(name) || self.known_keys.are_of(name);
        let steering = batch.first().map_or(0, |item| self.networks.bytes(item.request, &self.spec, self.dtype, &is_there));
        let weights = self.components.bytes_of_turn() + steering;
        // The decoder has its turn after the network.
        let beside = |item: &BatchItem<'_>| denoising_bytes(&self.spec, item.request, self.dtype, &self.device) * batch.len() as u64;
        self.components.make_room(steering + batch.first().map_or(0, beside));
        let weights = (weights, self.components.kept_bytes());
        let memory = MemoryPromise::for_batch(&self.spec, &self.device, dtypes, self.vae_tiling, batch, weights)?;
        let strips = batch.first().map(|item| self.strips(item.request)).transpose()?.flatten();
        let generated = match strips {
            None => self.make_batch(batch, observer)?,
            Some(strips) => batch.iter().map(|item| self.grow_in_strips(*item, &strips, observer)).collect::<Result<_>>()?,
        };
        memory.kept();
        Ok(generated)
    }

    /// The images of a batch whose memory is there.
    fn make_batch(&self, batch: &[BatchItem<'_>], observer: &mut dyn Observer) -> Result<Vec<GeneratedImage>> {
        let start = batch.first().map(|item| StartImage::of(item.request)).transpose()?.flatten();
        let latents = self.denoise_from(start.as_ref(), batch, observer)?;
        let vae = batch.first().map(|item| self.vae(item.request)).transpose()?.flatten();
        let mut generated = Vec::new();
        for (i, item) in batch.iter().enumerate() {
            observer.stage(Stage::Decode { done: i, all: batch.len() })?;
            // One image at a time: the decoder's working memory is the largest of all.
            let latents = latents.narrow(0, i, 1)?;
            let decoded = self.decode_observed(&latents, vae.as_deref(), item.request.wrap(), observer)?;
            let image = match item.request.canvas.rounding {
                PixelRounding::Nearest => to_rgb(&decoded)?,
                PixelRounding::Down => to_rgb_cut_off(&decoded)?,
            };
            let image = start.as_ref().map_or(Ok(image.clone()), |start| start.finish(image))?;
            let image = self.upscaled(image, item.request, (i, batch.len()), observer)?;
            generated.push(GeneratedImage { seed: item.seed, image, latents: latents.to_device(&Device::Cpu)? });
        }
        Ok(generated)
    }

    /// The final latents of a batch: the first half of [`Pipeline::generate_batch`].
    ///
    /// # Shapes
    /// `(images, channels, height, width)`, f32, unscaled.
    ///
    /// # Errors
    /// As [`Pipeline::generate_batch`].
    pub fn denoise(&self, batch: &[BatchItem<'_>], observer: &mut dyn Observer) -> Result<Tensor> {
        let start = batch.first().map(|item| StartImage::of(item.request)).transpose()?.flatten();
        self.denoise_from(start.as_ref(), batch, observer)
    }

    fn denoise_from(&self, start: Option<&StartImage>, batch: &[BatchItem<'_>], observer: &mut dyn Observer) -> Result<Tensor> {
        let Some(BatchItem { request, .. }) = batch.first() else { return Err(Error::Image("a batch without images".into())) };
        if batch.iter().any(|other| other.request.shape() != request.shape()) {
            return Err(Error::Image("images of different size, steps or sampler cannot be generated at once".into()));
        }
        if batch.len() > 1 && (request.scheduler.sampler()?.adapts() || request.sampling.cache.is_some_and(StepCache::looks_at_numbers)) {
            // Its steps are as long as the latents allow, and another image's must not matter.
            let alone = |item| self.denoise(std::slice::from_ref(item), observer);
            return Ok(Tensor::cat(&batch.iter().map(alone).collect::<Result<Vec<_>>>()?, 0)?);
        }
        let _span = debug_span!("denoise", images = batch.len(), width = request.canvas.width, height = request.canvas.height).entered();
        let started = Instant::now();
        let schedule = plan(&request.scheduler, request.sampling.steps)?;
        let hires = request.hires_pass()?;
        let factor = self.spec.vae.factor();
        let shape = (batch.len(), self.spec.vae.latent_channels, request.canvas.height / factor, request.canvas.width / factor);
        let images = batch.iter().map(|item| image_noise(&item.request.sampling, item.seed)).collect();
        let mut noise = SeededNoise::of_images(request.sampling.rng, images).with_brownian(schedule.brownian);
        let empty = Tensor::zeros(shape, DType::F32, &self.device)?;
        let image = start;
        let start = match start {
            None => {
                let latents = noise.first(&empty)?.affine(schedule.initial_scale, 0.0)?;
                Start { latents, schedule, beside: BesideLoop::default() }
            }
            Some(start) => self.start(start, request, schedule, &empty, &mut noise, observer)?,
        };
        let first = start.schedule.steps.len();
        let second = hires.as_ref().and_then(|hires| hires.schedule.as_ref()).map_or(0, |schedule| schedule.steps.len());
        let pass = Pass { batch: batch.to_vec(), number: PassNumber::First, start, image, shown: (0, first + second) };
        let latents = self.run_pass(&pass, &mut noise, observer)?;
        let latents = match hires {
            None => latents,
            Some(hires) => self.run_second_pass(&latents, batch, hires, (first, first + second), observer)?,
        };
        debug!(seconds = started.elapsed().as_secs_f64(), "the latents are denoised");
        Ok(latents)
    }

    /// The autoencoder that takes the place of the model's own.
    fn vae(&self, request: &Request) -> Result<Option<Arc<VaeFile>>> {
        request.adapters.vae.as_ref().map(|file| self.networks.vae(file.0.path(), &self.spec)).transpose()
    }

    /// The images of latents: the second half of [`Pipeline::generate_batch`], before it is rounded to bytes.
    ///
    /// # Shapes
    /// `(batch, channels, height, width)` to `(batch, 3, factor × height, factor × width)`, f32, nominally in [-1, 1].
    ///
    /// # Errors
    /// A value is not finite.
    pub fn decode(&self, latents: &Tensor) -> Result<Tensor> {
        self.decode_observed(latents, None, Wrap::default(), &mut Silent)
    }

    fn decode_observed(&self, latents: &Tensor, file: Option<&VaeFile>, wrap: Wrap, observer: &mut dyn Observer) -> Result<Tensor> {
        let _span = debug_span!("decode").entered();
        let started = Instant::now();
        let latents = latents.to_dtype(self.vae_dtype)?;
        let spec = file.map_or(&self.spec.vae, VaeFile::spec);
        let decoded = self.components.with_vae(file, observer, |vae, observer| {
            let decode = |latents: &Tensor| vae.decode(latents);
            vae_tiling::decode(spec, &latents, (self.vae_tiling, wrap), &decode, &mut |remark| observer.warn(remark))
        })?;
        let decoded = decoded.to_dtype(DType::F32)?;
        check_finite(&decoded, || format!("the VAE's image in {}; try `vae-dtype` f32", self.vae_dtype.as_str()))?;
        debug!(seconds = started.elapsed().as_secs_f64(), "the latents are decoded");
        Ok(decoded)
    }
}
