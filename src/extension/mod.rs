//! What works beside the denoising loop: it may change what the network is called with, the estimates, and the latents between steps.
//!
//! An extension never calls the network for the loop, steps or decides on noise levels; those are the solver's and the schedule's. The
//! order of a run's extensions is the order in which they act.

mod control;
mod free_u;
mod image_prompt;
mod inpaint;
mod perturbed_attention;
mod skip_layers;

pub use control::{Control, UnionControl};
pub use free_u::FreeU;
pub use image_prompt::ImagePrompting;
pub use inpaint::{KeepUnmaskedLatents, MoreChannels};
pub use perturbed_attention::PerturbedAttention;
pub use skip_layers::SkipLayers;

use crate::Result;
use crate::models::ModelCall;
use crate::sampling::{Branch, CallPoint, Denoised, Schedule, Step};
use candle_core::{DType, Tensor};

/// The run that extensions work in.
#[derive(Debug)]
pub struct RunContext<'a> {
    /// Its steps, and the process that mixes noise into latents.
    pub schedule: &'a Schedule,
    /// The latents that it starts from, `(images, channels, height, width)`, f32, on the device that it runs on.
    pub latents: &'a Tensor,
    /// What the network computes in.
    pub dtype: DType,
}

/// Works beside the loop. Every hook may be left out.
pub trait Extension: Send + std::fmt::Debug {
    /// Before the first step.
    ///
    /// # Errors
    /// What it needs for this run is not there.
    fn prepare(&mut self, _run: &RunContext<'_>) -> Result<()> {
        Ok(())
    }

    /// The latents that the denoiser was asked about, before they are scaled for the network.
    ///
    /// # Errors
    /// It cannot go on.
    fn before_denoise(&mut self, _at: &CallPoint, latents: Tensor) -> Result<Tensor> {
        Ok(latents)
    }

    /// A call that is about to be made. Its rows are those of all images for the first branch, then for the second, and so on.
    ///
    /// # Errors
    /// It cannot go on.
    fn before_call(&mut self, _at: &CallPoint, _branches: &[Branch], _call: &mut ModelCall) -> Result<()> {
        Ok(())
    }

    /// The estimates that a call gave.
    ///
    /// # Errors
    /// It cannot go on.
    fn after_denoise(&mut self, _at: &CallPoint, denoised: Denoised) -> Result<Denoised> {
        Ok(denoised)
    }

    /// The latents at the end of a step, at `step.to`; the run goes on from what is given back.
    ///
    /// # Errors
    /// It cannot go on.
    fn after_step(&mut self, _step: &Step, latents: Tensor) -> Result<Tensor> {
        Ok(latents)
    }
}
