//! T5's tokenizer, which a model's `tokenizer.json` describes, and its encoder.

use super::Tokens;
use super::chunks::Chunk;
use super::weighted::with_weights;
use crate::models::{Scope, T5Encoder};
use crate::prompt::{Emphasis, PromptSyntax, WeightedText};
use crate::spec::T5Spec;
use crate::{Error, Result};
use candle_core::Tensor;
use std::io::Read;
use tokenizers::Tokenizer;

/// T5's public `tokenizer.json` (Apache-2.0) without its white space: a single-file checkpoint carries none.
static USUAL: &[u8] = include_bytes!("t5_tokenizer.json.gz");

/// The tokens that T5 ends and pads a text with.
const END: &str = "</s>";
const PAD: &str = "<pad>";

/// Texts to T5's tokens.
pub struct T5Tokenizer {
    inner: Tokenizer,
    end: u32,
    pad: u32,
}

impl std::fmt::Debug for T5Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { end, pad, .. } = self;
        write!(f, "T5Tokenizer {{ end: {end}, pad: {pad} }}")
    }
}

impl T5Tokenizer {
    /// From the text of a `tokenizer.json`; `origin` names it in errors.
    ///
    /// # Errors
    /// It is none, or has no tokens for the end and for padding.
    pub fn from_json(origin: &str, text: &str) -> Result<Self> {
        let wrong = |what: String| Error::Model(format!("{origin}: T5's tokenizer.json {what}; take the one that came with the model"));
        let mut inner: Tokenizer = text.parse().map_err(|e: tokenizers::Error| wrong(format!("cannot be read ({e})")))?;
        // Rows are cut and padded here.
        inner.with_padding(None);
        inner.with_truncation(None).map_err(|e| wrong(format!("cannot be used ({e})")))?;
        let id = |token: &str| inner.token_to_id(token).ok_or_else(|| wrong(format!("has no token {token}")));
        let (end, pad) = (id(END)?, id(PAD)?);
        Ok(Self { inner, end, pad })
    }

    /// The public vocabulary, which single files mean.
    ///
    /// # Errors
    /// The compiled-in data cannot be unpacked, which no user can cause.
    pub fn usual() -> Result<Self> {
        let mut text = String::new();
        let unpacked = flate2::read::GzDecoder::new(USUAL).read_to_string(&mut text);
        unpacked.map_err(|e| Error::Model(format!("the compiled-in vocabulary of T5 is damaged: {e}")))?;
        Self::from_json("the compiled-in vocabulary", &text)
    }

    /// A row of `length` tokens: those of the text, the end, and padding.
    ///
    /// # Errors
    /// The text cannot be tokenized at all.
    pub fn encode(&self, text: &str, length: usize) -> Result<Tokens> {
        let encoding = self.inner.encode(text, false);
        let encoding = encoding.map_err(|e| Error::Input(format!("the prompt cannot be split into tokens for T5: {e}")))?;
        let room = length.saturating_sub(1);
        let words = encoding.get_ids();
        let left_out = encoding.get_offsets().get(room).map(|(from, _)| text.get(*from..).unwrap_or_default().to_owned());
        let mut ids: Vec<u32> = words.iter().copied().take(room).chain([self.end]).collect();
        ids.resize(length, self.pad);
        Ok(Tokens { ids, left_out })
    }
}

/// T5 with its tokenizer.
#[derive(Debug)]
pub struct T5TextEncoder {
    tokenizer: T5Tokenizer,
    model: T5Encoder,
}

impl T5TextEncoder {
    /// Reads the weights.
    ///
    /// # Errors
    /// A tensor is missing or wrong.
    pub fn load(scope: &Scope<'_>, spec: &T5Spec, tokenizer: T5Tokenizer) -> Result<Self> {
        Ok(Self { tokenizer, model: T5Encoder::load(scope, spec)? })
    }

