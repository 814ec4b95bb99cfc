//! `sd-gen batch FILE`: thousands of pictures, checked first, painted in groups, recorded one by one.

mod dry_run;
mod lines;
mod resolve;

use super::args::GenerateArgs;
use super::generate::set_threads;
use super::model::Models;
use super::output::make_folder;
use super::progress::Progress;
use super::watch::Watch;
use super::{listen_for_cancellation, say};
use crate::batch::{Book, Feed, Hear, Job, Keeper, Ledger, News, Shard, Sizes, Standing, Tally, Window, sizes};
use crate::disk::{folder_of, sweep};
use crate::{Error, Result};
use clap::Args;
use resolve::{Names, Resolver};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// The manifest's name where nobody gives one.
const MANIFEST: &str = "sd-gen.manifest";

/// Lines of standard input that are planned together, at most.
const WINDOW: usize = 1024;

const EXAMPLES: &str = "\
Every picture is recorded in the manifest when it is safe on the disk. The same command again paints what is missing, however the last
run ended; two processes on one folder share the work. A line without a seed has one drawn from its prompt, so that it keeps it.

Examples:
  sd-gen batch prompts.txt --output-dir out --steps 20
  sd-gen batch prompts.txt --output-dir out --dry-run            what would be painted, and what it takes
  sd-gen batch prompts.txt --output-dir out --retry-failed
  sd-gen batch prompts.txt --output-dir out --shard 3/16         one part of sixteen, the same everywhere
  sd-gen merge out/sd-gen.manifest.jsonl out/sd-gen.manifest.*-of-16.jsonl";

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct BatchArgs {
    /// The file of prompts; \"-\" is standard input, painted as it comes
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Say what would be painted and what it takes, and paint nothing
    #[arg(long, help_heading = "The batch")]
    dry_run: bool,
    /// Where every picture is recorded [default: sd-gen.manifest.jsonl in the output folder]
    #[arg(long, value_name = "FILE", help_heading = "The batch")]
    manifest: Option<PathBuf>,
    /// Try again what failed in earlier runs
    #[arg(long, help_heading = "The batch")]
    retry_failed: bool,
    /// Read every picture that is there, and paint it again if its bytes are not those that were written
    #[arg(long, help_heading = "The batch")]
    verify: bool,
    /// Paint one part of the file: 3/16 is the third of sixteen
    #[arg(long, value_name = "I/N", help_heading = "The batch")]
    shard: Option<Shard>,
    #[command(flatten)]
    generate: GenerateArgs,
}

#[derive(Debug, Args)]
pub(super) struct MergeArgs {
    /// The manifest to write; it is one of those that are joined, if it exists
    #[arg(value_name = "OUT")]
    out: PathBuf,
    /// Manifests to join
    #[arg(value_name = "IN", required = true)]
    manifests: Vec<PathBuf>,
}

/// Errors of a file that are shown.
const SHOWN: usize = 50;

pub(super) fn run(args: BatchArgs) -> Result<()> {
    if let Some(threads) = args.generate.threads {
        set_threads(threads)?;
    }
    let manifest = args.manifest_path();
    let is_streamed = args.file.as_os_str() == "-";
    let mut resolver = Resolver::new(args.shard, args.generate.device.len());
    let lines = lines::read(&args.file, &args.generate)?;
    if is_streamed && args.dry_run {
        return Err(Error::Input("--dry-run wants a file, which standard input is not: it is painted as it comes".into()));
    }
    if is_streamed {
        return stream(&args, &manifest, resolver, lines);
    }
    let jobs = check(&mut resolver, lines)?;
    if args.dry_run {
        // Nothing is made, a manifest included.
        let ledger = if manifest.exists() { Some(Ledger::read(&manifest, args.retry_failed, args.verify)?) } else { None };
        let look = |job: &Job| ledger.as_ref().map_or(Standing::Open, |ledger| ledger.look(job.key));
        let Sorted { open, there, failed } = Sorted::new(jobs, look);
        return dry_run::say(open, &resolver.models, ledger.as_ref(), there, failed);
    }
    let run = Run::begin(&args, &manifest, &resolver.folders)?;
    let Sorted { open, there, failed } = Sorted::new(jobs, |job| run.look(job));
    let mut progress = Progress::new(args.generate.progress, args.generate.quiet);
    for remark in &resolver.remarks {
        progress.say(remark);
    }
    if there + failed > 0 {
        let failed = if failed > 0 { format!(", {failed} failed before") } else { String::new() };
        progress.say(&format!("{there} pictures are there already{failed}, {} are to be painted", open.len()));
    }
    let pictures = open.len();
    let mut open = Some(open);
    let windows = move |_: &Hear| open.take().map_or(Window::End, Window::Jobs);
    let ended = run.paint(windows, &resolver.models, &resolver.names, Some(pictures), &mut progress);
    run.conclude(ended, there, failed, 0, &progress)
}

