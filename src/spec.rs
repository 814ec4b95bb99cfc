//! What a model is: every number that shapes its networks and every choice that its family makes.
//!
//! A spec is plain data. It is read from a folder's configuration files or concluded from a single file's
//! tensors (`family`), and obeyed by `models`, `text` and `pipeline`. Nobody else asks for the family.

mod depth_anything;
mod latent_rgb;
mod mmdit;

pub use depth_anything::DepthAnythingSpec;
pub use latent_rgb::LatentRgb;
pub use mmdit::{MmditSpec, T5Spec};

use crate::sampling::SchedulerConfig;
use candle_core::DType;

/// A line of models that share their text encoders and conditioning, by its row in `family`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Family {
    id: &'static str,
    name: &'static str,
}

impl Family {
    pub(crate) const fn new(id: &'static str, name: &'static str) -> Self {
        Self { id, name }
    }

    /// A word for programs: "sdxl".
    pub fn id(self) -> &'static str {
        self.id
    }

    /// The name that people use.
    pub fn name(self) -> &'static str {
        self.name
    }
}

/// One network of a model, by the name that diffusers gives its folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Component(&'static str);

/// Every component that a model can have, and what people call it.
const COMPONENTS: &[(&str, &str)] = &[
    ("unet", "UNet"),
    ("vae", "VAE"),
    ("text_encoder", "text encoder"),
    ("text_encoder_2", "text encoder"),
    ("text_encoder_3", "text encoder"),
];

impl Component {
    /// Every component that a model can have.
    pub const ALL: [Self; COMPONENTS.len()] = {
        let mut all = [Self(""); COMPONENTS.len()];
        let mut i = 0;
        while i < all.len() {
            all[i] = Self(COMPONENTS[i].0);
            i += 1;
        }
        all
    };
    /// The denoiser.
    pub const UNET: Self = Self("unet");
    /// The T5 encoder.
    pub const T5: Self = Self("text_encoder_3");
    /// The autoencoder.
    pub const VAE: Self = Self("vae");

    /// The text encoder of this index in [`ModelSpec::text_encoders`].
    pub fn text_encoder(index: usize) -> Self {
        Self(COMPONENTS.iter().filter(|(name, _)| name.starts_with("text_encoder")).nth(index).map_or("", |(name, _)| name))
    }

    /// The name of its folder.
    pub fn name(self) -> &'static str {
        self.0
    }

    /// What people call it.
    pub fn title(self) -> &'static str {
        COMPONENTS.iter().find(|(name, _)| *name == self.0).map_or("network", |(_, title)| title)
    }

    /// Whether it reads the prompt.
    pub fn is_text(self) -> bool {
        self.0.starts_with("text_encoder")
    }

    /// Its place among all components that a model can have.
    pub fn position(self) -> usize {
        COMPONENTS.iter().position(|(name, _)| *name == self.0).unwrap_or(COMPONENTS.len())
    }
}

/// A whole model.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelSpec {
    /// The family, a conclusion.
    pub family: Family,
    /// What the conclusion rests on, one sentence each, for people.
    pub evidence: Vec<String>,
    /// The denoiser.
    pub unet: UNetSpec,
    /// It is a transformer (Stable Diffusion 3); what this says counts, and `unet` is as near as it comes.
    pub mmdit: Option<MmditSpec>,
    /// The autoencoder.
    pub vae: VaeSpec,
    /// The text encoders in the order in which their embeddings are joined.
    pub text_encoders: Vec<TextEncoderSpec>,
    /// The T5 encoder behind them, whose tokens follow theirs.
    pub t5: Option<T5Spec>,
    /// The noise schedule and the sampler that the model asks for.
    pub scheduler: SchedulerConfig,
    /// Width and height in pixels that the model was trained at.
    pub default_size: usize,
    /// A missing negative prompt becomes zeros instead of the embedding of the empty text (SDXL base).
    pub zero_missing_negative: bool,
    /// The time ids end in an aesthetic score instead of a target size (SDXL refiner).
    pub aesthetic_score: bool,
    /// Steps and guidance scale that the model wants.
    pub defaults: Defaults,
}

