//! Which kernels an op launches, with which grid, shared memory and arguments.
//!
//! Plans are data and know no GPU: the tests run them on the CPU, through `kernels/emulate.h`, against the reference.

use super::super::Padding;
use candle_core::{DType, Result, bail};
use std::ffi::c_void;

/// An address in the memory of the device; 0 is null.
pub(super) type Address = u64;

/// `windows_t` of `kernels/product.cuh`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub(super) struct Windows {
    height: u32,
    width: u32,
    out_height: u32,
    out_width: u32,
    kernel_height: u32,
    kernel_width: u32,
    stride: u32,
    top: u32,
    left: u32,
}

/// `extras_t` of `kernels/product.cuh`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Extras {
    /// f32, whatever the dtype of the rest.
    pub(super) bias: Address,
    pub(super) row_bias: Address,
    pub(super) residual: Address,
    pub(super) rows_per_batch: u32,
}

/// A kernel's argument.
#[derive(Debug, Clone, Copy)]
pub(super) enum Argument {
    Address(Address),
    Count(u32),
    Number(f32),
    Windows(Windows),
    Extras(Extras),
}

/// One launch.
#[derive(Debug, Clone)]
pub(super) struct Launch {
    pub(super) kernel: String,
    pub(super) grid: [u32; 3],
    pub(super) threads: u32,
    pub(super) shared_bytes: u32,
    pub(super) arguments: Vec<Argument>,
}

impl Launch {
    /// Where each argument is, as the driver wants to know; good for as long as the launch is.
    pub(super) fn argument_pointers(&mut self) -> Vec<*mut c_void> {
        let pointer = |argument: &mut Argument| match argument {
            Argument::Address(x) => std::ptr::from_mut(x).cast(),
            Argument::Count(x) => std::ptr::from_mut(x).cast(),
            Argument::Number(x) => std::ptr::from_mut(x).cast(),
            Argument::Windows(x) => std::ptr::from_mut(x).cast(),
            Argument::Extras(x) => std::ptr::from_mut(x).cast(),
        };
        self.arguments.iter_mut().map(pointer).collect()
    }
}

/// What the device allows.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// Shared memory of a block, as far as it can be asked for.
    pub(super) shared_bytes: u32,
    /// Multiprocessors.
    pub(super) processors: u32,
}

/// Threads of a block of the kernels that are bound by memory.
const THREADS: usize = 256;
/// Bytes that move at once.
pub(super) const CHUNK: usize = 16;

fn count(value: usize) -> Result<Argument> {
    Ok(Argument::Count(small(value)?))
}

fn small(value: usize) -> Result<u32> {
    match u32::try_from(value) {
        Ok(value) => Ok(value),
        Err(_) => bail!("{value} numbers are too many for one kernel; generate fewer images at once, or smaller ones"),
    }
}

fn suffix(dtype: DType) -> Result<&'static str> {
    match dtype {
        DType::F32 => Ok("f32"),
        DType::F16 => Ok("f16"),
        DType::BF16 => Ok("bf16"),
        dtype => bail!("{dtype:?} is not supported, only f32, bf16 and f16"),
    }
}

/// The kernel's name, and how many numbers of a row it moves at once.
fn vectors(name: &str, dtype: DType, row: usize, addresses: &[Address]) -> Result<(String, usize)> {
    let most = CHUNK / dtype.size_in_bytes();
    let suffix = suffix(dtype)?;
    if row.is_multiple_of(most) && addresses.iter().all(|address| address.is_multiple_of(CHUNK as u64)) {
        Ok((format!("{name}_{suffix}"), most))
    } else {
        Ok((format!("{name}_{suffix}_1"), 1))
    }
}

/// A thread for every `each` of `total` numbers.
fn over(kernel: String, total: usize, each: usize, arguments: Vec<Argument>) -> Result<Launch> {
    let grid = [small(total.div_ceil(THREADS * each))?, 1, 1];
    Ok(Launch { kernel, grid, threads: THREADS as u32, shared_bytes: 0, arguments })
}

