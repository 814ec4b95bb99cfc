//! The schedules that other tools lay over the trained noise levels, each as the tool does that it is known from.

use super::{NoiseTable, SigmaSchedule};
use crate::sampling::Like;
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

/// Align Your Steps' levels, as A1111 has them: Stable Diffusion 1's, then SDXL's.
const ALIGN_YOUR_STEPS_ROUNDED: [[f64; 11]; 2] = [
    [14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029],
    [14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234, 0.113, 0.029],
];

/// The finer levels that Forge has beside them.
#[rustfmt::skip]
const ALIGN_YOUR_STEPS_32: [[f64; 32]; 2] = [
    [
        14.615, 11.23951352, 8.64363081, 6.64729424, 5.57250862, 4.71648546, 3.99196065, 3.5195609, 3.13490466, 2.79228788, 2.48773628,
        2.21663865, 1.97508351, 1.7793172, 1.61475335, 1.46540953, 1.314849, 1.16642497, 1.03475547, 0.91573744, 0.80748169, 0.71202361,
        0.621739, 0.53065202, 0.4529096, 0.37491455, 0.27461819, 0.2011529, 0.14105873, 0.06682881, 0.03166121, 0.015,
    ],
    [
        14.615, 11.1491618, 8.50522127, 6.48827151, 5.43707402, 4.60398619, 3.89854704, 3.27407457, 2.74396527, 2.29968659, 1.95448514,
        1.67108715, 1.42878152, 1.23181009, 1.06789649, 0.92579443, 0.80290886, 0.69660121, 0.60436903, 0.52852552, 0.46773344, 0.41393379,
        0.36258186, 0.31008517, 0.26518925, 0.22326461, 0.17653877, 0.13959192, 0.10587381, 0.05519369, 0.02877334, 0.015,
    ],
];

