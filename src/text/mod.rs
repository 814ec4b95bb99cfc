//! From words to embeddings: tidying, byte-pair tokens, and the text encoders that a family joins.
//!
//! This module knows neither schedules nor the syntax of prompts: it gets texts, or words with weights.

mod chunks;
mod clip_vocabulary;
mod encoder;
mod t5;
mod tidy;
mod tokenizer;
mod weighted;

pub use chunks::{Chunk, a1111_chunks, comfyui_chunks};
pub use clip_vocabulary::{clip_merges, clip_vocab_json};
pub use encoder::{LearnedWord, PromptEmbeds, TextEncoder};
pub use t5::{T5TextEncoder, T5Tokenizer};
pub use tokenizer::{ClipTokenizer, Tokens};
pub use weighted::TimelineText;
