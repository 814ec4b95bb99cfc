//! ControlNets and IP-Adapters against diffusers and transformers, stage by stage, on small models whose random weights leave no part
//! without an effect.
//!
//! `tests/data/steering/make_steering.py` made the networks and what they ought to compute.

#![allow(clippy::expect_used, clippy::panic, reason = "a test that cannot read its models has failed")]

use sd_gen::candle_core::{DType, Device, Tensor, safetensors};
use sd_gen::extension::{Extension, ImagePrompting};
use sd_gen::models::{Backbone, ClipVisionModel, ControlNet, IpAdapter, ModelCall, Residuals, Scope, ShownControl, UNet2DCondition};
use sd_gen::ops::Wrap;
use sd_gen::pipeline::{NetworkCache, Pipeline, denoising_bytes};
use sd_gen::sampling::{Branch, CallPoint, NoiseLevel, Step};
use sd_gen::settings::Draft;
use sd_gen::weights::{Checkpoint, Component, ControlNetFile, ImageEncoderFile, IpAdapterFile};
use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// How far off f32 may be: the largest difference over the golden tensor's standard deviation.
const CLOSE: f64 = 2e-5;
/// The timestep of all calls.
const TIMESTEP: f64 = 421.0;

fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name)
}

fn steering(name: &str) -> PathBuf {
    data("steering").join(name)
}

struct Golden(HashMap<String, Tensor>);

impl Golden {
    fn read() -> Self {
        Self(safetensors::load(steering("golden.safetensors"), &Device::Cpu).expect("golden.safetensors"))
    }

    fn get(&self, key: &str) -> Tensor {
        self.0.get(key).unwrap_or_else(|| panic!("golden.safetensors has no {key}")).clone()
    }

    #[track_caller]
    fn check(&self, what: &str, key: &str, made: &Tensor) {
        let wanted = self.get(key);
        assert_eq!(made.dims(), wanted.dims(), "{what} {key}");
        let numbers = |x: &Tensor| -> Vec<f64> { x.to_dtype(DType::F64).and_then(|x| x.flatten_all()?.to_vec1()).expect("numbers") };
        let (made, wanted) = (numbers(made), numbers(&wanted));
        let mean = wanted.iter().sum::<f64>() / wanted.len() as f64;
        let deviation = (wanted.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / wanted.len() as f64).sqrt();
        // What is not a number is not close.
        let apart = made.iter().zip(&wanted).map(|(a, b)| (a - b).abs() / deviation).fold(0.0, |a, b| if b <= a { a } else { b });
        assert!(apart <= CLOSE, "{what} {key}: off by {apart:.1e} standard deviations, at most {CLOSE:.0e} is right");
    }
}

fn unet(model: &Checkpoint) -> UNet2DCondition {
    let source = model.component(Component::UNET);
    UNet2DCondition::load(&Scope::root(&source, DType::F32, &Device::Cpu), &model.spec().unet).expect("a UNet")
}

/// Channels first, as diffusers has them.
fn channels_first(x: &Tensor) -> Tensor {
    x.permute((0, 3, 1, 2)).and_then(|x| x.contiguous()).expect("four sides")
}

#[test]
fn a_control_net_computes_what_diffusers_computes() {
    let golden = Golden::read();
    for (name, file) in [("sd15", "sd15"), ("sd15", "sd15-original.safetensors"), ("sd21-v", "sd21-v"), ("sdxl", "sdxl")] {
        let key = |end: &str| format!("{name}.{end}");
        let model = Checkpoint::open(&data("parity").join(name)).expect("a model");
        let file = ControlNetFile::open(&steering(file), model.spec()).expect("a ControlNet");
        let tensors = file.tensors(None).expect("its tensors");
        let network = ControlNet::load(&Scope::root(&tensors, DType::F32, &Device::Cpu), file.spec()).expect("a whole ControlNet");
        let hint = network.hint(&golden.get(&key("hint")), Wrap::default()).expect("a hint");
        golden.check(file.name(), &key("embedded"), &channels_first(&hint));
        let mut call = ModelCall::new(golden.get(&key("latents")), TIMESTEP, golden.get(&key("context")));
        if golden.0.contains_key(&key("pooled")) {
            let rows: Vec<Vec<f32>> = golden.get(&key("time_ids")).to_vec2().expect("rows");
            call.time_ids = rows.into_iter().map(|row| row.into_iter().map(f64::from).collect()).collect();
            call.pooled = Some(golden.get(&key("pooled")));
        }
        let Residuals { down, mid } = network.residuals(&call, &hint).expect("residuals");
        assert!(!golden.0.contains_key(&key(&format!("down.{}", down.len()))), "{name}: there are more");
        for (i, residual) in down.iter().enumerate() {
            golden.check(file.name(), &key(&format!("down.{i}")), &channels_first(residual));
        }
        let mid = mid.expect("a residual of the middle");
        golden.check(file.name(), &key("mid"), &channels_first(&mid));
        let weighed = |x: &Tensor| x.affine(0.7, 0.0).expect("a product");
        call.residuals = Residuals { down: down.iter().map(weighed).collect(), mid: Some(weighed(&mid)) };
        golden.check(file.name(), &key("prediction"), &unet(&model).call(&call).expect("a prediction").prediction);
    }
}

