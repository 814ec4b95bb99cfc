//! What each format adds to a weight.
//!
//! W is a layer's weight `(out, in, kernel…)`, s the strength, r the rank. What is added is computed in f32, sums of squares and
//! rotations in f64, and the merged weight is rounded once, by whoever packs it.
//!
//! # Source
//! LoRA: arXiv 2106.09685, section 4.1. LoHa, LoKr, GLoRA, IA3, OFT and the cores of convolutions: KohakuBlueleaf/LyCORIS@v4.1.3
//! `lycoris/functional`. DoRA: arXiv 2402.09353, equation 5. OFT and BOFT: arXiv 2306.07280 and 2311.06243.

use super::names::{Change, Role};
use super::{Target, one_number};
use crate::weights::{WeightFile, decode, model_error};
use crate::{Error, Result};
use candle_core::{Device, Tensor};
use rayon::prelude::*;

/// Ranks that are taken whatever the layer's size.
const ANY_RANK: usize = 1024;
/// The largest block of a rotation: its inverse takes the cube of it.
const LARGEST_BLOCK: usize = 2048;
/// Numbers that one thread takes.
const SHARE: usize = 1 << 16;

/// A layer's sizes: outputs, inputs, and the kernel's places.
#[derive(Debug, Clone, Copy)]
struct LayerSizes {
    out: usize,
    input: usize,
    kernel: usize,
}

impl LayerSizes {
    fn of(shape: &[usize]) -> Option<LayerSizes> {
        match shape {
            [out, input, kernel @ ..] => Some(LayerSizes { out: *out, input: *input, kernel: kernel.iter().product() }),
            _ => None,
        }
    }

    fn flat(self) -> usize {
        self.input * self.kernel
    }
}

/// The tensors of the change of one layer.
#[derive(Clone, Copy)]
pub(crate) struct Tensors<'a> {
    pub(super) file: &'a WeightFile,
    pub(super) target: &'a Target,
}

/// Two matrices whose product is added.
pub(super) struct LowRank {
    rank: usize,
    scale: f32,
    /// `(out, r)`
    up: Vec<f32>,
    /// `(r, in × kernel)`
    down: Vec<f32>,
}

impl LowRank {
    /// One third of the outputs.
    pub(super) fn third(mut self, third: usize) -> Self {
        let numbers = self.up.len() / (3 * self.rank).max(1) * self.rank;
        self.up = self.up.get(third * numbers..(third + 1) * numbers).unwrap_or_default().to_vec();
        self
    }
}

impl<'a> Tensors<'a> {
    /// It is one product of two matrices and nothing else.
    pub(super) fn is_low_rank(self) -> bool {
        const OTHERS: [Role; 4] = [Role::Mid, Role::DoraScale, Role::Magnitude, Role::Diff];
        self.target.change == Change::Lora && !OTHERS.iter().any(|role| self.has(*role))
    }

    pub(super) fn has(self, role: Role) -> bool {
        self.target.tensors.contains_key(&role)
    }

