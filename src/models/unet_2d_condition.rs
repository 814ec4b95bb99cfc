//! The denoiser: diffusers' `UNet2DConditionModel`.

use super::block_stream::Block;
use super::call::{Backbone, LayerInputs, ModelCall, ModelOutput};
use super::resnet::Upsample2D;
use super::reuse::{AttentionRecord, DeepReuse};
use super::unet_way_down::{Layer, WayDown};
use super::{LayerStore, Scope};
use crate::ops::{Conv2d, GraphCache, GroupNorm, NamedTensors, Padding, on_workers, wrapped};
use crate::spec::UNetSpec;
use crate::{Error, Result};
use candle_core::{D, Tensor};

#[derive(Debug)]
struct UpBlock {
    layers: Vec<Layer>,
    upsample: Option<Block<Upsample2D>>,
}

/// Predicts the noise, or the velocity, in latents.
#[derive(Debug)]
pub struct UNet2DCondition {
    way_down: WayDown,
    up: Vec<UpBlock>,
    conv_norm_out: GroupNorm,
    conv_out: Conv2d,
    /// The last to be dropped.
    graph_cache: GraphCache,
}

impl UNet2DCondition {
    /// Reads the weights that `spec` calls for.
    ///
    /// # Errors
    /// A tensor is missing or has another shape, or the spec contradicts itself.
    pub fn load(scope: &Scope<'_>, spec: &UNetSpec) -> Result<Self> {
        let graph_cache = scope.graph_cache()?;
        let scope = &scope.on(graph_cache.device());
        let way_down = WayDown::load(scope, spec)?;
        // What the up path takes from the down path, in the order of its making.
        let mut skips = way_down.skips.clone();
        let mut channels = spec.down.last().map_or(0, |level| level.channels);
        let mut up = Vec::new();
        for (i, level) in spec.up.iter().enumerate() {
            let scope = scope.at("up_blocks").at(i);
            let mut layers = Vec::new();
            for j in 0..level.depths.len() {
                let skip =
                    skips.pop().ok_or_else(|| Error::Model(format!("up_blocks.{i} of the UNet has more layers than the way down made")))?;
                layers.push(Layer::load(&scope, spec, level, j, channels + skip)?);
                channels = level.channels;
            }
            let enlarging = |scope: &Scope<'_>| Block::load(scope, move |scope| Upsample2D::load(scope, channels));
            let upsample = level.resample.then(|| enlarging(&scope.at("upsamplers.0"))).transpose()?;
            up.push(UpBlock { layers, upsample });
        }
        if !skips.is_empty() {
            return Err(Error::Model(format!("the UNet's way up uses {} layers too few of its way down", skips.len())));
        }
        Ok(Self {
            way_down,
            up,
            conv_norm_out: scope.at("conv_norm_out").group_norm(channels, spec.norm_groups, spec.norm_eps)?,
            conv_out: scope.at("conv_out").conv3x3(channels, spec.out_channels, 1, Padding::same(1))?,
            graph_cache,
        })
    }

    /// Drops the network but for the layers that `layers` has, and keeps the place where their weights are.
    pub fn dismantle(self, layers: &LayerStore) {
        let Self { graph_cache, .. } = self;
        layers.keep_graph_cache(graph_cache);
    }

    /// The inputs of a call, by name.
    fn inputs(&self, call: &ModelCall) -> Result<NamedTensors> {
        let mut inputs = self.way_down.inputs(call, call.concat.as_ref())?;
        for (i, residual) in call.residuals.down.iter().enumerate() {
            inputs.push(format!("down residual {i}"), residual.clone());
        }
        if let Some(residual) = &call.residuals.mid {
            inputs.push("mid residual", residual.clone());
        }
        for patch in &call.patches {
            for (name, tensor) in patch.inputs() {
                inputs.push(name, tensor);
            }
        }
        call.reuse.add_inputs(&mut inputs);
        Ok(inputs)
    }

