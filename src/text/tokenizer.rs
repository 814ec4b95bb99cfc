//! CLIP's byte-pair tokenizer, from the compiled-in vocabulary or from a model folder's own files.

use super::clip_vocabulary::{END_OF_TEXT, START_OF_TEXT, clip_merges, clip_vocab_json};
use super::tidy::tidy;
use crate::{Error, Result};
use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::normalizers::NFC;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{AddedToken, SplitDelimiterBehavior, Tokenizer};

/// How CLIP cuts a text into words.
const WORDS: &str = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+";

/// A text as a text encoder takes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tokens {
    /// Start, text, end and padding: always as many as the encoder has positions.
    pub ids: Vec<u32>,
    /// The end of the text that did not fit, as tidied.
    pub left_out: Option<String>,
}

/// What stands around the tokens of a text.
#[derive(Debug, Clone, Copy)]
pub(super) struct SpecialTokens {
    pub(super) start: u32,
    pub(super) end: u32,
    pub(super) pad: u32,
    /// Of a row, with start and end.
    pub(super) length: usize,
}

/// Texts to token rows of one length.
pub struct ClipTokenizer {
    inner: Tokenizer,
    /// The same without the padding token as a word of its own, where the two differ: only transformers' tokenizers look for it in texts.
    without_pad: Option<Tokenizer>,
    start: u32,
    end: u32,
    pad: u32,
    length: usize,
    /// Words that a text encoder learnt beside its own: the tokens that they are written with, and the ids in their place. The words of
    /// most tokens come first.
    learned: Vec<(Vec<u32>, Vec<u32>)>,
}

impl std::fmt::Debug for ClipTokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { start, end, pad, length, .. } = self;
        write!(f, "ClipTokenizer {{ start: {start}, end: {end}, pad: {pad}, length: {length} }}")
    }
}

impl ClipTokenizer {
    /// The public CLIP vocabulary.
    ///
    /// # Errors
    /// `pad_token` is not in it.
    pub fn clip(pad_token: &str, length: usize) -> Result<Self> {
        let merges = clip_merges()?;
        Self::from_files("the compiled-in CLIP vocabulary", &clip_vocab_json(&merges), &merges, pad_token, length)
    }

    /// A vocabulary from the texts of `vocab.json` and `merges.txt`; `origin` names them in errors.
    ///
    /// # Errors
    /// The files are not a byte-pair vocabulary with CLIP's special tokens, or lack `pad_token`.
    pub fn from_files(origin: &str, vocab_json: &str, merges: &str, pad_token: &str, length: usize) -> Result<Self> {
        let wrong = |what: String| Error::Model(format!("{origin}: {what}; take the tokenizer files that came with the model"));
        let vocab: Vocab = serde_json::from_str::<std::collections::HashMap<String, u32>>(vocab_json)
            .map_err(|e| wrong(format!("vocab.json is not a map from tokens to numbers ({e})")))?
            .into_iter()
            .collect();
        let id = |token: &str| vocab.get(token).copied().ok_or_else(|| wrong(format!("the vocabulary has no token {token:?}")));
        let (start, end, pad) = (id(START_OF_TEXT)?, id(END_OF_TEXT)?, id(pad_token)?);
        let pairs = (1..).zip(merges.lines()).filter(|(_, line)| !line.starts_with("#version") && !line.trim().is_empty());
        let pairs: Result<Vec<(String, String)>> = pairs
            .map(|(number, line)| {
                let pair = line.split_once(' ').ok_or_else(|| wrong(format!("line {number} of merges.txt is no pair of tokens")))?;
                Ok((pair.0.to_owned(), pair.1.trim_end().to_owned()))
            })
            .collect();
        let unusable = |e: tokenizers::Error| wrong(format!("the byte-pair merges cannot be used ({e})"));
        let model = BPE::builder().vocab_and_merges(vocab, pairs?).unk_token(END_OF_TEXT.into()).end_of_word_suffix("</w>".into()).build();
        let model = model.map_err(unusable)?;
        let tokenizer = |model: BPE, special: &[&str]| -> tokenizers::Result<Tokenizer> {
            let mut tokenizer = Tokenizer::new(model);
            tokenizer.with_normalizer(Some(NFC))?;
            let words = Split::new(SplitPattern::Regex(WORDS.into()), SplitDelimiterBehavior::Removed, true)?;
            tokenizer.with_pre_tokenizer(Some(Sequence::new(vec![words.into(), ByteLevel::new(false, false, false).into()])));
            tokenizer.add_special_tokens(special.iter().map(|token| AddedToken::from(*token, true)))?;
            Ok(tokenizer)
        };
        let without_pad = (pad != end).then(|| tokenizer(model.clone(), &[START_OF_TEXT, END_OF_TEXT])).transpose().map_err(unusable)?;
        // transformers takes the padding token out of the text before it splits words, so that with "!" as padding
        // every exclamation mark is a token of its own.
        let inner = tokenizer(model, &[START_OF_TEXT, END_OF_TEXT, pad_token]).map_err(unusable)?;
        if length < 3 {
            return Err(wrong(format!("a text encoder with {length} positions has no room for a text")));
        }
        Ok(Self { inner, without_pad, start, end, pad, length, learned: Vec::new() })
    }

