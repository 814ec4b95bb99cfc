//! What a setting's value can be: how it is typed, read, written, and put into a key.

use super::BadValue;
use crate::inputs::InputFile;
use serde_json::Value as Json;
use std::ffi::{OsStr, OsString};
use std::fmt::Debug;
use std::path::{Path, PathBuf};

/// What a value is, as far as its spelling goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ValueKind {
    /// On or off; as a flag it has no value.
    Switch,
    /// A switch that counts how often it is given.
    Count,
    /// A whole number.
    Whole,
    /// A number with a fraction.
    Number,
    /// A path that is written to.
    Path,
    /// A file or folder that is read.
    File,
    /// Any text.
    Text,
    /// A word, or several with commas, that are read as something.
    Word,
}

impl ValueKind {
    /// The spelling that is read: tables that were through a spreadsheet say `20.0` and `TRUE`.
    pub fn tidied(self, value: &str) -> String {
        match self {
            Self::Switch | Self::Count => match value.trim().to_lowercase().as_str() {
                "true" | "yes" | "on" | "1" => "true".to_owned(),
                "false" | "no" | "off" | "0" => "false".to_owned(),
                _ => value.to_owned(),
            },
            Self::Whole => {
                let value = value.trim();
                let decimal = value.contains(['.', 'e', 'E']);
                // Beyond 2^53 the decimal number would not be the one that was written.
                match value.parse::<f64>() {
                    Ok(number) if decimal && number.fract() == 0.0 && number.abs() <= 9_007_199_254_740_992.0 => format!("{number:.0}"),
                    _ => value.to_owned(),
                }
            }
            Self::Number | Self::Word => value.trim().to_owned(),
            Self::Path | Self::File | Self::Text => value.to_owned(),
        }
    }

    /// The value has no word of its own on a command line.
    pub fn is_switch(self) -> bool {
        matches!(self, Self::Switch | Self::Count)
    }
}

/// A value of a setting.
pub trait Value: Sized + Clone {
    /// How it is spelled.
    const KIND: ValueKind;

    /// Reads what was typed.
    ///
    /// # Errors
    /// What to give instead, as the end of a sentence.
    fn parse(text: &str) -> Result<Self, String>;

    /// The same for what need not be text.
    ///
    /// # Errors
    /// What to give instead, as the end of a sentence.
    fn parse_os(value: &OsStr) -> Result<Self, String> {
        Self::parse(value.to_str().ok_or("is not UTF-8 text")?)
    }

    /// As it would be typed; [`Value::parse`] reads it back.
    fn typed(&self) -> String;

    /// As it is told to others: what is typed, but for the folders of files.
    fn public(&self) -> String {
        self.typed()
    }

    /// As it is in a key: what decides the pixels, and nothing else.
    fn json(&self) -> Json {
        self.typed().into()
    }

    /// As a number, where it is one.
    fn number(&self) -> Option<f64> {
        None
    }

    /// The files that it names and that are read.
    fn files(&mut self) -> Vec<&mut InputFile> {
        Vec::new()
    }
}

/// Where values are kept.
pub(super) trait ValueSlot<T: Value> {
    fn all(&self) -> Vec<&T>;

    fn typed(&self) -> Vec<String> {
        self.all().into_iter().map(T::typed).collect()
    }

    fn public(&self) -> Vec<String> {
        self.all().into_iter().map(T::public).collect()
    }

    fn numbers(&self) -> Vec<f64> {
        self.all().into_iter().filter_map(T::number).collect()
    }

    fn json(&self) -> Json {
        let mut all: Vec<Json> = self.all().into_iter().map(T::json).collect();
        if all.len() == 1 { all.remove(0) } else { all.into() }
    }
}

impl<T: Value> ValueSlot<T> for T {
    fn all(&self) -> Vec<&T> {
        vec![self]
    }
}

impl<T: Value> ValueSlot<T> for Option<T> {
    fn all(&self) -> Vec<&T> {
        self.iter().collect()
    }
}

impl<T: Value> ValueSlot<T> for Vec<T> {
    fn all(&self) -> Vec<&T> {
        self.iter().collect()
    }

    /// A list stays one, however many there are.
    fn json(&self) -> Json {
        self.iter().map(T::json).collect()
    }
}

/// Where the values of a draft are kept.
pub(super) trait Said<T: Value> {
    fn read(&mut self, values: &[OsString]) -> Result<(), BadValue>;
    fn files(&mut self) -> Vec<&mut InputFile>;
}

impl<T: Value> Said<T> for Option<T> {
    fn read(&mut self, values: &[OsString]) -> Result<(), BadValue> {
        *self = match (T::KIND, values) {
            // How often it stands there is its value.
            (ValueKind::Count, values) => {
                let on = values.iter().filter(|value| *value != "false").count();
                Some(T::parse(&on.to_string()).map_err(|what| (0, what))?)
            }
            (_, []) => None,
            (_, [value]) => Some(T::parse_os(value).map_err(|what| (0, what))?),
            (_, values) => return Err((1, format!("takes one value, and {} were given", values.len()))),
        };
        Ok(())
    }

    fn files(&mut self) -> Vec<&mut InputFile> {
        self.iter_mut().flat_map(T::files).collect()
    }
}

