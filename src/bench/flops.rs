//! How many floating-point operations the networks need, counted from what they are: a multiplication with its addition is two.
//!
//! Only products are counted: convolutions, linear layers and attention. Norms and activations are a thousandth of it.

use crate::spec::{MmditSpec, ModelSpec, UNetLevel, UNetSpec, VaeSpec};

/// The operations of one row of a model's denoiser on latents of `height` × `width`.
pub(super) fn denoiser_row(spec: &ModelSpec, height: usize, width: usize) -> f64 {
    /// Of T5, where nobody says.
    const T5_TOKENS: usize = 256;
    let tokens = spec.text_encoders.first().map_or(77, |encoder| encoder.clip.max_positions);
    match &spec.mmdit {
        Some(mmdit) => mmdit_row(mmdit, height, width, tokens + T5_TOKENS),
        None => unet_row(&spec.unet, height, width, tokens),
    }
}

fn mmdit_row(spec: &MmditSpec, height: usize, width: usize, tokens: usize) -> f64 {
    let (channels, patch) = (spec.width(), spec.patch_size * spec.patch_size);
    let pixels = height * width / patch.max(1);
    let both = pixels + tokens;
    let square = |rows: usize| linear(rows, channels, channels);
    let block = 12.0 * square(1) + 4.0 * square(both) + attention(both, both, channels) + 2.0 * linear(both, channels, 4 * channels);
    let second = 3.0 * square(1) + 4.0 * square(pixels) + attention(pixels, pixels, channels);
    let ends = linear(pixels, spec.in_channels * patch, channels) + linear(pixels, channels, spec.out_channels * patch);
    let blocks = spec.layers as f64 * block + spec.dual_layers.len() as f64 * second;
    blocks + ends + linear(tokens, spec.context_width, channels) + linear(1, spec.pooled_width, channels)
}

/// The operations of one row of the UNet on latents of `height` × `width`, with a text of `tokens`.
fn unet_row(spec: &UNetSpec, height: usize, width: usize, tokens: usize) -> f64 {
    let Some(first) = spec.down.first().map(|level| level.channels) else { return 0.0 };
    let time = 4 * first;
    let (mut height, mut width) = (height, width);
    let mut flops = linear(1, first, time) + linear(1, time, time) + conv(3, height * width, spec.in_channels, first);
    if let Some(text_time) = &spec.text_time {
        flops += linear(1, text_time.projection_input_dim, time) + linear(1, time, time);
    }
    let layer = |level: &UNetLevel, depth: usize, input: usize, pixels: usize| {
        resnet(pixels, input, level.channels, Some(time)) + transformer(spec, pixels, level.channels, depth, tokens)
    };

    let mut channels = first;
    let mut skips = vec![(first, height, width)];
    for level in &spec.down {
        for &depth in &level.depths {
            flops += layer(level, depth, channels, height * width);
            channels = level.channels;
            skips.push((channels, height, width));
        }
        if level.resample {
            (height, width) = (height.div_ceil(2), width.div_ceil(2));
            flops += conv(3, height * width, channels, channels);
            skips.push((channels, height, width));
        }
    }
    if let Some(mid) = &spec.mid {
        let pixels = height * width;
        flops += mid.resnets as f64 * resnet(pixels, channels, channels, Some(time));
        flops += transformer(spec, pixels, channels, mid.depth, tokens);
    }
    for level in &spec.up {
        for &depth in &level.depths {
            let (skip, ..) = skips.pop().unwrap_or_default();
            flops += layer(level, depth, channels + skip, height * width);
            channels = level.channels;
        }
        if level.resample {
            (height, width) = skips.last().map_or((2 * height, 2 * width), |&(_, height, width)| (height, width));
            flops += conv(3, height * width, channels, channels);
        }
    }
    flops + conv(3, height * width, channels, spec.out_channels)
}

/// The operations of decoding one image from latents of `height` × `width`.
pub(super) fn vae_decode(spec: &VaeSpec, height: usize, width: usize) -> f64 {
    let mut pixels = height * width;
    let latents = spec.latent_channels;
    let mut channels = spec.block_out_channels.last().copied().unwrap_or(0);
    let mut flops = conv(3, pixels, latents, channels) + 2.0 * resnet(pixels, channels, channels, None);
    if spec.post_quant_conv {
        flops += linear(pixels, latents, latents);
    }
    if spec.mid_attention {
        flops += 4.0 * linear(pixels, channels, channels) + attention(pixels, pixels, channels);
    }
    let levels = spec.block_out_channels.len();
    for (i, &output) in spec.block_out_channels.iter().rev().enumerate() {
        for _ in 0..=spec.layers_per_block {
            flops += resnet(pixels, channels, output, None);
            channels = output;
        }
        if i + 1 < levels {
            pixels *= 4;
            flops += conv(3, pixels, channels, channels);
        }
    }
    flops + conv(3, pixels, channels, spec.image_channels)
}

fn linear(rows: usize, input: usize, output: usize) -> f64 {
    2.0 * rows as f64 * input as f64 * output as f64
}

fn conv(kernel: usize, pixels: usize, input: usize, output: usize) -> f64 {
    linear(pixels, kernel * kernel * input, output)
}

fn attention(queries: usize, keys: usize, channels: usize) -> f64 {
    // Scores, and the mixture of the values.
    2.0 * linear(queries, channels, keys)
}

fn resnet(pixels: usize, input: usize, output: usize, time: Option<usize>) -> f64 {
    let shortcut = if input == output { 0.0 } else { linear(pixels, input, output) };
    let time = time.map_or(0.0, |width| linear(1, width, output));
    conv(3, pixels, input, output) + conv(3, pixels, output, output) + shortcut + time
}

fn transformer(spec: &UNetSpec, pixels: usize, channels: usize, depth: usize, tokens: usize) -> f64 {
    if depth == 0 {
        return 0.0;
    }
    let square = linear(pixels, channels, channels);
    let to_itself = 4.0 * square + attention(pixels, pixels, channels);
    let to_text = 2.0 * square + 2.0 * linear(tokens, spec.cross_attention_dim, channels) + attention(pixels, tokens, channels);
    let feed_forward = linear(pixels, channels, 8 * channels) + linear(pixels, 4 * channels, channels);
    2.0 * square + depth as f64 * (to_itself + to_text + feed_forward)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_counts_are_those_of_the_reference_measurements() {
        let spec = |name| crate::family::well_known(name).unwrap_or_else(|| unreachable!("{name} is well known"));
        let (sd15, sdxl) = (spec("sd15"), spec("sdxl"));
        let counts = [
            (2.0 * unet_row(&sd15.unet, 64, 64, 77), 1.607e12),
            (vae_decode(&sd15.vae, 64, 64), 2.515e12),
            (unet_row(&sdxl.unet, 128, 128, 77), 6.761e12),
        ];
        for (counted, known) in counts {
            assert!((counted / known - 1.0).abs() < 0.01, "{counted:e} where {known:e} is known");
        }
    }
}
