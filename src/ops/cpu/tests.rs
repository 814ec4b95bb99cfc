//! Every fast path against the portable reference, for every instruction set that this processor has.

use super::super::{Epilogue, Padding, Weight, reference};
use super::activation::{CpuActivation, geglu_with};
use super::isa::Isa;
use super::{CpuConv2d, CpuGroupNorm, CpuLayerNorm, CpuLinear, CpuUpsamplingConv2d, attention, upsample_nearest_2x};
use candle_core::{DType, Device, Result, Tensor};

const DTYPES: [DType; 3] = [DType::F32, DType::BF16, DType::F16];

/// A small generator: the same shapes and numbers on every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        self.0 >> 33
    }

    fn below(&mut self, end: usize) -> usize {
        self.next() as usize % end
    }

    fn among(&mut self, from: usize, to: usize) -> usize {
        from + self.below(to + 1 - from)
    }

    /// Numbers of about unit variance that the dtype holds exactly, as f32.
    fn tensor(&mut self, shape: &[usize], dtype: DType) -> Result<Tensor> {
        let data: Vec<f32> = (0..shape.iter().product()).map(|_| (self.next() as f32 / (1u64 << 31) as f32 - 0.5) * 3.4).collect();
        Tensor::from_vec(data, shape, &Device::Cpu)?.to_dtype(dtype)?.to_dtype(DType::F32)
    }
}

fn values(x: &Tensor) -> Result<Vec<f32>> {
    x.to_dtype(DType::F32)?.flatten_all()?.to_vec1()
}

/// Compares with the f32 reference of the same numbers: one rounding to the dtype, and `slack` of the greatest for the
/// order of sums.
fn agree(what: &str, fast: &Tensor, exact: &Tensor, dtype: DType, slack: f32) -> Result<()> {
    assert_eq!(fast.dims(), exact.dims(), "{what}");
    assert_eq!(fast.dtype(), dtype, "{what}");
    let rounding = match dtype {
        DType::BF16 => 2f32.powi(-8),
        DType::F16 => 2f32.powi(-11),
        _ => 2f32.powi(-24),
    };
    let (fast, exact) = (values(fast)?, values(exact)?);
    let most = exact.iter().fold(1e-6f32, |most, x| most.max(x.abs()));
    for (i, (a, b)) in fast.iter().zip(&exact).enumerate() {
        let allowed = 1.01 * rounding * b.abs() + slack * most + if dtype == DType::F16 { 6e-8 } else { 0.0 };
        assert!((a - b).abs() <= allowed, "{what}: element {i} is {a}, the reference {b}, allowed {allowed}");
    }
    Ok(())
}

fn each_isa_and_dtype(mut test: impl FnMut(Isa, DType) -> Result<()>) -> Result<()> {
    for isa in Isa::available() {
        for dtype in DTYPES {
            test(isa, dtype)?;
        }
    }
    Ok(())
}

#[test]
fn linear_is_the_reference() -> Result<()> {
    let mut random = Random(1);
    each_isa_and_dtype(|isa, dtype| {
        for case in 0..40 {
            let batch = random.among(1, 3);
            let tokens = [1, 2, random.among(1, 40), random.among(1, 300)][case % 4];
            // One larger than a block of a panel, now and then.
            let (inputs, outputs) = match case {
                5 => (6200, 20),
                6 => (3201, 33),
                _ => (random.among(1, 200), random.among(1, 150)),
            };
            let weight = random.tensor(&[outputs, inputs], dtype)?;
            let bias = random.tensor(&[outputs], dtype)?;
            let x = random.tensor(&[batch, tokens, inputs], dtype)?;
            let row_bias = random.tensor(&[batch, outputs], dtype)?;
            let residual = random.tensor(&[batch, tokens, outputs], dtype)?;
            let bias = (case % 3 != 0).then_some(bias);
            let plain = Epilogue { row_bias: (case % 2 == 0).then_some(&row_bias), residual: (case % 3 == 0).then_some(&residual) };
            let exact = reference::ReferenceLinear::new(weight.clone(), bias.clone())?.forward(&x, plain)?;
            let (row_bias, residual) = (row_bias.to_dtype(dtype)?, residual.to_dtype(dtype)?);
            let extra = Epilogue { row_bias: plain.row_bias.map(|_| &row_bias), residual: plain.residual.map(|_| &residual) };
            let bias = bias.map(|bias| bias.to_dtype(dtype)).transpose()?;
            let fast = CpuLinear::with(isa, &weight.to_dtype(dtype)?, bias.as_ref())?.forward(&x.to_dtype(dtype)?, extra)?;
            agree(&format!("{isa:?} {dtype:?} {batch}×{tokens} {inputs}→{outputs}"), &fast, &exact, dtype, 6e-6)?;
        }
        Ok(())
    })
}

