//! Functions of one f32 written so that a loop over them becomes vector instructions: no branches, no tables.

/// What the instructions at hand can do; constants where it is used, so that nothing is decided in a loop.
#[derive(Debug, Clone, Copy)]
pub(super) struct Math {
    /// A multiplication and an addition are one instruction; without it `f32::mul_add` is a library call.
    pub(super) fused: bool,
    /// There is an instruction that rounds f32 to bf16: AVX-512 BF16.
    pub(super) bf16: bool,
    /// There are vectors of sixteen f32: AVX-512 F, BW, DQ and VL.
    pub(super) sixteens: bool,
}

impl Math {
    /// `a · b + c`
    #[inline(always)]
    pub(super) fn mul_add(self, a: f32, b: f32, c: f32) -> f32 {
        if self.fused { a.mul_add(b, c) } else { a * b + c }
    }

    /// A polynomial, the highest coefficient first.
    #[inline(always)]
    fn polynomial<const N: usize>(self, x: f32, coefficients: [f32; N]) -> f32 {
        let mut y = coefficients[0];
        for &c in &coefficients[1..] {
            y = self.mul_add(y, x, c);
        }
        y
    }

    /// `e^x`
    ///
    /// # Source
    /// Cephes' `expf`: its polynomial is right to about 1 ulp on `|f| ≤ ln(2)/2`.
    #[inline(always)]
    pub(super) fn exp(self, x: f32) -> f32 {
        let shifted = self.mul_add(x, std::f32::consts::LOG2_E, SHIFT);
        let n = shifted - SHIFT;
        // ln 2 in two parts, the first (355/512) short enough that its product with n is exact.
        let f = self.mul_add(n, 2.121_944_4e-4, self.mul_add(n, -0.693_359_4, x));
        let p = self.polynomial(f, [1.987_569_1e-4, 1.398_2e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_6e-1, 0.5]);
        let y = self.mul_add(p * f, f, f) + 1.0;
        let y = y * f32::from_bits(shifted.to_bits().wrapping_sub(SHIFT.to_bits()).wrapping_add(127) << 23);
        let y = if x < -87.3 { 0.0 } else { y };
        if x > 88.3 { f32::INFINITY } else { y }
    }

    /// `2^x` for `x < 128` to 2e-7 of it; 0 below the normal numbers.
    ///
    /// # Source
    /// Polynomials of least relative error on `|f| ≤ 1/2`, fitted here, exact at 0.
    #[inline(always)]
    #[expect(clippy::approx_constant, reason = "near ln 2, but fitted")]
    pub(super) fn exp2(self, x: f32) -> f32 {
        self.exp2_by(x, [1.326_472_7e-3, 9.671_513e-3, 5.550_733_6e-2, 2.402_224_2e-1, 6.931_47e-1, 1.0])
    }

    /// `2^x` to 1.1e-4 of it, for results that are rounded to bf16.
    #[inline(always)]
    pub(super) fn exp2_coarse(self, x: f32) -> f32 {
        self.exp2_by(x, [5.500_892_4e-2, 2.422_109_7e-1, 6.932_829e-1, 1.0])
    }

    #[inline(always)]
    fn exp2_by<const N: usize>(self, x: f32, coefficients: [f32; N]) -> f32 {
        let shifted = x + SHIFT;
        let y = self.polynomial(x - (shifted - SHIFT), coefficients);
        // The integer, moved to the exponent's place; what else SHIFT has leaves at the top.
        let y = f32::from_bits(y.to_bits().wrapping_add(shifted.to_bits() << 23));
        if x < -126.0 { 0.0 } else { y }
    }

    /// The error function.
    ///
    /// # Source
    /// N. Juffa's single-precision approximation in two pieces, at most 1 ulp, <https://stackoverflow.com/a/35148199>.
    #[inline(always)]
    pub(super) fn erf(self, x: f32) -> f32 {
        let t = x.abs();
        let s = x * x;
        let tail = self.polynomial(t, [-1.728_534_7e-5, 3.831_979_7e-4, -3.883_964_4e-3, 2.425_462_2e-2, -1.067_778_8e-1, -6.348_467e-1]);
        let tail = self.mul_add(self.mul_add(tail, t, -1.287_175_1e-1), t, -t);
        let tail = (1.0 - self.exp(tail)).copysign(x);
        let near = self.polynomial(s, [-5.967_617e-4, 4.991_192_3e-3, -2.676_813_5e-2, 1.128_199_2e-1, -3.761_253_4e-1, 1.283_791_7e-1]);
        let near = self.mul_add(near, x, x);
        if t > 0.927_734_4 { tail } else { near }
    }

