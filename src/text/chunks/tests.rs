use super::*;
use crate::prompt::tests::entries;
use crate::prompt::{Emphasis, PromptSyntax};
use serde_json::Value;

/// The ids with the padding that the record leaves out, and the weights of its runs.
fn recorded(value: &Value, pad: u32) -> Vec<(Vec<u32>, Vec<f64>)> {
    let tokens = value["tokens"].as_array().unwrap().iter();
    let weights = value["weights"].as_array().unwrap().iter();
    let chunk = |(tokens, runs): (&Value, &Value)| {
        let mut ids: Vec<u32> = serde_json::from_value(tokens.clone()).unwrap();
        ids.resize(77, pad);
        let run = |run: &Value| vec![run[0].as_f64().unwrap(); run[1].as_u64().unwrap() as usize];
        (ids, runs.as_array().unwrap().iter().flat_map(run).collect())
    };
    tokens.zip(weights).map(chunk).collect()
}

fn assert_chunks(chunks: Vec<Chunk>, wanted: Vec<(Vec<u32>, Vec<f64>)>, what: &str) {
    assert_eq!(chunks.len(), wanted.len(), "{what}");
    for (chunk, (ids, weights)) in chunks.iter().zip(wanted) {
        assert_eq!(chunk.ids, ids, "{what}");
        assert!(chunk.weights.iter().zip(&weights).all(|(a, b)| (a - b).abs() < 1e-12), "{what}: {:?}", chunk.weights);
    }
}

#[test]
fn prompts_are_cut_where_the_tools_cut_them() {
    let tokenizer = ClipTokenizer::clip("<|endoftext|>", 77).unwrap();
    let entries = entries("chunks");
    assert!(entries.len() > 40);
    for (text, entry) in entries {
        let words = |syntax: PromptSyntax| syntax.words(&text, Emphasis::Original).unwrap();
        let chunks = a1111_chunks(&tokenizer, &words(PromptSyntax::A1111)).unwrap();
        assert_chunks(chunks, recorded(&entry["a1111"], 49407), &format!("A1111: {text:?}"));
        let chunks = comfyui_chunks(&tokenizer, &words(PromptSyntax::ComfyUi)).unwrap();
        assert_chunks(chunks, recorded(&entry["comfyui"], 49407), &format!("ComfyUI: {text:?}"));
    }
}

#[test]
fn learned_words_are_kept_whole() {
    let mut tokenizer = ClipTokenizer::clip("<|endoftext|>", 77).unwrap();
    tokenizer.learn("toy", vec![49408, 49409, 49410]).unwrap();
    let words = [WeightedText::new(format!("{}toy end", "a ".repeat(74)), 1.5)];
    let chunks = a1111_chunks(&tokenizer, &words).unwrap();
    assert_eq!((chunks.len(), chunks[0].ids[75]), (2, 49407), "there is room for one more token, and the word has three");
    assert_eq!((&chunks[1].ids[1..4], chunks[1].weights[3]), (&[49408, 49409, 49410][..], 1.5));
    // ComfyUI calls them by name, and knows no other way.
    let ids = |text: &str| comfyui_chunks(&tokenizer, &[WeightedText::new(text, 1.0)]).unwrap().remove(0).ids;
    let plain = |text: &str| Chunk::of(&tokenizer.raw(text).unwrap().into_iter().map(|id| (id, 1.0)).collect::<Vec<_>>(), &tokenizer).ids;
    assert_eq!(ids("a toy"), plain("a toy"));
    assert_eq!(ids("embedding:toy cat")[1..5], [49408, 49409, 49410, plain("cat")[1]]);
    assert_eq!(ids("a embedding:toy, b")[2..7], [49408, 49409, 49410, plain(",")[1], plain("b")[1]]);
    assert_eq!(ids("a embedding:none b")[1..4], [plain("a")[1], plain("b")[1], 49407]);
}

/// A word with how it is emphasised.
#[derive(Debug, Clone, PartialEq)]
enum Emphasised {
    Plain(String),
    Weighted(String, u32),
    Twice(String),
}

impl Emphasised {
    fn written(&self) -> String {
        match self {
            Self::Plain(word) => word.clone(),
            Self::Weighted(word, percent) => format!("({word}:{})", f64::from(*percent) / 100.0),
            Self::Twice(word) => format!("(({word}))"),
        }
    }