/// Which function of an element; the numbers are those of `kernels/element.cuh`.
#[derive(Debug, Clone, Copy)]
pub(super) enum CudaActivation {
    Silu = 0,
    Gelu = 1,
    QuickGelu = 2,
}

pub(super) fn activation(dtype: DType, function: CudaActivation, x: Address, y: Address, total: usize) -> Result<Launch> {
    let (kernel, each) = vectors("activation", dtype, total, &[x, y])?;
    over(kernel, total, each, vec![Argument::Address(x), Argument::Address(y), count(total)?, Argument::Count(function as u32)])
}

/// Rows of `2 half` numbers to rows of `half`.
pub(super) fn geglu(dtype: DType, x: Address, y: Address, rows: usize, half: usize) -> Result<Launch> {
    let (kernel, each) = vectors("geglu", dtype, half, &[x, y])?;
    let total = rows * half;
    over(kernel, total, each, vec![Argument::Address(x), Argument::Address(y), count(total)?, count(half)?])
}

/// `shape` is the input's.
pub(super) fn upsample(dtype: DType, x: Address, y: Address, shape: [usize; 4]) -> Result<Launch> {
    let [batch, height, width, channels] = shape;
    let (kernel, each) = vectors("upsample", dtype, channels, &[x, y])?;
    let total = batch * 4 * height * width * channels;
    let arguments = vec![Argument::Address(x), Argument::Address(y), count(total)?, count(height)?, count(width)?, count(channels)?];
    over(kernel, total, each, arguments)
}

/// `y = x + rows[batch]` over `(batch, rows of a batch, columns)`.
pub(super) fn add_rows(dtype: DType, x: Address, rows: Address, y: Address, shape: [usize; 3]) -> Result<Launch> {
    let [batch, of_a_batch, columns] = shape;
    let (kernel, each) = vectors("add_rows", dtype, columns, &[x, rows, y])?;
    let total = batch * of_a_batch * columns;
    let arguments =
        vec![Argument::Address(x), Argument::Address(rows), Argument::Address(y), count(total)?, count(of_a_batch)?, count(columns)?];
    over(kernel, total, each, arguments)
}

/// Group normalisation of `(batch, positions, channels)`.
#[derive(Debug, Clone, Copy)]
pub(super) struct GroupNormPlan {
    pub(super) dtype: DType,
    pub(super) batch: usize,
    pub(super) positions: usize,
    pub(super) channels: usize,
    pub(super) groups: usize,
    pub(super) eps: f32,
    pub(super) with_silu: bool,
}

impl GroupNormPlan {
    /// Parts that the positions of an image are cut into: by their number alone, so that a batch does not change an image's bytes.
    fn parts(&self) -> (usize, usize) {
        const PARTS: usize = 64;
        // A large image in more parts keeps more processors busy.
        const LEAST: usize = 8;
        const MOST: usize = 4096;
        let size = self.positions.div_ceil(PARTS).clamp(LEAST, MOST);
        (self.positions.div_ceil(size), size)
    }

    /// Numbers of f32 that the launches want to work with.
    pub(super) fn scratch(&self) -> usize {
        self.batch * self.parts().0 * self.groups * 2
    }

