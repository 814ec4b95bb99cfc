//! Times the ops on Stable Diffusion's shapes: `cargo test --release --lib ops::cpu::bench -- --ignored --nocapture`.
//! `BENCH_DTYPE` is f32 (default), bf16 or f16; `BENCH_ONLY` is a part of the names wanted.
#![expect(clippy::print_stderr, reason = "a report for the one who runs it")]

use super::super::{Conv2d, GroupNorm, LayerNorm, Linear, Padding, attention, geglu, silu, upsample_nearest_2x};
use candle_core::{DType, Device, Result, Tensor};
use std::time::Instant;

/// Seconds that all threads have computed, on Linux: what a busy machine does not falsify.
fn busy() -> f64 {
    let tasks = std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    let nanoseconds =
        tasks.filter_map(|task| std::fs::read_to_string(task.path().join("schedstat")).ok()?.split(' ').next()?.parse::<f64>().ok());
    nanoseconds.sum::<f64>() * 1e-9
}

/// The least time of several runs within about a second, as throughput: by the clock, and of one busy thread.
fn report(what: &str, giga: f64, unit: &str, mut run: impl FnMut() -> Result<Tensor>) -> Result<()> {
    if std::env::var("BENCH_ONLY").is_ok_and(|only| !what.contains(&only)) {
        return Ok(());
    }
    run()?;
    let (start, mut best, mut runs, mut least) = (Instant::now(), f64::MAX, 0, f64::MAX);
    while runs < 3 || start.elapsed().as_secs_f64() < 0.7 {
        let (start, before) = (Instant::now(), busy());
        run()?;
        least = least.min(busy() - before);
        best = best.min(start.elapsed().as_secs_f64());
        runs += 1;
    }
    eprintln!("{what:44} {:9.3} ms {:8.1} {unit}, {:8.1} a busy thread", best * 1e3, giga / best, giga / least);
    Ok(())
}

#[test]
#[ignore = "a benchmark"]
fn times() -> Result<()> {
    let dtype = match std::env::var("BENCH_DTYPE").as_deref() {
        Ok("bf16") => DType::BF16,
        Ok("f16") => DType::F16,
        _ => DType::F32,
    };
    let random = |shape: &[usize]| Tensor::randn(0f32, 1.0, shape, &Device::Cpu)?.to_dtype(dtype);
    for (m, k, n) in [
        (4096, 4096, 4096),
        (8192, 320, 320),
        (8192, 320, 2560),
        (8192, 1280, 320),
        (512, 1280, 10240),
        (512, 5120, 1280),
        (128, 1280, 1280),
        (154, 768, 320),
        (77, 768, 3072),
        (2, 320, 1280),
    ] {
        let (layer, x) = (Linear::new(random(&[n, k])?, Some(random(&[n])?))?, random(&[1, m, k])?);
        report(&format!("linear {m} {k} {n}"), 2e-9 * (m * k * n) as f64, "GFLOP/s", || layer.forward(&x))?;
    }
    for (b, s, c, n, k, stride) in [
        (2, 64, 320, 320, 3, 1),
        (2, 32, 640, 640, 3, 1),
        (2, 16, 1280, 1280, 3, 1),
        (2, 8, 1280, 1280, 3, 1),
        (2, 16, 2560, 1280, 3, 1),
        (2, 64, 320, 320, 3, 2),
        (2, 64, 4, 320, 3, 1),
        (2, 64, 320, 4, 3, 1),
        (1, 512, 128, 128, 3, 1),
        (1, 256, 256, 256, 3, 1),
        (1, 512, 128, 3, 3, 1),
    ] {
        let (layer, x) = (Conv2d::new(random(&[n, c, k, k])?, Some(random(&[n])?), stride, Padding::same(1))?, random(&[b, s, s, c])?);
        let rows = b * s * s / stride / stride;
        report(&format!("conv {k}x{k}/{stride} {b}x{s}x{s}x{c} {n}"), 2e-9 * (rows * c * n * k * k) as f64, "GFLOP/s", || {
            layer.forward(&x)
        })?;
    }
    for (b, q, k, h, d) in [
        (2, 4096, 4096, 8, 40),
        (2, 1024, 1024, 8, 80),
        (2, 4096, 77, 8, 40),
        (2, 256, 256, 8, 160),
        (1, 4096, 4096, 10, 64),
        (1, 4096, 4096, 1, 512),
        (2, 77, 77, 12, 64),
    ] {
        let (q_, k_, v_) = (random(&[b, q, h * d])?, random(&[b, k, h * d])?, random(&[b, k, h * d])?);
        report(&format!("attention {b} {q}x{k} {h}x{d}"), 4e-9 * (b * q * k * h * d) as f64, "GFLOP/s", || {
            attention(&q_, &k_, &v_, h, false)
        })?;
    }
    for (n, c, k) in [(10240, 1280, 1), (1280, 1280, 3), (320, 320, 3)] {
        let weight = random(&[n, c, k, k])?;
        let bytes = weight.elem_count() as f64 * dtype.size_in_bytes() as f64 * 1e-9;
        report(&format!("pack {k}x{k} {c} {n}"), bytes, "GB/s", || {
            Conv2d::new(weight.clone(), None, 1, Padding::same(1)).map(|_| weight.clone())
        })?;
    }
    let bytes = dtype.size_in_bytes() as f64 * 1e-9;
    for (b, s, c) in [(2, 64, 320), (2, 32, 640), (1, 512, 128), (1, 512, 256)] {
        let x = random(&[b, s, s, c])?;
        let elements = (b * s * s * c) as f64 * bytes;
        let norm = GroupNorm::new(random(&[c])?, random(&[c])?, 32, 1e-5)?;
        report(&format!("group_norm_silu {b}x{s}x{s}x{c}"), 3.0 * elements, "GB/s", || norm.forward_silu(&x))?;
        let norm = LayerNorm::new(random(&[c])?, random(&[c])?, 1e-5)?;
        report(&format!("layer_norm {b}x{s}x{s}x{c}"), 2.0 * elements, "GB/s", || norm.forward(&x))?;
        report(&format!("silu {b}x{s}x{s}x{c}"), 2.0 * elements, "GB/s", || silu(&x))?;
        report(&format!("geglu {b}x{s}x{s}x{c}"), 1.5 * elements, "GB/s", || geglu(&x))?;
        report(&format!("upsample {b}x{s}x{s}x{c}"), 5.0 * elements, "GB/s", || upsample_nearest_2x(&x))?;
    }
    Ok(())
}
