//! `sd-gen batch` as its users meet it: what it generates, what it survives, and what it says.
#![cfg(feature = "builtin-model")]
#![allow(clippy::expect_used, clippy::panic, reason = "a test that cannot set up its files has failed")]

use std::collections::{BTreeMap, HashMap};
use std::io::Write;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

fn command(folder: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sd-gen"));
    command.args(arguments).current_dir(folder).env_remove("SD_GEN_MODELS");
    command
}

fn sd_gen(folder: &Path, arguments: &[&str]) -> Output {
    command(folder, arguments).output().expect("sd-gen starts")
}

fn done(folder: &Path, arguments: &[&str]) -> Output {
    let output = sd_gen(folder, arguments);
    assert!(output.status.success(), "{arguments:?}: {}", said(&output));
    output
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn spawn(folder: &Path, arguments: &[&str]) -> Child {
    command(folder, arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("sd-gen starts")
}

fn generated(output: &Output) -> usize {
    String::from_utf8_lossy(&output.stdout).lines().count()
}

/// A folder with a file of lines in it.
fn folder(lines: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("folder");
    std::fs::write(folder.path().join("lines.txt"), lines).expect("write");
    folder
}

/// The images of a folder and their bytes; fails for what no run may leave.
fn images(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(folder).expect("folder").flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.ends_with(".png") {
            image::open(entry.path()).unwrap_or_else(|e| panic!("{name} is no image: {e}"));
            found.insert(name, std::fs::read(entry.path()).expect("read"));
        } else {
            assert!(name.ends_with(".jsonl"), "{name} was left behind");
        }
    }
    found
}

fn records(manifest: &Path) -> Vec<serde_json::Value> {
    let text = std::fs::read_to_string(manifest).expect("a manifest");
    text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{line}: {e}"))).collect()
}

const BATCH: [&str; 7] = ["batch", "lines.txt", "--output-dir", "out", "--steps", "1", "-q"];

fn batch(more: &[&'static str]) -> Vec<&'static str> {
    [&BATCH[..], more].concat()
}

/// Lines enough for several batches.
fn many(count: usize) -> String {
    (0..count).map(|i| format!("a {} cat --seed {i}\n", ["red", "green", "blue"][i % 3])).collect()
}

#[test]
fn images_of_one_batch_are_those_of_single_runs() {
    let lines = [
        ("a red apple", "1", "2", "128x128"),
        ("a cat", "7", "3.5", "128x128"),
        ("a cat", "8", "1", "128x128"),
        ("a dog with a hat", "7", "7", "128x128"),
        ("a green heart", "1", "2", "64x128"),
        ("a rocket", "3", "2", "128x128"),
    ];
    let text: String = lines.iter().map(|(p, s, g, size)| format!("{p} --seed {s} --guidance-scale {g} --size {size}\n")).collect();
    let folder = folder(&text);
    done(folder.path(), &["batch", "lines.txt", "--output-dir", "out", "--steps", "2", "--sampler", "euler-a", "-b", "4"]);
    for (prompt, seed, guidance, size) in lines {
        let flags =
            ["-p", prompt, "-s", seed, "-g", guidance, "--size", size, "--steps", "2", "--sampler", "euler-a", "--output-dir", "one"];
        done(folder.path(), &flags);
    }
    let (together, alone) = (images(&folder.path().join("out")), images(&folder.path().join("one")));
    assert_eq!(together.keys().collect::<Vec<_>>(), alone.keys().collect::<Vec<_>>());
    assert!(together == alone, "the files differ");
}

#[test]
fn running_again_generates_only_what_is_missing() {
    let folder = folder("a cat\na dog\na cat\na bird --images 2\n");
    let out = folder.path().join("out");
    assert_eq!(generated(&done(folder.path(), &batch(&[]))), 5);
    let first = images(&out);
    assert_eq!(first.len(), 5, "equal lines have seeds of their own");
    assert_eq!(generated(&done(folder.path(), &batch(&["--threads", "1", "-b", "2"]))), 0);
    let lost = out.join(first.keys().next().expect("an image"));
    std::fs::remove_file(&lost).expect("remove");
    assert_eq!(generated(&done(folder.path(), &batch(&[]))), 1);
    assert!(images(&out) == first, "the lost image is the same again");
    // Other bytes of the same length are noticed by those who ask.
    let length = std::fs::metadata(&lost).expect("there").len();
    std::fs::write(&lost, vec![0; length as usize]).expect("write");
    assert_eq!(generated(&done(folder.path(), &batch(&[]))), 0);
    assert_eq!(generated(&done(folder.path(), &batch(&["--verify", "--overwrite"]))), 1);
    assert!(images(&out) == first);
    // A line that is put before the others takes nobody's seed, and other settings are other images.
    std::fs::write(folder.path().join("lines.txt"), "a fish\na cat\na dog\na cat\na bird --images 2\n").expect("write");
    assert_eq!(generated(&done(folder.path(), &batch(&[]))), 1);
    let mut other = batch(&[]);
    other[5] = "2";
    assert_eq!(generated(&done(folder.path(), &other)), 6);
    assert_eq!(images(&out).len(), 12, "no image was replaced");
}

#[test]
fn a_run_that_is_killed_again_and_again_loses_and_repeats_nothing() {
    let folder = folder(&many(40));
    done(folder.path(), &["batch", "lines.txt", "--output-dir", "whole", "--steps", "1", "-q"]);
    let whole = images(&folder.path().join("whole"));
    assert_eq!(whole.len(), 40);
    let mut kills = 0;
    for delay in [0, 300, 500, 700, 900] {
        let mut child = spawn(folder.path(), &batch(&[]));
        let images = || std::fs::read_dir(folder.path().join("out")).into_iter().flatten().count();
        let (before, start) = (images(), Instant::now());
        // At some moment after it has begun to write.
        while images() <= before + 1 && start.elapsed() < Duration::from_secs(60) && child.try_wait().expect("alive").is_none() {
            std::thread::sleep(Duration::from_millis(5));
        }
        std::thread::sleep(Duration::from_millis(delay / 10));
        kills += usize::from(child.try_wait().expect("alive").is_none());
        child.kill().expect("kill");
        child.wait().expect("exit");
    }
    // The last moment of a power cut: half a record.
    let manifest = folder.path().join("out/sd-gen.manifest.jsonl");
    let mut file = std::fs::File::options().append(true).open(&manifest).expect("a manifest");
    file.write_all(b"{\"key\":\"12").expect("write");
    drop(file);
    done(folder.path(), &batch(&[]));
    assert!(images(&folder.path().join("out")) == whole, "the images are those of an undisturbed run");
    let mut counts: HashMap<String, usize> = HashMap::new();
    for record in records(&manifest) {
        *counts.entry(record["key"].to_string()).or_default() += 1;
    }
    let again: usize = counts.values().map(|count| count - 1).sum();
    assert!(counts.len() == 40 && again <= kills * 32, "{again} were generated twice in {kills} kills");
    assert_eq!(generated(&done(folder.path(), &batch(&[]))), 0);
}

#[test]
fn two_processes_share_the_work() {
    let folder = folder(&many(36));
    let children: Vec<Child> = (0..2).map(|_| spawn(folder.path(), &batch(&["-b", "3"]))).collect();
    let outputs: Vec<Output> = children.into_iter().map(|child| child.wait_with_output().expect("output")).collect();
    assert!(outputs.iter().all(|output| output.status.success()), "{}{}", said(&outputs[0]), said(&outputs[1]));
    assert_eq!(outputs.iter().map(generated).sum::<usize>(), 36);
    assert_eq!(images(&folder.path().join("out")).len(), 36);
    assert_eq!(records(&folder.path().join("out/sd-gen.manifest.jsonl")).len(), 36, "each was generated once");
}

#[test]
fn a_failure_is_one_lines() {
    // Guidance beyond measure, from the noisiest level there is, leaves the range of f16.
    let folder = folder("a cat --seed 1\na dog --seed 2 --guidance-scale 1000\na bird --seed 3\n");
    let most_noise = ["--zero-snr", "--sampler", "euler", "--timestep-spacing", "trailing"];
    let flags = [&["batch", "lines.txt", "--output-dir", "out", "--steps", "3", "--dtype", "f16"][..], &most_noise].concat();
    let output = sd_gen(folder.path(), &flags);
    assert_eq!((output.status.code(), generated(&output)), (Some(1), 2), "{}", said(&output));
    assert!(said(&output).contains("a dog") && said(&output).contains("--retry-failed"), "{}", said(&output));
    let manifest = folder.path().join("out/sd-gen.manifest.jsonl");
    let failed = |records: &[serde_json::Value]| records.iter().filter(|record| record["status"] == "failed").count();
    let first = records(&manifest);
    assert_eq!((first.len(), failed(&first)), (3, 1));
    assert!(first.iter().any(|record| record["reason"].as_str().is_some_and(|reason| reason.contains("not numbers"))));
    // It is not tried again unasked, and still counts.
    let again = sd_gen(folder.path(), &flags);
    assert_eq!((again.status.code(), generated(&again), records(&manifest).len()), (Some(1), 0, 3));
    let retried = sd_gen(folder.path(), &[&flags[..], &["--retry-failed"]].concat());
    assert_eq!((retried.status.code(), failed(&records(&manifest))), (Some(1), 2));
}

#[test]
fn all_errors_are_said_at_once_and_nothing_is_made() {
    let folder =
        folder("a cat\na dog --steps 0\na bird --size 3x3\n# fine\na fish --model nowhere\na fish --output -\na cow --sampler x\n");
    let output = sd_gen(folder.path(), &batch(&[]));
    let said = said(&output);
    assert_eq!(output.status.code(), Some(2), "{said}");
    for line in [2, 3, 5, 6, 7] {
        assert!(said.contains(&format!("lines.txt:{line}:")), "line {line}: {said}");
    }
    assert!(said.contains('^') && !folder.path().join("out").exists());
    let output = sd_gen(folder.path(), &["batch", "missing.txt"]);
    assert_eq!(output.status.code(), Some(2));
}

#[test]
fn standard_input_is_generated_as_it_comes() {
    let folder = folder("");
    let mut child = command(folder.path(), &["batch", "-", "--output-dir", "out", "--steps", "1"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("sd-gen starts");
    let mut input = child.stdin.take().expect("stdin");
    input.write_all(b"a cat --seed 1\n").expect("write");
    let first = folder.path().join("out/a-cat-1.png");
    let start = Instant::now();
    while !first.exists() {
        assert!(start.elapsed() < Duration::from_secs(120), "the first line waits for the last");
        std::thread::sleep(Duration::from_millis(20));
    }
    input.write_all(b"a dog --steps 0\na bird --seed 2\n").expect("write");
    drop(input);
    let output = child.wait_with_output().expect("output");
    // What is wrong with a line is found when it comes.
    assert_eq!((output.status.code(), generated(&output)), (Some(1), 2), "{}", said(&output));
    assert!(said(&output).contains(":2:") && folder.path().join("out/a-bird-2.png").exists());
}

#[test]
fn shards_are_joined_to_the_whole() {
    let folder = folder(&many(10));
    for shard in ["1/3", "2/3", "3/3"] {
        let flags = [&BATCH[..], &["--shard", shard]].concat();
        assert!((3..=4).contains(&generated(&done(folder.path(), &flags))));
        assert_eq!(generated(&done(folder.path(), &flags)), 0);
    }
    let shards = [1, 2, 3].map(|n| format!("out/sd-gen.manifest.{n}-of-3.jsonl"));
    done(folder.path(), &["merge", "out/sd-gen.manifest.jsonl", &shards[0], &shards[1], &shards[2]]);
    assert_eq!(generated(&done(folder.path(), &batch(&[]))), 0, "nothing is missing");
    assert_eq!(images(&folder.path().join("out")).len(), 10);
}

#[test]
fn a_dry_run_says_the_plan_and_makes_nothing() {
    let folder = folder("a cat --images 3\na dog --steps 2\n");
    let output = done(folder.path(), &batch(&["--dry-run"]));
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        ["emoji", "3 images", "1 steps", "2 steps", "4 images to generate", "GB of memory"].iter().all(|word| said.contains(word)),
        "{said}"
    );
    assert!(!folder.path().join("out").exists());
    done(folder.path(), &batch(&[]));
    let output = done(folder.path(), &batch(&["--dry-run"]));
    assert!(String::from_utf8_lossy(&output.stdout).contains("4 are there already"));
    // Standard input is read to its end for it.
    let lines = std::fs::File::open(folder.path().join("lines.txt")).expect("lines");
    let mut streamed = batch(&["--dry-run"]);
    streamed[1] = "-";
    assert_eq!(command(folder.path(), &streamed).stdin(lines).output().expect("sd-gen starts").stdout, output.stdout);
}

#[test]
fn a_sweep_gives_a_sheet_and_a_table() {
    let folder = folder("");
    let flags = ["batch", "-p", "a cat", "-s", "1", "--sweep", "steps=1,2", "--sweep", "guidance-scale=1,2,3", "--output-dir", "out"];
    let name = [&flags[..], &["-o", "{steps}-{guidance}.png"]].concat();
    assert_eq!(generated(&done(folder.path(), &name)), 6);
    let sheet = image::open(folder.path().join("out/sweep-steps-guidance-scale.png")).expect("a sheet");
    assert!(sheet.width() > 3 * 128 && sheet.height() > 2 * 128);
    let table = std::fs::read_to_string(folder.path().join("out/sweep-steps-guidance-scale.csv")).expect("a table");
    assert!(table.starts_with("steps,guidance-scale,prompt,seed,path\n1,1,a cat,1,out/1-1.png\n1,2,a cat,1,out/1-2.png\n"), "{table}");
    assert_eq!(table.lines().count(), 7);
    // A larger sweep generates what is new, and draws the sheet again.
    let mut more = name;
    more[8] = "guidance-scale=1,2,3,4";
    assert_eq!(generated(&done(folder.path(), &more)), 2);
    let table = std::fs::read_to_string(folder.path().join("out/sweep-steps-guidance-scale.csv")).expect("a table");
    assert_eq!(table.lines().count(), 9);
}

#[test]
fn strange_files_are_an_error_or_a_success() {
    let folder = folder("");
    let path = folder.path().join("lines.txt");
    let dry = batch(&["--dry-run"]);
    for (bytes, wanted) in [
        (b"a cat\n\xff\xfe\n".to_vec(), 2),
        ([vec![b'x'; (1 << 20) + 10], b"\na cat\n".to_vec()].concat(), 2),
        ([vec![b'x'; 1_000_000], b"\na cat\n".to_vec()].concat(), 0),
        (b"".to_vec(), 0),
        (b"\n\n# nothing\n".to_vec(), 0),
        (b"a\0cat\n".to_vec(), 2),
    ] {
        std::fs::write(&path, &bytes).expect("write");
        let output = sd_gen(folder.path(), &dry);
        assert_eq!(output.status.code(), Some(wanted), "{:?}: {}", &bytes[..bytes.len().min(20)], said(&output));
    }
    let lines: String = (0..100_000).map(|i| format!("a cat number {i}\n")).collect();
    std::fs::write(&path, lines).expect("write");
    let output = done(folder.path(), &dry);
    assert!(String::from_utf8_lossy(&output.stdout).contains("100000 images to generate"));
}

#[cfg(unix)]
#[test]
fn ctrl_c_keeps_what_was_written() {
    let folder = folder(&many(400));
    let mut child = spawn(folder.path(), &["batch", "lines.txt", "--output-dir", "out", "--steps", "10", "-q"]);
    let out = folder.path().join("out");
    let start = Instant::now();
    while !std::fs::read_dir(&out).is_ok_and(|entries| entries.flatten().any(|e| e.file_name().to_string_lossy().ends_with(".png"))) {
        assert!(start.elapsed() < Duration::from_secs(120) && child.try_wait().expect("alive").is_none(), "nothing was generated");
        std::thread::sleep(Duration::from_millis(10));
    }
    let killed = Command::new("kill").args(["-INT", &child.id().to_string()]).status().expect("kill");
    assert!(killed.success());
    let output = child.wait_with_output().expect("output");
    assert_eq!(output.status.code(), Some(130), "{}", said(&output));
    let kept = images(&out).len();
    assert!((1..400).contains(&kept));
    assert_eq!(records(&out.join("sd-gen.manifest.jsonl")).len(), kept);
}

#[cfg(unix)]
#[test]
fn an_output_folder_that_vanishes_ends_the_run_with_a_sentence() {
    let folder = folder(&many(400));
    let child = spawn(folder.path(), &batch(&[]));
    let out = folder.path().join("out");
    let start = Instant::now();
    while std::fs::read_dir(&out).map_or(0, Iterator::count) < 4 {
        assert!(start.elapsed() < Duration::from_secs(120), "nothing was generated");
        std::thread::sleep(Duration::from_millis(5));
    }
    std::fs::rename(&out, folder.path().join("moved")).expect("rename");
    let output = child.wait_with_output().expect("output");
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    assert!(said(&output).contains("not there any more"), "{}", said(&output));
    assert!(!out.exists(), "it is not made again");
}

/// A file system of `size` at a folder, unmounted when it goes; `None` where this user may not mount.
#[cfg(target_os = "linux")]
struct Mount(std::path::PathBuf);

#[cfg(target_os = "linux")]
impl Mount {
    fn new(at: &Path, size: &str) -> Option<Self> {
        std::fs::create_dir_all(at).expect("folder");
        let options = format!("size={size}");
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(at).stderr(Stdio::null()).status();
        mounted.is_ok_and(|status| status.success()).then(|| Self(at.to_owned()))
    }

    fn again(&self, options: &str) {
        let options = format!("remount,{options}");
        let done = Command::new("mount").args(["-o", &options]).arg(&self.0).status();
        assert!(done.expect("mount").success());
    }
}

#[cfg(target_os = "linux")]
impl Drop for Mount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[cfg(target_os = "linux")]
#[test]
fn a_disk_that_fills_ends_the_run_and_room_lets_it_go_on() {
    let folder = folder(&many(40));
    let Some(disk) = Mount::new(&folder.path().join("out"), "256k") else { return };
    let output = sd_gen(folder.path(), &batch(&[]));
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    assert!(said(&output).contains("the disk is full"), "{}", said(&output));
    let kept = images(&folder.path().join("out"));
    assert!(kept.len() < 40 && records(&folder.path().join("out/sd-gen.manifest.jsonl")).len() >= kept.len());
    disk.again("size=64m");
    done(folder.path(), &batch(&[]));
    let all = images(&folder.path().join("out"));
    assert_eq!(all.len(), 40);
    assert!(kept.iter().all(|(name, bytes)| all.get(name) == Some(bytes)));
}

#[cfg(target_os = "linux")]
#[test]
fn a_disk_that_fills_ends_a_run_without_a_batch_too() {
    let folder = folder("");
    let Some(disk) = Mount::new(&folder.path().join("out"), "256k") else { return };
    let output = sd_gen(folder.path(), &["-p", "a cat", "--images", "60", "--steps", "1", "--output-dir", "out", "-s", "1", "-q"]);
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    // The images that would have met the same are not generated.
    assert!(said(&output).lines().count() == 1 && said(&output).contains("No space left"), "{}", said(&output));
    assert_eq!(images(&disk.0).len(), generated(&output));
}

#[cfg(target_os = "linux")]
#[test]
fn a_read_only_folder_is_bad_input() {
    let folder = folder("a cat\n");
    let Some(disk) = Mount::new(&folder.path().join("out"), "64k") else { return };
    disk.again("ro");
    let output = sd_gen(folder.path(), &batch(&[]));
    assert_eq!(output.status.code(), Some(2), "{}", said(&output));
    assert!(said(&output).contains("cannot be written to"), "{}", said(&output));
}

#[cfg(unix)]
#[test]
fn the_lines_of_a_file_stay_in_the_output_folder_unless_they_are_let_out() {
    let (folder, outside) = (tempfile::tempdir().expect("folder"), tempfile::tempdir().expect("folder"));
    std::fs::create_dir(folder.path().join("out")).expect("folder");
    std::os::unix::fs::symlink(outside.path(), folder.path().join("out/link")).expect("link");
    std::fs::write(outside.path().join("theirs.png"), "theirs").expect("write");
    let run = |lines: &str, arguments: &[&str]| {
        std::fs::write(folder.path().join("lines.txt"), lines).expect("write");
        let mut command = Command::new(env!("CARGO_BIN_EXE_sd-gen"));
        command.args(["batch", "lines.txt", "--no-config", "--steps", "1", "--seed", "1"]).args(arguments);
        let output = command.current_dir(folder.path()).env_remove("SD_GEN_MODELS").output().expect("sd-gen starts");
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let absolute = outside.path().join("new").display().to_string();
    for (lines, arguments) in [
        ("a cat --output ../x.png".to_owned(), &["--output-dir", "out"][..]),
        (format!("a cat --output {absolute}.png"), &[]),
        (format!("a cat --output-dir {absolute}"), &["--output-dir", "out"]),
        ("a cat --output link/x.png".to_owned(), &["--output-dir", "out"]),
        ("--prompt link --output {prompt}/x.png".to_owned(), &["--output-dir", "out"]),
        ("a cat --output new/../../x.png".to_owned(), &["--output-dir", "out"]),
    ] {
        let (code, said) = run(&lines, arguments);
        assert_eq!(code, Some(2), "{lines}: {said}");
        assert!(said.contains("outside of the output folder") && said.contains("--allow-outside"), "{lines}: {said}");
        assert_eq!(std::fs::read_dir(outside.path()).expect("folder").count(), 1, "{lines}");
    }
    let (code, said) = run("a cat --output theirs.png --overwrite", &["--output-dir", "out"]);
    assert!(code == Some(2) && said.contains("--overwrite: a line of a file may not allow it"), "{said}");
    // Inside it a line may write where it likes, and the command line anywhere.
    let (code, said) = run("a cat --output new/x.png\na dog --output-dir out/more", &["--output-dir", "out"]);
    assert!(code == Some(0) && folder.path().join("out/new/x.png").is_file(), "{said}");
    assert!(folder.path().join("out/more/a-dog-1.png").is_file());
    let elsewhere = outside.path().join("o").display().to_string();
    assert_eq!(run("a cat", &["--output-dir", &elsewhere]).0, Some(0));
    let line = format!("a pig --output {}/theirs.png --overwrite", outside.path().display());
    let (code, said) = run(&line, &["--allow-outside"]);
    assert_eq!(code, Some(0), "{said}");
    assert_ne!(std::fs::read(outside.path().join("theirs.png")).expect("read"), b"theirs");
}

#[test]
fn an_output_that_would_steer_a_terminal_is_refused() {
    let folder = tempfile::tempdir().expect("folder");
    for escape in ["\\u001b]0;PWNED\\u0007", "\\u009b2J", "\\u202e", "\\n"] {
        std::fs::write(folder.path().join("lines.jsonl"), format!("{{\"prompt\":\"x\",\"output\":\"x{escape}.png\"}}\n")).expect("write");
        let mut command = Command::new(env!("CARGO_BIN_EXE_sd-gen"));
        command.args(["batch", "lines.jsonl", "--no-config", "--steps", "1"]).current_dir(folder.path());
        let output = command.env_remove("SD_GEN_MODELS").output().expect("sd-gen starts");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(2) && said.contains("holds a control character"), "{said}");
        assert!(!said.contains(['\u{1b}', '\u{9b}', '\u{202e}']), "{said:?}");
    }
}

/// A run under limits of the system, given as a shell says them.
#[cfg(unix)]
fn limited(folder: &Path, limits: &str, arguments: &[&str]) -> Output {
    let mut shell = Command::new("sh");
    shell.args(["-c", &format!("{limits}; exec \"$0\" \"$@\""), env!("CARGO_BIN_EXE_sd-gen")]).args(arguments);
    shell.current_dir(folder).env_remove("SD_GEN_MODELS").output().expect("a shell")
}

#[cfg(target_os = "linux")]
#[test]
fn an_image_that_the_memory_does_not_hold_costs_no_other_and_is_tried_again() {
    const LIMIT: &str = "ulimit -v 900000";
    const LARGE: [&str; 8] = ["--size", "512x512", "--vae-tiling", "off", "--dtype", "f32", "--guidance-scale", "1"];
    let folder = folder(&format!("a cat --seed 1 --size 64x64\na dog --seed 2 {}\na bird --seed 3 --size 64x64\n", LARGE.join(" ")));
    // Not quiet: the reason of each image is said as it fails.
    let flags: Vec<&'static str> = batch(&["--threads", "1"]).into_iter().filter(|flag| *flag != "-q").collect();
    let output = limited(folder.path(), LIMIT, &flags);
    assert_eq!((output.status.code(), generated(&output)), (Some(1), 2), "{}", said(&output));
    assert!(said(&output).contains("an image of 512x512 would take about") && said(&output).contains("tries again"), "{}", said(&output));
    let manifest = folder.path().join("out/sd-gen.manifest.jsonl");
    assert_eq!(records(&manifest).len(), 2, "nothing is wrong with the line");
    assert_eq!(generated(&done(folder.path(), &flags)), 1);
    assert_eq!(records(&manifest).len(), 3);
    let alone = [&["-p", "a dog", "--steps", "1", "--threads", "1", "--output-dir", "one"][..], &LARGE].concat();
    let output = limited(folder.path(), LIMIT, &alone);
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    assert!(said(&output).contains("error: an image of 512x512 would take about"), "{}", said(&output));
}

#[cfg(unix)]
#[test]
fn what_the_machine_refuses_is_recorded_as_no_images_failure() {
    let folder = folder(&many(20));
    let manifest = folder.path().join("out/sd-gen.manifest.jsonl");
    let run = |limits: &str, code: i32, sentence: &str| {
        let output = limited(folder.path(), limits, &batch(&[]));
        assert_eq!(output.status.code(), Some(code), "{limits}: {}", said(&output));
        assert!(said(&output).contains(sentence), "{limits}: {}", said(&output));
        let failed = |record: &serde_json::Value| record["status"] == "failed";
        assert!(!manifest.exists() || !records(&manifest).iter().any(failed), "{limits}");
    };
    // Instructions that are not there, too few files, too small ones.
    run("export SD_GEN_CPU_ISA=nonsense", 2, "SD_GEN_CPU_ISA=nonsense");
    run("ulimit -n 8", 1, "Too many open files");
    run("ulimit -f 1", 1, "too large");
    let there = images(&folder.path().join("out")).len();
    assert_eq!(generated(&done(folder.path(), &batch(&[]))), 20 - there);
}

#[cfg(unix)]
#[test]
fn an_interrupt_is_heard_while_images_are_verified() {
    let folder = folder("a cat --seed 1\n");
    done(folder.path(), &batch(&[]));
    // Stands for some hundred thousand images; it takes no room.
    let large = folder.path().join("out/large.png");
    std::fs::File::create(&large).and_then(|file| file.set_len(200 << 30)).expect("a sparse file");
    let manifest = folder.path().join("out/sd-gen.manifest.jsonl");
    let mut record = records(&manifest).remove(0);
    record["path"] = "large.png".into();
    record["size"] = (200u64 << 30).into();
    std::fs::write(&manifest, format!("{record}\n")).expect("write");
    let mut child = spawn(folder.path(), &batch(&["--verify"]));
    // From when it claims, it listens.
    let (claims, start) = (folder.path().join("out/sd-gen.manifest.jsonl.claims"), Instant::now());
    while !claims.exists() && start.elapsed() < Duration::from_secs(60) {
        std::thread::sleep(Duration::from_millis(10));
    }
    std::thread::sleep(Duration::from_millis(100));
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().expect("kill").success());
    let start = Instant::now();
    while child.try_wait().expect("alive").is_none() {
        assert!(start.elapsed() < Duration::from_secs(20), "it is not heard");
        std::thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(child.wait_with_output().expect("output").status.code(), Some(130));
}

#[test]
fn a_sweep_beyond_measure_is_refused_at_once() {
    let folder = folder("");
    let output = sd_gen(folder.path(), &["batch", "-p", "x", "--sweep", "seed=1..2000", "--sweep", "steps=1..2000", "--dry-run"]);
    assert_eq!(output.status.code(), Some(2), "{}", said(&output));
    assert!(said(&output).contains("4000000 combinations"), "{}", said(&output));
    std::fs::write(folder.path().join("lines.txt"), "a cat --images 2000000\n".repeat(3)).expect("write");
    let output = sd_gen(folder.path(), &["batch", "lines.txt", "--sweep", "steps=1,2", "--dry-run"]);
    assert_eq!(output.status.code(), Some(2), "{}", said(&output));
    assert_eq!(said(&output).matches("split the file").count(), 1, "{}", said(&output));
}

#[cfg(unix)]
#[test]
fn an_image_for_an_output_that_is_closed_is_an_error() {
    let folder = folder("");
    let flags = ["-p", "x", "--steps", "1", "-o", "-"];
    let output = limited(folder.path(), "exec >&-", &flags);
    assert_eq!(output.status.code(), Some(2), "{}", said(&output));
    assert!(said(&output).contains("standard output is closed"), "{}", said(&output));
    assert!(limited(folder.path(), "exec >/dev/null", &flags).status.success());
    #[cfg(target_os = "linux")]
    assert_eq!(limited(folder.path(), "exec >/dev/full", &flags).status.code(), Some(1));
}

#[cfg(target_os = "linux")]
#[test]
fn locks_that_keep_nobody_out_are_told() {
    let folder = folder("a cat\n");
    let source = folder.path().join("noop.c");
    std::fs::write(&source, "int flock(int fd, int op) { (void)fd; (void)op; return 0; }\n").expect("write");
    let compiled = Command::new("cc").args(["-shared", "-fPIC", "-o", "noop.so", "noop.c"]).current_dir(folder.path()).status();
    if !compiled.is_ok_and(|status| status.success()) {
        return;
    }
    let output = limited(folder.path(), "export LD_PRELOAD=$PWD/noop.so", &batch(&[]));
    assert!(output.status.success() && said(&output).contains("has no locks"), "{}", said(&output));
    assert!(!said(&done(folder.path(), &batch(&[]))).contains("locks"));
}
