//! The grammar of an adapter's keys, as tables.
//!
//! A key is a prefix that names a network, a path to one of its layers, and a suffix that names one tensor of the change. Other tools
//! write the path with dots or underscores, in diffusers' names or the original layout's; all come to one spelling here, with
//! underscores.
//!
//! # Source
//! kohya-ss/sd-scripts `networks/lora.py`, huggingface/peft, KohakuBlueleaf/LyCORIS `lycoris/modules`, diffusers
//! `loaders/lora_conversion_utils.py`, Nerogar/OneTrainer `modules/module/LoRAModule.py`, comfyanonymous/ComfyUI `comfy/lora.py`.

use std::collections::BTreeMap;

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

/// What one tensor is to its change. The names are LyCORIS's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Role {
    Up,
    Down,
    Mid,
    HadaW1A,
    HadaW1B,
    HadaW2A,
    HadaW2B,
    HadaT1,
    HadaT2,
    LokrW1,
    LokrW1A,
    LokrW1B,
    LokrW2,
    LokrW2A,
    LokrW2B,
    LokrT2,
    A1,
    A2,
    B1,
    B2,
    OftBlocks,
    Rescale,
    OnInput,
    /// IA3's factors, beside [`Role::OnInput`].
    Factors,
    Diff,
    DiffBias,
    Alpha,
    /// A1111's, in the place of alpha over rank.
    Scale,
    DoraScale,
    /// PEFT's magnitudes, which are always by rows.
    Magnitude,
    /// Of a change that is known and not implemented.
    Unsupported,
}

struct Suffix {
    end: &'static str,
    change: Option<Change>,
    role: Role,
}

const fn row(end: &'static str, change: Change, role: Role) -> Suffix {
    Suffix { end, change: Some(change), role }
}

const fn shared(end: &'static str, role: Role) -> Suffix {
    Suffix { end, change: None, role }
}

/// The first row that fits counts. `.NAME.` after PEFT's words is left out before.
const SUFFIXES: &[Suffix] = &[
    row(".lora_down.weight", Change::Lora, Role::Down),
    row(".lora_up.weight", Change::Lora, Role::Up),
    row(".lora_mid.weight", Change::Lora, Role::Mid),
    row(".lora_A.weight", Change::Lora, Role::Down),
    row(".lora_B.weight", Change::Lora, Role::Up),
    row(".lora_linear_layer.down.weight", Change::Lora, Role::Down),
    row(".lora_linear_layer.up.weight", Change::Lora, Role::Up),
    row(".lora.down.weight", Change::Lora, Role::Down),
    row(".lora.up.weight", Change::Lora, Role::Up),
    row("_lora.down.weight", Change::Lora, Role::Down),
    row("_lora.up.weight", Change::Lora, Role::Up),
    row(".lora_magnitude_vector.weight", Change::Lora, Role::Magnitude),
    row(".lora_magnitude_vector", Change::Lora, Role::Magnitude),
    row(".hada_w1_a", Change::LoHa, Role::HadaW1A),
    row(".hada_w1_b", Change::LoHa, Role::HadaW1B),
    row(".hada_w2_a", Change::LoHa, Role::HadaW2A),
    row(".hada_w2_b", Change::LoHa, Role::HadaW2B),
    row(".hada_t1", Change::LoHa, Role::HadaT1),
    row(".hada_t2", Change::LoHa, Role::HadaT2),
    row(".lokr_w1", Change::LoKr, Role::LokrW1),
    row(".lokr_w1_a", Change::LoKr, Role::LokrW1A),
    row(".lokr_w1_b", Change::LoKr, Role::LokrW1B),
    row(".lokr_w2", Change::LoKr, Role::LokrW2),
    row(".lokr_w2_a", Change::LoKr, Role::LokrW2A),
    row(".lokr_w2_b", Change::LoKr, Role::LokrW2B),
    row(".lokr_t2", Change::LoKr, Role::LokrT2),
    row(".a1.weight", Change::GLora, Role::A1),
    row(".a2.weight", Change::GLora, Role::A2),
    row(".b1.weight", Change::GLora, Role::B1),
    row(".b2.weight", Change::GLora, Role::B2),
    row(".oft_blocks", Change::Oft, Role::OftBlocks),
    row(".oft_diag", Change::Oft, Role::Unsupported),
    row(".on_input", Change::Ia3, Role::OnInput),
    row(".diff", Change::Full, Role::Diff),
    row(".diff_b", Change::Full, Role::DiffBias),
    row(".w_norm", Change::Full, Role::Diff),
    row(".b_norm", Change::Full, Role::DiffBias),
    row(".set_weight", Change::Full, Role::Unsupported),
    shared(".dora_scale", Role::DoraScale),
    shared(".alpha", Role::Alpha),
    shared(".rescale", Role::Rescale),
    shared(".scale", Role::Scale),
    shared(".reshape_weight", Role::Unsupported),
    shared(".weight", Role::Factors),
];

