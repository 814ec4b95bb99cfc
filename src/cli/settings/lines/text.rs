//! A prompt a line, and flags on a line as A1111's "Prompts from file" reads them.

use super::error::{LineError, LineErrors, LineRecord};
use super::row::{FlagPair, RecordRow};
use super::source::LineSource;
use crate::Error;
use crate::settings::table;
use std::collections::VecDeque;
use std::ops::Range;
use std::path::Path;

/// Reads a line as one row; empty lines and comments are passed over.
pub(super) fn rows(source: LineSource) -> impl Iterator<Item = Result<RecordRow, LineError>> {
    let file = source.file.clone();
    source.filter_map(move |line| match line {
        Err(error) => Some(Err(error)),
        Ok((_, text)) if is_passed_over(&text) => None,
        Ok((number, text)) => {
            let record = LineRecord::line(&file, number, text);
            Some(match pairs(&record.text) {
                Ok(pairs) => Ok(RecordRow { record, pairs }),
                Err((part, what)) => Err(record.error(part, what)),
            })
        }
    })
}

/// An empty line, or a comment: a `#` and a space. `#1 dad mug` is a prompt.
fn is_passed_over(line: &str) -> bool {
    let line = line.trim();
    line.is_empty()
        || line.strip_prefix('#').is_some_and(|rest| rest.is_empty() || rest.starts_with(|c: char| c.is_whitespace() || c == '#'))
}

/// The lines of a file as values of one flag, at most one more than `most`; empty lines and comments are passed over.
///
/// # Errors
/// The file cannot be read, or a line is no text.
pub(in crate::cli) fn values_of(path: &Path, most: usize) -> Result<Vec<String>, Error> {
    let mut errors = LineErrors::default();
    let mut values = Vec::new();
    for line in LineSource::open(path)? {
        if values.len() > most || errors.are_too_many() {
            break;
        }
        match line {
            Ok((_, text)) if is_passed_over(&text) => {}
            Ok((_, text)) => values.push(text.trim().to_owned()),
            Err(error) => errors.push(error),
        }
    }
    errors.finish().map(|()| values)
}

/// A word with its quotes taken off.
struct Word {
    text: String,
    part: Range<usize>,
    /// Where it is a flag: its name, and a value after `=`.
    flag: Option<(String, Option<String>)>,
}

type TextError = (Range<usize>, String);

/// kohya-ss/sd-scripts' letters, in either case, which it writes with two dashes: `gen_img.py`, and `line_to_prompt_dict` of
/// `library/train_util.py`. None of them means anything else here.
const KOHYA: &[(&str, &str)] = &[
    ("--n", "--negative-prompt"),
    ("--w", "--width"),
    ("--h", "--height"),
    ("--d", "--seed"),
    ("--l", "--guidance-scale"),
    ("--s", "--steps"),
    ("--t", "--strength"),
    ("--ss", "--sampler"),
];

/// What a letter of InvokeAI's is here (InvokeAI@v2.3:ldm/invoke/args.py).
const INVOKE: &[(char, &str)] = &[
    ('s', "--steps"),
    ('S', "--seed"),
    ('W', "--width"),
    ('H', "--height"),
    ('C', "--guidance-scale"),
    ('A', "--sampler"),
    ('n', "--images"),
    ('f', "--strength"),
    ('I', "--init-image"),
    ('U', "no setting of a line"),
    ('G', "no setting of a line"),
];

/// A flag as InvokeAI writes it, which is a mistake here: some of its letters are those of other flags, and the rest would become a part
/// of the prompt. Nothing is guessed: it is said.
fn of_invoke(line: &str) -> Option<TextError> {
    let words: Vec<(usize, &str)> = unquoted(line).collect();
    for (i, (at, word)) in words.iter().copied().enumerate() {
        let Some(rest) = word.strip_prefix('-') else { continue };
        let Some((letter, flag)) = rest.chars().next().and_then(|first| INVOKE.iter().find(|(letter, _)| *letter == first)) else {
            continue;
        };
        let glued = &rest[1..];
        let behind = |count: usize| words.get(i + count).map_or("", |(_, word)| word);
        let value = if glued.is_empty() { behind(1) } else { glued.trim_start_matches('=') };
        let number = value.parse::<f64>().ok().filter(|number| number.is_finite());
        let fits = match letter {
            'A' => value.starts_with("k_") || ["ddim", "plms"].contains(&value),
            'I' => [".png", ".jpg", ".jpeg", ".webp"].iter().any(|ending| value.to_lowercase().ends_with(ending)),
            // A lens says -f1.8, and that is none.
            'f' | 'G' => number.is_some_and(|share| (0.0..=1.0).contains(&share)),
            // Letters of the same flags, and of the seed: what is glued to them may be either's.
            's' | 'W' | 'H' => !glued.is_empty() && number.is_some(),
            // Four fingers may be what is not wanted.
            'n' => number.is_some() && (!glued.is_empty() || behind(2).is_empty() || behind(2).starts_with('-')),
            _ => number.is_some(),
        };
        if fits && *letter == 'n' && glued.is_empty() {
            let what = format!(
                "-n is the negative prompt here, and InvokeAI's -n the number of images; write --images {value}, or --negative-prompt {value}"
            );
            return Some((at..at + word.len(), what));
        }
        if fits {
            let what = format!(
                "this is InvokeAI's -{letter}, which is {flag} here, as its -s is the steps and -S the seed; write the names: --steps, --seed, \
                 --width, --height, --guidance-scale, --sampler (a prompt that has such a word: --prompt \"…\")"
            );
            return Some((at..at + 2, what));
        }
    }
    None
}

