//! What trainers write into a file's metadata about the words that a model learnt.

use serde_json::Value;
use std::collections::BTreeMap;

/// The words of a training with how often they stood in its captions, the most frequent first.
///
/// # Source
/// `ss_tag_frequency` of kohya-ss/sd-scripts: an object of datasets, each an object of words and counts; `modelspec.trigger_phrase`.
pub fn trained_words(metadata: &BTreeMap<String, String>) -> Vec<(String, u64)> {
    let mut counts: BTreeMap<String, u64> = BTreeMap::new();
    let frequency = metadata.get("ss_tag_frequency").and_then(|text| serde_json::from_str::<Value>(text).ok());
    for words in frequency.iter().filter_map(Value::as_object).flat_map(|datasets| datasets.values()).filter_map(Value::as_object) {
        for (word, count) in words {
            let count = count.as_u64().unwrap_or(0);
            let total = counts.entry(word.trim().to_owned()).or_default();
            *total = total.saturating_add(count);
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
        for text in ["", "[]", "{", "{\"a\": {\"b\": -1}}"] {
            assert_eq!(trained_words(&metadata(text)), [], "{text}");
        }
    }
}
