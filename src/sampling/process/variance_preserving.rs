//! The diffusion of Stable Diffusion 1, 2 and XL, in sigma space.

use super::NoiseProcess;
use crate::sampling::PredictionType;
use crate::sampling::sigmas::NoiseTable;

/// The trained chain `sqrt(ᾱ) · x0 + sqrt(1 − ᾱ) · noise`, divided by `sqrt(ᾱ)`: latents are `x0 + sigma · noise`.
#[derive(Debug, Clone)]
pub struct VariancePreserving {
    table: NoiseTable,
    prediction: PredictionType,
    /// The network is told the nearest trained timestep of a sigma, and no fraction.
    rounds: bool,
}

impl VariancePreserving {
    pub(in crate::sampling) fn new(table: NoiseTable, prediction: PredictionType, rounds: bool) -> Self {
        Self { table, prediction, rounds }
    }
}

impl NoiseProcess for VariancePreserving {
    fn alpha(&self, _: f64) -> f64 {
        1.0
    }

    fn range(&self) -> (f64, f64) {
        (self.table.sigma((self.table.len() - 1) as f64), self.table.sigma(0.0))
    }

    fn sigma(&self, timestep: f64) -> f64 {
        self.table.sigma(timestep)
    }

    fn timestep(&self, sigma: f64) -> f64 {
        if self.rounds { self.table.nearest_timestep(sigma) } else { self.table.timestep(sigma) }
    }

    fn input_scale(&self, sigma: f64) -> f64 {
        self.prediction.input_scale(sigma)
    }

    fn scales(&self, sigma: f64) -> (f64, f64) {
        self.prediction.scales(sigma)
    }
}