impl<T: Value> Said<T> for Vec<T> {
    fn read(&mut self, values: &[OsString]) -> Result<(), BadValue> {
        let each = |(at, value): (usize, &OsString)| T::parse_os(value).map_err(|what| (at, what));
        *self = values.iter().enumerate().map(each).collect::<Result<_, _>>()?;
        Ok(())
    }

    fn files(&mut self) -> Vec<&mut InputFile> {
        self.iter_mut().flat_map(T::files).collect()
    }
}

impl Value for bool {
    const KIND: ValueKind = ValueKind::Switch;

    fn parse(text: &str) -> Result<Self, String> {
        match text {
            "true" => Ok(true),
            "false" => Ok(false),
            _ => Err("give true or false".into()),
        }
    }

    fn typed(&self) -> String {
        self.to_string()
    }

    fn json(&self) -> Json {
        (*self).into()
    }
}

/// Why a text is no whole number.
pub(super) fn not_whole(text: &str) -> String {
    match text.bytes().all(|byte| byte.is_ascii_digit()) && !text.is_empty() {
        true => "the number is too large".into(),
        false => "give a whole number such as 20".into(),
    }
}

impl Value for usize {
    const KIND: ValueKind = ValueKind::Whole;

    fn parse(text: &str) -> Result<Self, String> {
        text.parse().map_err(|_| not_whole(text))
    }

    fn typed(&self) -> String {
        self.to_string()
    }

    fn json(&self) -> Json {
        (*self).into()
    }

    fn number(&self) -> Option<f64> {
        Some(*self as f64)
    }
}

impl Value for i64 {
    const KIND: ValueKind = ValueKind::Whole;

    fn parse(text: &str) -> Result<Self, String> {
        text.parse().map_err(|_| not_whole(text.trim_start_matches('-')))
    }

    fn typed(&self) -> String {
        self.to_string()
    }

    fn json(&self) -> Json {
        (*self).into()
    }

    fn number(&self) -> Option<f64> {
        Some(*self as f64)
    }
}

impl Value for f64 {
    const KIND: ValueKind = ValueKind::Number;

    fn parse(text: &str) -> Result<Self, String> {
        text.parse().map_err(|_| "give a number such as 7.5".into())
    }

    fn typed(&self) -> String {
        self.to_string()
    }

    fn json(&self) -> Json {
        (*self).into()
    }

    fn number(&self) -> Option<f64> {
        Some(*self)
    }
}

impl Value for String {
    const KIND: ValueKind = ValueKind::Text;

    fn parse(text: &str) -> Result<Self, String> {
        Ok(text.to_owned())
    }

    fn typed(&self) -> String {
        self.clone()
    }
}

impl Value for PathBuf {
    const KIND: ValueKind = ValueKind::Path;

    fn parse(text: &str) -> Result<Self, String> {
        Ok(text.into())
    }

    fn parse_os(value: &OsStr) -> Result<Self, String> {
        if value.is_empty() {
            return Err("give a path".into());
        }
        Ok(value.into())
    }

    fn typed(&self) -> String {
        self.display().to_string()
    }
}

/// A file or a folder that its user opens; it is not part of a key by itself.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct SourcePath(pub PathBuf);

impl AsRef<Path> for SourcePath {
    fn as_ref(&self) -> &Path {
        &self.0
    }
}

impl Value for SourcePath {
    const KIND: ValueKind = ValueKind::File;

    fn parse(text: &str) -> Result<Self, String> {
        Self::parse_os(text.as_ref())
    }

    fn parse_os(value: &OsStr) -> Result<Self, String> {
        PathBuf::parse_os(value).map(SourcePath)
    }

    fn typed(&self) -> String {
        self.0.display().to_string()
    }
}

impl Value for InputFile {
    const KIND: ValueKind = ValueKind::File;

    fn parse(text: &str) -> Result<Self, String> {
        Self::parse_os(text.as_ref())
    }

    fn parse_os(value: &OsStr) -> Result<Self, String> {
        if value.is_empty() {
            return Err("give a file".into());
        }
        Ok(InputFile::named(Path::new(value)))
    }

    fn typed(&self) -> String {
        self.name().map_or_else(|| self.path().display().to_string(), str::to_owned)
    }

    fn public(&self) -> String {
        let file = || self.path().file_name().unwrap_or_default().to_string_lossy().into_owned();
        self.name().map_or_else(file, str::to_owned)
    }

    /// Its content; where it lies does not matter.
    fn json(&self) -> Json {
        self.sha256().map_or(Json::Null, Into::into)
    }

    fn files(&mut self) -> Vec<&mut InputFile> {
        vec![self]
    }
}

/// Makes an enum a value: `words!(Type, Type::from_name, Type::name)`, the reader's error being what to give instead.
macro_rules! words {
    ($T:ty, $read:expr, $name:expr) => {
        impl crate::settings::Value for $T {
            const KIND: crate::settings::ValueKind = crate::settings::ValueKind::Word;

            fn parse(text: &str) -> Result<Self, String> {
                ($read)(text).map_err(|error| error.to_string())
            }

            fn typed(&self) -> String {
                ($name)(self).into()
            }
        }
    };
}
