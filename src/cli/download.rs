//! A model that is named by its hub id, and what is shown while it is fetched.

use super::args::ProgressStyle;
use super::{OFFLINE, cancelled, say};
use crate::hub::{Event, HubId, Settings, fetch};
use crate::weights::{Checkpoint, OpenOptions};
use crate::{Error, Result};
use candle_core::DType;
use indicatif::{ProgressBar, ProgressStyle as BarStyle};
use serde_json::json;
use std::io::IsTerminal;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// How often a program hears of a file that grows.
const EVENT_EVERY: Duration = Duration::from_millis(500);

/// Bytes of a file that somebody waits for.
const WORTH_A_LINE: u64 = 1_000_000;

/// What is shown on standard error.
#[derive(Debug, Clone, Copy)]
pub(super) struct Showing {
    pub(super) style: ProgressStyle,
    pub(super) quiet: bool,
}

impl Default for Showing {
    fn default() -> Self {
        Self { style: ProgressStyle::Auto, quiet: false }
    }
}

/// Opens the model `id`, fetched where it is not in the cache.
///
/// # Errors
/// As [`fetch`] and [`Checkpoint::open`].
pub(super) fn open(id: &HubId, dtype: DType, showing: Showing) -> Result<Checkpoint> {
    let mut settings = Settings::from_environment()?;
    if OFFLINE.load(Ordering::Relaxed) {
        settings.offline = Some("--offline");
    }
    // Weights of half the size lose nothing where half precision computes.
    let prefer_variant = (dtype != DType::F32).then(|| "fp16".to_owned());
    let mut shown = Shown::new(showing);
    let path = fetch(&settings, id, prefer_variant.as_deref(), &mut |event| shown.event(event));
    drop(shown);
    Checkpoint::open_with(&path?, &OpenOptions { prefer_variant })
}

/// A bar for people, events for programs, and otherwise a line for each large file.
struct Shown {
    style: ProgressStyle,
    quiet: bool,
    bar: Option<ProgressBar>,
    file: String,
    last: Option<Instant>,
}

impl Shown {
    fn new(showing: Showing) -> Shown {
        let terminal = std::io::stderr().is_terminal();
        let style = match showing.style {
            ProgressStyle::Auto if terminal && !showing.quiet => ProgressStyle::Bar,
            chosen => chosen,
        };
        Shown { style, quiet: showing.quiet, bar: None, file: String::new(), last: None }
    }

    fn event(&mut self, event: Event<'_>) -> Result<()> {
        if cancelled() {
            return Err(Error::Cancelled);
        }
        match event {
            Event::Note("") => {}
            Event::Note(note) => self.say(note),
            Event::Received { path, done, size } => self.received(path, done, size),
        }
        Ok(())
    }

    fn say(&self, note: &str) {
        match (&self.bar, self.style) {
            (_, ProgressStyle::Json) => say(&json!({ "event": "message", "message": note }).to_string()),
            _ if self.quiet => {}
            (Some(bar), _) => bar.suspend(|| say(note)),
            (None, _) => say(note),
        }
    }

    fn received(&mut self, path: &str, done: u64, size: Option<u64>) {
        let new = self.file != path;
        if new {
            path.clone_into(&mut self.file);
        }
        match self.style {
            ProgressStyle::Json if new || self.last.is_none_or(|last| last.elapsed() >= EVENT_EVERY) || Some(done) == size => {
                self.last = Some(Instant::now());
                say(&json!({ "event": "download", "file": path, "bytes": done, "total": size }).to_string());
            }
            ProgressStyle::Bar => {
                let bar = self.bar.get_or_insert_with(|| {
                    let template = "{msg} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec} [{eta}]";
                    let style = BarStyle::with_template(template).unwrap_or_else(|_| BarStyle::default_bar());
                    ProgressBar::new(0).with_style(style)
                });
                if new {
                    bar.reset();
                    bar.set_message(path.to_owned());
                }
                bar.set_length(size.unwrap_or(done));
                bar.set_position(done);
            }
            ProgressStyle::Auto if new && !self.quiet => match size {
                Some(bytes) if bytes >= WORTH_A_LINE => say(&format!("fetching {path}, {:.0} MB", bytes as f64 / 1e6)),
                _ => {}
            },
            _ => {}
        }
    }
}

impl Drop for Shown {
    fn drop(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}
