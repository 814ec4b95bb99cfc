//! Prompts of any length: tokens with weights, cut into as many rows of the text encoder as they need.
//!
//! Tools cut in different places. A1111 goes back to a comma that is at most 20 tokens behind, so that no phrase is torn, and starts a
//! chunk at every `BREAK`; ComfyUI keeps a stretch of one weight that has fewer than 8 tokens whole.
//!
//! # Source
//! lllyasviel/stable-diffusion-webui-forge@dfdcbab:backend/text_processing/classic_engine.py (`tokenize_line`);
//! Comfy-Org/ComfyUI@a125cd84:comfy/sd1_clip.py (`SDTokenizer.tokenize_with_weights`).

use super::ClipTokenizer;
use crate::Result;
use crate::prompt::WeightedText;

/// Tokens behind which A1111 looks for a comma.
const COMMA_BACKTRACK: usize = 20;

/// Tokens from which ComfyUI tears a stretch.
const LARGE_STRETCH: usize = 8;

/// What ComfyUI's users write before the name of a textual inversion.
const EMBEDDING: &str = "embedding:";

/// One row of a text encoder.
#[derive(Debug, Clone, PartialEq)]
pub struct Chunk {
    /// Start, tokens, end and padding: as many as the encoder has positions.
    pub ids: Vec<u32>,
    /// The weight of each token; 1 for start, end and padding.
    pub weights: Vec<f64>,
}

impl Chunk {
    /// A chunk without words.
    pub fn empty(tokenizer: &ClipTokenizer) -> Self {
        Self::of(&[], tokenizer)
    }

    /// Adds start, end and padding.
    fn of(tokens: &[(u32, f64)], tokenizer: &ClipTokenizer) -> Self {
        let special = tokenizer.special();
        let mut ids = vec![special.start];
        ids.extend(tokens.iter().map(|(id, _)| *id));
        ids.push(special.end);
        ids.resize(special.length, special.pad);
        let mut weights = vec![1.0];
        weights.extend(tokens.iter().map(|(_, weight)| *weight));
        weights.resize(special.length, 1.0);
        Self { ids, weights }
    }

    /// Whether a token has another weight than 1.
    pub fn is_weighted(&self) -> bool {
        self.weights.iter().any(|weight| *weight != 1.0)
    }
}

/// Cuts as A1111 does.
///
/// # Errors
/// A text cannot be tokenized.
pub fn a1111_chunks(tokenizer: &ClipTokenizer, words: &[WeightedText]) -> Result<Vec<Chunk>> {
    let room = tokenizer.special().length - 2;
    let comma = tokenizer.comma();
    let mut chunks = Vec::new();
    let mut open: Vec<(u32, f64)> = Vec::with_capacity(room);
    // Behind the last comma of the open chunk.
    let mut behind_comma: Option<usize> = None;
    for piece in words {
        if piece.is_break() {
            chunks.push(Chunk::of(&open, tokenizer));
            open.clear();
            behind_comma = None;
            continue;
        }
        for group in tokenizer.groups(&piece.text)? {
            if group.len() == 1 && Some(group[0]) == comma {
                behind_comma = Some(open.len() + 1);
            } else if open.len() == room
                && let Some(cut) = behind_comma.take().filter(|cut| open.len() - (cut - 1) <= COMMA_BACKTRACK)
            {
                let moved = open.split_off(cut);
                chunks.push(Chunk::of(&open, tokenizer));
                open = moved;
            }
            // A learned word of several vectors stays whole; a comma that finds no room starts the next chunk.
            if open.len() == room || open.len() + group.len() > room {
                chunks.push(Chunk::of(&open, tokenizer));
                open.clear();
                behind_comma = None;
            }
            open.extend(group.iter().take(room).map(|id| (*id, piece.weight)));
        }
    }
    if !open.is_empty() || chunks.is_empty() {
        chunks.push(Chunk::of(&open, tokenizer));
    }
    Ok(chunks)
}

/// Cuts as ComfyUI does.
///
/// # Errors
/// A text cannot be tokenized.
pub fn comfyui_chunks(tokenizer: &ClipTokenizer, words: &[WeightedText]) -> Result<Vec<Chunk>> {
    let room = tokenizer.special().length - 2;
    let mut stretches: Vec<(Vec<u32>, f64)> = Vec::new();
    for piece in words {
        stretches.extend(stretches_of(tokenizer, &piece.text)?.into_iter().map(|ids| (ids, piece.weight)));
    }
    let mut chunks = Vec::new();
    let mut open: Vec<(u32, f64)> = Vec::with_capacity(room);
    for (ids, weight) in &stretches {
        let mut left = ids.as_slice();
        while open.len() + left.len() > room {
            if ids.len() >= LARGE_STRETCH.min(room + 1) {
                let (fits, rest) = left.split_at(room - open.len());
                open.extend(fits.iter().map(|id| (*id, *weight)));
                left = rest;
            }
            chunks.push(Chunk::of(&open, tokenizer));
            open.clear();
        }
        open.extend(left.iter().map(|id| (*id, *weight)));
    }
    chunks.push(Chunk::of(&open, tokenizer));
    Ok(chunks)
}

/// The tokens of a text of one weight; learned words, which are called by `embedding:name`, apart. Unknown ones are left out.
fn stretches_of(tokenizer: &ClipTokenizer, text: &str) -> Result<Vec<Vec<u32>>> {
    let mut stretches = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let is_called = rest.starts_with(EMBEDDING);
        let mut next = rest.match_indices(EMBEDDING).map(|(at, _)| at).filter(|&at| at > 0);
        let next = next.find(|&at| rest[..at].ends_with(char::is_whitespace)).unwrap_or(rest.len());
        let (part, after) = rest.split_at(next);
        rest = after;
        let mut words = part.to_owned();
        if is_called {
            let called = part[EMBEDDING.len()..].trim_matches('\n');
            let name = called.split_whitespace().next().unwrap_or_default();
            let behind = called.trim_start().strip_prefix(name).unwrap_or_default().split_whitespace().collect::<Vec<_>>().join(" ");
            let (name, behind) = match name.find(['<', '[']) {
                Some(at) => (&name[..at], format!("{} {behind}", &name[at..])),
                None => (name, behind),
            };
            let stripped = name.trim_matches(',');
            if let Some(ids) = tokenizer.learned(name).or(tokenizer.learned(stripped)) {
                stretches.push(ids.to_vec());
            }
            words = match tokenizer.learned(name).is_none() && stripped.len() < name.len() {
                true => format!("{} {behind}", &name[stripped.len()..]),
                false => behind,
            };
        }
        if !words.is_empty() {
            stretches.push(tokenizer.raw(&words)?);
        }
    }
    Ok(stretches)
}

#[cfg(test)]
mod tests;
