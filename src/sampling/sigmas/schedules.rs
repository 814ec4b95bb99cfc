//! The schedules that other tools lay over the trained noise levels, each as the tool does that it is known from.

use super::{NoiseTable, SigmaSchedule};
use crate::{Error, Result};

/// Align Your Steps' levels, as ComfyUI's node has them: Stable Diffusion 1's, then SDXL's.
const ALIGN_YOUR_STEPS: [[f64; 11]; 2] = [
    [
        14.6146412293,
        6.4745760956,
        3.8636745985,
        2.6946151520,
        1.8841921177,
        1.3943805092,
        0.9642583904,
        0.6523686016,
        0.3977456272,
        0.1515232662,
        0.0291671582,
    ],
    [
        14.6146412293,
        6.3184485287,
        3.7681790315,
        2.1811480769,
        1.3405244945,
        0.8620721141,
        0.5550693289,
        0.3798540708,
        0.2332364134,
        0.1114188177,
        0.0291671582,
    ],
];

/// GITS' levels for 2 to 20 steps (coefficient 1.20), as stable-diffusion.cpp's `gits_noise.h` and ComfyUI's node have them.
#[rustfmt::skip]
const GITS: &[&[f64]] = &[
    &[14.61464119, 0.803307, 0.02916753],
    &[14.61464119, 1.56271636, 0.52423614, 0.02916753],
    &[14.61464119, 2.36326075, 0.92192322, 0.36617002, 0.02916753],
    &[14.61464119, 2.84484982, 1.24153244, 0.59516323, 0.25053367, 0.02916753],
    &[14.61464119, 5.85520077, 2.05039096, 0.95350921, 0.45573691, 0.17026083, 0.02916753],
    &[14.61464119, 5.85520077, 2.45070267, 1.24153244, 0.64427125, 0.29807833, 0.09824532, 0.02916753],
    &[14.61464119, 5.85520077, 2.45070267, 1.36964464, 0.803307, 0.45573691, 0.25053367, 0.09824532, 0.02916753],
    &[14.61464119, 5.85520077, 2.84484982, 1.61558151, 0.95350921, 0.59516323, 0.36617002, 0.19894916, 0.09824532, 0.02916753],
    &[14.61464119, 5.85520077, 2.84484982, 1.67050016, 1.08895338, 0.74807048, 0.50118381, 0.32104823, 0.19894916, 0.09824532, 0.02916753],
    &[14.61464119, 5.85520077, 2.95596409, 1.84880662, 1.24153244, 0.83188516, 0.59516323, 0.41087446, 0.27464288, 0.17026083, 0.09824532, 0.02916753],
    &[14.61464119, 5.85520077, 3.07277966, 1.98035145, 1.36964464, 0.95350921, 0.69515091, 0.50118381, 0.36617002, 0.25053367, 0.17026083, 0.09824532, 0.02916753],
    &[14.61464119, 6.77309084, 3.46139455, 2.36326075, 1.56271636, 1.08895338, 0.803307, 0.59516323, 0.45573691, 0.34370604, 0.25053367, 0.17026083, 0.09824532, 0.02916753],
    &[14.61464119, 6.77309084, 3.46139455, 2.45070267, 1.61558151, 1.162866, 0.86115354, 0.64427125, 0.50118381, 0.38853383, 0.29807833, 0.22545385, 0.17026083, 0.09824532, 0.02916753],
    &[14.61464119, 7.49001646, 4.65472794, 3.07277966, 2.12350607, 1.51179266, 1.08895338, 0.83188516, 0.64427125, 0.50118381, 0.38853383, 0.29807833, 0.22545385, 0.17026083, 0.09824532, 0.02916753],
    &[14.61464119, 7.49001646, 4.65472794, 3.07277966, 2.12350607, 1.51179266, 1.08895338, 0.83188516, 0.64427125, 0.50118381, 0.41087446, 0.32104823, 0.25053367, 0.19894916, 0.13792117, 0.09824532, 0.02916753],
    &[14.61464119, 7.49001646, 4.65472794, 3.07277966, 2.12350607, 1.51179266, 1.08895338, 0.83188516, 0.64427125, 0.50118381, 0.41087446, 0.34370604, 0.27464288, 0.22545385, 0.17026083, 0.13792117, 0.09824532, 0.02916753],
    &[14.61464119, 7.49001646, 4.65472794, 3.07277966, 2.19988537, 1.61558151, 1.20157266, 0.92192322, 0.72133851, 0.57119018, 0.45573691, 0.36617002, 0.29807833, 0.25053367, 0.19894916, 0.17026083, 0.13792117, 0.09824532, 0.02916753],
    &[14.61464119, 7.49001646, 4.65472794, 3.07277966, 2.19988537, 1.61558151, 1.24153244, 0.95350921, 0.74807048, 0.59516323, 0.4783645, 0.38853383, 0.32104823, 0.27464288, 0.22545385, 0.19894916, 0.17026083, 0.13792117, 0.09824532, 0.02916753],
    &[14.61464119, 7.49001646, 4.65472794, 3.07277966, 2.19988537, 1.61558151, 1.24153244, 0.95350921, 0.74807048, 0.59516323, 0.50118381, 0.41087446, 0.34370604, 0.29807833, 0.25053367, 0.22545385, 0.19894916, 0.17026083, 0.13792117, 0.09824532, 0.02916753],
];

