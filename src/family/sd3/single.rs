//! A model in one file as Stability AI lays it out, with and without its text encoders.

use super::super::Detected;
use super::super::config::limit;
use super::super::detect::{self, Probe, VaeLayout};
use super::super::files::{Beside, Description, NetworkPlan, TensorNames};
use super::super::json::Fields;
use super::super::keys::{self, TextLayout};
use super::super::schedule;
use super::{PADS, ROW, check_latents, check_widths, encoder, keys as own};
use crate::Result;
use crate::error::model_error;
use crate::spec::{Activation, ClipTextSpec, Component, MmditSpec, ModelSpec, T5Spec, VaeSpec};

/// The usual prefix first.
pub(super) const MMDIT: [&str; 2] = ["model.diffusion_model.", ""];
pub(super) const VAE: [&str; 2] = ["first_stage_model.", "vae."];
pub(super) const ENCODERS: [&str; 2] = ["text_encoders.clip_l.transformer.", "text_encoders.clip_g.transformer."];
pub(super) const T5: &str = "text_encoders.t5xxl.transformer.";
/// Channels of one head: with them the width says how many heads and blocks there are.
const HEAD: usize = 64;
const TOKENS: &str = "text_model.embeddings.token_embedding.weight";

/// The CLIP behind `prefix`: CLIP-L (0) or CLIP-G (1), whose names are the same.
pub(super) fn clip(file: &dyn TensorNames, prefix: &'static str, index: usize) -> Result<ClipTextSpec> {
    let probe = Probe { file, prefix };
    let projected = probe.shape("text_projection.weight").is_some();
    let clip = detect::clip_text(probe, TextLayout::Clip, projected, None)?;
    Ok(ClipTextSpec { activation: if index == 0 { Activation::QuickGelu } else { Activation::Gelu }, ..clip })
}

/// The T5 encoder behind `prefix`.
pub(super) fn t5(file: &dyn TensorNames, prefix: &'static str) -> Result<T5Spec> {
    let probe = Probe { file, prefix };
    let table = if probe.shape("shared.weight").is_some() { "shared.weight" } else { "encoder.embed_tokens.weight" };
    let [vocab_size, width] = probe.need::<2>(table)?;
    let [buckets, heads] = probe.need::<2>("encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight")?;
    let [inner, _] = probe.need::<2>("encoder.block.0.layer.0.SelfAttention.q.weight")?;
    let [wide, _] = probe.need::<2>("encoder.block.0.layer.1.DenseReluDense.wi_0.weight")?;
    let layers = probe.count("encoder.block", "layer.0.SelfAttention.q.weight");
    Ok(T5Spec { vocab_size, width, wide, layers, heads, head_size: inner / heads, buckets, max_distance: 128, norm_eps: 1e-6 })
}

/// The transformer behind `prefix`.
fn mmdit(file: &dyn TensorNames, prefix: &'static str) -> Result<MmditSpec> {
    let probe = Probe { file, prefix };
    let [width, in_channels, patch_size, _] = probe.need::<4>("x_embedder.proj.weight")?;
    let [_, places, _] = probe.need::<3>("pos_embed")?;
    let [output, _] = probe.need::<2>("final_layer.linear.weight")?;
    let [_, pooled_width] = probe.need::<2>("y_embedder.mlp.0.weight")?;
    let [_, context_width] = probe.need::<2>("context_embedder.weight")?;
    let layers = probe.count("joint_blocks", "x_block.attn.qkv.weight");
    let positions = places.isqrt();
    let wrong = |what: String| model_error(file.name(), what);
    if width % HEAD != 0 {
        return Err(wrong(format!("has a transformer of width {width}, which heads of {HEAD} do not divide")));
    }
    if positions * positions != places || positions > limit::SAMPLE {
        return Err(wrong(format!("has {places} positions, which are no square")));
    }
    let is_dual = |i: &usize| probe.shape(&format!("joint_blocks.{i}.x_block.attn2.qkv.weight")).is_some();
    Ok(MmditSpec {
        in_channels,
        out_channels: output / (patch_size * patch_size),
        patch_size,
        heads: width / HEAD,
        head_size: HEAD,
        layers,
        dual_layers: (0..layers).filter(is_dual).collect(),
        qk_norm: probe.shape("joint_blocks.0.context_block.attn.ln_k.weight").is_some(),
        context_width,
        pooled_width,
        positions,
    })
}

