//! A1111's prompt editing: `[from:to:when]`, `[to:when]`, `[from::when]` and the alternation `[a|b]`.
//!
//! A1111 reads them by a grammar in which brackets nest, and in which a bracket outside of all groups may also be text. That leaves
//! texts with two readings, between which its parser library chooses by its inner workings; here a group that can be read is read.
//! A `|` outside of an alternation, or a backslash at the end, is an error of that grammar, and A1111 then edits nothing at all.

use super::{DEEPEST_NESTING, LONGEST_TIMELINE, PromptReading, too_deep};
use crate::{Error, Result};
use std::collections::{BTreeSet, HashSet};
use std::ops::Range;

/// What the number of `[from:to:when]` counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum PromptScheduling {
    /// With a decimal point a share of the steps, of the second pass from 1.0 on; without one a step.
    #[default]
    Current,
    /// A1111 before 1.6: below 1 a share of the steps, else a step.
    Before1_6,
}

/// A piece of a prompt.
#[derive(Debug)]
enum Node {
    Text(Range<usize>),
    /// `after` from the step `when` on.
    Edit {
        before: Vec<Node>,
        after: Vec<Node>,
        when: usize,
    },
    Alternate(Vec<Vec<Node>>),
}

/// The texts with the last step, counted as the samplers do, at which each holds.
pub(super) fn timeline(text: &str, reading: &PromptReading) -> Result<Vec<(usize, String)>> {
    let steps = match reading.scheduling {
        PromptScheduling::Current => reading.hires_steps.unwrap_or(reading.steps),
        PromptScheduling::Before1_6 => reading.steps,
    };
    let Some(nodes) = Parser::new(text, reading, steps)?.and_then(|mut parser| parser.all()) else {
        return Ok(vec![(steps, text.to_owned())]);
    };
    let mut ends = BTreeSet::from([steps]);
    collect(&nodes, steps, &mut ends);
    if ends.len().saturating_mul(text.len()) > LONGEST_TIMELINE {
        return Err(Error::Input(format!(
            "the prompt of {} bytes changes {} times over the steps, which is too much text; shorten it or take fewer steps",
            text.len(),
            ends.len()
        )));
    }
    let at = |step: usize| {
        let mut written = String::with_capacity(text.len());
        write(&nodes, step, text, &mut written);
        (step, written)
    };
    Ok(ends.into_iter().map(at).collect())
}

/// The steps at which something ends.
fn collect(nodes: &[Node], steps: usize, ends: &mut BTreeSet<usize>) {
    for node in nodes {
        match node {
            Node::Text(_) => {}
            Node::Edit { before, after, when } => {
                ends.extend((*when >= 1).then_some(*when));
                collect(before, steps, ends);
                collect(after, steps, ends);
            }
            Node::Alternate(options) => {
                ends.extend(1..=steps);
                options.iter().for_each(|option| collect(option, steps, ends));
            }
        }
    }
}

fn write(nodes: &[Node], step: usize, text: &str, into: &mut String) {
    for node in nodes {
        match node {
            Node::Text(range) => into.push_str(&text[range.clone()]),
            Node::Edit { before, after, when } => write(if step <= *when { before } else { after }, step, text, into),
            Node::Alternate(options) => write(&options[step.saturating_sub(1) % options.len()], step, text, into),
        }
    }
}

/// A mark of the grammar, by its place.
#[derive(Debug, Clone, Copy)]
struct Mark {
    at: usize,
    c: u8,
    /// For an opening bracket: the mark that closes it, where all between the two is balanced.
    closed_by: Option<usize>,
}

struct Parser<'a> {
    text: &'a str,
    reading: &'a PromptReading,
    steps: usize,
    marks: Vec<Mark>,
    /// Groups that were tried, by their first mark, and are none.
    refused: HashSet<usize>,
}

impl<'a> Parser<'a> {
    /// `None` where the grammar has no place for a character.
    fn new(text: &'a str, reading: &'a PromptReading, steps: usize) -> Result<Option<Self>> {
        let mut marks: Vec<Mark> = Vec::new();
        let mut open: Vec<usize> = Vec::new();
        let bytes = text.as_bytes();
        let mut at = 0;
        while let Some(&c) = bytes.get(at) {
            match c {
                b'\\' if matches!(bytes.get(at + 1), None | Some(b'\n')) => return Ok(None),
                // What follows is text, however many bytes it has: none of them is a mark.
                b'\\' => at += 1,
                b'(' | b'[' => {
                    open.push(marks.len());
                    marks.push(Mark { at, c, closed_by: None });
                    if open.len() > DEEPEST_NESTING {
                        return Err(too_deep());
                    }
                }
                b')' | b']' => {
                    let opening = if c == b')' { b'(' } else { b'[' };
                    match open.pop() {
                        Some(opened) if marks[opened].c == opening => marks[opened].closed_by = Some(marks.len()),
                        // Nothing that is open here can be closed any more with balanced brackets inside.
                        _ => open.clear(),
                    }
                    marks.push(Mark { at, c, closed_by: None });
                }
                b':' | b'|' => marks.push(Mark { at, c, closed_by: None }),
                _ => {}
            }
            at += 1;
        }
        Ok(Some(Self { text, reading, steps, marks, refused: HashSet::new() }))
    }

