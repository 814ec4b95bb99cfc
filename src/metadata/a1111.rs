//! A1111's `parameters`: the prompt, the negative prompt, and a line of `Key: value` pairs.
//!
//! The same text, with keys of their own, is written by sd-gen, Forge, SD.Next, stable-diffusion.cpp, Fooocus and many nodes of ComfyUI.
//!
//! # Source
//! `parse_generation_parameters` in stable-diffusion-webui@v1.10:modules/infotext_utils.py.

use super::recipe::{Field, Recipe};
use super::{Text, text};
use crate::settings::of_infotext;
use serde_json::Value;

/// The keys of the last line that fields stand for.
pub(super) const KEYS: &[(&str, Field)] = &[
    ("Steps", Field::Steps),
    ("Sampler", Field::Sampler),
    ("Schedule type", Field::Schedule),
    ("CFG scale", Field::GuidanceScale),
    ("CFG Rescale", Field::GuidanceRescale),
    ("Seed", Field::Seed),
    ("Model", Field::Model),
    ("Model hash", Field::ModelHash),
    ("Clip skip", Field::ClipSkip),
    ("Denoising strength", Field::Strength),
    ("Eta", Field::Eta),
    ("RNG", Field::Rng),
    ("Prediction", Field::Prediction),
    ("Zero SNR", Field::ZeroSnr),
    ("Timestep spacing", Field::TimestepSpacing),
    ("Scheduler config", Field::SchedulerConfig),
    ("Precision", Field::Precision),
    ("VAE precision", Field::VaePrecision),
    ("Version", Field::Version),
];

/// Begins the negative prompt.
pub(super) const NEGATIVE: &str = "Negative prompt:";
/// A line with fewer pairs is a line of the prompt.
const FEWEST_PAIRS: usize = 3;

pub(super) fn read(texts: &[Text]) -> Option<Recipe> {
    let text = text(texts, &["parameters", "UserComment"])?;
    let lines: Vec<&str> = text.lines().collect();
    let pairs_of = |line: &str| Some(pairs(line)).filter(|pairs| pairs.len() >= FEWEST_PAIRS && has_settings(pairs));
    let (at, pairs) = lines.iter().enumerate().rev().find_map(|(at, line)| Some((at, pairs_of(line)?)))?;
    let mut recipe = Recipe::default();
    let before = &lines[..at];
    let negative = before.iter().position(|line| line.trim_start().starts_with(NEGATIVE));
    let prompt = before[..negative.unwrap_or(at)].join("\n");
    recipe.set(Field::Prompt, prompt.trim());
    if let Some(negative) = negative {
        let text = before[negative..].join("\n");
        recipe.set(Field::NegativePrompt, text.trim_start().trim_start_matches(NEGATIVE).trim());
    }
    for (key, value) in pairs {
        let field = KEYS.iter().find(|(name, _)| *name == key).map(|(_, field)| *field);
        match field {
            // A model called "None" does not exist; SD.Next and others write the word for nothing.
            Some(_) if value == "None" => {}
            Some(field) => recipe.set(field, value),
            None if key == "Size" && recipe.set_size(&value) => {}
            None => match of_infotext(&key) {
                Some(row) => recipe.set_setting(row, &value),
                None => recipe.other.push((key, value)),
            },
        }
    }
    let rest = lines[at + 1..].join("\n");
    if !rest.trim().is_empty() {
        recipe.other.push(("text after the parameters".into(), rest.trim().to_owned()));
    }
    tidy(&mut recipe);
    Some(recipe)
}

/// Any line with colons has pairs; this one has those that every tool writes.
fn has_settings(pairs: &[(String, String)]) -> bool {
    ["Steps", "Sampler", "Seed"].iter().any(|wanted| pairs.iter().any(|(key, _)| key == wanted))
}

/// Names the tool and evens out what stable-diffusion.cpp and Forge write otherwise.
fn tidy(recipe: &mut Recipe) {
    let version = recipe.get(Field::Version).unwrap_or_default().to_owned();
    let has = |key: &str| recipe.other.iter().any(|(name, _)| name == key);
    let is_cpp = version.starts_with("stable-diffusion.cpp") || has("SDCPP");
    recipe.tool = match version.as_str() {
        version if version.starts_with("sd-gen") => "sd-gen",
        _ if is_cpp => "stable-diffusion.cpp",
        version if version.starts_with("Fooocus") => "Fooocus",
        "ComfyUI" => "ComfyUI",
        // Forge's versions begin with f and a number.
        version if version.starts_with(['f', 'F']) && version.chars().nth(1).is_some_and(|c| c.is_ascii_digit()) => "Forge",
        _ if has("App") => "SD.Next",
        _ => "AUTOMATIC1111",
    }
    .to_owned();
}