#[test]
fn weights_and_activations_may_differ_in_dtype() -> Result<()> {
    let mut random = Random(2);
    for isa in Isa::available() {
        for weights in DTYPES {
            for activations in DTYPES {
                // What bf16 holds, so that no conversion rounds.
                let (weight, x) = (random.tensor(&[37, 51], DType::BF16)?, random.tensor(&[2, 9, 51], DType::BF16)?);
                let weight = weight.to_dtype(weights)?.to_dtype(DType::F32)?;
                let x = x.to_dtype(activations)?.to_dtype(DType::F32)?;
                let exact = reference::ReferenceLinear::new(weight.clone(), None)?.forward(&x, Epilogue::default())?;
                let layer = CpuLinear::with(isa, &weight.to_dtype(weights)?, None)?;
                let fast = layer.forward(&x.to_dtype(activations)?, Epilogue::default())?;
                // Pairs of bf16 round other activations to bf16.
                agree(&format!("{isa:?} {weights:?} {activations:?}"), &fast, &exact, activations, 3e-3)?;
            }
        }
    }
    Ok(())
}

#[test]
fn weights_in_place_make_the_same_layer_as_a_tensor_of_them() -> Result<()> {
    let mut random = Random(12);
    for isa in Isa::available() {
        for stored in DTYPES {
            // Numbers of every size, so that what is stored is rounded for the other types.
            let (inputs, outputs) = (random.among(250, 300), random.among(1, 70));
            let weight = (random.tensor(&[outputs, inputs, 3, 3], DType::F32)? / 3.0)?.to_dtype(stored)?;
            let x = random.tensor(&[1, 3, 4, inputs], DType::F32)?;
            // One byte on, where no number is aligned.
            let bytes = match stored {
                DType::F32 => weight.flatten_all()?.to_vec1::<f32>()?.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>(),
                DType::F16 => weight.flatten_all()?.to_vec1::<half::f16>()?.iter().flat_map(|x| x.to_le_bytes()).collect(),
                _ => weight.flatten_all()?.to_vec1::<half::bf16>()?.iter().flat_map(|x| x.to_le_bytes()).collect(),
            };
            let bytes = [&[0], bytes.as_slice()].concat();
            for dtype in DTYPES {
                let what = format!("{isa:?} {stored:?} as {dtype:?}");
                let in_place = Weight::in_place(&bytes[1..], stored, weight.dims(), dtype, &Device::Cpu);
                let in_place = in_place.ok_or_else(|| candle_core::Error::Msg(format!("{what} is not read in place")))?;
                assert_eq!(values(&in_place.clone().into_tensor()?)?, values(&weight.to_dtype(dtype)?)?, "{what}");
                let x = x.to_dtype(dtype)?;
                let generate = |weight: Weight<'_>| {
                    CpuConv2d::with(isa, weight, None, 1, Padding::same(1))?.forward(&x, Epilogue::default()).and_then(|y| values(&y))
                };
                assert_eq!(generate(in_place.clone())?, generate(weight.to_dtype(dtype)?.into())?, "{what}");
                let flat = in_place.reshape(&[outputs, inputs * 9])?;
                assert!(flat.clone().reshape(&[outputs, inputs]).is_err(), "{what}");
                assert_eq!(flat.into_tensor()?.dims(), [outputs, inputs * 9], "{what}");
            }
            assert!(Weight::in_place(&bytes[2..], stored, weight.dims(), DType::F32, &Device::Cpu).is_none());
            assert!(Weight::in_place(&bytes[1..], stored, &[outputs, inputs, 3, 2], DType::F32, &Device::Cpu).is_none());
            assert!(Weight::in_place(&bytes[1..], stored, weight.dims(), DType::F64, &Device::Cpu).is_none());
            let weights = weight.dims().to_vec();
            let refused =
                super::super::with_reference(|| Weight::in_place(&bytes[1..], stored, &weights, DType::F32, &Device::Cpu).is_none());
            assert!(refused, "the reference takes tensors");
        }
    }
    Ok(())
}

