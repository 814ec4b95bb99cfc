//! Nearest-neighbour enlargement: copies.
#![expect(unsafe_code, reason = "the output is written once")]

use super::element::{Element, Elements, build, with_element};
use candle_core::{Result, Tensor};
use rayon::prelude::*;
use std::mem::MaybeUninit;

pub(in super::super) fn upsample_nearest_2x(x: &Tensor) -> Result<Tensor> {
    with_element!("upsample_nearest_2x", x.dtype(), T => double::<T>(x))
}

fn double<T: Element>(x: &Tensor) -> Result<Tensor> {
    let &[batch, height, width, channels] = x.dims() else {
        candle_core::bail!("upsample_nearest_2x: images are (batch, height, width, channels), got {:?}", x.shape());
    };
    let shape = [batch, 2 * height, 2 * width, channels];
    let x = x.contiguous()?;
    let x = Elements::<T>::of(&x)?;
    let line = width * channels;
    let fill = |y: &mut [MaybeUninit<T>]| {
        // Two lines of the output for each of the input.
        y.par_chunks_mut((4 * line).max(1)).zip(x.par_chunks(line.max(1))).for_each(|(y, x)| {
            let (upper, lower) = y.split_at_mut(2 * line);
            for y in [upper, lower] {
                for (y, x) in y.chunks_exact_mut(2 * channels).zip(x.chunks_exact(channels)) {
                    for y in y.chunks_exact_mut(channels) {
                        for (y, x) in y.iter_mut().zip(x) {
                            y.write(*x);
                        }
                    }
                }
            }
        });
    };
    // SAFETY: the chunks are all of the output, and each is written in full.
    unsafe { build(&shape, fill) }
}
