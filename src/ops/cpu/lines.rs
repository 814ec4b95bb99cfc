//! Memory for the microkernel, aligned to full vectors.
#![expect(unsafe_code, reason = "one memory is read as several types of numbers")]

use super::element::{Element, build_vec};
use rayon::prelude::*;
use std::mem::MaybeUninit;

/// Sixteen words of 32 bits.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
pub(super) struct CacheLine([u32; 16]);

const ZERO: CacheLine = CacheLine([0; 16]);

/// Lines of which clearing is worth sharing: 4 MiB.
const SHARE: usize = 1 << 16;

/// Lines that hold at least `words` words, all 0.
pub(super) fn lines(words: usize) -> Vec<CacheLine> {
    let clear = |lines: &mut [MaybeUninit<CacheLine>]| {
        lines.par_chunks_mut(SHARE).for_each(|lines| {
            for line in lines {
                line.write(ZERO);
            }
        });
    };
    // SAFETY: all lines are written.
    unsafe { build_vec(words.div_ceil(16), clear) }
}

/// Makes `lines` hold at least `words` words.
pub(super) fn reserve(lines: &mut Vec<CacheLine>, words: usize) {
    if lines.len() < words.div_ceil(16) {
        lines.resize(words.div_ceil(16), ZERO);
    }
}

/// The elements of some lines.
pub(super) fn elements<T: Element>(lines: &[CacheLine]) -> &[T] {
    // SAFETY: a line is 64 bytes aligned to 64, and every bit pattern is an `Element`.
    unsafe { std::slice::from_raw_parts(lines.as_ptr().cast(), lines.len() * (64 / size_of::<T>())) }
}

/// The elements of some lines, to write.
pub(super) fn elements_mut<T: Element>(lines: &mut [CacheLine]) -> &mut [T] {
    // SAFETY: as for `elements`.
    unsafe { std::slice::from_raw_parts_mut(lines.as_mut_ptr().cast(), lines.len() * (64 / size_of::<T>())) }
}

/// The elements of some lines, to write before they are read.
///
/// # Safety
/// Nothing uninitialised is written: the lines are read as numbers afterwards.
pub(super) unsafe fn spare_mut<T: Element>(lines: &mut [CacheLine]) -> &mut [MaybeUninit<T>] {
    let elements = elements_mut::<T>(lines);
    // SAFETY: memory that may be uninitialised has the same layout; the caller writes elements to it.
    unsafe { std::slice::from_raw_parts_mut(elements.as_mut_ptr().cast(), elements.len()) }
}
