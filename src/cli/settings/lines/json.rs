//! JSON Lines: an object a line, its keys the flags' names; a string alone is a prompt.

use super::error::{LineError, LineRecord};
use super::row::{FlagPair, RecordRow};
use super::source::LineSource;
use serde::de::IgnoredAny;
use std::ops::Range;

/// Reads a line as one row; empty lines are passed over.
pub(super) fn rows(source: LineSource) -> impl Iterator<Item = Result<RecordRow, LineError>> {
    let file = source.file.clone();
    source.filter_map(move |line| match line {
        Err(error) => Some(Err(error)),
        Ok((_, text)) if text.trim().is_empty() => None,
        Ok((number, text)) => {
            let record = LineRecord::line(&file, number, text);
            Some(match pairs(&record.text) {
                Ok(pairs) => Ok(RecordRow { record, pairs }),
                Err((part, what)) => Err(record.error(part, what)),
            })
        }
    })
}

type JsonError = (Range<usize>, String);

fn pairs(line: &str) -> Result<Vec<FlagPair>, JsonError> {
    if let Err(error) = serde_json::from_str::<IgnoredAny>(line) {
        // serde_json counts columns in bytes, from 1.
        let at = error.column().saturating_sub(1).min(line.len());
        let said = error.to_string();
        return Err((at..at + 1, format!("not JSON: {}", said.split(" at line ").next().unwrap_or_default())));
    }
    // From here on the line is known to be one whole value.
    let whole = next_value(line, 0).unwrap_or(0..line.len());
    let mut pairs = Vec::new();
    match line.as_bytes().get(whole.start) {
        Some(b'{') => {}
        Some(b'"') => {
            let prompt = scalar(&line[whole.clone()]).map_err(|what| (whole.clone(), what))?;
            return Ok(vec![FlagPair { name: "prompt".into(), part: whole.clone(), values: Some(vec![(prompt, whole)]) }]);
        }
        _ => return Err((whole, "a line is an object such as {\"prompt\": \"a cat\"}, or a text, which is a prompt".into())),
    }
    let mut at = whole.start + 1;
    while let Some(key) = next_value(line, at) {
        let Some(value) = next_value(line, key.end) else { break };
        at = value.end;
        let values = match line.as_bytes()[value.start] {
            b'n' => continue,
            b'[' => items(line, value)?,
            _ => vec![(scalar(&line[value.clone()]).map_err(|what| (value.clone(), what))?, value)],
        };
        let name = scalar(&line[key.clone()]).map_err(|what| (key.clone(), what))?;
        pairs.push(FlagPair { name, part: key, values: Some(values) });
    }
    Ok(pairs)
}

fn items(line: &str, list: Range<usize>) -> Result<Vec<(String, Range<usize>)>, JsonError> {
    let mut items = Vec::new();
    let mut at = list.start + 1;
    while let Some(item) = next_value(line, at) {
        at = item.end;
        items.push((scalar(&line[item.clone()]).map_err(|what| (item.clone(), what))?, item));
    }
    Ok(items)
}

/// Where the next key or value stands; `None` at the end of an object or a list.
fn next_value(line: &str, from: usize) -> Option<Range<usize>> {
    let start = from + line[from..].find(|c: char| !c.is_ascii_whitespace() && c != ',' && c != ':')?;
    let mut values = serde_json::Deserializer::from_str(&line[start..]).into_iter::<IgnoredAny>();
    values.next()?.ok()?;
    Some(start..start + values.byte_offset())
}

/// A number, a word or a text as a flag's value.
fn scalar(raw: &str) -> Result<String, String> {
    match raw.as_bytes().first() {
        Some(b'"') => serde_json::from_str(raw).map_err(|e| e.to_string()),
        Some(b'{' | b'[') => Err("a value is a number, true, false or a text, or a list of them".into()),
        Some(b'n') => Err("a list cannot hold null; leave it out".into()),
        _ => Ok(raw.to_owned()),
    }
}
