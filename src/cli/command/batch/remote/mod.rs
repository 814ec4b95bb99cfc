//! `sd-gen batch --server URL`: lines go to servers, which have the models, and images come back under the batch's own names.
//!
//! Names, seeds and the manifest are as without a server. What an image is is known by its settings and its model's name, as the model
//! itself is not here: the keys are others than those of a run without a server.

mod said;
mod server;

use super::args::BatchArgs;
use super::resolve::Resolver;
use super::run::Run;
use crate::batch::{ImageEvent, ImageNames, ImageTarget, JobState, Key, Record, RunObserver, Status, keep_received};
use crate::cli::command::output::{ImageName, NamedBy};
use crate::cli::process::cancelled;
use crate::cli::settings::lines::{Line, LineErrors};
use crate::cli::settings::sweep::Sweep;
use crate::cli::terminal::progress::Progress;
use crate::cli::terminal::sentence;
use crate::cli::terminal::show::several;
use crate::cli::terminal::watch::Watch;
use crate::settings::Draft;
use crate::{Error, Result};
use said::{KnownFiles, image, said, with_contents, without_places};
use serde_json::Value as Json;
use server::{RemoteServer, Trouble};
use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// Jobs that one server has at once: it makes those that go together at once.
const IN_FLIGHT: usize = 8;
/// How often an image is tried on servers that do not answer as they should.
const MOST_TRIES: u32 = 8;
/// Images that are on their way to be shown.
const UNTOLD: usize = 16;

/// An image for a server to make.
struct RemoteImage {
    id: usize,
    key: Key,
    line: usize,
    seed: u64,
    prompt: String,
    model: String,
    dtype: String,
    steps: usize,
    settings: Json,
    target: ImageTarget,
    tries: u32,
}

/// Sends a file's lines to servers.
pub(super) fn run(args: &BatchArgs, base: &Draft, sweep: Sweep, mut resolver: Resolver, key: Option<&str>) -> Result<()> {
    if args.dry_run {
        return Err(Error::Input("--dry-run: a server says what it takes when it has the lines; leave out one of the two".into()));
    }
    if resolver.lines_are_input {
        return Err(Error::Input("--server: the lines come from a file; \"-\" is for a run without servers".into()));
    }
    let servers: Vec<Arc<RemoteServer>> =
        args.server.iter().map(|address| RemoteServer::at(address, key.map(str::to_owned)).map(Arc::new)).collect::<Result<_>>()?;
    let is_swept = sweep.points() > 1;
    let all = planned(args, sweep, &mut resolver)?;
    let run = Run::begin(args, &args.manifest_path(base), &resolver.folders)?;
    let settings = base.run.decide(&());
    let mut progress = Progress::new(settings.progress, settings.quiet);
    let (mut open, mut there, mut failed) = (VecDeque::new(), 0, 0);
    for image in all {
        match run.ledger.lock().unwrap_or_else(PoisonError::into_inner).look(image.key)? {
            JobState::Open | JobState::ClaimedElsewhere => open.push_back(image),
            JobState::Generated(_) => there += 1,
            JobState::Failed(_) => failed += 1,
        }
    }
    for remark in &resolver.remarks {
        progress.say(remark);
    }
    if there + failed > 0 {
        progress.say(&format!("{there} images are there already, {failed} failed before, {} are to be generated", open.len()));
    }
    if is_swept {
        progress.say("no contact sheet is drawn of what servers make");
    }
    let ended = generate(&run, open, servers, &resolver.names, &mut progress);
    run.conclude(ended, there, failed, 0, &progress)
}

/// All images of the file, or all that is wrong with its lines.
fn planned(args: &BatchArgs, sweep: Sweep, resolver: &mut Resolver) -> Result<Vec<RemoteImage>> {
    let (mut all, mut errors, mut files) = (Vec::new(), LineErrors::default(), KnownFiles::default());
    for line in args.lines(sweep)? {
        match line {
            Ok(line) => match of_line(&line, resolver, &mut files) {
                Ok(images) => all.extend(images),
                Err(error) => errors.push(line.error(&sentence(&error))),
            },
            Err(error) => errors.push(error),
        }
        if resolver.is_full || errors.are_too_many() {
            break;
        }
    }
    errors.finish()?;
    Ok(all)
}

