//! ComfyUI's `prompt`: a graph of nodes, read backwards from the sampler.
//!
//! # What is refused
//! A graph can compute anything. What is read is one sampler's settings, the texts that reach it, its checkpoint and the size of its
//! latents; everything else is named and left.

use super::recipe::{Field, Recipe, plain};
use super::{Text, object, text};
use serde_json::{Map, Value};
use std::collections::HashSet;

/// Inputs of a sampler's node.
const SETTINGS: &[(&str, Field)] = &[
    ("sampler_name", Field::Sampler),
    ("scheduler", Field::Schedule),
    ("steps", Field::Steps),
    ("cfg", Field::GuidanceScale),
    ("seed", Field::Seed),
    ("noise_seed", Field::Seed),
    ("denoise", Field::Strength),
];
/// Inputs that hold a model's file.
const MODELS: &[&str] = &["ckpt_name", "unet_name", "base_ckpt_name", "model_name"];
/// Inputs that hold text to generate.
const TEXTS: &[&str] = &["text", "text_g", "text_l", "string", "value", "prompt", "positive", "negative"];
/// Kinds of nodes that are what every image has, and say nothing by themselves.
const COMMON: &[&str] =
    &["SaveImage", "PreviewImage", "VAEDecode", "VAEDecodeTiled", "EmptyLatentImage", "CheckpointLoaderSimple", "CLIPTextEncode"];
/// A graph by hand has hundreds; one with more than this is not read.
const MOST_NODES: usize = 2_000;
/// Samplers of which the first one is looked for.
const MOST_SAMPLERS: usize = 100;
/// Nodes in a row that only hand on a value.
const MOST_LINKS: usize = 100;

struct Graph {
    nodes: Map<String, Value>,
}

pub(super) fn read(texts: &[Text]) -> Option<Recipe> {
    // In WebP the two stand in EXIF, behind their names.
    let named = |field: &str| text(texts, &[field]).and_then(|text| text.strip_prefix("prompt:").or_else(|| text.strip_prefix("Prompt:")));
    let source = text(texts, &["prompt"]).or_else(|| named("Model")).or_else(|| named("Make"))?;
    let graph = Graph { nodes: object(source)? };
    if !graph.nodes.values().any(|node| node.get("class_type").is_some()) {
        return None;
    }
    let mut recipe = Recipe::of("ComfyUI");
    if graph.nodes.len() > MOST_NODES {
        recipe.other.push(("graph".into(), format!("has {} nodes, which nobody connects; it is not read", graph.nodes.len())));
        return Some(recipe);
    }
    let samplers = graph.samplers();
    let Some(sampler) = samplers.first().copied() else {
        recipe.other.push(("graph".into(), "holds no sampler that is known".into()));
        return Some(recipe);
    };
    let mut used = HashSet::from([sampler]);
    graph.settings(sampler, &mut recipe, &mut used);
    for (input, field) in [("positive", Field::Prompt), ("negative", Field::NegativePrompt)] {
        if let Some(found) = graph.link(sampler, input).or_else(|| graph.link(graph.link(sampler, "guider")?, input)) {
            recipe.set(field, graph.prompt(found, input, &mut used));
        }
    }
    if recipe.get(Field::Prompt).is_none()
        && let Some(conditioning) = graph.link(sampler, "guider").and_then(|guider| graph.link(guider, "conditioning"))
    {
        recipe.set(Field::Prompt, graph.prompt(conditioning, "positive", &mut used));
    }
    if let Some((node, model)) =
        graph.search(sampler, &["model", "guider"], |inputs| MODELS.iter().find_map(|key| inputs.get(*key)?.as_str()))
    {
        used.insert(node);
        recipe.set(Field::Model, model);
    }
    let size = graph.search(sampler, &["latent_image", "samples", "latent"], |inputs| Some((inputs.get("width")?, inputs.get("height")?)));
    if let Some((node, (width, height))) = size {
        used.insert(node);
        for (field, value) in [(Field::Width, width), (Field::Height, height)] {
            recipe.set_json(field, graph.resolved(value, field.name(), &mut used));
        }
    }
    for other in samplers.iter().skip(1) {
        used.insert(other);
        recipe.other.push((format!("{} {other}", graph.class(other)), "a further sampler".into()));
    }
    for (name, node) in graph.nodes.iter().filter(|(name, _)| !used.contains(name.as_str())) {
        let class = graph.class(name);
        if !COMMON.contains(&class) {
            let values = node.get("inputs").and_then(Value::as_object).into_iter().flatten();
            let shown: Vec<String> =
                values.filter(|(_, value)| !value.is_array()).filter_map(|(key, value)| Some(format!("{key}={}", plain(value)?))).collect();
            // With its number: two LoRAs are two nodes of one class.
            recipe.other.push((format!("{class} {name}"), shown.join(", ")));
        }
    }
    Some(recipe)
}

impl Graph {
    fn inputs(&self, node: &str) -> Option<&Map<String, Value>> {
        self.nodes.get(node)?.get("inputs")?.as_object()
    }

