//! The fast paths on the CPU, for f32, bf16 and f16 storage; sums are always f32.
//!
//! One microkernel serves products, convolutions and attention (`microkernel`); the instruction set is chosen
//! when the program runs (`isa`). See `NOTES.md` beside `ops` for what was measured.

mod activation;
#[cfg(any(test, target_arch = "x86_64"))]
mod amx;
mod attention;
mod conv2d;
mod element;
mod isa;
mod linear;
mod lines;
mod math;
mod microkernel;
mod normalization;
mod output;
mod packed;
mod product;
mod rows;
mod upsample;

#[cfg(test)]
mod bench;
#[cfg(test)]
mod tests;

pub(super) use activation::{geglu, gelu, quick_gelu, silu};
pub(super) use attention::attention;
pub(super) use conv2d::Conv2d;
pub(super) use linear::Linear;
pub(super) use normalization::{GroupNorm, LayerNorm};
pub(super) use upsample::upsample_nearest_2x;

/// The name of the instruction set in use.
pub(super) fn instructions() -> candle_core::Result<&'static str> {
    Ok(isa::Isa::current()?.name())
}

/// Whether the instruction set in use multiplies pairs of bf16.
pub(super) fn multiplies_bf16() -> candle_core::Result<bool> {
    Ok(isa::Isa::current()?.bf16_kernels().is_some())
}
