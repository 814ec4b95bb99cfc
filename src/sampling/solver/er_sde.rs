//! ER-SDE: extended reverse-time equations, of up to third order.

use super::{Denoiser, NoiseSource, Solver, Step, sum};
use crate::Result;
use crate::sampling::plan::{Planner, Schedule};
use candle_core::Tensor;

/// One network call a step.
///
/// # Source
/// Cui et al. 2023, arXiv:2309.06169, algorithms 2 to 4, with the noise of its section 4.3 and sums in place of the integrals.
#[derive(Debug, Clone)]
struct ErSde {
    stages: usize,
    s_noise: f64,
    /// `(sigma, estimate, its first difference)`, newest first.
    history: Vec<(f64, Tensor, Option<Tensor>)>,
}

/// Plans a run.
pub(in crate::sampling) fn plan(planner: &Planner<'_>) -> Result<Schedule> {
    let (stages, s_noise) = (planner.option("max_stage") as usize, planner.option("s_noise") * planner.eta());
    planner.sigma_space(Box::new(ErSde { stages, s_noise, history: vec![] }))
}

/// How much noise the reverse equation keeps at a sigma.
fn scale(sigma: f64) -> f64 {
    sigma * (sigma.powf(0.3).exp() + 10.0)
}

impl Solver for ErSde {
    fn step(&mut self, step: &Step, latents: &Tensor, denoiser: &mut dyn Denoiser, noise: &mut dyn NoiseSource) -> Result<Tensor> {
        const POINTS: usize = 200;
        let (from, to) = (step.from.sigma, step.to.sigma);
        let denoised = denoiser.denoise(latents, step.from)?.guided;
        if to == 0.0 {
            return Ok(denoised);
        }
        let r = scale(to) / scale(from);
        let mut next = sum(r, latents, &[(1.0 - r, &denoised)])?;
        let (length, width) = (to - from, (from - to) / POINTS as f64);
        let positions = (0..POINTS).map(|i| to + i as f64 * width);
        let mut difference = None;
        if let Some((earlier, last, _)) = self.history.first().filter(|_| self.stages >= 2) {
            let found = ((&denoised - last)? / (from - earlier))?;
            let integral = positions.clone().map(|at| 1.0 / scale(at)).sum::<f64>() * width;
            next = sum(1.0, &next, &[(length + integral * scale(to), &found)])?;
            if let (Some((_, _, Some(before))), Some((earliest, ..)), true) = (self.history.first(), self.history.get(1), self.stages >= 3)
            {
                let curvature = ((&found - before)? / ((from - earliest) / 2.0))?;
                let integral = positions.map(|at| (at - from) / scale(at)).sum::<f64>() * width;
                next = sum(1.0, &next, &[(length * length / 2.0 + integral * scale(to), &curvature)])?;
            }
            difference = Some(found);
        }
        self.history.insert(0, (from, denoised, difference));
        self.history.truncate(2);
        if self.s_noise > 0.0 {
            let up = (to * to - from * from * r * r).max(0.0).sqrt();
            next = sum(1.0, &next, &[(self.s_noise * up, &noise.fresh(latents)?)])?;
        }
        Ok(next)
    }
}
