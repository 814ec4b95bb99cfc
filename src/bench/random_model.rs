//! A model of full size without a file: its weights are made when they are asked for.
//!
//! The numbers come from a counter that is hashed, so that a tensor depends on the seed, its name and its shape, and on nothing
//! else: not on the order of loading, nor on the threads. They are lively: every layer keeps the size of what goes through it, so
//! that times, memory and rounding errors are those of a trained model. What it generates is noise.

use crate::spec::ModelSpec;
use crate::weights::{Component, ModelSource, TensorSource, TokenizerFiles};
use crate::{Error, Result};
use candle_core::{DType, Device, Tensor, WithDType};
use half::{bf16, f16};
use rayon::prelude::*;

/// A [`ModelSource`] whose weights are random.
#[derive(Debug, Clone)]
pub(crate) struct RandomModel {
    name: String,
    spec: ModelSpec,
    seed: u64,
}

impl RandomModel {
    /// A model that is like `spec`.
    pub(crate) fn new(name: impl Into<String>, spec: ModelSpec, seed: u64) -> Self {
        Self { name: name.into(), spec, seed }
    }
}

impl ModelSource for RandomModel {
    fn name(&self) -> &str {
        &self.name
    }

    fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    fn tokenizer(&self, _: usize) -> Option<&TokenizerFiles> {
        None
    }

    fn tensors(&self, component: Component) -> Box<dyn TensorSource + '_> {
        let seed = component.position() as u64 + 1;
        Box::new(RandomTensors { seed: mix(self.seed ^ mix(seed)) })
    }
}

/// Random tensors of any name and shape.
#[derive(Debug, Clone, Copy)]
struct RandomTensors {
    seed: u64,
}

/// `centre + spread · u`, u uniform in [-1, 1].
#[derive(Debug, Clone, Copy, PartialEq)]
struct Range {
    centre: f32,
    spread: f32,
}

impl Range {
    fn of(name: &str, shape: &[usize]) -> Self {
        // A uniform number in [-√3, √3] has variance 1.
        let unit = 3f32.sqrt();
        let inputs: usize = shape.iter().skip(1).product();
        let (centre, spread) = match shape.len() {
            _ if name.ends_with("bias") => (0.0, 0.1),
            0 | 1 => (1.0, 0.2),
            _ if name.contains("token_embedding") || name.contains("position_embedding") => (0.0, 0.5 * unit),
            _ => (0.0, unit / (inputs.max(1) as f32).sqrt()),
        };
        Self { centre, spread }
    }
}

impl TensorSource for RandomTensors {
    fn tensor(&self, name: &str, shape: &[usize], dtype: DType, device: &Device) -> Result<Tensor> {
        let seed = name.bytes().fold(self.seed, |hash, byte| mix(hash ^ u64::from(byte)));
        let range = Range::of(name, shape);
        match dtype {
            DType::F32 => make(seed, range, shape, device, |x| x),
            DType::BF16 => make(seed, range, shape, device, bf16::from_f32),
            DType::F16 => make(seed, range, shape, device, f16::from_f32),
            other => Err(Error::Model(format!("random weights cannot be made in {}; give f32, f16 or bf16", other.as_str()))),
        }
    }

    fn shape(&self, _: &str) -> Option<Vec<usize>> {
        None
    }
}

fn make<T: WithDType>(seed: u64, range: Range, shape: &[usize], device: &Device, convert: fn(f32) -> T) -> Result<Tensor> {
    const CHUNK: usize = 1 << 14;
    let mut values = vec![convert(0.0); shape.iter().product()];
    values.par_chunks_mut(CHUNK).enumerate().for_each(|(chunk, values)| {
        for (i, value) in values.iter_mut().enumerate() {
            // The upper 24 bits fill an f32's mantissa.
            let bits = mix(seed.wrapping_add((chunk * CHUNK + i) as u64)) >> 40;
            let uniform = bits as f32 * (2.0 / (1u32 << 24) as f32) - 1.0;
            *value = convert(range.centre + range.spread * uniform);
        }
    });
    Ok(Tensor::from_vec(values, shape, device)?)
}

