//! What a model may call.
//!
//! Activations are channels-last: images are `(batch, height, width, channels)` and token rows
//! `(batch, tokens, channels)`, so that a transformer block is a view and a 1×1 convolution a matrix product.
//! Each op has a portable reference written with candle's tensor operations (`reference`), which runs on every
//! device, and the fast paths that stand behind the same name (`cpu`, `cuda`).
//! Weights are given in the layout of the files, as tensors or where a file has them, and packed once, at construction, for the
//! device that they are on.

mod cpu;
#[cfg(any(feature = "cuda", test))]
mod cuda;
mod graph_cache;
mod named_tensors;
mod pixels;
mod profile;
mod reference;
mod tokens;
mod weight;
mod wrap;

pub use cpu::BlockMemory;
pub use graph_cache::GraphCache;
pub use named_tensors::NamedTensors;
pub use pixels::{PRelu, leaky_relu, pixel_shuffle, pixel_unshuffle, upsample_nearest, window_attention};
pub use profile::{OpTime, profiled};
pub use tokens::{RmsNorm, attention_received, biased_attention, gelu_tanh};
pub use weight::Weight;
pub use wrap::{Wrap, wrap_around, wrapped};

use candle_core::{Device, Result, Tensor};
use std::cell::Cell;

thread_local! {
    /// Set while [`with_reference`] runs.
    static REFERENCE_ONLY: Cell<bool> = const { Cell::new(false) };
}

/// Runs `work` with the portable reference of every op, to hold the fast paths against it.
///
/// It holds for this thread, and for the layers that are made meanwhile: a model that is loaded outside keeps its fast paths.
pub fn with_reference<T>(work: impl FnOnce() -> T) -> T {
    struct Restore(bool);
    impl Drop for Restore {
        fn drop(&mut self) {
            REFERENCE_ONLY.set(self.0);
        }
    }
    let _restore = Restore(REFERENCE_ONLY.replace(true));
    work()
}

/// Runs `work` on one of the threads that the ops on the CPU share, so that it computes with them.
///
/// From any other thread each op would wake the threads and sleep until they are done, which takes longer than a small op.
/// On other devices `work` stays on its thread.
pub fn on_workers<R: Send>(device: &Device, work: impl FnOnce() -> R + Send) -> R {
    if !device.is_cpu() || REFERENCE_ONLY.get() {
        return work();
    }
    // What a thread of the pool takes over while it waits has its own.
    let wrap = wrap::current();
    rayon::scope(|_| wrapped(wrap, work))
}

/// The instruction set that the fast paths on the CPU use, for people.
///
/// # Errors
/// The environment asks for one that is not here.
pub fn cpu_instructions() -> Result<&'static str> {
    cpu::instructions()
}

/// What the processor could use, and what is used of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CpuKernels {
    /// The instruction sets that kernels were compiled for and that the processor has, the plainest first.
    pub available: Vec<&'static str>,
    /// The one in use.
    pub chosen: &'static str,
    /// The one in use for products of bf16.
    pub bf16: &'static str,
}

/// Which kernels are used on the processor.
///
/// # Errors
/// The environment asks for one that is not here.
pub fn cpu_kernels() -> Result<CpuKernels> {
    cpu::kernels()
}

/// Whether products of bf16 are the fast ones on this processor: it has instructions that multiply pairs of them.
///
/// Elsewhere bf16 is widened to f32, and saves memory alone.
///
/// # Errors
/// The environment asks for an instruction set that is not here.
pub fn cpu_multiplies_bf16() -> Result<bool> {
    cpu::multiplies_bf16()
}

/// What each CUDA kernel took since the last call, where `SD_GEN_CUDA_PROFILE` asks for it: name, launches and milliseconds.
pub fn cuda_profile() -> Vec<(String, usize, f64)> {
    #[cfg(feature = "cuda")]
    return cuda::profile();
    #[cfg(not(feature = "cuda"))]
    Vec::new()
}

/// A layer in the form for the device of its weights.
macro_rules! layer {
    ($kind:ident, $reference:ident, $cpu:ident, $cuda:ident) => {
        #[derive(Debug, Clone)]
        enum $kind {
            Reference(reference::$reference),
            Cpu(cpu::$cpu),
            #[cfg(feature = "cuda")]
            Cuda(cuda::$cuda),
        }
    };
}
layer!(LinearKind, ReferenceLinear, CpuLinear, CudaLinear);
layer!(Conv2dKind, ReferenceConv2d, CpuConv2d, CudaConv2d);
layer!(GroupNormKind, ReferenceGroupNorm, CpuGroupNorm, CudaGroupNorm);
layer!(LayerNormKind, ReferenceLayerNorm, CpuLayerNorm, CudaLayerNorm);

