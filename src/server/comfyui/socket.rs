//! `/ws`: a client hears of its graphs as they are made.
//!
//! As everywhere here, what is sent is how things stand: a client that reads slowly misses steps, and the server keeps nothing for it.

use super::{ended_badly, milliseconds, new_id, output_images, own, queue_remaining};
use crate::server::Server;
use crate::server::image_format::{SentFormat, encode};
use crate::server::job::{ImageStatus, JobStatus, ServedJob};
use crate::server::streams::{BREATH, SLOWEST_READER};
use crate::server::submit::Onlooking;
use ::image::RgbImage;
use axum::extract::ws::{Message, WebSocket, WebSocketUpgrade};
use axum::extract::{Query, State};
use axum::response::Response;
use serde_json::{Value as Json, json};
use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// The kind of a binary message, and the kind of its image, as big-endian numbers before a JPEG.
const PREVIEW: [u8; 8] = [0, 0, 0, 1, 0, 0, 0, 1];

pub(super) async fn websocket(
    State(server): State<Arc<Server>>,
    Query(query): Query<HashMap<String, String>>,
    upgrade: WebSocketUpgrade,
) -> Response {
    let client = query.get("clientId").filter(|id| !id.is_empty()).cloned().unwrap_or_else(new_id);
    // What a client may say is a word.
    upgrade.max_message_size(64 << 10).on_upgrade(move |socket| converse(socket, GraphNews::of(server, client)))
}

/// What was told of a job.
#[derive(Default)]
struct ToldGraph {
    began: bool,
    node: Json,
    /// The image and its step.
    step: (usize, usize),
    previews: u64,
    onlooking: Option<Onlooking>,
}

/// How a job stands, taken while the queue is held.
struct ComfyJobState {
    id: Arc<str>,
    prompt: Json,
    status: JobStatus,
    times: (u64, u64),
    node: Json,
    step: Option<(usize, usize, usize)>,
    preview: Option<Arc<RgbImage>>,
    previews: u64,
    outputs: Vec<(Json, Vec<Json>)>,
    badly: Option<(&'static str, Json)>,
}

impl ComfyJobState {
    fn of(job: &ServedJob) -> Self {
        let at = job.images.iter().position(|image| image.status == ImageStatus::AtWork);
        let image = at.and_then(|at| job.images.get(at));
        let stage = match image.map(|image| image.stage) {
            Some("denoise") => 1,
            Some("decode") => 2,
            _ => 0,
        };
        let outputs = job.note["outputs"].as_array().map(Vec::as_slice).unwrap_or_default();
        let is_done = job.status == JobStatus::Done;
        Self {
            id: job.id.clone(),
            prompt: job.note["prompt_id"].clone(),
            status: job.status,
            times: (milliseconds(job.started), milliseconds(job.ended)),
            node: job.note["stages"][stage].clone(),
            step: at.zip(image).filter(|(_, image)| image.step > 0).map(|(at, image)| (at, image.step, image.steps)),
            preview: job.preview.as_ref().map(|(_, image)| image.clone()),
            previews: job.previews,
            outputs: outputs.iter().filter(|_| is_done).map(|output| (output[0].clone(), output_images(job, &output[1]))).collect(),
            badly: (job.status.has_ended() && !is_done).then(|| ended_badly(job)),
        }
    }
}

/// News of a client's graphs.
struct GraphNews {
    server: Arc<Server>,
    client: String,
    changed: watch::Receiver<u64>,
    told: HashMap<Arc<str>, ToldGraph>,
    /// Jobs of which nothing is to be told any more.
    over: HashSet<Arc<str>>,
    remaining: Option<usize>,
    ready: VecDeque<Message>,
}

fn text(kind: &str, data: Json) -> Message {
    Message::Text(json!({ "type": kind, "data": data }).to_string().into())
}

impl GraphNews {
    fn of(server: Arc<Server>, client: String) -> Self {
        let changed = server.queue.changed.subscribe();
        // What ended before the client came is in the history.
        let over = own(&server, |job| (job.status.has_ended() && job.note["client_id"] == client.as_str()).then(|| job.id.clone()));
        let remaining = queue_remaining(&server);
        let status = json!({ "status": { "exec_info": { "queue_remaining": remaining } }, "sid": client });
        let ready = VecDeque::from([text("status", status)]);
        Self { server, client, changed, told: HashMap::new(), over: over.into_iter().collect(), remaining: Some(remaining), ready }
    }

