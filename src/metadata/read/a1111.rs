//! A1111's `parameters`: the prompt, the negative prompt, and a line of `Key: value` pairs.
//!
//! The same text, with keys of their own, is written by sd-gen, Forge, SD.Next, stable-diffusion.cpp, Fooocus, Civitai and many nodes of
//! ComfyUI.
//!
//! # Source
//! `parse_generation_parameters` in stable-diffusion-webui@v1.10:modules/infotext_utils.py; sdnext@0c7038e:modules/processing_info.py;
//! stable-diffusion.cpp@97d2990:examples/common/common.cpp `get_image_params`; Fooocus@v2.5.5:modules/meta_parser.py.

use super::{Text, text, texts_under};
use crate::metadata::control_net;
use crate::metadata::json::plain;
use crate::metadata::recipe::{Field, Recipe, is_nothing};
use crate::settings::{find, of_infotext};
use serde_json::Value;

/// The keys of the last line that fields stand for, in any case.
pub(super) const KEYS: &[(&str, Field)] = &[
    ("Steps", Field::Steps),
    ("Sampler", Field::Sampler),
    ("Schedule type", Field::Schedule),
    ("Sampler sigma", Field::Schedule),
    ("CFG scale", Field::GuidanceScale),
    ("CFG Rescale", Field::GuidanceRescale),
    ("Seed", Field::Seed),
    ("Model", Field::Model),
    ("Model hash", Field::ModelHash),
    ("Clip skip", Field::ClipSkip),
    ("Denoising strength", Field::Strength),
    ("Eta", Field::Eta),
    ("Eta DDIM", Field::Eta),
    ("RNG", Field::Rng),
    ("Prediction", Field::Prediction),
    ("Zero SNR", Field::ZeroSnr),
    ("Timestep spacing", Field::TimestepSpacing),
    ("Sampler spacing", Field::TimestepSpacing),
    ("Scheduler config", Field::SchedulerConfig),
    ("Precision", Field::Precision),
    ("VAE precision", Field::VaePrecision),
    ("Version", Field::Version),
];

/// Begins the negative prompt.
pub(in crate::metadata) const NEGATIVE: &str = "Negative prompt:";
/// A line with fewer pairs is a line of the prompt.
const FEWEST_PAIRS: usize = 3;

/// Keywords that such a text stands under.
const KEYWORDS: &[&str] = &["parameters", "UserComment", "ImageDescription", "Description", "comment", "Comment", "Caption", "XPComment"];

pub(super) fn read(texts: &[Text]) -> Option<Recipe> {
    texts_under(texts, KEYWORDS).find_map(recipe)
}

/// A1111 itself takes a text without settings as a prompt; under a keyword that others use it could be anything.
pub(super) fn read_prompt(texts: &[Text]) -> Option<Recipe> {
    let text = text(texts, &["parameters"])?.trim();
    if text.is_empty() || text.starts_with(['{', '[']) {
        return None;
    }
    let mut recipe = Recipe::of("AUTOMATIC1111");
    set_prompts(&mut recipe, &text.lines().collect::<Vec<_>>());
    Some(recipe)
}

fn recipe(text: &str) -> Option<Recipe> {
    let lines: Vec<&str> = text.lines().collect();
    let pairs_of = |line: &str| Some(pairs(line)).filter(|pairs| pairs.len() >= FEWEST_PAIRS && has_settings(pairs));
    let (at, pairs) = lines.iter().enumerate().rev().find_map(|(at, line)| Some((at, pairs_of(line)?)))?;
    let mut recipe = Recipe::default();
    set_prompts(&mut recipe, &lines[..at]);
    for (key, value) in pairs {
        let field = KEYS.iter().find(|(name, _)| name.eq_ignore_ascii_case(&key)).map(|(_, field)| *field);
        match field {
            // A model called "None" does not exist; SD.Next and others write the word for nothing.
            Some(_) if value.is_empty() || is_nothing(&value) => {}
            // stable-diffusion.cpp's word for "not given".
            Some(Field::Eta) if value.parse().is_ok_and(f64::is_infinite) => {}
            Some(field) => recipe.set(field, value),
            None if key.eq_ignore_ascii_case("Size") && recipe.set_size(&value) => {}
            None if key.starts_with(control_net::KEY) => match (control_net::read(&value), find("control")) {
                (Some(typed), Some(row)) => recipe.set_setting(row, &typed),
                _ => recipe.other.push((key, value)),
            },
            None => match of_infotext(&key) {
                // A1111's words for the model's own.
                Some(row) if row.name == "vae" && (is_nothing(&value) || value == "Automatic") => {}
                Some(row) => recipe.set_setting(row, &value),
                None if key.eq_ignore_ascii_case("SGM noise multiplier") && value.eq_ignore_ascii_case("true") => {
                    if let Some(row) = of_infotext("First noise") {
                        recipe.set_setting(row, "full");
                    }
                }
                None => recipe.other.push((key, value)),
            },
        }
    }
    let rest = lines[at + 1..].join("\n");
    if !rest.trim().is_empty() {
        recipe.other.push(("text after the parameters".into(), rest.trim().to_owned()));
    }
    name_tool(&mut recipe);
    even_out(&mut recipe);
    Some(recipe)
}

