//! DDIM, PLMS and UniPC as A1111 runs them: over timesteps of its own, and only down to the first of them.

use super::euler::Euler;
use super::pndm::Pndm;
use super::unipc::UniPc;
use super::{Denoiser, NoiseSource, Solver, Step, slope, sum};
use crate::sampling::NoiseLevel;
use crate::sampling::plan::{Planner, Schedule, level};
use crate::{Error, Result};
use candle_core::Tensor;

/// The steps between A1111's timesteps: 1, 1 + k, … with k as many trained ones as fit.
///
/// # Source
/// A1111 `modules/sd_samplers_timesteps.py`, `get_timesteps`.
fn pairs(planner: &Planner<'_>) -> Result<Vec<(NoiseLevel, NoiseLevel)>> {
    let trained = planner.table.len();
    let every = (trained / planner.steps).max(1);
    let last = trained as i64 - 1;
    let at = |timestep: usize| level(&planner.table, (timestep as i64 + 1).min(last), 0.0);
    let levels: Vec<NoiseLevel> = (0..trained).step_by(every).map(at).rev().collect();
    if levels.len() < 2 {
        return Err(Error::Input(format!("`steps` {} is too few for this sampler of A1111's; it takes 2 or more", planner.steps)));
    }
    Ok(levels.windows(2).map(|pair| (pair[0], pair[1])).collect())
}

/// Plans a run of DDIM.
pub(in crate::sampling) fn plan_ddim(planner: &Planner<'_>) -> Result<Schedule> {
    Ok(planner.assemble(pairs(planner)?, Box::new(Euler::new(planner, planner.eta()))))
}

/// Plans a run of PLMS, whose first step is an improved Euler step between its own ends.
pub(in crate::sampling) fn plan_plms(planner: &Planner<'_>) -> Result<Schedule> {
    let pairs = pairs(planner)?;
    let solver = Pndm::improved_euler_first(planner, &pairs);
    Ok(planner.assemble(pairs, Box::new(solver)))
}

/// Plans a run of UniPC, of third order, over continuous times from the last timestep to the first: even ones, or by the option `skip` 1
/// ("time_quadratic") or 2 ("logSNR").
///
/// # Source
/// A1111 `modules/sd_samplers_timesteps_impl.py`, `unipc`, and `modules/models/diffusion/uni_pc/uni_pc.py`.
pub(in crate::sampling) fn plan_unipc(planner: &Planner<'_>) -> Result<Schedule> {
    let steps = pairs(planner)?.len() + 1;
    let last = (planner.table.len() - 1) as f64;
    let ends = (planner.table.sigma_by_alpha(last), planner.table.sigma_by_alpha(0.0));
    let at = |i: usize| {
        let share = i as f64 / steps as f64;
        let timestep = match planner.option("skip") as usize {
            // "time_quadratic": times from 1 to a thousandth, whose roots are even.
            1 => {
                let first = 1.0 / (last + 1.0);
                ((1.0 - share * (1.0 - first.sqrt())).powi(2) - first) * (last + 1.0)
            }
            // "logSNR".
            2 => planner.table.timestep_by_alpha((ends.0.ln() + share * (ends.1.ln() - ends.0.ln())).exp()),
            _ => last * (1.0 - share),
        };
        NoiseLevel::new(planner.table.sigma_by_alpha(timestep), timestep)
    };
    let order = (planner.option("order") as usize).clamp(1, 3);
    let solver = UniPc::new(order, planner.option("bh") == 2.0, planner.option("lower_order_final") != 0.0);
    Ok(planner.assemble((0..steps).map(|i| (at(i), at(i + 1))).collect(), Box::new(solver)))
}

/// DDIM with CFG++, whose guidance scale is a 12.5th of what is said.
///
/// # Source
/// Chung et al. 2024, arXiv:2406.08070, algorithm 2; A1111 `modules/sd_samplers_timesteps_impl.py`, `ddim_cfgpp`.
#[derive(Debug, Clone, Copy)]
struct DdimCfgPlusPlus;

/// Plans a run of DDIM with CFG++.
pub(in crate::sampling) fn plan_ddim_cfg_pp(planner: &Planner<'_>) -> Result<Schedule> {
    Ok(planner.assemble(pairs(planner)?, Box::new(DdimCfgPlusPlus)))
}

impl Solver for DdimCfgPlusPlus {
    fn step(&mut self, step: &Step, latents: &Tensor, denoiser: &mut dyn Denoiser, _: &mut dyn NoiseSource) -> Result<Tensor> {
        const PART: f64 = 1.0 / 12.5;
        let estimate = denoiser.denoise(latents, step.from)?;
        let unguided = estimate.unguided();
        let clean = sum(1.0 - PART, unguided, &[(PART, &estimate.guided)])?;
        sum(1.0, &clean, &[(step.to.sigma, &slope(latents, unguided, step.from.sigma)?)])
    }
}
