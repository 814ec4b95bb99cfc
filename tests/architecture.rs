//! The direction of the dependencies and the places of what is confined, read from the sources.
//!
//! Every `crate::`, `super::` and `sd_gen::` path of a file is resolved, whether a `use` line or an expression names it, and held
//! against the row of its module. Comments and test code are left out.

#![allow(clippy::expect_used, reason = "a test that cannot read the sources has failed")]

use std::collections::HashSet;
use std::path::Path;

/// What each module may name of the crate, itself apart. A module without a row is an error: add one.
const MAY_USE: &[(&str, &[&str])] = &[
    ("main", &["cli"]),
    // The map of the modules.
    ("lib", &["*"]),
    ("cli", &["*"]),
    ("batch", &["Error", "Result", "adapter", "disk", "image::write_png", "metadata", "pipeline", "settings", "spec", "weights"]),
    (
        "server",
        &[
            "Error",
            "Result",
            "batch",
            "device::memory",
            "disk",
            "image",
            "metadata",
            "pipeline::GeneratedImage",
            "pipeline::Observer",
            "pipeline::Stage",
            "sampling",
            "settings",
        ],
    ),
    ("bench", &["Error", "Result", "device", "family", "ops", "pipeline", "settings", "sampling", "spec", "weights"]),
    (
        "pipeline",
        &[
            "Error",
            "Result",
            "device",
            "adapter",
            "extension",
            "family::time_ids",
            "guidance",
            "image",
            "inputs",
            "models",
            "noise",
            "ops::Wrap",
            "ops::on_workers",
            "ops::wrap_around",
            "ops::wrapped",
            "prompt",
            "settings",
            "sampling",
            "spec",
            "text",
            "weights",
        ],
    ),
    ("prompt", &["Error", "Result"]),
    ("hub", &["Error", "Result", "disk", "family", "weights"]),
    ("weights", &["Error", "Result", "disk", "error", "family", "sampling", "spec"]),
    ("adapter", &["Error", "Result", "error", "family", "ops::Weight", "sampling::FewSteps", "spec", "text::LearnedWord", "weights"]),
    ("survey", &["Error", "Result", "adapter", "family", "spec", "weights"]),
    ("family", &["Error", "Result", "error", "sampling", "spec"]),
    ("models", &["Error", "Result", "ops", "spec", "weights::TensorSource"]),
    ("text", &["Error", "Result", "models", "prompt", "spec", "weights::TensorSource"]),
    ("sampling", &["Error", "Result"]),
    ("guidance", &["Error", "Result", "sampling"]),
    ("extension", &["Error", "Result", "models", "ops", "sampling"]),
    ("ops", &["device"]),
    ("spec", &["sampling"]),
    ("settings", &["Error", "Result", "adapter", "device", "image", "inputs", "noise", "ops::Wrap", "prompt", "sampling", "spec"]),
    ("inputs", &[]),
    ("metadata", &["Error", "Result", "image::Preprocessor", "inputs", "noise", "prompt", "settings", "sampling"]),
    ("noise", &["Error", "Result", "sampling::NoiseSource"]),
    ("image", &["Error", "Result"]),
    ("sheet", &["Error", "Result"]),
    ("device", &["Error", "Result", "ops"]),
    ("disk", &["Error", "Result"]),
    ("error", &[]),
];

/// Words that stand in certain places only.
const CONFINED: &[(&[&str], &[&str], &str)] = &[
    (&["println!", "eprintln!", "print!", "eprint!", "dbg!"], &["cli", "main"], "only the command line prints"),
    (
        &["feature = \"cuda\"", "feature = \"metal\"", "target_feature", "target_arch", "feature_detected!"],
        &["device", "ops"],
        "which backend and which processor is decided below `ops` and in `device`",
    ),
    (
        &["family::SD1", "family::SD2", "family::SDXL", "family::SDXL_REFINER"],
        &["family", "weights", "adapter"],
        "what a family is is its row in `family`; others read the spec's fields",
    ),
];

/// What each part of the command line may name of it, from the tree of commands down.
const CLI_MAY_USE: &[(&str, &[&str])] = &[
    ("fuzz", &["commands", "settings"]),
    ("commands", &["command", "settings"]),
    ("command", &["model", "settings", "terminal", "process"]),
    ("model", &["settings", "terminal", "process"]),
    ("settings", &["terminal", "process"]),
    ("terminal", &["process"]),
    ("process", &[]),
];

