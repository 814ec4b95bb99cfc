//! How facts are laid out for people: columns, sizes, and text from files that must not steer the terminal.

use crate::settings;

/// Rows as columns, two spaces apart; the last column is not padded.
pub(in crate::cli) fn columns(rows: &[Vec<String>]) -> String {
    let count = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |i: usize| rows.iter().filter_map(|row| row.get(i)).map(|cell| cell.chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..count).map(width).collect();
    let line = |row: &Vec<String>| {
        let cells = row.iter().zip(&widths).map(|(cell, &width)| format!("{cell:width$}")).collect::<Vec<_>>();
        cells.join("  ").trim_end().to_owned()
    };
    rows.iter().map(line).collect::<Vec<_>>().join("\n")
}

/// A heading, and facts as labels with their lines.
pub(in crate::cli) fn facts(heading: &str, facts: &[(String, Vec<String>)]) -> String {
    let width = facts.iter().map(|(label, _)| label.chars().count()).max().unwrap_or(0);
    let mut text = harmless(heading);
    for (label, lines) in facts {
        for (i, line) in lines.iter().flat_map(|text| harmless(text).lines().map(str::to_owned).collect::<Vec<_>>()).enumerate() {
            let label = if i == 0 { harmless(label) } else { String::new() };
            text.push_str(format!("\n  {label:width$}  {line}").trim_end());
        }
    }
    text
}

/// Whether a character steers a terminal or turns the text around it: the control characters of ASCII, DEL and C1, and the embeddings,
/// overrides and isolates of bidirectional text, which make a line read as something else than it is (CVE-2021-42574).
pub(in crate::cli) fn steers(c: char) -> bool {
    c.is_control() || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Text from a file without what would steer a terminal; lines and tabulators stay.
pub(in crate::cli) fn harmless(text: &str) -> String {
    text.chars().map(|c| if steers(c) && !matches!(c, '\n' | '\t') { char::REPLACEMENT_CHARACTER } else { c }).collect()
}

/// Flags that are no settings, but that the library speaks of.
const OTHER_FLAGS: &[&str] = &["baseline", "manifest", "sweep"];

/// The library writes settings as `` `steps` ``, since not everybody sets them by flags: here they get their dashes.
pub(in crate::cli) fn with_dashes(text: &str) -> String {
    let is_flag = |name: &str| OTHER_FLAGS.contains(&name) || settings::find(name).is_some_and(|row| row.name == name);
    let mut written = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('`') {
        written.push_str(before);
        rest = match after.split_once('`') {
            Some((name, behind)) if is_flag(name) => {
                written.push_str("--");
                written.push_str(name);
                behind
            }
            _ => {
                written.push('`');
                after
            }
        };
    }
    written + rest
}

/// JSON with what would steer a terminal as escapes: serde_json escapes no more than ASCII's control characters.
pub(in crate::cli) fn json(value: &serde_json::Value, pretty: bool) -> String {
    let text = if pretty { format!("{value:#}") } else { value.to_string() };
    text.chars().fold(String::with_capacity(text.len()), |mut escaped, c| {
        match c {
            // The last one stands only between values: inside a text it is escaped already.
            _ if steers(c) && c != '\n' => escaped.push_str(&format!("\\u{:04x}", u32::from(c))),
            _ => escaped.push(c),
        }
        escaped
    })
}

/// Bytes as people say them.
pub(in crate::cli) fn bytes(count: u64) -> String {
    match count {
        0..1_000 => format!("{count} B"),
        1_000..1_000_000 => format!("{:.1} kB", count as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} MB", count as f64 / 1e6),
        _ => format!("{:.2} GB", count as f64 / 1e9),
    }
}

/// So many of something, whose plural ends in an s.
pub(in crate::cli) fn several(number: usize, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}

/// Large numbers as people say them.
pub(in crate::cli) fn count(number: u64) -> String {
    match number {
        0..10_000 => number.to_string(),
        10_000..1_000_000 => format!("{:.1} thousand", number as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} million", number as f64 / 1e6),
        _ => format!("{:.2} billion", number as f64 / 1e9),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_get_their_dashes_and_other_code_is_left_alone() {
        assert_eq!(with_dashes("`steps` 9: try `vae-dtype` f32 or `manifest`"), "--steps 9: try --vae-dtype f32 or --manifest");
        for text in ["", "`", "``", "this `{` is never closed; close it with `}`", "`beta_start` with `Steps`"] {
            assert_eq!(with_dashes(text), text);
        }
    }

    #[test]
    fn columns_are_aligned_and_terminals_left_alone() {
        let rows = [["a", "bbb", "c"], ["dddd", "e", ""]].map(|row| row.map(str::to_owned).to_vec());
        assert_eq!(columns(&rows), "a     bbb  c\ndddd  e");
        assert_eq!(harmless("a\x1b[31m\r\nb\tü\u{9b}"), "a\u{fffd}[31m\u{fffd}\nb\tü\u{fffd}");
        assert_eq!(harmless("a\u{7f}\u{202e}b\u{2066}"), "a\u{fffd}\u{fffd}b\u{fffd}");
        let value = serde_json::json!({ "a\u{7f}": ["\u{1b}\u{9b}2J\n", "\u{202e}ü🍎"] });
        for pretty in [false, true] {
            let text = json(&value, pretty);
            assert!(!text.chars().any(|c| steers(c) && c != '\n') && text.contains("\\u009b2J\\n") && text.contains("ü🍎"), "{text}");
            assert_eq!(serde_json::from_str::<serde_json::Value>(&text).unwrap(), value);
        }
        assert_eq!([0, 999, 12_345, 1_720_000_000].map(bytes), ["0 B", "999 B", "12.3 kB", "1.72 GB"]);
        assert_eq!([1, 2].map(|number| several(number, "layer")), ["1 layer", "2 layers"]);
        let text = facts("x", &[("one".into(), vec!["a\nb".into()]), ("three".into(), vec!["c".into()])]);
        assert_eq!(text, "x\n  one    a\n         b\n  three  c");
    }
}
