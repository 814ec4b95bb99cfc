//! Which texts reach a sampler's side of the guidance.
//!
//! # What is refused
//! A text that a node makes while it runs is not in the image: it is reported as unknown, and nothing stands in for it.

use super::graph::{Graph, Link};
use serde_json::{Map, Value};
use std::collections::HashSet;

/// Which side of the guidance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Side {
    Positive,
    Negative,
}

impl Side {
    fn key(self) -> &'static str {
        match self {
            Side::Positive => "positive",
            Side::Negative => "negative",
        }
    }

    /// Inputs with this side's text, where a node has both.
    fn texts(self) -> [&'static str; 4] {
        match self {
            Side::Positive => ["positive", "text_positive", "positive_prompt", "positive_text"],
            Side::Negative => ["negative", "text_negative", "negative_prompt", "negative_text"],
        }
    }
}

/// What was found behind an input.
#[derive(Debug, Default)]
pub(super) struct FoundPrompt<'a> {
    /// The texts, each once, in their order.
    pub(super) texts: Vec<String>,
    /// Nodes whose text is not known.
    pub(super) unknown: Vec<&'a str>,
    /// Zeros stand in for a text.
    pub(super) zeroed: bool,
}

impl FoundPrompt<'_> {
    /// The one text that it is.
    pub(super) fn joined(&self) -> Option<String> {
        let texts: Vec<&str> = self.texts.iter().map(|text| text.trim()).collect();
        let said: Vec<&str> = texts.iter().copied().filter(|text| !text.is_empty()).collect();
        match (said.is_empty(), texts.is_empty()) {
            (false, _) => Some(said.join(", ")),
            // A text that is written down, and empty.
            (true, false) if self.unknown.is_empty() => Some(String::new()),
            _ => None,
        }
    }
}

/// Inputs that hold a node's one text. The first that is there counts.
const ONE_TEXT: &[&str] = &[
    "populated_text",
    "text",
    "Text",
    "string",
    "String",
    "value",
    "prompt",
    "prompt_text",
    "wildcard_text",
    "text_positive",
    "multiline_text",
];
/// Inputs of encoders with more than one text.
const SEVERAL_TEXTS: &[&str] = &["text_g", "text_l", "prompt_g", "prompt_l", "clip_l", "clip_g", "t5xxl"];
/// Words in the class of a node that makes a text while it runs, in lower case: what it is given is not what it hands on.
const MAKES_TEXT: &[&str] = &[
    "generate",
    "random",
    "caption",
    "interrogat",
    "tagger",
    "florence",
    "ollama",
    "llm",
    "gpt",
    "gemini",
    "translat",
    "wildcard",
    "text load line",
    "load text",
    "parse tokens",
    "add token",
];
/// The text that such a node says it has made.
const MADE: &str = "populated_text";
/// What a node showed when it ran last: the last resort.
const SHOWN: &str = "text_0";
/// Inputs that carry no text.
const NO_TEXT: &[&str] = &[
    "clip",
    "vae",
    "model",
    "image",
    "images",
    "pixels",
    "control_net",
    "style_model",
    "clip_vision",
    "clip_vision_output",
    "mask",
    "samples",
    "latent",
    "latent_image",
    "noise",
    "sigmas",
    "sampler",
    "unclip_conditioning",
    "optional_vae",
    "lora_stack",
    "cnet_stack",
];
/// Nodes in a row.
const DEEPEST: usize = 100;

