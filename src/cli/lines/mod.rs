//! The lines of a batch file. A line is a set of flags: whatever the format, it is read as names and values, laid over the flags of
//! the command line, and judged by clap.
//!
//! Lines are streamed: however long the file, one line is held at a time.

mod error;
mod json;
mod source;
mod table;
#[cfg(test)]
mod tests;
mod text;

pub(super) use error::{LineError, LineErrors};

use super::args::GenerateArgs;
use super::flags::{Flags, GENERATION, Kind, Wrong, fold, varies};
use crate::Result;
use clap::ValueEnum;
use source::Source;
use std::collections::VecDeque;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

/// How the lines of a file are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Format {
    /// a prompt a line, flags after it; # begins a comment
    Text,
    /// an object a line
    #[value(alias = "ndjson")]
    Jsonl,
    /// comma-separated values, a header with flags' names
    Csv,
    /// the same with tabs
    Tsv,
}

/// One line of a batch file: flags merged, checked by clap, not yet by a model.
#[derive(Debug, Clone)]
pub(super) struct Line {
    /// The file's line that it begins on, from 1.
    pub(super) number: usize,
    /// As it stands in the file.
    pub(super) text: String,
    /// The line's flags over those of the command line.
    pub(super) flags: Flags,
    pub(super) args: GenerateArgs,
    file: Arc<str>,
    /// Where the line's own flags stand in its text.
    parts: Vec<(usize, Range<usize>)>,
}

impl Line {
    /// An error about this line; a sentence that begins with a flag of the line, such as `--width 100: …`, points to it.
    pub(super) fn error(&self, sentence: &str) -> LineError {
        let part = GENERATION.said(sentence).and_then(|flag| self.parts.iter().find(|(at, _)| *at == flag));
        let part = part.map_or(0..self.text.len(), |(_, part)| part.clone());
        LineError::at(&self.file, self.number, &self.text, part, sentence)
    }
}

/// A record of any format.
struct Row {
    /// The number of its first line.
    first: usize,
    text: String,
    pairs: Vec<Pair>,
}

/// A name and what it was given; no values where the name stands alone, as a switch does.
struct Pair {
    name: String,
    part: Range<usize>,
    values: Option<Vec<(String, Range<usize>)>>,
}

/// The lines of a file, with everything that is wrong in it in their place.
pub(super) struct Lines {
    rows: Box<dyn Iterator<Item = Result<Row, LineError>>>,
    file: Arc<str>,
    base: Flags,
    /// More errors of the line before.
    wrong: VecDeque<LineError>,
}

/// Reads the lines of a file, or of standard input for `-`, over the flags `base` of the command line.
///
/// # Errors
/// The file cannot be opened.
pub(super) fn read(path: &Path, format: Option<Format>, base: &Flags) -> Result<Lines> {
    let mut source = Source::open(path)?;
    let format = format.or_else(|| of_name(path)).unwrap_or_else(|| sniffed(&mut source));
    Ok(lines(source, format, base))
}

fn lines(source: Source, format: Format, base: &Flags) -> Lines {
    let file = source.file.clone();
    let rows: Box<dyn Iterator<Item = Result<Row, LineError>>> = match format {
        Format::Text => Box::new(text::rows(source)),
        Format::Jsonl => Box::new(json::rows(source)),
        Format::Csv => Box::new(table::rows(source, None)),
        Format::Tsv => Box::new(table::rows(source, Some(b'\t'))),
    };
    Lines { rows, file, base: base.clone(), wrong: VecDeque::new() }
}

fn of_name(path: &Path) -> Option<Format> {
    match path.extension()?.to_str()?.to_lowercase().as_str() {
        "txt" => Some(Format::Text),
        "jsonl" | "ndjson" => Some(Format::Jsonl),
        "csv" => Some(Format::Csv),
        "tsv" | "tab" => Some(Format::Tsv),
        _ => None,
    }
}

/// The format that the first line speaks of.
fn sniffed(source: &mut Source) -> Format {
    let first = source.peek(1).pop().unwrap_or_default();
    let is_header = |delimiter| {
        let cells = table::cells_of(&first, delimiter);
        cells.len() > 1 && cells.iter().all(|cell| known(cell).is_ok())
    };
    match () {
        () if first.starts_with('{') => Format::Jsonl,
        () if is_header(b'\t') => Format::Tsv,
        () if is_header(b',') || is_header(b';') => Format::Csv,
        () => Format::Text,
    }
}

/// What A1111's names mean that are no settings here: the values that change nothing, or none for a name that never does.
const WITHOUT_EFFECT: &[(&str, &[&str])] = &[
    ("outpath-grids", &[]),
    ("do-not-save-grid", &[]),
    ("prompt-for-display", &[]),
    ("do-not-save-samples", &["false"]),
    ("restore-faces", &["false"]),
    ("tiling", &["false"]),
    ("styles", &[""]),
    ("subseed", &["-1", "0"]),
    ("subseed-strength", &["0", "0.0"]),
    ("seed-resize-from-h", &["0", "-1"]),
    ("seed-resize-from-w", &["0", "-1"]),
];

/// A1111's pictures of a line are this many times its batch size.
const REPEATS: &str = "n-iter";

fn without_effect(name: &str) -> Option<&'static [&'static str]> {
    let folded = fold(name.trim_start_matches('-'));
    WITHOUT_EFFECT.iter().find(|(known, _)| *known == folded).map(|(_, values)| *values)
}

