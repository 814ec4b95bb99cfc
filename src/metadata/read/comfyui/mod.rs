//! ComfyUI's `prompt`: a graph of nodes, read backwards from the sampler.
//!
//! # What is refused
//! A graph can compute anything. What is read is one sampler's settings, the texts that reach it, its checkpoint, its LoRAs and the size
//! of its latents; everything else is named and left. What a node computes is no value: the field stays empty, and that is said.

mod graph;
mod prompt;

use super::{Text, a1111, objects, text};
use crate::metadata::json::{object, plain};
use crate::metadata::recipe::{Field, Recipe, is_nothing, two_sides};
use graph::{Graph, IMAGES, Link};
use prompt::Side;
use serde_json::{Map, Value};
use std::collections::HashSet;

/// Inputs of a sampler's node that hold a number.
const NUMBERS: &[(&str, Field)] = &[
    ("steps", Field::Steps),
    ("steps_total", Field::Steps),
    ("cfg", Field::GuidanceScale),
    ("cfg_conds", Field::GuidanceScale),
    ("seed", Field::Seed),
    ("noise_seed", Field::Seed),
    ("denoise", Field::Strength),
    ("eta", Field::Eta),
];
/// Inputs of custom sampling's nodes that have no flag, and the number that changes nothing.
const WITHOUT_FLAG: &[(&str, f64)] = &[("s_noise", 1.0), ("rho", 7.0)];
/// Inputs of a sampler's node that hold a name.
const NAMES: &[(&str, Field)] = &[("sampler_name", Field::Sampler), ("scheduler", Field::Schedule)];
/// Nodes of custom sampling whose class says what other nodes have an input for.
const BY_CLASS: &[(&str, Field, &str)] = &[
    ("KarrasScheduler", Field::Schedule, "karras"),
    ("ExponentialScheduler", Field::Schedule, "exponential"),
    ("PolyexponentialScheduler", Field::Schedule, "polyexponential"),
    ("BetaSamplingScheduler", Field::Schedule, "beta"),
    ("AlignYourStepsScheduler", Field::Schedule, "align_your_steps"),
    ("GITSScheduler", Field::Schedule, "gits"),
    ("SDTurboScheduler", Field::Schedule, "sgm_uniform"),
    ("SamplerEulerAncestral", Field::Sampler, "euler_ancestral"),
    ("SamplerDPMPP_2M_SDE", Field::Sampler, "dpmpp_2m_sde"),
    ("SamplerDPMPP_3M_SDE", Field::Sampler, "dpmpp_3m_sde"),
    ("SamplerDPMPP_SDE", Field::Sampler, "dpmpp_sde"),
    ("SamplerDPMPP_2S_Ancestral", Field::Sampler, "dpmpp_2s_ancestral"),
    ("SamplerLMS", Field::Sampler, "lms"),
    ("SamplerLCMUpscale", Field::Sampler, "lcm"),
];
/// Inputs that hold a model's file.
const MODELS: &[&str] = &["ckpt_name", "unet_name", "base_ckpt_name", "gguf_name", "model_name"];
/// Inputs of a sampler that lead to its model.
const TO_MODEL: &[&str] = &["model", "guider", "sdxl_tuple", "basic_pipe", "pipe"];
/// Inputs that lead to the latents that a sampler starts from.
const TO_LATENTS: &[&str] =
    &["latent_image", "samples", "latent", "latents", "optional_latent", "latent_opt", "pipe", "basic_pipe", "image"];
/// What steers a sampler and has no part in its latents.
const STEERING: &[&str] =
    &["positive", "negative", "conditioning", "clip", "model", "vae", "control_net", "guider", "sampler", "sigmas", "noise"];
/// Kinds of nodes that are what every image has, and say nothing by themselves.
const COMMON: &[&str] = &["SaveImage", "PreviewImage", "VAEDecode", "VAEDecodeTiled", "Reroute", "LoadImage"];
/// A graph by hand has hundreds; one with more than this is not read.
const MOST_NODES: usize = 2_000;
/// Samplers of which the first one is looked for.
const MOST_SAMPLERS: usize = 100;

pub(super) fn read(texts: &[Text]) -> Option<Recipe> {
    let graph = Graph::of(text(texts, &["prompt"])?)?;
    let mut recipe = of_graph(&graph);
    complete(&mut recipe, texts);
    Some(recipe)
}

