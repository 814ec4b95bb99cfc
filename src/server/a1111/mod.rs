//! A1111's API, as far as its clients use it.
//!
//! Images are made by A1111's rules (`like` a1111). What a request asks for and what is not here is named in the answer's `info`.

mod fields;

use super::Server;
use super::answer::{ApiError, ok};
use super::files::{from_base64, to_base64};
use super::image_format::{SentFormat, encode, kept_image};
use super::job::{ImageStatus, JobStatus, ServedJob};
use super::native::inspected;
use super::routes::{GivenBody, QueryKind, ServerRoute, TakenBody};
use super::studio::{Nameable, NameableFile};
use super::submit::{NewJob, WhileAsked, json_body, optional_json_body, submit, wait};
use crate::sampling::{Sampler, SigmaSchedule};
use axum::extract::{Query, Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
pub(super) use fields::PLAIN;
use fields::{TranslatedRequest, option, translate};
use serde_json::{Map, Value as Json, json};
use std::collections::HashMap;
use std::sync::{Arc, PoisonError};

/// An error in the form that A1111's clients show.
struct WebUiError(ApiError);

impl From<ApiError> for WebUiError {
    fn from(error: ApiError) -> Self {
        Self(error)
    }
}

impl IntoResponse for WebUiError {
    fn into_response(self) -> Response {
        let kind = self.0.status.canonical_reason().unwrap_or("error");
        let body = json!({ "error": kind, "detail": self.0.message, "errors": self.0.message, "body": "" });
        self.0.with_body(&body)
    }
}

type WebUiAnswer = Result<Response, WebUiError>;

pub(super) const ROUTES: &[ServerRoute] = &[
    ServerRoute::post("/sdapi/v1/txt2img", "Makes images of a prompt", || post(txt2img))
        .takes(TakenBody::Json("TextToImageRequest"))
        .gives(&[(200, GivenBody::Json("WebUiImages"))])
        .fails(&[404, 422, 429, 503]),
    ServerRoute::post("/sdapi/v1/img2img", "Makes images of an image", || post(img2img))
        .takes(TakenBody::Json("ImageToImageRequest"))
        .gives(&[(200, GivenBody::Json("WebUiImages"))])
        .fails(&[404, 422, 429, 503]),
    ServerRoute::get("/sdapi/v1/progress", "How far the job at work is, and what is forming", || get(progress))
        .query(&[("skip_current_image", QueryKind::Switch, "Leave the image out")])
        .gives(&[(200, GivenBody::Json("WebUiProgress"))]),
    ServerRoute::post("/sdapi/v1/interrupt", "Cancels this API's jobs at work", || post(interrupt)).gives(DONE),
    ServerRoute::post("/sdapi/v1/skip", "Cancels the images at work, so that the next begin", || post(skip)).gives(DONE),
    ServerRoute::get("/sdapi/v1/options", "What requests leave open", || get(options)).gives(DONE),
    ServerRoute::post("/sdapi/v1/options", "Sets what requests leave open", || post(set_options))
        .takes(TakenBody::Json("Anything"))
        .gives(DONE)
        .fails(&[422]),
    ServerRoute::get("/sdapi/v1/sd-models", "The models", || get(models)).gives(LIST),
    ServerRoute::get("/sdapi/v1/sd-vae", "The VAEs", || get(vaes)).gives(LIST),
    ServerRoute::get("/sdapi/v1/samplers", "The samplers", || get(samplers)).gives(LIST),
    ServerRoute::get("/sdapi/v1/schedulers", "The schedules of noise levels", || get(schedulers)).gives(LIST),
    ServerRoute::get("/sdapi/v1/upscalers", "The upscalers", || get(upscalers)).gives(LIST),
    ServerRoute::get("/sdapi/v1/latent-upscale-modes", "How latents are enlarged", || get(latent_modes)).gives(LIST),
    ServerRoute::get("/sdapi/v1/loras", "The LoRAs", || get(loras)).gives(LIST),
    ServerRoute::get("/sdapi/v1/embeddings", "The textual inversions", || get(embeddings)).gives(DONE),
    ServerRoute::post("/sdapi/v1/png-info", "What an image's metadata says", || post(png_info))
        .takes(TakenBody::Json("EncodedImage"))
        .gives(DONE)
        .fails(&[422]),
    ServerRoute::post("/sdapi/v1/extra-single-image", "Enlarges an image", || post(extra))
        .takes(TakenBody::Json("EnlargeRequest"))
        .gives(DONE)
        .fails(&[422, 503]),
    ServerRoute::get("/sdapi/v1/memory", "How much memory is free", || get(memory)).gives(DONE),
    ServerRoute::post("/sdapi/v1/unload-checkpoint", "Unloads the models", || post(unload)).gives(DONE),
    ServerRoute::post("/sdapi/v1/reload-checkpoint", "Nothing: models are loaded when they are used", || post(nothing))
        .takes(TakenBody::OptionalJson("Anything"))
        .gives(DONE),
    ServerRoute::post("/sdapi/v1/refresh-checkpoints", "Nothing: folders are looked into when they are asked for", || post(nothing))
        .takes(TakenBody::OptionalJson("Anything"))
        .gives(DONE),
    ServerRoute::post("/sdapi/v1/refresh-loras", "Nothing: folders are looked into when they are asked for", || post(nothing))
        .takes(TakenBody::OptionalJson("Anything"))
        .gives(DONE),
    ServerRoute::post("/sdapi/v1/refresh-vae", "Nothing: folders are looked into when they are asked for", || post(nothing))
        .takes(TakenBody::OptionalJson("Anything"))
        .gives(DONE),
    ServerRoute::get("/controlnet/model_list", "The ControlNets", || get(control_nets)).gives(DONE),
    ServerRoute::get("/controlnet/module_list", "The preprocessors", || get(control_modules)).gives(DONE),
];

/// An object, or null.
const DONE: &[(u16, GivenBody)] = &[(200, GivenBody::Json("ObjectOrNull"))];
const LIST: &[(u16, GivenBody)] = &[(200, GivenBody::Json("ObjectList"))];

async fn txt2img(State(server): State<Arc<Server>>, request: Request) -> WebUiAnswer {
    generate(server, request, false).await
}

async fn img2img(State(server): State<Arc<Server>>, request: Request) -> WebUiAnswer {
    generate(server, request, true).await
}

async fn generate(server: Arc<Server>, request: Request, from_image: bool) -> WebUiAnswer {
    let body = json_body(request).await?;
    // The images stay out of the answer, which says what was asked for.
    let mut echo = body.clone();
    for key in ["init_images", "mask", "alwayson_scripts"] {
        if echo.contains_key(key) {
            echo.insert(key.into(), Json::Null);
        }
    }
    let work = tokio::task::spawn_blocking(move || translate(body, from_image));
    let translated = work.await.map_err(|_| ApiError::bad("the request cannot be read"))?;
    let TranslatedRequest { mut settings, not_understood, problems, sends_images, saves_images, task } = translated;
    if !problems.is_empty() {
        return Err(ApiError::problems(problems).into());
    }
    for (name, value) in server.chosen.lock().unwrap_or_else(PoisonError::into_inner).iter() {
        settings.entry(name.clone()).or_insert_with(|| value.clone());
    }
    let mut new = NewJob::of("a1111", settings);
    new.note = json!({ "task": task });
    let unknown = || format!("not understood and left out: {}", not_understood.join(", "));
    if !not_understood.is_empty() {
        new.remarks.push(unknown());
    }
    let (id, _) = submit(&server, new).await?;
    let asked = WhileAsked::new(&server, &id, saves_images);
    wait(&server, &id).await?;
    drop(asked);
    let work = tokio::task::spawn_blocking(move || answer(&server, &id, echo, &not_understood, sends_images));
    let answer = work.await.map_err(|_| ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "the answer cannot be made"))?;
    Ok(ok(&answer?))
}

