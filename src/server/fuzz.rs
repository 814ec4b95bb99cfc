//! Requests without end, most of them wrong, to every route: none may end a thread or be answered with 5xx, none may have a file read or
//! written outside the server's folders, and the memory stays as it is.
//!
//! The routes and the queue are the server's own; in the place of the engine is a thread that says of every image that it is done. Requests
//! come as bytes over a pair of sockets without an address, so that HTTP itself is read by the server's code too.
#![cfg(target_os = "linux")]

#[cfg(test)]
mod chance;
#[cfg(test)]
mod requests;

use super::job::{ImageStatus, ServedJob};
use super::queue::JobQueue;
use super::studio::Studio;
use super::{RequestLimits, Server, ServerOptions, assemble};
use crate::pipeline::Stage;
use axum::Router;
use chance::Chance;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use hyper_util::service::TowerToHyperService;
use requests::{CANARY, Corpus, FuzzedRequest};
use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::runtime::Runtime;

/// Far more than any answer takes.
const PATIENCE: Duration = Duration::from_secs(120);
/// The name of the threads that may not fail.
const THREADS: &str = "fuzzed";
/// Bytes by which the memory may grow after the first fifth of the requests.
const MOST_GROWTH: u64 = 256 << 20;

/// Threads of the server that failed.
static FAILED: AtomicUsize = AtomicUsize::new(0);

/// What came of it all.
#[derive(Debug)]
pub(crate) struct FuzzReport {
    /// Answers by their statuses; 0 is none.
    pub statuses: BTreeMap<u16, usize>,
    /// Images of jobs that were accepted.
    pub images: usize,
    /// MiB of memory after a fifth of the requests, and in the end.
    pub memory: (u64, u64),
}

/// Sends `count` requests to a server in `root`; `seed` decides which. `studio` is made when the folders are there. Whose process it is
/// `alone` has its memory looked at.
pub(crate) fn fuzz(root: &Path, (seed, count, alone): (u64, usize, bool), studio: impl FnOnce(&Path) -> Arc<dyn Studio>) -> FuzzReport {
    let root = root.canonicalize().expect("a folder");
    for folder in ["open", "secret", "models"] {
        std::fs::create_dir(root.join(folder)).expect("a folder");
    }
    let corpus = Corpus::new(&root);
    let limits = RequestLimits { body: 1 << 20, pixels: 128 * 128, steps: 4, images: 4, queue: 64 };
    let options = ServerOptions {
        listen: ([127, 0, 0, 1], 7860).into(),
        api_key: None,
        cors: Vec::new(),
        limits,
        folder: root.join("served"),
        allowed: vec![root.join("open")],
        kept: 30,
    };
    let (server, router) = assemble(options, studio(&root)).expect("a server");
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    runtime.worker_threads(2).max_blocking_threads(8).thread_name(THREADS).enable_all();
    let runtime = runtime.build().expect("threads");
    let hears = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |failure| {
        if std::thread::current().name() == Some(THREADS) {
            FAILED.fetch_add(1, Ordering::Relaxed);
        }
        hears(failure);
    }));
    let images = Arc::new(AtomicUsize::new(0));
    let engine = {
        let (server, images) = (server.clone(), images.clone());
        std::thread::Builder::new().name(THREADS.into()).spawn(move || pretend(&server, &images)).expect("a thread")
    };
    let before = names(&root);
    let (mut chance, mut statuses, mut warm) = (Chance::new(seed), BTreeMap::new(), 0);
    for number in 0..count {
        let request = corpus.request(&mut chance, &server.queue.all(|job, _| Some(job.id.to_string())));
        let answer = ask(&runtime, &router, &request);
        let status = checked(number, &request, &answer);
        *statuses.entry(status).or_insert(0) += 1;
        assert_eq!(FAILED.load(Ordering::Relaxed), 0, "request {number} of {seed}: a thread failed: {request}");
        if number == count / 5 {
            warm = memory();
        }
    }
    server.queue.stop();
    engine.join().expect("the engine's thread");
    let end = memory();
    assert!(!alone || end < warm + MOST_GROWTH, "{} MiB became {} MiB", warm >> 20, end >> 20);
    let wanted: BTreeSet<String> = before.into_iter().collect();
    assert_eq!(names(&root), wanted, "files were made outside of the server's folders");
    let own: BTreeSet<String> = ["images", "inputs", "jobs", "server.lock", "uploads"].map(str::to_owned).into();
    assert_eq!(names_in(&root.join("served")), own);
    FuzzReport { statuses, images: images.load(Ordering::Relaxed), memory: (warm >> 20, end >> 20) }
}

