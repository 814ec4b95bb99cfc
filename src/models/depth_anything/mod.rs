//! How far away everything in an image is: Depth Anything, in the names that transformers gives it.
//!
//! candle-transformers has this network too, and is not used. It takes squares of one size alone; it enlarges features and positions by
//! repeating pixels, where they were trained with linear and cubic interpolation; its GELU is the approximate one, its norms have another
//! epsilon, and it wants a classifier that no depth network's file has (huggingface/candle@0.11.1:candle-transformers/src/models/
//! depth_anything_v2.rs and dinov2.rs).

mod dinov2;
mod resample;

use super::Scope;
use crate::ops::{Conv2d, Linear, Padding, on_workers, pixel_shuffle};
use crate::spec::DepthAnythingSpec;
use crate::{Error, Result};
use candle_core::Tensor;
use dinov2::Dinov2;
use resample::{bicubic, bilinear};

/// DepthAnythingForDepthEstimation.
///
/// # Source
/// Yang et al. 2024, arXiv:2406.09414; Ranftl et al. 2021, arXiv:2103.13413;
/// huggingface/transformers@v4.57:src/transformers/models/depth_anything/modeling_depth_anything.py
#[derive(Debug)]
pub struct DepthAnything {
    backbone: Dinov2,
    reassemble: Vec<ReassembleLayer>,
    convs: Vec<Conv2d>,
    /// From the coarsest map to the finest.
    fusion: Vec<FusionLayer>,
    head: DepthHead,
    patch_size: usize,
}

impl DepthAnything {
    /// Reads the weights that `spec` calls for.
    ///
    /// # Errors
    /// A tensor is missing or has another shape.
    pub fn load(root: &Scope<'_>, spec: &DepthAnythingSpec) -> Result<Self> {
        let (neck, fused) = (root.at("neck"), spec.fusion_channels);
        let reassembled = |(i, (channels, resizing)): (usize, (&usize, Resizing))| {
            ReassembleLayer::load(&neck.at("reassemble_stage.layers").at(i), spec.width, *channels, resizing)
        };
        let conv = |(i, channels): (usize, &usize)| neck.at("convs").at(i).conv3x3_without_bias(*channels, fused, 1, Padding::same(1));
        let fusion = |i| FusionLayer::load(&neck.at("fusion_stage.layers").at(i), fused, i > 0);
        Ok(Self {
            backbone: Dinov2::load(&root.at("backbone"), spec)?,
            reassemble: spec.neck_channels.iter().zip(Resizing::ALL).enumerate().map(reassembled).collect::<Result<_>>()?,
            convs: spec.neck_channels.iter().enumerate().map(conv).collect::<Result<_>>()?,
            fusion: (0..spec.neck_channels.len()).map(fusion).collect::<Result<_>>()?,
            head: DepthHead::load(&root.at("head"), fused, spec.head_channels)?,
            patch_size: spec.patch_size,
        })
    }

    /// How near everything is, in no unit: 0 is farthest.
    ///
    /// `progress` hears how many parts of the network of how many are computed, and may end it.
    ///
    /// # Shapes
    /// `(1, 3, height, width)`, normalised, sides that are multiples of a patch's, to `(1, height, width, 1)`.
    ///
    /// # Errors
    /// The image has other sides, the device failed, or `progress` ended it.
    pub fn forward(&self, image: &Tensor, progress: &mut dyn FnMut(usize, usize) -> Result<()>) -> Result<Tensor> {
        let (_, _, height, width) = image.dims4()?;
        let (rows, columns) = (height / self.patch_size, width / self.patch_size);
        let device = image.device();
        let (mut done, all) = (0, self.backbone.layers() + self.reassemble.len() + self.fusion.len() + 1);
        progress(done, all)?;
        let mut one_more = || {
            done += 1;
            progress(done, all)
        };
        let states = self.backbone.forward(image, &mut one_more)?;
        let mut maps = Vec::new();
        for ((state, layer), conv) in states.iter().zip(&self.reassemble).zip(&self.convs) {
            let (batch, _, channels) = state.dims3()?;
            let state = state.reshape((batch, rows, columns, channels))?;
            maps.push(on_workers(device, || Ok::<_, Error>(conv.forward(&layer.forward(&state)?)?))?);
            one_more()?;
        }
        let mut fused: Option<Tensor> = None;
        for layer in &self.fusion {
            let map = maps.pop().ok_or_else(|| Error::Image("the depth network has too few maps".into()))?;
            let finer = maps.last().map(|map| Ok::<_, candle_core::Error>((map.dim(1)?, map.dim(2)?))).transpose()?;
            fused = Some(on_workers(device, || layer.forward(fused.as_ref(), &map, finer))?);
            one_more()?;
        }
        let fused = fused.ok_or_else(|| Error::Image("the depth network has no maps".into()))?;
        let map = on_workers(device, || self.head.forward(&fused, (height, width)))?;
        one_more()?;
        Ok(map)
    }

