//! A1111's tags: `<lora:name:weight>`, `<hypernet:name:weight>` and their kin.

use super::{PromptSyntax, comments, python_float};
use crate::{Error, Result};

/// A tag that was taken out of a prompt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkTag {
    /// What stands before the first colon.
    pub kind: String,
    /// What stands between the further colons.
    pub items: Vec<String>,
}

/// What a `<lora:…>` tag asks for.
#[derive(Debug, Clone, PartialEq)]
pub struct LoraTag {
    /// The file's name without its ending, or its alias.
    pub name: String,
    /// The weight on the text encoders: the first number.
    pub text_weight: f64,
    /// The weight on the denoising network: the second number, else the first.
    pub unet_weight: f64,
    /// The rank that it is cut to.
    pub rank: Option<usize>,
}

impl NetworkTag {
    /// The items that are not `name=value`. Two equal signs make no name.
    pub fn positional(&self) -> impl Iterator<Item = &str> {
        self.items.iter().map(String::as_str).filter(|item| name_and_value(item).is_none())
    }

    /// The items that are `name=value`.
    pub fn named(&self) -> impl Iterator<Item = (&str, &str)> {
        self.items.iter().filter_map(|item| name_and_value(item))
    }

    /// The tag as it stands in the prompt.
    pub fn written(&self) -> String {
        format!("<{}:{}>", self.kind, self.items.join(":"))
    }

    /// The tag as a LoRA, if its kind says so: `lora`, or A1111's other name for it, `lyco`.
    ///
    /// # Errors
    /// It names no file, or a weight or the rank is no number.
    pub fn as_lora(&self) -> Option<Result<LoraTag>> {
        matches!(self.kind.as_str(), "lora" | "lyco").then(|| self.lora())
    }

    /// The tags of a prompt, without all else that is found out about it.
    pub fn of_prompt(source: &str, syntax: PromptSyntax) -> Vec<NetworkTag> {
        let dialect = syntax.dialect();
        let text = if dialect.comments { comments::strip(source) } else { String::new() };
        if dialect.networks { find(&text).into_iter().map(|(_, tag)| tag).collect() } else { Vec::new() }
    }

    fn lora(&self) -> Result<LoraTag> {
        let wrong = |what: String| Error::Input(format!("{} in the prompt: {what}; write <lora:name:weight>", self.written()));
        let positional: Vec<&str> = self.positional().collect();
        let name = positional.first().ok_or_else(|| wrong("it names no file".into()))?;
        // As in a Python dictionary, the last of two equal names holds.
        let named = |wanted: &str| self.named().filter(|(name, _)| *name == wanted).last().map(|(_, value)| value);
        let given = |place: usize, name: &str| named(name).or(positional.get(place).copied());
        let weight = |text: &str| python_float(text).ok_or_else(|| wrong(format!("{text:?} is no weight")));
        // A1111 reads the number in its place also where a name says otherwise.
        for place in [1, 2] {
            positional.get(place).map(|text| weight(text)).transpose()?;
        }
        let text_weight = given(1, "te").map_or(Ok(1.0), weight)?;
        let unet_weight = given(2, "unet").map_or(Ok(text_weight), weight)?;
        let rank = given(3, "dyn").map(|text| text.trim().parse().map_err(|_| wrong(format!("{text:?} is no rank")))).transpose()?;
        Ok(LoraTag { name: (*name).to_owned(), text_weight, unet_weight, rank })
    }
}

fn name_and_value(item: &str) -> Option<(&str, &str)> {
    item.split_once('=').filter(|(_, value)| !value.contains('='))
}

/// The text without its tags, and the tags.
pub(super) fn take(text: &str) -> (String, Vec<NetworkTag>) {
    let mut left = String::with_capacity(text.len());
    let mut tags = Vec::new();
    let mut from = 0;
    for (range, tag) in find(text) {
        left.push_str(&text[from..range.start]);
        from = range.end;
        tags.push(tag);
    }
    left.push_str(&text[from..]);
    (left, tags)
}

/// Where the tags stand.
pub(super) fn find(text: &str) -> Vec<(std::ops::Range<usize>, NetworkTag)> {
    let mut found = Vec::new();
    let mut from = 0;
    while let Some(start) = text[from..].find('<').map(|at| at + from) {
        from = start + 1;
        let kind = &text[from..];
        let kind = &kind[..kind.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(kind.len())];
        let Some(items) = text[from + kind.len()..].strip_prefix(':').filter(|_| !kind.is_empty()) else { continue };
        // No closing bracket after this one: none after the others either.
        let Some(length) = items.find('>') else { break };
        if length > 0 {
            let items = items[..length].split(':').map(String::from).collect();
            let end = from + kind.len() + 1 + length + 1;
            found.push((start..end, NetworkTag { kind: kind.to_owned(), items }));
            from = end;
        }
    }
    found
}