    pub(super) fn launches(&self, x: Address, scratch: Address, weight: Address, bias: Address, y: Address) -> Result<[Launch; 2]> {
        let &Self { dtype, batch, positions, channels, groups, eps, with_silu } = self;
        let (parts, size) = self.parts();
        let (stats, each) = vectors("group_norm_stats", dtype, channels, &[x, y])?;
        let (apply, _) = vectors("group_norm_apply", dtype, channels, &[x, y])?;
        let grid = [small(parts)?, small(batch)?, 1];
        let rows_at_once = (THREADS / (channels / each).max(1)).max(1);
        let sizes = [count(positions)?, count(channels)?, count(groups)?, count(size)?];
        let first = [Argument::Address(x), Argument::Address(scratch)];
        let then = [x, scratch, weight, bias, y].map(Argument::Address);
        let last = [Argument::Number(eps), Argument::Count(u32::from(with_silu))];
        Ok([
            Launch {
                kernel: stats,
                grid,
                threads: THREADS as u32,
                shared_bytes: small(2 * rows_at_once * channels * size_of::<f32>())?,
                arguments: first.into_iter().chain(sizes).collect(),
            },
            Launch {
                kernel: apply,
                grid,
                threads: THREADS as u32,
                shared_bytes: small(3 * channels * size_of::<f32>())?,
                arguments: then.into_iter().chain(sizes).chain(last).collect(),
            },
        ])
    }
}

pub(super) fn layer_norm(dtype: DType, addresses: [Address; 4], rows: usize, channels: usize, eps: f32) -> Result<Launch> {
    let [x, _, _, y] = addresses;
    let (kernel, _) = vectors("layer_norm", dtype, channels, &[x, y])?;
    let sizes = [count(rows)?, count(channels)?, Argument::Number(eps)];
    let arguments = addresses.map(Argument::Address).into_iter().chain(sizes).collect();
    Ok(Launch { kernel, grid: [small(rows.div_ceil(THREADS / 32))?, 1, 1], threads: THREADS as u32, shared_bytes: 0, arguments })
}

/// A product or a convolution.
#[derive(Debug, Clone, Copy)]
pub(super) struct Product {
    pub(super) dtype: DType,
    pub(super) batch: usize,
    pub(super) columns: usize,
    /// Of the input; a multiple of [`Product::channel_multiple`].
    pub(super) channels: usize,
    windows: Windows,
}

/// A kernel's tile, and how it is launched.
struct TileShape {
    rows: usize,
    columns: usize,
    threads: u32,
    /// Of the arithmetic that a multiprocessor can do, how much this tile reaches next to the others: a guess until it is measured.
    efficiency: f64,
}

/// The instances in `kernels/kernels.cu`.
const TILES: [TileShape; 3] = [
    TileShape { rows: 128, columns: 160, threads: 256, efficiency: 1.0 },
    TileShape { rows: 128, columns: 128, threads: 256, efficiency: 0.97 },
    TileShape { rows: 64, columns: 64, threads: 128, efficiency: 0.75 },
];
/// Channels of a tap that pass through shared memory at once, buffers, and numbers between rows there.
const DEPTH: usize = 64;
const STAGES: usize = 3;
const PITCH: usize = DEPTH + 8;

impl TileShape {
    fn shared_bytes(&self) -> usize {
        let buffers = STAGES * (self.rows + self.columns) * PITCH * 2;
        let staged = self.rows * (self.columns + 4) * size_of::<f32>();
        buffers.max(staged)
    }
}

impl Product {
    /// A convolution of `(batch, height, width, channels)`; `None` where the kernel is larger than the image.
    pub(super) fn convolution(
        dtype: DType,
        [batch, height, width, channels]: [usize; 4],
        columns: usize,
        kernel: (usize, usize),
        stride: usize,
        padding: Padding,
    ) -> Result<Option<Self>> {
        let size = |input: usize, (before, after): (usize, usize), kernel: usize| {
            (input + before + after).checked_sub(kernel).map(|most| most / stride + 1)
        };
        let (Some(out_height), Some(out_width)) = (size(height, padding.height, kernel.0), size(width, padding.width, kernel.1)) else {
            return Ok(None);
        };
        let windows = Windows {
            height: small(height)?,
            width: small(width)?,
            out_height: small(out_height)?,
            out_width: small(out_width)?,
            kernel_height: small(kernel.0)?,
            kernel_width: small(kernel.1)?,
            stride: small(stride)?,
            top: small(padding.height.0)?,
            left: small(padding.width.0)?,
        };
        Ok(Some(Self { dtype, batch, columns, channels, windows }))
    }