/// All lines of a file as jobs, or all that is wrong with them.
fn check(resolver: &mut Resolver, lines: impl Iterator<Item = Result<lines::Line, String>>) -> Result<Vec<Job>> {
    let mut jobs = Vec::new();
    let (mut wrong, mut count, mut is_model) = (Vec::new(), 0, true);
    for line in lines {
        let error = match line {
            Ok(line) => match resolver.jobs(&line) {
                Ok(more) => {
                    // Once something is wrong, nothing will be painted.
                    if count == 0 {
                        jobs.extend(more.into_iter().flatten());
                    }
                    continue;
                }
                Err(error) => {
                    is_model &= matches!(error, Error::Model(_));
                    line.error(&error.to_string())
                }
            },
            Err(error) => {
                is_model = false;
                error
            }
        };
        count += 1;
        if wrong.len() < SHOWN {
            wrong.push(error);
        }
    }
    if count == 0 {
        return Ok(jobs);
    }
    let said = wrong.join("\n");
    Err(if is_model { Error::Model(said) } else { Error::Input(said) })
}

/// Jobs by how they stand.
struct Sorted {
    open: Vec<Job>,
    there: usize,
    failed: usize,
}

impl Sorted {
    fn new(jobs: Vec<Job>, look: impl Fn(&Job) -> Standing) -> Self {
        let mut sorted = Self { open: Vec::new(), there: 0, failed: 0 };
        for job in jobs {
            match look(&job) {
                Standing::Open | Standing::Elsewhere => sorted.open.push(job),
                Standing::Painted(_) => sorted.there += 1,
                Standing::Failed(_) => sorted.failed += 1,
            }
        }
        sorted
    }
}

/// Paints lines of standard input as they come.
fn stream(
    args: &BatchArgs,
    manifest: &Path,
    mut resolver: Resolver,
    lines: impl Iterator<Item = Result<lines::Line, String>> + Send + 'static,
) -> Result<()> {
    let run = Run::begin(args, manifest, &BTreeSet::from([folder_of(manifest).to_owned()]))?;
    let mut progress = Progress::new(args.generate.progress, args.generate.quiet);
    let (models, names) = (resolver.models.clone(), resolver.names.clone());
    // As many lines wait as are planned together; a writer that is faster than the painting waits.
    let (sender, received) = sync_channel::<Result<Job, String>>(WINDOW);
    let wrong = Arc::new(Mutex::new(0usize));
    let counted = wrong.clone();
    let reader = std::thread::Builder::new().name("read".into());
    let read = move || {
        for line in lines {
            let jobs = line.and_then(|line| {
                let jobs = resolver.jobs(&line).map_err(|error| line.error(&error.to_string()))?;
                let folders = std::mem::take(&mut resolver.folders);
                folders.iter().try_for_each(|folder| make_folder(folder)).map_err(|error| line.error(&error.to_string()))?;
                jobs.ok_or_else(|| line.error("its model cannot be opened, as was said of an earlier line"))
            });
            for remark in resolver.remarks.drain(..) {
                say(&remark);
            }
            let sent = match jobs {
                Ok(jobs) => jobs.into_iter().try_for_each(|job| sender.send(Ok(job))),
                Err(error) => {
                    *counted.lock().unwrap_or_else(PoisonError::into_inner) += 1;
                    sender.send(Err(error))
                }
            };
            if sent.is_err() {
                return;
            }
        }
    };
    reader.spawn(read).map_err(|e| Error::Input(format!("standard input cannot be read by a thread: {e}")))?;
    let ended = run.paint(move |hear| window(&received, hear), &models, &names, None, &mut progress);
    let wrong = *wrong.lock().unwrap_or_else(PoisonError::into_inner);
    run.conclude(ended, 0, 0, wrong, &progress)
}

/// What has come since the last time; waits for the first.
fn window(received: &Receiver<Result<Job, String>>, hear: &Hear) -> Window {
    let mut jobs = Vec::new();
    let mut take = |next: Result<Job, String>| match next {
        Ok(job) => jobs.push(job),
        Err(error) => hear.tell(News::Remark(format!("error: {error}"))),
    };
    loop {
        match received.recv_timeout(Duration::from_millis(100)) {
            Ok(next) => {
                take(next);
                received.try_iter().take(WINDOW - 1).for_each(&mut take);
                return Window::Jobs(jobs);
            }
            Err(RecvTimeoutError::Disconnected) => return Window::End,
            Err(RecvTimeoutError::Timeout) if hear.is_stopped() => return Window::End,
            Err(RecvTimeoutError::Timeout) => {}
        }
    }
}