    /// The same of words with weights: each stretch is split into tokens by itself, and the tokens' states are weighed as those of CLIP.
    /// Without weights it is [`T5TextEncoder::encode`] of the whole text.
    ///
    /// # Source
    /// Comfy-Org/ComfyUI@a125cd84:comfy/sd1_clip.py (`SDTokenizer.tokenize_with_weights`, `ClipTokenWeightEncoder`), which T5 shares with
    /// CLIP; lllyasviel/stable-diffusion-webui-forge@dfdcbab:backend/text_processing/t5_engine.py.
    ///
    /// # Errors
    /// As [`T5TextEncoder::encode`].
    pub fn encode_weighted(
        &self,
        words: &[WeightedText],
        length: usize,
        (syntax, emphasis): (PromptSyntax, Emphasis),
    ) -> Result<(Tensor, Option<String>)> {
        let text = |piece: &WeightedText| if piece.is_break() { " ".to_owned() } else { piece.text.clone() };
        if words.iter().all(|piece| piece.is_break() || piece.weight == 1.0) {
            return self.encode(&words.iter().map(text).collect::<String>(), length);
        }
        let (mut chunk, mut left_out) = (Chunk { ids: Vec::new(), weights: Vec::new() }, String::new());
        for piece in words {
            let room = length.saturating_sub(1 + chunk.ids.len());
            // A row that the text just fills has one token more than there is room for, its end.
            let Tokens { ids, left_out: rest } = self.tokenizer.encode(&text(piece), room + 1)?;
            let found = ids.iter().take_while(|id| **id != self.tokenizer.end).count().min(room);
            chunk.ids.extend(ids.iter().take(found));
            chunk.weights.resize(chunk.ids.len(), if piece.is_break() { 1.0 } else { piece.weight });
            left_out.push_str(rest.as_deref().unwrap_or_default());
        }
        chunk.ids.push(self.tokenizer.end);
        chunk.ids.resize(length, self.tokenizer.pad);
        chunk.weights.resize(length, 1.0);
        let empty = || self.model.forward(&self.tokenizer.encode("", length)?.ids);
        let hidden = with_weights(&self.model.forward(&chunk.ids)?, &chunk, (syntax, emphasis), empty)?;
        Ok((hidden, Some(left_out).filter(|left_out| !left_out.is_empty())))
    }

    /// What it says of a text, `(1, length, width)`, and the end of the text that did not fit.
    ///
    /// # Errors
    /// The text cannot be tokenized, or the tokenizer is another model's.
    pub fn encode(&self, text: &str, length: usize) -> Result<(Tensor, Option<String>)> {
        let Tokens { ids, left_out } = self.tokenizer.encode(text, length)?;
        Ok((self.model.forward(&ids)?, left_out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_transformers_own() {
        // Made by tests/data/text/make_t5_tokens.py.
        let cases: Vec<(String, Vec<u32>)> = serde_json::from_str(include_str!("../../tests/data/text/t5_tokens.json")).unwrap();
        assert_eq!(cases.len(), 200);
        let tokenizer = T5Tokenizer::usual().unwrap();
        for (text, wanted) in cases {
            let long = tokenizer.encode(&text, 512).unwrap();
            assert_eq!(long.ids[..wanted.len()], wanted, "{text:?}");
            assert!(long.ids[wanted.len()..].iter().all(|id| *id == 0) && long.left_out.is_none(), "{text:?}");
        }
    }

    #[test]
    fn a_text_that_is_cut_keeps_its_end() {
        let tokenizer = T5Tokenizer::usual().unwrap();
        let whole = tokenizer.encode("a red apple on a table", 77).unwrap();
        let cut = tokenizer.encode("a red apple on a table", 4).unwrap();
        assert_eq!((&cut.ids[..3], cut.ids[3]), (&whole.ids[..3], 1));
        assert!(cut.left_out.unwrap().ends_with("on a table"));
        assert!(T5Tokenizer::from_json("here", "{}").unwrap_err().to_string().starts_with("here"));
    }
}
