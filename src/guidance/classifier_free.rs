//! Classifier-free guidance in a part of the steps, the rescaling that takes back the contrast that it adds, and perturbed attention.

use super::{Guider, each_image};
use crate::sampling::{Branch, Branches, CallPoint};
use crate::{Error, Result};
use candle_core::{Device, Tensor};

/// What one image asks of guidance. Images of one batch agree in which of it is on.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct GuidanceScales {
    /// Classifier-free guidance, `None` where it is off.
    pub scale: Option<f64>,
    /// How much contrast is taken back, 0 to 1.
    pub rescale: f64,
    /// The shares of the steps from which and up to which the negative row is computed.
    pub interval: (f64, f64),
    /// Where the negative row is left out beside that.
    pub left_out: LeftOut,
    /// Perturbed-attention guidance; 0 turns it off.
    pub perturbed: f64,
    /// Guidance by a network without some of its layers; 0 turns it off.
    pub skipped: f64,
    /// The shares of the steps between which it is there.
    pub skipped_interval: (f64, f64),
}

/// The calls of the network for which A1111 leaves the negative row out.
///
/// # Source
/// lllyasviel/stable-diffusion-webui-forge@dfdcbab6:modules/sd_samplers_cfg_denoiser.py, `CFGDenoiser.forward`.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(crate) struct LeftOut {
    /// "Skip Early CFG": up to this share of the calls; 0 turns it off.
    pub early: f64,
    /// The calls that it is a share of.
    pub calls: usize,
    /// "NGMS": below this sigma, in every other call; 0 turns it off.
    pub below_sigma: f64,
    /// In every call below it.
    pub all: bool,
}

impl LeftOut {
    fn has(&self, at: &CallPoint) -> bool {
        let early = self.early > 0.0 && at.call as f64 / self.calls.max(1) as f64 <= self.early;
        early || (at.call % 2 == 1 || self.all) && self.below_sigma > 0.0 && at.level.sigma < self.below_sigma
    }
}

/// Pushes the output from the negative prompt's row, and from the one with disturbed attention, towards the prompt's.
///
/// # Source
/// Ho & Salimans 2022, arXiv:2207.12598, equation 6; the rescaling is equations 15 and 16 of Lin et al. 2023, arXiv:2305.08891; the
/// interval is Kynkäänniemi et al. 2024, arXiv:2404.07724, in steps; Ahn et al. 2024, arXiv:2403.17377, equation 13.
#[derive(Debug)]
pub(crate) struct ClassifierFree {
    /// One value an image; `None` where guidance is off.
    scale: Option<Tensor>,
    interval: (f64, f64),
    left_out: LeftOut,
    /// The rescaling and what it leaves, where an image asks for it.
    rescale: Option<(Tensor, Tensor)>,
    perturbed: Option<Tensor>,
    skipped: Option<Tensor>,
    skipped_interval: (f64, f64),
}

impl ClassifierFree {
    /// For the images of a batch.
    ///
    /// # Errors
    /// The device has no memory left.
    pub(crate) fn new(images: &[GuidanceScales], device: &Device) -> Result<Self> {
        let each = |value: &dyn Fn(&GuidanceScales) -> f64| each_image(images.iter().map(value), device);
        let rescale = || -> Result<(Tensor, Tensor)> { Ok((each(&|image| image.rescale)?, each(&|image| 1.0 - image.rescale)?)) };
        let is_guided = images.iter().any(|image| image.scale.is_some());
        let rescales = is_guided && images.iter().any(|image| image.rescale != 0.0);
        let skips = images.iter().any(|image| image.skipped != 0.0);
        let perturbs = images.iter().any(|image| image.perturbed != 0.0);
        Ok(Self {
            scale: is_guided.then(|| each(&|image| image.scale.unwrap_or(1.0))).transpose()?,
            interval: images.first().map_or((0.0, 1.0), |image| image.interval),
            left_out: images.first().map_or(LeftOut::default(), |image| image.left_out),
            rescale: rescales.then(rescale).transpose()?,
            perturbed: perturbs.then(|| each(&|image| image.perturbed)).transpose()?,
            skipped: skips.then(|| each(&|image| image.skipped)).transpose()?,
            skipped_interval: images.first().map_or((0.0, 1.0), |image| image.skipped_interval),
        })
    }