fn answer(server: &Server, id: &str, echo: Map<String, Json>, not_understood: &[String], sends_images: bool) -> Result<Json, ApiError> {
    let ended = server.queue.with(id, |job, _| {
        let images: Vec<(usize, u64, String)> = job
            .images
            .iter()
            .enumerate()
            .filter(|(_, image)| image.status == ImageStatus::Done)
            .map(|(at, image)| (at, image.seed, image.infotext.clone()))
            .collect();
        let first = job.images.first().map(|image| (image.width, image.height, image.steps));
        (job.status, job.reason().map(str::to_owned), images, first, job.remarks.clone(), job.settings.clone())
    });
    let (status, reason, images, first, remarks, settings) = ended.ok_or_else(ApiError::no_job)?;
    if status == JobStatus::Failed && images.is_empty() {
        return Err(ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, reason.unwrap_or_default()));
    }
    let mut sent = Vec::new();
    for (at, _, infotext) in images.iter().filter(|_| sends_images) {
        let path = ServedJob::image_path(server.queue.folder(), id, *at);
        sent.push(Json::from(to_base64(&kept_image(&path, infotext, SentFormat::Png, 0)?)));
    }
    let (width, height, steps) = first.unwrap_or_default();
    let seeds: Vec<u64> = images.iter().map(|(_, seed, _)| *seed).collect();
    let texts: Vec<&str> = images.iter().map(|(.., text)| text.as_str()).collect();
    let prompt = settings.get("prompt").and_then(|prompt| prompt.get(0).cloned()).unwrap_or_default();
    let negative = settings.get("negative-prompt").cloned().unwrap_or_else(|| "".into());
    let info = json!({
        "prompt": prompt, "all_prompts": vec![&prompt; images.len()],
        "negative_prompt": negative, "all_negative_prompts": vec![&negative; images.len()],
        "seed": seeds.first(), "all_seeds": seeds,
        "subseed": settings.get("variation-seed"), "subseed_strength": settings.get("variation-strength").cloned().unwrap_or_else(|| 0.into()),
        "width": width, "height": height, "steps": steps,
        "cfg_scale": settings.get("guidance-scale"), "sampler_name": settings.get("sampler"), "batch_size": images.len(),
        "index_of_first_image": 0, "infotexts": texts, "job": id, "state": status.name(),
        "not_understood": not_understood, "remarks": remarks, "version": concat!("sd-gen ", env!("CARGO_PKG_VERSION")),
    });
    Ok(json!({ "images": sent, "parameters": echo, "info": info.to_string() }))
}