#[test]
fn a_product_that_is_added_while_packing_makes_the_layer_of_the_sum() -> Result<()> {
    let mut random = Random(14);
    for isa in Isa::available() {
        for dtype in DTYPES {
            // More rows than are computed at once, and rows of more numbers than fit.
            for (outputs, inputs, rank) in [(37, 51, 3), (300, 40, 200), (70, 5000, 1), (1, 300, 4)] {
                let what = format!("{isa:?} {dtype:?} {outputs}×{inputs}×{rank}");
                let own = values(&random.tensor(&[outputs, inputs, 3, 3], DType::F32)?)?;
                let (a, b) = (random.tensor(&[outputs, rank], DType::F32)?, random.tensor(&[inputs * 9, rank], DType::F32)?);
                let shape = [outputs, inputs, 3, 3];
                let with_product = Weight::computed(&own, &shape, dtype).plus_product(values(&a)?, &values(&b)?)?;
                let sum = with_product.numbers()?;
                let exact = (Tensor::new(own.as_slice(), &Device::Cpu)?.reshape((outputs, ()))? + a.matmul(&b.t()?)?)?;
                let wrong = values(&(Tensor::new(sum.as_slice(), &Device::Cpu)?.reshape((outputs, ()))? - exact)?.abs()?)?;
                assert!(wrong.into_iter().fold(0.0, f32::max) < 1e-5 * (rank as f32 + 4.0), "{what}");
                let x = random.tensor(&[1, 2, 3, inputs], DType::F32)?.to_dtype(dtype)?;
                let generate = |weight: Weight<'_>| {
                    CpuConv2d::with(isa, weight, None, 1, Padding::same(1))?.forward(&x, Epilogue::default()).and_then(|y| values(&y))
                };
                assert_eq!(generate(with_product.clone())?, generate(Weight::computed(&sum, &shape, dtype))?, "{what}");
                assert_eq!(values(&with_product.clone().into_tensor()?)?, values(&Weight::computed(&sum, &shape, dtype).into_tensor()?)?);
                assert!(with_product.plus_product(values(&a)?, &values(&b)?).is_err(), "{what}");
                assert!(Weight::from(&a).plus_product(values(&a)?, &values(&b)?).is_err(), "{what}");
                assert!(Weight::computed(&own, &shape, dtype).plus_product(values(&a)?, &[1.0]).is_err(), "{what}");
            }
        }
    }
    Ok(())
}

