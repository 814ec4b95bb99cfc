//! `sd-gen serve`: jobs over HTTP.
//!
//! ```text
//! routes (native, a1111, openai, page) → submit: settings → draft → studio → queue → engine (batch) → files
//! ```
//!
//! Routes are thin: each language is turned into settings of the table, and all of them wait at one queue. Whoever knows models and
//! folders is a [`Studio`]; the command line brings one. Only this module uses tokio.
//!
//! # What is refused
//! Everything that is sent is untrusted: no path outside the named folders is read or written, values are checked as those of flags are,
//! and bodies, pixels, steps, images and the queue have limits.

mod a1111;
mod answer;
mod comfyui;
mod connections;
mod engine;
mod files;
#[cfg(test)]
mod fuzz;
mod guard;
mod image_format;
mod job;
mod journal;
mod metrics;
mod native;
mod openai;
mod openapi;
mod page;
mod queue;
mod routes;
mod settings;
mod streams;
mod studio;
mod submit;

#[cfg(all(test, target_os = "linux"))]
pub(crate) use fuzz::fuzz;
pub(crate) use studio::{Nameable, NameableFile, NamedSettings, ResolvedJob, Studio};

use crate::{Error, Result};
use axum::Router;
use axum::extract::DefaultBodyLimit;
use files::UploadFolder;
use queue::JobQueue;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// How long open connections may go on after the server was told to stop.
const LAST_WORDS: Duration = Duration::from_secs(3);

/// What one request may ask for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RequestLimits {
    /// Bytes of a request.
    pub body: usize,
    /// Pixels of an image, as it is in the end.
    pub pixels: usize,
    /// Denoising steps of an image.
    pub steps: usize,
    /// Images of a job.
    pub images: usize,
    /// Images that wait.
    pub queue: usize,
}

impl RequestLimits {
    /// What of a job is beyond them, by its setting.
    fn excess(&self, job: &ResolvedJob) -> Vec<(&'static str, String)> {
        let mut excess = Vec::new();
        if job.images.len() > self.images {
            excess.push(("images", format!("{}: this server makes at most {} for a job", job.images.len(), self.images)));
        }
        let sizes = job.images.iter().map(|(request, _)| request.last_size());
        if let Some((width, height)) = sizes.into_iter().find(|(width, height)| width.saturating_mul(*height) > self.pixels) {
            excess.push(("size", format!("{width}x{height}: this server makes images of at most {} pixels", self.pixels)));
        }
        if let Some(steps) = job.images.iter().map(|(request, _)| request.sampling.steps).max().filter(|steps| *steps > self.steps) {
            excess.push(("steps", format!("{steps}: this server takes at most {}", self.steps)));
        }
        excess
    }
}

/// How a server is reached, and what it allows.
#[derive(Debug, Clone)]
pub(crate) struct ServerOptions {
    /// Where it listens.
    pub listen: SocketAddr,
    /// What clients must say.
    pub api_key: Option<String>,
    /// Pages of other origins that may use it; `*` is all of them.
    pub cors: Vec<String>,
    /// What a request may ask for.
    pub limits: RequestLimits,
    /// Where jobs and images are kept.
    pub folder: PathBuf,
    /// Folders from which requests may name files.
    pub allowed: Vec<PathBuf>,
    /// Ended jobs that are remembered.
    pub kept: usize,
}

/// What routes share.
struct Server {
    options: ServerOptions,
    queue: Arc<JobQueue>,
    studio: Arc<dyn Studio>,
    uploads: Arc<UploadFolder>,
    /// A1111's options that have a meaning here, as they were set.
    chosen: std::sync::Mutex<serde_json::Map<String, serde_json::Value>>,
    metrics: metrics::RequestCounts,
    comfyui: comfyui::ComfyState,
}

/// Serves until `stop` says so; `announce` hears the address.
///
/// # Errors
/// The address is taken, the folder cannot be written or belongs to another server.
pub(crate) fn serve(options: ServerOptions, studio: Arc<dyn Studio>, stop: fn() -> bool, announce: impl FnOnce(SocketAddr)) -> Result<()> {
    let io = |what: String| move |error: std::io::Error| Error::Input(format!("{what}: {error}"));
    let (server, router) = assemble(options, studio)?;
    let (queue, studio) = (server.queue.clone(), server.studio.clone());
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .max_blocking_threads(16)
        .thread_name("serve")
        .enable_all()
        .build()
        .map_err(io("the server's threads cannot be started".into()))?;
    let listen = server.options.listen;
    let listener =
        runtime.block_on(tokio::net::TcpListener::bind(listen)).map_err(io(format!("`listen` {listen}: cannot be listened at")))?;
    let address = listener.local_addr().map_err(io(format!("`listen` {listen}")))?;
    queue.resume(&*studio, &server.uploads);
    let worker = {
        let queue = queue.clone();
        std::thread::Builder::new().name("engine".into()).spawn(move || engine::work(&queue, &studio))
    };
    let worker = worker.map_err(io("no thread can be started to generate with".into()))?;
    announce(address);
    runtime.block_on(async {
        let stopped = async move {
            while !stop() {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        let told = queue.clone();
        let serving = connections::serve(listener, router, async move {
            stopped.await;
            told.stop();
        });
        let late = async {
            while !queue.is_stopping() {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            tokio::time::sleep(LAST_WORDS).await;
        };
        tokio::select! {
            () = serving => {}
            () = late => {}
        }
    });
    queue.stop();
    runtime.shutdown_timeout(Duration::from_secs(1));
    // A step that is at work is not waited for: its job goes on with the next start.
    for _ in 0..100 {
        if worker.is_finished() {
            break;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

/// The server with its folders, before anybody reaches it, and its routes.
fn assemble(options: ServerOptions, studio: Arc<dyn Studio>) -> Result<(Arc<Server>, Router)> {
    std::fs::create_dir_all(&options.folder).map_err(Error::io(&options.folder))?;
    let queue = Arc::new(JobQueue::open(&options.folder, options.limits, options.kept)?);
    let uploads = UploadFolder::new(options.folder.join("uploads"), options.allowed.clone());
    let uploads = Arc::new(uploads.map_err(Error::io(options.folder.join("uploads")))?);
    let inputs = comfyui::InputFolder::open(options.folder.join("inputs")).map_err(Error::io(options.folder.join("inputs")))?;
    let body = options.limits.body;
    let server = Arc::new(Server {
        options,
        queue,
        studio,
        uploads,
        chosen: std::sync::Mutex::default(),
        metrics: metrics::RequestCounts::default(),
        comfyui: comfyui::ComfyState::new(inputs),
    });
    let router = guard::around(routes::router(), &server).layer(DefaultBodyLimit::max(body)).with_state(server.clone());
    Ok((server, router))
}
