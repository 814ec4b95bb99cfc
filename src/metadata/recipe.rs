//! What an image says about its making, in one form for all tools.

use super::json::plain;
use crate::settings::Setting;
use serde_json::{Map, Value};
use std::collections::BTreeMap;

/// What sd-gen has a flag for, or needs to know to set one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[expect(missing_docs, reason = "the names say it; `Field::NAMES` has them as they are shown")]
#[non_exhaustive]
pub enum Field {
    Prompt,
    NegativePrompt,
    Model,
    ModelHash,
    Sampler,
    Schedule,
    Steps,
    GuidanceScale,
    GuidanceRescale,
    Seed,
    Width,
    Height,
    ClipSkip,
    Strength,
    Eta,
    Prediction,
    ZeroSnr,
    TimestepSpacing,
    SchedulerConfig,
    Rng,
    Precision,
    VaePrecision,
    Version,
    /// A setting that no reader needs to know by name.
    Setting(&'static str),
}

impl Field {
    /// Every field by its name in JSON.
    pub const NAMES: &[(&str, Field)] = &[
        ("prompt", Field::Prompt),
        ("negative_prompt", Field::NegativePrompt),
        ("model", Field::Model),
        ("model_hash", Field::ModelHash),
        ("sampler", Field::Sampler),
        ("schedule", Field::Schedule),
        ("steps", Field::Steps),
        ("guidance_scale", Field::GuidanceScale),
        ("guidance_rescale", Field::GuidanceRescale),
        ("seed", Field::Seed),
        ("width", Field::Width),
        ("height", Field::Height),
        ("clip_skip", Field::ClipSkip),
        ("strength", Field::Strength),
        ("eta", Field::Eta),
        ("prediction", Field::Prediction),
        ("zero_snr", Field::ZeroSnr),
        ("timestep_spacing", Field::TimestepSpacing),
        ("scheduler_config", Field::SchedulerConfig),
        ("rng", Field::Rng),
        ("precision", Field::Precision),
        ("vae_precision", Field::VaePrecision),
        ("version", Field::Version),
    ];

    /// The name in JSON.
    pub fn name(self) -> &'static str {
        if let Field::Setting(name) = self {
            return name;
        }
        Self::NAMES.iter().find(|(_, field)| *field == self).map_or("", |(name, _)| name)
    }

    fn is_number(self) -> bool {
        use Field::{ClipSkip, Eta, GuidanceRescale, GuidanceScale, Height, Seed, Steps, Strength, Width};
        matches!(self, Steps | GuidanceScale | GuidanceRescale | Seed | Width | Height | ClipSkip | Strength | Eta)
    }
}

/// A LoRA or its kin, as the tool names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamedLora {
    /// A file's name, or what a site calls it.
    pub name: String,
    /// Its strength, where it is said.
    pub weight: Option<String>,
}

/// What an image says about its making. Everything is text as the tool wrote it, unchecked.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Recipe {
    /// The program that made the image.
    pub tool: String,
    /// What is understood.
    pub fields: BTreeMap<Field, String>,
    /// The LoRAs that took part.
    pub loras: Vec<NamedLora>,
    /// What else is said, in the order in which it stands.
    pub other: Vec<(String, String)>,
}

impl Recipe {
    /// A recipe of `tool` that says nothing yet.
    pub fn of(tool: &str) -> Self {
        Recipe { tool: tool.to_owned(), ..Recipe::default() }
    }

    /// What the image says of `field`.
    pub fn get(&self, field: Field) -> Option<&str> {
        self.fields.get(&field).map(String::as_str)
    }

    /// Notes a field; the first word on it stands.
    pub(super) fn set(&mut self, field: Field, value: impl Into<String>) {
        self.fields.entry(field).or_insert_with(|| value.into());
    }

    /// Notes a field from JSON; nothing where the value is null.
    pub(super) fn set_json(&mut self, field: Field, value: &Value) {
        if let Some(text) = plain(value) {
            self.set(field, text);
        }
    }

    /// Notes `512x768`, `(512, 768)` or `512 × 768 | 2:3` as width and height.
    pub(super) fn set_size(&mut self, size: &str) -> bool {
        let Some((width, height)) = two_sides(size) else { return false };
        self.set(Field::Width, width);
        self.set(Field::Height, height);
        true
    }

    /// Notes a LoRA, unless it is none, or already there.
    pub(super) fn add_lora(&mut self, name: &str, weight: Option<String>) {
        let name = name.trim();
        let known = self.loras.iter().any(|lora| file_stem(&lora.name) == file_stem(name));
        if !name.is_empty() && !known && !is_nothing(name) {
            self.loras.push(NamedLora { name: name.to_owned(), weight });
        }
    }

