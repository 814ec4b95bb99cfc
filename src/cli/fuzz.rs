//! The ways of a fuzzer into what the library keeps to itself; no interface of it. `fuzz/` has the targets. Whatever the bytes are,
//! nothing here panics, hangs, or takes more memory than a small multiple of them.

use super::commands::Cli;
use super::settings::config;
use super::settings::flags::Flags;
use super::settings::lines::{self, LineFormat};
use super::settings::sweep::SweepAxis;
use crate::batch::{Ledger, LedgerOptions, Manifest};
use crate::image::decode;
use crate::spec::ModelSpec;
use crate::weights::{Blob, WeightFile};
use clap::CommandFactory;
use std::path::Path;

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

/// Reads the file at `path` as a manifest. Lines that are no records are passed over.
pub fn manifest(path: &Path) {
    if let Ok(mut manifest) = Manifest::open(path) {
        manifest.retry_failed();
        let _ = (manifest.unreadable_lines(), manifest.history("emoji", "f32"));
    }
    let _ = Ledger::read(path, LedgerOptions { verify: true, ..LedgerOptions::default() });
}

/// Reads the bytes as a GGUF file, whatever they begin with, and the numbers of its tensors.
pub fn gguf(bytes: &[u8]) {
    let mut bytes = bytes.to_vec();
    bytes.iter_mut().zip(b"GGUF").for_each(|(byte, magic)| *byte = *magic);
    if let Ok(file) = WeightFile::new("fuzz".into(), Blob::Owned(bytes)) {
        for entry in file.entries() {
            let _ = file.bytes(entry);
        }
    }
}

/// Reads the bytes as an image that something is made of; tells whether all that is read of it has one size.
pub fn input_image(bytes: &[u8]) -> bool {
    decode(bytes).ok().is_none_or(|image| {
        let size = image.rgb.dimensions();
        image.luma().dimensions() == size && image.alpha.is_none_or(|alpha| alpha.dimensions() == size)
    })
}
