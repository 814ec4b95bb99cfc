//! Noise levels: from betas to sigmas, and which of them a run visits.

use crate::{Error, Result};

/// What a zero-terminal-SNR schedule ends in instead of ᾱ = 0, so that its sigma (4096) stays finite.
const ALPHA_FLOOR: f32 = 1.0 / 16_777_216.0;

/// How the timesteps of a run are spread over the trained ones.
///
/// # Source
/// Lin et al. 2023, arXiv:2305.08891, table 2.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TimestepSpacing {
    /// Multiples of a whole ratio, from the clean end; misses the last trained timestep.
    Leading,
    /// From the first to the last trained timestep.
    Linspace,
    /// Multiples of a ratio from the noisy end.
    Trailing,
}

impl TimestepSpacing {
    /// Every spacing by its name.
    pub const NAMES: &[(&str, TimestepSpacing)] =
        &[("leading", TimestepSpacing::Leading), ("linspace", TimestepSpacing::Linspace), ("trailing", TimestepSpacing::Trailing)];

    /// The name in a `scheduler_config.json`.
    pub fn name(self) -> &'static str {
        name_of(Self::NAMES, self)
    }

    /// Reads a name as `--timestep-spacing` takes it.
    ///
    /// # Errors
    /// [`Error::Input`] for any other name.
    pub fn from_name(name: &str) -> Result<Self> {
        by_name(Self::NAMES, name)
    }
}

/// How sigmas are laid between the noisiest and the cleanest level.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SigmaSchedule {
    /// The sigmas of the timesteps.
    Discrete,
    /// Karras et al. 2022, arXiv:2206.00364, eq. 5, with rho 7.
    Karras,
    /// Evenly spaced in log sigma.
    Exponential,
    /// Lu et al. 2022, arXiv:2206.00927: even in log-SNR, which is `Exponential` with whole timesteps.
    Lu,
}

impl SigmaSchedule {
    /// Every schedule by its name; the aliases follow the names.
    pub const NAMES: &[(&str, SigmaSchedule)] = &[
        ("discrete", SigmaSchedule::Discrete),
        ("karras", SigmaSchedule::Karras),
        ("exponential", SigmaSchedule::Exponential),
        ("lu", SigmaSchedule::Lu),
        ("normal", SigmaSchedule::Discrete),
        ("uniform", SigmaSchedule::Discrete),
    ];

    /// The canonical name.
    pub fn name(self) -> &'static str {
        name_of(Self::NAMES, self)
    }

    /// Reads a name as `--schedule` takes it.
    ///
    /// # Errors
    /// [`Error::Input`] for a schedule that is not here.
    pub fn from_name(name: &str) -> Result<Self> {
        by_name(Self::NAMES, name)
    }

    /// `steps` sigmas from `max` to `min`.
    pub(super) fn sigmas(self, max: f64, min: f64, steps: usize) -> Vec<f64> {
        let ramp = |i: usize| if steps > 1 { i as f64 / (steps - 1) as f64 } else { 0.0 };
        let rho = 7.0;
        let between = |a: f64, b: f64, t: f64| a + t * (b - a);
        (0..steps)
            .map(|i| match self {
                SigmaSchedule::Karras => between(max.powf(1.0 / rho), min.powf(1.0 / rho), ramp(i)).powf(rho),
                // From the f32 logarithms of the table, as in diffusers.
                SigmaSchedule::Lu => between((max as f32).ln().into(), (min as f32).ln().into(), ramp(i)).exp(),
                SigmaSchedule::Exponential | SigmaSchedule::Discrete => between(max.ln(), min.ln(), ramp(i)).exp(),
            })
            .collect()
    }
}

