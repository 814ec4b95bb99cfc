//! What a model may call.
//!
//! Activations are channels-last: pictures are `(batch, height, width, channels)` and token rows
//! `(batch, tokens, channels)`, so that a transformer block is a view and a 1×1 convolution a matrix product.
//! Each op has a portable reference written with candle's tensor operations (`reference`), which runs on every
//! device, and the fast paths that stand behind the same name (`cpu`).
//! Weights are given in the layout of the files and packed once, at construction, for the device that they are on.

mod cpu;
#[cfg(any(feature = "cuda", test))]
mod cuda;
mod reference;

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

/// The instruction set that the fast paths on the CPU use, for people.
///
/// # Errors
/// The environment asks for one that is not here.
pub fn cpu_instructions() -> Result<&'static str> {
    cpu::instructions()
}

/// A layer in the form for the device of its weights.
#[derive(Debug, Clone)]
enum Kind<R, C> {
    Reference(R),
    Cpu(C),
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
    inner: Kind<reference::Linear, cpu::Linear>,
}

impl Linear {
    /// # Shapes
    /// `weight` `(out, in)`, `bias` `(out)`.
    pub fn new(weight: Tensor, bias: Option<Tensor>) -> Result<Self> {
        let inner = match weight.device() {
            Device::Cpu if !REFERENCE_ONLY.get() => Kind::Cpu(cpu::Linear::new(&weight, bias.as_ref())?),
            _ => Kind::Reference(reference::Linear::new(weight, bias)?),
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
        match &self.inner {
            Kind::Cpu(inner) => inner.forward(x, epilogue),
            Kind::Reference(inner) => inner.forward(x, epilogue),
        }
    }
}

/// Zeros around a picture, in pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
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
    inner: Kind<reference::Conv2d, cpu::Conv2d>,
}

impl Conv2d {
    /// # Shapes
    /// `weight` `(out, in, kernel height, kernel width)`, `bias` `(out)`.
    pub fn new(weight: Tensor, bias: Option<Tensor>, stride: usize, padding: Padding) -> Result<Self> {
        let inner = match weight.device() {
            Device::Cpu if !REFERENCE_ONLY.get() => Kind::Cpu(cpu::Conv2d::new(&weight, bias.as_ref(), stride, padding)?),
            _ => Kind::Reference(reference::Conv2d::new(weight, bias, stride, padding)?),
        };
        Ok(Self { inner })
    }

    /// # Shapes
    /// `(batch, height, width, in)` to `(batch, height', width', out)`.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.forward_with(x, Epilogue::default())
    }

    /// Like [`Conv2d::forward`], with additions before the result is written.
    pub fn forward_with(&self, x: &Tensor, epilogue: Epilogue<'_>) -> Result<Tensor> {
        match &self.inner {
            Kind::Cpu(inner) => inner.forward(x, epilogue),
            Kind::Reference(inner) => inner.forward(x, epilogue),
        }
    }
}

/// Normalisation over groups of channels and all positions.
#[derive(Debug, Clone)]
pub struct GroupNorm {
    inner: Kind<reference::GroupNorm, cpu::GroupNorm>,
}

impl GroupNorm {
    /// # Shapes
    /// `weight` and `bias` `(channels)`.
    pub fn new(weight: Tensor, bias: Tensor, groups: usize, eps: f64) -> Result<Self> {
        let inner = match weight.device() {
            Device::Cpu if !REFERENCE_ONLY.get() => Kind::Cpu(cpu::GroupNorm::new(&weight, &bias, groups, eps)?),
            _ => Kind::Reference(reference::GroupNorm::new(weight, bias, groups, eps)?),
        };
        Ok(Self { inner })
    }

    /// # Shapes
    /// `(batch, height, width, channels)` or `(batch, tokens, channels)`, kept.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        match &self.inner {
            Kind::Cpu(inner) => inner.forward(x, false),
            Kind::Reference(inner) => inner.forward(x, false),
        }
    }

    /// [`GroupNorm::forward`] followed by [`silu`].
    pub fn forward_silu(&self, x: &Tensor) -> Result<Tensor> {
        match &self.inner {
            Kind::Cpu(inner) => inner.forward(x, true),
            Kind::Reference(inner) => inner.forward(x, true),
        }
    }
}

/// Normalisation over the channels.
#[derive(Debug, Clone)]
pub struct LayerNorm {
    inner: Kind<reference::LayerNorm, cpu::LayerNorm>,
}

impl LayerNorm {
    /// # Shapes
    /// `weight` and `bias` `(channels)`.
    pub fn new(weight: Tensor, bias: Tensor, eps: f64) -> Result<Self> {
        let inner = match weight.device() {
            Device::Cpu if !REFERENCE_ONLY.get() => Kind::Cpu(cpu::LayerNorm::new(&weight, &bias, eps)?),
            _ => Kind::Reference(reference::LayerNorm::new(weight, bias, eps)?),
        };
        Ok(Self { inner })
    }

    /// # Shapes
    /// `(…, channels)`, kept.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        match &self.inner {
            Kind::Cpu(inner) => inner.forward(x),
            Kind::Reference(inner) => inner.forward(x),
        }
    }
}

/// Scaled dot-product attention over `heads` heads; `causal` hides later keys from earlier queries.
///
/// # Shapes
/// `q` `(batch, queries, heads × size)`, `k` and `v` `(batch, keys, heads × size)` to the shape of `q`.
pub fn attention(q: &Tensor, k: &Tensor, v: &Tensor, heads: usize, causal: bool) -> Result<Tensor> {
    match q.device() {
        Device::Cpu if !REFERENCE_ONLY.get() => cpu::attention(q, k, v, heads, causal),
        _ => reference::attention(q, k, v, heads, causal),
    }
}

/// `a · gelu(b)` where `a` is the first half of the channels and `b` the second.
///
/// # Shapes
/// `(…, 2n)` to `(…, n)`.
pub fn geglu(x: &Tensor) -> Result<Tensor> {
    match x.device() {
        Device::Cpu if !REFERENCE_ONLY.get() => cpu::geglu(x),
        _ => reference::geglu(x),
    }
}

/// `x · sigmoid(x)`
pub fn silu(x: &Tensor) -> Result<Tensor> {
    match x.device() {
        Device::Cpu if !REFERENCE_ONLY.get() => cpu::silu(x),
        _ => reference::silu(x),
    }
}

/// `x · Φ(x)`, exact.
pub fn gelu(x: &Tensor) -> Result<Tensor> {
    match x.device() {
        Device::Cpu if !REFERENCE_ONLY.get() => cpu::gelu(x),
        _ => reference::gelu(x),
    }
}

/// `x · sigmoid(1.702 x)`
pub fn quick_gelu(x: &Tensor) -> Result<Tensor> {
    match x.device() {
        Device::Cpu if !REFERENCE_ONLY.get() => cpu::quick_gelu(x),
        _ => reference::quick_gelu(x),
    }
}

/// Every pixel becomes two by two.
///
/// # Shapes
/// `(batch, height, width, channels)` to `(batch, 2 height, 2 width, channels)`.
pub fn upsample_nearest_2x(x: &Tensor) -> Result<Tensor> {
    match x.device() {
        Device::Cpu if !REFERENCE_ONLY.get() => cpu::upsample_nearest_2x(x),
        _ => reference::upsample_nearest_2x(x),
    }
}
