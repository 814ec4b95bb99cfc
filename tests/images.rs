//! Images from images through the program: varied, made anew in part, grown past their edges; and inputs that are none.
#![cfg(feature = "builtin-model")]
#![allow(clippy::expect_used, reason = "a test that cannot set up its files has failed")]

use image::{GrayImage, Luma, Rgb, RgbImage, imageops};
use std::path::Path;
use std::process::{Command, Output};

fn sd_gen(folder: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sd-gen"));
    command.args(arguments).args(["--dtype", "f32", "--quiet"]).current_dir(folder).env_remove("SD_GEN_MODELS");
    command.output().expect("sd-gen starts")
}

fn made(folder: &Path, arguments: &[&str]) -> RgbImage {
    let output = sd_gen(folder, arguments);
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    let path = String::from_utf8(output.stdout).expect("text");
    image::open(folder.join(path.trim_end())).expect("an image").to_rgb8()
}

/// The mean difference of two images, in levels.
fn apart(a: &RgbImage, b: &RgbImage) -> f64 {
    assert_eq!(a.dimensions(), b.dimensions());
    let sum: u64 = a.as_raw().iter().zip(b.as_raw()).map(|(a, b)| u64::from(a.abs_diff(*b))).sum();
    sum as f64 / a.as_raw().len() as f64
}

fn apple(folder: &Path) -> RgbImage {
    made(folder, &["-p", "a red apple", "-s", "1", "--steps", "8", "-o", "apple.png"])
}

#[test]
fn the_lower_the_strength_the_nearer_to_the_image() {
    let folder = tempfile::tempdir().expect("a folder");
    let apple = apple(folder.path());
    let varied = |strength: &str| {
        made(folder.path(), &["-p", "a green apple", "-s", "2", "--steps", "10", "-i", "apple.png", "--strength", strength])
    };
    let (none, little, much) = (varied("0"), varied("0.3"), varied("0.9"));
    assert!(apart(&none, &apple) < apart(&little, &apple), "no step is the image through the VAE");
    assert!(apart(&little, &apple) < apart(&much, &apple));
    assert!(apart(&none, &apple) < 8.0, "{}", apart(&none, &apple));
}

#[test]
fn a_part_is_made_anew_and_the_rest_keeps_its_bytes() {
    let folder = tempfile::tempdir().expect("a folder");
    let apple = apple(folder.path());
    let mask = GrayImage::from_fn(128, 128, |x, _| Luma([if x >= 64 { 255 } else { 0 }]));
    mask.save(folder.path().join("mask.png")).expect("written");
    let anew =
        made(folder.path(), &["-p", "a rocket", "-s", "3", "--steps", "8", "-i", "apple.png", "--mask", "mask.png", "--mask-blur", "0"]);
    let half = |image: &RgbImage, x: u32| imageops::crop_imm(image, x, 0, 64, 128).to_image();
    assert!(half(&anew, 0) == half(&apple, 0), "the left half is the original, byte for byte");
    assert!(apart(&half(&anew, 64), &half(&apple, 64)) > 5.0);
}

#[test]
fn an_image_grows_past_its_edge_and_its_command_makes_it_again() {
    let folder = tempfile::tempdir().expect("a folder");
    let apple = apple(folder.path());
    let arguments =
        ["-p", "a red apple", "-s", "3", "--steps", "6", "-i", "apple.png", "--outpaint", "left=32,bottom=20", "-o", "grown.png"];
    let grown = made(folder.path(), &arguments);
    assert_eq!(grown.dimensions(), (160, 148));
    assert!(imageops::crop_imm(&grown, 32, 0, 128, 128).to_image() == apple);
    let new = imageops::crop_imm(&grown, 0, 0, 32, 128).to_image();
    assert!(new.pixels().any(|pixel| *pixel != Rgb([0, 0, 0])));

    assert!(again(folder.path(), "grown.png") == grown);
}