async fn progress(State(server): State<Arc<Server>>, Query(query): Query<HashMap<String, String>>) -> Response {
    let skips_image = query.get("skip_current_image").is_some_and(|value| value.eq_ignore_ascii_case("true"));
    let running = server.queue.all(|job, _| {
        let at = job.images.iter().position(|image| image.status == ImageStatus::AtWork);
        (job.status == JobStatus::Running).then(|| {
            if !skips_image {
                job.onlookers.ask();
            }
            let image = at.and_then(|at| job.images.get(at));
            let (step, steps) = image.map(|image| (image.step, image.steps)).unwrap_or_default();
            let left = job.seconds_left().unwrap_or_default();
            (job.fraction(), left, step, steps, job.done().count(), job.images.len(), job.preview.clone(), job.id.clone())
        })
    });
    let idle = json!({
        "progress": 0.0, "eta_relative": 0.0, "current_image": null, "textinfo": null,
        "state": {
            "skipped": false, "interrupted": false, "stopping_generation": false, "job": "", "job_count": 0, "job_timestamp": "0", "job_no": 0,
            "sampling_step": 0, "sampling_steps": 0,
        },
    });
    // The oldest is the one that began first.
    let Some((fraction, left, step, steps, done, images, preview, id)) = running.into_iter().last() else { return ok(&idle) };
    let shown = preview.filter(|_| !skips_image).and_then(|(_, image)| encode(&image, "", SentFormat::Png, 0).ok());
    ok(&json!({
        "progress": fraction, "eta_relative": left, "current_image": shown.map(|png| to_base64(&png)), "textinfo": null,
        "state": {
            "skipped": false, "interrupted": false, "stopping_generation": false, "job": &*id, "job_count": images, "job_timestamp": "0",
            "job_no": done, "sampling_step": step, "sampling_steps": steps,
        },
    }))
}