#[test]
fn conv2d_is_the_reference() -> Result<()> {
    let mut random = Random(3);
    each_isa_and_dtype(|isa, dtype| {
        for case in 0..40 {
            let batch = random.among(1, 3);
            let (height, width) = (random.among(4, 17), random.among(4, 17));
            let (inputs, outputs) = if case == 7 { (400, 40) } else { (random.among(1, 40), random.among(1, 70)) };
            let kernel = [(1, 1), (3, 3), (3, 3), (2, 4)][case % 4];
            let stride = random.among(1, 2);
            let padding = match case % 5 {
                0 => Padding::default(),
                1 => Padding { height: (0, 1), width: (0, 1) },
                2 => Padding { height: (random.below(3), random.below(3)), width: (random.below(3), random.below(3)) },
                _ => Padding::same(1),
            };
            let weight = random.tensor(&[outputs, inputs, kernel.0, kernel.1], dtype)?;
            let bias = random.tensor(&[outputs], dtype)?;
            let x = random.tensor(&[batch, height, width, inputs], dtype)?;
            let plain = reference::ReferenceConv2d::new(weight.clone(), Some(bias.clone()), stride, padding)?;
            let shape = plain.forward(&x, Epilogue::default())?.dims().to_vec();
            let row_bias = random.tensor(&[batch, outputs], dtype)?;
            let residual = random.tensor(&shape, dtype)?;
            let exact = plain.forward(&x, Epilogue { row_bias: Some(&row_bias), residual: Some(&residual) })?;
            let (row_bias, residual) = (row_bias.to_dtype(dtype)?, residual.to_dtype(dtype)?);
            let extra = Epilogue { row_bias: Some(&row_bias), residual: Some(&residual) };
            let fast = CpuConv2d::with(isa, &weight.to_dtype(dtype)?, Some(&bias.to_dtype(dtype)?), stride, padding)?;
            let fast = fast.forward(&x.to_dtype(dtype)?, extra)?;
            let what = format!("{isa:?} {dtype:?} {batch}×{height}×{width}×{inputs}→{outputs} {kernel:?}/{stride} {padding:?}");
            agree(&what, &fast, &exact, dtype, 3e-6)?;
        }
        Ok(())
    })
}

/// Channels that fill words and tiles, and lines of sixteen and more: what is framed for tiles, and what is transformed.
#[test]
fn convolutions_of_whole_words_and_long_lines_are_the_reference() -> Result<()> {
    let mut random = Random(16);
    let sides = Padding { height: (2, 0), width: (1, 2) };
    each_isa_and_dtype(|isa, dtype| {
        for (height, width, inputs, outputs, padding) in [
            (3, 16, 32, 33, Padding::same(1)),
            (5, 21, 64, 16, Padding::same(1)),
            (4, 17, 96, 40, sides),
            (2, 33, 160, 5, Padding::same(2)),
        ] {
            let what = format!("{isa:?} {dtype:?} {height}×{width}×{inputs}→{outputs} {padding:?}");
            let (weight, bias) = (random.tensor(&[outputs, inputs, 3, 3], dtype)?, random.tensor(&[outputs], dtype)?);
            let x = random.tensor(&[2, height, width, inputs], dtype)?;
            let [fast_weight, fast_bias, fast_x] = [weight.to_dtype(dtype)?, bias.to_dtype(dtype)?, x.to_dtype(dtype)?];
            let exact =
                reference::ReferenceConv2d::new(weight.clone(), Some(bias.clone()), 1, padding)?.forward(&x, Epilogue::default())?;
            let fast = CpuConv2d::with(isa, &fast_weight, Some(&fast_bias), 1, padding)?.forward(&fast_x, Epilogue::default())?;
            agree(&what, &fast, &exact, dtype, 3e-6)?;
        }
        Ok(())
    })
}

#[test]
fn a_convolution_of_an_enlarged_image_is_the_reference() -> Result<()> {
    let mut random = Random(14);
    each_isa_and_dtype(|isa, dtype| {
        for case in 0..12 {
            let (height, width) = (random.among(1, 11), random.among(1, 11));
            let (inputs, outputs) = if case == 7 { (800, 40) } else { (random.among(1, 40), random.among(1, 70)) };
            let weight = random.tensor(&[outputs, inputs, 3, 3], dtype)?;
            let bias = random.tensor(&[outputs], dtype)?;
            let x = random.tensor(&[2, height, width, inputs], dtype)?;
            let plain = reference::ReferenceConv2d::new(weight.clone(), Some(bias.clone()), 1, Padding::same(1))?;
            let exact = plain.forward(&reference::upsample_nearest_2x(&x)?, Epilogue::default())?;
            let fast = CpuUpsamplingConv2d::with(isa, &weight.to_dtype(dtype)?, Some(&bias.to_dtype(dtype)?))?;
            let fast = fast.forward(&x.to_dtype(dtype)?)?;
            // Sums of taps are rounded once more.
            let slack = if dtype == DType::F32 { 6e-6 } else { 4e-3 };
            agree(&format!("{isa:?} {dtype:?} {height}×{width}×{inputs}→{outputs}"), &fast, &exact, dtype, slack)?;
        }
        Ok(())
    })
}