    fn class(&self, node: &str) -> &str {
        self.nodes.get(node).and_then(|node| node.get("class_type")?.as_str()).unwrap_or("a node")
    }

    /// The nodes that step through noise levels; the one that starts from nothing first.
    fn samplers(&self) -> Vec<&str> {
        let is_sampler = |inputs: &Map<String, Value>| {
            let whole = ["sampler_name", "steps", "cfg"].iter().all(|key| inputs.contains_key(*key));
            // Custom sampling has its parts in nodes of their own.
            whole || ["sampler", "sigmas", "latent_image"].iter().all(|key| inputs.contains_key(*key))
        };
        let samplers = self.nodes.keys().map(String::as_str).filter(|node| self.inputs(node).is_some_and(is_sampler));
        let mut found: Vec<&str> = samplers.take(MOST_SAMPLERS).collect();
        // A sampler whose latents come from another sampler refines that one's.
        found.sort_by_cached_key(|node| {
            self.search(node, &["latent_image"], |inputs| is_sampler(inputs).then_some(())).is_some_and(|(at, ())| at != *node)
        });
        found
    }

    /// The node that feeds an input.
    fn link(&self, node: &str, input: &str) -> Option<&str> {
        self.linked(self.inputs(node)?.get(input)?)
    }

    /// The node that a value is a link to.
    fn linked(&self, value: &Value) -> Option<&str> {
        let [from, output] = value.as_array()?.as_slice() else { return None };
        output.as_u64()?;
        self.nodes.get_key_value(from.as_str()?).map(|(name, _)| name.as_str())
    }

    /// A value, through links to nodes that only hold one.
    fn resolved<'a>(&'a self, mut value: &'a Value, key: &str, used: &mut HashSet<&'a str>) -> &'a Value {
        for _ in 0..MOST_LINKS {
            let Some(node) = self.linked(value) else { break };
            let Some(inputs) = self.inputs(node) else { break };
            let Some(inner) = [key, "seed", "value", "int", "float", "string", "text", "Value"].iter().find_map(|key| inputs.get(*key))
            else {
                break;
            };
            used.insert(node);
            value = inner;
        }
        value
    }

    fn settings<'a>(&'a self, sampler: &'a str, recipe: &mut Recipe, used: &mut HashSet<&'a str>) {
        // Custom sampling: the noise, the sampler, the sigmas and the guider each know a part.
        let parts = ["noise", "sampler", "sigmas", "guider"].iter().filter_map(|input| self.link(sampler, input));
        for node in std::iter::once(sampler).chain(parts) {
            used.insert(node);
            for (key, value) in self.inputs(node).into_iter().flatten() {
                let Some((_, field)) = SETTINGS.iter().find(|(name, _)| name == key) else { continue };
                let value = self.resolved(value, key, used);
                // From nothing to the end is not a strength.
                if value.is_array() || *field == Field::Strength && value.as_f64() == Some(1.0) {
                    continue;
                }
                recipe.set_json(*field, value);
            }
        }
    }

    /// Goes backwards from `start`, first through its inputs `first` and then through all, until a node's inputs have the answer.
    fn search<'a, T>(
        &'a self,
        start: &'a str,
        first: &[&str],
        answer: impl Fn(&'a Map<String, Value>) -> Option<T>,
    ) -> Option<(&'a str, T)> {
        let mut waiting: Vec<&str> = first.iter().rev().filter_map(|input| self.link(start, input)).collect();
        let mut seen = HashSet::from([start]);
        while let Some(node) = waiting.pop() {
            if !seen.insert(node) {
                continue;
            }
            let Some(inputs) = self.inputs(node) else { continue };
            if let Some(found) = answer(inputs) {
                return Some((node, found));
            }
            waiting.extend(inputs.values().rev().filter_map(|value| self.linked(value)));
        }
        None
    }

    /// The texts that reach a conditioning, each once, in their order.
    fn prompt<'a>(&'a self, start: &'a str, side: &str, used: &mut HashSet<&'a str>) -> String {
        let other_side = if side == "positive" { "negative" } else { "positive" };
        let mut waiting = vec![start];
        let mut seen = HashSet::new();
        let mut texts: Vec<&str> = Vec::new();
        while let Some(node) = waiting.pop() {
            if !seen.insert(node) {
                continue;
            }
            used.insert(node);
            let Some(inputs) = self.inputs(node) else { continue };
            let mut found = false;
            for text in TEXTS.iter().filter(|key| **key != other_side).filter_map(|key| inputs.get(*key)) {
                let text = self.resolved(text, "text", used);
                if let Some(text) = text.as_str() {
                    found = true;
                    // SDXL's two encoders mostly get the same text.
                    if !texts.contains(&text) {
                        texts.push(text);
                    }
                }
            }
            if !found {
                let links = inputs
                    .iter()
                    .rev()
                    .filter(|(key, _)| !matches!(key.as_str(), "clip" | "vae" | "model" | "image" | "control_net") && *key != other_side);
                waiting.extend(links.filter_map(|(_, value)| self.linked(value)));
            }
        }
        texts.iter().map(|text| text.trim()).collect::<Vec<_>>().join(", ")
    }
}
