//! Weights on their way into a layer.

use super::cpu::{self, Numbers};
use candle_core::{DType, Device, Result, Tensor};

/// The weights that a layer is made of: a tensor, or numbers that are read where a file has them.
///
/// Numbers in place are converted while they are packed, so that there is no tensor between the file and the layer.
#[derive(Debug, Clone)]
pub struct Weight<'a> {
    inner: Inner<'a>,
}

#[derive(Debug, Clone)]
enum Inner<'a> {
    Tensor(Tensor),
    InPlace { numbers: Numbers<'a>, shape: Vec<usize>, dtype: DType },
}

impl<'a> Weight<'a> {
    /// Numbers of type `stored` in `bytes`, little-endian and at any alignment, to be used as `dtype` on `device`; `None` where
    /// that device does not read them in place, or the types are others than f32, f16 and bf16, or there are not as many as
    /// `shape` says.
    pub fn in_place(bytes: &'a [u8], stored: DType, shape: &[usize], dtype: DType, device: &Device) -> Option<Self> {
        let numbers = Numbers::new(bytes, stored)?;
        let fits = numbers.len() == shape.iter().product::<usize>();
        (fits && Self::reads_in_place(dtype, device)).then(|| Self { inner: Inner::InPlace { numbers, shape: shape.to_vec(), dtype } })
    }

    /// Whether weights of type `dtype` on `device` are made of numbers in place.
    pub fn reads_in_place(dtype: DType, device: &Device) -> bool {
        Numbers::reads(dtype) && device.is_cpu() && !super::REFERENCE_ONLY.get()
    }

    /// Numbers that were computed on the CPU, as many as `shape` says, to be used there as `dtype`.
    pub(super) fn computed(values: &'a [f32], shape: &[usize], dtype: DType) -> Self {
        Self { inner: Inner::InPlace { numbers: values.into(), shape: shape.to_vec(), dtype } }
    }

    /// The same numbers in another shape.
    ///
    /// # Errors
    /// There are not as many.
    pub fn reshape(self, to: &[usize]) -> Result<Self> {
        let inner = match self.inner {
            Inner::Tensor(tensor) => Inner::Tensor(tensor.reshape(to)?),
            Inner::InPlace { numbers, dtype, .. } if numbers.len() == to.iter().product::<usize>() => {
                Inner::InPlace { numbers, shape: to.to_vec(), dtype }
            }
            Inner::InPlace { shape, .. } => candle_core::bail!("weights of shape {shape:?} cannot become {to:?}"),
        };
        Ok(Self { inner })
    }

    /// The weights as a tensor of the dtype to compute in.
    ///
    /// # Errors
    /// There is no memory for it.
    pub fn into_tensor(self) -> Result<Tensor> {
        match self.inner {
            Inner::Tensor(tensor) => Ok(tensor),
            Inner::InPlace { numbers, shape, dtype } => cpu::tensor(&numbers, &shape, dtype),
        }
    }

    pub(super) fn dims(&self) -> &[usize] {
        match &self.inner {
            Inner::Tensor(tensor) => tensor.dims(),
            Inner::InPlace { shape, .. } => shape,
        }
    }

    /// The type to compute in.
    pub(super) fn dtype(&self) -> DType {
        match &self.inner {
            Inner::Tensor(tensor) => tensor.dtype(),
            Inner::InPlace { dtype, .. } => *dtype,
        }
    }

    /// Whether the fast paths on the CPU take them.
    pub(super) fn is_for_cpu(&self) -> bool {
        match &self.inner {
            Inner::Tensor(tensor) => tensor.device().is_cpu() && !super::REFERENCE_ONLY.get(),
            Inner::InPlace { .. } => true,
        }
    }

    /// Gives `read` the numbers, which are on the CPU.
    pub(super) fn with_numbers<T>(&self, read: impl FnOnce(&Numbers<'_>) -> T) -> Result<T> {
        match &self.inner {
            Inner::Tensor(tensor) => cpu::with_numbers(tensor, read),
            Inner::InPlace { numbers, .. } => Ok(read(numbers)),
        }
    }
}

impl From<Tensor> for Weight<'_> {
    fn from(tensor: Tensor) -> Self {
        Self { inner: Inner::Tensor(tensor) }
    }
}

impl From<&Tensor> for Weight<'_> {
    fn from(tensor: &Tensor) -> Self {
        tensor.clone().into()
    }
}