/// What the library's documentation shows: at most twelve modules.
const PUBLIC: [&str; 12] =
    ["adapter", "device", "family", "hub", "metadata", "pipeline", "prompt", "sampling", "settings", "spec", "survey", "weights"];

/// Public, for one reason each; the documentation hides them, and nobody is promised anything. Let none be added.
const HIDDEN: [&str; 5] = [
    // The program is another crate than the library, and this is what it runs; so is `cli::fuzz`, the fuzzers' way in.
    "cli",
    // `tests/steering.rs` holds image prompts, whose names `models` and `weights` give, against diffusers call by call.
    "extension",
    // The tests that compare networks with those of diffusers, transformers and spandrel, one network at a time.
    "models",
    // `benches/ops.rs` times single operations. The kernels behind them are private.
    "ops",
    // The tests that compare tokens and prompt embeddings with transformers, ComfyUI and A1111.
    "text",
];

/// Lines of a file, its tests apart.
const LONGEST_FILE: usize = 600;

/// A source file: its path below `src` with `/`, and its text.
type Source = (String, String);

fn sources() -> Vec<Source> {
    fn read(root: &Path, folder: &Path, into: &mut Vec<Source>) {
        for entry in std::fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").path()) {
            if entry.is_dir() {
                read(root, &entry, into);
            } else if entry.extension().is_some_and(|extension| extension == "rs") {
                let below: Vec<_> = entry.strip_prefix(root).expect("below").iter().map(|part| part.to_string_lossy()).collect();
                into.push((below.join("/"), std::fs::read_to_string(&entry).expect("text")));
            }
        }
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut sources = Vec::new();
    read(&root, &root, &mut sources);
    sources.sort();
    sources
}

/// Everything that breaks a rule, one sentence each.
fn violations(sources: &[Source]) -> Vec<String> {
    let code: Vec<Source> = sources.iter().map(|(path, text)| (path.clone(), without_comments(text))).collect();
    let tests: HashSet<String> = code.iter().flat_map(|(path, code)| test_files(path, code)).collect();
    let mut found = Vec::new();
    for (path, code) in code.iter().filter(|(path, _)| !tests.contains(path)) {
        let code = without_tests(code);
        let module = module_of(path);
        let top = match (module.first(), path.as_str()) {
            (Some(top), _) => top.as_str(),
            (None, "main.rs") => "main",
            (None, _) => "lib",
        };
        match MAY_USE.iter().find(|(name, _)| *name == top) {
            None => found.push(format!("src/{path}: the module `{top}` has no row in tests/architecture.rs")),
            Some((_, allowed)) => {
                let allowed = |used: &str| {
                    let is = |row: &str| row == "*" || used == row || used.strip_prefix(row).is_some_and(|rest| rest.starts_with("::"));
                    is(top) || allowed.iter().any(|row| is(row))
                };
                let mut uses = uses(&code, &module);
                uses.retain(|used| !allowed(used));
                found.extend(uses.into_iter().map(|used| format!("src/{path}: `{top}` may not use `{used}`")));
            }
        }
        if let ("cli", Some(part)) = (top, module.get(1)) {
            match CLI_MAY_USE.iter().find(|(name, _)| name == part) {
                None => found.push(format!("src/{path}: `cli::{part}` has no row in tests/architecture.rs")),
                Some((_, allowed)) => {
                    let parts = uses(&code, &module)
                        .into_iter()
                        .filter_map(|used| Some(used.strip_prefix("cli::")?.split("::").next()?.to_owned()));
                    let wrong = parts.filter(|used| used != part && !allowed.contains(&used.as_str()));
                    found.extend(wrong.map(|used| format!("src/{path}: `cli::{part}` may not use `cli::{used}`")));
                }
            }
        }
        for (words, places, why) in CONFINED.iter().filter(|(_, places, _)| !places.contains(&top)) {
            let present = words.iter().filter(|word| has_word(&code, word));
            found.extend(present.map(|word| format!("src/{path}: `{word}` belongs into {}: {why}", places.join(" and "))));
        }
        let lines = code.lines().count();
        if lines > LONGEST_FILE {
            found.push(format!("src/{path}: {lines} lines without its tests; a file is one concept"));
        }
        if path.rsplit('/').next().is_some_and(|name| ["utils.rs", "util.rs", "helpers.rs", "common.rs"].contains(&name)) {
            found.push(format!("src/{path}: name it after what it is about"));
        }
    }
    found
}

