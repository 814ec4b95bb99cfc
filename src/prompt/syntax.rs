//! Whose language a prompt is written in, and what that language has.

use std::str::FromStr;

/// The language of a prompt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum PromptSyntax {
    /// AUTOMATIC1111's, which Forge, SD.Next and stable-diffusion.cpp share in great part.
    #[default]
    A1111,
    /// ComfyUI's text encoder node.
    ComfyUi,
    /// The text as it stands, as diffusers takes it.
    Plain,
}

/// What a language has.
#[derive(Debug, Clone, Copy)]
pub(super) struct Dialect {
    pub(super) name: &'static str,
    /// `# …` to the end of a line.
    pub(super) comments: bool,
    /// `<kind:name:weight>`.
    pub(super) networks: bool,
    /// `AND`.
    pub(super) conjunctions: bool,
    /// `[from:to:when]` and `[a|b]`.
    pub(super) schedules: bool,
    /// Brackets that mean a weight, in pairs.
    pub(super) brackets: &'static [(char, char)],
}

impl PromptSyntax {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::A1111, Self::ComfyUi, Self::Plain];

    pub(super) fn dialect(self) -> Dialect {
        match self {
            Self::A1111 => Dialect {
                name: "a1111",
                comments: true,
                networks: true,
                conjunctions: true,
                schedules: true,
                brackets: &[('(', ')'), ('[', ']')],
            },
            Self::ComfyUi => Dialect {
                name: "comfyui",
                comments: false,
                networks: false,
                conjunctions: false,
                schedules: false,
                brackets: &[('(', ')')],
            },
            Self::Plain => {
                Dialect { name: "plain", comments: false, networks: false, conjunctions: false, schedules: false, brackets: &[] }
            }
        }
    }

    /// The name on the command line.
    pub fn name(self) -> &'static str {
        self.dialect().name
    }
}

/// How A1111 applies weights to embeddings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum Emphasis {
    /// Weighted, then rescaled so that the mean stays what it was.
    #[default]
    Original,
    /// Weighted only.
    NoNorm,
    /// Brackets are understood, and their weights left out.
    Ignore,
    /// Brackets are text.
    None,
}

impl Emphasis {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Original, Self::NoNorm, Self::Ignore, Self::None];

    /// The name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Original => "original",
            Self::NoNorm => "no-norm",
            Self::Ignore => "ignore",
            Self::None => "none",
        }
    }
}

impl FromStr for PromptSyntax {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        named(text, &Self::ALL, Self::name)
    }
}

impl FromStr for Emphasis {
    type Err = String;

    /// A1111 writes `No norm` into its images.
    fn from_str(text: &str) -> Result<Self, String> {
        named(text, &Self::ALL, Self::name)
    }
}

fn named<T: Copy>(text: &str, all: &[T], name: fn(T) -> &'static str) -> Result<T, String> {
    let folded = text.trim().to_lowercase().replace([' ', '_'], "-");
    all.iter().copied().find(|&one| name(one) == folded).ok_or_else(|| {
        let names: Vec<_> = all.iter().map(|&one| name(one)).collect();
        format!("{text:?} is none of {}", names.join(", "))
    })
}