impl ModelSpec {
    /// What the sides of an image are multiples of, in pixels.
    pub fn side_multiple(&self) -> usize {
        // A model with fewer resolutions than SD's takes smaller steps; the setting's contract is a multiple of 8.
        (self.vae.factor() * self.mmdit.as_ref().map_or(1, |mmdit| mmdit.patch_size)).max(8)
    }

    /// The components that read the prompt.
    pub fn text_components(&self) -> impl Iterator<Item = Component> + use<> {
        (0..self.text_encoders.len()).map(Component::text_encoder).chain(self.t5.is_some().then_some(Component::T5))
    }
}

/// What to use when the user does not say.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Defaults {
    /// Denoising steps; `None` where it is the sampler that matters.
    pub steps: Option<usize>,
    /// Classifier-free guidance scale.
    pub guidance_scale: f64,
}

/// UNet2DConditionModel.
#[derive(Debug, Clone, PartialEq)]
pub struct UNetSpec {
    /// Channels of the input: 4, 8 (instruction editing) or 9 (inpainting).
    pub in_channels: usize,
    /// Channels of the output: 4.
    pub out_channels: usize,
    /// The levels from fine to coarse, as `down_blocks` lists them.
    pub down: Vec<UNetLevel>,
    /// The middle; `None` where a distilled model has none.
    pub mid: Option<UNetMid>,
    /// The levels from coarse to fine, as `up_blocks` lists them.
    pub up: Vec<UNetLevel>,
    /// Width of the text embeddings.
    pub cross_attention_dim: usize,
    /// `proj_in` and `proj_out` of a transformer are linear layers (SD 2.x, SDXL), not 1×1 convolutions (SD 1.x).
    pub linear_projection: bool,
    /// Groups of every group norm.
    pub norm_groups: usize,
    /// Epsilon of the group norms of the residual blocks and of the last one.
    pub norm_eps: f64,
    /// Pooled text and sizes as an additional condition (SDXL).
    pub text_time: Option<TextTimeSpec>,
    /// Width of the sinusoids by which the network is told the guidance scale (latent consistency models); 0 where it is not.
    pub guidance_embed_dim: usize,
    /// The time embedding is cosines first.
    pub flip_sin_to_cos: bool,
    /// Shift of the time embedding's frequencies.
    pub freq_shift: f64,
}

impl UNetSpec {
    /// Its middle attends to the image itself.
    pub fn attends_in_the_middle(&self) -> bool {
        self.mid.as_ref().is_some_and(|mid| mid.depth > 0)
    }
}

/// One resolution of the UNet.
#[derive(Debug, Clone, PartialEq)]
pub struct UNetLevel {
    /// Channels.
    pub channels: usize,
    /// Attention heads (diffusers' `attention_head_dim`, which is a count despite its name).
    pub heads: usize,
    /// For each residual block, how many transformer blocks follow it; 0 is none.
    pub depths: Vec<usize>,
    /// A downsampler (in `down`) or an upsampler (in `up`) ends the level.
    pub resample: bool,
    /// The first attention of its transformer blocks reads the text in the place of the image (`only_cross_attention`, as in SDXS).
    pub reads_text_only: bool,
}

/// The UNet's middle.
#[derive(Debug, Clone, PartialEq)]
pub struct UNetMid {
    /// Attention heads.
    pub heads: usize,
    /// Transformer blocks between the residual blocks; 0 is none.
    pub depth: usize,
    /// Residual blocks: two, or one where the middle has no attention.
    pub resnets: usize,
}

