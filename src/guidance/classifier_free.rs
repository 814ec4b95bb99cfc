//! Classifier-free guidance, and the rescaling that takes back the contrast that it adds.

use super::{Guider, each_image};
use crate::sampling::{Branch, Branches, CallPoint};
use crate::{Error, Result};
use candle_core::{Device, Tensor};

/// Pushes the output from the negative prompt's row towards the prompt's.
///
/// # Source
/// Ho & Salimans 2022, arXiv:2207.12598, equation 6; the rescaling is equations 15 and 16 of Lin et al. 2023, arXiv:2305.08891.
#[derive(Debug)]
pub struct ClassifierFree {
    /// One value an image; `None` where guidance is off.
    scale: Option<Tensor>,
    /// The rescaling and what it leaves, where an image asks for it.
    rescale: Option<(Tensor, Tensor)>,
}

impl ClassifierFree {
    /// For images that each have a scale and a rescaling (0 to 1).
    ///
    /// # Errors
    /// The device has no memory left.
    pub fn new(images: &[(f64, f64)], device: &Device) -> Result<Self> {
        let rescale = || -> Result<(Tensor, Tensor)> {
            let rest = each_image(images.iter().map(|(_, rescale)| 1.0 - rescale), device)?;
            Ok((each_image(images.iter().map(|(_, rescale)| *rescale), device)?, rest))
        };
        let rescales = images.iter().any(|(_, rescale)| *rescale != 0.0);
        let scale = each_image(images.iter().map(|(scale, _)| *scale), device)?;
        Ok(Self { scale: Some(scale), rescale: rescales.then(rescale).transpose()? })
    }

    /// No guidance: the prompt's row alone.
    pub fn off() -> Self {
        Self { scale: None, rescale: None }
    }
}

impl Guider for ClassifierFree {
    fn branches(&self, _: &CallPoint) -> Vec<Branch> {
        if self.scale.is_some() { vec![Branch::Negative, Branch::Prompt] } else { vec![Branch::Prompt] }
    }

    fn combine(&mut self, _: &CallPoint, outputs: &Branches) -> Result<Tensor> {
        let prompt = outputs.get(Branch::Prompt).ok_or_else(|| Error::Image("the network's outputs have no row of the prompt".into()))?;
        let (Some(scale), Some(negative)) = (&self.scale, outputs.get(Branch::Negative)) else { return Ok(prompt.clone()) };
        let guided = (negative + (prompt - negative)?.broadcast_mul(scale)?)?;
        let Some((rescale, rest)) = &self.rescale else { return Ok(guided) };
        let ratio = deviation(prompt)?.div(&deviation(&guided)?)?;
        Ok(guided.broadcast_mul(&(ratio * rescale)?.add(rest)?)?)
    }
}

/// The standard deviation of each image, `(batch, 1, 1, 1)`.
fn deviation(x: &Tensor) -> Result<Tensor> {
    let flat = x.flatten_from(1)?;
    let centred = flat.broadcast_sub(&flat.mean_keepdim(1)?)?;
    Ok(centred.sqr()?.mean_keepdim(1)?.sqrt()?.reshape((x.dim(0)?, 1, 1, 1))?)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::sampling::{NoiseLevel, Step};

    fn point() -> CallPoint {
        let level = NoiseLevel::new(1.0, 500.0);
        CallPoint { step: Step { index: 0, from: level, to: NoiseLevel::new(0.0, 0.0) }, steps: 1, call: 0, level }
    }

    fn images(values: &[[f32; 2]]) -> Tensor {
        Tensor::from_vec(values.concat(), (values.len(), 2, 1, 1), &Device::Cpu).unwrap()
    }

    fn combined(guider: &mut ClassifierFree, rows: Vec<(Branch, Tensor)>) -> Vec<f32> {
        guider.combine(&point(), &Branches::new(rows)).unwrap().flatten_all().unwrap().to_vec1().unwrap()
    }

    #[test]
    fn every_image_has_its_own_scale() {
        let mut guider = ClassifierFree::new(&[(2.0, 0.0), (3.0, 0.0)], &Device::Cpu).unwrap();
        let rows = vec![(Branch::Negative, images(&[[0.0, 1.0], [1.0, 1.0]])), (Branch::Prompt, images(&[[1.0, 1.0], [2.0, 0.0]]))];
        assert_eq!(guider.branches(&point()), [Branch::Negative, Branch::Prompt]);
        assert_eq!(combined(&mut guider, rows), [2.0, 1.0, 4.0, -2.0]);
    }

    #[test]
    fn a_full_rescaling_gives_the_prompts_deviation() {
        let mut guider = ClassifierFree::new(&[(5.0, 1.0)], &Device::Cpu).unwrap();
        let (negative, prompt) = (images(&[[0.5, -0.5]]), images(&[[1.0, -1.0]]));
        assert_eq!(combined(&mut guider, vec![(Branch::Negative, negative), (Branch::Prompt, prompt)]), [1.0, -1.0]);
    }

    #[test]
    fn without_guidance_there_is_one_row() {
        let mut guider = ClassifierFree::off();
        assert_eq!(guider.branches(&point()), [Branch::Prompt]);
        assert_eq!(combined(&mut guider, vec![(Branch::Prompt, images(&[[1.0, 2.0]]))]), [1.0, 2.0]);
        assert!(guider.combine(&point(), &Branches::default()).is_err());
    }
}
