//! What `org/name[@revision][:file]` means.

use crate::{Error, Result};
use std::fmt;

/// The hub's own limit on `org/name`.
const LONGEST_NAME: usize = 96;
/// Longer than any path that a repository has; a file system would refuse it.
const LONGEST_PATH: usize = 1024;
/// What a path in the file system ends with, and a repository never does.
const FILE_ENDINGS: [&str; 8] = ["safetensors", "ckpt", "pt", "pth", "bin", "gguf", "onnx", "json"];

/// A repository of the hub, one of its revisions, and perhaps one of its files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HubId {
    /// `org/name`.
    pub repository: String,
    /// A branch, a tag or a commit; `main` where none was named.
    pub revision: String,
    /// The one file that is meant.
    pub file: Option<String>,
}

impl HubId {
    /// Reads `text` as a hub id; `None` where it does not look like one and is a path or a name.
    ///
    /// `hf://org/name` is one whatever else it may look like.
    ///
    /// # Errors
    /// [`Error::Input`] where it is meant as one and is malformed.
    pub fn parse(text: &str) -> Result<Option<HubId>> {
        let wrong = |what: &str| Error::Input(format!("{text}: {what}; a hub id is org/name, org/name@revision or org/name:file"));
        let (explicit, rest) = text.strip_prefix("hf://").map_or((false, text), |rest| (true, rest));
        let (rest, file) = rest.split_once(':').map_or((rest, None), |(rest, file)| (rest, Some(file)));
        let (repository, revision) = rest.split_once('@').map_or((rest, None), |(name, revision)| (name, Some(revision)));
        let ending = repository.rsplit('.').next().unwrap_or_default().to_ascii_lowercase();
        match repository.split_once('/') {
            Some((org, name)) if is_name(org) && is_name(name) && (explicit || !FILE_ENDINGS.contains(&ending.as_str())) => {}
            _ if explicit => return Err(wrong("is no name of a repository")),
            _ => return Ok(None),
        }
        if repository.len() > LONGEST_NAME {
            return Err(wrong("is longer than any repository's name"));
        }
        if revision.is_some_and(|revision| !is_plain_path(revision) || !revision.chars().all(is_name_character_or_slash)) {
            return Err(wrong("has no revision after @"));
        }
        if file.is_some_and(|file| !is_plain_path(file)) {
            return Err(wrong("has no path of a file after the colon"));
        }
        let revision = revision.unwrap_or("main").to_owned();
        Ok(Some(HubId { repository: repository.to_owned(), revision, file: file.map(str::to_owned) }))
    }
}

impl fmt::Display for HubId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.repository)?;
        if self.revision != "main" {
            write!(f, "@{}", self.revision)?;
        }
        match &self.file {
            Some(file) => write!(f, ":{file}"),
            None => Ok(()),
        }
    }
}

/// An organisation's or a repository's name, by the hub's rules.
fn is_name(name: &str) -> bool {
    let good_ends = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let ends = name.starts_with(good_ends) && name.ends_with(good_ends);
    ends && name.chars().all(|c| c != '/' && is_name_character_or_slash(c)) && !name.contains("--") && !name.contains("..")
}

fn is_name_character_or_slash(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '/')
}

/// A path that stays below the folder that it is joined to, on every system, and is safe to show.
pub(super) fn is_plain_path(path: &str) -> bool {
    let plain = |part: &str| !part.is_empty() && part != "." && part != ".." && part.trim() == part;
    path.len() <= LONGEST_PATH
        && path.split('/').all(plain)
        && !path.chars().any(|c| c.is_control() || matches!(c, '\\' | ':' | '*' | '?' | '"' | '<' | '>' | '|'))
}

#[cfg(test)]
mod tests {

    use super::*;

    fn read(text: &str) -> HubId {
        HubId::parse(text).expect("well-formed").expect(text)
    }

    #[test]
    fn a_hub_id_has_a_repository_a_revision_and_a_file() {
        let plain = read("stabilityai/sd-turbo");
        assert_eq!((plain.repository.as_str(), plain.revision.as_str(), &plain.file), ("stabilityai/sd-turbo", "main", &None));
        let full = read("org/na_me.v1-5@refs/pr/1:sub/model.fp16.safetensors");
        assert_eq!((full.repository.as_str(), full.revision.as_str()), ("org/na_me.v1-5", "refs/pr/1"));
        assert_eq!(full.file.as_deref(), Some("sub/model.fp16.safetensors"));
        assert_eq!(full.to_string(), "org/na_me.v1-5@refs/pr/1:sub/model.fp16.safetensors");
        assert_eq!(read("org/name:a b.safetensors").file.as_deref(), Some("a b.safetensors"));
        assert_eq!(read("hf://org/model.safetensors").repository, "org/model.safetensors");
    }

    #[test]
    fn a_path_or_a_name_is_no_hub_id() {
        for text in [
            "sd15",
            "./org/name",
            "/org/name",
            "~/org",
            "a/b/c",
            "..\\a/b",
            "C:\\models\\a",
            "C:/models/a",
            "org/",
            "/name",
            "models/sd15.safetensors",
            "models/v1-5.ckpt",
            "org/na me",
            "org/na--me",
            "org/-name",
            "org/../x",
            "",
            "@/:",
        ] {
            assert_eq!(HubId::parse(text).expect(text), None, "{text}");
        }
    }

    #[test]
    fn a_malformed_hub_id_is_bad_usage() {
        let long = format!("org/{}", "n".repeat(96));
        let too_long_a_file = format!("org/name:{}", "n/".repeat(600) + "x");
        for text in [
            "org/name@",
            "org/name:",
            "org/name@../x",
            "org/name@a?b",
            "org/name:../x",
            "org/name:/etc/passwd",
            "org/name:a\\b",
            "org/name:a\nb",
            "org/name@main:",
            "hf://name",
            "hf://a/b/c",
            &long,
            &too_long_a_file,
        ] {
            let error = HubId::parse(text).expect_err(text);
            assert_eq!(error.exit_code(), 2, "{text}: {error}");
        }
    }
}
