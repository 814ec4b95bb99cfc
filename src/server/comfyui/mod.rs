//! ComfyUI's API, for graphs of the standard nodes.
//!
//! ```text
//! POST /prompt: graph (each node checked) → translate (settings, images) → submit; /ws, /history and /view tell of the job
//! ```
//!
//! Nothing of a graph is computed here node by node: what it means is generated as one job, by ComfyUI's rules (`like` comfyui). A node
//! that is not known, and a connection that would mean something else, is an error of that node.
//!
//! # Source
//! ComfyUI@005f3ba:server.py, execution.py, script_examples/websockets_api_example.py.

mod graph;
mod images;
mod inputs;
mod lists;
mod nodes;
mod second_pass;
mod socket;
mod translate;

pub(super) use inputs::InputFolder;

use super::Server;
use super::answer::{ApiError, ok};
use super::files::FileDesk;
use super::job::{ImageStatus, JobStatus, ServedJob};
use super::routes::{GivenBody, QueryKind, ServerRoute, TakenBody};
use super::submit::{NewJob, body, submit};
use axum::extract::{Path, Query, Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use graph::{CheckedGraph, GraphRefusal};
use serde_json::{Map, Value as Json, json};
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use translate::{ComfyPlan, translate};

/// Bytes of a request with a graph; it is kept with its job.
const LARGEST_GRAPH: usize = 1 << 20;
/// Letters of an id that a client chose.
const LONGEST_ID: usize = 64;

/// What this API keeps beside the jobs.
#[derive(Debug)]
pub(super) struct ComfyState {
    /// Counts prompts.
    numbers: AtomicU64,
    pub(super) inputs: InputFolder,
}

impl ComfyState {
    pub(super) fn new(inputs: InputFolder) -> Self {
        Self { numbers: AtomicU64::new(0), inputs }
    }
}

pub(super) const ROUTES: &[ServerRoute] = &[
    ServerRoute::post("/prompt", "Puts a graph into the queue", || post(prompt))
        .takes(TakenBody::Json("GraphRequest"))
        .gives(&[(200, GivenBody::Json("AcceptedGraph"))])
        .fails(&[400, 429, 503]),
    ServerRoute::get("/prompt", "How many graphs are left", || get(remaining)).gives(&[(200, GivenBody::Json("QueueRemaining"))]),
    ServerRoute::get("/queue", "The graphs at work and those that wait", || get(queue)).gives(&[(200, GivenBody::Json("GraphQueue"))]),
    ServerRoute::post("/queue", "Takes graphs out that wait: {\"clear\": true} or {\"delete\": [ID]}", || post(change_queue))
        .takes(TakenBody::Json("GraphChange"))
        .gives(&[(200, GivenBody::Nothing)]),
    ServerRoute::post("/interrupt", "Cancels the graph at work", || post(interrupt))
        .takes(TakenBody::OptionalJson("Anything"))
        .gives(&[(200, GivenBody::Nothing)]),
    ServerRoute::post("/free", "Unloads the models: {\"unload_models\": true}", || post(free))
        .takes(TakenBody::OptionalJson("Anything"))
        .gives(&[(200, GivenBody::Nothing)]),
    ServerRoute::get("/history", "The graphs that have ended, by their ids", || get(history))
        .query(&[
            ("max_items", QueryKind::Whole(0, 100_000), "The newest alone"),
            ("offset", QueryKind::Whole(0, 100_000), "So many of the oldest are left out"),
        ])
        .gives(&[(200, GivenBody::Json("Anything"))])
        .fails(&[400]),
    ServerRoute::get("/history/{prompt_id}", "A graph that has ended; an empty object where it has not", || get(history_of))
        .gives(&[(200, GivenBody::Json("Anything"))]),
    ServerRoute::post("/history", "Forgets graphs that have ended: {\"clear\": true} or {\"delete\": [ID]}", || post(change_history))
        .takes(TakenBody::Json("GraphChange"))
        .gives(&[(200, GivenBody::Nothing)]),
    ServerRoute::get("/view", "An image that was made or sent", || get(images::view))
        .query(&[
            ("filename", QueryKind::Text, "Its name"),
            ("subfolder", QueryKind::Text, "Nothing; there are no folders here"),
            ("type", QueryKind::Words(&["output", "temp", "input"]), "Made, shown, or sent"),
            ("preview", QueryKind::Text, "Another format and its quality: webp;90 or jpeg;80"),
        ])
        .gives(&[(200, GivenBody::Image(&["image/png", "image/jpeg", "image/webp"]))])
        .fails(&[400, 404]),
    ServerRoute::post("/upload/image", "Sends an image that graphs can load", || post(images::upload_image))
        .takes(TakenBody::Form("UploadForm"))
        .gives(&[(200, GivenBody::Json("UploadedImage"))]),
    ServerRoute::post("/upload/mask", "Sends an image's transparency, which replaces that of one that is there", || {
        post(images::upload_mask)
    })
    .takes(TakenBody::Form("MaskForm"))
    .gives(&[(200, GivenBody::Json("UploadedImage"))]),
    ServerRoute::get("/object_info", "The nodes that graphs may have", || get(lists::object_info))
        .gives(&[(200, GivenBody::Json("Anything"))]),
    ServerRoute::get("/object_info/{node}", "A node; an empty object where there is none", || get(lists::object_info_of))
        .gives(&[(200, GivenBody::Json("Anything"))]),
    ServerRoute::get("/system_stats", "The machine", || get(lists::system_stats)).gives(&[(200, GivenBody::Json("SystemStats"))]),
    ServerRoute::get("/embeddings", "The textual inversions", || get(lists::embeddings)).gives(&[(200, GivenBody::Json("Names"))]),
    ServerRoute::get("/models", "The folders of models", || get(lists::folders)).gives(&[(200, GivenBody::Json("Names"))]),
    ServerRoute::get("/models/{folder}", "The models of a folder", || get(lists::models))
        .gives(&[(200, GivenBody::Json("Names"))])
        .fails(&[404]),
    ServerRoute::get("/ws", "Tells of a client's graphs as they are made, and shows what is forming", || get(socket::websocket))
        .query(&[("clientId", QueryKind::Text, "What the client calls itself in POST /prompt")])
        .gives(&[(101, GivenBody::Nothing)])
        .fails(&[400, 426]),
];

/// An error in the form of this API.
struct ComfyError(ApiError, Option<Box<GraphRefusal>>);

impl From<ApiError> for ComfyError {
    fn from(error: ApiError) -> Self {
        Self(error, None)
    }
}

impl From<Box<GraphRefusal>> for ComfyError {
    fn from(refusal: Box<GraphRefusal>) -> Self {
        Self(ApiError::bad(""), Some(refusal))
    }
}

impl IntoResponse for ComfyError {
    fn into_response(self) -> Response {
        let Self(mut error, refusal) = self;
        // What is wrong with a graph is 400 there.
        if error.status == StatusCode::UNPROCESSABLE_ENTITY {
            error.status = StatusCode::BAD_REQUEST;
        }
        let refusal = refusal.unwrap_or_else(|| GraphRefusal::whole("invalid_prompt", &error.message, ""));
        error.with_body(&json!({ "error": refusal.error, "node_errors": refusal.nodes }))
    }
}

/// JSON whatever it says that it is: ComfyUI's own clients send it as a form's. Pages of other sites are kept out by their origin.
async fn object(request: Request) -> Result<Map<String, Json>, ApiError> {
    object_of(&body(request).await?)
}

fn object_of(bytes: &[u8]) -> Result<Map<String, Json>, ApiError> {
    match serde_json::from_slice(bytes) {
        Ok(Json::Object(object)) => Ok(object),
        Ok(_) => Err(ApiError::bad("the request is JSON, and no object")),
        Err(error) => Err(ApiError::bad(format!("the request is not JSON: {error}"))),
    }
}

async fn optional_object(request: Request) -> Result<Map<String, Json>, ApiError> {
    let bytes = body(request).await?;
    if bytes.is_empty() { Ok(Map::new()) } else { object_of(&bytes) }
}

async fn prompt(State(server): State<Arc<Server>>, request: Request) -> Result<Response, ComfyError> {
    let bytes = body(request).await?;
    if bytes.len() > LARGEST_GRAPH {
        return Err(ComfyError(
            ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "the graph is larger than any that is connected by hand"),
            None,
        ));
    }
    let mut request = object_of(&bytes)?;
    let Some(Json::Object(nodes)) = request.remove("prompt") else {
        return Err(GraphRefusal::whole("no_prompt", "No prompt provided", "give the graph as \"prompt\"").into());
    };
    let id = match request.remove("prompt_id").unwrap_or_default() {
        Json::String(id) if is_id(&id) => id,
        Json::Null => new_id(),
        _ => return Err(GraphRefusal::whole("invalid_prompt", "prompt_id is letters, digits and dashes", "").into()),
    };
    if find(&server, &id).is_some() {
        return Err(GraphRefusal::whole("invalid_prompt", "There is a prompt of this prompt_id", id).into());
    }
    let front = request.get("front") == Some(&Json::Bool(true));
    let number = match request.get("number").and_then(Json::as_f64) {
        Some(number) => json!(number),
        None => {
            let number = server.comfyui.numbers.fetch_add(1, Ordering::Relaxed);
            if front { json!(-(number as f64)) } else { json!(number) }
        }
    };
    let mut extra = match request.remove("extra_data").unwrap_or_default() {
        Json::Object(extra) => extra,
        _ => Map::new(),
    };
    if let Some(client) = request.remove("client_id").filter(Json::is_string) {
        extra.insert("client_id".into(), client);
    }
    let (nodes, work) = (Arc::new(nodes), server.clone());
    let read = nodes.clone();
    let work = tokio::task::spawn_blocking(move || planned(&work, &read));
    let (plan, outputs) = work.await.map_err(|_| ApiError::bad("the graph cannot be read"))??;
    let names: Vec<&str> = outputs.iter().filter_map(|output| output.get(0)?.as_str()).collect();
    let mut new = NewJob::of("comfyui", plan.settings);
    new.note = json!({
        "prompt_id": id, "client_id": extra.get("client_id"), "stages": plan.stages, "outputs": outputs,
        "prompt": [number, id, &*nodes, extra, names],
    });
    (new.parts, new.remarks, new.front) = (plan.parts, plan.remarks, front);
    submit(&server, new).await.map_err(|error| {
        // What is wrong with a setting is wrong with the sampler's node, as far as a graph can say it.
        let problems: Vec<_> =
            error.problems.iter().map(|wrong| *graph::NodeProblem::refused(&plan.stages[1], &wrong.path, &wrong.what)).collect();
        let refusal = (!problems.is_empty()).then(|| CheckedGraph::unchecked(&nodes, names.clone()).refusal(&problems));
        ComfyError(error, refusal)
    })?;
    Ok(ok(&json!({ "prompt_id": id, "number": number, "node_errors": {} })))
}

