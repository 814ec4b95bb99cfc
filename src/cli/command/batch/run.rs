//! A run of a batch: its folders and its manifest, from the beginning to the sentence at its end.

use super::args::BatchArgs;
use super::sheets::Sheets;
use crate::batch::{BatchSummary, EventSender, ImageNames, Job, JobFeed, JobState, JobTable, Ledger, ManifestSink, Shard, Sizes, sizes};
use crate::cli::command::output::make_folder;
use crate::cli::model::Models;
use crate::cli::terminal::listen_for_cancellation;
use crate::cli::terminal::progress::Progress;
use crate::cli::terminal::screen;
use crate::cli::terminal::show::several;
use crate::cli::terminal::watch::Watch;
use crate::disk::{Locks, folder_of, sweep};
use crate::settings::Draft;
use crate::{Error, Result};
use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

/// A run under way.
pub(super) struct Run {
    pub(super) ledger: Arc<Mutex<Ledger>>,
    pub(super) summary: Arc<Mutex<BatchSummary>>,
    manifest: PathBuf,
}

impl Run {
    /// Makes the folders, clears what dead processes left there, and opens the manifest.
    pub(super) fn begin(args: &BatchArgs, manifest: &Path, folders: &BTreeSet<PathBuf>) -> Result<Self> {
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

    pub(super) fn look(&self, job: &Job) -> Result<JobState> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner).look(job.key)
    }

    /// Gives the images that turned out to be there, and those of them that failed.
    pub(super) fn generate(
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
    pub(super) fn draw(&self, sheets: Sheets, base: &Draft, shard: Option<Shard>, progress: &Progress) -> Result<()> {
        sheets.write(
            base.run.output_dir.as_deref().unwrap_or(Path::new("")),
            shard,
            |key| self.ledger.lock().unwrap_or_else(PoisonError::into_inner).file(key),
            progress,
        )
    }

    /// What the run came to, as a sentence and as an exit code.
    pub(super) fn conclude(
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
