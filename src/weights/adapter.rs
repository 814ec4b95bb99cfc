//! LoRA, its relatives and textual inversions: the grammar of their keys, as tables.
//!
//! A key is a prefix that names a network, a path to one of its layers, and a suffix that names one tensor of the change. Other tools
//! write the path with dots or underscores, in diffusers' names or the original layout's; [`Adapter::read`] brings all to one
//! spelling, and [`Adapter::fit`] holds it against a model.
//!
//! # Source
//! kohya-ss/sd-scripts `networks/lora.py`, huggingface/peft, KohakuBlueleaf/LyCORIS `lycoris/modules`, diffusers
//! `loaders/lora_conversion_utils.py`; A1111 and ComfyUI for textual inversions.

use super::component::Part;
use super::file::WeightFile;
use super::{Checkpoint, decode};
use crate::family::{self, keys};
use crate::spec::{Component, Family};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

/// How a layer's weight is changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Change {
    /// A product of two small matrices.
    Lora,
    /// The element-wise product of two such products.
    LoHa,
    /// The Kronecker product of two matrices.
    LoKr,
    /// LoRA of the weight and of its input.
    GLora,
    /// A rotation.
    Oft,
    /// A factor for every row or column.
    Ia3,
    /// The whole difference.
    Full,
}

impl Change {
    /// The name that people use.
    pub fn name(self) -> &'static str {
        match self {
            Change::Lora => "LoRA",
            Change::LoHa => "LyCORIS LoHa",
            Change::LoKr => "LyCORIS LoKr",
            Change::GLora => "LyCORIS GLoRA",
            Change::Oft => "LyCORIS OFT",
            Change::Ia3 => "LyCORIS IA3",
            Change::Full => "full difference",
        }
    }
}

/// What one tensor is to its change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// First dimension is the rank, second the layer's input.
    Down,
    /// First dimension is the layer's output, second the rank.
    Up,
    /// A scale's numerator.
    Alpha,
    /// DoRA's magnitudes.
    Magnitude,
    /// Any other tensor of the change.
    Other,
}

struct Suffix {
    end: &'static str,
    change: Change,
    role: Role,
    /// Seen with any change, or in files that are no adapter: shows nothing by itself.
    shared: bool,
}

const fn row(end: &'static str, change: Change, role: Role) -> Suffix {
    Suffix { end, change, role, shared: false }
}

const fn shared(end: &'static str, role: Role) -> Suffix {
    Suffix { end, change: Change::Full, role, shared: true }
}

/// The first row that fits counts.
const SUFFIXES: &[Suffix] = &[
    row(".lora_down.weight", Change::Lora, Role::Down),
    row(".lora_up.weight", Change::Lora, Role::Up),
    row(".lora_mid.weight", Change::Lora, Role::Other),
    row(".lora_A.weight", Change::Lora, Role::Down),
    row(".lora_B.weight", Change::Lora, Role::Up),
    row(".lora_A.default.weight", Change::Lora, Role::Down),
    row(".lora_B.default.weight", Change::Lora, Role::Up),
    row(".lora_A.default_0.weight", Change::Lora, Role::Down),
    row(".lora_B.default_0.weight", Change::Lora, Role::Up),
    row(".lora_linear_layer.down.weight", Change::Lora, Role::Down),
    row(".lora_linear_layer.up.weight", Change::Lora, Role::Up),
    row(".lora.down.weight", Change::Lora, Role::Down),
    row(".lora.up.weight", Change::Lora, Role::Up),
    row("_lora.down.weight", Change::Lora, Role::Down),
    row("_lora.up.weight", Change::Lora, Role::Up),
    row(".lora_magnitude_vector.default.weight", Change::Lora, Role::Magnitude),
    row(".lora_magnitude_vector.weight", Change::Lora, Role::Magnitude),
    row(".lora_magnitude_vector", Change::Lora, Role::Magnitude),
    row(".hada_w1_a", Change::LoHa, Role::Up),
    row(".hada_w1_b", Change::LoHa, Role::Down),
    row(".hada_w2_a", Change::LoHa, Role::Other),
    row(".hada_w2_b", Change::LoHa, Role::Other),
    row(".hada_t1", Change::LoHa, Role::Other),
    row(".hada_t2", Change::LoHa, Role::Other),
    row(".lokr_w1", Change::LoKr, Role::Other),
    row(".lokr_w1_a", Change::LoKr, Role::Other),
    row(".lokr_w1_b", Change::LoKr, Role::Down),
    row(".lokr_w2", Change::LoKr, Role::Other),
    row(".lokr_w2_a", Change::LoKr, Role::Other),
    row(".lokr_w2_b", Change::LoKr, Role::Down),
    row(".lokr_t2", Change::LoKr, Role::Other),
    row(".a1.weight", Change::GLora, Role::Other),
    row(".a2.weight", Change::GLora, Role::Up),
    row(".b1.weight", Change::GLora, Role::Other),
    row(".b2.weight", Change::GLora, Role::Other),
    row(".oft_blocks", Change::Oft, Role::Other),
    row(".oft_diag", Change::Oft, Role::Other),
    row(".on_input", Change::Ia3, Role::Other),
    row(".diff", Change::Full, Role::Other),
    row(".diff_b", Change::Full, Role::Other),
    row(".w_norm", Change::Full, Role::Other),
    row(".b_norm", Change::Full, Role::Other),
    row(".set_weight", Change::Full, Role::Other),
    shared(".dora_scale", Role::Magnitude),
    shared(".alpha", Role::Alpha),
    shared(".rescale", Role::Other),
    shared(".scale", Role::Other),
    shared(".reshape_weight", Role::Other),
    shared(".weight", Role::Other),
];

