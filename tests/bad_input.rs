//! Broken and hostile input through the program itself: each gets one sentence, its exit code, and no panic.

#![allow(clippy::expect_used, reason = "a test that cannot set up its files has failed")]

use std::path::Path;
use std::process::{Command, Output};

fn sd_gen(folder: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sd-gen"));
    command.args(arguments).current_dir(folder).env_remove("SD_GEN_MODELS").env("RUST_BACKTRACE", "0");
    command.output().expect("sd-gen starts")
}

/// What is wrong with how the program refused, if anything.
fn refused(folder: &Path, arguments: &[&str], code: i32, words: &[&str]) -> Option<String> {
    let output = sd_gen(folder, arguments);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let missing: Vec<_> = words.iter().filter(|word| !said.contains(**word)).collect();
    let images = walk(folder).into_iter().filter(|name| name.ends_with(".png") && !name.ends_with("taken.png")).count();
    // What a file says must not steer the terminal.
    let calm = !said.contains(|c: char| c.is_control() && c != '\n');
    let good = output.status.code() == Some(code) && missing.is_empty() && calm && !said.contains("panicked") && images == 0;
    let exit = output.status.code();
    (!good).then(|| format!("{arguments:?}: exit {exit:?}, wanted {code}; missing {missing:?}; {images} images; said: {said}"))
}

fn assert_all_refused(cases: impl Iterator<Item = Option<String>>) {
    let wrong: Vec<String> = cases.flatten().collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

fn walk(folder: &Path) -> Vec<String> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(folder).expect("folder").flatten() {
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => names.extend(walk(&entry.path())),
            _ => names.push(entry.path().display().to_string()),
        }
    }
    names
}

