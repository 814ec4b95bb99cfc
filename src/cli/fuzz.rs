//! The ways of a fuzzer into what only the command line reads; no interface of the library. `fuzz/` has the targets. Whatever the bytes
//! are, nothing here panics, hangs, or takes more memory than a small multiple of them.

use super::commands::Cli;
use super::settings::config;
use super::settings::flags::Flags;
use super::settings::lines::{self, LineFormat};
use super::settings::sweep::SweepAxis;
use crate::spec::ModelSpec;
use clap::CommandFactory;

/// Reads the bytes after the first as lines, in the format that the first one chooses, and judges each line with a model.
pub fn lines(bytes: &[u8], model: &ModelSpec) {
    const FORMATS: [Option<LineFormat>; 6] =
        [None, Some(LineFormat::Text), Some(LineFormat::Jsonl), Some(LineFormat::Csv), Some(LineFormat::Tsv), Some(LineFormat::Yaml)];
    let Some((first, text)) = bytes.split_first() else { return };
    let format = FORMATS.get(usize::from(*first) % FORMATS.len()).copied().flatten();
    for line in lines::of_bytes(text.to_vec(), format, &Flags::default()) {
        let _ = match line {
            Ok(line) => match line.draft.resolve(model) {
                Ok(request) => request.prompt,
                Err(error) => line.error(&error.to_string()).to_string(),
            },
            Err(error) => error.to_string(),
        };
    }
}

/// Reads a text as `./sd-gen.toml`, for generating and for another command, and as the values of a sweep.
pub fn settings(text: &str) {
    config::judge(text, Cli::command);
    let _ = SweepAxis::parse(text);
}
