//! OpenAI's images API: generations, edits and models, streamed where that is asked for.
//!
//! Beside the fields of that API any setting of the table may stand in a request, as clients send further fields (`extra_body`). What is
//! neither is an error. A model of OpenAI's own name is the server's default.
//!
//! # Source
//! openai-openapi's `CreateImageRequest`, `CreateImageEditRequest` and `ImageGenStreamEvent`; the PyPI client `openai` sends them.

use super::Server;
use super::answer::{ApiError, ok};
use super::files::{from_base64, to_base64};
use super::image_format::{SentFormat, encode, kept_image};
use super::job::{JobStatus, ServedJob, now};
use super::routes::{GivenBody, ServerRoute, TakenBody};
use super::settings::SettingProblem;
use super::studio::Nameable;
use super::submit::{NewJob, Onlooking, WhileAsked, form, is_form, json_body, submit, wait};
use ::image::GrayImage;
use axum::extract::{Path, Request, State};
use axum::http::{StatusCode, header};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use futures_util::stream::unfold;
use serde_json::{Map, Value as Json, json};
use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// The most images of a request, there as here.
const MOST_IMAGES: u64 = 10;
/// The most looks at what is forming.
const MOST_PARTIAL: u64 = 3;

/// An error in the form of this API.
struct OpenAiError(ApiError);

impl From<ApiError> for OpenAiError {
    fn from(error: ApiError) -> Self {
        Self(error)
    }
}

impl IntoResponse for OpenAiError {
    fn into_response(self) -> Response {
        let mut error = self.0;
        // What is wrong with a request is 400 there.
        if error.status == StatusCode::UNPROCESSABLE_ENTITY {
            error.status = StatusCode::BAD_REQUEST;
        }
        let kind = match error.status {
            StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
            status if status.is_server_error() => "server_error",
            _ => "invalid_request_error",
        };
        let param = error.problems.first().map(|problem| problem.path.replace('-', "_"));
        error.with_body(&json!({ "error": { "message": error.message, "type": kind, "param": param, "code": null } }))
    }
}

pub(super) const ROUTES: &[ServerRoute] = &[
    ServerRoute::post("/v1/images/generations", "Makes images of a prompt", || post(generations))
        .takes(TakenBody::Json("GenerationRequest"))
        .gives(&[(200, GivenBody::JsonOrEvents("GeneratedImages"))])
        .fails(&[404, 409, 429, 503]),
    ServerRoute::post("/v1/images/edits", "Makes an image of another one; where the mask is transparent it is made anew", || post(edits))
        .takes(TakenBody::JsonOrForm("EditRequest", "EditForm"))
        .gives(&[(200, GivenBody::JsonOrEvents("GeneratedImages"))])
        .fails(&[404, 409, 429, 503]),
    ServerRoute::get("/v1/models", "The models", || get(models)).gives(&[(200, GivenBody::Json("ModelList"))]),
    ServerRoute::get("/v1/models/{*name}", "A model", || get(model)).gives(&[(200, GivenBody::Json("Model"))]).fails(&[404]),
];

/// What of a request is not a setting.
struct ImageRequest {
    settings: Map<String, Json>,
    format: SentFormat,
    quality: u8,
    streams: bool,
    partial: u64,
    by_url: bool,
    /// As it was said, to be said again.
    size: Json,
    remarks: Vec<String>,
}

fn problem(path: &str, what: &str) -> ApiError {
    ApiError::problems(vec![SettingProblem::new(path, what)])
}

