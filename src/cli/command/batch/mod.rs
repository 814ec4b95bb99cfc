//! `sd-gen batch FILE`: thousands of images, checked first, generated in groups, recorded one by one.

mod dry_run;
#[cfg(feature = "hub")]
mod remote;
mod resolve;
mod sheets;

use crate::batch::{
    BatchSummary, EventSender, ImageEvent, ImageNames, Job, JobFeed, JobState, JobTable, Ledger, LedgerOptions, ManifestSink, Shard, Sizes,
    sizes,
};
use crate::cli::command::output::make_folder;
use crate::cli::model::Models;
use crate::cli::model::download::DownloadStyle;
use crate::cli::process::cancelled;
use crate::cli::process::set_threads;
use crate::cli::settings::flags::{Flags, Wrong};
use crate::cli::settings::lines::{self, Line, LineError, LineErrors, LineFormat};
use crate::cli::settings::sweep::{Sweep, SweepAxis};
use crate::cli::terminal::listen_for_cancellation;
use crate::cli::terminal::progress::Progress;
use crate::cli::terminal::screen;
use crate::cli::terminal::sentence;
use crate::cli::terminal::show::several;
use crate::cli::terminal::watch::Watch;
use crate::disk::{Locks, folder_of, sweep};
use crate::settings::{Draft, PreviewStyle};
use crate::weights::TinyAutoencoder;
use crate::{Error, Result};
use clap::Args;
use resolve::{MOST_IMAGES, Resolver};
use sheets::Sheets;
use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// The manifest's name where nobody gives one.
const MANIFEST: &str = "sd-gen.manifest";

/// Lines of standard input that are planned together, at most.
const WINDOW: usize = 1024;

const EXAMPLES: &str = "\
Every image is recorded in the manifest when it is safe on the disk. The same command again generates what is missing, however the last
run ended; two processes on one folder share the work. A line without a seed has one drawn from its prompt, so that it keeps it.

