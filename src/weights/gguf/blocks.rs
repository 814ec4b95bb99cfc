//! GGML's blocks of quantised numbers, widened to f32.
//!
//! The layouts are those of ggml's `ggml-quants.h`, and every product and sum is rounded where PyPI `gguf`'s `quants.py` rounds it, so that the
//! numbers are equal bit for bit. candle's blocks are not used: they panic on bytes that are not aligned, and copy a tensor twice.

use half::f16;
use rayon::prelude::*;

/// Blocks that one thread takes.
const SHARE: usize = 1024;

/// How numbers are quantised in blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(non_camel_case_types, reason = "the names that everybody knows them by")]
pub(crate) enum BlockKind {
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q2_K,
    Q3_K,
    Q4_K,
    Q5_K,
    Q6_K,
}

impl BlockKind {
    /// All, with GGML's numbers for them.
    const ALL: [(u32, BlockKind); 10] = [
        (2, BlockKind::Q4_0),
        (3, BlockKind::Q4_1),
        (6, BlockKind::Q5_0),
        (7, BlockKind::Q5_1),
        (8, BlockKind::Q8_0),
        (10, BlockKind::Q2_K),
        (11, BlockKind::Q3_K),
        (12, BlockKind::Q4_K),
        (13, BlockKind::Q5_K),
        (14, BlockKind::Q6_K),
    ];

    /// The one that GGML gives a number.
    pub(super) fn of(number: u32) -> Option<BlockKind> {
        BlockKind::ALL.iter().find(|(of, _)| *of == number).map(|(_, kind)| *kind)
    }

    /// GGML's number for it.
    pub(super) fn number(self) -> Option<u32> {
        BlockKind::ALL.iter().find(|(_, kind)| *kind == self).map(|(number, _)| *number)
    }

    /// Numbers of one block.
    pub(crate) fn numbers(self) -> usize {
        match self {
            BlockKind::Q4_0 | BlockKind::Q4_1 | BlockKind::Q5_0 | BlockKind::Q5_1 | BlockKind::Q8_0 => 32,
            _ => 256,
        }
    }

    /// Bytes of one block.
    pub(crate) fn bytes(self) -> usize {
        match self {
            BlockKind::Q4_0 => 18,
            BlockKind::Q4_1 => 20,
            BlockKind::Q5_0 => 22,
            BlockKind::Q5_1 => 24,
            BlockKind::Q8_0 => 34,
            BlockKind::Q2_K => 84,
            BlockKind::Q3_K => 110,
            BlockKind::Q4_K => 144,
            BlockKind::Q5_K => 176,
            BlockKind::Q6_K => 210,
        }
    }

    /// The numbers of whole blocks as little-endian f32.
    pub(crate) fn widened(self, blocks: &[u8]) -> Vec<u8> {
        match self {
            BlockKind::Q4_0 => widened(blocks, q4_0),
            BlockKind::Q4_1 => widened(blocks, q4_1),
            BlockKind::Q5_0 => widened(blocks, q5_0),
            BlockKind::Q5_1 => widened(blocks, q5_1),
            BlockKind::Q8_0 => widened(blocks, q8_0),
            BlockKind::Q2_K => widened(blocks, q2_k),
            BlockKind::Q3_K => widened(blocks, q3_k),
            BlockKind::Q4_K => widened(blocks, q4_k),
            BlockKind::Q5_K => widened(blocks, q5_k),
            BlockKind::Q6_K => widened(blocks, q6_k),
        }
    }
}

fn widened<const BYTES: usize, const NUMBERS: usize>(blocks: &[u8], widen: fn(&[u8; BYTES]) -> [f32; NUMBERS]) -> Vec<u8> {
    let (blocks, _) = blocks.as_chunks::<BYTES>();
    let mut result = vec![0; blocks.len() * NUMBERS * 4];
    result.par_chunks_mut(SHARE * NUMBERS * 4).zip(blocks.par_chunks(SHARE)).for_each(|(to, blocks)| {
        for (to, block) in to.chunks_exact_mut(NUMBERS * 4).zip(blocks) {
            let (to, _) = to.as_chunks_mut::<4>();
            to.iter_mut().zip(widen(block)).for_each(|(to, number)| *to = number.to_le_bytes());
        }
    });
    result
}

fn half(low: u8, high: u8) -> f32 {
    f16::from_le_bytes([low, high]).to_f32()
}

/// Number `i` of 32 numbers of four bits: first all lower halves, then all upper ones.
fn nibble(bytes: &[u8], i: usize) -> u8 {
    if i < 16 { bytes[i] & 15 } else { bytes[i - 16] >> 4 }
}

/// Bit `i` of 32.
fn bit(bytes: &[u8], i: usize) -> u8 {
    bytes[i / 8] >> (i % 8) & 1
}

