//! The names of the transformer and of T5.

use super::super::keys::{Form, Leaves, Pair, Pairs};
use super::super::keys::{Layer, Tensor};
use crate::spec::{MmditSpec, T5Spec};

const TOP: Leaves = &[
    ("pos_embed", "pos_embed.pos_embed", Tensor(Form::Same)),
    ("x_embedder.proj", "pos_embed.proj", Layer),
    ("t_embedder.mlp.0", "time_text_embed.timestep_embedder.linear_1", Layer),
    ("t_embedder.mlp.2", "time_text_embed.timestep_embedder.linear_2", Layer),
    ("y_embedder.mlp.0", "time_text_embed.text_embedder.linear_1", Layer),
    ("y_embedder.mlp.2", "time_text_embed.text_embedder.linear_2", Layer),
    ("context_embedder", "context_embedder", Layer),
    ("final_layer.linear", "proj_out", Layer),
    ("final_layer.adaLN_modulation.1.weight", "norm_out.linear.weight", Tensor(Form::HalvesSwapped)),
    ("final_layer.adaLN_modulation.1.bias", "norm_out.linear.bias", Tensor(Form::HalvesSwapped)),
];
const BLOCK: Leaves = &[
    ("x_block.adaLN_modulation.1", "norm1.linear", Layer),
    ("x_block.attn.qkv.weight", "attn.to_q.weight", Tensor(Form::Third(0))),
    ("x_block.attn.qkv.weight", "attn.to_k.weight", Tensor(Form::Third(1))),
    ("x_block.attn.qkv.weight", "attn.to_v.weight", Tensor(Form::Third(2))),
    ("x_block.attn.qkv.bias", "attn.to_q.bias", Tensor(Form::Third(0))),
    ("x_block.attn.qkv.bias", "attn.to_k.bias", Tensor(Form::Third(1))),
    ("x_block.attn.qkv.bias", "attn.to_v.bias", Tensor(Form::Third(2))),
    ("context_block.attn.qkv.weight", "attn.add_q_proj.weight", Tensor(Form::Third(0))),
    ("context_block.attn.qkv.weight", "attn.add_k_proj.weight", Tensor(Form::Third(1))),
    ("context_block.attn.qkv.weight", "attn.add_v_proj.weight", Tensor(Form::Third(2))),
    ("context_block.attn.qkv.bias", "attn.add_q_proj.bias", Tensor(Form::Third(0))),
    ("context_block.attn.qkv.bias", "attn.add_k_proj.bias", Tensor(Form::Third(1))),
    ("context_block.attn.qkv.bias", "attn.add_v_proj.bias", Tensor(Form::Third(2))),
    ("x_block.attn.proj", "attn.to_out.0", Layer),
    ("x_block.mlp.fc1", "ff.net.0.proj", Layer),
    ("x_block.mlp.fc2", "ff.net.2", Layer),
];
const QK_NORMS: Leaves = &[
    ("x_block.attn.ln_q.weight", "attn.norm_q.weight", Tensor(Form::Same)),
    ("x_block.attn.ln_k.weight", "attn.norm_k.weight", Tensor(Form::Same)),
    ("context_block.attn.ln_q.weight", "attn.norm_added_q.weight", Tensor(Form::Same)),
    ("context_block.attn.ln_k.weight", "attn.norm_added_k.weight", Tensor(Form::Same)),
];
const SECOND: Leaves = &[
    ("x_block.attn2.qkv.weight", "attn2.to_q.weight", Tensor(Form::Third(0))),
    ("x_block.attn2.qkv.weight", "attn2.to_k.weight", Tensor(Form::Third(1))),
    ("x_block.attn2.qkv.weight", "attn2.to_v.weight", Tensor(Form::Third(2))),
    ("x_block.attn2.qkv.bias", "attn2.to_q.bias", Tensor(Form::Third(0))),
    ("x_block.attn2.qkv.bias", "attn2.to_k.bias", Tensor(Form::Third(1))),
    ("x_block.attn2.qkv.bias", "attn2.to_v.bias", Tensor(Form::Third(2))),
    ("x_block.attn2.proj", "attn2.to_out.0", Layer),
];
const SECOND_NORMS: Leaves = &[
    ("x_block.attn2.ln_q.weight", "attn2.norm_q.weight", Tensor(Form::Same)),
    ("x_block.attn2.ln_k.weight", "attn2.norm_k.weight", Tensor(Form::Same)),
];
/// The text's stream in all blocks but the last.
const TEXT: Leaves = &[
    ("context_block.adaLN_modulation.1", "norm1_context.linear", Layer),
    ("context_block.attn.proj", "attn.to_add_out", Layer),
    ("context_block.mlp.fc1", "ff_context.net.0.proj", Layer),
    ("context_block.mlp.fc2", "ff_context.net.2", Layer),
];
const LAST_TEXT: Leaves = &[
    ("context_block.adaLN_modulation.1.weight", "norm1_context.linear.weight", Tensor(Form::HalvesSwapped)),
    ("context_block.adaLN_modulation.1.bias", "norm1_context.linear.bias", Tensor(Form::HalvesSwapped)),
];

