//! From settings to a job in the queue, the same for every language.

use super::Server;
use super::answer::ApiError;
use super::files::{FileDesk, UploadFolder};
use super::job::{JobStatus, Onlookers, ServedJob, now};
use super::settings::{self, GivenSetting, SettingProblem};
use super::studio::ResolvedJob;
use crate::settings::{Draft, Seed, Setting};
use axum::body::Bytes;
use axum::extract::multipart::MultipartError;
use axum::extract::{FromRequest, Multipart, Request};
use axum::http::{HeaderMap, StatusCode, header};
use serde_json::{Map, Value as Json};
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::sync::watch;

/// How long a request's body may take to come.
const SLOWEST_BODY: Duration = Duration::from_secs(120);
/// Bytes of what a job's settings say, without its files: they are kept with the job.
const LONGEST_SETTINGS: usize = 256 << 10;
/// Fields of a form.
const MOST_PARTS: usize = 64;

/// A job before it is one.
pub(super) struct NewJob {
    /// See [`ServedJob::origin`].
    pub(super) origin: &'static str,
    /// The settings in JSON, by the names of the table.
    pub(super) settings: Map<String, Json>,
    /// Files of a form by their fields.
    pub(super) parts: HashMap<String, Vec<u8>>,
    /// What to say beside the result.
    pub(super) remarks: Vec<String>,
    /// See [`ServedJob::note`].
    pub(super) note: Json,
    /// An id that the client chose.
    pub(super) id: Option<Arc<str>>,
    /// It is made before the others.
    pub(super) front: bool,
}

impl NewJob {
    pub(super) fn of(origin: &'static str, settings: Map<String, Json>) -> Self {
        Self { origin, settings, parts: HashMap::new(), remarks: Vec::new(), note: Json::Null, id: None, front: false }
    }
}

/// The body of a request, if it comes in time.
pub(super) async fn body(request: Request) -> Result<Bytes, ApiError> {
    let read = tokio::time::timeout(SLOWEST_BODY, Bytes::from_request(request, &()));
    let read = read.await.map_err(|_| ApiError::new(StatusCode::REQUEST_TIMEOUT, "the request took too long to come"))?;
    read.map_err(|error| ApiError::new(error.status(), error.body_text()))
}

fn content_type(headers: &HeaderMap) -> String {
    headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default().to_ascii_lowercase()
}

/// An object in JSON. A page of another site can send a form or plain text without being asked for, but not this type.
pub(super) async fn json_body(request: Request) -> Result<Map<String, Json>, ApiError> {
    let kind = content_type(request.headers());
    if !kind.starts_with("application/json") {
        return Err(ApiError::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "send JSON, and say so: Content-Type: application/json"));
    }
    let bytes = body(request).await?;
    object(&bytes)
}

/// The same where no body is as good as an empty one.
pub(super) async fn optional_json_body(request: Request) -> Result<Map<String, Json>, ApiError> {
    let kind = content_type(request.headers());
    let bytes = body(request).await?;
    if bytes.is_empty() {
        return Ok(Map::new());
    }
    if !kind.starts_with("application/json") {
        return Err(ApiError::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "send JSON, and say so: Content-Type: application/json"));
    }
    object(&bytes)
}

fn object(bytes: &[u8]) -> Result<Map<String, Json>, ApiError> {
    match serde_json::from_slice(bytes) {
        Ok(Json::Object(object)) => Ok(object),
        Ok(_) => Err(ApiError::bad("the request is JSON, and no object; give {\"prompt\": \"a red apple\"}")),
        Err(error) => Err(ApiError::bad(format!("the request is not JSON: {error}"))),
    }
}

/// A form's fields.
pub(super) struct FormParts {
    /// Fields that are text, in their order.
    pub(super) texts: Vec<(String, String)>,
    /// Fields that are files, in their order.
    pub(super) files: Vec<(String, Vec<u8>)>,
    /// What the files are called where they come from.
    pub(super) names: Vec<String>,
}

pub(super) fn is_form(request: &Request) -> bool {
    content_type(request.headers()).starts_with("multipart/form-data")
}

/// A form that could not be read. One that breaks off is the client's doing, whatever the reader says.
fn unread(error: MultipartError) -> ApiError {
    let status = if error.status().is_server_error() { StatusCode::BAD_REQUEST } else { error.status() };
    ApiError::new(status, error.body_text())
}

