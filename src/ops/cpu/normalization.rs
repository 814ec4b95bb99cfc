//! Group and layer normalisation with f32 arithmetic and statistics about the mean, in two readings of the input.
#![expect(unsafe_code, reason = "the output is written once")]

use super::element::{Element, Elements, build, map, to_f32, with_element};
use super::isa::Isa;
use super::math::{Math, reduce};
use candle_core::{D, DType, Result, Tensor};
use rayon::prelude::*;
use std::mem::MaybeUninit;

/// Elements of a task; their f32 fit L2, so that statistics about the mean cost one reading of memory.
const TASK: usize = 32_768;

/// Most positions in a task: what is summed in f32.
const TASK_POSITIONS: usize = 256;

/// Parts of a sum of a row: several vectors, so that an addition need not wait for the one before.
const SIDE_BY_SIDE: usize = 64;

#[derive(Debug, Clone)]
pub(in super::super) struct CpuGroupNorm {
    isa: Isa,
    weight: Vec<f32>,
    bias: Vec<f32>,
    groups: usize,
    eps: f64,
}

/// Count, mean and sum of squared distances from the mean.
#[derive(Debug, Clone, Copy, Default)]
struct Moments {
    count: f64,
    mean: f64,
    squares: f64,
}

impl Moments {
    /// # Source
    /// Chan, Golub, LeVeque 1979, "Updating formulae and a pairwise algorithm for computing sample variances", eq. 2.1.
    fn merge(self, other: Self) -> Self {
        let count = self.count + other.count;
        if count == 0.0 {
            return self;
        }
        let delta = other.mean - self.mean;
        let mean = self.mean + delta * other.count / count;
        let squares = self.squares + other.squares + delta * delta * self.count * other.count / count;
        Self { count, mean, squares }
    }
}

impl CpuGroupNorm {
    pub(in super::super) fn new(weight: &Tensor, bias: &Tensor, groups: usize, eps: f64) -> Result<Self> {
        Self::with(Isa::current()?, weight, bias, groups, eps)
    }

    pub(super) fn with(isa: Isa, weight: &Tensor, bias: &Tensor, groups: usize, eps: f64) -> Result<Self> {
        let (channels, others) = (weight.dims1()?, bias.dims1()?);
        if groups == 0 || !channels.is_multiple_of(groups) || channels != others {
            candle_core::bail!("group_norm: {channels} weights and {others} biases cannot be normalised in {groups} groups");
        }
        Ok(Self { isa, weight: to_f32(weight)?, bias: to_f32(bias)?, groups, eps })
    }

    pub(in super::super) fn forward(&self, x: &Tensor, with_silu: bool) -> Result<Tensor> {
        with_element!("group_norm", x.dtype(), T => self.run::<T>(x, with_silu))
    }

    fn run<T: Element>(&self, x: &Tensor, with_silu: bool) -> Result<Tensor> {
        let channels = self.weight.len();
        if x.rank() < 2 || x.dim(D::Minus1)? != channels {
            candle_core::bail!("group_norm: {:?} is not (batch, …, {channels})", x.shape());
        }
        if x.elem_count() == 0 {
            return Ok(x.clone());
        }
        let x = x.contiguous()?;
        let shape = x.dims();
        let image = shape[1..].iter().product::<usize>();
        let x = Elements::<T>::of(&x)?;
        // The same parts whatever the batch and the threads, so that those do not change the result.
        let task = (TASK / channels.max(1)).clamp(1, TASK_POSITIONS) * channels.max(1);
        let parts: Vec<Vec<Moments>> = (0..shape[0] * image.div_ceil(task))
            .into_par_iter()
            .map(|index| {
                let (row, part) = (index / image.div_ceil(task), index % image.div_ceil(task));
                let part = &x[row * image..][..image][part * task..];
                let part = &part[..task.min(part.len())];
                self.isa.vectorize(
                    #[inline(always)]
                    |_| moments(part, channels, self.groups),
                )
            })
            .collect();
        let affine: Vec<_> = parts.chunks(image.div_ceil(task)).map(|parts| self.affine(parts)).collect();
        let fill = |y: &mut [MaybeUninit<T>]| {
            for ((y, x), (scale, shift)) in y.chunks_mut(image).zip(x.chunks(image)).zip(&affine) {
                y.par_chunks_mut(task).zip(x.par_chunks(task)).for_each(|(y, x)| {
                    self.isa.vectorize(
                        #[inline(always)]
                        |math| {
                            if with_silu {
                                apply(
                                    math,
                                    x,
                                    y,
                                    scale,
                                    shift,
                                    #[inline(always)]
                                    |x| math.silu(x),
                                );
                            } else {
                                apply(
                                    math,
                                    x,
                                    y,
                                    scale,
                                    shift,
                                    #[inline(always)]
                                    |x| x,
                                );
                            }
                        },
                    );
                });
            }
        };
        // SAFETY: the chunks are all of the output, and each is written in full.
        unsafe { build(shape, fill) }
    }

