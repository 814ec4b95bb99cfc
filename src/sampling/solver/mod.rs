//! Solvers: how to step from one noise level to the next. One file each; [`super::table`] has a row for every sampler made of them.

pub(super) mod a1111;
pub(super) mod cfg_pp;
pub(super) mod churn;
pub(super) mod deis;
pub(super) mod dpm2;
pub(super) mod dpm_single;
pub(super) mod dpm_singlestep;
pub(super) mod dpm_solver;
pub(super) mod dpmpp_2s;
pub(super) mod dpmpp_sde;
pub(super) mod er_sde;
pub(super) mod euler;
pub(super) mod gradient_estimation;
pub(super) mod heun;
pub(super) mod heunpp2;
pub(super) mod ipndm;
pub(super) mod lcm;
pub(super) mod lms;
pub(super) mod pndm;
pub(super) mod res_multistep;
pub(super) mod restart;
pub(super) mod sa_solver;
pub(super) mod seeds;
pub(super) mod unipc;

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

    /// Nothing happens in a step that ends at the sigma where it starts (rounded timesteps coincide when there are nearly as many steps as
    /// trained levels), and the network is not called for it.
    fn skips_empty_steps(&self) -> bool {
        true
    }

    /// Network calls that a step makes.
    fn evaluations(&self, _: &Step) -> usize {
        1
    }

    /// Sees the steps that it will take, before the first one.
    fn prepare(&mut self, _steps: &[Step]) {}

    /// Diffusers' scheduler counts this solver's two calls of a step apart, and cuts between them: from now on the step `index` is the
    /// first call's alone, and whoever goes on takes it again. False where a step is taken whole.
    fn end_within(&mut self, _index: usize) -> bool {
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

/// The slope of the latents along sigma, `(x − denoised) / sigma`.
fn slope(x: &Tensor, denoised: &Tensor, sigma: f64) -> Result<Tensor> {
    Ok(((x - denoised)? / sigma)?)
}

/// `scale · x + Σ weight · term`; terms without weight are left out.
fn sum(scale: f64, x: &Tensor, terms: &[(f64, &Tensor)]) -> Result<Tensor> {
    let mut sum = if scale == 1.0 { x.clone() } else { x.affine(scale, 0.0)? };
    for (weight, term) in terms.iter().filter(|(weight, _)| *weight != 0.0) {
        sum = (sum + term.affine(*weight, 0.0)?)?;
    }
    Ok(sum)
}

/// The exact solution from one sigma to another where the estimate does not change: `(to / from) · x + (1 − to / from) · denoised`.
fn exponential(x: &Tensor, denoised: &Tensor, from: f64, to: f64) -> Result<Tensor> {
    sum(to / from, x, &[(1.0 - to / from, denoised)])
}

/// `(sigma_down, sigma_up)`: how far to go down so that noise of `sigma_up` brings the latents up to `to`.
fn ancestral(from: f64, to: f64, eta: f64) -> (f64, f64) {
    let up = (eta * to * ((from * from - to * to).max(0.0)).sqrt() / from).min(to);
    ((to * to - up * up).max(0.0).sqrt(), up)
}

/// The polynomial through `nodes` that is 1 at `nodes[j]` and 0 at the others, at `x`.
fn lagrange(nodes: &[f64], j: usize, x: f64) -> f64 {
    let factor = |(k, node): (usize, &f64)| if k == j { 1.0 } else { (x - node) / (nodes[j] - node) };
    nodes.iter().enumerate().map(factor).product()
}

/// The coefficients of the same polynomial, from the constant one up.
fn lagrange_powers(nodes: &[f64], j: usize) -> Vec<f64> {
    let mut powers = vec![1.0];
    for (_, node) in nodes.iter().enumerate().filter(|(k, _)| *k != j) {
        let scale = 1.0 / (nodes[j] - node);
        let mut next = vec![0.0; powers.len() + 1];
        for (i, power) in powers.iter().enumerate() {
            next[i] -= power * node * scale;
            next[i + 1] += power * scale;
        }
        powers = next;
    }
    powers
}

/// The integrals of these polynomials from `a` to `b`, exact for up to six nodes (Gauss and Legendre, three points).
fn lagrange_integrals(nodes: &[f64], a: f64, b: f64) -> Vec<f64> {
    let (middle, half) = ((a + b) / 2.0, (b - a) / 2.0);
    let points = [(-(0.6f64.sqrt()), 5.0 / 9.0), (0.0, 8.0 / 9.0), (0.6f64.sqrt(), 5.0 / 9.0)];
    let integral = |j| points.iter().map(|(at, weight)| half * weight * lagrange(nodes, j, middle + half * at)).sum();
    (0..nodes.len()).map(integral).collect()
}

/// Solves a small linear system, given by rows, with partial pivoting.
fn solve(mut rows: Vec<Vec<f64>>, mut right: Vec<f64>) -> Vec<f64> {
    let n = right.len();
    for i in 0..n {
        let pivot = (i..n).max_by(|a, b| rows[*a][i].abs().total_cmp(&rows[*b][i].abs())).unwrap_or(i);
        rows.swap(i, pivot);
        right.swap(i, pivot);
        for k in i + 1..n {
            let factor = rows[k][i] / rows[i][i];
            let pivot = rows[i].clone();
            for (value, above) in rows[k].iter_mut().zip(&pivot).skip(i) {
                *value -= factor * above;
            }
            right[k] -= factor * right[i];
        }
    }
    for i in (0..n).rev() {
        let known: f64 = (i + 1..n).map(|j| rows[i][j] * right[j]).sum();
        right[i] = (right[i] - known) / rows[i][i];
    }
    right
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
