//! Numbers where somebody else has them: in a file's bytes, or in a tensor.
#![expect(unsafe_code, reason = "a tensor's elements are seen as bytes; a new tensor is written once")]

use super::element::{Element, Elements, build, with_element};
use super::isa::Isa;
use candle_core::{DType, Result, Tensor};
use half::{bf16, f16};
use rayon::prelude::*;

/// Numbers converted at once: they stay in the first-level cache.
const BLOCK: usize = 2048;

/// Little-endian numbers at any alignment.
#[derive(Debug, Clone, Copy)]
pub(in super::super) struct Numbers<'a> {
    bytes: &'a [u8],
    dtype: DType,
}

impl<'a> Numbers<'a> {
    /// `None` where numbers of that type are not [read](Numbers::reads).
    pub(in super::super) fn new(bytes: &'a [u8], dtype: DType) -> Option<Self> {
        (Self::reads(dtype) && bytes.len().is_multiple_of(dtype.size_in_bytes())).then_some(Self { bytes, dtype })
    }

    /// Whether numbers of that type can be read, and made.
    pub(in super::super) fn reads(dtype: DType) -> bool {
        matches!(dtype, DType::F32 | DType::F16 | DType::BF16)
    }

    pub(in super::super) fn len(&self) -> usize {
        self.bytes.len() / self.dtype.size_in_bytes()
    }

    /// The f32 of the same values, of as many numbers as `to` has, from the number `from` on, which must be there.
    #[inline(always)]
    pub(super) fn widen(&self, from: usize, to: &mut [f32]) {
        let width = self.dtype.size_in_bytes();
        let bytes = &self.bytes[from * width..][..to.len() * width];
        match self.dtype {
            DType::F16 => halves(bytes, to, |bits| f16::from_bits(bits).widen()),
            DType::BF16 => halves(bytes, to, |bits| bf16::from_bits(bits).widen()),
            _ => to.iter_mut().zip(bytes.as_chunks().0).for_each(|(to, bytes)| *to = f32::from_le_bytes(*bytes)),
        }
    }
}

impl Numbers<'_> {
    /// All numbers.
    pub(in super::super) fn all(&self) -> Result<Vec<f32>> {
        let mut values = vec![0f32; self.len()];
        self.widen_all(Isa::current()?, 0, &mut values);
        Ok(values)
    }

    /// [`Numbers::widen`] by all threads.
    pub(super) fn widen_all(&self, isa: Isa, from: usize, to: &mut [f32]) {
        to.par_chunks_mut(16 * BLOCK).enumerate().for_each(|(share, to)| {
            isa.vectorize(
                #[inline(always)]
                |_| self.widen(from + share * 16 * BLOCK, to),
            );
        });
    }
}

#[inline(always)]
fn halves(bytes: &[u8], to: &mut [f32], widen: impl Fn(u16) -> f32) {
    to.iter_mut().zip(bytes.as_chunks().0).for_each(|(to, bytes)| *to = widen(u16::from_le_bytes(*bytes)));
}

impl<'a> From<&'a [f32]> for Numbers<'a> {
    fn from(values: &'a [f32]) -> Self {
        // SAFETY: numbers are bytes.
        let bytes = unsafe { std::slice::from_raw_parts(values.as_ptr().cast(), size_of_val(values)) };
        Self { bytes, dtype: DType::F32 }
    }
}

/// Gives `read` the numbers of a tensor on the CPU.
pub(in super::super) fn with_numbers<R>(tensor: &Tensor, read: impl FnOnce(&Numbers<'_>) -> R) -> Result<R> {
    let tensor = tensor.contiguous()?;
    with_element!("weights", tensor.dtype(), T => {
        let elements = Elements::<T>::of(&tensor)?;
        const { assert!(cfg!(target_endian = "little"), "a tensor's bytes are read as little-endian") };
        // SAFETY: numbers have no padding, and are borrowed as long as their bytes.
        let bytes = unsafe { std::slice::from_raw_parts(elements.as_ptr().cast(), size_of_val(&*elements)) };
        Ok(read(&Numbers { bytes, dtype: tensor.dtype() }))
    })
}

/// The tensor of `shape` that has as many numbers, in `dtype`.
pub(in super::super) fn tensor(numbers: &Numbers<'_>, shape: &[usize], dtype: DType) -> Result<Tensor> {
    let isa = Isa::current()?;
    with_element!("weights", dtype, T => {
        let convert = |to: &mut [std::mem::MaybeUninit<T>]| {
            to.par_chunks_mut(16 * BLOCK).enumerate().for_each(|(share, to)| {
                isa.vectorize(
                    #[inline(always)]
                    |_| {
                        let mut values = [0f32; BLOCK];
                        for (block, to) in to.chunks_mut(BLOCK).enumerate() {
                            let values = &mut values[..to.len()];
                            numbers.widen((share * 16 + block) * BLOCK, values);
                            to.iter_mut().zip(values).for_each(|(to, value)| {
                                to.write(T::narrow(*value));
                            });
                        }
                    },
                );
            });
        };
        if numbers.len() != shape.iter().product::<usize>() {
            candle_core::bail!("{} numbers are not of shape {shape:?}", numbers.len());
        }
        // SAFETY: the chunks are all of the tensor, and each is written in full.
        unsafe { build(shape, convert) }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn numbers_at_any_alignment_become_the_tensor_that_candle_makes() -> Result<()> {
        // f16's subnormal numbers and both zeros are among them.
        let bits = |i: u32| f32::from_bits((i.wrapping_mul(0x9e37_79b9) >> 3) & 0x8fff_ffff | 0x3000_0000);
        let values: Vec<f32> = (0..70_001).map(|i| if i % 97 == 0 { -0.0 } else { bits(i) }).collect();
        let values = Tensor::new(values, &Device::Cpu)?;
        for stored in [DType::F32, DType::F16, DType::BF16] {
            let given = values.to_dtype(stored)?;
            let bytes = with_numbers(&given, |numbers| [&[0], numbers.bytes].concat())?;
            let numbers = Numbers::new(&bytes[1..], stored).ok_or_else(|| candle_core::Error::Msg("unreadable".into()))?;
            for dtype in [DType::F32, DType::F16, DType::BF16] {
                let (made, wanted) = (tensor(&numbers, &[70_001], dtype)?, given.to_dtype(dtype)?);
                let same = |a: &Tensor, b: &Tensor| -> Result<bool> {
                    let bits = |x: &Tensor| {
                        Ok::<_, candle_core::Error>(
                            x.to_dtype(DType::F32)?.to_vec1::<f32>()?.into_iter().map(f32::to_bits).collect::<Vec<_>>(),
                        )
                    };
                    Ok(bits(a)? == bits(b)?)
                };
                assert!(same(&made, &wanted)?, "{stored:?} to {dtype:?}");
            }
        }
        assert!(Numbers::new(&[0; 8], DType::F64).is_none() && Numbers::new(&[0; 3], DType::F16).is_none());
        Ok(())
    }
}
