//! NovelAI: one JSON object under `Comment`, with the prompt and the model beside it.
//!
//! # Source
//! NovelAI/novelai-image-metadata; the fourth model's prompts stand in `v4_prompt` and `v4_negative_prompt`.

use super::{Text, text, texts_under};
use crate::metadata::json::object;
use crate::metadata::recipe::{Field, Recipe};
use serde_json::{Map, Value};

const KEYS: &[(&str, Field)] = &[
    ("prompt", Field::Prompt),
    ("uc", Field::NegativePrompt),
    ("sampler", Field::Sampler),
    ("noise_schedule", Field::Schedule),
    ("seed", Field::Seed),
    ("scale", Field::GuidanceScale),
    ("cfg_rescale", Field::GuidanceRescale),
    ("steps", Field::Steps),
    ("width", Field::Width),
    ("height", Field::Height),
    ("strength", Field::Strength),
];
/// Keys that only NovelAI writes.
const MARKS: &[&str] = &["noise_schedule", "v4_prompt", "uncond_scale", "uc"];
/// Repeats the prompts.
const REPEATED: &[&str] = &["v4_prompt", "v4_negative_prompt", "extra_passthrough_testing", "signed_hash"];

pub(super) fn read(texts: &[Text]) -> Option<Recipe> {
    let said = ["Software", "Source"].iter().any(|keyword| text(texts, &[keyword]).is_some_and(|text| text.starts_with("NovelAI")));
    let is_ours = |map: &Map<String, Value>| {
        map.contains_key("sampler") && (said && map.contains_key("steps") || MARKS.iter().any(|mark| map.contains_key(*mark)))
    };
    let comment = texts_under(texts, &["Comment", "comment", "UserComment", "parameters"]).filter_map(object).find(is_ours)?;
    let mut recipe = Recipe::of("NovelAI");
    for (key, value) in &comment {
        match KEYS.iter().find(|(name, _)| name == key) {
            Some((_, field)) => recipe.set_json(*field, value),
            None if REPEATED.contains(&key.as_str()) => {}
            None => recipe.add_other(key, value),
        }
    }
    if let Some(prompt) = text(texts, &["Description"]) {
        recipe.set(Field::Prompt, prompt);
    }
    for (key, field, more) in
        [("v4_prompt", Field::Prompt, "character prompt"), ("v4_negative_prompt", Field::NegativePrompt, "character negative prompt")]
    {
        let Some(caption) = comment.get(key).and_then(|prompt| prompt.get("caption")) else { continue };
        if let Some(base) = caption.get("base_caption") {
            recipe.set_json(field, base);
        }
        let characters = caption.get("char_captions").and_then(Value::as_array).into_iter().flatten();
        for character in characters.filter_map(|character| character.get("char_caption")) {
            recipe.add_other(more, character);
        }
    }
    // "Stable Diffusion XL 9CC2F394": the model, and the first digits of its hash. WebP keeps it as EXIF's Software.
    let is_model = |text: &&str| *text != "NovelAI";
    if let Some(source) = texts_under(texts, &["Source", "Software"]).find(is_model) {
        match source.rsplit_once(' ').filter(|(_, hash)| hash.len() == 8 && hash.chars().all(|c| c.is_ascii_hexdigit())) {
            Some((model, hash)) => {
                recipe.set(Field::Model, model.trim());
                recipe.set(Field::ModelHash, hash);
            }
            None => recipe.set(Field::Model, source),
        }
    }
    Some(recipe)
}