/// The module that a file is, from the crate's root.
fn module_of(path: &str) -> Vec<String> {
    let mut parts: Vec<String> = path.trim_end_matches(".rs").split('/').map(String::from).collect();
    if parts.last().is_some_and(|last| last == "mod") || matches!(path, "lib.rs" | "main.rs") {
        parts.pop();
    }
    parts
}

/// The text with comments as blanks; lines are kept.
fn without_comments(text: &str) -> String {
    let mut code = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let (skip, keep) = if rest.starts_with("//") {
            (rest.find('\n').unwrap_or(rest.len()), false)
        } else if rest.starts_with("/*") {
            (rest.find("*/").map_or(rest.len(), |end| end + 2), false)
        } else if c == '"' || rest.starts_with("r\"") || rest.starts_with("r#") {
            (string_length(rest), true)
        } else if rest.starts_with("'\\") {
            // A character such as '\'' or '\u{1F}'; what is inside is at least one character long.
            (rest.get(3..).and_then(|after| after.find('\'')).map_or(1, |end| end + 4), true)
        } else if rest.starts_with("'\"'") {
            (3, true)
        } else {
            (c.len_utf8(), true)
        };
        let (taken, after) = rest.split_at(skip);
        if keep {
            code.push_str(taken);
        } else {
            code.extend(taken.chars().filter(|c| *c == '\n'));
        }
        rest = after;
    }
    code
}

/// The bytes of the string literal, plain or raw, at the start of `text`.
fn string_length(text: &str) -> usize {
    if let Some(raw) = text.strip_prefix('r') {
        let hashes = raw.len() - raw.trim_start_matches('#').len();
        if !raw[hashes..].starts_with('"') {
            return 1; // a raw name such as r#type
        }
        let end = format!("\"{}", "#".repeat(hashes));
        return raw[hashes + 1..].find(&end).map_or(text.len(), |at| 1 + hashes + 1 + at + end.len());
    }
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => return at + 1,
            _ => {}
        }
    }
    text.len()
}

/// The files that hold test code only: `#[cfg(test)] mod name;`.
fn test_files(path: &str, code: &str) -> Vec<String> {
    let folder = module_of(path).join("/");
    let below = |name: &str| if folder.is_empty() { format!("{name}.rs") } else { format!("{folder}/{name}.rs") };
    let declared = code.split("#[cfg(test)]").skip(1).filter_map(|after| after.trim_start().strip_prefix("mod ")?.split_once(';'));
    declared.filter(|(name, _)| name.chars().all(|c| c.is_alphanumeric() || c == '_')).map(|(name, _)| below(name)).collect()
}

/// The code before the tests at its end.
fn without_tests(code: &str) -> String {
    let mut kept = String::new();
    let mut lines = code.lines().peekable();
    while let Some(line) = lines.next() {
        if line != "#[cfg(test)]" {
            kept.push_str(line);
            kept.push('\n');
            continue;
        }
        while lines.next_if(|line| line.starts_with("#[")).is_some() {}
        // One line, or a block that ends with a brace in the first column.
        if lines.next().is_some_and(|line| line.ends_with('{')) {
            while lines.next_if(|line| *line != "}").is_some() {}
            lines.next();
        }
    }
    kept
}

/// What `code` of `module` names of its own crate, as paths from the root.
fn uses(code: &str, module: &[String]) -> Vec<String> {
    let mut found = Vec::new();
    for start in ["crate::", "sd_gen::", "super::"] {
        for (at, _) in code.match_indices(start) {
            let before = code[..at].chars().next_back();
            let inside_a_path = before.is_some_and(|c| c.is_alphanumeric() || matches!(c, '_' | '$')) || code[..at].ends_with("super::");
            if inside_a_path {
                continue;
            }
            let mut base = if start == "super::" { module.to_vec() } else { Vec::new() };
            let mut rest = &code[at..];
            if start == "super::" {
                while let Some(after) = rest.strip_prefix("super::") {
                    base.pop();
                    rest = after;
                }
            } else {
                rest = &rest[start.len()..];
            }
            let mut tree = Vec::new();
            read_tree(rest, &mut base, &mut tree);
            found.extend(tree);
        }
    }
    found
}

