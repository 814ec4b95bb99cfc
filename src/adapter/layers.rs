//! A model's layers by their paths with underscores, in every spelling.
//!
//! Underscores cannot be turned back into dots by replacing, so that the table is made from the model's own names.

use super::names::Site;
use crate::family::keys::Form;
use crate::family::{self, keys};
use crate::spec::Component;
use crate::weights::{Checkpoint, Part};
use std::collections::HashMap;

/// Parts of names that older or other tools spell otherwise: today's, theirs.
const ALIASES: &[(&str, &str)] = &[
    ("_to_out_0", "_to_out"),
    ("_self_attn_q_proj", "_self_attn_to_q"),
    ("_self_attn_k_proj", "_self_attn_to_k"),
    ("_self_attn_v_proj", "_self_attn_to_v"),
    ("_self_attn_out_proj", "_self_attn_to_out"),
];

/// What the paths of a transformer's layers begin with in the original layout.
const JOINT_BLOCKS: &str = "joint_blocks_";

/// One network's layers.
struct NetworkLayers<'a> {
    component: Component,
    part: &'a Part,
    /// diffusers' names by paths with underscores.
    names: HashMap<String, String>,
    /// Those of query, key and value, by the paths of what other layouts have as one.
    thirds: HashMap<String, [Option<String>; 3]>,
}

impl NetworkLayers<'_> {
    fn layer<'b>(&'b self, name: &'b str) -> FoundLayer<'b> {
        let shape = |leaf: &str| self.part.shape(&format!("{name}.{leaf}"));
        FoundLayer { component: self.component, name, weight: shape("weight"), bias: shape("bias") }
    }
}

/// In which order the layers of a transformer block were counted by diffusers, which files of layers without names depend on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BlockOrder {
    /// Until 0.14: attention, feed-forward, attention.
    FeedForwardBetween,
    FeedForwardLast,
}

pub(super) struct Layers<'a> {
    networks: HashMap<Site, NetworkLayers<'a>>,
}

/// A layer that was found.
pub(super) struct FoundLayer<'a> {
    pub(super) component: Component,
    /// diffusers' name.
    pub(super) name: &'a str,
    pub(super) weight: Option<Vec<usize>>,
    pub(super) bias: Option<Vec<usize>>,
}

impl<'a> Layers<'a> {
    pub(super) fn of(model: &'a Checkpoint, order: BlockOrder) -> Self {
        let spec = model.spec();
        let folders = (family::row(spec.family).format.folders)(spec);
        let layer = |name: &str| name.strip_suffix(".weight").map(str::to_owned);
        let mut networks = HashMap::new();
        for ((component, part), folder) in model.parts.iter().zip(&folders) {
            let (site, original) = match folder.folder {
                "unet" => (Site::UNet, keys::unet(&spec.unet, "")),
                "transformer" => (Site::Transformer, family::transformer_names(spec)),
                "text_encoder" => (Site::Text(0), Vec::new()),
                "text_encoder_2" => (Site::Text(1), Vec::new()),
                _ => continue,
            };
            let mut names = HashMap::new();
            let mut thirds: HashMap<String, [Option<String>; 3]> = HashMap::new();
            for name in part.names().into_iter().filter_map(layer) {
                let path = name.replace('.', "_");
                for (now, then) in ALIASES {
                    if let Some(before) = path.strip_suffix(now) {
                        names.insert(format!("{before}{then}"), name.clone());
                    }
                }
                if let Some(short) = path.strip_prefix("text_model_") {
                    names.insert(short.to_owned(), name.clone());
                }
                names.insert(path, name);
            }
            for pair in original.iter().filter(|pair| part.shape(&pair.name).is_some()) {
                let (Some(stored), Some(name)) = (layer(&pair.stored), layer(&pair.name)) else { continue };
                let path = stored.replace('.', "_");
                // What tells a transformer's layers is left out of their paths.
                let paths = [path.strip_prefix(JOINT_BLOCKS).map(str::to_owned), Some(path.clone())];
                for path in paths.into_iter().flatten() {
                    match pair.form {
                        Form::Third(third) if site == Site::Transformer => {
                            if let Some(place) = thirds.entry(path).or_default().get_mut(third) {
                                *place = Some(name.clone());
                            }
                        }
                        _ => drop(names.insert(path, name.clone())),
                    }
                }
            }
            let numbered = numbered(part, &names, order);
            names.extend(numbered.into_iter().enumerate().map(|(i, name)| (format!("#{i}"), name)));
            networks.insert(site, NetworkLayers { component: *component, part, names, thirds });
        }
        // A model with one text encoder has it under either name.
        if !networks.contains_key(&Site::Text(0))
            && let Some(second) = networks.remove(&Site::Text(1))
        {
            networks.insert(Site::Text(0), NetworkLayers { names: second.names.clone(), thirds: HashMap::new(), ..second });
            if let Some(NetworkLayers { component, part, names, .. }) = networks.get(&Site::Text(0)) {
                let again = NetworkLayers { component: *component, part, names: names.clone(), thirds: HashMap::new() };
                networks.insert(Site::Text(1), again);
            }
        }
        Layers { networks }
    }

