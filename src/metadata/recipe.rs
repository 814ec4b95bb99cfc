//! What an image says about its making, in one form for all tools.

use crate::settings::Setting;
use serde_json::{Map, Value};
use std::collections::BTreeMap;

/// What sd-gen has a flag for, or needs to know to set one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[expect(missing_docs, reason = "the names say it; `Field::NAMES` has them as they are shown")]
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

/// What an image says about its making. Everything is text as the tool wrote it, unchecked.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Recipe {
    /// The program that made the image.
    pub tool: String,
    /// What is understood.
    pub fields: BTreeMap<Field, String>,
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

    /// Notes `512x768` as width and height.
    pub(super) fn set_size(&mut self, size: &str) -> bool {
        let Some((width, height)) = size.split_once(['x', 'X']) else { return false };
        self.set(Field::Width, width.trim());
        self.set(Field::Height, height.trim());
        true
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
        map.extend(self.settings().map(|(name, value)| (name.replace('-', "_"), value.into())));
        map.insert("other".into(), self.other.iter().map(|(name, value)| (name.clone(), Value::from(value.clone()))).collect());
        Value::Object(map)
    }
}

/// A JSON value as text: without quotes, and nothing for null and for empty collections.
pub(super) fn plain(value: &Value) -> Option<String> {
    match value {
        Value::Null => None,
        Value::String(text) => Some(text.clone()),
        Value::Array(list) if list.is_empty() => None,
        Value::Object(map) if map.is_empty() => None,
        other => Some(other.to_string()),
    }
}
