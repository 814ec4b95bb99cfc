//! The row of skip-layer guidance: the prompt's, by a network without some of its blocks.

use super::Extension;
use crate::Result;
use crate::models::{ModelCall, Patch};
use crate::sampling::{Branch, CallPoint};
use std::ops::Range;
use std::sync::Arc;

/// Leaves blocks of the transformer out for the rows of [`Branch::SkippedLayers`]; what is made of them is the guider's.
///
/// # Source
/// `skip_guidance_layers` in huggingface/diffusers@v0.36:src/diffusers/pipelines/stable_diffusion_3/pipeline_stable_diffusion_3.py;
/// Stability-AI/sd3.5@fbf8f483:sd3_impls.py, `SkipLayerCFGDenoiser`.
#[derive(Debug)]
pub struct SkipLayers {
    layers: Vec<usize>,
}

impl SkipLayers {
    /// For blocks by their numbers, from 0.
    pub fn new(layers: Vec<usize>) -> Self {
        Self { layers }
    }
}

impl Extension for SkipLayers {
    fn before_call(&mut self, _: &CallPoint, branches: &[Branch], call: &mut ModelCall) -> Result<()> {
        let Some(at) = branches.iter().position(|branch| *branch == Branch::SkippedLayers) else { return Ok(()) };
        let images = call.latents.dim(0)? / branches.len().max(1);
        call.patches.push(Arc::new(SkippedBlocks { layers: self.layers.clone(), rows: at * images..(at + 1) * images }));
        Ok(())
    }
}

/// Some blocks do nothing for some rows.
#[derive(Debug)]
struct SkippedBlocks {
    layers: Vec<usize>,
    rows: Range<usize>,
}

impl Patch for SkippedBlocks {
    fn key(&self) -> String {
        format!("without the blocks {:?} for the rows {:?}", self.layers, self.rows)
    }

    fn skipped_rows(&self, block: usize) -> Option<Range<usize>> {
        self.layers.contains(&block).then(|| self.rows.clone())
    }
}