/// One step of SplitMix64.
///
/// # Source
/// Steele, Lea and Flood, "Fast Splittable Pseudorandom Number Generators", figure 16.
fn mix(x: u64) -> u64 {
    let x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::family;
    use crate::pipeline::{BatchItem, Observer, Pipeline, Silent, Stage};
    use crate::settings::Draft;
    use crate::spec::UNetLevel;
    use std::sync::Arc;

    /// A family's model made small enough for a test: narrow, and shallow.
    fn tiny(name: &str) -> Option<ModelSpec> {
        let mut spec = family::well_known(name)?;
        let narrow = |level: &mut UNetLevel| {
            level.channels /= 10;
            level.heads = 4;
            level.depths.iter_mut().for_each(|depth| *depth = (*depth).min(1));
        };
        spec.unet.down.iter_mut().chain(&mut spec.unet.up).for_each(narrow);
        if let Some(mid) = &mut spec.unet.mid {
            (mid.heads, mid.depth) = (4, 1);
        }
        spec.unet.cross_attention_dim /= 16;
        for encoder in &mut spec.text_encoders {
            encoder.clip.hidden_size /= 16;
            encoder.clip.intermediate_size /= 16;
            encoder.clip.heads = 2;
            encoder.clip.layers = 2;
            encoder.clip.projection_dim = encoder.clip.projection_dim.map(|width| width / 16);
            if let (Some(text_time), Some(width)) = (&mut spec.unet.text_time, encoder.clip.projection_dim) {
                text_time.projection_input_dim = width + 6 * text_time.time_embed_dim;
            }
        }
        if let Some(mmdit) = &mut spec.mmdit {
            let pooled = spec.text_encoders.iter().filter_map(|encoder| encoder.clip.projection_dim).sum();
            (mmdit.heads, mmdit.head_size, mmdit.layers, mmdit.positions) = (2, 8, 2, 16);
            mmdit.dual_layers.retain(|layer| *layer < 1);
            (mmdit.context_width, mmdit.pooled_width) = (256, pooled);
            spec.unet = mmdit.as_unet();
        }
        if let Some(t5) = &mut spec.t5 {
            (t5.width, t5.wide, t5.layers, t5.heads, t5.head_size) = (256, 64, 1, 2, 8);
        }
        spec.vae.block_out_channels.iter_mut().for_each(|channels| *channels /= 8);
        (spec.unet.norm_groups, spec.vae.norm_groups) = (8, 8);
        Some(spec)
    }

    #[test]
    fn every_family_generates_finite_images_and_the_same_ones_again() -> Result<()> {
        for name in family::well_known_names() {
            let spec = tiny(name).ok_or_else(|| Error::Input(name.to_owned()))?;
            let generate_with = |load: &dyn Fn(RandomModel) -> Result<Pipeline>, seed| {
                let pipeline = load(RandomModel::new(name, spec.clone(), seed))?;
                let draft = Draft::new("a lighthouse").with(|draft| {
                    draft.sampling.steps = Some(2);
                    draft.set_size(Some((64, 64)));
                });
                let request = draft.resolve(&spec)?;
                let prompt = pipeline.encode_prompt(&request, &mut Silent)?;
                let latents = pipeline.denoise(&BatchItem::of_seeds(&request, &prompt, &[1]), &mut Silent)?;
                Ok::<_, Error>(pipeline.decode(&latents)?.flatten_all()?.to_vec1::<f32>()?)
            };
            let generate = |seed| generate_with(&|model| Pipeline::load(&model, &Device::Cpu, DType::F32, DType::F32, &mut Silent), seed);
            let (first, again, other) = (generate(1)?, generate(1)?, generate(2)?);
            assert!(first.iter().all(|x| x.is_finite()), "{name}");
            assert_eq!(first, again, "{name}");
            assert_ne!(first, other, "{name}");
            assert_eq!(
                generate_with(&|model| Pipeline::in_turn(Arc::new(model), &Device::Cpu, DType::F32, DType::F32), 1)?,
                first,
                "{name}"
            );
            let mean = first.iter().sum::<f32>() / first.len() as f32;
            let deviation = (first.iter().map(|x| (x - mean).powi(2)).sum::<f32>() / first.len() as f32).sqrt();
            assert!((0.05..20.0).contains(&deviation), "{name}: an image with a deviation of {deviation}");
        }
        Ok(())
    }

    #[test]
    fn a_load_stops_between_two_tensors_when_the_observer_says_so() -> Result<()> {
        struct StopAfter(usize);
        impl Observer for StopAfter {
            fn stage(&mut self, _: Stage<'_>) -> Result<()> {
                self.0 = self.0.checked_sub(1).ok_or(Error::Cancelled)?;
                Ok(())
            }
            fn warn(&mut self, _: &str) {}
        }
        let spec = tiny("sd15").ok_or_else(|| Error::Input("sd15".to_owned()))?;
        let load = |patience| {
            let model = RandomModel::new("sd15", spec.clone(), 1);
            Pipeline::load(&model, &Device::Cpu, DType::F32, DType::F32, &mut StopAfter(patience)).map(|_| ())
        };
        for patience in [0, 1, 100, 500] {
            assert!(matches!(load(patience), Err(Error::Cancelled)), "after {patience} tensors");
        }
        load(usize::MAX)
    }

    #[test]
    fn weights_have_the_size_that_keeps_what_goes_through_them() -> Result<()> {
        let tensors = RandomModel::new("x", sd15()?, 0);
        let tensors = tensors.tensors(Component::UNET);
        let values = tensors.tensor("a.weight", &[64, 32, 3, 3], DType::F32, &Device::Cpu)?.flatten_all()?.to_vec1::<f32>()?;
        let variance = values.iter().map(|x| x * x).sum::<f32>() / values.len() as f32 * (32.0 * 9.0);
        assert!((variance - 1.0).abs() < 0.05, "{variance}");
        let other = tensors.tensor("b.weight", &[64, 32, 3, 3], DType::F32, &Device::Cpu)?.flatten_all()?.to_vec1::<f32>()?;
        assert_ne!(values, other);
        Ok(())
    }

    fn sd15() -> Result<ModelSpec> {
        family::well_known("sd15").ok_or_else(|| Error::Input("sd15".to_owned()))
    }
}
