//! Prompts of any length with weighted words, as A1111 and ComfyUI encode them.
//!
//! # Source
//! lllyasviel/stable-diffusion-webui-forge@dfdcbab:backend/text_processing/classic_engine.py, emphasis.py;
//! Comfy-Org/ComfyUI@a125cd84:comfy/sd1_clip.py (`ClipTokenWeightEncoder.encode_token_weights`).

use super::chunks::{Chunk, a1111_chunks, comfyui_chunks};
use super::{PromptEmbeds, TextEncoder};
use crate::prompt::{Emphasis, PromptSyntax, WeightedText};
use crate::{Error, Result};
use candle_core::{DType, Tensor};
use std::collections::HashMap;

/// Rows that are encoded at once: what stands beside a row changes none of its numbers.
const ROWS_AT_ONCE: usize = 16;

/// A text of a timeline.
#[derive(Debug, Clone, PartialEq)]
pub struct TimelineText {
    /// The text as understood.
    pub words: Vec<WeightedText>,
    /// Entries of the timeline that have it: A1111's means are over all of them.
    pub times: usize,
}

/// One chunk's hidden state `(1, tokens, width)` and its pooled output.
type EncodedRow = (Tensor, Option<Tensor>);

impl TextEncoder {
    /// Encodes the texts of one timeline together. All have as many tokens: as many as the longest of them needs, in whole chunks.
    /// The pooled output is the first chunk's.
    ///
    /// # Errors
    /// There are not so many layers, a text cannot be tokenized, or a tensor operation fails.
    pub fn encode_weighted(
        &self,
        texts: &[TimelineText],
        syntax: PromptSyntax,
        emphasis: Emphasis,
        more_skipped: usize,
    ) -> Result<Vec<PromptEmbeds>> {
        let cut = |text: &TimelineText| match syntax {
            PromptSyntax::ComfyUi => comfyui_chunks(self.tokenizer(), &text.words),
            PromptSyntax::A1111 | PromptSyntax::Plain => a1111_chunks(self.tokenizer(), &text.words),
        };
        let mut chunks: Vec<Vec<Chunk>> = texts.iter().map(cut).collect::<Result<_>>()?;
        let empty = Chunk::empty(self.tokenizer());
        let longest = chunks.iter().map(Vec::len).max().unwrap_or(0);
        chunks.iter_mut().for_each(|chunks| chunks.resize(longest, empty.clone()));
        let needs_empty = syntax == PromptSyntax::ComfyUi && chunks.iter().flatten().any(Chunk::is_weighted);
        let rows = self.rows(chunks.iter().flatten().chain(needs_empty.then_some(&empty)), more_skipped)?;
        let row = |chunk: &Chunk| rows.get(&chunk.ids).ok_or_else(|| Error::Image("a chunk of the prompt was not encoded".into()));
        let mut hidden: Vec<Vec<Tensor>> = vec![Vec::new(); texts.len()];
        for place in 0..longest {
            let states: Vec<&Tensor> = chunks.iter().map(|chunks| Ok(&row(&chunks[place])?.0)).collect::<Result<_>>()?;
            let weights: Vec<&Chunk> = chunks.iter().map(|chunks| &chunks[place]).collect();
            let weighted = match syntax {
                PromptSyntax::ComfyUi if needs_empty => interpolated(&states, &weights, &row(&empty)?.0)?,
                PromptSyntax::A1111 if emphasis == Emphasis::Original => {
                    normalized(&states, &weights, &texts.iter().map(|text| text.times as f64).collect::<Vec<_>>())?
                }
                PromptSyntax::A1111 if emphasis == Emphasis::NoNorm => scaled(&states, &weights)?,
                _ => states.into_iter().cloned().collect(),
            };
            hidden.iter_mut().zip(weighted).for_each(|(all, state)| all.push(state));
        }
        let embeds = |(hidden, chunks): (Vec<Tensor>, &Vec<Chunk>)| {
            let pooled = chunks.first().map(&row).transpose()?.and_then(|(_, pooled)| pooled.clone());
            Ok(PromptEmbeds { hidden: Tensor::cat(&hidden, 1)?, pooled })
        };
        hidden.into_iter().zip(&chunks).map(embeds).collect()
    }

