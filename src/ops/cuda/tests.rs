//! The CUDA path of every op against the reference, over random shapes; skipped with a word where there is no GPU.

use super::super::{
    Conv2d, Epilogue, GroupNorm, LayerNorm, Linear, NamedTensors, Padding, attention, geglu, gelu, quick_gelu, silu, upsample_nearest_2x,
    with_reference,
};
use super::graph::Graphs;
use candle_core::{D, DType, Device, Result, Tensor};
use std::cell::RefCell;
use std::io::Write;

const DTYPES: [DType; 3] = [DType::F32, DType::F16, DType::BF16];

fn gpu() -> Option<Device> {
    match crate::device::open(crate::device::DeviceChoice::Cuda(0)) {
        Ok((device, _)) => Some(device),
        Err(why) => {
            let _ = writeln!(std::io::stderr(), "skipped: {why}");
            None
        }
    }
}

/// Small shapes only, for a machine where every thread of a kernel is run by itself.
fn small() -> bool {
    std::env::var_os("SD_GEN_TEST_SMALL").is_some()
}

/// Numbers of a small generator.
struct CudaRandom(u64);

impl CudaRandom {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        self.0 >> 33
    }

    fn among(&mut self, least: usize, most: usize) -> usize {
        least + self.next() as usize % (most - least + 1)
    }

    fn one_of<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.among(0, all.len() - 1)]
    }

    /// On the CPU in f32, rounded to `dtype`.
    fn tensor(&mut self, shape: &[usize], dtype: DType) -> Result<Tensor> {
        let count = shape.iter().product();
        let values: Vec<f32> = (0..count).map(|_| (self.next() as f32 / (1u64 << 31) as f32 - 0.5) * 3.46).collect();
        Tensor::from_vec(values, shape, &Device::Cpu)?.to_dtype(dtype)?.to_dtype(DType::F32)
    }
}

/// Runs `op` on the GPU in `dtype`, and on the CPU by the reference in f32, and compares.
fn compare(what: &str, device: &Device, dtype: DType, inputs: &[Tensor], op: impl Fn(&[Tensor]) -> Result<Tensor>) -> Result<()> {
    let there: Vec<Tensor> = inputs.iter().map(|x| x.to_device(device)?.to_dtype(dtype)).collect::<Result<_>>()?;
    let got = op(&there)?;
    assert_eq!(got.dtype(), dtype, "{what}");
    let got = got.to_dtype(DType::F32)?.to_device(&Device::Cpu)?;
    let exact = with_reference(|| op(inputs))?;
    assert_eq!(got.dims(), exact.dims(), "{what}");
    if exact.elem_count() == 0 {
        return Ok(());
    }
    let largest = |x: &Tensor| x.abs()?.flatten_all()?.max(0)?.to_scalar::<f32>();
    let off = largest(&(got - &exact)?)? / largest(&exact)?.max(1e-6);
    let allowed = match dtype {
        DType::F32 => 2e-5,
        DType::F16 => 3e-3,
        _ => 2e-2,
    };
    assert!(off <= allowed, "{what} in {dtype:?}: off by {off:.1e}, allowed {allowed:.1e}");
    Ok(())
}

fn each(mut test: impl FnMut(&Device, DType, &mut CudaRandom) -> Result<()>) -> Result<()> {
    let Some(device) = gpu() else { return Ok(()) };
    let mut random = CudaRandom(1);
    DTYPES.into_iter().try_for_each(|dtype| test(&device, dtype, &mut random))
}

fn epilogue<'a>(inputs: &'a [Tensor], row_bias: bool, residual: bool) -> Epilogue<'a> {
    Epilogue { row_bias: row_bias.then(|| &inputs[3]), residual: residual.then(|| &inputs[4]) }
}

