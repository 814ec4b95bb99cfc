//! InvokeAI's three dialects: `invokeai_metadata` (3 and later), `sd-metadata` (2) and `Dream` (1).
//!
//! # Source
//! InvokeAI@8e71a8a:invokeai/app/invocations/metadata.py; InvokeAI@v2.3:ldm/invoke/args.py for the command line.

use super::{Text, text};
use crate::metadata::json::{object, plain};
use crate::metadata::recipe::{Field, Recipe};
use serde_json::{Map, Value};

const TOOL: &str = "InvokeAI";

const KEYS: &[(&str, Field)] = &[
    ("positive_prompt", Field::Prompt),
    ("positive_conditioning", Field::Prompt),
    ("negative_prompt", Field::NegativePrompt),
    ("negative_conditioning", Field::NegativePrompt),
    ("scheduler", Field::Sampler),
    ("sampler", Field::Sampler),
    ("seed", Field::Seed),
    ("cfg_scale", Field::GuidanceScale),
    ("cfg_rescale_multiplier", Field::GuidanceRescale),
    ("steps", Field::Steps),
    ("width", Field::Width),
    ("height", Field::Height),
    ("strength", Field::Strength),
    ("rand_device", Field::Rng),
    ("app_version", Field::Version),
    ("model_weights", Field::Model),
    ("model_id", Field::Model),
    ("model_hash", Field::ModelHash),
];

/// The options of `Dream`, which is a command line. A value may be glued to its option: `-s50`.
const DREAM: &[(&str, Field)] = &[
    ("s", Field::Steps),
    ("steps", Field::Steps),
    ("S", Field::Seed),
    ("seed", Field::Seed),
    ("W", Field::Width),
    ("width", Field::Width),
    ("H", Field::Height),
    ("height", Field::Height),
    ("C", Field::GuidanceScale),
    ("cfg_scale", Field::GuidanceScale),
    ("A", Field::Sampler),
    ("sampler", Field::Sampler),
    ("f", Field::Strength),
    ("strength", Field::Strength),
];
/// More words than a command line has after its prompt.
const MOST_OPTIONS: usize = 100;
/// Letters of further options.
const FURTHER: &str = "ntgGUIMTvVFoiaqpBhN";

pub(super) fn read(texts: &[Text]) -> Option<Recipe> {
    let today = || Some(modern(&object(text(texts, &["invokeai_metadata"])?)?));
    let second = || second(object(text(texts, &["sd-metadata"])?)?);
    let first = || dream(text(texts, &["Dream"])?);
    today().or_else(second).or_else(first)
}

fn fill(recipe: &mut Recipe, map: &Map<String, Value>) {
    for (key, value) in map {
        match (KEYS.iter().find(|(name, _)| name == key), key.as_str()) {
            (Some((_, field)), _) => recipe.set_json(*field, value),
            // The layers that are left out, where others count the one that is taken.
            (None, "clip_skip") => {
                if let Some(skipped) = value.as_u64().filter(|skipped| *skipped > 0) {
                    recipe.set(Field::ClipSkip, (skipped.saturating_add(1)).to_string());
                }
            }
            (None, "loras") => value.as_array().into_iter().flatten().for_each(|lora| add_lora(recipe, lora)),
            // What every image of the second version says.
            (None, "model") if value == "stable diffusion" => {}
            (None, "model") if value.is_string() => recipe.set_json(Field::Model, value),
            (None, _) => recipe.add_other(key, value),
        }
    }
}

/// `{"lora": {"model_name": …}, "weight": …}`; the inner key's name changed with every version.
fn add_lora(recipe: &mut Recipe, lora: &Value) {
    let inner = ["lora", "model"].iter().find_map(|key| lora.get(*key)).unwrap_or(lora);
    let name = ["name", "model_name", "lora_name", "key"].iter().find_map(|key| inner.get(*key)?.as_str());
    recipe.add_lora(name.unwrap_or_default(), lora.get("weight").and_then(plain));
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
        for key in ["base", "base_model"] {
            if let Some(base) = model.get(key) {
                recipe.add_other("base", base);
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

/// `"a prompt [what not]" -s 50 -S 1234 -W 512 -H 512 -C 7.5 -A k_lms`, the prompt with or without quotation marks.
fn dream(text: &str) -> Option<Recipe> {
    let text = text.trim();
    let (prompt, options) = match text.strip_prefix('"').and_then(|rest| rest.rsplit_once('"')) {
        Some((prompt, options)) => (prompt, options),
        None => text.split_at(first_option(text)),
    };
    let mut recipe = Recipe::of(TOOL);
    set_prompts(&mut recipe, prompt);
    let mut words = options.split_whitespace().peekable();
    while let Some(word) = words.next() {
        let Some((option, glued)) = option(word) else { continue };
        let value = match (glued, words.peek()) {
            (Some(value), _) => value,
            (None, Some(next)) if is_value(next) => words.next().unwrap_or_default(),
            _ => "true",
        };
        match DREAM.iter().find(|(name, _)| *name == option) {
            Some((_, field)) => recipe.set(*field, value.trim_matches(['"', '\'']).to_owned()),
            None => recipe.other.push((option.to_owned(), value.to_owned())),
        }
    }
    Some(recipe)
}

/// Where the options begin in a text whose prompt has no quotation marks: at the first word from which on all are options and values.
fn first_option(text: &str) -> usize {
    let words = text.split_whitespace().map(|word| word.as_ptr() as usize - text.as_ptr() as usize).collect::<Vec<_>>();
    let holds = |from: usize| {
        let mut was_option = false;
        text[from..].split_whitespace().all(|word| {
            let is_option = option(word).is_some();
            let fits = is_option || was_option && is_value(word);
            was_option = is_option;
            fits
        })
    };
    // Backwards, so that a text of nothing but words is not read once for each.
    let mut start = text.len();
    for from in words.into_iter().rev().take(MOST_OPTIONS) {
        if option(text[from..].split_whitespace().next().unwrap_or_default()).is_some() && holds(from) {
            start = from;
        }
    }
    start
}

/// An option's name, and the value that is glued to it; nothing where the word is no option.
fn option(word: &str) -> Option<(&str, Option<&str>)> {
    if let Some(long) = word.strip_prefix("--") {
        let (name, value) = long.split_once('=').map_or((long, None), |(name, value)| (name, Some(value)));
        return (!name.is_empty()).then_some((name, value));
    }
    let rest = word.strip_prefix('-')?;
    let letter = rest.get(..1)?;
    let known = DREAM.iter().any(|(name, _)| *name == letter) || FURTHER.contains(letter);
    let glued = rest.get(1..).filter(|glued| !glued.is_empty());
    // A word such as "-shaped" is no option: only the sampler's value is a word.
    let fits = glued.is_none_or(|glued| letter == "A" || glued.starts_with(|c: char| c.is_ascii_digit() || ".-=".contains(c)));
    (known && fits).then_some((letter, glued.map(|glued| glued.trim_start_matches('='))))
}

/// What can follow an option: not the next one.
fn is_value(word: &str) -> bool {
    !word.starts_with('-') || word.parse::<f64>().is_ok()
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
