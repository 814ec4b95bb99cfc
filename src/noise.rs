//! Seeded noise on the host: the numbers of torch's two generators, bit for bit.
//!
//! Other tools' images can be repeated only with their noise, so nothing here is drawn on a device: values are computed on the
//! host and moved. Each image of a batch has its own generator, which gives its first noise and then, in order, what a
//! stochastic sampler asks for; image k therefore does not depend on the batch size.

mod brownian;
mod first;
#[cfg(test)]
mod tools_tests;

use crate::sampling::NoiseSource;
use crate::{Error, Result};
use brownian::BrownianTree;
use candle_core::{Device, Shape, Tensor};
use std::f32::consts::PI;

/// Whose random numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Rng {
    /// `torch.Generator("cpu")`: MT19937.
    #[default]
    TorchCpu,
    /// `torch.Generator("cuda")`: Philox.
    TorchCuda,
}

impl Rng {
    /// The name after `--rng`.
    pub fn name(self) -> &'static str {
        match self {
            Rng::TorchCpu => "torch-cpu",
            Rng::TorchCuda => "torch-cuda",
        }
    }

    /// Reads a name as `--rng` takes it.
    ///
    /// # Errors
    /// [`Error::Input`] for any other name.
    pub fn from_name(name: &str) -> Result<Self> {
        match name.to_lowercase().as_str() {
            "torch-cpu" | "cpu" => Ok(Rng::TorchCpu),
            "torch-cuda" | "cuda" => Ok(Rng::TorchCuda),
            _ => Err(Error::Input(format!("`{name}` is not available; it can be torch-cpu, torch-cuda"))),
        }
    }
}

/// What an image's noise is drawn by.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct ImageNoise {
    /// The seed.
    pub seed: u64,
    /// A second seed, and how much of its noise is blended into the first noise.
    pub variation: Option<(u64, f64)>,
    /// Height and width of the latents that the seed's first noise was for.
    pub resized_from: Option<(usize, usize)>,
    /// The seed of the steps' noise, where that has a generator of its own.
    pub steps_seed: Option<u64>,
    /// The image's number, from 0, and how many there are, where every draw is for all of them.
    pub place: (usize, usize),
}

impl ImageNoise {
    /// Of a seed, and nothing else.
    #[cfg(test)]
    pub(crate) fn of(seed: u64) -> Self {
        Self { seed, variation: None, resized_from: None, steps_seed: None, place: (0, 1) }
    }
}

/// The noise of a batch: one generator an image.
#[derive(Debug, Clone)]
pub(crate) struct SeededNoise {
    rng: Rng,
    images: Vec<ImageNoise>,
    generators: Vec<Generator>,
    /// The times between which the steps' noise comes from one path for each image, and the paths.
    brownian: Option<((f64, f64), Vec<BrownianTree>)>,
}

#[derive(Debug, Clone)]
enum Generator {
    Cpu(Box<TorchCpuGenerator>),
    Cuda(TorchCudaGenerator),
}

impl SeededNoise {
    /// A generator for each seed.
    #[cfg(test)]
    pub(crate) fn new(rng: Rng, seeds: &[u64]) -> Self {
        Self::of_images(rng, seeds.iter().copied().map(ImageNoise::of).collect())
    }

    /// A generator for each image, in the order of the batch.
    pub(crate) fn of_images(rng: Rng, images: Vec<ImageNoise>) -> Self {
        let generators = images.iter().map(|image| Generator::new(rng, image.seed)).collect();
        Self { rng, images, generators, brownian: None }
    }

    /// The first noise of a run, of the shape of `latents`; what is drawn after it is the noise of the steps.
    ///
    /// # Errors
    /// As [`SeededNoise::randn`].
    pub(crate) fn first(&mut self, latents: &Tensor) -> Result<Tensor> {
        let (images, channels, height, width) = latents.dims4()?;
        let mut values = self.randn(latents.shape(), &Device::Cpu)?.flatten_all()?.to_vec1::<f32>()?;
        let size = channels * height * width;
        for (image, values) in self.images.iter().zip(values.chunks_exact_mut(size.max(1))) {
            first::vary(image, self.rng, values, (channels, height, width));
        }
        for (image, generator) in self.images.iter().zip(&mut self.generators) {
            if let Some(seed) = image.steps_seed {
                *generator = Generator::new(self.rng, seed);
            }
        }
        Ok(Tensor::from_vec(values, (images, channels, height, width), &Device::Cpu)?.to_device(latents.device())?)
    }

