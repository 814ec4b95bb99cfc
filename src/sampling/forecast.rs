//! Estimates of some calls are forecast from those before, without the network.

use super::{Branches, Denoised, Denoiser, NoiseLevel, Step};
use crate::Result;
use candle_core::Tensor;

/// Chebyshev polynomials are fitted up to this degree.
const DEGREE: usize = 3;
/// Estimates that the fit looks at.
const KEPT: usize = 6;
/// What is added to the normal equations' diagonal.
const RIDGE: f64 = 1.0;
/// The fit's share of a forecast; the rest is the last estimate and half of its last change.
const SHARE: f64 = 0.4;
/// Calls at the beginning that are made in any case.
const WARM_UP: usize = 4;
/// What the window grows by with every call after the warm-up.
const FLEX: f64 = 0.5;
/// The share of the calls after which all are made.
const STOP: f64 = 0.9;
/// The calls that the polynomials' interval stands for.
const INTERVAL: f64 = 50.0;

/// A denoiser behind which the network is called once in a window that grows; between, the estimate is a ridge fit of Chebyshev polynomials
/// through the last estimates, blended with a half step of their last change.
///
/// Every image is forecast from its own estimates by numbers that depend on the count of calls alone.
///
/// # Source
/// Han et al. 2026, "Spectrum", arXiv:2603.01623, hanjq17/Spectrum@d9923d37:src/utils/basis_utils.py, with the constants for UNets of
/// leejet/stable-diffusion.cpp@1f8c609d:src/runtime/spectrum.hpp.
pub struct Forecast<'a> {
    denoiser: &'a mut dyn Denoiser,
    window: f64,
    flexible: bool,
    stop: usize,
    count: usize,
    skipped: usize,
    known: Vec<(f64, Denoised)>,
}

impl<'a> Forecast<'a> {
    /// For a run of so many `calls`; a window of 0 calls the network always.
    pub fn new(denoiser: &'a mut dyn Denoiser, calls: usize, window: f64) -> Self {
        let stop = (STOP * calls as f64) as usize;
        Self { denoiser, window: window.max(1.0), flexible: window > 0.0, stop, count: 0, skipped: 0, known: Vec::new() }
    }

    fn is_forecast(&self) -> bool {
        let window = (self.window as usize).max(1);
        let within = self.count >= WARM_UP && (self.stop == 0 || self.count < self.stop);
        within && self.known.len() >= 2 && !(self.skipped + 1).is_multiple_of(window)
    }

    /// The sum of what is known by these weights, for the guided estimate and for every branch.
    fn weighted(&self, weights: &[f64]) -> Result<Option<Denoised>> {
        let sum = |of: &dyn Fn(&Denoised) -> Option<Tensor>| -> Result<Option<Tensor>> {
            let mut sum: Option<Tensor> = None;
            for ((_, known), weight) in self.known.iter().zip(weights) {
                let Some(part) = of(known) else { return Ok(None) };
                let part = part.affine(*weight, 0.0)?;
                sum = Some(sum.map_or(Ok(part.clone()), |sum| sum + part)?);
            }
            Ok(sum)
        };
        let Some((_, last)) = self.known.last() else { return Ok(None) };
        let Some(guided) = sum(&|known| Some(known.guided.clone()))? else { return Ok(None) };
        let mut branches = Vec::new();
        for (branch, _) in last.branches.iter() {
            // A branch that was not always there cannot be forecast.
            let Some(tensor) = sum(&|known| known.branches.get(branch).cloned())? else { return Ok(None) };
            branches.push((branch, tensor));
        }
        Ok(Some(Denoised { guided, branches: Branches::new(branches) }))
    }
}

impl Denoiser for Forecast<'_> {
    fn begin_step(&mut self, step: &Step) -> Result<()> {
        self.denoiser.begin_step(step)
    }

    fn denoise(&mut self, latents: &Tensor, level: NoiseLevel) -> Result<Denoised> {
        let place = |count: usize| count as f64 / INTERVAL * 2.0 - 1.0;
        if self.is_forecast() {
            let places: Vec<f64> = self.known.iter().map(|(place, _)| *place).collect();
            if let Some(forecast) = self.weighted(&weights(&places, place(self.count)))? {
                self.skipped += 1;
                self.count += 1;
                self.denoiser.pass_over();
                return Ok(forecast);
            }
        }
        let denoised = self.denoiser.denoise(latents, level)?;
        self.known.push((place(self.count), denoised.clone()));
        if self.known.len() > KEPT {
            self.known.remove(0);
        }
        if self.flexible && self.count >= WARM_UP {
            self.window += FLEX;
        }
        self.skipped = 0;
        self.count += 1;
        Ok(denoised)
    }

    fn pass_over(&mut self) {
        self.denoiser.pass_over();
    }

    fn end_step(&mut self, step: &Step, latents: Tensor) -> Result<Tensor> {
        self.denoiser.end_step(step, latents)
    }
}

