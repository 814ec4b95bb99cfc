//! The first noise of an image whose seed is varied, or was found at another size.
//!
//! # Source
//! A1111 `modules/rng.py`, `ImageRNG.first` and `slerp`, as lllyasviel/stable-diffusion-webui-forge@dfdcbab6 has them.

use super::{Generator, ImageNoise, Rng};

/// Channels, height and width.
type DrawShape = (usize, usize, usize);

/// Below this mean angle's cosine, noise is blended along the sphere.
const NEARLY_PARALLEL: f64 = 0.9995;

/// Makes of an image's plain noise what its variation and its first size ask for. `values` come from the image's own generator.
pub(super) fn vary(image: &ImageNoise, rng: Rng, values: &mut [f32], shape: DrawShape) {
    let (channels, height, width) = shape;
    let own = image.resized_from.filter(|(rows, columns)| (*rows, *columns) != (height, width) && *rows > 0 && *columns > 0);
    let (rows, columns) = own.unwrap_or((height, width));
    let drawn = |seed: u64| Generator::new(rng, seed).randn(channels * rows * columns);
    let mut noise = if own.is_some() { drawn(image.seed) } else { values.to_vec() };
    if let Some((seed, strength)) = image.variation.filter(|(_, strength)| *strength != 0.0) {
        noise = slerp(strength, &noise, &drawn(seed), (channels, rows, columns));
    }
    if own.is_none() {
        values.copy_from_slice(&noise);
        return;
    }
    // The middle of the one stands in the middle of the other.
    let (down, from_row, tall) = placed(height, rows);
    let (right, from_column, wide) = placed(width, columns);
    for channel in 0..channels {
        for row in 0..tall {
            let from = (channel * rows + from_row + row) * columns + from_column;
            let to = (channel * height + down + row) * width + right;
            if let (Some(to), Some(from)) = (values.get_mut(to..to + wide), noise.get(from..from + wide)) {
                to.copy_from_slice(from);
            }
        }
    }
}

/// Along one side: where the first noise stands, where it is taken from, and how much of it.
fn placed(side: usize, of: usize) -> (usize, usize, usize) {
    // Python's division rounds down, also below 0.
    let shift = (side as i64 - of as i64).div_euclid(2);
    let taken = if shift >= 0 { of as i64 } else { of as i64 + 2 * shift };
    (shift.max(0) as usize, (-shift).max(0) as usize, taken.max(0) as usize)
}

/// Between two noises along the sphere, column by column: norms and products are along the height.
fn slerp(share: f64, low: &[f32], high: &[f32], (channels, height, width): DrawShape) -> Vec<f32> {
    let at = |channel: usize, row: usize, column: usize| (channel * height + row) * width + column;
    let column = |values: &[f32], channel: usize, x: usize| -> Vec<f64> {
        (0..height).map(|row| f64::from(values.get(at(channel, row, x)).copied().unwrap_or(0.0))).collect()
    };
    let norm = |values: &[f64]| values.iter().map(|x| x * x).sum::<f64>().sqrt();
    let mut products = Vec::with_capacity(channels * width);
    for channel in 0..channels {
        for x in 0..width {
            let (a, b) = (column(low, channel, x), column(high, channel, x));
            products.push(a.iter().zip(&b).map(|(a, b)| a * b).sum::<f64>() / (norm(&a) * norm(&b)));
        }
    }
    let mean = products.iter().sum::<f64>() / products.len().max(1) as f64;
    let both = |i: usize, a: f64, b: f64| {
        let of = |values: &[f32]| values.get(i).copied().map_or(0.0, f64::from);
        (a * of(low) + b * of(high)) as f32
    };
    if mean > NEARLY_PARALLEL {
        // The shares stand so in the original.
        return (0..low.len()).map(|i| both(i, share, 1.0 - share)).collect();
    }
    let mut blended = Vec::with_capacity(low.len());
    for i in 0..low.len() {
        let (channel, x) = (i / (height * width), i % width);
        let angle = products.get(channel * width + x).copied().unwrap_or(0.0).clamp(-1.0, 1.0).acos();
        let sine = angle.sin();
        blended.push(both(i, ((1.0 - share) * angle).sin() / sine, (share * angle).sin() / sine));
    }
    blended
}
