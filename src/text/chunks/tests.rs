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