#[test]
fn attention_is_the_reference() -> Result<()> {
    let mut random = Random(4);
    each_isa_and_dtype(|isa, dtype| {
        for case in 0..24 {
            let (batch, heads) = (random.among(1, 3), random.among(1, 3));
            let size = [8, 40, 64, 80, random.among(1, 130), 160][case % 6];
            let causal = case % 2 == 1;
            let queries = [1, random.among(1, 90), random.among(200, 600)][case % 3];
            let keys = if causal { queries } else { [77, random.among(1, 90), random.among(250, 700)][case % 3] };
            let q = random.tensor(&[batch, queries, heads * size], dtype)?;
            let k = random.tensor(&[batch, keys, heads * size], dtype)?;
            let v = random.tensor(&[batch, keys, heads * size], dtype)?;
            let exact = reference::attention(&q, &k, &v, heads, causal)?;
            let fast = super::attention::with(isa, &q.to_dtype(dtype)?, &k.to_dtype(dtype)?, &v.to_dtype(dtype)?, heads, causal)?;
            agree(
                &format!("{isa:?} {dtype:?} {batch}×{queries}×{keys} {heads}×{size} {causal}"),
                &fast,
                &exact,
                dtype,
                attention_slack(isa, dtype),
            )?;
        }
        Ok(())
    })
}

/// Pairs of bf16 also round the weights of the values.
fn attention_slack(isa: Isa, dtype: DType) -> f32 {
    if dtype == DType::BF16 && isa.bf16_kernels().is_some() { 6e-3 } else { 3e-6 }
}

#[test]
fn attention_bears_large_scores() -> Result<()> {
    let mut random = Random(5);
    for isa in Isa::available() {
        let q = (random.tensor(&[1, 20, 16], DType::F32)? * 30.0)?;
        let (k, v) = ((random.tensor(&[1, 600, 16], DType::F32)? * 30.0)?, random.tensor(&[1, 600, 16], DType::F32)?);
        let exact = reference::attention(&q, &k, &v, 2, false)?;
        agree("large", &super::attention::with(isa, &q, &k, &v, 2, false)?, &exact, DType::F32, 2e-4)?;
    }
    // Each token finds itself by a score that f16 does not hold, 90,000.
    let x = (Tensor::eye(64, DType::F32, &Device::Cpu)? * 300.0)?.reshape((1, 64, 64))?;
    each_isa_and_dtype(|isa, dtype| {
        let (x, v) = (x.to_dtype(dtype)?, random.tensor(&[1, 64, 64], dtype)?);
        agree("beyond f16", &super::attention::with(isa, &x, &x, &v.to_dtype(dtype)?, 1, false)?, &v, dtype, 1e-7)
    })
}

