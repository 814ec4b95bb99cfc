//! The fuzz targets of what only the command line reads; see [`crate::fuzz`].

use super::flags::Flags;
use super::lines::{self, Format};

pub use super::config::fuzz as settings;

/// Any bytes are lines in the format that the first of them chooses, each checked flag by flag, or errors that can be shown.
pub fn lines(bytes: &[u8]) {
    const FORMATS: [Option<Format>; 6] =
        [None, Some(Format::Text), Some(Format::Jsonl), Some(Format::Csv), Some(Format::Tsv), Some(Format::Yaml)];
    let Some((first, text)) = bytes.split_first() else { return };
    let format = FORMATS.get(usize::from(*first) % FORMATS.len()).copied().flatten();
    for line in lines::of_bytes(text.to_vec(), format, &Flags::default()) {
        match line {
            Ok(line) => drop(line.error("--steps 0: a test").to_string()),
            Err(error) => drop(error.to_string()),
        }
    }
}
