//! YAML: a sequence of maps and texts, or several documents of them. Read event by event, so that neither a long file nor aliases of
//! aliases take more memory than one line may have.

use super::error::{LineError, LineRecord};
use super::row::{FlagPair, RecordRow};
use super::source::{LONGEST, LineSource};
use crate::settings::fold;
use granit_parser::{Event, Parser, ScalarStyle, ScanError, Span};
use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;

/// Nodes of a line, with those that its aliases repeat.
const MOST_NODES: usize = 10_000;
/// Lists in maps in lists: a line needs two.
const DEEPEST: usize = 8;
/// Characters of a line of the file that are kept before and after a line of the batch that is only a part of it.
const MARGIN: usize = 200;

/// Reads the items of all sequences, and the documents that are none.
pub(super) fn rows(source: LineSource) -> impl Iterator<Item = Result<RecordRow, LineError>> {
    let file = source.file.clone();
    let feed = Rc::new(RefCell::new(YamlInput { source, lines: VecDeque::new(), taken: 0, failed: None }));
    let characters = Characters { feed: feed.clone(), line: String::new(), at: 0 };
    YamlRows {
        file,
        feed,
        parser: Parser::new_from_iter(characters),
        in_sequence: false,
        anchors: HashMap::new(),
        anchored: 0,
        ended: false,
    }
}

/// A line of the file, or what is left of it.
struct Held {
    number: usize,
    /// Characters that were cut off its start.
    skipped: usize,
    text: String,
}

/// What was read of the file and is not done with.
struct YamlInput {
    source: LineSource,
    lines: VecDeque<Held>,
    /// Bytes since the last item.
    taken: usize,
    failed: Option<LineError>,
}

impl YamlInput {
    fn line(&mut self) -> Option<String> {
        if self.failed.is_some() {
            return None;
        }
        match self.source.next()? {
            Ok((number, line)) => {
                self.taken += line.len() + 1;
                if self.taken > 2 * LONGEST {
                    let what = "an item longer than a megabyte is open here; a prompt is a few sentences";
                    self.failed = Some(LineError::of_line(&self.source.file, number, what));
                    return None;
                }
                // To YAML a carriage return is the end of a line, and to the counting of lines it is not.
                let mut fed = line.replace('\r', " ");
                fed.push('\n');
                self.lines.push_back(Held { number, skipped: 0, text: line });
                Some(fed)
            }
            Err(error) => {
                self.failed = Some(error);
                None
            }
        }
    }
}

/// The file as characters.
struct Characters {
    feed: Rc<RefCell<YamlInput>>,
    line: String,
    at: usize,
}

impl Iterator for Characters {
    type Item = char;

    fn next(&mut self) -> Option<char> {
        if self.at == self.line.len() {
            self.line = self.feed.borrow_mut().line()?;
            self.at = 0;
        }
        let c = self.line[self.at..].chars().next()?;
        self.at += c.len_utf8();
        Some(c)
    }
}

/// Where a node stands: lines from 1, columns in characters from 0.
#[derive(Debug, Clone, Copy)]
struct At {
    line: usize,
    column: usize,
    end_line: usize,
    end_column: usize,
}

#[derive(Debug, Clone)]
enum Content {
    Scalar { text: String, plain: bool },
    List(Vec<YamlNode>),
    Map(Vec<(YamlNode, YamlNode)>),
}

#[derive(Debug, Clone)]
struct YamlNode {
    at: At,
    content: Content,
}

struct YamlRows<I: Iterator<Item = char>> {
    file: Arc<str>,
    feed: Rc<RefCell<YamlInput>>,
    parser: Parser<'static, granit_parser::BufferedInput<I>>,
    in_sequence: bool,
    anchors: HashMap<usize, YamlNode>,
    /// Nodes that anchors keep.
    anchored: usize,
    ended: bool,
}

/// Why the reading of an item stopped.
enum YamlStop {
    Scan(ScanError),
    /// The item, and so the file, is refused.
    Refused(At, &'static str),
    Ended,
}

impl<I: Iterator<Item = char>> YamlRows<I> {
    fn event(&mut self) -> Result<(Event<'static>, At), YamlStop> {
        match self.parser.next_event() {
            None => Err(YamlStop::Ended),
            Some(Ok((event, span))) => Ok((event, at(span))),
            Some(Err(error)) => Err(YamlStop::Scan(error)),
        }
    }

    /// The next item; `None` is the end of the file.
    fn item(&mut self) -> Result<Option<YamlNode>, YamlStop> {
        loop {
            let (event, at) = self.event()?;
            match event {
                Event::DocumentStart(..) => {
                    self.anchors.clear();
                    self.anchored = 0;
                }
                Event::SequenceStart(..) if !self.in_sequence => self.in_sequence = true,
                Event::SequenceEnd => self.in_sequence = false,
                Event::StreamEnd => return Ok(None),
                Event::Scalar(..) | Event::SequenceStart(..) | Event::MappingStart(..) | Event::Alias(_) => {
                    let mut nodes = 0;
                    return self.node(event, at, 0, &mut nodes).map(Some);
                }
                _ => {}
            }
        }
    }