impl ImageRequest {
    fn read(mut body: Map<String, Json>) -> Result<Self, ApiError> {
        let mut take = |key: &str| body.remove(key).unwrap_or_default();
        let mut out = Self {
            settings: Map::new(),
            format: SentFormat::Png,
            quality: 100,
            streams: truth("stream", &take("stream"))?,
            partial: whole("partial_images", &take("partial_images"), 0, MOST_PARTIAL)?.unwrap_or(0),
            by_url: false,
            size: take("size"),
            remarks: Vec::new(),
        };
        out.settings.insert("images".into(), whole("n", &take("n"), 1, MOST_IMAGES)?.unwrap_or(1).into());
        match out.size.as_str() {
            None | Some("auto" | "") => {}
            Some(size) => drop(out.settings.insert("size".into(), size.into())),
        }
        match take("model").as_str() {
            None | Some("") => {}
            Some(name) if ["gpt-image", "dall-e", "chatgpt-image"].iter().any(|own| name.starts_with(own)) => {}
            Some(name) => drop(out.settings.insert("model".into(), name.into())),
        }
        if let Some(name) = take("output_format").as_str() {
            out.format = SentFormat::from_name(name).ok_or_else(|| problem("output_format", "there are png, jpeg and webp"))?;
        }
        if let Some(quality) = whole("output_compression", &take("output_compression"), 0, 100)? {
            out.quality = quality.clamp(1, 100) as u8;
            if out.format == SentFormat::WebP {
                out.remarks.push("output_compression: WebP is written without loss here".into());
            }
        }
        match take("response_format").as_str() {
            None | Some("b64_json") => {}
            Some("url") => out.by_url = true,
            Some(_) => return Err(problem("response_format", "there are b64_json and url")),
        }
        match take("background").as_str() {
            None | Some("auto" | "opaque") => {}
            Some(_) => return Err(problem("background", "images are opaque here; leave it out")),
        }
        match take("quality").as_str() {
            None | Some("auto" | "standard" | "high" | "hd") => {}
            Some(quality) => out.remarks.push(format!("quality {quality}: says nothing here; `steps` does")),
        }
        for key in ["style", "moderation", "input_fidelity"] {
            match take(key) {
                Json::Null => {}
                value if value == "auto" || value == "vivid" => {}
                _ => out.remarks.push(format!("{key}: says nothing here")),
            }
        }
        for key in ["user", "safety_identifier"] {
            take(key);
        }
        for (key, value) in body {
            out.settings.insert(key, value);
        }
        Ok(out)
    }
}

/// A field of a form is text.
fn truth(path: &str, value: &Json) -> Result<bool, ApiError> {
    match value {
        Json::Null => Ok(false),
        Json::Bool(is) => Ok(*is),
        Json::String(text) if text.eq_ignore_ascii_case("true") => Ok(true),
        Json::String(text) if text.eq_ignore_ascii_case("false") || text.is_empty() => Ok(false),
        _ => Err(problem(path, "give true or false")),
    }
}

fn whole(path: &str, value: &Json, least: u64, most: u64) -> Result<Option<u64>, ApiError> {
    let number = match value {
        Json::Null => return Ok(None),
        Json::String(text) => text.trim().parse().ok(),
        value => value.as_u64(),
    };
    let number = number.filter(|number| (least..=most).contains(number));
    number.map(Some).ok_or_else(|| problem(path, &format!("give a whole number from {least} to {most}")))
}

async fn generations(State(server): State<Arc<Server>>, request: Request) -> Result<Response, OpenAiError> {
    let host = host_of(&request);
    let read = ImageRequest::read(json_body(request).await?)?;
    Ok(respond(server, read, NewJob::of("openai", Map::new()), "image_generation", host).await?)
}

async fn edits(State(server): State<Arc<Server>>, request: Request) -> Result<Response, OpenAiError> {
    let host = host_of(&request);
    let mut body = Map::new();
    let (mut images, mut mask) = (Vec::new(), None);
    if is_form(&request) {
        let parts = form(request).await?;
        for (name, text) in parts.texts {
            body.insert(name.trim_end_matches("[]").to_owned(), text.into());
        }
        for (name, bytes) in parts.files {
            match name.as_str() {
                "image" | "image[]" => images.push(bytes),
                "mask" => mask = Some(bytes),
                _ => return Err(problem(&name, "there is no such file; give image and mask").into()),
            }
        }
    } else {
        body = json_body(request).await?;
        let data = |path: &str, value: &Json| {
            let text = value.get("image_url").and_then(Json::as_str).or_else(|| value.as_str());
            let text = text.filter(|text| text.starts_with("data:")).ok_or_else(|| problem(path, "give a data URL as image_url"))?;
            from_base64(text).map_err(|what| problem(path, &what))
        };
        for image in body.remove("images").unwrap_or_default().as_array().into_iter().flatten() {
            images.push(data("images", image)?);
        }
        if let Some(given) = body.remove("mask").filter(|given| !given.is_null()) {
            mask = Some(data("mask", &given)?);
        }
    }
    let mut read = ImageRequest::read(body)?;
    let mut new = NewJob::of("openai", Map::new());
    let mut images = images.into_iter();
    let first = images.next().ok_or_else(|| problem("image", "give the image that is to be edited"))?;
    if images.next().is_some() {
        return Err(problem("image", "give one image; several are not put together here").into());
    }
    if let Some(mask) = mask {
        let work = tokio::task::spawn_blocking(move || where_transparent(&mask));
        let drawn = work.await.map_err(|_| problem("mask", "cannot be read"))?.map_err(|what| problem("mask", &what))?;
        new.parts.insert("mask".into(), drawn);
        read.settings.insert("mask".into(), json!({ "part": "mask" }));
    }
    new.parts.insert("image".into(), first);
    read.settings.insert("init-image".into(), json!({ "part": "image" }));
    Ok(respond(server, read, new, "image_edit", host).await?)
}

