//! The grammar of templates.

use super::{Choice, Piece, Sampling};
use crate::prompt::slips::Slip;
use crate::prompt::{DEEPEST_NESTING, too_deep};
use crate::{Error, Result};
use std::collections::HashSet;

/// Marks a wildcard on both sides.
const WRAP: &str = "__";

/// Letters of `(name=value)` behind a wildcard's path.
const LONGEST_SPECIFICATION: usize = 1000;

/// Where a text stands, which decides what ends it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Within {
    /// Outside of all braces.
    Nothing,
    Braces,
    Wildcard,
}

struct DynamicParser<'a> {
    text: &'a str,
    at: usize,
    depth: usize,
    /// Places of a `__` that starts no wildcard.
    no_wildcard: HashSet<usize>,
}

pub(super) fn parse(text: &str) -> Result<Vec<Piece>> {
    let mut parser = DynamicParser { text, at: 0, depth: 0, no_wildcard: HashSet::new() };
    parser.pieces(Within::Nothing)
}

impl<'a> DynamicParser<'a> {
    fn rest(&self) -> &'a str {
        &self.text[self.at..]
    }

    fn wrong(&self, at: usize, what: &str) -> Error {
        let slip = Slip { at: at..at + 1, what: format!("`dynamic-prompts`: {what}") };
        Error::Input(slip.show(self.text))
    }

    fn take(&mut self, wanted: &str) -> bool {
        let found = self.rest().starts_with(wanted);
        self.at += if found { wanted.len() } else { 0 };
        found
    }

    fn skip_blanks(&mut self) {
        self.at = self.text.len() - self.rest().trim_start_matches([' ', '\t', '\n', '\r']).len();
    }

    /// Comments stand between pieces only: `http://` is none.
    fn skip_comments(&mut self) -> bool {
        let from = self.at;
        loop {
            let rest = self.rest();
            let length = if rest.starts_with('#') || rest.starts_with("//") {
                rest.find('\n').unwrap_or(rest.len())
            } else if let Some(inside) = rest.strip_prefix("/*") {
                match inside.find("*/") {
                    Some(end) => end + 4,
                    None => break,
                }
            } else {
                break;
            };
            self.at += length;
        }
        self.at > from
    }

    /// Pieces up to what ends them.
    fn pieces(&mut self, within: Within) -> Result<Vec<Piece>> {
        self.depth += 1;
        if self.depth > DEEPEST_NESTING {
            return Err(too_deep());
        }
        let mut pieces: Vec<Piece> = Vec::new();
        // A comment within a text leaves a blank.
        let mut joins = false;
        loop {
            let commented = self.skip_comments();
            let start = self.at;
            let piece = if self.rest().starts_with("${") {
                self.variable(within)?
            } else if self.rest().starts_with("%{") {
                self.wrap()?
            } else if self.take("{") {
                self.choice(start)?
            } else if within != Within::Wildcard
                && self.rest().starts_with(WRAP)
                && let Some(wildcard) = self.wildcard()?
            {
                wildcard
            } else {
                let text = self.literal(within);
                if text.is_empty() {
                    break;
                }
                match pieces.last_mut() {
                    Some(Piece::Text(last)) => {
                        last.push_str(if joins && commented { " " } else { "" });
                        last.push_str(&text);
                    }
                    _ => pieces.push(Piece::Text(text)),
                }
                joins = true;
                continue;
            };
            joins = false;
            pieces.push(piece);
        }
        self.depth -= 1;
        Ok(pieces)
    }

    /// A text up to the next character that means something.
    fn literal(&mut self, within: Within) -> String {
        let from = self.at;
        loop {
            let rest = self.rest();
            let ends: &[char] = match within {
                Within::Nothing => &['#', '{', '$', '%', '_'],
                Within::Braces => &['#', '{', '$', '%', '_', '|', '}'],
                Within::Wildcard => &['#', '{', '$', '%', '_', '|', '}', '(', ')'],
            };
            let Some(at) = rest.find(ends) else {
                self.at = self.text.len();
                break;
            };
            self.at += at;
            let rest = &rest[at..];
            // What opens nothing is text.
            let is_text = match rest.as_bytes()[0] {
                b'_' if within == Within::Wildcard => !rest.starts_with(WRAP),
                b'_' => !rest.starts_with(WRAP) || self.no_wildcard.contains(&self.at),
                b'$' if within == Within::Nothing => !rest.starts_with("${"),
                b'$' => !rest.starts_with("${") && !rest.starts_with("$$"),
                b'%' => !rest.starts_with("%{"),
                _ => false,
            };
            if !is_text {
                break;
            }
            self.at += if rest.starts_with(WRAP) { WRAP.len() } else { 1 };
        }
        self.text[from..self.at].to_owned()
    }

    fn sampling(&mut self) -> Option<Sampling> {
        let sampling = match self.rest().as_bytes().first() {
            Some(b'~') => Sampling::Random,
            Some(b'@') => Sampling::Cyclical,
            Some(b'!') => Sampling::Combinatorial,
            _ => return None,
        };
        self.at += 1;
        Some(sampling)
    }

    /// `__path__`, or nothing where no such thing stands here.
    fn wildcard(&mut self) -> Result<Option<Piece>> {
        let from = self.at;
        if self.no_wildcard.contains(&from) {
            return Ok(None);
        }
        self.at += WRAP.len();
        let sampling = self.sampling();
        let path = self.pieces(Within::Wildcard)?;
        let mut variables = Vec::new();
        if !path.is_empty() {
            let before = self.at;
            self.skip_blanks();
            // What is far away does not belong to it.
            let inside = self.rest().strip_prefix('(').and_then(|rest| {
                let (end, close) = rest.char_indices().take(LONGEST_SPECIFICATION).find(|(_, c)| [')', '\n', '{', '}'].contains(c))?;
                (close == ')').then(|| rest[..end].to_owned())
            });
            match inside {
                Some(inside) if !inside.is_empty() => {
                    self.at += inside.len() + 2;
                    for pair in inside.split(',') {
                        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
                        variables.push((name.trim().to_owned(), parse(value.trim())?));
                    }
                }
                _ => self.at = before,
            }
            if self.take(WRAP) {
                return Ok(Some(Piece::Wildcard { path, sampling, variables }));
            }
        }
        self.no_wildcard.insert(from);
        self.at = from;
        Ok(None)
    }

    /// What follows a `{`, which stands at `from`.
    fn choice(&mut self, from: usize) -> Result<Piece> {
        self.skip_blanks();
        let sampling = self.sampling();
        let bounds = self.bounds();
        let mut separator = ",".to_owned();
        if bounds.is_some() {
            let rest = self.rest();
            let end = rest.find(['$', '{', '}']).unwrap_or(rest.len());
            if end > 0 && rest[end..].starts_with("$$") {
                separator = rest[..end].to_owned();
                self.at += end + 2;
            }
        }
        let mut options = Vec::new();
        loop {
            self.skip_blanks();
            let weight = self.weight(from)?;
            options.push((weight, self.pieces(Within::Braces)?));
            if self.take("}") {
                break;
            }
            if !self.take("|") {
                return Err(match self.rest().is_empty() {
                    true => self.wrong(from, "this `{` is never closed; close it with `}`"),
                    false => self.wrong(self.at, "this makes no sense within braces; `{2$$ and $$a|b}` takes two and joins them"),
                });
            }
        }
        let (least, most) = bounds.unwrap_or((Some(1), Some(1)));
        let (least, most) = (least.unwrap_or(1), most.unwrap_or(options.len()));
        Ok(Piece::Choice(Choice { options, least: least.min(most), most: least.max(most), separator, sampling }))
    }

    /// `2$$`, `1-2$$`, `-2$$` or `1-$$`.
    fn bounds(&mut self) -> Option<(Option<usize>, Option<usize>)> {
        let rest = self.rest();
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '-')?;
        let range = rest[..end].to_owned();
        if end == 0 || !rest[end..].starts_with("$$") {
            return None;
        }
        // A number too large for this machine is more than there are options.
        let number = |digits: &str| match digits {
            "" => Some(None),
            _ if digits.bytes().all(|c| c.is_ascii_digit()) => Some(Some(digits.parse().unwrap_or(usize::MAX))),
            _ => None,
        };
        let bounds = match range.split_once('-') {
            None => number(&range).map(|exact| (exact, exact)),
            Some(("", "")) => None,
            Some((least, most)) => number(least).zip(number(most)),
        }?;
        self.at += end + 2;
        Some(bounds)
    }

    /// `0.7::`, else 1.
    fn weight(&mut self, from: usize) -> Result<f64> {
        let rest = self.rest();
        let end = rest.find(|c: char| !c.is_ascii_digit() && !matches!(c, '.' | '+' | '-')).unwrap_or(rest.len());
        let Some(weight) = rest[end..].starts_with("::").then(|| rest[..end].parse::<f64>().ok()).flatten() else { return Ok(1.0) };
        if weight < 0.0 || !weight.is_finite() {
            return Err(self.wrong(from, "an option in these braces has a weight below 0"));
        }
        self.at += end + 2;
        Ok(weight)
    }

    /// `${name}`, `${name:default}`, and outside of braces `${name=value}`.
    fn variable(&mut self, within: Within) -> Result<Piece> {
        let from = self.at;
        self.at += 2;
        self.skip_blanks();
        let rest = self.rest();
        let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_' && c != '-').unwrap_or(rest.len());
        let name = rest[..end].to_owned();
        if name.is_empty() || name.starts_with(|c: char| c.is_ascii_digit()) {
            return Err(self.wrong(from, "`${` starts a variable, whose name must follow: ${name=value} and ${name}"));
        }
        self.at += end;
        self.skip_blanks();
        let assigns = within == Within::Nothing;
        let keep = assigns && self.rest().starts_with("?=") && self.take("?");
        let piece = if assigns && self.take("=") {
            let immediate = self.take("!");
            self.skip_blanks();
            Piece::Assign { name, value: self.pieces(Within::Braces)?, keep, immediate }
        } else {
            let default = self.take(":").then(|| {
                self.skip_blanks();
                self.pieces(Within::Braces)
            });
            Piece::Variable { name, default: default.transpose()? }
        };
        self.skip_blanks();
        match self.take("}") {
            true => Ok(piece),
            false => Err(self.wrong(from, "this variable does not end where it should; write ${name=value} or ${name:default}")),
        }
    }

    /// `%{wrapper ... here$$inner}`
    fn wrap(&mut self) -> Result<Piece> {
        let from = self.at;
        self.at += 2;
        self.skip_blanks();
        let wrapper = self.pieces(Within::Braces)?;
        let parted = self.take("$$");
        self.skip_blanks();
        let inner = self.pieces(Within::Braces)?;
        match parted && self.take("}") {
            true => Ok(Piece::Wrap { wrapper, inner }),
            false => Err(self.wrong(from, "`%{` starts a wrapper, which is written %{before ... after$$inside}")),
        }
    }
}
