//! A1111's comments: `#` to the end of its line.

/// The text without comments. A comment takes its line break along and leaves one.
pub(super) fn strip(text: &str) -> String {
    if !text.contains('#') {
        return text.to_owned();
    }
    // First the lines that are a comment, then the rests of lines; of two such lines in a row the second is one of the latter.
    let mut without_lines = String::with_capacity(text.len());
    let mut rest = text;
    let mut at_start = true;
    loop {
        let (kept, comment) = match rest {
            _ if at_start && rest.starts_with('#') => (0, 0),
            _ => match rest.find("\n#") {
                Some(at) => (at, at + 1),
                None => break,
            },
        };
        at_start = false;
        without_lines.push_str(&rest[..kept]);
        without_lines.push('\n');
        rest = rest[comment..].split_once('\n').map_or("", |(_, after)| after);
    }
    without_lines.push_str(rest);
    let mut stripped = String::with_capacity(without_lines.len());
    let mut rest = without_lines.as_str();
    while let Some((before, comment)) = rest.split_once('#') {
        stripped.push_str(before);
        stripped.push('\n');
        rest = comment.split_once('\n').map_or("", |(_, after)| after);
    }
    stripped.push_str(rest);
    stripped
}
