//! One call of a denoising network: its inputs by name, and what changes inside it.

use super::reuse::{AttentionRecord, Kept, Reuse};
use crate::Result;
use crate::ops::{NamedTensors, Wrap};
use candle_core::Tensor;
use std::ops::Range;
use std::sync::Arc;

/// What a denoising network is called with. `rows` is the number of images times the branches of guidance.
#[derive(Debug, Clone)]
pub struct ModelCall {
    /// `(rows, channels, height, width)` in the compute dtype, scaled for the network.
    pub latents: Tensor,
    /// 0 to 999, with fractions; the same for all rows.
    pub timestep: f64,
    /// Text, `(rows, tokens, width)`, in the compute dtype.
    pub context: Tensor,
    /// Pooled text, `(rows, width)`, for networks that want it.
    pub pooled: Option<Tensor>,
    /// Sizes, crops and scores of each row (SDXL's `time_ids`); empty where the network wants none.
    pub time_ids: Vec<Vec<f64>>,
    /// The guidance scale less 1 of each row, for networks that were distilled with it (latent consistency models); else empty.
    pub guidance: Vec<f64>,
    /// Channels that follow the latents': `(rows, more channels, height, width)` in the compute dtype (inpainting, editing).
    pub concat: Option<Tensor>,
    /// What a ControlNet adds.
    pub residuals: Residuals,
    /// What changes inside the network, in the order in which it acts.
    pub patches: Vec<Arc<dyn Patch>>,
    /// At which sides the latents go on at their other side.
    pub wrap: Wrap,
    /// What it keeps for later calls, and takes from earlier ones.
    pub reuse: Reuse,
}

impl ModelCall {
    /// A call with latents, timestep and text; the rest is empty.
    pub fn new(latents: Tensor, timestep: f64, context: Tensor) -> Self {
        let residuals = Residuals::default();
        let wrap = Wrap::default();
        Self {
            latents,
            timestep,
            context,
            pooled: None,
            time_ids: vec![],
            guidance: vec![],
            concat: None,
            residuals,
            patches: vec![],
            wrap,
            reuse: Reuse::default(),
        }
    }
}

/// Tensors that are added inside a UNet, channels last: `(rows, height, width, channels)` in the compute dtype.
#[derive(Debug, Clone, Default)]
pub struct Residuals {
    /// One for each skip connection, in the order of the way down, the input convolution's first; empty adds nothing.
    pub down: Vec<Tensor>,
    /// For the middle's output.
    pub mid: Option<Tensor>,
}

impl Residuals {
    /// So many times as much of each.
    ///
    /// # Errors
    /// The device failed.
    pub fn weighed(self, weight: f64) -> Result<Self> {
        if weight == 1.0 {
            return Ok(self);
        }
        let weighed = |residual: Tensor| residual.affine(weight, 0.0);
        let down = self.down.into_iter().map(weighed).collect::<candle_core::Result<_>>()?;
        Ok(Self { down, mid: self.mid.map(weighed).transpose()? })
    }

    /// Adds those of another network to these.
    ///
    /// # Errors
    /// They are for a network of another shape.
    pub fn add(&mut self, other: Self) -> Result<()> {
        self.down = match self.down.is_empty() {
            true => other.down,
            false => self.down.iter().zip(&other.down).map(|(a, b)| a + b).collect::<candle_core::Result<_>>()?,
        };
        self.mid = match (self.mid.take(), other.mid) {
            (Some(a), Some(b)) => Some((a + b)?),
            (a, b) => a.or(b),
        };
        Ok(())
    }
}

/// What a network gives back.
#[derive(Debug, Clone)]
pub struct ModelOutput {
    /// The noise, the velocity or whatever the network predicts: `(rows, channels, height, width)` in the compute dtype.
    pub prediction: Tensor,
    /// What [`ModelCall::reuse`] asks to keep.
    pub kept: Kept,
}

impl ModelOutput {
    /// A prediction, and nothing kept.
    pub fn of(prediction: Tensor) -> Self {
        Self { prediction, kept: Kept::default() }
    }
}

/// A denoising network.
pub trait Backbone: Send + Sync + std::fmt::Debug {
    /// Calls it once.
    ///
    /// # Errors
    /// An input that it wants is missing or has another shape, or the device failed.
    fn call(&self, call: &ModelCall) -> Result<ModelOutput>;

    /// Its weights were replaced: what was recorded of earlier calls is forgotten.
    fn weights_changed(&self);
}

/// A change inside a network: to its attention, or to what its way up reads.
///
/// What it does must follow from [`Patch::key`] and the shapes of its inputs alone: a GPU records a call once and plays it again with other
/// numbers in [`Patch::inputs`].
pub trait Patch: Send + Sync + std::fmt::Debug {
    /// Tells it from patches that do something else.
    fn key(&self) -> String;

    /// The tensors that it reads in this call, under names of its own; it gets them back in the hooks.
    fn inputs(&self) -> Vec<(String, Tensor)> {
        vec![]
    }

    /// What takes the place of self-attention's result at `site` before its output projection, `(rows, tokens, channels)`.
    ///
    /// `query`, `key` and `value` are the projections, `(rows, tokens, channels)`.
    ///
    /// # Errors
    /// The device failed.
    fn self_attention(
        &self,
        _site: &AttentionSite<'_>,
        _query: &Tensor,
        _key: &Tensor,
        _value: &Tensor,
        _inputs: &NamedTensors,
    ) -> Result<Option<Tensor>> {
        Ok(None)
    }

    /// What is added to the attention to the text at `site` before its output projection, `(rows, tokens, channels)`; `query` is that of
    /// the attention to the text.
    ///
    /// # Errors
    /// The device failed.
    fn cross_attention(&self, _site: &AttentionSite<'_>, _query: &Tensor, _inputs: &NamedTensors) -> Result<Option<Tensor>> {
        Ok(None)
    }

    /// The rows for which the transformer's block `block` does nothing (Stable Diffusion 3).
    fn skipped_rows(&self, _block: usize) -> Option<Range<usize>> {
        None
    }

    /// What takes the place of the hidden state and of the skip connection that join in a layer of the UNet's up block `block`, both
    /// `(rows, height, width, channels)`.
    ///
    /// # Errors
    /// The device failed.
    fn up_block(&self, _block: usize, _hidden: &Tensor, _skip: &Tensor, _inputs: &NamedTensors) -> Result<Option<(Tensor, Tensor)>> {
        Ok(None)
    }
}

/// Where in a network an attention stands.
#[derive(Debug, Clone, Copy)]
pub struct AttentionSite<'a> {
    /// The transformer block's name in the network's tree, such as `down_blocks.0.attentions.1.transformer_blocks.0`.
    pub name: &'a str,
    /// Attention heads.
    pub heads: usize,
    /// Height and width of the grid of its tokens.
    pub grid: (usize, usize),
}

/// What every layer of a network reads in one call.
#[derive(Clone, Copy)]
pub(super) struct LayerInputs<'a> {
    /// The activated time embedding, `(rows, width)`.
    pub(super) time: &'a Tensor,
    /// `(rows, tokens, width)`
    pub(super) context: &'a Tensor,
    pub(super) patches: &'a [Arc<dyn Patch>],
    /// All inputs of the call, those of the patches among them.
    pub(super) named: &'a NamedTensors,
    /// Which attentions are kept or taken from an earlier call.
    pub(super) attentions: &'a AttentionRecord<'a>,
}
