//! Bytes as text, where the container does not say which coding they have, or says another one than the tool wrote.

/// Latin-1.
pub(super) fn latin1(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| char::from(*byte)).collect()
}

/// PNG's plain texts are Latin-1, but more than one tool writes UTF-8 into them; text that is not ASCII is hardly ever both.
pub(super) fn utf8_or_latin1(bytes: &[u8]) -> String {
    std::str::from_utf8(bytes).map_or_else(|_| latin1(bytes), str::to_owned)
}

/// UTF-16 in one of its byte orders.
pub(super) fn utf16(bytes: &[u8], little: bool) -> String {
    let units = bytes.as_chunks::<2>().0.iter().map(|pair| if little { u16::from_le_bytes(*pair) } else { u16::from_be_bytes(*pair) });
    char::decode_utf16(units).map(|c| c.unwrap_or(char::REPLACEMENT_CHARACTER)).collect()
}

/// Any of the three. A byte order mark says which; without one, ASCII letters do: in UTF-16 every other byte of them is NUL, in UTF-8
/// and Latin-1 none is. Where neither decides, `little` is the byte order of the block around the text.
pub(super) fn guessed(bytes: &[u8], little: bool) -> String {
    match bytes {
        [0xff, 0xfe, rest @ ..] => return utf16(rest, true),
        [0xfe, 0xff, rest @ ..] => return utf16(rest, false),
        [0xef, 0xbb, 0xbf, rest @ ..] => return utf8_or_latin1(rest),
        _ => {}
    }
    // NULs that fill the field up say nothing.
    let end = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    let filled = bytes.get(..end).unwrap_or_default();
    let zeros = |odd: usize| filled.iter().skip(odd).step_by(2).filter(|byte| **byte == 0).count();
    match (zeros(0), zeros(1)) {
        (0, 0) if std::str::from_utf8(filled).is_ok() => utf8_or_latin1(filled),
        // A few NULs in a long text are a tool's own separators.
        (even, odd) if even.max(odd) * 8 < filled.len() && std::str::from_utf8(filled).is_ok() => utf8_or_latin1(filled),
        (0, 0) => utf16_or_latin1(filled, little),
        (even, odd) if even == odd => utf16(bytes, little),
        (even, odd) => utf16(bytes, odd > even),
    }
}

/// Neither UTF-8 nor with an ASCII letter in UTF-16: a text in another script, or one with Latin-1's letters.
fn utf16_or_latin1(bytes: &[u8], little: bool) -> String {
    let ascii = bytes.iter().filter(|byte| byte.is_ascii()).count();
    if ascii * 2 > bytes.len() { latin1(bytes) } else { utf16(bytes, little) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_coding_is_told_from_the_others() {
        for text in ["a red apple", "é", "a — ünïcode\nSteps: 20", "赤いりんご, Steps: 5", "赤", "x"] {
            let big: Vec<u8> = text.encode_utf16().flat_map(u16::to_be_bytes).collect();
            let little: Vec<u8> = text.encode_utf16().flat_map(u16::to_le_bytes).collect();
            let has_ascii = text.chars().any(|c| c.is_ascii_alphabetic());
            assert_eq!(guessed(text.as_bytes(), true), text);
            assert_eq!(guessed(&[text.as_bytes(), &[0; 3]].concat(), false), text);
            assert_eq!(guessed(&[&[0xef, 0xbb, 0xbf], text.as_bytes()].concat(), true), text);
            assert_eq!(guessed(&[&[0xfe, 0xff], &big[..]].concat(), true), text);
            assert_eq!(guessed(&[&[0xff, 0xfe], &little[..]].concat(), false), text);
            if has_ascii && text.len() > 1 {
                assert_eq!(guessed(&big, true), text);
                assert_eq!(guessed(&little, false), text);
                assert_eq!(guessed(&[&little[..], &[0, 0]].concat(), false).trim_end_matches('\0'), text);
            }
        }
        assert_eq!(guessed(b"caf\xe9, Steps: 5", true), "café, Steps: 5");
        assert_eq!(guessed(b"", true), "");
    }
}
