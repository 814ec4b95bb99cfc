//! Sweeps as their users meet them: images, contact sheets and tables.
#![cfg(feature = "builtin-model")]
#![allow(clippy::expect_used, reason = "a test that cannot set up its files has failed")]

use std::path::Path;
use std::process::{Command, Output};

fn sd_gen(folder: &Path, arguments: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sd-gen"));
    command.args(arguments.split(' ')).args(["--no-config", "--output-dir", "out"]).current_dir(folder).env_remove("SD_GEN_MODELS");
    command.output().expect("sd-gen starts")
}

fn table(path: &Path) -> Vec<Vec<String>> {
    let mut reader = csv::ReaderBuilder::new().has_headers(false).from_path(path).expect("a table");
    reader.records().map(|record| record.expect("a row").iter().map(str::to_owned).collect()).collect()
}

#[test]
fn every_line_is_generated_with_every_combination() {
    let folder = tempfile::tempdir().expect("folder");
    std::fs::write(folder.path().join("lines.csv"), "prompt,seed\n\"a cat, red\",5\na rocket,\n").expect("write");
    let arguments = "batch lines.csv --sweep cfg=1,4 --sweep steps=1..2";
    let output = sd_gen(folder.path(), arguments);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(String::from_utf8_lossy(&output.stdout).lines().count(), 8);

    let out = folder.path().join("out");
    let rows = table(&out.join("sweep-guidance-scale-steps.csv"));
    assert_eq!(rows[0], ["guidance-scale", "steps", "prompt", "seed", "path"]);
    let combinations: Vec<_> = rows[1..].iter().map(|row| row[..3].join(" ")).collect();
    let of = |prompt: &str| ["1 1", "1 2", "4 1", "4 2"].map(|values| format!("{values} {prompt}"));
    assert_eq!(combinations, [of("a cat, red"), of("a rocket")].concat());
    for row in &rows[1..] {
        assert_eq!(row[2] == "a cat, red", row[3] == "5", "{row:?}");
        assert!(folder.path().join(&row[4]).is_file(), "{row:?}");
        // The image says itself what the table says of it.
        let text = String::from_utf8_lossy(&std::fs::read(folder.path().join(&row[4])).expect("read")).into_owned();
        assert!(text.contains(&format!("Steps: {}", row[1])) && text.contains(&format!("Seed: {}", row[3])), "{row:?}");
    }
    // One seed for all combinations of a line: guidance alone makes the difference.
    assert!(rows[5..].iter().all(|row| row[3] == rows[5][3]));

    // A line a page; the same run again draws the same sheets in the same place, and takes nobody's file.
    let pages = || -> Vec<Vec<u8>> {
        let names = ["001", "002"].map(|page| out.join(format!("sweep-guidance-scale-steps-{page}.png")));
        names.map(|path| std::fs::read(path).expect("a sheet")).to_vec()
    };
    let (first, count) = (pages(), std::fs::read_dir(&out).expect("folder").count());
    assert!(sd_gen(folder.path(), arguments).status.success());
    assert_eq!(pages(), first);
    assert_eq!(std::fs::read_dir(&out).expect("folder").count(), count);
}

#[test]
fn a_sweep_needs_no_file_and_replaces_no_file_of_others() {
    let folder = tempfile::tempdir().expect("folder");
    let out = folder.path().join("out");
    std::fs::create_dir(&out).expect("folder");
    std::fs::write(out.join("sweep-prompt.png"), "mine").expect("write");
    let output = sd_gen(folder.path(), "batch --sweep prompt=dog,cat --steps 1 --seed 1");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(std::fs::read(out.join("sweep-prompt.png")).expect("read"), b"mine");
    let sheet = image::open(out.join("sweep-prompt-2.png")).expect("a sheet").to_rgb8();
    let generated = image::open(out.join("dog-1.png")).expect("an image").to_rgb8();
    // Images that fit are drawn as they are.
    let (across, down) = (sheet.width() - generated.width(), sheet.height() - generated.height());
    let is_at = |x, y| image::imageops::crop_imm(&sheet, x, y, generated.width(), generated.height()).to_image() == generated;
    assert!((0..=across).any(|x| (0..=down).any(|y| sheet.get_pixel(x, y) == generated.get_pixel(0, 0) && is_at(x, y))));
    assert_eq!(table(&out.join("sweep-prompt.csv"))[1][..2], ["dog", "1"]);
}