    /// Encodes chunks, equal ones once, by their ids.
    fn rows<'a>(&self, chunks: impl Iterator<Item = &'a Chunk>, more_skipped: usize) -> Result<HashMap<Vec<u32>, EncodedRow>> {
        let mut wanted: Vec<Vec<u32>> = chunks.map(|chunk| chunk.ids.clone()).collect();
        wanted.sort();
        wanted.dedup();
        let mut rows = HashMap::with_capacity(wanted.len());
        for ids in wanted.chunks(ROWS_AT_ONCE) {
            let embeds = self.encode(ids, more_skipped)?;
            for (i, ids) in ids.iter().enumerate() {
                let pooled = embeds.pooled.as_ref().map(|pooled| pooled.narrow(0, i, 1)).transpose()?;
                rows.insert(ids.clone(), (embeds.hidden.narrow(0, i, 1)?, pooled));
            }
        }
        Ok(rows)
    }
}

/// The hidden state of one chunk with its weights; `empty` gives that of a chunk without words.
pub(super) fn with_weights(
    state: &Tensor,
    chunk: &Chunk,
    (syntax, emphasis): (PromptSyntax, Emphasis),
    empty: impl FnOnce() -> Result<Tensor>,
) -> Result<Tensor> {
    let weighted = match syntax {
        PromptSyntax::ComfyUi if chunk.is_weighted() => interpolated(&[state], &[chunk], &empty()?)?,
        PromptSyntax::A1111 if emphasis == Emphasis::Original => normalized(&[state], &[chunk], &[1.0])?,
        PromptSyntax::A1111 if emphasis == Emphasis::NoNorm => scaled(&[state], &[chunk])?,
        _ => Vec::new(),
    };
    Ok(weighted.into_iter().next().unwrap_or_else(|| state.clone()))
}

/// The weights of a chunk beside its hidden state, `(1, tokens, 1)`.
fn weights_like(chunk: &Chunk, state: &Tensor) -> Result<Tensor> {
    let weights: Vec<f32> = chunk.weights.iter().map(|weight| *weight as f32).collect();
    let tokens = weights.len();
    Ok(Tensor::from_vec(weights, (1, tokens, 1), state.device())?)
}

/// A1111's "No norm": each token's state times its weight.
fn scaled(states: &[&Tensor], chunks: &[&Chunk]) -> Result<Vec<Tensor>> {
    let scale = |(state, chunk): (&&Tensor, &&Chunk)| {
        if !chunk.is_weighted() {
            return Ok((*state).clone());
        }
        let scaled = state.to_dtype(DType::F32)?.broadcast_mul(&weights_like(chunk, state)?)?;
        Ok(scaled.to_dtype(state.dtype())?)
    };
    states.iter().zip(chunks).map(scale).collect()
}

/// A1111's "Original": scaled, then all of it times what brings the mean over all texts back to what it was.
fn normalized(states: &[&Tensor], chunks: &[&Chunk], times: &[f64]) -> Result<Vec<Tensor>> {
    if !chunks.iter().any(|chunk| chunk.is_weighted()) {
        return Ok(states.iter().map(|state| (*state).clone()).collect());
    }
    let all: f64 = times.iter().sum();
    let mean = |states: &[Tensor]| -> Result<f64> {
        let mut sum = 0.0;
        for (state, times) in states.iter().zip(times) {
            sum += f64::from(state.mean_all()?.to_scalar::<f32>()?) * times;
        }
        Ok(sum / all)
    };
    let dtype = states.first().map_or(DType::F32, |state| state.dtype());
    let before: Vec<Tensor> = states.iter().map(|state| Ok(state.to_dtype(DType::F32)?)).collect::<Result<_>>()?;
    let after = scaled(&before.iter().collect::<Vec<_>>(), chunks)?;
    let ratio = mean(&before)? / mean(&after)?;
    // Weights that add up to nothing leave no mean to bring back.
    let ratio = if ratio.is_finite() { ratio } else { 1.0 };
    after.into_iter().map(|state| Ok(state.affine(ratio, 0.0)?.to_dtype(dtype)?)).collect()
}

/// ComfyUI's weights: how far each token's state goes from the empty prompt's state in its place towards its own, and beyond.
fn interpolated(states: &[&Tensor], chunks: &[&Chunk], empty: &Tensor) -> Result<Vec<Tensor>> {
    let empty = empty.to_dtype(DType::F32)?;
    let mix = |(state, chunk): (&&Tensor, &&Chunk)| {
        if !chunk.is_weighted() {
            return Ok((*state).clone());
        }
        let own = state.to_dtype(DType::F32)?;
        let beyond = weights_like(chunk, state)?.affine(1.0, -1.0)?;
        Ok((&own + (&own - &empty)?.broadcast_mul(&beyond)?)?.to_dtype(state.dtype())?)
    };
    states.iter().zip(chunks).map(mix).collect()
}