    /// Scale and shift of every channel, from the moments of every group in all parts of one image.
    fn affine(&self, parts: &[Vec<Moments>]) -> (Vec<f32>, Vec<f32>) {
        let size = self.weight.len() / self.groups;
        let mut scale = Vec::with_capacity(self.weight.len());
        let mut shift = Vec::with_capacity(self.weight.len());
        for group in 0..self.groups {
            let all = parts.iter().fold(Moments::default(), |all, part| all.merge(part[group]));
            let inverse = 1.0 / (all.squares / all.count + self.eps).sqrt();
            for channel in group * size..(group + 1) * size {
                let weight = f64::from(self.weight[channel]) * inverse;
                scale.push(weight as f32);
                shift.push((f64::from(self.bias[channel]) - weight * all.mean) as f32);
            }
        }
        (scale, shift)
    }
}

/// The moments of every group over some positions.
#[inline(always)]
fn moments<T: Element>(x: &[T], channels: usize, groups: usize) -> Vec<Moments> {
    let size = channels / groups;
    let count = (x.len() / groups) as f64;
    let mut sums = vec![0.0f32; channels];
    for some in x.chunks(4 * channels) {
        // Four positions at once: the sums are read and written a quarter as often.
        if let Some([a, b, c, d]) = four(some, channels) {
            let sums = &mut sums[..channels];
            for i in 0..channels {
                sums[i] += (a[i].widen() + b[i].widen()) + (c[i].widen() + d[i].widen());
            }
        } else {
            for x in some.chunks_exact(channels) {
                for (sum, x) in sums.iter_mut().zip(x) {
                    *sum += x.widen();
                }
            }
        }
    }
    let group_sum = |sums: &[f32]| sums.iter().map(|&sum| f64::from(sum)).sum::<f64>();
    let means: Vec<f32> = sums.chunks_exact(size).map(|sums| (group_sum(sums) / count) as f32).collect();
    let centres: Vec<f32> = means.iter().flat_map(|&mean| std::iter::repeat_n(mean, size)).collect();
    // The mean is rounded, so its rest is summed too.
    let mut squares = vec![0.0f32; channels];
    sums.fill(0.0);
    for some in x.chunks(4 * channels) {
        if let Some([a, b, c, d]) = four(some, channels) {
            let (sums, squares, centres) = (&mut sums[..channels], &mut squares[..channels], &centres[..channels]);
            for i in 0..channels {
                let centre = centres[i];
                let (a, b, c, d) = (a[i].widen() - centre, b[i].widen() - centre, c[i].widen() - centre, d[i].widen() - centre);
                sums[i] += (a + b) + (c + d);
                squares[i] += (a * a + b * b) + (c * c + d * d);
            }
        } else {
            for x in some.chunks_exact(channels) {
                for (((square, sum), centre), x) in squares.iter_mut().zip(&mut sums).zip(&centres).zip(x) {
                    let distance = x.widen() - centre;
                    *sum += distance;
                    *square += distance * distance;
                }
            }
        }
    }
    let rests = sums.chunks_exact(size).map(group_sum);
    let squares = squares.chunks_exact(size).map(group_sum);
    means
        .iter()
        .zip(rests.zip(squares))
        .map(|(&mean, (rest, squares))| {
            let rest = rest / count;
            Moments { count, mean: f64::from(mean) + rest, squares: squares - rest * rest * count }
        })
        .collect()
}

/// Four positions of `channels` each, if there are so many.
#[inline(always)]
fn four<T>(x: &[T], channels: usize) -> Option<[&[T]; 4]> {
    (x.len() == 4 * channels).then(|| std::array::from_fn(|i| &x[i * channels..][..channels]))
}

#[inline(always)]
fn apply<T: Element>(math: Math, x: &[T], y: &mut [MaybeUninit<T>], scale: &[f32], shift: &[f32], f: impl Fn(f32) -> f32 + Copy) {
    for (y, x) in y.chunks_exact_mut(scale.len()).zip(x.chunks_exact(scale.len())) {
        map(math, x, y, |start, x| {
            let channels = x.iter().zip(&scale[start..]).zip(&shift[start..]);
            channels.map(|((x, scale), shift)| f(math.mul_add(x.widen(), *scale, *shift)))
        });
    }
}

