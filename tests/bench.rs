//! `sd-gen bench` as its users meet it.
#![cfg(feature = "builtin-model")]
#![allow(clippy::expect_used, reason = "a test that cannot set up its files has failed")]

use std::path::Path;
use std::process::{Command, Output};

fn bench(folder: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sd-gen"));
    command.arg("bench").args(arguments).current_dir(folder).env_remove("SD_GEN_MODELS").output().expect("sd-gen starts")
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Fast enough for a test: the built-in model, small, once.
const SMALL: [&str; 8] = ["--sizes", "64x64", "--repeats", "1", "--warmups", "0", "--steps", "2"];

#[test]
fn every_phase_of_every_combination_is_timed() {
    let folder = tempfile::tempdir().expect("folder");
    let output = bench(folder.path(), &[&SMALL[..], &["--dtypes", "f32,bf16", "--batch-sizes", "1,2", "--json", "-"]].concat());
    assert!(output.status.success(), "{}", said(&output));
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let rows = report["rows"].as_array().expect("rows");
    let combinations: Vec<_> = rows.iter().map(|row| (row["dtype"].as_str().expect("dtype"), row["batch_size"].as_u64())).collect();
    assert_eq!(combinations, [("f32", Some(1)), ("f32", Some(2)), ("bf16", Some(1)), ("bf16", Some(2))]);
    for row in rows {
        assert!(row["error"].is_null(), "{row}");
        for phase in ["open", "load", "text", "step", "decode", "image"] {
            assert!(row["phases"][phase]["median"].as_f64().is_some_and(|seconds| seconds > 0.0), "{phase}: {row}");
        }
        let number = |key: &str| row[key].as_f64().unwrap_or_else(|| unreachable!("{key} in {row}"));
        assert!(number("step_flop") > 1e6 && number("decode_flop") > 1e6 && number("matrix_peak") > 1e6);
        if cfg!(target_os = "linux") {
            assert!(number("peak_host_bytes") > 1e6);
        }
        let (least, most) = if row["dtype"] == "f32" { (0.0, 0.001) } else { (0.0001, 0.2) };
        assert!((least..most).contains(&number("difference")), "{row}");
    }
}

#[test]
fn results_go_to_files_and_are_compared_and_recorded() {
    let folder = tempfile::tempdir().expect("folder");
    let fast = [&SMALL[..], &["--dtypes", "f32", "--skip-correctness"]].concat();
    let first = bench(folder.path(), &[&fast[..], &["--json", "old.json", "--csv", "t.csv", "--markdown", "t.md"]].concat());
    assert!(first.status.success(), "{}", said(&first));
    let table = String::from_utf8_lossy(&first.stdout).into_owned();
    assert!(table.contains("guided step") && table.contains("64x64"), "{table}");
    let read = |name: &str| std::fs::read_to_string(folder.path().join(name)).expect(name);
    assert_eq!(read("t.csv").lines().count(), 2);
    assert!(read("t.md").contains("| emoji | cpu | f32 | 64x64 | 1 |"));

    let second = bench(folder.path(), &[&fast[..], &["--baseline", "old.json", "--record"]].concat());
    assert!(second.status.success(), "{}", said(&second));
    let table = String::from_utf8_lossy(&second.stdout).into_owned();
    assert!(table.contains("Against the baseline:") && table.contains("emoji 64x64 cpu f32: VAE decode"), "{table}");
    let record = folder.path().join(table.lines().last().expect("the folder's path"));
    for name in ["results.json", "table.md", "plot.svg"] {
        assert!(record.join(name).is_file(), "{name} in {}", record.display());
    }
    assert!(std::fs::read_to_string(record.join("plot.svg")).expect("plot").contains("emoji 64x64 cpu f32"));
}

#[test]
fn a_profile_says_where_a_step_and_a_decode_go() {
    let folder = tempfile::tempdir().expect("folder");
    let output = bench(folder.path(), &[&SMALL[..], &["--dtypes", "f32", "--skip-correctness", "--profile", "--json", "p.json"]].concat());
    assert!(output.status.success(), "{}", said(&output));
    let table = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        table.contains("where a guided step of") && table.contains("where a VAE decode of") && table.contains("between the ops"),
        "{table}"
    );
    let report = std::fs::read_to_string(folder.path().join("p.json")).expect("p.json");
    let report: serde_json::Value = serde_json::from_str(&report).expect("JSON");
    let row = &report["rows"][0];
    for (phase, flop) in [("step", "step_flop"), ("decode", "decode_flop")] {
        let ops = row["profiles"][phase]["ops"].as_array().expect("ops");
        let sum = |key: &str| ops.iter().map(|op| op[key].as_f64().unwrap_or(0.0)).sum::<f64>();
        assert!(sum("seconds") <= row["profiles"][phase]["seconds"].as_f64().unwrap_or(0.0), "{phase}");
        // What the ops did is what the model's shape says that they do.
        let counted = row[flop].as_f64().unwrap_or(0.0);
        assert!((sum("flop") / counted - 1.0).abs() < 0.01, "{phase}: {} of {counted}", sum("flop"));
    }
}

