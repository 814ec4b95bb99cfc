//! Networks that steer a run by an image: their files, what they see, and what works beside the loop.

use super::Pipeline;
use super::depth::depth_map;
use super::finite::check_finite;
use super::loading::read_from;
use super::networks::kind_of;
use super::observer::Observer;
use super::start::StartImage;
use crate::extension::{Control, Extension, ImagePrompting, UnionControl};
use crate::image::{ResizeFilter, resize};
use crate::models::{ClipVisionModel, ImageKeys, IpAdapter, Scope, ShownControl};
use crate::ops::Wrap;
use crate::settings::{ControlChoice, ImagePrompt, Request};
use crate::spec::ClipVisionSpec;
use crate::weights::{ControlNetFile, ImageEncoderFile, IpAdapterFile, TensorSource};
use crate::{Error, Result};
use ::image::{RgbImage, imageops};
use candle_core::{Device, Tensor};
use std::sync::{Arc, Mutex, PoisonError};

/// What CLIP takes away from red, green and blue, and divides them by.
const CLIP_MEAN: [f32; 3] = [0.481_454_66, 0.457_827_5, 0.408_210_73];
const CLIP_DEVIATION: [f32; 3] = [0.268_629_54, 0.261_302_6, 0.275_777_1];

/// An image's keys at every site of the UNet, and those of none.
#[derive(Debug)]
pub(super) struct PromptKeys {
    image: Vec<ImageKeys>,
    nothing: Vec<ImageKeys>,
}

/// What was made last, by what it was made of, at most `MOST`: most images of a batch share it.
#[derive(Debug)]
pub(super) struct LastMade<K, V, const MOST: usize>(Mutex<Vec<(K, V)>>);

/// Keys by the names of adapter and encoder and the image's hash.
pub(super) type KnownKeys = LastMade<String, Arc<PromptKeys>, 8>;

/// Maps of depth by the network's name and the image.
pub(super) type KnownDepthMaps = LastMade<(String, RgbImage), RgbImage, 4>;

impl<K, V, const MOST: usize> Default for LastMade<K, V, MOST> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<K: PartialEq, V: Clone, const MOST: usize> LastMade<K, V, MOST> {
    /// What is known of `key`, or what `make` makes.
    fn get(&self, key: K, make: impl FnOnce(&K) -> Result<V>) -> Result<V> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, known)) = all.iter().find(|(other, _)| *other == key) {
            return Ok(known.clone());
        }
        let made = make(&key)?;
        if all.len() >= MOST {
            all.remove(0);
        }
        all.push((key, made.clone()));
        Ok(made)
    }
}

impl KnownKeys {
    /// Keys were computed by an adapter of this name.
    pub(super) fn are_of(&self, adapter: &str) -> bool {
        let begins = format!("{adapter} ");
        self.0.lock().unwrap_or_else(PoisonError::into_inner).iter().any(|(name, _)| name.starts_with(&begins))
    }
}

/// A ControlNet that is wanted, and what it is shown.
struct WantedControl<'a> {
    choice: &'a ControlChoice,
    file: Arc<ControlNetFile>,
    image: RgbImage,
    /// Which of its kinds the image is, where the network takes several.
    kind: Option<usize>,
}

/// Everything that steers one batch, opened and read, before a network is loaded.
#[derive(Default)]
pub(super) struct Steering<'a> {
    controls: Vec<WantedControl<'a>>,
    prompts: Vec<(&'a ImagePrompt, Arc<PromptKeys>)>,
    wrap: Wrap,
}

