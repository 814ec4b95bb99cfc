//! The dialects that are one JSON object, or one keyword for each value: whose they are is a row, and one table has all their keys.
//!
//! # Source
//! Fooocus@v2.5.5:modules/meta_parser.py; RuinedFooocus:modules/imagesaver.py and async_worker.py; SwarmUI:src/Text2Image;
//! easydiffusion:ui/easydiffusion/utils/save_utils.py; mflux:src/mflux/utils/metadata_builder.py; mold:crates/mold-core.

use super::{Text, text, texts_under};
use crate::metadata::json::{folded, object, plain};
use crate::metadata::recipe::{Field, Recipe, is_nothing};
use serde_json::{Map, Value};

/// Folded keys and the fields that they stand for; of two keys for one field the first in this list counts.
const KEYS: &[(&str, Field)] = &[
    ("prompt", Field::Prompt),
    ("positiveprompt", Field::Prompt),
    ("negativeprompt", Field::NegativePrompt),
    ("negative", Field::NegativePrompt),
    ("model", Field::Model),
    ("usestablediffusionmodel", Field::Model),
    ("stablediffusionmodel", Field::Model),
    ("basemodelname", Field::Model),
    ("modelname", Field::Model),
    ("basemodel", Field::Model),
    ("checkpoint", Field::Model),
    ("modelhash", Field::ModelHash),
    ("basemodelhash", Field::ModelHash),
    ("comfyuisampler", Field::Sampler),
    ("autowebuisampler", Field::Sampler),
    ("sampler", Field::Sampler),
    ("samplername", Field::Sampler),
    ("ksamplername", Field::Sampler),
    ("comfyuischeduler", Field::Schedule),
    ("scheduler", Field::Schedule),
    ("schedule", Field::Schedule),
    ("scheduletype", Field::Schedule),
    ("seed", Field::Seed),
    ("guidancescale", Field::GuidanceScale),
    ("cfgscale", Field::GuidanceScale),
    ("cfg", Field::GuidanceScale),
    ("guidance", Field::GuidanceScale),
    ("steps", Field::Steps),
    ("numinferencesteps", Field::Steps),
    ("width", Field::Width),
    ("height", Field::Height),
    ("clipskip", Field::ClipSkip),
    ("clipstopatlayer", Field::ClipSkip),
    ("promptstrength", Field::Strength),
    ("initimagecreativity", Field::Strength),
    ("denoise", Field::Strength),
    ("rng", Field::Rng),
    ("swarmversion", Field::Version),
    ("mfluxversion", Field::Version),
    ("version", Field::Version),
];
/// Folded keys of a size in one text.
const SIZES: &[&str] = &["resolution", "size"];
/// What a model's own object may call its name and its hash, folded.
const MODEL_NAMES: &[&str] = &["modelfilename", "modelname", "name", "model"];
const MODEL_HASHES: &[&str] = &["hash", "modelhash"];

/// A tool, and keys of which any shows that an object is its own.
struct ObjectDialect {
    tool: &'static str,
    /// Exactly as they are written. A key and a value: the value is this text.
    marks: &'static [(&'static str, Option<&'static str>)],
}

/// Who is easily mistaken for another comes first: mflux writes `base_model` too.
const DIALECTS: &[ObjectDialect] = &[
    ObjectDialect { tool: "mflux", marks: &[("mflux_version", None)] },
    ObjectDialect { tool: "RuinedFooocus", marks: &[("software", Some("RuinedFooocus")), ("base_model_name", None)] },
    ObjectDialect { tool: "Fooocus", marks: &[("base_model", None), ("Base Model", None), ("metadata_scheme", Some("fooocus"))] },
    ObjectDialect { tool: "Easy Diffusion", marks: &[("use_stable_diffusion_model", None)] },
    ObjectDialect { tool: "HF Space", marks: &[("num_inference_steps", None)] },
];

pub(super) fn read(texts: &[Text]) -> Option<Recipe> {
    let mut objects =
        texts_under(texts, &["parameters", "UserComment", "Comment", "comment", "ImageDescription", "Model"]).filter_map(object);
    objects.find_map(|map| swarm(&map).or_else(|| known(&map)))
}

fn known(map: &Map<String, Value>) -> Option<Recipe> {
    let has = |(key, value): &(&str, Option<&str>)| map.get(*key).is_some_and(|there| value.is_none_or(|value| there == value));
    let dialect = DIALECTS.iter().find(|dialect| dialect.marks.iter().any(has))?;
    says_enough(map).then(|| recipe(dialect.tool, map))
}

/// An object is a recipe where it has a prompt and one more setting.
fn says_enough(map: &Map<String, Value>) -> bool {
    let has = |keys: &[&str]| map.iter().any(|(key, value)| keys.contains(&folded(key).as_str()) && !value.is_object());
    has(&["prompt", "positiveprompt"]) && has(&["steps", "numinferencesteps", "seed", "guidancescale", "cfgscale", "sampler"])
}

fn swarm(map: &Map<String, Value>) -> Option<Recipe> {
    let parameters = map.get("sui_image_params")?.as_object()?;
    let mut swarm = recipe("SwarmUI", parameters);
    for (key, value) in map.iter().filter(|(key, _)| *key != "sui_image_params") {
        swarm.add_other(key, value);
    }
    Some(swarm)
}

