//! The native API: jobs whose settings are those of the table, by their names.

use super::Server;
use super::answer::{ApiError, bytes, json_response, ok};
use super::image_format::{SentFormat, encode, kept_image};
use super::job::{JobStatus, ServedJob};
use super::routes::{GivenBody, QueryKind, ServerRoute, TakenBody};
use super::settings::refusal;
use super::studio::Nameable;
use super::submit::{FormParts, NewJob, form, is_form, json_body, submit};
use crate::settings::{ValueKind, table};
use axum::extract::{Path, Query, Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post};
use serde_json::{Map, Value as Json, json};
use std::collections::HashMap;
use std::io::Write;
use std::sync::Arc;

/// Jobs of one list.
const MOST_LISTED: usize = 1000;
/// The quality of a JPEG that nobody asked to be better or smaller.
pub(super) const JPEG_QUALITY: u8 = 92;

pub(super) const ROUTES: &[ServerRoute] = &[
    ServerRoute::post("/v1/jobs", "Puts a job into the queue", || post(create))
        .takes(TakenBody::JsonOrForm("Settings", "SettingsForm"))
        .gives(&[(202, GivenBody::Json("AcceptedJob"))])
        .fails(&[422, 429, 503]),
    ServerRoute::get("/v1/jobs", "The jobs, the newest first", || get(list))
        .query(&[
            ("state", QueryKind::Words(&["queued", "running", "done", "failed", "cancelled"]), "Jobs in this state alone"),
            ("limit", QueryKind::Whole(0, MOST_LISTED as u64), "How many at most; 100 where it is not said"),
            ("before", QueryKind::Text, "Jobs older than the one of this id"),
        ])
        .gives(&[(200, GivenBody::Json("JobList"))])
        .fails(&[400]),
    ServerRoute::get("/v1/jobs/{id}", "State, progress and images of a job", || get(show))
        .gives(&[(200, GivenBody::Json("Job"))])
        .fails(&[404]),
    ServerRoute::delete("/v1/jobs/{id}", "Cancels a job at its next step; what is done of it stays", || delete(cancel))
        .query(&[("forget", QueryKind::Switch, "Forgets the job, where it has ended")])
        .gives(&[(200, GivenBody::Json("CancelledJob"))])
        .fails(&[404]),
    ServerRoute::get("/v1/jobs/{id}/preview", "What is forming; nothing where there is nothing to see yet", || get(preview))
        .gives(&[(200, GivenBody::Image(&["image/jpeg"])), (204, GivenBody::Nothing)])
        .fails(&[404]),
    ServerRoute::get("/v1/jobs/{id}/images/{image}", "An image with its metadata; its number may have an ending: 0.jpeg", || get(image))
        .query(&[
            ("format", QueryKind::Words(&["png", "jpeg", "webp"]), "How it is sent; PNG where nothing says it"),
            ("quality", QueryKind::Whole(1, 100), "Of a JPEG"),
        ])
        .gives(&[(200, GivenBody::Image(&["image/png", "image/jpeg", "image/webp"]))])
        .fails(&[400, 404]),
    ServerRoute::get("/v1/settings", "What can be said of an image, what the server was told, and its limits", || get(settings))
        .gives(&[(200, GivenBody::Json("SettingList"))]),
    ServerRoute::get("/v1/files", "Which models and networks can be named", || get(files)).gives(&[(200, GivenBody::Json("NamedFiles"))]),
    ServerRoute::post("/v1/inspect", "What an image's metadata says, as settings", || post(inspect))
        .takes(TakenBody::JsonOrForm("EncodedImage", "ImageForm"))
        .gives(&[(200, GivenBody::Json("InspectedImage"))]),
];

async fn create(State(server): State<Arc<Server>>, request: Request) -> Result<Response, ApiError> {
    let mut new = NewJob::of("native", Map::new());
    if is_form(&request) {
        let FormParts { texts, files, .. } = form(request).await?;
        for (name, text) in texts {
            match name.as_str() {
                "settings" => match serde_json::from_str(&text) {
                    Ok(Json::Object(settings)) => new.settings.extend(settings),
                    _ => return Err(ApiError::bad("the field \"settings\" is no JSON object")),
                },
                _ => add(&mut new.settings, name, Json::String(text)),
            }
        }
        for (name, bytes) in files {
            // A file in the field of a setting is that setting's; others are named by {"part": …}.
            if crate::settings::find(&name).is_some() && !new.settings.contains_key(&name) {
                new.settings.insert(name.clone(), json!({ "part": name }));
            }
            new.parts.insert(name, bytes);
        }
    } else {
        new.settings = json_body(request).await?;
    }
    let (id, position) = submit(&server, new).await?;
    let url = format!("/v1/jobs/{id}");
    let links = json!({ "self": url, "events": format!("{url}/events"), "ws": format!("{url}/ws"), "preview": format!("{url}/preview") });
    let body = json!({ "id": &*id, "state": "queued", "position": position, "links": links });
    let mut response = json_response(StatusCode::ACCEPTED, &body);
    if let Ok(location) = url.parse() {
        response.headers_mut().insert(axum::http::header::LOCATION, location);
    }
    Ok(response)
}

