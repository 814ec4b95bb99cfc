//! How a prompt was understood, for people.

use super::{Prompt, TimedPrompt, WeightedText};
use std::fmt;

/// Entries of a timeline that are shown.
const MOST_ENTRIES: usize = 12;

/// Letters of one text that are shown.
const MOST_LETTERS: usize = 160;

impl fmt::Display for Prompt {
    /// One line for each part and each entry of its timeline: words that weigh 1 as they stand, others as `(words)×weight`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let which = if self.reading.negative { "negative prompt" } else { "prompt" };
        write!(f, "{which}, read as {}", self.reading.syntax.name())?;
        for (i, part) in self.parts.iter().enumerate() {
            if self.parts.len() > 1 {
                write!(f, "\n  part {} of {}, weight {}", i + 1, self.parts.len(), number(part.weight))?;
            }
            let mut from = 0;
            for (shown, entry) in part.timeline.iter().enumerate() {
                let when = match part.timeline.len() {
                    1 => String::new(),
                    _ if shown == MOST_ENTRIES => {
                        write!(f, "\n  … {} more", part.timeline.len() - MOST_ENTRIES)?;
                        break;
                    }
                    _ => format!("calls {from} to {}: ", entry.until),
                };
                from = entry.until + 1;
                write!(f, "\n  {when}{}", words(entry))?;
            }
        }
        for tag in &self.networks {
            write!(f, "\n  tag {}", tag.written())?;
        }
        Ok(())
    }
}

fn words(entry: &TimedPrompt) -> String {
    let mut shown = String::new();
    for piece in &entry.words {
        let WeightedText { text, weight } = piece;
        match piece {
            _ if piece.is_break() => shown.push_str(" ⟨break⟩ "),
            _ if *weight == 1.0 => shown.push_str(text),
            _ => shown.push_str(&format!("({text})×{}", number(*weight))),
        }
        if shown.len() > 4 * MOST_LETTERS {
            break;
        }
    }
    let line = shown.replace(['\n', '\r', '\t'], " ");
    match line.char_indices().nth(MOST_LETTERS) {
        Some((cut, _)) => format!("{} …", &line[..cut]),
        None => line,
    }
}

/// A weight without the noise of its last bits.
fn number(weight: f64) -> String {
    let text = format!("{weight:.4}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}
