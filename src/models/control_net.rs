//! A copy of a UNet's way down that sees an image, and what it adds to the UNet: diffusers' `ControlNetModel`.

use super::Scope;
use super::call::{LayerInputs, ModelCall, Residuals};
use super::control_union::ControlUnion;
use super::reuse::{AttentionRecord, Reuse};
use super::unet_way_down::WayDown;
use crate::ops::{Conv2d, GraphCache, Linear, NamedTensors, Padding, Wrap, on_workers, silu, wrapped};
use crate::spec::ControlNetSpec;
use crate::{Error, Result};
use candle_core::Tensor;

/// From an image of full size to what is added to the first convolution's output.
#[derive(Debug)]
struct HintEmbedding {
    /// With a SiLU behind each but the last.
    convs: Vec<Conv2d>,
}

impl HintEmbedding {
    fn load(scope: &Scope<'_>, spec: &ControlNetSpec, output: usize) -> Result<Self> {
        let conv = |name: String, input, output, stride| scope.at(name).conv3x3(input, output, stride, Padding::same(1));
        let first = spec.hint_channels.first().copied().ok_or_else(|| Error::Model("the ControlNet has no layer for its image".into()))?;
        let mut convs = vec![conv("conv_in".into(), spec.image_channels, first, 1)?];
        for (i, pair) in spec.hint_channels.windows(2).enumerate() {
            let &[input, wider] = pair else { continue };
            convs.push(conv(format!("blocks.{}", 2 * i), input, input, 1)?);
            convs.push(conv(format!("blocks.{}", 2 * i + 1), input, wider, 2)?);
        }
        convs.push(conv("conv_out".into(), spec.hint_channels.last().copied().unwrap_or(first), output, 1)?);
        Ok(Self { convs })
    }

    fn forward(&self, image: &Tensor) -> Result<Tensor> {
        let mut x = image.permute((0, 2, 3, 1))?.contiguous()?;
        for (i, conv) in self.convs.iter().enumerate() {
            x = conv.forward(&x)?;
            if i + 1 < self.convs.len() {
                x = silu(&x)?;
            }
        }
        Ok(x)
    }
}

/// An image of one kind, as a network for several kinds is shown it in a call.
#[derive(Debug, Clone)]
pub struct ShownControl {
    /// What [`ControlNet::hint`] gave.
    pub hint: Tensor,
    /// The number of its kind.
    pub kind: usize,
    /// How strongly.
    pub weight: f64,
}

/// Says what is added inside a UNet so that its image follows another one.
///
/// # Source
/// Zhang et al. 2023, arXiv:2302.05543, section 3; huggingface/diffusers@v0.36:src/diffusers/models/controlnets/controlnet.py
#[derive(Debug)]
pub struct ControlNet {
    way_down: WayDown,
    hint: HintEmbedding,
    down: Vec<Linear>,
    mid: Linear,
    /// Of a network for several kinds of images.
    union: Option<ControlUnion>,
    /// The last to be dropped.
    graph_cache: GraphCache,
}

impl ControlNet {
    /// Reads the weights that `spec` calls for.
    ///
    /// # Errors
    /// A tensor is missing or has another shape.
    pub fn load(scope: &Scope<'_>, spec: &ControlNetSpec) -> Result<Self> {
        let graph_cache = scope.graph_cache()?;
        let scope = &scope.on(graph_cache.device());
        let way_down = WayDown::load(scope, &spec.unet)?;
        let first = way_down.skips.first().copied().unwrap_or(0);
        let deepest = way_down.skips.last().copied().unwrap_or(0);
        let zero = |(i, channels): (usize, &usize)| scope.at("controlnet_down_blocks").at(i).pointwise(*channels, *channels);
        Ok(Self {
            hint: HintEmbedding::load(&scope.at("controlnet_cond_embedding"), spec, first)?,
            down: way_down.skips.iter().enumerate().map(zero).collect::<Result<_>>()?,
            mid: scope.at("controlnet_mid_block").pointwise(deepest, deepest)?,
            union: spec.union.as_ref().map(|union| ControlUnion::load(scope, union, first)).transpose()?,
            way_down,
            graph_cache,
        })
    }

