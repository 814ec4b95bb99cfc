//! An image as a prompt: attention to it beside the attention to the text.

use super::control::ActiveCalls;
use super::{Extension, RunContext};
use crate::Result;
use crate::models::{AttentionSite, ImageKeys, ModelCall, Patch};
use crate::ops::{NamedTensors, attention};
use crate::sampling::{Branch, CallPoint};
use candle_core::Tensor;
use std::sync::Arc;

/// Adds attention to an image, for the negative prompt's rows attention to none.
///
/// # Source
/// Ye et al. 2023, arXiv:2308.06721, equation 5.
#[derive(Debug)]
pub struct ImagePrompting {
    /// Tells it from others of the same run.
    id: usize,
    image: Vec<ImageKeys>,
    nothing: Vec<ImageKeys>,
    weight: f64,
    active: ActiveCalls,
    /// For rows of these branches and as many images.
    last: Option<(Vec<Branch>, usize, Arc<AttentionToImage>)>,
}

impl ImagePrompting {
    /// For the keys of an image and those of none.
    pub fn new(id: usize, image: Vec<ImageKeys>, nothing: Vec<ImageKeys>, weight: f64, range: (f64, f64)) -> Self {
        Self { id, image, nothing, weight, active: ActiveCalls::in_range(range), last: None }
    }

    fn patch(&self, branches: &[Branch], images: usize) -> Result<AttentionToImage> {
        let mut inputs = Vec::new();
        for (image, nothing) in self.image.iter().zip(&self.nothing) {
            let site = &image.site;
            for (part, image, nothing) in [("key", &image.key, &nothing.key), ("value", &image.value, &nothing.value)] {
                let (_, tokens, channels) = image.dims3()?;
                let row = |branch: &Branch| if *branch == Branch::Negative { nothing } else { image };
                let rows = branches.iter().map(|branch| row(branch).broadcast_as((images, tokens, channels))?.contiguous());
                let rows = rows.collect::<candle_core::Result<Vec<_>>>()?;
                inputs.push((name(self.id, part, site), Tensor::cat(&rows, 0)?));
            }
        }
        Ok(AttentionToImage { id: self.id, weight: self.weight, inputs })
    }
}

fn name(id: usize, part: &str, site: &str) -> String {
    format!("image {id} {part} {site}")
}

impl Extension for ImagePrompting {
    fn prepare(&mut self, run: &RunContext<'_>) -> Result<()> {
        self.active.prepare(run);
        Ok(())
    }

    fn before_call(&mut self, at: &CallPoint, branches: &[Branch], call: &mut ModelCall) -> Result<()> {
        if !self.active.is_on(at) {
            return Ok(());
        }
        let images = call.latents.dim(0)? / branches.len().max(1);
        let known = self.last.as_ref().filter(|(last, count, _)| last == branches && *count == images).map(|(.., patch)| patch.clone());
        let patch = match known {
            Some(patch) => patch,
            None => {
                let patch = Arc::new(self.patch(branches, images)?);
                self.last = Some((branches.to_vec(), images, patch.clone()));
                patch
            }
        };
        call.patches.push(patch);
        Ok(())
    }
}

/// What is added to the attention to the text.
#[derive(Debug)]
struct AttentionToImage {
    id: usize,
    weight: f64,
    inputs: Vec<(String, Tensor)>,
}

impl Patch for AttentionToImage {
    fn key(&self) -> String {
        format!("attention to image {} times {}", self.id, self.weight)
    }

    fn inputs(&self) -> Vec<(String, Tensor)> {
        self.inputs.clone()
    }

    fn cross_attention(&self, site: &AttentionSite<'_>, query: &Tensor, inputs: &NamedTensors) -> Result<Option<Tensor>> {
        let find = |part: &str| inputs.find(&name(self.id, part, site.name));
        let (Some(key), Some(value)) = (find("key"), find("value")) else { return Ok(None) };
        let mixed = attention(query, key, value, site.heads, false)?;
        Ok(Some(if self.weight == 1.0 { mixed } else { mixed.affine(self.weight, 0.0)? }))
    }
}