    /// The LoRAs that stand in a text as `<lora:name:weight>`.
    pub(super) fn add_tagged_loras(&mut self, text: &str) {
        for tag in text.split('<').skip(1).filter_map(|rest| rest.split_once('>')).map(|(tag, _)| tag) {
            let mut parts = tag.split(':');
            if matches!(parts.next(), Some("lora" | "lyco"))
                && let Some(name) = parts.next()
            {
                self.add_lora(name, parts.next().map(str::to_owned));
            }
        }
    }

    /// Takes over from `other` what is not said here.
    pub(super) fn complete(&mut self, other: &Recipe) {
        for (field, value) in &other.fields {
            self.set(*field, value.as_str());
        }
        for lora in &other.loras {
            self.add_lora(&lora.name, lora.weight.clone());
        }
    }

    /// Notes something that no field stands for.
    pub(super) fn add_other(&mut self, name: impl Into<String>, value: &Value) {
        if let Some(text) = plain(value) {
            self.other.push((name.into(), text));
        }
    }

    /// What is known of settings that no field stands for: their names and values.
    pub fn settings(&self) -> impl Iterator<Item = (&'static str, &str)> {
        self.fields.iter().filter_map(|(field, value)| if let Field::Setting(name) = field { Some((*name, value.as_str())) } else { None })
    }

    /// Notes a setting's value; one that may be repeated has a value a line.
    pub(super) fn set_setting(&mut self, row: &Setting, value: &str) {
        let before = self.fields.entry(Field::Setting(row.name)).or_default();
        match before.is_empty() {
            true => value.clone_into(before),
            false if row.many => {
                before.push('\n');
                before.push_str(value);
            }
            false => {}
        }
    }

    /// For programs: numbers as numbers where they are some.
    pub fn json(&self) -> Value {
        let mut map = Map::new();
        map.insert("tool".into(), self.tool.clone().into());
        for (name, field) in Field::NAMES {
            let Some(text) = self.get(*field) else { continue };
            let number = field.is_number().then(|| serde_json::from_str::<serde_json::Number>(text).ok()).flatten();
            map.insert((*name).into(), number.map_or_else(|| text.into(), Value::Number));
        }
        let loras = self.loras.iter().map(|lora| {
            let weight = lora.weight.as_ref().map(|text| serde_json::from_str(text).map_or_else(|_| text.as_str().into(), Value::Number));
            serde_json::json!({ "name": lora.name, "weight": weight })
        });
        map.insert("loras".into(), loras.collect());
        map.extend(self.settings().map(|(name, value)| (name.replace('-', "_"), value.into())));
        map.insert("other".into(), self.other.iter().map(|(name, value)| (name.clone(), Value::from(value.clone()))).collect());
        Value::Object(map)
    }
}

/// The word that several tools write where there is nothing.
pub(super) fn is_nothing(text: &str) -> bool {
    matches!(text.trim(), "None" | "none" | "undefined" | "Undefined")
}

/// A file's name without folders and ending.
pub(super) fn file_stem(path: &str) -> &str {
    const ENDINGS: &[&str] = &[".safetensors", ".ckpt", ".pt", ".gguf", ".bin", ".sft"];
    let name = path.rsplit(['/', '\\']).next().unwrap_or(path);
    ENDINGS.iter().find_map(|ending| name.strip_suffix(ending)).unwrap_or(name)
}

/// The first two numbers of a text, where a sign for "by" stands between them.
pub(super) fn two_sides(text: &str) -> Option<(String, String)> {
    let digits = |text: &str| text.chars().take_while(char::is_ascii_digit).collect::<String>();
    for (at, _) in text.match_indices(|c: char| c.is_ascii_digit()) {
        if text[..at].ends_with(|c: char| c.is_ascii_digit() || c == '.') {
            continue;
        }
        let width = digits(&text[at..]);
        let rest = text[at + width.len()..].trim_start().trim_start_matches(['\'', '"']);
        let height = rest.strip_prefix(['x', 'X', '×', '*', ',']).map(|rest| digits(rest.trim_start().trim_start_matches(['\'', '"'])));
        if let Some(height) = height.filter(|height| !height.is_empty()) {
            return Some((width, height));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_in_every_form() {
        for (text, wanted) in [
            ("512x768", Some(("512", "768"))),
            ("(1152, 896)", Some(("1152", "896"))),
            ("('1152', '896')", Some(("1152", "896"))),
            ("1024 x 1024 (square)", Some(("1024", "1024"))),
            ("SDXL - 3:4 portrait 896x1152", Some(("896", "1152"))),
            ("704×1408 | 1:2", Some(("704", "1408"))),
            ("1:1", None),
            ("", None),
            ("x", None),
            ("12", None),
        ] {
            let found = two_sides(text);
            assert_eq!(found.as_ref().map(|(w, h)| (w.as_str(), h.as_str())), wanted, "{text}");
        }
    }
}
