//! Ops of networks that enlarge images: activations that let a part of what is below zero through, pixels out of channels, and attention
//! within windows.

use super::{REFERENCE_ONLY, cpu, profile};
use candle_core::{D, DType, Device, Result, Tensor};

fn is_for_cpu(x: &Tensor) -> bool {
    matches!(x.device(), Device::Cpu) && !REFERENCE_ONLY.get()
}

/// `x` where it is above zero, else `slope · x`; the slope is below 1.
pub fn leaky_relu(x: &Tensor, slope: f32) -> Result<Tensor> {
    let run = || if is_for_cpu(x) { cpu::leaky_relu(x, slope) } else { x.maximum(&x.affine(f64::from(slope), 0.0)?) };
    profile::timed(x, run, |_| profile::over("leaky_relu", x))
}

/// [`leaky_relu`] with a slope for each channel.
#[derive(Debug, Clone)]
pub struct PRelu {
    slopes: Tensor,
    /// The same, for the CPU.
    values: Vec<f32>,
}

impl PRelu {
    /// # Shapes
    /// `slopes` `(channels)`.
    pub fn new(slopes: Tensor) -> Result<Self> {
        Ok(Self { values: slopes.to_dtype(DType::F32)?.to_device(&Device::Cpu)?.to_vec1()?, slopes })
    }

    /// # Shapes
    /// `(…, channels)`, kept.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let run = || match is_for_cpu(x) {
            true => cpu::prelu(x, &self.values),
            false => x.relu()? - x.neg()?.relu()?.broadcast_mul(&self.slopes.to_dtype(x.dtype())?)?,
        };
        profile::timed(x, run, |_| profile::over("prelu", x))
    }
}

/// Channels become pixels: `factor × factor` of them in the order of torch's `PixelShuffle`.
///
/// # Shapes
/// `(batch, height, width, factor² channels)` to `(batch, factor height, factor width, channels)`.
pub fn pixel_shuffle(x: &Tensor, factor: usize) -> Result<Tensor> {
    let (batch, height, width, channels) = x.dims4()?;
    if factor == 0 || channels % (factor * factor) != 0 {
        candle_core::bail!("{channels} channels cannot become {factor} by {factor} pixels");
    }
    if factor == 1 {
        return Ok(x.clone());
    }
    let channels = channels / (factor * factor);
    let split = x.reshape((batch, height, width, channels, factor, factor))?.permute((0, 1, 4, 2, 5, 3))?;
    split.contiguous()?.reshape((batch, factor * height, factor * width, channels))
}

/// The way back from [`pixel_shuffle`].
///
/// # Shapes
/// `(batch, factor height, factor width, channels)` to `(batch, height, width, factor² channels)`.
pub fn pixel_unshuffle(x: &Tensor, factor: usize) -> Result<Tensor> {
    let (batch, height, width, channels) = x.dims4()?;
    if factor == 0 || height % factor != 0 || width % factor != 0 {
        candle_core::bail!("{width}x{height} pixels cannot be taken {factor} by {factor}");
    }
    if factor == 1 {
        return Ok(x.clone());
    }
    let (height, width) = (height / factor, width / factor);
    let split = x.reshape((batch, height, factor, width, factor, channels))?.permute((0, 1, 3, 5, 2, 4))?;
    split.contiguous()?.reshape((batch, height, width, channels * factor * factor))
}

/// Every pixel becomes `factor` by `factor`.
///
/// # Shapes
/// `(batch, height, width, channels)` to `(batch, factor height, factor width, channels)`.
pub fn upsample_nearest(x: &Tensor, factor: usize) -> Result<Tensor> {
    let (batch, height, width, channels) = x.dims4()?;
    let wide = x.reshape((batch, height, 1, width, 1, channels))?;
    let wide = wide.broadcast_as((batch, height, factor, width, factor, channels))?;
    wide.contiguous()?.reshape((batch, factor * height, factor * width, channels))
}

/// Attention within windows: `bias` is added to the scores of every window, `mask` to those of each.
///
/// # Shapes
/// `q`, `k` and `v` `(windows, tokens, heads × size)`, `bias` `(heads, tokens, tokens)`, `mask` `(windows, tokens, tokens)`, both in f32.
pub fn window_attention(q: &Tensor, k: &Tensor, v: &Tensor, heads: usize, bias: &Tensor, mask: Option<&Tensor>) -> Result<Tensor> {
    let (windows, tokens, width) = q.dims3()?;
    let run = || {
        let size = width / heads;
        let split = |x: &Tensor| x.to_dtype(DType::F32)?.reshape((windows, tokens, heads, size))?.transpose(1, 2)?.contiguous();
        let scores = (split(q)? * (1.0 / (size as f64).sqrt()))?.matmul(&split(k)?.t()?)?.broadcast_add(bias)?;
        let scores = match mask {
            Some(mask) => scores.broadcast_add(&mask.unsqueeze(1)?)?,
            None => scores,
        };
        let weights = candle_nn::ops::softmax(&scores, D::Minus1)?;
        weights.matmul(&split(v)?)?.transpose(1, 2)?.reshape((windows, tokens, width))?.to_dtype(q.dtype())
    };
    profile::timed(q, run, |_| {
        let shapes = format!("{}, {tokens} keys, {heads} heads", profile::dims(q));
        profile::call("window_attention", shapes, 4.0 * q.elem_count() as f64 * tokens as f64)
    })
}