/// The jobs of this API that are at work.
fn own_running(server: &Server) -> Vec<Arc<str>> {
    let running = server.queue.running();
    running.into_iter().filter(|id| server.queue.with(id, |job, _| job.origin == "a1111") == Some(true)).collect()
}

async fn interrupt(State(server): State<Arc<Server>>) -> Response {
    for id in own_running(&server) {
        server.queue.cancel(&id);
    }
    ok(&json!({}))
}

async fn skip(State(server): State<Arc<Server>>) -> Response {
    for id in own_running(&server) {
        server.queue.skip(&id);
    }
    ok(&json!({}))
}

async fn options(State(server): State<Arc<Server>>) -> Response {
    let chosen = server.chosen.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let model = chosen.get("model").cloned().unwrap_or_else(|| server.studio.default_model().into());
    ok(&json!({
        "sd_model_checkpoint": model, "sd_checkpoint_hash": "", "sd_vae": chosen.get("vae").cloned().unwrap_or_else(|| "Automatic".into()),
        "CLIP_stop_at_last_layers": chosen.get("clip-skip").cloned().unwrap_or_else(|| 1.into()), "samples_format": "png",
        "eta_noise_seed_delta": chosen.get("ensd").cloned().unwrap_or_else(|| 0.into()),
        "randn_source": if chosen.get("rng").is_some_and(|rng| rng == "torch-cuda") { "NV" } else { "CPU" },
    }))
}

async fn set_options(State(server): State<Arc<Server>>, request: Request) -> WebUiAnswer {
    let body = json_body(request).await?;
    let mut not_understood = Vec::new();
    let mut changes = Vec::new();
    for (key, value) in body {
        match option(&key, &value) {
            Some(Some(change)) => changes.push((change.0, Some(change.1))),
            Some(None) => {
                let name = match key.as_str() {
                    "sd_model_checkpoint" => "model",
                    "sd_vae" => "vae",
                    "CLIP_stop_at_last_layers" => "clip-skip",
                    "eta_noise_seed_delta" => "ensd",
                    _ => continue,
                };
                changes.push((name, None));
            }
            None => not_understood.push(key),
        }
    }
    for (name, value) in &changes {
        if let (&"model", Some(Json::String(model))) = (name, value) {
            let (studio, model) = (server.studio.clone(), model.clone());
            let checked = tokio::task::spawn_blocking(move || studio.check_model(&model)).await;
            checked.map_err(|_| ApiError::bad("the model cannot be looked for"))?.map_err(ApiError::from)?;
        }
    }
    let mut chosen = server.chosen.lock().unwrap_or_else(PoisonError::into_inner);
    for (name, value) in changes {
        match value {
            Some(value) => drop(chosen.insert(name.to_owned(), value)),
            None => drop(chosen.remove(name)),
        }
    }
    drop(chosen);
    match not_understood.is_empty() {
        true => Ok(ok(&Json::Null)),
        false => Ok(ok(&json!({ "not_understood": not_understood }))),
    }
}

/// What there is of a kind, each as A1111 would list it.
async fn listed(server: Arc<Server>, kind: Nameable, as_json: fn(NameableFile) -> Json) -> Vec<Json> {
    let work = tokio::task::spawn_blocking(move || server.studio.list(kind).into_iter().map(as_json).collect());
    work.await.unwrap_or_default()
}

