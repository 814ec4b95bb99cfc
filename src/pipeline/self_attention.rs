//! Self-attention guidance: away from what the image is where it is blurred, at the places that it attends to most.

use crate::ops::{Wrap, wrap_around};
use crate::sampling::{Branch, Like};
use crate::settings::Request;
use crate::{Error, Result};
use candle_core::{DType, Device, Tensor};
use std::ops::Range;

/// What a place is attended to more than is hidden in the second call; 1 is the mean of all places.
const THRESHOLD: f64 = 1.0;
/// Latents on either side of one that its blurred value is made of.
const REACH: usize = 4;

/// Self-attention guidance of a batch.
///
/// # Source
/// Hong et al. 2022, arXiv:2210.00939, equations 16 to 25, as
/// huggingface/diffusers@v0.36:src/diffusers/pipelines/stable_diffusion_sag/pipeline_stable_diffusion_sag.py computes them; between the
/// estimates in the place of the outputs as comfyanonymous/ComfyUI:comfy_extras/nodes_sag.py.
#[derive(Debug)]
pub(super) struct SelfAttention {
    /// One value an image, `(images, 1, 1, 1)`.
    scale: Tensor,
    /// The weights of what lies from `-REACH` to `REACH` of a latent.
    kernel: [f64; 2 * REACH + 1],
    wrap: Wrap,
    /// The difference is one of estimates, as ComfyUI takes it: another one where a network predicts velocity.
    of_estimates: bool,
}

impl SelfAttention {
    /// For the images of a batch, which agree in all but their scales; `None` where it is off.
    pub(super) fn of(requests: &[&Request], device: &Device) -> Result<Option<Self>> {
        let Some(first) = requests.first().filter(|request| request.guidance.sag_scale != 0.0) else { return Ok(None) };
        let scales: Vec<f32> = requests.iter().map(|request| request.guidance.sag_scale as f32).collect();
        Ok(Some(Self {
            scale: Tensor::from_vec(scales, (requests.len(), 1, 1, 1), device)?,
            kernel: gaussian(first.guidance.sag_blur.unwrap_or(1.0)),
            wrap: first.wrap(),
            of_estimates: first.sampling.like == Some(Like::ComfyUi),
        }))
    }

    /// The branch that is blurred: without the prompt, where the network is called without it.
    pub(super) fn branch(branches: &[Branch]) -> Branch {
        if branches.contains(&Branch::Negative) { Branch::Negative } else { Branch::Prompt }
    }

    /// That branch's rows in a call for `images` images.
    pub(super) fn rows(branches: &[Branch], images: usize) -> Range<usize> {
        let branch = Self::branch(branches);
        let at = branches.iter().position(|other| *other == branch).unwrap_or(0);
        at * images..(at + 1) * images
    }

    pub(super) fn is_of_estimates(&self) -> bool {
        self.of_estimates
    }

    /// Clean latents, `(images, channels, height, width)`, blurred where `attended`, `(images, height', width')`, is above its mean.
    pub(super) fn blurred(&self, clean: &Tensor, attended: &Tensor) -> Result<Tensor> {
        let (_, _, height, width) = clean.dims4()?;
        let hidden = attended.gt(THRESHOLD)?.to_dtype(DType::F32)?;
        let hidden = enlarged(&enlarged(&hidden, 1, height)?, 2, width)?.unsqueeze(1)?;
        let rest = hidden.affine(-1.0, 1.0)?;
        let smooth = self.smooth(&self.smooth(clean, 2, self.wrap.y)?, 3, self.wrap.x)?;
        Ok((smooth.broadcast_mul(&hidden)? + clean.broadcast_mul(&rest)?)?)
    }

    /// Along one axis. Beyond an edge lies what lies before it, or at the other side of an image that repeats.
    fn smooth(&self, x: &Tensor, axis: usize, wraps: bool) -> Result<Tensor> {
        let side = x.dim(axis)?;
        let around = if wraps { wrap_around(x, axis, REACH)? } else { mirrored(x, axis)? };
        let mut sum: Option<Tensor> = None;
        for (i, weight) in self.kernel.iter().enumerate() {
            let part = around.narrow(axis, i, side)?.affine(*weight, 0.0)?;
            sum = Some(sum.map_or(Ok(part.clone()), |sum| sum + part)?);
        }
        sum.ok_or_else(|| Error::Image("a blur without weights".into()))
    }

    /// `guided`, pushed from the second of two outputs (or estimates) towards the first.
    pub(super) fn push(&self, guided: &Tensor, plain: &Tensor, blurred: &Tensor) -> Result<Tensor> {
        Ok((guided + (plain - blurred)?.broadcast_mul(&self.scale)?)?)
    }
}

