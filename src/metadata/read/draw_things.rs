//! Draw Things: an object in XMP's `exif:UserComment`, and the same as a list of pairs in `dc:description`.
//!
//! # Source
//! The files that the app writes; its second version's settings stand under `v2`.

use super::{Text, texts_under};
use crate::metadata::json::{object, plain};
use crate::metadata::recipe::{Field, Recipe};

const KEYS: &[(&str, Field)] = &[
    ("c", Field::Prompt),
    ("uc", Field::NegativePrompt),
    ("model", Field::Model),
    ("sampler", Field::Sampler),
    ("seed", Field::Seed),
    ("scale", Field::GuidanceScale),
    ("steps", Field::Steps),
    ("strength", Field::Strength),
];
/// What says how the program worked, not what it made.
const ABOUT_THE_RUN: &[&str] = &["profile", "v2", "size", "lora"];

pub(super) fn read(texts: &[Text]) -> Option<Recipe> {
    let map = texts_under(texts, &["UserComment"]).filter_map(object).find(|map| map.contains_key("c") && map.contains_key("sampler"))?;
    let mut recipe = Recipe::of("Draw Things");
    for (key, value) in &map {
        match KEYS.iter().find(|(name, _)| name == key) {
            Some((_, field)) => recipe.set_json(*field, value),
            None if ABOUT_THE_RUN.contains(&key.as_str()) => {}
            None => recipe.add_other(key, value),
        }
    }
    if let Some(size) = map.get("size").and_then(|size| size.as_str()) {
        recipe.set_size(size);
    }
    for lora in map.get("lora").and_then(|list| list.as_array()).into_iter().flatten() {
        if let Some(name) = lora.get("model").and_then(|name| name.as_str()) {
            recipe.add_lora(name, lora.get("weight").and_then(plain));
        }
    }
    Some(recipe)
}
