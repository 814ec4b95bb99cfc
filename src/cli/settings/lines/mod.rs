//! The lines of a batch file. A line is a set of flags: whatever the format, it is read as names and values, laid over the flags of
//! the command line, and judged by clap.
//!
//! Lines are streamed: however long the file, one line is held at a time.

mod error;
mod json;
mod row;
mod source;
mod table;
#[cfg(test)]
mod tests;
mod text;
mod yaml;

use error::SHOWN;
pub(in crate::cli) use error::{LineError, LineErrors, LineRecord};
pub(in crate::cli) use table::cells_of;
pub(in crate::cli) use text::values_of;

use crate::cli::settings::flags::{Flags, GENERATION, Wrong};
use crate::settings::{Draft, fold};
use crate::{Error, Result};
use clap::ValueEnum;
use row::{FlagPair, PlacedValue, REPEATS, RecordRow, flag_of, known, without_effect};
use source::LineSource;
use std::collections::VecDeque;
use std::ops::Range;
use std::path::Path;

/// How the lines of a file are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(in crate::cli) enum LineFormat {
    /// a prompt a line, flags after it; # begins a comment
    Text,
    /// an object a line
    #[value(alias = "ndjson")]
    Jsonl,
    /// comma-separated values, a header with flags' names
    Csv,
    /// the same with tabs
    Tsv,
    /// a sequence of maps and texts, or documents of them; JSON with brackets too
    #[value(alias = "yml", alias = "json")]
    Yaml,
}

/// One line of a batch file: flags merged, checked by clap, not yet by a model.
#[derive(Debug, Clone)]
pub(in crate::cli) struct Line {
    /// The file's line that it begins on, from 1.
    pub(in crate::cli) number: usize,
    /// The line's flags over those of the command line.
    pub(in crate::cli) flags: Flags,
    pub(in crate::cli) draft: Draft,
    /// Which value of each sweep, for a line that was swept.
    pub(in crate::cli) at: Vec<usize>,
    /// The sweeps' flags and those values as they were written.
    pub(in crate::cli) labels: Vec<(String, String)>,
    record: LineRecord,
    of_file: bool,
    /// Where the line's own flags stand in its text.
    parts: Vec<(usize, Range<usize>)>,
}

impl Line {
    /// An error about this line; a sentence that begins with a flag of the line, such as `--width 100: …`, points to it.
    pub(in crate::cli) fn error(&self, sentence: &str) -> LineError {
        let swept: Vec<String> = self.labels.iter().map(|(name, label)| format!("{name}={label}")).collect();
        let swept = if swept.is_empty() { String::new() } else { format!(" (with --sweep {})", swept.join(", ")) };
        self.record.error(part_of(&self.record, &self.parts, GENERATION.said(sentence)), format!("{sentence}{swept}"))
    }

    /// Whether the line's own text sets a flag, and no sweep sets it again.
    pub(in crate::cli) fn sets(&self, long: &str) -> bool {
        let flag = GENERATION.find(long).ok();
        self.parts.iter().any(|(set, _)| Some(*set) == flag) && !self.labels.iter().any(|(name, _)| name == long)
    }

    /// Whether the line was read from a file, which somebody else may have written.
    pub(in crate::cli) fn is_of_file(&self) -> bool {
        self.of_file
    }

    /// The line with a sweep's values over its own.
    ///
    /// # Errors
    /// They do not go together.
    pub(in crate::cli) fn swept(&self, flags: &Flags, at: Vec<usize>, labels: Vec<(String, String)>) -> Result<Self, LineError> {
        let mut line = Self { at, labels, flags: flags.over(&self.flags), ..self.clone() };
        line.draft = line.flags.draft().map_err(|wrong| line.error(wrong.first().map_or("", |wrong| &wrong.what)))?;
        Ok(line)
    }
}

/// Where a flag stands in a line; the whole line for one that does not.
fn part_of(record: &LineRecord, parts: &[(usize, Range<usize>)], flag: Option<usize>) -> Range<usize> {
    let part = flag.and_then(|flag| parts.iter().find(|(at, _)| *at == flag));
    part.map_or(0..record.text.len(), |(_, part)| part.clone())
}

/// The lines of a file, with everything that is wrong in it in their place.
pub(in crate::cli) struct Lines {
    rows: Box<dyn Iterator<Item = Result<RecordRow, LineError>>>,
    base: Flags,
    of_file: bool,
    /// More errors of the line before.
    wrong: VecDeque<LineError>,
}

/// Reads the lines of a file, or of standard input for `-`, over the flags `base` of the command line. Of a table, `columns` are the ones
/// that count; all do where there are none.
///
/// # Errors
/// The file cannot be opened.
pub(in crate::cli) fn read(path: &Path, format: Option<LineFormat>, columns: &[String], base: &Flags) -> Result<Lines> {
    let mut source = LineSource::open(path)?;
    let format = format.or_else(|| of_name(path)).unwrap_or_else(|| sniffed(&mut source));
    if !columns.is_empty() && !matches!(format, LineFormat::Csv | LineFormat::Tsv) {
        return Err(Error::Input("--columns: names columns of a table; give --format csv or tsv if the file is one".into()));
    }
    Ok(lines(source, format, columns, base))
}

/// As [`read`], of bytes.
pub(in crate::cli) fn of_bytes(bytes: Vec<u8>, format: Option<LineFormat>, base: &Flags) -> Lines {
    let mut source = LineSource::new("bytes", std::io::Cursor::new(bytes));
    let format = format.unwrap_or_else(|| sniffed(&mut source));
    lines(source, format, &[], base)
}