#[test]
fn a_combination_that_fails_is_a_row() {
    let folder = tempfile::tempdir().expect("folder");
    std::fs::write(folder.path().join("broken.safetensors"), b"nothing of the kind").expect("write");
    let models = ["--models", "./broken.safetensors,emoji", "--skip-correctness", "--json", "-"];
    let output = bench(folder.path(), &[&SMALL[..], &models].concat());
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert!(report["rows"][0]["error"].as_str().is_some_and(|error| error.contains("broken.safetensors")), "{report}");
    assert!(report["rows"][1]["error"].is_null() && report["rows"][1]["phases"]["image"].is_object(), "{report}");
    assert!(said(&output).contains("1 of 2 combinations failed"), "{}", said(&output));
}

#[test]
fn ways_of_computing_less_are_compared_with_all_of_it() {
    let folder = tempfile::tempdir().expect("folder");
    let reductions = ["--reduction", "--steps 1", "--reduction", "--cache deepcache:1"];
    let output = bench(
        folder.path(),
        &[&["--quality", "--steps", "3", "--sizes", "64x64", "--sheet", "q.png", "--json", "q.json"][..], &reductions].concat(),
    );
    assert!(output.status.success(), "{}", said(&output));
    let report: serde_json::Value = serde_json::from_slice(&std::fs::read(folder.path().join("q.json")).expect("read")).expect("JSON");
    let row = |at: usize| report["rows"][at].clone();
    assert_eq!((row(0)["reduction"].as_str(), row(0)["share"].as_f64(), row(0)["psnr"].is_null()), (Some("all of it"), Some(1.0), true));
    // Another image, and one from which nothing was left out.
    assert!(
        row(1)["psnr"].as_f64().is_some_and(|psnr| psnr < 40.0) && row(1)["ssim"].as_f64().is_some_and(|ssim| ssim < 0.999),
        "{report}"
    );
    assert!(row(2)["psnr"].is_null() && row(2)["ssim"].as_f64().is_some_and(|ssim| ssim > 0.999_999), "{report}");
    // Three rows of four images and their labels.
    let sheet = image::open(folder.path().join("q.png")).expect("an image");
    assert!(sheet.width() > 4 * 64 && sheet.height() > 3 * 64);
}

#[test]
fn bad_usage_is_found_before_any_work() {
    let folder = tempfile::tempdir().expect("folder");
    std::fs::write(folder.path().join("there.json"), b"{}").expect("write");
    for (arguments, wanted) in [
        (&["--sizes", "64"][..], "width and height like"),
        (&["--sizes", "64x65"], "--height 65: must be a multiple of 8"),
        (&["--batch-sizes", "0"], "must be at least 1"),
        (&["--steps", "0"], "--steps 0"),
        (&["--repeats", "0"], "--repeats 0"),
        (&["--threads", "0"], "--threads 0"),
        (&["--random", "sd9"], "sd15, sd21, sdxl"),
        (&["--dtypes", "f12"], "auto, f32, f16 or bf16"),
        (&["--devices", "abacus"], "cuda:N"),
        (&["--models", "./nowhere.safetensors"], "no such file"),
        (&["--json", "-", "--csv", "-"], "only one can go to standard output"),
        (&["--json", "there.json"], "--overwrite"),
        (&["--csv", "nowhere/t.csv"], "there is no folder"),
        (&["--baseline", "there.json"], "--baseline there.json"),
        (&["--quality", "--reduction", "--seed 4"], "are the same for all"),
        (&["--quality", "--reduction", "--lora x.safetensors"], "one and the same model"),
        (&["--quality", "--reduction", "--stepz 4"], "--stepz"),
        (&["--quality", "--devices", "cpu,cpu"], "on one device"),
    ] {
        let output = bench(folder.path(), arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {}", said(&output));
        assert!(said(&output).contains(wanted), "{arguments:?}: {}", said(&output));
        assert!(output.stdout.is_empty(), "{arguments:?}");
    }
}
