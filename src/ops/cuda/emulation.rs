//! The kernels against the reference without a GPU: compiled as C++ by the machine's `g++`, thread by thread on the CPU.
//!
//! What this cannot show is what the instructions of `kernels/device.cuh` do on a GPU; `tests.rs` does where there is one.
#![expect(unsafe_code, reason = "compiled kernels are loaded and called")]

use super::super::{Padding, reference};
use super::plan::{self, Address, AttentionPlan, CudaActivation, Extras, GroupNormPlan, Launch, Limits, Product};
use candle_core::{DType, Device, Result, Tensor};
use half::{bf16, f16};
use std::ffi::{CString, c_char, c_int, c_void};
use std::process::Command;
use std::sync::{Mutex, OnceLock};

type Emulate = unsafe extern "C" fn(*const c_char, *const u32, u32, u32, *mut *mut c_void) -> c_int;

/// The kernels, compiled once; `None` where there is no compiler. One launch at a time: the emulation has one machine.
fn machine() -> Option<&'static Mutex<Emulate>> {
    static MACHINE: OnceLock<Option<Mutex<Emulate>>> = OnceLock::new();
    MACHINE.get_or_init(compile).as_ref()
}

fn compile() -> Option<Mutex<Emulate>> {
    let there = Command::new("g++").arg("--version").output().is_ok_and(|output| output.status.success());
    if !there || !cfg!(all(target_os = "linux", target_arch = "x86_64")) {
        #[expect(clippy::print_stderr, reason = "a skipped test says so")]
        {
            eprintln!("skipped: the emulation of the CUDA kernels wants g++ on x86-64 Linux");
        }
        return None;
    }
    let folder = tempfile::tempdir().expect("a temporary folder");
    let library = folder.path().join("kernels.so");
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/src/ops/cuda/kernels/kernels.cu");
    let flags = ["-std=c++17", "-O1", "-w", "-fPIC", "-shared", "-DSD_GEN_EMULATE", "-x", "c++", source, "-o"];
    let output = Command::new("g++").args(flags).arg(&library).output().expect("g++");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let path = CString::new(library.to_str().expect("text")).expect("no NUL");
    // SAFETY: the library was just made from our own source; it is never unloaded.
    unsafe {
        let handle = libc::dlopen(path.as_ptr(), libc::RTLD_NOW);
        assert!(!handle.is_null(), "the kernels were compiled and cannot be loaded");
        let symbol = libc::dlsym(handle, c"sd_emulate".as_ptr());
        assert!(!symbol.is_null());
        Some(Mutex::new(std::mem::transmute::<*mut c_void, Emulate>(symbol)))
    }
}

fn run(mut launch: Launch) {
    let machine = machine().expect("asked before").lock().expect("no launch has failed");
    let name = CString::new(launch.kernel.as_str()).expect("no NUL");
    let (grid, threads, shared) = (launch.grid, launch.threads, launch.shared_bytes);
    let mut arguments = launch.argument_pointers();
    // SAFETY: the plan's arguments are those of the kernel, which is what is tested.
    let code = unsafe { machine(name.as_ptr(), grid.as_ptr(), threads, shared, arguments.as_mut_ptr()) };
    assert_eq!(code, 0, "{} with {threads} threads", launch.kernel);
}

/// Memory as a device gives it out, aligned and with a guard behind its end.
struct Buffer {
    memory: Vec<u128>,
    bytes: usize,
}

const GUARD: u8 = 0x5a;

impl Buffer {
    fn new(bytes: usize) -> Self {
        Self { memory: vec![u128::from_ne_bytes([GUARD; 16]); bytes.div_ceil(16) + 4], bytes }
    }

    fn of(x: &Tensor) -> Self {
        let flat = x.flatten_all().expect("flat");
        let bytes: Vec<u8> = match x.dtype() {
            DType::F32 => flat.to_vec1::<f32>().expect("f32").into_iter().flat_map(f32::to_ne_bytes).collect(),
            DType::F16 => flat.to_vec1::<f16>().expect("f16").into_iter().flat_map(f16::to_ne_bytes).collect(),
            _ => flat.to_vec1::<bf16>().expect("bf16").into_iter().flat_map(bf16::to_ne_bytes).collect(),
        };
        let mut buffer = Self::new(bytes.len());
        buffer.all_bytes()[..bytes.len()].copy_from_slice(&bytes);
        buffer
    }

    fn all_bytes(&mut self) -> &mut [u8] {
        let len = self.memory.len() * 16;
        // SAFETY: the same memory as bytes.
        unsafe { std::slice::from_raw_parts_mut(self.memory.as_mut_ptr().cast(), len) }
    }

    fn address(&mut self) -> Address {
        self.memory.as_mut_ptr() as Address
    }

