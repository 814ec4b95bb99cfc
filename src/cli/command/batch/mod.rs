//! `sd-gen batch FILE`: thousands of images, checked first, generated in groups, recorded one by one.

mod args;
mod dry_run;
#[cfg(feature = "hub")]
mod remote;
mod resolve;
mod run;
mod sheets;

pub(in crate::cli) use args::{BatchArgs, MergeArgs};

use crate::batch::{EventSender, ImageEvent, Job, JobState, Ledger};
use crate::cli::command::output::make_folder;
use crate::cli::model::Models;
use crate::cli::model::download::DownloadStyle;
use crate::cli::process::cancelled;
use crate::cli::process::set_threads;
use crate::cli::settings::lines::{LineError, LineErrors};
use crate::cli::settings::sweep::Sweep;
use crate::cli::terminal::progress::Progress;
use crate::cli::terminal::screen;
use crate::cli::terminal::sentence;
use crate::settings::{Draft, PreviewStyle};
use crate::weights::TinyAutoencoder;
use crate::{Error, Result};
use resolve::{MOST_IMAGES, Resolver};
use run::Run;
use sheets::Sheets;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// Lines of standard input that are planned together, at most.
const WINDOW: usize = 1024;

/// Generates a file's images; those whose place `./sd-gen.toml` says stay in the folder `confined_to`.
pub(in crate::cli) fn run(args: BatchArgs, confined_to: Option<PathBuf>) -> Result<()> {
    let base = args.base()?;
    if let Some(threads) = base.run.threads {
        set_threads(threads)?;
    }
    let sweep = Sweep::new(args.sweep.clone())?;
    // Said now: the lines are not laid out that many times to find out.
    if sweep.points() > MOST_IMAGES {
        return Err(Error::Input(format!("--sweep: these are {} combinations; at most {MOST_IMAGES} images are taken", sweep.points())));
    }
    let sheets = Sheets::new(&sweep);
    let mut resolver = Resolver::new(args.shard, base.load.decide(&()).devices().len());
    resolver.showing = DownloadStyle::of(&base);
    resolver.confined_to = confined_to;
    resolver.lines_are_input = args.file.as_ref().is_some_and(|file| file.as_os_str() == "-");
    resolver.lines_stay_in = (!args.allow_outside).then(|| base.run.output_dir.clone().unwrap_or_default());
    #[cfg(feature = "hub")]
    if !args.server.is_empty() {
        let from_environment = std::env::var("SD_GEN_API_KEY").ok();
        let key = args.api_key.clone().or(from_environment).filter(|key| !key.is_empty());
        return remote::run(&args, &base, sweep, resolver, key.as_deref());
    }
    if args.dry_run {
        resolver.absent = Some(Vec::new());
        return plan(&args, &base, sweep, resolver, sheets);
    }
    match args.file.as_ref().is_some_and(|file| file.as_os_str() == "-") {
        true => generate_stream(args, &base, sweep, resolver, sheets),
        false => generate_file(&args, &base, sweep, resolver, sheets),
    }
}

/// Shows the run, and its images as they form where that is asked for.
fn progress(base: &Draft, models: &mut Models) -> Result<Progress> {
    let run = base.run.decide(&());
    let tiny = run.taesd.as_ref().map(|path| TinyAutoencoder::open(path.as_ref())).transpose()?;
    let mut progress = Progress::new(run.progress, run.quiet);
    if let Some(PreviewStyle(how)) = run.preview {
        progress.preview(how);
    }
    *models = std::mem::take(models).showing(tiny.filter(|_| progress.previews()));
    Ok(progress)
}

/// Says what would be generated; nothing is made, a manifest included.
fn plan(args: &BatchArgs, base: &Draft, sweep: Sweep, mut resolver: Resolver, mut sheets: Sheets) -> Result<()> {
    let jobs = check(args, sweep, &mut resolver, &mut sheets)?;
    let manifest = args.manifest_path(base);
    let ledger = if manifest.exists() { Some(Ledger::read(&manifest, args.ledger_options())?) } else { None };
    let look = |job: &Job| ledger.as_ref().map_or(Ok(JobState::Open), |ledger| ledger.look(job.key));
    let Sorted { open, there, failed } = Sorted::new(jobs, look)?;
    let absent = resolver.absent.unwrap_or_default();
    dry_run::say(open, &resolver.models, &absent, ledger.as_ref(), there, failed)
}

