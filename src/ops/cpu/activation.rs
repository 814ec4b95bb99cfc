//! Functions of each element.
#![expect(unsafe_code, reason = "the output is written once")]

use super::element::{Element, Elements, build, map, with_element};
use super::isa::Isa;
use candle_core::{D, Result, Tensor};
use rayon::prelude::*;
use std::mem::MaybeUninit;

/// Elements of a task: small enough to share, large enough to pay for the sharing.
const TASK: usize = 16_384;

/// Which function of an element.
#[derive(Debug, Clone, Copy)]
pub(super) enum CpuActivation {
    Silu,
    Gelu,
    QuickGelu,
    /// With the slope below zero.
    LeakyRelu(f32),
}

impl CpuActivation {
    pub(super) fn apply(self, isa: Isa, x: &Tensor) -> Result<Tensor> {
        with_element!("activation", x.dtype(), T => self.map::<T>(isa, x))
    }

    fn map<T: Element>(self, isa: Isa, x: &Tensor) -> Result<Tensor> {
        let x = x.contiguous()?;
        let shape = x.dims();
        let x = Elements::<T>::of(&x)?;
        let fill = |y: &mut [MaybeUninit<T>]| {
            y.par_chunks_mut(TASK).zip(x.par_chunks(TASK)).for_each(|(y, x)| {
                isa.vectorize(
                    #[inline(always)]
                    |math| match self {
                        Self::Silu => map(math, x, y, |_, x| x.iter().map(move |x| math.silu(x.widen()))),
                        Self::Gelu => map(math, x, y, |_, x| x.iter().map(move |x| math.gelu(x.widen()))),
                        Self::QuickGelu => map(math, x, y, |_, x| x.iter().map(move |x| math.quick_gelu(x.widen()))),
                        Self::LeakyRelu(slope) => map(math, x, y, |_, x| x.iter().map(move |x| leaky(x.widen(), slope))),
                    },
                );
            });
        };
        // SAFETY: the chunks are all of the output, and each is written in full.
        unsafe { build(shape, fill) }
    }
}

/// `x · sigmoid(x)`
pub(in super::super) fn silu(x: &Tensor) -> Result<Tensor> {
    CpuActivation::Silu.apply(Isa::current()?, x)
}

/// `x · Φ(x)`
pub(in super::super) fn gelu(x: &Tensor) -> Result<Tensor> {
    CpuActivation::Gelu.apply(Isa::current()?, x)
}

/// `x · sigmoid(1.702 x)`
pub(in super::super) fn quick_gelu(x: &Tensor) -> Result<Tensor> {
    CpuActivation::QuickGelu.apply(Isa::current()?, x)
}

/// `x` above zero, else `slope · x`.
pub(in super::super) fn leaky_relu(x: &Tensor, slope: f32) -> Result<Tensor> {
    CpuActivation::LeakyRelu(slope).apply(Isa::current()?, x)
}

#[inline(always)]
fn leaky(x: f32, slope: f32) -> f32 {
    x.max(0.0) + slope * x.min(0.0)
}

/// [`leaky_relu`] with a slope for each channel.
pub(in super::super) fn prelu(x: &Tensor, slopes: &[f32]) -> Result<Tensor> {
    with_element!("prelu", x.dtype(), T => rows::<T>(Isa::current()?, x, slopes))
}

fn rows<T: Element>(isa: Isa, x: &Tensor, slopes: &[f32]) -> Result<Tensor> {
    let channels = slopes.len();
    if x.dim(D::Minus1)? != channels || channels == 0 {
        candle_core::bail!("prelu: {channels} slopes for {:?}", x.shape());
    }
    let x = x.contiguous()?;
    let shape = x.dims();
    let x = Elements::<T>::of(&x)?;
    let task = (TASK / channels).max(1) * channels;
    let fill = |y: &mut [MaybeUninit<T>]| {
        y.par_chunks_mut(task).zip(x.par_chunks(task)).for_each(|(y, x)| {
            isa.vectorize(
                #[inline(always)]
                |math| {
                    for (y, x) in y.chunks_exact_mut(channels).zip(x.chunks_exact(channels)) {
                        map(math, x, y, |start, x| x.iter().zip(&slopes[start..]).map(|(x, slope)| leaky(x.widen(), *slope)));
                    }
                },
            );
        });
    };
    // SAFETY: the chunks are all of the output, whole rows each, and each row is written in full.
    unsafe { build(shape, fill) }
}

/// `a · gelu(b)` of the halves `a` and `b` of the channels.
pub(in super::super) fn geglu(x: &Tensor) -> Result<Tensor> {
    geglu_with(Isa::current()?, x)
}

pub(super) fn geglu_with(isa: Isa, x: &Tensor) -> Result<Tensor> {
    with_element!("geglu", x.dtype(), T => halves::<T>(isa, x))
}

fn halves<T: Element>(isa: Isa, x: &Tensor) -> Result<Tensor> {
    let mut shape = x.dims().to_vec();
    let channels = x.dim(D::Minus1)?;
    if !channels.is_multiple_of(2) {
        candle_core::bail!("geglu: an odd number of channels in {:?}", x.shape());
    }
    let half = channels / 2;
    if let Some(last) = shape.last_mut() {
        *last = half;
    }
    let x = x.contiguous()?;
    let x = Elements::<T>::of(&x)?;
    let rows = (TASK / channels.max(1)).max(1);
    let fill = |y: &mut [MaybeUninit<T>]| {
        y.par_chunks_mut((rows * half).max(1)).zip(x.par_chunks((rows * channels).max(1))).for_each(|(y, x)| {
            isa.vectorize(
                #[inline(always)]
                |math| {
                    for (y, x) in y.chunks_exact_mut(half).zip(x.chunks_exact(channels)) {
                        let (a, b) = x.split_at(half);
                        map(math, b, y, |start, b| {
                            let pairs = b.iter().zip(&a[start..]);
                            pairs.map(move |(b, a)| a.widen() * math.gelu(b.widen()))
                        });
                    }
                },
            );
        });
    };
    // SAFETY: the chunks are all of the output, and each is written in full.
    unsafe { build(&shape, fill) }
}