/// Reads a form.
pub(super) async fn form(request: Request) -> Result<FormParts, ApiError> {
    let read = async {
        let mut form = Multipart::from_request(request, &()).await.map_err(|error| ApiError::bad(error.body_text()))?;
        let mut parts = FormParts { texts: Vec::new(), files: Vec::new(), names: Vec::new() };
        while let Some(field) = form.next_field().await.map_err(unread)? {
            if parts.texts.len() + parts.files.len() >= MOST_PARTS {
                return Err(ApiError::bad(format!("a form has at most {MOST_PARTS} fields")));
            }
            let name = field.name().unwrap_or_default().to_owned();
            let file_name = field.file_name().map(str::to_owned);
            let bytes = field.bytes().await.map_err(unread)?;
            match file_name {
                Some(file_name) => {
                    parts.files.push((name, bytes.to_vec()));
                    parts.names.push(file_name);
                }
                None => {
                    let text =
                        String::from_utf8(bytes.to_vec()).map_err(|_| ApiError::bad(format!("the field {name:?} is not UTF-8 text")))?;
                    parts.texts.push((name, text));
                }
            }
        }
        Ok(parts)
    };
    let read = tokio::time::timeout(SLOWEST_BODY, read).await;
    read.map_err(|_| ApiError::new(StatusCode::REQUEST_TIMEOUT, "the request took too long to come"))?
}

/// Checks a job and puts it into the queue; gives its id, and how many are before it.
pub(super) async fn submit(server: &Arc<Server>, new: NewJob) -> Result<(Arc<str>, usize), ApiError> {
    server.queue.has_room(1)?;
    let server = server.clone();
    // Files are read and models opened, which takes its time.
    let work = tokio::task::spawn_blocking(move || enqueue(&server, new));
    work.await.map_err(|_| {
        ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "the request made a thread fail, which is a defect; please report it")
    })?
}

/// The draft of settings in JSON, with the files that it needs.
pub(super) fn draft_of(server: &Server, settings: &Map<String, Json>, desk: &mut FileDesk<'_>) -> Result<Draft, ApiError> {
    let (given, mut problems): (Vec<GivenSetting>, _) = settings::given(settings, desk);
    for (row, values) in &given {
        for value in values.iter().filter(|_| row.name == "model") {
            if let Err(error) = server.studio.check_model(value) {
                problems.push(SettingProblem::new("model", super::studio::said(&error).1));
            }
        }
    }
    let names =
        |name: &str| settings.iter().any(|(key, value)| !value.is_null() && crate::settings::find(key).is_some_and(|row| row.name == name));
    if !names("prompt") && !names("recreate") {
        problems.push(SettingProblem::new("prompt", "is missing; say what to generate"));
    }
    if names("style") && !names("styles-file") && server.studio.base().template.styles_file.is_none() {
        problems.push(SettingProblem::new("style", "the server has no styles; start it with --styles-file"));
    }
    match settings::draft(server.studio.base(), &given, names) {
        Ok(draft) if problems.is_empty() => return Ok(draft),
        Ok(_) => {}
        Err(more) => problems.extend(more),
    }
    Err(ApiError::problems(problems))
}

/// Attempts to find out what is wrong with a draft; each opens its files again.
const MOST_ATTEMPTS: usize = 16;

/// Resolves a draft, or says all that is wrong with it: what is wrong by the model or by what else is said is found one by one, each time
/// without what was found before.
fn resolved(server: &Server, draft: Draft) -> Result<ResolvedJob, ApiError> {
    let uploads = &server.uploads;
    let resolve = |draft: Draft| match server.studio.resolve(draft, &|path| uploads.is_permitted(path)) {
        Ok(job) => match server.options.limits.excess(&job) {
            none if none.is_empty() => Ok(job),
            excess => Err(ApiError::problems(excess.into_iter().map(|(name, what)| SettingProblem::new(name, what)).collect())),
        },
        Err(error) => Err(ApiError::from(error)),
    };
    let mut all = match resolve(draft.clone()) {
        Ok(job) => return Ok(job),
        Err(error) => error,
    };
    let (mut left, mut named) = (draft, all.problems.clone());
    for _ in 0..MOST_ATTEMPTS {
        let mut is_less = false;
        for problem in &named {
            is_less |= without(&mut left, &problem.path);
        }
        // What was not said cannot be left out: it is wrong because of what is left.
        if !is_less {
            break;
        }
        let Err(error) = resolve(left.clone()) else { break };
        named = error.problems;
        // A problem of what is missing now is none of the request's.
        named.retain(|problem| !all.problems.iter().any(|known| known.path == problem.path) && !said_rows(&left, &problem.path).is_empty());
        all.problems.extend(named.iter().cloned());
    }
    if !all.problems.is_empty() {
        all = ApiError { status: all.status, ..ApiError::problems(all.problems) };
    }
    // Where the server keeps what was sent says nothing to who sent it.
    let folder = format!("{}/", server.options.folder.join("uploads").display());
    all.message = all.message.replace(&folder, "");
    all.problems.iter_mut().for_each(|problem| problem.what = problem.what.replace(&folder, ""));
    Err(all)
}

