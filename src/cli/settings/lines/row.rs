//! A line of any format as names and values, and which names those may be.

use super::error::LineRecord;
use crate::cli::settings::flags::{GENERATION, varies};
use crate::settings::fold;
use std::ops::Range;

/// A record of any format, as names and values.
pub(super) struct RecordRow {
    pub(super) record: LineRecord,
    pub(super) pairs: Vec<FlagPair>,
}

/// A value and where it stands.
pub(super) type PlacedValue = (String, Range<usize>);

/// A name and what it was given; no values where the name stands alone, as a switch does.
pub(super) struct FlagPair {
    pub(super) name: String,
    pub(super) part: Range<usize>,
    pub(super) values: Option<Vec<PlacedValue>>,
}

/// What A1111's names mean that are no settings here: the values that change nothing, or none for a name that never does.
const WITHOUT_EFFECT: &[(&str, &[&str])] = &[
    ("outpath-grids", &[]),
    ("do-not-save-grid", &[]),
    ("prompt-for-display", &[]),
    ("do-not-save-samples", &["false"]),
    ("restore-faces", &["false"]),
    ("tiling", &["false"]),
    ("styles", &[""]),
    ("seed-resize-from-h", &["0", "-1"]),
    ("seed-resize-from-w", &["0", "-1"]),
];

/// A1111's images of a line are this many times its batch size.
pub(super) const REPEATS: &str = "n-iter";

/// The values of one of these names that change nothing; `None` where it is none of them.
pub(super) fn without_effect(name: &str) -> Option<&'static [&'static str]> {
    let folded = fold(name.trim_start_matches('-'));
    WITHOUT_EFFECT.iter().find(|(known, _)| *known == folded).map(|(_, values)| *values)
}

/// The flag of a name, where a line may set it.
pub(super) fn flag_of(name: &str) -> Result<usize, String> {
    if fold(name.trim_start_matches('-')) == "sampler-index" {
        return Err("sampler_index is a number in A1111's own list of samplers; write the name, such as --sampler_name \"Euler a\"".into());
    }
    let flag = GENERATION.find(name)?;
    varies(flag).map(|()| flag)
}

/// Whether a line may have a value of that name.
pub(super) fn known(name: &str) -> Result<(), String> {
    if without_effect(name).is_some() {
        return Ok(());
    }
    flag_of(name).map(drop)
}