/// T0 to T3 at a place.
fn polynomials(place: f64) -> [f64; DEGREE + 1] {
    let mut values = [1.0, place, 0.0, 0.0];
    for i in 2..=DEGREE {
        values[i] = 2.0 * place * values[i - 1] - values[i - 2];
    }
    values
}

/// What each of the estimates at `places` counts in the forecast at `at`; two places at least.
fn weights(places: &[f64], at: f64) -> Vec<f64> {
    const N: usize = DEGREE + 1;
    let rows: Vec<[f64; N]> = places.iter().map(|place| polynomials(*place)).collect();
    // The normal equations, eliminated without pivots: their matrix is positive definite by the ridge.
    let mut matrix = [[0.0; N]; N];
    for (i, line) in matrix.iter_mut().enumerate() {
        for (j, value) in line.iter_mut().enumerate() {
            *value = rows.iter().map(|row| row[i] * row[j]).sum::<f64>() + if i == j { RIDGE } else { 0.0 };
        }
    }
    let mut solution = polynomials(at);
    for i in 0..N {
        let (pivot, of_pivot) = (matrix[i], solution[i]);
        for (line, value) in matrix.iter_mut().zip(&mut solution).skip(i + 1) {
            let factor = line[i] / pivot[i];
            line.iter_mut().zip(pivot).for_each(|(number, above)| *number -= factor * above);
            *value -= factor * of_pivot;
        }
    }
    for i in (0..N).rev() {
        let rest: f64 = (i + 1..N).map(|j| matrix[i][j] * solution[j]).sum();
        solution[i] = (solution[i] - rest) / matrix[i][i];
    }
    let mut weights: Vec<f64> = rows.iter().map(|row| SHARE * row.iter().zip(&solution).map(|(a, b)| a * b).sum::<f64>()).collect();
    // last + ½ (last − the one before)
    let last = weights.len().saturating_sub(1);
    for (at, value) in weights.iter_mut().enumerate() {
        *value += (1.0 - SHARE)
            * if at == last {
                1.5
            } else if at + 1 == last {
                -0.5
            } else {
                0.0
            };
    }
    weights
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    /// Counts its calls, and gives their number.
    #[derive(Default)]
    struct Counter {
        calls: usize,
        passed: usize,
    }

    impl Denoiser for Counter {
        fn denoise(&mut self, latents: &Tensor, _: NoiseLevel) -> Result<Denoised> {
            self.calls += 1;
            Ok(Denoised::plain(latents.ones_like()?.affine((self.calls + self.passed) as f64, 0.0)?))
        }

        fn pass_over(&mut self) {
            self.passed += 1;
        }
    }

    fn run(steps: usize, window: f64) -> (usize, Vec<f32>) {
        let mut counter = Counter::default();
        let latents = Tensor::zeros((1, 1, 1, 1), candle_core::DType::F32, &Device::Cpu).unwrap();
        let mut forecast = Forecast::new(&mut counter, steps, window);
        let one =
            |_| forecast.denoise(&latents, NoiseLevel::new(1.0, 1.0)).unwrap().guided.flatten_all().unwrap().to_vec1::<f32>().unwrap()[0];
        let values = (0..steps).map(one).collect();
        assert_eq!(counter.calls + counter.passed, steps, "every call is made or passed over");
        (counter.calls, values)
    }

    #[test]
    fn half_of_the_calls_are_left_out() {
        // The reference takes 11 of 20 calls and 14 of 30: 1.82 and 2.14 times less work.
        assert_eq!((run(20, 2.0).0, run(30, 2.0).0), (11, 14));
        let (calls, values) = run(20, 0.0);
        assert_eq!((calls, values), (20, (1..=20).map(|i| i as f32).collect()));
    }

    #[test]
    fn weights_are_those_of_the_reference() {
        // numpy: the reference's formula at places of the calls 0 to 3, for the call 4.
        let places: Vec<f64> = (0..4).map(|i| f64::from(i) / 25.0 - 1.0).collect();
        let found = weights(&places, 4.0 / 25.0 - 1.0);
        for (found, wanted) in found.iter().zip(REFERENCE) {
            assert!((found - wanted).abs() < 1e-9, "{found} {wanted}");
        }
    }

    const REFERENCE: [f64; 4] = [0.002565672858, 0.053467081266, -0.201136375608, 1.038977222946];
}
