//! The files that `__name__` stands for.

use crate::{Error, Result};
use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};

/// Bytes of one file.
const LARGEST: u64 = 64 << 20;

/// Files of one folder.
const MOST_FILES: usize = 100_000;

/// Folders within folders.
const DEEPEST: usize = 32;

#[derive(Debug, Clone)]
enum WildcardLines {
    File(PathBuf),
    Given(Vec<String>),
}

/// Text files of lines, by their path below a folder, without their ending.
#[derive(Debug, Clone, Default)]
pub struct Wildcards {
    files: BTreeMap<String, WildcardLines>,
}

impl Wildcards {
    /// The `.txt` files of a folder and its folders. They are read when they are asked for; links to folders are not followed.
    ///
    /// # Errors
    /// The folder cannot be listed, or has more files than a collection of wildcards has.
    pub fn in_folder(folder: &Path) -> Result<Self> {
        let mut files = BTreeMap::new();
        let mut open = vec![(folder.to_owned(), String::new(), 0)];
        while let Some((path, prefix, depth)) = open.pop() {
            for entry in std::fs::read_dir(&path).map_err(Error::io(&path))? {
                let entry = entry.map_err(Error::io(&path))?;
                let name = entry.file_name().to_string_lossy().into_owned();
                if name.starts_with('.') {
                    continue;
                }
                if entry.file_type().map_err(Error::io(&path))?.is_dir() {
                    if depth < DEEPEST {
                        open.push((entry.path(), format!("{prefix}{name}/"), depth + 1));
                    }
                } else if let Some(stem) = name.strip_suffix(".txt") {
                    files.insert(format!("{prefix}{stem}"), WildcardLines::File(entry.path()));
                }
                if files.len() + open.len() > MOST_FILES {
                    return Err(Error::Input(format!("{}: more than {MOST_FILES} files are no folder of wildcards", folder.display())));
                }
            }
        }
        Ok(Self { files })
    }

    /// Lines by the names of their files.
    pub fn of(files: impl IntoIterator<Item = (String, Vec<String>)>) -> Self {
        Self { files: files.into_iter().map(|(name, lines)| (name, WildcardLines::Given(lines))).collect() }
    }

    /// The lines of all files that a name means, sorted and each once; empty lines and those that start with `#` left out.
    ///
    /// `*`, `?` and `[…]` stand for any letters, of `/` too. A name that means nothing is looked for in all folders.
    ///
    /// # Errors
    /// A file cannot be read, or is too large.
    pub fn values(&self, name: &str) -> Result<Vec<String>> {
        let name = name.replace('\\', "/");
        let name: Vec<&str> = name.split('/').filter(|part| !part.is_empty()).collect();
        let name = name.join("/");
        if name.contains("..") {
            return Err(Error::Input(format!("`wildcards`: __{name}__ leads out of the folder; name a file below it")));
        }
        let mut found = self.matching(&name)?;
        if found.is_empty() && !name.starts_with("**") {
            found = self.matching(&format!("**/{name}"))?;
        }
        let mut seen = HashSet::new();
        found.retain(|line| seen.insert(line.clone()));
        found.sort();
        Ok(found)
    }

    fn matching(&self, pattern: &str) -> Result<Vec<String>> {
        let pattern: Vec<char> = pattern.chars().collect();
        let mut found = Vec::new();
        for (_, lines) in self.files.iter().filter(|(name, _)| matches(&pattern, &name.chars().collect::<Vec<_>>())) {
            let text;
            let lines: Vec<&str> = match lines {
                WildcardLines::Given(lines) => lines.iter().map(String::as_str).collect(),
                WildcardLines::File(path) => {
                    text = read(path)?;
                    text.lines().collect()
                }
            };
            found.extend(lines.into_iter().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')).map(String::from));
        }
        Ok(found)
    }
}

fn read(path: &Path) -> Result<String> {
    let length = std::fs::metadata(path).map_err(Error::io(path))?.len();
    if length > LARGEST {
        return Err(Error::Input(format!("{}: {length} bytes are too many for a file of wildcards", path.display())));
    }
    let bytes = std::fs::read(path).map_err(Error::io(path))?;
    // What is no UTF-8 is left out, as there.
    Ok(String::from_utf8_lossy(&bytes).replace('\u{FFFD}', ""))
}

/// Python's `fnmatch`.
fn matches(pattern: &[char], name: &[char]) -> bool {
    let (mut p, mut n) = (0, 0);
    // Where to go on when a `*` takes one letter more.
    let mut star: Option<(usize, usize)> = None;
    loop {
        let step = match pattern.get(p) {
            Some('*') => {
                star = Some((p + 1, n));
                p += 1;
                continue;
            }
            None if n == name.len() => return true,
            Some('?') if n < name.len() => Some(p + 1),
            Some('[') if n < name.len() => match set(&pattern[p..]) {
                Some(set) => set.has(name[n]).then_some(p + set.length),
                None => (name[n] == '[').then_some(p + 1),
            },
            Some(c) if name.get(n) == Some(c) => Some(p + 1),
            _ => None,
        };
        match (step, star) {
            (Some(next), _) => (p, n) = (next, n + 1),
            (None, Some((after, taken))) if taken < name.len() => {
                star = Some((after, taken + 1));
                (p, n) = (after, taken + 1);
            }
            _ => return false,
        }
    }
}

/// `[a-z]`, or all but these letters: `[!a-z]`.
struct LetterSet {
    /// Of the pattern.
    length: usize,
    ranges: Vec<(char, char)>,
    negated: bool,
}

impl LetterSet {
    fn has(&self, letter: char) -> bool {
        self.ranges.iter().any(|&(from, to)| (from..=to).contains(&letter)) != self.negated
    }
}

/// The set at the start of `pattern`.
fn set(pattern: &[char]) -> Option<LetterSet> {
    let negated = pattern.get(1) == Some(&'!');
    let first = if negated { 2 } else { 1 };
    // A bracket right at the start is a letter.
    let end = first + 1 + pattern.get(first + 1..)?.iter().position(|c| *c == ']')?;
    let mut ranges = Vec::new();
    let mut at = first;
    while at < end {
        if at + 2 < end && pattern[at + 1] == '-' {
            ranges.push((pattern[at], pattern[at + 2]));
            at += 3;
        } else {
            ranges.push((pattern[at], pattern[at]));
            at += 1;
        }
    }
    Some(LetterSet { length: end + 1, ranges, negated })
}