/// The transformer's names in the original layout, behind `prefix`, which ends in a dot or is empty.
pub(in crate::family) fn mmdit(spec: &MmditSpec, prefix: &'static str) -> Vec<Pair> {
    let mut pairs = Pairs::behind(prefix);
    pairs.add("", "", TOP);
    for i in 0..spec.layers {
        let (stored, name) = (format!("joint_blocks.{i}"), format!("transformer_blocks.{i}"));
        let is_dual = spec.dual_layers.contains(&i);
        let parts = [
            (BLOCK, true),
            (if i + 1 == spec.layers { LAST_TEXT } else { TEXT }, true),
            (QK_NORMS, spec.qk_norm),
            (SECOND, is_dual),
            (SECOND_NORMS, is_dual && spec.qk_norm),
        ];
        parts.iter().filter(|(_, is_there)| *is_there).for_each(|(leaves, _)| pairs.add(&stored, &name, leaves));
    }
    pairs.pairs
}

/// Those of a diffusers folder.
pub(super) fn diffusers_mmdit(spec: &MmditSpec) -> Vec<Pair> {
    mmdit(spec, "").into_iter().map(|pair| Pair { stored: pair.name.clone(), form: Form::Same, ..pair }).collect()
}

/// T5's encoder, behind `prefix`; its names are the same everywhere.
pub(super) fn t5(spec: &T5Spec, prefix: &'static str) -> Vec<Pair> {
    const LAYER: [&str; 9] = [
        "layer.0.layer_norm",
        "layer.0.SelfAttention.q",
        "layer.0.SelfAttention.k",
        "layer.0.SelfAttention.v",
        "layer.0.SelfAttention.o",
        "layer.1.layer_norm",
        "layer.1.DenseReluDense.wi_0",
        "layer.1.DenseReluDense.wi_1",
        "layer.1.DenseReluDense.wo",
    ];
    let top = ["shared", "encoder.final_layer_norm", "encoder.block.0.layer.0.SelfAttention.relative_attention_bias"].map(str::to_owned);
    let layers = (0..spec.layers).flat_map(|i| LAYER.map(|leaf| format!("encoder.block.{i}.{leaf}")));
    let names = top.into_iter().chain(layers).map(|site| format!("{site}.weight"));
    let mut pairs: Vec<Pair> = names.map(|name| Pair { stored: format!("{prefix}{name}"), name, form: Form::Same }).collect();
    // The table under its other name, where only that is stored.
    pairs.push(Pair { stored: format!("{prefix}encoder.embed_tokens.weight"), name: "shared.weight".into(), form: Form::Same });
    pairs
}