    /// What the network sees of an image, once for all calls.
    ///
    /// # Shapes
    /// `(1, 3, height, width)` in [0, 1] in the compute dtype to `(1, height / factor, width / factor, channels)`.
    ///
    /// # Errors
    /// The device failed.
    pub fn hint(&self, image: &Tensor, wrap: Wrap) -> Result<Tensor> {
        wrapped(wrap, || {
            on_workers(image.device(), || {
                let mut inputs = NamedTensors::default();
                inputs.push("image", image.clone());
                let work = |inputs: &NamedTensors| Ok::<_, Error>(vec![self.hint.forward(inputs.get("image")?)?]);
                let outputs = self.graph_cache.run(&format!("hint {wrap:?}"), &inputs, work)?;
                outputs.into_iter().next().ok_or_else(|| Error::Image("the ControlNet gave no output".into()))
            })
        })
    }

    /// What is added inside the UNet in a call of it, where `hint` is what [`ControlNet::hint`] gave.
    ///
    /// # Errors
    /// An input that it wants is missing or has another shape, or the device failed.
    pub fn residuals(&self, call: &ModelCall, hint: &Tensor) -> Result<Residuals> {
        wrapped(call.wrap, || {
            on_workers(call.latents.device(), || {
                let mut inputs = self.way_down.inputs(call, None)?;
                inputs.push("hint", hint.clone());
                let key = format!("{:?}", call.wrap);
                let forward = |inputs: &NamedTensors| {
                    let entered = self.way_down.enter(inputs)?.broadcast_add(inputs.get("hint")?)?;
                    self.forward(inputs, &self.way_down.time(inputs)?, entered)
                };
                let mut outputs = self.graph_cache.run(&key, &inputs, forward)?;
                let mid = outputs.pop();
                Ok(Residuals { down: outputs, mid })
            })
        })
    }

    /// What is added inside the UNet in a call of it where the network is one for several kinds of images, and is shown `shown`; the rows of
    /// the call are those of `branches`, one after the other.
    ///
    /// One image's weight is that of what is added; those of several are of what the network sees of each.
    ///
    /// # Errors
    /// The network is another one, an input that it wants is missing or has another shape, or the device failed.
    pub fn union_residuals(&self, call: &ModelCall, shown: &[ShownControl], branches: usize) -> Result<Residuals> {
        let Some(union) = &self.union else {
            return Err(Error::Image("the ControlNet is one for one kind of images".into()));
        };
        let kinds: Vec<usize> = shown.iter().map(|shown| shown.kind).collect();
        let (dtype, device) = (call.latents.dtype(), call.latents.device());
        wrapped(call.wrap, || {
            on_workers(device, || {
                let mut inputs = self.way_down.inputs(call, None)?;
                inputs.push("shown", union.shown(&kinds, self.way_down.spec(), dtype, device)?);
                for (i, shown) in shown.iter().enumerate() {
                    inputs.push(format!("hint {i}"), shown.hint.clone());
                }
                if shown.len() > 1 {
                    let weights: Vec<f32> = shown.iter().map(|shown| shown.weight as f32).collect();
                    inputs.push("weights", Tensor::from_vec(weights, shown.len(), device)?.to_dtype(dtype)?);
                }
                let forward = |inputs: &NamedTensors| {
                    let hints = (0..kinds.len()).map(|i| inputs.get(&format!("hint {i}")));
                    let hints = hints.collect::<candle_core::Result<Vec<_>>>()?;
                    let sample = union.join(&self.way_down.enter(inputs)?, &hints, &kinds, inputs.find("weights"), branches)?;
                    self.forward(inputs, &self.way_down.time_with(inputs, &union.embed(inputs.get("shown")?)?)?, sample)
                };
                let key = format!("{:?} {kinds:?} {branches}", call.wrap);
                let mut outputs = self.graph_cache.run(&key, &inputs, forward)?;
                let mid = outputs.pop();
                let residuals = Residuals { down: outputs, mid };
                match shown {
                    [one] => residuals.weighed(one.weight),
                    _ => Ok(residuals),
                }
            })
        })
    }

    /// The residuals of the skip connections, and that of the middle.
    fn forward(&self, inputs: &NamedTensors, time: &Tensor, entered: Tensor) -> Result<Vec<Tensor>> {
        let (reuse, context) = (Reuse::default(), inputs.get("context")?);
        let layer = LayerInputs { time, context, patches: &[], named: inputs, attentions: &AttentionRecord::of(&reuse) };
        let skips = self.way_down.down(entered, layer, usize::MAX)?;
        let deepest = skips.last().ok_or_else(|| Error::Image("the ControlNet has no levels".into()))?;
        let mid = self.mid.forward(&self.way_down.middle(deepest, layer)?)?;
        let zeroed = skips.iter().zip(&self.down).map(|(skip, zero)| Ok(zero.forward(skip)?));
        zeroed.chain([Ok(mid)]).collect()
    }
}
