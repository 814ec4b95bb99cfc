//! Decoding and encoding an image whole, or in tiles that overlap where the memory is too small for it.
//!
//! Tiles are blended over their overlap. The networks' norms and their attention look at all of what they get, so a tiled image is
//! not the whole one to the last bit: brightness may drift a little from tile to tile.

use crate::device;
use crate::models::LatentDistribution;
use crate::ops::{Wrap, wrap_around, wrapped};
use crate::settings::VaeTiling;
use crate::spec::VaeSpec;
use crate::{Error, Result};
use candle_core::{DType, Device, Tensor};

/// A tile's side in latents: 512 pixels where a latent stands for 8.
const TILE: usize = 64;
/// A tile that is smaller than this sees too little of the image.
const SMALLEST: usize = 16;

/// Bytes of decoding up to which a CPU does it whole, however much memory is free: whoever shares the machine wants some of it, and an image
/// of 2048×2048 takes a multiple of all that it took until then.
const MOST_ON_CPU: u64 = 8_000_000_000;

/// Bytes that decoding an image of so many pixels takes: the decoder's last level, with the wider of its two inputs, its output
/// and what lies between.
pub fn decoding_bytes(spec: &VaeSpec, height: usize, width: usize, dtype: DType) -> u64 {
    let widest = spec.block_out_channels.iter().take(2).copied().max().unwrap_or(0);
    (height * width * widest * 4 * dtype.size_in_bytes()) as u64
}

/// Bytes that must be free for it. On a CPU twice as many were measured, with the built-in model in f32 and bf16 from 256x256 to 768x768:
/// memory that was given back is kept in other sizes.
pub(super) fn free_bytes(spec: &VaeSpec, height: usize, width: usize, dtype: DType, device: &Device) -> u64 {
    decoding_bytes(spec, height, width, dtype) * if device.is_cpu() { 2 } else { 1 }
}

/// The same of one tile.
pub(super) fn tile_bytes(spec: &VaeSpec, dtype: DType, device: &Device) -> u64 {
    let side = TILE * spec.factor();
    free_bytes(spec, side, side, dtype, device)
}

/// Decodes latents by `decode`, as the choice and the memory say; `tell` hears of a choice that was made.
pub(super) fn decode(
    spec: &VaeSpec,
    latents: &Tensor,
    (choice, wrap): (VaeTiling, Wrap),
    decode: &dyn Fn(&Tensor) -> Result<Tensor>,
    tell: &mut dyn FnMut(&str),
) -> Result<Tensor> {
    let (_, _, height, width) = latents.dims4()?;
    let factor = spec.factor();
    let bytes = free_bytes(spec, height * factor, width * factor, latents.dtype(), latents.device());
    run(latents, Scales { input: 1, output: factor }, (choice, wrap), bytes, decode, "decode", tell)
}

/// Encodes an image by `encode`, as [`decode`] decodes latents.
pub(super) fn encode(
    spec: &VaeSpec,
    image: &Tensor,
    (choice, wrap): (VaeTiling, Wrap),
    encode: &dyn Fn(&Tensor) -> Result<LatentDistribution>,
    tell: &mut dyn FnMut(&str),
) -> Result<LatentDistribution> {
    let (_, _, height, width) = image.dims4()?;
    // The encoder's first level is as wide as the decoder's last one, with the same layers on it.
    let bytes = free_bytes(spec, height, width, image.dtype(), image.device());
    let both = |image: &Tensor| {
        let LatentDistribution { mean, deviation } = encode(image)?;
        Ok(Tensor::cat(&[&mean.to_dtype(DType::F32)?, &deviation.to_dtype(DType::F32)?], 1)?)
    };
    let both = run(image, Scales { input: spec.factor(), output: 1 }, (choice, wrap), bytes, &both, "encode", tell)?;
    let channels = both.dim(1)? / 2;
    let part = |from: usize| both.narrow(1, from, channels)?.contiguous()?.to_device(image.device());
    Ok(LatentDistribution { mean: part(0)?, deviation: part(channels)? })
}

/// Pixels or latents of the input and of the output for each latent along a side.
#[derive(Debug, Clone, Copy)]
struct Scales {
    input: usize,
    output: usize,
}

