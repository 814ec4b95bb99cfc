//! The storage types, and how tensors are read and made.
#![expect(unsafe_code, reason = "results are written once, into memory that was not cleared first; one conversion is an instruction")]

use super::math::Math;
use candle_core::{DType, Device, Result, Storage, Tensor, WithDType};
use half::{bf16, f16};
use std::mem::MaybeUninit;
use std::ops::Deref;

#[cfg(target_arch = "x86_64")]
pub(super) use super::sixteens::Sixteens as Vectors;

/// Where loops are good enough.
#[cfg(not(target_arch = "x86_64"))]
pub(super) trait Vectors {}

#[cfg(not(target_arch = "x86_64"))]
impl<T> Vectors for T {}

/// A type that activations are stored in. The conversions have no branches, so that loops over them are vectors.
pub(super) trait Element: WithDType + Vectors {
    /// To the f32 of the same value.
    fn widen(self) -> f32;
    /// To the nearest, ties to even.
    fn narrow(x: f32) -> Self;

    /// [`Element::narrow`] of many at once, written to as many places.
    #[inline(always)]
    fn narrow_all(_: Math, from: &[f32], to: &mut [MaybeUninit<Self>]) {
        for (to, from) in to.iter_mut().zip(from) {
            to.write(Self::narrow(*from));
        }
    }
}

/// Makes `y` of `x`, which are as long: `f` gets parts of `x` with their places, and gives the results in f32.
#[inline(always)]
pub(super) fn map<'a, T: Element, I: Iterator<Item = f32>>(
    math: Math,
    x: &'a [T],
    y: &mut [MaybeUninit<T>],
    f: impl Fn(usize, &'a [T]) -> I,
) {
    if math.bf16 && T::DTYPE == DType::BF16 {
        // The rounding is an instruction over sixteen, which the compiler does not find by itself.
        const BLOCK: usize = 128;
        let mut values = [0.0; BLOCK];
        for (block, (y, x)) in y.chunks_mut(BLOCK).zip(x.chunks(BLOCK)).enumerate() {
            for (value, result) in values.iter_mut().zip(f(block * BLOCK, x)) {
                *value = result;
            }
            T::narrow_all(math, &values[..x.len()], y);
        }
    } else {
        for (y, result) in y.iter_mut().zip(f(0, x)) {
            y.write(T::narrow(result));
        }
    }
}

impl Element for f32 {
    #[inline(always)]
    fn widen(self) -> f32 {
        self
    }

    #[inline(always)]
    fn narrow(x: f32) -> Self {
        x
    }
}

impl Element for bf16 {
    #[inline(always)]
    fn widen(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }

    #[inline(always)]
    fn narrow(x: f32) -> Self {
        let bits = x.to_bits();
        let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16;
        Self::from_bits((if x.is_nan() { 0x7fc0 } else { rounded }) as u16)
    }

    #[inline(always)]
    fn narrow_all(math: Math, from: &[f32], to: &mut [MaybeUninit<Self>]) {
        // SAFETY: `Math` says that the instruction is there.
        let done = if math.bf16 { unsafe { narrow_sixteens(from, to) } } else { 0 };
        for (to, from) in to.iter_mut().zip(from).skip(done) {
            to.write(<Self as Element>::narrow(*from));
        }
    }
}

/// Rounds whole vectors by one instruction each; gives the number of elements done.
///
/// # Safety
/// AVX-512 with BF16 must be there, as [`Math::bf16`] says.
#[inline(always)]
#[cfg(target_arch = "x86_64")]
unsafe fn narrow_sixteens(from: &[f32], to: &mut [MaybeUninit<bf16>]) -> usize {
    use std::arch::x86_64::{__m256bh, _mm512_cvtneps_pbh, _mm512_loadu_ps};
    let mut done = 0;
    for (from, to) in from.chunks_exact(16).zip(to.chunks_exact_mut(16)) {
        // SAFETY: the caller's promise; both chunks have sixteen elements.
        unsafe { to.as_mut_ptr().cast::<__m256bh>().write_unaligned(_mm512_cvtneps_pbh(_mm512_loadu_ps(from.as_ptr()))) };
        done += 16;
    }
    done
}

#[inline(always)]
#[cfg(not(target_arch = "x86_64"))]
unsafe fn narrow_sixteens(_: &[f32], _: &mut [MaybeUninit<bf16>]) -> usize {
    0
}

impl Element for f16 {
    #[inline(always)]
    fn widen(self) -> f32 {
        let bits = u32::from(self.to_bits());
        let magnitude = (bits & 0x7fff) << 13;
        // The exponent is moved by a product, which also makes the subnormals normal.
        let finite = (f32::from_bits(magnitude) * f32::from_bits(0x7780_0000)).to_bits();
        let special = magnitude | 0x7f80_0000;
        let magnitude = if bits & 0x7c00 == 0x7c00 { special } else { finite };
        f32::from_bits(magnitude | (bits & 0x8000) << 16)
    }

    #[inline(always)]
    fn narrow(x: f32) -> Self {
        let bits = x.to_bits();
        let magnitude = bits & 0x7fff_ffff;
        let normal = magnitude.wrapping_add(0xc800_0fff).wrapping_add(magnitude >> 13 & 1) >> 13;
        // Adding one half leaves the subnormal, rounded, in the low bits.
        let subnormal = (f32::from_bits(magnitude) + 0.5).to_bits().wrapping_sub(0x3f00_0000);
        let special = if magnitude > 0x7f80_0000 { 0x7e00 } else { 0x7c00 };
        let y = if magnitude < 0x3880_0000 { subnormal } else { normal };
        let y = if magnitude >= 0x4780_0000 { special } else { y };
        Self::from_bits((y | bits >> 16 & 0x8000) as u16)
    }
}

