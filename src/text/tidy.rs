//! What CLIP's tokenizers do to a text before they split it.
//!
//! The reference tidies with Python's `ftfy` and then folds white space and case. This is the part of `ftfy.fix_text`
//! that touches text which was decoded properly: entities, ligatures, full-width forms, curly quotes and control
//! characters. Repairing text that was decoded with a wrong encoding ("cafÃ©") is not done.

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
            // Full-width forms of ASCII.
            '\u{FF01}'..='\u{FF5E}' => tidied.extend(char::from_u32(c as u32 - 0xFF01 + 0x21)),
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
            ("cats &amp; dogs", "cats & dogs"),
            ("<b>cats &amp; dogs", "<b>cats &amp; dogs"),
            ("bell\u{7}\u{FEFF}", "bell"),
            ("ÜNÏCODE CAFÉ", "ünïcode café"),
        ] {
            assert_eq!(tidy(text), wanted, "{text:?}");
        }
    }
}
