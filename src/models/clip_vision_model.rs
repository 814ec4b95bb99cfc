//! CLIP's vision transformer, in the names that transformers gives it.

use super::Scope;
use super::clip_text_model::{EncoderLayer, EncoderLayerSpec};
use crate::Result;
use crate::ops::{LayerNorm, Linear, on_workers};
use crate::spec::ClipVisionSpec;
use candle_core::Tensor;

/// CLIPVisionModelWithProjection.
///
/// # Source
/// Radford et al. 2021, arXiv:2103.00020; huggingface/transformers@v4.57:src/transformers/models/clip/modeling_clip.py
#[derive(Debug)]
pub struct ClipVisionModel {
    spec: ClipVisionSpec,
    class_embedding: Tensor,
    patch_embedding: Linear,
    position_embedding: Tensor,
    pre_layernorm: LayerNorm,
    layers: Vec<EncoderLayer>,
    post_layernorm: LayerNorm,
    visual_projection: Linear,
}

/// What the encoder says of an image.
#[derive(Debug)]
pub struct ClipVisionOutput {
    /// The state after all layers but the last, `(batch, 1 + patches, width)`.
    pub penultimate: Tensor,
    /// The last state of the class token, normed and projected, `(batch, projection)`.
    pub projected: Tensor,
}

impl ClipVisionModel {
    /// Reads the weights that `spec` calls for.
    ///
    /// # Errors
    /// A tensor is missing or has another shape.
    pub fn load(root: &Scope<'_>, spec: &ClipVisionSpec) -> Result<Self> {
        let scope = root.at("vision_model");
        let (width, eps) = (spec.hidden_size, spec.layer_norm_eps);
        let embeddings = scope.at("embeddings");
        let side = spec.image_size / spec.patch_size.max(1);
        let layers = (0..spec.layers).map(|i| EncoderLayer::load(&scope.at("encoder.layers").at(i), layer(spec)));
        Ok(Self {
            class_embedding: embeddings.tensor("class_embedding", &[width])?,
            patch_embedding: embeddings.at("patch_embedding").patches(3, spec.patch_size, width)?,
            position_embedding: embeddings.at("position_embedding").table(side * side + 1, width)?,
            // Misspelled there.
            pre_layernorm: scope.at("pre_layrnorm").layer_norm(width, eps)?,
            layers: layers.collect::<Result<_>>()?,
            post_layernorm: scope.at("post_layernorm").layer_norm(width, eps)?,
            visual_projection: root.at("visual_projection").linear_without_bias(width, spec.projection_dim)?,
            spec: spec.clone(),
        })
    }

    /// Encodes normalised images.
    ///
    /// # Shapes
    /// `(batch, 3, image size, image size)` in the compute dtype.
    ///
    /// # Errors
    /// The image has another size, or the device failed.
    pub fn forward(&self, image: &Tensor) -> Result<ClipVisionOutput> {
        on_workers(image.device(), || self.encode(image))
    }

    fn encode(&self, image: &Tensor) -> Result<ClipVisionOutput> {
        let (batch, channels, height, width) = image.dims4()?;
        let patch = self.spec.patch_size;
        let (rows, columns) = (height / patch, width / patch);
        let patches = image.reshape(vec![batch, channels, rows, patch, columns, patch])?.permute(vec![0, 2, 4, 1, 3, 5])?.contiguous()?;
        let patches = self.patch_embedding.forward(&patches.reshape((batch, rows * columns, channels * patch * patch))?)?;
        let class = self.class_embedding.reshape((1, 1, self.spec.hidden_size))?.broadcast_as((batch, 1, self.spec.hidden_size))?;
        let embedded = Tensor::cat(&[&class.contiguous()?, &patches], 1)?.broadcast_add(&self.position_embedding)?;
        let mut x = self.pre_layernorm.forward(&embedded)?;
        let mut penultimate = x.clone();
        for (i, encoder_layer) in self.layers.iter().enumerate() {
            if i + 1 == self.layers.len() {
                penultimate = x.clone();
            }
            x = encoder_layer.forward(&x, layer(&self.spec))?;
        }
        let class = self.post_layernorm.forward(&x.narrow(1, 0, 1)?.squeeze(1)?.contiguous()?)?;
        Ok(ClipVisionOutput { penultimate, projected: self.visual_projection.forward(&class)? })
    }
}

fn layer(spec: &ClipVisionSpec) -> EncoderLayerSpec {
    let ClipVisionSpec { hidden_size: width, intermediate_size: wide, heads, activation, layer_norm_eps: eps, .. } = *spec;
    EncoderLayerSpec { width, wide, heads, activation, eps, causal: false }
}