impl BatchArgs {
    fn manifest_path(&self) -> PathBuf {
        self.manifest.clone().unwrap_or_else(|| {
            let folder = self.generate.output_dir.clone().unwrap_or_default();
            let shard = self.shard.map(|shard| format!(".{}", shard.label())).unwrap_or_default();
            folder.join(format!("{MANIFEST}{shard}.jsonl"))
        })
    }
}

/// A run under way.
struct Run {
    ledger: Arc<Mutex<Ledger>>,
    tally: Arc<Mutex<Tally>>,
    manifest: PathBuf,
}

impl Run {
    /// Makes the folders, clears what dead processes left there, and opens the manifest.
    fn begin(args: &BatchArgs, manifest: &Path, folders: &BTreeSet<PathBuf>) -> Result<Self> {
        for folder in folders.iter().map(PathBuf::as_path).chain([folder_of(manifest)]) {
            make_folder(folder)?;
            sweep(folder);
        }
        let ledger = Ledger::open(manifest, args.retry_failed, args.verify)?;
        if !ledger.manifest().has_locks() {
            say("warning: this file system has no locks; do not run two processes on this folder");
        }
        if ledger.manifest().strange_lines() > 0 {
            let (lines, path) = (ledger.manifest().strange_lines(), manifest.display());
            say(&format!("warning: {lines} lines of {path} are no records, and are passed over"));
        }
        listen_for_cancellation()?;
        Ok(Self { ledger: Arc::new(Mutex::new(ledger)), tally: Arc::default(), manifest: manifest.to_owned() })
    }

    fn look(&self, job: &Job) -> Standing {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner).look(job.key)
    }

    /// Gives the pictures that turned out to be there, and those of them that failed.
    fn paint(
        &self,
        windows: impl FnMut(&Hear) -> Window + Send + 'static,
        models: &Models,
        names: &Names,
        pictures: Option<usize>,
        progress: &mut Progress,
    ) -> (Result<()>, usize, usize) {
        if pictures == Some(0) {
            return (Ok(()), 0, 0);
        }
        let book = Book::default();
        let (planned, opened) = (names.clone(), models.clone());
        let keeper = Keeper {
            book: book.clone(),
            ledger: self.ledger.clone(),
            tally: self.tally.clone(),
            is_planned: Box::new(move |path| planned.has(path)),
        };
        let sizes_of = move |job: &Job, count: usize| {
            let most = job.request.batch_size;
            opened.get(job.model).map_or(Sizes { batch: 1, at_once: 1 }, |model| {
                sizes(&model.footprint(&job.request), count.div_ceil(model.devices()), most)
            })
        };
        let (ledger, fed) = (self.ledger.clone(), book.clone());
        let prompt_of = |id: usize| book.prompt(id).unwrap_or_default();
        let mut watch = Watch::new(progress, pictures, &prompt_of);
        let feed = move |hear: Hear| Feed::new(windows, sizes_of, ledger, fed, hear);
        let ended = crate::batch::run(feed, models.clone(), keeper, &mut watch);
        (ended, watch.known, watch.known_failed)
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
        let tally = std::mem::take(&mut *self.tally.lock().unwrap_or_else(PoisonError::into_inner));
        let (there, failed) = (there + known - known_failed, tally.failed + failed_before + known_failed);
        let mut parts = vec![format!("{} pictures painted", tally.kept)];
        parts.extend((there > 0).then(|| format!("{there} were there already")));
        parts.extend((tally.unloaded > 0).then(|| format!("{} were not tried for want of their model", tally.unloaded)));
        progress.say(&parts.join(", "));
        ended?;
        if let Some(reason) = tally.model {
            return Err(Error::Model(reason));
        }
        let mut wrongs = Vec::new();
        wrongs.extend((wrong > 0).then(|| format!("{wrong} lines were wrong")));
        let manifest = self.manifest.display();
        wrongs.extend((failed > 0).then(|| format!("{failed} pictures failed, as {manifest} records; --retry-failed tries them again")));
        if wrongs.is_empty() { Ok(()) } else { Err(Error::Picture(wrongs.join("; "))) }
    }
}

/// `sd-gen merge`: joins the manifests of shards.
pub(super) fn merge(args: &MergeArgs) -> Result<()> {
    let merged = crate::batch::merge(&args.out, &args.manifests)?;
    say(&format!(
        "{}: {} pictures, {} of them failed; {} records said the same as others",
        args.out.display(),
        merged.pictures,
        merged.failed,
        merged.duplicates
    ));
    for conflict in &merged.conflicts {
        say(&format!("warning: {conflict}"));
    }
    Ok(())
}