    /// A map at another size, `(1, height, width, 1)`, kept.
    ///
    /// # Source
    /// `post_process_depth_estimation` in huggingface/transformers@v4.57:src/transformers/models/dpt/image_processing_dpt.py
    ///
    /// # Errors
    /// The device failed.
    pub fn resized(map: &Tensor, height: usize, width: usize) -> Result<Tensor> {
        bicubic(map, height, width)
    }
}

/// How a map of the patches gets its size.
#[derive(Debug, Clone, Copy)]
enum Resizing {
    /// So many times as large, each pixel by weights of its own.
    Larger(usize),
    Same,
    Half,
}

impl Resizing {
    const ALL: [Self; 4] = [Self::Larger(4), Self::Larger(2), Self::Same, Self::Half];
}

#[derive(Debug)]
enum Resizer {
    Larger(Linear, usize),
    Same,
    Half(Conv2d),
}

/// From the states of patches to a map.
#[derive(Debug)]
struct ReassembleLayer {
    projection: Linear,
    resizer: Resizer,
}

impl ReassembleLayer {
    fn load(scope: &Scope<'_>, width: usize, channels: usize, resizing: Resizing) -> Result<Self> {
        let resize = scope.at("resize");
        let resizer = match resizing {
            Resizing::Same => Resizer::Same,
            Resizing::Half => Resizer::Half(resize.conv3x3(channels, channels, 2, Padding::same(1))?),
            // A transposed convolution whose steps are as wide as its kernel: the pixels that one becomes meet no others.
            Resizing::Larger(factor) => {
                let pixels = factor * factor;
                let weight = resize.tensor("weight", &[channels, channels, factor, factor])?;
                let weight = weight.reshape((channels, channels * pixels))?.t()?.contiguous()?;
                let bias = resize.tensor("bias", &[channels])?.unsqueeze(1)?.broadcast_as((channels, pixels))?;
                Resizer::Larger(Linear::new(weight, Some(bias.contiguous()?.flatten_all()?))?, factor)
            }
        };
        Ok(Self { projection: scope.at("projection").pointwise(width, channels)?, resizer })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let x = self.projection.forward(x)?;
        match &self.resizer {
            Resizer::Same => Ok(x),
            Resizer::Half(conv) => Ok(conv.forward(&x)?),
            Resizer::Larger(linear, factor) => Ok(pixel_shuffle(&linear.forward(&x)?, *factor)?),
        }
    }
}

/// Two convolutions with what they were given.
#[derive(Debug)]
struct ResidualUnit {
    first: Conv2d,
    second: Conv2d,
}

impl ResidualUnit {
    fn load(scope: &Scope<'_>, channels: usize) -> Result<Self> {
        let conv = |name: &str| scope.at(name).conv3x3(channels, channels, 1, Padding::same(1));
        Ok(Self { first: conv("convolution1")?, second: conv("convolution2")? })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let y = self.first.forward(&x.relu()?)?;
        Ok((self.second.forward(&y.relu()?)? + x)?)
    }
}

/// Joins a map with the coarser ones before it.
#[derive(Debug)]
struct FusionLayer {
    /// For the finer map; the first layer has only one.
    of_map: Option<ResidualUnit>,
    of_sum: ResidualUnit,
    projection: Linear,
}

impl FusionLayer {
    fn load(scope: &Scope<'_>, channels: usize, joins: bool) -> Result<Self> {
        let unit = |name: &str| ResidualUnit::load(&scope.at(name), channels);
        Ok(Self {
            of_map: joins.then(|| unit("residual_layer1")).transpose()?,
            of_sum: unit("residual_layer2")?,
            projection: scope.at("projection").pointwise(channels, channels)?,
        })
    }

    /// `size` is that of the next finer map; behind the finest one it is doubled.
    fn forward(&self, coarser: Option<&Tensor>, map: &Tensor, size: Option<(usize, usize)>) -> Result<Tensor> {
        let sum = match (coarser, &self.of_map) {
            (Some(coarser), Some(unit)) => (coarser + unit.forward(map)?)?,
            _ => map.clone(),
        };
        let sum = self.of_sum.forward(&sum)?;
        let (height, width) = size.unwrap_or((2 * sum.dim(1)?, 2 * sum.dim(2)?));
        Ok(self.projection.forward(&bilinear(&sum, height, width)?)?)
    }
}

#[derive(Debug)]
struct DepthHead {
    first: Conv2d,
    second: Conv2d,
    last: Linear,
}

impl DepthHead {
    fn load(scope: &Scope<'_>, fused: usize, channels: usize) -> Result<Self> {
        let conv = |name: &str, input, output| scope.at(name).conv3x3(input, output, 1, Padding::same(1));
        Ok(Self {
            first: conv("conv1", fused, fused / 2)?,
            second: conv("conv2", fused / 2, channels)?,
            last: scope.at("conv3").pointwise(channels, 1)?,
        })
    }

    fn forward(&self, x: &Tensor, (height, width): (usize, usize)) -> Result<Tensor> {
        let x = bilinear(&self.first.forward(x)?, height, width)?;
        let x = self.second.forward(&x)?.relu()?;
        Ok(self.last.forward(&x)?.relu()?)
    }
}