#[test]
fn normalizations_are_the_reference() -> Result<()> {
    let mut random = Random(6);
    each_isa_and_dtype(|isa, dtype| {
        for case in 0..20 {
            let groups = random.among(1, 33);
            let channels = groups * random.among(1, 11);
            let shape = [random.among(1, 3), random.among(1, 40), random.among(1, 40), channels];
            let x = (random.tensor(&shape, dtype)? + if case % 2 == 0 { 0.0 } else { 2.0 })?.to_dtype(dtype)?;
            let (weight, bias) = (random.tensor(&[channels], dtype)?, random.tensor(&[channels], dtype)?);
            let x32 = x.to_dtype(DType::F32)?;
            let what = format!("{isa:?} {dtype:?} {shape:?} {groups}");
            let plain = reference::ReferenceGroupNorm::new(weight.clone(), bias.clone(), groups, 1e-5)?;
            let fast = CpuGroupNorm::with(isa, &weight.to_dtype(dtype)?, &bias.to_dtype(dtype)?, groups, 1e-5)?;
            for silu in [false, true] {
                agree(&what, &fast.forward(&x, silu)?, &plain.forward(&x32, silu)?, dtype, 3e-5)?;
            }
            let plain = reference::ReferenceLayerNorm::new(weight.clone(), bias.clone(), 1e-5)?;
            let fast = CpuLayerNorm::with(isa, &weight.to_dtype(dtype)?, &bias.to_dtype(dtype)?, 1e-5)?;
            agree(&what, &fast.forward(&x)?, &plain.forward(&x32)?, dtype, 3e-5)?;
        }
        Ok(())
    })
}

/// A mean far from 0 is what statistics in one pass fail on, and the reference is not good at it either.
#[test]
fn statistics_bear_a_mean_far_from_zero() -> Result<()> {
    let x = (Random(12).tensor(&[1, 40, 50, 24], DType::F32)? + 300.0)?;
    let (ones, zeros) = (Tensor::ones(24, DType::F32, &Device::Cpu)?, Tensor::zeros(24, DType::F32, &Device::Cpu)?);
    let exact = |x: &[f32]| -> Vec<f64> {
        let mean = x.iter().map(|&x| f64::from(x)).sum::<f64>() / x.len() as f64;
        let variance = x.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum::<f64>() / x.len() as f64;
        x.iter().map(|&x| (f64::from(x) - mean) / (variance + 1e-5).sqrt()).collect()
    };
    for isa in Isa::available() {
        let rows = CpuLayerNorm::with(isa, &ones, &zeros, 1e-5)?.forward(&x)?;
        let all = CpuGroupNorm::with(isa, &ones, &zeros, 1, 1e-5)?.forward(&x, false)?;
        let expected = values(&x)?.chunks(24).flat_map(exact).collect::<Vec<_>>();
        for (y, exact, allowed) in [(rows, expected, 2e-6), (all, exact(&values(&x)?), 1e-4)] {
            let worst = values(&y)?.iter().zip(exact).map(|(&y, exact)| (f64::from(y) - exact).abs()).fold(0.0, f64::max);
            assert!(worst < allowed, "{isa:?}: {worst}");
        }
    }
    Ok(())
}

#[test]
fn activations_are_the_reference() -> Result<()> {
    let mut random = Random(7);
    each_isa_and_dtype(|isa, dtype| {
        for _ in 0..6 {
            let shape = [random.among(1, 3), random.among(1, 90), 2 * random.among(1, 300)];
            let x32 = (random.tensor(&shape, dtype)? * 4.0)?.to_dtype(dtype)?.to_dtype(DType::F32)?;
            let x = x32.to_dtype(dtype)?;
            agree("silu", &CpuActivation::Silu.apply(isa, &x)?, &reference::silu(&x32)?, dtype, 3e-7)?;
            agree("gelu", &CpuActivation::Gelu.apply(isa, &x)?, &reference::gelu(&x32)?, dtype, 3e-7)?;
            agree("quick_gelu", &CpuActivation::QuickGelu.apply(isa, &x)?, &reference::quick_gelu(&x32)?, dtype, 3e-7)?;
            agree("geglu", &geglu_with(isa, &x)?, &reference::geglu(&x32)?, dtype, 3e-7)?;
            let image = x.reshape((shape[0], 1, shape[1], shape[2]))?;
            let (fast, exact) = (upsample_nearest_2x(&image)?, reference::upsample_nearest_2x(&image)?);
            assert_eq!(values(&fast)?, values(&exact)?);
        }
        Ok(())
    })
}

