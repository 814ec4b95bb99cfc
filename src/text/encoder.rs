//! A text encoder with its tokenizer: what turns prompts into embeddings.

use super::{ClipTokenizer, Tokens};
use crate::models::{ClipTextModel, Scope};
use crate::spec::TextEncoderSpec;
use crate::{Error, Result};
use candle_core::Tensor;

/// What the UNet is told about a batch of texts.
#[derive(Debug, Clone)]
pub struct PromptEmbeds {
    /// `(texts, tokens, cross attention width)`
    pub hidden: Tensor,
    /// `(texts, pooled width)`, where the family uses it.
    pub pooled: Option<Tensor>,
}

/// A word that a text encoder did not know when it was trained (textual inversion).
#[derive(Debug, Clone)]
pub struct LearnedWord {
    /// As it is written in a prompt.
    pub word: String,
    /// `(vectors, width)`
    pub vectors: Tensor,
}

/// One text encoder.
#[derive(Debug)]
pub struct TextEncoder {
    tokenizer: ClipTokenizer,
    model: ClipTextModel,
    spec: TextEncoderSpec,
}

impl TextEncoder {
    /// Reads the weights.
    ///
    /// # Errors
    /// A tensor is missing or wrong, or the vocabulary is larger than the embedding.
    pub fn load(scope: &Scope<'_>, spec: &TextEncoderSpec, tokenizer: ClipTokenizer) -> Result<Self> {
        let largest = tokenizer.largest_id() as usize;
        if largest >= spec.clip.vocab_size {
            return Err(Error::Model(format!(
                "the vocabulary has {} tokens and the text encoder knows {}; give the model as a folder with its own tokenizer files",
                largest + 1,
                spec.clip.vocab_size
            )));
        }
        Ok(Self { tokenizer, model: ClipTextModel::load(scope, &spec.clip)?, spec: spec.clone() })
    }

    /// Drops the weights and keeps the tokenizer.
    pub fn into_tokenizer(self) -> ClipTokenizer {
        self.tokenizer
    }

    /// Learns words beside its own. Their vectors stand in the place of the tokens that they are written with.
    ///
    /// # Errors
    /// The vectors are of another width, or a word has no tokens.
    pub fn learn(&mut self, words: &[LearnedWord]) -> Result<()> {
        for word in words {
            let ids = self.model.learn(&word.vectors)?;
            self.tokenizer.learn(&word.word, ids)?;
        }
        Ok(())
    }

    /// Tokens of one row, with start and end.
    pub fn max_tokens(&self) -> usize {
        self.tokenizer.special().length
    }

    pub(super) fn tokenizer(&self) -> &ClipTokenizer {
        &self.tokenizer
    }

    /// The token row of a text.
    ///
    /// # Errors
    /// The text cannot be tokenized.
    pub fn tokenize(&self, text: &str) -> Result<Tokens> {
        self.tokenizer.encode(text)
    }

    /// Encodes token rows; `more_skipped` layers are left out beyond those that the family leaves out.
    ///
    /// # Errors
    /// There are not so many layers, or a tensor operation fails.
    pub fn encode(&self, rows: &[Vec<u32>], more_skipped: usize) -> Result<PromptEmbeds> {
        let skip = self.spec.skip_layers + more_skipped;
        if skip >= self.spec.clip.layers {
            return Err(Error::Input(format!(
                "`clip-skip` {}: the text encoder has {} layers to choose from; give a smaller number",
                more_skipped + 1,
                self.spec.clip.layers - self.spec.skip_layers
            )));
        }
        let output = self.model.forward(rows, skip, self.spec.final_norm, self.spec.pooled)?;
        Ok(PromptEmbeds { hidden: output.hidden, pooled: output.pooled })
    }
}
