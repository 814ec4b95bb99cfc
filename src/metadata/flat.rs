//! The dialects that are one JSON object, or one keyword for each value: a table of their keys.

use super::recipe::{Field, Recipe};
use super::{Text, object, text};
use serde_json::{Map, Value};

/// The keys of a dialect and the fields that they stand for; of two keys for one field the first that is there counts.
struct Dialect {
    tool: &'static str,
    keys: &'static [(&'static str, Field)],
}

const FOOOCUS: Dialect = Dialect {
    tool: "Fooocus",
    keys: &[
        ("prompt", Field::Prompt),
        ("negative_prompt", Field::NegativePrompt),
        ("base_model", Field::Model),
        ("base_model_hash", Field::ModelHash),
        ("sampler", Field::Sampler),
        ("scheduler", Field::Schedule),
        ("seed", Field::Seed),
        ("guidance_scale", Field::GuidanceScale),
        ("cfg", Field::GuidanceScale),
        ("steps", Field::Steps),
        ("width", Field::Width),
        ("height", Field::Height),
        ("clip_skip", Field::ClipSkip),
        ("version", Field::Version),
    ],
};

const SWARM: Dialect = Dialect {
    tool: "SwarmUI",
    keys: &[
        ("prompt", Field::Prompt),
        ("negativeprompt", Field::NegativePrompt),
        ("model", Field::Model),
        ("comfyuisampler", Field::Sampler),
        ("autowebuisampler", Field::Sampler),
        ("sampler", Field::Sampler),
        ("comfyuischeduler", Field::Schedule),
        ("scheduler", Field::Schedule),
        ("seed", Field::Seed),
        ("cfgscale", Field::GuidanceScale),
        ("steps", Field::Steps),
        ("width", Field::Width),
        ("height", Field::Height),
        ("swarm_version", Field::Version),
    ],
};

const EASY_DIFFUSION: Dialect = Dialect {
    tool: "Easy Diffusion",
    keys: &[
        ("prompt", Field::Prompt),
        ("Prompt", Field::Prompt),
        ("negative_prompt", Field::NegativePrompt),
        ("Negative Prompt", Field::NegativePrompt),
        ("use_stable_diffusion_model", Field::Model),
        ("Stable Diffusion model", Field::Model),
        ("sampler_name", Field::Sampler),
        ("Sampler", Field::Sampler),
        ("seed", Field::Seed),
        ("Seed", Field::Seed),
        ("guidance_scale", Field::GuidanceScale),
        ("Guidance Scale", Field::GuidanceScale),
        ("num_inference_steps", Field::Steps),
        ("Steps", Field::Steps),
        ("width", Field::Width),
        ("Width", Field::Width),
        ("height", Field::Height),
        ("Height", Field::Height),
        ("prompt_strength", Field::Strength),
        ("Prompt Strength", Field::Strength),
    ],
};

const DRAW_THINGS: Dialect = Dialect {
    tool: "Draw Things",
    keys: &[
        ("c", Field::Prompt),
        ("uc", Field::NegativePrompt),
        ("model", Field::Model),
        ("sampler", Field::Sampler),
        ("seed", Field::Seed),
        ("scale", Field::GuidanceScale),
        ("steps", Field::Steps),
        ("strength", Field::Strength),
    ],
};

const NOVELAI: Dialect = Dialect {
    tool: "NovelAI",
    keys: &[
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
    ],
};

const MFLUX: Dialect = Dialect {
    tool: "mflux",
    keys: &[
        ("prompt", Field::Prompt),
        ("negative_prompt", Field::NegativePrompt),
        ("model", Field::Model),
        ("seed", Field::Seed),
        ("guidance", Field::GuidanceScale),
        ("steps", Field::Steps),
        ("width", Field::Width),
        ("height", Field::Height),
        ("mflux_version", Field::Version),
    ],
};

const MOLD: Dialect = Dialect {
    tool: "mold",
    keys: &[
        ("mold:prompt", Field::Prompt),
        ("mold:negative_prompt", Field::NegativePrompt),
        ("mold:model", Field::Model),
        ("mold:seed", Field::Seed),
        ("mold:guidance", Field::GuidanceScale),
        ("mold:steps", Field::Steps),
        ("mold:width", Field::Width),
        ("mold:height", Field::Height),
        ("mold:scheduler", Field::Sampler),
        ("mold:version", Field::Version),
    ],
};

impl Dialect {
    fn recipe<'a>(&self, pairs: impl IntoIterator<Item = (&'a String, &'a Value)>) -> Recipe {
        let mut recipe = Recipe::of(self.tool);
        let mut pairs: Vec<(&String, &Value)> = pairs.into_iter().collect();
        for (key, field) in self.keys {
            let Some(at) = pairs.iter().position(|(name, _)| name == key) else { continue };
            let (_, value) = pairs.remove(at);
            // Easy Diffusion writes the word for nothing.
            if value != "None" {
                recipe.set_json(*field, value);
            }
        }
        for (key, value) in pairs {
            if !(key == "size" && value.as_str().is_some_and(|size| recipe.set_size(size))) {
                recipe.add_other(key, value);
            }
        }
        recipe
    }
}