/// Reads `a::b`, `a::{b, c::d}` or `*` at the start of `text` below `base`; gives what is left of the text.
fn read_tree<'a>(text: &'a str, base: &mut Vec<String>, found: &mut Vec<String>) -> &'a str {
    let text = text.trim_start();
    if let Some(mut rest) = text.strip_prefix('{') {
        loop {
            rest = read_tree(rest, base, found).trim_start();
            match rest.chars().next() {
                Some(',') => rest = &rest[1..],
                Some('}') => return &rest[1..],
                // Not a list of names after all.
                _ => return rest,
            }
            if let Some(after) = rest.trim_start().strip_prefix('}') {
                return after;
            }
        }
    }
    let end = text.find(|c: char| !c.is_alphanumeric() && c != '_' && c != '*').unwrap_or(text.len());
    let (name, rest) = text.split_at(end);
    base.push(name.to_owned());
    let rest = match rest.strip_prefix("::") {
        Some(after) if !after.starts_with('<') => read_tree(after, base, found),
        _ => {
            found.push(base.join("::"));
            // `a as b`
            rest.trim_start().strip_prefix("as ").map_or(rest, |renamed| &renamed[renamed.find([',', '}', ';']).unwrap_or(0)..])
        }
    };
    base.pop();
    rest
}

/// `word` stands in `code`, and not as the end of a longer name.
fn has_word(code: &str, word: &str) -> bool {
    let ends_a_name = |at: usize| code[..at].chars().next_back().is_some_and(|c| c.is_alphanumeric() || c == '_');
    // `is_x86_feature_detected!` ends in the word that is looked for, whatever the processor.
    code.match_indices(word).any(|(at, _)| word.starts_with("feature_detected") || !ends_a_name(at))
}

#[test]
fn the_sources_keep_the_rules() {
    let sources = sources();
    assert!(sources.len() > 40, "only {} files were found", sources.len());
    let found = violations(&sources);
    assert!(found.is_empty(), "{}", found.join("\n"));
}

/// The files below `src/cli` that name each other in a circle, and those on the way from one circle to another.
fn circles(sources: &[Source]) -> Vec<String> {
    let code: Vec<Source> = sources.iter().map(|(path, text)| (path.clone(), without_comments(text))).collect();
    let tests: HashSet<String> = code.iter().flat_map(|(path, code)| test_files(path, code)).collect();
    let files: Vec<(String, String)> = code
        .iter()
        .filter(|(path, _)| path.starts_with("cli/") && !tests.contains(path))
        .map(|(path, code)| (module_of(path).join("::"), without_tests(code)))
        .collect();
    let is_file = |module: &str| files.iter().any(|(file, _)| file == module);
    let named = |(module, code): &(String, String)| -> (String, HashSet<String>) {
        let path: Vec<String> = module.split("::").map(String::from).collect();
        // A path's longest beginning that is a file; `pub(in crate::cli)` names none.
        let file_of = |used: &String| {
            let mut used = used.as_str();
            while !is_file(used) {
                used = used.rsplit_once("::")?.0;
            }
            Some(used.to_owned()).filter(|file| file != "cli")
        };
        // Those below it, which need no `self`.
        let name = |file: &String| file.strip_prefix(&format!("{module}::")).filter(|name| !name.contains("::")).map(String::from);
        let below =
            files.iter().filter(|(file, _)| name(file).is_some_and(|name| has_word(code, &format!("{name}::")))).map(|(file, _)| file);
        let files: HashSet<String> = uses(code, &path).iter().filter_map(file_of).chain(below.cloned()).collect();
        (module.clone(), files.into_iter().filter(|file| file != module).collect())
    };
    let mut left: Vec<(String, HashSet<String>)> = files.iter().map(named).collect();
    loop {
        let before = left.len();
        let there: HashSet<String> = left.iter().map(|(file, _)| file.clone()).collect();
        let used: HashSet<String> = left.iter().flat_map(|(_, files)| files.clone()).collect();
        left.retain(|(file, files)| used.contains(file) && !files.is_disjoint(&there));
        if left.len() == before {
            return left.into_iter().map(|(file, _)| file).collect();
        }
    }
}

