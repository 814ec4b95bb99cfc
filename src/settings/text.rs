//! What the texts are, and how they are encoded.

use super::value::{Said, ValueSlot};
use super::{By, Heading, Request, Setting, Together, Value, ValueKind};
use crate::prompt::{Emphasis, PromptSyntax};

/// A draft may have several prompts, each of which becomes a request.
pub(super) const PROMPT: &[Setting] = &[Setting {
    name: "prompt",
    short: Some('p'),
    value: "TEXT",
    help: "What to generate; repeat for more images; \"-\" reads standard input",
    together: Together::Free,
    many: true,
    kind: ValueKind::Text,
    access: super::Access {
        read: |draft, values| draft.prompts.read(values),
        given: |draft| draft.prompts.typed(),
        decided: |request| vec![request.prompt.clone()],
        json: |request| Value::json(&request.prompt),
        ..Setting::IMAGE.access
    },
    ..Setting::IMAGE
}];

settings! {
    /// The texts beside the prompt.
    TextSettings, TextDraft, draft.text, by By<'_>, of |request: &Request| Some(&request.text);

    /// What not to generate
    negative_prompt: maybe String => Setting {
        name: "negative-prompt", short: Some('n'), value: "TEXT", together: Together::Free, ..Setting::IMAGE
    };

    /// How prompts are read: a1111 ((word:1.2), [from:to:when], AND, BREAK), comfyui ((word:1.2)) or plain (as they stand)
    prompt_syntax: one PromptSyntax = |_| PromptSyntax::A1111 => Setting {
        name: "prompt-syntax", value: "SYNTAX", default: "a1111", infotext: Some("Prompt syntax"), off: Some("a1111"),
        words: || PromptSyntax::ALL.iter().map(|syntax| syntax.name()).collect(), together: Together::Free, ..Setting::IMAGE
    };

    /// How A1111's weights are applied: original (keeps the mean), no-norm, ignore (left out) or none (brackets are text)
    emphasis: one Emphasis = |_| Emphasis::Original => Setting {
        name: "emphasis", value: "HOW", default: "original", infotext: Some("Emphasis"), off: Some("original"),
        words: || Emphasis::ALL.iter().map(|emphasis| emphasis.name()).collect(), together: Together::Free, ..Setting::IMAGE
    };

    /// Take the prompt from an earlier layer of the text encoder: 1 is the one that the model uses, 2 the one before
    clip_skip: one usize = |_| 1 => Setting {
        name: "clip-skip", value: "N", default: "1", heading: Heading::Model, range: Some((1.0, 1000.0)),
        infotext: Some("Clip skip"), off: Some("1"), together: Together::Free, ..Setting::IMAGE
    };
}

words!(PromptSyntax, str::parse::<PromptSyntax>, |syntax: &PromptSyntax| syntax.name());
words!(Emphasis, str::parse::<Emphasis>, |emphasis: &Emphasis| emphasis.name());

impl TextSettings {
    /// Layers of the text encoder that are left out beyond those that the family leaves out.
    pub fn skip_layers(&self) -> usize {
        self.clip_skip.saturating_sub(1)
    }
}
