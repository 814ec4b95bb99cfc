//! The fast paths on NVIDIA GPUs, for f32, bf16 and f16 storage; sums are always f32.
//!
//! `kernels/` holds the device code, `plan` decides what is launched. See `NOTES.md` for what was counted and why.

mod plan;

#[cfg(test)]
mod emulation;
