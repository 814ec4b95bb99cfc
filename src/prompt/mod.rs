//! The prompt language: a text becomes parts, a timeline and words with weights.
//!
//! This module knows neither tokens nor models, and depends on nothing. What a prompt means follows the tool whose [`PromptSyntax`] it is
//! written in, to the last bit of a weight; where a tool fails, the text is taken as it stands and a [`Slip`] says so. Nesting is
//! bounded by [`DEEPEST_NESTING`] and every parser takes time in proportion to the text.
//!
//! The order of the passes is A1111's and part of the meaning: comments are cut, `<kind:name:weight>` tags are taken out, `AND` cuts the
//! prompt into parts, each part's `[from:to:when]` and `[a|b]` become a timeline of texts, and each text becomes words with weights.
//!
//! # Source
//! A1111: lllyasviel/stable-diffusion-webui-forge@dfdcbab:modules/prompt_parser.py, extra_networks.py, processing_scripts/comments.py;
//! ComfyUI: Comfy-Org/ComfyUI@a125cd84:comfy/sd1_clip.py.

mod attention;
mod comfyui;
mod comments;
mod conjunction;
pub mod dynamic;
mod networks;
mod schedule;
mod slips;
mod styles;
mod syntax;
mod view;

pub use networks::{LoraTag, NetworkTag};
pub use schedule::PromptScheduling;
pub use slips::Slip;
pub use styles::{PromptStyle, StyleSheet};
pub use syntax::{Emphasis, PromptSyntax};

use crate::{Error, Result};

/// Brackets within brackets: more than anybody means, and few enough that every text is read in a bounded time.
pub const DEEPEST_NESTING: usize = 500;

/// Bytes of all the texts of a timeline together.
const LONGEST_TIMELINE: usize = 64 << 20;

/// How a prompt is to be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PromptReading {
    /// Whose language it is.
    pub syntax: PromptSyntax,
    /// With [`Emphasis::None`] brackets are text.
    pub emphasis: Emphasis,
    /// What the numbers of `[from:to:when]` count.
    pub scheduling: PromptScheduling,
    /// Calls of the denoising network: the steps, twice the steps for samplers with two calls a step.
    pub steps: usize,
    /// For the second pass of hires: its calls, after the `steps` of the first.
    pub hires_steps: Option<usize>,
    /// A1111 reads neither `AND` nor tags in the negative prompt.
    pub negative: bool,
}

/// A text of one weight.
#[derive(Debug, Clone, PartialEq)]
pub struct WeightedText {
    /// The text, with escapes resolved.
    pub text: String,
    /// 1 changes nothing.
    pub weight: f64,
}

impl WeightedText {
    pub(crate) fn new(text: impl Into<String>, weight: f64) -> Self {
        Self { text: text.into(), weight }
    }

    /// A1111's mark for `BREAK`: the tokens before it fill their chunk with padding.
    pub fn is_break(&self) -> bool {
        self.weight == -1.0 && self.text == "BREAK"
    }
}

/// A text that holds for some calls of the network.
#[derive(Debug, Clone, PartialEq)]
pub struct TimedPrompt {
    /// The last call, counted from 0, that sees it.
    pub until: usize,
    /// The text as written.
    pub text: String,
    /// The text as understood.
    pub words: Vec<WeightedText>,
}

/// What stands between two `AND`s.
#[derive(Debug, Clone, PartialEq)]
pub struct PromptPart {
    /// The part's share of the guidance.
    pub weight: f64,
    /// In the order of the calls; never empty.
    pub timeline: Vec<TimedPrompt>,
}

impl PromptPart {
    /// The entry of the timeline that holds at a call of the network, counted from 0.
    ///
    /// A call after the last one sees the first entry: A1111 does so where an adaptive sampler takes more calls than steps.
    pub fn at(&self, call: usize) -> usize {
        self.timeline.iter().position(|entry| call <= entry.until).unwrap_or(0)
    }
}