    /// The noise between two sigmas of these ends is that of a Brownian path for each image, with the image's seed.
    ///
    /// # Source
    /// k-diffusion `sampling.py`, `BrownianTreeNoiseSampler`, as A1111 seeds it.
    pub(crate) fn with_brownian(self, ends: Option<(f64, f64)>) -> Self {
        Self { brownian: ends.map(|ends| (ends, vec![])), ..self }
    }

    /// The same for a run that turns out to be another one; before its first step.
    pub(crate) fn set_brownian(&mut self, ends: Option<(f64, f64)>) {
        self.brownian = ends.map(|ends| (ends, vec![]));
    }

    /// Standard normal noise in f32.
    ///
    /// # Shapes
    /// `shape` is `(batch, …)`; each image draws `(1, …)` from its own generator.
    ///
    /// # Errors
    /// [`Error::Tensor`] where the batch is not as large as the list of seeds.
    pub(crate) fn randn(&mut self, shape: impl Into<Shape>, device: &Device) -> Result<Tensor> {
        let shape = shape.into();
        let batch = shape.dims().first().copied().unwrap_or(0);
        if batch != self.generators.len() || batch == 0 {
            let seeds = self.generators.len();
            return Err(candle_core::Error::Msg(format!("noise for a batch of {batch} from {seeds} seeds")).into());
        }
        let each = shape.elem_count() / batch;
        let mut values = Vec::with_capacity(shape.elem_count());
        for (generator, image) in self.generators.iter_mut().zip(&self.images) {
            let (index, images) = image.place;
            values.extend(generator.randn(images * each).into_iter().skip(index * each).take(each));
        }
        Ok(Tensor::from_vec(values, shape, &Device::Cpu)?.to_device(device)?)
    }
}

impl NoiseSource for SeededNoise {
    fn fresh(&mut self, latents: &Tensor) -> Result<Tensor> {
        self.randn(latents.shape(), latents.device())
    }

    fn between(&mut self, latents: &Tensor, from: f64, to: f64) -> Result<Tensor> {
        let count = latents.elem_count() / self.images.len().max(1);
        let Some((ends, trees)) = &mut self.brownian else { return self.fresh(latents) };
        if trees.is_empty() {
            *trees = self.images.iter().map(|image| BrownianTree::new(self.rng, image.seed, *ends, image.place.1 * count)).collect();
        }
        let of = |(tree, image): (&BrownianTree, &ImageNoise)| tree.between(from, to).into_iter().skip(image.place.0 * count).take(count);
        let values: Vec<f32> = trees.iter().zip(&self.images).flat_map(of).collect();
        Ok(Tensor::from_vec(values, latents.shape(), &Device::Cpu)?.to_device(latents.device())?)
    }
}

impl Generator {
    fn new(rng: Rng, seed: u64) -> Self {
        match rng {
            Rng::TorchCpu => Generator::Cpu(Box::new(TorchCpuGenerator::new(seed))),
            Rng::TorchCuda => Generator::Cuda(TorchCudaGenerator::new(seed)),
        }
    }

    fn randn(&mut self, n: usize) -> Vec<f32> {
        match self {
            Generator::Cpu(generator) => generator.randn(n),
            Generator::Cuda(generator) => generator.randn(n),
        }
    }
}

const STATE: usize = 624;
const SHIFT: usize = 397;

/// `torch.Generator("cpu")`.
///
/// # Source
/// Matsumoto & Nishimura 1998, "Mersenne Twister", MT19937; the normal numbers as ATen `native/cpu/DistributionTemplates.h` of
/// torch 2.x on machines with AVX2 (which its AVX-512 builds use too). On a machine without AVX2 torch's own last bits differ.
#[derive(Debug, Clone)]
pub(crate) struct TorchCpuGenerator {
    state: [u32; STATE],
    next: usize,
    /// The second value of the last Box-Muller pair of a short draw.
    spare: Option<f64>,
}

impl TorchCpuGenerator {
    /// As `manual_seed(seed)`: MT19937 takes the low 32 bits.
    pub(crate) fn new(seed: u64) -> Self {
        let mut state = [0u32; STATE];
        let mut last = seed as u32;
        for (i, word) in state.iter_mut().enumerate() {
            if i > 0 {
                last = (last ^ (last >> 30)).wrapping_mul(1_812_433_253).wrapping_add(i as u32);
            }
            *word = last;
        }
        Self { state, next: STATE, spare: None }
    }