/// Whose network a prefix names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Site {
    UNet,
    Text(usize),
    /// A denoiser that is a transformer, which is not implemented.
    Transformer,
}

struct Prefix {
    begin: &'static str,
    site: Site,
    /// Whose spelling it is.
    writer: &'static str,
}

const fn prefix(begin: &'static str, site: Site, writer: &'static str) -> Prefix {
    Prefix { begin, site, writer }
}

/// The first row that fits counts.
const PREFIXES: &[Prefix] = &[
    prefix("lora_unet_double_blocks_", Site::Transformer, "kohya"),
    prefix("lora_unet_single_blocks_", Site::Transformer, "kohya"),
    prefix("lora_unet_joint_blocks_", Site::Transformer, "kohya"),
    prefix("lora_unet_", Site::UNet, "kohya"),
    prefix("lora_te1_", Site::Text(0), "kohya"),
    prefix("lora_te2_", Site::Text(1), "kohya"),
    prefix("lora_te3_", Site::Transformer, "kohya"),
    prefix("lora_te_", Site::Text(0), "kohya"),
    prefix("lora_prior_unet_", Site::Transformer, "kohya"),
    prefix("lora_transformer_", Site::Transformer, "OneTrainer"),
    prefix("oft_unet_", Site::UNet, "kohya"),
    prefix("lycoris_", Site::UNet, "SimpleTuner"),
    prefix("base_model.model.unet.", Site::UNet, "PEFT"),
    prefix("base_model.model.text_encoder.", Site::Text(0), "PEFT"),
    prefix("base_model.model.", Site::UNet, "PEFT"),
    prefix("unet.", Site::UNet, "diffusers"),
    prefix("text_encoder_2.", Site::Text(1), "diffusers"),
    prefix("text_encoder.", Site::Text(0), "diffusers"),
    prefix("transformer.", Site::Transformer, "diffusers"),
    prefix("diffusion_model.double_blocks.", Site::Transformer, "ComfyUI"),
    prefix("diffusion_model.single_blocks.", Site::Transformer, "ComfyUI"),
    prefix("diffusion_model.", Site::UNet, "ComfyUI"),
    prefix("down_blocks.", Site::UNet, "diffusers"),
    prefix("mid_block.", Site::UNet, "diffusers"),
    prefix("up_blocks.", Site::UNet, "diffusers"),
];

/// One layer that is changed.
#[derive(Debug, Clone, PartialEq)]
pub struct Target {
    site: Site,
    /// The layer's path with underscores.
    path: String,
    /// How it is changed.
    pub change: Change,
    /// The inner dimension.
    pub rank: Option<usize>,
    /// The scale is this over the rank; 1 where it is missing.
    pub alpha: Option<f32>,
    /// The weight's magnitudes are set too.
    pub dora: bool,
    /// The layer's outputs and inputs, where tensors tell them.
    output: Option<usize>,
    input: Option<usize>,
    /// The names of its tensors.
    pub keys: Vec<String>,
}

/// A file of changes to a model's layers.
#[derive(Debug, Clone, PartialEq)]
pub struct Adapter {
    /// Whose spelling the keys have.
    pub writer: &'static str,
    /// The layers that it changes.
    pub targets: Vec<Target>,
    /// Keys that are no part of a change that is known.
    pub unknown: Vec<String>,
}

