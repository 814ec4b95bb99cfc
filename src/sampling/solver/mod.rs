//! Solvers: how to step from one noise level to the next. One file each; [`super::table`] has a row for every sampler made of them.

pub(super) mod dpm_solver;
pub(super) mod euler;
pub(super) mod heun;
pub(super) mod pndm;

use super::{Denoiser, NoiseLevel, NoiseSource, Step};
use crate::Result;
use candle_core::Tensor;

/// Solves one step. Owns its history; not the loop, the model or the randomness.
pub trait Solver: CloneSolver + Send + Sync + std::fmt::Debug {
    /// The latents at `step.to`, in f32.
    ///
    /// # Errors
    /// Those of the denoiser and of the noise.
    fn step(&mut self, step: &Step, latents: &Tensor, denoiser: &mut dyn Denoiser, noise: &mut dyn NoiseSource) -> Result<Tensor>;

    /// Network calls that a step makes.
    fn evaluations(&self, _: &Step) -> usize {
        1
    }

    /// Whether it reads [`super::Denoised::branches`] beside the guided estimate.
    fn reads_branches(&self) -> bool {
        false
    }

    /// Forgets what was planned for the first `steps` steps of the run; gives the levels of the steps that are left, where leaving some
    /// out changes them.
    fn skip(&mut self, _steps: usize) -> Option<Vec<(NoiseLevel, NoiseLevel)>> {
        None
    }
}

/// A solver can be copied before its first step.
pub trait CloneSolver {
    /// A copy.
    fn boxed(&self) -> Box<dyn Solver>;
}

impl<T: Solver + Clone + 'static> CloneSolver for T {
    fn boxed(&self) -> Box<dyn Solver> {
        Box::new(self.clone())
    }
}

impl Clone for Box<dyn Solver> {
    fn clone(&self) -> Self {
        (**self).boxed()
    }
}

/// Clamps to `[-range, range]` where a configuration asks for it.
fn clip(x: &Tensor, range: Option<f64>) -> Result<Tensor> {
    Ok(match range {
        Some(range) => x.clamp(-range, range)?,
        None => x.clone(),
    })
}

/// Reads variance-preserving latents of one level as latents of another, as diffusers does between uneven timesteps.
pub(super) fn rescale(x: &Tensor, from: f64, to: f64) -> Result<Tensor> {
    if from == to {
        return Ok(x.clone());
    }
    Ok(x.affine(((1.0 + to * to) / (1.0 + from * from)).sqrt(), 0.0)?)
}