    pub(super) fn shape(self, role: Role) -> Option<&'a [usize]> {
        self.file.entries().get(*self.target.tensors.get(&role)?).map(|entry| entry.shape.as_slice())
    }

    pub(super) fn changes_weight(self) -> bool {
        self.target.tensors.keys().any(|role| !matches!(role, Role::DiffBias | Role::Alpha | Role::Scale))
    }

    /// The inner dimension by which alpha is divided.
    pub(crate) fn rank(self) -> Option<usize> {
        let first = |role: Role| self.shape(role)?.first().copied();
        match self.target.change {
            Change::Lora => first(Role::Down),
            Change::LoHa => first(Role::HadaW1B),
            Change::LoKr => first(Role::LokrW2B).or_else(|| first(Role::LokrW1B)),
            Change::GLora => self.glora_rank(),
            Change::Oft | Change::Ia3 | Change::Full => None,
        }
    }

    fn glora_rank(self) -> Option<usize> {
        // (in, r) and (r, in), or the other way round: the rank is the smaller of the two.
        self.shape(Role::A1)?.iter().take(2).min().copied()
    }

    /// The layer's inputs, where tensors tell them.
    pub(super) fn input(self) -> Option<usize> {
        match self.target.change {
            Change::Lora => self.shape(Role::Down)?.get(1).copied(),
            Change::LoHa => self.shape(Role::HadaW1B)?.get(1).copied(),
            Change::LoKr => {
                let second = |whole: Role, half: Role| self.shape(whole).or_else(|| self.shape(half))?.get(1).copied();
                second(Role::LokrW1, Role::LokrW1B)?.checked_mul(second(Role::LokrW2, Role::LokrW2B)?)
            }
            Change::GLora => self.shape(Role::A1)?.iter().take(2).max().copied(),
            Change::Full => self.shape(Role::Diff).filter(|shape| shape.len() > 1)?.get(1).copied(),
            Change::Oft | Change::Ia3 => None,
        }
    }

    /// Whether the tensors are all there and multiply to a weight and a bias of these shapes; why not, where they do not.
    pub(super) fn check(self, weight: &[usize], bias: Option<&[usize]>) -> Result<(), String> {
        for (role, i) in &self.target.tensors {
            let Some(entry) = self.file.entries().get(*i) else { continue };
            let whole = matches!(role, Role::OnInput);
            if !whole && !decode::readable(entry.dtype) {
                return Err(format!("stored as {}, which is not read", entry.dtype));
            }
            if matches!(role, Role::Alpha | Role::Scale) {
                match one_number(self.file, self.target, *role) {
                    Some(number) if number.is_finite() => {}
                    Some(number) => return Err(format!("{number} is no number to scale by")),
                    None => return Err(format!("its shape {:?} is not one number", entry.shape)),
                }
            }
            if entry.shape.contains(&0) {
                return Err(format!("its shape {:?} has no numbers", entry.shape));
            }
        }
        if self.has(Role::Unsupported) {
            return Err("this kind of change is not implemented".to_owned());
        }
        let outputs = weight.first().copied().unwrap_or(0);
        if let Some(shape) = self.shape(Role::DiffBias) {
            let has = bias.map_or(outputs, |bias| bias.iter().product());
            if shape.iter().product::<usize>() != has {
                return Err(format!("a change of {shape:?} to a bias of {has}"));
            }
        }
        if !self.changes_weight() {
            return Ok(());
        }
        let does_not = |what: String| format!("{what} where the model has {weight:?}");
        if let Some(shape) = self.shape(Role::Diff) {
            let same = shape.iter().product::<usize>() == weight.iter().product::<usize>() && shape.first() == weight.first();
            if !same {
                return Err(does_not(format!("a difference of {shape:?}")));
            }
            if self.target.change == Change::Full {
                return Ok(());
            }
        }
        let Some(sizes) = LayerSizes::of(weight) else { return Err(does_not(format!("{} of a layer", self.target.change.name()))) };
        self.check_matrix(sizes).map_err(does_not)?;
        if let Some(rank) = self.rank()
            && rank > sizes.out.max(sizes.flat()).max(ANY_RANK)
        {
            return Err(does_not(format!("a rank of {rank}")));
        }
        let LayerSizes { out, input, .. } = sizes;
        let magnitudes = |shape: &[usize]| shape.iter().product::<usize>();
        match (self.shape(Role::DoraScale), self.shape(Role::Magnitude)) {
            (Some(scale), _) if by_columns(scale) && magnitudes(scale) != input => Err(does_not(format!("magnitudes of {scale:?}"))),
            (Some(scale), _) if !by_columns(scale) && magnitudes(scale) != out => Err(does_not(format!("magnitudes of {scale:?}"))),
            (_, Some(vector)) if magnitudes(vector) != out => Err(does_not(format!("magnitudes of {vector:?}"))),
            _ => Ok(()),
        }
    }

    fn check_matrix(self, sizes: LayerSizes) -> Result<(), String> {
        let LayerSizes { out, input, kernel } = sizes;
        let flat = |role: Role| -> Result<(usize, usize), String> {
            match self.shape(role) {
                Some([first, rest @ ..]) => Ok((*first, rest.iter().product())),
                Some([]) => Err("a matrix without a shape".to_owned()),
                None => Err("a part of the change is missing".to_owned()),
            }
        };
        // A core (r, r', kernel…).
        let core = |role: Role| match self.shape(role) {
            Some([a, b, places @ ..]) if places.iter().product::<usize>() == kernel => Ok((*a, *b)),
            Some(shape) => Err(format!("a core of {shape:?}")),
            None => Err("a core is missing".to_owned()),
        };
        let wanted = |what: &str, has: &[(usize, usize)], right: bool| if right { Ok(()) } else { Err(format!("{what} of {has:?}")) };
        match self.target.change {
            Change::Lora => {
                let (up, down) = (flat(Role::Up)?, flat(Role::Down)?);
                let fits = match self.has(Role::Mid) {
                    true => core(Role::Mid)? == (up.1, down.0) && down.1 == input,
                    false => up.1 == down.0 && down.1 == sizes.flat(),
                };
                if !self.has(Role::Mid) && up.1 == down.0 && !fits || up.0 != out {
                    return Err(format!("{} to {}", down.1, up.0));
                }
                wanted("a product", &[up, down], fits)
            }
            Change::LoHa => {
                for (a, b, t) in [(Role::HadaW1A, Role::HadaW1B, Role::HadaT1), (Role::HadaW2A, Role::HadaW2B, Role::HadaT2)] {
                    let (first, second) = (flat(a)?, flat(b)?);
                    let fits = match self.has(t) {
                        true => core(t)? == (first.0, second.0) && first.1 == out && second.1 == input,
                        false => first.0 == out && first.1 == second.0 && second.1 == sizes.flat(),
                    };
                    wanted("a product", &[first, second], fits)?;
                }
                Ok(())
            }
            Change::LoKr => {
                let product = |a: Role, b: Role| -> Result<(usize, usize), String> {
                    let (first, second) = (flat(a)?, flat(b)?);
                    wanted("a product", &[first, second], first.1 == second.0)?;
                    Ok((first.0, second.1))
                };
                let (a, c) = if self.has(Role::LokrW1) { flat(Role::LokrW1)? } else { product(Role::LokrW1A, Role::LokrW1B)? };
                let (b, rest) = if self.has(Role::LokrW2) {
                    flat(Role::LokrW2)?
                } else if self.has(Role::LokrT2) {
                    let (first, second) = (flat(Role::LokrW2A)?, flat(Role::LokrW2B)?);
                    wanted("a core", &[first, second], core(Role::LokrT2)? == (first.0, second.0))?;
                    (first.1, second.1 * kernel)
                } else {
                    product(Role::LokrW2A, Role::LokrW2B)?
                };
                let fits = a.checked_mul(b) == Some(out) && c.checked_mul(rest) == Some(sizes.flat()) && rest % kernel == 0;
                wanted("a Kronecker product", &[(a, c), (b, rest)], fits)
            }
            Change::GLora => {
                let (a1, a2, b1, b2) = self.glora(input);
                let (a1, a2, b1, b2) = (flat(a1)?, flat(a2)?, flat(b1)?, flat(b2)?);
                let fits = a1.0 == input && a2 == (a1.1, input) && b1.0 == out && b2 == (b1.1, sizes.flat());
                wanted("products", &[a1, a2, b1, b2], fits)
            }
            Change::Oft => {
                let shape = self.shape(Role::OftBlocks).unwrap_or_default();
                let (fits, block) = match *shape {
                    [n, b, c] => (b == c && n.checked_mul(b) == Some(out), b),
                    [stages, n, b, c] => {
                        // The largest group of the last stage.
                        let group = (stages < 32).then(|| (b / 2).checked_mul(1 << stages)).flatten();
                        let divides = group.is_some_and(|group| group > 0 && out.is_multiple_of(group));
                        (b == c && b.is_multiple_of(2) && n.checked_mul(b) == Some(out) && divides, b)
                    }
                    _ => (false, 0),
                };
                if block > LARGEST_BLOCK {
                    return Err(format!("a rotation in blocks of {block}, of which {LARGEST_BLOCK} is the most"));
                }
                let rescales = self.shape(Role::Rescale).is_none_or(|shape| shape.iter().product::<usize>() == out);
                if fits && rescales { Ok(()) } else { Err(format!("a rotation of {shape:?}")) }
            }
            Change::Ia3 => {
                let factors = flat(Role::Factors)?;
                let count = factors.0 * factors.1;
                let side = if self.on_input() { input } else { out };
                wanted("factors", &[factors], count == side)
            }
            Change::Full => Err("only a difference of numbers".to_owned()),
        }
    }

    /// GLoRA's four matrices, (in, r), (r, in), (out, r) and (r, in): older files have the pairs the other way round.
    fn glora(self, input: usize) -> (Role, Role, Role, Role) {
        match self.shape(Role::A1).and_then(|shape| shape.first()) == Some(&input) {
            true => (Role::A1, Role::A2, Role::B1, Role::B2),
            false => (Role::A2, Role::A1, Role::B2, Role::B1),
        }
    }

    /// IA3's factors are the inputs'.
    fn on_input(self) -> bool {
        let entry = self.target.tensors.get(&Role::OnInput).and_then(|i| self.file.entries().get(*i));
        entry.and_then(|entry| self.file.bytes(entry).ok()).is_some_and(|bytes| bytes.iter().any(|byte| *byte != 0))
    }

    /// The tensor as a matrix in f32: its first dimension, and all others together.
    fn matrix(self, role: Role) -> Result<Tensor> {
        let numbers = self.values(role)?;
        let rows = self.shape(role).and_then(|shape| shape.first().copied()).unwrap_or(1).max(1);
        let columns = numbers.len() / rows;
        Ok(Tensor::from_vec(numbers, (rows, columns), &Device::Cpu)?)
    }

    /// The tensor's numbers in f32.
    fn values(self, role: Role) -> Result<Vec<f32>> {
        let entry = self.target.tensors.get(&role).and_then(|i| self.file.entries().get(*i));
        let entry = entry.ok_or_else(|| model_error(&self.file.name, format!("lacks a part of the change of {}", self.target.path)))?;
        Ok(decode::numbers(&self.file.bytes(entry)?, entry.dtype))
    }

    /// What the product is scaled by: alpha over the rank, or what stands in the place of it.
    fn scale(self) -> f64 {
        if let Some(scale) = one_number(self.file, self.target, Role::Scale) {
            return scale;
        }
        // LyCORIS ignores alpha where no half of a Kronecker product is split.
        match (self.target.alpha, self.rank()) {
            (Some(alpha), Some(rank)) if self.target.root => alpha / (rank as f64).sqrt(),
            (Some(alpha), Some(rank)) => alpha / rank as f64,
            _ => 1.0,
        }
    }

    /// The two matrices of a plain LoRA of strength `s`; `None` for every other change.
    pub(super) fn low_rank(self, s: f64) -> Result<Option<LowRank>> {
        let Some(rank) = self.rank().filter(|_| self.is_low_rank()) else { return Ok(None) };
        let scale = (self.scale() * s) as f32;
        Ok(Some(LowRank { rank, scale, up: self.values(Role::Up)?, down: self.values(Role::Down)? }))
    }

    /// Changes a weight of `shape` with strength `s`.
    pub(super) fn change_weight(self, weight: &mut [f32], shape: &[usize], s: f64) -> Result<()> {
        if self.has(Role::Diff) {
            add(weight, &self.values(Role::Diff)?, s);
            if self.target.change == Change::Full {
                return Ok(());
            }
        }
        let Some(sizes) = LayerSizes::of(shape) else {
            return Err(model_error(&self.file.name, format!("changes {}, which is no matrix", self.target.path)));
        };
        let scale = self.scale();
        let mut more = self.added(weight, sizes)?;
        if matches!(self.target.change, Change::Lora | Change::LoHa | Change::LoKr | Change::GLora) && scale != 1.0 {
            more.par_iter_mut().with_min_len(SHARE).for_each(|x| *x *= scale as f32);
        }
        let magnitudes =
            if self.has(Role::DoraScale) { Some(Role::DoraScale) } else { self.has(Role::Magnitude).then_some(Role::Magnitude) };
        if let Some(role) = magnitudes {
            let columns = role == Role::DoraScale && self.shape(role).is_some_and(by_columns);
            decomposed(weight, &mut more, &self.values(role)?, sizes, columns);
        }
        add(weight, &more, s);
        Ok(())
    }

    /// Changes a bias with strength `s`.
    pub(super) fn change_bias(self, bias: &mut [f32], s: f64) -> Result<()> {
        add(bias, &self.values(Role::DiffBias)?, s);
        Ok(())
    }

    /// What is added at strength and scale 1, in the order of the weight.
    fn added(self, weight: &[f32], sizes: LayerSizes) -> Result<Vec<f32>> {
        let LayerSizes { out, input, kernel } = sizes;
        let product = |a: Role, b: Role| -> Result<Tensor> { Ok(self.matrix(a)?.matmul(&self.matrix(b)?)?) };
        let flat = |tensor: Tensor| -> Result<Vec<f32>> { Ok(tensor.flatten_all()?.to_vec1()?) };
        // Σ core[m, n] · first[m, :] · second[n, :].
        let tucker = |core: Role, first: Tensor, second: Tensor| -> Result<Tensor> {
            let (m, n) = (first.dim(0)?, second.dim(0)?);
            let outer = first.t()?.matmul(&self.matrix(core)?.reshape((m, n * kernel))?)?;
            let places = outer.reshape((outer.dim(0)?, n, kernel))?.transpose(1, 2)?.contiguous()?;
            let inner = places.reshape((outer.dim(0)? * kernel, n))?.matmul(&second)?;
            let (rows, columns) = (outer.dim(0)?, second.dim(1)?);
            Ok(inner.reshape((rows, kernel, columns))?.transpose(1, 2)?.contiguous()?.reshape((rows, columns * kernel))?)
        };
        match self.target.change {
            Change::Lora if self.has(Role::Mid) => {
                flat(tucker(Role::Mid, self.matrix(Role::Up)?.t()?.contiguous()?, self.matrix(Role::Down)?)?)
            }
            Change::Lora => flat(product(Role::Up, Role::Down)?),
            Change::LoHa => {
                let half = |a: Role, b: Role, t: Role| match self.has(t) {
                    true => tucker(t, self.matrix(a)?, self.matrix(b)?),
                    false => product(a, b),
                };
                let first = half(Role::HadaW1A, Role::HadaW1B, Role::HadaT1)?;
                flat((first * half(Role::HadaW2A, Role::HadaW2B, Role::HadaT2)?)?)
            }
            Change::LoKr => {
                let first = if self.has(Role::LokrW1) { self.matrix(Role::LokrW1)? } else { product(Role::LokrW1A, Role::LokrW1B)? };
                let second = if self.has(Role::LokrW2) {
                    self.matrix(Role::LokrW2)?
                } else if self.has(Role::LokrT2) {
                    tucker(Role::LokrT2, self.matrix(Role::LokrW2A)?, self.matrix(Role::LokrW2B)?)?
                } else {
                    product(Role::LokrW2A, Role::LokrW2B)?
                };
                let (c, (b, rest)) = (first.dim(1)?, second.dims2()?);
                let (first, second) = (flat(first)?, flat(second)?);
                let mut more = vec![0f32; out * input * kernel];
                more.par_chunks_mut((c * rest).max(1)).enumerate().for_each(|(row, values)| {
                    for (column, values) in values.chunks_mut(rest.max(1)).enumerate() {
                        let factor = first.get(row / b * c + column).copied().unwrap_or(0.0);
                        let from = second.get(row % b * rest..).unwrap_or_default();
                        values.iter_mut().zip(from).for_each(|(to, from)| *to = factor * from);
                    }
                });
                Ok(more)
            }
            Change::GLora => {
                let (a1, a2, b1, b2) = self.glora(input);
                let rows = Tensor::from_slice(weight, (out, input, kernel), &Device::Cpu)?.transpose(1, 2)?.contiguous()?;
                let turned = rows.reshape((out * kernel, input))?.matmul(&self.matrix(a1)?)?.matmul(&self.matrix(a2)?)?;
                let turned = turned.reshape((out, kernel, input))?.transpose(1, 2)?.contiguous()?.reshape((out, input * kernel))?;
                flat((turned + product(b1, b2)?)?)
            }
            Change::Ia3 => {
                let factors = self.values(Role::Factors)?;
                let on_input = self.on_input();
                let mut more = weight.to_vec();
                for (i, values) in more.chunks_mut(kernel.max(1)).enumerate() {
                    let factor = factors.get(if on_input { i % input } else { i / input }).copied().unwrap_or(1.0);
                    values.iter_mut().for_each(|x| *x *= factor);
                }
                Ok(more)
            }
            Change::Oft => {
                let mut more = self.rotated(weight, sizes)?;
                more.iter_mut().zip(weight).for_each(|(more, x)| *more -= x);
                Ok(more)
            }
            Change::Full => Err(model_error(&self.file.name, format!("changes nothing of {}", self.target.path))),
        }
    }

    /// W turned by OFT (one turn of blocks, transposed) or BOFT (a butterfly of turns), and scaled by row.
    fn rotated(self, weight: &[f32], sizes: LayerSizes) -> Result<Vec<f32>> {
        let (out, flat) = (sizes.out, sizes.flat());
        let shape = self.shape(Role::OftBlocks).unwrap_or_default().to_vec();
        let block = shape.last().copied().unwrap_or(1);
        let mut skew: Vec<f64> = self.values(Role::OftBlocks)?.into_iter().map(f64::from).collect();
        for values in skew.chunks_mut(block * block) {
            for i in 0..block {
                for j in 0..=i {
                    let (Some(&low), Some(&high)) = (values.get(i * block + j), values.get(j * block + i)) else { continue };
                    values[i * block + j] = low - high;
                    values[j * block + i] = high - low;
                }
            }
        }
        let norm = skew.iter().map(|x| x * x).sum::<f64>().sqrt();
        // Alpha is no scale here, but a limit of the turn.
        let limit = self.target.alpha.map_or(0.0, |alpha| alpha * out as f64);
        if limit > 0.0 && limit < norm {
            skew.iter_mut().for_each(|x| *x *= limit / norm);
        }
        let turns: Vec<f64> = skew.par_chunks(block * block).flat_map_iter(|values| transposed_turn(values, block)).collect();
        let turns: Vec<f32> = turns.into_iter().map(|x| x as f32).collect();
        let mut turned = match shape.as_slice() {
            [n, ..] if shape.len() == 3 => {
                let turns = Tensor::from_vec(turns, (*n, block, block), &Device::Cpu)?;
                turns.matmul(&Tensor::from_slice(weight, (*n, block, flat), &Device::Cpu)?)?
            }
            [stages, n, ..] => {
                let turns = Tensor::from_vec(turns, (*stages, *n, block, block), &Device::Cpu)?;
                let mut x = Tensor::from_slice(weight, (out, flat), &Device::Cpu)?;
                for stage in 0..*stages {
                    let k = (block / 2) << stage;
                    let groups = out / (2 * k);
                    let blocks = x.reshape((groups, 2, k, flat))?.transpose(1, 2)?.contiguous()?.reshape((*n, block, flat))?;
                    let turn = turns.get(stage)?.transpose(1, 2)?.contiguous()?;
                    x = turn.matmul(&blocks)?.reshape((groups, k, 2, flat))?.transpose(1, 2)?.contiguous()?.reshape((out, flat))?;
                }
                x
            }
            _ => return Err(model_error(&self.file.name, format!("has no rotation of {}", self.target.path))),
        }
        .flatten_all()?
        .to_vec1::<f32>()?;
        if self.has(Role::Rescale) {
            let factors = self.values(Role::Rescale)?;
            for (row, factor) in turned.chunks_mut(flat.max(1)).zip(factors) {
                row.iter_mut().for_each(|x| *x *= factor);
            }
        }
        Ok(turned)
    }
}

