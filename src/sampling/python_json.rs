//! JSON as Python writes it.

/// Python writes `Infinity`, `-Infinity` and `NaN`, which are no JSON: null stands in for them, outside strings.
/// diffusers writes such values, for `lambda_min_clipped`. A byte order mark, which some editors write, is left out.
pub(crate) fn without_infinities(text: &[u8]) -> Vec<u8> {
    const WORDS: [&[u8]; 3] = [b"-Infinity", b"Infinity", b"NaN"];
    let mut result = Vec::with_capacity(text.len());
    let mut rest = text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text);
    let mut in_string = false;
    while let Some((&byte, after)) = rest.split_first() {
        let word = WORDS.iter().find(|word| !in_string && rest.starts_with(word));
        rest = match word {
            Some(word) => {
                result.extend_from_slice(b"null");
                rest.get(word.len()..).unwrap_or_default()
            }
            None => {
                result.push(byte);
                after
            }
        };
        if word.is_none() && byte == b'"' {
            in_string = !in_string;
        } else if in_string
            && byte == b'\\'
            && let Some((&escaped, after)) = rest.split_first()
        {
            result.push(escaped);
            rest = after;
        }
    }
    result
}