    fn node(&mut self, event: Event<'static>, at: At, depth: usize, nodes: &mut usize) -> Result<YamlNode, YamlStop> {
        *nodes += 1;
        if *nodes > MOST_NODES {
            return Err(YamlStop::Refused(at, "one line has too many values here; a line is a map of flags"));
        }
        if depth > DEEPEST {
            return Err(YamlStop::Refused(at, "this is nested too deeply; a line is a map of flags"));
        }
        let mut end = at;
        let (content, anchor) = match event {
            Event::Scalar(text, style, anchor, _) => {
                (Content::Scalar { text: text.into_owned(), plain: style == ScalarStyle::Plain }, anchor)
            }
            Event::SequenceStart(_, anchor, _) => {
                let mut list = Vec::new();
                loop {
                    let (event, at) = self.event()?;
                    if event == Event::SequenceEnd {
                        end = at;
                        break;
                    }
                    list.push(self.node(event, at, depth + 1, nodes)?);
                }
                (Content::List(list), anchor)
            }
            Event::MappingStart(_, anchor, _) => {
                let mut map = Vec::new();
                loop {
                    let (event, at) = self.event()?;
                    if event == Event::MappingEnd {
                        end = at;
                        break;
                    }
                    let key = self.node(event, at, depth + 1, nodes)?;
                    let (event, at) = self.event()?;
                    map.push((key, self.node(event, at, depth + 1, nodes)?));
                }
                (Content::Map(map), anchor)
            }
            Event::Alias(anchor) => {
                let Some(node) = self.anchors.get(&anchor) else {
                    return Err(YamlStop::Refused(at, "this alias stands inside of what it names"));
                };
                return node.copied(at, depth, nodes);
            }
            _ => return Err(YamlStop::Refused(at, "a value was expected here")),
        };
        let at = At { end_line: end.end_line, end_column: end.end_column, ..at };
        let node = YamlNode { at, content };
        if anchor != 0 {
            self.anchored += node.size();
            if self.anchored > LONGEST {
                return Err(YamlStop::Refused(node.at, "the anchors of the file hold more than a megabyte"));
            }
            self.anchors.insert(anchor, node.clone());
        }
        Ok(node)
    }

    /// The lines of the file that a node stands on, as one record; those before it are forgotten.
    fn record(&mut self, at: At) -> LineRecord {
        let mut feed = self.feed.borrow_mut();
        feed.taken = 0;
        let last = if at.end_column == 0 { at.end_line.saturating_sub(1).max(at.line) } else { at.end_line };
        while feed.lines.front().is_some_and(|line| line.number < at.line) {
            feed.lines.pop_front();
        }
        // Items may share one line of the file, and that may be long: each gets its own part of it.
        let mut skipped = 0;
        if let Some(line) = feed.lines.front_mut() {
            let keep = at.column.saturating_sub(MARGIN);
            if keep > line.skipped {
                line.text.drain(..byte(&line.text, keep - line.skipped));
                line.skipped = keep;
            }
            skipped = line.skipped;
        }
        let within = feed.lines.iter().take_while(|line| line.number <= last);
        let lines: Vec<&str> = within
            .map(|line| match line.number == at.end_line {
                true => &line.text[..byte(&line.text, (at.end_column + MARGIN).saturating_sub(line.skipped))],
                false => line.text.as_str(),
            })
            .collect();
        let mut text = lines.join("\n");
        text.truncate(text.trim_end().len());
        LineRecord { file: self.file.clone(), first: at.line, skipped, text }
    }

    /// The error that ends the reading, if it is one.
    fn stopped(&mut self, stop: YamlStop) -> Option<LineError> {
        self.ended = true;
        if let Some(failed) = self.feed.borrow_mut().failed.take() {
            return Some(failed);
        }
        let (at, what) = match stop {
            YamlStop::Ended => return None,
            YamlStop::Refused(at, what) => (at, what.to_owned()),
            YamlStop::Scan(error) => {
                let (line, column) = (error.marker().line(), error.marker().col());
                let at = At { line, column, end_line: line, end_column: column + 1 };
                (at, format!("not YAML: {}", error.kind()))
            }
        };
        let known = self.feed.borrow().lines.iter().any(|line| line.number == at.line);
        if !known {
            return Some(LineError::of_line(&self.file, at.line, what));
        }
        let record = self.record(At { end_line: at.line, end_column: at.end_column.max(at.column + 1), ..at });
        Some(record.error(place(&record, at), what))
    }
}

fn at(span: Span) -> At {
    At { line: span.start.line(), column: span.start.col(), end_line: span.end.line(), end_column: span.end.col() }
}

/// The byte of a line's character.
fn byte(line: &str, column: usize) -> usize {
    line.char_indices().nth(column).map_or(line.len(), |(at, _)| at)
}

/// A node's place in the text of its record.
fn place(record: &LineRecord, at: At) -> Range<usize> {
    let offset = |line: usize, column: usize| {
        let mut start = 0;
        for _ in record.first..line {
            start += record.text[start..].find('\n').map_or(record.text.len() - start, |end| end + 1);
        }
        let skipped = if line == record.first { record.skipped } else { 0 };
        start + byte(&record.text[start..], column.saturating_sub(skipped))
    };
    offset(at.line, at.column)..offset(at.end_line, at.end_column)
}

impl YamlNode {
    /// This node in the place of an alias.
    fn copied(&self, at: At, depth: usize, nodes: &mut usize) -> Result<Self, YamlStop> {
        *nodes += 1;
        if *nodes > MOST_NODES || depth > DEEPEST {
            return Err(YamlStop::Refused(at, "aliases make this line too large; a line is a map of flags"));
        }
        let mut copy = |node: &Self| node.copied(at, depth + 1, nodes);
        let content = match &self.content {
            Content::Scalar { text, plain } => {
                // A text weighs as many nodes as it has hundreds of bytes.
                let weight = text.len() / 100;
                let content = Content::Scalar { text: text.clone(), plain: *plain };
                *nodes += weight;
                content
            }
            Content::List(list) => Content::List(list.iter().map(copy).collect::<Result<_, _>>()?),
            Content::Map(map) => Content::Map(map.iter().map(|(key, value)| Ok((copy(key)?, copy(value)?))).collect::<Result<_, _>>()?),
        };
        Ok(Self { at, content })
    }