#[test]
fn linear_layers() -> Result<()> {
    each(|device, dtype, random| {
        for case in 0..24 {
            // Shapes of the models, and odd ones.
            let (inputs, outputs) = if case % 2 == 0 && !small() {
                (random.one_of(&[320, 640, 768, 1280]), random.one_of(&[320, 640, 2560]))
            } else {
                (random.among(1, 90), random.among(1, 90))
            };
            let (batch, tokens) = (random.among(1, 3), random.one_of(&[1, 77, 100, 256]));
            let tensors = [
                random.tensor(&[batch, tokens, inputs], dtype)?,
                (random.tensor(&[outputs, inputs], dtype)? * 0.125)?,
                random.tensor(&[outputs], dtype)?,
                random.tensor(&[batch, outputs], dtype)?,
                random.tensor(&[batch, tokens, outputs], dtype)?,
            ];
            let [bias, row_bias, residual] = [(); 3].map(|()| random.among(0, 1) == 1);
            let what = format!("linear {:?} to {outputs}, {bias} {row_bias} {residual}", tensors[0].dims());
            compare(&what, device, dtype, &tensors, |t| {
                Linear::new(t[1].clone(), bias.then(|| t[2].clone()))?.forward_with(&t[0], epilogue(t, row_bias, residual))
            })?;
        }
        Ok(())
    })
}

#[test]
fn convolutions() -> Result<()> {
    each(|device, dtype, random| {
        for case in 0..24 {
            let (inputs, outputs) = if case % 2 == 0 && !small() {
                (random.one_of(&[4, 128, 320, 640]), random.one_of(&[3, 4, 128, 320, 640]))
            } else {
                (random.among(1, 40), random.among(1, 70))
            };
            let (batch, height, width) = (random.among(1, 2), random.among(3, 20), random.among(3, 33));
            let (kernel, stride) = (random.one_of(&[1, 3]), random.one_of(&[1, 2]));
            let padding = random.one_of(&[Padding::default(), Padding::same(1), Padding { height: (0, 1), width: (0, 1) }]);
            let out = |size: usize, (a, b): (usize, usize)| (size + a + b - kernel) / stride + 1;
            let tensors = [
                random.tensor(&[batch, height, width, inputs], dtype)?,
                (random.tensor(&[outputs, inputs, kernel, kernel], dtype)? * 0.125)?,
                random.tensor(&[outputs], dtype)?,
                random.tensor(&[batch, outputs], dtype)?,
                random.tensor(&[batch, out(height, padding.height), out(width, padding.width), outputs], dtype)?,
            ];
            let [bias, row_bias, residual] = [(); 3].map(|()| random.among(0, 1) == 1);
            let what = format!("conv2d {:?} to {outputs}, kernel {kernel}, stride {stride}, {padding:?}", tensors[0].dims());
            compare(&what, device, dtype, &tensors, |t| {
                let bias = bias.then(|| t[2].clone());
                Conv2d::new(t[1].clone(), bias, stride, padding)?.forward_with(&t[0], epilogue(t, row_bias, residual))
            })?;
        }
        Ok(())
    })
}

#[test]
fn normalisations() -> Result<()> {
    each(|device, dtype, random| {
        for _ in 0..16 {
            let groups = random.one_of(&[1, 4, 32]);
            let channels = groups * random.one_of(&[1, 2, 4, 10, 40, 60]);
            let shape = [random.among(1, 3), random.among(1, 40), random.among(1, 40), channels];
            let tensors = [random.tensor(&shape, dtype)?, random.tensor(&[channels], dtype)?, random.tensor(&[channels], dtype)?];
            let silu = random.among(0, 1) == 1;
            compare(&format!("group_norm {shape:?} in {groups}"), device, dtype, &tensors, |t| {
                let norm = GroupNorm::new(t[1].clone(), t[2].clone(), groups, 1e-5)?;
                if silu { norm.forward_silu(&t[0]) } else { norm.forward(&t[0]) }
            })?;
            compare(&format!("layer_norm {shape:?}"), device, dtype, &tensors, |t| {
                LayerNorm::new(t[1].clone(), t[2].clone(), 1e-5)?.forward(&t[0])
            })?;
        }
        Ok(())
    })
}

