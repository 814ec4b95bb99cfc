//! One server: jobs are sent there, waited for, and their images fetched.

use crate::cli::process::cancelled;
use crate::{Error, Result};
use serde_json::Value as Json;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};
use ureq::http::{Method, Request, Response, header};
use ureq::{Agent, Body};

/// How long a server may take to say anything.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long a job that was sent may be out of reach before its line goes to another server.
const GRACE: Duration = Duration::from_secs(5);
/// Between two looks at a job, at first and at most.
const LOOK: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));
/// Waits before a server that does not answer is asked again; after the last it is given up.
const TRIES: [u64; 8] = [1, 1, 2, 4, 8, 8, 8, 8];
/// Bytes of an image, and of anything else that is answered.
const LARGEST_IMAGE: u64 = 1 << 30;
const LARGEST_ANSWER: u64 = 16 << 20;

/// An image that a server has made.
pub(super) struct MadeImage {
    pub(super) bytes: Vec<u8>,
    pub(super) width: usize,
    pub(super) height: usize,
    pub(super) seconds: f64,
}

/// Why there is no image.
#[derive(Debug)]
pub(super) enum Trouble {
    /// The settings are wrong or cannot be made; another server would say the same.
    Refused(String),
    /// Its queue is full.
    Later(Duration),
    /// It does not answer, or not as it should.
    Gone(String),
    /// It will not be used: the key is wrong, or it is something else.
    Unusable(String),
    /// The user stops the run.
    Stopped,
}

/// A server by its address.
pub(super) struct RemoteServer {
    pub(super) address: String,
    key: Option<String>,
    agent: Agent,
    /// Jobs that were left there when it did not answer: nobody wants them any more.
    left: Mutex<Vec<String>>,
    /// Why it was given up.
    given_up: Mutex<Option<String>>,
}

impl RemoteServer {
    /// # Errors
    /// It is no address.
    pub(super) fn at(address: &str, key: Option<String>) -> Result<Self> {
        let whole = if address.contains("://") { address.to_owned() } else { format!("http://{address}") };
        let whole = whole.trim_end_matches('/').to_owned();
        let uri: Option<ureq::http::Uri> = whole.parse().ok();
        let is_host =
            uri.is_some_and(|uri| uri.host().is_some_and(|host| !host.is_empty()) && matches!(uri.scheme_str(), Some("http" | "https")));
        if !is_host {
            return Err(Error::Input(format!("--server {address}: give an address such as http://127.0.0.1:7860")));
        }
        let config = Agent::config_builder()
            // A server of one's own is not behind the proxy to the world.
            .proxy(None)
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .user_agent(concat!("sd-gen/", env!("CARGO_PKG_VERSION")))
            .timeout_connect(Some(Duration::from_secs(10)))
            .timeout_recv_response(Some(PATIENCE))
            .timeout_recv_body(Some(PATIENCE * 5));
        Ok(Self { address: whole, key, agent: config.build().new_agent(), left: Mutex::default(), given_up: Mutex::default() })
    }