/// There, transparent is what is made anew; here white is.
fn where_transparent(mask: &[u8]) -> Result<Vec<u8>, String> {
    let decoded = crate::image::decode(mask).map_err(|error| error.to_string())?;
    let alpha = decoded.alpha.as_ref().ok_or("has no transparent part, which is what is made anew")?;
    let drawn = GrayImage::from_fn(alpha.width(), alpha.height(), |x, y| ::image::Luma([255 - alpha.get_pixel(x, y).0[0]]));
    let mut png = std::io::Cursor::new(Vec::new());
    drawn.write_to(&mut png, ::image::ImageFormat::Png).map_err(|error| error.to_string())?;
    Ok(png.into_inner())
}

fn host_of(request: &Request) -> String {
    request.headers().get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default().to_owned()
}

async fn respond(server: Arc<Server>, read: ImageRequest, mut new: NewJob, kind: &'static str, host: String) -> Result<Response, ApiError> {
    new.settings = read.settings.clone();
    let (id, _) = submit(&server, new).await?;
    let asked = WhileAsked::new(&server, &id, false);
    if read.streams {
        return Ok(streamed(server, id, asked, read, kind));
    }
    wait(&server, &id).await?;
    drop(asked);
    let work = tokio::task::spawn_blocking(move || answer(&server, &id, &read, &host));
    Ok(ok(&work.await.map_err(|_| ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "the answer cannot be made"))??))
}

/// What every answer says of its images.
fn described(read: &ImageRequest, (width, height): (usize, usize)) -> Map<String, Json> {
    let usage = json!({
        "total_tokens": 0, "input_tokens": 0, "output_tokens": 0, "input_tokens_details": { "text_tokens": 0, "image_tokens": 0 },
    });
    let all = json!({
        "background": "opaque", "output_format": read.format.name(), "quality": "high", "size": format!("{width}x{height}"), "usage": usage,
    });
    all.as_object().cloned().unwrap_or_default()
}

fn answer(server: &Server, id: &str, read: &ImageRequest, host: &str) -> Result<Json, ApiError> {
    let seen = server.queue.with(id, |job, _| {
        let images: Vec<(usize, String)> = job.done().filter_map(|at| Some((at, job.images.get(at)?.infotext.clone()))).collect();
        let size = job.images.first().map(|image| (image.width, image.height)).unwrap_or_default();
        (job.status, job.reason().map(str::to_owned), images, size, job.remarks.clone())
    });
    let (status, reason, images, size, mut remarks) = seen.ok_or_else(ApiError::no_job)?;
    if status == JobStatus::Failed {
        return Err(ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, reason.unwrap_or_default()));
    }
    if status == JobStatus::Cancelled {
        return Err(ApiError::new(StatusCode::CONFLICT, "the job was cancelled"));
    }
    let mut data = Vec::new();
    for (at, infotext) in images {
        data.push(if read.by_url {
            json!({ "url": format!("http://{host}/v1/jobs/{id}/images/{at}?format={}", read.format.name()) })
        } else {
            let path = ServedJob::image_path(server.queue.folder(), id, at);
            json!({ "b64_json": to_base64(&kept_image(&path, &infotext, read.format, read.quality)?) })
        });
    }
    remarks.extend(read.remarks.iter().cloned());
    let mut body = described(read, size);
    body.insert("created".into(), (now() as u64).into());
    body.insert("data".into(), data.into());
    if !remarks.is_empty() {
        body.insert("remarks".into(), remarks.into());
    }
    Ok(body.into())
}

/// A job as a stream of looks at what is forming, and of its images.
struct ImageStream {
    server: Arc<Server>,
    id: Arc<str>,
    changed: watch::Receiver<u64>,
    read: ImageRequest,
    kind: &'static str,
    /// Looks that were sent.
    partial: u64,
    seen: u64,
    /// Images that were sent.
    sent: usize,
    ready: VecDeque<Event>,
    over: bool,
    _onlooking: Option<Onlooking>,
    _asked: WhileAsked,
}

impl ImageStream {
    fn event(&self, name: &str, size: (usize, usize), mut more: Map<String, Json>) -> Event {
        let name = format!("{}.{name}", self.kind);
        let mut body = described(&self.read, size);
        body.append(&mut more);
        body.insert("type".into(), name.clone().into());
        body.insert("created_at".into(), (now() as u64).into());
        Event::default().event(name).data(Json::Object(body).to_string())
    }

