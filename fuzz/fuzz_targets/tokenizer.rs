//! Any texts, with NUL between them, are a vocabulary, merges, a padding token and a prompt, or an error.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sd_gen::text::ClipTokenizer;

fuzz_target!(|text: &str| {
    let mut texts = text.split('\0');
    let mut next = || texts.next().unwrap_or_default();
    let (vocab, merges, pad, prompt) = (next(), next(), next(), next());
    if let Ok(mut tokenizer) = ClipTokenizer::from_files("fuzz", vocab, merges, pad, 77) {
        let _ = tokenizer.add_words("fuzz", &[(pad.to_owned(), 3)]);
        if let Ok(tokens) = tokenizer.encode(prompt) {
            assert!(tokens.ids.len() == 77 && tokens.ids.iter().all(|id| *id <= tokenizer.largest_id()));
        }
    }
});