    /// Takes words that were added to the vocabulary with these numbers as one token each, wherever they stand in a text.
    ///
    /// # Errors
    /// The numbers do not follow the vocabulary's.
    pub fn add_words(&mut self, origin: &str, words: &[(String, u32)]) -> Result<()> {
        for (word, id) in words {
            // As the text is before it is split.
            let tidied = tidy(word);
            self.inner.add_tokens([AddedToken::from(tidied.clone(), false)]).map_err(|e| Error::Model(format!("{origin}: {e}")))?;
            let given = self.inner.token_to_id(&tidied);
            if given != Some(*id) {
                let given = given.map_or("none".to_owned(), |given| given.to_string());
                return Err(Error::Model(format!(
                    "{origin}: the added token {word:?} has the number {id}, where the vocabulary goes on with {given}; take the tokenizer \
                     files that came with the model"
                )));
            }
        }
        Ok(())
    }

    /// Forgets all learned words.
    pub fn unlearn(&mut self) {
        self.learned.clear();
    }

    /// Takes `ids` in the place of the tokens that `word` is written with, wherever they stand in a text.
    ///
    /// # Errors
    /// The word has no tokens.
    pub fn learn(&mut self, word: &str, ids: Vec<u32>) -> Result<()> {
        let encoding = self.inner.encode(tidy(word).as_str(), false);
        let tokens = encoding.map(|encoding| encoding.get_ids().to_vec()).unwrap_or_default();
        if tokens.is_empty() {
            return Err(Error::Input(format!("the embedding {word:?} has a name without letters; rename its file")));
        }
        self.learned.retain(|(known, _)| *known != tokens);
        self.learned.push((tokens, ids));
        self.learned.sort_by_key(|(tokens, _)| std::cmp::Reverse(tokens.len()));
        Ok(())
    }

    /// The learned word that the tokens begin with: how many tokens it is written with, and its ids.
    fn learned_at(&self, tokens: &[u32]) -> Option<(usize, &[u32])> {
        self.learned.iter().find(|(word, _)| tokens.starts_with(word)).map(|(word, ids)| (word.len(), ids.as_slice()))
    }

    pub(super) fn special(&self) -> SpecialTokens {
        SpecialTokens { start: self.start, end: self.end, pad: self.pad, length: self.length }
    }

    /// The token of a comma that stands by itself.
    pub(super) fn comma(&self) -> Option<u32> {
        self.inner.token_to_id(",</w>")
    }

    /// The tokens of a text alone, however many, as A1111 and ComfyUI split it.
    ///
    /// # Errors
    /// The text cannot be tokenized at all.
    pub(super) fn raw(&self, text: &str) -> Result<Vec<u32>> {
        let encoding = self.without_pad.as_ref().unwrap_or(&self.inner).encode(tidy(text).as_str(), false);
        Ok(encoding.map_err(|e| Error::Input(format!("the prompt cannot be split into tokens: {e}")))?.get_ids().to_vec())
    }

