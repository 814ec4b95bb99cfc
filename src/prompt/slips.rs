//! What looks like a slip of the pen in a prompt, and where.

use super::{Emphasis, PromptReading, networks};
use std::ops::Range;
use unicode_width::UnicodeWidthStr;

/// The most slips that are told of one prompt.
const MOST: usize = 8;

/// Columns of a prompt that are shown around a slip.
const SHOWN: usize = 72;

/// Something that was probably meant otherwise. The prompt is generated all the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slip {
    /// Bytes of the prompt as it was given.
    pub at: Range<usize>,
    /// What it is and what was made of it.
    pub what: String,
}

impl Slip {
    /// The sentence, the line of the prompt and a caret below the place.
    pub fn show(&self, source: &str) -> String {
        let from = source[..self.at.start].rfind('\n').map_or(0, |at| at + 1);
        let to = source[self.at.start..].find('\n').map_or(source.len(), |at| at + self.at.start);
        let before: Vec<char> = source[from..self.at.start].chars().collect();
        let left: String = before[before.len().saturating_sub(SHOWN / 2)..].iter().collect();
        let dots = if before.len() > SHOWN / 2 { "…" } else { "" };
        let right: String = source[self.at.start..to].chars().take(SHOWN / 2).collect();
        let marked = source[self.at.start..self.at.end.min(to)].width().clamp(1, right.width().max(1));
        // Tabs are as wide as the caret's line has blanks for them: one.
        let line = format!("{dots}{left}{right}").replace(['\t', '\r'], " ");
        format!("{}\n  {line}\n  {}{}", self.what, " ".repeat(dots.width() + left.width()), "^".repeat(marked))
    }
}

/// The slips of a prompt, in its order.
pub(super) fn find(source: &str, reading: &PromptReading) -> Vec<Slip> {
    let dialect = reading.syntax.dialect();
    let mut slips = Vec::new();
    // Comments and tags are overwritten with blanks, so that places stay what they are.
    let mut text = source.as_bytes().to_vec();
    if dialect.comments {
        let mut comment = false;
        for byte in &mut text {
            comment = (comment || *byte == b'#') && *byte != b'\n';
            *byte = if comment { b' ' } else { *byte };
        }
    }
    for (at, tag) in networks::find(std::str::from_utf8(&text).unwrap_or(source)) {
        let known = tag.as_lora().is_some();
        let what = match (dialect.networks, reading.negative) {
            (false, _) if !known => continue,
            (false, _) => format!("`prompt-syntax` {}: {} is text, no tag; give it as `lora`", dialect.name, tag.written()),
            (true, true) => format!("{} in the negative prompt is text: A1111 reads tags in the prompt only", tag.written()),
            (true, false) => {
                text[at.clone()].fill(b' ');
                match tag.kind.as_str() {
                    _ if known => continue,
                    "hypernet" => "hypernetworks are not supported, and this one is left out".to_owned(),
                    kind => format!("<{kind}:…> is no tag that is known, and is left out; the known ones are <lora:…> and <lyco:…>"),
                }
            }
        };
        slips.push(Slip { at, what });
    }
    if !dialect.brackets.is_empty() && reading.emphasis != Emphasis::None {
        brackets(&text, reading, &mut slips);
    }
    slips.sort_by_key(|slip| slip.at.start);
    slips.truncate(MOST);
    slips
}

/// Brackets without a partner, and weights that are none.
fn brackets(text: &[u8], reading: &PromptReading, slips: &mut Vec<Slip>) {
    let dialect = reading.syntax.dialect();
    let mut open: Vec<Vec<usize>> = vec![Vec::new(); dialect.brackets.len()];
    let mut slip = |at: Range<usize>, what: String| {
        // A prompt of nothing but brackets has as many slips.
        if slips.len() < 4 * MOST {
            slips.push(Slip { at, what });
        }
    };
    let mut bar = None;
    let mut edits = false;
    let mut at = 0;
    while let Some(&c) = text.get(at) {
        if c == b'\\' {
            at += 2;
            continue;
        }
        let opened = dialect.brackets.iter().position(|(opening, _)| *opening == char::from(c));
        let closed = dialect.brackets.iter().position(|(_, closing)| *closing == char::from(c));
        if let Some(kind) = opened {
            open[kind].push(at);
        } else if let Some(kind) = closed {
            if open[kind].pop().is_none() {
                slip(at..at + 1, format!("this `{}` closes nothing, and is text", char::from(c)));
            }
        } else if c == b'|' && dialect.schedules && open[1].is_empty() {
            bar = bar.or(Some(at));
        } else if c == b':' && open[0].last().is_some() {
            let number: Vec<u8> =
                text[at + 1..].iter().copied().take(24).take_while(|c| !matches!(c, b')' | b'(' | b':' | b'\n')).collect();
            let number = String::from_utf8_lossy(&number);
            let closes = text.get(at + 1 + number.len()) == Some(&b')');
            let looks = number.trim().trim_start_matches(['+', '-']);
            let digits = !looks.is_empty() && looks.chars().all(|c| c.is_ascii_digit() || c == '.' || c == ',');
            if closes && digits && number.trim().parse::<f64>().is_err() {
                let end = at + 1 + number.len();
                slip(at..end, format!("{:?} is no weight, and is text; write a number such as 1.3", number.trim()));
            }
        }
        edits |= c == b'[' && dialect.schedules;
        at += 1;
    }
    for (kind, places) in open.into_iter().enumerate() {
        let (opening, closing) = dialect.brackets[kind];
        let meaning = match (dialect.schedules, opening) {
            (true, '(') => "it weighs 1.1 times all that follows",
            (true, _) => "it weighs 1.1 times less all that follows",
            (false, _) => "it is text",
        };
        for at in places {
            slip(at..at + 1, format!("this `{opening}` is never closed: {meaning}; close it with `{closing}` or write `\\{opening}`"));
        }
    }
    if let (Some(at), true) = (bar, edits) {
        let what = "a `|` outside of [a|b]: A1111 then reads no [from:to:when] and no [a|b] anywhere in the prompt; write `\\|`";
        slip(at..at + 1, what.into());
    }
}