/// A prompt as it was understood.
#[derive(Debug, Clone, PartialEq)]
pub struct Prompt {
    /// How it was read.
    pub reading: PromptReading,
    /// Never empty.
    pub parts: Vec<PromptPart>,
    /// `<kind:name:weight>`, in the order of the text.
    pub networks: Vec<NetworkTag>,
    /// What looks like a slip of the pen.
    pub slips: Vec<Slip>,
}

impl Prompt {
    /// Reads a prompt.
    ///
    /// # Errors
    /// Brackets are nested deeper than [`DEEPEST_NESTING`], or the timeline's texts are too long together.
    pub fn parse(source: &str, reading: PromptReading) -> Result<Self> {
        let dialect = reading.syntax.dialect();
        let mut text = if dialect.comments { comments::strip(source) } else { source.to_owned() };
        let mut networks = Vec::new();
        if dialect.networks && !reading.negative {
            (text, networks) = networks::take(&text);
        }
        let parts = match dialect.conjunctions && !reading.negative {
            true => conjunction::split(&text),
            false => vec![(text, 1.0)],
        };
        let part = |(text, weight): (String, f64)| {
            let timeline = match dialect.schedules {
                true => schedule::timeline(&text, &reading)?,
                false => vec![(reading.hires_steps.unwrap_or(reading.steps), text)],
            };
            let (syntax, emphasis) = (reading.syntax, reading.emphasis);
            let understood = |(until, text): (usize, String)| Ok(TimedPrompt { until, words: syntax.words(&text, emphasis)?, text });
            Ok(PromptPart { weight, timeline: timeline.into_iter().map(understood).collect::<Result<_>>()? })
        };
        let parts = parts.into_iter().map(part).collect::<Result<_>>()?;
        Ok(Self { reading, parts, networks, slips: slips::find(source, &reading) })
    }

    /// The weights of the parts that `AND` makes of a prompt, without all else that [`Prompt::parse`] finds out.
    pub fn part_weights(source: &str, syntax: PromptSyntax) -> Vec<f64> {
        if !syntax.dialect().conjunctions {
            return vec![1.0];
        }
        let (text, _) = networks::take(&comments::strip(source));
        conjunction::split(&text).into_iter().map(|(_, weight)| weight).collect()
    }

    /// The prompt means the same at every call and in one part.
    pub fn is_constant(&self) -> bool {
        matches!(&self.parts[..], [part] if part.timeline.len() == 1)
    }
}

impl PromptSyntax {
    /// Words with weights of a text without schedules, such as [`TimedPrompt::text`].
    ///
    /// # Errors
    /// Brackets are nested deeper than [`DEEPEST_NESTING`].
    pub fn words(self, text: &str, emphasis: Emphasis) -> Result<Vec<WeightedText>> {
        match self {
            Self::A1111 if emphasis != Emphasis::None => attention::parse(text),
            Self::ComfyUi => comfyui::parse(text),
            Self::A1111 | Self::Plain => Ok(vec![WeightedText::new(text, 1.0)]),
        }
    }
}

/// The error for brackets within brackets within brackets.
fn too_deep() -> Error {
    Error::Input(format!("the prompt's brackets are nested deeper than {DEEPEST_NESTING} levels; close some of them"))
}

/// The number that all of `text` is.
///
/// Python's `float` takes blanks around a number and `_` between digits; what is no finite number is none here.
fn python_float(text: &str) -> Option<f64> {
    let text = text.trim();
    let bytes = text.as_bytes();
    let between_digits = |at: usize| {
        let digit = |at: Option<usize>| at.and_then(|at| bytes.get(at)).is_some_and(u8::is_ascii_digit);
        digit(at.checked_sub(1)) && digit(at.checked_add(1))
    };
    if bytes.iter().enumerate().any(|(at, &c)| c == b'_' && !between_digits(at)) {
        return None;
    }
    text.replace('_', "").parse().ok().filter(|value: &f64| value.is_finite())
}

#[cfg(test)]
pub(crate) mod tests;
