//! Images that come and go: uploads, and what was made.

use super::ComfyError;
use crate::server::Server;
use crate::server::answer::{ApiError, bytes, ok};
use crate::server::files::FileDesk;
use crate::server::image_format::{SentFormat, encode, kept_image};
use crate::server::job::ServedJob;
use crate::server::submit::{FormParts, form, is_form};
use ::image::{ImageFormat, Rgba, RgbaImage};
use axum::extract::{Query, Request, State};
use axum::http::StatusCode;
use axum::response::Response;
use serde_json::{Value as Json, json};
use std::collections::HashMap;
use std::io::Cursor;
use std::sync::Arc;

/// The quality of an image whose format alone is said.
const QUALITY: u8 = 90;

/// `name.png [output]` names a folder with the image.
fn annotated(name: &str) -> (&str, Option<&str>) {
    let found = name.strip_suffix(']').and_then(|name| name.rsplit_once(" ["));
    found.filter(|(_, kind)| ["input", "output", "temp"].contains(kind)).map_or((name, None), |(name, kind)| (name, Some(kind)))
}

/// The job's image that a file's name means, with its text.
fn made(server: &Server, name: &str) -> Option<(std::path::PathBuf, String)> {
    let (id, at) = name.strip_suffix(".png")?.rsplit_once('-')?;
    let at: usize = at.parse().ok()?;
    let known =
        |job: &ServedJob, _| job.done().any(|done| done == at).then(|| job.images.get(at).map(|image| image.infotext.clone())).flatten();
    let text = server.queue.with(id, known).flatten()?;
    Some((ServedJob::image_path(server.queue.folder(), id, at), text))
}

/// The bytes of an image that a graph names: one that was sent, one that was made, or one of an allowed folder.
pub(super) fn named(server: &Server, desk: &FileDesk<'_>, name: &str) -> Result<Vec<u8>, String> {
    let (name, kind) = annotated(name);
    if matches!(kind, Some("output" | "temp")) {
        let (path, _) = made(server, name).ok_or("there is no such image")?;
        return std::fs::read(path).map_err(|_| "is not there any more".to_owned());
    }
    server.comfyui.inputs.read(name).or_else(|why| match desk.allowed(name) {
        Ok(path) => crate::disk::read_bounded(path.as_ref(), 256 << 20).map_err(|error| error.to_string()),
        Err(_) => Err(why),
    })
}

pub(super) async fn view(State(server): State<Arc<Server>>, Query(query): Query<HashMap<String, String>>) -> Result<Response, ComfyError> {
    let filename = query.get("filename").ok_or_else(|| ApiError::bad("filename: give the image's name"))?;
    let (name, kind) = annotated(filename);
    let (name, kind) = (name.to_owned(), kind.or(query.get("type").map(String::as_str)).unwrap_or("output").to_owned());
    // `webp;90`
    let preview = query.get("preview").map(|text| {
        let (format, quality) = text.split_once(';').unwrap_or((text, ""));
        (
            SentFormat::from_name(format).filter(|format| *format != SentFormat::Png).unwrap_or(SentFormat::WebP),
            quality.parse().unwrap_or(QUALITY),
        )
    });
    let work = tokio::task::spawn_blocking(move || -> Result<Response, ApiError> {
        let none = || ApiError::new(StatusCode::NOT_FOUND, "there is no such image");
        let (format, quality) = preview.unwrap_or((SentFormat::Png, QUALITY));
        match kind.as_str() {
            "output" | "temp" => {
                let (path, text) = made(&server, &name).ok_or_else(none)?;
                Ok(bytes(format.mime(), kept_image(&path, &text, format, quality).map_err(|_| none())?))
            }
            "input" => {
                let sent = server.comfyui.inputs.read(&name).map_err(|_| none())?;
                if preview.is_some() {
                    let decoded = crate::image::decode(&sent).map_err(|_| none())?;
                    return Ok(bytes(format.mime(), encode(&decoded.rgb, "", format, quality)?));
                }
                // What is sent back is an image by its content, whatever it is called.
                let kind = ::image::guess_format(&sent).map_or("application/octet-stream", |format| format.to_mime_type());
                Ok(bytes(kind, sent))
            }
            _ => Err(ApiError::bad("type: there are output, temp and input")),
        }
    });
    Ok(work.await.map_err(|_| ApiError::bad("the image cannot be read"))??)
}