fn run(
    x: &Tensor,
    scales: Scales,
    (choice, wrap): (VaeTiling, Wrap),
    bytes: u64,
    work: &dyn Fn(&Tensor) -> Result<Tensor>,
    verb: &str,
    tell: &mut dyn FnMut(&str),
) -> Result<Tensor> {
    let (_, _, height, width) = x.dims4()?;
    let whole = height.max(width) / scales.input;
    let mut tile = match choice {
        VaeTiling::Off => return wrapped(wrap, || work(x)),
        VaeTiling::On => TILE,
        VaeTiling::Auto => {
            let is_short = || device::free_memory(x.device()).is_some_and(|free| bytes > free / 10 * 9);
            // Memory that is kept for what comes may do.
            let release = || device::release(x.device());
            if whole > TILE && x.device().is_cpu() && bytes > 2 * MOST_ON_CPU {
                TILE
            } else if whole > TILE && is_short() && {
                release();
                is_short()
            } {
                tell(&format!("the memory is too small to {verb} the image whole: it is {verb}d in tiles (`vae-tiling`)"));
                TILE
            } else {
                whole
            }
        }
    };
    loop {
        let done = if tile >= whole { wrapped(wrap, || work(x)) } else { tiled_around(x, tile, scales, wrap, work) };
        match done {
            Err(error) if error.is_out_of_memory() && tile > SMALLEST => {
                tile = if tile > TILE { TILE } else { tile / 2 };
                device::release(x.device());
                let pixels = tile * scales.input.max(scales.output);
                tell(&format!("the memory is too small to {verb} so much at once: going on in tiles of {pixels}x{pixels} (`vae-tiling`)"));
            }
            done => return done,
        }
    }
}

/// [`tiled`] of an image that may go on at its other side.
fn tiled_around(x: &Tensor, tile: usize, scales: Scales, wrap: Wrap, work: &dyn Fn(&Tensor) -> Result<Tensor>) -> Result<Tensor> {
    let Scales { input, output } = scales;
    let (_, _, height, width) = x.dims4()?;
    let around = |wraps: bool| if wraps { tile / 4 } else { 0 };
    let (rows, columns) = (around(wrap.y), around(wrap.x));
    let wider = wrap_around(&wrap_around(x, 2, rows * input)?, 3, columns * input)?;
    let done = wrapped(Wrap::default(), || tiled(&wider, tile, scales, work))?;
    Ok(done.narrow(2, rows * output, height / input * output)?.narrow(3, columns * output, width / input * output)?.contiguous()?)
}

/// Where tiles begin along a side: a quarter of each lies over its neighbour, the last ends with the image.
pub(super) fn starts(side: usize, tile: usize) -> Vec<usize> {
    let last = side.saturating_sub(tile);
    let step = (tile - tile / 4).max(1);
    (0..last).step_by(step).chain([last]).collect()
}

/// How much a tile counts along a side, from its first pixel to its last: less towards a neighbour, and next to nothing at its very edge,
/// where it lacks what lies beyond.
pub(super) fn weights(start: usize, side: usize, tile: usize, factor: usize) -> Vec<f32> {
    let length = tile.min(side) * factor;
    let overlap = ((tile / 4) * factor).max(1) as f32;
    let margin = overlap / 4.0;
    let ramp = (overlap - 2.0 * margin).max(1.0);
    let weight = |i: usize| {
        let from_start = if start == 0 { f32::INFINITY } else { i as f32 + 0.5 };
        let from_end = if start + tile >= side { f32::INFINITY } else { (length - i) as f32 - 0.5 };
        ((from_start.min(from_end) - margin) / ramp).clamp(LEAST_WEIGHT, 1.0)
    };
    (0..length).map(weight).collect()
}

/// Where every tile is at its edge, somebody must count.
const LEAST_WEIGHT: f32 = 1e-4;