#[derive(Debug, Clone)]
pub(in super::super) struct CpuLayerNorm {
    isa: Isa,
    weight: Vec<f32>,
    bias: Vec<f32>,
    eps: f64,
}

impl CpuLayerNorm {
    pub(in super::super) fn new(weight: &Tensor, bias: &Tensor, eps: f64) -> Result<Self> {
        Self::with(Isa::current()?, weight, bias, eps)
    }

    pub(super) fn with(isa: Isa, weight: &Tensor, bias: &Tensor, eps: f64) -> Result<Self> {
        let (channels, others) = (weight.dims1()?, bias.dims1()?);
        if channels != others || channels == 0 {
            candle_core::bail!("layer_norm: {channels} weights and {others} biases");
        }
        Ok(Self { isa, weight: to_f32(weight)?, bias: to_f32(bias)?, eps })
    }

    pub(in super::super) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        with_element!("layer_norm", x.dtype(), T => self.run::<T>(x))
    }

    fn run<T: Element>(&self, x: &Tensor) -> Result<Tensor> {
        let channels = self.weight.len();
        if x.rank() == 0 || x.dim(D::Minus1)? != channels {
            candle_core::bail!("layer_norm: {:?} does not end in {channels} channels", x.shape());
        }
        let x = x.contiguous()?;
        let shape = x.dims();
        let x = Elements::<T>::of(&x)?;
        let task = (TASK / channels).max(1) * channels;
        let fill = |y: &mut [MaybeUninit<T>]| {
            y.par_chunks_mut(task).zip(x.par_chunks(task)).for_each(|(y, x)| {
                self.isa.vectorize(
                    #[inline(always)]
                    |math| {
                        let mut wide = vec![0.0; channels];
                        for (y, x) in y.chunks_exact_mut(channels).zip(x.chunks_exact(channels)) {
                            self.row(math, x, y, &mut wide);
                        }
                    },
                );
            });
        };
        // SAFETY: the chunks are all of the output, and each is written in full.
        unsafe { build(shape, fill) }
    }

    #[inline(always)]
    fn row<T: Element>(&self, math: Math, x: &[T], y: &mut [MaybeUninit<T>], wide: &mut [f32]) {
        if T::DTYPE == DType::F32 {
            let (mean, rest, inverse) = self.statistics(x);
            map(math, x, y, |start, x| {
                let channels = x.iter().zip(&self.weight[start..]).zip(&self.bias[start..]);
                channels.map(move |((x, weight), bias)| math.mul_add((x.widen() - mean - rest) * inverse, *weight, *bias))
            });
            return;
        }
        // Widened once instead of three times.
        for (wide, x) in wide.iter_mut().zip(x) {
            *wide = x.widen();
        }
        let (mean, rest, inverse) = self.statistics(wide);
        for ((x, weight), bias) in wide.iter_mut().zip(&self.weight).zip(&self.bias) {
            *x = math.mul_add((*x - mean - rest) * inverse, *weight, *bias);
        }
        T::narrow_all(math, wide, y);
    }

    /// The mean, what it lost when it was rounded, and the inverse of the deviation.
    #[inline(always)]
    fn statistics<T: Element>(&self, x: &[T]) -> (f32, f32, f32) {
        let count = x.len() as f32;
        let [sum] = sums(
            x,
            #[inline(always)]
            |x| [x],
        );
        let mean = sum / count;
        let [rest, squares] = sums(
            x,
            #[inline(always)]
            |x| [x - mean, (x - mean) * (x - mean)],
        );
        let rest = rest / count;
        let variance = (squares / count - rest * rest).max(0.0);
        (mean, rest, (1.0 / (f64::from(variance) + self.eps).sqrt()) as f32)
    }
}

/// Sums over all elements, each in [`SIDE_BY_SIDE`] parts.
#[inline(always)]
fn sums<T: Element, const N: usize>(x: &[T], f: impl Fn(f32) -> [f32; N]) -> [f32; N] {
    let mut parts = [[0.0f32; SIDE_BY_SIDE]; N];
    for x in x.chunks(SIDE_BY_SIDE) {
        if let Ok(x) = <&[T; SIDE_BY_SIDE]>::try_from(x) {
            for i in 0..SIDE_BY_SIDE {
                let terms = f(x[i].widen());
                for n in 0..N {
                    parts[n][i] += terms[n];
                }
            }
        } else {
            for (i, x) in x.iter().enumerate() {
                let terms = f(x.widen());
                for n in 0..N {
                    parts[n][i] += terms[n];
                }
            }
        }
    }
    parts.map(
        #[inline(always)]
        |parts| {
            reduce(
                parts,
                #[inline(always)]
                |a, b| a + b,
            )
        },
    )
}
