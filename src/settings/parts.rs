//! Values of several parts: a file with weights, a list of numbers, `HEAD,key=value,…`.

use super::{Value, ValueKind};
use crate::inputs::InputFile;
use serde_json::{Value as Json, json};

/// `FILE[:weight[:weight]]`, such as `detail.safetensors:0.8:0.5`.
#[derive(Debug, Clone, PartialEq)]
pub struct WeightedFile {
    /// The file.
    pub file: InputFile,
    /// None to two weights.
    pub weights: Vec<f64>,
}

impl WeightedFile {
    /// The first weight; 1 where none was given.
    pub fn weight(&self) -> f64 {
        self.weights.first().copied().unwrap_or(1.0)
    }

    fn typed_weights(&self) -> String {
        self.weights.iter().map(|weight| format!(":{weight}")).collect()
    }

    /// The second weight; the first where none was given.
    pub fn second_weight(&self) -> f64 {
        self.weights.get(1).copied().unwrap_or_else(|| self.weight())
    }
}

impl Value for WeightedFile {
    const KIND: ValueKind = ValueKind::File;

    fn parse(text: &str) -> Result<Self, String> {
        let mut name = text;
        let mut weights = Vec::new();
        // From the end, because a file's name may hold a colon: `C:\loras\x.safetensors`.
        while weights.len() < 2
            && let Some((before, weight)) = name.rsplit_once(':')
            && let Ok(weight) = weight.trim().parse::<f64>()
        {
            if !weight.is_finite() {
                return Err("a weight is a number such as 0.8".into());
            }
            weights.insert(0, weight);
            name = before;
        }
        if name.is_empty() {
            return Err("give a file, and weights after it like FILE:0.8".into());
        }
        Ok(Self { file: InputFile::named(name.as_ref()), weights })
    }

    fn typed(&self) -> String {
        format!("{}{}", self.file.typed(), self.typed_weights())
    }

    fn public(&self) -> String {
        format!("{}{}", self.file.public(), self.typed_weights())
    }

    fn json(&self) -> Json {
        json!({ "file": self.file.json(), "weights": [self.weight(), self.second_weight()] })
    }

    fn files(&mut self) -> Vec<&mut InputFile> {
        vec![&mut self.file]
    }
}

/// A network's weights: a file, or a folder with their configuration.
#[derive(Debug, Clone, PartialEq)]
pub struct NetworkFile(pub InputFile);

impl Value for NetworkFile {
    const KIND: ValueKind = ValueKind::File;

    fn parse(text: &str) -> Result<Self, String> {
        match text.is_empty() {
            true => Err("give a file or a folder".into()),
            false => Ok(Self(InputFile::of_network(text.as_ref()))),
        }
    }

    fn typed(&self) -> String {
        self.0.typed()
    }

    fn public(&self) -> String {
        self.0.public()
    }

    fn json(&self) -> Json {
        self.0.json()
    }

    fn files(&mut self) -> Vec<&mut InputFile> {
        vec![&mut self.0]
    }
}

/// Numbers with commas between them, such as `14.6,7.1,0`.
#[derive(Debug, Clone, PartialEq)]
pub struct NumberList(pub Vec<f64>);

/// More is no list that a person means.
const MOST_NUMBERS: usize = 100_000;

impl Value for NumberList {
    const KIND: ValueKind = ValueKind::Word;

    fn parse(text: &str) -> Result<Self, String> {
        let numbers: Vec<f64> = text
            .trim_matches(['[', ']'])
            .split(',')
            .take(MOST_NUMBERS + 1)
            .map(|number| number.trim().parse().ok().filter(|number: &f64| number.is_finite()))
            .collect::<Option<_>>()
            .ok_or("give numbers with commas between them, such as 14.6,7.1,0")?;
        if numbers.len() > MOST_NUMBERS {
            return Err(format!("at most {MOST_NUMBERS} numbers"));
        }
        Ok(Self(numbers))
    }

    fn typed(&self) -> String {
        self.0.iter().map(f64::to_string).collect::<Vec<_>>().join(",")
    }

    fn json(&self) -> Json {
        self.0.clone().into()
    }
}

/// `HEAD,key=value,…`: a comma inside a value is written `\,` and a backslash before a comma or a backslash `\\`.
///
/// The kinds of such values (a control image, an image prompt) read it key by key with [`Parts::take`], and end with [`Parts::finish`].
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Parts {
    /// What stands before the first comma, where it is no `key=value`.
    pub head: Option<String>,
    /// The rest in order.
    pub pairs: Vec<(String, String)>,
}

impl Parts {
    /// Takes a text apart.
    ///
    /// # Errors
    /// A part without `=`, or a key that is there twice.
    pub fn read(text: &str) -> Result<Self, String> {
        let mut parts = Self::default();
        for (at, part) in split(text).into_iter().enumerate() {
            match part.split_once('=') {
                Some((key, value)) if is_key(key) => {
                    let key = key.trim().to_owned();
                    if parts.pairs.iter().any(|(known, _)| *known == key) {
                        return Err(format!("{key} is given twice"));
                    }
                    parts.pairs.push((key, unescaped(value)));
                }
                _ if at == 0 => parts.head = Some(unescaped(&part)),
                _ => return Err(format!("{part:?} is not key=value; a comma inside a name is written \\,")),
            }
        }
        Ok(parts)
    }