fn of_line(line: &Line, resolver: &mut Resolver, files: &mut KnownFiles) -> Result<Vec<RemoteImage>> {
    let expanded = resolver.expanded(line)?;
    let mut all = Vec::new();
    let mut id = expanded.first;
    for draft in &expanded.made {
        expanded.output.check_said(draft)?;
        let prompt = draft.prompts.first().cloned().unwrap_or_default();
        let model = draft.load.model.clone().unwrap_or_default();
        for number in 0..draft.output.images.unwrap_or(1) {
            let (one, seed) = image(draft, number)?;
            let mut settings = said(&one, files)?;
            settings.insert("prompt".into(), prompt.clone().into());
            settings.insert("seed".into(), seed.to_string().into());
            let settings = Json::Object(settings);
            let key = resolver.counted(Key::of_settings(&without_places(&settings), seed));
            let name = ImageName { by: NamedBy::Draft(&one), model: &model, seed, index: id };
            id += 1;
            let Some(target) = resolver.place(line, &expanded.output, &name)? else { continue };
            all.push(RemoteImage {
                id: name.index,
                key,
                line: line.number,
                seed,
                prompt: prompt.clone(),
                model: model.clone(),
                dtype: settings["dtype"].as_str().unwrap_or_default().to_owned(),
                steps: one.sampling.steps.unwrap_or_default(),
                settings,
                target,
                tries: 0,
            });
        }
    }
    Ok(all)
}

/// What the threads of all servers share.
struct RemoteRun {
    waiting: Mutex<VecDeque<RemoteImage>>,
    at_work: AtomicUsize,
    ledger: Arc<Mutex<crate::batch::Ledger>>,
    summary: Arc<Mutex<crate::batch::BatchSummary>>,
    names: ImageNames,
    /// Nothing more can be kept.
    broken: Mutex<Option<Error>>,
}

impl RemoteRun {
    fn is_over(&self) -> bool {
        let nothing_waits = self.waiting.lock().unwrap_or_else(PoisonError::into_inner).is_empty();
        cancelled() || self.is_broken() || nothing_waits && self.at_work.load(Ordering::SeqCst) == 0
    }

    fn is_broken(&self) -> bool {
        self.broken.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    fn take(&self) -> Option<RemoteImage> {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let image = waiting.pop_front()?;
        // Counted before another thread can see that nothing waits.
        self.at_work.fetch_add(1, Ordering::SeqCst);
        Some(image)
    }

    fn put_back(&self, image: RemoteImage, first: bool) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if first {
            waiting.push_front(image)
        } else {
            waiting.push_back(image)
        }
        self.at_work.fetch_sub(1, Ordering::SeqCst);
    }

