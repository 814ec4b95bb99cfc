//! RES, multistep: a refined exponential solver of second order.

use super::{Denoiser, NoiseSource, Solver, Step, ancestral, slope, sum};
use crate::Result;
use crate::sampling::plan::{Planner, Schedule};
use candle_core::Tensor;

/// One network call a step.
///
/// # Source
/// Zhang et al. 2023, arXiv:2308.02157, algorithm 1 in its multistep form; with noise as Euler ancestral adds it and CFG++ as ComfyUI
/// `comfy/k_diffusion/sampling.py`, `res_multistep`, has them.
#[derive(Debug, Clone)]
struct ResMultistep {
    eta: f64,
    s_noise: f64,
    cfg_pp: bool,
    last: Option<Earlier>,
}

/// The step before.
#[derive(Debug, Clone)]
struct Earlier {
    from: f64,
    /// Where it went before its noise was added.
    down: f64,
    estimate: Tensor,
}

/// Plans a run.
pub(in crate::sampling) fn plan(planner: &Planner<'_>) -> Result<Schedule> {
    let (eta, s_noise, cfg_pp) = (planner.eta(), planner.option("s_noise"), planner.sampler.row().unguided);
    planner.sigma_space(Box::new(ResMultistep { eta, s_noise, cfg_pp, last: None }))
}

impl Solver for ResMultistep {
    fn step(&mut self, step: &Step, latents: &Tensor, denoiser: &mut dyn Denoiser, noise: &mut dyn NoiseSource) -> Result<Tensor> {
        let (from, to) = (step.from.sigma, step.to.sigma);
        let estimate = denoiser.denoise(latents, step.from)?;
        let (down, up) = ancestral(from, to, self.eta);
        let along = if self.cfg_pp { estimate.unguided() } else { &estimate.guided };
        let mut next = match self.last.as_ref().filter(|_| down > 0.0) {
            None => sum(1.0, &estimate.guided, &[(down, &slope(latents, along, from)?)])?,
            Some(last) => {
                let h = (from / down).ln();
                let c2 = (last.down / last.from).ln() / h;
                let phi1 = (-h).exp_m1() / -h;
                let phi2 = (phi1 - 1.0) / -h;
                let b2 = if c2 == 0.0 { 0.0 } else { phi2 / c2 };
                let b1 = phi1 - b2;
                let mut x = latents.clone();
                if self.cfg_pp {
                    x = sum(1.0, &x, &[(1.0, &estimate.guided), (-1.0, along)])?;
                }
                sum((-h).exp(), &x, &[(h * b1, along), (h * b2, &last.estimate)])?
            }
        };
        if to > 0.0 && self.eta > 0.0 {
            next = sum(1.0, &next, &[(self.s_noise * up, &noise.fresh(latents)?)])?;
        }
        self.last = Some(Earlier { from, down, estimate: along.clone() });
        Ok(next)
    }
}