/// Forge's levels under GITS' name.
const GITS_OF_FORGE: [[f64; 11]; 2] = [
    [14.615, 4.617, 2.507, 1.236, 0.702, 0.402, 0.240, 0.156, 0.104, 0.094, 0.029],
    [14.615, 4.734, 2.567, 1.529, 0.987, 0.652, 0.418, 0.268, 0.179, 0.127, 0.029],
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
    /// The sigmas of a run and where it ends, which is 0 nearly always; `None` for the schedules that each sampler lays by its own rules.
    ///
    /// Some schedules have fewer steps than were asked for, where there are not as many different levels. Where tools differ, `like` says
    /// whose levels are meant; without it they are those of the tool that a schedule is known from. `always`: also where diffusers'
    /// classes have rules of their own.
    ///
    /// # Source
    /// lllyasviel/stable-diffusion-webui-forge@dfdcbab6:modules/sd_schedulers.py, which has A1111's and Forge's; ComfyUI@a125cd84:
    /// comfy/samplers.py and comfy/k_diffusion/sampling.py; leejet/stable-diffusion.cpp@97d29908:src/runtime/denoiser.hpp.
    pub(in super::super) fn over_table(
        self,
        table: &NoiseTable,
        steps: usize,
        is_sdxl: bool,
        always: bool,
        like: Option<Like>,
    ) -> Result<Option<Vec<f64>>> {
        let a1111 = like == Some(Like::A1111);
        let family = usize::from(is_sdxl);
        let last = (table.len() - 1) as f64;
        let (least, most) = (table.sigma(0.0), table.sigma(last));
        let share = |i: usize, of: usize| if of == 0 { 0.0 } else { i as f64 / of as f64 };
        let mut sigmas: Vec<f64> = match self {
            SigmaSchedule::Karras | SigmaSchedule::Exponential if always => self.sigmas(most, least, steps),
            SigmaSchedule::Discrete if like.is_some_and(|like| like != Like::Diffusers) => {
                return SigmaSchedule::Normal.over_table(table, steps, is_sdxl, always, like);
            }
            SigmaSchedule::Discrete | SigmaSchedule::Karras | SigmaSchedule::Exponential | SigmaSchedule::Lu => return Ok(None),
            SigmaSchedule::Polyexponential => SigmaSchedule::Exponential.sigmas(most, least, steps),
            SigmaSchedule::Normal => (0..steps).map(|i| table.sigma_by_log(last * (1.0 - share(i, steps - 1)))).collect(),
            SigmaSchedule::SgmUniform => (0..steps).map(|i| table.sigma_by_log(last * (1.0 - share(i, steps)))).collect(),
            SigmaSchedule::Simple => {
                let every = table.len() as f64 / steps as f64;
                let at = |i: usize| match like {
                    // Its f32 product falls short of a whole number now and then.
                    Some(Like::SdCpp) => f64::from((i as f32 * every as f32).trunc()),
                    _ => (i as f64 * every).trunc(),
                };
                (0..steps).map(|i| table.sigma(last - at(i))).collect()
            }
            SigmaSchedule::DdimUniform => {
                let every = (table.len() / steps).max(1);
                let mut sigmas: Vec<f64> = (1..table.len()).step_by(every).map(|t| table.sigma(t as f64)).collect();
                sigmas.reverse();
                sigmas
            }
            // Sigmas themselves by the distribution, with both ends.
            SigmaSchedule::Beta if a1111 => {
                (0..steps).map(|i| least + beta_quantile(1.0 - share(i, steps - 1), 0.6, 0.6) * (most - least)).collect()
            }
            SigmaSchedule::Beta => {
                let at = |i: usize| (beta_quantile(1.0 - share(i, steps), 0.6, 0.6) * last).round_ties_even();
                let mut timesteps: Vec<f64> = (0..steps).map(at).collect();
                timesteps.dedup();
                timesteps.into_iter().map(|t| table.sigma(t)).collect()
            }
            SigmaSchedule::KlOptimal if a1111 => {
                // It ends at the smallest sigma and not at 0.
                let at = |i: usize| (share(i, steps) * least.atan() + (1.0 - share(i, steps)) * most.atan()).tan();
                return Ok(Some((0..=steps).map(at).collect()));
            }
            SigmaSchedule::KlOptimal => {
                let at = |i: usize| (share(i, steps - 1) * least.atan() + (1.0 - share(i, steps - 1)) * most.atan()).tan();
                (0..steps).map(at).collect()
            }
            SigmaSchedule::AlignYourSteps if !a1111 => {
                let mut sigmas = by_log(&ALIGN_YOUR_STEPS[family], steps + 1);
                sigmas.pop();
                sigmas
            }
            SigmaSchedule::AlignYourSteps | SigmaSchedule::AlignYourSteps11 => to_the_last(&ALIGN_YOUR_STEPS_ROUNDED[family], steps),
            SigmaSchedule::AlignYourSteps32 => to_the_last(&ALIGN_YOUR_STEPS_32[family], steps),
            SigmaSchedule::Gits if a1111 => to_the_last(&GITS_OF_FORGE[family], steps),
            SigmaSchedule::Gits => {
                let mut sigmas = match steps {
                    1 => return Err(Error::Input("`schedule` gits takes 2 steps or more".into())),
                    _ => GITS.get(steps - 2).map_or_else(|| by_log(GITS[GITS.len() - 1], steps + 1), |row| row.to_vec()),
                };
                sigmas.pop();
                sigmas
            }
            SigmaSchedule::LinearQuadratic => linear_quadratic(steps).into_iter().map(|share| share * most).collect(),
            SigmaSchedule::Turbo if a1111 => {
                let every = table.len() as f64 / steps as f64;
                (1..=steps).rev().map(|i| table.sigma((i as f64 * every - 1.0).round_ties_even().clamp(0.0, last))).collect()
            }
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
            SigmaSchedule::Lcm => {
                const DISTILLED: usize = 50;
                let every = table.len() / DISTILLED;
                let at = |i: usize| match like {
                    // Even over all of them, both ends included; there are fractions between them.
                    Some(Like::A1111) => {
                        let place = (1.0 - share(i, steps - 1)) * (DISTILLED - 1) as f64;
                        let level = |place: f64| table.sigma(((place as usize + 1) * every) as f64 - 1.0).ln();
                        (level(place.floor()) * (1.0 - place.fract()) + level(place.ceil()) * place.fract()).exp()
                    }
                    _ => table.sigma(((DISTILLED - i * DISTILLED / steps) * every) as f64 - 1.0),
                };
                (0..steps).map(at).collect()
            }
            SigmaSchedule::BongTangent => bong_tangent(most, least, steps),
            SigmaSchedule::Laplace => {
                // A node without an end: the last sigma that it gives is where the run ends.
                let at = |i: usize| {
                    let x = share(i, steps - 1);
                    let sign = if x < 0.5 {
                        1.0
                    } else if x > 0.5 {
                        -1.0
                    } else {
                        0.0
                    };
                    (-0.5 * sign * (1.0 - 2.0 * (0.5 - x).abs() + 1e-5).ln()).exp().clamp(0.029_167_5, 14.614_642)
                };
                if steps < 2 {
                    return Err(Error::Input("`schedule` laplace takes 2 steps or more".into()));
                }
                return Ok(Some((0..steps).map(at).collect()));
            }
            SigmaSchedule::Vp => {
                let at = |i: usize| {
                    let t = 1.0 + share(i, steps - 1) * (1e-3 - 1.0);
                    (19.9 * t * t / 2.0 + 0.1 * t).exp_m1().sqrt()
                };
                (0..steps).map(at).collect()
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

/// [`by_log`], where a single level is the last one, as A1111 has it.
fn to_the_last(levels: &[f64], count: usize) -> Vec<f64> {
    if count == 1 { levels.last().copied().into_iter().collect() } else { by_log(levels, count) }
}

/// Two arctangents that meet at the middle sigma.
fn bong_tangent(most: f64, least: f64, steps: usize) -> Vec<f64> {
    const PIVOT: f32 = 0.6;
    const SLOPE: f32 = 0.2;
    let points = steps + 2;
    let pivot = (points as f32 * PIVOT) as usize;
    let slope = f64::from(SLOPE / (points as f32 / 40.0));
    let middle = least + (most - least) / 2.0;
    let part = |count: usize, pivot: f64, start: f64, end: f64| -> Vec<f64> {
        let at = |x: usize| (std::f64::consts::FRAC_2_PI * (-slope * (x as f64 - pivot)).atan() + 1.0) / 2.0;
        let (first, last) = (at(0), at(count.saturating_sub(1)));
        let share = |x: usize| if first == last { 1.0 } else { (at(x) - last) / (first - last) };
        (0..count).map(|x| share(x) * (start - end) + end).collect()
    };
    let mut sigmas = part(pivot, pivot as f64, most, middle);
    sigmas.pop();
    sigmas.extend(part(points - pivot, 0.0, middle, least));
    sigmas.resize(steps, least);
    sigmas
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
pub(in super::super) fn beta_quantile(p: f64, a: f64, b: f64) -> f64 {
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
