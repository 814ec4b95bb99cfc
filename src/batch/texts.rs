//! Encoded texts, kept while their model is loaded: equal prompts are encoded once, and so is the negative prompt of a thousand.

use crate::Result;
use crate::pipeline::{Conditioning, EncodedText, Observer, Pipeline, PromptText, Stage, TextKey, prompt_texts};
use crate::settings::Request;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

/// Bytes of encodings that are kept.
const ROOM: usize = 64 << 20;

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
    /// What the UNet is told of a request.
    pub(super) fn condition(&mut self, pipeline: &Pipeline, request: &Request, observer: &mut dyn Observer) -> Result<Conditioning> {
        let mut encoded: Vec<(PromptText, Arc<EncodedText>)> = Vec::new();
        let mut said = false;
        let adapters = pipeline.adapters(request)?;
        let signature = adapters.text_signature();
        for text in prompt_texts(request)? {
            let key = (text.key.clone(), signature.clone());
            if let Some(known) = self.known.get(&key) {
                encoded.push((text, known.clone()));
                self.order.retain(|other| *other != key);
                self.order.push_back(key);
                continue;
            }
            if !said {
                observer.stage(Stage::EncodePrompt)?;
                said = true;
            }
            let new = Arc::new(pipeline.encode_text(&text, &adapters, observer)?);
            self.bytes += new.bytes();
            encoded.push((text, new.clone()));
            self.known.insert(key.clone(), new);
            self.order.push_back(key);
            while self.bytes > ROOM
                && let Some(oldest) = self.order.pop_front()
            {
                self.bytes -= self.known.remove(&oldest).map_or(0, |text| text.bytes());
            }
        }
        pipeline.condition(request, &encoded.iter().map(|(text, encoded)| (text.clone(), &**encoded)).collect::<Vec<_>>())
    }
}
