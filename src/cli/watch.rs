//! What the engine tells, as progress and as lines of output.

use super::cancelled;
use super::progress::Progress;
use crate::batch::{Audience, News};
use crate::pipeline::{Observer, Stage};
use crate::{Error, Result};

/// Listens to a run.
pub(super) struct Watch<'a> {
    progress: &'a mut Progress,
    /// The prompt of a task's id.
    prompt_of: &'a dyn Fn(usize) -> String,
    done: usize,
    /// Pictures that turned out to be there already.
    pub(super) known: usize,
    /// Of them, those that failed.
    pub(super) known_failed: usize,
    all: Option<usize>,
    prompt: String,
}

impl<'a> Watch<'a> {
    pub(super) fn new(progress: &'a mut Progress, all: Option<usize>, prompt_of: &'a dyn Fn(usize) -> String) -> Self {
        Self { progress, prompt_of, done: 0, known: 0, known_failed: 0, all, prompt: String::new() }
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
                self.prompt = ids.first().map(|id| (self.prompt_of)(*id)).unwrap_or_default();
            }
            News::Kept { seed, path, .. } => {
                self.done += 1;
                self.progress.written(path.as_deref(), seed)?;
            }
            News::Failed { id, reason } => {
                self.done += 1;
                let prompt: String = (self.prompt_of)(id).chars().take(60).collect();
                self.progress.warn_of(&format!("\"{prompt}\": {reason}"));
            }
            News::Known { failed } => {
                self.done += 1;
                self.known += 1;
                self.known_failed += usize::from(failed);
            }
            News::Remark(remark) => {
                self.progress.say(&remark);
                return Ok(());
            }
        }
        self.progress.pictures(self.done, self.all, &self.prompt);
        Ok(())
    }

    fn heartbeat(&mut self) -> Result<()> {
        if cancelled() { Err(Error::Cancelled) } else { Ok(()) }
    }
}