impl Graph {
    /// The texts that reach a conditioning.
    pub(super) fn prompt<'a>(&'a self, start: Link<'a>, side: Side, used: &mut HashSet<&'a str>) -> FoundPrompt<'a> {
        let mut prompt = FoundPrompt::default();
        let mut waiting = vec![(start, side)];
        let mut seen = HashSet::new();
        while let Some((link, side)) = waiting.pop() {
            if !seen.insert((link, side)) {
                continue;
            }
            let class = self.class(link.node);
            if class.contains("ZeroOut") {
                prompt.zeroed = true;
                used.insert(link.node);
                continue;
            }
            let Some(inputs) = self.inputs(link.node) else { continue };
            // A node with both sides hands them on under its first two outputs; a loader has them as texts.
            let both = inputs.get("positive").and_then(|v| self.linked(v)).zip(inputs.get("negative").and_then(|v| self.linked(v)));
            if let Some((positive, negative)) = both {
                let side = match link.output {
                    0 => Side::Positive,
                    1 => Side::Negative,
                    _ => side,
                };
                waiting.push((if side == Side::Positive { positive } else { negative }, side));
                continue;
            }
            if let Some(chosen) = self.switched(link.node) {
                match chosen.and_then(|value| self.linked(value)) {
                    Some(link) => waiting.push((link, side)),
                    None => prompt.unknown.push(link.node),
                }
                continue;
            }
            match self.text_of(link, side, used, 0) {
                Some(Ok(text)) => {
                    used.insert(link.node);
                    if !prompt.texts.contains(&text) {
                        prompt.texts.push(text);
                    }
                    continue;
                }
                Some(Err(node)) => {
                    prompt.unknown.push(node);
                    continue;
                }
                None => {}
            }
            let before = waiting.len();
            let links = inputs.iter().rev().filter(|(key, _)| !NO_TEXT.contains(&key.as_str()) && *key != other(side).key());
            waiting.extend(links.filter_map(|(_, value)| self.linked(value)).map(|link| (link, side)));
            if waiting.len() == before {
                prompt.unknown.push(link.node);
            }
        }
        prompt
    }

    /// The text that a node has: `Err` with the node where it cannot be known, nothing where the node has no text of its own.
    fn text_of<'a>(&'a self, link: Link<'a>, side: Side, used: &mut HashSet<&'a str>, depth: usize) -> Option<Result<String, &'a str>> {
        let inputs = self.inputs(link.node)?;
        if depth > DEEPEST {
            return Some(Err(link.node));
        }
        let class = self.class(link.node).to_lowercase();
        if MAKES_TEXT.iter().any(|word| class.contains(word)) && !inputs.get(MADE).is_some_and(Value::is_string) {
            return Some(Err(link.node));
        }
        if let Some(chosen) = self.switched(link.node) {
            let text = chosen.and_then(|value| self.text_behind(value, link.node, side, used, depth));
            return Some(text.unwrap_or(Err(link.node)));
        }
        if let Some(joined) = self.concatenated(link.node, inputs, side, used, depth) {
            return Some(joined);
        }
        // Stylers have both sides' texts, and an output for each.
        let by_output = if inputs.contains_key("text_positive") && link.output == 1 { Side::Negative } else { side };
        let mut keys = by_output.texts().into_iter().chain(ONE_TEXT.iter().copied());
        let one = keys.find_map(|key| inputs.get(key).filter(|value| is_text(value, self)));
        let first = one.and_then(|value| self.text_behind(value, link.node, side, used, depth));
        if class.contains("replace") {
            let part = |key: &str| self.text_behind(inputs.get(key)?, link.node, side, used, depth)?.ok();
            return Some(replaced(first, part).unwrap_or(Err(link.node)));
        }
        if let Some(Ok(text)) = &first
            && !text.is_empty()
        {
            return first;
        }
        let mut texts: Vec<String> = Vec::new();
        let mut unknown = None;
        for value in SEVERAL_TEXTS.iter().filter_map(|key| inputs.get(*key)).filter(|value| is_text(value, self)) {
            match self.text_behind(value, link.node, side, used, depth) {
                // SDXL's two encoders mostly get the same text.
                Some(Ok(text)) if !text.is_empty() && !texts.contains(&text) => texts.push(text),
                Some(Err(node)) => unknown = Some(node),
                _ => {}
            }
        }
        if !texts.is_empty() {
            return Some(Ok(texts.join(", ")));
        }
        if let Some(text) = inputs.get(SHOWN).and_then(Value::as_str) {
            return Some(Ok(text.to_owned()));
        }
        first.or(unknown.map(Err)).or_else(|| only_text(inputs).map(|text| Ok(text.to_owned())))
    }

    /// The text that a value of a node is, or leads to.
    fn text_behind<'a>(
        &'a self,
        value: &'a Value,
        node: &'a str,
        side: Side,
        used: &mut HashSet<&'a str>,
        depth: usize,
    ) -> Option<Result<String, &'a str>> {
        if let Some(text) = value.as_str() {
            return Some(Ok(text.to_owned()));
        }
        let Some(link) = self.linked(value) else { return Some(Err(node)) };
        let text = self.text_of(link, side, used, depth + 1);
        if matches!(text, Some(Ok(_))) {
            used.insert(link.node);
        }
        Some(text.unwrap_or(Err(link.node)))
    }

    /// What a node makes of several texts by putting them behind each other; nothing where it does not do that.
    fn concatenated<'a>(
        &'a self,
        node: &'a str,
        inputs: &'a Map<String, Value>,
        side: Side,
        used: &mut HashSet<&'a str>,
        depth: usize,
    ) -> Option<Result<String, &'a str>> {
        let mut parts: Vec<(&String, &Value)> = inputs.iter().filter(|(key, value)| is_part(key) && is_text(value, self)).collect();
        if parts.len() < 2 {
            return None;
        }
        parts.sort_by_key(|(key, _)| part_number(key));
        let mut texts = Vec::new();
        for (_, value) in parts {
            match self.text_behind(value, node, side, used, depth)? {
                Ok(text) => texts.push(text),
                Err(node) => return Some(Err(node)),
            }
        }
        if inputs.get("action").and_then(Value::as_str) == Some("replace") {
            let mut texts = texts.into_iter();
            let (text, from) = (texts.next()?, texts.next()?);
            return Some(Ok(text.replace(&from, &texts.next().unwrap_or_default())));
        }
        let delimiter =
            ["delimiter", "separator", "delim"].iter().find_map(|key| inputs.get(*key)?.as_str()).map(|text| text.replace("\\n", "\n"));
        let delimiter = delimiter.unwrap_or_else(|| {
            let lines = inputs.get("linebreak_addition").is_some_and(|lines| lines == "true" || lines == &Value::Bool(true));
            match (lines, inputs.contains_key("tidy_tags")) {
                (true, _) => "\n".into(),
                (false, true) => ", ".into(),
                (false, false) => String::new(),
            }
        });
        let around = |key: &str| inputs.get(key).and_then(Value::as_str).filter(|text| !text.is_empty()).map(str::to_owned);
        let said = texts.into_iter().filter(|text| !text.is_empty());
        let all: Vec<String> = around("prefix").into_iter().chain(said).chain(around("suffix")).collect();
        Some(Ok(all.join(&delimiter)))
    }

    /// What a node that lets one of several inputs through has chosen: nothing where it is no such node, `Some(None)` where that cannot be
    /// known.
    fn switched<'a>(&'a self, node: &str) -> Option<Option<&'a Value>> {
        if !self.class(node).to_lowercase().contains("switch") {
            return None;
        }
        let inputs = self.inputs(node)?;
        let mut unused = HashSet::new();
        let chosen = ["switch", "boolean", "condition", "select", "Input", "index"].iter().find_map(|key| Some((*key, inputs.get(*key)?)));
        let Some((key, value)) = chosen else {
            // The first that is connected.
            return Some(inputs.iter().find(|(key, value)| key.starts_with("any") && value.is_array()).map(|(_, value)| value));
        };
        let held =
            if let Some(link) = self.linked(value) { self.inputs(link.node).and_then(|inputs| inputs.get("value")) } else { Some(value) };
        if let Some(Value::Bool(yes)) = held {
            let keys: &[&str] = if *yes { &["on_true", "true", "input_true"] } else { &["on_false", "false", "input_false"] };
            return Some(keys.iter().find_map(|key| inputs.get(*key)));
        }
        let number = self.number(value, key, &mut unused);
        let names =
            number.map(|number| ["input", "text", "value", "conditioning_", "input_", "text_"].map(|name| format!("{name}{number}")));
        Some(names.and_then(|names| names.iter().find_map(|name| inputs.get(name))))
    }
}

