//! ComfyUI's emphasis: `(x)` is 1.1 times the weight around it, `(x:1.3)` is 1.3 whatever is around it; `[x]` is text.

use super::{DEEPEST_NESTING, WeightedText, python_float, too_deep};
use crate::Result;

/// What an escaped bracket is while brackets are read.
const CLOSING: &str = "\0\u{1}";
const OPENING: &str = "\0\u{2}";

/// The texts with their weights.
pub(super) fn parse(text: &str) -> Result<Vec<WeightedText>> {
    let escaped = text.replace("\\)", CLOSING).replace("\\(", OPENING);
    let mut found = Vec::new();
    weigh(&escaped, 1.0, 0, &mut found)?;
    for piece in &mut found {
        piece.text = piece.text.replace(CLOSING, ")").replace(OPENING, "(");
    }
    Ok(found)
}

fn weigh(text: &str, around: f64, depth: usize, found: &mut Vec<WeightedText>) -> Result<()> {
    if depth > DEEPEST_NESTING {
        return Err(too_deep());
    }
    for piece in groups(text) {
        let Some(mut inside) = piece.strip_prefix('(').and_then(|inside| inside.strip_suffix(')')) else {
            found.push(WeightedText::new(piece, around));
            continue;
        };
        let mut weight = around * 1.1;
        if let Some(colon) = inside.rfind(':').filter(|&at| at > 0)
            && let Some(given) = python_float(&inside[colon + 1..])
        {
            weight = given;
            inside = &inside[..colon];
        }
        weigh(inside, weight, depth + 1, found)?;
    }
    Ok(())
}

/// The text cut into its outermost bracketed groups and what is between them.
///
/// A closing bracket without an opening one lowers the level below 0, where the next opening one starts no group.
fn groups(text: &str) -> Vec<&str> {
    let mut pieces = Vec::new();
    let (mut level, mut from) = (0i64, 0);
    for (at, c) in text.bytes().enumerate() {
        match c {
            b'(' => {
                if level == 0 && at > from {
                    pieces.push(&text[from..at]);
                    from = at;
                }
                level += 1;
            }
            b')' => {
                level -= 1;
                if level == 0 {
                    pieces.push(&text[from..=at]);
                    from = at + 1;
                }
            }
            _ => {}
        }
    }
    if from < text.len() {
        pieces.push(&text[from..]);
    }
    pieces
}