Examples:
  sd-gen batch prompts.txt --output-dir out --steps 20
  sd-gen batch prompts.txt --output-dir out --dry-run            what would be generated, and what it takes
  sd-gen batch prompts.txt --output-dir out --retry-failed
  sd-gen batch prompts.txt --output-dir out --sweep guidance-scale=4,6,8 --sweep sampler=euler,dpm++2m
  sd-gen batch -p \"a cat\" --output-dir out --sweep seed=1..16   no file: one line, which the flags are
  sd-gen batch prompts.txt --output-dir out --shard 3/16         one part of sixteen, the same everywhere
  sd-gen batch prompts.txt --output-dir out --server http://a:7860 --server http://b:7860     no model here; the servers share the file
  sd-gen merge out/sd-gen.manifest.jsonl out/sd-gen.manifest.*-of-16.jsonl";

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(in crate::cli) struct BatchArgs {
    /// The file of prompts; \"-\" is standard input, generated as it comes
    #[arg(value_name = "FILE", required_unless_present = "sweep")]
    file: Option<PathBuf>,
    /// Generate every line with each of the values, and of several sweeps every combination; draws a contact sheet: steps=10,20 seed=1..16
    #[arg(long, value_name = "FLAG=VALUES", value_parser = SweepAxis::parse, help_heading = "The batch")]
    sweep: Vec<SweepAxis>,
    /// Say what would be generated and what it takes, and generate nothing; of a model that is not here, which weights would be fetched
    #[arg(long, help_heading = "The batch")]
    dry_run: bool,
    /// Where every image is recorded [default: sd-gen.manifest.jsonl in the output folder]
    #[arg(long, value_name = "FILE", help_heading = "The batch")]
    manifest: Option<PathBuf>,
    /// Try again what failed in earlier runs
    #[arg(long, help_heading = "The batch")]
    retry_failed: bool,
    /// Read every image that is there, and generate it again if its bytes are not those that were written
    #[arg(long, help_heading = "The batch")]
    verify: bool,
    /// Generate one part of the file: 3/16 is the third of sixteen
    #[arg(long, value_name = "I/N", help_heading = "The batch")]
    shard: Option<Shard>,
    /// Let the file's lines write anywhere, and replace files with --overwrite; without it they stay in the output folder
    #[arg(long, help_heading = "The batch")]
    allow_outside: bool,
    /// How the file is written [default: by its name, else by its first line]
    #[arg(long, value_enum, value_name = "FORMAT", help_heading = "The batch")]
    format: Option<LineFormat>,
    /// The columns of a CSV or TSV file that are settings, such as seed or prompt=Caption; others pass
    #[arg(long, value_name = "NAMES", value_delimiter = ',', help_heading = "The batch")]
    columns: Vec<String>,
    /// Send the lines to this `sd-gen serve` instead of loading a model; repeat for more, which share the file
    #[cfg(feature = "hub")]
    #[arg(long, value_name = "URL", help_heading = "The batch")]
    server: Vec<String>,
    /// The servers' key; SD_GEN_API_KEY says the same, and no list of processes shows it
    #[cfg(feature = "hub")]
    #[arg(long, value_name = "KEY", requires = "server", help_heading = "The batch")]
    api_key: Option<String>,
    #[command(flatten)]
    flags: Flags,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct MergeArgs {
    /// The manifest to write; it is one of those that are joined, if it exists
    #[arg(value_name = "OUT")]
    out: PathBuf,
    /// Manifests to join
    #[arg(value_name = "IN", required = true)]
    manifests: Vec<PathBuf>,
}

impl BatchArgs {
    /// What every line starts from.
    fn base(&self) -> Result<Draft> {
        let wrong = |wrong: Vec<Wrong>| Error::Input(wrong.into_iter().map(|wrong| wrong.what).collect::<Vec<_>>().join("\n"));
        self.flags.draft().map_err(wrong)
    }

    /// How often `--verbose` was said, and whether `--quiet` was.
    pub(in crate::cli) fn loudness(&self) -> (u8, bool) {
        self.base().map_or((0, false), |base| crate::cli::settings::args::loudness(&base))
    }
}

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

impl BatchArgs {
    /// The lines of the file, or the one that the flags are without a file, each with all combinations of the sweeps.
    fn lines(&self, sweep: Sweep) -> Result<impl Iterator<Item = Result<Line, LineError>> + use<>> {
        // A line may leave what is swept to the sweep, its prompt above all.
        let base = self.flags.over(&sweep.first());
        let lines = match &self.file {
            Some(file) => lines::read(file, self.format, &self.columns, &base)?,
            None => lines::of_flags(&base),
        };
        Ok(sweep.over(lines))
    }

    fn ledger_options(&self) -> LedgerOptions {
        LedgerOptions { retry: self.retry_failed, verify: self.verify, stop: cancelled }
    }

    fn manifest_path(&self, base: &Draft) -> PathBuf {
        self.manifest.clone().unwrap_or_else(|| {
            let folder = base.run.output_dir.clone().unwrap_or_default();
            let shard = self.shard.map(|shard| format!(".{}", shard.label())).unwrap_or_default();
            folder.join(format!("{MANIFEST}{shard}.jsonl"))
        })
    }
}

/// A run under way.
struct Run {
    ledger: Arc<Mutex<Ledger>>,
    summary: Arc<Mutex<BatchSummary>>,
    manifest: PathBuf,
}

impl Run {
    /// Makes the folders, clears what dead processes left there, and opens the manifest.
    fn begin(args: &BatchArgs, manifest: &Path, folders: &BTreeSet<PathBuf>) -> Result<Self> {
        for folder in folders.iter().map(PathBuf::as_path).chain([folder_of(manifest)]) {
            make_folder(folder)?;
            sweep(folder);
        }
        listen_for_cancellation()?;
        let ledger = Ledger::open(manifest, args.ledger_options())?;
        match ledger.locks() {
            Locks::Shared => {}
            Locks::ThisMachine(kind) => screen::say(&format!(
                "warning: the locks of this file system ({kind}) may not reach other machines; of several machines, give each its --shard"
            )),
            Locks::Missing => screen::say("warning: this file system has no locks; do not run two processes on this folder"),
        }
        if ledger.manifest().unreadable_lines() > 0 {
            let (lines, path) = (ledger.manifest().unreadable_lines(), manifest.display());
            screen::say(&format!("warning: {lines} lines of {path} are no records, and are passed over"));
        }
        Ok(Self { ledger: Arc::new(Mutex::new(ledger)), summary: Arc::default(), manifest: manifest.to_owned() })
    }

    fn look(&self, job: &Job) -> Result<JobState> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner).look(job.key)
    }

    /// Gives the images that turned out to be there, and those of them that failed.
    fn generate(
        &self,
        windows: impl FnMut(&EventSender) -> Option<Vec<Job>> + Send + 'static,
        models: &Models,
        names: &ImageNames,
        images: Option<usize>,
        progress: &mut Progress,
    ) -> (Result<()>, usize, usize) {
        if images == Some(0) {
            return (Ok(()), 0, 0);
        }
        let table = JobTable::default();
        let opened = models.clone();
        let sink = ManifestSink { table: table.clone(), ledger: self.ledger.clone(), summary: self.summary.clone(), names: names.clone() };
        let sizes_of = move |job: &Job, count: usize| {
            let most = job.request.output.batch_size.0;
            opened.get(job.model).map_or(Sizes { batch: 1, at_once: 1 }, |model| {
                sizes(&model.footprint(&job.request), count.div_ceil(model.devices()), most)
            })
        };
        let (ledger, fed) = (self.ledger.clone(), table.clone());
        let prompt_of = |id: usize| table.prompt(id).unwrap_or_default();
        let mut watch = Watch::new(progress, images, &prompt_of);
        let feed = move |events: EventSender| JobFeed::new(windows, sizes_of, ledger, fed, events);
        let ended = crate::batch::run(feed, models.clone(), sink, &mut watch);
        (ended, watch.known, watch.known_failed)
    }

    /// Draws the sheets of a sweep. However the run ended: what there is so far is worth a look.
    fn draw(&self, sheets: Sheets, base: &Draft, shard: Option<Shard>, progress: &Progress) -> Result<()> {
        sheets.write(
            base.run.output_dir.as_deref().unwrap_or(Path::new("")),
            shard,
            |key| self.ledger.lock().unwrap_or_else(PoisonError::into_inner).file(key),
            progress,
        )
    }

    /// What the run came to, as a sentence and as an exit code.
    fn conclude(
        self,
        (ended, known, known_failed): (Result<()>, usize, usize),
        there: usize,
        failed_before: usize,
        wrong: usize,
        progress: &Progress,
    ) -> Result<()> {
        // Threads that were stopped in a step may still hold it.
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner).close();
        let summary = std::mem::take(&mut *self.summary.lock().unwrap_or_else(PoisonError::into_inner));
        let (there, failed) = (there + known - known_failed, summary.failed + failed_before + known_failed);
        let mut parts = vec![format!("{} generated", several(summary.kept, "image"))];
        parts.extend((there > 0).then(|| format!("{there} were there already")));
        parts.extend((summary.unloaded > 0).then(|| format!("{} were not tried for want of their model", summary.unloaded)));
        progress.say(&parts.join(", "));
        ended.map_err(|error| stopped(error, summary.kept))?;
        if let Some(reason) = summary.model {
            return Err(Error::Model(reason));
        }
        let mut wrongs = Vec::new();
        wrongs.extend((wrong > 0).then(|| format!("{wrong} lines were wrong")));
        let manifest = self.manifest.display();
        wrongs.extend((summary.beyond > 0).then(|| {
            format!("{} failed for want of what this machine has now; the same command tries again", several(summary.beyond, "image"))
        }));
        wrongs.extend(
            (failed > 0).then(|| format!("{} failed, as {manifest} records; --retry-failed tries again", several(failed, "image"))),
        );
        if wrongs.is_empty() { Ok(()) } else { Err(Error::Image(wrongs.join("; "))) }
    }
}

/// Why no further image can be kept, and what to do.
fn stopped(error: Error, kept: usize) -> Error {
    let Error::Io { path, source } = error else { return error };
    let what = match source.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => "the disk is full",
        ErrorKind::NotFound if folder_of(&path).is_dir() => "another program removed its temporary file",
        ErrorKind::NotFound => "the folder is not there any more",
        ErrorKind::ReadOnlyFilesystem | ErrorKind::PermissionDenied => "the folder cannot be written any more",
        _ => "it cannot be written",
    };
    Error::Image(format!(
        "{}: {what} ({source}); {kept} images of this run are kept, and the same command goes on where this one stopped",
        path.display()
    ))
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
