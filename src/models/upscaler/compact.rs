//! SRVGGNetCompact: convolutions one after the other on the small image, and pixels out of the last one's channels.

use super::{CHANNELS, Loaded, UpscalerNetwork, count, length, refused, shape, shuffle_factor};
use crate::Result;
use crate::models::Scope;
use crate::ops::{Conv2d, PRelu, Padding, pixel_shuffle, upsample_nearest};
use candle_core::Tensor;

/// # Source
/// xinntao/Real-ESRGAN, realesrgan/archs/srvgg_arch.py
#[derive(Debug)]
struct Compact {
    body: Vec<(Conv2d, PRelu)>,
    last: Conv2d,
    scale: usize,
}

pub(super) fn load(root: &Scope<'_>) -> Result<Option<Loaded>> {
    let body = root.at("body");
    let weight = |n: usize| shape(&body, &format!("{n}.weight"));
    let (Some(first), Some(1)) = (weight(0), weight(1).map(|slopes| slopes.len())) else { return Ok(None) };
    let [filters, CHANNELS, 3, 3] = *first.as_slice() else {
        return Err(refused(format!("its first convolution has the shape {first:?}, and is not one for colour images")));
    };
    // Convolutions and slopes in turn; the last convolution has none after it.
    let layers = count(0, |n| weight(2 * n + 1).is_some());
    let given = length(&body, &format!("{}.weight", 2 * layers)).unwrap_or(0);
    let scale = shuffle_factor(given, CHANNELS)
        .ok_or_else(|| refused(format!("its last convolution gives {given} channels, which are no colour image's pixels")))?;
    let layer = |n: usize| {
        let conv = body.at(2 * n).conv3x3(if n == 0 { CHANNELS } else { filters }, filters, 1, Padding::same(1))?;
        Ok((conv, PRelu::new(body.at(2 * n + 1).tensor("weight", &[filters])?)?))
    };
    let network = Compact {
        body: (0..layers).map(layer).collect::<Result<_>>()?,
        last: body.at(2 * layers).conv3x3(filters, given, 1, Padding::same(1))?,
        scale,
    };
    Ok(Some(Loaded { network: Box::new(network), scale, multiple: 1 }))
}

impl UpscalerNetwork for Compact {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let mut y = x.clone();
        for (conv, slopes) in &self.body {
            y = slopes.forward(&conv.forward(&y)?)?;
        }
        // What it learnt is the difference from the enlarged pixels.
        Ok((pixel_shuffle(&self.last.forward(&y)?, self.scale)? + upsample_nearest(x, self.scale)?)?)
    }
}
