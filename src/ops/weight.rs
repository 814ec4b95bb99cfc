//! Weights on their way into a layer.

use super::cpu::{self, AddedProduct, Numbers};
use candle_core::{DType, Device, Result, Tensor};
use std::sync::Arc;

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
    InPlace { numbers: Numbers<'a>, shape: Vec<usize>, dtype: DType, product: Option<Arc<AddedProduct>> },
}

impl<'a> Weight<'a> {
    /// Numbers of type `stored` in `bytes`, little-endian and at any alignment, to be used as `dtype` on `device`; `None` where
    /// that device does not read them in place, or the types are others than f32, f16 and bf16, or there are not as many as
    /// `shape` says.
    pub fn in_place(bytes: &'a [u8], stored: DType, shape: &[usize], dtype: DType, device: &Device) -> Option<Self> {
        let numbers = Numbers::new(bytes, stored)?;
        let fits = numbers.len() == shape.iter().product::<usize>();
        (fits && Self::reads_in_place(dtype, device))
            .then(|| Self { inner: Inner::InPlace { numbers, shape: shape.to_vec(), dtype, product: None } })
    }

    /// Whether weights of type `dtype` on `device` are made of numbers in place.
    pub fn reads_in_place(dtype: DType, device: &Device) -> bool {
        Numbers::reads(dtype) && device.is_cpu() && !super::REFERENCE_ONLY.get()
    }

    /// Numbers that were computed on the CPU, as many as `shape` says, to be used there as `dtype`.
    pub fn computed(values: &'a [f32], shape: &[usize], dtype: DType) -> Self {
        Self { inner: Inner::InPlace { numbers: values.into(), shape: shape.to_vec(), dtype, product: None } }
    }

    /// The same and the product A B, which is computed and added in f32 while a layer is packed.
    ///
    /// # Shapes
    /// Weights `(out, …)`, `a` `(out, r)`, `b` `(…, r)`, whose rows are in the order of a row of the weights.
    ///
    /// # Errors
    /// The shapes do not fit or are empty, or the weights are a tensor or have a product already.
    pub fn plus_product(self, a: Vec<f32>, b: &[f32]) -> Result<Self> {
        let sum = AddedProduct::new(a, b, self.dims())?;
        match self.inner {
            Inner::InPlace { numbers, shape, dtype, product: None } => {
                Ok(Self { inner: Inner::InPlace { numbers, shape, dtype, product: Some(Arc::new(sum)) } })
            }
            _ => candle_core::bail!("a product is added to numbers in place, and once"),
        }
    }

    /// The same numbers in another shape.
    ///
    /// # Errors
    /// There are not as many.
    pub fn reshape(self, to: &[usize]) -> Result<Self> {
        let inner = match self.inner {
            Inner::Tensor(tensor) => Inner::Tensor(tensor.reshape(to)?),
            // A product is of rows as they were.
            Inner::InPlace { numbers, dtype, product, shape }
                if numbers.len() == to.iter().product::<usize>() && (product.is_none() || shape.first() == to.first()) =>
            {
                Inner::InPlace { numbers, shape: to.to_vec(), dtype, product }
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
            Inner::InPlace { numbers, shape, dtype, product: None } => cpu::tensor(&numbers, &shape, dtype),
            Inner::InPlace { numbers, shape, dtype, product: Some(product) } => {
                cpu::tensor(&product.plus(&numbers)?.as_slice().into(), &shape, dtype)
            }
        }
    }

    /// The shape.
    pub fn dims(&self) -> &[usize] {
        match &self.inner {
            Inner::Tensor(tensor) => tensor.dims(),
            Inner::InPlace { shape, .. } => shape,
        }
    }

    /// The numbers in f32.
    ///
    /// # Errors
    /// They are no f32, f16 or bf16.
    pub fn numbers(&self) -> Result<Vec<f32>> {
        self.with_numbers(|numbers| numbers.all())?
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
            Inner::InPlace { numbers, product: None, .. } => Ok(read(numbers)),
            Inner::InPlace { numbers, product: Some(product), .. } => Ok(read(&product.plus(numbers)?.as_slice().into())),
        }
    }

    /// Gives `read` the numbers as they are stored, and the product that is to be added to them.
    pub(super) fn with_parts<T>(&self, read: impl FnOnce(&Numbers<'_>, Option<&AddedProduct>) -> T) -> Result<T> {
        match &self.inner {
            Inner::Tensor(tensor) => cpu::with_numbers(tensor, |numbers| read(numbers, None)),
            Inner::InPlace { numbers, product, .. } => Ok(read(numbers, product.as_deref())),
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
