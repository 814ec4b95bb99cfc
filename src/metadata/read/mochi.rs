//! Mochi Diffusion: labels and values between semicolons, in EXIF's ImageDescription and IPTC's caption.
//!
//! # Source
//! MochiDiffusion: Mochi Diffusion/Model/Metadata.swift.

use super::{Text, texts_under};
use crate::metadata::recipe::{Field, Recipe};

const PROMPT: &str = "Include in Image";

/// The labels, and the fields that they stand for. A semicolon in a prompt is one where no label follows.
const LABELS: &[(&str, Option<Field>)] = &[
    (PROMPT, Some(Field::Prompt)),
    ("Exclude from Image", Some(Field::NegativePrompt)),
    ("Model", Some(Field::Model)),
    ("Steps", Some(Field::Steps)),
    ("Guidance Scale", Some(Field::GuidanceScale)),
    ("Seed", Some(Field::Seed)),
    ("Size", None),
    ("Scheduler", Some(Field::Sampler)),
    ("Upscaler", None),
    ("ML Compute Unit", None),
    ("Date", None),
    ("Generator", Some(Field::Version)),
];

pub(super) fn read(texts: &[Text]) -> Option<Recipe> {
    let text = texts_under(texts, &["ImageDescription", "Caption", "Description"]).find(|text| is_mochi(text))?;
    let mut pairs: Vec<(&str, String)> = Vec::new();
    for part in text.split("; ") {
        let labelled = part.split_once(':').and_then(|(label, value)| {
            let (label, _) = LABELS.iter().find(|(known, _)| *known == label.trim())?;
            Some((*label, value.trim().to_owned()))
        });
        match (labelled, pairs.last_mut()) {
            (Some(pair), _) => pairs.push(pair),
            (None, Some((_, value))) => *value = format!("{value}; {part}"),
            (None, None) => {}
        }
    }
    let mut recipe = Recipe::of("Mochi Diffusion");
    for (label, value) in pairs {
        // An empty part of a list is written with its semicolon.
        let value = value.trim_end_matches(';').trim();
        match LABELS.iter().find(|(known, _)| *known == label) {
            Some((_, Some(field))) => recipe.set(*field, value),
            _ if label == "Size" && recipe.set_size(value) => {}
            _ => recipe.other.push((label.to_owned(), value.to_owned())),
        }
    }
    Some(recipe)
}

fn is_mochi(text: &str) -> bool {
    text.starts_with(&format!("{PROMPT}: ")) || text.contains("Generator: Mochi Diffusion")
}
