//! The short way in: a model's file or folder becomes a pipeline, and a draft becomes images.

use super::{BatchItem, GeneratedImage, Pipeline, SharedModel, Silent};
use crate::device::{self, DTypeChoice, DeviceChoice};
use crate::settings::{Draft, VaeTiling};
use crate::weights::Checkpoint;
use crate::{Error, Result};
use std::path::Path;
use std::sync::Arc;

/// A model that was opened and is not loaded yet. Nothing but its description was read.
pub struct PipelineBuilder {
    model: SharedModel,
    device: DeviceChoice,
    dtype: DTypeChoice,
    vae_dtype: DTypeChoice,
    vae_tiling: VaeTiling,
    low_memory: bool,
}

impl Pipeline {
    /// Opens a model: a folder as diffusers writes it, or a `.safetensors` file.
    ///
    /// # Errors
    /// There is no model there, or one that sd-gen does not know.
    pub fn open(model: impl AsRef<Path>) -> Result<PipelineBuilder> {
        Ok(PipelineBuilder {
            model: Arc::new(Checkpoint::open(model.as_ref())?),
            device: DeviceChoice::Auto,
            dtype: DTypeChoice::Auto,
            vae_dtype: DTypeChoice::Auto,
            vae_tiling: VaeTiling::Auto,
            low_memory: false,
        })
    }

    /// Generates a draft's images, those of each of its prompts, with everything that it leaves open decided for this model.
    ///
    /// At most as many at once as its `batch_size` says, else one after the other; the images do not depend on it.
    ///
    /// # Errors
    /// A setting's value is bad ([`Error::Setting`]), the memory is too small, or a value stops being finite; the message names the
    /// stage.
    pub fn generate(&self, draft: &Draft) -> Result<Vec<GeneratedImage>> {
        if draft.prompts.is_empty() {
            return Err(Error::setting("prompt", ": give one"));
        }
        let mut images = Vec::new();
        for prompt in &draft.prompts {
            let request = Arc::new(Draft { prompts: vec![prompt.clone()], ..draft.clone() }.resolve(&self.spec)?);
            let prompt = &self.encode_prompt(&request, &mut Silent)?;
            let each: Vec<_> = request.each().collect();
            for part in each.chunks(request.output.batch_size.0.unwrap_or(1)) {
                let batch: Vec<BatchItem<'_>> = part.iter().map(|(request, seed)| BatchItem { request, prompt, seed: *seed }).collect();
                images.extend(self.generate_batch(&batch, &mut Silent)?);
            }
        }
        Ok(images)
    }
}

impl PipelineBuilder {
    /// Where it computes; [`DeviceChoice::Auto`] is the best that was compiled in and is there.
    #[must_use]
    pub fn device(self, device: DeviceChoice) -> Self {
        Self { device, ..self }
    }

    /// What the network and the text encoders compute in; [`DTypeChoice::Auto`] is the fastest that is right on the device.
    #[must_use]
    pub fn dtype(self, dtype: DTypeChoice) -> Self {
        Self { dtype, ..self }
    }

    /// What the VAE computes in; [`DTypeChoice::Auto`] is the same, or f32 where f16 would overflow.
    #[must_use]
    pub fn vae_dtype(self, vae_dtype: DTypeChoice) -> Self {
        Self { vae_dtype, ..self }
    }

    /// Whether images are decoded in tiles.
    #[must_use]
    pub fn vae_tiling(self, vae_tiling: VaeTiling) -> Self {
        Self { vae_tiling, ..self }
    }

    /// Keeps only the network at work in the device's memory; slower.
    #[must_use]
    pub fn low_memory(self, low_memory: bool) -> Self {
        Self { low_memory, ..self }
    }

    /// Reads the weights.
    ///
    /// # Errors
    /// There is no such device, a tensor is missing or wrong, or a tokenizer is unusable.
    pub fn build(self) -> Result<Pipeline> {
        let (device, _) = device::open(self.device)?;
        let dtype = self.dtype.on(&device);
        let vae_dtype = match self.vae_dtype {
            DTypeChoice::Is(dtype) => dtype,
            DTypeChoice::Auto => self.model.spec().vae.dtype_beside(dtype),
        };
        let pipeline = match self.low_memory {
            true => Pipeline::in_turn(self.model, &device, dtype, vae_dtype)?,
            false => Pipeline::load_shared(self.model, &device, dtype, vae_dtype, &mut Silent)?,
        };
        Ok(pipeline.with_vae_tiling(self.vae_tiling))
    }
}