/// Calls a layer's `forward`.
macro_rules! forward {
    ($kind:ident, $inner:expr, $($argument:expr),*) => {
        match $inner {
            $kind::Reference(inner) => inner.forward($($argument),*),
            $kind::Cpu(inner) => inner.forward($($argument),*),
            #[cfg(feature = "cuda")]
            $kind::Cuda(inner) => inner.forward($($argument),*),
        }
    };
}

/// Calls the function of the tensor's device.
macro_rules! by_device {
    ($op:ident, $x:expr $(, $argument:expr)*) => {
        match $x.device() {
            _ if REFERENCE_ONLY.get() => reference::$op($x $(, $argument)*),
            Device::Cpu => cpu::$op($x $(, $argument)*),
            #[cfg(feature = "cuda")]
            Device::Cuda(_) => cuda::$op($x $(, $argument)*),
            _ => reference::$op($x $(, $argument)*),
        }
    };
}

/// What is added to a matrix product before it is written.
#[derive(Default, Clone, Copy)]
pub struct Epilogue<'a> {
    /// `(batch, out)`, added to every position of its batch row.
    pub row_bias: Option<&'a Tensor>,
    /// The shape of the output, added to it.
    pub residual: Option<&'a Tensor>,
}

/// `y = x Wᵀ + b`
#[derive(Debug, Clone)]
pub struct Linear {
    inner: LinearKind,
}

impl Linear {
    /// # Shapes
    /// `weight` `(out, in)`, `bias` `(out)`.
    pub fn new<'a>(weight: impl Into<Weight<'a>>, bias: Option<Tensor>) -> Result<Self> {
        let weight = weight.into();
        let inner = if weight.is_for_cpu() {
            LinearKind::Cpu(cpu::CpuLinear::new(weight, bias.as_ref())?)
        } else {
            let weight = weight.into_tensor()?;
            match weight.device() {
                #[cfg(feature = "cuda")]
                Device::Cuda(_) if !REFERENCE_ONLY.get() => LinearKind::Cuda(cuda::CudaLinear::new(&weight, bias.as_ref())?),
                _ => LinearKind::Reference(reference::ReferenceLinear::new(weight, bias)?),
            }
        };
        Ok(Self { inner })
    }

    /// # Shapes
    /// `(batch, …, in)` to `(batch, …, out)`.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.forward_with(x, Epilogue::default())
    }

    /// Like [`Linear::forward`], with additions before the result is written.
    pub fn forward_with(&self, x: &Tensor, epilogue: Epilogue<'_>) -> Result<Tensor> {
        profile::timed(
            x,
            || forward!(LinearKind, &self.inner, x, epilogue),
            |y| {
                let per_output = x.dims().last().copied().unwrap_or(0) as f64;
                profile::call("linear", format!("{} to {}", profile::dims(x), profile::dims(y)), 2.0 * y.elem_count() as f64 * per_output)
            },
        )
    }
}

/// Zeros around an image, in pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Padding {
    /// Rows above and below.
    pub height: (usize, usize),
    /// Columns left and right.
    pub width: (usize, usize),
}

impl Padding {
    /// The same on all sides.
    pub const fn same(pixels: usize) -> Self {
        Self { height: (pixels, pixels), width: (pixels, pixels) }
    }
}

/// A two-dimensional convolution.
#[derive(Debug, Clone)]
pub struct Conv2d {
    inner: Conv2dKind,
    /// Height and width of the kernel.
    kernel: (usize, usize),
    stride: usize,
    padding: Padding,
}