    /// Channels come in chunks; weights and images are filled up with zeros to it.
    pub(super) fn channel_multiple(dtype: DType) -> usize {
        CHUNK / dtype.size_in_bytes()
    }

    /// Height and width of the output.
    pub(super) fn output_size(&self) -> (usize, usize) {
        (self.windows.out_height as usize, self.windows.out_width as usize)
    }

    fn rows_of_a_batch(&self) -> usize {
        let (height, width) = self.output_size();
        height * width
    }

    fn rows(&self) -> usize {
        self.batch * self.rows_of_a_batch()
    }

    fn steps(&self) -> usize {
        let taps = (self.windows.kernel_height * self.windows.kernel_width) as usize;
        taps * self.channels.div_ceil(DEPTH)
    }

    /// The tile, and the number of parts that the sum is cut into so that all multiprocessors have work.
    fn choose(&self, limits: Limits) -> Option<(&'static TileShape, usize)> {
        const SPLITS: [usize; 7] = [1, 2, 3, 4, 6, 8, 12];
        // Per multiprocessor and for the whole device, in operations and bytes a microsecond; only ratios matter.
        const ARITHMETIC: f64 = 3.0e6;
        const MEMORY: f64 = 2.0e6;
        const LAUNCH: f64 = 3.0;
        let seconds = |tile: &TileShape, splits: usize| {
            let blocks = self.rows().div_ceil(tile.rows) * self.columns.div_ceil(tile.columns) * splits;
            let rounds = blocks.div_ceil(limits.processors.max(1) as usize);
            let steps = self.steps().div_ceil(splits);
            let product = (rounds * steps * 2 * tile.rows * tile.columns * DEPTH) as f64 / (ARITHMETIC * tile.efficiency);
            let merge = if splits > 1 { (splits * self.rows() * self.columns * 8) as f64 / MEMORY + LAUNCH } else { 0.0 };
            product + merge
        };
        let fits = |tile: &&TileShape| tile.shared_bytes() <= limits.shared_bytes as usize;
        let all = TILES.iter().filter(fits).flat_map(|tile| SPLITS.map(|splits| (tile, splits)));
        all.filter(|(_, splits)| *splits <= self.steps()).min_by(|a, b| seconds(a.0, a.1).total_cmp(&seconds(b.0, b.1)))
    }

    /// Numbers of f32 that the launches want to work with.
    pub(super) fn scratch(&self, limits: Limits) -> usize {
        match self.choose(limits) {
            Some((_, splits)) if splits > 1 && self.dtype != DType::F32 => splits * self.rows() * self.columns,
            _ => 0,
        }
    }

    pub(super) fn launches(
        &self,
        limits: Limits,
        x: Address,
        weight: Address,
        y: Address,
        scratch: Address,
        extras: Extras,
    ) -> Result<Vec<Launch>> {
        let (rows, columns) = (count(self.rows())?, count(self.columns)?);
        let extras = Argument::Extras(Extras { rows_per_batch: small(self.rows_of_a_batch())?, ..extras });
        let sizes = [extras, Argument::Windows(self.windows), rows, columns, count(self.channels)?];
        if self.dtype == DType::F32 {
            const TILE: usize = 64;
            return Ok(vec![Launch {
                kernel: "product_f32".to_owned(),
                grid: [small(self.rows().div_ceil(TILE))?, small(self.columns.div_ceil(TILE))?, 1],
                threads: 256,
                shared_bytes: 2 * 16 * (TILE as u32 + 4) * size_of::<f32>() as u32,
                arguments: [x, weight, y].map(Argument::Address).into_iter().chain(sizes).collect(),
            }]);
        }
        let suffix = suffix(self.dtype)?;
        let Some((tile, splits)) = self.choose(limits) else { bail!("a block of this GPU has too little shared memory for a product") };
        let mut launches = vec![Launch {
            kernel: format!("product_{}x{}_{suffix}", tile.rows, tile.columns),
            grid: [small(self.rows().div_ceil(tile.rows))?, small(self.columns.div_ceil(tile.columns))?, splits as u32],
            threads: tile.threads,
            shared_bytes: tile.shared_bytes() as u32,
            arguments: [x, weight, y, scratch].map(Argument::Address).into_iter().chain(sizes).collect(),
        }];
        if splits > 1 {
            let arguments = vec![Argument::Address(scratch), Argument::Address(y), extras, rows, columns, Argument::Count(splits as u32)];
            launches.push(over(format!("product_merge_{suffix}"), self.rows() * self.columns, 1, arguments)?);
        }
        Ok(launches)
    }
}

