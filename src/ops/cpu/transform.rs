//! The transforms of Winograd's convolutions along both axes of a tile, on vectors: see `winograd`.
#![expect(unsafe_code, reason = "vector instructions on raw pointers")]

use super::microkernel::Unit;
use std::mem::MaybeUninit;

/// Pixels along the side of a tile that is read.
pub(super) const SIDE: usize = 6;

/// Products of a tile and a channel.
pub(super) const POINTS: usize = SIDE * SIDE;

/// Arrays of floats at equal distances, line by line of a square.
pub(super) struct Plane {
    base: *const f32,
    stride: usize,
}

impl Plane {
    pub(super) fn new(base: *const f32, stride: usize) -> Self {
        Self { base, stride }
    }
}

/// Transforms `len` floats, whole vectors, of every array, and writes what comes out `stride` floats apart.
///
/// # Safety
/// The instructions must be there, the arrays have `len` floats, and there must be room for as many results.
pub(super) type TransformFn = unsafe fn(from: &Plane, to: *mut f32, stride: usize, len: usize);

/// The transforms of one instruction set and number of taps.
pub(super) struct Transforms {
    /// Outputs along the side of a tile.
    pub(super) outputs_side: usize,
    /// From 6×6 pixels to as many points.
    pub(super) pixels: TransformFn,
    /// From the taps to the points.
    pub(super) weights: TransformFn,
    /// From the points to the outputs.
    pub(super) outputs: TransformFn,
}

/// Vectors of f32.
pub(super) trait FloatUnit: Unit<Words = <Self as Unit>::Sums> {}

impl<U: Unit<Words = <U as Unit>::Sums>> FloatUnit for U {}

/// A transform along one axis.
trait AxisTransform<const FROM: usize, const TO: usize> {
    unsafe fn transform<U: FloatUnit>(x: [U::Sums; FROM]) -> [U::Sums; TO];
}

/// `a · factor + b`
#[inline(always)]
unsafe fn times<U: FloatUnit>(a: U::Sums, factor: f32, b: U::Sums) -> U::Sums {
    // SAFETY: the caller's promise; the factor is a word.
    unsafe { U::multiply_add(a, U::splat((&raw const factor).cast()), b) }
}

/// `a · factor`
#[inline(always)]
unsafe fn scaled<U: FloatUnit>(a: U::Sums, factor: f32) -> U::Sums {
    // SAFETY: the caller's promise.
    unsafe { times::<U>(a, factor, U::zero()) }
}

/// The points beside 0 and ∞ are ±[`NEAR`] and ±[`FAR`]. ±1 and ±2 would be as many operations and four times the error: see `NOTES.md`.
const NEAR: f32 = 0.625;
const FAR: f32 = 1.5;

/// Squares of the points.
const NEAR_2: f32 = NEAR * NEAR;
const FAR_2: f32 = FAR * FAR;

/// What the values of the taps at 0, ±[`NEAR`] and ±[`FAR`] are divided by: the products of the distances to the other points.
const AT_ZERO: f32 = NEAR_2 * FAR_2;
const AT_NEAR: f32 = 2.0 * NEAR_2 * (NEAR_2 - FAR_2);
const AT_FAR: f32 = 2.0 * FAR_2 * (FAR_2 - NEAR_2);

/// `even ± odd · factor`
#[inline(always)]
unsafe fn at_both<U: FloatUnit>(even: U::Sums, factor: f32, odd: U::Sums) -> (U::Sums, U::Sums) {
    // SAFETY: the caller's promise.
    unsafe { (times::<U>(odd, factor, even), times::<U>(odd, -factor, even)) }
}

struct Pixels;

impl AxisTransform<SIDE, SIDE> for Pixels {
    #[inline(always)]
    unsafe fn transform<U: FloatUnit>(d: [U::Sums; SIDE]) -> [U::Sums; SIDE] {
        // SAFETY: the caller's promise.
        unsafe {
            let without_ends = |x: [U::Sums; 3]| times::<U>(x[0], AT_ZERO, times::<U>(x[1], -(NEAR_2 + FAR_2), x[2]));
            let (plus_near, minus_near) = at_both::<U>(times::<U>(d[2], -FAR_2, d[4]), NEAR, times::<U>(d[1], -FAR_2, d[3]));
            let (plus_far, minus_far) = at_both::<U>(times::<U>(d[2], -NEAR_2, d[4]), FAR, times::<U>(d[1], -NEAR_2, d[3]));
            [without_ends([d[0], d[2], d[4]]), plus_near, minus_near, plus_far, minus_far, without_ends([d[1], d[3], d[5]])]
        }
    }
}

struct Weights;

impl AxisTransform<3, SIDE> for Weights {
    #[inline(always)]
    unsafe fn transform<U: FloatUnit>([first, second, last]: [U::Sums; 3]) -> [U::Sums; SIDE] {
        // SAFETY: the caller's promise.
        unsafe {
            let near = scaled::<U>(times::<U>(last, NEAR_2, first), 1.0 / AT_NEAR);
            let far = scaled::<U>(times::<U>(last, FAR_2, first), 1.0 / AT_FAR);
            let (plus_near, minus_near) = at_both::<U>(near, NEAR / AT_NEAR, second);
            let (plus_far, minus_far) = at_both::<U>(far, FAR / AT_FAR, second);
            [scaled::<U>(first, 1.0 / AT_ZERO), plus_near, minus_near, plus_far, minus_far, last]
        }
    }
}

