//! PNDM: linear multistep on the network's output ("PLMS"), with an optional Runge-Kutta start.

use super::{Denoiser, NoiseLevel, NoiseSource, PredictionType, Scheduler, Step, blend};
use crate::Result;
use candle_core::Tensor;

/// Adams-Bashforth weights over the newest outputs, newest first, by how many there are.
const ADAMS_BASHFORTH: [&[f64]; 4] =
    [&[1.0], &[3.0 / 2.0, -1.0 / 2.0], &[23.0 / 12.0, -16.0 / 12.0, 5.0 / 12.0], &[55.0 / 24.0, -59.0 / 24.0, 37.0 / 24.0, -9.0 / 24.0]];

/// What happens in one step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum PndmStep {
    /// One call, and the history.
    Multistep,
    /// The first step of PLMS, two calls: predict, then step with the mean of both outputs.
    ///
    /// The sigmas agree with those of the [`Step`] when the timesteps are evenly spaced, and differ as diffusers' do when they are not.
    Pair {
        /// Where the prediction ends.
        predicted: f64,
        /// Where the corrected step starts.
        corrected_from: f64,
    },
    /// Classical Runge-Kutta, four calls.
    RungeKutta {
        /// Sigma half-way, where the first two predictions end.
        middle: f64,
        /// What the network is told half-way.
        told: NoiseLevel,
    },
}

impl PndmStep {
    /// Network calls.
    pub(super) fn evaluations(self) -> usize {
        match self {
            PndmStep::Multistep => 1,
            PndmStep::Pair { .. } => 2,
            PndmStep::RungeKutta { .. } => 4,
        }
    }
}

/// Keeps the last outputs of the network (noise or velocity, whichever it predicts) and extrapolates them.
///
/// # Source
/// Liu et al. 2022, arXiv:2202.09778, eq. 9, 12, 13 and algorithm 2; the pair that starts PLMS is CompVis latent-diffusion's.
#[derive(Debug, Clone)]
pub(super) struct Pndm {
    pub(super) prediction: PredictionType,
    pub(super) steps: Vec<PndmStep>,
    /// Newest first.
    pub(super) outputs: Vec<Tensor>,
}

impl Scheduler for Pndm {
    fn step(&mut self, step: Step, latents: &Tensor, denoiser: &mut dyn Denoiser, _: &mut dyn NoiseSource) -> Result<Tensor> {
        let prediction = self.prediction;
        // The network's output at a level, recovered from the denoised latents.
        let mut output = |x: &Tensor, level: NoiseLevel| -> Result<Tensor> {
            let (c_skip, c_out) = prediction.scales(level.sigma);
            let denoised = denoiser.denoise(x, level)?;
            blend(1.0 / c_out, &denoised, -c_skip / c_out, x)
        };
        let (from, to) = (step.from.sigma, step.to.sigma);
        let first = output(latents, step.from)?;
        let kind = self.steps.get(step.index).copied().unwrap_or(PndmStep::Multistep);
        let (start, slope) = match kind {
            PndmStep::Multistep => {
                self.remember(first);
                (from, self.extrapolated()?)
            }
            PndmStep::Pair { predicted, corrected_from } => {
                let x = rescale(&self.transfer(latents, from, predicted, &first)?, predicted, to)?;
                let second = output(&x, step.to)?;
                self.remember(first.clone());
                (corrected_from, ((first + second)? * 0.5)?)
            }
            PndmStep::RungeKutta { middle, told } => {
                let at = |x: Tensor, level: f64| rescale(&x, level, told.sigma);
                let second = output(&at(self.transfer(latents, from, middle, &first)?, middle)?, told)?;
                let third = output(&at(self.transfer(latents, from, told.sigma, &second)?, told.sigma)?, told)?;
                let fourth = output(&self.transfer(latents, from, to, &third)?, step.to)?;
                self.remember(first.clone());
                let outer = blend(1.0 / 6.0, &first, 1.0 / 6.0, &fourth)?;
                let inner = blend(1.0 / 3.0, &second, 1.0 / 3.0, &third)?;
                (from, (outer + inner)?)
            }
        };
        self.transfer(&rescale(latents, from, start)?, start, to, &slope)
    }
}

impl Pndm {
    fn remember(&mut self, output: Tensor) {
        self.outputs.insert(0, output);
        self.outputs.truncate(ADAMS_BASHFORTH.len());
    }

    fn extrapolated(&self) -> Result<Tensor> {
        let weights = ADAMS_BASHFORTH.get(self.outputs.len().saturating_sub(1)).copied().unwrap_or(&[]);
        let mut terms = weights.iter().zip(&self.outputs).map(|(w, o)| o.affine(*w, 0.0));
        let mut sum = terms.next().unwrap_or_else(|| Err(candle_core::Error::Msg("PNDM has no history".into())))?;
        for term in terms {
            sum = (sum + term?)?;
        }
        Ok(sum)
    }

    /// Eq. 9 of the paper in sigma space: along the noise that `output` means at `from`.
    fn transfer(&self, x: &Tensor, from: f64, to: f64, output: &Tensor) -> Result<Tensor> {
        let (c_skip, c_out) = self.prediction.scales(from);
        let denoised = blend(c_skip, x, c_out, output)?;
        blend(to / from, x, 1.0 - to / from, &denoised)
    }
}

/// Reads variance-preserving latents of one level as latents of another, as diffusers does between uneven timesteps.
pub(super) fn rescale(x: &Tensor, from: f64, to: f64) -> Result<Tensor> {
    if from == to {
        return Ok(x.clone());
    }
    Ok(x.affine(((1.0 + to * to) / (1.0 + from * from)).sqrt(), 0.0)?)
}