/// An object of a tool that is not known, by the words that everybody uses.
pub(super) fn read_unnamed(texts: &[Text]) -> Option<Recipe> {
    let keywords = ["parameters", "UserComment", "generation_data", "parameters-json", "Comment", "comment", "ImageDescription"];
    let map = texts_under(texts, &keywords).filter_map(object).find(says_enough)?;
    let tool = ["software", "tool", "app", "generator", "created_by"].iter().find_map(|key| map.get(*key)?.as_str());
    Some(recipe(tool.unwrap_or("another tool"), &map))
}

/// The dialects that have a keyword for each value; only after all others, because the keywords are common words.
pub(super) fn read_keywords(texts: &[Text]) -> Option<Recipe> {
    let has = |keyword| text(texts, &[keyword]).is_some();
    let (tool, prefix) = match () {
        () if has("mold:prompt") => ("mold", "mold:"),
        () if has("negative_prompt") || has("Negative Prompt") => ("Easy Diffusion", ""),
        () => return None,
    };
    let pair = |text: &Text| Some((text.keyword.strip_prefix(prefix)?.to_owned(), Value::from(text.text.as_str())));
    let mut map: Map<String, Value> = texts.iter().filter_map(pair).collect();
    // What mold calls its scheduler is a sampler.
    if let Some(sampler) = map.get("scheduler").filter(|_| tool == "mold").cloned() {
        map.insert("sampler".into(), sampler);
        map.shift_remove("scheduler");
    }
    Some(recipe(tool, &map))
}

/// What the keys of `map` mean, whichever tool wrote them.
pub(super) fn recipe(tool: &str, map: &Map<String, Value>) -> Recipe {
    let mut recipe = Recipe::of(tool);
    let mut rest: Vec<(&String, String, &Value)> = map.iter().map(|(key, value)| (key, folded(key), value)).collect();
    for (key, field) in KEYS {
        let Some(at) = rest.iter().position(|(_, name, _)| name == key) else { continue };
        match rest[at].2 {
            Value::Object(model) if *field == Field::Model => set_model(&mut recipe, model),
            value @ (Value::String(_) | Value::Number(_)) if !value.as_str().is_some_and(is_nothing) => recipe.set_json(*field, value),
            Value::Null | Value::String(_) => {}
            // Some answer whether, not how much.
            _ => continue,
        }
        rest.remove(at);
    }
    rest.retain(|(_, name, value)| !(SIZES.contains(&name.as_str()) && value.as_str().is_some_and(|size| recipe.set_size(size))));
    add_loras(&mut recipe, &mut rest);
    for (key, _, value) in rest {
        recipe.add_other(key, value);
    }
    recipe
}

fn set_model(recipe: &mut Recipe, model: &Map<String, Value>) {
    for (names, field) in [(MODEL_NAMES, Field::Model), (MODEL_HASHES, Field::ModelHash)] {
        let value = names.iter().find_map(|name| model.iter().find(|(key, _)| folded(key) == *name));
        if let Some((_, value)) = value {
            recipe.set_json(field, value);
        }
    }
}

/// Takes the LoRAs out of what is left: lists of names and of weights, lists of both, and `name : weight` under a key for each.
fn add_loras<'a>(recipe: &mut Recipe, rest: &mut Vec<(&'a String, String, &'a Value)>) {
    let weights = take_list(&["loraweights", "lorascales"], rest);
    let names = take_list(&["loras", "lorapaths"], rest).or_else(|| take_list(&["lora", "useloramodel"], rest));
    let weight_at = |i: usize| weights.and_then(|weights| weights.get(i)).and_then(plain);
    for (i, lora) in names.into_iter().flatten().enumerate() {
        match lora {
            Value::String(name) => recipe.add_lora(name, weight_at(i)),
            Value::Object(map) => {
                let name = MODEL_NAMES.iter().find_map(|name| map.iter().find(|(key, _)| folded(key) == *name)?.1.as_str());
                let weight = ["weight", "strength", "scale"].iter().find_map(|key| map.get(*key).and_then(plain));
                recipe.add_lora(name.unwrap_or_default(), weight);
            }
            // Fooocus: name, weight, hash. RuinedFooocus: hash, "weight - name".
            Value::Array(parts) => {
                let texts: Vec<&str> = parts.iter().filter_map(Value::as_str).collect();
                let both = texts.iter().find_map(|text| text.split_once(" - ").filter(|(weight, _)| weight.trim().parse::<f64>().is_ok()));
                match both {
                    Some((weight, name)) => recipe.add_lora(name, Some(weight.trim().to_owned())),
                    None => recipe.add_lora(texts.first().unwrap_or(&""), parts.iter().find(|part| part.is_number()).and_then(plain)),
                }
            }
            _ => {}
        }
    }
    rest.retain(|(_, name, value)| {
        let number = name.strip_prefix("loracombined").or_else(|| name.strip_prefix("lora"));
        let is_one = number.is_some_and(|number| !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit()));
        let Some(text) = value.as_str().filter(|_| is_one) else { return true };
        // "name : weight", or "True : name : weight" where each can be switched off.
        let mut parts = text.rsplitn(2, " : ");
        let (weight, name) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
        if !name.starts_with("False : ") {
            recipe.add_lora(name.trim_start_matches("True : "), Some(weight.trim().to_owned()));
        }
        false
    });
}

fn take_list<'a>(keys: &[&str], rest: &mut Vec<(&'a String, String, &'a Value)>) -> Option<&'a Vec<Value>> {
    let at = rest.iter().position(|(_, name, value)| keys.contains(&name.as_str()) && value.is_array())?;
    rest.remove(at).2.as_array()
}
