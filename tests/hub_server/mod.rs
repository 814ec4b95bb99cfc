//! A hub on the loopback: the few addresses of the real one that a download takes, and every way in which they go wrong.

#![allow(dead_code, clippy::expect_used, reason = "a test that cannot set up its files has failed; not every test uses all of it")]

use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

pub(crate) const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// What was asked for.
#[derive(Debug, Clone)]
pub(crate) struct Asked {
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) headers: BTreeMap<String, String>,
}

/// What is answered.
#[derive(Debug, Clone, Default)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
    /// The connection ends after so many bytes of the body.
    pub(crate) cut: Option<usize>,
    /// The connection stays silent for so long after `cut` bytes.
    pub(crate) silent: Option<Duration>,
    /// The pause after each byte of the body.
    pub(crate) drip: Option<Duration>,
}

impl Answer {
    pub(crate) fn status(status: u16) -> Answer {
        Answer { status, ..Answer::default() }
    }

    pub(crate) fn with(mut self, name: &str, value: impl Into<String>) -> Answer {
        self.headers.push((name.to_owned(), value.into()));
        self
    }
}

/// Changes an answer: the request, how many of its kind came before, and what would be answered.
type Fault = Box<dyn Fn(&Asked, usize, Answer) -> Answer + Send>;

#[derive(Default)]
struct State {
    files: BTreeMap<String, Vec<u8>>,
    asked: Vec<Asked>,
    fault: Option<Fault>,
    /// Where large files are kept, as an address: the real hub has another host for them.
    storage: String,
}

/// The server; it ends with the process.
pub(crate) struct Hub {
    pub(crate) address: String,
    state: Arc<Mutex<State>>,
}

impl Hub {
    /// Serves `files` as the repository `org/model`, whatever its name is asked as.
    pub(crate) fn new(files: impl IntoIterator<Item = (String, Vec<u8>)>) -> Hub {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = format!("http://{}", listener.local_addr().expect("address"));
        let state = Arc::new(Mutex::new(State { files: files.into_iter().collect(), storage: address.clone(), ..State::default() }));
        let shared = Arc::clone(&state);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let state = Arc::clone(&shared);
                std::thread::spawn(move || while converse(&stream, &state).is_some() {});
            }
        });
        Hub { address, state }
    }

    /// Serves a folder's files.
    pub(crate) fn of_folder(root: &Path) -> Hub {
        let mut files = Vec::new();
        let mut folders = vec![root.to_owned()];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").path()) {
                if entry.is_dir() {
                    folders.push(entry);
                } else {
                    let parts: Vec<_> = entry.strip_prefix(root).expect("below").iter().map(|p| p.to_string_lossy()).collect();
                    files.push((parts.join("/"), std::fs::read(&entry).expect("read")));
                }
            }
        }
        Hub::new(files)
    }

    pub(crate) fn with_fault(self, fault: impl Fn(&Asked, usize, Answer) -> Answer + Send + 'static) -> Hub {
        self.state.lock().expect("state").fault = Some(Box::new(fault));
        self
    }

    pub(crate) fn set_fault(&self, fault: Option<Fault>) {
        self.state.lock().expect("state").fault = fault;
    }

    /// Sends large files' readers to another host, as the real hub does.
    pub(crate) fn sending_to(self, elsewhere: &str) -> Hub {
        self.state.lock().expect("state").storage = elsewhere.to_owned();
        self
    }

    pub(crate) fn asked(&self) -> Vec<Asked> {
        self.state.lock().expect("state").asked.clone()
    }

    pub(crate) fn forget(&self) {
        self.state.lock().expect("state").asked.clear();
    }

    /// The bodies that were asked for, by file.
    pub(crate) fn fetched(&self) -> Vec<String> {
        let asked = self.asked();
        let gets = asked.iter().filter(|asked| asked.method == "GET");
        let mut files: Vec<String> =
            gets.filter_map(|asked| Some(asked.path.split_once("/resolve/")?.1.split_once('/')?.1.to_owned())).collect();
        files.sort();
        files.dedup();
        files
    }
}

pub(crate) fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The name of a file's content: the SHA-1 of its blob in git, or the SHA-256 of a large one.
pub(crate) fn etag(path: &str, bytes: &[u8]) -> String {
    let git = || sha1::Sha1::new_with_prefix(format!("blob {}\0", bytes.len())).chain_update(bytes).finalize();
    if is_large(path) { sha256(bytes) } else { git().iter().map(|byte| format!("{byte:02x}")).collect() }
}

fn is_large(path: &str) -> bool {
    path.ends_with(".safetensors")
}