    /// Why it was given up, where it was.
    pub(super) fn given_up(&self) -> Option<String> {
        self.given_up.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Gives it up; whether that is news.
    pub(super) fn give_up(&self, why: String) -> bool {
        let mut given_up = self.given_up.lock().unwrap_or_else(PoisonError::into_inner);
        let is_new = given_up.is_none();
        given_up.get_or_insert(why);
        is_new
    }

    fn ask(&self, method: Method, path: &str, body: Vec<u8>) -> Result<Response<Body>, Trouble> {
        let mut request = Request::builder().method(method).uri(format!("{}{path}", self.address));
        if let Some(key) = &self.key {
            request = request.header(header::AUTHORIZATION, format!("Bearer {key}"));
        }
        if !body.is_empty() {
            request = request.header(header::CONTENT_TYPE, "application/json");
        }
        let request = request.body(body).map_err(|error| Trouble::Unusable(error.to_string()))?;
        self.agent.run(request).map_err(|error| Trouble::Gone(error.to_string()))
    }

    fn json(mut answer: Response<Body>) -> Result<Json, Trouble> {
        let bytes = answer.body_mut().with_config().limit(LARGEST_ANSWER).read_to_vec();
        let bytes = bytes.map_err(|error| Trouble::Gone(error.to_string()))?;
        serde_json::from_slice(&bytes).map_err(|_| Trouble::Gone(format!("answers {} without JSON", answer.status())))
    }

    /// Makes an image of settings in JSON.
    pub(super) fn make(&self, settings: &[u8]) -> Result<MadeImage, Trouble> {
        let answer = self.ask(Method::POST, "/v1/jobs", settings.to_vec())?;
        let status = answer.status().as_u16();
        let seconds = answer.headers().get(header::RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
        let body = Self::json(answer);
        let said = |body: &Json| body["error"]["message"].as_str().unwrap_or("no reason is said").to_owned();
        let id = match (status, body) {
            (202, Ok(body)) => body["id"].as_str().map(str::to_owned).ok_or_else(|| Trouble::Gone("accepts a job without an id".into()))?,
            (429, _) => return Err(Trouble::Later(Duration::from_secs(seconds.unwrap_or(5).clamp(1, 60)))),
            (400 | 413 | 415 | 422, Ok(body)) => return Err(Trouble::Refused(said(&body))),
            (401 | 403, Ok(body)) => return Err(Trouble::Unusable(said(&body))),
            (404 | 405, _) => return Err(Trouble::Unusable("is no sd-gen serve: it has no /v1/jobs".into())),
            (_, Ok(body)) => return Err(Trouble::Gone(said(&body))),
            (_, Err(trouble)) => return Err(trouble),
        };
        let made = self.wait(&id);
        match &made {
            // What may still be made there is not wanted any more.
            Err(Trouble::Gone(_)) => self.left.lock().unwrap_or_else(PoisonError::into_inner).push(id),
            _ => drop(self.ask(Method::DELETE, &format!("/v1/jobs/{id}?forget=true"), Vec::new())),
        }
        made
    }

    fn wait(&self, id: &str) -> Result<MadeImage, Trouble> {
        let (mut pause, most) = LOOK;
        let mut silent: Option<Instant> = None;
        loop {
            if cancelled() {
                return Err(Trouble::Stopped);
            }
            std::thread::sleep(pause);
            pause = (pause * 3 / 2).min(most);
            let seen = self.ask(Method::GET, &format!("/v1/jobs/{id}"), Vec::new()).and_then(|answer| match answer.status().as_u16() {
                200 => Self::json(answer).map(Some),
                404 => Ok(None),
                status => Err(Trouble::Gone(format!("answers {status} of a job"))),
            });
            let job = match seen {
                Ok(Some(job)) => job,
                Ok(None) => return Err(Trouble::Gone("has forgotten a job".into())),
                // A server that is started again goes on with its queue.
                Err(trouble) if silent.get_or_insert_with(Instant::now).elapsed() > GRACE => return Err(trouble),
                Err(_) => continue,
            };
            silent = None;
            match job["state"].as_str() {
                Some("done") => return self.fetch(id, &job),
                Some("failed") => return Err(Trouble::Refused(job["error"].as_str().unwrap_or("failed on the server").to_owned())),
                Some("cancelled") => return Err(Trouble::Refused("was cancelled on the server".into())),
                Some("queued" | "running") => {}
                _ => return Err(Trouble::Gone("tells of a job in a way that is not understood".into())),
            }
        }
    }

    fn fetch(&self, id: &str, job: &Json) -> Result<MadeImage, Trouble> {
        let mut answer = self.ask(Method::GET, &format!("/v1/jobs/{id}/images/0"), Vec::new())?;
        if answer.status().as_u16() != 200 {
            return Err(Trouble::Gone(format!("answers {} of an image", answer.status())));
        }
        let bytes = answer.body_mut().with_config().limit(LARGEST_IMAGE).read_to_vec();
        let bytes = bytes.map_err(|error| Trouble::Gone(error.to_string()))?;
        let side = |name: &str| job["images"][0][name].as_u64().and_then(|side| usize::try_from(side).ok()).unwrap_or_default();
        let seconds = job["ended"].as_f64().zip(job["started"].as_f64()).map_or(0.0, |(ended, started)| (ended - started).max(0.0));
        Ok(MadeImage { bytes, width: side("width"), height: side("height"), seconds })
    }

    /// Waits for a server that does not answer. Whether it does again; while there is nothing left to do, `is_over` says so.
    pub(super) fn recovers(&self, is_over: &dyn Fn() -> bool) -> bool {
        for seconds in TRIES {
            let until = Instant::now() + Duration::from_secs(seconds);
            while Instant::now() < until {
                if cancelled() || is_over() || self.given_up().is_some() {
                    return false;
                }
                std::thread::sleep(Duration::from_millis(100));
            }
            if self.ask(Method::GET, "/ready", Vec::new()).is_ok_and(|answer| answer.status().is_success()) {
                let left = std::mem::take(&mut *self.left.lock().unwrap_or_else(PoisonError::into_inner));
                for id in left {
                    let _ = self.ask(Method::DELETE, &format!("/v1/jobs/{id}?forget=true"), Vec::new());
                }
                return true;
            }
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read() {
        for (given, wanted) in [
            ("127.0.0.1:7860", Some("http://127.0.0.1:7860")),
            ("http://a.example:80/", Some("http://a.example:80")),
            ("https://a.example", Some("https://a.example")),
            ("ftp://a.example", None),
            ("", None),
            ("http://", None),
        ] {
            assert_eq!(RemoteServer::at(given, None).ok().map(|server| server.address).as_deref(), wanted, "{given:?}");
        }
    }

    #[test]
    fn a_server_that_is_not_there_is_gone() {
        // A port that was free a moment ago.
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        drop(listener);
        let server = RemoteServer::at(&address, None).unwrap();
        assert!(matches!(server.make(b"{}"), Err(Trouble::Gone(_))));
        assert!(!server.recovers(&|| true));
        assert!(server.give_up("a".into()) && !server.give_up("b".into()));
        assert_eq!(server.given_up().as_deref(), Some("a"));
    }
}