#[cfg(test)]
mod tests {
    use super::super::with_reference;
    use super::*;

    fn numbers(shape: &[usize]) -> Tensor {
        let count: usize = shape.iter().product();
        let values: Vec<f32> = (0..count).map(|i| ((i * 7919) % 1009) as f32 / 500.0 - 1.0).collect();
        Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
    }

    fn values(x: &Tensor) -> Vec<f32> {
        x.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1().unwrap()
    }

    #[test]
    fn activations_let_a_part_through() {
        let x = Tensor::new(&[[-2f32, 0.0, 3.0], [1.0, -1.0, -4.0]], &Device::Cpu).unwrap();
        let slopes = Tensor::new(&[0.5f32, 0.25, 2.0], &Device::Cpu).unwrap();
        for run in [|work: &dyn Fn() -> Vec<f32>| work(), |work: &dyn Fn() -> Vec<f32>| with_reference(work)] {
            assert_eq!(run(&|| values(&leaky_relu(&x, 0.5).unwrap())), [-1.0, 0.0, 3.0, 1.0, -0.5, -2.0]);
            assert_eq!(run(&|| values(&PRelu::new(slopes.clone()).unwrap().forward(&x).unwrap())), [-1.0, 0.0, 3.0, 1.0, -0.25, -8.0]);
        }
        let large = numbers(&[3, 37, 41, 12]);
        let slopes = PRelu::new(numbers(&[12])).unwrap();
        for dtype in [DType::F32, DType::BF16, DType::F16] {
            let x = large.to_dtype(dtype).unwrap();
            let both = |f: &dyn Fn() -> Tensor| (values(&f()), values(&with_reference(f)));
            for (fast, slow) in [both(&|| leaky_relu(&x, 0.2).unwrap()), both(&|| slopes.forward(&x).unwrap())] {
                let worst = fast.iter().zip(&slow).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
                assert!(worst < 0.02, "{dtype:?}: {worst}");
            }
        }
    }

    #[test]
    fn channels_become_pixels_and_pixels_channels() {
        // torch.nn.functional.pixel_shuffle(torch.arange(8).reshape(1, 8, 1, 1), 2): channel 0 is [[0, 1], [2, 3]], channel 1 [[4, 5], [6, 7]].
        let x = Tensor::from_vec((0..8).map(|i| i as f32).collect::<Vec<_>>(), (1, 1, 1, 8), &Device::Cpu).unwrap();
        assert_eq!(values(&pixel_shuffle(&x, 2).unwrap()), [0.0, 4.0, 1.0, 5.0, 2.0, 6.0, 3.0, 7.0]);
        let x = numbers(&[2, 6, 9, 5]);
        for factor in [1, 3] {
            assert_eq!(values(&pixel_shuffle(&pixel_unshuffle(&x, factor).unwrap(), factor).unwrap()), values(&x));
        }
        assert!(pixel_shuffle(&x, 2).is_err() && pixel_unshuffle(&x, 4).is_err());
        let x = Tensor::new(&[[[[1f32], [2.0]]]], &Device::Cpu).unwrap();
        assert_eq!(values(&upsample_nearest(&x, 3).unwrap()), [1.0, 1.0, 1.0, 2.0, 2.0, 2.0].repeat(3));
    }

    #[test]
    fn a_window_looks_at_itself_alone() {
        let (q, k, v) = (numbers(&[3, 4, 6]), numbers(&[3, 4, 6]), numbers(&[3, 4, 6]));
        let none = Tensor::zeros((2, 4, 4), DType::F32, &Device::Cpu).unwrap();
        let plain = super::super::attention(&q, &k, &v, 2, false).unwrap();
        let windows = window_attention(&q, &k, &v, 2, &none, None).unwrap();
        let worst = values(&plain).iter().zip(values(&windows)).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(worst < 1e-5, "{worst}");
        // Where all but itself is hidden, each token is what it was.
        let hidden: Vec<f32> = (0..16).map(|i| if i % 5 == 0 { 0.0 } else { -1e9 }).collect();
        let mask = Tensor::from_vec(hidden.repeat(3), (3, 4, 4), &Device::Cpu).unwrap();
        assert_eq!(values(&window_attention(&q, &k, &v, 2, &none, Some(&mask)).unwrap()), values(&v));
    }
}
