//! Tensors that checkpoints carry and that generating has no use for.

/// How a key is recognised.
enum IgnorableKey {
    Is(&'static str),
    Starts(&'static str),
    Has(&'static str),
    Ends(&'static str),
}
use IgnorableKey::{Ends, Has, Is, Starts};

/// What is left out, and why.
const TABLE: &[IgnorableKey] = &[
    // The indices 0, 1, 2, … of a text's tokens.
    Ends("position_ids"),
    // A second, averaged UNet, which training goes on with.
    Has("model_ema."),
    // The noise schedule, which follows from its configuration.
    Is("betas"),
    Is("logvar"),
    Is("lvlb_weights"),
    Starts("alphas_cumprod"),
    Starts("sqrt_alphas_cumprod"),
    Starts("sqrt_one_minus_alphas_cumprod"),
    Starts("sqrt_recip_alphas_cumprod"),
    Starts("sqrt_recipm1_alphas_cumprod"),
    Starts("log_one_minus_alphas_cumprod"),
    Starts("posterior_"),
    Starts("denoiser."),
    // Marks that are read for what they say, not for their numbers.
    Is("v_pred"),
    Is("ztsnr"),
    Is("scale_factor"),
    // The scales of eight-bit weights, which are read with the weights.
    Ends(".scale_weight"),
    Ends(".weight_scale"),
    Ends(".scale_input"),
    Ends(".input_scale"),
    Ends("scaled_fp8"),
    // T5's table of tokens a second time.
    Ends("encoder.embed_tokens.weight"),
    // CLIP's other half and its training.
    Ends("logit_scale"),
    Ends("logit_bias"),
    Ends("text_projection"),
    Ends("text_projection.weight"),
    Ends("attn_mask"),
    Starts("cond_stage_model.model.visual."),
    Starts("vision_model."),
    Starts("visual_projection."),
    // What a file that is given beside a denoiser has more than is asked of it.
    Starts(super::assembled::UNUSED),
    // Training.
    Starts("first_stage_model.loss."),
    Starts("loss."),
    Starts("optimizer"),
    Starts("lr_scheduler"),
    Starts("callbacks"),
    Is("global_step"),
    Is("iteration"),
    Is("epoch"),
    Ends("num_batches_tracked"),
];

/// Whether the tensor `key` may be left out without a word.
pub(crate) fn is(key: &str) -> bool {
    TABLE.iter().any(|row| match row {
        Is(name) => key == *name,
        Starts(prefix) => key.starts_with(prefix),
        Has(part) => key.contains(part),
        Ends(suffix) => key.ends_with(suffix),
    })
}
