//! The program as its users meet it: what it writes, where, and what it says.
#![cfg(feature = "builtin-model")]
#![allow(clippy::expect_used, reason = "a test that cannot set up its files has failed")]

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

fn command(folder: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sd-gen"));
    command.args(arguments).current_dir(folder).env_remove("SD_GEN_MODELS");
    command
}

fn sd_gen(folder: &Path, arguments: &[&str]) -> Output {
    let output = command(folder, arguments).output().expect("sd-gen starts");
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    output
}

/// The paths on standard output, one a line.
fn paths(folder: &Path, output: &Output) -> Vec<PathBuf> {
    String::from_utf8_lossy(&output.stdout).lines().map(|line| folder.join(line)).collect()
}

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().expect("folder")
}

fn texts(path: &Path) -> Vec<(String, String)> {
    let file = std::io::BufReader::new(std::fs::File::open(path).expect("open"));
    let reader = png::Decoder::new(file).read_info().expect("a PNG");
    let info = reader.info();
    let latin = info.uncompressed_latin1_text.iter().map(|chunk| (chunk.keyword.clone(), chunk.text.clone()));
    let utf8 = info.utf8_text.iter().map(|chunk| (chunk.keyword.clone(), chunk.get_text().expect("text")));
    latin.chain(utf8).collect()
}

#[test]
fn the_same_request_gives_the_same_file_and_overwrites_nothing() {
    let folder = folder();
    let arguments = ["--prompt", "a red apple", "--seed", "1", "--steps", "3"];
    let (first, second) = (sd_gen(folder.path(), &arguments), sd_gen(folder.path(), &arguments));
    let (first, second) = (paths(folder.path(), &first), paths(folder.path(), &second));
    assert_eq!(first, [folder.path().join("a-red-apple-1.png")]);
    assert_eq!(second, [folder.path().join("a-red-apple-1-2.png")]);
    assert_eq!(std::fs::read(&first[0]).expect("read"), std::fs::read(&second[0]).expect("read"));
    let image = image::open(&first[0]).expect("an image").to_rgb8();
    assert_eq!(image.dimensions(), (128, 128));
    let other = paths(folder.path(), &sd_gen(folder.path(), &["--prompt", "a red apple", "--seed", "2", "--steps", "3"]));
    assert_ne!(image::open(&other[0]).expect("an image").to_rgb8(), image);
}

#[test]
fn a_red_apple_is_red_and_a_green_heart_is_green() {
    let folder = folder();
    let colour = |prompt: &str| {
        let output = sd_gen(folder.path(), &["--prompt", prompt, "--seed", "1"]);
        let image = image::open(&paths(folder.path(), &output)[0]).expect("an image").to_rgb8();
        let middle = image::imageops::crop_imm(&image, 40, 40, 48, 48).to_image();
        let sum = middle.pixels().fold([0u32; 3], |sum, pixel| [0, 1, 2].map(|i| sum[i] + u32::from(pixel[i])));
        sum.map(|channel| channel / (48 * 48))
    };
    let [red, green, blue] = colour("a red apple");
    assert!(red > green + 40 && red > blue + 40, "a red apple is {red} {green} {blue}");
    let [red, green, blue] = colour("a green heart");
    assert!(green > red + 40 && green > blue + 20, "a green heart is {red} {green} {blue}");
}

#[test]
fn a_run_never_overwrites_its_own_images() {
    let folder = folder();
    let arguments = ["-p", "a cat", "--steps", "1", "--images", "3", "-o", "{prompt}.png", "--overwrite"];
    for _ in 0..2 {
        let written = paths(folder.path(), &sd_gen(folder.path(), &arguments));
        assert_eq!(written, ["a-cat.png", "a-cat-2.png", "a-cat-3.png"].map(|name| folder.path().join(name)));
    }
    assert_eq!(std::fs::read_dir(folder.path()).expect("folder").count(), 3);
}

