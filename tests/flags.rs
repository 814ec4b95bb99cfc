//! `docs/flags.md` is what the table of settings says, and the documentation names no flag that does not exist.

#![cfg(all(feature = "hub", feature = "serve"))]
#![allow(clippy::expect_used, reason = "a test that cannot read its files has failed")]

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

#[test]
fn the_table_in_the_documentation_is_current() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/flags.md");
    let table = sd_gen::settings::flag_table();
    if std::env::var_os("SD_GEN_UPDATE_DOCS").is_some() {
        std::fs::write(path, &table).expect("written");
    }
    let written = std::fs::read_to_string(path).expect("docs/flags.md");
    assert!(written == table, "docs/flags.md is not current: SD_GEN_UPDATE_DOCS=1 cargo test --test flags");
}

/// What stands in a text as a flag does, `_` as `-`.
fn flags_in(text: &str) -> BTreeSet<String> {
    let is_of_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
    let words = text.split(|c: char| !is_of_name(c));
    let names = words.filter(|word| word.strip_prefix("--").is_some_and(|name| name.starts_with(|c: char| c.is_ascii_lowercase())));
    names.map(|name| name.replace('_', "-").trim_end_matches('-').to_owned()).collect()
}

#[test]
fn the_documentation_names_flags_that_exist() {
    const OTHERS: &[&str] = &[
        // cargo's
        "--features",
        "--ignored",
        "--nocapture",
        "--open",
        "--path",
        "--release",
        // kohya-ss's letters, which lines of prompts may have
        "--d",
        "--h",
        "--l",
        "--n",
        "--s",
        "--ss",
        "--t",
        "--w",
        // the mistake of an example
        "--stpes",
        // docker's
        "--file",
        "--tag",
        "--target",
    ];
    let completions = Command::new(env!("CARGO_BIN_EXE_sd-gen")).args(["completions", "bash"]).output().expect("sd-gen starts").stdout;
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let read = |path: &Path| std::fs::read_to_string(path).expect("text");
    let mut known = flags_in(&String::from_utf8_lossy(&completions));
    assert!(known.contains("--prompt") && known.contains("--dry-run") && known.contains("--listen"), "{known:?}");
    known.extend(flags_in(&read(&root.join("docs/flags.md"))));
    known.extend(OTHERS.iter().map(|name| (*name).to_owned()));

    let mut pages = vec![root.join("README.md"), root.join("ARCHITECTURE.md")];
    pages.extend(std::fs::read_dir(root.join("docs")).expect("a folder").flatten().map(|entry| entry.path()));
    pages.retain(|path| path.extension().is_some_and(|extension| extension == "md"));
    assert!(pages.len() > 8, "only {} pages were found", pages.len());
    for page in pages {
        let unknown: Vec<String> = flags_in(&read(&page)).difference(&known).cloned().collect();
        assert!(unknown.is_empty(), "{} names flags that do not exist: {unknown:?}", page.display());
    }
}
