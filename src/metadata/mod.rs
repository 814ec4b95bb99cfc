//! How an image was made, as text inside the image: written for the field's tools, and read from theirs.
//!
//! [`read`] goes from a file to a [`Recipe`]: `container` finds the texts of a PNG, JPEG or WebP, a reader for each dialect
//! (`a1111`, `comfyui`, `invokeai`, and `flat` for all that is one JSON object) understands them, and [`command()`] turns the recipe
//! into the `sd-gen` arguments that generate it again. Images are untrusted: every length is held against the file and a limit, JSON
//! is bounded in depth, and nothing that an image says is more than text until [`command()`] has checked it.

mod a1111;
mod comfyui;
mod command;
mod container;
mod exif;
mod flat;
mod invokeai;
mod recipe;
mod stealth;
mod write;

pub use command::{Command, command};
pub use container::{Text, texts};
pub use recipe::{Field, Recipe};
pub use write::{GeneratedBy, KEYWORD, parameters};

use crate::Result;
use std::path::Path;

/// A dialect's reader: nothing where the texts are not its own.
type Reader = fn(&[Text]) -> Option<Recipe>;

/// The first that understands the texts has them; who is easily mistaken for another comes first.
const READERS: &[Reader] = &[flat::read, a1111::read, invokeai::read, comfyui::read, flat::read_keywords];

/// What is known of how an image was made.
#[derive(Debug, Clone, PartialEq)]
pub struct Image {
    /// Everything that is written in the file, as it stands.
    pub texts: Vec<Text>,
    /// What it means, where a reader understands it.
    pub recipe: Option<Recipe>,
}

/// Reads what a PNG, JPEG or WebP says about its making; `None` where the file is none of these.
///
/// # Errors
/// The file cannot be read, is damaged, or holds more text than any tool writes.
pub fn read(path: &Path) -> Result<Option<Image>> {
    Ok(texts(path)?.map(|texts| Image { recipe: understand(&texts), texts }))
}

/// What the texts of an image mean.
pub fn understand(texts: &[Text]) -> Option<Recipe> {
    READERS.iter().find_map(|reader| reader(texts))
}

/// The text under one of the keywords, which are tried in order.
fn text<'a>(texts: &'a [Text], keywords: &[&str]) -> Option<&'a str> {
    keywords.iter().find_map(|keyword| texts.iter().find(|text| text.keyword == *keyword)).map(|text| text.text.as_str())
}

/// The JSON object that `text` is; a depth beyond any tool's is none.
fn object(text: &str) -> Option<serde_json::Map<String, serde_json::Value>> {
    match serde_json::from_str(text.trim_matches(['\0', ' ', '\n'])) {
        Ok(serde_json::Value::Object(map)) => Some(map),
        _ => None,
    }
}