/// A graph as a job, and its outputs with what becomes of their images.
fn planned(server: &Server, nodes: &Map<String, Json>) -> Result<(ComfyPlan, Vec<Json>), ComfyError> {
    let checked = CheckedGraph::of(nodes, &|input| input.choices(server))?;
    let desk = FileDesk::new(&server.uploads, HashMap::new());
    let plan = translate(&checked, &mut |name| images::named(server, &desk, name)).map_err(|problem| checked.refusal(&[*problem]))?;
    let kind = |output: &str| if checked.class(output) == "PreviewImage" { "temp" } else { "output" };
    let outputs = checked.outputs.iter().map(|output| json!([output, kind(output)])).collect();
    Ok((plan, outputs))
}

fn is_id(id: &str) -> bool {
    !id.is_empty() && id.len() <= LONGEST_ID && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
}

/// A random UUID.
fn new_id() -> String {
    let number = (rand::random::<u128>() & !(0xf << 76) & !(0x3 << 62)) | (0x4 << 76) | (0x2 << 62);
    let digits = format!("{number:032x}");
    let part = |from: usize, to: usize| digits.get(from..to).unwrap_or_default();
    format!("{}-{}-{}-{}-{}", part(0, 8), part(8, 12), part(12, 16), part(16, 20), part(20, 32))
}

