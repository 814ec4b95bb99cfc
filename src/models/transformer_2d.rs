//! The UNet's transformer: self attention, attention to the text, feed-forward.

use super::Scope;
use super::block_stream::Block;
use super::call::{AttentionSite, LayerInputs};
use super::reuse::Attends;
use crate::Result;
use crate::ops::{Epilogue, GroupNorm, LayerNorm, Linear, attention, geglu};
use candle_core::Tensor;

/// What all transformers of one UNet share.
#[derive(Debug, Clone, Copy)]
pub(super) struct TransformerConfig {
    pub(super) norm_groups: usize,
    pub(super) cross_attention_dim: usize,
    /// `proj_in` and `proj_out` are stored as linear layers rather than 1×1 convolutions.
    pub(super) linear_projection: bool,
    /// The first attention of a block reads the text in the place of the image.
    pub(super) reads_text_only: bool,
}

/// diffusers' `Attention` without biases on query, key and value.
#[derive(Debug)]
struct Attention {
    to_q: Linear,
    to_k: Linear,
    to_v: Linear,
    to_out: Linear,
    heads: usize,
}

impl Attention {
    fn load(scope: &Scope<'_>, channels: usize, context: usize, heads: usize) -> Result<Self> {
        Ok(Self {
            to_q: scope.at("to_q").linear_without_bias(channels, channels)?,
            to_k: scope.at("to_k").linear_without_bias(context, channels)?,
            to_v: scope.at("to_v").linear_without_bias(context, channels)?,
            to_out: scope.at("to_out.0").linear(channels, channels)?,
            heads,
        })
    }

    /// `residual + attention(x, x)`, shaped like `x`; without a residual the attention alone.
    fn to_itself(&self, x: &Tensor, residual: Option<&Tensor>, site: &AttentionSite<'_>, inputs: LayerInputs<'_>) -> Result<Tensor> {
        let (q, k, v) = (self.to_q.forward(x)?, self.to_k.forward(x)?, self.to_v.forward(x)?);
        inputs.attentions.note(site, &q, &k)?;
        for patch in inputs.patches {
            if let Some(mixed) = patch.self_attention(site, &q, &k, &v, inputs.named)? {
                return self.output(&mixed, residual);
            }
        }
        self.output(&attention(&q, &k, &v, self.heads, false)?, residual)
    }

    /// `residual + attention(x, text)`, shaped like `x`; without a residual the attention alone.
    fn to_text(&self, x: &Tensor, residual: Option<&Tensor>, site: &AttentionSite<'_>, inputs: LayerInputs<'_>) -> Result<Tensor> {
        let (q, k, v) = (self.to_q.forward(x)?, self.to_k.forward(inputs.context)?, self.to_v.forward(inputs.context)?);
        let mut mixed = attention(&q, &k, &v, self.heads, false)?;
        for patch in inputs.patches {
            if let Some(more) = patch.cross_attention(site, &q, inputs.named)? {
                mixed = (mixed + more)?;
            }
        }
        self.output(&mixed, residual)
    }

    fn output(&self, mixed: &Tensor, residual: Option<&Tensor>) -> Result<Tensor> {
        Ok(self.to_out.forward_with(mixed, Epilogue { residual, ..Epilogue::default() })?)
    }
}

/// diffusers' `BasicTransformerBlock`.
#[derive(Debug)]
struct BasicTransformerBlock {
    name: String,
    norm1: LayerNorm,
    attn1: Attention,
    /// The first attention reads the text.
    reads_text_only: bool,
    norm2: LayerNorm,
    attn2: Attention,
    norm3: LayerNorm,
    ff_in: Linear,
    ff_out: Linear,
}

impl BasicTransformerBlock {
    fn load(scope: &Scope<'_>, config: TransformerConfig, channels: usize, heads: usize) -> Result<Self> {
        const EPS: f64 = 1e-5;
        let first = if config.reads_text_only { config.cross_attention_dim } else { channels };
        Ok(Self {
            name: scope.prefix.trim_end_matches('.').to_owned(),
            norm1: scope.at("norm1").layer_norm(channels, EPS)?,
            attn1: Attention::load(&scope.at("attn1"), channels, first, heads)?,
            reads_text_only: config.reads_text_only,
            norm2: scope.at("norm2").layer_norm(channels, EPS)?,
            attn2: Attention::load(&scope.at("attn2"), channels, config.cross_attention_dim, heads)?,
            norm3: scope.at("norm3").layer_norm(channels, EPS)?,
            ff_in: scope.at("ff.net.0.proj").linear(channels, 8 * channels)?,
            ff_out: scope.at("ff.net.2").linear(4 * channels, channels)?,
        })
    }

    fn forward(&self, x: &Tensor, grid: (usize, usize), inputs: LayerInputs<'_>) -> Result<Tensor> {
        let site = AttentionSite { name: &self.name, heads: self.attn1.heads, grid };
        let x = inputs.attentions.add(Attends::ToItself, x, inputs.named, |residual| {
            let normed = self.norm1.forward(x)?;
            match self.reads_text_only {
                true => self.attn1.to_text(&normed, residual, &site, LayerInputs { patches: &[], ..inputs }),
                false => self.attn1.to_itself(&normed, residual, &site, inputs),
            }
        })?;
        let x = inputs
            .attentions
            .add(Attends::ToText, &x, inputs.named, |residual| self.attn2.to_text(&self.norm2.forward(&x)?, residual, &site, inputs))?;
        let hidden = geglu(&self.ff_in.forward(&self.norm3.forward(&x)?)?)?;
        Ok(self.ff_out.forward_with(&hidden, Epilogue { residual: Some(&x), ..Epilogue::default() })?)
    }
}

/// diffusers' `Transformer2DModel`.
#[derive(Debug)]
pub(super) struct Transformer2D {
    norm: GroupNorm,
    proj_in: Linear,
    blocks: Vec<Block<BasicTransformerBlock>>,
    proj_out: Linear,
}

impl Transformer2D {
    pub(super) fn load(scope: &Scope<'_>, config: TransformerConfig, channels: usize, heads: usize, depth: usize) -> Result<Self> {
        let projection = |name: &str| {
            let scope = scope.at(name);
            if config.linear_projection { scope.linear(channels, channels) } else { scope.pointwise(channels, channels) }
        };
        let block = move |scope: &Scope<'_>| BasicTransformerBlock::load(scope, config, channels, heads);
        let blocks = (0..depth).map(|i| Block::load(&scope.at("transformer_blocks").at(i), block));
        Ok(Self {
            norm: scope.at("norm").group_norm(channels, config.norm_groups, 1e-6)?,
            proj_in: projection("proj_in")?,
            blocks: blocks.collect::<Result<_>>()?,
            proj_out: projection("proj_out")?,
        })
    }

    /// `(rows, height, width, channels)`, kept; the inputs' context is `(rows, tokens, cross_attention_dim)`.
    pub(super) fn forward(&self, x: &Tensor, inputs: LayerInputs<'_>) -> Result<Tensor> {
        let (batch, height, width, channels) = x.dims4()?;
        let residual = x.reshape((batch, height * width, channels))?;
        let mut h = self.proj_in.forward(&self.norm.forward(&residual)?)?;
        for block in &self.blocks {
            h = block.with(|block| block.forward(&h, (height, width), inputs))?;
        }
        let h = self.proj_out.forward_with(&h, Epilogue { residual: Some(&residual), ..Epilogue::default() })?;
        Ok(h.reshape((batch, height, width, channels))?)
    }
}
