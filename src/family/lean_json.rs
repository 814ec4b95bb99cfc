//! JSON of which only texts, counts and objects are wanted: what else it holds is read over and takes no memory.

use serde::de::{DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};
use std::collections::BTreeMap;

/// The most texts of one object; trainers write about a hundred.
const MAX_TEXTS: usize = 10_000;

/// A value.
#[derive(Debug, PartialEq)]
pub(crate) enum Lean {
    Text(String),
    Count(u64),
    Object(Vec<(String, Lean)>),
    /// A value of another kind, or an object that lies deeper than was asked for.
    Other,
}

impl Lean {
    /// The value that a text is.
    ///
    /// # Errors
    /// It is not JSON, or not within the bounds.
    pub(crate) fn parse(text: &str, bounds: LeanBounds) -> serde_json::Result<Lean> {
        let mut deserializer = serde_json::Deserializer::from_str(text);
        let value = bounds.deserialize(&mut deserializer)?;
        deserializer.end().map(|()| value)
    }

    /// The entries of an object; none of another value.
    pub(crate) fn into_entries(self) -> Vec<(String, Lean)> {
        match self {
            Lean::Object(entries) => entries,
            _ => Vec::new(),
        }
    }

    /// The texts of an object by their keys; `None` where it is none.
    pub(crate) fn into_texts(self) -> Option<BTreeMap<String, String>> {
        let Lean::Object(entries) = self else { return None };
        let text = |(key, value)| match value {
            Lean::Text(text) => Some((key, text)),
            _ => None,
        };
        Some(entries.into_iter().filter_map(text).collect())
    }
}

/// What of a value is kept.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LeanBounds {
    /// Objects in objects.
    pub(crate) depth: usize,
    /// Entries of one object; more are an error.
    pub(crate) entries: usize,
}

impl LeanBounds {
    /// An object of texts.
    pub(crate) const TEXTS: LeanBounds = LeanBounds { depth: 1, entries: MAX_TEXTS };
}

impl<'de> DeserializeSeed<'de> for LeanBounds {
    type Value = Lean;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Lean, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for LeanBounds {
    type Value = Lean;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("any value")
    }

    fn visit_str<E>(self, text: &str) -> Result<Lean, E> {
        Ok(Lean::Text(text.to_owned()))
    }

    fn visit_u64<E>(self, count: u64) -> Result<Lean, E> {
        Ok(Lean::Count(count))
    }

    fn visit_i64<E>(self, _: i64) -> Result<Lean, E> {
        Ok(Lean::Other)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Lean, E> {
        Ok(Lean::Other)
    }

    fn visit_bool<E>(self, _: bool) -> Result<Lean, E> {
        Ok(Lean::Other)
    }

    fn visit_unit<E>(self) -> Result<Lean, E> {
        Ok(Lean::Other)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Lean, A::Error> {
        while list.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Lean::Other)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Lean, A::Error> {
        let Some(depth) = self.depth.checked_sub(1) else {
            while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
            return Ok(Lean::Other);
        };
        let mut entries = Vec::new();
        while let Some(key) = map.next_key()? {
            if entries.len() == self.entries {
                return Err(A::Error::custom(format!("it has more than {} entries", self.entries)));
            }
            entries.push((key, map.next_value_seed(LeanBounds { depth, ..self })?));
        }
        Ok(Lean::Object(entries))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_kept_and_other_values_are_not() {
        let text = r#"{"a": "b", "c": [1, {"d": "e"}], "f": null, "g": 1.5, "h": -1, "i": true, "j": {"k": []}, "l": "\u00e9\n"}"#;
        let texts = |text: &str| Lean::parse(text, LeanBounds::TEXTS).map(Lean::into_texts);
        assert_eq!(texts(text).unwrap(), Some(BTreeMap::from([("a".into(), "b".into()), ("l".into(), "é\n".into())])));
        assert_eq!(texts("[\"a\"]").unwrap(), None);
        for damaged in ["", "{\"a\": [}", "{\"a\": {1: 2}}", "{\"a\": \"\\ud800\"}", "{\"a\": \"b", "{} {}"] {
            assert!(texts(damaged).is_err(), "{damaged}");
        }
        let two = LeanBounds { depth: 2, entries: 2 };
        let value = Lean::parse(r#"{"a": {"b": 7, "c": {"d": 1}}}"#, two).unwrap();
        let inner = Lean::Object(vec![("b".into(), Lean::Count(7)), ("c".into(), Lean::Other)]);
        assert_eq!(value, Lean::Object(vec![("a".into(), inner)]));
        let error = Lean::parse(r#"{"a": 1, "b": 2, "c": 3}"#, two).unwrap_err().to_string();
        assert!(error.contains("more than 2 entries"), "{error}");
    }
}
