//! Guidance of models that change an image by an instruction: towards the prompt, and towards the image.

use super::{Guider, each_image};
use crate::sampling::{Branch, Branches, CallPoint};
use crate::{Error, Result};
use candle_core::{Device, Tensor};

/// `none + g · (text − image) + gᵢ · (image − none)`, where `text` sees the prompt and the image, `image` the image alone, and `none` neither.
///
/// # Source
/// Brooks et al. 2022, "InstructPix2Pix", arXiv:2211.09800, equation 3.
#[derive(Debug)]
pub(crate) struct InstructionEdit {
    /// One value an image.
    text: Tensor,
    image: Tensor,
}

impl InstructionEdit {
    /// For images that each have a guidance scale and an image guidance scale.
    ///
    /// # Errors
    /// The device has no memory left.
    pub(crate) fn new(images: &[(f64, f64)], device: &Device) -> Result<Self> {
        let text = each_image(images.iter().map(|(text, _)| *text), device)?;
        Ok(Self { text, image: each_image(images.iter().map(|(_, image)| *image), device)? })
    }
}

impl Guider for InstructionEdit {
    fn branches(&self, _: &CallPoint) -> Vec<Branch> {
        vec![Branch::Prompt, Branch::ImageOnly, Branch::Negative]
    }

    fn combine(&mut self, _: &CallPoint, outputs: &Branches) -> Result<Tensor> {
        let row = |branch| outputs.get(branch).ok_or_else(|| Error::Image(format!("the network's outputs have no row {branch:?}")));
        let (text, image, none) = (row(Branch::Prompt)?, row(Branch::ImageOnly)?, row(Branch::Negative)?);
        let towards_text = (text - image)?.broadcast_mul(&self.text)?;
        Ok(((none + towards_text)? + (image - none)?.broadcast_mul(&self.image)?)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sampling::{NoiseLevel, Step};

    #[test]
    fn both_scales_push_along_their_own_difference() {
        let level = NoiseLevel::new(1.0, 500.0);
        let at = CallPoint { step: Step { index: 0, from: level, to: level }, steps: 1, call: 0, level };
        let mut guider = InstructionEdit::new(&[(2.0, 1.5), (1.0, 1.0)], &Device::Cpu).unwrap();
        let rows = |values: [f32; 2]| Tensor::from_vec(values.to_vec(), (2, 1, 1, 1), &Device::Cpu).unwrap();
        let outputs = Branches::new(vec![
            (Branch::Prompt, rows([5.0, 7.0])),
            (Branch::ImageOnly, rows([3.0, 2.0])),
            (Branch::Negative, rows([1.0, 1.0])),
        ]);
        let combined: Vec<f32> = guider.combine(&at, &outputs).unwrap().flatten_all().unwrap().to_vec1().unwrap();
        assert_eq!(combined, [1.0 + 2.0 * 2.0 + 1.5 * 2.0, 7.0]);
        assert_eq!(guider.branches(&at).len(), 3);
        assert!(guider.combine(&at, &Branches::default()).is_err());
    }
}