/// Whose network a prefix names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Site {
    UNet,
    /// By the number in its folder's name.
    Text(usize),
    /// A denoiser that is a transformer, which is not implemented.
    Transformer,
}

impl Site {
    pub(super) fn name(self) -> String {
        match self {
            Site::UNet => "UNet".to_owned(),
            Site::Text(i) => format!("text encoder {}", i + 1),
            Site::Transformer => "transformer".to_owned(),
        }
    }
}

struct Prefix {
    begin: &'static str,
    site: Site,
    writer: &'static str,
    /// It is the beginning of the path, too.
    kept: bool,
}

const fn prefix(begin: &'static str, site: Site, writer: &'static str) -> Prefix {
    Prefix { begin, site, writer, kept: false }
}

const fn bare(begin: &'static str, site: Site, writer: &'static str) -> Prefix {
    Prefix { begin, site, writer, kept: true }
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
    prefix("lora_unet.", Site::UNet, "OneTrainer"),
    prefix("lora_te1.", Site::Text(0), "OneTrainer"),
    prefix("lora_te2.", Site::Text(1), "OneTrainer"),
    prefix("lora_te.", Site::Text(0), "OneTrainer"),
    prefix("oft_unet_", Site::UNet, "kohya"),
    prefix("lycoris_unet_", Site::UNet, "LyCORIS"),
    bare("lycoris_text_model_", Site::Text(0), "LyCORIS"),
    prefix("lycoris_", Site::UNet, "SimpleTuner"),
    prefix("base_model.model.unet.", Site::UNet, "PEFT"),
    prefix("base_model.model.text_encoder_2.", Site::Text(1), "PEFT"),
    prefix("base_model.model.text_encoder.", Site::Text(0), "PEFT"),
    bare("base_model.model.text_model.", Site::Text(0), "PEFT"),
    prefix("base_model.model.", Site::UNet, "PEFT"),
    prefix("unet.", Site::UNet, "diffusers"),
    prefix("text_encoder_2.", Site::Text(1), "diffusers"),
    prefix("text_encoder.", Site::Text(0), "diffusers"),
    prefix("transformer.", Site::Transformer, "diffusers"),
    prefix("diffusion_model.double_blocks.", Site::Transformer, "ComfyUI"),
    prefix("diffusion_model.single_blocks.", Site::Transformer, "ComfyUI"),
    prefix("diffusion_model.joint_blocks.", Site::Transformer, "ComfyUI"),
    prefix("diffusion_model.", Site::UNet, "ComfyUI"),
    prefix("text_encoders.clip_l.transformer.", Site::Text(0), "ComfyUI"),
    prefix("text_encoders.clip_g.transformer.", Site::Text(1), "ComfyUI"),
    prefix("text_encoders.clip_h.transformer.", Site::Text(0), "ComfyUI"),
    bare("down_blocks.", Site::UNet, "diffusers"),
    bare("mid_block.", Site::UNet, "diffusers"),
    bare("up_blocks.", Site::UNet, "diffusers"),
];

/// A key, taken apart.
pub(super) struct AdapterKey {
    pub(super) site: Site,
    /// Whose spelling it is.
    pub(super) writer: &'static str,
    /// The path to the layer, with underscores; `#12` for one that goes by its number.
    pub(super) path: String,
    /// The change that it shows; `None` where it is seen with any, or in files that are no adapter.
    pub(super) change: Option<Change>,
    pub(super) role: Role,
}

/// Takes a key apart; `None` where it is none of an adapter.
pub(super) fn parse(key: &str) -> Option<AdapterKey> {
    if let Some(numbered) = parse_numbered(key) {
        return Some(numbered);
    }
    let prefix = PREFIXES.iter().find(|row| key.starts_with(row.begin))?;
    let key = without_adapter_name(key);
    let suffix = SUFFIXES.iter().find(|row| key.ends_with(row.end))?;
    let begin = if prefix.kept { prefix.begin.find("text_model").unwrap_or(0) } else { prefix.begin.len() };
    let path = key.get(begin..key.len().checked_sub(suffix.end.len())?)?;
    // Before diffusers 0.20, attention layers hung on a processor.
    let path = path.replace(".processor.", ".").replace('.', "_");
    Some(AdapterKey { site: prefix.site, writer: prefix.writer, path, change: suffix.change, role: suffix.role })
}

