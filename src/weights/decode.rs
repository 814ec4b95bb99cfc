//! Turns the bytes of one stored tensor into numbers of another type.
//!
//! Numbers are converted in blocks from the stored bytes into the memory of the result: there is no copy in between, and
//! equal types are copied as they are.

use candle_core::{DType, Device, Tensor, WithDType};
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use rayon::prelude::*;
use safetensors::Dtype;

/// Numbers converted at once: small enough for the first-level cache, large enough to amortise the call.
const BLOCK: usize = 2048;
/// Numbers that one thread takes.
const SHARE: usize = 64 * BLOCK;

/// Whether tensors of this type can be read as weights.
pub(crate) fn readable(dtype: Dtype) -> bool {
    matches!(dtype, Dtype::F64 | Dtype::F32 | Dtype::F16 | Dtype::BF16 | Dtype::F8_E4M3 | Dtype::F8_E5M2)
}

/// Whether all numbers in `bytes` are finite.
pub(crate) fn are_finite(bytes: &[u8], stored: Dtype) -> bool {
    // All bits of an exponent are set in what is not finite.
    fn bits<const N: usize>(bytes: &[u8], exponent: u32, of: impl Fn(&[u8; N]) -> u32) -> bool {
        bytes.as_chunks().0.iter().fold(true, |all, number| all & (of(number) & exponent != exponent))
    }
    let share = SHARE * stored.bitsize().div_ceil(8);
    bytes.par_chunks(share.max(1)).all(|bytes| match stored {
        Dtype::F32 => bits::<4>(bytes, 0x7f80_0000, |x| u32::from_le_bytes(*x)),
        Dtype::F16 => bits::<2>(bytes, 0x7c00, |x| u16::from_le_bytes(*x).into()),
        Dtype::BF16 => bits::<2>(bytes, 0x7f80, |x| u16::from_le_bytes(*x).into()),
        _ => numbers::<f32>(bytes, stored).iter().all(|x| x.is_finite()),
    })
}

/// Types of numbers that are computed with, and the stored types that are the same.
const SAME: [(DType, Dtype); 4] =
    [(DType::F32, Dtype::F32), (DType::F16, Dtype::F16), (DType::BF16, Dtype::BF16), (DType::F64, Dtype::F64)];

/// The type of numbers that are computed with which is the same as a stored type.
pub(crate) fn computed_as(stored: Dtype) -> Option<DType> {
    SAME.iter().find(|(_, same)| *same == stored).map(|(computed, _)| *computed)
}

/// The tensor of `shape` in `bytes`; `None` where one of the types is not converted.
pub(crate) fn tensor(bytes: &[u8], stored: Dtype, shape: &[usize], dtype: DType, device: &Device) -> Option<candle_core::Result<Tensor>> {
    fn made<N: Number + WithDType>(bytes: &[u8], stored: Dtype, shape: &[usize], device: &Device) -> candle_core::Result<Tensor> {
        Tensor::from_vec(numbers::<N>(bytes, stored), shape, device)
    }
    if !readable(stored) {
        return None;
    }
    Some(match dtype {
        DType::F32 => made::<f32>(bytes, stored, shape, device),
        DType::F16 => made::<f16>(bytes, stored, shape, device),
        DType::BF16 => made::<bf16>(bytes, stored, shape, device),
        DType::F64 => made::<f64>(bytes, stored, shape, device),
        _ => return None,
    })
}

/// The numbers in `bytes` as the bytes of another type; `None` where one of the types is not converted.
pub(crate) fn bytes_as(bytes: &[u8], stored: Dtype, wanted: Dtype) -> Option<Vec<u8>> {
    if !readable(stored) {
        return None;
    }
    Some(match wanted {
        Dtype::F32 => written(&numbers::<f32>(bytes, stored)),
        Dtype::F16 => written(&numbers::<f16>(bytes, stored)),
        Dtype::BF16 => written(&numbers::<bf16>(bytes, stored)),
        Dtype::F64 => written(&numbers::<f64>(bytes, stored)),
        Dtype::F8_E4M3 => numbers::<f32>(bytes, stored).into_par_iter().with_min_len(SHARE).map(to_f8_e4m3).collect(),
        _ => return None,
    })
}

/// Numbers as the bytes of a type; `None` where it is not converted to.
pub(crate) fn bytes_of(values: &[f32], wanted: Dtype) -> Option<Vec<u8>> {
    bytes_as(&written(values), Dtype::F32, wanted)
}

/// The numbers as they stand in a file.
fn written<N: Number>(numbers: &[N]) -> Vec<u8> {
    let mut bytes = vec![0; size_of_val(numbers)];
    bytes.par_chunks_mut(SHARE * size_of::<N>()).zip(numbers.par_chunks(SHARE)).for_each(|(to, from)| N::write(from, to));
    bytes
}

