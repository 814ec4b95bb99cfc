//! A1111's `AND`: several prompts for one image, each with a weight behind a colon at its end.
//!
//! # Source
//! "Compositional Visual Generation with Composable Diffusion Models", equation 11.

/// The parts with their weights; never empty.
pub(super) fn split(text: &str) -> Vec<(String, f64)> {
    const AND: &str = "AND";
    let is_letter = |c: char| c.is_alphanumeric() || c == '_';
    let mut parts = Vec::new();
    let (mut from, mut search) = (0, 0);
    while let Some(at) = text[search..].find(AND).map(|at| at + search) {
        search = at + AND.len();
        if !text[..at].chars().next_back().is_some_and(is_letter) && !text[search..].chars().next().is_some_and(is_letter) {
            parts.push(weighted(&text[from..at]));
            from = search;
        }
    }
    parts.push(weighted(&text[from..]));
    parts
}

/// A part without the weight at its end.
fn weighted(part: &str) -> (String, f64) {
    let text = part.trim_end();
    let given = text.rsplit_once(':').and_then(|(before, number)| {
        let digits = number.trim_start();
        let digits = digits.strip_prefix(['+', '-']).unwrap_or(digits);
        let plain = digits.chars().all(|c| c.is_ascii_digit() || c == '.');
        let value = plain.then(|| number.trim_start().parse().ok()).flatten()?;
        Some((before.trim_end().to_owned(), value))
    });
    given.unwrap_or_else(|| (text.to_owned(), 1.0))
}
