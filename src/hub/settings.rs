//! What the environment says about the hub, under the names that Python's `huggingface_hub` reads.

use crate::disk::read_bounded;
use crate::{Error, Result};
use std::ffi::OsString;
use std::fmt;
use std::io::ErrorKind;
use std::path::PathBuf;
use std::time::Duration;

const ENDPOINT: &str = "https://huggingface.co";
/// A token is a line; what is longer is another file.
const LONGEST_TOKEN: usize = 4096;

/// Where the hub is, who asks, and where files are kept.
#[derive(Debug, Clone)]
pub struct HubSettings {
    /// The hub's address, without a slash at its end.
    pub endpoint: String,
    /// The folder of the repositories' folders.
    pub cache: PathBuf,
    /// Who asks.
    pub token: Option<Token>,
    /// What forbids the network, if something does: the name of a flag or of a variable.
    pub offline: Option<&'static str>,
    /// How long an answer, or the next bytes of a file, may take.
    pub patience: Duration,
    /// The pause before the first repetition of a request that failed; the next ones are longer.
    pub pause: Duration,
}

/// A secret, and where it was found; neither `Debug` nor an error shows it.
#[derive(Clone)]
pub struct Token {
    secret: String,
    /// `HF_TOKEN`, or the path of a file.
    pub found_in: String,
}

impl Token {
    /// A token from `found_in`; `None` where it is blank.
    ///
    /// # Errors
    /// What cannot be a token: it would become part of a request.
    pub fn new(secret: &str, found_in: &str) -> Result<Option<Token>> {
        let secret = secret.trim();
        if secret.len() > LONGEST_TOKEN || !secret.chars().all(|c| c.is_ascii_graphic()) {
            return Err(Error::Input(format!("{found_in} does not hold a token: a token is one word of letters and digits")));
        }
        let token = Token { secret: secret.to_owned(), found_in: found_in.to_owned() };
        Ok((!secret.is_empty()).then_some(token))
    }

    #[cfg(feature = "hub")]
    pub(super) fn header(&self) -> String {
        format!("Bearer {}", self.secret)
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Token({} characters from {})", self.secret.len(), self.found_in)
    }
}

impl HubSettings {
    /// What the process's environment says.
    ///
    /// # Errors
    /// [`Error::Input`] for a value that cannot be meant.
    pub fn from_environment() -> Result<HubSettings> {
        HubSettings::from_variables(|name| std::env::var_os(name))
    }

    /// What the variables that `variable` knows say; an empty one counts as absent.
    ///
    /// # Errors
    /// [`Error::Input`] for a value that cannot be meant.
    pub fn from_variables(variable: impl Fn(&str) -> Option<OsString>) -> Result<HubSettings> {
        let set = |name: &str| variable(name).filter(|value| !value.is_empty());
        let path = |name: &str| set(name).map(|value| expanded(value, &set));
        let text = |name: &str| set(name).map(|value| value.to_string_lossy().into_owned());
        let truth = |name: &str| text(name).is_some_and(|v| ["1", "ON", "YES", "TRUE"].contains(&v.to_ascii_uppercase().as_str()));
        let seconds = |name: &str| text(name).and_then(|v| v.parse::<u64>().ok()).filter(|s| (1..=86_400).contains(s));

        let endpoint = text("HF_ENDPOINT").unwrap_or_else(|| ENDPOINT.to_owned());
        let endpoint = endpoint.trim_end_matches('/').to_owned();
        let host = endpoint.strip_prefix("https://").or_else(|| endpoint.strip_prefix("http://"));
        if host.is_none_or(|host| host.is_empty() || host.contains([' ', '?', '#', '@']) || host.chars().any(char::is_control)) {
            return Err(Error::Input(format!("HF_ENDPOINT={endpoint:?} is no address; give one like {ENDPOINT}, or unset it")));
        }

        let usual = || path("XDG_CACHE_HOME").or_else(|| Some(path("HOME").or_else(|| path("USERPROFILE"))?.join(".cache")));
        let home = path("HF_HOME").or_else(|| Some(usual()?.join("huggingface")));
        let cache = path("HF_HUB_CACHE").or_else(|| path("HUGGINGFACE_HUB_CACHE")).or_else(|| Some(home.as_ref()?.join("hub")));
        let Some(cache) = cache else {
            return Err(Error::Input("there is no home folder to keep downloads in; set HF_HOME to a folder".into()));
        };

        let implicit = !truth("HF_HUB_DISABLE_IMPLICIT_TOKEN");
        let token = match ["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"].into_iter().find_map(|name| Some((name, text(name)?))) {
            Some((name, token)) => Token::new(&token, name)?,
            None if implicit => {
                let file = path("HF_TOKEN_PATH").or_else(|| Some(home?.join("token"))).unwrap_or_default();
                match read_bounded(&file, LONGEST_TOKEN as u64) {
                    Ok(bytes) => Token::new(&String::from_utf8_lossy(&bytes), &file.display().to_string())?,
                    Err(e) if matches!(e.kind(), ErrorKind::InvalidInput | ErrorKind::FileTooLarge) => {
                        return Err(Error::Input(format!("{} does not hold a token: {e}; correct HF_TOKEN_PATH", file.display())));
                    }
                    Err(_) => None,
                }
            }
            None => None,
        };
        Ok(HubSettings {
            endpoint,
            cache,
            token,
            offline: ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"].into_iter().find(|name| truth(name)),
            patience: Duration::from_secs(seconds("HF_HUB_DOWNLOAD_TIMEOUT").unwrap_or(20)),
            pause: Duration::from_secs(1),
        })
    }
}

