//! The configuration files as their users meet them.
#![cfg(all(unix, feature = "builtin-model"))]
#![allow(clippy::expect_used, reason = "a test that cannot set up its files has failed")]

use std::path::Path;
use std::process::{Command, Output};

fn sd_gen(folder: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sd-gen"));
    command.args(arguments).current_dir(folder).env_remove("SD_GEN_MODELS").env("XDG_CONFIG_HOME", folder.join("config"));
    command.output().expect("sd-gen starts")
}

fn write(folder: &Path, name: &str, text: &str) {
    let path = folder.join(name);
    std::fs::create_dir_all(path.parent().expect("a folder")).expect("folder");
    std::fs::write(path, text).expect("write");
}

#[test]
fn flags_come_from_both_files_and_the_command_line_beats_them() {
    let folder = tempfile::tempdir().expect("folder");
    write(folder.path(), "config/sd-gen/config.toml", "seed = 1\nsteps = 1\noutput-dir = \"elsewhere\"\n");
    write(folder.path(), "sd-gen.toml", "seed = 2\noutput = \"{prompt}-{seed}-{steps}.png\"\n");
    let output = sd_gen(folder.path(), &["-p", "a cat", "--seed", "3", "-v"]);
    let (said, paths) = (String::from_utf8_lossy(&output.stderr), String::from_utf8_lossy(&output.stdout));
    assert!(output.status.success(), "{said}");
    assert_eq!(paths.trim(), "elsewhere/a-cat-3-1.png");
    let file = folder.path().join("config/sd-gen/config.toml");
    let remark = format!(
        "read ./sd-gen.toml\nread {}\nwhich adds --steps=1 --output={{prompt}}-{{seed}}-{{steps}}.png --output-dir=elsewhere\n",
        file.display()
    );
    assert!(said.starts_with(&remark), "{said}");
    let without = sd_gen(folder.path(), &["-p", "a cat", "--seed", "3", "--steps", "1", "--no-config"]);
    assert_eq!(String::from_utf8_lossy(&without.stdout).trim(), "a-cat-3.png");
}

#[test]
fn a_file_asks_for_events_as_the_command_line_does() {
    let folder = tempfile::tempdir().expect("folder");
    write(folder.path(), "sd-gen.toml", "progress = \"json\"\noffline = true\n");
    let events = |arguments: &[&str]| {
        let said = String::from_utf8_lossy(&sd_gen(folder.path(), arguments).stderr).into_owned();
        said.lines().filter(|line| serde_json::from_str::<serde_json::Value>(line).is_ok_and(|event| event["event"].is_string())).count()
    };
    let generate = ["-p", "a cat", "--seed", "3", "--steps", "1", "-o", "{index}.png"];
    assert!(events(&generate) > 3);
    assert_eq!(events(&[&generate[..], &["--progress", "none"]].concat()), 0);
}

#[test]
fn a_mistake_in_a_file_stops_before_any_work() {
    let folder = tempfile::tempdir().expect("folder");
    write(folder.path(), "sd-gen.toml", "steps = 1\noutput-dir = \"/tmp\"\n");
    let output = sd_gen(folder.path(), &["-p", "a cat"]);
    assert_eq!(output.status.code(), Some(2));
    assert_eq!(
        String::from_utf8_lossy(&output.stderr),
        "error: ./sd-gen.toml:2:14: --output-dir: \"/tmp\" leaves the folder of ./sd-gen.toml; give it on the command line, or in the \
         configuration file of the platform's folder\n  2 | output-dir = \"/tmp\"\n    |              ^^^^^^\n"
    );
    assert_eq!(std::fs::read_dir(folder.path()).expect("folder").count(), 1);
}

#[test]
fn a_folders_file_writes_nothing_outside_of_its_folder_whatever_its_templates_become() {
    let (folder, outside) = (tempfile::tempdir().expect("folder"), tempfile::tempdir().expect("folder"));
    std::os::unix::fs::symlink(outside.path(), folder.path().join("evil")).expect("link");
    std::os::unix::fs::symlink(outside.path(), folder.path().join("64")).expect("link");
    write(folder.path(), "lines.txt", "a cat\n");
    for output in ["{negative}/{seed}.png", "{width}/{seed}.png", "{negative}/new/{seed}.png"] {
        write(folder.path(), "sd-gen.toml", &format!("output = \"{output}\"\nnegative-prompt = \"evil\"\nsize = \"64x64\"\nsteps = 1\n"));
        for arguments in [&["-p", "a cat"][..], &["batch", "lines.txt"], &["batch", "-p", "a cat", "--sweep", "seed=1,2"]] {
            let run = sd_gen(folder.path(), arguments);
            let said = String::from_utf8_lossy(&run.stderr);
            assert_eq!(run.status.code(), Some(2), "{output} {arguments:?}: {said}");
            assert!(said.contains("leaves the folder of ./sd-gen.toml"), "{said}");
            assert_eq!(std::fs::read_dir(outside.path()).expect("folder").count(), 0, "{output} {arguments:?}");
        }
    }
    // A link that stays inside is a folder like another, and what was typed is the user's own.
    std::fs::remove_file(folder.path().join("64")).expect("removed");
    std::os::unix::fs::symlink("real", folder.path().join("64")).expect("link");
    std::fs::create_dir(folder.path().join("real")).expect("folder");
    write(folder.path(), "sd-gen.toml", "output = \"{width}/{seed}.png\"\nsize = \"64x64\"\nsteps = 1\n");
    assert!(sd_gen(folder.path(), &["-p", "a cat", "--seed", "5"]).status.success());
    assert!(folder.path().join("real/5.png").is_file());
    assert!(sd_gen(folder.path(), &["-p", "a cat", "--output", "evil/{seed}.png"]).status.success());
    assert_eq!(std::fs::read_dir(outside.path()).expect("folder").count(), 1);
}

#[test]
fn a_folders_file_can_forbid_the_network_and_not_allow_it() {
    let folder = tempfile::tempdir().expect("folder");
    write(folder.path(), "config/sd-gen/config.toml", "offline = true\n");
    let said = |text: &str| {
        write(folder.path(), "sd-gen.toml", text);
        let run = sd_gen(folder.path(), &["-p", "x", "-m", "org/name"]);
        (run.status.code(), String::from_utf8_lossy(&run.stderr).into_owned())
    };
    let (code, sentence) = said("offline = false\n");
    assert!(code == Some(2) && sentence.contains("can forbid the network and not allow it"), "{sentence}");
    let (code, sentence) = said("steps = 1\n");
    assert!(code == Some(3) && sentence.contains("--offline forbids"), "{sentence}");
}