/// A type that weights are converted to.
pub(crate) trait Number: Copy + Send + Sync {
    const ZERO: Self;
    const STORED: Dtype;
    /// Copies numbers of the same type.
    fn copy(bytes: &[u8], to: &mut [Self]);
    /// The inverse of [`Number::copy`].
    fn write(from: &[Self], bytes: &mut [u8]);
    /// Rounds to the nearest.
    fn round(from: &[f32], to: &mut [Self]);
}

macro_rules! number {
    ($type:ty, $stored:ident, $zero:expr, $from:ident, $to:ident, $round:expr) => {
        impl Number for $type {
            const ZERO: Self = $zero;
            const STORED: Dtype = Dtype::$stored;
            fn copy(bytes: &[u8], to: &mut [Self]) {
                let (chunks, _) = bytes.as_chunks::<{ size_of::<$type>() }>();
                to.iter_mut().zip(chunks).for_each(|(to, chunk)| *to = <$type>::from_le_bytes(*chunk));
            }
            fn write(from: &[Self], bytes: &mut [u8]) {
                let (chunks, _) = bytes.as_chunks_mut::<{ size_of::<$type>() }>();
                chunks.iter_mut().zip(from).for_each(|(chunk, from)| *chunk = from.to_le_bytes());
            }
            fn round($from: &[f32], $to: &mut [Self]) {
                $round
            }
        }
    };
}
number!(f32, F32, 0.0, from, to, to.copy_from_slice(from));
number!(f16, F16, f16::ZERO, from, to, to.convert_from_f32_slice(from));
number!(bf16, BF16, bf16::ZERO, from, to, to.convert_from_f32_slice(from));
number!(f64, F64, 0.0, from, to, to.iter_mut().zip(from).for_each(|(to, from)| *to = f64::from(*from)));

/// The numbers in `bytes`, whose type is [`readable`].
pub(crate) fn numbers<N: Number>(bytes: &[u8], stored: Dtype) -> Vec<N> {
    let width = (stored.bitsize() / 8).max(1);
    let mut result = vec![N::ZERO; bytes.len() / width];
    result.par_chunks_mut(SHARE).zip(bytes.par_chunks(SHARE * width)).for_each(|(to, bytes)| {
        if stored == N::STORED {
            return N::copy(bytes, to);
        }
        let mut block = [0f32; BLOCK];
        for (to, bytes) in to.chunks_mut(BLOCK).zip(bytes.chunks(BLOCK * width)) {
            if let Some(block) = block.get_mut(..to.len()) {
                widen(bytes, stored, block);
                N::round(block, to);
            }
        }
    });
    result
}

/// The numbers of one block in f32.
fn widen(bytes: &[u8], stored: Dtype, to: &mut [f32]) {
    match stored {
        Dtype::F32 => f32::copy(bytes, to),
        Dtype::F64 => {
            let (chunks, _) = bytes.as_chunks::<8>();
            // Rounding down is what is asked for: no checkpoint needs more than f32.
            to.iter_mut().zip(chunks).for_each(|(to, chunk)| *to = f64::from_le_bytes(*chunk) as f32);
        }
        Dtype::F16 => {
            let mut half = [f16::ZERO; BLOCK];
            if let Some(half) = half.get_mut(..to.len()) {
                f16::copy(bytes, half);
                half.convert_to_f32_slice(to);
            }
        }
        Dtype::BF16 => {
            let mut half = [bf16::ZERO; BLOCK];
            if let Some(half) = half.get_mut(..to.len()) {
                bf16::copy(bytes, half);
                half.convert_to_f32_slice(to);
            }
        }
        Dtype::F8_E4M3 => to.iter_mut().zip(bytes).for_each(|(to, byte)| *to = f8_e4m3(*byte)),
        // The upper byte of an f16.
        Dtype::F8_E5M2 => to.iter_mut().zip(bytes).for_each(|(to, byte)| *to = f16::from_bits(u16::from(*byte) << 8).to_f32()),
        _ => to.fill(f32::NAN),
    }
}

/// One number of four exponent and three mantissa bits, without infinities (the "fn" kind that PyTorch writes).
fn f8_e4m3(byte: u8) -> f32 {
    let exponent = i32::from(byte >> 3 & 0xf);
    let mantissa = f32::from(byte & 7) / 8.0;
    let size = match (exponent, byte & 7) {
        (15, 7) => f32::NAN,
        (0, _) => mantissa * 2f32.powi(-6),
        _ => (1.0 + mantissa) * 2f32.powi(exponent - 7),
    };
    if byte & 0x80 == 0 { size } else { -size }
}