#[test]
fn attentions() -> Result<()> {
    each(|device, dtype, random| {
        // Each token finds itself by a score that f16 does not hold, 90,000.
        let x = (Tensor::eye(64, DType::F32, &Device::Cpu)? * 300.0)?.reshape((1, 64, 64))?;
        let v = random.tensor(&[1, 64, 64], dtype)?;
        compare("attention beyond f16", device, dtype, &[x, v], |t| attention(&t[0], &t[0], &t[1], 1, false))?;
        let mut one = |size: usize, heads: usize, queries: usize, keys: usize, causal: bool| {
            let batch = random.among(1, 2);
            let tokens = |tokens: usize| [batch, tokens, heads * size];
            let tensors =
                [random.tensor(&tokens(queries), dtype)?, random.tensor(&tokens(keys), dtype)?, random.tensor(&tokens(keys), dtype)?];
            let what = format!("attention of {heads} heads of {size}, {queries} queries, {keys} keys, causal {causal}");
            compare(&what, device, dtype, &tensors, |t| attention(&t[0], &t[1], &t[2], heads, causal))
        };
        for size in [5, 8, 16, 32, 40, 64, 80, 96, 128, 160, 512, 520] {
            one(size, 2, 200, 77, false)?;
            one(size, 1, 300, 300, false)?;
            one(size, 3, 77, 77, true)?;
        }

        if small() {
            return Ok(());
        }
        one(40, 8, 1024, 1024, false)?;
        one(64, 10, 1024, 1024, false)?;
        one(512, 1, 1024, 1024, false)
    })
}

#[test]
fn functions_of_each_element() -> Result<()> {
    each(|device, dtype, random| {
        for _ in 0..6 {
            let shape = [random.among(1, 3), random.among(1, 90), 2 * random.among(1, 300)];
            let x = [(random.tensor(&shape, dtype)? * 4.0)?];
            compare("silu", device, dtype, &x, |t| silu(&t[0]))?;
            compare("gelu", device, dtype, &x, |t| gelu(&t[0]))?;
            compare("quick_gelu", device, dtype, &x, |t| quick_gelu(&t[0]))?;
            compare("geglu", device, dtype, &x, |t| geglu(&t[0]))?;
            compare("upsample", device, dtype, &x, |t| upsample_nearest_2x(&t[0].reshape((shape[0], 1, shape[1], shape[2]))?))?;
        }
        Ok(())
    })
}

#[test]
fn views_are_read_where_they_are() -> Result<()> {
    each(|device, dtype, random| {
        // A part that begins in the middle of a chunk, and one whose rows are apart.
        let x = [random.tensor(&[3, 11, 44], dtype)?];
        for narrow in [|x: &Tensor| x.narrow(0, 1, 2), |x: &Tensor| x.narrow(2, 3, 32), |x: &Tensor| x.transpose(1, 2)] {
            compare("silu", device, dtype, &x, |t| silu(&narrow(&t[0])?))?;
            compare("geglu", device, dtype, &x, |t| geglu(&narrow(&t[0])?.contiguous()?.narrow(0, 0, 1)?.reshape(((), 2))?))?;
        }
        let offset = |t: &[Tensor]| t[0].flatten_all()?.narrow(0, 1, 32 * 40)?.reshape((1, 40, 32));
        compare("attention", device, dtype, &x, |t| attention(&offset(t)?, &offset(t)?, &offset(t)?, 4, false))?;
        let weight = random.tensor(&[24, 32], dtype)?;
        compare("linear", device, dtype, &[x[0].clone(), weight], |t| Linear::new(t[1].clone(), None)?.forward(&offset(t)?))
    })
}

#[test]
fn the_same_input_gives_the_same_bytes() -> Result<()> {
    each(|device, dtype, random| {
        let channels = if small() { 32 } else { 320 };
        let x = random.tensor(&[2, 16, 16, channels], dtype)?.to_device(device)?.to_dtype(dtype)?;
        let weight = random.tensor(&[channels, channels, 3, 3], dtype)?.to_device(device)?.to_dtype(dtype)?;
        let conv = Conv2d::new(weight, None, 1, Padding::same(1))?;
        let run = || -> Result<Vec<f32>> {
            let y = conv.forward(&x)?.reshape((2, 256, channels))?;
            attention(&y, &y, &y, 4, false)?.to_dtype(DType::F32)?.flatten_all()?.to_vec1()
        };
        assert!(run()? == run()?);
        Ok(())
    })
}

/// A network of a few layers, and its calls.
struct SmallNetwork {
    conv: Conv2d,
    norm: GroupNorm,
    linear: Linear,
    graphs: Graphs,
}

