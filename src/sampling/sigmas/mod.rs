//! Noise levels: from betas to sigmas, and which of them a run visits.

mod schedules;
mod spacing;
mod table;

pub(super) use schedules::beta_quantile;
pub use spacing::TimestepSpacing;
pub(super) use spacing::spaced;
pub(super) use table::{BetaSchedule, NoiseTable, betas};

use crate::{Error, Result};

/// How sigmas are laid between the noisiest and the cleanest level.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum SigmaSchedule {
    /// The sigmas of the timesteps.
    Discrete,
    /// Karras et al. 2022, arXiv:2206.00364, eq. 5, with rho 7.
    Karras,
    /// Evenly spaced in log sigma.
    Exponential,
    /// Lu et al. 2022, arXiv:2206.00927: even in log-SNR, which is `Exponential` with whole timesteps.
    Lu,
    /// Even timesteps from the last to the first, as k-diffusion has them.
    Normal,
    /// `Exponential` with a power of the ramp, which is 1 wherever it is used.
    Polyexponential,
    /// Even timesteps that leave out the cleanest end (Stability's generative-models).
    SgmUniform,
    /// Every n-th trained sigma from the noisy end (ComfyUI).
    Simple,
    /// Every n-th trained sigma from the clean end (DDIM's).
    DdimUniform,
    /// Timesteps by a beta distribution: Lee et al. 2024, arXiv:2407.12173.
    Beta,
    /// Sabour et al. 2024, arXiv:2404.14507, section 4.2: even in the arctangent of sigma.
    KlOptimal,
    /// Sabour et al. 2024, arXiv:2404.14507: levels found for a family of models, 10 steps and others between them.
    AlignYourSteps,
    /// Chen et al. 2024, arXiv:2405.11326: levels found by the trajectories' geometry, coefficient 1.20.
    Gits,
    /// A linear start and a quadratic end (Genmo's Mochi).
    LinearQuadratic,
    /// The timesteps 999, 899, … of SD Turbo.
    Turbo,
    /// Timesteps along a smooth step (stable-diffusion.cpp).
    Smoothstep,
    /// Align Your Steps' levels as A1111 and Forge have them, in three decimals.
    AlignYourSteps11,
    /// Forge's finer levels of Align Your Steps, of 32 steps.
    AlignYourSteps32,
    /// The timesteps of a model that was distilled at 50 of them (Luo et al. 2023, arXiv:2310.04378).
    Lcm,
    /// Two arctangents around the middle sigma (RES4LYF's, in stable-diffusion.cpp).
    BongTangent,
    /// Log sigmas by a Laplace distribution: Hang et al. 2024, arXiv:2407.03297 (ComfyUI's node, with its defaults).
    Laplace,
    /// The continuous variance-preserving schedule: Song et al. 2020, arXiv:2011.13456 (ComfyUI's node, with its defaults).
    Vp,
}

impl SigmaSchedule {
    /// Every schedule by its name; the aliases follow the names.
    pub const NAMES: &[(&str, SigmaSchedule)] = &[
        ("discrete", SigmaSchedule::Discrete),
        ("karras", SigmaSchedule::Karras),
        ("exponential", SigmaSchedule::Exponential),
        ("lu", SigmaSchedule::Lu),
        ("normal", SigmaSchedule::Normal),
        ("polyexponential", SigmaSchedule::Polyexponential),
        ("sgm_uniform", SigmaSchedule::SgmUniform),
        ("simple", SigmaSchedule::Simple),
        ("ddim_uniform", SigmaSchedule::DdimUniform),
        ("beta", SigmaSchedule::Beta),
        ("kl_optimal", SigmaSchedule::KlOptimal),
        ("align_your_steps", SigmaSchedule::AlignYourSteps),
        ("gits", SigmaSchedule::Gits),
        ("linear_quadratic", SigmaSchedule::LinearQuadratic),
        ("turbo", SigmaSchedule::Turbo),
        ("smoothstep", SigmaSchedule::Smoothstep),
        ("align_your_steps_11", SigmaSchedule::AlignYourSteps11),
        ("align_your_steps_32", SigmaSchedule::AlignYourSteps32),
        ("lcm", SigmaSchedule::Lcm),
        ("bong_tangent", SigmaSchedule::BongTangent),
        ("laplace", SigmaSchedule::Laplace),
        ("vp", SigmaSchedule::Vp),
        ("default", SigmaSchedule::Discrete),
        ("uniform", SigmaSchedule::Normal),
        ("ddim", SigmaSchedule::DdimUniform),
        ("ays", SigmaSchedule::AlignYourSteps),
        ("ays_11", SigmaSchedule::AlignYourSteps11),
        ("ays_32", SigmaSchedule::AlignYourSteps32),
        ("align_your_steps_gits", SigmaSchedule::Gits),
        ("ays_gits", SigmaSchedule::Gits),
        ("exp", SigmaSchedule::Exponential),
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
                _ => between(max.ln(), min.ln(), ramp(i)).exp(),
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
    let folded = |name: &str| name.trim().to_lowercase().replace([' ', '-'], "_");
    names.iter().find(|(known, _)| folded(known) == folded(name)).map(|(_, v)| *v).ok_or_else(|| {
        let all: Vec<&str> = names.iter().map(|(n, _)| *n).collect();
        Error::Input(format!("`{name}` is not available; it can be {}", all.join(", ")))
    })
}
