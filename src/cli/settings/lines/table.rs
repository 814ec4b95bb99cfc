//! CSV and TSV: the header names flags, an empty cell leaves its flag unset, a cell in quotes may have several lines.

use super::error::{LineError, LineRecord, SHOWN};
use super::row::{FlagPair, RecordRow, known};
use super::source::{LONGEST, LineSource};
use crate::settings::fold;
use csv_core::{ReadFieldResult, Reader, ReaderBuilder};
use std::collections::{HashSet, VecDeque};
use std::ops::Range;

/// A cell and where it stands, quotes included.
type Cell = (String, Range<usize>);

/// A table's rows, and what is wrong with its header.
pub(super) struct TableRows {
    source: LineSource,
    delimiter: u8,
    /// `None` until the header was read.
    header: Option<Vec<String>>,
    /// The columns that count, folded, and the settings that they are; all count by their own names where there are none.
    columns: Vec<(String, String)>,
    wrong: VecDeque<LineError>,
}

/// Reads rows whose cells stand between `delimiter`s; `None` is a comma, or a semicolon where the header has only those.
pub(super) fn rows(mut source: LineSource, delimiter: Option<u8>, columns: &[String]) -> TableRows {
    let delimiter = delimiter.unwrap_or_else(|| match source.peek(1).first() {
        Some(header) if header.contains(';') && !header.contains(',') => b';',
        _ => b',',
    });
    // "prompt", or "prompt=Caption" where the header has another name.
    let named = |text: &String| text.split_once('=').map_or((fold(text), text.clone()), |(setting, name)| (fold(name), setting.to_owned()));
    let columns = columns.iter().map(named).collect();
    TableRows { source, delimiter, header: None, columns, wrong: VecDeque::new() }
}

/// The cells of one record; `None` where a quote stays open or there is more than one record.
pub(in crate::cli) fn cells_of(text: &str, delimiter: u8) -> Option<Vec<String>> {
    let mut record = Cells::new(delimiter);
    record.push(text);
    (record.whole && record.start > text.len()).then(|| record.cells.into_iter().map(|(cell, _)| cell).collect())
}

/// A record that is read line by line.
struct Cells {
    reader: Reader,
    text: String,
    cells: Vec<Cell>,
    /// Bytes of the cell that is not at its end yet.
    open: Vec<u8>,
    start: usize,
    whole: bool,
}

impl Cells {
    fn new(delimiter: u8) -> Self {
        let reader = ReaderBuilder::new().delimiter(delimiter).build();
        Self { reader, text: String::new(), cells: Vec::new(), open: Vec::new(), start: 0, whole: false }
    }

    fn push(&mut self, line: &str) {
        let mut at = self.text.len();
        self.text.push_str(line);
        self.text.push('\n');
        let mut buffer = [0; 1024];
        loop {
            let (result, read, written) = self.reader.read_field(&self.text.as_bytes()[at..], &mut buffer);
            at += read;
            self.open.extend_from_slice(&buffer[..written]);
            match result {
                // The cell goes on in the next line.
                ReadFieldResult::InputEmpty | ReadFieldResult::End => return,
                ReadFieldResult::OutputFull => {}
                ReadFieldResult::Field { record_end } => {
                    // Splitting text at ASCII characters leaves text.
                    let cell = String::from_utf8_lossy(&std::mem::take(&mut self.open)).into_owned();
                    self.cells.push((cell, self.start..at - 1));
                    self.start = at;
                    if record_end {
                        self.whole = true;
                        self.text.pop();
                        return;
                    }
                }
            }
        }
    }
}

impl TableRows {
    /// The setting that a column is, where it counts.
    fn setting<'a>(&'a self, name: &'a str) -> Option<&'a str> {
        if self.columns.is_empty() {
            return Some(name);
        }
        self.columns.iter().find(|(column, _)| *column == fold(name)).map(|(_, setting)| setting.as_str())
    }

    /// The next record that is not empty.
    fn record(&mut self) -> Option<Result<(LineRecord, Vec<Cell>), LineError>> {
        let mut first = 0;
        let mut cells = Cells::new(self.delimiter);
        while !cells.whole {
            let (number, line) = match self.source.next() {
                Some(Ok(numbered)) => numbered,
                Some(Err(error)) => return Some(Err(error)),
                None if cells.text.is_empty() => return None,
                None => return Some(Err(self.unclosed(first, cells))),
            };
            if cells.text.is_empty() {
                if line.trim().is_empty() {
                    continue;
                }
                first = number;
            }
            if cells.text.len() + line.len() > LONGEST {
                // What follows is inside a cell or not: nobody knows.
                self.source.end();
                return Some(Err(self.unclosed(first, cells)));
            }
            cells.push(&line);
        }
        Some(Ok((LineRecord::line(&self.source.file, first, cells.text), cells.cells)))
    }

    fn unclosed(&self, first: usize, cells: Cells) -> LineError {
        let what = "the quote at the start of this cell is never closed; close it, or write \"\" for a quote inside a cell";
        LineRecord::line(&self.source.file, first, cells.text).error(cells.start..cells.start + 1, what)
    }

    fn read_header(&mut self) -> Option<LineError> {
        let (record, cells) = match self.record()? {
            Ok(record) => record,
            Err(error) => return Some(error),
        };
        let mut names = HashSet::new();
        for (name, part) in &cells {
            if self.wrong.len() >= SHOWN {
                break;
            }
            let Some(setting) = self.setting(name) else {
                names.insert(fold(name));
                continue;
            };
            let wrong = if !names.insert(fold(name)) {
                Err(format!("the column {name:?} is there twice; leave one out"))
            } else {
                known(setting).map_err(|what| format!("{what} (--columns names the columns that count, as in --columns prompt=Caption)"))
            };
            if let Err(what) = wrong {
                self.wrong.push_back(record.error(part.clone(), format!("the header names a flag for each column: {what}")));
            }
        }
        if let Some((absent, _)) = self.columns.iter().find(|(name, _)| !names.contains(name)) {
            self.wrong.push_back(record.error(0..record.text.len(), format!("--columns: the table has no column {absent:?}")));
        }
        if !self.wrong.is_empty() {
            // Every row would repeat it.
            self.source.end();
        }
        self.header = Some(cells.into_iter().map(|(name, _)| name).collect());
        self.wrong.pop_front()
    }
}

impl Iterator for TableRows {
    type Item = Result<RecordRow, LineError>;

    fn next(&mut self) -> Option<Self::Item> {
        if let Some(error) = self.wrong.pop_front() {
            return Some(Err(error));
        }
        if self.header.is_none()
            && let Some(error) = self.read_header()
        {
            return Some(Err(error));
        }
        let (record, cells) = match self.record()? {
            Ok(record) => record,
            Err(error) => return Some(Err(error)),
        };
        let header = self.header.as_deref().unwrap_or_default();
        if let Some((_, extra)) = cells.get(header.len()) {
            let what =
                format!("the row has {} cells and the header {}; put a cell that holds a comma into quotes", cells.len(), header.len());
            return Some(Err(record.error(extra.start..record.text.len(), what)));
        }
        let given = header.iter().zip(cells).filter(|(_, (cell, _))| !cell.is_empty());
        let pair =
            |name: &str, cell, part: Range<usize>| FlagPair { name: name.to_owned(), part: part.clone(), values: Some(vec![(cell, part)]) };
        let pairs = given.filter_map(|(name, (cell, part))| Some(pair(self.setting(name)?, cell, part))).collect();
        Some(Ok(RecordRow { record, pairs }))
    }
}