/// The job's own id of a prompt.
fn find(server: &Server, prompt_id: &str) -> Option<Arc<str>> {
    let is = |job: &ServedJob| job.origin == "comfyui" && job.note["prompt_id"] == prompt_id;
    server.queue.all(|job, _| is(job).then(|| job.id.clone())).pop()
}

/// This API's jobs, the oldest first.
fn own<T>(server: &Server, mut look: impl FnMut(&ServedJob) -> Option<T>) -> Vec<T> {
    let mut all = server.queue.all(|job, _| if job.origin == "comfyui" { look(job) } else { None });
    all.reverse();
    all
}

fn queue_remaining(server: &Server) -> usize {
    own(server, |job| (!job.status.has_ended()).then_some(())).len()
}

async fn remaining(State(server): State<Arc<Server>>) -> Response {
    ok(&json!({ "exec_info": { "queue_remaining": queue_remaining(&server) } }))
}

async fn queue(State(server): State<Arc<Server>>) -> Response {
    let of = |status: JobStatus| own(&server, |job| (job.status == status).then(|| job.note["prompt"].clone()));
    ok(&json!({ "queue_running": of(JobStatus::Running), "queue_pending": of(JobStatus::Queued) }))
}

/// The jobs that a change names: all of them with `clear`, or those of `delete`.
fn named(server: &Server, change: &Map<String, Json>, of: impl Fn(&ServedJob) -> bool) -> Vec<Arc<str>> {
    let clears = change.get("clear") == Some(&Json::Bool(true));
    let deleted = change.get("delete").and_then(Json::as_array);
    let is_named = |job: &ServedJob| clears || deleted.is_some_and(|ids| ids.contains(&job.note["prompt_id"]));
    own(server, |job| (of(job) && is_named(job)).then(|| job.id.clone()))
}

