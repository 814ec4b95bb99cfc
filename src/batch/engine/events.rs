//! What the engine's threads tell the caller's, and how it stops them.

use crate::pipeline::{Estimate, Observer, Stage};
use crate::{Error, Result};
use ::image::RgbImage;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::SyncSender;
use std::time::{Duration, Instant};

/// What the caller hears of beside [`Stage`]s.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum ImageEvent {
    /// A batch comes to the device.
    Begun {
        /// The tasks' ids.
        ids: Vec<usize>,
    },
    /// An image was kept.
    Kept {
        /// The task's id.
        id: usize,
        /// The seed.
        seed: u64,
        /// Its file; `None` is standard output.
        path: Option<std::path::PathBuf>,
        /// What it shows.
        image: RgbImage,
    },
    /// An image failed.
    Failed {
        /// Its prompt.
        prompt: String,
        /// Why.
        reason: String,
    },
    /// An image needs no generating: it is there already, or another process has dealt with it.
    Known {
        /// It failed, and is not tried again.
        failed: bool,
    },
    /// Something that the user should know although the work goes on.
    Remark(String),
}

/// Hears of stages, as an observer, and of images.
pub(crate) trait RunObserver: Observer {
    /// There is something new.
    ///
    /// # Errors
    /// [`Error::Cancelled`] stops the run.
    fn news(&mut self, news: ImageEvent) -> Result<()>;

    /// A look at what is forming is wanted now.
    fn would_look(&self) -> bool {
        false
    }

    /// The look that was wanted, and what it cost.
    fn formed(&mut self, _images: Result<Vec<RgbImage>>, _cost: Duration) {}

    /// Nothing happened for a moment.
    ///
    /// # Errors
    /// [`Error::Cancelled`] stops the run.
    fn heartbeat(&mut self) -> Result<()>;
}

/// An event on its way to the caller's thread.
pub(super) enum EngineEvent {
    Load { component: &'static str, done: u64, all: Option<u64> },
    EncodePrompt,
    Denoise { step: usize, steps: usize, seeds: Vec<u64> },
    Decode { done: usize, all: usize },
    Depth { done: usize, all: usize },
    Forming(Result<Vec<RgbImage>>, Duration),
    Warn(String),
    ImageEvent(ImageEvent),
}

impl EngineEvent {
    pub(super) fn tell(self, observer: &mut dyn RunObserver) -> Result<()> {
        match self {
            EngineEvent::Load { component, done, all } => observer.stage(Stage::Load { component, done, all }),
            EngineEvent::EncodePrompt => observer.stage(Stage::EncodePrompt),
            EngineEvent::Denoise { step, steps, seeds } => observer.stage(Stage::Denoise { step, steps, images: &seeds }),
            EngineEvent::Decode { done, all } => observer.stage(Stage::Decode { done, all }),
            EngineEvent::Depth { done, all } => observer.depth(done, all),
            EngineEvent::Forming(images, cost) => {
                observer.formed(images, cost);
                Ok(())
            }
            EngineEvent::Warn(message) => {
                observer.warn(&message);
                Ok(())
            }
            EngineEvent::ImageEvent(news) => observer.news(news),
        }
    }
}

/// A thread's way to tell the caller.
#[derive(Clone)]
pub(crate) struct EventSender {
    pub(super) events: SyncSender<EngineEvent>,
    pub(super) stop: Arc<AtomicBool>,
    /// The caller waits for a look at what is forming.
    pub(super) look: Arc<AtomicBool>,
}

impl EventSender {
    /// One whose caller reads each event before the next is sent.
    #[cfg(test)]
    pub(in super::super) fn unbuffered() -> (Self, impl Iterator<Item = ()>) {
        let (events, heard) = std::sync::mpsc::sync_channel(0);
        (Self { events, stop: Arc::default(), look: Arc::default() }, heard.into_iter().map(drop))
    }

    fn send(&self, event: EngineEvent) -> Result<()> {
        // A caller that has gone has stopped the run.
        match self.stop.load(Ordering::Relaxed) || self.events.send(event).is_err() {
            true => Err(Error::Cancelled),
            false => Ok(()),
        }
    }

    /// The run is to end.
    pub(crate) fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// Tells the caller, who may have stopped listening.
    pub(crate) fn tell(&self, news: ImageEvent) {
        // What is written after the run was stopped is worth saying too, and nobody may be there to events it.
        let _ = self.events.send(EngineEvent::ImageEvent(news));
    }
}

impl Observer for EventSender {
    fn stage(&mut self, stage: Stage<'_>) -> Result<()> {
        self.send(match stage {
            Stage::Load { component, done, all } => EngineEvent::Load { component, done, all },
            Stage::EncodePrompt => EngineEvent::EncodePrompt,
            Stage::Denoise { step, steps, images } => EngineEvent::Denoise { step, steps, seeds: images.to_vec() },
            Stage::Decode { done, all } => EngineEvent::Decode { done, all },
        })
    }

    fn depth(&mut self, done: usize, all: usize) -> Result<()> {
        self.send(EngineEvent::Depth { done, all })
    }

    fn warn(&mut self, message: &str) {
        let _ = self.events.send(EngineEvent::Warn(message.to_owned()));
    }

    fn forming(&mut self, estimate: &Estimate<'_>) {
        // Estimated here, where the latents are, but only when the caller would look.
        if self.look.swap(false, Ordering::Relaxed) {
            let began = Instant::now();
            let images = estimate();
            let _ = self.events.send(EngineEvent::Forming(images, began.elapsed()));
        }
    }
}