/// SDXL's additional condition: `addition_embed_type = "text_time"`.
#[derive(Debug, Clone, PartialEq)]
pub struct TextTimeSpec {
    /// Width of the sinusoids of one time id (256).
    pub time_embed_dim: usize,
    /// Width of pooled text and all sinusoids together (2816, or 2560 for the refiner).
    pub projection_input_dim: usize,
}

/// ControlNetModel.
#[derive(Debug, Clone, PartialEq)]
pub struct ControlNetSpec {
    /// The way down that it has a copy of; `up` is empty.
    pub unet: UNetSpec,
    /// Channels of its image: 3.
    pub image_channels: usize,
    /// Channels of its image on the way to the latents' size, each half as large as the one before.
    pub hint_channels: Vec<usize>,
    /// Of a network for several kinds of images.
    pub union: Option<ControlUnionSpec>,
}

/// What ControlNetUnionModel has beside ControlNetModel.
#[derive(Debug, Clone, PartialEq)]
pub struct ControlUnionSpec {
    /// Kinds of images.
    pub kinds: usize,
    /// Width of the sinusoids that say whether a kind is shown.
    pub kind_width: usize,
    /// Layers of the transformer that joins images.
    pub layers: usize,
    /// Its attention heads.
    pub heads: usize,
}

/// AutoencoderKL.
#[derive(Debug, Clone, PartialEq)]
pub struct VaeSpec {
    /// Channels of the image: 3.
    pub image_channels: usize,
    /// Channels of the latents: 4.
    pub latent_channels: usize,
    /// Channels from fine to coarse.
    pub block_out_channels: Vec<usize>,
    /// Residual blocks of one level of the encoder; the decoder has one more.
    pub layers_per_block: usize,
    /// Groups of every group norm.
    pub norm_groups: usize,
    /// Latents are multiplied by this after encoding.
    pub scaling_factor: f64,
    /// Latents are shifted by this before scaling.
    pub shift_factor: f64,
    /// The decoder overflows in f16.
    pub force_upcast: bool,
    /// A 1×1 convolution follows the encoder.
    pub quant_conv: bool,
    /// A 1×1 convolution precedes the decoder.
    pub post_quant_conv: bool,
    /// The middle has an attention layer.
    pub mid_attention: bool,
    /// How the latents look, where it is known.
    pub latent_rgb: Option<LatentRgb>,
    /// It is a tiny autoencoder; what this says counts, and the other fields are as near as they come.
    pub tiny: Option<AutoencoderTinySpec>,
}

impl VaeSpec {
    /// What the decoder computes in beside a network in `dtype`, where nobody asks for another: f32 where f16 would overflow.
    pub fn dtype_beside(&self, dtype: DType) -> DType {
        if dtype == DType::F16 && self.force_upcast { DType::F32 } else { dtype }
    }

    /// Pixels per latent along one side.
    pub fn factor(&self) -> usize {
        1 << self.block_out_channels.len().saturating_sub(1)
    }
}

/// AutoencoderTiny (TAESD).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AutoencoderTinySpec {
    /// Channels of the image: 3.
    pub image_channels: usize,
    /// Channels of the latents: 4.
    pub latent_channels: usize,
    /// Channels of every level: 64.
    pub channels: usize,
    /// Blocks of each level of the decoder, from coarse to fine.
    pub decoder_blocks: Vec<usize>,
    /// Blocks of each level of the encoder, from fine to coarse; empty where there is the decoder alone.
    pub encoder_blocks: Vec<usize>,
}

impl AutoencoderTinySpec {
    /// Pixels per latent along one side.
    pub fn factor(&self) -> usize {
        1 << self.decoder_blocks.len().saturating_sub(1)
    }