async fn change_queue(State(server): State<Arc<Server>>, request: Request) -> Result<Response, ComfyError> {
    let change = object(request).await?;
    for id in named(&server, &change, |job| job.status == JobStatus::Queued) {
        server.queue.cancel(&id);
        server.queue.forget(&id);
    }
    Ok(StatusCode::OK.into_response())
}

async fn interrupt(State(server): State<Arc<Server>>, request: Request) -> Result<Response, ComfyError> {
    let wanted = optional_object(request).await?.remove("prompt_id").filter(|id| !id.is_null());
    let is = |job: &ServedJob| job.status == JobStatus::Running && wanted.as_ref().is_none_or(|id| *id == job.note["prompt_id"]);
    for id in own(&server, |job| is(job).then(|| job.id.clone())) {
        server.queue.cancel(&id);
    }
    Ok(StatusCode::OK.into_response())
}

async fn free(State(server): State<Arc<Server>>, request: Request) -> Result<Response, ComfyError> {
    let wanted = optional_object(request).await?;
    if ["unload_models", "free_memory"].iter().any(|key| wanted.get(*key) == Some(&Json::Bool(true))) {
        server.queue.unload();
    }
    Ok(StatusCode::OK.into_response())
}

/// The images of an output, as ComfyUI lists them.
fn output_images(job: &ServedJob, kind: &Json) -> Vec<Json> {
    job.done().map(|at| json!({ "filename": format!("{}-{at}.png", job.id), "subfolder": "", "type": kind })).collect()
}

