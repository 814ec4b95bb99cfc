//! Templates: `{a|b}`, `{2$$a|b|c}`, `{0.7::a|b}`, `__file__`, `${name=value}` and `%{wrapper ... here$$inner}`, in the language of the
//! sd-dynamic-prompts extension of A1111.
//!
//! What a template can become, and in which order all of it is listed, is as there. Which of it a seed draws is not: that depends on
//! Python's generator. Where the extension fails over a character that opens nothing (`100%`, `$5`, a single `__`), it is text here.
//!
//! # Source
//! adieyal/dynamicprompts@0.31.0:src/dynamicprompts/parser/parse.py, samplers/, wildcards/.

mod combine;
mod evaluate;
mod parse;
mod wildcards;

pub use wildcards::Wildcards;

use crate::Result;
use evaluate::Evaluator;

/// How a choice is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sampling {
    /// `~`
    Random,
    /// `@`: the first the first time, the second the second time.
    Cyclical,
    /// `!`
    Combinatorial,
}

/// A piece of a template.
#[derive(Debug, Clone, PartialEq)]
enum Piece {
    Text(String),
    Choice(Choice),
    Wildcard { path: Vec<Piece>, sampling: Option<Sampling>, variables: Vec<(String, Vec<Piece>)> },
    Variable { name: String, default: Option<Vec<Piece>> },
    Assign { name: String, value: Vec<Piece>, keep: bool, immediate: bool },
    Wrap { wrapper: Vec<Piece>, inner: Vec<Piece> },
}

/// `{…|…}`
#[derive(Debug, Clone, PartialEq)]
struct Choice {
    options: Vec<(f64, Vec<Piece>)>,
    /// How many of the options are taken.
    least: usize,
    most: usize,
    separator: String,
    sampling: Option<Sampling>,
}

/// A text that stands for many.
#[derive(Debug, Clone, PartialEq)]
pub struct Template {
    pieces: Vec<Piece>,
}

/// What a template can become.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Combinations {
    /// In the extension's order.
    pub texts: Vec<String>,
    /// There are more than were asked for.
    pub cut: bool,
    /// Wildcards without a file, which are left in the text.
    pub missing: Vec<String>,
}

impl Template {
    /// Reads a template.
    ///
    /// # Errors
    /// A brace is never closed, or something within braces makes no sense; the message shows the place.
    pub fn parse(text: &str) -> Result<Self> {
        Ok(Self { pieces: parse::parse(text)? })
    }

    /// The template is a text that stands for itself only.
    pub fn is_plain(&self) -> bool {
        self.pieces.iter().all(|piece| matches!(piece, Piece::Text(_)))
    }

    /// One text, drawn with a seed; `index` counts the texts that are drawn one after the other, for `{@a|b}`.
    /// The second value are the wildcards that have no file.
    ///
    /// # Errors
    /// A wildcard's file cannot be read or has a broken line, a variable has no value, or the template refers to itself.
    pub fn draw(&self, wildcards: &Wildcards, seed: u64, index: usize) -> Result<(String, Vec<String>)> {
        let mut evaluator = Evaluator::new(wildcards, seed, index);
        let text = evaluator.draw_all(&self.pieces)?;
        Ok((text, evaluator.missing))
    }

    /// The first `most` of all texts.
    ///
    /// # Errors
    /// As [`Template::draw`]; or there is no end to the work.
    pub fn combinations(&self, wildcards: &Wildcards, seed: u64, most: usize) -> Result<Combinations> {
        let mut evaluator = Evaluator::new(wildcards, seed, 0);
        let (texts, cut) = evaluator.combine_all(&self.pieces, most)?;
        Ok(Combinations { texts, cut, missing: evaluator.missing })
    }
}

#[cfg(test)]
mod tests;