    /// The same, each token or learned word by itself.
    ///
    /// # Errors
    /// As [`ClipTokenizer::raw`].
    pub(super) fn groups(&self, text: &str) -> Result<Vec<Vec<u32>>> {
        let tokens = self.raw(text)?;
        let mut groups = Vec::with_capacity(tokens.len());
        let mut rest = tokens.as_slice();
        while let Some(&first) = rest.first() {
            let (taken, ids) = self.learned_at(rest).map_or_else(|| (1, vec![first]), |(taken, ids)| (taken, ids.to_vec()));
            groups.push(ids);
            rest = &rest[taken..];
        }
        Ok(groups)
    }

    /// The ids of a learned word by its name.
    pub(super) fn learned(&self, name: &str) -> Option<&[u32]> {
        let tokens = self.raw(name).ok()?;
        self.learned.iter().find(|(word, _)| *word == tokens).map(|(_, ids)| ids.as_slice())
    }

    /// Tokens and where each begins in the text, with the learned words' ids in the place of their tokens.
    fn with_learned(&self, tokens: &[u32], begins: impl Iterator<Item = usize>) -> Vec<(u32, usize)> {
        let begins: Vec<usize> = begins.collect();
        let mut words = Vec::with_capacity(tokens.len());
        let mut at = 0;
        while let (Some(rest), Some(&begin)) = (tokens.get(at..).filter(|rest| !rest.is_empty()), begins.get(at)) {
            match self.learned_at(rest) {
                Some((taken, ids)) => {
                    words.extend(ids.iter().map(|id| (*id, begin)));
                    at += taken;
                }
                None => {
                    words.extend(rest.first().map(|id| (*id, begin)));
                    at += 1;
                }
            }
        }
        words
    }

    /// One row for one text.
    ///
    /// # Errors
    /// The text cannot be tokenized at all.
    pub fn encode(&self, text: &str) -> Result<Tokens> {
        let tidied = tidy(text);
        let encoding = self.inner.encode(tidied.as_str(), false);
        let encoding = encoding.map_err(|e| Error::Input(format!("the prompt cannot be split into tokens: {e}")))?;
        let room = self.length - 2;
        let words = self.with_learned(encoding.get_ids(), encoding.get_offsets().iter().map(|(from, _)| *from));
        let left_out = words.get(room).map(|&(_, from)| {
            // A word that lost its end lost its meaning: it is named whole.
            let word = tidied.get(..from).and_then(|before| before.rfind(' ')).map_or(0, |blank| blank + 1);
            tidied.get(word..).unwrap_or_default().to_owned()
        });
        let mut ids = Vec::with_capacity(self.length);
        ids.push(self.start);
        ids.extend(words.iter().take(room).map(|(id, _)| *id));
        ids.push(self.end);
        ids.resize(self.length, self.pad);
        Ok(Tokens { ids, left_out })
    }

