//! Encoded texts, kept while their model is loaded: equal prompts are encoded once, and so is the negative prompt of a thousand.

use crate::Result;
use crate::pipeline::{Conditioning, EncodedText, Observer, Pipeline, Stage, TextKey};
use crate::settings::Request;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

/// Bytes of encodings that are kept.
const ROOM: usize = 64 << 20;
/// Encodings that are kept, however small: as many as have room of an SD1.5. The texts themselves are kept with them.
const MOST: usize = 256;

/// What decides an encoding, and what adapters make of the text encoders.
type AdaptedKey = (TextKey, String);

/// The texts of one pipeline.
#[derive(Debug, Default)]
pub(super) struct Texts {
    known: HashMap<AdaptedKey, Arc<EncodedText>>,
    /// The longest unused first.
    order: VecDeque<AdaptedKey>,
    bytes: usize,
}

impl Texts {
    /// What the networks are told of a request.
    pub(super) fn condition(&mut self, pipeline: &Pipeline, request: &Request, observer: &mut dyn Observer) -> Result<Conditioning> {
        let mut said = false;
        pipeline.encode_prompt_with(request, observer, &mut |encoder, text, adapters, observer| {
            // The refiner encodes for itself.
            let whose = if std::ptr::eq(encoder, pipeline) { "" } else { request.passes.refiner.as_ref().map_or("", |file| file.name()) };
            let key = (text.key.clone(), format!("{whose}\n{}", adapters.text_signature()));
            if let Some(known) = self.known.get(&key).cloned() {
                self.order.retain(|other| *other != key);
                self.order.push_back(key);
                return Ok(known);
            }
            if !said {
                observer.stage(Stage::EncodePrompt)?;
                said = true;
            }
            let new = Arc::new(encoder.encode_text(text, adapters, observer)?);
            self.bytes += new.bytes();
            self.known.insert(key.clone(), new.clone());
            self.order.push_back(key);
            while (self.bytes > ROOM || self.order.len() > MOST)
                && let Some(oldest) = self.order.pop_front()
            {
                self.bytes -= self.known.remove(&oldest).map_or(0, |text| text.bytes());
            }
            Ok(new)
        })
    }
}