/// The weights of a Gaussian of a deviation; of none, the middle alone.
fn gaussian(deviation: f64) -> [f64; 2 * REACH + 1] {
    let mut weights = [0.0; 2 * REACH + 1];
    for (i, weight) in weights.iter_mut().enumerate() {
        let x = i as f64 - REACH as f64;
        *weight = if x == 0.0 { 1.0 } else { (-0.5 * (x / deviation).powi(2)).exp() };
    }
    let sum: f64 = weights.iter().sum();
    weights.map(|weight| weight / sum)
}

/// `x` with what its edges mirror, themselves left out.
fn mirrored(x: &Tensor, axis: usize) -> Result<Tensor> {
    let side = x.dim(axis)?;
    if side <= REACH {
        return Err(Error::setting("sag-scale", format!(": {side} latents along a side cannot be blurred; take a larger size")));
    }
    let at = |i: usize| i.abs_diff(REACH).min(2 * (side - 1) + REACH - i) as u32;
    let indices: Vec<u32> = (0..side + 2 * REACH).map(at).collect();
    Ok(x.index_select(&Tensor::new(indices, x.device())?, axis)?)
}

/// To `side` along an axis, by the nearest, as torch finds it.
fn enlarged(x: &Tensor, axis: usize, side: usize) -> Result<Tensor> {
    let from = x.dim(axis)?;
    let scale = from as f32 / side as f32;
    let indices: Vec<u32> = (0..side).map(|i| ((i as f32 * scale) as u32).min(from.saturating_sub(1) as u32)).collect();
    Ok(x.index_select(&Tensor::new(indices, x.device())?, axis)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(kernel: [f64; 9], wrap: Wrap) -> SelfAttention {
        SelfAttention { scale: Tensor::new(2f32, &Device::Cpu).unwrap().reshape((1, 1, 1, 1)).unwrap(), kernel, wrap, of_estimates: false }
    }

    #[test]
    fn only_what_is_attended_to_is_blurred() {
        let clean = Tensor::arange(0f32, 60.0, &Device::Cpu).unwrap().sqr().unwrap().reshape((1, 1, 6, 10)).unwrap();
        let attended = Tensor::new(&[[[0.5f32, 1.5], [1.0, 0.9]]], &Device::Cpu).unwrap();
        let made = of(gaussian(1.0), Wrap::default()).blurred(&clean, &attended).unwrap();
        let moved = |row: usize, column: usize| {
            let at = |x: &Tensor| x.to_vec1::<f32>().unwrap()[row * 10 + column];
            (at(&made.flatten_all().unwrap()) - at(&clean.flatten_all().unwrap())).abs() > 0.5
        };
        assert_eq!([(0, 4), (0, 5), (2, 9), (3, 9), (5, 0)].map(|(row, column)| moved(row, column)), [false, true, true, false, false]);
        // Without a deviation nothing is blurred.
        let same = of(gaussian(0.0), Wrap::default()).blurred(&clean, &attended).unwrap();
        assert_eq!(same.flatten_all().unwrap().to_vec1::<f32>().unwrap(), clean.flatten_all().unwrap().to_vec1::<f32>().unwrap());
    }

    #[test]
    fn edges_are_mirrored_or_go_on_at_the_other_side() {
        let x = Tensor::arange(0f32, 6.0, &Device::Cpu).unwrap().reshape((1, 1, 1, 6)).unwrap();
        let numbers = |x: Tensor| x.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert_eq!(numbers(mirrored(&x, 3).unwrap()), [4.0, 3.0, 2.0, 1.0, 0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 4.0, 3.0, 2.0, 1.0]);
        assert!(mirrored(&x, 2).is_err());
        let mut shift = [0.0; 9];
        shift[0] = 1.0;
        let wrap = Wrap { x: true, y: false };
        assert_eq!(numbers(of(shift, wrap).smooth(&x, 3, true).unwrap()), [2.0, 3.0, 4.0, 5.0, 0.0, 1.0]);
    }

    #[test]
    fn what_is_pushed_away_is_the_negative_row_where_there_is_one() {
        let all = [Branch::Negative, Branch::Prompt, Branch::Perturbed];
        assert_eq!((SelfAttention::branch(&all), SelfAttention::rows(&all, 2)), (Branch::Negative, 0..2));
        let alone = [Branch::Prompt, Branch::Part(1)];
        assert_eq!((SelfAttention::branch(&alone), SelfAttention::rows(&alone, 3)), (Branch::Prompt, 0..3));
        let number = |x: f32| Tensor::full(x, (1, 1, 1, 1), &Device::Cpu).unwrap();
        let pushed = of(gaussian(1.0), Wrap::default()).push(&number(5.0), &number(3.0), &number(2.0)).unwrap();
        assert_eq!(pushed.flatten_all().unwrap().to_vec1::<f32>().unwrap(), [7.0]);
    }
}