    fn ledger(&self) -> std::sync::MutexGuard<'_, crate::batch::Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn summary(&self) -> std::sync::MutexGuard<'_, crate::batch::BatchSummary> {
        self.summary.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn breaks(&self, error: Error) {
        self.broken.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
    }
}

fn generate(
    run: &Run,
    open: VecDeque<RemoteImage>,
    servers: Vec<Arc<RemoteServer>>,
    names: &ImageNames,
    progress: &mut Progress,
) -> (Result<()>, usize, usize) {
    let count = open.len();
    if count == 0 {
        return (Ok(()), 0, 0);
    }
    let prompts: HashMap<usize, String> = open.iter().map(|image| (image.id, image.prompt.clone())).collect();
    let shared = Arc::new(RemoteRun {
        waiting: Mutex::new(open),
        at_work: AtomicUsize::new(0),
        ledger: run.ledger.clone(),
        summary: run.summary.clone(),
        names: names.clone(),
        broken: Mutex::default(),
    });
    let (events, heard) = sync_channel(UNTOLD);
    let prompt_of = |id: usize| prompts.get(&id).cloned().unwrap_or_default();
    for server in &servers {
        for number in 0..IN_FLIGHT {
            let (shared, server, events) = (shared.clone(), server.clone(), events.clone());
            let thread = std::thread::Builder::new().name(format!("server {number}"));
            if let Err(error) = thread.spawn(move || work(&shared, &server, &events)) {
                return (Err(Error::Image(format!("no thread can be started to send with: {error}"))), 0, 0);
            }
        }
    }
    drop(events);
    let mut watch = Watch::new(progress, Some(count), &prompt_of);
    let mut ended = Ok(());
    loop {
        let told = match heard.recv_timeout(Duration::from_millis(50)) {
            Ok(news) => watch.news(news),
            Err(RecvTimeoutError::Timeout) => watch.heartbeat(),
            Err(RecvTimeoutError::Disconnected) => break,
        };
        // The threads end by themselves when the user stops the run.
        if let (Ok(()), Err(error)) = (&ended, told) {
            ended = Err(error);
        }
    }
    if let Some(error) = shared.broken.lock().unwrap_or_else(PoisonError::into_inner).take() {
        ended = Err(error);
    }
    let left = shared.waiting.lock().unwrap_or_else(PoisonError::into_inner).len();
    if let (Ok(()), true) = (&ended, left > 0) {
        let why: Vec<String> = servers.iter().filter_map(|server| Some(format!("{} {}", server.address, server.given_up()?))).collect();
        ended = Err(Error::Image(format!(
            "no server is left ({}); {} wait, and the same command goes on where this one stopped",
            why.join("; "),
            several(left, "image")
        )));
    }
    (ended, watch.known, watch.known_failed)
}

/// One line of work to a server: takes an image after the other.
fn work(run: &RemoteRun, server: &RemoteServer, events: &SyncSender<ImageEvent>) {
    let tell = |news: ImageEvent| drop(events.send(news));
    while !run.is_over() && server.given_up().is_none() {
        let Some(mut image) = run.take() else {
            // Another server's may come back.
            std::thread::sleep(Duration::from_millis(100));
            continue;
        };
        match run.ledger().claim(&[image.key]).map(|mut states| states.pop()) {
            Ok(Some(JobState::Open)) => {}
            Ok(Some(JobState::ClaimedElsewhere)) => {
                run.put_back(image, false);
                std::thread::sleep(Duration::from_millis(500));
                continue;
            }
            Ok(state) => {
                tell(ImageEvent::Known { failed: matches!(state, Some(JobState::Failed(_))) });
                run.at_work.fetch_sub(1, Ordering::SeqCst);
                continue;
            }
            Err(error) => {
                run.breaks(error);
                run.put_back(image, true);
                return;
            }
        }
        tell(ImageEvent::Begun { ids: vec![image.id] });
        let made = with_contents(&image.settings).map_err(|error| Trouble::Refused(error.to_string()));
        let made = made.and_then(|settings| server.make(settings.to_string().as_bytes()));
        let released = |image: &RemoteImage| run.ledger().release(&[image.key]);
        match made.and_then(|made| match crate::image::decode(&made.bytes) {
            Ok(decoded) => Ok((made, decoded.rgb)),
            Err(error) => Err(Trouble::Gone(format!("sends what is no image: {error}"))),
        }) {
            Ok((made, shown)) => {
                let mut record = record_of(&image, made.seconds);
                (record.width, record.height) = (made.width, made.height);
                match keep_received(&run.ledger, &run.names, image.target.clone(), record, &made.bytes) {
                    Ok(path) => {
                        run.summary().kept += 1;
                        tell(ImageEvent::Kept { id: image.id, seed: image.seed, path: Some(path), image: shown });
                    }
                    Err(error) if error.is_of_machine() => run.breaks(error),
                    Err(error) => {
                        run.summary().failed += 1;
                        tell(ImageEvent::Failed { prompt: image.prompt.clone(), reason: error.to_string() });
                    }
                }
                let _ = released(&image);
                run.at_work.fetch_sub(1, Ordering::SeqCst);
            }
            Err(Trouble::Refused(reason)) => {
                let record = Record { reason: Some(reason.clone()), ..record_of(&image, 0.0) };
                if let Err(error) = run.ledger().record(&[record]) {
                    run.breaks(error);
                }
                let _ = released(&image);
                run.summary().failed += 1;
                tell(ImageEvent::Failed { prompt: image.prompt.clone(), reason });
                run.at_work.fetch_sub(1, Ordering::SeqCst);
            }
            Err(Trouble::Later(wait)) => {
                let _ = released(&image);
                run.put_back(image, true);
                pause(run, wait);
            }
            Err(Trouble::Stopped) => {
                let _ = released(&image);
                run.put_back(image, true);
                return;
            }
            Err(Trouble::Unusable(why)) => {
                let _ = released(&image);
                run.put_back(image, true);
                gives_up(server, why, &tell);
            }
            Err(Trouble::Gone(why)) => {
                let _ = released(&image);
                image.tries += 1;
                if image.tries >= MOST_TRIES {
                    run.summary().beyond += 1;
                    tell(ImageEvent::Failed { prompt: image.prompt.clone(), reason: format!("{} {why}", server.address) });
                    run.at_work.fetch_sub(1, Ordering::SeqCst);
                } else {
                    run.put_back(image, true);
                }
                if !server.recovers(&|| run.is_over()) && !run.is_over() {
                    gives_up(server, why, &tell);
                }
            }
        }
    }
}

fn gives_up(server: &RemoteServer, why: String, tell: &dyn Fn(ImageEvent)) {
    if server.give_up(why.clone()) {
        tell(ImageEvent::Remark(format!("warning: {} is given up: {why}", server.address)));
    }
}

fn pause(run: &RemoteRun, wait: Duration) {
    let until = std::time::Instant::now() + wait;
    while std::time::Instant::now() < until && !run.is_over() {
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn record_of(image: &RemoteImage, seconds: f64) -> Record {
    Record {
        key: image.key,
        status: Status::Failed,
        reason: None,
        line: image.line,
        path: None,
        size: None,
        sha256: None,
        seed: image.seed,
        prompt: image.prompt.clone(),
        model: image.model.clone(),
        dtype: image.dtype.clone(),
        width: 0,
        height: 0,
        steps: image.steps,
        seconds: (seconds * 1000.0).round() / 1000.0,
    }
}