impl Pipeline {
    /// Opens what steers a request. What weighs nothing is left out.
    pub(super) fn steering<'a>(
        &self,
        request: &'a Request,
        start: Option<&StartImage>,
        size: (usize, usize),
        observer: &mut dyn Observer,
    ) -> Result<Steering<'a>> {
        let mut steering = Steering { wrap: request.wrap(), ..Steering::default() };
        let size = (size.0 as u32, size.1 as u32);
        for choice in request.adapters.control.iter().filter(|choice| choice.weight != 0.0) {
            let file = self.networks.control_net(choice.model.path(), &self.spec)?;
            let given = choice.read_image()?.rgb;
            // Where a part of the start image is made anew, the network sees that part.
            let part = start.and_then(|start| start.part(&given, size));
            let image = part.unwrap_or_else(|| resize(&given, size.0, size.1, ResizeFilter::Lanczos));
            let image = match choice.preprocess {
                Some(how) => how.of(&image, |image| self.known_depth_map(choice, image, observer))?,
                None => image,
            };
            let kind = kind_of(choice, &file)?;
            steering.controls.push(WantedControl { choice, file, image, kind });
        }
        for choice in request.adapters.ip_adapter.iter().filter(|choice| choice.weight != 0.0) {
            steering.prompts.push((choice, self.prompt_keys(choice, observer)?));
        }
        Ok(steering)
    }

    /// The map of an image's depth.
    fn known_depth_map(&self, choice: &ControlChoice, image: &RgbImage, observer: &mut dyn Observer) -> Result<RgbImage> {
        let file = self.networks.depth(choice)?;
        let make = |(_, image): &(String, RgbImage)| depth_map(&file, image, &self.device, observer);
        self.known_depth_maps.get((file.name().to_owned(), image.clone()), make)
    }

    /// What the UNet attends to of an image. The encoder is there only as long as it works.
    fn prompt_keys(&self, choice: &ImagePrompt, observer: &mut dyn Observer) -> Result<Arc<PromptKeys>> {
        let adapter = self.networks.ip_adapter(choice.model.path(), &self.spec)?;
        let file = self.networks.image_encoder(choice)?;
        let known = format!("{} {} {}", adapter.name(), file.name(), choice.image.sha256().unwrap_or_default());
        self.known_keys.get(known, |_| Ok(Arc::new(self.computed_keys(choice, &file, &adapter, observer)?)))
    }

    fn computed_keys(
        &self,
        choice: &ImagePrompt,
        file: &ImageEncoderFile,
        adapter: &IpAdapterFile,
        observer: &mut dyn Observer,
    ) -> Result<PromptKeys> {
        let image = pixels(&choice.read_image()?.rgb, file.spec())?.to_device(&self.device)?.to_dtype(self.dtype)?;
        let load = |source: &dyn TensorSource| ClipVisionModel::load(&Scope::root(source, self.dtype, &self.device), file.spec());
        let encoder = read_from("image encoder", file, Some(file.parameters()), self.dtype, observer, load)?;
        let (seen, zeros) = (encoder.forward(&image)?, encoder.forward(&image.zeros_like()?)?);
        drop(encoder);
        let load = |source: &dyn TensorSource| IpAdapter::load(&Scope::root(source, self.dtype, &self.device), adapter.spec());
        let network = read_from("IP-Adapter", adapter, Some(adapter.parameters()), self.dtype, observer, load)?;
        let keys = PromptKeys { image: network.keys(&seen)?, nothing: network.keys(&network.nothing(&zeros)?)? };
        if let Some(first) = keys.image.first() {
            check_finite(&first.key, || format!("the IP-Adapter in {}; try `dtype` f32", self.dtype.as_str()))?;
        }
        Ok(keys)
    }

    /// Loads what steers a run that is about to begin.
    pub(super) fn steered(&self, steering: &Steering<'_>, observer: &mut dyn Observer) -> Result<Vec<Box<dyn Extension>>> {
        let files: Vec<&ControlNetFile> = steering.controls.iter().map(|control| &*control.file).collect();
        let networks = self.components.control_nets(&files, observer)?;
        let mut extensions: Vec<Box<dyn Extension>> = Vec::new();
        // All images of one network for several kinds are shown to it together.
        let mut unions: Vec<(&str, UnionControl)> = Vec::new();
        for (WantedControl { choice, image, kind, file }, network) in steering.controls.iter().zip(networks) {
            let image = levels(image)?.to_device(&self.device)?.to_dtype(self.dtype)?;
            let hint = network.hint(&image, steering.wrap)?;
            check_finite(&hint, || format!("the ControlNet in {}; try `dtype` f32", self.dtype.as_str()))?;
            let Some(kind) = *kind else {
                extensions.push(Box::new(Control::new(network, hint, choice.weight, choice.range)));
                continue;
            };
            let shown = ShownControl { hint, kind, weight: choice.weight };
            match unions.iter_mut().find(|(name, _)| *name == file.name()) {
                Some((_, union)) => union.show(shown, choice.range),
                None => {
                    let mut union = UnionControl::new(network);
                    union.show(shown, choice.range);
                    unions.push((file.name(), union));
                }
            }
        }
        extensions.extend(unions.into_iter().map(|(_, union)| Box::new(union) as Box<dyn Extension>));
        for (id, (choice, keys)) in steering.prompts.iter().enumerate() {
            let (image, nothing) = (keys.image.clone(), keys.nothing.clone());
            extensions.push(Box::new(ImagePrompting::new(id, image, nothing, choice.weight, choice.range)));
        }
        Ok(extensions)
    }
}

/// An image in [0, 1], `(1, 3, height, width)`.
fn levels(image: &RgbImage) -> Result<Tensor> {
    let (width, height) = (image.width() as usize, image.height() as usize);
    if width * height == 0 {
        return Err(Error::Image("an image without pixels".into()));
    }
    let values: Vec<f32> = image.as_raw().iter().map(|level| f32::from(*level) / 255.0).collect();
    Ok(Tensor::from_vec(values, (1, height, width, 3), &Device::Cpu)?.permute((0, 3, 1, 2))?.contiguous()?)
}

/// An image as CLIP was trained to see it: its middle, at the size of the encoder, normalised.
///
/// # Source
/// `CLIPImageProcessor` in huggingface/transformers@v4.57:src/transformers/models/clip/image_processing_clip.py
fn pixels(image: &RgbImage, spec: &ClipVisionSpec) -> Result<Tensor> {
    let side = spec.image_size as u32;
    let (width, height) = image.dimensions();
    let scaled = |long: u32, short: u32| (f64::from(side) * f64::from(long) / f64::from(short.max(1))) as u32;
    let (width, height) = if width <= height { (side, scaled(height, width)) } else { (scaled(width, height), side) };
    let resized = resize(image, width, height, ResizeFilter::Bicubic);
    let middle = imageops::crop_imm(&resized, (width - side) / 2, (height - side) / 2, side, side).to_image();
    let channel = |values: [f32; 3]| Tensor::from_slice(&values, (1, 3, 1, 1), &Device::Cpu);
    Ok(levels(&middle)?.broadcast_sub(&channel(CLIP_MEAN)?)?.broadcast_div(&channel(CLIP_DEVIATION)?)?)
}