fn of_graph(graph: &Graph) -> Recipe {
    let mut recipe = Recipe::of("ComfyUI");
    let mut refuse = |what: String| recipe.other.push(("graph".into(), what));
    if graph.len() > MOST_NODES {
        refuse(format!("has {} nodes, which nobody connects; it is not read", graph.len()));
        return recipe;
    }
    let (samplers, starts) = samplers(graph);
    let Some(first) = samplers.first().copied() else {
        refuse("is not understood: it holds no sampler that is known".into());
        return recipe;
    };
    if starts > 1 {
        refuse(format!("starts {starts} images, and does not say which this one is"));
    }
    // Of several, one that is given a text.
    let says = |sampler: &&&str| graph.positive(sampler).is_some_and(|text| !text.is_empty());
    let sampler = samplers.iter().take(starts).find(says).copied().unwrap_or(first);
    let mut used = HashSet::from([sampler]);
    settings(graph, sampler, &mut recipe, &mut used);
    prompts(graph, sampler, &mut recipe, &mut used);
    let model = graph.search(sampler, TO_MODEL, IMAGES, |node| {
        let inputs = graph.inputs(node)?;
        // A model is not what makes images larger, nor what guides them.
        let known = MODELS.iter().find_map(|key| Some((*key, inputs.get(*key)?)))?;
        graph.name(known.1, known.0, &mut HashSet::new())
    });
    if let Some((node, model)) = model {
        used.insert(node);
        recipe.set(Field::Model, model);
    }
    size(graph, sampler, &mut recipe, &mut used);
    for node in graph.upstream(sampler, IMAGES) {
        let inputs = graph.inputs(node);
        if inputs.is_some_and(|inputs| loras(graph, node, inputs, &mut recipe)) {
            used.insert(node);
        }
        let skip = inputs.and_then(|inputs| inputs.get("stop_at_clip_layer").or_else(|| inputs.get("clip_skip")));
        if let Some(layer) = skip.and_then(|value| graph.number(value, "stop_at_clip_layer", &mut used)) {
            used.insert(node);
            // Counted from the end, with a minus.
            recipe.set(Field::ClipSkip, layer.trim_start_matches('-'));
        }
    }
    for other in samplers.iter().filter(|other| **other != sampler) {
        used.insert(other);
        recipe.other.push((format!("{} {other}", graph.class(other)), "a further sampler".into()));
    }
    for name in graph.nodes().filter(|name| !used.contains(name)) {
        let class = graph.class(name);
        if !COMMON.contains(&class) {
            let values = graph.inputs(name).into_iter().flatten();
            let shown: Vec<String> =
                values.filter(|(_, value)| !value.is_array()).filter_map(|(key, value)| Some(format!("{key}={}", plain(value)?))).collect();
            // With its number: two nodes may be of one class.
            recipe.other.push((format!("{class} {name}"), shown.join(", ")));
        }
    }
    recipe
}

/// The nodes that step through noise levels, those that start from nothing first; and how many these are.
fn samplers(graph: &Graph) -> (Vec<&str>, usize) {
    let is_sampler = |node: &str| {
        graph.inputs(node).is_some_and(|inputs| {
            let has = |keys: &[&str]| keys.iter().all(|key| inputs.contains_key(*key));
            // Custom sampling has its parts in nodes of their own.
            has(&["steps", "cfg"]) || has(&["steps", "sampler_name", "scheduler"]) || has(&["sampler", "sigmas", "latent_image"])
        })
    };
    let mut found: Vec<&str> = graph.nodes().filter(|node| is_sampler(node)).take(MOST_SAMPLERS).collect();
    // A sampler whose latents or image come from another sampler refines what that one made, and one that takes an image an image.
    let refines = |node: &str| {
        let from_another = graph.search(node, IMAGES, STEERING, |at| (at != node && is_sampler(at)).then_some(())).is_some();
        (from_another, graph.inputs(node).is_some_and(|inputs| inputs.contains_key("image")))
    };
    found.sort_by_cached_key(|node| refines(node));
    let least = found.first().map(|node| refines(node));
    let starts = found.iter().filter(|node| Some(refines(node)) == least).count();
    (found, starts)
}

impl Graph {
    /// The text on a sampler's side of what is wanted.
    fn positive(&self, sampler: &str) -> Option<String> {
        self.prompt(conditioning(self, sampler, Side::Positive)?, Side::Positive, &mut HashSet::new()).joined()
    }
}