/// A field that comes again makes a list.
fn add(settings: &mut Map<String, Json>, name: String, value: Json) {
    match settings.get_mut(&name) {
        Some(Json::Array(all)) => all.push(value),
        Some(first) => *first = Json::Array(vec![first.take(), value]),
        None => drop(settings.insert(name, value)),
    }
}

async fn list(State(server): State<Arc<Server>>, Query(query): Query<HashMap<String, String>>) -> Result<Response, ApiError> {
    let state = match query.get("state").map(|name| JobStatus::from_name(name).ok_or(name)) {
        None => None,
        Some(Ok(state)) => Some(state),
        Some(Err(name)) => {
            return Err(ApiError::bad(format!("state {name:?}: there are queued, running, done, failed and cancelled")));
        }
    };
    let limit = match query.get("limit").map(|text| text.parse::<usize>()) {
        None => 100,
        Some(Ok(limit)) => limit.min(MOST_LISTED),
        Some(Err(_)) => return Err(ApiError::bad("limit is a whole number")),
    };
    let before = query.get("before");
    let mut left = limit;
    let jobs = server.queue.all(|job, position| {
        let fits = state.is_none_or(|state| job.status == state) && before.is_none_or(|before| &*job.id < before.as_str());
        if !fits || left == 0 {
            return None;
        }
        left -= 1;
        Some(job.json(position))
    });
    Ok(ok(&json!({ "jobs": jobs })))
}

async fn show(State(server): State<Arc<Server>>, Path(id): Path<String>) -> Result<Response, ApiError> {
    let job = server.queue.with(&id, ServedJob::json).ok_or_else(ApiError::no_job)?;
    Ok(ok(&job))
}

async fn cancel(
    State(server): State<Arc<Server>>,
    Path(id): Path<String>,
    Query(query): Query<HashMap<String, String>>,
) -> Result<Response, ApiError> {
    let status = server.queue.cancel(&id).ok_or_else(ApiError::no_job)?;
    let forgotten = query.get("forget").is_some_and(|yes| yes == "true") && server.queue.forget(&id);
    Ok(ok(&json!({ "id": id, "state": status.name(), "forgotten": forgotten })))
}

async fn preview(State(server): State<Arc<Server>>, Path(id): Path<String>) -> Result<Response, ApiError> {
    let forming = server.queue.with(&id, |job, _| {
        job.onlookers.ask();
        job.preview.clone()
    });
    match forming.ok_or_else(ApiError::no_job)? {
        Some((_, image)) => Ok(bytes("image/jpeg", encode(&image, "", SentFormat::Jpeg, 80)?)),
        None => Ok(StatusCode::NO_CONTENT.into_response()),
    }
}

async fn image(
    State(server): State<Arc<Server>>,
    Path((id, number)): Path<(String, String)>,
    Query(query): Query<HashMap<String, String>>,
) -> Result<Response, ApiError> {
    let none = || ApiError::new(StatusCode::NOT_FOUND, "there is no such image, or it is not there yet");
    let (number, ending) = number.split_once('.').unwrap_or((&number, ""));
    let number: usize = number.parse().map_err(|_| none())?;
    let name = query.get("format").map_or(ending, String::as_str);
    let format = match name {
        "" => SentFormat::Png,
        name => SentFormat::from_name(name).ok_or_else(|| ApiError::bad(format!("format {name:?}: there are png, jpeg and webp")))?,
    };
    let quality = match query.get("quality").map(|text| text.parse::<u8>()) {
        None => JPEG_QUALITY,
        Some(Ok(quality @ 1..=100)) => quality,
        Some(_) => return Err(ApiError::bad("quality is a whole number from 1 to 100")),
    };
    let there = server.queue.with(&id, |job, _| {
        let is_there = job.done().any(|done| done == number);
        is_there.then(|| job.images.get(number).map(|image| image.infotext.clone())).flatten()
    });
    let infotext = there.flatten().ok_or_else(none)?;
    let path = ServedJob::image_path(server.queue.folder(), &id, number);
    let work = tokio::task::spawn_blocking(move || kept_image(&path, &infotext, format, quality));
    let sent = work.await.map_err(|_| none())?;
    let mut response = bytes(format.mime(), sent.map_err(|_| none())?);
    // The image of a job never changes.
    response
        .headers_mut()
        .insert(axum::http::header::CACHE_CONTROL, axum::http::HeaderValue::from_static("private, max-age=31536000, immutable"));
    Ok(response)
}