    /// What it means, in both tools' syntaxes: the word as the vocabulary has it, and its weight.
    fn meant(&self) -> (String, u32) {
        match self {
            Self::Plain(word) => (word.to_lowercase(), 10_000),
            Self::Weighted(word, percent) => (word.to_lowercase(), percent * 100),
            Self::Twice(word) => (word.to_lowercase(), 12_100),
        }
    }
}

mod any_two_prompts {
    use super::*;
    use proptest::prelude::*;

    fn words() -> impl Strategy<Value = Vec<Emphasised>> {
        // Few of them, so that two prompts often differ in little; of every script, length and case.
        let word = prop_oneof![
            4 => proptest::sample::select(vec!["a", "cat", "Cat", "cats", "red", "cat-like", "東京", "東", "naïve", "naive", "antidisestablishment"])
                .prop_map(str::to_owned),
            1 => "[a-zA-Zà-öα-ω一-三]{1,6}",
        ];
        let emphasised = (word, 0..6u32, 50..160u32).prop_map(|(word, how, percent)| match how {
            0 => Emphasised::Weighted(word, percent),
            1 => Emphasised::Twice(word),
            _ => Emphasised::Plain(word),
        });
        prop_oneof![3 => proptest::collection::vec(emphasised.clone(), 0..5), 1 => proptest::collection::vec(emphasised, 60..120)]
    }

    /// Two prompts, of which the second is often the first with one thing changed.
    fn two() -> impl Strategy<Value = (Vec<Emphasised>, Vec<Emphasised>)> {
        let near = (words(), words(), any::<proptest::sample::Index>(), 0..4u32).prop_map(|(one, more, at, how)| {
            let mut other = one.clone();
            let at = at.index(one.len() + 1);
            match (how, more.into_iter().next()) {
                (0, Some(word)) => other.insert(at, word),
                (1, Some(word)) if at < one.len() => other[at] = word,
                (2, _) if at < one.len() => drop(other.remove(at)),
                (3, _) if at + 1 < one.len() => other.swap(at, at + 1),
                _ => {}
            }
            (one, other)
        });
        prop_oneof![3 => near, 1 => (words(), words())]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(300))]

        /// What a text encoder is given is another thing whenever something else was meant, and the same where the same was.
        #[test]
        fn are_told_apart((one, other) in two()) {
            let tokenizer = ClipTokenizer::clip("<|endoftext|>", 77).unwrap();
            let meant = |words: &[Emphasised]| words.iter().map(Emphasised::meant).collect::<Vec<_>>();
            let written = |words: &[Emphasised]| words.iter().map(Emphasised::written).collect::<Vec<_>>().join(" ");
            let same = meant(&one) == meant(&other);
            let (one, other) = (written(&one), written(&other));
            for syntax in [PromptSyntax::A1111, PromptSyntax::ComfyUi] {
                let chunks = |text: &str| {
                    let words = syntax.words(text, Emphasis::Original).unwrap();
                    let chunks = if syntax == PromptSyntax::A1111 { a1111_chunks(&tokenizer, &words) } else { comfyui_chunks(&tokenizer, &words) };
                    // Weights are products of decimal numbers: to more digits than anybody writes.
                    let rounded = |chunk: Chunk| (chunk.ids, chunk.weights.iter().map(|w| (w * 1e6).round() as i64).collect::<Vec<_>>());
                    chunks.unwrap().into_iter().map(rounded).collect::<Vec<_>>()
                };
                let alike = chunks(&one) == chunks(&other);
                // ComfyUI keeps words that stand in one pair of brackets together where it cuts.
                prop_assert!(alike == same || same && syntax == PromptSyntax::ComfyUi, "{}: {:?} and {:?}", syntax.name(), one, other);
            }
        }

        /// One row holds the beginning of a text; where two texts have the same one, what was left out of them is said, and is not the same.
        #[test]
        fn are_told_apart_in_one_row_or_it_is_said((one, other) in two()) {
            let tokenizer = ClipTokenizer::clip("<|endoftext|>", 77).unwrap();
            let plain = |words: &[Emphasised]| words.iter().map(|word| word.meant().0).collect::<Vec<_>>().join(" ");
            let (one, other) = (plain(&one), plain(&other));
            prop_assert_eq!(tokenizer.encode(&one).unwrap() == tokenizer.encode(&other).unwrap(), one == other, "{:?} and {:?}", one, other);
        }
    }
}
