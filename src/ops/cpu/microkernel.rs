//! The one inner loop under every product: a tile of `rows × (vectors · lanes)` sums in registers.
//!
//! It walks a packed panel of the right-hand side step by step and broadcasts one word of each left-hand row.
//! A word is 32 bits: one f32, or on units that multiply bf16 two neighbouring bf16. The rows are reached through
//! pointers, one for each row and kernel tap, so that a convolution over channels-last pixels is this same product
//! and nothing is unfolded in memory (the indirect convolution of <https://arxiv.org/abs/1907.02129>).
//!
//! Every sum is taken in the order of the steps, whatever the number of rows in the tile: a row's result
//! does not depend on the rows beside it.
#![expect(unsafe_code, reason = "vector intrinsics and raw row pointers")]

use std::marker::PhantomData;

/// The most rows that any unit has in a tile; the stride of [`Tile::rows`].
pub(super) const MAX_ROWS: usize = 32;

/// The most floats that any unit has in a tile's row.
pub(super) const MAX_COLUMNS: usize = 32;

/// One call of the microkernel.
pub(super) struct Tile {
    /// Row pointers, `[taps][MAX_ROWS]`, each good for `offset + steps` words.
    pub(super) rows: *const *const u32,
    pub(super) taps: usize,
    /// Words skipped at the start of every row.
    pub(super) offset: usize,
    /// Words read of every row and tap.
    pub(super) steps: usize,
    /// `[taps][steps][vectors · lanes]` words, the taps `tap_stride` words apart.
    pub(super) panel: *const u32,
    pub(super) tap_stride: usize,
    /// Where the sums go, the rows `out_stride` floats apart.
    pub(super) out: *mut f32,
    pub(super) out_stride: usize,
    /// Whether the sums add to what is there.
    pub(super) accumulate: bool,
}

pub(super) type TileFn = unsafe fn(&Tile);

pub(super) type SessionFn = unsafe fn();

/// The microkernels of one instruction set.
pub(super) struct Kernels {
    /// Floats in a vector.
    pub(super) lanes: usize,
    /// Most rows in a tile.
    pub(super) rows: usize,
    /// A pixel's steps are a multiple of this.
    pub(super) depth: usize,
    /// Products of two numbers in the time that products of f32 take for one; how tasks are chosen, not what they compute.
    pub(super) speed: f64,
    /// `[vectors - 1][rows - 1]`; of the last rows the sums of a whole tile may be written.
    pub(super) tiles: [&'static [TileFn]; 2],
    /// What a thread calls before its first tile, and after its last.
    pub(super) session: Option<(SessionFn, SessionFn)>,
}

/// While it lives, its thread may call the tiles of its kernels; it cannot leave that thread.
pub(super) struct Session {
    end: Option<SessionFn>,
    thread: PhantomData<*const ()>,
}

impl Drop for Session {
    fn drop(&mut self) {
        if let Some(end) = self.end {
            // SAFETY: the session was begun on this thread.
            unsafe { end() }
        }
    }
}

impl Kernels {
    /// Columns in a full panel.
    pub(super) fn columns(&self) -> usize {
        2 * self.lanes
    }

