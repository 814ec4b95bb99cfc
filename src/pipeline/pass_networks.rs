//! The networks that passes after the first one want: refiners and upscalers, opened once for all images.

use super::UpscalePipeline;
use crate::inputs::InputFile;
use crate::settings::ModelFile;
use crate::spec::ModelSpec;
use crate::weights::{Checkpoint, UpscalerFile};
use crate::{Error, Result};
use candle_core::{DType, Device};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

/// Refiners and upscalers that were opened.
#[derive(Debug, Default)]
pub struct PassNetworks {
    refiners: Mutex<Vec<(PathBuf, Arc<Checkpoint>)>>,
    upscalers: Mutex<Vec<(PathBuf, Device, Arc<UpscalePipeline>)>>,
}

impl PassNetworks {
    /// Opens a model that is to take over from another one.
    ///
    /// # Errors
    /// It is no model, or none that understands the other's latents.
    pub fn refiner(&self, file: &ModelFile, base: &ModelSpec) -> Result<Arc<Checkpoint>> {
        let mut refiners = self.refiners.lock().unwrap_or_else(PoisonError::into_inner);
        let known = refiners.iter().find(|(path, _)| *path == file.path).map(|(_, model)| Arc::clone(model));
        let model = match known {
            Some(model) => model,
            None => {
                let model = Arc::new(Checkpoint::open(&file.path)?);
                refiners.push((file.path.clone(), Arc::clone(&model)));
                model
            }
        };
        match unfit(base, model.spec()) {
            None => Ok(model),
            Some(why) => Err(Error::setting("refiner", format!(" {}: {why}", file.path.display()))),
        }
    }

    /// Opens a network that enlarges images.
    ///
    /// # Errors
    /// It is none that is known, or is not whole.
    pub fn upscaler(&self, file: &InputFile, device: &Device) -> Result<Arc<UpscalePipeline>> {
        let mut upscalers = self.upscalers.lock().unwrap_or_else(PoisonError::into_inner);
        let is = |(path, on, _): &&(PathBuf, Device, Arc<UpscalePipeline>)| path == file.path() && on.same_device(device);
        if let Some((_, _, upscaler)) = upscalers.iter().find(is) {
            return Ok(Arc::clone(upscaler));
        }
        let name = file.path().display().to_string();
        // Rounding in fewer bits shows in flat areas, and these networks are small.
        let upscaler = Arc::new(UpscalePipeline::load(&UpscalerFile::open(file.path())?, &name, device, DType::F32)?);
        upscalers.push((file.path().to_owned(), device.clone(), Arc::clone(&upscaler)));
        Ok(upscaler)
    }
}

/// Why a model cannot take over from another one; the end of a sentence.
fn unfit(base: &ModelSpec, refiner: &ModelSpec) -> Option<String> {
    let latents = |spec: &ModelSpec| (spec.vae.latent_channels, spec.vae.factor());
    if latents(base) != latents(refiner) {
        return Some("its latents are not those of the model; take one of the same kind".into());
    }
    if refiner.unet.in_channels != refiner.vae.latent_channels {
        return Some("repaints or edits images, and a refiner takes latents alone".into());
    }
    let predicts = |spec: &ModelSpec| spec.scheduler.prediction().ok();
    if predicts(base) != predicts(refiner) {
        return Some("predicts another thing than the model (noise or velocity); take one that predicts the same".into());
    }
    if (base.unet.guidance_embed_dim > 0) != (refiner.unet.guidance_embed_dim > 0) {
        return Some("only one of the two was distilled with the guidance scale".into());
    }
    None
}
