//! ComfyUI's graph: nodes by name, each with a class and inputs, of which an input is a value or a link to another node's output.

use crate::metadata::json::{object, plain};
use serde_json::{Map, Value};
use std::collections::HashSet;

/// Nodes in a row that only hand on a value.
const MOST_LINKS: usize = 100;
/// Inputs of nodes that hold one number.
const NUMBERS: &[&str] =
    &["value", "Value", "int", "Int", "INT", "integer", "number", "Number", "float", "Float", "FLOAT", "seed", "noise_seed"];
/// Inputs of nodes that hold one name.
const NAMES: &[&str] = &["value", "string", "String", "text", "name", "content"];
/// Inputs that lead to another image, and not to what steers the sampler.
pub(super) const IMAGES: &[&str] = &[
    "latent_image",
    "latent",
    "latents",
    "samples",
    "image",
    "images",
    "pixels",
    "optional_latent",
    "latent_opt",
    "image_opt",
    "init_image",
    "upscaled_image",
    "source_image",
    "mask",
];

pub(super) struct Graph {
    nodes: Map<String, Value>,
}

/// A node's output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Link<'a> {
    pub(super) node: &'a str,
    pub(super) output: u64,
}

impl Graph {
    /// The graph that a text is; what has no class is no node.
    pub(super) fn of(text: &str) -> Option<Self> {
        let mut nodes = object(text)?;
        nodes.retain(|_, node| node.get("class_type").is_some());
        (!nodes.is_empty()).then_some(Graph { nodes })
    }

    pub(super) fn len(&self) -> usize {
        self.nodes.len()
    }

    pub(super) fn nodes(&self) -> impl Iterator<Item = &str> {
        self.nodes.keys().map(String::as_str)
    }

    pub(super) fn inputs(&self, node: &str) -> Option<&Map<String, Value>> {
        self.nodes.get(node)?.get("inputs")?.as_object()
    }

    pub(super) fn class(&self, node: &str) -> &str {
        self.nodes.get(node).and_then(|node| node.get("class_type")?.as_str()).unwrap_or("a node")
    }

    /// The output that feeds an input.
    pub(super) fn link(&self, node: &str, input: &str) -> Option<Link<'_>> {
        self.linked(self.inputs(node)?.get(input)?)
    }

    /// The output that a value is a link to.
    pub(super) fn linked(&self, value: &Value) -> Option<Link<'_>> {
        let [from, output] = value.as_array()?.as_slice() else { return None };
        let output = output.as_u64()?;
        let (node, _) = match from.as_str() {
            Some(name) => self.nodes.get_key_value(name)?,
            None => self.nodes.get_key_value(&from.as_u64()?.to_string())?,
        };
        Some(Link { node, output })
    }

    /// Everything that feeds a node, apart from the inputs `without`.
    pub(super) fn links<'a>(&'a self, node: &str, without: &'static [&str]) -> impl DoubleEndedIterator<Item = Link<'a>> {
        let inputs = self.inputs(node).into_iter().flatten();
        inputs.filter(move |(key, _)| !without.contains(&key.as_str())).filter_map(|(_, value)| self.linked(value))
    }

    /// A number, through links to nodes that only hold one; nothing where it is computed.
    pub(super) fn number<'a>(&'a self, value: &'a Value, key: &str, used: &mut HashSet<&'a str>) -> Option<String> {
        let found = self.held(value, key, NUMBERS, used)?;
        let text = plain(found)?;
        text.trim().parse::<f64>().is_ok().then_some(text)
    }

    /// A name, through links to nodes that only hold one; nothing where it is computed.
    pub(super) fn name<'a>(&'a self, value: &'a Value, key: &str, used: &mut HashSet<&'a str>) -> Option<&'a str> {
        let found = self.held(value, key, NAMES, used)?;
        // Some loaders keep a preview beside the name.
        found.as_str().or_else(|| found.get("content")?.as_str())
    }

    fn held<'a>(&'a self, mut value: &'a Value, key: &str, holders: &[&str], used: &mut HashSet<&'a str>) -> Option<&'a Value> {
        let mut through = Vec::new();
        for _ in 0..MOST_LINKS {
            let Some(link) = self.linked(value) else { break };
            let inputs = self.inputs(link.node)?;
            through.push(link.node);
            value = std::iter::once(key).chain(holders.iter().copied()).find_map(|key| inputs.get(key))?;
        }
        if value.is_array() || value.is_null() {
            return None;
        }
        used.extend(through);
        Some(value)
    }

    /// Goes backwards from `start`, through its inputs `first` and then through all but `without`, until a node has the answer.
    pub(super) fn search<'a, T>(
        &'a self,
        start: &str,
        first: &[&str],
        without: &'static [&str],
        mut answer: impl FnMut(&'a str) -> Option<T>,
    ) -> Option<(&'a str, T)> {
        let mut waiting: Vec<&str> = first.iter().rev().filter_map(|input| self.link(start, input)).map(|link| link.node).collect();
        let mut seen = HashSet::from([start]);
        while let Some(node) = waiting.pop() {
            if !seen.insert(node) {
                continue;
            }
            if let Some(found) = answer(node) {
                return Some((node, found));
            }
            waiting.extend(self.links(node, without).rev().map(|link| link.node));
        }
        None
    }

    /// Every node that feeds `start`, itself first, not through `without`.
    pub(super) fn upstream<'a>(&'a self, start: &'a str, without: &'static [&str]) -> Vec<&'a str> {
        let (mut waiting, mut found, mut seen) = (vec![start], Vec::new(), HashSet::new());
        while let Some(node) = waiting.pop() {
            if seen.insert(node) {
                found.push(node);
                waiting.extend(self.links(node, without).rev().map(|link| link.node));
            }
        }
        found
    }
}
