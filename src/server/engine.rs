//! The batch's engine, fed from the queue: one thread that generates for as long as the server runs.

use super::job::{ImageStatus, ServedJob};
use super::queue::JobQueue;
use super::studio::Studio;
use crate::batch::{Batch, EventSender, Finished, ImageEvent, ImageNames, ImageTarget, RunObserver, Sink, generated_png, run};
use crate::disk::{folder_of, sync_folder};
use crate::pipeline::{GeneratedImage, Observer, Stage};
use crate::{Error, Result};
use std::sync::Arc;
use std::time::Duration;
use tracing::{error, info, warn};

/// Runs the engine until the queue is stopped.
pub(super) fn work(queue: &Arc<JobQueue>, studio: &Arc<dyn Studio>) {
    while !queue.is_stopping() {
        let feed = {
            let (queue, studio) = (queue.clone(), studio.clone());
            move |events| QueueFeed { queue, studio, events }
        };
        let sink = QueueSink { queue: queue.clone(), studio: studio.clone() };
        let mut audience = EngineAudience { queue: queue.clone() };
        match run(feed, studio.loader(), sink, &mut audience) {
            Ok(()) | Err(Error::Cancelled) if queue.is_stopping() => {}
            ended => {
                let why = ended.err().map_or("the engine ended".to_owned(), |error| error.to_string());
                error!("the engine begins anew: {why}");
                queue.fail_taken(&why);
                std::thread::sleep(Duration::from_millis(500));
            }
        }
    }
}

/// The batches, as the queue gives them.
struct QueueFeed {
    queue: Arc<JobQueue>,
    studio: Arc<dyn Studio>,
    events: EventSender,
}

impl Iterator for QueueFeed {
    type Item = Result<Batch>;

    fn next(&mut self) -> Option<Self::Item> {
        let (tasks, at_once) = self.queue.next(&*self.studio, &|| self.events.is_stopped())?;
        Some(Ok(Batch { tasks, at_once }))
    }
}

/// Puts images into the server's folder.
struct QueueSink {
    queue: Arc<JobQueue>,
    studio: Arc<dyn Studio>,
}

impl Sink for QueueSink {
    fn take(&mut self, finished: Vec<Finished>, _: &EventSender) -> Result<()> {
        for Finished { task, result, seconds } in finished {
            let status = match result.and_then(|image| self.keep(task.id, &task.request, &image)) {
                Ok(()) => ImageStatus::Done,
                Err(Error::Cancelled) if self.queue.is_stopping() => continue,
                Err(Error::Cancelled) => ImageStatus::Cancelled,
                Err(error) => {
                    if matches!(error, Error::Model(_)) {
                        self.studio.forget(task.model);
                    }
                    warn!("an image failed: {error}");
                    ImageStatus::Failed(error.to_string())
                }
            };
            self.queue.ended(task.id, status, seconds);
        }
        Ok(())
    }
}

impl QueueSink {
    /// Nothing is kept of what nobody wants any more.
    fn keep(&self, task: usize, request: &crate::settings::Request, generated: &GeneratedImage) -> Result<()> {
        let Some(((id, at), generator)) = self.queue.place_of(task) else { return Err(Error::Cancelled) };
        let path = ServedJob::image_path(self.queue.folder(), &id, at);
        // An image of this very job that a killed server left is the same.
        let target = ImageTarget::new(&path, true, true);
        ImageNames::default().stage(target, generated_png(generated, request, &generator)?)?.publish_somewhere()?;
        sync_folder(folder_of(&path)).map_err(Error::io(&path))
    }
}

/// Hears of loading, and of what the log should know.
struct EngineAudience {
    queue: Arc<JobQueue>,
}

impl Observer for EngineAudience {
    fn stage(&mut self, stage: Stage<'_>) -> Result<()> {
        match stage {
            Stage::Load { component, done, all } => {
                let share = all.filter(|all| *all > 0).map(|all| (done as f64 / all as f64 * 100.0).round() / 100.0);
                self.queue.set_loading(Some((component.to_owned(), share)));
            }
            _ => self.queue.set_loading(None),
        }
        Ok(())
    }

    fn warn(&mut self, message: &str) {
        warn!("{message}");
    }
}

impl RunObserver for EngineAudience {
    fn news(&mut self, news: ImageEvent) -> Result<()> {
        match news {
            ImageEvent::Begun { ids } => self.queue.begun(&ids),
            ImageEvent::Remark(remark) => info!("{remark}"),
            ImageEvent::Kept { .. } | ImageEvent::Failed { .. } | ImageEvent::Known { .. } => {}
        }
        Ok(())
    }

    fn heartbeat(&mut self) -> Result<()> {
        if self.queue.is_stopping() { Err(Error::Cancelled) } else { Ok(()) }
    }
}
