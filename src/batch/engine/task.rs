//! What goes through the engine, where its models come from, and where its images go.

use super::events::EventSender;
use crate::Result;
use crate::pipeline::{GeneratedImage, Observer, Pipeline, Stage};
use crate::settings::Request;
use ::image::RgbImage;
use std::sync::Arc;

/// One image to generate.
#[derive(Debug, Clone)]
pub(crate) struct Task {
    /// Whatever the caller knows it by.
    pub id: usize,
    /// Which model, as the caller's [`Load`] counts them.
    pub model: usize,
    /// What to generate.
    pub request: Arc<Request>,
    /// The seed.
    pub seed: u64,
    /// Who follows it by itself, and may take it back.
    pub watch: Option<Arc<dyn TaskWatch>>,
}

/// Follows one task through the engine, whatever else is at work, and may take it back.
pub(crate) trait TaskWatch: std::fmt::Debug + Send + Sync {
    /// Nobody wants it any more. Where that is so of all of a batch, its work ends at the next step; the result is [`Error::Cancelled`](crate::Error::Cancelled).
    fn is_withdrawn(&self) -> bool;

    /// Where its batch is.
    fn stage(&self, stage: Stage<'_>);

    /// A look at what is forming is wanted now.
    fn would_look(&self) -> bool;

    /// The look that was wanted.
    fn formed(&self, image: RgbImage);
}

impl Task {
    pub(super) fn is_withdrawn(&self) -> bool {
        self.watch.as_ref().is_some_and(|watch| watch.is_withdrawn())
    }
}

/// How a task ended.
#[derive(Debug)]
pub(crate) struct Finished {
    /// The task.
    pub task: Task,
    /// The image, or why there is none.
    pub result: Result<GeneratedImage>,
    /// Seconds that it took, the others of its batch shared out.
    pub seconds: f64,
}

/// Tasks that go through the device at once.
#[derive(Debug, Clone)]
pub(crate) struct Batch {
    /// They agree in model and [`Request::shape`]. A batch of none unloads all models.
    pub tasks: Vec<Task>,
    /// Batches that may be on the device while this one is, itself included. Where one waits for a serial part of its step, another
    /// keeps the processor busy.
    pub at_once: usize,
}

/// Loads a model by its number.
pub(crate) trait Load: Send {
    /// The model, loaded on one of its devices. Called once on each for each run of batches of that model.
    ///
    /// # Errors
    /// The model cannot be loaded: all of its tasks fail.
    fn load(&mut self, model: usize, device: usize, observer: &mut dyn Observer) -> Result<Pipeline>;

    /// On how many devices the model is loaded: its batches are dealt out to them.
    fn devices(&self, _model: usize) -> usize {
        1
    }

    /// The largest number that [`Load::devices`] will give.
    fn most_devices(&self) -> usize {
        1
    }

    /// There is memory for this model while another is still at work.
    fn fits_beside(&self, model: usize) -> bool;

    /// Models that stay loaded beside each other, where the memory allows it; the one that was not used for longest goes first.
    fn kept(&self) -> usize {
        1
    }
}

impl Load for Box<dyn Load> {
    fn load(&mut self, model: usize, device: usize, observer: &mut dyn Observer) -> Result<Pipeline> {
        (**self).load(model, device, observer)
    }

    fn devices(&self, model: usize) -> usize {
        (**self).devices(model)
    }

    fn most_devices(&self) -> usize {
        (**self).most_devices()
    }

    fn fits_beside(&self, model: usize) -> bool {
        (**self).fits_beside(model)
    }

    fn kept(&self) -> usize {
        (**self).kept()
    }
}

/// Takes what was generated, in the order of the batches.
///
/// Names and files are made in one place, `image_file.rs`. There are three sinks because what an image owes to others when its file is
/// there differs in kind, and so does the order: a run of the flags has standard output and latents, and ends at the first error that every
/// other image would meet; a batch records an image between its bytes and its name, so that other processes and a later run know of it;
/// the server tells its queue, and goes on whatever happened.
pub(crate) trait Sink: Send {
    /// Keeps the images of a batch, and tells of each.
    ///
    /// # Errors
    /// No further image can be kept: the run ends.
    fn take(&mut self, finished: Vec<Finished>, events: &EventSender) -> Result<()>;
}
