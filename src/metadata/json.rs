//! JSON as tools write it into images: one door for all of it.

use crate::sampling::without_infinities;
use serde_json::{Map, Value};

/// The JSON object that `text` is, Python's `NaN` and `Infinity` as null; a depth beyond any tool's is none.
pub(super) fn object(text: &str) -> Option<Map<String, Value>> {
    let text = text.trim_matches(['\0', '\u{feff}', ' ', '\n', '\r', '\t']);
    if !text.starts_with(['{', '"']) {
        return None;
    }
    let value = serde_json::from_str(text).ok().or_else(|| serde_json::from_slice(&without_infinities(text.as_bytes())).ok());
    match value? {
        Value::Object(map) => Some(map),
        // Written out twice.
        Value::String(inner) => match serde_json::from_str(&inner).ok()? {
            Value::Object(map) => Some(map),
            _ => None,
        },
        _ => None,
    }
}

/// A JSON value as text: without quotes, and nothing for null and for empty collections.
pub(super) fn plain(value: &Value) -> Option<String> {
    match value {
        Value::Null => None,
        Value::String(text) => Some(text.clone()),
        Value::Array(list) if list.is_empty() => None,
        Value::Object(map) if map.is_empty() => None,
        other => Some(other.to_string()),
    }
}

/// A key without case, spaces and punctuation: `Guidance Scale`, `guidance_scale` and `guidanceScale` are one key.
pub(super) fn folded(key: &str) -> String {
    key.chars().filter(|c| c.is_alphanumeric()).flat_map(char::to_lowercase).collect()
}