    /// Makes this thread ready.
    ///
    /// # Safety
    /// The instructions must be there.
    pub(super) unsafe fn session(&self) -> Session {
        if let Some((begin, _)) = self.session {
            // SAFETY: the caller's promise.
            unsafe { begin() }
        }
        Session { end: self.session.map(|(_, end)| end), thread: PhantomData }
    }
}

/// A unit that multiplies and adds vectors.
///
/// # Safety
/// Its instructions must be there, and every pointer good for a vector, or for a word where one is repeated.
pub(super) trait Unit {
    type Sums: Copy;
    type Words: Copy;
    const LANES: usize;
    unsafe fn zero() -> Self::Sums;
    unsafe fn load_sums(from: *const f32) -> Self::Sums;
    unsafe fn store(sums: Self::Sums, to: *mut f32);
    unsafe fn load(from: *const u32) -> Self::Words;
    unsafe fn splat(from: *const u32) -> Self::Words;
    unsafe fn multiply_add(a: Self::Words, b: Self::Words, sums: Self::Sums) -> Self::Sums;
}

/// # Safety
/// The unit's instructions must exist, and the pointers of `tile` must be good for what its fields say.
#[inline(always)]
unsafe fn run<U: Unit, const ROWS: usize, const VECTORS: usize>(tile: &Tile) {
    // SAFETY: the caller's promise covers every read and write below.
    unsafe {
        let width = VECTORS * U::LANES;
        let mut sums = [[U::zero(); VECTORS]; ROWS];
        if tile.accumulate {
            for (i, row) in sums.iter_mut().enumerate() {
                for (v, sum) in row.iter_mut().enumerate() {
                    *sum = U::load_sums(tile.out.add(i * tile.out_stride + v * U::LANES));
                }
            }
        }
        for tap in 0..tile.taps {
            let pointers = tile.rows.add(tap * MAX_ROWS);
            let rows: [*const u32; ROWS] = std::array::from_fn(|i| (*pointers.add(i)).add(tile.offset));
            let mut panel = tile.panel.add(tap * tile.tap_stride);
            for k in 0..tile.steps {
                let b: [U::Words; VECTORS] = std::array::from_fn(|v| U::load(panel.add(v * U::LANES)));
                for i in 0..ROWS {
                    let a = U::splat(rows[i].add(k));
                    for v in 0..VECTORS {
                        sums[i][v] = U::multiply_add(a, b[v], sums[i][v]);
                    }
                }
                panel = panel.add(width);
            }
        }
        for (i, row) in sums.iter().enumerate() {
            for (v, sum) in row.iter().enumerate() {
                U::store(*sum, tile.out.add(i * tile.out_stride + v * U::LANES));
            }
        }
    }
}

macro_rules! kernels {
    ($vis:vis $name:ident, $unit:ty, $speed:literal, $doc:literal, $(#[$feature:meta])? [$($rows:literal)*]) => {
        #[doc = $doc]
        $vis static $name: Kernels = {
            $(#[$feature])?
            unsafe fn tile<const ROWS: usize, const VECTORS: usize>(tile: &Tile) {
                // SAFETY: the caller's promise is that of `run`.
                unsafe { run::<$unit, ROWS, VECTORS>(tile) }
            }
            const ONE: &[TileFn] = &[$(tile::<$rows, 1>),*];
            const TWO: &[TileFn] = &[$(tile::<$rows, 2>),*];
            Kernels { lanes: <$unit as Unit>::LANES, rows: TWO.len(), depth: 1, speed: $speed, tiles: [ONE, TWO], session: None }
        };
    };
}

/// Plain Rust.
pub(super) struct Portable;

impl Unit for Portable {
    type Sums = [f32; 4];
    type Words = [f32; 4];
    const LANES: usize = 4;

    #[inline(always)]
    unsafe fn zero() -> Self::Sums {
        [0.0; 4]
    }

    #[inline(always)]
    unsafe fn load_sums(from: *const f32) -> Self::Sums {
        // SAFETY: the caller's promise.
        unsafe { from.cast::<[f32; 4]>().read_unaligned() }
    }

    #[inline(always)]
    unsafe fn store(sums: Self::Sums, to: *mut f32) {
        // SAFETY: the caller's promise.
        unsafe { to.cast::<[f32; 4]>().write_unaligned(sums) }
    }

    #[inline(always)]
    unsafe fn load(from: *const u32) -> Self::Words {
        // SAFETY: the caller's promise.
        unsafe { from.cast::<[f32; 4]>().read_unaligned() }
    }

    #[inline(always)]
    unsafe fn splat(from: *const u32) -> Self::Words {
        // SAFETY: the caller's promise.
        [unsafe { from.cast::<f32>().read_unaligned() }; 4]
    }

    #[inline(always)]
    unsafe fn multiply_add(a: Self::Words, b: Self::Words, sums: Self::Sums) -> Self::Sums {
        std::array::from_fn(|i| sums[i] + a[i] * b[i])
    }
}

kernels!(pub(super) PORTABLE, Portable, 1.0, "Plain Rust, for any processor.", [1 2 3 4]);

#[cfg(target_arch = "x86_64")]
pub(super) use x86::{AVX2, AVX512, AVX512_BF16, Avx2, Avx512};

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::{Kernels, Tile, TileFn, Unit, run};
    use std::arch::x86_64::*;

    /// Implements [`Unit`] for f32 vectors from the names of their intrinsics.
    macro_rules! f32_unit {
        ($unit:ident, $vector:ty, $lanes:literal, $zero:ident, $load:ident, $store:ident, $splat:ident, $fma:ident) => {
            /// Vectors of f32.
            pub(in super::super) struct $unit;

            impl Unit for $unit {
                type Sums = $vector;
                type Words = $vector;
                const LANES: usize = $lanes;

                #[inline(always)]
                unsafe fn zero() -> Self::Sums {
                    // SAFETY: the caller's promise.
                    unsafe { $zero() }
                }

                #[inline(always)]
                unsafe fn load_sums(from: *const f32) -> Self::Sums {
                    // SAFETY: the caller's promise.
                    unsafe { $load(from) }
                }

                #[inline(always)]
                unsafe fn store(sums: Self::Sums, to: *mut f32) {
                    // SAFETY: the caller's promise.
                    unsafe { $store(to, sums) }
                }

                #[inline(always)]
                unsafe fn load(from: *const u32) -> Self::Words {
                    // SAFETY: the caller's promise.
                    unsafe { $load(from.cast()) }
                }

                #[inline(always)]
                unsafe fn splat(from: *const u32) -> Self::Words {
                    // SAFETY: the caller's promise.
                    unsafe { $splat(from.cast::<f32>().read_unaligned()) }
                }

                #[inline(always)]
                unsafe fn multiply_add(a: Self::Words, b: Self::Words, sums: Self::Sums) -> Self::Sums {
                    // SAFETY: the caller's promise.
                    unsafe { $fma(a, b, sums) }
                }
            }
        };
    }

    f32_unit!(Avx2, __m256, 8, _mm256_setzero_ps, _mm256_loadu_ps, _mm256_storeu_ps, _mm256_set1_ps, _mm256_fmadd_ps);
    f32_unit!(Avx512, __m512, 16, _mm512_setzero_ps, _mm512_loadu_ps, _mm512_storeu_ps, _mm512_set1_ps, _mm512_fmadd_ps);

    /// Words are two bf16; each product of words is two products, added in f32.
    struct Avx512Bf16;

    impl Unit for Avx512Bf16 {
        type Sums = __m512;
        type Words = __m512i;
        const LANES: usize = 16;

        #[inline(always)]
        unsafe fn zero() -> Self::Sums {
            // SAFETY: the caller's promise.
            unsafe { _mm512_setzero_ps() }
        }

        #[inline(always)]
        unsafe fn load_sums(from: *const f32) -> Self::Sums {
            // SAFETY: the caller's promise.
            unsafe { _mm512_loadu_ps(from) }
        }

        #[inline(always)]
        unsafe fn store(sums: Self::Sums, to: *mut f32) {
            // SAFETY: the caller's promise.
            unsafe { _mm512_storeu_ps(to, sums) }
        }

        #[inline(always)]
        unsafe fn load(from: *const u32) -> Self::Words {
            // SAFETY: the caller's promise.
            unsafe { _mm512_loadu_si512(from.cast()) }
        }

        #[inline(always)]
        unsafe fn splat(from: *const u32) -> Self::Words {
            // SAFETY: the caller's promise.
            unsafe { _mm512_set1_epi32(from.read_unaligned().cast_signed()) }
        }

        #[inline(always)]
        unsafe fn multiply_add(a: Self::Words, b: Self::Words, sums: Self::Sums) -> Self::Sums {
            // SAFETY: the caller's promise; the transmutes only rename 512 bits.
            unsafe { _mm512_dpbf16_ps(sums, std::mem::transmute::<__m512i, __m512bh>(a), std::mem::transmute::<__m512i, __m512bh>(b)) }
        }
    }

    kernels!(pub(in super::super) AVX2, Avx2, 1.0, "AVX2 and FMA.", #[target_feature(enable = "avx2,fma")] [1 2 3 4 5 6]);
    kernels!(pub(in super::super) AVX512, Avx512, 1.0, "AVX-512.", #[target_feature(enable = "avx512f")] [1 2 3 4 5 6 7 8 9 10 11 12 13 14]);
    kernels!(pub(in super::super) AVX512_BF16, Avx512Bf16, 2.0, "AVX-512 with products of bf16.", #[target_feature(enable = "avx512f,avx512bf16")] [1 2 3 4 5 6 7 8 9 10 11 12 13 14]);
}

#[cfg(target_arch = "aarch64")]
pub(super) use aarch64::{NEON, NEON_BF16, Neon};

#[cfg(target_arch = "aarch64")]
mod aarch64 {
    use super::{Kernels, Tile, TileFn, Unit, run};
    use std::arch::aarch64::*;

    /// Two registers make a vector of eight, so that a tile fills the 32 registers.
    pub(in super::super) struct Neon;

    impl Unit for Neon {
        type Sums = float32x4x2_t;
        type Words = float32x4x2_t;
        const LANES: usize = 8;

        #[inline(always)]
        unsafe fn zero() -> Self::Sums {
            // SAFETY: the caller's promise.
            unsafe { float32x4x2_t(vdupq_n_f32(0.0), vdupq_n_f32(0.0)) }
        }

        #[inline(always)]
        unsafe fn load_sums(from: *const f32) -> Self::Sums {
            // SAFETY: the caller's promise.
            unsafe { float32x4x2_t(vld1q_f32(from), vld1q_f32(from.add(4))) }
        }

        #[inline(always)]
        unsafe fn store(sums: Self::Sums, to: *mut f32) {
            // SAFETY: the caller's promise.
            unsafe {
                vst1q_f32(to, sums.0);
                vst1q_f32(to.add(4), sums.1);
            }
        }

        #[inline(always)]
        unsafe fn load(from: *const u32) -> Self::Words {
            // SAFETY: the caller's promise.
            unsafe { Self::load_sums(from.cast()) }
        }

        #[inline(always)]
        unsafe fn splat(from: *const u32) -> Self::Words {
            // SAFETY: the caller's promise.
            unsafe {
                let a = vdupq_n_f32(from.cast::<f32>().read_unaligned());
                float32x4x2_t(a, a)
            }
        }

        #[inline(always)]
        unsafe fn multiply_add(a: Self::Words, b: Self::Words, sums: Self::Sums) -> Self::Sums {
            // SAFETY: the caller's promise.
            unsafe { float32x4x2_t(vfmaq_f32(sums.0, a.0, b.0), vfmaq_f32(sums.1, a.1, b.1)) }
        }
    }

    /// Words are two bf16; each product of words is two products, added in f32 (Arm ARM, FEAT_BF16's `BFDOT`).
    struct NeonBf16;

    /// Rust has no stable intrinsic for it.
    #[inline(always)]
    unsafe fn bfdot(sums: float32x4_t, a: uint32x4_t, b: uint32x4_t) -> float32x4_t {
        let mut sums = sums;
        // SAFETY: the caller's promise: the instruction is there. It touches nothing but its registers.
        unsafe {
            std::arch::asm!(
                "bfdot {sums:v}.4s, {a:v}.8h, {b:v}.8h",
                sums = inout(vreg) sums,
                a = in(vreg) a,
                b = in(vreg) b,
                options(pure, nomem, nostack, preserves_flags),
            );
        }
        sums
    }

    impl Unit for NeonBf16 {
        type Sums = float32x4x2_t;
        type Words = uint32x4x2_t;
        const LANES: usize = 8;

        #[inline(always)]
        unsafe fn zero() -> Self::Sums {
            // SAFETY: the caller's promise.
            unsafe { Neon::zero() }
        }

        #[inline(always)]
        unsafe fn load_sums(from: *const f32) -> Self::Sums {
            // SAFETY: the caller's promise.
            unsafe { Neon::load_sums(from) }
        }

        #[inline(always)]
        unsafe fn store(sums: Self::Sums, to: *mut f32) {
            // SAFETY: the caller's promise.
            unsafe { Neon::store(sums, to) }
        }

        #[inline(always)]
        unsafe fn load(from: *const u32) -> Self::Words {
            // SAFETY: the caller's promise.
            unsafe { uint32x4x2_t(vld1q_u32(from), vld1q_u32(from.add(4))) }
        }

        #[inline(always)]
        unsafe fn splat(from: *const u32) -> Self::Words {
            // SAFETY: the caller's promise.
            unsafe {
                let a = vdupq_n_u32(from.read_unaligned());
                uint32x4x2_t(a, a)
            }
        }

        #[inline(always)]
        unsafe fn multiply_add(a: Self::Words, b: Self::Words, sums: Self::Sums) -> Self::Sums {
            // SAFETY: the caller's promise.
            unsafe { float32x4x2_t(bfdot(sums.0, a.0, b.0), bfdot(sums.1, a.1, b.1)) }
        }
    }

    kernels!(pub(in super::super) NEON, Neon, 1.0, "Advanced SIMD.", #[target_feature(enable = "neon")] [1 2 3 4 5 6]);
    kernels!(pub(in super::super) NEON_BF16, NeonBf16, 2.0, "Advanced SIMD with products of bf16.", #[target_feature(enable = "neon,bf16")] [1 2 3 4 5 6]);
}
