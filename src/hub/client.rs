//! Requests to the hub, and what its answers mean.

use super::id::is_plain_path;
use super::{HubId, HubSettings};
use crate::disk::read_bounded;
use crate::{Error, Result};
use hf_hub::{Repo, RepoType};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;
use std::io::Read;
use std::time::Duration;
use ureq::http::header::{AUTHORIZATION, CONTENT_LENGTH, CONTENT_RANGE, ETAG, HeaderMap, LOCATION, RANGE, RETRY_AFTER};
use ureq::http::{Method, Request, Response, StatusCode, Uri};
use ureq::tls::{PemItem, RootCerts, TlsConfig, parse_pem};
use ureq::{Agent, Body, Proxy};

/// More bytes than the list of any repository with a model takes.
const LONGEST_LISTING: u64 = 32 << 20;
/// More bytes than the certificates of all authorities take.
const LONGEST_CERTIFICATES: u64 = 16 << 20;
const MOST_REDIRECTS: usize = 8;
/// How often a request is made before its failure is believed.
const TRIES: u32 = 3;
/// The longest pause that the hub may ask for without the run ending.
const LONGEST_WAIT: Duration = Duration::from_secs(60);
/// What stands as it is in the path of an address.
const PATH: &AsciiSet = &NON_ALPHANUMERIC.remove(b'/').remove(b'-').remove(b'_').remove(b'.').remove(b'~');

/// Why there is no answer.
#[derive(Debug)]
pub(super) enum Failure {
    /// Nobody answered, or not in a way that can be understood: what is in the cache may do.
    Unreachable(String),
    /// The same, and the next try may be luckier.
    Unlucky(String),
    /// The hub asks to come again later.
    Later(Option<Duration>),
    /// The hub said no.
    Refused(Error),
}

/// A file of a repository, as the hub lists it.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Listed {
    #[serde(rename = "rfilename")]
    pub(super) path: String,
    pub(super) size: Option<u64>,
}

/// What a repository holds at one commit.
#[derive(Debug, Deserialize)]
pub(super) struct Listing {
    #[serde(rename = "sha")]
    pub(super) commit: String,
    #[serde(rename = "siblings", default)]
    pub(super) files: Vec<Listed>,
}

/// What a file is before it is fetched.
#[derive(Debug)]
pub(super) struct Metadata {
    /// The name of the content: the SHA-256 of a large file, or git's hash of a small one.
    pub(super) etag: String,
    pub(super) size: Option<u64>,
}

/// By which hash a content is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ContentHash {
    /// Of a large file.
    Sha256,
    /// Of a small one: the SHA-1 of its blob in git.
    Git,
}

impl Metadata {
    /// The hash that the content's name is, where it is one.
    pub(super) fn hash(&self) -> Option<ContentHash> {
        match self.etag.len() {
            _ if !self.etag.bytes().all(|b| b.is_ascii_hexdigit()) => None,
            64 => Some(ContentHash::Sha256),
            40 => Some(ContentHash::Git),
            _ => None,
        }
    }
}

/// The length of the whole file, as an answer with a part of it or the whole says; `None` where it does not.
pub(super) fn whole_length(answer: &Response<Body>) -> Option<u64> {
    let text = |name| answer.headers().get(name).and_then(|value| value.to_str().ok());
    match answer.status() {
        StatusCode::OK => text(CONTENT_LENGTH)?.parse().ok(),
        _ => text(CONTENT_RANGE)?.rsplit_once('/')?.1.trim().parse().ok(),
    }
}

/// Speaks with one hub about one repository.
pub(super) struct Client<'a> {
    settings: &'a HubSettings,
    id: &'a HubId,
    /// For questions: the whole answer has a limit in time.
    asking: Agent,
    /// For files: only the next bytes have one.
    fetching: Agent,
    endpoint: Uri,
}