/// How much of an adapter a model takes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AdapterFit {
    /// Keys of layers that the model has, with fitting shapes.
    pub keys: usize,
    /// Layers that would change.
    pub layers: usize,
    /// Keys of layers that the model does not have.
    pub absent: Vec<String>,
    /// Keys of layers that have other shapes in the model, with both.
    pub misshapen: Vec<String>,
}

impl Adapter {
    /// The adapter in a file; `None` where it is none.
    pub(crate) fn read(file: &WeightFile) -> Option<Adapter> {
        let mut found: BTreeMap<(Site, String), Target> = BTreeMap::new();
        let mut unknown = Vec::new();
        let mut writers: BTreeMap<&'static str, usize> = BTreeMap::new();
        let mut shows = false;
        for entry in file.entries() {
            let Some((prefix, path, suffix)) = parse(&entry.name) else {
                unknown.push(entry.name.clone());
                continue;
            };
            shows |= !suffix.shared;
            *writers.entry(prefix.writer).or_default() += 1;
            let target = found.entry((prefix.site, path.clone())).or_insert_with(|| Target {
                site: prefix.site,
                path,
                change: suffix.change,
                rank: None,
                alpha: None,
                dora: false,
                output: None,
                input: None,
                keys: Vec::new(),
            });
            if !suffix.shared && (target.change == Change::Full || suffix.change != Change::Full) {
                target.change = suffix.change;
            }
            target.keys.push(entry.name.clone());
            let (first, second) = (entry.shape.first().copied(), entry.shape.get(1).copied());
            match suffix.role {
                Role::Down => {
                    target.rank = first;
                    if suffix.change != Change::LoKr {
                        target.input = second;
                    }
                }
                Role::Up => {
                    target.rank = target.rank.or(second);
                    if suffix.change != Change::GLora {
                        target.output = first;
                    }
                }
                Role::Alpha if decode::readable(entry.dtype) && entry.range.len() <= 8 => {
                    target.alpha = file.bytes(entry).ok().and_then(|bytes| decode::numbers::<f32>(bytes, entry.dtype).first().copied());
                }
                Role::Magnitude => target.dora = true,
                _ => {}
            }
        }
        let writer = writers.into_iter().max_by_key(|(_, count)| *count).map(|(writer, _)| writer)?;
        shows.then(|| Adapter { writer, targets: found.into_values().collect(), unknown })
    }

    /// The kinds of changes, each once.
    pub fn changes(&self) -> Vec<Change> {
        self.targets.iter().map(|target| target.change).collect::<BTreeSet<_>>().into_iter().collect()
    }

    /// Whether some layer's magnitudes are set too.
    pub fn is_dora(&self) -> bool {
        self.targets.iter().any(|target| target.dora)
    }

    /// The ranks, smallest first, each once.
    pub fn ranks(&self) -> Vec<usize> {
        self.targets.iter().filter_map(|target| target.rank).collect::<BTreeSet<_>>().into_iter().collect()
    }

    /// The alphas, each once, in the order of the layers.
    pub fn alphas(&self) -> Vec<f32> {
        // By their bits: a NaN is not equal to itself.
        let mut seen = HashSet::new();
        self.targets.iter().filter_map(|target| target.alpha).filter(|alpha| seen.insert(alpha.to_bits())).collect()
    }

    /// The family whose shapes it has, and the evidence.
    pub fn base(&self) -> Option<(Family, String)> {
        let cross = self.targets.iter().find(|t| t.site == Site::UNet && t.path.ends_with("attn2_to_k") && t.input.is_some());
        if let Some(target) = cross {
            let family = family::of_context(target.input?)?;
            return Some((family, format!("{} takes text of width {}", target.path, target.input?)));
        }
        if let Some(target) = self.targets.iter().find(|t| t.site == Site::Text(1)) {
            return Some((family::SDXL, format!("it changes a second text encoder ({})", target.path)));
        }
        let text = self.targets.iter().find(|t| t.site == Site::Text(0) && t.path.ends_with("_q_proj") && t.input.is_some())?;
        let family = if text.input? == 1024 { family::SD2 } else { family::SD1 };
        Some((family, format!("the text encoder's {} has width {}", text.path, text.input?)))
    }