impl SigmaSchedule {
    /// The sigmas of a run and the 0 that ends them; `None` for the schedules that each sampler lays by its own rules.
    ///
    /// Some schedules have fewer steps than were asked for, where there are not as many different levels.
    pub(in super::super) fn over_table(self, table: &NoiseTable, steps: usize, is_sdxl: bool, always: bool) -> Result<Option<Vec<f64>>> {
        let last = (table.len() - 1) as f64;
        let (least, most) = (table.sigma(0.0), table.sigma(last));
        let share = |i: usize, of: usize| if of == 0 { 0.0 } else { i as f64 / of as f64 };
        let mut sigmas: Vec<f64> = match self {
            SigmaSchedule::Karras | SigmaSchedule::Exponential if always => self.sigmas(most, least, steps),
            SigmaSchedule::Discrete | SigmaSchedule::Karras | SigmaSchedule::Exponential | SigmaSchedule::Lu => return Ok(None),
            SigmaSchedule::Polyexponential => SigmaSchedule::Exponential.sigmas(most, least, steps),
            SigmaSchedule::Normal => (0..steps).map(|i| table.sigma_by_log(last * (1.0 - share(i, steps - 1)))).collect(),
            SigmaSchedule::SgmUniform => (0..steps).map(|i| table.sigma_by_log(last * (1.0 - share(i, steps)))).collect(),
            SigmaSchedule::Simple => {
                let every = table.len() as f64 / steps as f64;
                (0..steps).map(|i| table.sigma(last - (i as f64 * every).trunc())).collect()
            }
            SigmaSchedule::DdimUniform => {
                let every = (table.len() / steps).max(1);
                let mut sigmas: Vec<f64> = (1..table.len()).step_by(every).map(|t| table.sigma(t as f64)).collect();
                sigmas.reverse();
                sigmas
            }
            SigmaSchedule::Beta => {
                let at = |i: usize| (beta_quantile(1.0 - share(i, steps), 0.6, 0.6) * last).round_ties_even();
                let mut timesteps: Vec<f64> = (0..steps).map(at).collect();
                timesteps.dedup();
                timesteps.into_iter().map(|t| table.sigma(t)).collect()
            }
            SigmaSchedule::KlOptimal => {
                let at = |i: usize| (share(i, steps - 1) * least.atan() + (1.0 - share(i, steps - 1)) * most.atan()).tan();
                (0..steps).map(at).collect()
            }
            SigmaSchedule::AlignYourSteps => {
                let mut sigmas = by_log(&ALIGN_YOUR_STEPS[usize::from(is_sdxl)], steps + 1);
                sigmas.pop();
                sigmas
            }
            SigmaSchedule::Gits => {
                let mut sigmas = match steps {
                    1 => return Err(Error::Input("`schedule` gits takes 2 steps or more".into())),
                    _ => GITS.get(steps - 2).map_or_else(|| by_log(GITS[GITS.len() - 1], steps + 1), |row| row.to_vec()),
                };
                sigmas.pop();
                sigmas
            }
            SigmaSchedule::LinearQuadratic => linear_quadratic(steps).into_iter().map(|share| share * most).collect(),
            SigmaSchedule::Turbo => {
                if steps > 10 {
                    return Err(Error::Input(format!("`schedule` turbo takes 1 to 10 steps, not {steps}")));
                }
                (0..steps).map(|i| table.sigma(last - 100.0 * i as f64)).collect()
            }
            SigmaSchedule::Smoothstep => {
                let smooth = |x: f64| x * x * (3.0 - 2.0 * x);
                (0..steps).map(|i| table.sigma_by_log((smooth(1.0 - share(i, steps)) * last).round_ties_even())).collect()
            }
        };
        sigmas.push(0.0);
        Ok(Some(sigmas))
    }
}

