//! A1111's styles: `styles.csv` with the columns `name`, `prompt` and `negative_prompt`.

use crate::{Error, Result};
use std::path::Path;

/// Bytes of a sheet of styles.
const LARGEST: u64 = 64 << 20;

/// Words that are kept under a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PromptStyle {
    /// What `--style` calls it.
    pub name: String,
    /// With `{prompt}`, where the prompt goes; else what is added to it.
    pub prompt: String,
    /// The same for the negative prompt.
    pub negative_prompt: String,
}

/// The styles of a file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StyleSheet {
    styles: Vec<PromptStyle>,
}

impl StyleSheet {
    /// Reads a `styles.csv`.
    ///
    /// # Errors
    /// The file cannot be read, is no CSV, or lacks the column `name`.
    pub fn read(path: &Path) -> Result<Self> {
        let length = std::fs::metadata(path).map_err(Error::io(path))?.len();
        if length > LARGEST {
            return Err(Error::Input(format!("{}: {length} bytes are too many for a file of styles", path.display())));
        }
        let bytes = std::fs::read(path).map_err(Error::io(path))?;
        Self::parse(&String::from_utf8_lossy(&bytes)).map_err(|what| Error::Input(format!("{}: {what}", path.display())))
    }

    /// Reads the text of a `styles.csv`.
    ///
    /// # Errors
    /// A sentence without the file's name.
    pub fn parse(text: &str) -> std::result::Result<Self, String> {
        let text = text.strip_prefix('\u{FEFF}').unwrap_or(text);
        let mut reader = csv::ReaderBuilder::new().flexible(true).from_reader(text.as_bytes());
        let headers = reader.headers().map_err(|e| e.to_string())?.clone();
        let column = |wanted: &str| headers.iter().position(|name| name.trim() == wanted);
        let name = column("name").ok_or("it has no column `name`; the first line of A1111's file is name,prompt,negative_prompt")?;
        // Files from before A1111 had negative prompts call the column `text`.
        let (prompt, negative_prompt) = (column("prompt").or(column("text")), column("negative_prompt"));
        let mut styles = Vec::new();
        for record in reader.records() {
            let record = record.map_err(|e| e.to_string())?;
            let field = |at: Option<usize>| at.and_then(|at| record.get(at)).unwrap_or_default().to_owned();
            let style = PromptStyle { name: field(Some(name)), prompt: field(prompt), negative_prompt: field(negative_prompt) };
            // Recent versions write lines of dashes between groups, whose texts are empty.
            if !style.name.trim().is_empty() {
                styles.push(style);
            }
        }
        Ok(Self { styles })
    }

    /// The names.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.styles.iter().map(|style| style.name.as_str())
    }

    /// A style by its name; of two with one name the last, as in A1111.
    pub fn get(&self, name: &str) -> Option<&PromptStyle> {
        self.styles.iter().rev().find(|style| style.name == name)
    }
}

impl PromptStyle {
    /// The prompt and the negative prompt with the style.
    pub fn apply(&self, prompt: &str, negative_prompt: &str) -> (String, String) {
        (merge(&self.prompt, prompt), merge(&self.negative_prompt, negative_prompt))
    }
}

fn merge(style: &str, prompt: &str) -> String {
    const PLACE: &str = "{prompt}";
    if style.contains(PLACE) {
        return style.replace(PLACE, prompt);
    }
    let parts = [prompt.trim(), style.trim()];
    parts.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join(", ")
}
