//! Maps at another size, as torch's `interpolate` makes them: no blur where they become smaller.

use crate::Result;
use candle_core::{Device, Tensor};

/// For every place of an axis the places that it is made of, one list for each neighbour, and their weights.
struct Neighbours(Vec<(Vec<u32>, Vec<f32>)>);

impl Neighbours {
    /// Linear, with the corners in their places (`align_corners=True`).
    fn linear(input: usize, output: usize) -> Self {
        let scale = if output > 1 { (input - 1) as f32 / (output - 1) as f32 } else { 0.0 };
        let of = |i: usize| {
            let place = scale * i as f32;
            let first = (place as usize).min(input - 1);
            (first, place - first as f32)
        };
        let places: Vec<(usize, f32)> = (0..output).map(of).collect();
        let neighbour = |k: usize, weight: fn(f32) -> f32| {
            let at = places.iter().map(|(first, _)| (first + k).min(input - 1) as u32).collect();
            (at, places.iter().map(|(_, rest)| weight(*rest)).collect())
        };
        Self(vec![neighbour(0, |rest| 1.0 - rest), neighbour(1, |rest| rest)])
    }

    /// A cubic with a = -0.75, with the middles of pixels in their places (`align_corners=False`).
    fn cubic(input: usize, output: usize) -> Self {
        const A: f32 = -0.75;
        fn near(x: f32) -> f32 {
            ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0
        }
        fn far(x: f32) -> f32 {
            ((A * x - 5.0 * A) * x + 8.0 * A) * x - 4.0 * A
        }
        const WEIGHTS: [fn(f32) -> f32; 4] = [|rest| far(rest + 1.0), near, |rest| near(1.0 - rest), |rest| far(2.0 - rest)];
        let scale = input as f32 / output as f32;
        let places: Vec<(i64, f32)> = (0..output)
            .map(|i| {
                let place = scale * (i as f32 + 0.5) - 0.5;
                (place.floor() as i64, place - place.floor())
            })
            .collect();
        let neighbour = |(k, weight): (usize, fn(f32) -> f32)| {
            let at = places.iter().map(|(first, _)| (first + k as i64 - 1).clamp(0, input as i64 - 1) as u32).collect();
            (at, places.iter().map(|(_, rest)| weight(*rest)).collect())
        };
        Self(WEIGHTS.into_iter().enumerate().map(neighbour).collect())
    }

    /// The axis `dim` of an image made anew.
    fn apply(&self, x: &Tensor, dim: usize) -> Result<Tensor> {
        let device: &Device = x.device();
        let mut sum: Option<Tensor> = None;
        for (at, weights) in &self.0 {
            let mut shape = [1; 4];
            shape[dim] = weights.len();
            let weights = Tensor::from_slice(weights, &shape[..], device)?.to_dtype(x.dtype())?;
            let part = x.index_select(&Tensor::from_slice(at, at.len(), device)?, dim)?.broadcast_mul(&weights)?;
            sum = Some(match sum {
                None => part,
                Some(sum) => (sum + part)?,
            });
        }
        Ok(sum.unwrap_or_else(|| x.clone()))
    }
}

fn resampled(x: &Tensor, height: usize, width: usize, of: fn(usize, usize) -> Neighbours) -> Result<Tensor> {
    let (_, rows, columns, _) = x.dims4()?;
    if (rows, columns) == (height, width) || rows * columns * height * width == 0 {
        return Ok(x.clone());
    }
    of(rows, height).apply(&of(columns, width).apply(&x.contiguous()?, 2)?, 1)
}

/// `interpolate(mode="bilinear", align_corners=True)`
///
/// # Shapes
/// `(batch, rows, columns, channels)` to `(batch, height, width, channels)`.
pub(super) fn bilinear(x: &Tensor, height: usize, width: usize) -> Result<Tensor> {
    resampled(x, height, width, Neighbours::linear)
}

/// `interpolate(mode="bicubic", align_corners=False)`
///
/// # Shapes
/// `(batch, rows, columns, channels)` to `(batch, height, width, channels)`.
pub(super) fn bicubic(x: &Tensor, height: usize, width: usize) -> Result<Tensor> {
    resampled(x, height, width, Neighbours::cubic)
}
