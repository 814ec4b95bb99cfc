//! Texts inside texts: what one tool keeps under keywords of a PNG stands elsewhere in one JSON object, behind a name and a colon, or
//! in XMP's elements. Here each becomes a text under its own keyword, so that no reader needs to know where it stood.

use crate::metadata::containers::Text;
use crate::metadata::json::{object, plain};

/// Keywords whose text may be an object of texts.
const WRAPPERS: &[&str] = &["UserComment", "ImageDescription", "comment", "Comment", "parameters", "Description"];
/// Keys which show that an object is a collection of texts, not one tool's settings.
const COLLECTED: &[&str] = &["Comment", "workflow", "invokeai_metadata", "generation_data", "parameters", "extraMetadata"];
/// What a text in an EXIF field begins with, and the keyword that it stands for.
const PREFIXES: &[(&str, &str)] = &[("prompt", "prompt"), ("workflow", "workflow"), ("parameters", "parameters")];
/// XMP's elements, and the keyword that they stand for.
const ELEMENTS: &[(&str, &str)] = &[
    ("exif:UserComment", "UserComment"),
    ("xmp:CreatorTool", "CreatorTool"),
    ("comfy:prompt", "prompt"),
    ("comfy:workflow", "workflow"),
    ("dc:description", "ImageDescription"),
];

/// The texts, and behind them those that they hold.
pub(super) fn with_inner_texts(texts: &[Text]) -> Vec<Text> {
    let mut all = texts.to_vec();
    for text in texts.iter().filter(|text| text.keyword == "XMP") {
        let found = ELEMENTS.iter().filter_map(|(element, keyword)| Some(Text::new(text.place, *keyword, xmp_value(&text.text, element)?)));
        all.extend(found);
    }
    let mut inner = Vec::new();
    for text in &all {
        inner.extend(collected(text).into_iter().flatten());
        inner.extend(named(text));
    }
    all.extend(inner);
    all
}

/// The texts of an object of texts.
fn collected(text: &Text) -> Option<Vec<Text>> {
    if !WRAPPERS.contains(&text.keyword.as_str()) {
        return None;
    }
    let map = object(&text.text)?;
    let is_graph = |value: &serde_json::Value| value.get("class_type").is_some();
    let wraps_graph = map.get("prompt").is_some_and(|prompt| {
        prompt.as_object().is_some_and(|graph| graph.values().any(is_graph))
            || prompt.as_str().is_some_and(|text| text.trim_start().starts_with('{'))
    });
    if map.values().any(is_graph) {
        // The bare graph, with what a site adds beside its nodes.
        let extra = map.get("extraMetadata").and_then(plain).map(|extra| Text::new(text.place, "extraMetadata", extra));
        return Some(std::iter::once(Text::new(text.place, "prompt", text.text.as_str())).chain(extra).collect());
    }
    if !wraps_graph && !COLLECTED.iter().any(|key| map.get(*key).and_then(|value| value.as_str()).is_some()) {
        return None;
    }
    Some(map.iter().filter_map(|(key, value)| Some(Text::new(text.place, key.as_str(), plain(value)?))).collect())
}

/// `Prompt: {…}` in one of EXIF's fields.
fn named(text: &Text) -> Option<Text> {
    if !text.place.starts_with("EXIF") {
        return None;
    }
    let (name, rest) = text.text.split_once(':')?;
    let (_, keyword) = PREFIXES.iter().find(|(known, _)| name.trim().eq_ignore_ascii_case(known))?;
    let rest = rest.trim_start();
    rest.starts_with('{').then(|| Text::new(text.place, *keyword, rest))
}

/// The text of an element or an attribute of XMP, the first of its languages.
fn xmp_value(xmp: &str, name: &str) -> Option<String> {
    let raw = match xmp.split_once(&format!("<{name}>")) {
        Some((_, after)) => {
            let (inside, _) = after.split_once(&format!("</{name}>"))?;
            match inside.split_once("<rdf:li") {
                Some((_, item)) => item.split_once('>')?.1.split_once("</rdf:li>")?.0,
                None => inside,
            }
        }
        None => xmp.split_once(&format!("{name}=\""))?.1.split_once('"')?.0,
    };
    Some(unescaped(raw))
}

/// XML's five entities and its numbered characters as what they stand for.
fn unescaped(text: &str) -> String {
    /// Bytes of the longest entity, `&#x10ffff;`, without its first.
    const LONGEST: usize = 9;
    let mut plain = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('&') {
        plain.push_str(before);
        // Not to the end: a text of nothing but ampersands would be read once for each.
        let end = after.bytes().take(LONGEST).position(|byte| byte == b';');
        let entity = end.and_then(|end| Some((entity(after.get(..end)?)?, after.get(end + 1..)?)));
        match entity {
            Some((c, left)) => {
                plain.push(c);
                rest = left;
            }
            None => {
                plain.push('&');
                rest = after;
            }
        }
    }
    plain.push_str(rest);
    plain
}

fn entity(name: &str) -> Option<char> {
    match name {
        "lt" => Some('<'),
        "gt" => Some('>'),
        "amp" => Some('&'),
        "quot" => Some('"'),
        "apos" => Some('\''),
        _ => {
            let number = name.strip_prefix('#')?;
            let code = number.strip_prefix(['x', 'X']).map_or_else(|| number.parse().ok(), |hex| u32::from_str_radix(hex, 16).ok());
            char::from_u32(code?)
        }
    }
}