    /// The largest id that the vocabulary can give.
    pub fn largest_id(&self) -> u32 {
        self.inner.get_vocab(true).values().copied().max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_transformers_own() {
        // Made by tests/data/text/make_clip_tokens.py.
        let cases: Vec<(String, Vec<u32>, Vec<u32>)> =
            serde_json::from_str(include_str!("../../tests/data/text/clip_tokens.json")).unwrap();
        assert!(cases.len() >= 20);
        let (ends, exclamations) = (ClipTokenizer::clip(END_OF_TEXT, 77).unwrap(), ClipTokenizer::clip("!", 77).unwrap());
        for (text, padded_with_ends, padded_with_exclamations) in cases {
            for (clip, mut wanted, pad) in [(&ends, padded_with_ends, 49407), (&exclamations, padded_with_exclamations, 0)] {
                wanted.resize(77, pad);
                assert_eq!(clip.encode(&text).unwrap().ids, wanted, "{text:?}");
            }
        }
    }

    #[test]
    fn half_width_katakana_is_katakana() {
        let clip = ClipTokenizer::clip(END_OF_TEXT, 77).unwrap();
        for (half, full) in [("ｶﾀｶﾅ", "カタカナ"), ("ｶﾞﾊﾟ", "ガパ")] {
            assert_eq!(clip.encode(half).unwrap(), clip.encode(full).unwrap());
        }
    }

    #[test]
    fn added_words_are_one_token_wherever_they_stand() {
        let mut clip = ClipTokenizer::clip(END_OF_TEXT, 77).unwrap();
        let without = clip.encode("a <cat-toy>").unwrap();
        clip.add_words("here", &[("<cat-toy>".into(), 49408), ("<Dog>".into(), 49409)]).unwrap();
        let a = clip.encode("a").unwrap().ids[1];
        assert_eq!(clip.encode("a <cat-toy>").unwrap().ids[..4], [49406, a, 49408, 49407]);
        assert_ne!(clip.encode("a <cat-toy>").unwrap(), without);
        assert_eq!(clip.encode("a <cat-toy>s<dog>").unwrap().ids[1..3], [a, 49408]);
        assert!(clip.encode("a <cat-toy>s<dog>").unwrap().ids.contains(&49409));
        assert_eq!(clip.largest_id(), 49409);
        let said = clip.add_words("here", &[("<far>".into(), 60_000)]).unwrap_err().to_string();
        assert!(said.contains("<far>") && said.contains("60000") && said.contains("49410"), "{said}");
    }

    #[test]
    fn what_does_not_fit_is_named() {
        let clip = ClipTokenizer::clip("<|endoftext|>", 77).unwrap();
        let tokens = clip.encode(&format!("{} the last words", "a ".repeat(74))).unwrap();
        assert_eq!(tokens.ids.len(), 77);
        assert_eq!(tokens.left_out.as_deref(), Some("last words"));
        let cut = clip.encode(&format!("{} antidisestablishmentarianism", "a ".repeat(73))).unwrap();
        assert_eq!(cut.left_out.as_deref(), Some("antidisestablishmentarianism"));
        assert_eq!(clip.encode("short").unwrap().left_out, None);
    }

    #[test]
    fn learned_words_stand_in_the_place_of_their_tokens() {
        let mut clip = ClipTokenizer::clip("<|endoftext|>", 77).unwrap();
        let plain = |clip: &ClipTokenizer, text: &str| -> Vec<u32> {
            clip.encode(text).unwrap().ids.into_iter().skip(1).take_while(|id| *id != 49407).collect()
        };
        let (a, cat, toys) = (plain(&clip, "a")[0], plain(&clip, "cat")[0], plain(&clip, "cat-toys"));
        clip.learn("cat-toy", vec![49408, 49409]).unwrap();
        clip.learn("cat", vec![49410]).unwrap();
        assert_eq!(plain(&clip, "a Cat - toy a"), [a, 49408, 49409, a]);
        assert_eq!(plain(&clip, "cat-toys")[0], 49410, "a word that only begins so is another");
        assert_eq!(plain(&clip, "cat-toys")[1..], toys[1..]);
        assert_ne!(plain(&clip, "cats"), [cat]);
        assert_eq!(plain(&clip, &"cat-toy ".repeat(60)).len(), 75);
        assert!(clip.learn(" ", vec![1]).is_err());
    }

    #[test]
    fn broken_files_are_named() {
        for (vocab, merges, word) in [
            ("[]", "", "vocab.json"),
            ("{}", "", "<|startoftext|>"),
            (r#"{"<|startoftext|>":0,"<|endoftext|>":1}"#, "lonely", "merges.txt"),
            (r#"{"<|startoftext|>":0,"<|endoftext|>":1}"#, "a b", "merges"),
        ] {
            let said = ClipTokenizer::from_files("here", vocab, merges, END_OF_TEXT, 77).unwrap_err().to_string();
            assert!(said.contains(word) && said.starts_with("here"), "{said}");
        }
    }
}