impl Conv2d {
    /// # Shapes
    /// `weight` `(out, in, kernel height, kernel width)`, `bias` `(out)`.
    pub fn new<'a>(weight: impl Into<Weight<'a>>, bias: Option<Tensor>, stride: usize, padding: Padding) -> Result<Self> {
        let weight = weight.into();
        let kernel = match *weight.dims() {
            [_, _, height, width] => (height, width),
            _ => candle_core::bail!("conv2d: weights are (out, in, height, width), got {:?}", weight.dims()),
        };
        let inner = if weight.is_for_cpu() {
            Conv2dKind::Cpu(cpu::CpuConv2d::new(weight, bias.as_ref(), stride, padding)?)
        } else {
            let weight = weight.into_tensor()?;
            match weight.device() {
                #[cfg(feature = "cuda")]
                Device::Cuda(_) if !REFERENCE_ONLY.get() => {
                    Conv2dKind::Cuda(cuda::CudaConv2d::new(&weight, bias.as_ref(), stride, padding)?)
                }
                _ => Conv2dKind::Reference(reference::ReferenceConv2d::new(weight, bias, stride, padding)?),
            }
        };
        Ok(Self { inner, kernel, stride, padding })
    }

    /// # Shapes
    /// `(batch, height, width, in)` to `(batch, height', width', out)`.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.forward_with(x, Epilogue::default())
    }

    /// Like [`Conv2d::forward`], with additions before the result is written.
    pub fn forward_with(&self, x: &Tensor, epilogue: Epilogue<'_>) -> Result<Tensor> {
        let wrap = wrap::current();
        if wrap.is_none() || self.padding == Padding::default() {
            return self.with_zeros(x, epilogue);
        }
        let Epilogue { row_bias, residual } = epilogue;
        let inner = |x: &Tensor| self.with_zeros(x, Epilogue { row_bias, residual: None });
        let y = wrap::conv2d(x, wrap, (self.kernel, self.stride, self.padding), inner)?;
        residual.map_or(Ok(y.clone()), |residual| y + residual)
    }

    fn with_zeros(&self, x: &Tensor, epilogue: Epilogue<'_>) -> Result<Tensor> {
        let (height, width) = self.kernel;
        let run = || forward!(Conv2dKind, &self.inner, x, epilogue);
        profile::timed(x, run, |y| {
            let per_output = (height * width * x.dims().last().copied().unwrap_or(0)) as f64;
            let shapes = format!("{height}x{width}, {} to {}", profile::dims(x), profile::dims(y));
            profile::call("conv2d", shapes, 2.0 * y.elem_count() as f64 * per_output)
        })
    }
}

#[derive(Debug, Clone)]
enum UpsamplingConv2dKind {
    Cpu(cpu::CpuUpsamplingConv2d),
    InTwo(Conv2d),
}

/// [`upsample_nearest_2x`] followed by a convolution with 3×3 taps and a pixel of zeros around.
#[derive(Debug, Clone)]
pub struct UpsamplingConv2d {
    inner: UpsamplingConv2dKind,
}

impl UpsamplingConv2d {
    /// # Shapes
    /// `weight` `(out, in, 3, 3)`, `bias` `(out)`.
    pub fn new<'a>(weight: impl Into<Weight<'a>>, bias: Option<Tensor>) -> Result<Self> {
        let weight = weight.into();
        let inner = if weight.is_for_cpu() {
            UpsamplingConv2dKind::Cpu(cpu::CpuUpsamplingConv2d::new(weight, bias.as_ref())?)
        } else {
            UpsamplingConv2dKind::InTwo(Conv2d::new(weight, bias, 1, Padding::same(1))?)
        };
        Ok(Self { inner })
    }

    /// # Shapes
    /// `(batch, height, width, in)` to `(batch, 2 height, 2 width, out)`.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let wrap = wrap::current();
        match &self.inner {
            UpsamplingConv2dKind::InTwo(conv) => conv.forward(&upsample_nearest_2x(x)?),
            UpsamplingConv2dKind::Cpu(_) if !wrap.is_none() => {
                let (_, height, width, _) = x.dims4()?;
                let (rows, columns) = (usize::from(wrap.y), usize::from(wrap.x));
                let around = wrap_around(&wrap_around(x, 1, rows)?, 2, columns)?;
                let y = wrapped(Wrap::default(), || self.forward(&around))?;
                y.narrow(1, 2 * rows, 2 * height)?.narrow(2, 2 * columns, 2 * width)?.contiguous()
            }
            UpsamplingConv2dKind::Cpu(inner) => profile::timed(
                x,
                || inner.forward(x),
                |y| {
                    let flop = 2.0 * 9.0 * y.elem_count() as f64 * x.dims().last().copied().unwrap_or(0) as f64;
                    profile::call("upsampling_conv2d", format!("{} to {}", profile::dims(x), profile::dims(y)), flop)
                },
            ),
        }
    }
}

/// Normalisation over groups of channels and all positions.
#[derive(Debug, Clone)]
pub struct GroupNorm {
    inner: GroupNormKind,
}

