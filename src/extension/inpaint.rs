//! Making a part of an image anew: what a network without inputs for it needs beside the loop, and what one with such inputs is given.

use super::{Extension, RunContext};
use crate::Result;
use crate::models::ModelCall;
use crate::sampling::{Branch, CallPoint, NoiseProcess, Step};
use candle_core::Tensor;
use std::sync::Arc;

/// Puts the image's own latents back where the mask is black, noised to the level at which the run is.
///
/// # Source
/// The loop of huggingface/diffusers@v0.36:src/diffusers/pipelines/stable_diffusion/pipeline_stable_diffusion_inpaint.py, for networks of
/// four channels: the same noise at every level, and none at the end.
#[derive(Debug, Clone)]
pub struct KeepUnmaskedLatents {
    /// `(images, channels, height, width)`.
    clean: Tensor,
    noise: Tensor,
    /// 1 where latents are made anew, `(1, 1, height, width)`.
    mask: Tensor,
    run: Option<RunFacts>,
    /// The step of the last call.
    last_step: Option<usize>,
}

#[derive(Debug, Clone)]
struct RunFacts {
    process: Arc<dyn NoiseProcess>,
    final_scale: f64,
    /// Sigmas at which the steps begin.
    from: Vec<f64>,
}

impl KeepUnmaskedLatents {
    /// For clean latents, the noise that the run starts from, and a mask.
    pub fn new(clean: Tensor, noise: Tensor, mask: Tensor) -> Self {
        Self { clean, noise, mask, run: None, last_step: None }
    }

    fn blend(&self, latents: &Tensor, kept: &Tensor) -> Result<Tensor> {
        let rest = self.mask.affine(-1.0, 1.0)?;
        Ok((latents.broadcast_mul(&self.mask)? + kept.broadcast_mul(&rest)?)?)
    }
}

impl Extension for KeepUnmaskedLatents {
    fn prepare(&mut self, run: &RunContext<'_>) -> Result<()> {
        let schedule = run.schedule;
        let from = schedule.steps.iter().map(|step| step.from.sigma).collect();
        self.run = Some(RunFacts { process: Arc::clone(&schedule.process), final_scale: schedule.final_scale, from });
        Ok(())
    }

    /// Between the calls of one step, as diffusers counts each of them as a step.
    fn before_denoise(&mut self, at: &CallPoint, latents: Tensor) -> Result<Tensor> {
        let Some(run) = self.run.as_ref().filter(|_| self.last_step == Some(at.step.index)) else {
            self.last_step = Some(at.step.index);
            return Ok(latents);
        };
        self.blend(&latents, &run.process.mix(&self.clean, &self.noise, at.level.sigma)?)
    }

    fn after_step(&mut self, step: &Step, latents: Tensor) -> Result<Tensor> {
        let Some(run) = &self.run else { return Ok(latents) };
        let Some(next) = run.from.get(step.index + 1) else {
            // What the loop multiplies the last latents by is taken out again.
            return self.blend(&latents, &self.clean.affine(1.0 / run.final_scale, 0.0)?);
        };
        let kept = run.process.mix(&self.clean, &self.noise, *next)?;
        // PNDM's second step begins, where its first ones were cut off, at a lower level than its first ended at, with the same
        // variance-preserving latents.
        let norm = |sigma: f64| (1.0 + sigma * sigma).sqrt();
        let kept = if *next == step.to.sigma { kept } else { kept.affine(norm(step.to.sigma) / norm(*next), 0.0)? };
        self.blend(&latents, &kept)
    }
}

/// Gives the network more channels beside the latents: a mask and a masked image (inpainting), or an image to change (editing).
#[derive(Debug, Clone)]
pub struct MoreChannels {
    /// `(images, more channels, height, width)`.
    channels: Tensor,
    /// The branch that sees zeros instead.
    blind: Option<Branch>,
    /// The channels of all rows, in the network's dtype, for the branches of the last call.
    rows: Option<(Vec<Branch>, Tensor)>,
}

impl MoreChannels {
    /// The same channels for every branch.
    pub fn new(channels: Tensor) -> Self {
        Self { channels, blind: None, rows: None }
    }

    /// Zeros for one branch.
    pub fn blind_in(self, branch: Branch) -> Self {
        Self { blind: Some(branch), ..self }
    }
}

impl Extension for MoreChannels {
    fn before_call(&mut self, _: &CallPoint, branches: &[Branch], call: &mut ModelCall) -> Result<()> {
        let rows = match self.rows.take().filter(|(known, _)| known == branches) {
            Some((_, rows)) => rows,
            None => {
                let each =
                    |branch: &Branch| if Some(*branch) == self.blind { self.channels.zeros_like() } else { Ok(self.channels.clone()) };
                let parts = branches.iter().map(each).collect::<candle_core::Result<Vec<_>>>()?;
                Tensor::cat(&parts, 0)?.to_dtype(call.latents.dtype())?
            }
        };
        call.concat = Some(rows.clone());
        self.rows = Some((branches.to_vec(), rows));
        Ok(())
    }
}