    /// Takes out the value of a key.
    pub fn take(&mut self, key: &str) -> Option<String> {
        let at = self.pairs.iter().position(|(known, _)| known == key)?;
        Some(self.pairs.remove(at).1)
    }

    /// Takes out a number between two.
    ///
    /// # Errors
    /// It is none, or out of range.
    pub fn take_number(&mut self, key: &str, range: std::ops::RangeInclusive<f64>) -> Result<Option<f64>, String> {
        let Some(text) = self.take(key) else { return Ok(None) };
        match text.trim().parse::<f64>() {
            Ok(number) if range.contains(&number) => Ok(Some(number)),
            _ => Err(format!("{key}={text}: must be a number from {} to {}", range.start(), range.end())),
        }
    }

    /// Whatever is left was not asked for.
    ///
    /// # Errors
    /// A key is left; `known` says which there are.
    pub fn finish(self, known: &str) -> Result<(), String> {
        match self.pairs.first() {
            Some((key, _)) => Err(format!("there is no {key}; there are {known}")),
            None => Ok(()),
        }
    }

    /// As it is typed; [`Parts::read`] reads it back.
    pub fn write(&self) -> String {
        let head = self.head.iter().map(|head| escaped(head));
        let pairs = self.pairs.iter().map(|(key, value)| format!("{key}={}", escaped(value)));
        head.chain(pairs).collect::<Vec<_>>().join(",")
    }
}

fn is_key(text: &str) -> bool {
    let text = text.trim();
    !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_')
}

/// The parts between commas that no backslash stands before; escapes stay.
fn split(text: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match (c, parts.last_mut()) {
            (',', _) => parts.push(String::new()),
            ('\\', Some(part)) => {
                part.push(c);
                part.extend(chars.next());
            }
            (c, Some(part)) => part.push(c),
            (_, None) => {}
        }
    }
    parts
}

/// Only a comma and a backslash are escaped: `C:\x` stays what it is.
fn unescaped(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match (c, chars.peek()) {
            ('\\', Some(',' | '\\')) => plain.extend(chars.next()),
            _ => plain.push(c),
        }
    }
    plain
}

fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\").replace(',', "\\,")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn files_have_up_to_two_weights() {
        for (text, file, weights) in [
            ("a.safetensors", "a.safetensors", vec![]),
            ("a.safetensors:0.8", "a.safetensors", vec![0.8]),
            ("a.safetensors:0.8:-1", "a.safetensors", vec![0.8, -1.0]),
            ("C:\\x\\a.safetensors:1", "C:\\x\\a.safetensors", vec![1.0]),
            ("a:b:0.5", "a:b", vec![0.5]),
        ] {
            let read = WeightedFile::parse(text).unwrap();
            assert_eq!((read.file.typed().as_str(), &read.weights), (file, &weights), "{text}");
            assert_eq!(read.typed(), text);
        }
        for bad in ["", ":0.5", "a:inf", "a:NaN:1"] {
            assert!(WeightedFile::parse(bad).is_err(), "{bad}");
        }
        assert_eq!(WeightedFile::parse("a:0.5").unwrap().second_weight(), 0.5);
    }

    #[test]
    fn number_lists_are_read() {
        assert_eq!(NumberList::parse("14.6, 7,0").unwrap().typed(), "14.6,7,0");
        assert_eq!(NumberList::parse("[999, 1]").unwrap().0, [999.0, 1.0]);
        for bad in ["", "1,,2", "1,x", "inf"] {
            assert!(NumberList::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn parts_have_a_head_and_keys() {
        let mut parts = Parts::read("canny,image=a\\,b.png,weight=0.5,path=C:\\x").unwrap();
        assert_eq!(parts.head.as_deref(), Some("canny"));
        assert_eq!(parts.take("image").as_deref(), Some("a,b.png"));
        assert_eq!(parts.take_number("weight", 0.0..=2.0), Ok(Some(0.5)));
        assert_eq!(parts.take("path").as_deref(), Some("C:\\x"));
        assert_eq!(parts.finish("image, weight"), Ok(()));
        assert!(Parts::read("m,image=x,image=y").unwrap_err().contains("twice"));
        assert!(Parts::read("m,oops").unwrap_err().contains("\\,"));
        assert!(Parts::read("m,size=3").unwrap().finish("image").unwrap_err().contains("size"));
        assert!(Parts::read("m,weight=9").unwrap().take_number("weight", 0.0..=2.0).is_err());
        assert_eq!(Parts::read("left=10,top=3").unwrap().head, None);
    }

    proptest! {
        #[test]
        fn parts_are_read_as_they_were_written(head in "[^=]*", values in proptest::collection::vec(".*", 0..4)) {
            let pairs = values.into_iter().enumerate().map(|(at, value)| (format!("key{at}"), value)).collect();
            let parts = Parts { head: Some(head), pairs };
            prop_assert_eq!(Parts::read(&parts.write()), Ok(parts));
        }
    }
}