#[test]
fn no_files_of_the_command_line_name_each_other_in_a_circle() {
    assert_eq!(circles(&sources()), Vec::<String>::new());
    let sources = [
        ("cli/mod.rs", "mod a;\nmod b;\nmod c;\nfn f() { a::g() }"),
        ("cli/a.rs", "use super::b::f;\npub(in crate::cli) fn g() {}"),
        ("cli/b.rs", "use super::c::{f, h};"),
        ("cli/c/mod.rs", "mod d;\nfn h() { d::f() }\nfn f() { crate::cli::a::g() }"),
        ("cli/c/d.rs", "use super::super::e::f;"),
        ("cli/e.rs", "fn f() {}\n\n#[cfg(test)]\nmod tests {\n    use crate::cli::c::f;\n}\n"),
    ];
    let mut found = circles(&sources.map(|(path, text)| (path.into(), text.into())));
    found.sort();
    assert_eq!(found, ["cli::a", "cli::b", "cli::c"]);
}

#[test]
fn the_paths_of_the_sources_are_found() {
    // A reader that sees nothing would find nothing wrong.
    for (path, wanted) in [
        ("models/mod.rs", "weights::TensorSource"),
        ("models/mod.rs", "ops::Linear"),
        ("pipeline/guided_denoiser.rs", "pipeline::prompt::BatchConditioning"),
        ("text/encoder.rs", "models::ClipTextModel"),
        ("main.rs", "cli::run"),
        ("ops/cpu/linear.rs", "ops::Epilogue"),
    ] {
        let sources = sources();
        let (_, text) = sources.iter().find(|(name, _)| name == path).expect(path);
        let uses = uses(&without_tests(&without_comments(text)), &module_of(path));
        assert!(uses.iter().any(|used| used == wanted), "{path}: {uses:?}");
    }
}

#[test]
fn what_breaks_a_rule_is_found() {
    for (path, text, said) in [
        ("models/a.rs", "use crate::weights::Checkpoint;", "weights::Checkpoint"),
        ("models/a.rs", "use crate::{\n    Error,\n    weights::{TensorSource as Source, Component},\n};", "weights::Component"),
        ("models/mod.rs", "fn f() { super::cli::run() }", "cli::run"),
        ("models/a.rs", "use super::super::pipeline::Pipeline;", "pipeline::Pipeline"),
        ("models/a.rs", "use crate::weights::*;", "weights::*"),
        ("text/a.rs", "fn f() -> crate::sampling::Step {}", "sampling::Step"),
        ("sampling/a.rs", "use crate::noise::Rng;", "noise::Rng"),
        ("sampling/a.rs", "use crate::{Result, models::Scope};", "models::Scope"),
        ("ops/cpu/a.rs", "use crate::Result;", "`Result`"),
        ("ops/cpu/a.rs", "use super::super::super::Result;", "`Result`"),
        ("weights/a.rs", "use crate::pipeline::Pipeline;", "pipeline::Pipeline"),
        ("error.rs", "use crate::spec::Family;", "spec::Family"),
        ("main.rs", "fn main() { sd_gen::pipeline::f() }", "pipeline::f"),
        ("cli/terminal/a.rs", "use crate::cli::settings::flags::Flags;", "cli::settings"),
        ("cli/a.rs", "fn f() {}", "cli::a"),
        ("pipeline/a.rs", "fn f() { println!(\"x\") }", "println!"),
        ("pipeline/a.rs", "fn f() { let s = \"// \"; dbg!(s) }", "dbg!"),
        ("models/a.rs", "#[cfg(feature = \"cuda\")]\nfn f() {}", "cuda"),
        ("models/a.rs", "fn f() { if is_x86_feature_detected!(\"avx2\") {} }", "feature_detected"),
        ("noise.rs", "#[target_feature(enable = \"fma\")]\nfn f() {}", "target_feature"),
        ("pipeline/a.rs", "fn f(x: Family) -> bool { x == family::SDXL }", "family::SDXL"),
        ("ops/cpu/utils.rs", "", "name it"),
        ("rest.rs", "", "no row"),
    ] {
        let found = violations(&[(path.into(), text.into())]);
        assert!(found.len() == 1 && found[0].contains(said), "{path}: {text:?} gave {found:?}");
    }
    let long = "fn f() {}\n".repeat(LONGEST_FILE + 1);
    assert_eq!(violations(&[("text/a.rs".into(), long)]).len(), 1);
}

