//! CLIP's public byte-pair vocabulary, compiled into the program: a single-file checkpoint carries none.
//!
//! The merges are `bpe_simple_vocab_16e6.txt.gz` of OpenAI's CLIP (MIT), as PyPI's `open-clip-torch` ships it.

use crate::{Error, Result};
use std::io::Read;

static MERGES: &[u8] = include_bytes!("bpe_simple_vocab_16e6.txt.gz");

/// Merges that CLIP uses: 49,152 tokens less 256 bytes and the two special tokens; the file holds more.
const MERGE_COUNT: usize = 49152 - 256 - 2;

/// The token that starts every text.
pub(super) const START_OF_TEXT: &str = "<|startoftext|>";
/// The token that ends every text.
pub(super) const END_OF_TEXT: &str = "<|endoftext|>";

/// The merges as a `merges.txt`: a version line, then one pair a line.
///
/// # Errors
/// The compiled-in data cannot be unpacked, which no user can cause.
pub fn clip_merges() -> Result<String> {
    let mut text = String::new();
    let unpacked = flate2::read::GzDecoder::new(MERGES).read_to_string(&mut text);
    unpacked.map_err(|e| Error::Model(format!("the compiled-in CLIP vocabulary is damaged: {e}")))?;
    let merges = text.lines().skip(1).take(MERGE_COUNT);
    let mut file = String::from("#version: 0.2\n");
    for merge in merges {
        file.push_str(merge);
        file.push('\n');
    }
    Ok(file)
}

/// The vocabulary that follows from `merges` as a `vocab.json`: bytes, bytes that end a word, merged pairs, special tokens.
pub fn clip_vocab_json(merges: &str) -> String {
    let tokens = vocabulary(merges).into_iter().enumerate();
    let map: serde_json::Map<String, serde_json::Value> = tokens.map(|(id, token)| (token, id.into())).collect();
    serde_json::Value::Object(map).to_string()
}

fn vocabulary(merges: &str) -> Vec<String> {
    let letters: Vec<String> = byte_letters().iter().map(char::to_string).collect();
    let ends = letters.iter().map(|letter| format!("{letter}</w>"));
    let merged = merges.lines().skip(1).map(|pair| pair.split_whitespace().collect::<String>());
    let special = [START_OF_TEXT, END_OF_TEXT].map(String::from);
    letters.iter().cloned().chain(ends).chain(merged).chain(special).collect()
}

/// The printable letter that stands for each byte, in the vocabulary's order: printable bytes as themselves first.
fn byte_letters() -> Vec<char> {
    let printable = |byte: u8| matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
    let as_itself = (0..=255u8).filter(|&b| printable(b)).map(char::from);
    let unprintable = (0..=255u8).filter(|&b| !printable(b)).count() as u32;
    as_itself.chain((256..256 + unprintable).filter_map(char::from_u32)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_vocabulary_is_clips() {
        let merges = clip_merges().unwrap();
        let tokens = vocabulary(&merges);
        assert_eq!(tokens.len(), 49408);
        for (id, token) in
            [(0, "!"), (256, "!</w>"), (512, "in"), (320, "a</w>"), (49405, "jekyll</w>"), (49406, START_OF_TEXT), (49407, END_OF_TEXT)]
        {
            assert_eq!(tokens[id], token, "id {id}");
        }
    }
}