/// The lines before the settings.
fn set_prompts(recipe: &mut Recipe, lines: &[&str]) {
    let negative = lines.iter().position(|line| line.trim_start().starts_with(NEGATIVE));
    let prompt = lines[..negative.unwrap_or(lines.len())].join("\n");
    recipe.set(Field::Prompt, prompt.trim());
    if let Some(negative) = negative {
        let text = lines[negative..].join("\n");
        recipe.set(Field::NegativePrompt, text.trim_start().trim_start_matches(NEGATIVE).trim());
    }
}

/// Any line with colons has pairs; this one has those that every tool writes.
fn has_settings(pairs: &[(String, String)]) -> bool {
    ["Steps", "Sampler", "Seed"].iter().any(|wanted| pairs.iter().any(|(key, _)| key.eq_ignore_ascii_case(wanted)))
}

/// Who wrote it, by what only that tool writes.
fn name_tool(recipe: &mut Recipe) {
    let version = recipe.get(Field::Version).unwrap_or_default();
    let has = |key: &str| recipe.other.iter().any(|(name, _)| name == key);
    let app = recipe.other.iter().find(|(name, _)| name == "App").map_or("", |(_, value)| value);
    // ComfyUI's own names have an underscore and no capital; stable-diffusion.cpp's too, but that one says who it is.
    let sampler = recipe.get(Field::Sampler).unwrap_or_default();
    let comfy_name = sampler.contains('_') && !sampler.contains(|c: char| c.is_uppercase() || c == ' ');
    let is_forge = version.starts_with(['f', 'F']) && version.chars().nth(1).is_some_and(|c| c.is_ascii_digit());
    recipe.tool = match () {
        () if version.starts_with("sd-gen") => "sd-gen",
        // Its version is a hash, which may look like any other's.
        () if app == "SD.Next" => "SD.Next",
        () if version.starts_with("stable-diffusion.cpp") || has("SDCPP") => "stable-diffusion.cpp",
        () if version.starts_with("Fooocus") => "Fooocus",
        () if version == "ComfyUI" => "ComfyUI",
        // "f1.0.0v2-v1.10.1RC-latest-…"
        () if is_forge && version.contains("-v") => "reForge",
        () if is_forge => "Forge",
        () if version == "classic" => "Forge Classic",
        () if version.starts_with("neo") => "Forge Neo",
        () if version.is_empty() && (has("Civitai resources") || has("Civitai metadata")) => "Civitai",
        () if version.is_empty() && comfy_name => "ComfyUI",
        () => "AUTOMATIC1111",
    }
    .to_owned();
}

/// Takes what tools write under keys of their own to where it belongs.
fn even_out(recipe: &mut Recipe) {
    let prompt = recipe.get(Field::Prompt).unwrap_or_default().to_owned();
    // In ComfyUI a tag in the prompt is text like any other.
    if recipe.tool != "ComfyUI" {
        recipe.add_tagged_loras(&prompt);
    }
    let mut other = std::mem::take(&mut recipe.other);
    other.retain(|(key, value)| match key.as_str() {
        "Unet" | "UNet" => {
            let takes = recipe.get(Field::Model).is_none();
            if takes {
                recipe.set(Field::Model, value.as_str());
            }
            !takes
        }
        // Fooocus names a schedule, SD.Next a class of diffusers.
        "Scheduler" => {
            let field = if value.ends_with("Scheduler") { Field::Sampler } else { Field::Schedule };
            let takes = recipe.get(field).is_none();
            if takes {
                recipe.set(field, value.as_str());
            }
            !takes
        }
        "Civitai resources" => !civitai(recipe, value),
        // "name: weight" of each, or "name: hash: weight".
        "Lora weights" => {
            weighed(value).for_each(|(name, weight)| recipe.add_lora(name, Some(weight.to_owned())));
            false
        }
        "Lora hashes" => {
            for lora in value.split(", ") {
                let parts: Vec<&str> = lora.split(": ").collect();
                recipe.add_lora(parts.first().unwrap_or(&""), parts.get(2).map(|weight| (*weight).to_owned()));
            }
            true
        }
        _ => true,
    });
    recipe.other.splice(0..0, other);
}