/// A text with one part of it exchanged for another; nothing where any of the three is not known.
fn replaced(text: Option<Result<String, &str>>, mut part: impl FnMut(&str) -> Option<String>) -> Option<Result<String, &str>> {
    let text = text?.ok()?;
    Some(Ok(text.replace(&part("find")?, &part("replace")?)))
}

fn other(side: Side) -> Side {
    if side == Side::Positive { Side::Negative } else { Side::Positive }
}

/// A text, or a link that may lead to one.
fn is_text(value: &Value, graph: &Graph) -> bool {
    value.is_string() || graph.linked(value).is_some()
}

/// `text_a`, `string1`, `part2`: one of several texts.
fn is_part(key: &str) -> bool {
    part_number(key).is_some()
}

fn part_number(key: &str) -> Option<u32> {
    let rest = ["text", "string", "part", "prompt", "str"].iter().find_map(|name| key.strip_prefix(name))?;
    match rest.trim_start_matches('_') {
        letter if letter.len() == 1 && letter.bytes().all(|byte| (b'a'..=b'f').contains(&byte)) => letter.chars().next().map(u32::from),
        // `text_0` alone is what was shown; it is no part without a `text_1`, and the caller wants two.
        digits => digits.parse().ok(),
    }
}

/// The one long text among a node's inputs, where it has one and no link.
fn only_text(inputs: &Map<String, Value>) -> Option<&str> {
    let mut texts = inputs.iter().filter(|(key, _)| ["text", "prompt", "string"].iter().any(|word| key.to_lowercase().contains(word)));
    let (_, text) = texts.next()?;
    if texts.next().is_some() { None } else { text.as_str() }
}
