//! What the program says, word for word: every block of `tests/data/messages/*.txt` is a command and what came of it.
//!
//! A new case is a line `$ sd-gen …` in one of these files, which run in a copy of `tests/data/messages/files`. After a wording was
//! changed, `SD_GEN_UPDATE_MESSAGES=1 cargo test --test messages` writes the new ones, and the difference is what is reviewed.
#![cfg(all(unix, feature = "builtin-model", feature = "hub", feature = "serve"))]
#![allow(clippy::expect_used, reason = "a test that cannot set up its files has failed")]

use std::path::{Path, PathBuf};
use std::process::Command;

const PROMPT: &str = "$ sd-gen ";

fn data() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/messages")
}

/// A folder of its own for a command, with the files that the commands name.
fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    for entry in std::fs::read_dir(data().join("files")).expect("files").flatten() {
        std::fs::copy(entry.path(), folder.path().join(entry.file_name())).expect("a copy");
    }
    folder
}

/// The block of a command as it is now.
fn block(command: &str) -> String {
    let folder = folder();
    let arguments = shlex::split(command).expect("quoted as in a shell");
    let mut child = Command::new(env!("CARGO_BIN_EXE_sd-gen"));
    for variable in ["SD_GEN_MODELS", "SD_GEN_LOG", "HF_HOME", "HF_HUB_CACHE", "HF_TOKEN", "NO_COLOR", "CLICOLOR_FORCE"] {
        child.env_remove(variable);
    }
    let home = folder.path().join("home");
    child.env("HOME", &home).env("XDG_CONFIG_HOME", &home).env("COLUMNS", "100").env("RUST_BACKTRACE", "0");
    let output = child.args(&arguments).current_dir(folder.path()).output().expect("sd-gen starts");
    let mut block = format!("{PROMPT}{command}\n");
    for text in [&output.stdout, &output.stderr] {
        block.extend(String::from_utf8_lossy(text).lines().map(|line| format!("{}\n", stable(line).trim_end())));
    }
    match output.status.code() {
        Some(0) => {}
        Some(code) => block.push_str(&format!("[exit {code}]\n")),
        None => block.push_str("[killed]\n"),
    }
    block
}

/// A line without what depends on the machine, its speed and the version.
fn stable(line: &str) -> String {
    let line = line.replace(env!("CARGO_PKG_VERSION"), "VERSION");
    for (start, instead) in [("computing on ", "DEVICE"), ("seconds=", "SECONDS")] {
        if let Some((before, _)) = line.split_once(start) {
            return format!("{before}{start}{instead}");
        }
    }
    line
}

#[test]
fn the_program_says_what_is_written_down() {
    let update = std::env::var_os("SD_GEN_UPDATE_MESSAGES").is_some();
    let mut files: Vec<PathBuf> = std::fs::read_dir(data()).expect("a folder").flatten().map(|entry| entry.path()).collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "txt"));
    files.sort();
    let (mut commands, mut wrong) = (0, Vec::new());
    for path in files {
        let written = std::fs::read_to_string(&path).expect("text");
        let mut blocks = Vec::new();
        for old in written.split(PROMPT).skip(1) {
            let command = old.lines().next().unwrap_or_default();
            let (old, new) = (format!("{PROMPT}{}", old.trim_end()), block(command));
            commands += 1;
            if old != new.trim_end() {
                wrong.push(format!("{}:\nwritten down:\n{old}\nnow:\n{new}", path.display()));
            }
            blocks.push(new);
        }
        if update {
            std::fs::write(&path, blocks.join("\n")).expect("written");
        }
    }
    assert!(commands > 60, "only {commands} commands were found");
    assert!(update || wrong.is_empty(), "{}\nSD_GEN_UPDATE_MESSAGES=1 cargo test --test messages", wrong.join("\n"));
}