impl<'a> Client<'a> {
    pub(super) fn new(settings: &'a HubSettings, id: &'a HubId) -> Result<Client<'a>> {
        let endpoint: Uri =
            settings.endpoint.parse().map_err(|e| Error::Input(format!("HF_ENDPOINT={:?} is no address: {e}", settings.endpoint)))?;
        // A hub on this machine is not behind the proxy that leads out of it.
        let here = endpoint.host().is_some_and(|host| host == "localhost" || host.starts_with("127.") || host == "[::1]");
        let tls = TlsConfig::builder().root_certs(root_certificates()?).build();
        let agent = |whole: Option<Duration>| {
            let config = Agent::config_builder()
                .proxy(if here { None } else { Proxy::try_from_env() })
                .http_status_as_error(false)
                // Redirects are followed here, where it is known whom the token is for.
                .max_redirects(0)
                .max_redirects_will_error(false)
                // A length is the file's length.
                .accept_encoding("identity")
                .user_agent(concat!("sd-gen/", env!("CARGO_PKG_VERSION")))
                .timeout_connect(Some(settings.patience))
                .timeout_recv_response(Some(settings.patience))
                .timeout_per_read(Some(settings.patience))
                .timeout_recv_body(whole)
                .tls_config(tls.clone());
            config.build().new_agent()
        };
        let (asking, fetching) = (agent(Some(settings.patience * 4)), agent(None));
        Ok(Client { settings, id, asking, fetching, endpoint })
    }

    fn repo(&self) -> Repo {
        Repo::with_revision(self.id.repository.clone(), RepoType::Model, self.id.revision.clone())
    }

    /// The repository's commit and files.
    pub(super) fn listing(&self) -> Result<Listing, Failure> {
        let url = format!("{}/api/{}?blobs=true", self.settings.endpoint, self.repo().api_url());
        let response = self.send(&self.asking, &Method::GET, &url, 0, |_| false)?;
        if response.status() != StatusCode::OK {
            return Err(self.refusal(&response, None));
        }
        let mut text = Vec::new();
        let read = response.into_body().into_reader().take(LONGEST_LISTING + 1).read_to_end(&mut text);
        read.map_err(|e| Failure::Unlucky(format!("{} broke off its answer ({e})", self.settings.endpoint)))?;
        if text.len() as u64 > LONGEST_LISTING {
            let what = format!("{}: the list of its files is longer than that of any model; name another repository", self.id);
            return Err(Failure::Refused(Error::Model(what)));
        }
        let listing: Listing = serde_json::from_slice(&text).map_err(|_| self.no_hub())?;
        // It becomes the name of a folder.
        let is_commit = (40..=64).contains(&listing.commit.len()) && listing.commit.bytes().all(|b| b.is_ascii_hexdigit());
        if !is_commit { Err(self.no_hub()) } else { Ok(listing) }
    }

    fn no_hub(&self) -> Failure {
        let endpoint = &self.settings.endpoint;
        Failure::Refused(Error::Model(format!("{}: {endpoint} does not answer as a hub does; correct HF_ENDPOINT, or unset it", self.id)))
    }

    /// The name and the length of the content of `path`.
    pub(super) fn metadata(&self, commit: &str, path: &str) -> Result<Metadata, Failure> {
        // The hub itself knows them; where it sends to for the bytes need not. Who does not know, as a mirror that sends to the hub, is not
        // the last to be asked.
        let response = self.send(&self.asking, &Method::HEAD, &self.url(commit, path), 0, |r| {
            let elsewhere = || self.redirect(r).is_some_and(|to| !self.is_hub(&to));
            r.headers().contains_key("x-linked-etag") || r.headers().contains_key(ETAG) && elsewhere()
        })?;
        if !response.status().is_success() && !response.status().is_redirection() {
            return Err(self.refusal(&response, Some(path)));
        }
        let headers = response.headers();
        let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        let etag = text("x-linked-etag").or_else(|| text(ETAG.as_str())).map(|etag| etag.trim_start_matches("W/").trim_matches('"'));
        // It becomes the name of a file.
        let good =
            |etag: &&str| (8..=128).contains(&etag.len()) && etag.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
        let etag = etag.filter(good).ok_or_else(|| self.no_hub())?.to_owned();
        let length = if response.status().is_success() { text(CONTENT_LENGTH.as_str()) } else { None };
        // Some servers say 0 of every answer without a body.
        let size = text("x-linked-size").or(length.filter(|length| *length != "0")).and_then(|size| size.parse().ok());
        Ok(Metadata { etag, size })
    }

    /// The bytes of `path` from `start` on.
    pub(super) fn content(&self, commit: &str, path: &str, start: u64) -> Result<Response<Body>, Failure> {
        let response = self.send(&self.fetching, &Method::GET, &self.url(commit, path), start, |_| false)?;
        match response.status() {
            StatusCode::OK | StatusCode::PARTIAL_CONTENT | StatusCode::RANGE_NOT_SATISFIABLE => Ok(response),
            _ => Err(self.refusal(&response, Some(path))),
        }
    }

    fn url(&self, commit: &str, path: &str) -> String {
        format!("{}/{}/resolve/{commit}/{}", self.settings.endpoint, self.repo().url(), utf8_percent_encode(path, PATH))
    }

    /// Sends a request and follows where the answers point to, unless `enough` says that one will do.
    fn send(
        &self,
        agent: &Agent,
        method: &Method,
        url: &str,
        start: u64,
        enough: impl Fn(&Response<Body>) -> bool,
    ) -> Result<Response<Body>, Failure> {
        let mut at: Uri = url.parse().map_err(|_| self.no_hub())?;
        for _ in 0..=MOST_REDIRECTS {
            let mut request = Request::builder().method(method).uri(&at);
            if start > 0 {
                request = request.header(RANGE, format!("bytes={start}-"));
            }
            // The token is for the hub, and for nobody whom an answer names.
            if let Some(token) = self.settings.token.as_ref().filter(|_| self.is_hub(&at)) {
                request = request.header(AUTHORIZATION, token.header());
            }
            let request = request.body(()).map_err(|e| Failure::Unreachable(format!("{} cannot be asked: {e}", self.settings.endpoint)))?;
            let mut response = agent.run(request).map_err(|e| unanswered(&at, &e))?;
            if !response.status().is_redirection() || enough(&response) {
                // Whether a refusal is the hub's own.
                let is_hub = self.is_hub(&at);
                response.extensions_mut().insert(FromHub(is_hub));
                return Ok(response);
            }
            let to = self.redirect_from(&at, response.headers()).ok_or_else(|| self.no_hub())?;
            if at.scheme_str() == Some("https") && to.scheme_str() != Some("https") {
                let what = format!("{}: {} sends from https to http, and is not followed; try another HF_ENDPOINT", self.id, host(&at));
                return Err(Failure::Refused(Error::Model(what)));
            }
            at = to;
        }
        Err(Failure::Unreachable(format!("{} sends in circles", self.settings.endpoint)))
    }

    fn redirect(&self, response: &Response<Body>) -> Option<Uri> {
        self.redirect_from(&self.endpoint, response.headers())
    }

    fn redirect_from(&self, at: &Uri, headers: &HeaderMap) -> Option<Uri> {
        let location = headers.get(LOCATION)?.to_str().ok()?;
        let scheme = at.scheme_str()?;
        let absolute = match location {
            _ if location.starts_with("http://") || location.starts_with("https://") => location.to_owned(),
            _ if location.starts_with("//") => format!("{scheme}:{location}"),
            _ if location.starts_with('/') => format!("{scheme}://{}{location}", at.authority()?),
            _ => return None,
        };
        absolute.parse().ok()
    }

    fn is_hub(&self, uri: &Uri) -> bool {
        let origin = |uri: &Uri| {
            let usual = if uri.scheme_str() == Some("https") { 443 } else { 80 };
            (uri.scheme_str().map(str::to_owned), uri.host().map(str::to_ascii_lowercase), uri.port_u16().unwrap_or(usual))
        };
        origin(uri) == origin(&self.endpoint)
    }

    /// What an answer that is no success means; `path` is the file that was asked for.
    fn refusal(&self, response: &Response<Body>, path: Option<&str>) -> Failure {
        let (id, status) = (self.id, response.status());
        let header = |name: &str| response.headers().get(name).and_then(|value| value.to_str().ok());
        let from_hub = response.extensions().get::<FromHub>().is_some_and(|FromHub(yes)| *yes);
        let name = &self.id.repository;
        let page = format!("{}/{name}", self.settings.endpoint);
        let token = self.settings.token.as_ref().map(|token| token.found_in.as_str());
        let sentence = match (status.as_u16(), header("x-error-code").unwrap_or_default(), token) {
            (429, ..) => {
                return Failure::Later(header(RETRY_AFTER.as_str()).and_then(|s| s.trim().parse().ok()).map(Duration::from_secs));
            }
            (500.., ..) => return Failure::Unlucky(format!("{} has trouble of its own (status {status})", self.settings.endpoint)),
            _ if !from_hub => return Failure::Unlucky(format!("the host that keeps the file refused it (status {status})")),
            (401 | 403, "GatedRepo", None) => {
                format!("{id} is gated: accept its conditions at {page}, then set HF_TOKEN to a token of your account")
            }
            (401 | 403, "GatedRepo", Some(token)) => {
                format!("{id} is gated, and the account of the token in {token} has not been let in: ask for access at {page}")
            }
            (_, "RevisionNotFound", _) => {
                format!("{id}: the repository has no revision {:?}; leave out @{0} for the newest one", self.id.revision)
            }
            (404, "EntryNotFound", _) => self.no_file(path.unwrap_or_default()),
            (401 | 403, "RepoNotFound", None) | (401, _, None) | (404, "RepoNotFound", None) => {
                format!(
                    "{id}: {} has no public model of that name; check the spelling, or set HF_TOKEN if it is private",
                    self.settings.endpoint
                )
            }
            (401 | 403 | 404, "RepoNotFound", Some(token)) => format!(
                "{id}: {} has no model of that name that the token in {token} may see; check the spelling, and the token's permissions",
                self.settings.endpoint
            ),
            (401, _, Some(token)) => format!("{id}: the hub does not accept the token in {token}; make a new one, or unset it"),
            (403, _, None) => format!("{id} may not be read without a token; set HF_TOKEN to one of an account that has access"),
            (403, _, Some(token)) => format!("{id} may not be read with the token in {token}; give the token the permission to read it"),
            (404, ..) if path.is_some() => self.no_file(path.unwrap_or_default()),
            (404, ..) => {
                format!("{id}: {} has no model of that name; check the spelling, and HF_ENDPOINT if it is set", self.settings.endpoint)
            }
            _ => format!("{id}: {} answered with status {status}; try again later, or another HF_ENDPOINT", self.settings.endpoint),
        };
        Failure::Refused(Error::Model(sentence))
    }

    fn no_file(&self, path: &str) -> String {
        let shown = if is_plain_path(path) { path } else { "of that name" };
        format!("{}: the repository has no file {shown} at this revision; see {}/{}", self.id, self.settings.endpoint, self.id.repository)
    }

    /// Asks again while that may help; `note` hears why nothing happens, and may end it.
    pub(super) fn patiently<T>(
        &self,
        note: &mut dyn FnMut(&str) -> Result<()>,
        mut ask: impl FnMut() -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        for tries in 1.. {
            let (pause, why) = match ask() {
                Err(Failure::Unlucky(why)) if tries < TRIES => (self.settings.pause * tries, why),
                Err(Failure::Unlucky(why)) => return Err(Failure::Unreachable(why)),
                Err(Failure::Later(asked)) => {
                    let pause = asked.unwrap_or(self.settings.pause * 10);
                    if tries >= TRIES || pause > LONGEST_WAIT {
                        return Err(Failure::Refused(self.too_many_requests(asked)));
                    }
                    (pause, "the hub limits how often it may be asked".to_owned())
                }
                other => return other,
            };
            note(&format!("{why}; trying again in {} s", pause.as_secs_f32().ceil())).map_err(Failure::Refused)?;
            wait(pause, note)?;
        }
        Err(self.no_hub())
    }

    /// The pause before a connection is made again that broke, once or several times in a row.
    pub(super) fn pause(&self, times: u32, note: &mut dyn FnMut(&str) -> Result<()>) -> Result<(), Failure> {
        wait(self.settings.pause * times, note)
    }

    /// How long the next bytes may take.
    pub(super) fn patience(&self) -> Duration {
        self.settings.patience
    }

    fn too_many_requests(&self, asked: Option<Duration>) -> Error {
        let when = asked.map_or("later".to_owned(), |wait| format!("in {} s", wait.as_secs()));
        let token = if self.settings.token.is_none() { ", or set HF_TOKEN, which allows more" } else { "" };
        Error::Model(format!("{}: the hub limits how often it may be asked; try again {when}{token}", self.id))
    }
}

