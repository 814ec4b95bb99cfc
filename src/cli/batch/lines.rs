//! Lines of prompts.
use crate::cli::args::GenerateArgs;
use crate::{Error, Result};
use std::io::BufRead;
use std::path::Path;

pub(super) struct Line {
    pub(super) number: usize,
    pub(super) args: GenerateArgs,
}

impl Line {
    pub(super) fn error(&self, sentence: &str) -> String {
        format!("{}: {sentence}", self.number)
    }
}

pub(super) fn read(path: &Path, base: &GenerateArgs) -> Result<impl Iterator<Item = Result<Line, String>> + Send + use<>> {
    let input: Box<dyn BufRead + Send> = match path.to_str() {
        Some("-") => Box::new(std::io::BufReader::new(std::io::stdin())),
        _ => Box::new(std::io::BufReader::new(std::fs::File::open(path).map_err(|e| Error::Input(format!("{}: {e}", path.display())))?)),
    };
    let base = base.clone();
    Ok(input.lines().enumerate().map(move |(i, line)| {
        let line = line.map_err(|e| format!("{}: {e}", i + 1))?;
        Ok(Line { number: i + 1, args: GenerateArgs { prompts: vec![line], ..base.clone() } })
    }))
}
