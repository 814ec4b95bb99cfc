//! Single ops at the shapes of Stable Diffusion 1.5 generating 512×512 with guidance.
//!
//! `cargo bench --bench ops`, or with `-- conv` for some of them. Compare ratios of one run on an idle machine, not times of two.
//!
//! The baseline, `… candle`, is what candle's own stable-diffusion module does at the same shapes, with the same operations of
//! `candle-nn` in the module's channels-first layout. It is written out here, as the crate of the module brings a hundred other models
//! along. candle's CPU multiplies no bf16, so the baseline is in f32 alone.
#![allow(clippy::expect_used, missing_docs, reason = "a benchmark that cannot set up has failed")]

use candle_core::{D, DType, Device, Result, Tensor};
use candle_nn::Module;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use sd_gen::ops::{Conv2d, Epilogue, GroupNorm, Linear, Padding, attention, geglu};

fn random(shape: &[usize], dtype: DType) -> Tensor {
    Tensor::randn(0f32, 1f32, shape, &Device::Cpu).and_then(|t| t.to_dtype(dtype)).expect("tensor")
}

/// As the module's `CrossAttention` without flash attention.
fn candle_attention(q: &Tensor, k: &Tensor, v: &Tensor, heads: usize) -> Result<Tensor> {
    let (batch, queries, channels) = q.dims3()?;
    let split = |x: &Tensor| {
        let tokens = x.dim(1)?;
        x.reshape((batch, tokens, heads, channels / heads))?.transpose(1, 2)?.reshape((batch * heads, tokens, channels / heads))
    };
    let scores = split(q)?.matmul(&(split(k)?.t()? * (1.0 / ((channels / heads) as f64).sqrt()))?)?;
    let mixed = candle_nn::ops::softmax_last_dim(&scores)?.matmul(&split(v)?)?;
    mixed.reshape((batch, heads, queries, channels / heads))?.transpose(1, 2)?.reshape((batch, queries, channels))
}

/// As the module's `GeGlu`.
fn candle_geglu(x: &Tensor) -> Result<Tensor> {
    let halves = x.chunk(2, D::Minus1)?;
    &halves[0] * halves[1].gelu()?
}

/// As the first half of the module's `ResnetBlock2D`.
fn candle_norm(norm: &candle_nn::GroupNorm, x: &Tensor) -> Result<Tensor> {
    candle_nn::ops::silu(&norm.forward(x)?)
}

fn ops(criterion: &mut Criterion) {
    for dtype in [DType::F32, DType::BF16] {
        let mut group = criterion.benchmark_group(dtype.as_str());
        group.sample_size(10);
        // (side, channels in, channels out): floating-point operations are 2 per multiplication and addition.
        for (side, input, output) in [(64, 320, 320), (32, 640, 640), (16, 1280, 1280), (8, 2560, 1280)] {
            let x = random(&[2, side, side, input], dtype);
            let conv =
                Conv2d::new(random(&[output, input, 3, 3], dtype), Some(random(&[output], dtype)), 1, Padding::same(1)).expect("conv");
            group.throughput(Throughput::Elements((2 * 2 * side * side * 9 * input * output) as u64));
            group.bench_function(format!("conv3x3 {side}x{side} {input}->{output}"), |b| b.iter(|| conv.forward(&x).expect("conv")));
            if dtype == DType::F32 {
                let config = candle_nn::Conv2dConfig { padding: 1, ..Default::default() };
                let conv = candle_nn::Conv2d::new(random(&[output, input, 3, 3], dtype), Some(random(&[output], dtype)), config);
                let x = random(&[2, input, side, side], dtype);
                group.bench_function(format!("conv3x3 {side}x{side} {input}->{output} candle"), |b| {
                    b.iter(|| conv.forward(&x).expect("conv"));
                });
            }
        }
        for (tokens, input, output) in [(4096, 320, 320), (4096, 320, 2560), (1024, 640, 5120), (256, 1280, 10240)] {
            let x = random(&[2, tokens, input], dtype);
            let linear = Linear::new(random(&[output, input], dtype), Some(random(&[output], dtype))).expect("linear");
            group.throughput(Throughput::Elements((2 * 2 * tokens * input * output) as u64));
            group.bench_function(format!("linear {tokens} {input}->{output}"), |b| {
                b.iter(|| linear.forward_with(&x, Epilogue::default()).expect("linear"));
            });
            if dtype == DType::F32 {
                let linear = candle_nn::Linear::new(random(&[output, input], dtype), Some(random(&[output], dtype)));
                group.bench_function(format!("linear {tokens} {input}->{output} candle"), |b| {
                    b.iter(|| linear.forward(&x).expect("linear"));
                });
            }
        }
        for (queries, keys, channels) in [(4096, 4096, 320), (4096, 77, 320), (1024, 1024, 640), (256, 256, 1280)] {
            let (q, k, v) =
                (random(&[2, queries, channels], dtype), random(&[2, keys, channels], dtype), random(&[2, keys, channels], dtype));
            group.throughput(Throughput::Elements((2 * 4 * queries * keys * channels) as u64));
            group.bench_function(format!("attention {queries}x{keys} 8 heads of {}", channels / 8), |b| {
                b.iter(|| attention(&q, &k, &v, 8, false).expect("attention"));
            });
            if dtype == DType::F32 {
                group.bench_function(format!("attention {queries}x{keys} 8 heads of {} candle", channels / 8), |b| {
                    b.iter(|| candle_attention(&q, &k, &v, 8).expect("attention"));
                });
            }
        }
        let x = random(&[2, 64, 64, 320], dtype);
        let norm = GroupNorm::new(random(&[320], dtype), random(&[320], dtype), 32, 1e-5).expect("norm");
        group.throughput(Throughput::Bytes((2 * 2 * 64 * 64 * 320 * dtype.size_in_bytes()) as u64));
        group.bench_function("group norm and SiLU 64x64x320", |b| b.iter(|| norm.forward_silu(&x).expect("norm")));
        if dtype == DType::F32 {
            let norm = candle_nn::GroupNorm::new(random(&[320], dtype), random(&[320], dtype), 320, 32, 1e-5).expect("norm");
            let x = random(&[2, 320, 64, 64], dtype);
            group.bench_function("group norm and SiLU 64x64x320 candle", |b| b.iter(|| candle_norm(&norm, &x).expect("norm")));
        }
        let x = random(&[2, 4096, 2560], dtype);
        group.throughput(Throughput::Bytes((3 * 4096 * 2560 * dtype.size_in_bytes()) as u64));
        group.bench_function("GEGLU 4096x2560", |b| b.iter(|| geglu(&x).expect("geglu")));
        if dtype == DType::F32 {
            group.bench_function("GEGLU 4096x2560 candle", |b| b.iter(|| candle_geglu(&x).expect("geglu")));
        }
        group.finish();
    }
}

criterion_group!(benches, ops);
criterion_main!(benches);
