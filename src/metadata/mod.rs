//! How an image was made, as text inside the image: written for the field's tools, and read from theirs.
//!
//! [`read`] goes from a file to a [`Recipe`]: `containers` finds the texts of a PNG, JPEG or WebP, `read` has a reader for each dialect
//! that understands them, and [`command()`] turns the recipe into the `sd-gen` arguments that generate it again. Images are untrusted:
//! every length is held against the file and a limit, JSON is bounded in depth, and nothing that an image says is more than text until
//! [`command()`] has checked it.

mod command;
mod containers;
mod control_net;
mod json;
mod read;
mod recipe;
mod recreation;
mod tool;
mod write;

pub use command::{PrintedCommand, command};
pub use containers::{Text, texts};
pub use read::{understand, understand_graph};
pub use recipe::{Field, NamedLora, Recipe};
pub use recreation::recreation;
pub use write::{GeneratedBy, KEYWORD, parameters};

use crate::Result;
use std::path::Path;

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
    let Some(mut texts) = texts(path)? else { return Ok(None) };
    let mut recipe = understand(&texts);
    // An editor that drops the tool's text leaves its own name, so what is hidden is looked for wherever nothing is understood.
    if recipe.is_none() {
        let hidden = containers::hidden(path)?;
        recipe = understand(&hidden);
        texts.extend(hidden);
    }
    Ok(Some(Image { texts, recipe }))
}