#[test]
fn flags() {
    let folder = tempfile::tempdir().expect("folder");
    let folder = folder.path();
    std::fs::write(folder.join("taken.png"), "an image").expect("write");
    std::fs::write(folder.join("no.json"), "{").expect("write");
    std::fs::write(folder.join("strange.json"), r#"{"_class_name": "NoSuchScheduler"}"#).expect("write");
    std::fs::write(folder.join("betas.json"), r#"{"_class_name": "DDIMScheduler", "beta_schedule": "moonlight"}"#).expect("write");
    std::fs::write(folder.join("zero.json"), r#"{"_class_name": "DDIMScheduler", "num_train_timesteps": 0}"#).expect("write");
    std::fs::write(folder.join("huge.json"), r#"{"_class_name": "DDIMScheduler", "num_train_timesteps": 99999999999}"#).expect("write");
    std::fs::write(folder.join("nan.json"), r#"{"_class_name": "DDIMScheduler", "beta_start": -1.0}"#).expect("write");
    std::fs::write(folder.join("range.json"), r#"{"_class_name": "DDIMScheduler", "clip_sample_range": -1}"#).expect("write");
    std::fs::write(folder.join("sigma.json"), r#"{"_class_name": "EulerDiscreteScheduler", "sigma_max": 1e300}"#).expect("write");
    std::fs::write(folder.join("offset.json"), r#"{"_class_name": "DDIMScheduler", "steps_offset": 9223372036854775807}"#).expect("write");
    std::fs::write(folder.join("array.json"), "[]").expect("write");
    std::fs::write(folder.join("evil.json"), r#"{"_class_name": "\u001b]0;owned\u0007\u009b31m"}"#).expect("write");
    let cases: &[(&[&str], &[&str])] = &[
        (&["-p", "x", "--scheduler-config", "range.json"], &["range.json", "clip_sample_range"]),
        (&["-p", "x", "--scheduler-config", "sigma.json"], &["sigma.json", "sigma_max"]),
        (&["-p", "x", "--scheduler-config", "offset.json"], &["offset.json", "steps_offset"]),
        (&["-p", "x", "--scheduler-config", "array.json"], &["array.json"]),
        (&["-p", "x", "--scheduler-config", "evil.json"], &["evil.json", "owned"]),
        (&["-p", "x", "--model", "\u{1b}]0;owned"], &["owned"]),
        (&["-p", "x", "--scheduler-config", "."], &["not a file"]),
        (&["-p", "x", "--images", "4611686018427387904", "--batch-size", "4611686018427387904"], &["--images"]),
        (&["-p", "x", "--images", "5", "--batch-size", "4000"], &["--batch-size 4000"]),
        (&["-p", "x", "--threads", "99999"], &["--threads 99999"]),
        (&["-p", "-", "-p", "-"], &["only once"]),
        (&["-p", "x", "--output-dir", "out", "--output", "-"], &["--output-dir", "--output"]),
        (&["-p", "x", "--output", "l.png", "--save-latents", "l.png"], &["--save-latents"]),
        (&["-p", "x", "--output-dir", "/proc/nowhere"], &["/proc/nowhere"]),
        (&["-p", "x", "--eta", "2", "--sampler", "ddim"], &["--eta 2"]),
        (&["convert", "emoji", "out.ckpt"], &["out.ckpt", ".safetensors"]),
        (&["convert", "emoji", "out.safetensor"], &["out.safetensor"]),
        (&["convert", "no-such-model", "taken.png"], &["taken.png exists already"]),
        (&[], &["Usage"]),
        (&["--prompt"], &["--prompt"]),
        (&["--promt", "x"], &["--promt", "--prompt"]),
        (&["-p", "x", "--width", "100"], &["--width 100", "multiple of 8", "104"]),
        (&["-p", "x", "--width", "0"], &["--width 0"]),
        (&["-p", "x", "--height", "-8"], &["-8"]),
        (&["-p", "x", "--height", "8000000"], &["--height 8000000"]),
        (&["-p", "x", "--width", "99999999999999999999999"], &["--width"]),
        (&["-p", "x", "--size", "512"], &["--size", "768x512"]),
        (&["-p", "x", "--size", "64x64", "--width", "64"], &["--size", "--width"]),
        (&["-p", "x", "--steps", "0"], &["--steps 0"]),
        (&["-p", "x", "--steps", "many"], &["--steps", "many"]),
        (&["-p", "x", "--steps", "100000"], &["--steps"]),
        (&["-p", "x", "--guidance-scale", "NaN"], &["--guidance-scale"]),
        (&["-p", "x", "--guidance-scale", "inf"], &["--guidance-scale"]),
        (&["-p", "x", "--guidance-rescale", "2"], &["--guidance-rescale 2"]),
        (&["-p", "x", "--eta", "-1"], &["--eta"]),
        (&["-p", "x", "--sampler", "oiler"], &["oiler", "euler"]),
        (&["-p", "x", "--schedule", "caras"], &["caras", "karras"]),
        (&["-p", "x", "--timestep-spacing", "wide"], &["wide", "leading"]),
        (&["-p", "x", "--prediction", "future"], &["future", "epsilon"]),
        (&["-p", "x", "--rng", "dice"], &["dice", "torch-cpu"]),
        (&["-p", "x", "--seed", "one"], &["--seed", "whole number"]),
        (&["-p", "x", "--seed", "99999999999999999999999"], &["--seed"]),
        (&["-p", "x", "--images", "0"], &["--images 0"]),
        (&["-p", "x", "--batch-size", "0"], &["--batch-size 0"]),
        (&["-p", "x", "--clip-skip", "0"], &["--clip-skip 0"]),
        (&["-p", "x", "--clip-skip", "99"], &["--clip-skip 99", "layers"]),
        (&["-p", "x", "--device", "toaster"], &["toaster", "cuda"]),
        (&["-p", "x", "--device", "cuda:x"], &["cuda:x"]),
        (&["-p", "x", "--dtype", "f8"], &["f8", "bf16"]),
        (&["-p", "x", "--threads", "0"], &["--threads 0"]),
        (&["-p", "x", "--output", "taken.png"], &["taken.png exists", "--overwrite"]),
        (&["-p", "x", "--output", "image.jpg"], &["image.jpg", "PNG"]),
        (&["-p", "x", "--output", "{sead}.png"], &["{sead}", "seed"]),
        (&["-p", "x", "--output", "one.png", "--images", "2"], &["one.png", "template"]),
        (&["-p", "x", "-p", "y", "--output", "-"], &["standard output", "2"]),
        (&["-p", "x", "--output-dir", "taken.png"], &["taken.png"]),
        (&["-p", "x", "--save-latents", "nowhere/l.safetensors"], &["nowhere"]),
        (&["-p", "x", "--scheduler-config", "none.json"], &["none.json"]),
        (&["-p", "x", "--scheduler-config", "no.json"], &["no.json"]),
        (&["-p", "x", "--scheduler-config", "strange.json"], &["strange.json", "NoSuchScheduler"]),
        (&["-p", "x", "--scheduler-config", "betas.json"], &["betas.json", "moonlight"]),
        (&["-p", "x", "--scheduler-config", "zero.json"], &["zero.json", "num_train_timesteps"]),
        (&["-p", "x", "--scheduler-config", "huge.json"], &["huge.json", "num_train_timesteps"]),
        (&["-p", "x", "--scheduler-config", "nan.json"], &["nan.json", "beta"]),
        (&["-p", "x", "--model", "no-such-model"], &["no-such-model"]),
        (&["-p", "x", "--model", "./no-such-file.safetensors"], &["no-such-file"]),
        (&["-p", "x", "--model", "."], &["no model"]),
        (&["convert", "no-such-model", "out"], &["no-such-model"]),
    ];
    assert_all_refused(cases.iter().map(|(arguments, words)| refused(folder, arguments, 2, words)));
}

#[test]
fn models() {
    let folder = tempfile::tempdir().expect("folder");
    let folder = folder.path();
    let write = |name: &str, bytes: &[u8]| {
        let path = folder.join(name);
        std::fs::create_dir_all(path.parent().expect("parent")).expect("folder");
        std::fs::write(path, bytes).expect("write");
    };
    // A safetensors file is a length in 8 bytes, a JSON header of that length, and the tensors.
    let file = |header: &str, data: usize| [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &vec![0; data]].concat();
    let entry = |name: &str, dtype: &str, shape: &str, from: usize, to: usize| {
        format!(r#""{name}":{{"dtype":"{dtype}","shape":{shape},"data_offsets":[{from},{to}]}}"#)
    };
    let one = |entry: String, data: usize| file(&format!("{{{entry}}}"), data);
    write("empty.safetensors", b"");
    write("short.safetensors", b"1234");
    write("page.safetensors", b"<!DOCTYPE html><html><body>Not found</body></html>");
    write("pointer.safetensors", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 4265380512\n");
    write("absurd.safetensors", &u64::MAX.to_le_bytes());
    write("large.safetensors", &[&(1u64 << 40).to_le_bytes()[..], b"{}"].concat());
    write("json.safetensors", &file("{not json", 0));
    write("list.safetensors", &file("[]", 0));
    write("nothing.safetensors", &file("{}", 0));
    write("truncated.safetensors", &one(entry("a", "F32", "[4]", 0, 16), 8));
    write("overlap.safetensors", &file(&format!("{{{},{}}}", entry("a", "F32", "[2]", 0, 8), entry("b", "F32", "[2]", 4, 12)), 12));
    write("backwards.safetensors", &one(entry("a", "F32", "[2]", 8, 0), 8));
    write("size.safetensors", &one(entry("a", "F32", "[3]", 0, 8), 8));
    write("overflow.safetensors", &one(entry("a", "F32", "[4294967296,4294967296,4294967296]", 0, 8), 8));
    write("negative.safetensors", &one(entry("a", "F32", "[-2]", 0, 8), 8));
    write("dtype.safetensors", &one(entry("a", "F33", "[2]", 0, 8), 8));
    write("unknown.safetensors", &one(entry("some.weight", "F32", "[2]", 0, 8), 8));
    write("unet-only.safetensors", &one(entry("model.diffusion_model.input_blocks.0.0.weight", "F32", "[1,4,3,3]", 0, 144), 144));
    write("lora.safetensors", &one(entry("lora_unet_down_blocks_0_attentions_0_proj_in.lora_up.weight", "F32", "[2]", 0, 8), 8));
    for pickle in ["model.ckpt", "model.pt", "model.bin"] {
        write(pickle, b"PK\x03\x04");
    }
    write("notes.txt", b"hello");
    write("bare/model_index.json", b"{}");
    write("broken/model_index.json", b"{");
    write("list/model_index.json", b"[1, 2]");
    write("flux/model_index.json", br#"{"_class_name": "FluxPipeline"}"#);
    write("hollow/model_index.json", br#"{"_class_name": "StableDiffusionPipeline"}"#);
    write("hollow/unet/config.json", b"{}");
    let cases: &[(&str, &[&str])] = &[
        ("empty.safetensors", &["empty"]),
        ("short.safetensors", &["short"]),
        ("page.safetensors", &["page"]),
        ("pointer.safetensors", &["pointer.safetensors", "LFS"]),
        ("absurd.safetensors", &["absurd"]),
        ("large.safetensors", &["large.safetensors"]),
        ("json.safetensors", &["json.safetensors"]),
        ("list.safetensors", &["list.safetensors"]),
        ("nothing.safetensors", &["nothing.safetensors"]),
        ("truncated.safetensors", &["truncated.safetensors"]),
        ("overlap.safetensors", &["overlap.safetensors"]),
        ("backwards.safetensors", &["backwards.safetensors"]),
        ("size.safetensors", &["size.safetensors"]),
        ("overflow.safetensors", &["overflow.safetensors"]),
        ("negative.safetensors", &["negative.safetensors"]),
        ("dtype.safetensors", &["dtype.safetensors"]),
        ("unknown.safetensors", &["unknown.safetensors"]),
        ("unet-only.safetensors", &["unet-only.safetensors"]),
        ("lora.safetensors", &["lora.safetensors"]),
        ("model.ckpt", &["pickle"]),
        ("model.pt", &["pickle"]),
        ("model.bin", &["pickle"]),
        ("notes.txt", &["notes.txt"]),
        ("bare", &["bare"]),
        ("broken", &["model_index.json"]),
        ("list", &["model_index.json"]),
        ("flux", &["FluxPipeline"]),
        // A part of a model is no flag of that name.
        ("hollow", &["hollow", "lacks the component \"vae\""]),
    ];
    assert_all_refused(cases.iter().map(|(model, words)| refused(folder, &["-p", "x", "--model", model], 3, words)));
    assert_all_refused(cases.iter().map(|(model, words)| refused(folder, &["convert", model, "converted"], 3, words)));
}