/// Lets time pass; `note` may end it.
fn wait(pause: Duration, note: &mut dyn FnMut(&str) -> Result<()>) -> Result<(), Failure> {
    let slice = Duration::from_millis(100);
    let mut left = pause;
    while !left.is_zero() {
        std::thread::sleep(left.min(slice));
        left = left.saturating_sub(slice);
        note("").map_err(Failure::Refused)?;
    }
    Ok(())
}

/// Marks an answer: whether the hub itself gave it.
#[derive(Debug, Clone, Copy)]
struct FromHub(bool);

fn host(uri: &Uri) -> &str {
    uri.host().unwrap_or("the hub")
}

/// Why there was no answer from `uri`.
fn unanswered(uri: &Uri, error: &ureq::Error) -> Failure {
    let host = host(uri);
    match error {
        ureq::Error::Timeout(_) => Failure::Unlucky(format!("{host} does not answer in time")),
        ureq::Error::HostNotFound => Failure::Unreachable(format!("the host {host} is not found")),
        ureq::Error::Io(e) if e.kind() == std::io::ErrorKind::ConnectionRefused => {
            Failure::Unreachable(format!("{host} refuses the connection"))
        }
        ureq::Error::Io(e) if e.kind() == std::io::ErrorKind::InvalidData => Failure::Unreachable(format!(
            "{host} has no certificate that is trusted ({e}); behind a company's proxy, SSL_CERT_FILE names the file with its certificate"
        )),
        ureq::Error::Io(e) => Failure::Unlucky(format!("the connection to {host} broke ({e})")),
        other => Failure::Unreachable(format!("{host} cannot be asked ({other})")),
    }
}

/// The authorities whose word is taken for a host's name: Mozilla's, or those of the file in `SSL_CERT_FILE`, as a company's proxy needs.
fn root_certificates() -> Result<RootCerts> {
    let Some(file) = std::env::var_os("SSL_CERT_FILE").filter(|file| !file.is_empty()) else { return Ok(RootCerts::WebPki) };
    let shown = std::path::Path::new(&file).display().to_string();
    let pem = read_bounded(std::path::Path::new(&file), LONGEST_CERTIFICATES)
        .map_err(|e| Error::Input(format!("SSL_CERT_FILE={shown}: cannot be read: {e}")))?;
    let items = parse_pem(&pem).filter_map(|item| match item {
        Ok(PemItem::Certificate(certificate)) => Some(certificate),
        _ => None,
    });
    let certificates: Vec<_> = items.collect();
    match certificates.is_empty() {
        true => Err(Error::Input(format!("SSL_CERT_FILE={shown}: holds no certificate in PEM form"))),
        false => Ok(RootCerts::new_with_certs(&certificates)),
    }
}