#[cfg(unix)]
#[test]
fn a_reader_that_goes_away_costs_no_image_and_odd_folders_work() {
    use std::os::unix::ffi::OsStringExt;
    let folder = folder();
    let mut child = command(folder.path(), &["-p", "a cat", "-p", "a dog", "--steps", "1", "-s", "1"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("sd-gen starts");
    drop(child.stdout.take());
    assert!(child.wait().expect("exit").success());
    assert!(folder.path().join("a-cat-1.png").is_file() && folder.path().join("a-dog-1.png").is_file());
    let odd = folder.path().join(std::ffi::OsString::from_vec(b"d\xff".to_vec()));
    let status =
        command(folder.path(), &["-p", "a cat", "--steps", "1", "-s", "1", "--progress", "json", "--output-dir"]).arg(&odd).status();
    assert!(status.expect("sd-gen starts").success());
    assert!(odd.join("a-cat-1.png").is_file());
}

#[test]
fn a_pickle_in_the_models_folder_is_not_passed_over() {
    let folder = folder();
    std::fs::create_dir(folder.path().join("models")).expect("folder");
    std::fs::write(folder.path().join("models/v1.ckpt"), b"PK").expect("write");
    for arguments in [&["-p", "x"][..], &["-p", "x", "-m", "v1"]] {
        let refused = command(folder.path(), arguments).output().expect("sd-gen starts");
        assert_eq!(refused.status.code(), Some(3));
        assert!(String::from_utf8_lossy(&refused.stderr).contains("pickle"));
    }
}

#[test]
fn images_remember_their_request() {
    let folder = folder();
    let arguments = [
        "-p",
        "grüne Äpfel — 東京",
        "-n",
        "blurry: bad, worse",
        "-s",
        "5",
        "--steps",
        "2",
        "--sampler",
        "dpmpp_2m_karras",
        "-g",
        "3.5",
        "--dtype",
        "f32",
    ];
    let output = sd_gen(folder.path(), &arguments);
    let [(keyword, text)] = texts(&paths(folder.path(), &output)[0]).try_into().expect("one text");
    assert_eq!(keyword, "parameters");
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines[..2], ["grüne Äpfel — 東京", "Negative prompt: blurry: bad, worse"]);
    let wanted = "Steps: 2, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 3.5, Seed: 5, Size: 128x128, Model: emoji, Prediction: epsilon, Timestep spacing: leading, RNG: CPU, Version: sd-gen ";
    assert!(lines[2].starts_with(wanted), "{}", lines[2]);
}

#[test]
fn templates_batches_and_latents() {
    let folder = folder();
    let arguments = ["-p", "a cat", "-s", "9", "--steps", "2", "--images", "3", "-b", "2", "-o", "{prompt}/{index}-{seed}.png"];
    let output = sd_gen(folder.path(), &[&arguments[..], &["--save-latents", "latents.safetensors", "--output-dir", "out"]].concat());
    let expected = ["out/a-cat/0-9.png", "out/a-cat/1-10.png", "out/a-cat/2-11.png"].map(|name| folder.path().join(name));
    assert_eq!(paths(folder.path(), &output), expected);
    // Image i of a batch is the image of seed + i.
    sd_gen(folder.path(), &["-p", "a cat", "-s", "11", "--steps", "2", "-o", "alone.png"]);
    let open = |path: &Path| image::open(path).expect("an image").to_rgb8();
    assert_eq!(open(&folder.path().join("alone.png")), open(&expected[2]));
    let bytes = std::fs::read(folder.path().join("latents.safetensors")).expect("read");
    let tensors = safetensors::SafeTensors::deserialize(&bytes).expect("safetensors");
    assert_eq!(tensors.tensor("latents").expect("latents").shape(), [3, 4, 16, 16]);
}

#[test]
fn standard_input_and_standard_output() {
    let folder = folder();
    let mut child = command(folder.path(), &["-p", "-", "-o", "-", "-s", "1", "--steps", "2"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("sd-gen starts");
    child.stdin.take().expect("stdin").write_all(b"a red apple\n").expect("write");
    let output = child.wait_with_output().expect("output");
    assert!(output.status.success());
    assert!(output.stdout.starts_with(b"\x89PNG"));
    sd_gen(folder.path(), &["-p", "a red apple", "-o", "file.png", "-s", "1", "--steps", "2"]);
    assert_eq!(output.stdout, std::fs::read(folder.path().join("file.png")).expect("read"));
}

#[test]
fn long_prompts_name_what_is_left_out() {
    let folder = folder();
    let prompt = format!("{} zebra", "a cat, ".repeat(40));
    let plain = ["--prompt-syntax", "plain", "-s", "1", "--steps", "1", "-p", &prompt, "-o"];
    let output = sd_gen(folder.path(), &[&plain[..], &["cat.png"]].concat());
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("warning") && said.contains("left out"), "{said}");
    let quiet = sd_gen(folder.path(), &[&plain[..], &["quiet.png", "-q"]].concat());
    assert_eq!(String::from_utf8_lossy(&quiet.stderr), "");
    // Other syntaxes take as many chunks as it needs.
    let whole = sd_gen(folder.path(), &["-s", "1", "--steps", "1", "-p", &prompt, "-o", "whole.png"]);
    assert!(!String::from_utf8_lossy(&whole.stderr).contains("left out"));
}

#[test]
fn both_layouts_generate_the_same_image() {
    let folder = folder();
    let generate = |model: &str, name: &str| {
        sd_gen(folder.path(), &["-m", model, "-p", "a cat", "-s", "1", "--steps", "2", "--dtype", "f32", "-o", name]);
        image::open(folder.path().join(name)).expect("an image").to_rgb8()
    };
    sd_gen(folder.path(), &["convert", "emoji", "bf16", "--dtype", "bf16"]);
    assert!(folder.path().join("bf16/model_index.json").is_file());
    assert_ne!(generate("emoji", "whole.png"), generate("./bf16", "rounded.png"));
    // The emoji model's vocabulary and defaults are its own, and travel with it.
    sd_gen(folder.path(), &["convert", "emoji", "emoji.safetensors"]);
    assert_eq!(generate("./emoji.safetensors", "one-file.png"), generate("emoji", "again.png"));
    sd_gen(folder.path(), &["convert", "./emoji.safetensors", "back"]);
    assert_eq!(generate("./back", "back.png"), generate("emoji", "once-more.png"));
    let twice = command(folder.path(), &["convert", "emoji", "back"]).output().expect("sd-gen starts");
    assert_eq!(twice.status.code(), Some(2), "an existing model is not overwritten");
}

#[test]
fn tensors_that_are_not_used_are_counted_and_named_when_asked_for() {
    let folder = folder();
    sd_gen(folder.path(), &["convert", "emoji", "whole.safetensors"]);
    let bytes = std::fs::read(folder.path().join("whole.safetensors")).expect("a model");
    let (_, metadata) = safetensors::SafeTensors::read_metadata(&bytes).expect("a header");
    let file = safetensors::SafeTensors::deserialize(&bytes).expect("tensors");
    let mut tensors = file.tensors();
    for name in ["extra.one", "extra.two", "extra.three"] {
        tensors.push((name.to_owned(), safetensors::tensor::TensorView::new(safetensors::Dtype::F32, vec![1], &[0; 4]).expect("a tensor")));
    }
    let more = safetensors::serialize(tensors, metadata.metadata().clone()).expect("a file");
    std::fs::write(folder.path().join("more.safetensors"), more).expect("written");
    let said = |flags: &[&str]| {
        let arguments = [&["-m", "./more.safetensors", "-p", "a cat", "--steps", "1", "-o", "-"], flags].concat();
        String::from_utf8_lossy(&sd_gen(folder.path(), &arguments).stderr).into_owned()
    };
    let brief = said(&[]);
    assert!(brief.contains("does not use \"extra.one\" and 2 more (-v names them)") && !brief.contains("extra.two"), "{brief}");
    let long = said(&["-v"]);
    assert!(["extra.one", "extra.two", "extra.three"].iter().all(|name| long.contains(name)), "{long}");
}

#[test]
fn a_model_is_found_by_its_name() {
    let folder = folder();
    sd_gen(folder.path(), &["convert", "emoji", "models/my-emoji-model"]);
    sd_gen(folder.path(), &["-m", "MY-EMO", "-p", "a cat", "--steps", "1", "-o", "by-prefix.png"]);
    sd_gen(folder.path(), &["-m", "models", "-p", "a cat", "--steps", "1", "-o", "by-folder.png"]);
    let output = sd_gen(folder.path(), &["-p", "a cat", "--steps", "1", "-o", "the-only-one.png"]);
    assert!(output.status.success());
    sd_gen(folder.path(), &["convert", "emoji", "models/my-other-model"]);
    let refused = command(folder.path(), &["-m", "my", "-p", "x"]).output().expect("sd-gen starts");
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(2));
    assert!(said.contains("my-emoji-model") && said.contains("my-other-model"), "{said}");
}

#[test]
fn help_names_every_flag_of_the_readme() {
    let helps = [&["--help"][..], &["bench", "--help"], &["batch", "--help"], &["preprocess", "--help"]]
        .map(|arguments| sd_gen(Path::new("."), arguments).stdout);
    let help = String::from_utf8_lossy(&helps.concat()).into_owned();
    let readme = include_str!("../README.md");
    let flags: std::collections::BTreeSet<&str> = readme
        .split(|c: char| c.is_whitespace() || "`,;)".contains(c))
        .filter(|word| word.starts_with("--") && word.len() > 3 && !["--release", "--path", "--features", "--open"].contains(word))
        .collect();
    assert!(flags.len() > 20);
    let missing: Vec<&&str> = flags.iter().filter(|flag| !help.contains(**flag)).collect();
    assert!(missing.is_empty(), "the README speaks of {missing:?}");
}

#[cfg(not(any(feature = "cuda", feature = "metal")))]
#[test]
fn the_doctor_finds_this_machine_well_and_generates_on_it_in_every_dtype() {
    let folder = folder();
    let report = sd_gen(folder.path(), &["doctor", "--json"]);
    let report: Vec<serde_json::Value> = serde_json::from_slice(&report.stdout).expect("JSON");
    let states =
        |what: &str| -> Vec<&str> { report.iter().filter(|finding| finding["what"] == what).filter_map(|f| f["state"].as_str()).collect() };
    assert_eq!(states("self-test"), ["ok"; 3], "{report:?}");
    assert_eq!(states("models"), ["note"]);
    let models = report.iter().find(|finding| finding["what"] == "models").expect("said");
    assert!(models["mend"].as_str().is_some_and(|mend| mend.contains("put a .safetensors file")), "{models}");
    assert_eq!(std::fs::read_dir(folder.path()).expect("read").count(), 0);
    let quick = sd_gen(folder.path(), &["doctor", "--no-self-test"]);
    let text = String::from_utf8_lossy(&quick.stdout);
    assert!(text.contains("processor") && !text.contains("self-test"), "{text}");
    // What was forced upon it and is not there is a fault, told with what mends it.
    let forced = command(folder.path(), &["doctor", "--no-self-test"]).env("SD_GEN_CPU_ISA", "avx1024").output().expect("sd-gen starts");
    let text = String::from_utf8_lossy(&forced.stdout);
    assert!(forced.status.code() == Some(1) && text.contains("fault") && text.contains("unset SD_GEN_CPU_ISA"), "{text}");
}