#[test]
fn views_are_read_where_they_are() -> Result<()> {
    let mut random = Random(8);
    let wide = random.tensor(&[3, 10, 48], DType::F32)?;
    let part = wide.narrow(0, 1, 2)?;
    let strided = part.narrow(2, 8, 32)?;
    let copy = strided.contiguous()?;
    let weight = random.tensor(&[24, 32], DType::F32)?;
    let layer = super::super::Linear::new(weight, None)?;
    assert_eq!(values(&layer.forward(&strided)?)?, values(&layer.forward(&copy)?)?);
    assert_eq!(values(&super::silu(&strided)?)?, values(&super::silu(&copy)?)?);
    assert_eq!(values(&super::silu(&part)?)?, values(&super::silu(&part.copy()?)?)?);
    let transposed = part.transpose(1, 2)?;
    assert_eq!(values(&super::silu(&transposed)?)?, values(&super::silu(&transposed.contiguous()?)?)?);
    let heads = |x: &Tensor| attention(x, x, x, 4, true).and_then(|y| values(&y));
    assert_eq!(heads(&strided)?, heads(&copy)?);
    Ok(())
}

/// Every op on a batch, for the tests below.
fn everything(isa: Isa, dtype: DType, x: &Tensor) -> Result<Vec<Tensor>> {
    let mut random = Random(9);
    let channels = x.dim(3)?;
    let x = x.to_dtype(dtype)?;
    let (batch, height, width, _) = x.dims4()?;
    let tokens = x.reshape((batch, height * width, channels))?;
    let norm = (random.tensor(&[channels], dtype)?.to_dtype(dtype)?, random.tensor(&[channels], dtype)?.to_dtype(dtype)?);
    let conv = CpuConv2d::with(isa, &random.tensor(&[50, channels, 3, 3], dtype)?.to_dtype(dtype)?, None, 1, Padding::same(1))?;
    let linear = CpuLinear::with(isa, &random.tensor(&[70, channels], dtype)?.to_dtype(dtype)?, None)?;
    Ok(vec![
        conv.forward(&x, Epilogue::default())?,
        linear.forward(&tokens, Epilogue::default())?,
        super::attention::with(isa, &tokens, &tokens, &tokens, 2, false)?,
        CpuGroupNorm::with(isa, &norm.0, &norm.1, 4, 1e-6)?.forward(&x, true)?,
        CpuLayerNorm::with(isa, &norm.0, &norm.1, 1e-6)?.forward(&tokens)?,
        geglu_with(isa, &tokens)?,
    ])
}

#[test]
fn a_image_of_a_batch_is_that_image_alone() -> Result<()> {
    let x = Random(10).tensor(&[3, 19, 23, 32], DType::F32)?;
    each_isa_and_dtype(|isa, dtype| {
        let all = everything(isa, dtype, &x)?;
        for image in 0..3 {
            for (op, (all, one)) in all.iter().zip(everything(isa, dtype, &x.narrow(0, image, 1)?)?).enumerate() {
                assert_eq!(values(&all.narrow(0, image, 1)?)?, values(&one)?, "op {op} {isa:?} {dtype:?}");
            }
        }
        Ok(())
    })
}

#[test]
fn threads_do_not_change_a_result() -> Result<()> {
    let x = Random(11).tensor(&[2, 19, 23, 32], DType::F32)?;
    let with = |threads: usize| -> Result<Vec<Vec<f32>>> {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().map_err(candle_core::Error::wrap)?;
        pool.install(|| everything(Isa::current()?, DType::F32, &x)?.iter().map(values).collect())
    };
    let one = with(1)?;
    for threads in [2, 3, 7] {
        assert!(one == with(threads)?, "{threads} threads");
    }
    Ok(())
}