fn q4_0(b: &[u8; 18]) -> [f32; 32] {
    let d = half(b[0], b[1]);
    std::array::from_fn(|i| d * (f32::from(nibble(&b[2..], i)) - 8.0))
}

fn q4_1(b: &[u8; 20]) -> [f32; 32] {
    let (d, m) = (half(b[0], b[1]), half(b[2], b[3]));
    std::array::from_fn(|i| d * f32::from(nibble(&b[4..], i)) + m)
}

fn q5_0(b: &[u8; 22]) -> [f32; 32] {
    let d = half(b[0], b[1]);
    std::array::from_fn(|i| d * (f32::from(nibble(&b[6..], i) | bit(&b[2..6], i) << 4) - 16.0))
}

fn q5_1(b: &[u8; 24]) -> [f32; 32] {
    let (d, m) = (half(b[0], b[1]), half(b[2], b[3]));
    std::array::from_fn(|i| d * f32::from(nibble(&b[8..], i) | bit(&b[4..8], i) << 4) + m)
}

fn q8_0(b: &[u8; 34]) -> [f32; 32] {
    let d = half(b[0], b[1]);
    std::array::from_fn(|i| d * f32::from(b[2 + i].cast_signed()))
}

/// Number `i` of 256 numbers of two bits in 64 bytes.
fn two_bits(bytes: &[u8], i: usize) -> u8 {
    bytes[i / 128 * 32 + i % 32] >> (i % 128 / 32 * 2) & 3
}

/// Bit `i` of 256: a byte has bits that are 32 numbers apart.
fn spread_bit(bytes: &[u8], i: usize) -> u8 {
    bytes[i % 32] >> (i / 32) & 1
}

fn q2_k(b: &[u8; 84]) -> [f32; 256] {
    let (d, m) = (half(b[80], b[81]), half(b[82], b[83]));
    let scales: [(f32, f32); 16] = std::array::from_fn(|i| (d * f32::from(b[i] & 15), m * f32::from(b[i] >> 4)));
    std::array::from_fn(|i| scales[i / 16].0 * f32::from(two_bits(&b[16..80], i)) - scales[i / 16].1)
}

fn q3_k(b: &[u8; 110]) -> [f32; 256] {
    let d = half(b[108], b[109]);
    let packed = &b[96..108];
    let scales: [f32; 16] = std::array::from_fn(|i| {
        let (low, high) = (packed[i % 8] >> (i / 8 * 4) & 15, packed[8 + i % 4] >> (i / 4 * 2) & 3);
        d * (f32::from(low | high << 4) - 32.0)
    });
    std::array::from_fn(|i| {
        // The bit says that nothing is subtracted.
        let less = 4.0 * f32::from(spread_bit(&b[..32], i) ^ 1);
        scales[i / 16] * (f32::from(two_bits(&b[32..96], i)) - less)
    })
}

/// The eight scales and offsets of six bits each in twelve bytes.
fn scales(b: &[u8], d: f32, m: f32) -> [(f32, f32); 8] {
    std::array::from_fn(|i| {
        let (scale, offset) = match i {
            0..4 => (b[i] & 63, b[4 + i] & 63),
            _ => (b[4 + i] & 15 | b[i - 4] >> 2 & 48, b[4 + i] >> 4 | b[i] >> 2 & 48),
        };
        (d * f32::from(scale), m * f32::from(offset))
    })
}

/// Number `i` of 256 numbers of four bits: 32 lower halves, then their 32 upper halves.
fn alternating_nibble(bytes: &[u8], i: usize) -> u8 {
    bytes[i / 64 * 32 + i % 32] >> (i % 64 / 32 * 4) & 15
}

fn q4_k(b: &[u8; 144]) -> [f32; 256] {
    let scales = scales(&b[4..16], half(b[0], b[1]), half(b[2], b[3]));
    std::array::from_fn(|i| scales[i / 32].0 * f32::from(alternating_nibble(&b[16..], i)) - scales[i / 32].1)
}

fn q5_k(b: &[u8; 176]) -> [f32; 256] {
    let scales = scales(&b[4..16], half(b[0], b[1]), half(b[2], b[3]));
    std::array::from_fn(|i| {
        let number = alternating_nibble(&b[48..], i) | spread_bit(&b[16..48], i) << 4;
        scales[i / 32].0 * f32::from(number) - scales[i / 32].1
    })
}

fn q6_k(b: &[u8; 210]) -> [f32; 256] {
    let d = half(b[208], b[209]);
    let scales: [f32; 16] = std::array::from_fn(|i| d * f32::from(b[192 + i].cast_signed()));
    std::array::from_fn(|i| {
        let low = b[i / 128 * 64 + i % 64] >> (i % 128 / 64 * 4) & 15;
        scales[i / 16] * (f32::from(low | two_bits(&b[128..192], i) << 4) - 32.0)
    })
}
