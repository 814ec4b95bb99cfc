//! DINOv2's vision transformer, for images of any size.

use super::resample::bicubic;
use crate::models::Scope;
use crate::ops::{LayerNorm, Linear, attention, gelu, on_workers};
use crate::spec::DepthAnythingSpec;
use crate::{Error, Result};
use candle_core::Tensor;

/// Dinov2Backbone.
///
/// # Source
/// Oquab et al. 2023, arXiv:2304.07193; huggingface/transformers@v4.57:src/transformers/models/dinov2/modeling_dinov2.py
#[derive(Debug)]
pub(super) struct Dinov2 {
    spec: DepthAnythingSpec,
    class_token: Tensor,
    /// The class token's first.
    positions: Tensor,
    patch_embedding: Linear,
    layers: Vec<DinoLayer>,
    norm: LayerNorm,
}

impl Dinov2 {
    pub(super) fn load(scope: &Scope<'_>, spec: &DepthAnythingSpec) -> Result<Self> {
        let embeddings = scope.at("embeddings");
        let last = spec.taken.iter().copied().max().unwrap_or(0);
        let layers = (0..last).map(|i| DinoLayer::load(&scope.at("encoder.layer").at(i), spec));
        Ok(Self {
            class_token: embeddings.tensor("cls_token", &[1, 1, spec.width])?,
            positions: embeddings.tensor("position_embeddings", &[1, 1 + spec.positions * spec.positions, spec.width])?,
            patch_embedding: embeddings.at("patch_embeddings.projection").biased_patches(3, spec.patch_size, spec.width)?,
            layers: layers.collect::<Result<_>>()?,
            norm: scope.at("layernorm").layer_norm(spec.width, spec.layer_norm_eps)?,
            spec: spec.clone(),
        })
    }

    /// How many layers are computed.
    pub(super) fn layers(&self) -> usize {
        self.layers.len()
    }

    /// The normed states of the patches after the layers that are taken, `(batch, patches, width)` each; `one_more` hears of each layer.
    pub(super) fn forward(&self, image: &Tensor, one_more: &mut dyn FnMut() -> Result<()>) -> Result<Vec<Tensor>> {
        let (batch, channels, height, width) = image.dims4()?;
        let patch = self.spec.patch_size;
        let (rows, columns) = (height / patch, width / patch);
        if (rows * patch, columns * patch) != (height, width) || rows * columns == 0 {
            return Err(Error::Image(format!(
                "the depth network takes sides that are multiples of {patch}, and was given {width}x{height}"
            )));
        }
        let device = image.device();
        let mut x = on_workers(device, || {
            let patches =
                image.reshape(vec![batch, channels, rows, patch, columns, patch])?.permute(vec![0, 2, 4, 1, 3, 5])?.contiguous()?;
            let patches = self.patch_embedding.forward(&patches.reshape((batch, rows * columns, channels * patch * patch))?)?;
            let class = self.class_token.broadcast_as((batch, 1, self.spec.width))?.contiguous()?;
            Ok::<_, Error>(Tensor::cat(&[&class, &patches], 1)?.broadcast_add(&self.positions_of(rows, columns)?)?)
        })?;
        let mut taken = Vec::new();
        for (i, layer) in self.layers.iter().enumerate() {
            x = on_workers(device, || layer.forward(&x, self.spec.heads))?;
            if self.spec.taken.contains(&(i + 1)) {
                taken.push(on_workers(device, || self.norm.forward(&x.narrow(1, 1, rows * columns)?.contiguous()?))?);
            }
            one_more()?;
        }
        Ok(taken)
    }

    /// The positions of a grid, `(1, 1 + rows × columns, width)`.
    fn positions_of(&self, rows: usize, columns: usize) -> Result<Tensor> {
        let (side, width) = (self.spec.positions, self.spec.width);
        if (rows, columns) == (side, side) {
            return Ok(self.positions.clone());
        }
        let class = self.positions.narrow(1, 0, 1)?;
        let grid = self.positions.narrow(1, 1, side * side)?.reshape((1, side, side, width))?;
        let grid = bicubic(&grid, rows, columns)?.reshape((1, rows * columns, width))?;
        Ok(Tensor::cat(&[&class, &grid], 1)?)
    }
}

#[derive(Debug)]
struct DinoLayer {
    norm1: LayerNorm,
    query: Linear,
    key: Linear,
    value: Linear,
    output: Linear,
    scale1: Tensor,
    norm2: LayerNorm,
    fc1: Linear,
    fc2: Linear,
    scale2: Tensor,
}

impl DinoLayer {
    fn load(scope: &Scope<'_>, spec: &DepthAnythingSpec) -> Result<Self> {
        let (width, wide, eps) = (spec.width, spec.wide, spec.layer_norm_eps);
        let attention = scope.at("attention");
        let projection = |name: &str| attention.at("attention").at(name).linear(width, width);
        let scale = |name: &str| scope.at(name).tensor("lambda1", &[width]);
        Ok(Self {
            norm1: scope.at("norm1").layer_norm(width, eps)?,
            query: projection("query")?,
            key: projection("key")?,
            value: projection("value")?,
            output: attention.at("output.dense").linear(width, width)?,
            scale1: scale("layer_scale1")?,
            norm2: scope.at("norm2").layer_norm(width, eps)?,
            fc1: scope.at("mlp.fc1").linear(width, wide)?,
            fc2: scope.at("mlp.fc2").linear(wide, width)?,
            scale2: scale("layer_scale2")?,
        })
    }

    fn forward(&self, x: &Tensor, heads: usize) -> Result<Tensor> {
        let normed = self.norm1.forward(x)?;
        let (q, k, v) = (self.query.forward(&normed)?, self.key.forward(&normed)?, self.value.forward(&normed)?);
        let mixed = self.output.forward(&attention(&q, &k, &v, heads, false)?)?;
        let x = (mixed.broadcast_mul(&self.scale1)? + x)?;
        let hidden = gelu(&self.fc1.forward(&self.norm2.forward(&x)?)?)?;
        Ok((self.fc2.forward(&hidden)?.broadcast_mul(&self.scale2)? + x)?)
    }
}
