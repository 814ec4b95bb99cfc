//! The trained noise levels, from a model's betas.

/// What a zero-terminal-SNR schedule ends in instead of ᾱ = 0, so that its sigma (4096) stays finite.
const ALPHA_FLOOR: f32 = 1.0 / 16_777_216.0;

/// How the betas grow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) enum BetaSchedule {
    Linear,
    ScaledLinear,
    Cosine,
}

/// The betas of the trained timesteps, rounded to f32 as every training code did.
pub(in super::super) fn betas(schedule: BetaSchedule, start: f64, end: f64, count: usize) -> Vec<f32> {
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
pub(in super::super) struct NoiseTable {
    sigmas: Vec<f64>,
    /// Logarithms between levels are f32 arithmetic, as in ComfyUI, where ties between timesteps are decided by their last bits.
    single_logs: bool,
}

impl NoiseTable {
    /// `betas` holds at least two values.
    pub(in super::super) fn new(betas: &[f32], zero_terminal_snr: bool) -> Self {
        let mut alphas_bar = cumulative_product(betas.iter().map(|b| 1.0 - b));
        if zero_terminal_snr {
            alphas_bar = rescaled_to_zero_snr(&alphas_bar);
            if let Some(last) = alphas_bar.last_mut() {
                *last = ALPHA_FLOOR;
            }
        }
        let sigmas = alphas_bar.iter().map(|a| f64::from(((1.0 - a) / a).sqrt())).collect();
        Self { sigmas, single_logs: false }
    }

    /// ComfyUI's, which is f64 until the end, of betas whose roots, or which themselves, are even; `count` is 2 or more.
    ///
    /// # Source
    /// ComfyUI@a125cd84:comfy/model_sampling.py, `ModelSamplingDiscrete`, and comfy/ldm/modules/diffusionmodules/util.py.
    pub(in super::super) fn comfyui(roots: bool, start: f64, end: f64, count: usize) -> Self {
        let (a, b) = if roots { (start.sqrt(), end.sqrt()) } else { (start, end) };
        let step = (b - a) / (count - 1) as f64;
        let even = |i: usize| if i < count / 2 { a + step * i as f64 } else { b - step * (count - 1 - i) as f64 };
        let mut product = 1.0;
        let sigma = |i: usize| {
            let beta = if roots { even(i).powi(2) } else { even(i) };
            product *= 1.0 - beta;
            f64::from((((1.0 - product) / product).sqrt()) as f32)
        };
        Self { sigmas: (0..count).map(sigma).collect(), single_logs: true }
    }

    /// How many timesteps the network was trained on.
    pub(in super::super) fn len(&self) -> usize {
        self.sigmas.len()
    }

    /// Sigma at a timestep, interpolated between whole ones and held at the ends.
    pub(in super::super) fn sigma(&self, timestep: f64) -> f64 {
        let last = self.sigmas.len() - 1;
        let low = (timestep.max(0.0).floor() as usize).min(last);
        let high = (low + 1).min(last);
        let fraction = if low == last { 0.0 } else { timestep.max(0.0) - low as f64 };
        self.sigmas[low] + fraction * (self.sigmas[high] - self.sigmas[low])
    }

    /// Sigma at a timestep, interpolated in the logarithm of the signal's part (`NoiseScheduleVP` of UniPC's and DPM-Solver's authors).
    pub(in super::super) fn sigma_by_alpha(&self, timestep: f64) -> f64 {
        let last = self.sigmas.len() - 1;
        let low = (timestep.max(0.0).floor() as usize).min(last);
        let log = |i: usize| -(self.sigmas[i.min(last)].powi(2)).ln_1p();
        let fraction = (timestep.max(0.0) - low as f64).clamp(0.0, 1.0);
        (-(log(low) + fraction * (log(low + 1) - log(low)))).exp_m1().sqrt()
    }

    /// The timestep of a sigma, by the same interpolation.
    pub(in super::super) fn timestep_by_alpha(&self, sigma: f64) -> f64 {
        let log = |sigma: f64| -(sigma * sigma).ln_1p();
        let high = self.sigmas.partition_point(|trained| *trained < sigma).clamp(1, self.sigmas.len() - 1);
        let (a, b) = (log(self.sigmas[high - 1]), log(self.sigmas[high]));
        (high - 1) as f64 + ((log(sigma) - a) / (b - a)).clamp(0.0, 1.0)
    }

    /// Sigma at a timestep, interpolated in log sigma (k-diffusion `external.py`, `t_to_sigma`).
    pub(in super::super) fn sigma_by_log(&self, timestep: f64) -> f64 {
        let last = self.sigmas.len() - 1;
        let low = (timestep.max(0.0).floor() as usize).min(last);
        let high = (low + 1).min(last);
        let fraction = (timestep.max(0.0) - low as f64).clamp(0.0, 1.0);
        if self.single_logs {
            let (share, single) = (fraction as f32, |i: usize| self.sigmas[i].ln() as f32);
            return f64::from((f64::from((1.0 - share) * single(low) + share * single(high))).exp() as f32);
        }
        ((1.0 - fraction) * self.sigmas[low].ln() + fraction * self.sigmas[high].ln()).exp()
    }

    /// The timestep of a sigma, interpolated in log sigma (k-diffusion `external.py`, `sigma_to_t`).
    ///
    /// The table's logarithms are f32, as numpy has them: where DPM-Solver cuts the fraction off, that decides between 998 and 999.
    pub(in super::super) fn timestep(&self, sigma: f64) -> f64 {
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

    /// The trained timestep whose log sigma is nearest (ComfyUI `comfy/model_sampling.py`, `ModelSamplingDiscrete.timestep`).
    pub(in super::super) fn nearest_timestep(&self, sigma: f64) -> f64 {
        let log = sigma.ln() as f32;
        let apart = |i: usize| (log - self.sigmas[i].ln() as f32).abs();
        let low = self.timestep(sigma).floor() as usize;
        let high = (low + 1).min(self.sigmas.len() - 1);
        (if apart(high) < apart(low) { high } else { low }) as f64
    }

    /// Timesteps whose `lambda = −ln sigma` is at least `min`: DPM-Solver leaves out the noisiest ones of a cosine schedule.
    pub(in super::super) fn count_above(&self, min_lambda: f64) -> usize {
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