/// The flag of a name, where a line may set it.
fn flag_of(name: &str) -> Result<usize, String> {
    let flag = GENERATION.find(name)?;
    varies(flag).map(|()| flag)
}

/// Whether a line may have a value of that name.
fn known(name: &str) -> Result<(), String> {
    if without_effect(name).is_some() {
        return Ok(());
    }
    flag_of(name).map(drop)
}

/// What a row set, flag by flag, and where.
struct Merged {
    flags: Flags,
    parts: Vec<(usize, Range<usize>)>,
    wrong: Vec<(Range<usize>, String)>,
}

fn merged(row: &Row) -> Merged {
    let mut given: Vec<(usize, &Pair, Vec<(String, Range<usize>)>)> = Vec::new();
    let mut wrong = Vec::new();
    for pair in &row.pairs {
        if let Some(neutral) = without_effect(&pair.name) {
            let value = pair.values.iter().flatten().next();
            if let Some((value, part)) = value.filter(|(value, _)| !neutral.is_empty() && !neutral.contains(&value.to_lowercase().as_str()))
            {
                wrong.push((part.clone(), format!("{} {value:?} is not supported; leave it out", pair.name.trim())));
            }
            continue;
        }
        let flag = match flag_of(&pair.name) {
            Ok(flag) => flag,
            Err(what) => {
                wrong.push((pair.part.clone(), what));
                continue;
            }
        };
        let known = &GENERATION.flags[flag];
        let values = match &pair.values {
            Some(values) => values.clone(),
            None if known.kind == Kind::Switch => vec![("true".to_owned(), pair.part.clone())],
            None => {
                wrong.push((pair.part.clone(), format!("--{} needs a value after it", known.long)));
                continue;
            }
        };
        match given.iter_mut().find(|(before, ..)| *before == flag) {
            Some((_, _, before)) if known.repeatable => before.extend(values),
            Some((_, before, _)) => {
                let twice =
                    if fold(&before.name) == fold(&pair.name) { String::new() } else { format!(", also as {}", before.name.trim()) };
                wrong.push((pair.part.clone(), format!("--{} is given twice{twice}; give it once", known.long)));
            }
            None => given.push((flag, pair, values)),
        }
    }
    let mut merged = Merged { flags: Flags::default(), parts: Vec::new(), wrong };
    for (flag, pair, values) in given {
        let texts: Vec<String> = values.iter().map(|(text, _)| text.clone()).collect();
        match GENERATION.read(flag, &texts) {
            Ok(read) => merged.flags.set(flag, read),
            Err((at, what)) => merged.wrong.push((values.get(at).map_or(pair.part.clone(), |(_, part)| part.clone()), what)),
        }
        let part = values.first().map_or(pair.part.clone(), |(_, part)| part.clone());
        merged.parts.push((flag, part));
    }
    merged.multiply_repeats(row);
    merged
}

impl Merged {
    /// A1111 paints `n_iter` times `batch_size` pictures.
    fn multiply_repeats(&mut self, row: &Row) {
        if !row.pairs.iter().any(|pair| fold(pair.name.trim_start_matches('-')) == REPEATS) {
            return;
        }
        let (Ok(images), Ok(batch_size)) = (GENERATION.find("images"), GENERATION.find("batch-size")) else { return };
        let number = |flag| -> Option<usize> { self.flags.get(flag)?.first()?.to_str()?.parse().ok() };
        if let (Some(repeats), Some(at_once)) = (number(images), number(batch_size)) {
            self.flags.set(images, vec![repeats.saturating_mul(at_once).to_string().into()]);
        }
    }
}

impl Lines {
    fn line(&mut self, row: Row) -> Result<Line, LineError> {
        let Merged { flags, parts, wrong } = merged(&row);
        let Row { first, text, .. } = row;
        let error = |part: Range<usize>, what: String| LineError::at(&self.file, first, &text, part, what);
        let mut errors: VecDeque<LineError> = wrong.into_iter().map(|(part, what)| error(part, what)).collect();
        let part_of = |flag: Option<usize>| {
            let part = flag.and_then(|flag| parts.iter().find(|(at, _)| *at == flag));
            part.map_or(0..text.len(), |(_, part)| part.clone())
        };
        let flags = flags.over(&self.base);
        let args = match flags.args() {
            // What clap says now follows from what was wrong before.
            _ if !errors.is_empty() => None,
            Ok(args) if args.prompts.is_empty() => {
                errors.push_back(error(0..text.len(), "the line has no prompt, and no --prompt was given for all lines".into()));
                None
            }
            Ok(args) => Some(args),
            Err(wrong) => {
                errors.extend(wrong.into_iter().map(|Wrong { flag, what }| error(part_of(flag), what)));
                None
            }
        };
        match (args, errors.pop_front()) {
            (Some(args), None) => Ok(Line { number: first, text, flags, args, file: self.file.clone(), parts }),
            (_, Some(first)) => {
                self.wrong = errors;
                Err(first)
            }
            // `args` gives at least one error or arguments.
            (None, None) => Err(LineError::of_line(&self.file, first, "the line cannot be read")),
        }
    }
}

impl Iterator for Lines {
    type Item = Result<Line, LineError>;

    fn next(&mut self) -> Option<Self::Item> {
        if let Some(error) = self.wrong.pop_front() {
            return Some(Err(error));
        }
        Some(self.rows.next()?.and_then(|row| self.line(row)))
    }
}
