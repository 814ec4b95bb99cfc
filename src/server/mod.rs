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
mod engine;
mod files;
mod guard;
mod job;
mod journal;
mod metrics;
mod native;
mod openai;
mod page;
mod pictures;
mod queue;
mod settings;
mod streams;
mod studio;
mod submit;

pub use studio::{Nameable, NameableFile, ResolvedJob, Studio};

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
pub struct RequestLimits {
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
    fn check(&self, job: &ResolvedJob) -> Result<()> {
        if job.images.len() > self.images {
            return Err(Error::setting("images", format!("{}: this server makes at most {} for a job", job.images.len(), self.images)));
        }
        for (request, _) in &job.images {
            let (width, height) = request.last_size();
            if width.saturating_mul(height) > self.pixels {
                let most = self.pixels;
                return Err(Error::setting("size", format!("{width}x{height}: this server makes images of at most {most} pixels")));
            }
            if request.sampling.steps > self.steps {
                return Err(Error::setting("steps", format!("{}: this server takes at most {}", request.sampling.steps, self.steps)));
            }
        }
        Ok(())
    }
}

/// How a server is reached, and what it allows.
#[derive(Debug, Clone)]
pub struct ServerOptions {
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
}

/// Serves until `stop` says so; `announce` hears the address.
///
/// # Errors
/// The address is taken, the folder cannot be written or belongs to another server.
pub fn serve(options: ServerOptions, studio: Arc<dyn Studio>, stop: fn() -> bool, announce: impl FnOnce(SocketAddr)) -> Result<()> {
    let io = |what: String| move |error: std::io::Error| Error::Input(format!("{what}: {error}"));
    std::fs::create_dir_all(&options.folder).map_err(Error::io(&options.folder))?;
    let queue = Arc::new(JobQueue::open(&options.folder, options.limits, options.kept)?);
    let uploads = UploadFolder::new(options.folder.join("uploads"), options.allowed.clone());
    let uploads = Arc::new(uploads.map_err(Error::io(options.folder.join("uploads")))?);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .max_blocking_threads(16)
        .thread_name("serve")
        .enable_all()
        .build()
        .map_err(io("the server's threads cannot be started".into()))?;
    let listen = options.listen;
    let listener =
        runtime.block_on(tokio::net::TcpListener::bind(listen)).map_err(io(format!("`listen` {listen}: cannot be listened at")))?;
    let address = listener.local_addr().map_err(io(format!("`listen` {listen}")))?;
    queue.resume(&*studio, &uploads);
    let worker = {
        let (queue, studio) = (queue.clone(), studio.clone());
        std::thread::Builder::new().name("engine".into()).spawn(move || engine::work(&queue, &studio))
    };
    let worker = worker.map_err(io("no thread can be started to generate with".into()))?;
    let body = options.limits.body;
    let server = Arc::new(Server {
        options,
        queue: queue.clone(),
        studio,
        uploads,
        chosen: std::sync::Mutex::default(),
        metrics: metrics::RequestCounts::default(),
    });
    let router = guard::around(routes(), &server).layer(DefaultBodyLimit::max(body)).with_state(server);
    announce(address);
    let served = runtime.block_on(async {
        let stopped = async move {
            while !stop() {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        let told = queue.clone();
        let serving = axum::serve(listener, router).with_graceful_shutdown(async move {
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
            served = serving => served,
            () = late => Ok(()),
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
    served.map_err(|error| Error::Image(format!("the server ended: {error}")))
}

fn routes() -> Router<Arc<Server>> {
    Router::new()
        .merge(native::routes())
        .merge(streams::routes())
        .merge(metrics::routes())
        .merge(a1111::routes())
        .merge(openai::routes())
        .merge(page::routes())
        .fallback(answer::not_found)
        .method_not_allowed_fallback(answer::not_allowed)
}