/// Where it stood when it ended.
fn node_at_end(job: &ServedJob) -> &Json {
    let began = job.images.iter().any(|image| image.step > 0 || image.status == ImageStatus::Done);
    &job.note["stages"][usize::from(began)]
}

/// What an error or an interruption is told as.
fn ended_badly(job: &ServedJob) -> (&'static str, Json) {
    let node = node_at_end(job);
    let class = node.as_str().map(|node| job.note["prompt"][2][node]["class_type"].clone()).unwrap_or_default();
    let id = &job.note["prompt_id"];
    match job.status {
        JobStatus::Cancelled => ("execution_interrupted", json!({ "prompt_id": id, "node_id": node, "node_type": class, "executed": [] })),
        _ => (
            "execution_error",
            json!({
                "prompt_id": id, "node_id": node, "node_type": class, "executed": [], "exception_message": job.reason(),
                "exception_type": "Error", "traceback": [], "current_inputs": {}, "current_outputs": [],
            }),
        ),
    }
}

fn milliseconds(seconds: Option<f64>) -> u64 {
    (seconds.unwrap_or_default() * 1000.0) as u64
}

/// A job that has ended, as `/history` tells it.
fn ended(job: &ServedJob) -> Json {
    let outputs = job.note["outputs"].as_array().map(Vec::as_slice).unwrap_or_default();
    let outputs: Map<String, Json> = outputs
        .iter()
        .filter_map(|output| Some((output.get(0)?.as_str()?.to_owned(), json!({ "images": output_images(job, output.get(1)?) }))))
        .collect();
    let is_done = job.status == JobStatus::Done;
    let id = &job.note["prompt_id"];
    let mut messages = vec![
        json!(["execution_start", { "prompt_id": id, "timestamp": milliseconds(job.started) }]),
        json!(["execution_cached", { "nodes": [], "prompt_id": id, "timestamp": milliseconds(job.started) }]),
    ];
    messages.push(match is_done {
        true => json!(["execution_success", { "prompt_id": id, "timestamp": milliseconds(job.ended) }]),
        false => {
            let (name, said) = ended_badly(job);
            json!([name, said])
        }
    });
    json!({
        "prompt": job.note["prompt"],
        "outputs": outputs,
        "status": { "status_str": if is_done { "success" } else { "error" }, "completed": is_done, "messages": messages },
        "meta": {},
        "remarks": job.remarks,
    })
}

async fn history(State(server): State<Arc<Server>>, Query(query): Query<HashMap<String, String>>) -> Result<Response, ComfyError> {
    let number = |name: &str| match query.get(name).map(|text| text.parse::<i64>()) {
        None => Ok(None),
        Some(Ok(number)) => Ok(usize::try_from(number).ok()),
        Some(Err(_)) => Err(ApiError::bad(format!("{name} is a whole number"))),
    };
    let (most, offset) = (number("max_items")?, number("offset")?);
    let entry = |job: &ServedJob| Some((job.note["prompt_id"].as_str()?.to_owned(), ended(job)));
    let all = own(&server, |job| if job.status.has_ended() { entry(job) } else { None });
    let skipped = offset.unwrap_or_else(|| most.map_or(0, |most| all.len().saturating_sub(most)));
    let shown: Map<String, Json> = all.into_iter().skip(skipped).take(most.unwrap_or(usize::MAX)).collect();
    Ok(ok(&shown.into()))
}

async fn history_of(State(server): State<Arc<Server>>, Path(id): Path<String>) -> Response {
    let job = find(&server, &id).and_then(|job| server.queue.with(&job, |job, _| job.status.has_ended().then(|| ended(job))).flatten());
    ok(&job.map_or_else(|| json!({}), |job| json!({ id: job })))
}

async fn change_history(State(server): State<Arc<Server>>, request: Request) -> Result<Response, ComfyError> {
    let change = object(request).await?;
    for id in named(&server, &change, |job| job.status.has_ended()) {
        server.queue.forget(&id);
    }
    Ok(StatusCode::OK.into_response())
}