    /// `1 / (1 + e^-x)`
    #[inline(always)]
    pub(super) fn sigmoid(self, x: f32) -> f32 {
        1.0 / (1.0 + self.exp(-x))
    }

    /// `x · sigmoid(x)`
    #[inline(always)]
    pub(super) fn silu(self, x: f32) -> f32 {
        x / (1.0 + self.exp(-x))
    }

    /// `x · Φ(x)`
    #[inline(always)]
    pub(super) fn gelu(self, x: f32) -> f32 {
        0.5 * x * (1.0 + self.erf(x * std::f32::consts::FRAC_1_SQRT_2))
    }

    /// `x · sigmoid(1.702 x)`
    #[inline(always)]
    pub(super) fn quick_gelu(self, x: f32) -> f32 {
        x * self.sigmoid(1.702 * x)
    }
}

/// Elements that a reduction takes side by side; the same everywhere, so that sums have one order.
pub(super) const LANES: usize = 16;

/// Folds the lanes, a power of two of them, in halves, which is shuffles of a vector and not a chain.
#[inline(always)]
pub(super) fn reduce<const N: usize>(mut lanes: [f32; N], f: impl Fn(f32, f32) -> f32) -> f32 {
    let mut width = N / 2;
    while width > 0 {
        for i in 0..width {
            lanes[i] = f(lanes[i], lanes[i + width]);
        }
        width /= 2;
    }
    lanes[0]
}

/// Adding it leaves a number's nearest integer in the low bits.
const SHIFT: f32 = 12_582_912.0;

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Tensor;

    /// Values from -100 to 100, denser near 0.
    fn points() -> Vec<f32> {
        (-60_000..=60_000).map(|i| (i as f32 / 20_000.0).powi(3) * 3.7).collect()
    }

    fn worst(f: impl Fn(f32) -> f32, exact: impl Fn(f64) -> f64, floor: f64) -> f64 {
        points().iter().map(|&x| ((f64::from(f(x)) - exact(f64::from(x))) / exact(f64::from(x)).abs().max(floor)).abs()).fold(0.0, f64::max)
    }

    #[test]
    fn functions_are_right_to_about_one_ulp() {
        for fused in [false, true] {
            let math = Math { fused, bf16: false, sixteens: false };
            let cut = |x: f64| {
                if x < -87.3 {
                    0.0
                } else if x > 88.3 {
                    1e300
                } else {
                    x.exp()
                }
            };
            let exp = |x: f32| if x > 88.3 { 1.0 } else { math.exp(x) };
            assert!(worst(exp, |x| if x > f64::from(88.3f32) { 1.0 } else { cut(x) }, 1e-37) < 2e-7);
            assert!(worst(|x| math.exp2(x), |x| if x < -126.0 { 0.0 } else { x.exp2() }, 1e-37) < 2e-7);
            assert!(worst(|x| math.exp2_coarse(x), |x| if x < -126.0 { 0.0 } else { x.exp2() }, 1e-37) < 1.2e-4);
            assert!(worst(|x| math.sigmoid(x), |x| 1.0 / (1.0 + (-x).exp()), 1e-30) < 3e-7);
            let erf = |x: f64| {
                let erf = Tensor::new(&[x], &candle_core::Device::Cpu).and_then(|x| x.erf()?.to_vec1::<f64>());
                erf.map(|erf| erf[0]).unwrap_or(f64::NAN)
            };
            assert!(worst(|x| math.erf(x), erf, 1e-30) < 2e-7);
        }
    }

    #[test]
    fn extremes_stay_in_their_place() {
        let math = Math { fused: true, bf16: false, sixteens: false };
        assert_eq!(math.exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(math.exp(f32::INFINITY), f32::INFINITY);
        assert_eq!(math.exp2(f32::NEG_INFINITY), 0.0);
        assert_eq!(math.silu(-1e30), 0.0);
        assert_eq!(math.gelu(1e10), 1e10);
        for y in [math.exp(f32::NAN), math.erf(f32::NAN), math.silu(f32::NAN), math.exp2(f32::NAN)] {
            assert!(y.is_nan());
        }
    }
}
