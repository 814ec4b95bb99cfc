//! What the engine tells, as progress and as lines of output.

use super::cancelled;
use super::progress::Progress;
use crate::batch::{Audience, News};
use crate::pipeline::{Observer, Stage};
use crate::{Error, Result};
use ::image::RgbImage;
use std::time::Duration;
use tracing::debug;

/// Listens to a run.
pub(super) struct Watch<'a> {
    progress: &'a mut Progress,
    /// The prompt of a task's id.
    prompt_of: &'a dyn Fn(usize) -> String,
    /// Pictures that turned out to be there already.
    pub(super) known: usize,
    /// Of them, those that failed.
    pub(super) known_failed: usize,
}

impl<'a> Watch<'a> {
    pub(super) fn new(progress: &'a mut Progress, all: Option<usize>, prompt_of: &'a dyn Fn(usize) -> String) -> Self {
        progress.begin_run(all);
        Self { progress, prompt_of, known: 0, known_failed: 0 }
    }
}

impl Observer for Watch<'_> {
    fn stage(&mut self, stage: Stage<'_>) -> Result<()> {
        self.progress.stage(stage)
    }

    fn warn(&mut self, message: &str) {
        self.progress.warn(message);
    }
}

impl Audience for Watch<'_> {
    fn news(&mut self, news: News) -> Result<()> {
        match news {
            News::Begun { ids } => {
                let prompt = ids.first().map(|id| (self.prompt_of)(*id));
                self.progress.batch_started(&prompt.unwrap_or_default(), ids.len());
            }
            News::Kept { seed, path, picture, .. } => {
                debug!(seed, path = path.as_ref().map(|path| path.display().to_string()), "the picture is written");
                self.progress.written(path.as_deref(), seed, &picture)?;
            }
            News::Failed { prompt, reason } => self.progress.failed(&prompt, &reason),
            News::Known { failed } => {
                self.known += 1;
                self.known_failed += usize::from(failed);
                self.progress.known();
            }
            News::Remark(remark) => self.progress.say(&remark),
        }
        Ok(())
    }

    fn would_look(&self) -> bool {
        self.progress.would_look()
    }

    fn formed(&mut self, pictures: Result<Vec<RgbImage>>, cost: Duration) {
        self.progress.formed(pictures, cost);
    }

    fn heartbeat(&mut self) -> Result<()> {
        if cancelled() { Err(Error::Cancelled) } else { Ok(()) }
    }
}