/// The `Key: value` pairs of a line. A value is a JSON string, a JSON object, or goes on to the next comma.
pub(super) fn pairs(line: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut rest = line;
    while let Some((key, after)) = rest.split_once(':') {
        // What stands before the last comma belongs to no pair.
        let key = key.rsplit(',').next().unwrap_or(key).trim();
        let after = after.trim_start();
        let (value, left) = value(after);
        if is_key(key) {
            found.push((key.to_owned(), value));
        }
        rest = left;
    }
    found
}

fn is_key(key: &str) -> bool {
    key.chars().next().is_some_and(|c| c.is_alphanumeric()) && key.chars().all(|c| c.is_alphanumeric() || " _-/".contains(c))
}

/// A value and what comes after its comma.
fn value(text: &str) -> (String, &str) {
    if text.starts_with(['"', '{']) {
        let mut stream = serde_json::Deserializer::from_str(text).into_iter::<Value>();
        if let Some(Ok(value)) = stream.next() {
            let rest = text.get(stream.byte_offset()..).unwrap_or_default().trim_start();
            // A quotation mark may be the first letter of a plain value.
            if rest.is_empty() || rest.starts_with(',') {
                let text = if let Value::String(text) = value { text } else { value.to_string() };
                return (text, rest.trim_start_matches(','));
            }
        }
    }
    let (value, rest) = text.split_once(',').unwrap_or((text, ""));
    (value.trim().to_owned(), rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recipe(text: &str) -> Option<Recipe> {
        read(&[Text::new("PNG tEXt", "parameters", text)])
    }

    #[test]
    fn pairs_end_at_commas_quotes_and_braces() {
        let table: &[(&str, &[(&str, &str)])] = &[
            ("Steps: 20, Sampler: DPM++ 2M", &[("Steps", "20"), ("Sampler", "DPM++ 2M")]),
            ("Model: \"a, b: c\", Seed: 1", &[("Model", "a, b: c"), ("Seed", "1")]),
            ("Model: \"half, Seed: 1", &[("Model", "\"half"), ("Seed", "1")]),
            ("Hashes: {\"vae\": \"63\", \"model\": \"7f\"}, Seed: 1", &[("Hashes", r#"{"vae":"63","model":"7f"}"#), ("Seed", "1")]),
            ("noise, Seed: 1, Empty: , Last:", &[("Seed", "1"), ("Empty", ""), ("Last", "")]),
            ("Lora hashes: \"a: 1, b: 2\"", &[("Lora hashes", "a: 1, b: 2")]),
            ("(a:1.2), [b:c:3]", &[]),
            ("", &[]),
        ];
        for (line, wanted) in table {
            let found = pairs(line);
            let found: Vec<(&str, &str)> = found.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
            assert_eq!(found, *wanted, "{line}");
        }
    }

    #[test]
    fn prompts_of_many_lines_and_without_any() {
        let read =
            recipe("one,\n(two:1.2)\nNegative prompt: bad,\nworse\nSteps: 20, Sampler: Euler a, Seed: 5, Size: 512x768").expect("read");
        assert_eq!(read.get(Field::Prompt), Some("one,\n(two:1.2)"));
        assert_eq!(read.get(Field::NegativePrompt), Some("bad,\nworse"));
        assert_eq!((read.get(Field::Width), read.get(Field::Height)), (Some("512"), Some("768")));
        let read = recipe("Steps: 20, Sampler: Euler, Seed: 5").expect("read");
        assert_eq!((read.get(Field::Prompt), read.get(Field::NegativePrompt)), (Some(""), None));
        assert_eq!(recipe("a: b, c: d, e: f"), None);
        assert_eq!(recipe(""), None);
    }

    #[test]
    fn tools_are_told_apart() {
        for (end, tool) in [
            ("Version: v1.10.1", "AUTOMATIC1111"),
            ("Version: f2.0.1v1.10.1", "Forge"),
            ("Version: sd-gen 0.1.0", "sd-gen"),
            ("Version: stable-diffusion.cpp", "stable-diffusion.cpp"),
            ("Version: Fooocus v2.5.5", "Fooocus"),
            ("Version: ComfyUI", "ComfyUI"),
            ("App: SD.Next", "SD.Next"),
        ] {
            assert_eq!(recipe(&format!("x\nSteps: 1, Sampler: Euler, Seed: 2, {end}")).expect("read").tool, tool);
        }
    }
}