    /// As an autoencoder among others, whose latents are those of a large one with this scale.
    pub fn as_vae(&self, scaling_factor: f64) -> VaeSpec {
        VaeSpec {
            image_channels: self.image_channels,
            latent_channels: self.latent_channels,
            block_out_channels: vec![self.channels; self.decoder_blocks.len()],
            layers_per_block: self.decoder_blocks.iter().copied().max().unwrap_or(0),
            norm_groups: 1,
            // It learnt the scaled latents.
            scaling_factor: 1.0,
            shift_factor: 0.0,
            force_upcast: false,
            quant_conv: false,
            post_quant_conv: false,
            mid_attention: false,
            latent_rgb: LatentRgb::known(scaling_factor, self.latent_channels),
            tiny: Some(self.clone()),
        }
    }
}

/// A text encoder and what is taken from it.
#[derive(Debug, Clone, PartialEq)]
pub struct TextEncoderSpec {
    /// The transformer.
    pub clip: ClipTextSpec,
    /// Layers left out at the end: 0 takes the last layer's output, 1 the penultimate one's.
    pub skip_layers: usize,
    /// The final layer norm is applied to the hidden state that is taken.
    pub final_norm: bool,
    /// The token after the end of the text: `<|endoftext|>` or `!`.
    pub pad_token: String,
    /// The pooled, projected embedding is used too (SDXL's second encoder).
    pub pooled: bool,
}

/// CLIPTextModel.
#[derive(Debug, Clone, PartialEq)]
pub struct ClipTextSpec {
    /// Rows of the token embedding.
    pub vocab_size: usize,
    /// Width.
    pub hidden_size: usize,
    /// Width of the feed-forward layer.
    pub intermediate_size: usize,
    /// Layers that the file has.
    pub layers: usize,
    /// Attention heads.
    pub heads: usize,
    /// Tokens of one text, with start and end.
    pub max_positions: usize,
    /// Activation of the feed-forward layer.
    pub activation: Activation,
    /// Width of the pooled, projected embedding, where there is a projection.
    pub projection_dim: Option<usize>,
    /// Epsilon of the layer norms.
    pub layer_norm_eps: f64,
    /// The id that ends a text; the legacy value 2 means "the largest id in the text".
    pub eos_token_id: u32,
}

/// CLIPVisionModelWithProjection.
#[derive(Debug, Clone, PartialEq)]
pub struct ClipVisionSpec {
    /// Width.
    pub hidden_size: usize,
    /// Width of the feed-forward layer.
    pub intermediate_size: usize,
    /// Layers.
    pub layers: usize,
    /// Attention heads.
    pub heads: usize,
    /// Pixels of the image along one side.
    pub image_size: usize,
    /// Pixels of a patch along one side.
    pub patch_size: usize,
    /// Activation of the feed-forward layer.
    pub activation: Activation,
    /// Width of the projected embedding.
    pub projection_dim: usize,
    /// Epsilon of the layer norms.
    pub layer_norm_eps: f64,
}

/// An IP-Adapter: what makes tokens of an image, and the attention to them.
#[derive(Debug, Clone, PartialEq)]
pub struct IpAdapterSpec {
    /// Width of the tokens, which is the text's.
    pub width: usize,
    /// How many tokens an image becomes.
    pub tokens: usize,
    /// Width of what it reads of the image encoder.
    pub input: usize,
    /// How the tokens are made.
    pub projection: ImageProjectionSpec,
    /// The transformer blocks that attend to the image, and their channels, in the adapter's order.
    pub sites: Vec<(String, usize)>,
}

/// How an image becomes tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ImageProjectionSpec {
    /// A linear layer on the projected embedding.
    Linear,
    /// Queries that were learned look at all patches ("plus").
    Perceiver {
        /// Their width.
        width: usize,
        /// Layers.
        layers: usize,
        /// Width of all heads, of 64 each.
        inner: usize,
        /// Width of the feed-forward layer.
        wide: usize,
    },
}

/// A feed-forward activation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// x · sigmoid(1.702 x), as OpenAI's CLIP has it.
    QuickGelu,
    /// x · Φ(x), exact.
    Gelu,
}
