//! The fast paths on NVIDIA GPUs, for f32, bf16 and f16 storage; sums are always f32.
//!
//! `kernels/` holds the device code, `plan` decides what is launched; the rest is compiled with the feature `cuda` only.
//! See `NOTES.md` for what was counted and why.

mod plan;

#[cfg(feature = "cuda")]
mod attention;
#[cfg(feature = "cuda")]
mod conv2d;
#[cfg(feature = "cuda")]
mod cudnn;
#[cfg(feature = "cuda")]
mod element;
#[cfg(feature = "cuda")]
mod gpu;
#[cfg(feature = "cuda")]
mod graph;
#[cfg(feature = "cuda")]
mod linear;
#[cfg(feature = "cuda")]
mod normalization;
#[cfg(feature = "cuda")]
mod profile;

#[cfg(test)]
mod emulation;
#[cfg(feature = "cuda")]
#[cfg(test)]
mod tests;

#[cfg(feature = "cuda")]
pub(super) use self::{
    attention::attention,
    conv2d::CudaConv2d,
    element::{geglu, gelu, quick_gelu, silu, upsample_nearest_2x},
    graph::Graphs,
    linear::CudaLinear,
    normalization::{CudaGroupNorm, CudaLayerNorm},
    profile::take as profile,
};