#[test]
fn an_image_prompt_computes_what_diffusers_and_transformers_compute() {
    let golden = Golden::read();
    let model = Checkpoint::open(&data("parity/sd15")).expect("a model");
    let unet = unet(&model);
    let file = ImageEncoderFile::open(&steering("image_encoder")).expect("an image encoder");
    let encoder = ClipVisionModel::load(&Scope::root(&file, DType::F32, &Device::Cpu), file.spec()).expect("a whole encoder");
    let pixels = golden.get("encoder.pixels");
    let (seen, zeros) = (encoder.forward(&pixels), encoder.forward(&pixels.zeros_like().expect("zeros")));
    let (seen, zeros) = (seen.expect("an image"), zeros.expect("an image"));
    golden.check("the encoder", "encoder.projected", &seen.projected);
    golden.check("the encoder", "encoder.penultimate", &seen.penultimate);
    golden.check("the encoder", "encoder.zeros", &zeros.penultimate);
    for (kind, name) in [("plain", "ip-adapter.safetensors"), ("plus", "ip-adapter-plus.safetensors")] {
        let file = IpAdapterFile::open(&steering(name), model.spec()).expect("an IP-Adapter");
        let adapter = IpAdapter::load(&Scope::root(&file, DType::F32, &Device::Cpu), file.spec()).expect("a whole IP-Adapter");
        let nothing = adapter.nothing(&zeros).expect("nothing");
        let tokens = [&nothing, &seen].map(|image| adapter.tokens(image).expect("tokens"));
        golden.check(name, &format!("ip.{kind}.tokens"), &Tensor::cat(&tokens, 0).expect("two rows"));
        let keys = |image| adapter.keys(image).expect("keys");
        let mut prompting = ImagePrompting::new(0, keys(&seen), keys(&nothing), 0.8, (0.0, 1.0));
        let mut call = ModelCall::new(golden.get("ip.latents"), TIMESTEP, golden.get("ip.context"));
        let level = NoiseLevel::new(1.0, TIMESTEP);
        let at = CallPoint { step: Step { index: 0, from: level, to: level }, steps: 1, call: 0, level };
        prompting.before_call(&at, &[Branch::Negative, Branch::Prompt], &mut call).expect("two rows");
        golden.check(name, &format!("ip.{kind}"), &unet.call(&call).expect("a prediction").prediction);
    }
}

#[test]
fn what_steers_counts_in_the_memory() {
    let model = Checkpoint::open(&data("parity/sd15")).expect("a model");
    let image = data("upscalers/compact-x1.png");
    let request = |settings: &[(&str, &Path, f64)]| {
        let mut draft = Draft::new("an apple");
        for (name, file, weight) in settings {
            let text = format!("{},image={},weight={weight}", file.display(), image.display());
            draft.set(name, [text.as_str()]).expect("a setting");
        }
        draft.resolve(model.spec()).expect("a request")
    };
    let (net, adapter) = (steering("sd15-original.safetensors"), steering("ip-adapter.safetensors"));
    let cache = NetworkCache::default();
    let bytes = |request| cache.bytes(request, model.spec(), DType::BF16, &|_| false);
    let denoising = |request| denoising_bytes(model.spec(), request, DType::BF16, &Device::Cpu);
    let (plain, off) = (request(&[]), request(&[("control", &net, 0.0)]));
    assert_eq!((bytes(&plain), bytes(&off)), (0, 0));
    assert_eq!(denoising(&plain), denoising(&off));
    let control = request(&[("control", &net, 0.5)]);
    let parameters = ControlNetFile::open(&net, model.spec()).expect("a ControlNet").parameters();
    assert!(parameters > 10_000);
    assert_eq!(bytes(&control), 2 * parameters);
    assert!(denoising(&control) > denoising(&plain));
    assert_eq!(cache.bytes(&control, model.spec(), DType::F32, &|name| name.ends_with("sd15-original.safetensors")), 0);
    let prompt = request(&[("ip-adapter", &adapter, 1.0)]);
    let encoder = ImageEncoderFile::open(&steering("image_encoder")).expect("an image encoder").parameters();
    assert_eq!(bytes(&prompt), 2 * encoder.max(IpAdapterFile::open(&adapter, model.spec()).expect("an IP-Adapter").parameters()));
    // Both are there at a time.
    assert_eq!(bytes(&request(&[("control", &net, 1.0), ("ip-adapter", &adapter, 1.0)])), bytes(&control) + bytes(&prompt));
}