/// What the command that `inspect` prints for an image makes.
fn again(folder: &Path, name: &str) -> RgbImage {
    let mut inspect = Command::new(env!("CARGO_BIN_EXE_sd-gen"));
    let said = inspect.args(["inspect", "--json", name]).current_dir(folder).output().expect("sd-gen starts");
    let said: serde_json::Value = serde_json::from_slice(&said.stdout).expect("JSON");
    let command = said[0]["command"]["arguments"].as_array().expect("a command").iter().map(|word| word.as_str().expect("text"));
    let mut command: Vec<&str> = command.filter(|word| !word.starts_with("--model=")).collect();
    if let Some(at) = command.iter().position(|word| *word == "--model") {
        command.drain(at..at + 2);
    }
    let name = format!("again-{name}");
    command.extend(["-o", &name]);
    made(folder, &command)
}

#[test]
fn a_second_pass_and_an_image_that_repeats_are_made_again_by_their_command() {
    let folder = tempfile::tempdir().expect("a folder");
    let small = ["-p", "a red apple", "-s", "4", "--steps", "4", "--size", "64x64"];
    let with = |name: &str, more: &[&str]| made(folder.path(), &[&small[..], more, &["-o", name]].concat());
    let hires =
        with("hires.png", &["--hires", "2", "--hires-strength", "0.6", "--hires-upscaler", "latent-bicubic", "--hires-sampler", "euler"]);
    assert_eq!(hires.dimensions(), (128, 128));
    assert!(again(folder.path(), "hires.png") == hires);
    let tiling = with("tiling.png", &["--tiling", "x"]);
    assert!(again(folder.path(), "tiling.png") == tiling && with("plain.png", &[]) != tiling);
    // Where an image repeats, its last column goes on at its first.
    let step = |image: &RgbImage| {
        let columns = [image.width() - 1, 0].map(|x| imageops::crop_imm(image, x, 0, 1, image.height()).to_image());
        apart(&columns[0], &columns[1])
    };
    assert!(step(&tiling) < 12.0, "{}", step(&tiling));
    let varied = ["-p", "a green apple", "-s", "2", "--steps", "6", "-i", "hires.png", "--strength", "0.5", "-o", "varied.png"];
    let varied = made(folder.path(), &varied);
    assert!(again(folder.path(), "varied.png") == varied, "the strength is in the command");
}