/// The name of a file; where its folder is on this machine is nobody's business.
fn filename(file: &NameableFile) -> String {
    let name = file.path.as_ref().and_then(|path| Some(path.file_name()?.to_string_lossy().into_owned()));
    name.unwrap_or_else(|| file.name.clone())
}

async fn models(State(server): State<Arc<Server>>) -> Response {
    let model = |file: NameableFile| json!({ "title": file.name, "model_name": file.name, "hash": null, "sha256": null, "filename": filename(&file), "config": null });
    ok(&listed(server, Nameable::Model, model).await.into())
}

async fn vaes(State(server): State<Arc<Server>>) -> Response {
    ok(&listed(server, Nameable::Vae, |file| json!({ "model_name": file.name, "filename": filename(&file) })).await.into())
}

async fn samplers() -> Response {
    let all: Vec<Json> =
        Sampler::all().map(|sampler| json!({ "name": sampler.a1111_name(), "aliases": [sampler.name()], "options": {} })).collect();
    ok(&all.into())
}

async fn schedulers() -> Response {
    let mut all = vec![json!({ "name": "automatic", "label": "Automatic", "aliases": null, "default_rho": -1, "need_inner_model": false })];
    let mut seen = Vec::new();
    for (name, schedule) in SigmaSchedule::NAMES {
        if seen.contains(schedule) {
            continue;
        }
        seen.push(*schedule);
        let words: Vec<String> =
            name.split('_').map(|word| word.chars().take(1).flat_map(char::to_uppercase).chain(word.chars().skip(1)).collect()).collect();
        all.push(json!({ "name": name, "label": words.join(" "), "aliases": null, "default_rho": -1, "need_inner_model": false }));
    }
    ok(&all.into())
}

async fn upscalers(State(server): State<Arc<Server>>) -> Response {
    let plain = |name: &str| json!({ "name": name, "model_name": null, "model_path": null, "model_url": null, "scale": 4 });
    let mut all = vec![plain("None"), plain("Lanczos"), plain("Nearest")];
    let network = |file: NameableFile| json!({ "name": file.name, "model_name": file.name, "model_path": filename(&file), "model_url": null, "scale": 4 });
    all.extend(listed(server, Nameable::Upscaler, network).await);
    ok(&all.into())
}

async fn latent_modes() -> Response {
    ok(&json!([{ "name": "Latent" }, { "name": "Latent (bicubic)" }]))
}

async fn loras(State(server): State<Arc<Server>>) -> Response {
    let lora = |file: NameableFile| json!({ "name": file.name, "alias": file.name, "path": filename(&file), "metadata": {} });
    ok(&listed(server, Nameable::Lora, lora).await.into())
}

async fn embeddings(State(server): State<Arc<Server>>) -> Response {
    let all = listed(server, Nameable::Embedding, |file| file.name.into()).await;
    let one = json!({ "step": null, "sd_checkpoint": null, "sd_checkpoint_name": null, "shape": null, "vectors": null });
    let loaded: Map<String, Json> = all.iter().filter_map(|name| Some((name.as_str()?.to_owned(), one.clone()))).collect();
    ok(&json!({ "loaded": loaded, "skipped": {} }))
}

fn image_of(body: &Map<String, Json>) -> Result<Vec<u8>, ApiError> {
    let image = body.get("image").and_then(Json::as_str).ok_or_else(|| ApiError::bad("image: give it in base64"))?;
    from_base64(image).map_err(|what| ApiError::bad(format!("image: {what}")))
}