impl SmallNetwork {
    fn new(device: &Device, dtype: DType) -> Result<Self> {
        let graphs = Graphs::beside(device.as_cuda_device()?)?;
        let mut random = CudaRandom(7);
        let mut weight = |shape: &[usize]| random.tensor(shape, dtype)?.to_device(&graphs.device())?.to_dtype(dtype);
        Ok(Self {
            conv: Conv2d::new(weight(&[16, 5, 3, 3])?, Some(weight(&[16])?), 1, Padding::same(1))?,
            norm: GroupNorm::new(weight(&[16])?, weight(&[16])?, 4, 1e-5)?,
            linear: Linear::new(weight(&[16, 32])?, Some(weight(&[16])?))?,
            graphs,
        })
    }

    /// Channels first, filled up, upsampled to an odd size, joined: all that the UNet does beside its layers.
    fn call(&self, inputs: &NamedTensors) -> Result<Vec<Tensor>> {
        let x = self.conv.forward(&inputs.get("x")?.permute((0, 2, 3, 1))?.contiguous()?)?;
        let (batch, height, width, channels) = x.dims4()?;
        let tokens = self.norm.forward_silu(&x)?.reshape((batch, height * width, channels))?;
        let mixed = attention(&tokens, &tokens, inputs.get("context")?, 2, false)?;
        let y = self
            .linear
            .forward_with(&Tensor::cat(&[&tokens, &mixed], D::Minus1)?, Epilogue { residual: Some(&tokens), ..Epilogue::default() })?;
        let y = upsample_nearest_2x(&y.reshape((batch, height, width, channels))?)?.narrow(2, 0, 2 * width - 1)?;
        Ok(vec![(y.contiguous()? + 1.0)?.permute((0, 3, 1, 2))?.contiguous()?, mixed])
    }

    /// The numbers of all outputs.
    fn run(&self, inputs: &NamedTensors) -> Result<Vec<f32>> {
        let outputs = self.graphs.run("", inputs, &|inputs| self.call(inputs))?;
        outputs.iter().map(numbers).collect::<Result<Vec<_>>>().map(|each| each.concat())
    }
}

fn numbers(x: &Tensor) -> Result<Vec<f32>> {
    x.to_dtype(DType::F32)?.flatten_all()?.to_vec1()
}

/// Whether graphs are to be expected, which the environment may forbid.
fn records() -> bool {
    ["SD_GEN_CUDA_GRAPH", "SD_GEN_CUDA_PROFILE", "CUDA_WITHOUT_GPU_REFUSE"].iter().all(|name| std::env::var_os(name).is_none())
}

fn inputs(random: &mut CudaRandom, device: &Device, dtype: DType, side: usize) -> Result<NamedTensors> {
    let there = |x: Tensor| x.to_device(device)?.to_dtype(dtype);
    Ok(named([
        ("x", there(random.tensor(&[2, 5, side, side], dtype)?)?),
        ("context", there(random.tensor(&[2, side * side, 16], dtype)?)?),
    ]))
}

fn named<const N: usize>(tensors: [(&str, Tensor); N]) -> NamedTensors {
    let mut inputs = NamedTensors::default();
    tensors.into_iter().for_each(|(name, tensor)| inputs.push(name, tensor));
    inputs
}

#[test]
fn calls_with_another_key_are_not_mixed_up_and_all_can_be_forgotten() -> Result<()> {
    let Some(device) = gpu() else { return Ok(()) };
    let graphs = Graphs::beside(device.as_cuda_device()?)?;
    let inputs = named([("x", Tensor::full(2f32, (2, 8), &Device::Cpu)?.to_device(&device)?)]);
    let call =
        |key: &str, by: f64| numbers(&graphs.run(key, &inputs, &|inputs| Ok::<_, candle_core::Error>(vec![(inputs.get("x")? * by)?]))?[0]);
    for _ in 0..3 {
        assert_eq!(call("twice", 2.0)?, [4.0; 16]);
        assert_eq!(call("thrice", 3.0)?, [6.0; 16]);
    }
    assert!(!records() || graphs.known() == (2, 2), "{:?}", graphs.known());
    graphs.invalidate();
    assert_eq!(graphs.known(), (0, 0));
    assert_eq!(call("twice", 5.0)?, [10.0; 16]);
    Ok(())
}