    /// A transformer's adapter, which no model of an implemented family takes.
    pub fn is_of_a_transformer(&self) -> bool {
        self.targets.iter().any(|target| target.site == Site::Transformer)
    }

    /// How many layers of which network it changes.
    pub fn sites(&self) -> Vec<(String, usize)> {
        let mut counts: BTreeMap<Site, usize> = BTreeMap::new();
        for target in &self.targets {
            *counts.entry(target.site).or_default() += 1;
        }
        let name = |site| match site {
            Site::UNet => "UNet".to_owned(),
            Site::Text(i) => format!("text encoder {}", i + 1),
            Site::Transformer => "transformer".to_owned(),
        };
        counts.into_iter().map(|(site, count)| (name(site), count)).collect()
    }

    /// CatalogKind the adapter against a model: which of its keys would change a layer, and which would not.
    pub fn fit(&self, model: &Checkpoint) -> AdapterFit {
        let layers = Layers::of(model);
        let mut fit = AdapterFit { absent: self.unknown.clone(), ..AdapterFit::default() };
        for target in &self.targets {
            let Some((part, name)) = layers.find(target.site, &target.path) else {
                fit.absent.extend(target.keys.iter().cloned());
                continue;
            };
            let shape = part.shape(&format!("{name}.weight")).unwrap_or_default();
            let wrong = |said: Option<usize>, at: usize| said.is_some_and(|said| shape.get(at).is_some_and(|has| *has != said));
            if wrong(target.output, 0) || wrong(target.input, 1) {
                let said = |size: Option<usize>| size.map_or("?".to_owned(), |size| size.to_string());
                let shapes = format!("{} to {} where the model has {shape:?}", said(target.input), said(target.output));
                fit.misshapen.extend(target.keys.iter().map(|key| format!("{key} ({shapes})")));
                continue;
            }
            fit.keys += target.keys.len();
            fit.layers += 1;
        }
        fit.absent.sort_unstable();
        fit
    }
}

/// Prefix, path with underscores, and suffix of a key.
fn parse(key: &str) -> Option<(&'static Prefix, String, &'static Suffix)> {
    let prefix = PREFIXES.iter().find(|row| key.starts_with(row.begin))?;
    let suffix = SUFFIXES.iter().find(|row| key.ends_with(row.end))?;
    // What a prefix shares with the path, `down_blocks.`, stays.
    let begin = if matches!(prefix.begin, "down_blocks." | "mid_block." | "up_blocks.") { 0 } else { prefix.begin.len() };
    let path = key.get(begin..key.len().checked_sub(suffix.end.len())?)?;
    // Before diffusers 0.20, attention layers hung on a processor.
    let path = path.replace(".processor.", ".");
    let path = path.strip_suffix(".to_out").map_or_else(|| path.clone(), |path| format!("{path}.to_out.0"));
    Some((prefix, path.replace('.', "_"), suffix))
}

/// A model's layers by their paths with underscores, in every spelling.
struct Layers<'a> {
    parts: HashMap<Site, (&'a Part, HashMap<String, String>)>,
}

impl<'a> Layers<'a> {
    fn of(model: &'a Checkpoint) -> Self {
        let mut parts = HashMap::new();
        for (component, part) in &model.parts {
            let (site, original) = match *component {
                Component::UNET => (Site::UNet, keys::unet(&model.spec().unet, "")),
                component => match (0..2).find(|i| component == Component::text_encoder(*i)) {
                    Some(i) => (Site::Text(i), Vec::new()),
                    None => continue,
                },
            };
            let layer = |name: &str| name.strip_suffix(".weight").map(str::to_owned);
            let mut names: HashMap<String, String> =
                part.names().into_iter().filter_map(|name| Some((layer(name)?.replace('.', "_"), layer(name)?))).collect();
            for pair in original.iter().filter(|pair| part.shape(&pair.name).is_some()) {
                if let (Some(stored), Some(name)) = (layer(&pair.stored), layer(&pair.name)) {
                    names.insert(stored.replace('.', "_"), name);
                }
            }
            parts.insert(site, (part, names));
        }
        Layers { parts }
    }

    fn find(&self, site: Site, path: &str) -> Option<(&'a Part, &str)> {
        let (part, names) = self.parts.get(&site)?;
        Some((part, names.get(path)?))
    }
}

/// Words that a text encoder learnt beside its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Embedding {
    /// The family whose text encoders have its widths.
    pub family: Family,
    /// Vectors of one word.
    pub vectors: usize,
    /// Who writes such files.
    pub writer: &'static str,
    /// The word, where the file says it.
    pub word: Option<String>,
}

