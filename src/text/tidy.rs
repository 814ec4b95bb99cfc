//! What CLIP's tokenizers do to a text before they split it.
//!
//! transformers' `CLIPTokenizer` tidies in one of two ways. Where Python's `ftfy` is installed it is `ftfy.fix_text`, then white space
//! and case are folded; that is what CLIP was trained with, what the images in `tests/data/parity` are made with (the script refuses to
//! run without `ftfy`), and what is done here. Where it is not, BERT's cleaning takes its place: curly quotes, ligatures, full-width
//! letters and entities stay, ideographs stand alone, and every character of Unicode's category C goes, so that joined emoji fall
//! apart. Of the 28 texts in `tests/data/text` 7 come out otherwise then; plain words and punctuation in ASCII never do.
//!
//! This is the part of `fix_text` that touches text which was decoded properly: entities (the few that people type), ligatures,
//! full-width forms, curly quotes and control characters. Repairing text that was decoded with a wrong encoding ("cafÃ©" into "café")
//! is not done: a prompt arrives as UTF-8 or is refused, and such a repair is a guess at what nobody typed.
//!
//! # Source
//! huggingface/transformers@v4.57.6:src/transformers/models/clip/tokenization_clip.py (`CLIPTokenizer`, `BasicTokenizer`),
//! openai/CLIP:clip/simple_tokenizer.py (`basic_clean`), rspeer/python-ftfy@v6.3.1:ftfy/__init__.py (`fix_and_explain`).

use tokenizers::NormalizedString;

/// Characters that `ftfy` replaces one by one.
const REPLACED: &[(char, &str)] = &[
    ('\u{2018}', "'"),
    ('\u{2019}', "'"),
    ('\u{201A}', "'"),
    ('\u{201B}', "'"),
    ('\u{201C}', "\""),
    ('\u{201D}', "\""),
    ('\u{201E}', "\""),
    ('\u{201F}', "\""),
    ('\u{02BC}', "'"),
    ('\u{FB00}', "ff"),
    ('\u{FB01}', "fi"),
    ('\u{FB02}', "fl"),
    ('\u{FB03}', "ffi"),
    ('\u{FB04}', "ffl"),
    ('\u{FB05}', "ſt"),
    ('\u{FB06}', "st"),
    ('\u{0132}', "IJ"),
    ('\u{0133}', "ij"),
    ('\u{0149}', "'n"),
    ('\u{01F1}', "DZ"),
    ('\u{01F2}', "Dz"),
    ('\u{01F3}', "dz"),
    ('\u{01C4}', "DŽ"),
    ('\u{01C5}', "Dž"),
    ('\u{01C6}', "dž"),
    ('\u{01C7}', "LJ"),
    ('\u{01C8}', "Lj"),
    ('\u{01C9}', "lj"),
    ('\u{01CA}', "NJ"),
    ('\u{01CB}', "Nj"),
    ('\u{01CC}', "nj"),
    ('\u{3000}', " "),
];

/// The entities that people leave in prompts.
const ENTITIES: &[(&str, &str)] =
    &[("&lt;", "<"), ("&gt;", ">"), ("&quot;", "\""), ("&#39;", "'"), ("&apos;", "'"), ("&nbsp;", "\u{A0}"), ("&amp;", "&")];

/// A full-width or half-width form as what it is a form of; a mark of its own then joins the letter before it, where NFC is taken.
fn wide(c: char) -> String {
    let mut form = NormalizedString::from(c.to_string());
    form.nfkc();
    form.get().to_owned()
}

/// Tidies, folds white space to single blanks, and lowers the case.
pub(super) fn tidy(text: &str) -> String {
    let mut text = text.to_owned();
    // A "<" means that the text may be markup, whose entities are meant.
    if !text.contains('<') && text.contains('&') {
        for (entity, plain) in ENTITIES {
            text = text.replace(entity, plain);
        }
    }
    let mut tidied = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            // Full-width forms of ASCII, half-width ones of katakana and hangul, and signs, as NFKC has them.
            '\u{FF01}'..='\u{FFEF}' => tidied.push_str(&wide(c)),
            // Control characters other than white space, byte order marks and the like are dropped.
            '\u{0}'..='\u{8}'
            | '\u{B}'
            | '\u{E}'..='\u{1F}'
            | '\u{7F}'
            | '\u{206A}'..='\u{206F}'
            | '\u{FEFF}'
            | '\u{FFF9}'..='\u{FFFC}' => {}
            _ => match REPLACED.iter().find(|(from, _)| *from == c) {
                Some((_, to)) => tidied.push_str(to),
                None => tidied.push(c),
            },
        }
    }
    tidied.split_whitespace().collect::<Vec<_>>().join(" ").to_lowercase()
}

#[cfg(test)]
mod tests {
    use super::tidy;

    #[test]
    fn as_ftfy_and_lower_would() {
        for (text, wanted) in [
            ("  A  Red\n\tApple ", "a red apple"),
            ("“it’s” ﬁne", "\"it's\" fine"),
            ("ＡＢＣ１２３", "abc123"),
            ("ｶﾀｶﾅ｡", "カタカナ。"),
            ("ｶﾞ￠￫ﾡ", "カ\u{3099}¢→\u{1100}"),
            ("cats &amp; dogs", "cats & dogs"),
            ("<b>cats &amp; dogs", "<b>cats &amp; dogs"),
            ("bell\u{7}\u{FEFF}", "bell"),
            ("ÜNÏCODE CAFÉ", "ünïcode café"),
        ] {
            assert_eq!(tidy(text), wanted, "{text:?}");
        }
    }
}