fn settings<'a>(graph: &'a Graph, sampler: &'a str, recipe: &mut Recipe, used: &mut HashSet<&'a str>) {
    // Custom sampling: the noise, the sampler, the sigmas and the guider each know a part.
    let mut nodes = vec![sampler];
    for input in ["noise", "sampler", "guider", "sigmas"] {
        let Some(link) = graph.link(sampler, input) else { continue };
        nodes.push(link.node);
        if input == "sigmas" {
            // Sigmas may be cut or changed on their way.
            let from = graph.search(sampler, &["sigmas"], &["model"], |node| graph.inputs(node)?.contains_key("steps").then_some(()));
            if let Some((node, ())) = from
                && !nodes.contains(&node)
            {
                nodes.push(node);
            }
        }
    }
    for node in nodes {
        let Some(inputs) = graph.inputs(node) else { continue };
        for (key, field) in NUMBERS {
            let Some(value) = inputs.get(*key).and_then(|value| graph.number(value, key, used)) else { continue };
            // From nothing to the end is not a strength.
            if !(*field == Field::Strength && value.parse().is_ok_and(|strength: f64| strength >= 1.0)) {
                recipe.set(*field, value);
                used.insert(node);
            }
        }
        for (key, field) in NAMES {
            if let Some(name) = inputs.get(*key).and_then(|value| graph.name(value, key, used)) {
                recipe.set(*field, name);
                used.insert(node);
            }
        }
        if let Some((_, field, value)) = BY_CLASS.iter().find(|(class, ..)| *class == graph.class(node)) {
            let is_heun = *field == Field::Sampler && inputs.get("solver_type").is_some_and(|solver| solver == "heun");
            recipe.set(*field, if is_heun { format!("{value}_heun") } else { (*value).to_owned() });
            used.insert(node);
        }
        for (key, usual) in WITHOUT_FLAG {
            let number = inputs.get(*key).and_then(|value| graph.number(value, key, used));
            if let Some(number) = number.filter(|number| number.parse() != Ok(*usual)) {
                recipe.other.push((format!("{key} of {}", graph.class(node)), number));
            }
        }
    }
}

/// Where a sampler gets a side of its guidance from: itself, its guider, or what carries everything in one link.
fn conditioning<'a>(graph: &'a Graph, sampler: &str, side: Side) -> Option<Link<'a>> {
    let (own, guiders): (_, &[&str]) = match side {
        Side::Positive => ("positive", &["positive", "cond1", "conditioning"]),
        Side::Negative => ("negative", &["negative"]),
    };
    let guider = graph.link(sampler, "guider");
    let by_guider = || guiders.iter().find_map(|input| graph.link(guider?.node, input));
    let bundled = || ["sdxl_tuple", "basic_pipe", "pipe", "context", "detailer_pipe"].iter().find_map(|input| graph.link(sampler, input));
    graph.link(sampler, own).or_else(by_guider).or_else(bundled)
}

fn prompts<'a>(graph: &'a Graph, sampler: &'a str, recipe: &mut Recipe, used: &mut HashSet<&'a str>) {
    for (side, field, name) in [(Side::Positive, Field::Prompt, "prompt"), (Side::Negative, Field::NegativePrompt, "negative prompt")] {
        // A sampler may have the text itself.
        let own =
            graph.inputs(sampler).and_then(|inputs| inputs.get(if side == Side::Positive { "positive" } else { "negative" })?.as_str());
        if let Some(text) = own {
            recipe.set(field, text);
            continue;
        }
        let Some(from) = conditioning(graph, sampler, side) else { continue };
        let found = graph.prompt(from, side, used);
        for node in &found.unknown {
            recipe.other.push((
                format!("the {name}'s text"),
                format!("is made by {} {node} while it runs, or in a way that is not understood", graph.class(node)),
            ));
        }
        let Some(text) = found.joined() else { continue };
        // One text for both sides is no negative prompt: the graph uses it where guidance is off.
        if side == Side::Negative && !text.is_empty() && recipe.get(Field::Prompt) == Some(&text) {
            recipe.other.push(("negative prompt".into(), "the graph gives both sides the same text".into()));
            continue;
        }
        if !(found.zeroed && text.is_empty()) {
            recipe.set(field, text);
        }
    }
}

/// The size of the latents that a sampler starts from.
fn size<'a>(graph: &'a Graph, sampler: &'a str, recipe: &mut Recipe, used: &mut HashSet<&'a str>) {
    const SIDES: &[(&str, &str)] = &[("width", "height"), ("empty_latent_width", "empty_latent_height"), ("image_width", "image_height")];
    let found = graph.search(sampler, TO_LATENTS, STEERING, |node| {
        let inputs = graph.inputs(node)?;
        written_size(inputs).or_else(|| {
            let (width, height) = SIDES.iter().find_map(|(width, height)| Some((inputs.get(*width)?, inputs.get(*height)?)))?;
            let side = |value: &'a Value, key: &str, second: bool| {
                let named = graph.linked(value).and_then(|link| written_size(graph.inputs(link.node)?));
                let named = named.map(|(width, height)| if second { height } else { width });
                named.or_else(|| graph.number(value, key, &mut HashSet::new()))
            };
            // Where one side is not known the search is over all the same: what comes before has another size.
            Some((side(width, "width", false).unwrap_or_default(), side(height, "height", true).unwrap_or_default()))
        })
    });
    let Some((node, (width, height))) = found else { return };
    used.insert(node);
    used.extend(["width", "height"].iter().filter_map(|input| graph.link(node, input)).map(|link| link.node));
    if !width.is_empty() && !height.is_empty() {
        recipe.set(Field::Width, width);
        recipe.set(Field::Height, height);
    }
}