    /// As a tensor in f32; every number must have been written, and nothing behind them.
    fn tensor(mut self, dtype: DType, shape: &[usize]) -> Result<Tensor> {
        let bytes = self.bytes;
        let (values, guard) = self.all_bytes().split_at(bytes);
        assert!(guard.iter().all(|byte| *byte == GUARD), "a write behind the end");
        let untouched = [GUARD; 4];
        let size = dtype.size_in_bytes();
        assert!(values.chunks(size).all(|value| value != &untouched[..size]), "a number was not written");
        let pair = |x: &[u8]| [x[0], x[1]];
        let values: Vec<f32> = match dtype {
            DType::F32 => values.chunks(4).map(|x| f32::from_ne_bytes([x[0], x[1], x[2], x[3]])).collect(),
            DType::F16 => values.chunks(2).map(|x| f16::from_ne_bytes(pair(x)).to_f32()).collect(),
            _ => values.chunks(2).map(|x| bf16::from_ne_bytes(pair(x)).to_f32()).collect(),
        };
        Tensor::from_vec(values, shape, &Device::Cpu)
    }
}

const DTYPES: [DType; 3] = [DType::F32, DType::F16, DType::BF16];
const HALVES: [DType; 2] = [DType::F16, DType::BF16];
const HOPPER: Limits = Limits { shared_bytes: 232_448, processors: 132 };

/// Lively numbers, rounded to `dtype`, in it and in f32.
fn random(seed: u64, shape: &[usize], dtype: DType) -> Result<(Tensor, Tensor)> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((state >> 40) as f32 / (1u64 << 24) as f32 - 0.5) * 3.46
    };
    let values: Vec<f32> = (0..shape.iter().product()).map(|_| next()).collect();
    let rounded = Tensor::from_vec(values, shape, &Device::Cpu)?.to_dtype(dtype)?;
    let exact = rounded.to_dtype(DType::F32)?;
    Ok((rounded, exact))
}

/// Largest difference over the largest number, held against the rounding of the dtype.
fn agree(what: &str, got: &Tensor, exact: &Tensor, dtype: DType) -> Result<()> {
    let largest = |x: &Tensor| x.abs()?.flatten_all()?.max(0)?.to_scalar::<f32>();
    let off = largest(&(got - exact)?)? / largest(exact)?.max(1e-6);
    let allowed = match dtype {
        DType::F32 => 3e-6,
        DType::F16 => 2e-3,
        _ => 1.2e-2,
    };
    assert!(off <= allowed, "{what} in {dtype:?}: off by {off:.1e}, allowed {allowed:.1e}");
    Ok(())
}

#[test]
fn elements() -> Result<()> {
    if machine().is_none() {
        return Ok(());
    }
    for dtype in DTYPES {
        // An odd number, and more than a block of whole chunks.
        for shape in [[1, 7, 10], [2, 33, 80]] {
            let (x, exact) = random(1, &shape, dtype)?;
            let total = x.elem_count();
            type Function = fn(&Tensor) -> Result<Tensor>;
            let functions: [(CudaActivation, Function); 3] = [
                (CudaActivation::Silu, reference::silu),
                (CudaActivation::Gelu, reference::gelu),
                (CudaActivation::QuickGelu, reference::quick_gelu),
            ];
            for (function, reference) in functions {
                let (mut from, mut to) = (Buffer::of(&x), Buffer::new(total * dtype.size_in_bytes()));
                run(plan::activation(dtype, function, from.address(), to.address(), total)?);
                agree(&format!("{function:?}"), &to.tensor(dtype, &shape)?, &reference(&exact)?, dtype)?;
            }
            let [batch, tokens, channels] = shape;
            let (rows, half) = (batch * tokens, channels / 2);
            let (mut from, mut to) = (Buffer::of(&x), Buffer::new(rows * half * dtype.size_in_bytes()));
            run(plan::geglu(dtype, from.address(), to.address(), rows, half)?);
            agree("geglu", &to.tensor(dtype, &[batch, tokens, half])?, &reference::geglu(&exact)?, dtype)?;

            let image = [batch, 1, tokens, channels];
            let (mut from, mut to) = (Buffer::of(&x), Buffer::new(4 * total * dtype.size_in_bytes()));
            run(plan::upsample(dtype, from.address(), to.address(), image)?);
            let wanted = reference::upsample_nearest_2x(&exact.reshape(&image)?)?;
            agree("upsample", &to.tensor(dtype, wanted.dims())?, &wanted, dtype)?;

            let (rows, exact_rows) = random(2, &[batch, channels], dtype)?;
            let (mut from, mut rows, mut to) = (Buffer::of(&x), Buffer::of(&rows), Buffer::new(total * dtype.size_in_bytes()));
            run(plan::add_rows(dtype, from.address(), rows.address(), to.address(), shape)?);
            let wanted = exact.broadcast_add(&exact_rows.reshape((batch, 1, channels))?)?;
            agree("add_rows", &to.tensor(dtype, &shape)?, &wanted, dtype)?;
        }
    }
    Ok(())
}

