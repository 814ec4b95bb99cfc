//! What a network predicts, as two scalars.

/// What the network's output means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum PredictionType {
    /// The noise (Ho et al. 2020, arXiv:2006.11239).
    #[default]
    Epsilon,
    /// The velocity `sqrt(ᾱ) · noise − sqrt(1 − ᾱ) · x0` (Salimans & Ho 2022, arXiv:2202.00512).
    VPrediction,
    /// The clean latents.
    Sample,
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
        }
    }

    /// The factor that turns latents in sigma space into the unit-variance input that every one of these networks was trained on.
    pub fn input_scale(self, sigma: f64) -> f64 {
        1.0 / (sigma * sigma + 1.0).sqrt()
    }

    /// The name in a `scheduler_config.json`.
    pub fn name(self) -> &'static str {
        match self {
            PredictionType::Epsilon => "epsilon",
            PredictionType::VPrediction => "v_prediction",
            PredictionType::Sample => "sample",
        }
    }
}