/// `1024 x 1024 (square)` in a node's list of sizes; `custom` and the like are none.
fn written_size(inputs: &Map<String, Value>) -> Option<(String, String)> {
    let written = ["dimensions", "resolution", "aspect_ratio", "size_selected", "preset"]
        .iter()
        .find_map(|key| two_sides(inputs.get(*key)?.as_str()?))?;
    let swapped =
        ["swap_dimensions", "swap"].iter().any(|key| inputs.get(*key).is_some_and(|value| value == "On" || value == &Value::Bool(true)));
    Some(if swapped { (written.1, written.0) } else { written })
}

/// Notes the LoRAs of a node; whether it has any input for one.
fn loras<'a>(graph: &'a Graph, node: &str, inputs: &'a Map<String, Value>, recipe: &mut Recipe) -> bool {
    /// What a weight's input is called before a number.
    const WEIGHTS: &[&str] = &[
        "strength_model",
        "lora_model_strength",
        "model_weight",
        "model_str",
        "lora_wt",
        "lora_strength",
        "lora_weight",
        "strength",
        "weight",
    ];
    let mut none = HashSet::new();
    let mut has = false;
    let most = inputs.get("lora_count").and_then(Value::as_u64);
    for (key, value) in inputs {
        // rgthree: an object each.
        if let (Some(name), Some(weight)) = (value.get("lora").and_then(Value::as_str), value.get("strength")) {
            has = true;
            if value.get("on") != Some(&Value::Bool(false)) {
                recipe.add_lora(name, plain(weight));
            }
            continue;
        }
        let Some(number) = key.strip_prefix("lora_name").or_else(|| key.strip_prefix("lora").filter(|rest| rest.starts_with("_0"))) else {
            continue;
        };
        has = true;
        let beyond = number.trim_start_matches('_').parse().is_ok_and(|i: u64| most.is_some_and(|most| i > most));
        let off = inputs.get(&format!("switch{number}")).is_some_and(|switch| switch == "Off" || switch == &Value::Bool(false));
        let Some(name) = graph.name(value, key, &mut none).filter(|name| !beyond && !off && !is_nothing(name)) else { continue };
        let weight = WEIGHTS.iter().find_map(|weight| inputs.get(&format!("{weight}{number}")));
        recipe.add_lora(name, weight.and_then(|weight| graph.number(weight, "value", &mut none)));
    }
    // Some nodes read the tags that others leave in the text.
    let class = graph.class(node).to_lowercase();
    if class.contains("loratag") || class.contains("lora manager") || class.contains("loramanager") || class.contains("wildcardencode") {
        for text in ["populated_text", "text", "wildcard_text"].iter().filter_map(|key| inputs.get(*key)?.as_str()).take(1) {
            recipe.add_tagged_loras(text);
        }
    }
    has
}

/// What stands beside the graph: what a site or another surface knows better, and what fills the gaps.
fn complete(recipe: &mut Recipe, texts: &[Text]) {
    if let Some(data) = text(texts, &["generation_data"]).and_then(object) {
        prefer_prompts(recipe, "TensorArt", &data);
    } else if let Some(data) = text(texts, &["parameters-json"]).and_then(object) {
        prefer_prompts(recipe, "Stability Matrix", &data);
    }
    if let Some(data) = text(texts, &["extraMetadata"]).and_then(object) {
        recipe.tool = "Civitai".into();
        recipe.complete(&objects::recipe("Civitai", &data));
    }
    // Nodes that save an image write what they were told, which may be what they have by default: only for the gaps.
    if let Some(mut infotext) = a1111::read(texts) {
        if infotext.get(Field::Prompt) == Some("unknown") {
            infotext.fields.remove(&Field::Prompt);
            infotext.fields.remove(&Field::NegativePrompt);
        }
        recipe.complete(&infotext);
    }
}

/// The prompts and the model as the user gave them, before a site changed them for its graph.
fn prefer_prompts(recipe: &mut Recipe, tool: &str, data: &Map<String, Value>) {
    recipe.tool = tool.into();
    let given = objects::recipe(tool, data);
    for field in [Field::Prompt, Field::NegativePrompt, Field::Model, Field::ModelHash] {
        if let Some(value) = given.get(field) {
            recipe.fields.insert(field, value.to_owned());
        }
    }
    recipe.complete(&given);
}