/// The one line that the flags of the command line are by themselves.
pub(in crate::cli) fn of_flags(base: &Flags) -> Lines {
    let record = LineRecord::line(&"the command line".into(), 1, String::new());
    Lines {
        rows: Box::new(std::iter::once(Ok(RecordRow { record, pairs: Vec::new() }))),
        base: base.clone(),
        of_file: false,
        wrong: VecDeque::new(),
    }
}

fn lines(source: LineSource, format: LineFormat, columns: &[String], base: &Flags) -> Lines {
    let rows: Box<dyn Iterator<Item = Result<RecordRow, LineError>>> = match format {
        LineFormat::Text => Box::new(text::rows(source)),
        LineFormat::Jsonl => Box::new(json::rows(source)),
        LineFormat::Csv => Box::new(table::rows(source, None, columns)),
        LineFormat::Tsv => Box::new(table::rows(source, Some(b'\t'), columns)),
        LineFormat::Yaml => Box::new(yaml::rows(source)),
    };
    Lines { rows, base: base.clone(), of_file: true, wrong: VecDeque::new() }
}

fn of_name(path: &Path) -> Option<LineFormat> {
    match path.extension()?.to_str()?.to_lowercase().as_str() {
        "txt" => Some(LineFormat::Text),
        "jsonl" | "ndjson" => Some(LineFormat::Jsonl),
        "csv" => Some(LineFormat::Csv),
        "tsv" | "tab" => Some(LineFormat::Tsv),
        "yaml" | "yml" => Some(LineFormat::Yaml),
        _ => None,
    }
}

/// The format that the first line speaks of.
fn sniffed(source: &mut LineSource) -> LineFormat {
    let first = source.peek(1).pop().unwrap_or_default();
    let is_header = |delimiter| {
        let cells = cells_of(&first, delimiter).unwrap_or_default();
        cells.len() > 1 && cells.iter().all(|cell| known(cell).is_ok())
    };
    // What follows tells JSON from the brackets of prompts such as `[cat:dog:0.5]`.
    let opens = |bracket: char, inside: &[char]| {
        first.strip_prefix(bracket).map(str::trim_start).is_some_and(|after| after.is_empty() || after.starts_with(inside))
    };
    match () {
        () if opens('{', &['"']) && first.ends_with('}') => LineFormat::Jsonl,
        // An object over several lines is YAML too.
        () if opens('{', &['"']) || opens('[', &['"', '{', ']']) || first.starts_with("- ") || first == "---" => LineFormat::Yaml,
        () if is_header(b'\t') => LineFormat::Tsv,
        () if is_header(b',') || is_header(b';') => LineFormat::Csv,
        () => LineFormat::Text,
    }
}

/// What a row set, flag by flag, and where.
struct MergedFlags {
    flags: Flags,
    parts: Vec<(usize, Range<usize>)>,
    wrong: Vec<(Range<usize>, String)>,
}

fn merged(row: &RecordRow) -> MergedFlags {
    let mut given: Vec<(usize, &FlagPair, Vec<PlacedValue>)> = Vec::new();
    let mut wrong = Vec::new();
    for pair in &row.pairs {
        // Each error is looked for in the text: a line of ten thousand of them would take minutes.
        if wrong.len() >= SHOWN {
            break;
        }
        if let Some(neutral) = without_effect(&pair.name) {
            let value = pair.values.iter().flatten().next();
            let is_neutral = |value: &str| neutral.is_empty() || neutral.contains(&value.to_lowercase().as_str());
            let said = value.filter(|(value, _)| !is_neutral(value));
            // What A1111's tables say where nothing is meant may be a setting's name too.
            if said.is_none() && (value.is_some() || flag_of(&pair.name).is_err()) {
                continue;
            }
            if let Some((value, part)) = said.filter(|_| flag_of(&pair.name).is_err()) {
                wrong.push((part.clone(), format!("{} {value:?} is not supported; leave it out", pair.name.trim())));
                continue;
            }
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
            None if known.kind.is_switch() => vec![("true".to_owned(), pair.part.clone())],
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
    let mut merged = MergedFlags { flags: Flags::default(), parts: Vec::new(), wrong };
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

impl MergedFlags {
    /// A1111 generates `n_iter` times `batch_size` images.
    fn multiply_repeats(&mut self, row: &RecordRow) {
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
    fn line(&mut self, row: RecordRow) -> Result<Line, LineError> {
        let MergedFlags { flags, parts, wrong } = merged(&row);
        let record = row.record;
        let mut errors: VecDeque<LineError> = wrong.into_iter().map(|(part, what)| record.error(part, what)).collect();
        let flags = flags.over(&self.base);
        // Where a value is bad already, clap would only say so again.
        let draft = if errors.is_empty() { flags.draft() } else { Err(Vec::new()) };
        match draft {
            Ok(draft) if !draft.prompts.is_empty() || draft.template.recreate.is_some() => {
                Ok(Line { number: record.first, flags, draft, at: Vec::new(), labels: Vec::new(), record, of_file: self.of_file, parts })
            }
            Ok(_) => Err(record.error(0..record.text.len(), "the line has no prompt, and no --prompt was given for all lines")),
            Err(wrong) => {
                errors.extend(wrong.into_iter().take(SHOWN).map(|Wrong { flag, what }| record.error(part_of(&record, &parts, flag), what)));
                let first = errors.pop_front();
                self.wrong = errors;
                Err(first.unwrap_or_else(|| record.error(0..record.text.len(), "the line cannot be read")))
            }
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