/// The products of several changes of a layer as one: of the matrices beside each other, `(out, r)` with the scales and `(in × kernel, r)`.
pub(super) fn one_product(products: &[LowRank]) -> Result<Option<(Vec<f32>, Vec<f32>)>> {
    /// Columns that are turned at once: a cache line or more of a row.
    const TURNED: usize = 64;
    let Some(first) = products.first() else { return Ok(None) };
    let rank: usize = products.iter().map(|product| product.rank).sum();
    let (rows, columns) = (first.up.len() / first.rank.max(1), first.down.len() / first.rank.max(1));
    let fits = |product: &LowRank| product.up.len() == rows * product.rank && product.down.len() == columns * product.rank;
    if rank == 0 || columns == 0 || !products.iter().all(fits) {
        return Err(Error::Model("the changes of a layer have other shapes than each other".into()));
    }
    let (mut up, mut down) = (vec![0f32; rows * rank], vec![0f32; columns * rank]);
    up.par_chunks_mut(rank).with_min_len((SHARE / rank).max(1)).enumerate().for_each(|(row, mut to)| {
        for product in products {
            let (here, rest) = to.split_at_mut(product.rank);
            here.iter_mut().zip(&product.up[row * product.rank..]).for_each(|(to, from)| *to = from * product.scale);
            to = rest;
        }
    });
    down.par_chunks_mut(TURNED * rank).enumerate().for_each(|(block, to)| {
        let (from, count) = (block * TURNED, to.len() / rank);
        let all = products.iter().flat_map(|product| product.down.chunks_exact(columns));
        for (i, row) in all.enumerate() {
            to.iter_mut().skip(i).step_by(rank).zip(&row[from..from + count]).for_each(|(to, from)| *to = *from);
        }
    });
    Ok(Some((up, down)))
}