/// Evaluates an expression with a name bound to the [`Element`] type of a dtype; other dtypes are an error.
macro_rules! with_element {
    ($op:literal, $dtype:expr, $t:ident => $body:expr) => {
        match $dtype {
            candle_core::DType::F32 => {
                type $t = f32;
                $body
            }
            candle_core::DType::BF16 => {
                type $t = half::bf16;
                $body
            }
            candle_core::DType::F16 => {
                type $t = half::f16;
                $body
            }
            dtype => candle_core::bail!("{}: {dtype:?} is not supported, only f32, bf16 and f16", $op),
        }
    };
}
pub(super) use with_element;

/// The elements of a contiguous tensor on the CPU.
pub(super) struct Elements<'a, T> {
    storage: candle_core::StorageRef<'a>,
    start: usize,
    len: usize,
    element: std::marker::PhantomData<T>,
}

impl<'a, T: Element> Elements<'a, T> {
    /// # Errors
    /// When the tensor is elsewhere, not contiguous, or of another dtype.
    pub(super) fn of(x: &'a Tensor) -> Result<Self> {
        let (storage, layout) = x.storage_and_layout();
        let Some((start, end)) = layout.contiguous_offsets() else {
            candle_core::bail!("a tensor of shape {:?} is not contiguous", x.shape());
        };
        let elements = Self { storage, start, len: end - start, element: std::marker::PhantomData };
        match &*elements.storage {
            Storage::Cpu(storage) if T::cpu_storage_as_slice(storage)?.len() >= end => Ok(elements),
            _ => candle_core::bail!("a tensor of shape {:?} is not on the CPU", x.shape()),
        }
    }
}

impl<T: Element> Deref for Elements<'_, T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        match &*self.storage {
            Storage::Cpu(storage) => {
                T::cpu_storage_as_slice(storage).ok().and_then(|all| all.get(self.start..self.start + self.len)).unwrap_or(&[])
            }
            _ => &[],
        }
    }
}

/// A vector of f32 from a tensor of any float dtype.
pub(super) fn to_f32(x: &Tensor) -> Result<Vec<f32>> {
    x.to_dtype(DType::F32)?.flatten_all()?.to_vec1()
}

/// A tensor on the CPU whose elements are written by `fill`.
///
/// # Safety
/// `fill` must write every element.
pub(super) unsafe fn build<T: Element>(shape: &[usize], fill: impl FnOnce(&mut [MaybeUninit<T>])) -> Result<Tensor> {
    // SAFETY: the caller's promise.
    let data = unsafe { build_vec(shape.iter().product(), fill) };
    Tensor::from_vec(data, shape, &Device::Cpu)
}

/// A vector whose elements are written by `fill`.
///
/// # Safety
/// `fill` must write every element.
pub(super) unsafe fn build_vec<T: Copy>(len: usize, fill: impl FnOnce(&mut [MaybeUninit<T>])) -> Vec<T> {
    let mut data = Vec::with_capacity(len);
    let spare = &mut data.spare_capacity_mut()[..len];
    ask_for_huge_pages(spare);
    fill(spare);
    // SAFETY: the capacity is there, and the caller promises that `fill` wrote all of it.
    unsafe { data.set_len(len) };
    data
}

/// A large image of activations is fresh memory on every op, and entering it page by page costs more than filling it:
/// asks the kernel for pages of 2 MiB.
fn ask_for_huge_pages<T>(memory: &mut [MaybeUninit<T>]) {
    #[cfg(target_os = "linux")]
    {
        const HUGE: usize = 2 << 20;
        let range = memory.as_mut_ptr_range();
        let (start, end) = (range.start.addr().next_multiple_of(HUGE), range.end.addr() / HUGE * HUGE);
        if end > start {
            // SAFETY: the whole pages are within memory that this function borrows, and the advice does not change it.
            // Where it is not taken, nothing is lost.
            let _ = unsafe { libc::madvise(memory.as_mut_ptr().with_addr(start).cast(), end - start, libc::MADV_HUGEPAGE) };
        }
    }
    #[cfg(not(target_os = "linux"))]
    let _ = memory;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conversions_agree_with_half_on_every_bit_pattern() {
        for bits in 0..=u16::MAX {
            let (b, h) = (bf16::from_bits(bits), f16::from_bits(bits));
            assert!(b.widen() == b.to_f32() || b.widen().is_nan() && b.to_f32().is_nan());
            assert!(h.widen() == h.to_f32() || h.widen().is_nan() && h.to_f32().is_nan());
        }
        let mut bits = 1u32;
        for i in 0..2_000_000u32 {
            bits = bits.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            // Numbers of any size, and among f16's range with ties.
            let x = f32::from_bits(if i % 2 == 0 { bits } else { (0x3000_0000 + (bits >> 3)) & 0xffff_f000 });
            assert!(<bf16 as Element>::narrow(x) == bf16::from_f32(x) || x.is_nan(), "{x}");
            assert!(<f16 as Element>::narrow(x) == f16::from_f32(x) || x.is_nan(), "{x}");
            assert_eq!(<bf16 as Element>::narrow(x).is_nan(), x.is_nan());
            assert_eq!(<f16 as Element>::narrow(x).is_nan(), x.is_nan());
        }
    }
}