/// The words of a line that stand outside of quotes, and where they begin. A quote that is never closed is an apostrophe.
fn unquoted(line: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut words = line.split_whitespace().map(|word| (word.as_ptr() as usize - line.as_ptr() as usize, word)).collect::<VecDeque<_>>();
    // A mark that is closed nowhere behind a word is closed nowhere behind a later one.
    let mut never_closed = Vec::new();
    std::iter::from_fn(move || {
        loop {
            let (at, word) = words.pop_front()?;
            let value = word.split_once('=').filter(|_| word.starts_with('-')).map_or(word, |(_, value)| value);
            let mark = value.chars().next().filter(|first| matches!(first, '"' | '\'') && !never_closed.contains(first));
            let Some(mark) = mark else { return Some((at, word)) };
            let closes = |word: &str| word.ends_with(mark) && !word.ends_with(&format!("\\{mark}"));
            if value.len() > 1 && closes(value) {
                continue;
            }
            match words.iter().position(|(_, word)| closes(word)) {
                Some(end) => words.drain(..=end).for_each(drop),
                None => {
                    never_closed.push(mark);
                    return Some((at, word));
                }
            }
        }
    })
}

fn pairs(line: &str) -> Result<Vec<FlagPair>, TextError> {
    if let Some(wrong) = of_invoke(line) {
        return Err(wrong);
    }
    let start = line.len() - line.trim_start().len();
    let flags = if names_a_flag(&line[start..]) {
        start
    } else {
        // A prompt, and perhaps flags after it.
        let ends = line.match_indices(" -").chain(line.match_indices("\t-")).map(|(at, _)| at);
        ends.filter(|at| names_a_flag(&line[at + 1..])).min().unwrap_or(line.len())
    };
    let mut pairs = Vec::new();
    let prompt = line[start..flags].trim_end();
    if !prompt.is_empty() {
        let part = start..start + prompt.len();
        pairs.push(FlagPair { name: "prompt".into(), part: part.clone(), values: Some(vec![(prompt.to_owned(), part)]) });
    }
    let mut words = words(line, flags)?.into_iter().peekable();
    while let Some(word) = words.next() {
        let Some((name, given)) = word.flag else {
            return Err((word.part, "this belongs to no flag; write the prompt first, or as --prompt \"…\"".into()));
        };
        let mut value = given.map(|text| (text, word.part.clone()));
        // The words up to the next flag are its value: quotes are needed only around what looks like a flag.
        while let Some(next) = words.next_if(|next| next.flag.is_none()) {
            value = Some(match value {
                None => (next.text, next.part),
                Some((text, part)) => (format!("{text} {}", next.text), part.start..next.part.end),
            });
        }
        pairs.push(FlagPair { name, part: word.part, values: value.map(|value| vec![value]) });
    }
    Ok(pairs)
}

/// The text begins with `--name`, or with the letter of a flag, such as `-p`, and a space or its end.
fn names_a_flag(text: &str) -> bool {
    let mut characters = text.chars();
    let mut next = || characters.next();
    match (next(), next(), next()) {
        (Some('-'), Some('-'), Some(letter)) => letter.is_alphabetic(),
        (Some('-'), Some(letter), space) => space.is_none_or(char::is_whitespace) && table().iter().any(|row| row.short == Some(letter)),
        _ => false,
    }
}

