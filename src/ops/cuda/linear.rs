//! Linear layers by cuBLASLt, bias and residual added in the product.
//!
//! What cuBLASLt must know of a shape is asked for once and kept. Of its algorithms the first is taken, which is the same
//! every time, so that the same input gives the same bytes.
#![expect(unsafe_code, reason = "cuBLASLt is a C library")]

use super::super::Epilogue;
use super::element::add_rows;
use super::gpu::{Gpu, lock};
use super::plan::{Address, CHUNK};
use super::profile;
use crate::ops::reference;
use candle_core::cuda_backend::WrapErr;
use candle_core::cuda_backend::cudarc::cublaslt::result::{self, CublasError};
use candle_core::cuda_backend::cudarc::cublaslt::sys;
use candle_core::{DType, Result, Tensor, bail};
use std::collections::HashMap;
use std::ffi::c_void;
use std::sync::Arc;

/// What decides how a product is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct LinearKey {
    dtype: DType,
    rows: usize,
    outputs: usize,
    inputs: usize,
    bias: bool,
    residual: bool,
}

/// Descriptors and algorithm of one shape; they live as long as the process.
#[derive(Clone, Copy)]
struct PreparedLinear {
    product: sys::cublasLtMatmulDesc_t,
    weight: sys::cublasLtMatrixLayout_t,
    x: sys::cublasLtMatrixLayout_t,
    y: sys::cublasLtMatrixLayout_t,
    algorithm: sys::cublasLtMatmulAlgo_t,
}

/// cuBLASLt, with what it said about the shapes that were met; `None` for those that it cannot do.
pub(super) struct Products {
    handle: sys::cublasLtHandle_t,
    known: HashMap<LinearKey, Option<PreparedLinear>>,
}

// SAFETY: the handles are used behind a mutex only.
unsafe impl Send for Products {}

fn failed(error: CublasError) -> candle_core::Error {
    candle_core::Error::Msg(format!("cuBLASLt: {error}"))
}

impl Products {
    pub(super) fn new() -> Result<Self> {
        Ok(Self { handle: result::create_handle().map_err(failed)?, known: HashMap::new() })
    }

    /// `y = x Wᵀ + bias + residual`; addresses are 0 for what is absent. `false` where cuBLASLt cannot.
    #[expect(clippy::too_many_arguments, reason = "where everything is")]
    fn multiply(
        &mut self,
        gpu: &Gpu,
        key: LinearKey,
        weight: Address,
        x: Address,
        bias: Address,
        residual: Address,
        y: Address,
    ) -> Result<bool> {
        gpu.stream().context().bind_to_thread().w()?;
        let (workspace, workspace_bytes) = gpu.workspace()?;
        let prepared = match self.known.get(&key) {
            Some(prepared) => *prepared,
            None => {
                let prepared = self.prepare(key, bias, workspace_bytes).map_err(failed)?;
                self.known.insert(key, prepared);
                prepared
            }
        };
        let Some(prepared) = prepared else { return Ok(false) };
        if key.bias {
            set(prepared.product, sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_BIAS_POINTER, &bias).map_err(failed)?;
        }
        let one = 1f32;
        let beta = if key.residual { 1f32 } else { 0f32 };
        let added = if key.residual { residual } else { y };
        let name = || format!("cublaslt {}x{}x{}", key.rows, key.outputs, key.inputs);
        let run = || {
            // SAFETY: the descriptors are of this shape, the addresses are of tensors of it, which the caller holds.
            let done = unsafe {
                result::matmul(
                    self.handle,
                    prepared.product,
                    std::ptr::from_ref(&one).cast(),
                    std::ptr::from_ref(&beta).cast(),
                    weight as *const c_void,
                    prepared.weight,
                    x as *const c_void,
                    prepared.x,
                    added as *const c_void,
                    prepared.y,
                    y as *mut c_void,
                    prepared.y,
                    &raw const prepared.algorithm,
                    workspace,
                    workspace_bytes,
                    gpu.stream().cu_stream().cast(),
                )
            };
            done.map_err(failed)
        };
        profile::timed(gpu.stream(), name, run)?;
        Ok(true)
    }

