//! A graph that was sent, held against the kinds of nodes: what is wrong is said of each node, as ComfyUI says it.
//!
//! # Source
//! ComfyUI@00a0995:execution.py `validate_prompt`, `validate_inputs`.

use super::nodes::{ComfyNode, NamedInput, NodeInput, find};
use serde_json::{Map, Value as Json, json};
use std::collections::{BTreeMap, HashSet};

/// Nodes of a graph: by hand it has hundreds.
const MOST_NODES: usize = 2_000;
/// Names that are listed in an error; longer lists are counted.
const MOST_LISTED: usize = 20;

/// What a part of a graph means, or what is wrong with a node.
pub(super) type Translated<T> = Result<T, Box<NodeProblem>>;

/// Something that is wrong with a node.
#[derive(Debug)]
pub(super) struct NodeProblem {
    node: String,
    kind: &'static str,
    message: String,
    details: String,
    extra: Json,
}

impl NodeProblem {
    fn new(node: &str, kind: &'static str, message: impl Into<String>, details: impl Into<String>, extra: Json) -> Self {
        Self { node: node.to_owned(), kind, message: message.into(), details: details.into(), extra }
    }

    /// A value that ComfyUI might take, and that is not taken here.
    pub(super) fn refused(node: &str, input: &str, what: impl std::fmt::Display) -> Box<Self> {
        let details = format!("{input} - {what}");
        Box::new(Self::new(node, "custom_validation_failed", "Custom validation failed for node", details, json!({ "input_name": input })))
    }

    fn json(&self) -> Json {
        json!({ "type": self.kind, "message": self.message, "details": self.details, "extra_info": self.extra })
    }
}

/// Why a graph is not taken: what is wrong with the whole, and with each node.
#[derive(Debug)]
pub(super) struct GraphRefusal {
    pub(super) error: Json,
    pub(super) nodes: Json,
}

impl GraphRefusal {
    pub(super) fn whole(kind: &str, message: &str, details: impl Into<String>) -> Box<Self> {
        let details: String = details.into();
        Box::new(Self { error: json!({ "type": kind, "message": message, "details": details, "extra_info": {} }), nodes: json!({}) })
    }
}

/// A graph whose nodes are all of known kinds.
pub(super) struct CheckedGraph<'a> {
    nodes: &'a Map<String, Json>,
    /// Nodes for whose sake it is computed.
    pub(super) outputs: Vec<&'a str>,
}

