//! Vectors of sixteen f32 by AVX-512, for loops of which compilers make single numbers.
//!
//! Everything here wants [`Math::sixteens`](super::math::Math), and pointers that are good for sixteen elements.
#![expect(unsafe_code, reason = "vector instructions on raw pointers")]

use super::math::Math;
use half::{bf16, f16};
use std::arch::x86_64::*;

pub(super) type Sixteen = __m512;

/// Elements that are read and written by sixteens.
pub(super) trait Sixteens {
    /// The f32 of the same values.
    unsafe fn load(from: *const Self) -> Sixteen;
    /// The nearest, ties to even.
    unsafe fn store(math: Math, x: Sixteen, to: *mut Self);
}

impl Sixteens for f32 {
    #[inline(always)]
    unsafe fn load(from: *const Self) -> Sixteen {
        // SAFETY: the caller's promise.
        unsafe { _mm512_loadu_ps(from) }
    }

    #[inline(always)]
    unsafe fn store(_: Math, x: Sixteen, to: *mut Self) {
        // SAFETY: the caller's promise.
        unsafe { _mm512_storeu_ps(to, x) }
    }
}

impl Sixteens for bf16 {
    #[inline(always)]
    unsafe fn load(from: *const Self) -> Sixteen {
        // SAFETY: the caller's promise.
        unsafe { _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(_mm256_loadu_si256(from.cast())))) }
    }

    #[inline(always)]
    unsafe fn store(math: Math, x: Sixteen, to: *mut Self) {
        // SAFETY: the caller's promise; `Math` says whether there is the instruction.
        unsafe {
            if math.bf16 {
                to.cast::<__m256bh>().write_unaligned(_mm512_cvtneps_pbh(x));
            } else {
                let bits = _mm512_castps_si512(x);
                let odd = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
                let rounded = _mm512_srli_epi32::<16>(_mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff))));
                let is_nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(x, x);
                let result = _mm512_mask_set1_epi32(rounded, is_nan, 0x7fc0);
                _mm256_storeu_si256(to.cast(), _mm512_cvtepi32_epi16(result));
            }
        }
    }
}

impl Sixteens for f16 {
    #[inline(always)]
    unsafe fn load(from: *const Self) -> Sixteen {
        // SAFETY: the caller's promise.
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(from.cast())) }
    }

    #[inline(always)]
    unsafe fn store(_: Math, x: Sixteen, to: *mut Self) {
        // SAFETY: the caller's promise.
        unsafe { _mm256_storeu_si256(to.cast(), _mm512_cvtps_ph::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(x)) }
    }
}

/// `a + b`
#[inline(always)]
pub(super) unsafe fn add(a: Sixteen, b: Sixteen) -> Sixteen {
    // SAFETY: the caller's promise.
    unsafe { _mm512_add_ps(a, b) }
}
