//! Reads the fields of a configuration file, each checked, with errors that name the file and the field.

use super::too_long;
use crate::error::{model_error, quoted};
use crate::sampling::without_infinities;
use crate::{Error, Result};
use serde_json::{Map, Value};

/// The longest text of a JSON object, in bytes; the largest index of shards has less than one million. What is made of it takes
/// up to sixty times the memory.
const MAX_JSON: usize = 4 << 20;

/// A JSON object and the file that it stands in.
#[derive(Debug, Clone)]
pub(crate) struct Fields {
    pub(crate) file: String,
    map: Map<String, Value>,
}

/// What a field may say without changing the result.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Allowed {
    /// Nothing: missing, null, false, or a list of these.
    Off,
    /// One of these words.
    Word(&'static [&'static str]),
    /// This number.
    Number(f64),
}

impl Fields {
    /// # Errors
    /// Text that is not a JSON object, or far too long for a configuration.
    pub(crate) fn parse(file: impl Into<String>, text: &[u8]) -> Result<Fields> {
        let file = file.into();
        if text.len() > MAX_JSON {
            return Err(too_long(&file, text.len() as u64));
        }
        let text = without_infinities(text);
        match serde_json::from_slice(&text) {
            Ok(Value::Object(map)) => Ok(Fields { file, map }),
            Ok(_) => Err(model_error(&file, "is not a JSON object")),
            Err(e) => Err(model_error(&file, format!("is not valid JSON: {e}"))),
        }
    }

    /// The fields of the object in the field `name`, if it is one.
    pub(crate) fn object(&self, name: &str) -> Option<Fields> {
        match self.get(name)? {
            Value::Object(map) => Some(Fields { file: format!("{} ({name})", self.file), map: map.clone() }),
            _ => None,
        }
    }

    pub(crate) fn value(&self) -> Value {
        Value::Object(self.map.clone())
    }

    /// The value of a field; null counts as missing.
    pub(crate) fn get(&self, name: &str) -> Option<&Value> {
        self.map.get(name).filter(|value| !value.is_null())
    }

    /// Whether the field is there, if only as null.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.map.contains_key(name)
    }

    /// An error about the field `name`.
    pub(crate) fn wrong(&self, name: &str, what: impl std::fmt::Display) -> Error {
        model_error(&self.file, format!("field {name}: {what}"))
    }

    fn unexpected(&self, name: &str, value: &Value, wanted: impl std::fmt::Display) -> Error {
        self.wrong(name, format!("{} is not {wanted}", shown(value)))
    }

    /// A whole number from 1 to `max`, or `default` where the field is missing.
    pub(crate) fn count(&self, name: &str, default: Option<usize>, max: usize) -> Result<usize> {
        match (self.get(name), default) {
            (Some(value), _) => self.as_count(name, value, max),
            (None, Some(default)) => Ok(default),
            (None, None) => Err(self.wrong(name, "is missing")),
        }
    }

    /// `value`, which stands in the field `name`, as a number from 1 to `max`.
    pub(crate) fn as_count(&self, name: &str, value: &Value, max: usize) -> Result<usize> {
        let whole = value.as_u64().or_else(|| value.as_f64().filter(|x| x.fract() == 0.0 && *x >= 0.0).map(|x| x as u64));
        let number = whole.and_then(|n| usize::try_from(n).ok()).filter(|n| (1..=max).contains(n));
        number.ok_or_else(|| self.unexpected(name, value, format!("a whole number from 1 to {max}")))
    }

    /// A finite number.
    pub(crate) fn number(&self, name: &str, default: f64) -> Result<f64> {
        match self.get(name) {
            None => Ok(default),
            Some(value) => value.as_f64().filter(|x| x.is_finite()).ok_or_else(|| self.unexpected(name, value, "a number")),
        }
    }

    /// True or false.
    pub(crate) fn flag(&self, name: &str, default: bool) -> Result<bool> {
        match self.get(name) {
            None => Ok(default),
            Some(value) => value.as_bool().ok_or_else(|| self.unexpected(name, value, "true or false")),
        }
    }

    /// Text.
    pub(crate) fn word(&self, name: &str) -> Result<Option<&str>> {
        match self.get(name) {
            None => Ok(None),
            Some(value) => value.as_str().map(Some).ok_or_else(|| self.unexpected(name, value, "text")),
        }
    }

    /// A list of from 1 to `max` values.
    pub(crate) fn list(&self, name: &str, max: usize) -> Result<&[Value]> {
        let value = self.get(name).ok_or_else(|| self.wrong(name, "is missing"))?;
        let list = value.as_array().filter(|list| (1..=max).contains(&list.len()));
        list.map(Vec::as_slice).ok_or_else(|| self.unexpected(name, value, format!("a list of 1 to {max} values")))
    }

    /// One value for each of `count` levels: a list, or one value for all.
    pub(crate) fn per_level<'a>(&'a self, name: &str, value: &'a Value, count: usize) -> Result<Vec<&'a Value>> {
        match value {
            Value::Array(list) if list.len() == count => Ok(list.iter().collect()),
            Value::Array(list) => Err(self.wrong(name, format!("has {} values for {count} levels", list.len()))),
            value => Ok(vec![value; count]),
        }
    }

    /// Refuses fields that would change the result in a way that is not implemented.
    pub(crate) fn demand(&self, demands: &[(&str, Allowed)]) -> Result<()> {
        for (name, allowed) in demands {
            let Some(value) = self.get(name) else { continue };
            let fine = match allowed {
                Allowed::Off => is_off(value),
                Allowed::Word(words) => value.as_str().is_some_and(|word| words.contains(&word)),
                Allowed::Number(wanted) => value.as_f64() == Some(*wanted),
            };
            if !fine {
                let wanted = match allowed {
                    Allowed::Off => "null or false".to_owned(),
                    Allowed::Word(words) => words.join(" or "),
                    Allowed::Number(number) => number.to_string(),
                };
                return Err(self.wrong(name, format!("{} is not implemented, only {wanted} is", shown(value))));
            }
        }
        Ok(())
    }
}

fn is_off(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Array(list) => list.iter().all(is_off),
        _ => false,
    }
}

/// A value for a message.
pub(crate) fn shown(value: &Value) -> String {
    let text = value.to_string();
    match value.as_str() {
        Some(text) => quoted(text),
        None if text.chars().nth(100).is_some() => format!("{}…", text.chars().take(100).collect::<String>()),
        None => text,
    }
}
