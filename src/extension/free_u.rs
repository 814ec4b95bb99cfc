//! FreeU: a stronger backbone and weaker low frequencies of the skip connections on the UNet's way up.

use super::Extension;
use crate::models::{ModelCall, Patch};
use crate::ops::NamedTensors;
use crate::sampling::{Branch, CallPoint};
use crate::{Error, Result};
use candle_core::{D, DType, Device, Tensor};
use std::collections::BTreeMap;
use std::f64::consts::TAU;
use std::sync::Arc;

/// The factors of the two deepest up blocks.
///
/// # Source
/// Si et al. 2023, arXiv:2309.11497, equations 4 to 7, as diffusers@v0.36:src/diffusers/utils/torch_utils.py applies them: half of the
/// backbone's channels, and the lowest two frequencies along each side.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct FreeU {
    /// What half of the backbone's channels is multiplied by, in the first up block and in the second.
    pub backbone: [f64; 2],
    /// What the low frequencies of the skip connections are multiplied by, in the same blocks.
    pub skip: [f64; 2],
}

impl Extension for FreeU {
    fn before_call(&mut self, _: &CallPoint, _: &[Branch], call: &mut ModelCall) -> Result<()> {
        let (_, _, height, width) = call.latents.dims4()?;
        let mut kernels = BTreeMap::new();
        for mut side in [height, width] {
            // The sides of all levels, the latents' own too, as a UNet may have two; an odd side is halved upwards.
            loop {
                if let std::collections::btree_map::Entry::Vacant(entry) = kernels.entry(side) {
                    entry.insert(low_frequencies(side, call.latents.device())?);
                }
                if side <= 1 {
                    break;
                }
                side = side.div_ceil(2);
            }
        }
        call.patches.push(Arc::new(FreeUPatch { free_u: *self, kernels }));
        Ok(())
    }
}

/// The real and the imaginary part of the projection on the frequencies −1 and 0 of a side, `(side, side)` each.
fn low_frequencies(side: usize, device: &Device) -> Result<[Tensor; 2]> {
    let each = |of: &dyn Fn(f64) -> f64| -> Result<Tensor> {
        let value = |i: usize| (of(TAU * ((i / side) as f64 - (i % side) as f64) / side as f64) / side as f64) as f32;
        Ok(Tensor::from_vec((0..side * side).map(value).collect(), (side, side), device)?)
    };
    Ok([each(&|angle| 1.0 + angle.cos())?, each(&|angle| -angle.sin())?])
}

#[derive(Debug)]
struct FreeUPatch {
    free_u: FreeU,
    /// By side.
    kernels: BTreeMap<usize, [Tensor; 2]>,
}

impl Patch for FreeUPatch {
    fn key(&self) -> String {
        format!("{:?}", self.free_u)
    }

    fn inputs(&self) -> Vec<(String, Tensor)> {
        let named = |(side, parts): (&usize, &[Tensor; 2])| {
            let name = |i: usize| format!("low frequencies of {side}, part {i}");
            [(name(0), parts[0].clone()), (name(1), parts[1].clone())]
        };
        self.kernels.iter().flat_map(named).collect()
    }

    fn up_block(&self, block: usize, hidden: &Tensor, skip: &Tensor, inputs: &NamedTensors) -> Result<Option<(Tensor, Tensor)>> {
        let (Some(backbone), Some(factor)) = (self.free_u.backbone.get(block), self.free_u.skip.get(block)) else { return Ok(None) };
        let (channels, half) = (hidden.dim(D::Minus1)?, hidden.dim(D::Minus1)? / 2);
        let louder = hidden.narrow(D::Minus1, 0, half)?.affine(*backbone, 0.0)?;
        let hidden = Tensor::cat(&[louder, hidden.narrow(D::Minus1, half, channels - half)?], D::Minus1)?;
        let single = skip.to_dtype(DType::F32)?;
        let low = (low_part(&single, 0, inputs)? - low_part(&single, 1, inputs)?)?;
        let filtered = (single + low.affine(factor - 1.0, 0.0)?)?;
        Ok(Some((hidden, filtered.to_dtype(skip.dtype())?)))
    }
}

/// One part's projection along both sides of `(rows, height, width, channels)`.
fn low_part(x: &Tensor, part: usize, inputs: &NamedTensors) -> Result<Tensor> {
    let (rows, height, width, channels) = x.dims4()?;
    let kernel = |side: usize| {
        let name = format!("low frequencies of {side}, part {part}");
        inputs.find(&name).ok_or_else(|| Error::Image(format!("FreeU knows no level of side {side}")))
    };
    let along_height = kernel(height)?.unsqueeze(0)?.broadcast_matmul(&x.reshape((rows, height, width * channels))?)?;
    let along_width = kernel(width)?.unsqueeze(0)?.broadcast_matmul(&along_height.reshape((rows * height, width, channels))?)?;
    Ok(along_width.reshape((rows, height, width, channels))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_level_has_its_kernel() {
        let zeros = |shape: (usize, usize, usize)| Tensor::zeros(shape, DType::F32, &Device::Cpu).unwrap();
        let latents = Tensor::zeros((1, 4, 9, 4), DType::F32, &Device::Cpu).unwrap();
        let mut call = ModelCall::new(latents, 1.0, zeros((1, 2, 3)));
        let level = crate::sampling::NoiseLevel::new(1.0, 1.0);
        let step = crate::sampling::Step { index: 0, from: level, to: level };
        let at = CallPoint { step, steps: 1, call: 0, level };
        FreeU { backbone: [1.0; 2], skip: [1.0; 2] }.before_call(&at, &[Branch::Prompt], &mut call).unwrap();
        let names: Vec<String> = call.patches[0].inputs().into_iter().map(|(name, _)| name).collect();
        for side in [9, 5, 3, 2, 1, 4] {
            assert!(names.contains(&format!("low frequencies of {side}, part 0")), "{side}: {names:?}");
        }
    }

    #[test]
    fn a_filter_of_nothing_but_low_frequencies_is_a_scaling() {
        let patch = FreeUPatch {
            free_u: FreeU { backbone: [2.0, 1.0], skip: [0.5, 1.0] },
            kernels: [(4, low_frequencies(4, &Device::Cpu).unwrap()), (6, low_frequencies(6, &Device::Cpu).unwrap())].into(),
        };
        let mut inputs = NamedTensors::default();
        patch.inputs().into_iter().for_each(|(name, tensor)| inputs.push(name, tensor));
        let hidden = Tensor::ones((1, 4, 6, 2), DType::F32, &Device::Cpu).unwrap();
        // A constant is the frequency 0; the highest frequency of the height is left as it is.
        let high = |i: usize| if (i / 6).is_multiple_of(2) { 1f32 } else { -1.0 };
        let constant = Tensor::full(3f32, (1, 4, 6, 1), &Device::Cpu).unwrap();
        let alternating = Tensor::from_vec((0..24).map(high).collect(), (1, 4, 6, 1), &Device::Cpu).unwrap();
        let skip = (&constant + &alternating).unwrap();
        let (hidden, filtered) = patch.up_block(0, &hidden, &skip, &inputs).unwrap().unwrap();
        assert_eq!(hidden.flatten_all().unwrap().to_vec1::<f32>().unwrap()[..2], [2.0, 1.0]);
        let wanted = (constant * 0.5).unwrap() + alternating;
        let apart = (filtered - wanted.unwrap()).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
        assert!(apart < 1e-5, "{apart}");
        assert!(patch.up_block(2, &skip, &skip, &inputs).unwrap().is_none());
    }
}