#[test]
fn normalisations() -> Result<()> {
    if machine().is_none() {
        return Ok(());
    }
    for dtype in DTYPES {
        // Channels by scalars and by chunks, groups across chunks, more chunks than threads, one position, many parts.
        for (batch, positions, channels, groups) in
            [(2, 70, 12, 3), (1, 1, 32, 32), (2, 600, 40, 4), (1, 9, 2560, 32), (1, 30, 64, 2), (2, 20, 320, 32)]
        {
            let shape = [batch, positions, channels];
            let (x, exact) = random(3, &shape, dtype)?;
            // A mean that is large next to the deviation; f32 only, as the others would round the deviation away.
            let (x, exact) = if dtype == DType::F32 { ((x + 300.0)?, (exact + 300.0)?) } else { (x, exact) };
            let (weight, _) = random(4, &[channels], DType::F32)?;
            let (bias, _) = random(5, &[channels], DType::F32)?;
            let (mut from, mut w, mut b) = (Buffer::of(&x), Buffer::of(&weight), Buffer::of(&bias));
            for with_silu in [false, true] {
                let norm = GroupNormPlan { dtype, batch, positions, channels, groups, eps: 1e-5, with_silu };
                let (mut scratch, mut to) = (Buffer::new(norm.scratch() * 4), Buffer::new(x.elem_count() * dtype.size_in_bytes()));
                for launch in norm.launches(from.address(), scratch.address(), w.address(), b.address(), to.address())? {
                    run(launch);
                }
                scratch.tensor(DType::F32, &[norm.scratch()])?;
                let wanted = reference::ReferenceGroupNorm::new(weight.clone(), bias.clone(), groups, 1e-5)?.forward(&exact, with_silu)?;
                let what = format!("group_norm {shape:?} in {groups} groups");
                agree_loosely(&what, &to.tensor(dtype, &shape)?, &wanted, dtype)?;
            }
            let mut to = Buffer::new(x.elem_count() * dtype.size_in_bytes());
            let addresses = [from.address(), w.address(), b.address(), to.address()];
            run(plan::layer_norm(dtype, addresses, batch * positions, channels, 1e-5)?);
            let wanted = reference::ReferenceLayerNorm::new(weight, bias, 1e-5)?.forward(&exact)?;
            agree_loosely(&format!("layer_norm {shape:?}"), &to.tensor(dtype, &shape)?, &wanted, dtype)?;
        }
    }
    Ok(())
}

/// With a mean of 300 the reference itself is only good to 1e-4 of a deviation.
fn agree_loosely(what: &str, got: &Tensor, exact: &Tensor, dtype: DType) -> Result<()> {
    agree(what, got, exact, if dtype == DType::F32 { DType::F16 } else { dtype })
}

struct Convolution {
    shape: [usize; 4],
    columns: usize,
    kernel: (usize, usize),
    stride: usize,
    padding: Padding,
    extras: bool,
    limits: Limits,
}

fn convolve(case: &Convolution, dtype: DType) -> Result<String> {
    let &Convolution { shape, columns, kernel, stride, padding, extras, limits } = case;
    let [batch, _, _, channels] = shape;
    assert!(channels.is_multiple_of(Product::channel_multiple(dtype)), "the layer fills channels up to whole chunks");
    let (x, exact_x) = random(6, &shape, dtype)?;
    let (weight, exact_weight) = random(7, &[columns, channels, kernel.0, kernel.1], dtype)?;
    let (bias, _) = random(8, &[columns], DType::F32)?;
    let packed = weight.permute((0, 2, 3, 1))?.contiguous()?;
    let product = Product::convolution(dtype, shape, columns, kernel, stride, padding)?.expect("the kernel fits");
    let (height, width) = product.output_size();
    let out = [batch, height, width, columns];
    let (row_bias, exact_row_bias) = random(9, &[batch, columns], dtype)?;
    let (residual, exact_residual) = random(10, &out, dtype)?;

    let mut to = Buffer::new(out.iter().product::<usize>() * dtype.size_in_bytes());
    let mut scratch = Buffer::new(product.scratch(limits) * 4);
    let (mut x, mut w, mut b) = (Buffer::of(&x), Buffer::of(&packed), Buffer::of(&bias));
    let (mut rows, mut rest) = (Buffer::of(&row_bias), Buffer::of(&residual));
    let added = if extras {
        Extras { bias: b.address(), row_bias: rows.address(), residual: rest.address(), rows_per_batch: 0 }
    } else {
        Extras::default()
    };
    let launches = product.launches(limits, x.address(), w.address(), to.address(), scratch.address(), added)?;
    let kernel_name = format!("{} {:?}", launches[0].kernel, launches[0].grid);
    for launch in launches {
        run(launch);
    }
    scratch.tensor(DType::F32, &[product.scratch(limits)])?;
    let exact = reference::ReferenceConv2d::new(exact_weight, extras.then_some(bias), stride, padding)?;
    let epilogue = super::super::Epilogue { row_bias: extras.then_some(&exact_row_bias), residual: extras.then_some(&exact_residual) };
    agree(&format!("{kernel_name} of {shape:?} to {columns}"), &to.tensor(dtype, &out)?, &exact.forward(&exact_x, epilogue)?, dtype)?;
    Ok(kernel_name)
}