    /// The whole text: groups where they can be read, all else as it stands.
    fn all(&mut self) -> Option<Vec<Node>> {
        let mut nodes = Vec::new();
        let (mut from, mut mark) = (0, 0);
        while mark < self.marks.len() {
            let Mark { at, c, closed_by } = self.marks[mark];
            match (c, closed_by) {
                (b'|', _) => return None,
                (_, Some(close)) => {
                    if let Some(group) = self.group(mark, close) {
                        nodes.push(Node::Text(from..at));
                        nodes.extend(group);
                        from = self.marks[close].at + 1;
                        mark = close;
                    }
                }
                _ => {}
            }
            mark += 1;
        }
        nodes.push(Node::Text(from..self.text.len()));
        Some(nodes)
    }

    /// The group between two brackets, if it is one.
    fn group(&mut self, open: usize, close: usize) -> Option<Vec<Node>> {
        if self.refused.contains(&open) {
            return None;
        }
        let read = self.read(open, close);
        if read.is_none() {
            self.refused.insert(open);
        }
        read
    }

    fn read(&mut self, open: usize, close: usize) -> Option<Vec<Node>> {
        let (start, end) = (self.marks[open].at, self.marks[close].at);
        let mut options = vec![Vec::new()];
        let mut separators: Vec<Mark> = Vec::new();
        let (mut from, mut mark) = (start + 1, open + 1);
        while mark < close {
            let Mark { at, c, closed_by } = self.marks[mark];
            let option = options.last_mut()?;
            match c {
                b':' | b'|' => {
                    option.push(Node::Text(from..at));
                    separators.push(self.marks[mark]);
                    options.push(Vec::new());
                    from = at + 1;
                }
                _ => {
                    let closed = closed_by?;
                    option.push(Node::Text(from..at));
                    let group = self.group(mark, closed)?;
                    options.last_mut()?.extend(group);
                    from = self.marks[closed].at + 1;
                    mark = closed;
                }
            }
            mark += 1;
        }
        options.last_mut()?.push(Node::Text(from..end));
        let round = self.marks[open].c == b'(';
        let kinds: Vec<u8> = separators.iter().map(|separator| separator.c).collect();
        match (&kinds[..], round) {
            ([], _) | ([b':'], true) => {
                // Emphasis, which is read later: its brackets and its colon are text.
                let mut nodes = vec![Node::Text(start..start + 1)];
                for (i, option) in options.into_iter().enumerate() {
                    nodes.extend(separators.get(i.wrapping_sub(1)).map(|colon| Node::Text(colon.at..colon.at + 1)));
                    nodes.extend(option);
                }
                nodes.push(Node::Text(end..end + 1));
                Some(nodes)
            }
            ([b':'] | [b':', b':'], false) => {
                let when = self.when(&self.text[separators.last()?.at + 1..end])?;
                options.pop();
                let after = options.pop()?;
                Some(vec![Node::Edit { before: options.pop().unwrap_or_default(), after, when }])
            }
            (kinds, false) if kinds.iter().all(|&kind| kind == b'|') => Some(vec![Node::Alternate(options)]),
            _ => None,
        }
    }

    /// The last step at which `before` holds: 0 for none.
    fn when(&self, number: &str) -> Option<usize> {
        let number = number.trim();
        let digits = number.strip_prefix(['+', '-']).unwrap_or(number);
        let plain = digits.starts_with(|c: char| c.is_ascii_digit() || c == '.')
            && digits.chars().all(|c| c.is_ascii_digit() || matches!(c, '.' | 'e' | 'E' | '+' | '-'));
        let value: f64 = plain.then(|| number.parse().ok()).flatten()?;
        let steps = self.steps as f64;
        let step = match (self.reading.scheduling, self.reading.hires_steps) {
            (PromptScheduling::Before1_6, _) if value < 1.0 => value * steps,
            (PromptScheduling::Before1_6, _) => value,
            (PromptScheduling::Current, None) if number.contains('.') => value * steps,
            (PromptScheduling::Current, Some(_)) if number.contains('.') => (value - 1.0) * steps,
            (PromptScheduling::Current, Some(_)) => value - self.reading.steps as f64,
            (PromptScheduling::Current, None) => value,
        };
        // The conversion cuts the fraction off, and takes what is below 0 as 0.
        Some((step as usize).min(self.steps))
    }
}