fn generate_file(args: &BatchArgs, base: &Draft, sweep: Sweep, mut resolver: Resolver, mut sheets: Sheets) -> Result<()> {
    let jobs = check(args, sweep, &mut resolver, &mut sheets)?;
    let mut progress = progress(base, &mut resolver.models)?;
    let manifest = args.manifest_path(base);
    let run = Run::begin(args, &manifest, &resolver.folders)?;
    let Sorted { open, there, failed } = Sorted::new(jobs, |job| run.look(job))?;
    check_names(&open, args.file.as_deref().unwrap_or(Path::new("the command line")))?;
    for remark in &resolver.remarks {
        progress.say(remark);
    }
    if there + failed > 0 {
        let failed = if failed > 0 { format!(", {failed} failed before") } else { String::new() };
        progress.say(&format!("{there} images are there already{failed}, {} are to be generated", open.len()));
    }
    let images = open.len();
    let mut open = Some(open);
    let windows = move |_: &EventSender| open.take();
    let ended = run.generate(windows, &resolver.models, &resolver.names, Some(images), &mut progress);
    let drawn = run.draw(sheets, base, args.shard, &progress);
    run.conclude(ended, there, failed, 0, &progress).and(drawn)
}

/// All lines of a file as jobs, or all that is wrong with them.
fn check(args: &BatchArgs, sweep: Sweep, resolver: &mut Resolver, sheets: &mut Sheets) -> Result<Vec<Job>> {
    let mut jobs = Vec::new();
    let mut errors = LineErrors::default();
    let (mut wrong, mut only_models) = (false, true);
    for line in args.lines(sweep)? {
        let first = resolver.images;
        let error = match line {
            Ok(line) => match resolver.jobs(&line) {
                Ok(more) => {
                    // Once something is wrong, nothing will be generated.
                    if !wrong {
                        let more = more.unwrap_or_default();
                        sheets.note(&line, first, &more);
                        jobs.extend(more);
                    }
                    continue;
                }
                Err(error) => {
                    only_models &= matches!(error, Error::Model(_));
                    line.error(&sentence(&error))
                }
            },
            Err(error) => {
                only_models = false;
                error
            }
        };
        wrong = true;
        errors.push(error);
        if resolver.is_full || errors.are_too_many() {
            break;
        }
    }
    errors.finish().map_err(|error| match error {
        Error::Input(what) if only_models => Error::Model(what),
        other => other,
    })?;
    Ok(jobs)
}

/// No image that is to be generated has a name that the user gave to it and that a file has.
fn check_names(jobs: &[Job], file: &Path) -> Result<()> {
    let mut errors = LineErrors::default();
    let file: Arc<str> = file.display().to_string().into();
    for (job, target) in jobs.iter().map(|job| (job, &job.target)).filter(|(_, target)| target.exact && !target.is_free()) {
        let what = format!("--output {}: the file exists and is not of this run; give another name, or --overwrite", target.path.display());
        errors.push(LineError::of_line(&file, job.line, what));
    }
    errors.finish()
}

/// Jobs by how they stand.
struct Sorted {
    open: Vec<Job>,
    there: usize,
    failed: usize,
}

impl Sorted {
    fn new(jobs: Vec<Job>, look: impl Fn(&Job) -> Result<JobState>) -> Result<Self> {
        let mut sorted = Self { open: Vec::new(), there: 0, failed: 0 };
        for job in jobs {
            if cancelled() {
                return Err(Error::Cancelled);
            }
            match look(&job)? {
                JobState::Open | JobState::ClaimedElsewhere => sorted.open.push(job),
                JobState::Generated(_) => sorted.there += 1,
                JobState::Failed(_) => sorted.failed += 1,
            }
        }
        Ok(sorted)
    }
}