/// A path with `~` and variables, as compose and .env files have them, where no shell expands them. What is not set stays as it stands.
///
/// # Source
/// huggingface_hub: constants.py, which puts every path through `os.path.expandvars` and `os.path.expanduser`.
fn expanded(value: OsString, set: &impl Fn(&str) -> Option<OsString>) -> PathBuf {
    let Some(text) = value.to_str() else { return PathBuf::from(value) };
    let mut path = OsString::new();
    let mut rest = text;
    if let Some(home) = set("HOME").or_else(|| set("USERPROFILE"))
        && let Some(below) = text.strip_prefix('~').filter(|below| below.is_empty() || below.starts_with(['/', '\\']))
    {
        path.push(home);
        rest = below;
    }
    while let Some((before, after)) = rest.split_once('$') {
        path.push(before);
        let braced = after.strip_prefix('{').and_then(|inside| inside.split_once('}'));
        let (name, left) = braced.unwrap_or_else(|| {
            let end = after.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(after.len());
            after.split_at(end)
        });
        match set(name).filter(|_| !name.is_empty()) {
            Some(value) => path.push(value),
            None => path.push(&rest[before.len()..rest.len() - left.len()]),
        }
        rest = left;
    }
    path.push(rest);
    PathBuf::from(path)
}

#[cfg(test)]
mod tests {

    use super::*;

    fn settings(variables: &[(&str, &str)]) -> Result<HubSettings> {
        HubSettings::from_variables(|name| variables.iter().find(|(n, _)| *n == name).map(|(_, value)| OsString::from(value)))
    }

    #[test]
    fn the_cache_lies_where_python_has_it() {
        for (variables, cache) in [
            (&[("HOME", "/h")][..], "/h/.cache/huggingface/hub"),
            (&[("HOME", "/h"), ("XDG_CACHE_HOME", "/x")], "/x/huggingface/hub"),
            (&[("HOME", "/h"), ("HF_HOME", "/f")], "/f/hub"),
            (&[("HOME", "/h"), ("HF_HOME", "/f"), ("HF_HUB_CACHE", "/c")], "/c"),
            (&[("HOME", "/h"), ("HF_HOME", "")], "/h/.cache/huggingface/hub"),
            (&[("HOME", "/h"), ("HF_HOME", "~/hf")], "/h/hf/hub"),
            (&[("HOME", "/h"), ("HF_HOME", "$HOME/hf")], "/h/hf/hub"),
            (&[("HOME", "/h"), ("HF_HOME", "${HOME}/$WHO/hf"), ("WHO", "me")], "/h/me/hf/hub"),
            (&[("HOME", "/h"), ("HF_HUB_CACHE", "~/hf/hub")], "/h/hf/hub"),
            (&[("HOME", "/h"), ("XDG_CACHE_HOME", "~/c")], "/h/c/huggingface/hub"),
            // What is not set, another user's home, and a sign that begins no name stay.
            (&[("HOME", "/h"), ("HF_HUB_CACHE", "$NOBODY/~/a$")], "$NOBODY/~/a$"),
            (&[("HOME", "/h"), ("HF_HUB_CACHE", "~other/a${x")], "~other/a${x"),
        ] {
            assert_eq!(settings(variables).expect("settings").cache, PathBuf::from(cache), "{variables:?}");
        }
        assert!(settings(&[]).is_err());
    }

    #[test]
    fn a_token_comes_from_its_variable_or_its_file_and_is_never_shown() {
        let folder = tempfile::tempdir().expect("folder");
        let home = folder.path().to_str().expect("text");
        std::fs::write(folder.path().join("token"), "hf_file\n").expect("write");
        let header = |variables: &[(&str, &str)]| settings(variables).expect("settings").token.map(|token| token.secret);
        assert_eq!(header(&[("HF_HOME", home)]).as_deref(), Some("hf_file"));
        assert_eq!(header(&[("HF_HOME", home), ("HF_TOKEN", " hf_own ")]).as_deref(), Some("hf_own"));
        assert_eq!(header(&[("HF_HOME", home), ("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")]), None);
        let shown = format!("{:?}", settings(&[("HF_HOME", home)]).expect("settings"));
        assert!(!shown.contains("hf_file") && shown.contains("7 characters"), "{shown}");
        for bad in ["two words", "a\r\nHost: x", "ünicode"] {
            for name in ["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"] {
                let error = settings(&[("HF_HOME", home), (name, bad)]).expect_err(bad).to_string();
                assert!(error.starts_with(name) && !error.contains(bad), "{error}");
            }
        }
    }

    #[cfg(unix)]
    #[test]
    fn a_token_without_an_end_is_none() {
        let folder = tempfile::tempdir().expect("folder");
        let long = folder.path().join("long");
        std::fs::write(&long, "a".repeat(1 << 20)).expect("write");
        for path in ["/dev/zero", long.to_str().expect("text"), folder.path().to_str().expect("text")] {
            let error = settings(&[("HOME", "/h"), ("HF_TOKEN_PATH", path)]).expect_err(path).to_string();
            assert!(error.starts_with(path) && error.contains("does not hold a token"), "{error}");
        }
    }

    #[test]
    fn endpoint_and_offline_are_read_and_nonsense_is_refused() {
        let read =
            settings(&[("HOME", "/h"), ("HF_ENDPOINT", "https://mirror.example/hub/"), ("HF_HUB_OFFLINE", "true")]).expect("settings");
        assert_eq!((read.endpoint.as_str(), read.offline), ("https://mirror.example/hub", Some("HF_HUB_OFFLINE")));
        assert_eq!(settings(&[("HOME", "/h"), ("HF_HUB_OFFLINE", "0")]).expect("settings").offline, None);
        for bad in ["mirror.example", "ftp://x", "https://", "https://a b", "https://user@host"] {
            assert!(settings(&[("HOME", "/h"), ("HF_ENDPOINT", bad)]).is_err(), "{bad}");
        }
    }
}