    /// `torch.randn(n)` in f32.
    pub(crate) fn randn(&mut self, n: usize) -> Vec<f32> {
        if n < 16 {
            return (0..n).map(|_| self.normal() as f32).collect();
        }
        let mut values: Vec<f32> = (0..n).map(|_| self.uniform()).collect();
        values.chunks_exact_mut(16).for_each(box_muller);
        if !n.is_multiple_of(16) {
            // The last 16 values are drawn afresh, over those that the blocks before have already made.
            let tail = &mut values[n - 16..];
            tail.iter_mut().for_each(|v| *v = self.uniform());
            box_muller(tail);
        }
        values
    }

    /// One value of a short draw, in f64.
    fn normal(&mut self) -> f64 {
        if let Some(spare) = self.spare.take() {
            return spare;
        }
        let (u1, u2) = (self.uniform_f64(), self.uniform_f64());
        let radius = (-2.0 * (-u2).ln_1p()).sqrt();
        let theta = 2.0 * std::f64::consts::PI * u1;
        self.spare = Some(radius * theta.sin());
        radius * theta.cos()
    }

    /// 24 bits in `[0, 1)`.
    fn uniform(&mut self) -> f32 {
        (self.word() & 0x00ff_ffff) as f32 / 16_777_216.0
    }

    /// 53 bits in `[0, 1)`.
    fn uniform_f64(&mut self) -> f64 {
        let (high, low) = (u64::from(self.word()), u64::from(self.word()));
        ((high << 32 | low) & ((1 << 53) - 1)) as f64 / (1u64 << 53) as f64
    }

    fn word(&mut self) -> u32 {
        if self.next == STATE {
            self.twist();
        }
        let mut y = self.state[self.next];
        self.next += 1;
        y ^= y >> 11;
        y ^= (y << 7) & 0x9d2c_5680;
        y ^= (y << 15) & 0xefc6_0000;
        y ^ (y >> 18)
    }

    fn twist(&mut self) {
        for i in 0..STATE {
            let y = (self.state[i] & 0x8000_0000) | (self.state[(i + 1) % STATE] & 0x7fff_ffff);
            let odd = if y & 1 == 1 { 0x9908_b0df } else { 0 };
            self.state[i] = self.state[(i + SHIFT) % STATE] ^ (y >> 1) ^ odd;
        }
        self.next = 0;
    }
}

/// Turns 16 uniform values into normal ones: the first eight are radii, the others angles.
fn box_muller(values: &mut [f32]) {
    let (radii, angles) = values.split_at_mut(8);
    for (a, b) in radii.iter_mut().zip(angles) {
        let radius = (-2.0 * ln(1.0 - *a)).sqrt();
        let (sin, cos) = sin_cos(2.0 * PI * *b);
        // The sum turns -0 into 0, as scaling by the deviation and the mean does in torch.
        (*a, *b) = (radius * cos + 0.0, radius * sin + 0.0);
    }
}

/// `a · b + c`, rounded once, as the compiler of torch fuses it.
fn fma(a: f32, b: f32, c: f32) -> f32 {
    a.mul_add(b, c)
}

/// Cephes' `logf` for normal positive numbers, in the order of operations of torch's vector code.
///
/// # Source
/// Moshier, Cephes Math Library 2.2, `logf`.
fn ln(x: f32) -> f32 {
    const P: [f32; 9] = [
        7.037_683_6e-2,
        -1.151_461e-1,
        1.167_699_87e-1,
        -1.242_014_1e-1,
        1.424_932_3e-1,
        -1.666_805_8e-1,
        2.000_071_4e-1,
        -2.499_999_4e-1,
        3.333_333e-1,
    ];
    let bits = x.to_bits();
    let mut exponent = (bits >> 23) as i32 as f32 - 126.0;
    let mut m = f32::from_bits(bits & 0x007f_ffff | 0x3f00_0000);
    if m < std::f32::consts::FRAC_1_SQRT_2 {
        exponent -= 1.0;
        m = (m - 1.0) + m;
    } else {
        m -= 1.0;
    }
    let z = m * m;
    let p = P.into_iter().reduce(|y, c| fma(y, m, c)).unwrap_or(0.0) * m;
    let y = fma(p, z, exponent * -2.121_944_4e-4);
    let y = fma(-0.5, z, y);
    fma(exponent, 0.693_359_4, m + y)
}