/// `count` levels between falling ones, even in their number and in log sigma.
fn by_log(levels: &[f64], count: usize) -> Vec<f64> {
    if count == levels.len() {
        return levels.to_vec();
    }
    let at = |i: usize| {
        let place = i as f64 * (levels.len() - 1) as f64 / (count - 1) as f64;
        let low = (place.floor() as usize).min(levels.len() - 2);
        let fraction = place - low as f64;
        ((1.0 - fraction) * levels[low].ln() + fraction * levels[low + 1].ln()).exp()
    };
    (0..count).map(at).collect()
}

/// Shares of the largest sigma: half of the steps go down to 0.975 evenly, the others quadratically to 0.
fn linear_quadratic(steps: usize) -> Vec<f64> {
    const THRESHOLD: f64 = 0.025;
    if steps == 1 {
        return vec![1.0];
    }
    let linear = (steps / 2) as f64;
    let rest = steps as f64 - linear;
    let curve = (linear - THRESHOLD * steps as f64) / (linear * rest * rest);
    let slope = THRESHOLD / linear - 2.0 * (linear - THRESHOLD * steps as f64) / (rest * rest);
    let noise = |i: f64| if i < linear { i * THRESHOLD / linear } else { curve * i * i + slope * i + curve * linear * linear };
    (0..steps).map(|i| 1.0 - noise(i as f64)).collect()
}

/// The value below which a beta-distributed number lies with probability `p`.
fn beta_quantile(p: f64, a: f64, b: f64) -> f64 {
    if p <= 0.0 || p >= 1.0 {
        return p.clamp(0.0, 1.0);
    }
    let (mut low, mut high) = (0.0, 1.0);
    for _ in 0..80 {
        let middle = (low + high) / 2.0;
        if beta_below(middle, a, b) < p { low = middle } else { high = middle }
    }
    // Ties among timesteps are decided by this number's last bits.
    ((low + high) / 2.0 * 1e12).round() / 1e12
}

/// The regularised incomplete beta function, by its continued fraction (Abramowitz & Stegun, 26.5.8).
fn beta_below(x: f64, a: f64, b: f64) -> f64 {
    if x > (a + 1.0) / (a + b + 2.0) {
        return 1.0 - beta_below(1.0 - x, b, a);
    }
    let fraction = |x: f64, a: f64, b: f64| {
        let mut value = 1.0;
        for m in (1..200).rev() {
            let m = f64::from(m);
            let even = m * (b - m) * x / ((a + 2.0 * m - 1.0) * (a + 2.0 * m));
            let odd = -(a + m) * (a + b + m) * x / ((a + 2.0 * m) * (a + 2.0 * m + 1.0));
            value = 1.0 + even / (1.0 + odd / value);
        }
        x.powf(a) * (1.0 - x).powf(b) / a / (1.0 + -(a + b) * x / (a + 1.0) / value)
    };
    // Both halves of the whole, whose sum is the beta function itself.
    let whole = fraction(0.5, a, b) + fraction(0.5, b, a);
    fraction(x, a, b) / whole
}
