//! An IP-Adapter: an image becomes tokens beside the text's, to which every cross-attention attends with keys and values of its own.

use super::Scope;
use super::clip_vision_model::ClipVisionOutput;
use crate::Result;
use crate::ops::{Epilogue, LayerNorm, Linear, attention, gelu, on_workers};
use crate::spec::{ImageProjectionSpec, IpAdapterSpec};
use candle_core::{D, Tensor};

/// Channels of one head of the perceiver.
const HEAD: usize = 64;
/// Epsilon of all norms.
const NORM_EPS: f64 = 1e-5;

/// One layer of the perceiver.
#[derive(Debug)]
struct PerceiverLayer {
    norm_image: LayerNorm,
    norm_latents: LayerNorm,
    to_q: Linear,
    to_kv: Linear,
    to_out: Linear,
    norm_ff: LayerNorm,
    ff_in: Linear,
    ff_out: Linear,
}

impl PerceiverLayer {
    fn load(scope: &Scope<'_>, width: usize, inner: usize, wide: usize) -> Result<Self> {
        let (attention, feed_forward) = (scope.at(0), scope.at(1));
        Ok(Self {
            norm_image: attention.at("norm1").layer_norm(width, NORM_EPS)?,
            norm_latents: attention.at("norm2").layer_norm(width, NORM_EPS)?,
            to_q: attention.at("to_q").linear_without_bias(width, inner)?,
            to_kv: attention.at("to_kv").linear_without_bias(width, 2 * inner)?,
            to_out: attention.at("to_out").linear_without_bias(inner, width)?,
            norm_ff: feed_forward.at(0).layer_norm(width, NORM_EPS)?,
            ff_in: feed_forward.at(1).linear_without_bias(width, wide)?,
            ff_out: feed_forward.at(3).linear_without_bias(wide, width)?,
        })
    }

    fn forward(&self, image: &Tensor, latents: &Tensor) -> Result<Tensor> {
        let residual =
            |x: &Tensor, layer: &Linear, by: &Tensor| layer.forward_with(by, Epilogue { residual: Some(x), ..Epilogue::default() });
        let normed = self.norm_latents.forward(latents)?;
        let seen = Tensor::cat(&[&self.norm_image.forward(image)?, &normed], 1)?;
        let (q, kv) = (self.to_q.forward(&normed)?, self.to_kv.forward(&seen)?);
        let inner = q.dim(D::Minus1)?;
        let half = |at: usize| kv.narrow(D::Minus1, at, inner)?.contiguous();
        let mixed = attention(&q, &half(0)?, &half(inner)?, inner / HEAD, false)?;
        let latents = residual(latents, &self.to_out, &mixed)?;
        let hidden = gelu(&self.ff_in.forward(&self.norm_ff.forward(&latents)?)?)?;
        Ok(residual(&latents, &self.ff_out, &hidden)?)
    }
}

#[derive(Debug)]
enum ImageProjection {
    Linear { proj: Linear, norm: LayerNorm },
    Perceiver { latents: Tensor, proj_in: Linear, layers: Vec<PerceiverLayer>, proj_out: Linear, norm_out: LayerNorm },
}

/// The keys and values of an image at one place in the UNet, `(1, tokens, channels)` each.
#[derive(Debug, Clone)]
pub struct ImageKeys {
    /// The transformer block's name.
    pub site: String,
    /// Its keys.
    pub key: Tensor,
    /// Its values.
    pub value: Tensor,
}

/// Makes keys and values of an image.
///
/// # Source
/// Ye et al. 2023, arXiv:2308.06721, section 3.2; tencent-ailab/IP-Adapter@62e4af9:ip_adapter/resampler.py
#[derive(Debug)]
pub struct IpAdapter {
    spec: IpAdapterSpec,
    projection: ImageProjection,
    /// `to_k` and `to_v` of each site.
    sites: Vec<(Linear, Linear)>,
}

impl IpAdapter {
    /// Reads the weights that `spec` calls for.
    ///
    /// # Errors
    /// A tensor is missing or has another shape.
    pub fn load(root: &Scope<'_>, spec: &IpAdapterSpec) -> Result<Self> {
        let scope = root.at("image_proj");
        let projection = match spec.projection {
            ImageProjectionSpec::Linear => ImageProjection::Linear {
                proj: scope.at("proj").linear(spec.input, spec.tokens * spec.width)?,
                norm: scope.at("norm").layer_norm(spec.width, NORM_EPS)?,
            },
            ImageProjectionSpec::Perceiver { width, layers, inner, wide } => ImageProjection::Perceiver {
                latents: scope.tensor("latents", &[1, spec.tokens, width])?,
                proj_in: scope.at("proj_in").linear(spec.input, width)?,
                layers: (0..layers).map(|i| PerceiverLayer::load(&scope.at("layers").at(i), width, inner, wide)).collect::<Result<_>>()?,
                proj_out: scope.at("proj_out").linear(width, spec.width)?,
                norm_out: scope.at("norm_out").layer_norm(spec.width, NORM_EPS)?,
            },
        };
        let site = |(i, (_, channels)): (usize, &(String, usize))| {
            // Even numbers are self-attentions, which the adapter leaves alone.
            let scope = root.at("ip_adapter").at(2 * i + 1);
            let linear = |name: &str| scope.at(name).linear_without_bias(spec.width, *channels);
            Ok((linear("to_k_ip")?, linear("to_v_ip")?))
        };
        Ok(Self { projection, sites: spec.sites.iter().enumerate().map(site).collect::<Result<_>>()?, spec: spec.clone() })
    }

    /// What stands for no image, of what the image encoder says of a picture that is all zeros once it is normalised.
    ///
    /// # Errors
    /// The device failed.
    pub fn nothing(&self, zeros: &ClipVisionOutput) -> Result<ClipVisionOutput> {
        Ok(ClipVisionOutput { penultimate: zeros.penultimate.clone(), projected: zeros.projected.zeros_like()? })
    }

    /// The keys and values of an image at all sites.
    ///
    /// # Errors
    /// It comes from an image encoder of another width, or the device failed.
    pub fn keys(&self, image: &ClipVisionOutput) -> Result<Vec<ImageKeys>> {
        on_workers(image.projected.device(), || {
            let tokens = self.tokens(image)?;
            let at = |((site, _), (to_k, to_v)): (&(String, usize), &(Linear, Linear))| {
                Ok(ImageKeys { site: site.clone(), key: to_k.forward(&tokens)?, value: to_v.forward(&tokens)? })
            };
            self.spec.sites.iter().zip(&self.sites).map(at).collect()
        })
    }

    /// The tokens that an image becomes, `(1, tokens, width)`.
    ///
    /// # Errors
    /// It comes from an image encoder of another width, or the device failed.
    pub fn tokens(&self, image: &ClipVisionOutput) -> Result<Tensor> {
        match &self.projection {
            ImageProjection::Linear { proj, norm } => {
                let tokens = proj.forward(&image.projected)?.reshape((1, self.spec.tokens, self.spec.width))?;
                Ok(norm.forward(&tokens)?)
            }
            ImageProjection::Perceiver { latents, proj_in, layers, proj_out, norm_out } => {
                let image = proj_in.forward(&image.penultimate)?;
                let seen = layers.iter().try_fold(latents.clone(), |latents, layer| layer.forward(&image, &latents))?;
                Ok(norm_out.forward(&proj_out.forward(&seen)?)?)
            }
        }
    }
}
