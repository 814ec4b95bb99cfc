//! The fast paths on the CPU, for f32, bf16 and f16 storage; sums are always f32.
//!
//! One microkernel serves products, convolutions and attention (`microkernel`); the instruction set is chosen
//! when the program runs (`isa`). See `NOTES.md` beside `ops` for what was measured.

mod activation;
mod added_product;
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
mod numbers;
mod output;
mod packed;
mod packing;
mod product;
mod rows;
#[cfg(target_arch = "x86_64")]
mod sixteens;
mod transform;
mod upsample;
mod upsampling_conv2d;
mod weight_arena;
mod winograd;

#[cfg(test)]
mod bench;
#[cfg(test)]
mod tests;

pub(super) use activation::{geglu, gelu, leaky_relu, prelu, quick_gelu, silu};
pub(super) use added_product::AddedProduct;
pub(super) use attention::attention;
pub(super) use conv2d::CpuConv2d;
pub(super) use linear::CpuLinear;
pub(super) use normalization::{CpuGroupNorm, CpuLayerNorm};
pub(super) use numbers::{Numbers, tensor, with_numbers};
pub(super) use upsample::upsample_nearest_2x;
pub(super) use upsampling_conv2d::CpuUpsamplingConv2d;
pub use weight_arena::BlockMemory;

/// The name of the instruction set in use.
pub(super) fn instructions() -> candle_core::Result<&'static str> {
    Ok(isa::Isa::current()?.name())
}

/// What the processor could use, and what is used of it.
pub(super) fn kernels() -> candle_core::Result<super::CpuKernels> {
    let chosen = isa::Isa::current()?;
    let available = isa::Isa::available().into_iter().map(isa::Isa::name).collect();
    // Without an instruction for pairs of bf16 their products are f32's.
    let bf16 = if chosen.bf16_kernels().is_some() { chosen.name() } else { "f32's" };
    Ok(super::CpuKernels { available, chosen: chosen.name(), bf16 })
}

/// Whether the instruction set in use multiplies pairs of bf16.
pub(super) fn multiplies_bf16() -> candle_core::Result<bool> {
    Ok(isa::Isa::current()?.bf16_kernels().is_some())
}
