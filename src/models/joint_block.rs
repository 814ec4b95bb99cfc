//! A block of Stable Diffusion 3's transformer: image and text attend to each other, each with weights of its own.

use super::Scope;
use crate::Result;
use crate::ops::{LayerNorm, Linear, RmsNorm, attention, gelu_tanh};
use crate::spec::MmditSpec;
use candle_core::{D, Tensor};

/// Epsilon of the norms of queries and keys.
const QK_EPS: f64 = 1e-6;

/// Queries, keys and values of one stream.
#[derive(Debug)]
struct Projections {
    q: Linear,
    k: Linear,
    v: Linear,
    norms: Option<(RmsNorm, RmsNorm)>,
    head_size: usize,
}

impl Projections {
    /// `names` are those of the projections, and `norms` those of the norms of query and key.
    fn load(scope: &Scope<'_>, spec: &MmditSpec, names: [&str; 3], norms: [&str; 2]) -> Result<Self> {
        let linear = |name: &str| scope.at(name).linear(spec.width(), spec.width());
        let norm = |name: &str| scope.at(name).rms_norm(spec.head_size, QK_EPS);
        let [q, k, v] = names;
        let norms = spec.qk_norm.then(|| Ok::<_, crate::Error>((norm(norms[0])?, norm(norms[1])?))).transpose()?;
        Ok(Self { q: linear(q)?, k: linear(k)?, v: linear(v)?, norms, head_size: spec.head_size })
    }

    fn forward(&self, x: &Tensor) -> Result<[Tensor; 3]> {
        let (q, k, v) = (self.q.forward(x)?, self.k.forward(x)?, self.v.forward(x)?);
        let Some((of_q, of_k)) = &self.norms else { return Ok([q, k, v]) };
        let normed = |x: &Tensor, norm: &RmsNorm| -> Result<Tensor> {
            let (rows, tokens, width) = x.dims3()?;
            let heads = x.reshape((rows, tokens, width / self.head_size, self.head_size))?;
            Ok(norm.forward(&heads)?.reshape((rows, tokens, width))?)
        };
        Ok([normed(&q, of_q)?, normed(&k, of_k)?, v])
    }
}

/// Two linear layers.
#[derive(Debug)]
struct FeedForward {
    first: Linear,
    last: Linear,
}

impl FeedForward {
    fn load(scope: &Scope<'_>, width: usize) -> Result<Self> {
        Ok(Self { first: scope.at("net.0.proj").linear(width, 4 * width)?, last: scope.at("net.2").linear(4 * width, width)? })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        Ok(self.last.forward(&gelu_tanh(&self.first.forward(x)?)?)?)
    }
}

/// What is left of the text's stream behind the attention.
#[derive(Debug)]
struct TextRest {
    proj: Linear,
    feed_forward: FeedForward,
}

/// A second attention of the image to itself.
#[derive(Debug)]
struct SecondAttention {
    projections: Projections,
    proj: Linear,
}

/// diffusers' `JointTransformerBlock`.
#[derive(Debug)]
pub(super) struct JointBlock {
    heads: usize,
    /// Without weights.
    norm: LayerNorm,
    modulation: Linear,
    text_modulation: Linear,
    image: Projections,
    text: Projections,
    proj: Linear,
    second: Option<SecondAttention>,
    feed_forward: FeedForward,
    /// `None` in the last block, after which no text is wanted.
    rest: Option<TextRest>,
}

/// The parts of a modulation, `(rows, 1, width)` each.
struct Modulation(Vec<Tensor>);

impl Modulation {
    fn of(layer: &Linear, time: &Tensor, parts: usize) -> Result<Self> {
        let all = layer.forward(time)?.unsqueeze(1)?;
        Ok(Self(all.chunk(parts, D::Minus1)?.iter().map(Tensor::contiguous).collect::<candle_core::Result<_>>()?))
    }

    /// `x · (1 + scale) + shift`
    fn apply(&self, x: &Tensor, shift: usize, scale: usize) -> Result<Tensor> {
        Ok(x.broadcast_mul(&(&self.0[scale] + 1.0)?)?.broadcast_add(&self.0[shift])?)
    }

    /// `x + gate · change`
    fn add(&self, x: &Tensor, change: &Tensor, gate: usize) -> Result<Tensor> {
        Ok((x + change.broadcast_mul(&self.0[gate])?)?)
    }
}