/// The engine's place: every image is done as soon as it is begun.
fn pretend(server: &Server, images: &AtomicUsize) {
    let queue: &Arc<JobQueue> = &server.queue;
    let picture = requests::png(8, 8);
    while let Some((tasks, _)) = queue.next(&*server.studio, &|| false) {
        queue.begun(&tasks.iter().map(|task| task.id).collect::<Vec<_>>());
        for task in tasks {
            let reads = format!("{:?}{:?}{:?}", task.request.inputs, task.request.passes, task.request.adapters);
            assert!(!reads.contains("secret"), "a job has what nobody may read: {reads}");
            if let Some(watch) = &task.watch {
                watch.stage(Stage::Denoise { step: 1, steps: 2, images: &[task.seed] });
                if watch.would_look() {
                    watch.formed(::image::RgbImage::new(8, 8));
                }
            }
            let Some(((id, at), _)) = queue.place_of(task.id) else {
                queue.ended(task.id, ImageStatus::Cancelled, 0.0);
                continue;
            };
            std::fs::write(ServedJob::image_path(queue.folder(), &id, at), &picture).expect("an image");
            queue.ended(task.id, ImageStatus::Done, 0.01);
            images.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// The bytes of the answer to a request.
fn ask(runtime: &Runtime, router: &Router, request: &FuzzedRequest) -> Vec<u8> {
    let (mut own, theirs) = UnixStream::pair().expect("sockets");
    theirs.set_nonblocking(true).expect("a socket");
    let service = TowerToHyperService::new(router.clone());
    runtime.spawn(async move {
        let theirs = tokio::net::UnixStream::from_std(theirs).expect("a socket");
        let _ = Builder::new(TokioExecutor::new()).serve_connection_with_upgrades(TokioIo::new(theirs), service).await;
    });
    own.set_read_timeout(Some(PATIENCE)).expect("a socket");
    own.set_write_timeout(Some(PATIENCE)).expect("a socket");
    // A server that has heard enough hears no more.
    let whole = own.write_all(&request.bytes).is_ok();
    if !whole || request.breaks_off {
        let _ = own.shutdown(Shutdown::Write);
    }
    let mut answer = Vec::new();
    let mut part = [0; 16 << 10];
    loop {
        match own.read(&mut part) {
            Ok(0) => break,
            Ok(read) => answer.extend_from_slice(&part[..read]),
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => break,
            Err(error) => panic!("no end of the answer: {error}: {request}"),
        }
        // A socket that was upgraded stays open.
        if answer.starts_with(b"HTTP/1.1 101") {
            break;
        }
    }
    answer
}

/// The status of an answer, which says nothing of what nobody may read.
fn checked(number: usize, request: &FuzzedRequest, answer: &[u8]) -> u16 {
    let head = String::from_utf8_lossy(&answer[..answer.len().min(64)]);
    let status = head.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.get(..3)?.parse().ok()).unwrap_or(0);
    let said = String::from_utf8_lossy(&answer[..answer.len().min(4096)]);
    assert!(status < 500, "request {number}: {said}\n{request}");
    assert!(status != 0 || request.breaks_off, "request {number} has no answer: {said}\n{request}");
    assert!(!answer.windows(CANARY.len()).any(|part| part == CANARY.as_bytes()), "request {number} tells a secret: {said}\n{request}");
    status
}

fn names_in(folder: &Path) -> BTreeSet<String> {
    let entries = std::fs::read_dir(folder).expect("a folder").flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

/// All that is beside the server's own folder, and in the working one.
fn names(root: &Path) -> BTreeSet<String> {
    let below = |folder: &str| names_in(&root.join(folder)).into_iter().map(move |name| format!("{folder}/{name}")).collect::<Vec<_>>();
    let mut names = names_in(root);
    names.extend(["open", "secret", "models"].into_iter().flat_map(below));
    names.extend(names_in(Path::new(".")).into_iter().map(|name| format!("./{name}")));
    names
}

/// Bytes of the process.
fn memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let kilobytes = status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    kilobytes.unwrap_or_default() << 10
}