/// Cephes' `sinf` and `cosf` for angles in `[0, 2π)`, in the order of operations of torch's vector code.
///
/// # Source
/// Moshier, Cephes Math Library 2.2, `sinf`.
fn sin_cos(x: f32) -> (f32, f32) {
    // Octants, rounded up to even ones.
    let octant = ((x * (4.0 / PI)) as u32 + 1) & !1;
    let y = octant as f32;
    let r = fma(y, -0.785_156_25, x);
    let r = fma(y, -2.418_756_5e-4, r);
    let r = fma(y, -3.774_895e-8, r);
    let z = r * r;
    let c = fma(fma(2.443_315_7e-5, z, -1.388_731_6e-3), z, 4.166_664_6e-2) * z;
    let cos = fma(c, z, -0.5 * z) + 1.0;
    let s = fma(fma(-1.951_529_6e-4, z, 8.332_161e-3), z, -1.666_665_5e-1) * z;
    let sin = fma(s, r, r);
    match octant & 7 {
        2 => (cos, -sin),
        4 => (-sin, -cos),
        6 => (-cos, sin),
        _ => (sin, cos),
    }
}

/// `torch.Generator("cuda")`, for draws small enough that every value has a thread of its own (on large GPUs, up to about
/// 200,000 values; latents of 1024×1024 pixels have 65,536).
///
/// # Source
/// Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3", Philox4x32-10; counter and use as curand in torch, which
/// A1111's `modules/rng_philox.py` describes.
#[derive(Debug, Clone)]
pub(crate) struct TorchCudaGenerator {
    key: [u32; 2],
    /// Draws made so far.
    offset: u32,
}

impl TorchCudaGenerator {
    /// As `manual_seed(seed)`.
    pub(crate) fn new(seed: u64) -> Self {
        Self { key: [seed as u32, (seed >> 32) as u32], offset: 0 }
    }

    /// `torch.randn(n, device="cuda")` in f32.
    pub(crate) fn randn(&mut self, n: usize) -> Vec<f32> {
        let offset = self.offset;
        self.offset = self.offset.wrapping_add(1);
        (0..n).map(|i| cuda_normal(philox([offset, 0, i as u32, (i as u64 >> 32) as u32], self.key))).collect()
    }
}

/// Ten rounds.
fn philox(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for _ in 0..10 {
        let a = u64::from(counter[0]) * 0xd251_1f53;
        let b = u64::from(counter[2]) * 0xcd9e_8d57;
        counter = [(b >> 32) as u32 ^ counter[1] ^ key[0], b as u32, (a >> 32) as u32 ^ counter[3] ^ key[1], a as u32];
        key = [key[0].wrapping_add(0x9e37_79b9), key[1].wrapping_add(0xbb67_ae85)];
    }
    counter
}

/// The first value of curand's Box-Muller pair, from its f32 constants, in f64 until the end (a GPU's f32 logarithm and sine differ
/// from this, and from each other, in the last bits).
fn cuda_normal([x, y, ..]: [u32; 4]) -> f32 {
    const UNIT: f32 = 2.328_306_4e-10;
    const ANGLE: f32 = UNIT * 2.0 * PI;
    let scaled = |x: u32, unit: f32| f64::from(x) * f64::from(unit) + f64::from(unit / 2.0);
    ((-2.0 * scaled(x, UNIT).ln()).sqrt() * scaled(y, ANGLE).sin()) as f32
}

#[cfg(test)]
#[expect(clippy::excessive_precision, reason = "the numbers as the other program wrote them")]
mod tests {
    use super::*;

    fn golden() -> serde_json::Value {
        serde_json::from_str(include_str!("../tests/data/noise/torch_cpu.json")).unwrap()
    }

    fn floats(value: &serde_json::Value) -> Vec<f32> {
        value.as_array().unwrap().iter().map(|v| v.as_f64().unwrap() as f32).collect()
    }

    fn crc32(values: &[f32]) -> u32 {
        let mut crc = flate2::Crc::new();
        values.iter().for_each(|v| crc.update(&v.to_le_bytes()));
        crc.sum()
    }

    #[test]
    fn torch_cpu_numbers_are_torchs() {
        assert_eq!(TorchCpuGenerator::new(42).randn(37), floats(&golden()["seed_42"]));
    }

    #[test]
    fn torch_cuda_numbers_are_those_of_the_published_vector() {
        // The docstring of A1111's modules/rng_philox.py: seed 0, randn(3, 4).
        let expected = [
            -0.92466259,
            -0.42534415,
            -2.6438457,
            0.14518388,
            -0.12086647,
            -0.57972564,
            -0.62285122,
            -0.32838709,
            -1.07454231,
            -0.36314407,
            -1.67105067,
            2.26550497f32,
        ];
        for (got, want) in TorchCudaGenerator::new(0).randn(12).into_iter().zip(expected) {
            // The vector was printed from f32 arithmetic; the last bits are its own.
            assert!((got - want).abs() < 3e-7, "{got} {want}");
        }
    }