/// Generates lines of standard input as they come.
fn generate_stream(args: BatchArgs, base: &Draft, sweep: Sweep, mut resolver: Resolver, sheets: Sheets) -> Result<()> {
    let mut progress = progress(base, &mut resolver.models)?;
    let manifest = args.manifest_path(base);
    let run = Run::begin(&args, &manifest, &BTreeSet::new())?;
    let shard = args.shard;
    let sheets = Arc::new(Mutex::new(sheets));
    let (models, names) = (resolver.models.clone(), resolver.names.clone());
    // As many images wait as are planned together; a writer that is faster than the generating waits.
    let (sender, received) = sync_channel(WINDOW);
    let wrong = Arc::new(AtomicUsize::new(0));
    let (counted, noted) = (wrong.clone(), sheets.clone());
    let reader = std::thread::Builder::new().name("read".into());
    let reader = reader.spawn(move || read_stream(&args, sweep, resolver, &sender, &counted, &noted));
    reader.map_err(|e| Error::Input(format!("standard input cannot be read by a thread: {e}")))?;
    let ended = run.generate(move |events| window(&received, events), &models, &names, None, &mut progress);
    // A reader that was stopped may still wait for a line.
    let sheets = std::mem::take(&mut *sheets.lock().unwrap_or_else(PoisonError::into_inner));
    let drawn = run.draw(sheets, base, shard, &progress);
    run.conclude(ended, 0, 0, wrong.load(Ordering::SeqCst), &progress).and(drawn)
}

/// Sends jobs for as long as somebody takes them.
fn read_stream(
    args: &BatchArgs,
    sweep: Sweep,
    mut resolver: Resolver,
    sender: &SyncSender<Result<Job, String>>,
    wrong: &AtomicUsize,
    sheets: &Mutex<Sheets>,
) {
    let lines = match args.lines(sweep) {
        Ok(lines) => lines,
        Err(error) => {
            wrong.fetch_add(1, Ordering::SeqCst);
            return drop(sender.send(Err(error.to_string())));
        }
    };
    for line in lines {
        let jobs = line.and_then(|line| {
            let first = resolver.images;
            let jobs = resolver.jobs(&line).map_err(|error| line.error(&sentence(&error)))?;
            sheets.lock().unwrap_or_else(PoisonError::into_inner).note(&line, first, jobs.as_deref().unwrap_or_default());
            let folders = std::mem::take(&mut resolver.folders);
            folders.iter().try_for_each(|folder| make_folder(folder)).map_err(|error| line.error(&sentence(&error)))?;
            jobs.ok_or_else(|| line.error("its model cannot be opened, as was said of an earlier line"))
        });
        let remarks = resolver.remarks.drain(..).map(Err);
        let sent = match jobs {
            Ok(jobs) => remarks.chain(jobs.into_iter().map(Ok)).try_for_each(|next| sender.send(next).map_err(drop)),
            Err(error) => {
                wrong.fetch_add(1, Ordering::SeqCst);
                sender.send(Err(format!("error: {}", LineError::to_string(&error)))).map_err(drop)
            }
        };
        if sent.is_err() || resolver.is_full {
            return;
        }
    }
}

/// What has come since the last time; waits for the first.
fn window(received: &Receiver<Result<Job, String>>, events: &EventSender) -> Option<Vec<Job>> {
    let mut jobs = Vec::new();
    let mut take = |next: Result<Job, String>| match next {
        Ok(job) => jobs.push(job),
        Err(remark) => events.tell(ImageEvent::Remark(remark)),
    };
    loop {
        match received.recv_timeout(Duration::from_millis(100)) {
            Ok(next) => {
                take(next);
                received.try_iter().take(WINDOW - 1).for_each(&mut take);
                return Some(jobs);
            }
            Err(RecvTimeoutError::Disconnected) => return None,
            Err(RecvTimeoutError::Timeout) if events.is_stopped() => return None,
            Err(RecvTimeoutError::Timeout) => {}
        }
    }
}

/// `sd-gen merge`: joins the manifests of shards.
pub(in crate::cli) fn merge(args: &MergeArgs) -> Result<()> {
    let merged = crate::batch::merge(&args.out, &args.manifests)?;
    screen::say(&format!(
        "{}: {} images, {} of them failed; {} records said the same as others",
        args.out.display(),
        merged.images,
        merged.failed,
        merged.duplicates
    ));
    for conflict in &merged.conflicts {
        screen::say(&format!("warning: {conflict}"));
    }
    Ok(())
}