#[test]
fn what_keeps_the_rules_is_left_alone() {
    for (path, text) in [
        ("models/a.rs", "use super::Scope;\nuse crate::weights::TensorSource;\nuse crate::{Error, Result, ops::{Linear, silu}};"),
        ("models/a.rs", "//! [`crate::pipeline::Pipeline`]\n/* crate::cli::run */\nfn f() {}"),
        (
            "sampling/a.rs",
            "fn f() {}\n\n#[cfg(test)]\n#[allow(x)]\nmod tests {\n    use crate::noise::Rng;\n    fn f() { println!(\"\") }\n}\n",
        ),
        (
            "ops/cpu/a.rs",
            "use super::super::Epilogue;\n#[cfg(target_arch = \"x86_64\")]\nfn f() { if is_x86_feature_detected!(\"avx2\") {} }",
        ),
        ("models/a.rs", "const QUOTE: char = '\"'; // crate::cli\nconst OTHER: &str = r#\"\"#; // crate::cli"),
    ] {
        assert_eq!(violations(&[(path.into(), text.into())]), Vec::<String>::new(), "{path}: {text:?}");
    }
    let sources = [("sampling/mod.rs", "#[cfg(test)]\nmod tests;\n"), ("sampling/tests.rs", "use crate::noise::Rng;")];
    assert_eq!(violations(&sources.map(|(path, text)| (path.into(), text.into()))), Vec::<String>::new());
}

/// The types that a file declares, whatever their visibility; types within a trait or an implementation belong to it.
fn declared_types(code: &str) -> Vec<String> {
    const KEYWORDS: &[&str] = &["struct", "enum", "trait", "type", "union"];
    let name = |line: &str| {
        let is_within = line.trim_start().starts_with("type ") && line.starts_with(' ');
        let mut words = line.split_whitespace().skip_while(|word| word.starts_with("pub") || word.ends_with(')') || *word == "unsafe");
        let is_declaration = words.next().is_some_and(|word| KEYWORDS.contains(&word));
        let name: String = words.next()?.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
        (is_declaration && !is_within && name.starts_with(char::is_uppercase)).then_some(name)
    };
    code.lines().filter_map(name).collect()
}

/// One name for one type in the whole crate: whoever searches for a name finds one thing.
#[test]
fn every_type_has_a_name_of_its_own() {
    assert_eq!(declared_types("pub(in crate::x) struct A<T>;\nenum B {\n    type C = u8;\ntype D = A;\n/// struct E"), ["A", "B", "D"]);
    let sources = sources();
    let mut places: Vec<(String, &str)> = Vec::new();
    for (path, text) in &sources {
        places.extend(declared_types(&without_comments(text)).into_iter().map(|name| (name, path.as_str())));
    }
    places.sort();
    let twice: Vec<_> = places.windows(2).filter(|pair| pair[0].0 == pair[1].0).collect();
    assert!(twice.is_empty(), "declared twice: {twice:?}");
}

/// The modules that `lib.rs` makes public: those that the documentation shows, and those that it hides.
#[test]
fn the_library_shows_twelve_modules() {
    let (mut shown, mut hidden) = (Vec::new(), Vec::new());
    let mut is_hidden = false;
    for line in include_str!("../src/lib.rs").lines() {
        if let Some(name) = line.strip_prefix("pub mod ").and_then(|rest| rest.strip_suffix(';')) {
            if is_hidden { hidden.push(name) } else { shown.push(name) }
        }
        is_hidden = line == "#[doc(hidden)]" || (is_hidden && line.starts_with("#["));
    }
    assert_eq!((shown, hidden), (PUBLIC.to_vec(), HIDDEN.to_vec()));
}
