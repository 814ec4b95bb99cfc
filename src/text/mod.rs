//! From words to embeddings: tidying, byte-pair tokens, and the text encoders that a family joins.
//!
//! This module does not know about prompts' weights or schedules; a text is encoded as it stands.

mod clip_vocabulary;
mod encoder;
mod tidy;
mod tokenizer;

pub use clip_vocabulary::{clip_merges, clip_vocab_json};
pub use encoder::{LearnedWord, PromptEmbeds, TextEncoder};
pub use tokenizer::{ClipTokenizer, Tokens};
