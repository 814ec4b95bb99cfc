//! Stable Diffusion 3's networks that are not those of its elders.

use super::{UNetLevel, UNetSpec};

/// SD3Transformer2DModel: a transformer over the tokens of image and text together (MMDiT).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MmditSpec {
    /// Channels of the latents: 16.
    pub in_channels: usize,
    /// Channels of the output: 16.
    pub out_channels: usize,
    /// Latents of a token along one side: 2.
    pub patch_size: usize,
    /// Attention heads.
    pub heads: usize,
    /// Width of one head.
    pub head_size: usize,
    /// Blocks.
    pub layers: usize,
    /// The blocks in which the image attends to itself a second time (SD3.5 medium).
    pub dual_layers: Vec<usize>,
    /// Queries and keys are normalised (SD3.5).
    pub qk_norm: bool,
    /// Width of the text: 4096.
    pub context_width: usize,
    /// Width of the pooled text: 2048.
    pub pooled_width: usize,
    /// Tokens along one side of the table of positions.
    pub positions: usize,
}

impl MmditSpec {
    /// Width of the tokens.
    pub fn width(&self) -> usize {
        self.heads * self.head_size
    }

    /// The UNet that is nearest to it, for who asks what goes in and out, and how much memory that takes.
    pub fn as_unet(&self) -> UNetSpec {
        let level =
            UNetLevel { channels: self.width(), heads: self.heads, depths: vec![self.layers], resample: false, reads_text_only: false };
        UNetSpec {
            in_channels: self.in_channels,
            out_channels: self.out_channels,
            down: vec![level],
            mid: None,
            up: Vec::new(),
            cross_attention_dim: self.context_width,
            linear_projection: true,
            norm_groups: 1,
            norm_eps: 1e-6,
            text_time: None,
            guidance_embed_dim: 0,
            flip_sin_to_cos: true,
            freq_shift: 0.0,
        }
    }
}

/// T5EncoderModel (v1.1).
#[derive(Debug, Clone, PartialEq)]
pub struct T5Spec {
    /// Rows of the token embedding.
    pub vocab_size: usize,
    /// Width.
    pub width: usize,
    /// Width of the feed-forward layer.
    pub wide: usize,
    /// Layers.
    pub layers: usize,
    /// Attention heads.
    pub heads: usize,
    /// Width of one head.
    pub head_size: usize,
    /// Distances between tokens that are told apart.
    pub buckets: usize,
    /// The distance from which on all are alike.
    pub max_distance: usize,
    /// Epsilon of the norms.
    pub norm_eps: f64,
}
