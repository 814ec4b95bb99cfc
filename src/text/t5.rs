//! T5's tokenizer, which a model's `tokenizer.json` describes, and its encoder.

use super::Tokens;
use crate::models::{Scope, T5Encoder};
use crate::spec::T5Spec;
use crate::{Error, Result};
use candle_core::Tensor;
use tokenizers::Tokenizer;

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

    /// The public vocabulary.
    ///
    /// # Errors
    /// It is not compiled in.
    pub fn usual() -> Result<Self> {
        let what = "the model brings no tokenizer for T5 (tokenizer_3/tokenizer.json); give a folder that has it with `tokenizers`, or leave T5 out";
        Err(Error::Model(what.into()))
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

    /// What it says of a text, `(1, length, width)`, and the end of the text that did not fit.
    ///
    /// # Errors
    /// The text cannot be tokenized, or the tokenizer is another model's.
    pub fn encode(&self, text: &str, length: usize) -> Result<(Tensor, Option<String>)> {
        let Tokens { ids, left_out } = self.tokenizer.encode(text, length)?;
        Ok((self.model.forward(&ids)?, left_out))
    }
}