impl Embedding {
    /// The textual inversion in a file; `None` where it is none.
    pub(crate) fn read(file: &WeightFile) -> Option<Embedding> {
        // Vectors of a width, or one vector.
        let size = |key: &str| match file.shape(key)? {
            [width] => Some((1, *width)),
            [vectors, width] => Some((*vectors, *width)),
            _ => None,
        };
        if let (Some((vectors, 768)), Some((_, 1280))) = (size("clip_l"), size("clip_g")) {
            return Some(Embedding { family: family::SDXL, vectors, writer: "kohya", word: None });
        }
        let key = match file.entries() {
            [only] => only.name.as_str(),
            _ => "emb_params",
        };
        let (vectors, width) = size(key)?;
        let family = match width {
            768 => family::SD1,
            1024 => family::SD2,
            1280 => family::SDXL,
            _ => return None,
        };
        let word = (key != "emb_params").then(|| key.to_owned());
        // One tensor of any name may be anything; a word is in brackets, or the name is the known one.
        let known = key == "emb_params" || key.starts_with('<') || key.starts_with("string_to_param");
        known.then_some(Embedding { family, vectors, writer: if key == "emb_params" { "A1111" } else { "diffusers" }, word })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_spelling_of_a_key_is_the_same_layer() {
        let unet = "down_blocks_0_attentions_1_transformer_blocks_0_attn1_to_q";
        let out = "down_blocks_0_attentions_1_transformer_blocks_0_attn1_to_out_0";
        let text = "text_model_encoder_layers_3_self_attn_q_proj";
        for (key, site, path, change, role) in [
            (
                "lora_unet_down_blocks_0_attentions_1_transformer_blocks_0_attn1_to_q.lora_down.weight",
                Site::UNet,
                unet,
                Change::Lora,
                Role::Down,
            ),
            ("unet.down_blocks.0.attentions.1.transformer_blocks.0.attn1.to_q.lora_B.weight", Site::UNet, unet, Change::Lora, Role::Up),
            (
                "base_model.model.down_blocks.0.attentions.1.transformer_blocks.0.attn1.to_q.lora_A.default.weight",
                Site::UNet,
                unet,
                Change::Lora,
                Role::Down,
            ),
            (
                "unet.down_blocks.0.attentions.1.transformer_blocks.0.attn1.processor.to_q_lora.up.weight",
                Site::UNet,
                unet,
                Change::Lora,
                Role::Up,
            ),
            (
                "down_blocks.0.attentions.1.transformer_blocks.0.attn1.processor.to_out_lora.down.weight",
                Site::UNet,
                out,
                Change::Lora,
                Role::Down,
            ),
            (
                "unet.down_blocks.0.attentions.1.transformer_blocks.0.attn1.to_out.0.lora.down.weight",
                Site::UNet,
                out,
                Change::Lora,
                Role::Down,
            ),
            ("lora_te_text_model_encoder_layers_3_self_attn_q_proj.alpha", Site::Text(0), text, Change::Full, Role::Alpha),
            ("lora_te2_text_model_encoder_layers_3_self_attn_q_proj.hada_w1_b", Site::Text(1), text, Change::LoHa, Role::Down),
            (
                "text_encoder.text_model.encoder.layers.3.self_attn.q_proj.lora_linear_layer.up.weight",
                Site::Text(0),
                text,
                Change::Lora,
                Role::Up,
            ),
            ("text_encoder_2.text_model.encoder.layers.3.self_attn.q_proj.lokr_w2_b", Site::Text(1), text, Change::LoKr, Role::Down),
            ("lora_unet_input_blocks_4_1_proj_in.dora_scale", Site::UNet, "input_blocks_4_1_proj_in", Change::Full, Role::Magnitude),
            ("lora_unet_double_blocks_0_img_mod_lin.lora_up.weight", Site::Transformer, "0_img_mod_lin", Change::Lora, Role::Up),
        ] {
            let (prefix, found, suffix) = parse(key).expect(key);
            assert_eq!((prefix.site, found.as_str(), suffix.change, suffix.role), (site, path, change, role), "{key}");
        }
        for key in ["", "lora_unet_", "lora_unet_x", "model.diffusion_model.x.weight", "unet.weight", ".alpha"] {
            assert!(parse(key).is_none_or(|(.., suffix)| suffix.shared), "{key}");
        }
    }
}