#[test]
fn images_come_from_standard_input_folders_and_patterns() {
    let folder = tempfile::tempdir().expect("a folder");
    let frames = folder.path().join("frames");
    std::fs::create_dir(&frames).expect("a folder");
    for i in [2, 10, 1] {
        RgbImage::from_pixel(64, 64, Rgb([i * 20, 0, 99])).save(frames.join(format!("f{i}.png"))).expect("written");
    }
    std::fs::write(frames.join("notes.txt"), "no image").expect("written");
    let flags = ["-p", "a red apple", "-s", "5", "--steps", "3", "--strength", "0.4"];
    let written = |more: &[&str]| {
        let output = sd_gen(folder.path(), &[&flags[..], more].concat());
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let paths = String::from_utf8(output.stdout).expect("text");
        paths.lines().map(|path| image::open(folder.path().join(path)).expect("an image").to_rgb8()).collect::<Vec<_>>()
    };
    let alone = written(&["-i", "frames/f10.png", "--output-dir", "alone"]);
    let (all, some) = (written(&["-i", "frames", "--output-dir", "all"]), written(&["-i", "frames/f1*.png", "--output-dir", "some"]));
    assert_eq!((all.len(), some.len()), (3, 2));
    assert!(all[2] == alone[0] && some[1] == alone[0], "in the order of their numbers");

    let mut command = Command::new(env!("CARGO_BIN_EXE_sd-gen"));
    command.args(flags).args(["--dtype", "f32", "--quiet", "-i", "-", "-o", "piped.png"]).current_dir(folder.path());
    let input = std::fs::File::open(frames.join("f10.png")).expect("opened");
    let output = command.stdin(input).env_remove("SD_GEN_MODELS").output().expect("sd-gen starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(image::open(folder.path().join("piped.png")).expect("an image").to_rgb8() == alone[0]);

    std::fs::write(folder.path().join("lines.txt"), "a red apple --init-image frames\n").expect("written");
    let batch = sd_gen(folder.path(), &["batch", "lines.txt", "--output-dir", "lines", "--steps", "2", "--strength", "0.5"]);
    assert!(batch.status.success(), "{}", String::from_utf8_lossy(&batch.stderr));
    assert_eq!(String::from_utf8_lossy(&batch.stdout).lines().count(), 3);
}

#[test]
fn an_image_grows_by_more_than_half_in_strips() {
    let folder = tempfile::tempdir().expect("a folder");
    let apple = apple(folder.path());
    let grown = made(
        folder.path(),
        &["-p", "a red apple", "-s", "3", "--steps", "3", "-i", "apple.png", "--outpaint", "right=150,top=10", "-o", "grown.png"],
    );
    assert_eq!(grown.dimensions(), (278, 138));
    assert!(imageops::crop_imm(&grown, 0, 10, 128, 128).to_image() == apple, "the original's own bytes");
    let far = imageops::crop_imm(&grown, 220, 0, 58, 138).to_image();
    assert!(far.pixels().any(|pixel| *pixel != Rgb([0, 0, 0])));
    assert!(again(folder.path(), "grown.png") == grown);
}

#[test]
fn what_is_no_input_is_one_sentence_and_nothing_is_written() {
    let folder = tempfile::tempdir().expect("a folder");
    let write = |name: &str, bytes: &[u8]| std::fs::write(folder.path().join(name), bytes).expect("written");
    write("text.png", b"a text file");
    write("empty.png", b"");
    RgbImage::new(64, 64).save(folder.path().join("image.png")).expect("written");
    let whole = std::fs::read(folder.path().join("image.png")).expect("read");
    write("cut.png", &whole[..whole.len() / 2]);
    GrayImage::new(32, 32).save(folder.path().join("small.png")).expect("written");
    GrayImage::new(64, 64).save(folder.path().join("black.png")).expect("written");
    // A file that is no network is a model that cannot be loaded.
    for (arguments, code, word) in [
        (vec!["-i", "text.png"], 2, "not an image"),
        (vec!["-i", "empty.png"], 2, "empty"),
        (vec!["-i", "cut.png"], 2, "broken"),
        (vec!["-i", "none.png"], 2, "none.png"),
        (vec!["-i", "nothing-here/"], 2, "nothing-here"),
        (vec!["-i", "image.png", "--mask", "small.png"], 2, "32x32"),
        (vec!["-i", "image.png", "--mask", "black.png"], 2, "marks nothing"),
        (vec!["-i", "image.png", "--outpaint", "up=3"], 2, "left=128"),
        (vec!["-i", "image.png", "--edit"], 2, "8 input channels"),
        (vec!["--mask", "image.png"], 2, "init-image"),
        (vec!["-i", "*.gif"], 2, "no file has such a name"),
        (vec!["--refiner", "none.safetensors"], 2, "--refiner"),
        (vec!["--refiner", "text.png"], 3, "text.png"),
        (vec!["--upscale", "none"], 2, "--upscale none"),
        (vec!["--upscale", "text.png"], 3, "text.png"),
        (vec!["--upscale", "text.png:99"], 2, "16 times"),
        (vec!["--hires", "0.5"], 2, "from 1 to 16"),
        (vec!["--hires", "2", "--hires-upscaler", "nonesuch"], 2, "nonesuch"),
        (vec!["--hires", "2", "--hires-strength", "0.0001", "--hires-steps", "9"], 2, "hires-strength"),
        (vec!["--hires", "2", "--hires-sampler", "nonesuch"], 2, "nonesuch"),
        (vec!["--hires-steps", "3"], 2, "--hires"),
        (vec!["--tiling", "z"], 2, "x, y or both"),
    ] {
        let mut all = vec!["-p", "a cat", "--steps", "1", "--output-dir", "out"];
        all.extend(&arguments);
        let output = sd_gen(folder.path(), &all);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {said}");
        assert!(said.contains(word), "{arguments:?}: {said}");
        assert!(!folder.path().join("out").exists(), "{arguments:?} wrote something");
    }
}