/// The dialects that hide a JSON object behind a keyword which others use too.
pub(super) fn read(texts: &[Text]) -> Option<Recipe> {
    if let Some(swarm) = ["parameters", "UserComment", "Model"].iter().find_map(|keyword| swarm(object(text(texts, &[keyword])?)?)) {
        return Some(swarm);
    }
    if let Some(map) = text(texts, &["parameters", "UserComment"]).and_then(object) {
        let keyed = [("base_model", &FOOOCUS), ("mflux_version", &MFLUX), ("use_stable_diffusion_model", &EASY_DIFFUSION)];
        return keyed.iter().find(|(key, _)| map.contains_key(*key)).map(|(_, dialect)| dialect.recipe(&map));
    }
    let comment = text(texts, &["Comment", "comment"]).and_then(object);
    match comment {
        Some(map) if map.contains_key("base_model") => return Some(FOOOCUS.recipe(&map)),
        Some(map) if text(texts, &["Description", "Source", "Software"]).is_some() => return Some(novelai(texts, &map)),
        _ => {}
    }
    text(texts, &["XMP"]).and_then(draw_things)
}

/// The dialects that have a keyword for each value; only after all others, because the keywords are common words.
pub(super) fn read_keywords(texts: &[Text]) -> Option<Recipe> {
    let has = |keyword: &str| text(texts, &[keyword]).is_some();
    let dialect = match () {
        () if has("mold:prompt") => MOLD,
        () if has("negative_prompt") || has("Negative Prompt") => EASY_DIFFUSION,
        () => return None,
    };
    let map: Map<String, Value> = texts.iter().map(|text| (text.keyword.clone(), Value::from(text.text.as_str()))).collect();
    Some(dialect.recipe(&map))
}

fn swarm(map: Map<String, Value>) -> Option<Recipe> {
    let parameters = map.get("sui_image_params")?.as_object()?;
    let mut recipe = SWARM.recipe(parameters);
    for (key, value) in map.iter().filter(|(key, _)| *key != "sui_image_params") {
        recipe.add_other(key, value);
    }
    Some(recipe)
}

fn novelai(texts: &[Text], comment: &Map<String, Value>) -> Recipe {
    let mut recipe = NOVELAI.recipe(comment);
    if let Some(prompt) = text(texts, &["Description"]) {
        recipe.set(Field::Prompt, prompt);
    }
    // "Stable Diffusion XL 9CC2F394": the model, and the first digits of its hash.
    if let Some(source) = text(texts, &["Source"]) {
        match source.rsplit_once(' ').filter(|(_, hash)| hash.len() == 8 && hash.chars().all(|c| c.is_ascii_hexdigit())) {
            Some((model, hash)) => {
                recipe.set(Field::Model, model.trim());
                recipe.set(Field::ModelHash, hash);
            }
            None => recipe.set(Field::Model, source),
        }
    }
    recipe
}

/// Draw Things writes its object into XMP's `exif:UserComment`.
fn draw_things(xmp: &str) -> Option<Recipe> {
    let (_, after) = xmp.split_once("<exif:UserComment>")?;
    let (comment, _) = after.split_once("</exif:UserComment>")?;
    let (_, item) = comment.split_once("<rdf:li")?;
    let (_, item) = item.split_once('>')?;
    let (item, _) = item.split_once("</rdf:li>")?;
    let map = object(&unescaped(item))?;
    map.contains_key("c").then(|| DRAW_THINGS.recipe(&map))
}

/// XML's five entities and its numbered characters as what they stand for.
fn unescaped(text: &str) -> String {
    /// Bytes of the longest entity, `&#x10ffff;`, without its first.
    const LONGEST: usize = 9;
    let mut plain = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('&') {
        plain.push_str(before);
        // Not to the end: a text of nothing but ampersands would be read once for each.
        let end = after.bytes().take(LONGEST).position(|byte| byte == b';');
        let entity = end.and_then(|end| Some((entity(after.get(..end)?)?, after.get(end + 1..)?)));
        match entity {
            Some((c, left)) => {
                plain.push(c);
                rest = left;
            }
            None => {
                plain.push('&');
                rest = after;
            }
        }
    }
    plain.push_str(rest);
    plain
}

fn entity(name: &str) -> Option<char> {
    match name {
        "lt" => Some('<'),
        "gt" => Some('>'),
        "amp" => Some('&'),
        "quot" => Some('"'),
        "apos" => Some('\''),
        _ => {
            let number = name.strip_prefix('#')?;
            let code = number.strip_prefix('x').map_or_else(|| number.parse().ok(), |hex| u32::from_str_radix(hex, 16).ok());
            char::from_u32(code?)
        }
    }
}