#[test]
fn calls_that_come_again_are_recorded_and_give_the_same_bytes() -> Result<()> {
    each(|device, dtype, random| {
        let network = SmallNetwork::new(device, dtype)?;
        for side in [3, 4, 3, 3, 4, 3, 4, 4] {
            let inputs = inputs(random, device, dtype, side)?;
            // The first call of a shape is never recorded.
            let exact = SmallNetwork::new(device, dtype)?.run(&inputs)?;
            assert!(network.run(&inputs)? == exact, "{dtype:?} {side}");
        }
        assert!(!records() || network.graphs.known() == (2, 2), "{:?}", network.graphs.known());
        // Old shapes make room for new ones, and may come back.
        for side in [5, 6, 7, 3, 3, 3] {
            let inputs = inputs(random, device, dtype, side)?;
            assert!(network.run(&inputs)? == SmallNetwork::new(device, dtype)?.run(&inputs)?, "{dtype:?} {side}");
        }
        assert!(!records() || network.graphs.known() == (4, 1), "{:?}", network.graphs.known());
        Ok(())
    })
}

#[test]
fn several_threads_call_a_network() -> Result<()> {
    let Some(device) = gpu() else { return Ok(()) };
    let network = SmallNetwork::new(&device, DType::F16)?;
    let mut random = CudaRandom(3);
    let cases: Vec<_> = (0..6).map(|i| inputs(&mut random, &device, DType::F16, 3 + i % 2)).collect::<Result<_>>()?;
    let exact: Vec<_> = cases.iter().map(|inputs| SmallNetwork::new(&device, DType::F16)?.run(inputs)).collect::<Result<_>>()?;
    std::thread::scope(|scope| {
        let each = |(inputs, exact): (&NamedTensors, &Vec<f32>)| -> Result<()> {
            for _ in 0..3 {
                assert!(network.run(inputs)? == *exact);
                // Work beside it, of a thread that is no concern of what is recorded meanwhile.
                silu(inputs.get("x")?)?.to_dtype(DType::F32)?.sum_all()?.to_scalar::<f32>()?;
            }
            Ok(())
        };
        let threads: Vec<_> = cases.iter().zip(&exact).map(|case| scope.spawn(move || each(case))).collect();
        threads.into_iter().try_for_each(|thread| thread.join().expect("no panic"))
    })
}

#[test]
fn what_cannot_be_recorded_is_done_as_ever() -> Result<()> {
    let Some(device) = gpu() else { return Ok(()) };
    let kept = RefCell::new(Vec::new());
    let uploads = |numbers: Vec<f32>, x: &Tensor| x.broadcast_add(&Tensor::new(numbers, x.device())?);
    type Work<'a> = &'a dyn Fn(f32, &Tensor) -> Result<Tensor>;
    let works: [(&str, Work<'_>); 4] = [
        ("a small upload that changes", &|i, x| uploads(vec![i], x)),
        ("a large upload", &|i, x| uploads(vec![i; 6000], x)),
        ("waiting", &|i, x| {
            x.device().synchronize()?;
            x + f64::from(i)
        }),
        ("a tensor that is kept", &|i, x| {
            let y = (x + f64::from(i))?;
            kept.borrow_mut().push(y.clone());
            y + 0.0
        }),
    ];
    for (what, work) in works {
        let graphs = Graphs::beside(device.as_cuda_device()?)?;
        for i in [1.0, 2.0, 3.0, 4.0] {
            let x = Tensor::full(i, (2, 6000), &Device::Cpu)?.to_device(&device)?;
            // Numbers that do not come with the inputs are recorded as they are.
            let added = if what == "a tensor that is kept" { 1.0 } else { i };
            let y = numbers(
                &graphs.run("", &named([("x", x.clone())]), &|inputs| Ok::<_, candle_core::Error>(vec![work(added, inputs.get("x")?)?]))?
                    [0],
            )?;
            let wanted = numbers(&work(added, &x)?)?;
            assert!(y == wanted, "{what}: {:?} in the place of {:?}", &y[..1], &wanted[..1]);
        }
        kept.borrow_mut().clear();
        assert!(!records() || graphs.known() == (0, 0), "{what}: {:?}", graphs.known());
    }
    Ok(())
}
