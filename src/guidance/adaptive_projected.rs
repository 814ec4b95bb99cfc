//! Adaptive projected guidance: guidance that takes back what oversaturates.

use super::{Guider, each_image};
use crate::sampling::{Branch, Branches, CallPoint};
use crate::{Error, Result};
use candle_core::{Device, Tensor};

/// How the guidance is changed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Projection {
    /// How much of the part along the prompt's estimate is kept.
    pub eta: f64,
    /// The longest that the difference of the estimates may be; 0 is any length.
    pub norm: f64,
    /// How much of the differences before is added, below 0 as a rule.
    pub momentum: f64,
}

/// Guides by the part of the difference of prompt and negative prompt that is at right angles to the prompt's estimate.
///
/// It works on the estimates of the clean latents and not on the network's outputs: with the estimates c and n, the difference
/// d = c − n + momentum · (the d before), shortened to `norm`, is taken apart along c, and the guided estimate is
/// c + (scale − 1) · (d⊥ + eta · d∥).
///
/// # Source
/// Sadat et al. 2024, arXiv:2410.02416, section 4 and algorithm 1.
#[derive(Debug)]
pub(crate) struct AdaptiveProjected {
    inner: Box<dyn Guider>,
    /// The guidance scale less 1, one value an image.
    scale: Tensor,
    projection: Projection,
    average: Option<Tensor>,
}

impl AdaptiveProjected {
    /// For the images of a batch, which agree in all but their scales; `inner` says which rows there are.
    ///
    /// # Errors
    /// The device has no memory left.
    pub(crate) fn new(inner: Box<dyn Guider>, scales: &[f64], projection: Projection, device: &Device) -> Result<Self> {
        Ok(Self { inner, scale: each_image(scales.iter().map(|scale| scale - 1.0), device)?, projection, average: None })
    }
}

/// The sums over everything but the images, `(images, 1, 1, 1)`.
fn sums(x: &Tensor) -> Result<Tensor> {
    Ok(x.flatten_from(1)?.sum_keepdim(1)?.reshape((x.dim(0)?, 1, 1, 1))?)
}

impl Guider for AdaptiveProjected {
    fn branches(&self, at: &CallPoint) -> Vec<Branch> {
        self.inner.branches(at)
    }

    fn combine(&mut self, _: &CallPoint, outputs: &Branches) -> Result<Tensor> {
        let prompt = outputs.get(Branch::Prompt).ok_or_else(|| Error::Image("the network's outputs have no row of the prompt".into()))?;
        let Some(negative) = outputs.get(Branch::Negative) else { return Ok(prompt.clone()) };
        let Projection { eta, norm, momentum } = self.projection;
        let mut difference = (prompt - negative)?;
        if let Some(average) = self.average.take().filter(|_| momentum != 0.0) {
            difference = (difference + average.affine(momentum, 0.0)?)?;
        }
        self.average = Some(difference.clone());
        if norm > 0.0 {
            // At most 1, and 1 where there is no difference.
            let length = sums(&difference.sqr()?)?.sqrt()?;
            let shorter = length.maximum(norm)?.recip()?.affine(norm, 0.0)?;
            difference = difference.broadcast_mul(&shorter)?;
        }
        let along = sums(&(&difference * prompt)?)?.div(&sums(&prompt.sqr()?)?.maximum(f64::from(f32::MIN_POSITIVE))?)?;
        let parallel = prompt.broadcast_mul(&along)?;
        let update = (difference - parallel.affine(1.0 - eta, 0.0)?)?;
        Ok((prompt + update.broadcast_mul(&self.scale)?)?)
    }

    fn reads_estimates(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guidance::{ClassifierFree, GuidanceScales, LeftOut, point};

    fn guided(projection: Projection, calls: usize) -> Vec<f32> {
        let scales = GuidanceScales {
            scale: Some(3.0),
            rescale: 0.0,
            interval: (0.0, 1.0),
            left_out: LeftOut::default(),
            perturbed: 0.0,
            skipped: 0.0,
            skipped_interval: (0.0, 1.0),
        };
        let inner = Box::new(ClassifierFree::new(&[scales], &Device::Cpu).unwrap());
        let mut guider = AdaptiveProjected::new(inner, &[3.0], projection, &Device::Cpu).unwrap();
        let of = |values: [f32; 2]| Tensor::from_vec(values.to_vec(), (1, 2, 1, 1), &Device::Cpu).unwrap();
        let rows = || Branches::new(vec![(Branch::Negative, of([1.0, -4.0])), (Branch::Prompt, of([2.0, 0.0]))]);
        let mut last = None;
        for _ in 0..calls {
            last = Some(guider.combine(&point(0), &rows()).unwrap());
        }
        last.unwrap().flatten_all().unwrap().to_vec1().unwrap()
    }

    #[test]
    fn what_lies_along_the_estimate_is_left_out() {
        let plain = Projection { eta: 1.0, norm: 0.0, momentum: 0.0 };
        // The difference is (1, 4) and the estimate (2, 0): all of it is plain guidance, and without the first part 2 stays 2.
        assert_eq!(guided(plain, 1), [4.0, 8.0]);
        assert_eq!(guided(Projection { eta: 0.0, ..plain }, 1), [2.0, 8.0]);
        // The second difference is less by half of the first one.
        assert_eq!(guided(Projection { momentum: -0.5, ..plain }, 2), [3.0, 4.0]);
        let short = guided(Projection { norm: 17f64.sqrt() / 2.0, ..plain }, 1);
        assert!((short[0] - 3.0).abs() < 1e-5 && (short[1] - 4.0).abs() < 1e-5, "{short:?}");
        assert_eq!(guided(Projection { norm: 100.0, ..plain }, 1), [4.0, 8.0]);
    }
}
