//! Rectified flow, as Stable Diffusion 3 was trained on it.

use super::NoiseProcess;

/// Latents are `(1 − sigma) · x0 + sigma · noise`, and the network predicts the velocity `noise − x0`.
///
/// # Source
/// Liu et al. 2022, arXiv:2209.03003; Esser et al. 2024, arXiv:2403.03206, eq. 13 and section 5.3.2 (the shift).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Flow {
    /// What a sigma of 1 is told to the network as: 1000.
    pub timesteps: f64,
    /// Moves the trained sigmas towards the noisy end; 1 leaves them evenly spaced.
    pub shift: f64,
}

impl Flow {
    /// A sigma among evenly spaced ones, moved by the shift.
    pub fn shifted(&self, sigma: f64) -> f64 {
        self.shift * sigma / (1.0 + (self.shift - 1.0) * sigma)
    }
}

impl NoiseProcess for Flow {
    fn alpha(&self, sigma: f64) -> f64 {
        1.0 - sigma
    }

    fn range(&self) -> (f64, f64) {
        (1.0, self.shifted(1.0 / self.timesteps))
    }

    fn sigma(&self, timestep: f64) -> f64 {
        timestep / self.timesteps
    }

    fn timestep(&self, sigma: f64) -> f64 {
        sigma * self.timesteps
    }

    fn input_scale(&self, _: f64) -> f64 {
        1.0
    }

    fn scales(&self, sigma: f64) -> (f64, f64) {
        (1.0, -sigma)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{Device, Tensor};

    #[test]
    fn the_velocity_leads_back_to_the_clean_latents() {
        let flow = Flow { timesteps: 1000.0, shift: 3.0 };
        let tensor = |values: &[f64]| Tensor::new(values, &Device::Cpu).unwrap();
        let (clean, noise) = (tensor(&[0.5, -1.0]), tensor(&[2.0, 0.25]));
        for sigma in [1.0, 0.75, 0.1] {
            let noisy = flow.mix(&clean, &noise, sigma).unwrap();
            let velocity = (&noise - &clean).unwrap();
            let back: Vec<f64> = flow.denoised(&noisy, &velocity, sigma).unwrap().to_vec1().unwrap();
            let output: Vec<f64> = flow.output(&noisy, &clean, sigma).unwrap().to_vec1().unwrap();
            for (got, want) in back.iter().chain(&output).zip([0.5, -1.0, 1.5, 1.25]) {
                assert!((got - want).abs() < 1e-12, "{got} {want} at {sigma}");
            }
        }
        assert_eq!((flow.shifted(1.0), flow.shifted(0.5), flow.sigma(750.0), flow.timestep(0.25)), (1.0, 0.75, 0.75, 250.0));
    }
}