#[test]
fn a_control_net_for_several_kinds_of_images_computes_what_diffusers_computes() {
    let golden = Golden(safetensors::load(steering("union-golden.safetensors"), &Device::Cpu).expect("union-golden.safetensors"));
    let model = Checkpoint::open(&data("parity/sdxl")).expect("a model");
    let file = ControlNetFile::open(&steering("union"), model.spec()).expect("a ControlNet Union");
    let tensors = file.tensors(None).expect("its tensors");
    let network = ControlNet::load(&Scope::root(&tensors, DType::F32, &Device::Cpu), file.spec()).expect("a whole ControlNet");
    let mut call = ModelCall::new(golden.get("latents"), TIMESTEP, golden.get("context"));
    let rows: Vec<Vec<f32>> = golden.get("time_ids").to_vec2().expect("rows");
    call.time_ids = rows.into_iter().map(|row| row.into_iter().map(f64::from).collect()).collect();
    call.pooled = Some(golden.get("pooled"));
    let shown = |i: usize, kind, weight| {
        let hint = network.hint(&golden.get(&format!("hint.{i}")), Wrap::default()).expect("a hint");
        ShownControl { hint, kind, weight }
    };
    for (name, shown) in [("one", vec![shown(0, 3, 0.7)]), ("two", vec![shown(0, 3, 0.7), shown(1, 1, 0.4)])] {
        let Residuals { down, mid } = network.union_residuals(&call, &shown, 2).expect("residuals");
        assert!(!golden.0.contains_key(&format!("{name}.down.{}", down.len())), "{name}: there are more");
        for (i, residual) in down.iter().enumerate() {
            golden.check("the union", &format!("{name}.down.{i}"), &channels_first(residual));
        }
        golden.check("the union", &format!("{name}.mid"), &channels_first(&mid.expect("a residual of the middle")));
    }
}

#[test]
fn images_that_follow_several_kinds_of_images_are_diffusers() {
    let builder = Pipeline::open(data("parity/sdxl")).expect("the model opens").device("cpu".parse().expect("a device"));
    let pipeline = builder.dtype("f32".parse().expect("a dtype")).build().expect("the model loads");
    let request: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(data("parity/sdxl/request.json")).expect("a file")).expect("a request");
    let text = |key: &str| request[key].as_str().map_or_else(|| request[key].to_string(), str::to_owned);
    let control = |image: &str, more: &str| {
        format!("{},image={},{more}", steering("union").display(), steering(&format!("union-{image}.png")).display())
    };
    let generated = |controls: &[String]| {
        let mut draft = Draft::new(text("prompt"));
        for (setting, key) in [
            ("negative-prompt", "negative_prompt"),
            ("width", "width"),
            ("height", "height"),
            ("steps", "steps"),
            ("guidance-scale", "guidance_scale"),
            ("seed", "seed"),
        ] {
            draft.set(setting, [text(key).as_str()]).expect("a setting");
        }
        // Brackets are words to diffusers.
        draft.set("prompt-syntax", ["plain"]).expect("a setting");
        draft.set("control", controls).expect("a control");
        pipeline.generate(&draft)
    };
    for (name, controls) in [
        ("one", vec![control("a", "weight=0.8,type=canny")]),
        ("two", vec![control("a", "weight=0.8,type=canny"), control("b", "weight=0.5,type=depth")]),
        ("part", vec![control("a", "weight=0.8,type=canny"), control("b", "weight=0.5,type=depth,start=0.5")]),
    ] {
        let made = generated(&controls).expect("an image").remove(0).image;
        let wanted = image::open(steering(&format!("union-{name}.png"))).expect("an image").to_rgb8();
        assert_eq!(made.dimensions(), wanted.dimensions());
        let apart = made.iter().zip(wanted.iter()).map(|(a, b)| a.abs_diff(*b)).max();
        assert!(apart <= Some(2), "{name}: {apart:?} levels");
    }
    for (more, said) in [("weight=1", "say what it is shown with type="), ("type=tile", "does not know tile")] {
        let error = generated(&[control("a", more)]).expect_err("a wrong type").to_string();
        assert!(error.contains(said), "{more}: {error}");
    }
}
