//! Products on tiles: a matrix unit of eight registers of 16 rows × 64 bytes multiplies 16 rows of 32 bf16 by 32 rows of 16.
//!
//! A call computes up to 32 rows × 32 columns in 2×2 tiles of sums; two tiles hold rows, two hold a part of the panel. The panels are
//! those of `AVX512-BF16` (words of two bf16), with whole tiles of steps. TileRows at equal distances are read where they are, others are
//! copied side by side first, tap by tap.
//!
//! The unit stands behind [`AmxUnit`]: the instructions, and in tests an exact model of them, so that everything but the instructions
//! themselves runs on every machine.
#![expect(unsafe_code, reason = "raw row pointers")]

mod instructions;
#[cfg(test)]
mod model;

pub(super) use instructions::is_available;

use super::lines::{CacheLine, reserve};
use super::microkernel::{Kernels, MAX_ROWS, Tile, TileFn};
use std::cell::RefCell;

/// TileRows of a tile, and words of a row.
pub(super) const SIDE: usize = 16;

/// What `ldtilecfg` reads.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
struct Config {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    /// Bytes of a row of every tile.
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

/// All eight tiles in full: parts of tiles are filled with zeros in memory, and the rows beyond are never read.
const FULL: Config = Config {
    palette: 1,
    start_row: 0,
    reserved: [0; 14],
    row_bytes: [64, 64, 64, 64, 64, 64, 64, 64, 0, 0, 0, 0, 0, 0, 0, 0],
    rows: [16, 16, 16, 16, 16, 16, 16, 16, 0, 0, 0, 0, 0, 0, 0, 0],
};

/// A matrix unit; each function is one instruction, on tiles that are named by number.
///
/// # Safety
/// The unit must be there; pointers must be good for 16 rows of 64 bytes `stride` bytes apart; everything but `configure` and `release`
/// wants the thread's unit configured.
trait AmxUnit {
    unsafe fn configure(config: &Config);
    unsafe fn release();
    unsafe fn zero<const TILE: u8>();
    unsafe fn load<const TILE: u8>(from: *const u8, stride: isize);
    unsafe fn store<const TILE: u8>(to: *mut u8, stride: isize);
    /// `SUMS += ROWS · PANEL` in pairs of bf16.
    unsafe fn multiply<const SUMS: u8, const ROWS: u8, const PANEL: u8>();
}

/// TileRows as the unit loads them: a first address, and the bytes to the next row.
#[derive(Clone, Copy)]
struct TileRows {
    base: *const u8,
    stride: isize,
}

/// The bytes from row to row, if sixteen lie at equal distances.
#[inline(always)]
fn regular(rows: &[*const u32]) -> Option<isize> {
    let rows: &[_; SIDE] = rows.try_into().ok()?;
    let (first, stride) = (rows[0].addr(), rows[1].addr().wrapping_sub(rows[0].addr()));
    // Without a way out of the loop, which is some vectors so.
    let mut differences = 0;
    for (i, row) in rows.iter().enumerate() {
        differences |= row.addr().wrapping_sub(first.wrapping_add(i.wrapping_mul(stride)));
    }
    (differences == 0).then_some(stride.cast_signed())
}

/// The rows from `offset` on, `steps` words of each, where they are or as a copy that is filled up with zeros.
///
/// # Safety
/// Every pointer must be good for `offset + steps` words.
#[inline(always)]
unsafe fn tile_rows(rows: &[*const u32], offset: usize, steps: usize, copy: &mut [CacheLine]) -> TileRows {
    // SAFETY: the caller's promise; `copy` has room for sixteen rows of `steps`, which are whole lines.
    unsafe {
        if let Some(stride) = regular(rows) {
            return TileRows { base: rows[0].add(offset).cast(), stride };
        }
        let lines = steps / SIDE;
        for (row, to) in copy.chunks_exact_mut(lines.max(1)).take(SIDE).enumerate() {
            match rows.get(row) {
                Some(from) => std::ptr::copy_nonoverlapping(from.add(offset), to.as_mut_ptr().cast(), steps),
                None => std::ptr::write_bytes(to.as_mut_ptr(), 0, lines),
            }
        }
        TileRows { base: copy.as_ptr().cast(), stride: (4 * steps).cast_signed() }
    }
}

/// # Safety
/// As [`AmxUnit`] and [`Tile`]; `tile.steps` must be a multiple of [`SIDE`], and `tile.out` have room for whole tiles of rows.
#[inline(always)]
unsafe fn run<U: AmxUnit, const VECTORS: usize>(tile: &Tile, count: usize) {
    COPY.with_borrow_mut(|copy| {
        // SAFETY: the caller's promise covers every read and write below.
        unsafe {
            let lower = count > SIDE;
            let (width, bytes) = (VECTORS * SIDE, (4 * tile.out_stride).cast_signed());
            let out: [[*mut u8; 2]; 2] =
                [0, 1].map(|row| [0, 1].map(|column| tile.out.wrapping_add(SIDE * (row * tile.out_stride + column)).cast()));
            if tile.accumulate {
                U::load::<0>(out[0][0], bytes);
                if VECTORS == 2 {
                    U::load::<1>(out[0][1], bytes);
                }
                if lower {
                    U::load::<2>(out[1][0], bytes);
                    if VECTORS == 2 {
                        U::load::<3>(out[1][1], bytes);
                    }
                }
            } else {
                U::zero::<0>();
                U::zero::<1>();
                U::zero::<2>();
                U::zero::<3>();
            }
            let half = SIDE * tile.steps;
            reserve(copy, 2 * half);
            let (upper_copy, lower_copy) = copy.split_at_mut(half / SIDE);
            for tap in 0..tile.taps {
                let pointers = std::slice::from_raw_parts(tile.rows.add(tap * MAX_ROWS), count);
                let above = tile_rows(&pointers[..count.min(SIDE)], tile.offset, tile.steps, upper_copy);
                let below = if lower { tile_rows(&pointers[SIDE..], tile.offset, tile.steps, lower_copy) } else { above };
                let panel = tile.panel.add(tap * tile.tap_stride).cast::<u8>();
                for step in (0..tile.steps).step_by(SIDE) {
                    let panel = panel.add(4 * step * width);
                    U::load::<6>(panel, (4 * width).cast_signed());
                    U::load::<4>(above.base.add(4 * step), above.stride);
                    U::multiply::<0, 4, 6>();
                    if VECTORS == 2 {
                        U::load::<7>(panel.add(64), (4 * width).cast_signed());
                        U::multiply::<1, 4, 7>();
                    }
                    if lower {
                        U::load::<5>(below.base.add(4 * step), below.stride);
                        U::multiply::<2, 5, 6>();
                        if VECTORS == 2 {
                            U::multiply::<3, 5, 7>();
                        }
                    }
                }
            }
            U::store::<0>(out[0][0], bytes);
            if VECTORS == 2 {
                U::store::<1>(out[0][1], bytes);
            }
            if lower {
                U::store::<2>(out[1][0], bytes);
                if VECTORS == 2 {
                    U::store::<3>(out[1][1], bytes);
                }
            }
        }
    });
}

unsafe fn configure<U: AmxUnit>() {
    // SAFETY: the caller's promise is that of the unit.
    unsafe { U::configure(&FULL) }
}

unsafe fn release<U: AmxUnit>() {
    // SAFETY: as above.
    unsafe { U::release() }
}

unsafe fn tile<U: AmxUnit, const ROWS: usize, const VECTORS: usize>(tile: &Tile) {
    // SAFETY: the caller's promise is that of `run`.
    unsafe { run::<U, VECTORS>(tile, ROWS) }
}

macro_rules! tiles {
    ($unit:ty, $vectors:literal: $($rows:literal)*) => {{
        const TILES: &[TileFn] = &[$(tile::<$unit, $rows, $vectors>),*];
        TILES
    }};
    ($unit:ty) => {
        Kernels {
            lanes: SIDE,
            rows: MAX_ROWS,
            depth: SIDE,
            speed: 16.0,
            tiles: [
                tiles!($unit, 1: 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30 31 32),
                tiles!($unit, 2: 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30 31 32),
            ],
            session: Some((configure::<$unit>, release::<$unit>)),
        }
    };
}

/// The matrix unit's instructions.
pub(super) static AMX: Kernels = tiles!(instructions::Instructions);

/// The model of the matrix unit.
#[cfg(test)]
pub(super) static MODEL: Kernels = tiles!(model::Model);

thread_local! {
    /// TileRows side by side, of one tap; kept between calls.
    static COPY: RefCell<Vec<CacheLine>> = RefCell::default();
}