async fn png_info(State(server): State<Arc<Server>>, request: Request) -> WebUiAnswer {
    let image = image_of(&json_body(request).await?)?;
    let work = tokio::task::spawn_blocking(move || inspected(&server, &image));
    let found = work.await.map_err(|_| ApiError::bad("the image cannot be read"))??;
    let text = found["texts"].get("parameters").or_else(|| found["texts"].get("UserComment")).cloned().unwrap_or_else(|| "".into());
    Ok(ok(&json!({ "info": text, "items": found["texts"], "parameters": found["settings"] })))
}

async fn extra(State(server): State<Arc<Server>>, request: Request) -> WebUiAnswer {
    let mut body = json_body(request).await?;
    let image = image_of(&body)?;
    let name = body.remove("upscaler_1").and_then(|name| name.as_str().map(str::to_owned)).unwrap_or_else(|| "None".into());
    let number = |key: &str| body.get(key).and_then(Json::as_f64);
    let (mode, scale) = (number("resize_mode").unwrap_or(0.0), number("upscaling_resize").unwrap_or(2.0));
    let sides = (number("upscaling_resize_w"), number("upscaling_resize_h"));
    const KNOWN: &[&str] = &[
        "image",
        "resize_mode",
        "upscaling_resize",
        "upscaling_resize_w",
        "upscaling_resize_h",
        "show_extras_results",
        "upscaling_crop",
        "upscale_first",
    ];
    let is_asked = |value: &Json| !(value.is_null() || value == "None" || value.as_f64() == Some(0.0) || value == &Json::Bool(false));
    let left: Vec<String> =
        body.iter().filter(|(key, value)| !KNOWN.contains(&key.as_str()) && is_asked(value)).map(|(key, _)| key.clone()).collect();
    let work = tokio::task::spawn_blocking(move || -> Result<Json, ApiError> {
        let decoded = crate::image::decode(&image)?.rgb;
        let (width, height) = decoded.dimensions();
        let scale = match (mode as i64, sides) {
            (1, (Some(w), Some(h))) => (w / f64::from(width)).min(h / f64::from(height)),
            _ => scale,
        };
        let area = f64::from(width) * f64::from(height) * scale * scale;
        if !(scale > 0.0 && scale <= 8.0) || area > server.options.limits.pixels as f64 {
            let most = server.options.limits.pixels;
            return Err(ApiError::problems(vec![super::settings::SettingProblem::new(
                "upscaling_resize",
                format!("{scale}: give a number above 0 and at most 8; an image has at most {most} pixels here"),
            )]));
        }
        let enlarged = server.studio.upscale(&decoded, &name, scale)?;
        let png = encode(&enlarged, "", SentFormat::Png, 0)?;
        let said = if left.is_empty() {
            String::new()
        } else {
            format!("<p>not understood and left out: {}</p>", left.join(", ").replace('<', "&lt;"))
        };
        Ok(json!({ "html_info": said, "image": to_base64(&png) }))
    });
    let made = work.await.map_err(|_| ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "the image cannot be enlarged"))?;
    Ok(ok(&made?))
}

async fn memory() -> Response {
    let memory = crate::device::memory(&candle_core::Device::Cpu);
    let ram = memory.map(|memory| json!({ "free": memory.free, "used": memory.total.saturating_sub(memory.free), "total": memory.total }));
    ok(&json!({ "ram": ram, "cuda": {} }))
}

async fn unload(State(server): State<Arc<Server>>) -> Response {
    server.queue.unload();
    ok(&json!({}))
}

/// Models are loaded when they are used, and folders are looked into when they are asked for.
async fn nothing(request: Request) -> WebUiAnswer {
    optional_json_body(request).await?;
    Ok(ok(&Json::Null))
}

async fn control_nets(State(server): State<Arc<Server>>) -> Response {
    let names = listed(server, Nameable::ControlNet, |file| file.name.into()).await;
    ok(&json!({ "model_list": names }))
}

async fn control_modules() -> Response {
    let names: Vec<&str> = std::iter::once("none").chain(crate::image::Preprocessor::NAMES).collect();
    ok(&json!({ "module_list": names }))
}
