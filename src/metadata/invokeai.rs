//! InvokeAI's three dialects: `invokeai_metadata` (3 and later), `sd-metadata` (2) and `Dream` (1).

use super::recipe::{Field, Recipe};
use super::{Text, object, text};
use serde_json::{Map, Value};

const TOOL: &str = "InvokeAI";

const KEYS: &[(&str, Field)] = &[
    ("positive_prompt", Field::Prompt),
    ("negative_prompt", Field::NegativePrompt),
    ("scheduler", Field::Sampler),
    ("sampler", Field::Sampler),
    ("seed", Field::Seed),
    ("cfg_scale", Field::GuidanceScale),
    ("cfg_rescale_multiplier", Field::GuidanceRescale),
    ("steps", Field::Steps),
    ("width", Field::Width),
    ("height", Field::Height),
    ("strength", Field::Strength),
    ("app_version", Field::Version),
    ("model_weights", Field::Model),
    ("model_hash", Field::ModelHash),
];

/// The options of `Dream`, which is a command line.
const DREAM: &[(&str, Field)] = &[
    ("s", Field::Steps),
    ("S", Field::Seed),
    ("W", Field::Width),
    ("H", Field::Height),
    ("C", Field::GuidanceScale),
    ("A", Field::Sampler),
    ("f", Field::Strength),
];

pub(super) fn read(texts: &[Text]) -> Option<Recipe> {
    let today = || Some(modern(&object(text(texts, &["invokeai_metadata"])?)?));
    let second = || second(object(text(texts, &["sd-metadata"])?)?);
    let first = || dream(text(texts, &["Dream"])?);
    today().or_else(second).or_else(first)
}

fn fill(recipe: &mut Recipe, map: &Map<String, Value>) {
    for (key, value) in map {
        match KEYS.iter().find(|(name, _)| name == key) {
            Some((_, field)) => recipe.set_json(*field, value),
            None => recipe.add_other(key, value),
        }
    }
}

fn modern(map: &Map<String, Value>) -> Recipe {
    let mut recipe = Recipe::of(TOOL);
    let mut map = map.clone();
    // The model is named by its keys; they changed between versions.
    if map.get("model").is_some_and(Value::is_object)
        && let Some(model) = map.shift_remove("model")
    {
        for (key, field) in [("name", Field::Model), ("model_name", Field::Model), ("hash", Field::ModelHash)] {
            if let Some(value) = model.get(key) {
                recipe.set_json(field, value);
            }
        }
    }
    fill(&mut recipe, &map);
    recipe
}

fn second(mut map: Map<String, Value>) -> Option<Recipe> {
    let mut recipe = Recipe::of(TOOL);
    let Some(Value::Object(mut image)) = map.shift_remove("image") else { return None };
    let prompt = match image.shift_remove("prompt") {
        Some(Value::Array(list)) => list.iter().filter_map(|part| part.get("prompt")?.as_str()).collect::<Vec<_>>().join(", "),
        Some(Value::String(text)) => text,
        _ => String::new(),
    };
    set_prompts(&mut recipe, &prompt);
    fill(&mut recipe, &image);
    fill(&mut recipe, &map);
    Some(recipe)
}

/// `"a prompt [what not]" -s 50 -S 1234 -W 512 -H 512 -C 7.5 -A k_lms`
fn dream(text: &str) -> Option<Recipe> {
    let (prompt, options) = text.trim().strip_prefix('"')?.rsplit_once('"')?;
    let mut recipe = Recipe::of(TOOL);
    set_prompts(&mut recipe, prompt);
    let mut words = options.split_whitespace().peekable();
    while let Some(word) = words.next() {
        let Some(option) = word.strip_prefix('-') else { continue };
        let option = option.trim_start_matches('-');
        let known = DREAM.iter().find(|(name, _)| *name == option);
        match (known, words.peek()) {
            (Some((_, field)), Some(value)) => {
                recipe.set(*field, *value);
                words.next();
            }
            (None, Some(value)) if !value.starts_with('-') => {
                recipe.other.push((option.to_owned(), (*value).to_owned()));
                words.next();
            }
            _ => recipe.other.push((option.to_owned(), "true".to_owned())),
        }
    }
    Some(recipe)
}

/// What stands in brackets is not wanted.
fn set_prompts(recipe: &mut Recipe, prompt: &str) {
    let (mut wanted, mut unwanted) = (Vec::new(), Vec::new());
    let mut rest = prompt;
    while let Some((before, after)) = rest.split_once('[') {
        let Some((inside, left)) = after.split_once(']') else { break };
        wanted.push(before);
        unwanted.push(inside);
        rest = left;
    }
    wanted.push(rest);
    let joined = |parts: Vec<&str>| {
        let parts: Vec<&str> = parts.into_iter().map(|part| part.trim_matches([' ', ','])).filter(|part| !part.is_empty()).collect();
        parts.join(", ")
    };
    recipe.set(Field::Prompt, joined(wanted));
    let unwanted = joined(unwanted);
    if !unwanted.is_empty() {
        recipe.set(Field::NegativePrompt, unwanted);
    }
}