    pub(super) fn find(&self, site: Site, path: &str) -> Option<FoundLayer<'_>> {
        let network = self.network(site)?;
        Some(network.layer(network.names.get(path)?))
    }

    /// The layer of a path; of a path that stands for query, key and value as one all three, in this order.
    pub(super) fn all(&self, site: Site, path: &str) -> Vec<FoundLayer<'_>> {
        let Some(network) = self.network(site) else { return Vec::new() };
        match network.thirds.get(path) {
            Some([Some(q), Some(k), Some(v)]) => [q, k, v].map(|name| network.layer(name)).into(),
            _ => self.find(site, path).into_iter().collect(),
        }
    }

    /// Some tools call every denoiser a UNet.
    fn network(&self, site: Site) -> Option<&NetworkLayers<'a>> {
        let other = || self.networks.get(&Site::Transformer).filter(|_| site == Site::UNet);
        self.networks.get(&site).or_else(other)
    }
}

/// The layers of a network in the order in which cloneofsimo/lora counts them: those of attention and GEGLU, down, up and middle; of text
/// encoders those of attention.
///
/// # Source
/// `_find_modules` and `save_safeloras` in cloneofsimo/lora@0.1.7:lora_diffusion/lora.py
fn numbered(part: &Part, names: &HashMap<String, String>, order: BlockOrder) -> Vec<String> {
    const ATTENTION: [&str; 4] = ["to_q", "to_k", "to_v", "to_out.0"];
    const TEXT: [&str; 4] = ["k_proj", "v_proj", "q_proj", "out_proj"];
    let there = |layer: String| names.contains_key(&layer.replace('.', "_")).then_some(layer);
    let mut sites: Vec<Vec<Place>> =
        part.names().into_iter().filter_map(|name| name.strip_suffix(".attn1.to_q.weight")).map(places).collect();
    sites.sort();
    let blocks = sites.into_iter().flat_map(|site| {
        let site: Vec<String> = site.into_iter().map(|place| place.name).collect();
        let site = site.join(".");
        let attention = |name: &str| ATTENTION.map(|layer| format!("{site}.{name}.{layer}")).to_vec();
        let feed_forward = vec![format!("{site}.ff.net.0.proj")];
        match order {
            BlockOrder::FeedForwardBetween => [attention("attn1"), feed_forward, attention("attn2")].concat(),
            BlockOrder::FeedForwardLast => [attention("attn1"), attention("attn2"), feed_forward].concat(),
        }
    });
    let texts = (0..).map(|i| format!("text_model.encoder.layers.{i}.self_attn"));
    let texts = texts.take_while(|site| names.contains_key(&format!("{site}.q_proj").replace('.', "_")));
    let texts = texts.flat_map(|site| TEXT.map(|layer| format!("{site}.{layer}")));
    blocks.chain(texts).filter_map(there).collect()
}

/// A part of a name, in the order in which networks have them: numbers by size, the middle after the way up.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    order: (usize, usize),
    name: String,
}

fn places(site: &str) -> Vec<Place> {
    let order = |part: &str| match part {
        "down_blocks" => (0, 0),
        "up_blocks" => (1, 0),
        "mid_block" => (2, 0),
        _ => (3, part.parse().unwrap_or(0)),
    };
    site.split('.').map(|part| Place { order: order(part), name: part.to_owned() }).collect()
}
