//! What the instructions do, in plain Rust: as exact as their description, and as strict.
//!
//! # Source
//! Intel 64 and IA-32 Architectures Software Developer's Manual, volume 2: LDTILECFG, TILELOADD, TILESTORED, TILEZERO, TILERELEASE,
//! TDPBF16PS with its pseudo-code.

use super::{AmxUnit, Config};
use std::cell::RefCell;

/// One thread's unit: configuration and tiles.
struct ModelledUnit {
    /// Rows, and bytes of a row; none until it is configured.
    shapes: Option<[(usize, usize); 8]>,
    tiles: [[[u8; 64]; 16]; 8],
}

impl ModelledUnit {
    const INITIAL: Self = Self { shapes: None, tiles: [[[0; 64]; 16]; 8] };

    /// A tile that is not configured is an undefined instruction.
    fn shape(&self, tile: u8) -> (usize, usize) {
        let shapes = self.shapes.expect("#UD: tiles are used before they are configured");
        let (rows, bytes) = shapes[usize::from(tile)];
        assert!(rows > 0 && bytes > 0, "#UD: tile {tile} is not configured");
        (rows, bytes)
    }
}

thread_local! {
    static STATE: RefCell<ModelledUnit> = const { RefCell::new(ModelledUnit::INITIAL) };
}

pub(super) struct Model;

impl AmxUnit for Model {
    unsafe fn configure(config: &Config) {
        assert_eq!((config.palette, config.start_row, config.reserved), (1, 0, [0; 14]), "#GP: a bad configuration");
        let shapes = std::array::from_fn(|tile| {
            let (rows, bytes) = (config.rows[tile], config.row_bytes[tile]);
            assert!(rows <= 16 && bytes <= 64 && (rows == 0) == (bytes == 0), "#GP: tile {tile} of {rows} rows of {bytes} bytes");
            (usize::from(rows), usize::from(bytes))
        });
        assert!(config.rows[8..].iter().all(|&rows| rows == 0) && config.row_bytes[8..].iter().all(|&bytes| bytes == 0), "#GP");
        STATE.with_borrow_mut(|state| *state = ModelledUnit { shapes: Some(shapes), ..ModelledUnit::INITIAL });
    }

    unsafe fn release() {
        STATE.with_borrow_mut(|state| *state = ModelledUnit::INITIAL);
    }

    unsafe fn zero<const TILE: u8>() {
        STATE.with_borrow_mut(|state| {
            state.shape(TILE);
            state.tiles[usize::from(TILE)] = [[0; 64]; 16];
        });
    }

    unsafe fn load<const TILE: u8>(from: *const u8, stride: isize) {
        STATE.with_borrow_mut(|state| {
            let (rows, bytes) = state.shape(TILE);
            let tile = &mut state.tiles[usize::from(TILE)];
            *tile = [[0; 64]; 16];
            for (row, to) in tile.iter_mut().enumerate().take(rows) {
                // SAFETY: the caller's promise.
                unsafe { std::ptr::copy_nonoverlapping(from.offset(row.cast_signed() * stride), to.as_mut_ptr(), bytes) };
            }
        });
    }

    unsafe fn store<const TILE: u8>(to: *mut u8, stride: isize) {
        STATE.with_borrow(|state| {
            let (rows, bytes) = state.shape(TILE);
            for (row, from) in state.tiles[usize::from(TILE)].iter().enumerate().take(rows) {
                // SAFETY: the caller's promise.
                unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), to.offset(row.cast_signed() * stride), bytes) };
            }
        });
    }

    unsafe fn multiply<const SUMS: u8, const ROWS: u8, const PANEL: u8>() {
        const { assert!(SUMS != ROWS && SUMS != PANEL && ROWS != PANEL, "#UD: three tiles are wanted") };
        STATE.with_borrow_mut(|state| {
            let ((rows, bytes), (a_rows, a_bytes), (b_rows, b_bytes)) = (state.shape(SUMS), state.shape(ROWS), state.shape(PANEL));
            assert!(rows == a_rows && bytes == b_bytes && a_bytes == 4 * b_rows, "#UD: shapes that do not fit");
            let (a, b) = (state.tiles[usize::from(ROWS)], state.tiles[usize::from(PANEL)]);
            let c = &mut state.tiles[usize::from(SUMS)];
            for m in 0..rows {
                // Even and odd pairs have a sum each, from zero, and are added to the tile at the end.
                let mut sums = [[0f32; 2]; 16];
                for (k, b) in b.iter().enumerate().take(b_rows) {
                    for (n, sums) in sums.iter_mut().enumerate().take(bytes / 4) {
                        for (half, sum) in sums.iter_mut().enumerate() {
                            *sum = flush(bf16_at(&a[m], 2 * k + half).mul_add(bf16_at(b, 2 * n + half), *sum));
                        }
                    }
                }
                for (n, [even, odd]) in sums.iter().enumerate().take(bytes / 4) {
                    let at = 4 * n..4 * n + 4;
                    let before = f32::from_le_bytes(c[m][at.clone()].try_into().expect("four bytes"));
                    let sum = flush(flush(before) + flush(even + odd));
                    c[m][at].copy_from_slice(&sum.to_le_bytes());
                }
            }
        });
    }
}

/// Subnormals are zeros, on the way in and on the way out.
fn flush(x: f32) -> f32 {
    if x.is_subnormal() { 0f32.copysign(x) } else { x }
}

fn bf16_at(row: &[u8; 64], index: usize) -> f32 {
    flush(f32::from_bits(u32::from(u16::from_le_bytes([row[2 * index], row[2 * index + 1]])) << 16))
}
