//! Several prompts for one image (`AND` of the prompt language), which add up with their weights.

use super::{Guider, each_image};
use crate::sampling::{Branch, Branches, CallPoint};
use crate::{Error, Result};
use candle_core::{Device, Tensor};

/// Makes one output of the parts' outputs, which then is guided as a single prompt's would be: with the negative row n and the parts p,
/// n + Σ wᵢ (pᵢ − n).
///
/// # Source
/// Liu et al. 2022, arXiv:2206.01714, equation 11; lllyasviel/stable-diffusion-webui-forge@dfdcbab:modules/sd_samplers_cfg_denoiser.py
/// (`combine_denoised`).
#[derive(Debug)]
pub(crate) struct Conjunction {
    inner: Box<dyn Guider>,
    /// For each part one value an image.
    weights: Vec<Tensor>,
}

impl Conjunction {
    /// `images` holds the parts' weights for each image; all have as many.
    ///
    /// # Errors
    /// The images have different numbers of parts, or the device has no memory left.
    pub(crate) fn new(inner: Box<dyn Guider>, images: &[Vec<f64>], device: &Device) -> Result<Self> {
        let parts = images.first().map_or(0, Vec::len);
        if images.iter().any(|weights| weights.len() != parts) {
            return Err(Error::Image("images whose prompts have different numbers of parts cannot be generated at once".into()));
        }
        let part = |part: usize| each_image(images.iter().filter_map(|weights| weights.get(part).copied()), device);
        Ok(Self { inner, weights: (0..parts).map(part).collect::<Result<_>>()? })
    }

    /// The branch of a part: the first one is the prompt.
    pub(crate) fn branch(part: usize) -> Branch {
        if part == 0 { Branch::Prompt } else { Branch::Part(part) }
    }
}

impl Guider for Conjunction {
    fn branches(&self, at: &CallPoint) -> Vec<Branch> {
        // The sum needs the negative row also where guidance is off.
        let mut branches = vec![Branch::Negative];
        for branch in self.inner.branches(at) {
            match branch {
                Branch::Negative => {}
                Branch::Prompt => branches.extend((0..self.weights.len()).map(Self::branch)),
                other => branches.push(other),
            }
        }
        branches
    }

    fn combine(&mut self, at: &CallPoint, outputs: &Branches) -> Result<Tensor> {
        let missing = || Error::Image("the network's outputs lack a row of the prompt".into());
        let negative = outputs.get(Branch::Negative).ok_or_else(missing)?;
        let mut sum = negative.clone();
        for (part, weight) in self.weights.iter().enumerate() {
            let output = outputs.get(Self::branch(part)).ok_or_else(missing)?;
            sum = (sum + (output - negative)?.broadcast_mul(weight)?)?;
        }
        // The others see what they asked for: the negative row may be here for the sum alone.
        let row = |branch: Branch| match branch {
            Branch::Prompt => Some((branch, sum.clone())),
            _ => outputs.get(branch).map(|output| (branch, output.clone())),
        };
        let rows: Vec<(Branch, Tensor)> = self.inner.branches(at).into_iter().filter_map(row).collect();
        self.inner.combine(at, &Branches::new(rows))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guidance::{ClassifierFree, GuidanceScales, LeftOut, point};

    fn guider(scales: &[Option<f64>]) -> Box<dyn Guider> {
        let left_out = LeftOut::default();
        let image = |scale: &Option<f64>| GuidanceScales {
            scale: *scale,
            rescale: 0.0,
            interval: (0.0, 1.0),
            left_out,
            perturbed: 0.0,
            skipped: 0.0,
            skipped_interval: (0.0, 1.0),
        };
        Box::new(ClassifierFree::new(&scales.iter().map(image).collect::<Vec<_>>(), &Device::Cpu).unwrap())
    }

    fn images(values: &[f32]) -> Tensor {
        Tensor::from_vec(values.to_vec(), (values.len(), 1, 1, 1), &Device::Cpu).unwrap()
    }

    #[test]
    fn parts_add_up_with_their_weights() {
        let inner = guider(&[Some(2.0), Some(3.0)]);
        let mut guider = Conjunction::new(inner, &[vec![0.5, 1.0], vec![1.0, -1.0]], &Device::Cpu).unwrap();
        assert_eq!(guider.branches(&point(0)), [Branch::Negative, Branch::Prompt, Branch::Part(1)]);
        let rows =
            vec![(Branch::Negative, images(&[1.0, 1.0])), (Branch::Prompt, images(&[3.0, 2.0])), (Branch::Part(1), images(&[0.0, 5.0]))];
        // The sums are 1 + 0.5 · 2 − 1 = 1 and 1 + 1 − 4 = −2; guided 1 and 1 + 3 · (−3) = −8.
        let combined: Vec<f32> = guider.combine(&point(0), &Branches::new(rows)).unwrap().flatten_all().unwrap().to_vec1().unwrap();
        assert_eq!(combined, [1.0, -8.0]);
    }

    #[test]
    fn a_sum_needs_the_negative_row_without_guidance_too() {
        let mut guider = Conjunction::new(guider(&[None]), &[vec![0.5]], &Device::Cpu).unwrap();
        assert_eq!(guider.branches(&point(0)), [Branch::Negative, Branch::Prompt]);
        let rows = vec![(Branch::Negative, images(&[1.0])), (Branch::Prompt, images(&[3.0]))];
        let combined = guider.combine(&point(0), &Branches::new(rows)).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert_eq!(combined, [2.0]);
        let uneven = Conjunction::new(self::guider(&[None]), &[vec![1.0], vec![1.0, 1.0]], &Device::Cpu);
        assert!(uneven.is_err());
    }
}
