//! A model that is named by its hub id, and what is shown while it is fetched.

use crate::cli::process::OFFLINE;
use crate::cli::process::cancelled;
use crate::cli::terminal::progress::Progress;
use crate::cli::terminal::screen;
use crate::hub::{FetchEvent, HubId, HubSettings, Missing, fetch, missing};
use crate::settings::{Draft, ProgressStyle};
use crate::weights::{Checkpoint, OpenOptions};
use crate::{Error, Result};
use candle_core::DType;
use std::path::PathBuf;
use std::sync::atomic::Ordering;

/// Bytes of a file that somebody waits for.
const WORTH_A_LINE: u64 = 1_000_000;

/// What is shown on standard error.
#[derive(Debug, Clone, Copy)]
pub(in crate::cli) struct DownloadStyle {
    pub(in crate::cli) style: ProgressStyle,
    pub(in crate::cli) quiet: bool,
}

impl DownloadStyle {
    pub(in crate::cli) fn of(draft: &Draft) -> Self {
        let run = draft.run.decide(&());
        Self { style: run.progress, quiet: run.quiet }
    }
}

impl Default for DownloadStyle {
    fn default() -> Self {
        Self { style: ProgressStyle::Auto, quiet: false }
    }
}

/// Opens the model `id`, fetched where it is not in the cache.
///
/// # Errors
/// As [`fetch`] and [`Checkpoint::open`].
pub(in crate::cli) fn open(id: &HubId, dtype: DType, showing: DownloadStyle, options: OpenOptions) -> Result<Checkpoint> {
    let prefer_variant = variant(dtype);
    let mut shown = DownloadView::new(showing);
    let path = fetch(&settings()?, id, prefer_variant.as_deref(), &mut |event| shown.event(event));
    drop(shown);
    Checkpoint::open_with(&path?, &OpenOptions { prefer_variant, ..options })
}

/// The weights of the model `id` that [`open`] would fetch.
///
/// # Errors
/// As [`missing`].
pub(in crate::cli) fn to_fetch(id: &HubId, dtype: DType, showing: DownloadStyle) -> Result<Vec<Missing>> {
    let mut shown = DownloadView::new(showing);
    missing(&settings()?, id, variant(dtype).as_deref(), &mut |event| shown.event(event))
}

fn settings() -> Result<HubSettings> {
    let mut settings = HubSettings::from_environment()?;
    if OFFLINE.load(Ordering::Relaxed) {
        settings.offline = Some("--offline");
    }
    Ok(settings)
}

/// Weights of half the size lose nothing where half precision computes.
fn variant(dtype: DType) -> Option<String> {
    (dtype != DType::F32).then(|| "fp16".to_owned())
}

/// A bar for people, events for programs, and otherwise a line for each large file.
struct DownloadView {
    progress: Progress,
    file: String,
}

impl DownloadView {
    fn new(showing: DownloadStyle) -> DownloadView {
        DownloadView { progress: Progress::new(showing.style, showing.quiet), file: String::new() }
    }

    fn event(&mut self, event: FetchEvent<'_>) -> Result<()> {
        if cancelled() {
            return Err(Error::Cancelled);
        }
        match event {
            FetchEvent::Note("") => {}
            FetchEvent::Note(note) => self.progress.say(note),
            FetchEvent::Received { path, done, size } => self.received(path, done, size),
        }
        Ok(())
    }

    fn received(&mut self, path: &str, done: u64, size: Option<u64>) {
        if self.file != path {
            path.clone_into(&mut self.file);
            let live = self.progress.is_live() || screen::is_json();
            if let Some(bytes) = size.filter(|bytes| *bytes >= WORTH_A_LINE && !live) {
                self.progress.say(&format!("fetching {path}, {:.0} MB", bytes as f64 / 1e6));
            }
        }
        self.progress.download(path, done, size);
    }
}

/// Fetches a network that stands alone in its repository, in full precision, and gives the path to open.
///
/// # Errors
/// It cannot be fetched, or the hub has none of that name.
pub(in crate::cli) fn network(id: &HubId, showing: DownloadStyle) -> Result<PathBuf> {
    let mut shown = DownloadView::new(showing);
    fetch(&settings()?, id, None, &mut |event| shown.event(event))
}
