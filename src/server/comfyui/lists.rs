//! What there is: nodes, models, and the machine.

use super::ComfyError;
use super::nodes::{NODES, find};
use crate::server::Server;
use crate::server::answer::{ApiError, ok};
use crate::server::studio::Nameable;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::Response;
use serde_json::{Map, Value as Json, json};
use std::sync::Arc;

/// ComfyUI's folders by their kinds.
const FOLDERS: &[(&str, Nameable)] = &[
    ("checkpoints", Nameable::Model),
    ("loras", Nameable::Lora),
    ("vae", Nameable::Vae),
    ("controlnet", Nameable::ControlNet),
    ("embeddings", Nameable::Embedding),
    ("upscale_models", Nameable::Upscaler),
];

/// Folders are looked into on a thread that may wait.
async fn looked(work: impl FnOnce() -> Json + Send + 'static) -> Result<Response, ComfyError> {
    let failed = |_| ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "the folders cannot be listed");
    Ok(ok(&tokio::task::spawn_blocking(work).await.map_err(failed)?))
}

pub(super) async fn object_info(State(server): State<Arc<Server>>) -> Result<Response, ComfyError> {
    looked(move || NODES.iter().map(|node| (node.class.to_owned(), node.info(&server))).collect::<Map<_, _>>().into()).await
}

pub(super) async fn object_info_of(State(server): State<Arc<Server>>, Path(class): Path<String>) -> Result<Response, ComfyError> {
    looked(move || find(&class).map_or_else(|| json!({}), |node| json!({ class: node.info(&server) }))).await
}

fn names(server: &Server, kind: Nameable) -> Json {
    server.studio.list(kind).into_iter().map(|file| file.name).collect::<Vec<_>>().into()
}

pub(super) async fn embeddings(State(server): State<Arc<Server>>) -> Result<Response, ComfyError> {
    looked(move || names(&server, Nameable::Embedding)).await
}

pub(super) async fn folders() -> Response {
    ok(&FOLDERS.iter().map(|(name, _)| *name).collect::<Vec<_>>().into())
}

pub(super) async fn models(State(server): State<Arc<Server>>, Path(folder): Path<String>) -> Result<Response, ComfyError> {
    let kind = FOLDERS.iter().find(|(name, _)| *name == folder).map(|(_, kind)| *kind);
    let kind = kind.ok_or_else(|| ApiError::new(StatusCode::NOT_FOUND, "there is no such folder; GET /models lists them"))?;
    looked(move || names(&server, kind)).await
}

pub(super) async fn system_stats(State(server): State<Arc<Server>>) -> Result<Response, ComfyError> {
    looked(move || {
        let host = crate::device::memory(&candle_core::Device::Cpu);
        let devices: Vec<Json> = server
            .studio
            .devices()
            .iter()
            .enumerate()
            .map(|(at, device)| {
                let memory = crate::device::memory(device);
                let (total, free) = (memory.as_ref().map(|memory| memory.total), memory.as_ref().map(|memory| memory.free));
                let kind = if device.is_cuda() {
                    "cuda"
                } else if device.is_metal() {
                    "mps"
                } else {
                    "cpu"
                };
                json!({
                    "name": kind, "type": kind, "index": if device.is_cpu() { Json::Null } else { json!(at) },
                    "vram_total": total, "vram_free": free, "torch_vram_total": total, "torch_vram_free": free,
                })
            })
            .collect();
        json!({
            "system": {
                "os": if cfg!(windows) { "nt" } else { "posix" }, "ram_total": host.as_ref().map(|host| host.total),
                "ram_free": host.as_ref().map(|host| host.free), "comfyui_version": concat!("sd-gen ", env!("CARGO_PKG_VERSION")),
                "python_version": "", "pytorch_version": "", "embedded_python": false, "argv": [],
            },
            "devices": devices,
        })
    })
    .await
}