    /// The prediction, and what the call keeps.
    fn predict(&self, inputs: &NamedTensors, call: &ModelCall) -> Result<Vec<Tensor>> {
        let time = self.way_down.time(inputs)?;
        let attentions = AttentionRecord::of(&call.reuse);
        let context = inputs.get("context")?;
        let layer = LayerInputs { time: &time, context, patches: &call.patches, named: inputs, attentions: &attentions };
        // A layer on the way up for each skip connection; the last ones read the first.
        let layers = self.way_down.skips.len();
        let (first, keeps) = match call.reuse.deep {
            DeepReuse::Off => (0, None),
            DeepReuse::Keep(last) => (0, Some(layers.saturating_sub(last.max(1)))),
            DeepReuse::Take(last, _) => (layers.saturating_sub(last.max(1)), None),
        };
        let hidden = inputs.find("deep hidden");
        let most = if hidden.is_some() { layers - first } else { usize::MAX };
        let mut skips = self.way_down.down(self.way_down.enter(inputs)?, layer, most)?;
        let mut x = match (hidden, skips.last()) {
            (Some(hidden), _) => hidden.clone(),
            (None, Some(last)) => self.way_down.middle(last, layer)?,
            (None, None) => return Err(Error::Image("the UNet ran out of skip connections".into())),
        };
        let mut kept = Vec::new();
        let residuals = call.residuals.down.len();
        if residuals != 0 && residuals != layers {
            return Err(Error::Image(format!(
                "{residuals} residuals for a UNet with {layers} skip connections: it belongs to another model"
            )));
        }
        for (i, skip) in skips.iter_mut().enumerate().take(residuals) {
            *skip = (&*skip + inputs.get(&format!("down residual {i}"))?)?;
        }
        if let Some(residual) = inputs.find("mid residual").filter(|_| hidden.is_none()) {
            x = (x + residual)?;
        }
        let mut reached = 0;
        for (i, block) in self.up.iter().enumerate() {
            for layers in &block.layers {
                reached += 1;
                if reached <= first {
                    continue;
                }
                if keeps == Some(reached - 1) {
                    kept.push(x.clone());
                }
                let mut skip = skips.pop().ok_or_else(|| Error::Image("the UNet ran out of skip connections".into()))?;
                for patch in &call.patches {
                    if let Some(changed) = patch.up_block(i, &x, &skip, inputs)? {
                        (x, skip) = changed;
                    }
                }
                x = layers.forward(&Tensor::cat(&[&x, &skip], D::Minus1)?, layer)?;
            }
            if let Some(upsample) = block.upsample.as_ref().filter(|_| reached > first) {
                // The next skip tells the size, which is odd where an odd size was halved.
                let (_, height, width, _) = x.dims4()?;
                let size = skips.last().map_or(Ok((2 * height, 2 * width)), |skip| skip.dims4().map(|(_, h, w, _)| (h, w)))?;
                x = upsample.with(|upsample| upsample.forward(&x, size))?;
            }
        }
        let x = self.conv_out.forward(&self.conv_norm_out.forward_silu(&x)?)?;
        let mut outputs = vec![x.permute((0, 3, 1, 2))?.contiguous()?];
        outputs.append(&mut kept);
        outputs.append(&mut attentions.given_back()?);
        Ok(outputs)
    }
}

impl Backbone for UNet2DCondition {
    /// # Shapes
    /// Latents and further channels make `spec.in_channels`; the prediction has `spec.out_channels`.
    fn call(&self, call: &ModelCall) -> Result<ModelOutput> {
        wrapped(call.wrap, || {
            on_workers(call.latents.device(), || {
                let mut key: Vec<String> = call.patches.iter().map(|patch| patch.key()).collect();
                key.extend((!call.wrap.is_none()).then(|| format!("{:?}", call.wrap)));
                key.push(call.reuse.key());
                let work = |inputs: &NamedTensors| self.predict(inputs, call);
                let mut outputs = self.graph_cache.run(&key.join(" "), &self.inputs(call)?, work)?;
                if outputs.is_empty() {
                    return Err(Error::Image("the UNet gave no output".into()));
                }
                let prediction = outputs.remove(0);
                Ok(ModelOutput { prediction, kept: call.reuse.split(outputs) })
            })
        })
    }

    fn weights_changed(&self) {
        self.graph_cache.invalidate();
    }
}