    async fn next(&mut self) -> Option<Event> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Some(event);
            }
            if self.over {
                return None;
            }
            self.changed.mark_unchanged();
            self.look().await;
            if !self.ready.is_empty() || self.over {
                continue;
            }
            if self.server.queue.is_stopping() || self.changed.changed().await.is_err() {
                self.over = true;
            }
        }
    }

    async fn look(&mut self) {
        let seen = self.server.queue.with(&self.id, |job, _| {
            let size = job.images.first().map(|image| (image.width, image.height)).unwrap_or_default();
            let done: Vec<(usize, String)> = job.done().filter_map(|at| Some((at, job.images.get(at)?.infotext.clone()))).collect();
            (job.preview.clone(), job.previews, job.fraction(), done, job.status, job.reason().map(str::to_owned), size)
        });
        let Some((preview, previews, fraction, done, status, reason, size)) = seen else {
            self.over = true;
            return;
        };
        // Spread over the steps: the first of three after a quarter of them.
        let due = self.partial < self.read.partial && fraction >= (self.partial + 1) as f64 / (self.read.partial + 1) as f64;
        if let Some((_, image)) = preview.filter(|_| due && previews > self.seen) {
            self.seen = previews;
            if let Ok(bytes) = encode(&image, "", self.read.format, self.read.quality) {
                let more = json!({ "b64_json": to_base64(&bytes), "partial_image_index": self.partial });
                self.partial += 1;
                let event = self.event("partial_image", size, more.as_object().cloned().unwrap_or_default());
                self.ready.push_back(event);
            }
        }
        for (at, infotext) in done.into_iter().skip(self.sent) {
            let path = ServedJob::image_path(self.server.queue.folder(), &self.id, at);
            let (format, quality) = (self.read.format, self.read.quality);
            let bytes = tokio::task::spawn_blocking(move || kept_image(&path, &infotext, format, quality)).await;
            self.sent += 1;
            if let Ok(Ok(bytes)) = bytes {
                let more = json!({ "b64_json": to_base64(&bytes) });
                let event = self.event("completed", size, more.as_object().cloned().unwrap_or_default());
                self.ready.push_back(event);
            }
        }
        if status.has_ended() {
            self.over = true;
            if status != JobStatus::Done {
                let message = reason.unwrap_or_else(|| "the job was cancelled".into());
                let error =
                    json!({ "type": "error", "error": { "message": message, "type": "server_error", "param": null, "code": null } });
                self.ready.push_back(Event::default().event("error").data(error.to_string()));
            }
        }
    }
}

fn streamed(server: Arc<Server>, id: Arc<str>, asked: WhileAsked, read: ImageRequest, kind: &'static str) -> Response {
    let Some(changed) = server.queue.with(&id, |job, _| job.changed.subscribe()) else { return ApiError::no_job().into_response() };
    let onlooking = if read.partial > 0 { Onlooking::at(&server, &id) } else { None };
    let stream = ImageStream {
        server,
        id,
        changed,
        read,
        kind,
        partial: 0,
        seen: 0,
        sent: 0,
        ready: VecDeque::new(),
        over: false,
        _onlooking: onlooking,
        _asked: asked,
    };
    let events = unfold(stream, |mut stream| async move {
        let event = stream.next().await?;
        Some((Ok::<_, Infallible>(event), stream))
    });
    Sse::new(events).keep_alive(KeepAlive::new().interval(Duration::from_secs(15))).into_response()
}

fn as_model(name: &str) -> Json {
    json!({ "id": name, "object": "model", "created": 0, "owned_by": "sd-gen" })
}

async fn listed(server: Arc<Server>) -> Vec<String> {
    let work = tokio::task::spawn_blocking(move || server.studio.list(Nameable::Model).into_iter().map(|model| model.name).collect());
    work.await.unwrap_or_default()
}

async fn models(State(server): State<Arc<Server>>) -> Response {
    let all: Vec<Json> = listed(server).await.iter().map(|name| as_model(name)).collect();
    ok(&json!({ "object": "list", "data": all }))
}

async fn model(State(server): State<Arc<Server>>, Path(name): Path<String>) -> Result<Response, OpenAiError> {
    match listed(server).await.contains(&name) {
        true => Ok(ok(&as_model(&name))),
        false => Err(ApiError::new(StatusCode::NOT_FOUND, format!("there is no model {name:?}")).into()),
    }
}
