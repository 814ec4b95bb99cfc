//! What the engine tells, as progress and as lines of output.

use crate::batch::{ImageEvent, RunObserver};
use crate::cli::process::cancelled;
use crate::cli::terminal::progress::Progress;
use crate::pipeline::{Observer, Stage};
use crate::{Error, Result};
use ::image::RgbImage;
use std::time::Duration;
use tracing::debug;

/// Listens to a run.
pub(in crate::cli) struct Watch<'a> {
    progress: &'a mut Progress,
    /// The prompt of a task's id.
    prompt_of: &'a dyn Fn(usize) -> String,
    /// Images that turned out to be there already.
    pub(in crate::cli) known: usize,
    /// Of them, those that failed.
    pub(in crate::cli) known_failed: usize,
}

impl<'a> Watch<'a> {
    pub(in crate::cli) fn new(progress: &'a mut Progress, all: Option<usize>, prompt_of: &'a dyn Fn(usize) -> String) -> Self {
        progress.begin_run(all);
        Self { progress, prompt_of, known: 0, known_failed: 0 }
    }
}

impl Observer for Watch<'_> {
    fn stage(&mut self, stage: Stage<'_>) -> Result<()> {
        self.progress.stage(stage)
    }

    fn depth(&mut self, done: usize, all: usize) -> Result<()> {
        self.progress.depth(done, all)
    }

    fn warn(&mut self, message: &str) {
        self.progress.warn(message);
    }
}

impl RunObserver for Watch<'_> {
    fn news(&mut self, news: ImageEvent) -> Result<()> {
        match news {
            ImageEvent::Begun { ids } => {
                let prompt = ids.first().map(|id| (self.prompt_of)(*id));
                self.progress.batch_started(&prompt.unwrap_or_default(), ids.len());
            }
            ImageEvent::Kept { seed, path, image, .. } => {
                debug!(seed, path = path.as_ref().map(|path| path.display().to_string()), "the image is written");
                self.progress.written(path.as_deref(), seed, &image)?;
            }
            ImageEvent::Failed { prompt, reason } => self.progress.failed(&prompt, &reason),
            ImageEvent::Known { failed } => {
                self.known += 1;
                self.known_failed += usize::from(failed);
                self.progress.known();
            }
            ImageEvent::Remark(remark) => self.progress.say(&remark),
        }
        Ok(())
    }

    fn would_look(&self) -> bool {
        self.progress.would_look()
    }

    fn formed(&mut self, images: Result<Vec<RgbImage>>, cost: Duration) {
        self.progress.formed(images, cost);
    }

    fn heartbeat(&mut self) -> Result<()> {
        if cancelled() { Err(Error::Cancelled) } else { Ok(()) }
    }
}