/// The result from tiles of `tile` latents a side, on the CPU in f32.
fn tiled(x: &Tensor, tile: usize, scales: Scales, work: &dyn Fn(&Tensor) -> Result<Tensor>) -> Result<Tensor> {
    let (batch, _, height, width) = x.dims4()?;
    let Scales { input, output } = scales;
    let (height, width) = (height / input, width / input);
    let (out_height, out_width) = (height * output, width * output);
    let mut sums = Vec::new();
    let mut totals = vec![0f32; out_height * out_width];
    let mut channels = 0;
    for &top in &starts(height, tile) {
        let rows = weights(top, height, tile, output);
        for &left in &starts(width, tile) {
            let columns = weights(left, width, tile, output);
            let part =
                x.narrow(2, top * input, tile.min(height) * input)?.narrow(3, left * input, tile.min(width) * input)?.contiguous()?;
            let done = work(&part)?.to_dtype(DType::F32)?.to_device(&Device::Cpu)?;
            channels = done.dim(1)?;
            if done.dims() != [batch, channels, rows.len(), columns.len()] {
                return Err(Error::Image(format!("a tile became {:?}", done.shape())));
            }
            sums.resize(batch * channels * out_height * out_width, 0f32);
            let values = done.flatten_all()?.to_vec1::<f32>()?;
            for (plane, values) in values.chunks_exact(rows.len() * columns.len()).enumerate() {
                for (y, (row, values)) in rows.iter().zip(values.chunks_exact(columns.len())).enumerate() {
                    let to = (plane * out_height + top * output + y) * out_width + left * output;
                    for (to, (column, value)) in sums[to..].iter_mut().zip(columns.iter().zip(values)) {
                        *to += row * column * value;
                    }
                }
            }
            for (y, row) in rows.iter().enumerate() {
                let to = (top * output + y) * out_width + left * output;
                for (to, column) in totals[to..].iter_mut().zip(&columns) {
                    *to += row * column;
                }
            }
        }
    }
    for plane in sums.chunks_exact_mut(totals.len().max(1)) {
        for (sum, total) in plane.iter_mut().zip(&totals) {
            *sum /= total;
        }
    }
    Ok(Tensor::from_vec(sums, (batch, channels, out_height, out_width), &Device::Cpu)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models::{AutoencoderKLDecoder, AutoencoderKLEncoder, Scope};
    use crate::ops::on_workers;
    use crate::weights::TensorSource;
    use std::cell::{Cell, RefCell};

    fn spec() -> VaeSpec {
        crate::family::well_known("sd15").expect("known").vae
    }

    fn latents(height: usize, width: usize) -> Tensor {
        let values: Vec<f32> = (0..2 * 4 * height * width).map(|i| ((i * 7919) % 1009) as f32 / 500.0 - 1.0).collect();
        Tensor::from_vec(values, (2, 4, height, width), &Device::Cpu).expect("latents")
    }

    /// A decoder that sees one latent at a time: three of the four channels, each as eight by eight pixels.
    fn pointwise(latents: &Tensor) -> Result<Tensor> {
        let (batch, _, height, width) = latents.dims4()?;
        let wide = latents.narrow(1, 0, 3)?.reshape((batch, 3, height, 1, width, 1))?;
        Ok(wide.broadcast_as((batch, 3, height, 8, width, 8))?.reshape((batch, 3, 8 * height, 8 * width))?)
    }

    fn values(x: &Tensor) -> Vec<f32> {
        x.flatten_all().and_then(|x| x.to_vec1()).expect("numbers")
    }

    #[test]
    fn tiles_of_a_local_decoder_are_the_whole_image() -> Result<()> {
        for (height, width, tile) in [(40, 33, 16), (17, 90, 32), (65, 64, 64), (8, 100, 16)] {
            let latents = latents(height, width);
            let (whole, tiled) = (pointwise(&latents)?, tiled(&latents, tile, Scales { input: 1, output: 8 }, &pointwise)?);
            assert_eq!(whole.dims(), tiled.dims());
            let worst = values(&whole).iter().zip(values(&tiled)).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(worst < 1e-5, "{height}x{width} in tiles of {tile}: off by {worst}");
        }
        Ok(())
    }

    #[test]
    fn seams_are_ramps() -> Result<()> {
        // Every tile is generated in its own shade: the image must not jump.
        let shade = Cell::new(0.0);
        let shaded = |latents: &Tensor| {
            shade.set(shade.get() + 1.0);
            Ok((pointwise(latents)?.zeros_like()? + shade.get())?)
        };
        let image = tiled(&latents(16, 100), 16, Scales { input: 1, output: 8 }, &shaded)?;
        let row = values(&image.narrow(0, 0, 1)?.narrow(1, 0, 1)?.narrow(2, 3, 1)?);
        let steepest = row.windows(2).map(|pair| (pair[1] - pair[0]).abs()).fold(0.0, f32::max);
        assert!(steepest <= 1.0 / 12.0 && row.first() < row.last(), "{steepest}");
        Ok(())
    }

    #[test]
    fn what_does_not_fit_is_decoded_in_smaller_tiles() -> Result<()> {
        let sizes = RefCell::new(Vec::new());
        let small = |latents: &Tensor| {
            let side = latents.dim(3)?;
            sizes.borrow_mut().push(side);
            if side > 32 {
                return Err(Error::Tensor(candle_core::Error::Msg("DriverError(CUDA_ERROR_OUT_OF_MEMORY, \"out of memory\")".into())));
            }
            pointwise(latents)
        };
        let mut said = Vec::new();
        let latents = latents(70, 80);
        let image = decode(&spec(), &latents, (VaeTiling::Auto, Wrap::default()), &small, &mut |line| said.push(line.to_owned()))?;
        assert_eq!(sizes.borrow()[..3], [80, 64, 32]);
        assert_eq!(said.len(), 2, "{said:?}");
        let worst = values(&image).iter().zip(values(&pointwise(&latents)?)).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(worst < 1e-5);
        assert!(decode(&spec(), &latents, (VaeTiling::Off, Wrap::default()), &small, &mut |_| {}).is_err());
        Ok(())
    }

    #[test]
    fn tiling_is_asked_for() -> Result<()> {
        let count = Cell::new(0);
        let counted = |latents: &Tensor| {
            count.set(count.get() + 1);
            pointwise(latents)
        };
        for (choice, calls) in [(VaeTiling::Off, 1), (VaeTiling::Auto, 1), (VaeTiling::On, 4)] {
            count.set(0);
            decode(&spec(), &latents(100, 100), (choice, Wrap::default()), &counted, &mut |_| {})?;
            assert_eq!(count.get(), calls, "{choice:?}");
        }
        // Whatever is free.
        let large = Tensor::zeros((1, 4, 256, 256), DType::BF16, &Device::Cpu)?;
        for (latents, calls) in [(large.narrow(3, 0, 128)?.contiguous()?, 1), (large, 25)] {
            let bytes = free_bytes(&spec(), 8 * latents.dim(2)?, 8 * latents.dim(3)?, DType::BF16, latents.device());
            let enough = device::free_memory(&Device::Cpu).is_none_or(|free| bytes <= free / 10 * 9);
            count.set(0);
            decode(&spec(), &latents, (VaeTiling::Auto, Wrap::default()), &counted, &mut |_| {})?;
            assert!(count.get() == calls || calls == 1 && !enough, "{}", count.get());
        }
        Ok(())
    }
    /// Random weights that keep the size of what goes through them, the same in every run.
    struct RandomWeights;

    impl TensorSource for RandomWeights {
        fn tensor(&self, name: &str, shape: &[usize], dtype: DType, device: &Device) -> Result<Tensor> {
            let mut state = name.bytes().fold(0x9e37_79b9_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3));
            let fan: usize = shape.iter().skip(1).product();
            let mut number = || {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                ((state >> 40) as f32 / (1 << 23) as f32 - 1.0) * 1.7
            };
            let value = |number: f32| match (shape.len(), name.ends_with("weight")) {
                (1, true) => 1.0 + number / 10.0,
                (1, false) => number / 10.0,
                _ => number / (fan as f32).sqrt(),
            };
            let values: Vec<f32> = (0..shape.iter().product()).map(|_| value(number())).collect();
            Ok(Tensor::from_vec(values, shape, &Device::Cpu)?.to_dtype(dtype)?.to_device(device)?)
        }

        fn shape(&self, _: &str) -> Option<Vec<usize>> {
            None
        }
    }

    /// The largest steps from one place to the next along the rows of `off`, at `borders` and elsewhere.
    fn steps(off: &Tensor, borders: &[usize]) -> Result<(f32, f32)> {
        let (mut at_borders, mut elsewhere) = (0f32, 0f32);
        for x in 1..off.dim(3)? {
            let step = (off.narrow(3, x, 1)? - off.narrow(3, x - 1, 1)?)?.abs()?.flatten_all()?.max(0)?.to_scalar::<f32>()?;
            let most = if borders.contains(&x) { &mut at_borders } else { &mut elsewhere };
            *most = most.max(step);
        }
        Ok((at_borders, elsewhere))
    }

    /// An autoencoder of Stable Diffusion 1.5's size: what tiles change does not jump where one begins or ends.
    #[test]
    #[ignore = "minutes of a processor: 20 TFLOP"]
    fn tiles_of_a_whole_autoencoder_leave_no_border() -> Result<()> {
        let (spec, device, wrap) = (spec(), Device::Cpu, Wrap::default());
        let scope = Scope::root(&RandomWeights, DType::F32, &device);
        let decoder = AutoencoderKLDecoder::load(&scope, &spec)?;
        // Tiles of 64 latents begin at 0, 48 and 56 of 120.
        let latents = latents(64, 120).narrow(0, 0, 1)?.contiguous()?;
        let work = |x: &Tensor| on_workers(&Device::Cpu, || decoder.decode(x));
        let decoded = |choice| decode(&spec, &latents, (choice, wrap), &work, &mut |_| {});
        let (whole, tiled) = (decoded(VaeTiling::Off)?, decoded(VaeTiling::On)?);
        let (at_borders, inside) = steps(&(&tiled - &whole)?, &[48, 56, 64, 112].map(|at| at * 8))?;
        assert!(at_borders <= inside && inside > 0.0, "decoded: {at_borders} across borders, {inside} inside");
        drop(decoder);
        let encoder = AutoencoderKLEncoder::load(&scope, &spec)?;
        let image = whole.clamp(-1.0, 1.0)?;
        let work = |x: &Tensor| on_workers(&Device::Cpu, || encoder.encode(x));
        let encoded = |choice| Ok::<_, Error>(encode(&spec, &image, (choice, wrap), &work, &mut |_| {})?.mean);
        let off = (encoded(VaeTiling::On)? - encoded(VaeTiling::Off)?)?;
        let (at_borders, inside) = steps(&off, &[48, 56, 64, 112])?;
        assert!(at_borders <= inside && inside > 0.0, "encoded: {at_borders} across borders, {inside} inside");
        Ok(())
    }
}