/// The largest of the numbers without their signs, or a NaN among them.
pub(super) fn largest(values: &[f32]) -> f32 {
    let larger = |a: f32, b: f32| if a >= b || a.is_nan() { a } else { b };
    values.par_chunks(SHARE).map(|values| values.iter().fold(0f32, |a, b| larger(a, b.abs()))).reduce(|| 0.0, larger)
}

fn add(to: &mut [f32], more: &[f32], s: f64) {
    let s = s as f32;
    to.par_chunks_mut(SHARE).zip(more.par_chunks(SHARE)).for_each(|(to, more)| {
        to.iter_mut().zip(more).for_each(|(to, more)| *to += s * more);
    });
}

/// Whether a `dora_scale` is of columns, as older files have it.
fn by_columns(shape: &[usize]) -> bool {
    shape.len() > 1 && shape.first() == Some(&1)
}

/// DoRA: `more` becomes V · magnitude / ‖V‖ − W, where V is W + `more`; the norms are those of rows, or of the inputs' columns.
fn decomposed(weight: &[f32], more: &mut [f32], magnitudes: &[f32], sizes: LayerSizes, columns: bool) {
    let LayerSizes { input, kernel, .. } = sizes;
    let group = |i: usize| if columns { i / kernel % input } else { i / (input * kernel) };
    let mut squares = vec![0f64; magnitudes.len()];
    for (i, (more, x)) in more.iter_mut().zip(weight).enumerate() {
        *more += x;
        if let Some(sum) = squares.get_mut(group(i)) {
            *sum += f64::from(*more).powi(2);
        }
    }
    let factors: Vec<f64> = magnitudes.iter().zip(&squares).map(|(magnitude, sum)| f64::from(*magnitude) / sum.sqrt()).collect();
    for (i, (more, x)) in more.iter_mut().zip(weight).enumerate() {
        let factor = factors.get(group(i)).copied().unwrap_or(1.0);
        *more = (f64::from(*more) * factor - f64::from(*x)) as f32;
    }
}