impl AxisTransform<2, SIDE> for Weights {
    #[inline(always)]
    unsafe fn transform<U: FloatUnit>([first, last]: [U::Sums; 2]) -> [U::Sums; SIDE] {
        // SAFETY: the caller's promise.
        unsafe {
            let (plus_near, minus_near) = at_both::<U>(scaled::<U>(first, 1.0 / AT_NEAR), NEAR / AT_NEAR, last);
            let (plus_far, minus_far) = at_both::<U>(scaled::<U>(first, 1.0 / AT_FAR), FAR / AT_FAR, last);
            [scaled::<U>(first, 1.0 / AT_ZERO), plus_near, minus_near, plus_far, minus_far, last]
        }
    }
}

/// Products at the four points, in powers that are even and odd in the point: `x₁ + x₂`, `x₁ - x₂`, and the same of the far ones.
#[inline(always)]
unsafe fn halves<U: FloatUnit>(m: &[U::Sums; SIDE]) -> [U::Sums; 4] {
    // SAFETY: the caller's promise.
    unsafe {
        let ((even, odd), (far_even, far_odd)) = (at_both::<U>(m[1], 1.0, m[2]), at_both::<U>(m[3], 1.0, m[4]));
        [even, odd, far_even, far_odd]
    }
}

/// `near · NEARⁿ + far · FARⁿ`
#[inline(always)]
unsafe fn power<U: FloatUnit>(near: U::Sums, far: U::Sums, n: i32) -> U::Sums {
    let (mut by_near, mut by_far) = (1.0, 1.0);
    for _ in 0..n {
        by_near *= NEAR;
        by_far *= FAR;
    }
    // SAFETY: the caller's promise.
    unsafe { times::<U>(near, by_near, scaled::<U>(far, by_far)) }
}

struct Outputs;

impl AxisTransform<SIDE, 4> for Outputs {
    #[inline(always)]
    unsafe fn transform<U: FloatUnit>(m: [U::Sums; SIDE]) -> [U::Sums; 4] {
        // SAFETY: the caller's promise.
        unsafe {
            let [even, odd, far_even, far_odd] = halves::<U>(&m);
            [
                times::<U>(m[0], 1.0, times::<U>(even, 1.0, far_even)),
                power::<U>(odd, far_odd, 1),
                power::<U>(even, far_even, 2),
                times::<U>(m[5], 1.0, power::<U>(odd, far_odd, 3)),
            ]
        }
    }
}

impl AxisTransform<SIDE, 5> for Outputs {
    #[inline(always)]
    unsafe fn transform<U: FloatUnit>(m: [U::Sums; SIDE]) -> [U::Sums; 5] {
        // SAFETY: the caller's promise.
        unsafe {
            let [even, odd, far_even, far_odd] = halves::<U>(&m);
            [
                times::<U>(m[0], 1.0, times::<U>(even, 1.0, far_even)),
                power::<U>(odd, far_odd, 1),
                power::<U>(even, far_even, 2),
                power::<U>(odd, far_odd, 3),
                times::<U>(m[5], 1.0, power::<U>(even, far_even, 4)),
            ]
        }
    }
}

/// Both axes of [`TransformFn`]'s arrays.
#[inline(always)]
unsafe fn transform<U: FloatUnit, A: AxisTransform<FROM, TO>, const FROM: usize, const TO: usize>(
    from: &Plane,
    to: *mut f32,
    stride: usize,
    len: usize,
) {
    // SAFETY: the caller's promise covers the reads and writes; every line is written before it is read.
    unsafe {
        for at in (0..len).step_by(U::LANES) {
            let mut lines = [[MaybeUninit::<U::Sums>::uninit(); FROM]; TO];
            for column in 0..FROM {
                let values = std::array::from_fn(
                    #[inline(always)]
                    |line| U::load_sums(from.base.add((line * FROM + column) * from.stride + at)),
                );
                for (line, value) in lines.iter_mut().zip(A::transform::<U>(values)) {
                    line[column].write(value);
                }
            }
            for (line, values) in lines.iter().enumerate() {
                let values = std::array::from_fn(
                    #[inline(always)]
                    |column| values[column].assume_init(),
                );
                for (column, value) in A::transform::<U>(values).into_iter().enumerate() {
                    U::store(value, to.add((line * TO + column) * stride + at));
                }
            }
        }
    }
}

/// The transforms of 3 and of 2 taps.
macro_rules! transforms {
    ($vis:vis $name:ident, $unit:ty, $doc:literal $(, #[$feature:meta])?) => {
        #[doc = $doc]
        $vis static $name: [Transforms; 2] = {
            $(#[$feature])?
            unsafe fn axes<A: AxisTransform<FROM, TO>, const FROM: usize, const TO: usize>(from: &Plane, to: *mut f32, stride: usize, len: usize) {
                // SAFETY: the caller's promise is that of `transform`.
                unsafe { transform::<$unit, A, FROM, TO>(from, to, stride, len) }
            }
            let pixels = axes::<Pixels, SIDE, SIDE> as TransformFn;
            [
                Transforms { outputs_side: 4, pixels, weights: axes::<Weights, 3, SIDE>, outputs: axes::<Outputs, SIDE, 4> },
                Transforms { outputs_side: 5, pixels, weights: axes::<Weights, 2, SIDE>, outputs: axes::<Outputs, SIDE, 5> },
            ]
        };
    };
}

transforms!(pub(super) PORTABLE, super::microkernel::Portable, "Plain Rust.");
#[cfg(target_arch = "x86_64")]
transforms!(pub(super) AVX2, super::microkernel::Avx2, "AVX2 and FMA.", #[target_feature(enable = "avx2,fma")]);
#[cfg(target_arch = "x86_64")]
transforms!(pub(super) AVX512, super::microkernel::Avx512, "AVX-512.", #[target_feature(enable = "avx512f")]);
#[cfg(target_arch = "aarch64")]
transforms!(pub(super) NEON, super::microkernel::Neon, "Advanced SIMD.");