/// Attention of `(batch, tokens, heads × size)`.
#[derive(Debug, Clone, Copy)]
pub(super) struct AttentionPlan {
    pub(super) dtype: DType,
    pub(super) batch: usize,
    pub(super) queries: usize,
    pub(super) keys: usize,
    pub(super) heads: usize,
    pub(super) size: usize,
    pub(super) causal: bool,
}

/// An instance in `kernels/kernels.cu`.
struct KernelInstance {
    width: usize,
    /// `width` rounded up to 16.
    depth: usize,
    warps: usize,
    /// Queries of a block.
    queries: usize,
    keys: usize,
}

const SHAPES: [KernelInstance; 8] = [
    KernelInstance { width: 16, depth: 16, warps: 4, queries: 64, keys: 64 },
    KernelInstance { width: 32, depth: 32, warps: 4, queries: 64, keys: 64 },
    KernelInstance { width: 40, depth: 48, warps: 4, queries: 128, keys: 64 },
    KernelInstance { width: 64, depth: 64, warps: 4, queries: 128, keys: 64 },
    KernelInstance { width: 80, depth: 80, warps: 8, queries: 128, keys: 64 },
    KernelInstance { width: 128, depth: 128, warps: 8, queries: 128, keys: 32 },
    KernelInstance { width: 160, depth: 160, warps: 4, queries: 64, keys: 32 },
    KernelInstance { width: 512, depth: 512, warps: 8, queries: 64, keys: 16 },
];

impl KernelInstance {
    fn shared_bytes(&self) -> usize {
        let pitch = ((self.depth / 8) | 1) * 8;
        (self.queries + 4 * self.keys) * pitch * 2
    }
}

impl AttentionPlan {
    /// The launch, or `None` where no kernel takes this size, this dtype or this GPU.
    pub(super) fn launch(&self, limits: Limits, [q, k, v, y]: [Address; 4]) -> Result<Option<Launch>> {
        let &Self { dtype, batch, queries, keys, heads, size, causal } = self;
        let fits = |shape: &&KernelInstance| size <= shape.width && shape.shared_bytes() <= limits.shared_bytes as usize;
        if dtype == DType::F32 || !size.is_multiple_of(8) || keys == 0 {
            return Ok(None);
        }
        let Some(shape) = SHAPES.iter().find(fits) else { return Ok(None) };
        let scale = std::f32::consts::LOG2_E / (size as f32).sqrt();
        let sizes =
            [count(queries)?, count(keys)?, count(heads)?, count(size)?, Argument::Count(u32::from(causal)), Argument::Number(scale)];
        Ok(Some(Launch {
            kernel: format!("attention_{}_{}", shape.width, suffix(dtype)?),
            grid: [small(queries.div_ceil(shape.queries))?, small(heads)?, small(batch)?],
            threads: shape.warps as u32 * 32,
            shared_bytes: shape.shared_bytes() as u32,
            arguments: [q, k, v, y].map(Argument::Address).into_iter().chain(sizes).collect(),
        }))
    }
}