#[test]
fn a_sweep_in_parts_is_drawn_as_the_whole_once_they_are_joined() {
    let (whole, parts) = (tempfile::tempdir().expect("folder"), tempfile::tempdir().expect("folder"));
    let arguments = "batch -p cat -s 1 --images 3 --sweep steps=1,2";
    let sheet = |folder: &Path, part: &str| image::open(folder.join(format!("out/sweep-steps{part}.png"))).expect("a sheet").to_rgb8();
    assert!(sd_gen(whole.path(), arguments).status.success());
    let drawn = sheet(whole.path(), "");

    let shards = ["1", "2"].map(|part| {
        assert!(sd_gen(parts.path(), &format!("{arguments} --shard {part}/2")).status.success());
        sheet(parts.path(), &format!("-{part}-of-2"))
    });
    assert!(shards.iter().all(|shard| shard.dimensions() == drawn.dimensions() && *shard != drawn));
    let is_there = |(x, y, pixel): (u32, u32, &image::Rgb<u8>)| shards.iter().any(|shard| shard.get_pixel(x, y) == pixel);
    assert!(drawn.enumerate_pixels().all(is_there), "each part has its images where they are in the whole");

    let manifest = |part: &str| format!("out/sd-gen.manifest{part}.jsonl");
    let merge = Command::new(env!("CARGO_BIN_EXE_sd-gen"))
        .args(["merge", &manifest(""), &manifest(".1-of-2"), &manifest(".2-of-2")])
        .current_dir(parts.path())
        .output();
    assert!(merge.expect("sd-gen starts").status.success());
    let joined = sd_gen(parts.path(), arguments);
    assert!(joined.status.success() && joined.stdout.is_empty(), "{}", String::from_utf8_lossy(&joined.stdout));
    assert_eq!(sheet(parts.path(), ""), drawn);
}

#[test]
fn a_sweep_over_standard_input_is_drawn_when_it_has_ended() {
    let folder = tempfile::tempdir().expect("folder");
    std::fs::write(folder.path().join("lines.txt"), "dog --seed 1\ncat --seed 2\n").expect("write");
    let with = |file: &str, out: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_sd-gen"));
        command.args(["batch", file, "--sweep", "steps=1,2", "--no-config", "--output-dir", out, "-o", "{prompt}-{steps}.png"]);
        let input = std::fs::File::open(folder.path().join("lines.txt")).expect("lines");
        let output = command.current_dir(folder.path()).env_remove("SD_GEN_MODELS").stdin(input).output().expect("sd-gen starts");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let read = |name: &str| std::fs::read(folder.path().join(out).join(name)).expect(name);
        (read("sweep-steps.png"), String::from_utf8_lossy(&read("sweep-steps.csv")).replace(&format!("{out}/"), ""))
    };
    assert_eq!(with("-", "streamed"), with("lines.txt", "read"));
}

#[test]
fn a_wrong_sweep_is_said_before_any_work() {
    let folder = tempfile::tempdir().expect("folder");
    for (arguments, said) in [
        ("batch -p x --sweep steps=1,abc", "--steps \"abc\": give a whole number such as 20"),
        ("batch -p x --sweep stepz=1", "did you mean \"steps\"?"),
        ("batch -p x --sweep width=64,100", "(with --sweep width=100)"),
        ("batch -p x --sweep width=64 --sweep size=64x64", "does not go with --sweep width"),
        ("batch --sweep steps=1", "has no prompt"),
        ("batch -p x", "FILE"),
    ] {
        let output = sd_gen(folder.path(), arguments);
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{arguments}: {error}");
        assert!(error.contains(said), "{arguments}: {error}");
    }
    assert_eq!(std::fs::read_dir(folder.path()).expect("folder").count(), 0);
}
