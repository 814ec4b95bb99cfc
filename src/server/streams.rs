//! Jobs as they change: server-sent events and WebSockets.
//!
//! What is sent is how things stand, not each thing that happened: a client that reads slowly misses states between two reads, and the
//! server keeps nothing for it.

use super::Server;
use super::answer::ApiError;
use super::files::to_base64;
use super::image_format::{SentFormat, encode};
use super::job::ServedJob;
use super::routes::{GivenBody, QueryField, QueryKind, ServerRoute};
use super::submit::{Onlooking, WhileAsked};
use axum::extract::ws::{Message, WebSocket, WebSocketUpgrade};
use axum::extract::{Path, Query, State};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use futures_util::stream::{Stream, unfold};
use serde_json::{Value as Json, json};
use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// How long a client may take to receive a message before it is given up.
pub(super) const SLOWEST_READER: Duration = Duration::from_secs(30);
/// Between two states of a job at most this often.
pub(super) const BREATH: Duration = Duration::from_millis(40);

const QUERY: &[QueryField] = &[
    ("previews", QueryKind::Switch, "Send what is forming too"),
    ("cancel_on_disconnect", QueryKind::Switch, "Cancel the job when the client goes away"),
];

pub(super) const ROUTES: &[ServerRoute] = &[
    ServerRoute::get("/v1/jobs/{id}/events", "A job as it changes: events `state`, `preview`, `end`, `stopping` and `gone`", || {
        get(events)
    })
    .query(QUERY)
    .gives(&[(200, GivenBody::Text("text/event-stream"))])
    .fails(&[404]),
    ServerRoute::get("/v1/jobs/{id}/ws", "The same as a WebSocket; {\"cancel\": true} cancels", || get(websocket))
        .query(QUERY)
        .gives(&[(101, GivenBody::Nothing)])
        .fails(&[400, 404, 426]),
];

/// How a job stands, again whenever that changes.
struct JobStates {
    server: Arc<Server>,
    id: Arc<str>,
    changed: watch::Receiver<u64>,
    /// What was told last.
    told: Option<Json>,
    previews: u64,
    /// The end was told.
    over: bool,
    _onlooking: Option<Onlooking>,
    /// Cancels the job with the stream, where that was asked for.
    _asked: WhileAsked,
}

/// Something to tell: its name and what it says.
pub(super) type Told = (&'static str, Json);

impl JobStates {
    fn open(server: &Arc<Server>, id: &str, query: &HashMap<String, String>) -> Result<Self, ApiError> {
        let says = |name: &str| query.get(name).is_some_and(|value| value == "true" || value == "1");
        let (id, changed) = server.queue.with(id, |job, _| (job.id.clone(), job.changed.subscribe())).ok_or_else(ApiError::no_job)?;
        let onlooking = if says("previews") { Onlooking::at(server, &id) } else { None };
        let asked = WhileAsked::new(server, &id, !says("cancel_on_disconnect"));
        Ok(Self { server: server.clone(), id, changed, told: None, previews: 0, over: false, _onlooking: onlooking, _asked: asked })
    }

    async fn next(&mut self) -> Option<Told> {
        while !self.over {
            self.changed.mark_unchanged();
            let wants_previews = self._onlooking.is_some();
            let seen = self.server.queue.with(&self.id, |job: &ServedJob, position| {
                let preview = job.preview.clone().filter(|_| wants_previews && job.previews > self.previews);
                (job.json(position), job.status.has_ended(), preview, job.previews)
            });
            let Some((state, ended, preview, previews)) = seen else {
                self.over = true;
                return Some(("gone", json!({ "id": &*self.id })));
            };
            if let Some((image, shown)) = preview {
                self.previews = previews;
                if let Ok(jpeg) = encode(&shown, "", SentFormat::Jpeg, 80) {
                    let data = format!("data:image/jpeg;base64,{}", to_base64(&jpeg));
                    return Some(("preview", json!({ "id": &*self.id, "image": image, "data": data })));
                }
            }
            if self.told.as_ref() != Some(&state) {
                self.over = ended;
                self.told = Some(state.clone());
                return Some((if ended { "end" } else { "state" }, state));
            }
            if self.server.queue.is_stopping() {
                self.over = true;
                return Some(("stopping", json!({ "id": &*self.id })));
            }
            if self.changed.changed().await.is_err() {
                return None;
            }
            tokio::time::sleep(BREATH).await;
        }
        None
    }
}

async fn events(
    State(server): State<Arc<Server>>,
    Path(id): Path<String>,
    Query(query): Query<HashMap<String, String>>,
) -> Result<Sse<impl Stream<Item = Result<Event, Infallible>>>, ApiError> {
    let states = JobStates::open(&server, &id, &query)?;
    let stream = unfold(states, |mut states| async move {
        let (name, said) = states.next().await?;
        Some((Ok(Event::default().event(name).data(said.to_string())), states))
    });
    Ok(Sse::new(stream).keep_alive(KeepAlive::new().interval(Duration::from_secs(15))))
}

async fn websocket(
    State(server): State<Arc<Server>>,
    Path(id): Path<String>,
    Query(query): Query<HashMap<String, String>>,
    upgrade: WebSocketUpgrade,
) -> Response {
    match JobStates::open(&server, &id, &query) {
        // What a client may say is a word.
        Ok(states) => upgrade.max_message_size(4096).on_upgrade(move |socket| converse(socket, states)),
        Err(error) => error.into_response(),
    }
}

async fn converse(mut socket: WebSocket, mut states: JobStates) {
    loop {
        tokio::select! {
            told = states.next() => {
                let Some((name, said)) = told else { break };
                let text = json!({ "event": name, "data": said }).to_string();
                let sent = tokio::time::timeout(SLOWEST_READER, socket.send(Message::Text(text.into()))).await;
                if !matches!(sent, Ok(Ok(()))) {
                    return;
                }
            }
            said = socket.recv() => match said {
                Some(Ok(Message::Text(text))) => {
                    let wants = serde_json::from_str::<Json>(&text).ok();
                    if wants.is_some_and(|wants| wants["cancel"] == true) {
                        states.server.queue.cancel(&states.id);
                    }
                }
                Some(Ok(Message::Close(_)) | Err(_)) | None => return,
                Some(Ok(_)) => {}
            }
        }
    }
    let _ = tokio::time::timeout(SLOWEST_READER, socket.send(Message::Close(None))).await;
}