    async fn next(&mut self) -> Option<Message> {
        loop {
            if let Some(message) = self.ready.pop_front() {
                return Some(message);
            }
            if self.server.queue.is_stopping() {
                return None;
            }
            self.changed.mark_unchanged();
            self.look();
            if self.ready.is_empty() {
                // A change may have come before it was waited for.
                let _ = tokio::time::timeout(Duration::from_secs(5), self.changed.changed()).await;
                tokio::time::sleep(BREATH).await;
            }
        }
    }

    fn look(&mut self) {
        let remaining = queue_remaining(&self.server);
        if self.remaining != Some(remaining) {
            self.remaining = Some(remaining);
            self.ready.push_back(text("status", json!({ "status": { "exec_info": { "queue_remaining": remaining } } })));
        }
        let (client, over) = (self.client.as_str(), &self.over);
        let mut known = HashSet::new();
        let states = own(&self.server, |job| {
            if job.note["client_id"] != client {
                return None;
            }
            known.insert(job.id.clone());
            (job.status != JobStatus::Queued && !over.contains(&job.id)).then(|| ComfyJobState::of(job))
        });
        self.over.retain(|id| known.contains(id));
        self.told.retain(|id, _| known.contains(id));
        for state in states {
            self.tell(&state);
        }
    }

    fn tell(&mut self, state: &ComfyJobState) {
        let prompt = &state.prompt;
        let told = self.told.entry(state.id.clone()).or_default();
        let mut say = |kind: &str, data: Json| self.ready.push_back(text(kind, data));
        let executing = |node: &Json| json!({ "node": node, "display_node": node, "prompt_id": prompt });
        // One that was cancelled before it began was taken out of the queue; one that failed there is told.
        if !told.began && (state.status != JobStatus::Cancelled || state.times.0 > 0) {
            told.began = true;
            told.onlooking = Onlooking::at(&self.server, &state.id);
            say("execution_start", json!({ "prompt_id": prompt, "timestamp": state.times.0 }));
            say("execution_cached", json!({ "nodes": [], "prompt_id": prompt, "timestamp": state.times.0 }));
        }
        if state.status == JobStatus::Running {
            if told.node != state.node {
                told.node = state.node.clone();
                say("executing", executing(&state.node));
            }
            if let Some((image, step, steps)) = state.step.filter(|(image, step, _)| told.step != (*image, *step)) {
                told.step = (image, step);
                say("progress", json!({ "value": step, "max": steps, "prompt_id": prompt, "node": state.node }));
            }
            if let Some(image) = state.preview.as_ref().filter(|_| state.previews > told.previews) {
                told.previews = state.previews;
                if let Ok(jpeg) = encode(image, "", SentFormat::Jpeg, 80) {
                    self.ready.push_back(Message::Binary([PREVIEW.as_slice(), &jpeg].concat().into()));
                }
            }
            return;
        }
        if told.began {
            for (node, images) in &state.outputs {
                say("executing", executing(node));
                say("executed", json!({ "node": node, "display_node": node, "output": { "images": images }, "prompt_id": prompt }));
            }
            match &state.badly {
                None => say("execution_success", json!({ "prompt_id": prompt, "timestamp": state.times.1 })),
                Some((kind, data)) => say(kind, data.clone()),
            }
            say("executing", executing(&Json::Null));
        }
        self.told.remove(&state.id);
        self.over.insert(state.id.clone());
    }
}

async fn converse(mut socket: WebSocket, mut news: GraphNews) {
    loop {
        tokio::select! {
            message = news.next() => {
                let Some(message) = message else { break };
                if !matches!(tokio::time::timeout(SLOWEST_READER, socket.send(message)).await, Ok(Ok(()))) {
                    return;
                }
            }
            said = socket.recv() => match said {
                Some(Ok(Message::Text(said))) => {
                    let asks = serde_json::from_str::<Json>(&said).is_ok_and(|said| said["type"] == "feature_flags");
                    if asks {
                        let most = news.server.options.limits.body;
                        news.ready.push_back(text("feature_flags", json!({ "supports_preview_metadata": false, "max_upload_size": most })));
                    }
                }
                Some(Ok(Message::Close(_)) | Err(_)) | None => return,
                Some(Ok(_)) => {}
            }
        }
    }
    let _ = tokio::time::timeout(SLOWEST_READER, socket.send(Message::Close(None))).await;
}