/// The inverse of [`f8_e4m3`], to the nearest and of two to the even one. What is larger than 448 becomes that.
fn to_f8_e4m3(x: f32) -> u8 {
    if x.is_nan() {
        return 0x7f;
    }
    let sign = if x.is_sign_negative() { 0x80 } else { 0 };
    let size = x.abs().min(448.0);
    // The power of two below it, but for what is too small to have one.
    let exponent = ((size.to_bits() >> 23) as i32 - 127).max(-6);
    let eighths = (size / 2f32.powi(exponent - 3)).round_ties_even() as u8;
    // Sixteen eighths carry into the exponent by themselves; fewer than eight have none.
    sign | ((exponent + 6) as u8 * 8 + eighths)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_eight_bit_number_comes_back_and_others_become_the_nearest() {
        for byte in 0..=255u8 {
            let x = f8_e4m3(byte);
            assert!(x.is_nan() || to_f8_e4m3(x) == byte, "{byte:#x} {x}");
        }
        let sizes: Vec<f32> = (0..=0x7e).map(f8_e4m3).collect();
        for i in 0..100_000 {
            let x = (i as f32 / 100_000.0).powi(6) * 500.0;
            let near = sizes.iter().map(|size| (size - x).abs()).fold(f32::INFINITY, f32::min);
            assert!((f8_e4m3(to_f8_e4m3(x)) - x).abs() == near, "{x}");
            assert_eq!(f8_e4m3(to_f8_e4m3(-x)), -f8_e4m3(to_f8_e4m3(x)));
        }
        // Halfway, to the even one.
        assert_eq!([1.0625, 1.1875, 2f32.powi(-10)].map(to_f8_e4m3), [0x38, 0x3a, 0]);
    }

    #[test]
    fn eight_bit_numbers_are_what_the_format_says() {
        assert_eq!(f8_e4m3(0x38), 1.0);
        assert_eq!(f8_e4m3(0xb8), -1.0);
        assert_eq!(f8_e4m3(0x7e), 448.0);
        assert_eq!(f8_e4m3(0x01), 2f32.powi(-9));
        assert!(f8_e4m3(0x7f).is_nan() && f8_e4m3(0xff).is_nan());
        let mut two = [0f32; 2];
        widen(&[0x3c, 0xc4], Dtype::F8_E5M2, &mut two);
        assert_eq!(two, [1.0, -4.0]);
    }

    #[test]
    fn what_is_not_finite_is_found_in_every_type_at_every_place() {
        let n = SHARE + 5;
        for stored in [Dtype::F64, Dtype::F32, Dtype::F16, Dtype::BF16] {
            let values: Vec<f32> = (0..n).map(|i| i as f32 % 100.0 - 50.0).collect();
            let bytes = |values: &[f32]| bytes_of(values, stored).unwrap();
            assert!(are_finite(&bytes(&values), stored), "{stored}");
            assert!(are_finite(&bytes(&[0.0, -0.0, 6e4, -6e4, 1e-7]), stored), "{stored}");
            for wrong in [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                for at in [0, 1, SHARE - 1, SHARE, n - 1] {
                    let mut values = values.clone();
                    values[at] = wrong;
                    assert!(!are_finite(&bytes(&values), stored), "{stored}: {wrong} at {at}");
                }
            }
        }
        assert!(are_finite(&[0x7e, 0xfe], Dtype::F8_E4M3) && !are_finite(&[0, 0x7f], Dtype::F8_E4M3));
    }

    #[test]
    fn every_type_converts_to_every_other_across_block_and_share_ends() {
        let n = SHARE + BLOCK + 3;
        let values: Vec<f32> = (0..n).map(|i| (i % 256) as f32 / 8.0 - 16.0).collect();
        let f32_bytes: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
        for stored in [Dtype::F64, Dtype::F32, Dtype::F16, Dtype::BF16] {
            let bytes = bytes_as(&f32_bytes, Dtype::F32, stored).unwrap();
            assert_eq!(bytes.len(), n * stored.bitsize() / 8);
            assert_eq!(numbers::<f32>(&bytes, stored), values, "{stored}");
            assert_eq!(numbers::<f64>(&bytes, stored), values.iter().map(|&x| f64::from(x)).collect::<Vec<_>>());
            assert_eq!(numbers::<f16>(&bytes, stored), values.iter().map(|&x| f16::from_f32(x)).collect::<Vec<_>>());
            assert_eq!(numbers::<bf16>(&bytes, stored), values.iter().map(|&x| bf16::from_f32(x)).collect::<Vec<_>>());
        }
        assert!(bytes_as(&[0; 8], Dtype::I64, Dtype::F32).is_none());
    }
}