#[test]
fn convolutions() -> Result<()> {
    if machine().is_none() {
        return Ok(());
    }
    let same = Padding::same(1);
    let one_sided = Padding { height: (0, 1), width: (0, 1) };
    let one = Limits { processors: 1, ..HOPPER };
    let few = Limits { shared_bytes: 99 << 10, processors: 4 };
    let case =
        |shape, columns, kernel, stride, padding, limits| Convolution { shape, columns, kernel, stride, padding, extras: true, limits };
    let cases = [
        case([2, 7, 9, 24], 20, (3, 3), 1, same, one),
        case([1, 9, 8, 80], 3, (3, 3), 2, one_sided, one),
        case([2, 5, 6, 72], 40, (3, 3), 2, same, few),
        case([1, 12, 12, 8], 136, (1, 1), 1, Padding::default(), one),
        case([1, 2, 60, 136], 128, (1, 3), 1, Padding { height: (0, 0), width: (1, 1) }, one),
        case([3, 4, 4, 320], 64, (3, 3), 1, same, HOPPER),
        Convolution { extras: false, ..case([1, 11, 13, 16], 24, (5, 2), 3, Padding { height: (2, 1), width: (1, 0) }, few) },
    ];
    let mut names = Vec::new();
    for dtype in DTYPES {
        for case in &cases {
            names.push(convolve(case, dtype)?);
        }
    }
    // The cases have met every instance, and sums in parts.
    for part in ["128x160_f16", "128x128_bf16", "64x64_f16", "product_f32"] {
        assert!(names.iter().any(|name| name.contains(part)), "{part} of {names:?}");
    }
    assert!(names.iter().any(|name| !name.ends_with(", 1]")), "{names:?}");
    Ok(())
}

fn attend(shape: &AttentionPlan) -> Result<()> {
    let &AttentionPlan { dtype, batch, queries, keys, heads, size, causal } = shape;
    let (q, exact_q) = random(11, &[batch, queries, heads * size], dtype)?;
    let (k, exact_k) = random(12, &[batch, keys, heads * size], dtype)?;
    let (v, exact_v) = random(13, &[batch, keys, heads * size], dtype)?;
    let mut to = Buffer::new(q.elem_count() * dtype.size_in_bytes());
    let (mut q, mut k, mut v) = (Buffer::of(&q), Buffer::of(&k), Buffer::of(&v));
    let launch = shape.launch(HOPPER, [q.address(), k.address(), v.address(), to.address()])?.expect("a kernel of this size");
    let what = format!("{} of {shape:?}", launch.kernel);
    run(launch);
    let wanted = reference::attention(&exact_q, &exact_k, &exact_v, heads, causal)?;
    agree(&what, &to.tensor(dtype, &[batch, queries, heads * size])?, &wanted, dtype)
}

#[test]
fn attentions() -> Result<()> {
    if machine().is_none() {
        return Ok(());
    }
    for dtype in HALVES {
        let base = AttentionPlan { dtype, batch: 1, queries: 70, keys: 77, heads: 2, size: 8, causal: false };
        // Every instance, whole and filled up; tiles that end inside the keys and queries; one key.
        for size in [8, 16, 24, 32, 40, 48, 64, 72, 80, 96, 128, 136, 160] {
            attend(&AttentionPlan { size, ..base })?;
        }
        attend(&AttentionPlan { batch: 2, queries: 150, keys: 1, size: 40, ..base })?;
        attend(&AttentionPlan { queries: 200, keys: 200, size: 40, causal: true, heads: 1, ..base })?;
        attend(&AttentionPlan { queries: 77, keys: 77, size: 64, causal: true, ..base })?;
        attend(&AttentionPlan { queries: 70, keys: 50, heads: 1, size: 512, ..base })?;
    }
    Ok(())
}