/// Splits as a shell does, with two exceptions for the sake of prompts: a quote in the middle of a word is an apostrophe, and a
/// backslash that escapes nothing stays, as in `\(`.
fn words(line: &str, from: usize) -> Result<Vec<Word>, TextError> {
    let mut words = Vec::new();
    let mut rest = line[from..].char_indices().map(|(at, c)| (from + at, c)).peekable();
    while let Some(&(start, first)) = rest.peek() {
        if first.is_whitespace() {
            rest.next();
            continue;
        }
        let mut text = String::new();
        let mut quoted = false;
        let mut end = start;
        let mut opens = true;
        while let Some(&(at, c)) = rest.peek() {
            if c.is_whitespace() {
                break;
            }
            rest.next();
            end = at + c.len_utf8();
            match c {
                '"' | '\'' if opens => {
                    quoted |= at == start;
                    end = unquote(&mut rest, &mut text, c)
                        .ok_or_else(|| (at..line.len(), format!("this {c} is never closed; close it, or write \\{c}")))?;
                }
                '\\' => match rest.next_if(|(_, next)| matches!(next, '"' | '\'' | '\\') || next.is_whitespace()) {
                    Some((at, escaped)) => {
                        text.push(escaped);
                        end = at + escaped.len_utf8();
                    }
                    None => text.push('\\'),
                },
                _ => text.push(c),
            }
            // Only a flag's name may stand before a quote.
            opens = c == '=' && text.starts_with('-');
        }
        let flag = (!quoted && names_a_flag(&format!("{text} "))).then(|| {
            let (name, value) = text.split_once('=').map_or((text.as_str(), None), |(name, value)| (name, Some(value.to_owned())));
            let name = KOHYA.iter().find(|(theirs, _)| theirs.eq_ignore_ascii_case(name)).map_or(name, |(_, ours)| ours);
            (name.to_owned(), value)
        });
        words.push(Word { text, part: start..end, flag });
    }
    Ok(words)
}

/// Takes what stands up to the closing quote; gives the place behind it.
fn unquote(rest: &mut impl Iterator<Item = (usize, char)>, text: &mut String, quote: char) -> Option<usize> {
    let mut escaped = false;
    for (at, c) in rest {
        if std::mem::take(&mut escaped) {
            if c != quote && c != '\\' {
                text.push('\\');
            }
            text.push(c);
        } else if c == '\\' && quote == '"' {
            escaped = true;
        } else if c == quote {
            return Some(at + 1);
        } else {
            text.push(c);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::super::LineFormat;
    use super::super::tests::{errors, one};

    #[test]
    fn invokeais_letters_are_never_a_part_of_the_prompt() {
        for (line, said) in [
            ("a pear -s50 -W512", "-s, which is --steps here"),
            ("a pear -W512 -H768", "-W, which is --width"),
            ("a pear -A k_euler_a", "-A, which is --sampler"),
            ("a pear -Addim", "-A, which is --sampler"),
            ("a pear -A k_dpm_fancy", "-A, which is --sampler"),
            ("a pear -S -1", "-S, which is --seed"),
            ("\"a pear\" -s 50 -C 7.5", "-C, which is --guidance-scale"),
            ("'90s pear -S3", "-S, which is --seed"),
            ("a pear -n 4", "--images 4"),
            ("a pear -n4", "-n, which is --images"),
            ("a pear -f 0.75", "-f, which is --strength"),
            ("a pear -I ./a.png", "-I, which is --init-image"),
            ("a pear -U 2 0.75", "-U"),
            ("--prompt \"a pear\" -S 5", "-S, which is --seed"),
            // The letters that are flags here say so at the end of a line too.
            ("a pear -g", "--guidance-scale needs a value"),
            ("a pear -q", "--quiet is for the whole run"),
        ] {
            let all = errors(LineFormat::Text, line.as_bytes());
            assert!(all.len() == 1 && all[0].contains(said), "{line}: {all:?}");
        }
        assert_eq!(one(LineFormat::Text, "a hand -n 6 fingers").text.negative_prompt.as_deref(), Some("6 fingers"));
        let started = std::time::Instant::now();
        assert_eq!(one(LineFormat::Text, &"'a -S \"b ".repeat(100_000)).prompts.len(), 1);
        assert!(started.elapsed().as_secs() < 20, "{:?}", started.elapsed());
        for prompt in ["a lens, -f1.8", "a Canon -5D", "vitamin -C and -A shaped", "an -S shape", "-U", "x -n-"] {
            assert_eq!(one(LineFormat::Text, prompt).prompts, [prompt]);
        }
        assert_eq!(one(LineFormat::Text, "--prompt \"a plum -S 5 -s50\" --seed 3").prompts, ["a plum -S 5 -s50"]);
        assert_eq!(one(LineFormat::Text, "--prompt='a -C 5' -n \"4\"").text.negative_prompt.as_deref(), Some("4"));
    }
}
