//! How the server is: alive, ready, and in numbers for Prometheus.

use super::Server;
use super::answer::{ApiError, bytes, ok};
use super::routes::{GivenBody, ServerRoute};
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use serde_json::json;
use std::fmt::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Requests by how they were answered.
#[derive(Debug, Default)]
pub(super) struct RequestCounts {
    classes: [AtomicU64; 5],
    milliseconds: AtomicU64,
}

/// Counts an answer.
pub(super) fn count(counts: &RequestCounts, status: StatusCode, took: Duration) {
    let class = usize::from(status.as_u16() / 100).clamp(1, 5) - 1;
    if let Some(counter) = counts.classes.get(class) {
        counter.fetch_add(1, Ordering::Relaxed);
    }
    counts.milliseconds.fetch_add(took.as_millis() as u64, Ordering::Relaxed);
}

pub(super) const ROUTES: &[ServerRoute] = &[
    ServerRoute::get("/health", "The server is alive", || get(health)).gives(&[(200, GivenBody::Json("Health"))]).open(),
    ServerRoute::get("/ready", "The server takes jobs", || get(ready)).gives(&[(200, GivenBody::Json("Ready"))]).fails(&[503]).open(),
    ServerRoute::get("/metrics", "Numbers for Prometheus", || get(metrics)).gives(&[(200, GivenBody::Text("text/plain"))]),
];

async fn health() -> Response {
    ok(&json!({ "status": "ok", "version": env!("CARGO_PKG_VERSION") }))
}

async fn ready(State(server): State<Arc<Server>>) -> Response {
    if server.queue.is_stopping() {
        return ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "the server is stopping").into_response();
    }
    let (_, waiting, at_work) = server.queue.counts();
    let loading = server.queue.loading().map(|(network, share)| json!({ "network": network, "share": share }));
    ok(&json!({ "status": "ready", "waiting": waiting, "at_work": at_work, "loading": loading }))
}

async fn metrics(State(server): State<Arc<Server>>) -> Response {
    let (counts, waiting, at_work) = server.queue.counts();
    let mut text = String::new();
    let mut line = |name: &str, help: &str, kind: &str, values: &[(&str, f64)]| {
        let _ = writeln!(text, "# HELP sd_gen_{name} {help}\n# TYPE sd_gen_{name} {kind}");
        for (labels, value) in values {
            let _ = writeln!(text, "sd_gen_{name}{labels} {value}");
        }
    };
    let ended = [
        ("{state=\"done\"}", counts.done as f64),
        ("{state=\"failed\"}", counts.failed as f64),
        ("{state=\"cancelled\"}", counts.cancelled as f64),
    ];
    line("jobs_accepted_total", "Jobs that were accepted.", "counter", &[("", counts.accepted as f64)]);
    line("jobs_refused_total", "Jobs that were refused because the queue was full.", "counter", &[("", counts.refused as f64)]);
    line("jobs_ended_total", "Jobs by how they ended.", "counter", &ended);
    line("images_total", "Images that were generated.", "counter", &[("", counts.images as f64)]);
    line("image_seconds_total", "Seconds that images took.", "counter", &[("", counts.seconds)]);
    line("images_waiting", "Images that wait.", "gauge", &[("", waiting as f64)]);
    line("images_at_work", "Images that the engine has.", "gauge", &[("", at_work as f64)]);
    let names = ["{class=\"1xx\"}", "{class=\"2xx\"}", "{class=\"3xx\"}", "{class=\"4xx\"}", "{class=\"5xx\"}"];
    let classes = server.metrics.classes.iter().map(|count| count.load(Ordering::Relaxed) as f64);
    let answers: Vec<(&str, f64)> = names.into_iter().zip(classes).collect();
    line("http_answers_total", "Answers by their class.", "counter", &answers);
    let seconds = server.metrics.milliseconds.load(Ordering::Relaxed) as f64 / 1000.0;
    line("http_seconds_total", "Seconds until answers began.", "counter", &[("", seconds)]);
    bytes("text/plain; version=0.0.4", text)
}