    fn is_on(&self, at: &CallPoint) -> bool {
        let (step, steps) = (at.step.index as f64, at.steps as f64);
        self.scale.is_some() && self.interval.0 * steps <= step && step < self.interval.1 * steps && !self.left_out.has(at)
    }
}

impl ClassifierFree {
    /// Whether layers are left out in a step: after the first share and before the last, both left out.
    fn is_between(&self, at: &CallPoint) -> bool {
        let (step, steps) = (at.step.index as f64, at.steps as f64);
        self.skipped_interval.0 * steps < step && step < self.skipped_interval.1 * steps
    }
}

impl Guider for ClassifierFree {
    fn branches(&self, at: &CallPoint) -> Vec<Branch> {
        let mut branches = if self.is_on(at) { vec![Branch::Negative, Branch::Prompt] } else { vec![Branch::Prompt] };
        if self.perturbed.is_some() {
            branches.push(Branch::Perturbed);
        }
        if self.skipped.is_some() && self.is_on(at) && self.is_between(at) {
            branches.push(Branch::SkippedLayers);
        }
        branches
    }

    fn combine(&mut self, _: &CallPoint, outputs: &Branches) -> Result<Tensor> {
        let prompt = outputs.get(Branch::Prompt).ok_or_else(|| Error::Image("the network's outputs have no row of the prompt".into()))?;
        let negative = outputs.get(Branch::Negative).zip(self.scale.as_ref());
        let mut guided = match negative {
            Some((negative, scale)) => (negative + (prompt - negative)?.broadcast_mul(scale)?)?,
            None => prompt.clone(),
        };
        if let Some((perturbed, scale)) = outputs.get(Branch::Perturbed).zip(self.perturbed.as_ref()) {
            guided = (guided + (prompt - perturbed)?.broadcast_mul(scale)?)?;
        }
        if let Some((skipped, scale)) = outputs.get(Branch::SkippedLayers).zip(self.skipped.as_ref()) {
            guided = (guided + (prompt - skipped)?.broadcast_mul(scale)?)?;
        }
        let Some((rescale, rest)) = self.rescale.as_ref().filter(|_| negative.is_some()) else { return Ok(guided) };
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
mod tests {
    use super::*;
    use crate::guidance::point;
    use crate::sampling::NoiseLevel;

    fn images(values: &[[f32; 2]]) -> Tensor {
        Tensor::from_vec(values.concat(), (values.len(), 2, 1, 1), &Device::Cpu).unwrap()
    }

    fn of(scales: &[GuidanceScales]) -> ClassifierFree {
        ClassifierFree::new(scales, &Device::Cpu).unwrap()
    }

    fn combined(guider: &mut ClassifierFree, rows: Vec<(Branch, Tensor)>) -> Vec<f32> {
        guider.combine(&point(0), &Branches::new(rows)).unwrap().flatten_all().unwrap().to_vec1().unwrap()
    }

    const NOTHING: LeftOut = LeftOut { early: 0.0, calls: 4, below_sigma: 0.0, all: false };
    const PLAIN: GuidanceScales = GuidanceScales {
        scale: None,
        rescale: 0.0,
        interval: (0.0, 1.0),
        left_out: NOTHING,
        perturbed: 0.0,
        skipped: 0.0,
        skipped_interval: (0.0, 1.0),
    };

    #[test]
    fn every_image_has_its_own_scale() {
        let mut guider = of(&[GuidanceScales { scale: Some(2.0), ..PLAIN }, GuidanceScales { scale: Some(3.0), ..PLAIN }]);
        let rows = vec![(Branch::Negative, images(&[[0.0, 1.0], [1.0, 1.0]])), (Branch::Prompt, images(&[[1.0, 1.0], [2.0, 0.0]]))];
        assert_eq!(guider.branches(&point(0)), [Branch::Negative, Branch::Prompt]);
        assert_eq!(combined(&mut guider, rows), [2.0, 1.0, 4.0, -2.0]);
    }

    #[test]
    fn a_full_rescaling_gives_the_prompts_deviation() {
        let mut guider = of(&[GuidanceScales { scale: Some(5.0), rescale: 1.0, ..PLAIN }]);
        let (negative, prompt) = (images(&[[0.5, -0.5]]), images(&[[1.0, -1.0]]));
        assert_eq!(combined(&mut guider, vec![(Branch::Negative, negative), (Branch::Prompt, prompt)]), [1.0, -1.0]);
    }

    #[test]
    fn without_guidance_there_is_one_row() {
        let mut guider = of(&[PLAIN]);
        assert_eq!(guider.branches(&point(0)), [Branch::Prompt]);
        assert_eq!(combined(&mut guider, vec![(Branch::Prompt, images(&[[1.0, 2.0]]))]), [1.0, 2.0]);
        assert!(guider.combine(&point(0), &Branches::default()).is_err());
    }

    #[test]
    fn outside_its_interval_guidance_costs_no_row() {
        let mut guider = of(&[GuidanceScales { scale: Some(5.0), rescale: 0.5, interval: (0.25, 0.75), ..PLAIN }]);
        let rows: Vec<usize> = (0..4).map(|step| guider.branches(&point(step)).len()).collect();
        assert_eq!(rows, [1, 2, 2, 1]);
        assert_eq!(combined(&mut guider, vec![(Branch::Prompt, images(&[[1.0, 2.0]]))]), [1.0, 2.0]);
    }

    #[test]
    fn the_negative_row_is_left_out_where_a1111_does() {
        let rows = |left_out: LeftOut| {
            let guider = of(&[GuidanceScales { scale: Some(5.0), left_out, ..PLAIN }]);
            let level = |call: usize| NoiseLevel::new([8.0, 4.0, 2.0, 1.0][call], 500.0);
            (0..4).map(|call| guider.branches(&CallPoint { call, level: level(call), ..point(call) }).len()).collect::<Vec<_>>()
        };
        // The share is reached, not passed: 0 / 4 and 1 / 4 are within a quarter.
        assert_eq!(rows(LeftOut { early: 0.25, ..NOTHING }), [1, 1, 2, 2]);
        assert_eq!(rows(LeftOut { below_sigma: 5.0, ..NOTHING }), [2, 1, 2, 1]);
        assert_eq!(rows(LeftOut { below_sigma: 4.0, all: true, ..NOTHING }), [2, 2, 1, 1]);
        assert_eq!(rows(NOTHING), [2, 2, 2, 2]);
    }

    #[test]
    fn perturbed_attention_pushes_away_with_and_without_a_negative_row() {
        let rows = || vec![(Branch::Prompt, images(&[[1.0, 2.0]])), (Branch::Perturbed, images(&[[0.0, 3.0]]))];
        let mut guider = of(&[GuidanceScales { perturbed: 2.0, ..PLAIN }]);
        assert_eq!(guider.branches(&point(0)), [Branch::Prompt, Branch::Perturbed]);
        assert_eq!(combined(&mut guider, rows()), [3.0, 0.0]);
        let mut guider = of(&[GuidanceScales { scale: Some(3.0), perturbed: 2.0, ..PLAIN }]);
        assert_eq!(guider.branches(&point(0)), [Branch::Negative, Branch::Prompt, Branch::Perturbed]);
        let all = std::iter::once((Branch::Negative, images(&[[0.0, 0.0]]))).chain(rows()).collect();
        assert_eq!(combined(&mut guider, all), [5.0, 4.0]);
    }
}