fn weighed(list: &str) -> impl Iterator<Item = (&str, &str)> {
    list.split(", ").filter_map(|lora| lora.rsplit_once(": "))
}

/// Civitai's list of what took part: a checkpoint, and LoRAs, named or by the number of their version.
fn civitai(recipe: &mut Recipe, list: &str) -> bool {
    let Ok(Value::Array(resources)) = serde_json::from_str(list) else { return false };
    for resource in &resources {
        let name = ["modelName", "modelVersionId"].iter().find_map(|key| resource.get(*key).and_then(plain));
        let (kind, Some(name)) = (resource.get("type").and_then(Value::as_str).unwrap_or_default(), name) else { continue };
        match kind.to_lowercase().as_str() {
            // A number is no model that could be named.
            "checkpoint" | "model" if resource.get("modelName").is_some() => recipe.set(Field::Model, name),
            "checkpoint" | "model" => recipe.other.push(("Civitai model version".into(), name)),
            "lora" | "locon" | "lycoris" | "dora" => {
                recipe.add_lora(&name, resource.get("weight").and_then(plain).or_else(|| Some("1".into())));
            }
            _ => recipe.other.push((format!("Civitai {kind}"), name)),
        }
    }
    true
}

/// The `Key: value` pairs of a line. A value is a JSON string, object or list, or goes on to the next comma.
pub(in crate::metadata) fn pairs(line: &str) -> Vec<(String, String)> {
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
    if text.starts_with(['"', '{', '[']) {
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

    fn read_text(text: &str) -> Option<Recipe> {
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
            read_text("one,\n(two:1.2)\nNegative prompt: bad,\nworse\nSteps: 20, Sampler: Euler a, Seed: 5, Size: 512x768").expect("read");
        assert_eq!(read.get(Field::Prompt), Some("one,\n(two:1.2)"));
        assert_eq!(read.get(Field::NegativePrompt), Some("bad,\nworse"));
        assert_eq!((read.get(Field::Width), read.get(Field::Height)), (Some("512"), Some("768")));
        let read = read_text("Steps: 20, Sampler: Euler, Seed: 5").expect("read");
        assert_eq!((read.get(Field::Prompt), read.get(Field::NegativePrompt)), (Some(""), None));
        assert_eq!(read_text("a: b, c: d, e: f"), None);
        assert_eq!(read_text(""), None);
    }

    #[test]
    fn tools_are_told_apart() {
        for (end, tool) in [
            ("Version: v1.10.1", "AUTOMATIC1111"),
            ("Version: f2.0.1v1.10.1", "Forge"),
            ("Version: f2.0.1v1.10.1-previous-655", "Forge"),
            ("Version: f1.0.0v2-v1.10.1RC-latest-2498", "reForge"),
            ("Version: f1.3.0-v1.10.1RC-latest-1038", "reForge"),
            ("Version: classic", "Forge Classic"),
            ("Version: neo", "Forge Neo"),
            ("App: SD.Next, Version: f324b7c", "SD.Next"),
            ("Civitai resources: [], Civitai metadata: {}", "Civitai"),
            ("Version: sd-gen 0.1.0", "sd-gen"),
            ("Version: stable-diffusion.cpp", "stable-diffusion.cpp"),
            ("Version: Fooocus v2.5.5", "Fooocus"),
            ("Version: ComfyUI", "ComfyUI"),
            ("App: SD.Next", "SD.Next"),
        ] {
            assert_eq!(read_text(&format!("x\nSteps: 1, Sampler: Euler, Seed: 2, {end}")).expect("read").tool, tool);
        }
    }
}