async fn settings(State(server): State<Arc<Server>>) -> Response {
    let rows = table().iter().filter(|row| refusal(row).is_none());
    let rows: Vec<Json> = rows
        .map(|row| {
            let kind = match row.kind {
                ValueKind::Switch | ValueKind::Count => "switch",
                ValueKind::Whole => "integer",
                ValueKind::Number => "number",
                ValueKind::Path | ValueKind::File => "file",
                ValueKind::Text => "text",
                ValueKind::Word => "word",
            };
            json!({
                "name": row.name, "aliases": row.aliases, "help": row.help, "kind": kind, "heading": row.heading.title(),
                "default": row.default, "range": row.range, "words": (row.words)(), "many": row.many, "value": row.value,
                "conflicts": row.conflicts, "requires": row.requires,
            })
        })
        .collect();
    let base = super::settings::shown(server.studio.base());
    let limits = server.options.limits;
    let limits = json!({
        "body": limits.body, "pixels": limits.pixels, "steps": limits.steps, "images": limits.images, "queue": limits.queue,
    });
    ok(&json!({ "settings": rows, "defaults": base, "limits": limits }))
}

/// What can be named, by kind.
async fn files(State(server): State<Arc<Server>>) -> Result<Response, ApiError> {
    let work = tokio::task::spawn_blocking(move || {
        let names = |kind| server.studio.list(kind).into_iter().map(|file| file.name).collect::<Vec<_>>();
        json!({
            "models": names(Nameable::Model), "model": server.studio.default_model(), "loras": names(Nameable::Lora),
            "embeddings": names(Nameable::Embedding), "vaes": names(Nameable::Vae), "controls": names(Nameable::ControlNet),
            "upscalers": names(Nameable::Upscaler),
        })
    });
    let listed = work.await.map_err(|_| ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "the folders cannot be listed"))?;
    Ok(ok(&listed))
}

/// What an image says of its making, as settings.
async fn inspect(State(server): State<Arc<Server>>, request: Request) -> Result<Response, ApiError> {
    let image = if is_form(&request) {
        let files = form(request).await?.files;
        files.into_iter().next().map(|(_, bytes)| bytes).ok_or_else(|| ApiError::bad("send an image as a file of the form"))?
    } else {
        let body = json_body(request).await?;
        let image = body.get("image").and_then(Json::as_str).ok_or_else(|| ApiError::bad("give the image as {\"image\": BASE64}"))?;
        super::files::from_base64(image).map_err(|what| ApiError::bad(format!("image {what}")))?
    };
    let work = tokio::task::spawn_blocking(move || inspected(&server, &image));
    work.await.map_err(|_| ApiError::bad("the image cannot be read"))?.map(|found| ok(&found))
}

/// Settings of an image's metadata, and what stands in it.
pub(super) fn inspected(server: &Server, image: &[u8]) -> Result<Json, ApiError> {
    let mut file = tempfile::NamedTempFile::new_in(server.queue.folder()).map_err(crate::Error::io(server.queue.folder()))?;
    file.write_all(image).map_err(crate::Error::io(server.queue.folder()))?;
    let read = crate::metadata::read(file.path()).map_err(|_| ApiError::bad("the image's metadata cannot be read"))?;
    let read = read.ok_or_else(|| ApiError::bad("is no PNG, JPEG or WebP"))?;
    let texts: Map<String, Json> = read.texts.iter().map(|text| (text.keyword.clone(), text.text.clone().into())).collect();
    let recipe = read.recipe.as_ref().map(crate::metadata::Recipe::json);
    let (settings, notes) = match read.recipe.is_some().then(|| server.studio.settings_of(file.path())) {
        Some(Ok((settings, notes))) => (settings, notes),
        Some(Err(error)) => (Vec::new(), vec![super::studio::said(&error).1]),
        None => (Vec::new(), vec!["the image says nothing of its making that is understood".to_owned()]),
    };
    let settings: Map<String, Json> = settings
        .into_iter()
        .filter(|(name, _)| crate::settings::find(name).is_some_and(|row| refusal(row).is_none()))
        .map(|(name, mut values)| {
            let is_many = crate::settings::find(name).is_some_and(|row| row.many);
            let value = if values.len() == 1 && !is_many { values.remove(0).into() } else { values.into() };
            (name.to_owned(), value)
        })
        .collect();
    Ok(json!({ "settings": settings, "notes": notes, "recipe": recipe, "texts": texts }))
}
