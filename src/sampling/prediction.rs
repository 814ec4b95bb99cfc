//! What a network predicts, as two scalars.

use super::sigmas::{by_name, name_of};
use crate::Result;

/// What the network's output means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum PredictionType {
    /// The noise (Ho et al. 2020, arXiv:2006.11239).
    #[default]
    Epsilon,
    /// The velocity `sqrt(ᾱ) · noise − sqrt(1 − ᾱ) · x0` (Salimans & Ho 2022, arXiv:2202.00512).
    VPrediction,
    /// The clean latents.
    Sample,
    /// A flow's velocity `noise − x0`, of latents that are no diffusion's.
    Flow,
}

impl PredictionType {
    /// `(c_skip, c_out)` such that `denoised = c_skip · latents + c_out · output`, with the latents in sigma space.
    ///
    /// # Source
    /// Karras et al. 2022, arXiv:2206.00364, eq. 7 and table 1; for v, arXiv:2202.00512, appendix D.
    pub fn scales(self, sigma: f64) -> (f64, f64) {
        match self {
            PredictionType::Epsilon => (1.0, -sigma),
            PredictionType::VPrediction => (1.0 / (sigma * sigma + 1.0), -sigma / (sigma * sigma + 1.0).sqrt()),
            PredictionType::Sample => (0.0, 1.0),
            PredictionType::Flow => (1.0, -sigma),
        }
    }

    /// The factor that turns latents in sigma space into the unit-variance input that every one of these networks was trained on.
    pub fn input_scale(self, sigma: f64) -> f64 {
        if self == PredictionType::Flow { 1.0 } else { 1.0 / (sigma * sigma + 1.0).sqrt() }
    }

    /// Every type by its name in a `scheduler_config.json`; the aliases follow the names.
    pub const NAMES: &[(&str, PredictionType)] = &[
        ("epsilon", PredictionType::Epsilon),
        ("v_prediction", PredictionType::VPrediction),
        ("sample", PredictionType::Sample),
        ("flow_prediction", PredictionType::Flow),
        ("eps", PredictionType::Epsilon),
        ("v", PredictionType::VPrediction),
    ];

    /// The name in a `scheduler_config.json`.
    pub fn name(self) -> &'static str {
        name_of(Self::NAMES, self)
    }

    /// Reads a name as `--prediction` takes it.
    ///
    /// # Errors
    /// [`crate::Error::Input`] for any other name.
    pub fn from_name(name: &str) -> Result<Self> {
        by_name(Self::NAMES, name)
    }
}