    #[test]
    fn philox_is_random123s() {
        // The known answers of Random123's kat_vectors for philox4x32 with 10 rounds.
        assert_eq!(philox([0; 4], [0; 2]), [0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8]);
        assert_eq!(philox([u32::MAX; 4], [u32::MAX; 2]), [0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd]);
    }

    #[test]
    fn a_second_draw_goes_on() {
        for rng in [Rng::TorchCpu, Rng::TorchCuda] {
            let mut noise = SeededNoise::new(rng, &[3]);
            let mut draw = || noise.randn((1, 4, 4, 4), &Device::Cpu).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
            assert_ne!(draw(), draw());
        }
    }

    #[test]
    fn a_image_does_not_depend_on_its_batch() {
        for rng in [Rng::TorchCpu, Rng::TorchCuda] {
            let mut batch = SeededNoise::new(rng, &[5, 6]);
            let mut alone = SeededNoise::new(rng, &[6]);
            for _ in 0..2 {
                let second = batch.randn((2, 4, 3, 3), &Device::Cpu).unwrap().get(1).unwrap();
                let single = alone.randn((1, 4, 3, 3), &Device::Cpu).unwrap().get(0).unwrap();
                assert_eq!(second.to_vec3::<f32>().unwrap(), single.to_vec3::<f32>().unwrap());
            }
        }
    }

    #[test]
    fn brownian_paths_are_torchsdes() {
        let recorded: serde_json::Value = serde_json::from_str(include_str!("../tests/data/samplers/brownian.json")).unwrap();
        for tree in recorded.as_array().unwrap() {
            let rng = if tree["rng"] == "cpu" { Rng::TorchCpu } else { Rng::TorchCuda };
            let single = |value: &serde_json::Value| f64::from(value.as_f64().unwrap() as f32);
            let ends = (single(&tree["min"]), single(&tree["max"]));
            let seed = tree["seed"].as_u64().unwrap();
            let shape: Vec<usize> = tree["shape"].as_array().unwrap().iter().map(|n| n.as_u64().unwrap() as usize).collect();
            let latents = Tensor::zeros(shape, candle_core::DType::F32, &Device::Cpu).unwrap();
            // The order of the questions changes nothing.
            let mut noise = SeededNoise::new(rng, &[seed]).with_brownian(Some(ends));
            let queries = tree["queries"].as_array().unwrap().iter().zip(tree["answers"].as_array().unwrap());
            for (query, answer) in queries.rev() {
                let got = noise.between(&latents, single(&query[0]), single(&query[1])).unwrap();
                let got: Vec<f32> = got.flatten_all().unwrap().to_vec1().unwrap();
                // A1111's Philox numbers are f32 arithmetic, whose last bits are its own.
                let tolerance = if rng == Rng::TorchCpu { 2e-6 } else { 4e-6 };
                for (a, b) in got.iter().zip(floats(answer)) {
                    assert!((a - b).abs() <= tolerance * b.abs().max(1.0), "{query}: {a} {b}");
                }
            }
        }
    }

    #[test]
    fn names_are_read_back_and_others_are_refused() {
        for rng in [Rng::TorchCpu, Rng::TorchCuda] {
            assert_eq!(Rng::from_name(rng.name()).unwrap(), rng);
        }
        assert!(matches!(Rng::from_name("numpy"), Err(Error::Input(m)) if m.contains("torch-cuda")));
    }

    #[test]
    fn as_many_seeds_as_images() {
        assert!(SeededNoise::new(Rng::TorchCpu, &[1]).randn((2, 4, 2, 2), &Device::Cpu).is_err());
    }

    #[test]
    fn short_and_long_draws_mix_as_in_torch() {
        let mut generator = TorchCpuGenerator::new(7);
        for draw in golden()["seed_7_mixed"].as_array().unwrap() {
            assert_eq!(generator.randn(draw[0].as_u64().unwrap() as usize), floats(&draw[1]));
        }
    }

    #[test]
    fn every_bit_of_torch_cpu_over_sizes_and_seeds() {
        let golden = golden();
        let draws = golden["crc32"].as_array().unwrap();
        let wrong: Vec<_> = draws
            .iter()
            .filter(|d| {
                let (seed, size, crc) = (d[0].as_u64().unwrap(), d[1].as_u64().unwrap() as usize, d[2].as_u64().unwrap());
                u64::from(crc32(&TorchCpuGenerator::new(seed).randn(size))) != crc
            })
            .collect();
        assert!(wrong.is_empty(), "{} of {} draws differ, first {:?}", wrong.len(), draws.len(), wrong.first());
    }
}