/// Understands the file; `carried` is what the configuration files in it say.
pub(super) fn detect(file: &dyn TensorNames, carried: Option<Description>, beside: &Beside<'_>) -> Result<Detected> {
    let has = |key: String| file.shape(&key).is_some();
    let prefix = if has(format!("{}pos_embed", MMDIT[0])) { MMDIT[0] } else { MMDIT[1] };
    let vae_prefix = VAE.into_iter().find(|prefix| has(format!("{prefix}decoder.conv_in.weight")));
    let vae_prefix =
        vae_prefix.ok_or_else(|| model_error(file.name(), format!("lacks the autoencoder ({}…); a whole model is needed", VAE[0])))?;
    let inside = |i: usize| has(format!("{}{TOKENS}", ENCODERS.get(i).copied().unwrap_or_default()));
    let missing: Vec<&str> = [("CLIP-L (`clip-l`)", 0), ("CLIP-G (`clip-g`)", 1)]
        .into_iter()
        .filter(|(_, i)| beside.clip(*i).is_none() && !inside(*i))
        .map(|(name, _)| name)
        .collect();
    if !missing.is_empty() {
        return Err(model_error(
            file.name(),
            format!("has no text encoders {}; give their files, and T5's with `t5`, or take a folder", missing.join(" and ")),
        ));
    }
    let own_t5 = has(format!("{T5}encoder.final_layer_norm.weight"));
    let is_carried = carried.is_some();
    let mut description = match carried {
        Some(carried) => carried,
        None => concluded(file, prefix, vae_prefix)?,
    };
    let plan = |component: Component, title: &str, folder, prefix, pairs| NetworkPlan {
        component,
        title: title.to_owned(),
        folder,
        prefix,
        pairs,
    };
    let spec = &mut description.spec;
    let Some(mmdit) = spec.mmdit.clone() else { return Err(model_error(file.name(), "has a transformer, and its configuration has none")) };
    let mut networks = vec![
        plan(Component::UNET, "the transformer", "", prefix, own::mmdit(&mmdit, prefix)),
        plan(Component::VAE, "the autoencoder", "", vae_prefix, keys::vae(&spec.vae, vae_prefix)),
    ];
    // A configuration that the file carries says more of its own encoders than their tensors do.
    let known = if is_carried { std::mem::take(&mut spec.text_encoders) } else { Vec::new() };
    spec.text_encoders.clear();
    for i in 0..ENCODERS.len() {
        let (source, folder, prefix) = match beside.clip(i) {
            Some((file, folder)) => (file, folder, ""),
            None => (file, "", ENCODERS[i]),
        };
        let text = match known.get(i).filter(|_| folder.is_empty()) {
            Some(text) => text.clone(),
            None => encoder(clip(source, prefix, i)?, PADS[i].to_owned()),
        };
        spec.evidence.push(format!("CLIP-{} has a width of {} and {} layers.", ["L", "G"][i], text.clip.hidden_size, text.clip.layers));
        networks.push(plan(
            Component::text_encoder(i),
            &format!("text encoder {}", i + 1),
            folder,
            prefix,
            keys::text(&text.clip, TextLayout::Clip, prefix),
        ));
        spec.text_encoders.push(text);
    }
    let t5 = match (beside.t5, own_t5) {
        (Some(file), _) => Some((t5(file, "")?, "t5", "")),
        (None, true) => Some((
            match spec.t5.clone().filter(|_| is_carried) {
                Some(t5) => t5,
                None => t5(file, T5)?,
            },
            "",
            T5,
        )),
        (None, false) => None,
    };
    if let Some((t5, folder, prefix)) = &t5 {
        networks.push(plan(Component::T5, "the T5 encoder", folder, prefix, own::t5(t5, prefix)));
    }
    spec.evidence.push(match &t5 {
        Some((t5, ..)) => format!("There is a T5 of width {} with {} layers.", t5.width, t5.layers),
        None => "There is no T5: its tokens are zeros.".to_owned(),
    });
    spec.t5 = t5.map(|(t5, ..)| t5);
    check_widths(file.name(), &mmdit, &spec.text_encoders, spec.t5.as_ref())?;
    description.tokenizers.resize(ENCODERS.len(), None);
    description.networks = networks;
    let how = if is_carried {
        "as the configuration that it carries says"
    } else {
        "Stable Diffusion 3 was concluded from the names and shapes of its tensors"
    };
    Ok((description, how.to_owned()))
}

/// Concludes what there is beside the text encoders.
fn concluded(file: &dyn TensorNames, prefix: &'static str, vae_prefix: &'static str) -> Result<Description> {
    let mmdit = mmdit(file, prefix)?;
    let (scale, shift_factor) = super::LATENTS;
    let vae = detect::vae(Probe { file, prefix: vae_prefix }, VaeLayout::Original, scale, true)?;
    let vae = VaeSpec { shift_factor, ..vae };
    check_latents(file.name(), &mmdit, &vae)?;
    let norms = if mmdit.qk_norm { "normalised" } else { "plain" };
    let evidence = vec![format!(
        "The transformer has {} blocks of width {}, {norms} queries and keys, and {} blocks with a second attention.",
        mmdit.layers,
        mmdit.width(),
        mmdit.dual_layers.len()
    )];
    let scheduler = format!("{:#}\n", super::scheduler());
    let (defaults, _) = schedule::defaults(&ROW, &Fields::parse(schedule::USUAL, scheduler.as_bytes())?)?;
    let spec = ModelSpec {
        family: ROW.family,
        evidence,
        default_size: ROW.default_size,
        unet: mmdit.as_unet(),
        mmdit: Some(mmdit),
        vae,
        text_encoders: Vec::new(),
        t5: None,
        scheduler: schedule::parse(schedule::USUAL, &scheduler)?,
        zero_missing_negative: false,
        aesthetic_score: false,
        defaults,
    };
    Ok(Description { spec, networks: Vec::new(), tokenizers: Vec::new(), t5_tokenizer: None, scheduler })
}
