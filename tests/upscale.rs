//! Enlarging images: every architecture against spandrel, tiles against the whole, and the command as its users meet it.

#![allow(clippy::expect_used, clippy::panic, reason = "a test that cannot set up its files has failed")]

use image::RgbImage;
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use sd_gen::candle_core::{DType, Device, Tensor};
use sd_gen::models::{Scope, Upscaler};
use sd_gen::ops::Wrap;
use sd_gen::pipeline::UpscalePipeline;
use sd_gen::weights::UpscalerFile;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn data() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/upscalers")
}

fn png(path: &Path) -> RgbImage {
    image::open(path).unwrap_or_else(|e| panic!("{}: {e}", path.display())).to_rgb8()
}

/// What spandrel was given: `make_upscaler_goldens.py` says how.
struct Case {
    name: String,
    architecture: String,
    scale: usize,
    gain: f64,
    tensors: Vec<(String, Vec<usize>)>,
}

fn cases() -> Vec<Case> {
    let text = std::fs::read_to_string(data().join("cases.json")).expect("the cases");
    let cases: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    let text = |value: &serde_json::Value| value.as_str().expect("a text").to_owned();
    let number = |value: &serde_json::Value| value.as_u64().expect("a number") as usize;
    let case = |case: &serde_json::Value| Case {
        name: text(&case["name"]),
        architecture: text(&case["architecture"]),
        scale: number(&case["scale"]),
        gain: case["gain"].as_f64().expect("a number"),
        tensors: (case["tensors"].as_object().expect("tensors").iter())
            .map(|(name, shape)| (name.clone(), shape.as_array().expect("a shape").iter().map(number).collect()))
            .collect(),
    };
    cases.as_array().expect("a list").iter().map(case).collect()
}

