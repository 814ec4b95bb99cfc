//! Brownian paths that can be asked at any time, with the numbers of torchsde's `BrownianTree`.
//!
//! The path is found by halving: its value at the end, then in the middle, and so on, each from a seed of its own. The same question has
//! the same answer in whatever order questions come, so that an image does not depend on how its steps are laid.

use super::{Generator, Rng};

/// Halvings after which an interval has no times inside it.
const DEEPEST: u32 = 64;

/// One path between two times, for one image.
///
/// # Source
/// torchsde 0.2.6 `_brownian/brownian_interval.py` with `halfway_tree` and a pool of 24 words; Li et al. 2020, arXiv:2001.01328, section 4.
#[derive(Debug, Clone)]
pub(super) struct BrownianTree {
    rng: Rng,
    seed: u64,
    ends: (f64, f64),
    /// How far the path goes from its start to its end.
    whole: Vec<f32>,
}

/// A halving's part of the path.
struct Interval<'a> {
    from: f64,
    to: f64,
    key: u64,
    depth: u32,
    increment: &'a [f32],
}

impl BrownianTree {
    /// A path of `count` numbers between two times.
    pub(super) fn new(rng: Rng, seed: u64, (start, end): (f64, f64), count: usize) -> Self {
        let ends = (rounded(start), rounded(end));
        let first = SeedSequence::new(seed, None).first_word();
        let scale = (ends.1 - ends.0).sqrt() as f32;
        let whole = normals(rng, first, count).into_iter().map(|x| x * scale).collect();
        Self { rng, seed, ends, whole }
    }

    /// The change of the path between two times, divided by the square root of the time between them: standard normal noise.
    pub(super) fn between(&self, from: f64, to: f64) -> Vec<f32> {
        let clamped = |time: f64| rounded(time).clamp(self.ends.0, self.ends.1);
        let (a, b) = (clamped(from.min(to)), clamped(from.max(to)));
        let mut sum = vec![0f32; self.whole.len()];
        let whole = Interval { from: self.ends.0, to: self.ends.1, key: 0, depth: 0, increment: &self.whole };
        self.collect(&whole, a, b, &mut sum);
        let scale = (to - from).abs().sqrt() as f32;
        let sign = if from < to { 1.0 } else { -1.0 };
        sum.into_iter().map(|x| sign * x / scale).collect()
    }

    /// Adds the change between `a` and `b`, which lie in the interval.
    fn collect(&self, at: &Interval<'_>, a: f64, b: f64, sum: &mut [f32]) {
        if a >= b {
            return;
        }
        let middle = rounded(0.5 * (at.from + at.to));
        if (a == at.from && b == at.to) || at.depth >= DEEPEST || middle <= at.from || middle >= at.to {
            sum.iter_mut().zip(at.increment).for_each(|(sum, x)| *sum += x);
            return;
        }
        let (left, right) = (middle - at.from, at.to - middle);
        let reciprocal = 1.0 / (at.to - at.from);
        let deviation = (left * right * reciprocal).sqrt() as f32;
        let seed = SeedSequence::new(self.seed, Some((at.key, at.depth))).first_word();
        let noise = normals(self.rng, seed, at.increment.len());
        let first: Vec<f32> = at.increment.iter().zip(noise).map(|(w, n)| left as f32 * w * reciprocal as f32 + deviation * n).collect();
        let half = |from, to, key, increment| Interval { from, to, key, depth: at.depth + 1, increment };
        if a < middle {
            self.collect(&half(at.from, middle, 2 * at.key, &first), a, b.min(middle), sum);
        }
        if b > middle {
            let second: Vec<f32> = at.increment.iter().zip(&first).map(|(w, first)| w - first).collect();
            self.collect(&half(middle, at.to, 2 * at.key + 1, &second), a.max(middle), b, sum);
        }
    }
}

/// To a millionth, as the tree's tolerance is. By its decimals, as Python rounds: a middle is often a tie but for its last bits.
fn rounded(time: f64) -> f64 {
    format!("{time:.6}").parse().unwrap_or(time)
}

fn normals(rng: Rng, seed: u32, count: usize) -> Vec<f32> {
    Generator::new(rng, u64::from(seed)).randn(count)
}

/// numpy's `SeedSequence` with a pool of 24 words.
///
/// # Source
/// numpy `random/bit_generator.pyx`; O'Neill, "Developing a seed_seq Alternative", 2015.
struct SeedSequence([u32; 24]);

impl SeedSequence {
    fn new(seed: u64, spawn_key: Option<(u64, u32)>) -> Self {
        let mut pool = [0u32; 24];
        let mut entropy = words(seed);
        if let Some((key, depth)) = spawn_key {
            entropy.resize(pool.len().max(entropy.len()), 0);
            entropy.extend(words(key));
            entropy.extend(words(u64::from(depth)));
        }
        let mut constant = 0x43b0_d7e5u32;
        let mut hash = |value: u32| {
            let value = value ^ constant;
            constant = constant.wrapping_mul(0x931e_8875);
            let value = value.wrapping_mul(constant);
            value ^ (value >> 16)
        };
        let mix = |x: u32, y: u32| {
            let mixed = 0xca01_f9ddu32.wrapping_mul(x).wrapping_sub(0x4973_f715u32.wrapping_mul(y));
            mixed ^ (mixed >> 16)
        };
        for (i, word) in pool.iter_mut().enumerate() {
            *word = hash(entropy.get(i).copied().unwrap_or(0));
        }
        for from in 0..pool.len() {
            for to in (0..pool.len()).filter(|to| *to != from) {
                pool[to] = mix(pool[to], hash(pool[from]));
            }
        }
        for value in entropy.iter().skip(pool.len()) {
            for word in &mut pool {
                *word = mix(*word, hash(*value));
            }
        }
        Self(pool)
    }

    /// The first word of a state, which does not depend on its length.
    fn first_word(&self) -> u32 {
        const CONSTANT: u32 = 0x8b51_f9dd;
        let value = (self.0[0] ^ CONSTANT).wrapping_mul(CONSTANT.wrapping_mul(0x58f3_8ded));
        value ^ (value >> 16)
    }
}

/// An integer as 32-bit words, the lowest first; 0 is one word.
fn words(value: u64) -> Vec<u32> {
    let (low, high) = (value as u32, (value >> 32) as u32);
    if high == 0 { vec![low] } else { vec![low, high] }
}