/// `unet:12:up`: cloneofsimo's layers go by numbers.
fn parse_numbered(key: &str) -> Option<AdapterKey> {
    let (network, rest) = key.split_once(':')?;
    let (number, side) = rest.split_once(':')?;
    let site = match network {
        "unet" => Site::UNet,
        "text_encoder" => Site::Text(0),
        _ => return None,
    };
    let role = match side {
        "up" => Role::Up,
        "down" => Role::Down,
        _ => return None,
    };
    let number: u32 = number.parse().ok()?;
    Some(AdapterKey { site, writer: "cloneofsimo", path: format!("#{number}"), change: Some(Change::Lora), role })
}

/// The word whose vectors a LoRA's file holds beside its layers: A1111's bundles, and what cloneofsimo marks in the metadata.
pub(super) fn bundled_word(key: &str, metadata: &BTreeMap<String, String>) -> Option<String> {
    if let Some(rest) = key.strip_prefix("bundle_emb.") {
        return rest.split('.').next().filter(|word| !word.is_empty()).map(str::to_owned);
    }
    metadata.get(key).is_some_and(|mark| mark == "<embed>").then(|| key.to_owned())
}

/// PEFT puts a name between its words: `lora_A.default.weight`.
fn without_adapter_name(key: &str) -> String {
    for word in [".lora_A.", ".lora_B.", ".lora_magnitude_vector."] {
        if let Some((before, after)) = key.split_once(word)
            && let Some(name) = after.strip_suffix(".weight")
            && !name.contains('.')
        {
            return format!("{before}{word}weight");
        }
    }
    key.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_spelling_of_a_key_is_the_same_layer() {
        let unet = "down_blocks_0_attentions_1_transformer_blocks_0_attn1_to_q";
        let text = "text_model_encoder_layers_3_self_attn_q_proj";
        let block = "down_blocks.0.attentions.1.transformer_blocks.0";
        for (key, site, path, change, role) in [
            (format!("lora_unet_{unet}.lora_down.weight"), Site::UNet, unet, Some(Change::Lora), Role::Down),
            (format!("unet.{block}.attn1.to_q.lora_B.weight"), Site::UNet, unet, Some(Change::Lora), Role::Up),
            (format!("base_model.model.{block}.attn1.to_q.lora_A.default.weight"), Site::UNet, unet, Some(Change::Lora), Role::Down),
            (format!("unet.{block}.attn1.to_q.lora_A.my-lora.weight"), Site::UNet, unet, Some(Change::Lora), Role::Down),
            (format!("unet.{block}.attn1.processor.to_q_lora.up.weight"), Site::UNet, unet, Some(Change::Lora), Role::Up),
            (format!("{block}.attn1.processor.to_q_lora.down.weight"), Site::UNet, unet, Some(Change::Lora), Role::Down),
            (format!("unet.{block}.attn1.to_q.lora.down.weight"), Site::UNet, unet, Some(Change::Lora), Role::Down),
            (format!("lora_unet.{block}.attn1.to_q.lora_up.weight"), Site::UNet, unet, Some(Change::Lora), Role::Up),
            (
                format!("unet.{block}.attn1.to_q.lora_magnitude_vector.default.weight"),
                Site::UNet,
                unet,
                Some(Change::Lora),
                Role::Magnitude,
            ),
            (format!("lora_te_{text}.alpha"), Site::Text(0), text, None, Role::Alpha),
            (format!("lora_te2_{text}.hada_w1_b"), Site::Text(1), text, Some(Change::LoHa), Role::HadaW1B),
            (
                format!("text_encoder_2.{}.lokr_w2_b", "text_model.encoder.layers.3.self_attn.q_proj"),
                Site::Text(1),
                text,
                Some(Change::LoKr),
                Role::LokrW2B,
            ),
            (format!("lycoris_{text}.diff"), Site::Text(0), &format!("lycoris_{text}")[8..], Some(Change::Full), Role::Diff),
            ("lora_unet_input_blocks_4_1_proj_in.dora_scale".into(), Site::UNet, "input_blocks_4_1_proj_in", None, Role::DoraScale),
        ] {
            let found = parse(&key).expect(&key);
            assert_eq!((found.site, found.path.as_str(), found.change, found.role), (site, path, change, role), "{key}");
        }
        let numbered = parse("text_encoder:7:down").expect("a key");
        assert_eq!((numbered.site, numbered.path.as_str(), numbered.role), (Site::Text(0), "#7", Role::Down));
        assert_eq!(bundled_word("bundle_emb.my-cat.clip_l", &BTreeMap::new()).as_deref(), Some("my-cat"));
        for key in [
            "unet:x:up",
            "unet:1:side",
            "vae:1:up",
            "",
            "lora_unet_",
            "lora_unet_x",
            "model.diffusion_model.x.weight",
            "unet.weight",
            ".alpha",
        ] {
            assert!(parse(key).is_none_or(|key| key.change.is_none()), "{key}");
        }
    }
}