/// The rows of a problem's setting that a draft says; both sides are one setting to those who write them as one.
fn said_rows(draft: &Draft, name: &str) -> Vec<&'static Setting> {
    let names = if name == "size" { ["width", "height"].as_slice() } else { std::slice::from_ref(&name) };
    let rows = names.iter().filter_map(|name| crate::settings::find(name));
    rows.filter(|row| row.name != "prompt" && !(row.access.given)(draft).is_empty()).collect()
}

/// Takes a setting out of a draft, and those that make no sense without it; whether it was there.
fn without(draft: &mut Draft, name: &str) -> bool {
    let rows = said_rows(draft, name);
    for row in &rows {
        let needing = crate::settings::table().iter().filter(|other| other.requires == Some(row.name));
        for row in needing.chain([*row]) {
            let _ = (row.access.read)(draft, &[]);
        }
    }
    !rows.is_empty()
}

fn enqueue(server: &Server, new: NewJob) -> Result<(Arc<str>, usize), ApiError> {
    let uploads: &UploadFolder = &server.uploads;
    let mut desk = FileDesk::new(uploads, new.parts);
    let mut draft = draft_of(server, &new.settings, &mut desk)?;
    // Drawn now and written down, so that a server that was killed makes the same images.
    if !matches!(draft.seed, Some(Seed::Is(_))) {
        draft.seed = Some(Seed::Is(u64::from(rand::random::<u32>())));
    }
    if draft.sampling.variation_strength.is_some() && !matches!(draft.sampling.variation_seed, Some(Seed::Is(_))) {
        draft.sampling.variation_seed = Some(Seed::Is(u64::from(rand::random::<u32>())));
    }
    let (shown, written) = (settings::shown(&draft), settings::written(&draft));
    let said: usize = written.values().filter_map(Json::as_array).flatten().filter_map(Json::as_str).map(str::len).sum();
    if said > LONGEST_SETTINGS {
        let what = format!("says {} KiB, files apart; a job says at most {}", said >> 10, LONGEST_SETTINGS >> 10);
        return Err(ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, format!("the job {what}")));
    }
    let resolved = resolved(server, draft)?;
    let job = ServedJob {
        id: new.id.unwrap_or_else(ServedJob::new_id),
        origin: new.origin.to_owned(),
        created: now(),
        started: None,
        ended: None,
        status: JobStatus::Queued,
        settings: shown,
        written,
        note: new.note,
        images: Vec::new(),
        bytes: 0,
        remarks: new.remarks,
        model: 0,
        generator: None,
        uploads: desk.uploads,
        onlookers: Arc::new(Onlookers::default()),
        preview: None,
        previews: 0,
        changed: watch::Sender::new(0),
    };
    Ok(server.queue.submit(job, resolved, new.front)?)
}

/// Cancels its job when it is dropped: whoever waited for it has gone.
pub(super) struct WhileAsked {
    server: Arc<Server>,
    id: Arc<str>,
    stays: bool,
}

impl WhileAsked {
    pub(super) fn new(server: &Arc<Server>, id: &Arc<str>, stays: bool) -> Self {
        Self { server: server.clone(), id: id.clone(), stays }
    }
}

impl Drop for WhileAsked {
    fn drop(&mut self) {
        if !self.stays {
            self.server.queue.cancel(&self.id);
        }
    }
}

/// Wants previews for as long as it lives.
pub(super) struct Onlooking(Arc<Onlookers>);

impl Onlooking {
    pub(super) fn at(server: &Server, id: &str) -> Option<Self> {
        let onlookers = server.queue.with(id, |job, _| job.onlookers.clone())?;
        onlookers.streams.fetch_add(1, Ordering::Relaxed);
        Some(Self(onlookers))
    }
}

impl Drop for Onlooking {
    fn drop(&mut self) {
        self.0.streams.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Waits until a job has ended.
pub(super) async fn wait(server: &Arc<Server>, id: &str) -> Result<(), ApiError> {
    let mut changed = server.queue.with(id, |job, _| job.changed.subscribe()).ok_or_else(ApiError::no_job)?;
    loop {
        let ended = server.queue.with(id, |job, _| job.status.has_ended()).ok_or_else(ApiError::no_job)?;
        if ended {
            return Ok(());
        }
        if server.queue.is_stopping() {
            return Err(ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "the server is stopping; the job goes on with its next start"));
        }
        if changed.changed().await.is_err() {
            return Err(ApiError::no_job());
        }
    }
}