#[test]
fn wrong_shapes_are_errors_that_name_the_op() -> Result<()> {
    let zeros = |shape: &[usize]| Tensor::zeros(shape, DType::F32, &Device::Cpu);
    let message = |result: Result<Tensor>| result.err().map(|error| error.to_string()).unwrap_or_default();
    let linear = super::super::Linear::new(zeros(&[4, 3])?, None)?;
    assert!(message(linear.forward(&zeros(&[2, 4])?)).contains("linear"));
    let conv = super::super::Conv2d::new(zeros(&[4, 3, 3, 3])?, None, 1, Padding::default())?;
    assert!(message(conv.forward(&zeros(&[1, 2, 5, 3])?)).contains("conv2d"));
    assert!(message(conv.forward(&zeros(&[1, 5, 3])?)).contains("conv2d"));
    let residual = zeros(&[1, 3, 3, 3])?;
    assert!(
        message(conv.forward_with(&zeros(&[1, 5, 5, 3])?, Epilogue { residual: Some(&residual), row_bias: None })).contains("residual")
    );
    let (q, k) = (zeros(&[1, 5, 8])?, zeros(&[1, 5, 6])?);
    assert!(message(attention(&q, &k, &k, 2, false)).contains("attention"));
    assert!(message(attention(&q, &q, &q, 3, false)).contains("attention"));
    assert!(message(super::geglu(&zeros(&[1, 5])?)).contains("geglu"));
    let norm = super::super::GroupNorm::new(zeros(&[8])?, zeros(&[8])?, 2, 1e-5)?;
    assert!(message(norm.forward(&q.narrow(2, 0, 4)?)).contains("group_norm"));
    assert!(super::super::GroupNorm::new(zeros(&[8])?, zeros(&[8])?, 3, 1e-5).is_err());
    Ok(())
}

#[test]
fn nothing_in_nothing_out() -> Result<()> {
    let x = Tensor::zeros((0, 4, 4, 8), DType::F32, &Device::Cpu)?;
    for y in everything(Isa::current()?, DType::F32, &x)? {
        assert_eq!(y.elem_count(), 0);
    }
    Ok(())
}

/// Where the matrix unit is, it must do what its model does, to the last bit; elsewhere the model alone is held to the reference above.
#[test]
fn tiles_do_what_their_model_does() -> Result<()> {
    if !Isa::available().contains(&Isa::Amx) {
        return Ok(());
    }
    let mut random = Random(13);
    let mut bf16 = |shape: &[usize]| random.tensor(shape, DType::BF16)?.to_dtype(DType::BF16);
    for (rows, inputs, outputs) in [(1, 32, 16), (16, 64, 32), (33, 70, 40), (70, 320, 50), (3, 6400, 20)] {
        let (weight, x) = (bf16(&[outputs, inputs])?, bf16(&[1, rows, inputs])?);
        let with = |isa| values(&CpuLinear::with(isa, &weight, None)?.forward(&x, Epilogue::default())?);
        assert_eq!(with(Isa::Amx)?, with(Isa::AmxModel)?, "{rows} {inputs} {outputs}");
    }
    for (side, inputs, outputs, stride) in [(9, 32, 40, 1), (8, 3, 16, 1), (20, 64, 33, 1), (9, 32, 32, 2)] {
        let (weight, x) = (bf16(&[outputs, inputs, 3, 3])?, bf16(&[1, side, side, inputs])?);
        let with = |isa| values(&CpuConv2d::with(isa, &weight, None, stride, Padding::same(1))?.forward(&x, Epilogue::default())?);
        assert_eq!(with(Isa::Amx)?, with(Isa::AmxModel)?, "{side} {inputs} {outputs} {stride}");
    }
    for (queries, keys, heads, size, causal) in [(20, 77, 2, 40, false), (33, 33, 1, 64, true), (50, 300, 1, 80, false)] {
        let (q, k, v) = (bf16(&[1, queries, heads * size])?, bf16(&[1, keys, heads * size])?, bf16(&[1, keys, heads * size])?);
        let with = |isa| values(&super::attention::with(isa, &q, &k, &v, heads, causal)?);
        assert_eq!(with(Isa::Amx)?, with(Isa::AmxModel)?, "{queries} {keys} {heads} {size}");
    }
    Ok(())
}