impl JointBlock {
    pub(super) fn load(scope: &Scope<'_>, spec: &MmditSpec, index: usize) -> Result<Self> {
        let width = spec.width();
        let (is_last, is_dual) = (index + 1 == spec.layers, spec.dual_layers.contains(&index));
        let attention = scope.at("attn");
        let second = || -> Result<SecondAttention> {
            let scope = scope.at("attn2");
            let projections = Projections::load(&scope, spec, ["to_q", "to_k", "to_v"], ["norm_q", "norm_k"])?;
            Ok(SecondAttention { projections, proj: scope.at("to_out.0").linear(width, width)? })
        };
        let rest = || -> Result<TextRest> {
            let proj = attention.at("to_add_out").linear(width, width)?;
            Ok(TextRest { proj, feed_forward: FeedForward::load(&scope.at("ff_context"), width)? })
        };
        Ok(Self {
            heads: spec.heads,
            norm: scope.plain_layer_norm(width)?,
            modulation: scope.at("norm1.linear").linear(width, if is_dual { 9 } else { 6 } * width)?,
            text_modulation: scope.at("norm1_context.linear").linear(width, if is_last { 2 } else { 6 } * width)?,
            image: Projections::load(&attention, spec, ["to_q", "to_k", "to_v"], ["norm_q", "norm_k"])?,
            text: Projections::load(&attention, spec, ["add_q_proj", "add_k_proj", "add_v_proj"], ["norm_added_q", "norm_added_k"])?,
            proj: attention.at("to_out.0").linear(width, width)?,
            second: is_dual.then(second).transpose()?,
            feed_forward: FeedForward::load(&scope.at("ff"), width)?,
            rest: (!is_last).then(rest).transpose()?,
        })
    }

    /// Tokens of the image and of the text, `(rows, tokens, width)` each, kept; `time` is the activated condition, `(rows, width)`.
    pub(super) fn forward(&self, x: &Tensor, context: &Tensor, time: &Tensor) -> Result<(Tensor, Tensor)> {
        let modulation = Modulation::of(&self.modulation, time, if self.second.is_some() { 9 } else { 6 })?;
        let of_text = Modulation::of(&self.text_modulation, time, if self.rest.is_some() { 6 } else { 2 })?;
        let (plain, plain_text) = (self.norm.forward(x)?, self.norm.forward(context)?);
        let normed = modulation.apply(&plain, 0, 1)?;
        // In the last block the scale stands before the shift.
        let normed_text = if self.rest.is_some() { of_text.apply(&plain_text, 0, 1)? } else { of_text.apply(&plain_text, 1, 0)? };
        let [q, k, v] = self.image.forward(&normed)?;
        let [text_q, text_k, text_v] = self.text.forward(&normed_text)?;
        let (tokens, text_tokens) = (x.dim(1)?, context.dim(1)?);
        let join = |one: &Tensor, other: &Tensor| Tensor::cat(&[one, other], 1);
        let (k, v) = (join(&k, &text_k)?, join(&v, &text_v)?);
        // The last block's text asks nothing.
        let q = if self.rest.is_some() { join(&q, &text_q)? } else { q };
        let mixed = attention(&q, &k, &v, self.heads, false)?;
        let mut x = modulation.add(x, &self.proj.forward(&mixed.narrow(1, 0, tokens)?.contiguous()?)?, 2)?;
        if let Some(SecondAttention { projections, proj }) = &self.second {
            let [q, k, v] = projections.forward(&modulation.apply(&plain, 6, 7)?)?;
            x = modulation.add(&x, &proj.forward(&attention(&q, &k, &v, self.heads, false)?)?, 8)?;
        }
        let hidden = self.feed_forward.forward(&modulation.apply(&self.norm.forward(&x)?, 3, 4)?)?;
        let x = modulation.add(&x, &hidden, 5)?;
        let Some(TextRest { proj, feed_forward }) = &self.rest else { return Ok((x, context.clone())) };
        let mixed = proj.forward(&mixed.narrow(1, tokens, text_tokens)?.contiguous()?)?;
        let context = of_text.add(context, &mixed, 2)?;
        let hidden = feed_forward.forward(&of_text.apply(&self.norm.forward(&context)?, 3, 4)?)?;
        Ok((x, of_text.add(&context, &hidden, 5)?))
    }
}
