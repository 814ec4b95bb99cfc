//! How latents look: a linear map from the channels of latents to a small image.

/// The colour that a linear map gives to the latents at one place.
///
/// It is one row of a matrix for each channel of the latents and a bias, and what comes out is red, green and blue, nominally
/// in [-1, 1]. The latents are as the denoising loop has them, scaled.
#[derive(Debug, Clone, PartialEq)]
pub struct LatentRgb {
    /// Red, green and blue of each channel.
    pub factors: Vec<[f64; 3]>,
    /// Red, green and blue where all channels are 0.
    pub bias: [f64; 3],
}

/// The latent spaces that many models share: the scaling factor that tells them apart, factors and bias.
type LatentRgbRow = (f64, [[f64; 3]; 4], [f64; 3]);

#[rustfmt::skip]
const KNOWN: &[LatentRgbRow] = &[
    // Stable Diffusion 1.x and 2.x.
    (0.18215, [[0.3512, 0.2297, 0.3227], [0.3250, 0.4974, 0.2350], [-0.2829, 0.1762, 0.2721], [-0.2120, -0.2616, -0.7177]],
     [0.0, 0.0, 0.0]),
    // Stable Diffusion XL.
    (0.13025, [[0.3651, 0.4232, 0.4341], [-0.2533, -0.0042, 0.1068], [0.1076, 0.1111, -0.0362], [-0.3165, -0.2492, -0.2188]],
     [0.1084, -0.0175, -0.0011]),
];

impl LatentRgb {
    /// The map of a latent space that many models share.
    ///
    /// # Source
    /// comfyanonymous/ComfyUI@040a3243:comfy/latent_formats.py
    pub fn known(scaling_factor: f64, channels: usize) -> Option<Self> {
        let (_, factors, bias) = KNOWN.iter().find(|(scale, factors, _)| *scale == scaling_factor && factors.len() == channels)?;
        Some(Self { factors: factors.to_vec(), bias: *bias })
    }
}