/// `numbers` of the script: numbers in [-1, 1) that only depend on the name.
fn numbers(name: &str, count: usize) -> Vec<f64> {
    let seed = name.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3));
    let number = |i: usize| {
        let mut z = seed.wrapping_add((i as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^= z >> 31;
        (z >> 40) as f64 / f64::from(1 << 23) - 1.0
    };
    (0..count).map(number).collect()
}

impl Case {
    /// `tensor` of the script.
    fn values(&self, name: &str, shape: &[usize]) -> Vec<f32> {
        let fan = shape.iter().skip(1).product::<usize>() as f64;
        let scaled = |value: f64| match () {
            () if name.ends_with("relative_position_bias_table") => value * 2.0,
            () if shape.len() >= 2 => value * (1.5 / fan.sqrt()),
            () if name.contains("norm") && name.ends_with("weight") => 1.0 + value / 4.0,
            () => value / 8.0,
        };
        let gain = if name.starts_with("conv_1.") { self.gain as f32 } else { 1.0 };
        match name {
            "no_norm" => vec![0.0; shape.iter().product()],
            _ => numbers(name, shape.iter().product()).into_iter().map(|value| scaled(value) as f32 * gain).collect(),
        }
    }

    /// The case's network as a file's bytes, with something before every name.
    fn file(&self, wrapper: &str) -> Vec<u8> {
        let tensors: Vec<(String, Vec<usize>, Dtype, Vec<u8>)> = (self.tensors.iter())
            .map(|(name, shape)| {
                // What is counted is not drawn.
                let (dtype, bytes) = match name.ends_with("relative_position_index") {
                    true => (Dtype::I64, vec![0; 8 * shape.iter().product::<usize>()]),
                    false => (Dtype::F32, self.values(name, shape).into_iter().flat_map(f32::to_le_bytes).collect()),
                };
                (format!("{wrapper}{name}"), shape.clone(), dtype, bytes)
            })
            .collect();
        let views = tensors.iter().map(|(name, shape, dtype, bytes)| {
            (name.as_str(), TensorView::new(*dtype, shape.clone(), bytes).expect("as many bytes as the shape says"))
        });
        safetensors::serialize(views, None).expect("a file")
    }

    fn pipeline(&self) -> UpscalePipeline {
        let file = UpscalerFile::from_bytes(&self.name, self.file("")).expect("a file");
        UpscalePipeline::load(&file, &self.name, &Device::Cpu, DType::F32).unwrap_or_else(|e| panic!("{}: {e}", self.name))
    }
}

fn worst(a: &RgbImage, b: &RgbImage) -> u8 {
    assert_eq!(a.dimensions(), b.dimensions());
    a.as_raw().iter().zip(b.as_raw()).map(|(a, b)| a.abs_diff(*b)).max().unwrap_or(0)
}

#[test]
fn every_architecture_is_read_off_its_tensors_and_does_what_spandrel_does() {
    for case in cases() {
        let pipeline = case.pipeline();
        assert_eq!((pipeline.architecture(), pipeline.scale()), (case.architecture.as_str(), case.scale), "{}", case.name);
        let input = png(&data().join(format!("{}-input.png", case.name)));
        let made = pipeline.run(&input, &mut |_, _| Ok(())).unwrap_or_else(|e| panic!("{}: {e}", case.name));
        let worst = worst(&made, &png(&data().join(format!("{}.png", case.name))));
        assert!(worst <= 1, "{}: off by {worst} levels", case.name);
    }
}

#[test]
fn tiles_are_the_whole_image() {
    // Larger than a tile both ways, and no multiple of anything.
    const WIDTH: usize = 211;
    const HEIGHT: usize = 197;
    let values = numbers("image", WIDTH * HEIGHT * 3);
    let input = RgbImage::from_fn(WIDTH as u32, HEIGHT as u32, |x, y| {
        let at = (y as usize * WIDTH + x as usize) * 3;
        let wave =
            |c: usize| ((f64::from(x) * 0.11 + c as f64).sin() * (f64::from(y) * 0.07).cos() * 90.0 + 128.0 + values[at + c] * 30.0) as u8;
        image::Rgb([wave(0), wave(1), wave(2)])
    });
    for case in cases().into_iter().filter(|case| ["compact-x1", "rrdb-unshuffle-x2", "swinir-direct-x4"].contains(&case.name.as_str())) {
        let mut tiles = 0;
        let tiled = case.pipeline().run(&input, &mut |_, all| {
            tiles = all;
            Ok(())
        });
        assert_eq!(tiles, 4, "{}", case.name);
        let file = UpscalerFile::from_bytes(&case.name, case.file("")).expect("a file");
        let network = Upscaler::load(&Scope::root(&file, DType::F32, &Device::Cpu)).expect("loaded").expect("known");
        let pixels: Vec<f32> = input.as_raw().iter().map(|value| f32::from(*value) / 255.0).collect();
        let whole = network.forward(&Tensor::from_vec(pixels, (1, HEIGHT, WIDTH, 3), &Device::Cpu).expect("an image")).expect("enlarged");
        let whole: Vec<f32> = whole.flatten_all().and_then(|whole| whole.to_vec1()).expect("values");
        let whole = whole.into_iter().map(|value| (value.clamp(0.0, 1.0) * 255.0).round_ties_even() as u8).collect();
        let scale = case.scale as u32;
        let whole = RgbImage::from_raw(WIDTH as u32 * scale, HEIGHT as u32 * scale, whole).expect("an image");
        let worst = worst(&tiled.expect("enlarged"), &whole);
        assert!(worst <= 1, "{}: off by {worst} levels", case.name);
    }
}

/// An image that repeats is enlarged across its edges: turned by some pixels first or afterwards, it is the same.
#[test]
fn a_tiling_image_is_enlarged_across_its_edges() {
    let (width, height, by) = (48u32, 40u32, 12u32);
    let values = numbers("tiling", (width * height * 3) as usize);
    let image = RgbImage::from_fn(width, height, |x, y| {
        let at = ((y * width + x) * 3) as usize;
        image::Rgb([0, 1, 2].map(|c| (values[at + c] * 127.0 + 128.0) as u8))
    });
    let turned = |image: &RgbImage, by: u32| {
        let (width, height) = image.dimensions();
        RgbImage::from_fn(width, height, |x, y| *image.get_pixel((x + by) % width, y))
    };
    let sideways = Wrap { x: true, y: false };
    for (name, scale) in [("compact-x4", 4), ("rrdb-unshuffle-x2", 2), ("rrdb-old-x4", 3)] {
        let case = cases().into_iter().find(|case| case.name == name).expect("a case");
        let pipeline = case.pipeline();
        let run = |image: &RgbImage, wrap| pipeline.run_wrapped(image, f64::from(scale), wrap, &mut |_, _| Ok(())).expect("enlarged");
        let (first, last) = (run(&turned(&image, by), sideways), turned(&run(&image, sideways), by * scale));
        assert_eq!(first.dimensions(), (width * scale, height * scale), "{name}");
        assert!(worst(&first, &last) <= 1, "{name}: off by {} levels", worst(&first, &last));
        // Without it, what lies beyond an edge is nothing.
        let plain = run(&image, Wrap::default());
        assert!(plain == pipeline.run_to(&image, f64::from(scale), &mut |_, _| Ok(())).expect("enlarged"));
        assert!(worst(&run(&turned(&image, by), Wrap::default()), &turned(&plain, by * scale)) > 1, "{name}");
    }
}

#[test]
fn what_trainers_put_before_all_names_is_taken_away_and_other_files_are_refused() {
    let case = cases().remove(0);
    for wrapper in ["params_ema.", "params.", "module."] {
        let file = UpscalerFile::from_bytes("file", case.file(wrapper)).expect("a file");
        assert!(UpscalePipeline::load(&file, "file", &Device::Cpu, DType::F32).is_ok(), "{wrapper}");
    }
    let refused = |case: &Case| {
        let file = UpscalerFile::from_bytes("file", case.file("")).expect("a file");
        let error = UpscalePipeline::load(&file, "file", &Device::Cpu, DType::F32).expect_err("refused");
        assert_eq!(error.exit_code(), 3, "{error}");
        error.to_string()
    };
    for case in cases() {
        // Without one tensor after the other: never a panic, and a sentence that names the file.
        for left_out in (0..case.tensors.len()).step_by(7) {
            let mut tensors = case.tensors.clone();
            let (name, _) = tensors.remove(left_out);
            // It is counted, or computed anew.
            if name.contains("eval_conv") || name.ends_with("relative_position_index") || name == "no_norm" || name.ends_with("qkv.bias") {
                continue;
            }
            let case = Case { name: case.name.clone(), architecture: String::new(), scale: 1, gain: 1.0, tensors };
            let file = UpscalerFile::from_bytes("file", case.file("")).expect("a file");
            if let Err(error) = UpscalePipeline::load(&file, "file", &Device::Cpu, DType::F32) {
                assert!(error.exit_code() == 3 && error.to_string().starts_with("file"), "{name}: {error}");
            }
        }
        // And each with another shape.
        for (changed, _) in case.tensors.iter().enumerate().filter(|(_, (_, shape))| !shape.is_empty()).step_by(5) {
            let mut tensors = case.tensors.clone();
            tensors[changed].1[0] += 1;
            let case = Case { name: case.name.clone(), architecture: String::new(), scale: 1, gain: 1.0, tensors };
            let file = UpscalerFile::from_bytes("file", case.file("")).expect("a file");
            if let Ok(pipeline) = UpscalePipeline::load(&file, "file", &Device::Cpu, DType::F32) {
                let _ = pipeline.run(&RgbImage::new(9, 5), &mut |_, _| Ok(()));
            }
        }
    }
    let other =
        Case { name: "x".into(), architecture: String::new(), scale: 1, gain: 1.0, tensors: vec![("unet.weight".into(), vec![3, 3])] };
    assert!(refused(&other).contains("is not an upscaler that is known: ESRGAN"));
}

fn sd_gen(folder: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sd-gen"));
    command.args(arguments).arg("--no-config").current_dir(folder).env_remove("SD_GEN_MODELS");
    command.output().expect("sd-gen starts")
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn files_are_enlarged_once_and_keep_what_they_say() {
    let folder = tempfile::tempdir().expect("folder");
    let case = cases().into_iter().find(|case| case.name == "compact-x4").expect("the case");
    std::fs::create_dir_all(folder.path().join("models/upscalers")).expect("folder");
    std::fs::write(folder.path().join("models/upscalers/4x_Small-Compact.safetensors"), case.file("params.")).expect("write");
    let input = png(&data().join("compact-x4-input.png"));
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, input.width(), input.height());
    encoder.set_color(png::ColorType::Rgb);
    encoder.add_text_chunk("parameters".into(), "a cat\nSteps: 20, Seed: 5".into()).expect("a text");
    encoder.add_itxt_chunk("note".into(), "größer ≥ 2".into()).expect("a text");
    encoder.write_header().and_then(|mut writer| writer.write_image_data(&input)).expect("a PNG");
    std::fs::write(folder.path().join("cat.png"), &bytes).expect("write");
    std::fs::write(folder.path().join("broken.png"), &bytes[..60]).expect("write");

    let run = |arguments: &[&str]| sd_gen(folder.path(), &[&["upscale", "--upscaler", "4x small compact"], arguments].concat());
    let output = run(&["cat.png"]);
    assert!(output.status.success(), "{}", said(&output));
    assert_eq!(String::from_utf8_lossy(&output.stdout), "./cat-4x.png\n");
    let path = folder.path().join("cat-4x.png");
    assert!(worst(&png(&path), &png(&data().join("compact-x4.png"))) <= 1);
    let texts = |path: &Path| sd_gen::metadata::texts(path).expect("read").expect("a PNG");
    let of = |path: &Path, keyword: &str| texts(path).into_iter().find(|text| text.keyword == keyword).map(|text| text.text);
    assert_eq!(of(&path, "parameters").as_deref(), Some("a cat\nSteps: 20, Seed: 5"));
    assert_eq!(of(&path, "note").as_deref(), Some("größer ≥ 2"));
    let note = of(&path, "postprocessing").expect("what was done");
    let hash = sd_gen::weights::hash(&folder.path().join("models/upscalers/4x_Small-Compact.safetensors"), |_| Ok(()))
        .expect("a hash")
        .model_hash()
        .to_owned();
    let wanted =
        format!("Postprocess upscale by: 4, Postprocess upscaler: 4x_Small-Compact, Postprocess upscaler hash: {hash}, Source SHA-256: ");
    assert!(note.starts_with(&wanted), "{note}");

    // Again: nothing to do. Another image of that name: the next name, once.
    let before = std::fs::read(&path).expect("read");
    let output = run(&["cat.png"]);
    assert!(output.status.success() && output.stdout.is_empty() && said(&output).contains("1 were there already"), "{}", said(&output));
    input.save(folder.path().join("cat.png")).expect("saved");
    for _ in 0..2 {
        assert!(run(&["cat.png"]).status.success());
    }
    assert_eq!(std::fs::read(&path).expect("read"), before);
    assert!(folder.path().join("cat-4x-2.png").is_file() && !folder.path().join("cat-4x-3.png").exists());

    // Another size and folder; what is broken costs nobody else.
    let output = run(&["broken.png", "cat.png", "--scale", "1.5", "--output-dir", "new"]);
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    assert!(said(&output).contains("broken.png: ") && said(&output).contains("1 image could not be enlarged"), "{}", said(&output));
    assert_eq!(png(&folder.path().join("new/cat-1.5x.png")).dimensions(), (30, 21));

    for (arguments, code, sentence) in [
        (&["nothing.png"][..], 2, "nothing.png: the image cannot be read"),
        (&["models"], 2, "models: is a folder"),
        (&["cat.png", "--scale", "0"], 2, "--scale 0"),
        (&["cat.png", "--scale", "nan"], 2, "--scale NaN"),
    ] {
        let output = run(arguments);
        assert_eq!(output.status.code(), Some(code), "{}", said(&output));
        assert!(said(&output).contains(sentence), "{}", said(&output));
    }
    let output = sd_gen(folder.path(), &["upscale", "cat.png", "--upscaler", "no-such"]);
    assert!(output.status.code() == Some(2) && said(&output).contains("none of that name"), "{}", said(&output));
    std::fs::write(folder.path().join("text.safetensors"), "no tensors").expect("write");
    assert_eq!(sd_gen(folder.path(), &["upscale", "cat.png", "--upscaler", "text.safetensors"]).status.code(), Some(3));
}
