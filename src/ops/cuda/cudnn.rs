//! Convolutions by cuDNN, where `SD_GEN_CUDA_CONV=cudnn` asks for them.
//!
//! The library is looked for when the program runs, so that a build needs nothing of it. Descriptors, algorithm and workspace of a
//! shape are asked for once. Signatures and numbers are those of `cudnn_cnn.h`, which are the same in versions 8 and 9.
#![expect(unsafe_code, reason = "cuDNN is a C library")]

use super::super::Padding;
use super::gpu::Gpu;
use super::plan::Address;
use super::profile;
use crate::device::Library;
use candle_core::cuda_backend::cudarc::driver::CudaStream;
use candle_core::{DType, Result, bail};
use std::collections::HashMap;
use std::ffi::{c_int, c_void};
use std::sync::Arc;

/// What decides how a convolution is done; `shape` is the input's and `out` the output's, channels last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct ConvolutionKey {
    pub(super) dtype: DType,
    pub(super) shape: [usize; 4],
    pub(super) out: [usize; 4],
    pub(super) kernel: (usize, usize),
    pub(super) stride: usize,
    pub(super) padding: Padding,
}

type Handle = *mut c_void;
type CudnnStatus = c_int;

const NHWC: c_int = 1;
const CROSS_CORRELATION: c_int = 1;
const TENSOR_OP_MATH: c_int = 1;
const FMA_MATH: c_int = 3;
/// The algorithm that takes an identity as its activation.
const IMPLICIT_PRECOMP_GEMM: c_int = 1;
const ACTIVATION_IDENTITY: c_int = 5;
const FLOAT: c_int = 0;

macro_rules! functions {
    ($($field:ident = $name:literal ($($argument:ty),*)),* $(,)?) => {
        #[derive(Clone, Copy)]
        struct Functions { $($field: unsafe extern "C" fn($($argument),*) -> CudnnStatus),* }

        impl Functions {
            fn of(library: Library) -> Option<Self> {
                // SAFETY: the signatures are the library's.
                Some(Self { $($field: unsafe { std::mem::transmute::<*mut c_void, unsafe extern "C" fn($($argument),*) -> CudnnStatus>(library.symbol($name)?) }),* })
            }
        }
    };
}

functions! {
    create = c"cudnnCreate" (*mut Handle),
    set_stream = c"cudnnSetStream" (Handle, *mut c_void),
    create_tensor = c"cudnnCreateTensorDescriptor" (*mut Handle),
    set_tensor = c"cudnnSetTensor4dDescriptor" (Handle, c_int, c_int, c_int, c_int, c_int, c_int),
    create_filter = c"cudnnCreateFilterDescriptor" (*mut Handle),
    set_filter = c"cudnnSetFilter4dDescriptor" (Handle, c_int, c_int, c_int, c_int, c_int, c_int),
    create_convolution = c"cudnnCreateConvolutionDescriptor" (*mut Handle),
    set_convolution = c"cudnnSetConvolution2dDescriptor" (Handle, c_int, c_int, c_int, c_int, c_int, c_int, c_int, c_int),
    set_math = c"cudnnSetConvolutionMathType" (Handle, c_int),
    workspace_size = c"cudnnGetConvolutionForwardWorkspaceSize" (Handle, Handle, Handle, Handle, Handle, c_int, *mut usize),
    create_activation = c"cudnnCreateActivationDescriptor" (*mut Handle),
    set_activation = c"cudnnSetActivationDescriptor" (Handle, c_int, c_int, f64),
    convolve = c"cudnnConvolutionBiasActivationForward" (
        Handle, *const c_void, Handle, *const c_void, Handle, *const c_void, Handle, c_int, *mut c_void, usize,
        *const c_void, Handle, *const c_void, Handle, *const c_void, Handle, Handle, *mut c_void
    ),
}

/// Descriptors of one shape; they live as long as the process.
#[derive(Clone, Copy)]
struct PreparedConvolution {
    x: Handle,
    weight: Handle,
    convolution: Handle,
    bias: Handle,
    y: Handle,
    workspace: usize,
}

pub(super) struct Cudnn {
    functions: Functions,
    handle: Handle,
    identity: Handle,
    /// `None` for shapes that it cannot do.
    known: HashMap<ConvolutionKey, Option<PreparedConvolution>>,
}

// SAFETY: the handles are used behind a mutex only.
unsafe impl Send for Cudnn {}

fn check(what: &str, status: CudnnStatus) -> Result<()> {
    match status {
        0 => Ok(()),
        status => bail!("cuDNN: {what} gave status {status}"),
    }
}

impl Cudnn {
    /// cuDNN, if the environment asks for it.
    pub(super) fn where_wanted(stream: &Arc<CudaStream>) -> Result<Option<Self>> {
        let choice = std::env::var("SD_GEN_CUDA_CONV").unwrap_or_default();
        match choice.as_str() {
            "" | "own" => return Ok(None),
            "cudnn" => {}
            other => bail!("SD_GEN_CUDA_CONV={other}: give own or cudnn"),
        }
        let Some(functions) = Library::open(&["libcudnn.so.9", "libcudnn.so.8"]).and_then(Functions::of) else {
            bail!("SD_GEN_CUDA_CONV=cudnn: the library libcudnn.so.9 is not found; put its folder into LD_LIBRARY_PATH, or take own");
        };
        let (mut handle, mut identity) = (std::ptr::null_mut(), std::ptr::null_mut());
        // SAFETY: the handles are written by the functions that make them.
        unsafe {
            check("its start", (functions.create)(&raw mut handle))?;
            check("a stream", (functions.set_stream)(handle, stream.cu_stream().cast()))?;
            check("an activation", (functions.create_activation)(&raw mut identity))?;
            check("an activation", (functions.set_activation)(identity, ACTIVATION_IDENTITY, 0, 0.0))?;
        }
        Ok(Some(Self { functions, handle, identity, known: HashMap::new() }))
    }

