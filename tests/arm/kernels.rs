//! The products of ARM's Advanced SIMD and of its bf16 instructions against sums in f64. A program of its own, so that it can be compiled
//! for ARM in seconds and run in an emulator: `run.sh` beside it.
#![allow(dead_code, unused_imports, unfulfilled_lint_expectations, missing_docs)]

#[path = "../../src/ops/cpu/microkernel.rs"]
mod microkernel;

use microkernel::{Kernels, MAX_ROWS, NEON, NEON_BF16, Tile};

/// Numbers from -0.5 to 0.5 (Knuth's MMIX generator).
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> f32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 40) as f32 / (1u32 << 24) as f32 - 0.5
    }

    /// One f32, or two bf16.
    fn word(&mut self, is_bf16: bool) -> u32 {
        let (a, b) = (self.next().to_bits(), self.next().to_bits());
        if is_bf16 { a >> 16 | b & 0xffff_0000 } else { a }
    }
}

fn product(a: u32, b: u32, is_bf16: bool) -> f64 {
    let times = |a: u32, b: u32| f64::from(f32::from_bits(a)) * f64::from(f32::from_bits(b));
    if is_bf16 { times(a << 16, b << 16) + times(a & 0xffff_0000, b & 0xffff_0000) } else { times(a, b) }
}

fn check(name: &str, kernels: &Kernels, is_bf16: bool) {
    const STEPS: usize = 37;
    let (mut numbers, mut worst) = (Numbers(1), 0f64);
    for vectors in 1..=kernels.tiles.len() {
        for rows in 1..=kernels.tiles[vectors - 1].len() {
            let width = vectors * kernels.lanes;
            let x: Vec<Vec<u32>> = (0..MAX_ROWS).map(|_| (0..STEPS).map(|_| numbers.word(is_bf16)).collect()).collect();
            let panel: Vec<u32> = (0..STEPS * width).map(|_| numbers.word(is_bf16)).collect();
            let pointers: Vec<*const u32> = x.iter().map(|row| row.as_ptr()).collect();
            let mut sums = vec![0.5f32; kernels.rows * width];
            // SAFETY: the instructions were asked for, and everything is as long as the tile says.
            unsafe {
                kernels.tiles[vectors - 1][rows - 1](&Tile {
                    rows: pointers.as_ptr(),
                    taps: 1,
                    offset: 0,
                    steps: STEPS,
                    panel: panel.as_ptr(),
                    tap_stride: 0,
                    out: sums.as_mut_ptr(),
                    out_stride: width,
                    accumulate: true,
                });
            }
            for (i, row) in x.iter().enumerate().take(rows) {
                for j in 0..width {
                    let sum: f64 = (0..STEPS).map(|k| product(row[k], panel[k * width + j], is_bf16)).sum::<f64>() + 0.5;
                    worst = worst.max((f64::from(sums[i * width + j]) - sum).abs());
                }
            }
        }
    }
    assert!(worst < 1e-5, "{name}: {worst} from the sums in f64");
    println!("{name}: right to {worst:.1e}");
}

fn main() {
    check("neon", &NEON, false);
    if std::arch::is_aarch64_feature_detected!("bf16") {
        check("neonbf16", &NEON_BF16, true);
    } else {
        println!("neonbf16: this processor has none");
    }
}
