//! What is wrong with a line, with a caret under the text at fault.

use crate::cli::terminal::show::steers;
use crate::{Error, Result};
use std::fmt::{self, Display, Formatter};
use std::ops::Range;
use std::sync::Arc;
use unicode_width::UnicodeWidthChar;

/// Errors of a file that are shown; more are only counted.
pub(super) const SHOWN: usize = 50;
/// Errors after which a file is not read on: it may have no end.
const ENOUGH: usize = 100_000;
/// Columns of a line that are shown around the caret.
const WINDOW: usize = 100;

/// One thing that is wrong in a file of lines.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::cli) struct LineError {
    pub(in crate::cli) file: Arc<str>,
    pub(in crate::cli) line: usize,
    /// In characters, from 1; 0 is the whole line.
    pub(in crate::cli) column: usize,
    /// What is wrong and what to try.
    pub(in crate::cli) what: String,
    /// The line and the carets below it.
    shown: Option<(String, String)>,
}

impl LineError {
    /// About a whole line, or the file from there on.
    pub(in crate::cli) fn of_line(file: &Arc<str>, line: usize, what: impl Into<String>) -> Self {
        Self { file: file.clone(), line, column: 0, what: what.into(), shown: None }
    }
}

/// A piece of a file that is one line of the batch, and where it stands.
#[derive(Debug, Clone)]
pub(in crate::cli) struct LineRecord {
    pub(in crate::cli) file: Arc<str>,
    /// The number of its first line.
    pub(in crate::cli) first: usize,
    /// Characters of that line before it.
    pub(in crate::cli) skipped: usize,
    pub(in crate::cli) text: String,
}

impl LineRecord {
    /// A line as a whole.
    pub(in crate::cli) fn line(file: &Arc<str>, number: usize, text: String) -> Self {
        Self { file: file.clone(), first: number, skipped: 0, text }
    }

    /// What is wrong with a part of it.
    pub(in crate::cli) fn error(&self, part: Range<usize>, what: impl Into<String>) -> LineError {
        let start = self.text.floor_char_boundary(part.start);
        let end = self.text.floor_char_boundary(part.end).max(start);
        let before = &self.text[..start];
        let begin = before.rfind('\n').map_or(0, |at| at + 1);
        let line = self.text[begin..].split('\n').next().unwrap_or_default();
        let column = before[begin..].chars().count();
        let length = self.text[start..end].split('\n').next().unwrap_or_default().chars().count();
        let skipped = if begin == 0 { self.skipped } else { 0 };
        LineError {
            file: self.file.clone(),
            line: self.first + before.matches('\n').count(),
            column: skipped + column + 1,
            what: what.into(),
            shown: Some(excerpt(line, column, length)),
        }
    }
}

/// The part of a line around a place, harmless on a terminal, and carets below.
fn excerpt(line: &str, column: usize, length: usize) -> (String, String) {
    let from = if column > WINDOW * 2 / 3 { column - WINDOW / 3 } else { 0 };
    let mut characters = line.chars().skip(from);
    let window: Vec<char> = characters.by_ref().take(WINDOW).map(|c| if steers(c) { ' ' } else { c }).collect();
    let mut shown = String::from(if from > 0 { "…" } else { "" });
    let mut carets = String::from(if from > 0 { " " } else { "" });
    for (at, c) in window.iter().enumerate() {
        shown.push(*c);
        let marked = at + from >= column && at + from < column + length.max(1);
        for _ in 0..c.width().unwrap_or(0) {
            carets.push(if marked { '^' } else { ' ' });
        }
    }
    if characters.next().is_some() {
        shown.push('…');
    }
    // The end of the line, one beyond its last character.
    if column >= from + window.len() {
        carets.push('^');
    }
    (shown, carets.trim_end().to_owned())
}

impl Display for LineError {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Self { file, line, column, what, shown } = self;
        match column {
            0 => write!(f, "{file}:{line}: {what}")?,
            _ => write!(f, "{file}:{line}:{column}: {what}")?,
        }
        let Some((text, carets)) = shown else { return Ok(()) };
        let number = line.to_string();
        write!(f, "\n  {number} | {text}\n  {} | {carets}", " ".repeat(number.len()))
    }
}

/// What is wrong in a file, all of it: the first ones in full, the others counted.
#[derive(Debug, Default)]
pub(in crate::cli) struct LineErrors {
    first: Vec<LineError>,
    count: usize,
}

impl LineErrors {
    /// Notes an error.
    pub(in crate::cli) fn push(&mut self, error: LineError) {
        self.push_with(|| error);
    }

    /// Notes an error that is only made where it is shown: finding its place takes as long as the text before it.
    pub(in crate::cli) fn push_with(&mut self, error: impl FnOnce() -> LineError) {
        self.count += 1;
        if self.first.len() < SHOWN {
            self.first.push(error());
        }
    }

    /// Whether so much is wrong that reading on helps nobody.
    pub(in crate::cli) fn are_too_many(&self) -> bool {
        self.count >= ENOUGH
    }

    /// Ends the reading.
    ///
    /// # Errors
    /// There were errors: one that holds them all.
    pub(in crate::cli) fn finish(self) -> Result<()> {
        let Some(first) = self.first.first() else { return Ok(()) };
        let shown: Vec<String> = self.first.iter().map(LineError::to_string).collect();
        let more = self.count - self.first.len();
        let last = match (self.count, more) {
            (1, _) => String::new(),
            (count, 0) => format!("\n{count} errors in {}; nothing was generated", first.file),
            (count, more) => format!("\n{count} errors in {}, and {more} of them are not shown; nothing was generated", first.file),
        };
        Err(Error::Input(format!("{}{last}", shown.join("\n"))))
    }
}