    /// About the bytes that it holds.
    fn size(&self) -> usize {
        let inside = match &self.content {
            Content::Scalar { text, .. } => text.len(),
            Content::List(list) => list.iter().map(Self::size).sum(),
            Content::Map(map) => map.iter().map(|(key, value)| key.size() + value.size()).sum(),
        };
        inside + size_of::<Self>()
    }

    /// A scalar's text; `None` inside is YAML's null.
    fn scalar(&self) -> Option<Option<&str>> {
        match &self.content {
            Content::Scalar { text, plain } => {
                Some(Some(text.as_str()).filter(|text| !plain || !["", "~", "null", "Null", "NULL"].contains(text)))
            }
            _ => None,
        }
    }
}

type YamlError = (Range<usize>, String);

fn pairs(record: &LineRecord, item: &YamlNode) -> Result<Vec<FlagPair>, YamlError> {
    let value = |node: &YamlNode| match node.scalar() {
        Some(text) => Ok((text.unwrap_or_default().to_owned(), place(record, node.at))),
        None => Err((place(record, node.at), "a value is a number, true, false or a text, or a list of them".to_owned())),
    };
    let entries = match &item.content {
        Content::Map(entries) => entries,
        Content::Scalar { .. } if item.scalar() != Some(None) => {
            let (prompt, part) = value(item)?;
            return Ok(vec![FlagPair { name: "prompt".into(), part: part.clone(), values: Some(vec![(prompt, part)]) }]);
        }
        _ => return Err((place(record, item.at), "a line is a map such as {prompt: a cat}, or a text, which is a prompt".into())),
    };
    let mut pairs: Vec<FlagPair> = Vec::with_capacity(entries.len());
    let mut inherited: Vec<&(YamlNode, YamlNode)> = Vec::new();
    for entry in entries {
        let (key, node) = entry;
        if key.scalar() == Some(Some("<<")) {
            let maps = if let Content::List(list) = &node.content { list.as_slice() } else { std::slice::from_ref(node) };
            for map in maps {
                let Content::Map(entries) = &map.content else {
                    return Err((place(record, node.at), "<< takes a map, or a list of maps".into()));
                };
                inherited.extend(entries);
            }
            continue;
        }
        pairs.extend(pair(entry, &value)?);
    }
    for entry in inherited {
        // What the map says itself, or a map named earlier, wins.
        if let Some(pair) = pair(entry, &value)?
            && !pairs.iter().any(|known| fold(&known.name) == fold(&pair.name))
        {
            pairs.push(pair);
        }
    }
    Ok(pairs)
}

/// An entry of a map; `None` where its value is null.
fn pair(
    (key, node): &(YamlNode, YamlNode),
    value: &impl Fn(&YamlNode) -> Result<(String, Range<usize>), YamlError>,
) -> Result<Option<FlagPair>, YamlError> {
    let (name, part) = value(key)?;
    let values = match &node.content {
        Content::List(list) => list.iter().map(value).collect::<Result<_, _>>()?,
        _ if node.scalar() == Some(None) => return Ok(None),
        _ => vec![value(node)?],
    };
    Ok(Some(FlagPair { name, part, values: Some(values) }))
}

impl<I: Iterator<Item = char>> Iterator for YamlRows<I> {
    type Item = Result<RecordRow, LineError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let item = loop {
            match self.item() {
                // An empty document, as after a last `---`.
                Ok(Some(item)) if !self.in_sequence && item.scalar() == Some(None) => {}
                Ok(Some(item)) => break item,
                Ok(None) => return self.stopped(YamlStop::Ended).map(Err),
                Err(stop) => return self.stopped(stop).map(Err),
            }
        };
        let record = self.record(item.at);
        Some(match pairs(&record, &item) {
            Ok(pairs) => Ok(RecordRow { record, pairs }),
            Err((part, what)) => Err(record.error(part, what)),
        })
    }
}
