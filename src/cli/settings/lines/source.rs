//! The lines of a file as they stand, one at a time: no line is longer than a prompt may be, and all are text.

use super::error::{LineError, LineRecord};
use crate::disk::is_file_or_pipe;
use crate::{Error, Result};
use std::collections::VecDeque;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::sync::Arc;

/// Bytes of a line, and of a record over several lines. More than a megabyte is a file given by mistake.
pub(super) const LONGEST: usize = 1 << 20;
/// Bytes without the end of a line after which a file is no text, and not read on: it may have no end.
const HOPELESS: u64 = 64 << 20;
/// Lines that are read, empty ones included: a pipe may have no end either.
const MOST_LINES: usize = 100_000_000;

/// A line of the file without its end, and its number from 1.
pub(super) type Numbered = (usize, String);

/// Reads lines. After a line with an error it goes on with the next one.
pub(super) struct LineSource {
    pub(super) file: Arc<str>,
    reader: Box<dyn BufRead>,
    /// Lines read so far.
    number: usize,
    /// Lines that were looked at and given back.
    ahead: VecDeque<Result<Numbered, LineError>>,
    ended: bool,
}

impl LineSource {
    /// Opens a file, a pipe, or standard input for `-`.
    ///
    /// # Errors
    /// It cannot be read, or it is a folder.
    pub(super) fn open(path: &Path) -> Result<Self> {
        if path.as_os_str() == "-" {
            return Ok(Self::new("standard input", std::io::stdin().lock()));
        }
        let wrong = |what: String| Error::Input(format!("{}: {what}", path.display()));
        let missing = |e: std::io::Error| wrong(format!("the file of lines cannot be read: {e}"));
        // Before opening: a device may do something then, and /dev/zero has no end.
        let kind = std::fs::metadata(path).map_err(missing)?.file_type();
        if kind.is_dir() {
            return Err(wrong("is a folder; give a file with a prompt a line".into()));
        }
        if !is_file_or_pipe(kind) {
            return Err(wrong("is neither a file nor a pipe; give a file with a prompt a line, or - for standard input".into()));
        }
        Ok(Self::new(&path.display().to_string(), BufReader::new(File::open(path).map_err(missing)?)))
    }

    pub(super) fn new(file: &str, reader: impl BufRead + 'static) -> Self {
        Self { file: file.into(), reader: Box::new(reader), number: 0, ahead: VecDeque::new(), ended: false }
    }

    /// Looks at the first lines that are not empty, without taking any.
    pub(super) fn peek(&mut self, count: usize) -> Vec<String> {
        /// Empty lines and comments before a file's first line that are passed over.
        const MOST: usize = 100;
        let mut seen = VecDeque::new();
        let mut found = Vec::new();
        while found.len() < count && seen.len() < MOST {
            let Some(line) = self.next() else { break };
            if let Ok((_, text)) = &line {
                let text = text.trim();
                if !text.is_empty() && !text.starts_with('#') {
                    found.push(text.to_owned());
                }
            }
            seen.push_back(line);
        }
        seen.append(&mut self.ahead);
        self.ahead = seen;
        found
    }

    /// Nothing is read any more.
    pub(super) fn end(&mut self) {
        self.ahead.clear();
        self.ended = true;
    }

    /// The bytes up to the next line's end, which is taken and left out. `None` in it is a line that is too long.
    fn bytes(&mut self) -> std::io::Result<Option<Option<Vec<u8>>>> {
        let mut line = Vec::new();
        let within = self.reader.by_ref().take(LONGEST as u64 + 1).read_until(b'\n', &mut line)?;
        if within == 0 {
            return Ok(None);
        }
        if line.last() == Some(&b'\n') {
            line.pop();
            return Ok(Some(Some(line)));
        }
        if within <= LONGEST {
            return Ok(Some(Some(line)));
        }
        let skipped = self.reader.by_ref().take(HOPELESS).skip_until(b'\n')?;
        self.ended = skipped as u64 == HOPELESS;
        Ok(Some(None))
    }

    fn read(&mut self) -> Option<Result<Numbered, LineError>> {
        if self.ended {
            return None;
        }
        self.number += 1;
        if self.number > MOST_LINES {
            self.ended = true;
            return Some(Err(LineError::of_line(
                &self.file,
                self.number,
                format!("there are more than {MOST_LINES} lines; split the file"),
            )));
        }
        let (file, number) = (self.file.clone(), self.number);
        let mut bytes = match self.bytes() {
            Ok(None) => return None,
            Ok(Some(Some(bytes))) => bytes,
            Ok(Some(None)) => {
                return Some(Err(LineError::of_line(
                    &file,
                    number,
                    "the line is longer than a megabyte; break it, and keep prompts to a few sentences",
                )));
            }
            Err(error) => {
                self.ended = true;
                return Some(Err(LineError::of_line(&file, number, format!("the file cannot be read on: {error}"))));
            }
        };
        if number == 1 && (bytes.starts_with(b"\xff\xfe") || bytes.starts_with(b"\xfe\xff")) {
            self.ended = true;
            return Some(Err(LineError::of_line(&file, number, "the file is UTF-16 text; save it as UTF-8")));
        }
        if number == 1 && bytes.starts_with(b"\xef\xbb\xbf") {
            bytes.drain(..3);
        }
        if bytes.last() == Some(&b'\r') {
            bytes.pop();
        }
        let text = match String::from_utf8(bytes) {
            Ok(text) => text,
            Err(error) => {
                let valid = error.utf8_error().valid_up_to();
                let (byte, text) = (error.as_bytes()[valid], String::from_utf8_lossy(error.as_bytes()));
                let what = format!("byte {} of the line, {byte:#04x}, is not UTF-8 text; save the file as UTF-8", valid + 1);
                return Some(Err(LineRecord::line(&file, number, text.into_owned()).error(valid..valid + 1, what)));
            }
        };
        if let Some(at) = text.find('\0') {
            return Some(Err(LineRecord::line(&file, number, text).error(at..at + 1, "the line holds a NUL character; it is not text")));
        }
        Some(Ok((number, text)))
    }
}

impl Iterator for LineSource {
    type Item = Result<Numbered, LineError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.ahead.pop_front().or_else(|| self.read())
    }
}