/// Rᵀ of the rotation R = (1 + q)(1 − q)⁻¹ of a skew-symmetric q: (1 + q)⁻¹(1 − q), by Gauss's elimination with the largest pivots.
fn transposed_turn(q: &[f64], n: usize) -> Vec<f64> {
    let one = |i: usize, j: usize| if i == j { 1.0 } else { 0.0 };
    let at = |i: usize, j: usize| q.get(i * n + j).copied().unwrap_or(0.0);
    // Rows of 1 + q beside those of 1 − q.
    let mut rows: Vec<Vec<f64>> =
        (0..n).map(|i| (0..n).map(|j| one(i, j) + at(i, j)).chain((0..n).map(|j| one(i, j) - at(i, j))).collect()).collect();
    for i in 0..n {
        let pivot = (i..n).max_by(|&a, &b| rows[a][i].abs().total_cmp(&rows[b][i].abs())).unwrap_or(i);
        rows.swap(i, pivot);
        let scale = 1.0 / rows[i][i];
        rows[i].iter_mut().for_each(|x| *x *= scale);
        let pivot = std::mem::take(&mut rows[i]);
        for row in rows.iter_mut().filter(|row| !row.is_empty()) {
            let factor = row[i];
            if factor != 0.0 {
                row.iter_mut().zip(&pivot).skip(i).for_each(|(x, y)| *x -= factor * y);
            }
        }
        rows[i] = pivot;
    }
    rows.into_iter().flat_map(|row| row.into_iter().skip(n)).collect()
}
