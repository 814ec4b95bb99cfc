//! CSV and TSV: the header names flags, an empty cell leaves its flag unset, a cell in quotes may have several lines.

use super::error::LineError;
use super::source::{LONGEST, Source};
use super::{Pair, Row};
use csv_core::{ReadFieldResult, Reader, ReaderBuilder};
use std::collections::VecDeque;
use std::ops::Range;

/// A cell and where it stands, quotes included.
type Cell = (String, Range<usize>);

/// A table's rows, and what is wrong with its header.
pub(super) struct Rows {
    source: Source,
    delimiter: u8,
    /// `None` until the header was read.
    header: Option<Vec<String>>,
    wrong: VecDeque<LineError>,
}

/// Reads rows whose cells stand between `delimiter`s; `None` is a comma, or a semicolon where the header has only those.
pub(super) fn rows(mut source: Source, delimiter: Option<u8>) -> Rows {
    let delimiter = delimiter.unwrap_or_else(|| match source.peek(1).first() {
        Some(header) if header.contains(';') && !header.contains(',') => b';',
        _ => b',',
    });
    Rows { source, delimiter, header: None, wrong: VecDeque::new() }
}

/// The cells of one line, if it is whole in itself.
pub(super) fn cells_of(line: &str, delimiter: u8) -> Vec<String> {
    let mut record = Record::new(delimiter);
    record.push(line);
    record.cells.into_iter().map(|(cell, _)| cell).collect()
}

/// A record that is read line by line.
struct Record {
    reader: Reader,
    text: String,
    cells: Vec<Cell>,
    /// Bytes of the cell that is not at its end yet.
    open: Vec<u8>,
    start: usize,
    whole: bool,
}

impl Record {
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

impl Rows {
    /// The next record that is not empty, and the number of its first line.
    fn record(&mut self) -> Option<Result<(usize, Record), LineError>> {
        let mut first = 0;
        let mut record = Record::new(self.delimiter);
        while !record.whole {
            let (number, line) = match self.source.next() {
                Some(Ok(numbered)) => numbered,
                Some(Err(error)) => return Some(Err(error)),
                None if record.text.is_empty() => return None,
                None => return Some(Err(self.unclosed(first, &record))),
            };
            if record.text.is_empty() {
                if line.trim().is_empty() {
                    continue;
                }
                first = number;
            }
            if record.text.len() + line.len() > LONGEST {
                let error = self.unclosed(first, &record);
                // What follows is inside a cell or not: nobody knows.
                self.source.end();
                return Some(Err(error));
            }
            record.push(&line);
        }
        Some(Ok((first, record)))
    }

    fn unclosed(&self, first: usize, record: &Record) -> LineError {
        let what = "the quote at the start of this cell is never closed; close it, or write \"\" for a quote inside a cell";
        LineError::at(&self.source.file, first, &record.text, record.start..record.start + 1, what)
    }

    fn read_header(&mut self) -> Option<LineError> {
        let (first, record) = match self.record()? {
            Ok(record) => record,
            Err(error) => return Some(error),
        };
        for (name, part) in &record.cells {
            if let Err(what) = super::known(name) {
                self.wrong.push_back(LineError::at(
                    &self.source.file,
                    first,
                    &record.text,
                    part.clone(),
                    format!("the header names a flag for each column: {what}"),
                ));
            }
        }
        if !self.wrong.is_empty() {
            // Every row would repeat it.
            self.source.end();
        }
        self.header = Some(record.cells.into_iter().map(|(name, _)| name).collect());
        self.wrong.pop_front()
    }
}

impl Iterator for Rows {
    type Item = Result<Row, LineError>;

    fn next(&mut self) -> Option<Self::Item> {
        if let Some(error) = self.wrong.pop_front() {
            return Some(Err(error));
        }
        if self.header.is_none()
            && let Some(error) = self.read_header()
        {
            return Some(Err(error));
        }
        let (first, record) = match self.record()? {
            Ok(record) => record,
            Err(error) => return Some(Err(error)),
        };
        let Record { text, cells, .. } = record;
        let header = self.header.as_deref().unwrap_or_default();
        if let Some((_, extra)) = cells.get(header.len()) {
            let what =
                format!("the row has {} cells and the header {}; put a cell that holds a comma into quotes", cells.len(), header.len());
            return Some(Err(LineError::at(&self.source.file, first, &text, extra.start..text.len(), what)));
        }
        let given = header.iter().zip(cells).filter(|(_, (cell, _))| !cell.is_empty());
        let pairs =
            given.map(|(name, (cell, part))| Pair { name: name.clone(), part: part.clone(), values: Some(vec![(cell, part)]) }).collect();
        Some(Ok(Row { first, text, pairs }))
    }
}