/// One request and its answer; `None` ends the connection.
fn converse(stream: &TcpStream, state: &Mutex<State>) -> Option<()> {
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line).ok().filter(|read| *read > 0)?;
    let mut words = line.split_whitespace().map(str::to_owned);
    let (method, path) = (words.next()?, words.next()?);
    let mut headers = BTreeMap::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        let Some((name, value)) = line.trim_end().split_once(':') else { break };
        headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
    }
    let asked = Asked { method, path, headers };
    let answer = {
        let mut state = state.lock().expect("state");
        let before = state.asked.iter().filter(|other| (&other.method, &other.path) == (&asked.method, &asked.path)).count();
        state.asked.push(asked.clone());
        let answer = state.answer(&asked);
        match &state.fault {
            Some(fault) => fault(&asked, before, answer),
            None => answer,
        }
    };
    write(stream, &asked, &answer)
}

fn write(mut stream: &TcpStream, asked: &Asked, answer: &Answer) -> Option<()> {
    let mut head = format!("HTTP/1.1 {} Status\r\n", answer.status);
    for (name, value) in &answer.headers {
        head += &format!("{name}: {value}\r\n");
    }
    let says_its_length = |name: &str| ["content-length", "transfer-encoding"].iter().any(|known| name.eq_ignore_ascii_case(known));
    let has_length = answer.headers.iter().any(|(name, _)| says_its_length(name));
    if !has_length {
        head += &format!("Content-Length: {}\r\n", answer.body.len());
    }
    head += "\r\n";
    stream.write_all(head.as_bytes()).ok()?;
    if asked.method != "HEAD" {
        let end = answer.cut.unwrap_or(answer.body.len()).min(answer.body.len());
        let step = if answer.drip.is_some() { 1 } else { end.max(1) };
        for piece in answer.body[..end].chunks(step) {
            stream.write_all(piece).ok()?;
            std::thread::sleep(answer.drip.unwrap_or_default());
        }
    }
    stream.flush().ok()?;
    if let Some(silent) = answer.silent {
        std::thread::sleep(silent);
    }
    if answer.cut.is_some() || answer.silent.is_some() {
        let _ = stream.shutdown(std::net::Shutdown::Both);
        return None;
    }
    Some(())
}

impl State {
    fn answer(&self, asked: &Asked) -> Answer {
        let path = asked.path.split('?').next().unwrap_or_default();
        if path.starts_with("/api/models/") {
            let Some((_, revision)) = path.split_once("/revision/") else { return Answer::status(404) };
            if !["main", "v1", "refs%2Fpr%2F1", COMMIT].contains(&revision) {
                return Answer::status(404).with("X-Error-Code", "RevisionNotFound");
            }
            let siblings: Vec<_> = self
                .files
                .iter()
                .map(|(path, bytes)| serde_json::json!({ "rfilename": path, "size": bytes.len(), "blobId": etag(path, bytes) }))
                .collect();
            let body = serde_json::json!({ "id": "org/model", "sha": COMMIT, "gated": false, "siblings": siblings }).to_string();
            return Answer { status: 200, body: body.into_bytes(), ..Answer::default() };
        }
        if let Some(name) = path.strip_prefix("/cdn/") {
            let content = self.files.iter().find(|(path, bytes)| etag(path, bytes) == name);
            return content.map_or(Answer::status(403), |(_, bytes)| content_of(asked, bytes));
        }
        let file = path.split_once("/resolve/").and_then(|(_, rest)| rest.split_once('/')).map(|(_, file)| file.replace("%20", " "));
        let Some((name, bytes)) = file.and_then(|file| self.files.get_key_value(&file)) else {
            return Answer::status(404).with("X-Error-Code", "EntryNotFound");
        };
        let tag = etag(name, bytes);
        if is_large(name) {
            return Answer::status(302)
                .with("X-Repo-Commit", COMMIT)
                .with("X-Linked-Etag", format!("\"{tag}\""))
                .with("X-Linked-Size", bytes.len().to_string())
                .with("Location", format!("{}/cdn/{tag}", self.storage));
        }
        content_of(asked, bytes).with("X-Repo-Commit", COMMIT).with("ETag", format!("W/\"{tag}\""))
    }
}

/// The bytes that the request's range names.
fn content_of(asked: &Asked, bytes: &[u8]) -> Answer {
    let start = asked.headers.get("range").and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-')?.parse::<usize>().ok());
    match start {
        Some(start) if start >= bytes.len() => Answer::status(416),
        Some(start) => {
            let body = bytes[start..].to_vec();
            let range = format!("bytes {start}-{}/{}", bytes.len() - 1, bytes.len());
            Answer { status: 206, body, ..Answer::default() }.with("Content-Range", range)
        }
        // The length is said of a HEAD too.
        None => Answer { status: 200, body: bytes.to_vec(), ..Answer::default() },
    }
}
