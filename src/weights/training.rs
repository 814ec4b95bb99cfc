//! What trainers write into a file's metadata about the words that a model learnt.

use crate::family::lean_json::{Lean, LeanBounds};
use std::collections::BTreeMap;

/// The longest list of words that is read, in bytes: some hundred thousand words. In memory it takes up to thirty times as much.
const LONGEST: usize = 8 << 20;

/// The words of a training with how often they stood in its captions, the most frequent first.
///
/// # Source
/// `ss_tag_frequency` of kohya-ss/sd-scripts: an object of datasets, each an object of words and counts; `modelspec.trigger_phrase`.
pub fn trained_words(metadata: &BTreeMap<String, String>) -> Vec<(String, u64)> {
    let mut counts: BTreeMap<String, u64> = BTreeMap::new();
    let frequency = metadata.get("ss_tag_frequency").filter(|text| text.len() <= LONGEST);
    let datasets = frequency.and_then(|text| Lean::parse(text, LeanBounds { depth: 2, entries: LONGEST }).ok());
    for (_, words) in datasets.map(Lean::into_entries).unwrap_or_default() {
        for (word, count) in words.into_entries() {
            if let Lean::Count(count) = count {
                let total = counts.entry(word.trim().to_owned()).or_default();
                *total = total.saturating_add(count);
            }
        }
    }
    let mut words: Vec<(String, u64)> = counts.into_iter().filter(|(word, count)| !word.is_empty() && *count > 0).collect();
    words.sort_by(|one, other| other.1.cmp(&one.1).then_with(|| one.0.cmp(&other.0)));
    if let Some(phrase) = metadata.get("modelspec.trigger_phrase").filter(|phrase| !phrase.is_empty()) {
        // What the maker says to write counts more than any count.
        words.insert(0, (phrase.clone(), u64::MAX));
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_all_datasets_are_counted_together() {
        let metadata = |text: &str| BTreeMap::from([("ss_tag_frequency".to_owned(), text.to_owned())]);
        let text = r#"{"10_a": {"cat": 3, " dog ": 5, "": 9, "x": "y"}, "5_b": {"cat": 4}, "c": 1}"#;
        assert_eq!(trained_words(&metadata(text)), [("cat".to_owned(), 7), ("dog".to_owned(), 5)]);
        // Values that are no counts do not hide the others.
        assert_eq!(
            trained_words(&metadata(r#"{"a": [[[1]]], "b": {"cat": [2], "dog": {"x": 1}, "owl": 1.5, "ant": 2}}"#)),
            [("ant".to_owned(), 2)]
        );
        assert_eq!(trained_words(&metadata(&format!("{{\"a\":{{\"cat\":1}}}}{}", " ".repeat(LONGEST)))), []);
        for text in ["", "[]", "{", "{\"a\": {\"b\": -1}}"] {
            assert_eq!(trained_words(&metadata(text)), [], "{text}");
        }
    }
}