    /// cuBLASLt's matrices are by columns: ours by rows is theirs transposed, and `yᵀ = W xᵀ`.
    fn prepare(&self, key: LinearKey, bias: Address, workspace_bytes: usize) -> std::result::Result<Option<PreparedLinear>, CublasError> {
        use sys::cublasLtMatmulDescAttributes_t::{
            CUBLASLT_MATMUL_DESC_BIAS_POINTER, CUBLASLT_MATMUL_DESC_EPILOGUE, CUBLASLT_MATMUL_DESC_TRANSA,
        };
        use sys::cublasLtMatmulPreferenceAttributes_t as Preference;
        let LinearKey { rows, outputs, inputs, .. } = key;
        let kind = match key.dtype {
            DType::F16 => sys::cudaDataType_t::CUDA_R_16F,
            DType::BF16 => sys::cudaDataType_t::CUDA_R_16BF,
            DType::F32 => sys::cudaDataType_t::CUDA_R_32F,
            _ => return Ok(None),
        };
        let layout = |rows: usize, columns: usize| result::create_matrix_layout(kind, rows as u64, columns as u64, rows as i64);
        let product = result::create_matmul_desc(sys::cublasComputeType_t::CUBLAS_COMPUTE_32F, sys::cudaDataType_t::CUDA_R_32F)?;
        set(product, CUBLASLT_MATMUL_DESC_TRANSA, &1i32)?;
        if key.bias {
            set(product, CUBLASLT_MATMUL_DESC_EPILOGUE, &(sys::cublasLtEpilogue_t::CUBLASLT_EPILOGUE_BIAS as i32))?;
            set(product, CUBLASLT_MATMUL_DESC_BIAS_POINTER, &bias)?;
        }
        let (weight, x, y) = (layout(inputs, outputs)?, layout(inputs, rows)?, layout(outputs, rows)?);
        let preference = result::create_matmul_pref()?;
        let prefer = |attribute, value: *const c_void, size| {
            // SAFETY: the preference was just made, and the value is of the size that the attribute has.
            unsafe { result::set_matmul_pref_attribute(preference, attribute, value, size) }
        };
        prefer(
            Preference::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
            std::ptr::from_ref(&workspace_bytes).cast(),
            size_of_val(&workspace_bytes),
        )?;
        // Views begin at a chunk, not at the 256 bytes that are assumed otherwise.
        let alignment = CHUNK as u32;
        for attribute in [
            Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES,
            Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
            Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES,
            Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES,
        ] {
            prefer(attribute, std::ptr::from_ref(&alignment).cast(), size_of_val(&alignment))?;
        }
        // SAFETY: all descriptors were just made.
        let found = unsafe { result::get_matmul_algo_heuristic(self.handle, product, weight, x, y, y, preference) };
        // SAFETY: as above, and it is not used again.
        unsafe { result::destroy_matmul_pref(preference)? };
        match found {
            Ok(found) => Ok(Some(PreparedLinear { product, weight, x, y, algorithm: found.algo })),
            Err(CublasError(sys::cublasStatus_t::CUBLAS_STATUS_NOT_SUPPORTED | sys::cublasStatus_t::CUBLAS_STATUS_INVALID_VALUE)) => {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }
}

fn set<T>(
    product: sys::cublasLtMatmulDesc_t,
    attribute: sys::cublasLtMatmulDescAttributes_t,
    value: &T,
) -> std::result::Result<(), CublasError> {
    // SAFETY: the descriptor lives, and the value is of the size that the attribute has.
    unsafe { result::set_matmul_desc_attribute(product, attribute, std::ptr::from_ref(value).cast(), size_of::<T>()) }
}

/// A linear layer; clones share the weights.
#[derive(Debug, Clone)]
pub(in super::super) struct CudaLinear {
    gpu: Arc<Gpu>,
    weight: Tensor,
    bias: Option<Tensor>,
    /// For what cuBLASLt cannot do.
    reference: reference::ReferenceLinear,
}

impl CudaLinear {
    pub(in super::super) fn new(weight: &Tensor, bias: Option<&Tensor>) -> Result<Self> {
        let (outputs, _) = weight.dims2()?;
        let gpu = Gpu::of(weight)?;
        let weight = gpu.aligned(weight)?;
        let bias = match bias {
            Some(bias) if bias.dims() != [outputs] => bail!("linear: a bias of shape {:?} for {outputs} outputs", bias.shape()),
            Some(bias) => Some(gpu.aligned(&bias.to_dtype(weight.dtype())?)?),
            None => None,
        };
        Ok(Self { reference: reference::ReferenceLinear::new(weight.clone(), bias.clone())?, gpu, weight, bias })
    }

    pub(in super::super) fn forward(&self, x: &Tensor, extra: Epilogue<'_>) -> Result<Tensor> {
        let gpu = &*self.gpu;
        let (outputs, inputs) = self.weight.dims2()?;
        let mut shape = x.dims().to_vec();
        match shape.last_mut() {
            Some(last) if *last == inputs => *last = outputs,
            _ => bail!("linear: {:?} does not end in {inputs} features", x.shape()),
        }
        if x.dtype() != self.weight.dtype() {
            bail!("linear: activations in {:?} for weights in {:?}", x.dtype(), self.weight.dtype());
        }
        let residual = match extra.residual {
            Some(residual) if residual.dims() != shape => {
                bail!("linear: a residual of shape {:?} does not fit an output of shape {shape:?}", residual.shape())
            }
            Some(residual) => Some(gpu.aligned(&residual.to_dtype(x.dtype())?)?),
            None => None,
        };
        let aligned = gpu.aligned(x)?;
        let y = gpu.make(shape.as_slice(), x.dtype())?;
        if y.elem_count() == 0 || inputs == 0 {
            return self.reference.forward(x, extra);
        }
        let address = |tensor: Option<&Tensor>| tensor.map_or(Ok(0), |tensor| gpu.address(tensor));
        let key = LinearKey {
            dtype: x.dtype(),
            rows: y.elem_count() / outputs,
            outputs,
            inputs,
            bias: self.bias.is_some(),
            residual: residual.is_some(),
        };
        let (weight, from, to) = (gpu.address(&self.weight)?, gpu.address(&aligned)?, gpu.address(&y)?);
        let (bias, residual) = (address(self.bias.as_ref())?, address(residual.as_ref())?);
        if !lock(&gpu.products).multiply(gpu, key, weight, from, bias, residual, to)? {
            return self.reference.forward(x, extra);
        }
        match extra.row_bias {
            Some(rows) => add_rows(gpu, &y, &rows.to_dtype(x.dtype())?),
            None => Ok(y),
        }
    }
}
