//! What the texts are, and how they are encoded.

use super::value::{Said, ValueSlot};
use super::{By, Heading, Request, Setting, Together, Value, ValueKind};
use crate::prompt::{Emphasis, PromptSyntax};
use crate::sampling::Like;
use crate::spec::ModelSpec;

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
    prompt_syntax: one PromptSyntax = |by| syntax_of(by.like) => Setting {
        name: "prompt-syntax", value: "SYNTAX", default: "a1111", infotext: Some("Prompt syntax"), off: Some("a1111"), follows_like: true,
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

    /// What --clip-skip counts: beyond (the model's own layer is 1), last (the encoder's last layer is 1; ComfyUI, stable-diffusion.cpp) or sd1-only (A1111: nothing where the model has a layer of its own)
    clip_skip_counts: one ClipSkipCount = |by| by.like.map_or(ClipSkipCount::Beyond, ClipSkipCount::of) => Setting {
        name: "clip-skip-counts", value: "HOW", default: "beyond", heading: Heading::Model, words: || ClipSkipCount::NAMES.to_vec(),
        infotext: Some("Clip skip counts"), off: Some("beyond"), follows_like: true, together: Together::Free, ..Setting::IMAGE
    };

    /// What the model is told for an empty negative prompt: model (zeros where the model wants them for none at all, as diffusers), encode (ComfyUI), zero (A1111 with SDXL) or zero-context (stable-diffusion.cpp with SDXL)
    empty_negative: one EmptyNegative = |by| EmptyNegative::of(by) => Setting {
        name: "empty-negative", value: "HOW", default: "model", words: || EmptyNegative::NAMES.to_vec(), infotext: Some("Empty negative"),
        off: Some("model"), follows_like: true, together: Together::Free, ..Setting::IMAGE
    };

    /// Leaves T5 out (Stable Diffusion 3): its tokens are zeros, and it is not loaded
    no_t5: one bool = |_| false => Setting {
        name: "no-t5", heading: Heading::Model, infotext: Some("No T5"), off: Some("false"), together: Together::Free, ..Setting::IMAGE
    };

    /// Tokens of T5 (Stable Diffusion 3); what is longer is cut
    t5_tokens: one usize = |_| 256 => Setting {
        name: "t5-tokens", value: "N", default: "256", heading: Heading::Model, range: Some((1.0, 512.0)), infotext: Some("T5 tokens"),
        off: Some("256"), ..Setting::IMAGE
    };
}

/// Whose language prompts are written in, where a tool is named.
pub(super) fn syntax_of(like: Option<Like>) -> PromptSyntax {
    match like {
        None | Some(Like::A1111 | Like::SdCpp) => PromptSyntax::A1111,
        Some(Like::ComfyUi) => PromptSyntax::ComfyUi,
        Some(Like::Diffusers) => PromptSyntax::Plain,
    }
}

/// What the number of `--clip-skip` counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClipSkipCount {
    /// From the layer that the model takes.
    Beyond,
    /// From the encoder's last layer.
    Last,
    /// From the last layer, and nothing where the model takes another.
    Sd1Only,
}

impl ClipSkipCount {
    const NAMES: [&'static str; 3] = ["beyond", "last", "sd1-only"];

    fn of(like: Like) -> Self {
        match like {
            Like::Diffusers => Self::Beyond,
            Like::A1111 => Self::Sd1Only,
            Like::ComfyUi | Like::SdCpp => Self::Last,
        }
    }

    fn name(&self) -> &'static str {
        match self {
            Self::Beyond => "beyond",
            Self::Last => "last",
            Self::Sd1Only => "sd1-only",
        }
    }

    fn from_name(name: &str) -> Result<Self, &'static str> {
        [Self::Beyond, Self::Last, Self::Sd1Only].into_iter().find(|count| count.name() == name).ok_or("give beyond, last or sd1-only")
    }
}

words!(ClipSkipCount, ClipSkipCount::from_name, ClipSkipCount::name);

/// What the network is told for an empty negative prompt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EmptyNegative {
    /// Zeros where there is none at all and the model wants that; an empty text is encoded.
    Model,
    /// The encoding of an empty text.
    Encode,
    /// Zeros.
    Zero,
    /// Zeros in the place of its tokens, and the encoding's pooled vector.
    ZeroContext,
}

impl EmptyNegative {
    const NAMES: [&'static str; 4] = ["model", "encode", "zero", "zero-context"];

    fn of(by: &By<'_>) -> Self {
        let is_xl = by.spec.unet.text_time.is_some();
        match by.like {
            None | Some(Like::Diffusers) => Self::Model,
            Some(Like::A1111) if is_xl => Self::Zero,
            Some(Like::SdCpp) if is_xl => Self::ZeroContext,
            Some(_) => Self::Encode,
        }
    }

    fn name(&self) -> &'static str {
        match self {
            Self::Model => "model",
            Self::Encode => "encode",
            Self::Zero => "zero",
            Self::ZeroContext => "zero-context",
        }
    }

    fn from_name(name: &str) -> Result<Self, &'static str> {
        let all = [Self::Model, Self::Encode, Self::Zero, Self::ZeroContext];
        all.into_iter().find(|how| how.name() == name).ok_or("give model, encode, zero or zero-context")
    }
}

words!(EmptyNegative, EmptyNegative::from_name, EmptyNegative::name);

words!(PromptSyntax, str::parse::<PromptSyntax>, |syntax: &PromptSyntax| syntax.name());
words!(Emphasis, str::parse::<Emphasis>, |emphasis: &Emphasis| emphasis.name());

impl TextSettings {
    /// Layers of the text encoder that are left out beyond those that the family leaves out.
    pub(super) fn skip_layers(&self, spec: &ModelSpec) -> usize {
        let said = self.clip_skip.saturating_sub(1);
        let own = spec.text_encoders.iter().map(|encoder| encoder.skip_layers).max().unwrap_or(0);
        match self.clip_skip_counts {
            ClipSkipCount::Beyond => said,
            ClipSkipCount::Last => said.saturating_sub(own),
            ClipSkipCount::Sd1Only if own > 0 => 0,
            ClipSkipCount::Sd1Only => said,
        }
    }

    /// Whether the network is told zeros for the tokens of the negative prompt, and for its pooled vector.
    pub fn zero_negative(&self, zero_missing: bool) -> (bool, bool) {
        let is_empty = self.negative_prompt.as_deref().unwrap_or_default().is_empty();
        match self.empty_negative {
            EmptyNegative::Model => {
                let zero = zero_missing && self.negative_prompt.is_none();
                (zero, zero)
            }
            EmptyNegative::Encode => (false, false),
            EmptyNegative::Zero => (is_empty, is_empty),
            EmptyNegative::ZeroContext => (is_empty, false),
        }
    }
}