    /// `y = x * w + bias + residual`; the residual's address may be 0. `false` where cuDNN cannot.
    #[expect(clippy::too_many_arguments, reason = "where everything is")]
    pub(super) fn convolve(
        &mut self,
        gpu: &Gpu,
        key: ConvolutionKey,
        x: Address,
        weight: Address,
        bias: Address,
        residual: Address,
        y: Address,
    ) -> Result<bool> {
        let Padding { height, width } = key.padding;
        if height.0 != height.1 || width.0 != width.1 || bias == 0 {
            return Ok(false);
        }
        let prepared = match self.known.get(&key) {
            Some(prepared) => *prepared,
            None => {
                let prepared = self.prepare(&key).ok();
                self.known.insert(key, prepared);
                prepared
            }
        };
        let Some(prepared) = prepared else { return Ok(false) };
        // Of the pool, and given back behind the convolution: a recorded call has its own.
        let scratch = gpu.make(prepared.workspace.max(1), DType::U8)?;
        let workspace = gpu.address(&scratch)? as *mut c_void;
        let (one, beta) = (1f32, if residual == 0 { 0f32 } else { 1f32 });
        let added = if residual == 0 { y } else { residual };
        let name = || format!("cudnn {:?} to {}", key.shape, key.out[3]);
        let run = || {
            // SAFETY: the descriptors are of this shape, the addresses are of tensors of it, which the caller holds.
            let status = unsafe {
                (self.functions.convolve)(
                    self.handle,
                    std::ptr::from_ref(&one).cast(),
                    prepared.x,
                    x as *const c_void,
                    prepared.weight,
                    weight as *const c_void,
                    prepared.convolution,
                    IMPLICIT_PRECOMP_GEMM,
                    workspace,
                    prepared.workspace,
                    std::ptr::from_ref(&beta).cast(),
                    prepared.y,
                    added as *const c_void,
                    prepared.bias,
                    bias as *const c_void,
                    self.identity,
                    prepared.y,
                    y as *mut c_void,
                )
            };
            check("a convolution", status)
        };
        let done = profile::timed(gpu.stream(), name, run);
        if done.is_err() {
            self.known.insert(key, None);
        }
        Ok(done.is_ok())
    }

    fn prepare(&self, key: &ConvolutionKey) -> Result<PreparedConvolution> {
        let f = &self.functions;
        let dtype = match key.dtype {
            DType::F32 => FLOAT,
            DType::F16 => 2,
            DType::BF16 => 9,
            dtype => bail!("{dtype:?} is not supported"),
        };
        let int = |value: usize| c_int::try_from(value).map_err(candle_core::Error::wrap);
        let make = |create: unsafe extern "C" fn(*mut Handle) -> CudnnStatus| {
            let mut handle = std::ptr::null_mut();
            // SAFETY: the handle is written by the function that makes it.
            check("a descriptor", unsafe { create(&raw mut handle) })?;
            Ok::<_, candle_core::Error>(handle)
        };
        let tensor = |[batch, height, width, channels]: [usize; 4]| {
            let handle = make(f.create_tensor)?;
            // SAFETY: the descriptor was just made.
            let status = unsafe { (f.set_tensor)(handle, NHWC, dtype, int(batch)?, int(channels)?, int(height)?, int(width)?) };
            check("a tensor", status)?;
            Ok::<_, candle_core::Error>(handle)
        };
        let (x, y, bias) = (tensor(key.shape)?, tensor(key.out)?, tensor([1, 1, 1, key.out[3]])?);
        let (weight, convolution) = (make(f.create_filter)?, make(f.create_convolution)?);
        let (kernel_height, kernel_width) = (int(key.kernel.0)?, int(key.kernel.1)?);
        let (top, left, stride) = (int(key.padding.height.0)?, int(key.padding.width.0)?, int(key.stride)?);
        let math = if key.dtype == DType::F32 { FMA_MATH } else { TENSOR_OP_MATH };
        let mut workspace = 0;
        // SAFETY: the descriptors were just made.
        unsafe {
            check("a filter", (f.set_filter)(weight, dtype, NHWC, int(key.out[3])?, int(key.shape[3])?, kernel_height, kernel_width))?;
            let set = (f.set_convolution)(convolution, top, left, stride, stride, 1, 1, CROSS_CORRELATION, FLOAT);
            check("a convolution's shape", set)?;
            check("its arithmetic", (f.set_math)(convolution, math))?;
            let asked = (f.workspace_size)(self.handle, x, weight, convolution, y, IMPLICIT_PRECOMP_GEMM, &raw mut workspace);
            check("its workspace", asked)?;
        }
        Ok(PreparedConvolution { x, weight, convolution, bias, y, workspace })
    }
}
