//! How like two images of one size are.

use ::image::RgbImage;

/// Pixels on either side of a window's middle, and the deviation of its weights.
const RADIUS: usize = 5;
const DEVIATION: f64 = 1.5;

/// The peak signal-to-noise ratio in decibels, over all channels; infinite of equal images. 30 is easily seen, 40 hardly.
pub(crate) fn psnr(a: &RgbImage, b: &RgbImage) -> f64 {
    let squares: f64 = a.as_raw().iter().zip(b.as_raw()).map(|(a, b)| f64::from(a.abs_diff(*b)).powi(2)).sum();
    10.0 * (255f64.powi(2) * a.as_raw().len() as f64 / squares).log10()
}

/// The structural similarity of the lumas, 1 of equal images.
///
/// # Source
/// Wang, Bovik, Sheikh and Simoncelli, "Image Quality Assessment", 2004, equation 13: windows of 11 × 11 pixels, those that lie wholly inside.
pub(crate) fn ssim(a: &RgbImage, b: &RgbImage) -> f64 {
    const SIDE: usize = 2 * RADIUS + 1;
    let (width, height) = (a.width() as usize, a.height() as usize);
    if a.dimensions() != b.dimensions() || width < SIDE || height < SIDE {
        return f64::NAN;
    }
    let luma = |image: &RgbImage| -> Vec<f64> {
        image
            .pixels()
            .map(|pixel| pixel.0.iter().zip([0.299, 0.587, 0.114]).map(|(value, weight)| f64::from(*value) * weight).sum())
            .collect()
    };
    let product = |a: &[f64], b: &[f64]| -> Vec<f64> { a.iter().zip(b).map(|(a, b)| a * b).collect() };
    let weights: [f64; SIDE] = std::array::from_fn(|i| (-(i as f64 - RADIUS as f64).powi(2) / (2.0 * DEVIATION * DEVIATION)).exp());
    let all: f64 = weights.iter().sum();
    let blur = |values: &[f64]| -> Vec<f64> {
        let across: Vec<f64> = values
            .chunks_exact(width)
            .flat_map(|row| row.windows(SIDE).map(|window| window.iter().zip(weights).map(|(x, weight)| x * weight / all).sum::<f64>()))
            .collect();
        let wide = width - SIDE + 1;
        let down = |y: usize, x: usize| (0..SIDE).map(|i| across[(y + i) * wide + x] * weights[i] / all).sum::<f64>();
        (0..height - SIDE + 1).flat_map(|y| (0..wide).map(move |x| (y, x))).map(|(y, x)| down(y, x)).collect()
    };
    let (a, b) = (luma(a), luma(b));
    let (aa, bb, ab) = (blur(&product(&a, &a)), blur(&product(&b, &b)), blur(&product(&a, &b)));
    let (a, b) = (blur(&a), blur(&b));
    let (c1, c2) = ((0.01f64 * 255.0).powi(2), (0.03f64 * 255.0).powi(2));
    let of = |i: usize| {
        let (a, b, aa, bb, ab) = (a[i], b[i], aa[i] - a[i] * a[i], bb[i] - b[i] * b[i], ab[i] - a[i] * b[i]);
        (2.0 * a * b + c1) * (2.0 * ab + c2) / ((a * a + b * b + c1) * (aa + bb + c2))
    };
    (0..a.len()).map(of).sum::<f64>() / a.len() as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use ::image::Rgb;

    /// Two images of formulas, which numpy and SciPy gave 34.382175008210446 and 0.9610243376498703.
    #[test]
    fn likeness_is_what_its_formulas_say() {
        let a = RgbImage::from_fn(24, 20, |x, y| Rgb([x * 9 + y * 3, x * 5 + y * 11, x * x + y].map(|value| (value % 256) as u8)));
        let b = RgbImage::from_fn(24, 20, |x, y| {
            let more = (x * 7 + y * 13) as i32 % 17 - 8;
            Rgb(a.get_pixel(x, y).0.map(|value| (i32::from(value) + more).clamp(0, 255) as u8))
        });
        assert!((psnr(&a, &b) - 34.382_175_008_210_446).abs() < 1e-9, "{}", psnr(&a, &b));
        assert!((ssim(&a, &b) - 0.961_024_337_649_870_3).abs() < 1e-9, "{}", ssim(&a, &b));
        assert!(psnr(&a, &a).is_infinite() && (ssim(&a, &a) - 1.0).abs() < 1e-12);
        assert!(ssim(&RgbImage::new(8, 8), &RgbImage::new(8, 8)).is_nan());
    }
}