impl GroupNorm {
    /// # Shapes
    /// `weight` and `bias` `(channels)`.
    pub fn new(weight: Tensor, bias: Tensor, groups: usize, eps: f64) -> Result<Self> {
        let inner = match weight.device() {
            _ if REFERENCE_ONLY.get() => GroupNormKind::Reference(reference::ReferenceGroupNorm::new(weight, bias, groups, eps)?),
            Device::Cpu => GroupNormKind::Cpu(cpu::CpuGroupNorm::new(&weight, &bias, groups, eps)?),
            #[cfg(feature = "cuda")]
            Device::Cuda(_) => GroupNormKind::Cuda(cuda::CudaGroupNorm::new(&weight, &bias, groups, eps)?),
            _ => GroupNormKind::Reference(reference::ReferenceGroupNorm::new(weight, bias, groups, eps)?),
        };
        Ok(Self { inner })
    }

    /// # Shapes
    /// `(batch, height, width, channels)` or `(batch, tokens, channels)`, kept.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.timed("group_norm", x, false)
    }

    /// [`GroupNorm::forward`] followed by [`silu`].
    pub fn forward_silu(&self, x: &Tensor) -> Result<Tensor> {
        self.timed("group_norm_silu", x, true)
    }

    fn timed(&self, op: &'static str, x: &Tensor, silu: bool) -> Result<Tensor> {
        profile::timed(x, || forward!(GroupNormKind, &self.inner, x, silu), |_| profile::over(op, x))
    }
}

/// Normalisation over the channels.
#[derive(Debug, Clone)]
pub struct LayerNorm {
    inner: LayerNormKind,
}

impl LayerNorm {
    /// # Shapes
    /// `weight` and `bias` `(channels)`.
    pub fn new(weight: Tensor, bias: Tensor, eps: f64) -> Result<Self> {
        let inner = match weight.device() {
            _ if REFERENCE_ONLY.get() => LayerNormKind::Reference(reference::ReferenceLayerNorm::new(weight, bias, eps)?),
            Device::Cpu => LayerNormKind::Cpu(cpu::CpuLayerNorm::new(&weight, &bias, eps)?),
            #[cfg(feature = "cuda")]
            Device::Cuda(_) => LayerNormKind::Cuda(cuda::CudaLayerNorm::new(&weight, &bias, eps)?),
            _ => LayerNormKind::Reference(reference::ReferenceLayerNorm::new(weight, bias, eps)?),
        };
        Ok(Self { inner })
    }

    /// # Shapes
    /// `(…, channels)`, kept.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        profile::timed(x, || forward!(LayerNormKind, &self.inner, x), |_| profile::over("layer_norm", x))
    }
}

/// Scaled dot-product attention over `heads` heads; `causal` hides later keys from earlier queries.
///
/// # Shapes
/// `q` `(batch, queries, heads × size)`, `k` and `v` `(batch, keys, heads × size)` to the shape of `q`.
pub fn attention(q: &Tensor, k: &Tensor, v: &Tensor, heads: usize, causal: bool) -> Result<Tensor> {
    profile::timed(
        q,
        || by_device!(attention, q, k, v, heads, causal),
        |_| {
            let keys = k.dims().get(1).copied().unwrap_or(0);
            let shapes = format!("{}, {keys} keys, {heads} heads", profile::dims(q));
            profile::call("attention", shapes, 4.0 * q.elem_count() as f64 * keys as f64)
        },
    )
}

/// `a · gelu(b)` where `a` is the first half of the channels and `b` the second.
///
/// # Shapes
/// `(…, 2n)` to `(…, n)`.
pub fn geglu(x: &Tensor) -> Result<Tensor> {
    profile::timed(x, || by_device!(geglu, x), |_| profile::over("geglu", x))
}

/// `x · sigmoid(x)`
pub fn silu(x: &Tensor) -> Result<Tensor> {
    profile::timed(x, || by_device!(silu, x), |_| profile::over("silu", x))
}

/// `x · Φ(x)`, exact.
pub fn gelu(x: &Tensor) -> Result<Tensor> {
    profile::timed(x, || by_device!(gelu, x), |_| profile::over("gelu", x))
}

/// `x · sigmoid(1.702 x)`
pub fn quick_gelu(x: &Tensor) -> Result<Tensor> {
    profile::timed(x, || by_device!(quick_gelu, x), |_| profile::over("quick_gelu", x))
}

/// Every pixel becomes two by two.
///
/// # Shapes
/// `(batch, height, width, channels)` to `(batch, 2 height, 2 width, channels)`.
pub fn upsample_nearest_2x(x: &Tensor) -> Result<Tensor> {
    profile::timed(x, || by_device!(upsample_nearest_2x, x), |_| profile::over("upsample_nearest_2x", x))
}