impl<'a> CheckedGraph<'a> {
    /// Checks a graph; `choices` tells what may be chosen for an input.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(super) fn of(nodes: &'a Map<String, Json>, choices: &dyn Fn(NodeInput) -> Option<Vec<String>>) -> Result<Self, Box<GraphRefusal>> {
        if nodes.len() > MOST_NODES {
            return Err(GraphRefusal::whole("invalid_prompt", "The graph is too large", format!("at most {MOST_NODES} nodes are taken")));
        }
        let mut graph = Self { nodes, outputs: Vec::new() };
        let mut unknown = Vec::new();
        for (id, node) in nodes {
            let Some(class) = node.get("class_type").and_then(Json::as_str) else {
                let message = "Cannot execute because a node is missing the class_type property.";
                return Err(GraphRefusal::whole("invalid_prompt", message, format!("Node ID '#{id}'")));
            };
            match find(class) {
                None => unknown.push(NodeProblem::new(
                    id,
                    "missing_node_type",
                    format!("Node '{class}' not found. This server takes the standard nodes alone; GET /object_info lists them."),
                    format!("Node ID '#{id}'"),
                    json!({ "node_id": id, "class_type": class }),
                )),
                Some(kind) if kind.is_output => graph.outputs.push(id),
                Some(_) => {}
            }
        }
        if let Some(first) = unknown.first() {
            let error = first.json();
            return Err(Box::new(GraphRefusal { error, ..*graph.refusal(&unknown) }));
        }
        if graph.outputs.is_empty() {
            return Err(GraphRefusal::whole("prompt_no_outputs", "Prompt has no outputs", ""));
        }
        let reached: Vec<&str> = graph.upstream(&graph.outputs);
        let problems: Vec<NodeProblem> = reached.into_iter().flat_map(|node| graph.problems(node, choices)).collect();
        match problems.is_empty() {
            true => Ok(graph),
            false => Err(graph.refusal(&problems)),
        }
    }

    /// A graph of which nothing is known but its outputs, to say what is wrong with it.
    pub(super) fn unchecked(nodes: &'a Map<String, Json>, outputs: Vec<&'a str>) -> Self {
        Self { nodes, outputs }
    }

    /// The answer that says what is wrong.
    pub(super) fn refusal(&self, problems: &[NodeProblem]) -> Box<GraphRefusal> {
        let mut by_node: BTreeMap<&str, Vec<&NodeProblem>> = BTreeMap::new();
        for problem in problems {
            by_node.entry(&problem.node).or_default().push(problem);
        }
        let upstream: Vec<(&str, HashSet<&str>)> =
            self.outputs.iter().map(|output| (*output, self.upstream(&[output]).into_iter().collect())).collect();
        let nodes: Map<String, Json> = by_node
            .into_iter()
            .map(|(node, problems)| {
                let errors: Vec<Json> = problems.iter().map(|problem| problem.json()).collect();
                let dependent: Vec<&str> = upstream.iter().filter(|(_, nodes)| nodes.contains(node)).map(|(output, _)| *output).collect();
                (node.to_owned(), json!({ "errors": errors, "dependent_outputs": dependent, "class_type": self.class(node) }))
            })
            .collect();
        let lines: Vec<String> = problems.iter().map(|problem| format!("{}: {}", problem.message, problem.details)).collect();
        let whole = GraphRefusal::whole("prompt_outputs_failed_validation", "Prompt outputs failed validation", lines.join("\n"));
        Box::new(GraphRefusal { nodes: nodes.into(), ..*whole })
    }

    /// A node's class.
    pub(super) fn class(&self, node: &str) -> &'a str {
        self.nodes.get(node).and_then(|node| node.get("class_type")?.as_str()).unwrap_or_default()
    }

    fn inputs(&self, node: &str) -> Option<&'a Map<String, Json>> {
        self.nodes.get(node)?.get("inputs")?.as_object()
    }

    /// A value of a node.
    pub(super) fn value(&self, node: &str, input: &str) -> Option<&'a Json> {
        self.inputs(node)?.get(input)
    }

    /// A text of a node.
    pub(super) fn text(&self, node: &str, input: &str) -> &'a str {
        self.value(node, input).and_then(Json::as_str).unwrap_or_default()
    }

    /// A number of a node, which may be written as text.
    pub(super) fn number(&self, node: &str, input: &str) -> f64 {
        self.value(node, input).and_then(as_number).unwrap_or_default()
    }

    /// The node, and which of its outputs, that feeds an input.
    pub(super) fn link(&self, node: &str, input: &str) -> Option<(&'a str, u64)> {
        linked(self.nodes, self.value(node, input)?)
    }

    /// Every node that feeds these, themselves included.
    pub(super) fn upstream(&self, from: &[&'a str]) -> Vec<&'a str> {
        let (mut waiting, mut found, mut seen) = (from.to_vec(), Vec::new(), HashSet::new());
        while let Some(node) = waiting.pop() {
            if seen.insert(node) {
                found.push(node);
                let values = self.inputs(node).into_iter().flat_map(Map::values);
                waiting.extend(values.filter_map(|value| linked(self.nodes, value)).map(|(node, _)| node));
            }
        }
        found
    }

    /// The graph of these nodes alone, as text, with an input of one of them led to the first output of another.
    pub(super) fn part(&self, nodes: &[&str], (node, input, from): (&str, &str, &str)) -> String {
        let mut part: Map<String, Json> =
            self.nodes.iter().filter(|(id, _)| nodes.contains(&id.as_str())).map(|(id, n)| (id.clone(), n.clone())).collect();
        if let Some(inputs) = part.get_mut(node).and_then(|node| node.get_mut("inputs")?.as_object_mut()) {
            inputs.insert(input.to_owned(), json!([from, 0]));
        }
        Json::Object(part).to_string()
    }

    fn problems(&self, node: &str, choices: &dyn Fn(NodeInput) -> Option<Vec<String>>) -> Vec<NodeProblem> {
        let Some(kind) = find(self.class(node)) else { return Vec::new() };
        let mut problems = Vec::new();
        for input in kind.required {
            match self.value(node, input.0) {
                Some(value) => problems.extend(self.wrong(node, *input, value, choices)),
                None => problems.push(NodeProblem::new(
                    node,
                    "required_input_missing",
                    "Required input is missing",
                    input.0,
                    json!({ "input_name": input.0 }),
                )),
            }
        }
        let given = kind.optional.iter().filter_map(|input| Some((*input, self.value(node, input.0)?)));
        problems.extend(given.filter_map(|(input, value)| self.wrong(node, input, value, choices)));
        problems
    }

    /// What is wrong with a value.
    fn wrong(
        &self,
        node: &str,
        (name, input): NamedInput,
        value: &Json,
        choices: &dyn Fn(NodeInput) -> Option<Vec<String>>,
    ) -> Option<NodeProblem> {
        let extra = json!({ "input_name": name, "received_value": value });
        let problem = |kind, message: &str, details: String| Some(NodeProblem::new(node, kind, message, details, extra.clone()));
        if let Some(items) = value.as_array() {
            let bad = || problem("bad_linked_input", "Bad linked input, must be a length-2 list of [node_id, slot_index]", name.into());
            if items.len() != 2 {
                return bad();
            }
            let Some((from, output)) = linked(self.nodes, value) else { return bad() };
            let kinds: &[&str] = find(self.class(from)).map_or(&[], |kind: &ComfyNode| kind.outputs);
            let received = usize::try_from(output).ok().and_then(|output| kinds.get(output)).copied();
            return match received {
                None => bad(),
                Some(received) if received == input.kind() => None,
                Some(received) => {
                    let details = format!("{name}, received_type({received}) mismatch input_type({})", input.kind());
                    problem("return_type_mismatch", "Return type mismatch between linked nodes", details)
                }
            };
        }
        let not_read = |kind: &str| {
            problem(
                "invalid_input_type",
                &format!("Failed to convert an input value to a {kind} value"),
                format!("{name}, {}", shortened(value)),
            )
        };
        let small = |least: String| problem("value_smaller_than_min", &format!("Value {value} smaller than min of {least}"), name.into());
        let large = |most: String| problem("value_bigger_than_max", &format!("Value {value} bigger than max of {most}"), name.into());
        match input {
            NodeInput::Link(_) => {
                problem("bad_linked_input", "Bad linked input, must be a length-2 list of [node_id, slot_index]", name.into())
            }
            NodeInput::Whole(_, least, most, _) => match as_whole(value) {
                None => not_read("INT"),
                Some(number) if number < least => small(least.to_string()),
                Some(number) if number > most => large(most.to_string()),
                Some(_) => None,
            },
            NodeInput::Number(_, least, most, _) => match as_number(value) {
                None => not_read("FLOAT"),
                Some(number) if number < least => small(least.to_string()),
                Some(number) if number > most => large(most.to_string()),
                Some(_) => None,
            },
            NodeInput::Text | NodeInput::Line(_) => {
                if value.is_string() {
                    None
                } else {
                    not_read("STRING")
                }
            }
            // Whether it can be read is found out when it is.
            NodeInput::Image => {
                if value.is_string() {
                    None
                } else {
                    not_read("STRING")
                }
            }
            NodeInput::Words(_) | NodeInput::Sampler | NodeInput::Schedule | NodeInput::File(_) => {
                let all = choices(input).unwrap_or_default();
                let wanted = value.as_str().unwrap_or_default();
                // ComfyUI's own names have their ending.
                let is = |name: &String| name == wanted || matches!(input, NodeInput::File(_)) && name.as_str() == stem(wanted);
                if value.is_string() && all.iter().any(is) {
                    return None;
                }
                let listed = if all.len() > MOST_LISTED { format!("(list of length {})", all.len()) } else { format!("{all:?}") };
                problem("value_not_in_list", "Value not in list", format!("{name}: {} not in {listed}", shortened(value)))
            }
        }
    }
}

/// A file's name without its ending.
pub(super) fn stem(name: &str) -> &str {
    [".safetensors", ".ckpt", ".pth", ".pt", ".bin", ".gguf"].iter().find_map(|ending| name.strip_suffix(ending)).unwrap_or(name)
}

fn linked<'a>(nodes: &'a Map<String, Json>, value: &Json) -> Option<(&'a str, u64)> {
    let [from, output] = value.as_array()?.as_slice() else { return None };
    let name = match from {
        Json::String(name) => name.clone(),
        Json::Number(number) => number.as_u64()?.to_string(),
        _ => return None,
    };
    let (node, _) = nodes.get_key_value(&name)?;
    Some((node, output.as_u64()?))
}

/// Numbers may be written as text, and whole ones with a fraction of nothing.
fn as_whole(value: &Json) -> Option<i128> {
    match value {
        Json::String(text) => text.trim().parse().ok(),
        Json::Number(number) => {
            let whole = number.as_u64().map(i128::from).or_else(|| number.as_i64().map(i128::from));
            whole.or_else(|| number.as_f64().filter(|number| number.fract() == 0.0 && number.abs() < 9e15).map(|number| number as i128))
        }
        _ => None,
    }
}

fn as_number(value: &Json) -> Option<f64> {
    let number = match value {
        Json::String(text) => text.trim().parse().ok(),
        value => value.as_f64(),
    };
    number.filter(|number| number.is_finite())
}

fn shortened(value: &Json) -> String {
    let text = value.to_string();
    match text.char_indices().nth(80) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text,
    }
}