/// The first name of a value.
pub(super) fn name_of<T: Copy + PartialEq>(names: &[(&'static str, T)], value: T) -> &'static str {
    names.iter().find(|(_, v)| *v == value).map_or("", |(n, _)| n)
}

/// The value of a name, which a flag gave.
pub(super) fn by_name<T: Copy>(names: &[(&str, T)], name: &str) -> Result<T> {
    names.iter().find(|(n, _)| n.eq_ignore_ascii_case(name.trim())).map(|(_, v)| *v).ok_or_else(|| {
        let all: Vec<&str> = names.iter().map(|(n, _)| *n).collect();
        Error::Input(format!("`{name}` is not available; it can be {}", all.join(", ")))
    })
}

/// How the betas grow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BetaSchedule {
    Linear,
    ScaledLinear,
    Cosine,
}

/// The betas of the trained timesteps, rounded to f32 as every training code did.
pub(super) fn betas(schedule: BetaSchedule, start: f64, end: f64, count: usize) -> Vec<f32> {
    match schedule {
        BetaSchedule::Linear => linspace(start as f32, end as f32, count),
        BetaSchedule::ScaledLinear => linspace(start.sqrt() as f32, end.sqrt() as f32, count).into_iter().map(|b| b * b).collect(),
        BetaSchedule::Cosine => {
            // Nichol & Dhariwal 2021, arXiv:2102.09672, eq. 17.
            let alpha_bar = |i: usize| ((i as f64 / count as f64 + 0.008) / 1.008 * std::f64::consts::FRAC_PI_2).cos().powi(2);
            (0..count).map(|i| (1.0 - alpha_bar(i + 1) / alpha_bar(i)).min(0.999) as f32).collect()
        }
    }
}

/// torch's linspace: each half counts from its own end.
fn linspace(start: f32, end: f32, count: usize) -> Vec<f32> {
    let step = if count > 1 { (end - start) / (count - 1) as f32 } else { 0.0 };
    (0..count).map(|i| if i < count / 2 { step.mul_add(i as f32, start) } else { (-step).mul_add((count - 1 - i) as f32, end) }).collect()
}

/// The trained noise levels, by whole timestep.
///
/// The arithmetic is f32 where torch's is: `1 − beta` in f32 loses up to 2e-5 of the smallest sigma, and a file's numbers mean that.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct NoiseTable {
    sigmas: Vec<f64>,
}

impl NoiseTable {
    /// `betas` holds at least two values.
    pub(super) fn new(betas: &[f32], zero_terminal_snr: bool) -> Self {
        let mut alphas_bar = cumulative_product(betas.iter().map(|b| 1.0 - b));
        if zero_terminal_snr {
            alphas_bar = rescaled_to_zero_snr(&alphas_bar);
            if let Some(last) = alphas_bar.last_mut() {
                *last = ALPHA_FLOOR;
            }
        }
        let sigmas = alphas_bar.iter().map(|a| f64::from(((1.0 - a) / a).sqrt())).collect();
        Self { sigmas }
    }

    /// How many timesteps the network was trained on.
    pub(super) fn len(&self) -> usize {
        self.sigmas.len()
    }

    /// Sigma at a timestep, interpolated between whole ones and held at the ends.
    pub(super) fn sigma(&self, timestep: f64) -> f64 {
        let last = self.sigmas.len() - 1;
        let low = (timestep.max(0.0).floor() as usize).min(last);
        let high = (low + 1).min(last);
        let fraction = if low == last { 0.0 } else { timestep.max(0.0) - low as f64 };
        self.sigmas[low] + fraction * (self.sigmas[high] - self.sigmas[low])
    }

    /// The timestep of a sigma, interpolated in log sigma (k-diffusion `external.py`, `sigma_to_t`).
    ///
    /// The table's logarithms are f32, as numpy has them: where DPM-Solver cuts the fraction off, that decides between 998 and 999.
    pub(super) fn timestep(&self, sigma: f64) -> f64 {
        let log = sigma.max(1e-10).ln();
        let table_log = |i: usize| f64::from((self.sigmas[i] as f32).ln());
        let (mut low, mut high) = (0, self.sigmas.len() - 1);
        while high - low > 1 {
            let middle = (low + high) / 2;
            if table_log(middle) <= log { low = middle } else { high = middle }
        }
        let (a, b) = (table_log(low), table_log(high));
        low as f64 + ((log - a) / (b - a)).clamp(0.0, 1.0)
    }

    /// Timesteps whose `lambda = −ln sigma` is at least `min`: DPM-Solver leaves out the noisiest ones of a cosine schedule.
    pub(super) fn count_above(&self, min_lambda: f64) -> usize {
        self.sigmas.iter().filter(|s| -s.ln() >= min_lambda).count()
    }
}

fn cumulative_product(factors: impl Iterator<Item = f32>) -> Vec<f32> {
    let mut product = 1.0f64;
    factors
        .map(|f| {
            product *= f64::from(f);
            product as f32
        })
        .collect()
}

/// Shifts and scales `sqrt(ᾱ)` so that it ends in 0 and starts where it did (Lin et al. 2023, arXiv:2305.08891, algorithm 1).
fn rescaled_to_zero_snr(alphas_bar: &[f32]) -> Vec<f32> {
    let roots: Vec<f32> = alphas_bar.iter().map(|a| a.sqrt()).collect();
    let (Some(&first), Some(&last)) = (roots.first(), roots.last()) else { return vec![] };
    let scale = first / (first - last);
    let bars: Vec<f32> = roots.iter().map(|r| ((r - last) * scale).powi(2)).collect();
    // Back through alphas and betas, whose roundings are part of the published tables.
    let alphas = (0..bars.len()).map(|i| if i == 0 { bars[0] } else { bars[i] / bars[i - 1] });
    cumulative_product(alphas.map(|a| 1.0 - (1.0 - a)))
}

/// The timesteps of a run, descending and not rounded, before a solver's own rounding.
///
/// `trained` is the table's length and `last` how many of its timesteps may be used. DPM-Solver spreads `points = steps + 1` and
/// leaves out the cleanest one; the others have `points = steps`. (For 62 of the 1000 step counts diffusers' trailing list is one too
/// long, for want of a last bit, and ends in timestep -1; this one is not.)
pub(super) fn spaced(spacing: TimestepSpacing, trained: usize, last: usize, steps: usize, points: usize, offset: f64) -> Vec<f64> {
    let ascending: Vec<f64> = match spacing {
        TimestepSpacing::Linspace => {
            let end = last.saturating_sub(1) as f64;
            let step = end / points.saturating_sub(1).max(1) as f64;
            (0..points).map(|i| if i + 1 == points && points > 1 { end } else { i as f64 * step }).collect()
        }
        TimestepSpacing::Leading => (0..points).map(|i| (i * (last / points)) as f64 + offset).collect(),
        TimestepSpacing::Trailing => {
            // numpy's arange multiplies by the difference of its first two values, and ties are decided by its last bit.
            let start = last as f64;
            let delta = (start - trained as f64 / steps as f64) - start;
            return (0..steps).map(|i| (start + i as f64 * delta).round_ties_even() - 1.0).collect();
        }
    };
    ascending.into_iter().rev().take(steps).collect()
}
