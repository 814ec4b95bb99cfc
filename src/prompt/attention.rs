//! A1111's emphasis: `(x)` is 1.1 times, `[x]` 1.1 times less, `(x:1.3)` 1.3 times; a backslash makes a bracket text.
//!
//! Round and square brackets are counted apart, so that they need not nest; one that is never closed holds to the end of the text.
//! A weight that is no number, such as `(x:1.3.5)`, ends A1111's run: here it is text.

use super::{DEEPEST_NESTING, WeightedText, too_deep};
use crate::Result;

const ROUND: f64 = 1.1;
const SQUARE: f64 = 1.0 / 1.1;

/// The texts with their weights; never empty.
pub(super) fn parse(text: &str) -> Result<Vec<WeightedText>> {
    let mut found: Vec<WeightedText> = Vec::new();
    // Where the open brackets stand in `found`.
    let (mut round, mut square): (Vec<usize>, Vec<usize>) = (Vec::new(), Vec::new());
    let weigh = |found: &mut Vec<WeightedText>, from: usize, factor: f64| {
        for piece in &mut found[from..] {
            piece.weight *= factor;
        }
    };
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        if round.len() + square.len() > DEEPEST_NESTING {
            return Err(too_deep());
        }
        let mut taken = c.len_utf8();
        match c {
            '\\' => {
                let escaped = rest[1..].chars().next().filter(|c| "()[]\\".contains(*c));
                found.push(WeightedText::new(escaped.map(String::from).unwrap_or_default(), 1.0));
                taken += escaped.map_or(0, char::len_utf8);
            }
            '(' => round.push(found.len()),
            '[' => square.push(found.len()),
            ':' => match (weight(rest), round.last()) {
                (Some((length, factor)), Some(&from)) => {
                    weigh(&mut found, from, factor);
                    round.pop();
                    taken = length;
                }
                // With no bracket open, or without a weight, it is text up to the next mark.
                (Some((length, _)), None) => {
                    words(&rest[..length], &mut found);
                    taken = length;
                }
                (None, _) => words(":", &mut found),
            },
            ')' if !round.is_empty() => {
                let from = round.pop().unwrap_or_default();
                weigh(&mut found, from, ROUND);
            }
            ']' if !square.is_empty() => {
                let from = square.pop().unwrap_or_default();
                weigh(&mut found, from, SQUARE);
            }
            ')' | ']' => words(&rest[..taken], &mut found),
            _ => {
                taken = rest.find(['\\', '(', ')', '[', ']', ':']).unwrap_or(rest.len());
                words(&rest[..taken], &mut found);
            }
        }
        rest = &rest[taken..];
    }
    round.into_iter().for_each(|from| weigh(&mut found, from, ROUND));
    square.into_iter().for_each(|from| weigh(&mut found, from, SQUARE));
    let mut merged: Vec<WeightedText> = Vec::with_capacity(found.len().max(1));
    for piece in found {
        match merged.last_mut() {
            Some(last) if last.weight == piece.weight => last.text.push_str(&piece.text),
            _ => merged.push(piece),
        }
    }
    if merged.is_empty() {
        merged.push(WeightedText::new("", 1.0));
    }
    Ok(merged)
}

/// The length and the value of `: 1.3 )` at the start of `text`.
fn weight(text: &str) -> Option<(usize, f64)> {
    let number = text.strip_prefix(':')?.trim_start();
    let signed = number.strip_prefix(['+', '-']).unwrap_or(number);
    let after = signed.trim_start_matches(|c: char| c.is_ascii_digit() || c == '.');
    let value = number[..number.len() - after.len()].parse().ok()?;
    let rest = after.trim_start().strip_prefix(')')?;
    Some((text.len() - rest.len(), value))
}

/// A text between marks, cut at every `BREAK` that is a word of its own.
fn words(text: &str, found: &mut Vec<WeightedText>) {
    const BREAK: &str = "BREAK";
    let is_letter = |c: char| c.is_alphanumeric() || c == '_';
    let mut from = 0;
    let mut search = 0;
    while let Some(at) = text[search..].find(BREAK).map(|at| at + search) {
        search = at + BREAK.len();
        if text[..at].chars().next_back().is_some_and(is_letter) || text[search..].chars().next().is_some_and(is_letter) {
            continue;
        }
        // White space around it goes; a `BREAK` right after another has taken its own already.
        found.push(WeightedText::new(text[from..at].trim_end(), 1.0));
        found.push(WeightedText::new(BREAK, -1.0));
        from = text.len() - text[search..].trim_start().len();
        search = from;
    }
    found.push(WeightedText::new(&text[from..], 1.0));
}