/// What an upload says beside its image.
struct ImageUpload {
    name: String,
    bytes: Vec<u8>,
    overwrite: bool,
    reference: Option<String>,
}

async fn upload(request: Request) -> Result<ImageUpload, ApiError> {
    if !is_form(&request) {
        return Err(ApiError::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "send a form with the file image: multipart/form-data"));
    }
    let FormParts { texts, files, names } = form(request).await?;
    let text = |field: &str| texts.iter().find(|(name, _)| name == field).map(|(_, text)| text.as_str());
    if text("type").is_some_and(|kind| !kind.is_empty() && kind != "input") {
        return Err(ApiError::bad("type: images are sent to input alone"));
    }
    if text("subfolder").is_some_and(|folder| !folder.is_empty()) {
        return Err(ApiError::bad("subfolder: there are no folders here; leave it out"));
    }
    let overwrite = matches!(text("overwrite"), Some("true" | "1"));
    let reference = text("original_ref").map(str::to_owned);
    let found = files.into_iter().zip(names).find(|((field, _), _)| field == "image");
    let ((_, bytes), name) = found.ok_or_else(|| ApiError::bad("image: send the image as a file of the form"))?;
    Ok(ImageUpload { name, bytes, overwrite, reference })
}

fn kept(server: &Server, name: &str, overwrite: bool, bytes: &[u8]) -> Result<Response, ApiError> {
    let name = server.comfyui.inputs.keep(name, overwrite, bytes).map_err(|what| ApiError::bad(format!("image: {what}")))?;
    Ok(ok(&json!({ "name": name, "subfolder": "", "type": "input" })))
}

pub(super) async fn upload_image(State(server): State<Arc<Server>>, request: Request) -> Result<Response, ComfyError> {
    let ImageUpload { name, bytes, overwrite, .. } = upload(request).await?;
    let work = tokio::task::spawn_blocking(move || kept(&server, &name, overwrite, &bytes));
    Ok(work.await.map_err(|_| ApiError::bad("the image cannot be kept"))??)
}

pub(super) async fn upload_mask(State(server): State<Arc<Server>>, request: Request) -> Result<Response, ComfyError> {
    let ImageUpload { name, bytes, overwrite, reference } = upload(request).await?;
    let reference: Json = reference.and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default();
    let original = reference["filename"].as_str().ok_or_else(|| ApiError::bad("original_ref: give {\"filename\": …} of the image"))?;
    let kind = reference["type"].as_str().unwrap_or("output");
    let original = if annotated(original).1.is_some() { original.to_owned() } else { format!("{original} [{kind}]") };
    let work = tokio::task::spawn_blocking(move || -> Result<Response, ApiError> {
        let desk = FileDesk::new(&server.uploads, HashMap::new());
        let wrong = |what: String| ApiError::bad(format!("original_ref: {what}"));
        let original = crate::image::decode(&named(&server, &desk, &original).map_err(wrong)?).map_err(|error| wrong(error.to_string()))?;
        let mask = crate::image::decode(&bytes).map_err(|error| ApiError::bad(format!("image: {error}")))?;
        let (width, height) = original.rgb.dimensions();
        if mask.rgb.dimensions() != (width, height) {
            return Err(ApiError::bad("image: the mask has another size than the image"));
        }
        let opacity = |x: u32, y: u32| mask.alpha.as_ref().map_or(255, |alpha| alpha.get_pixel(x, y).0[0]);
        let joined = RgbaImage::from_fn(width, height, |x, y| {
            let [red, green, blue] = original.rgb.get_pixel(x, y).0;
            Rgba([red, green, blue, opacity(x, y)])
        });
        let mut png = Cursor::new(Vec::new());
        joined.write_to(&mut png, ImageFormat::Png).map_err(|error| ApiError::bad(format!("image: {error}")))?;
        kept(&server, &name, overwrite, png.get_ref())
    });
    Ok(work.await.map_err(|_| ApiError::bad("the mask cannot be kept"))??)
}
