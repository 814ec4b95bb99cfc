//! Keeps images: a file that is whole, a record that is safe, then the file's name, in this order.

use super::engine::{EventSender, Finished, ImageEvent, Sink};
use super::feed::JobTable;
use super::image_file::{ImageNames, StagedImage, generated_png};
use super::ledger::Ledger;
use super::manifest::{Record, Status};
use super::plan::Job;
use crate::disk::{folder_of, seen_from, sync_folder};
use crate::pipeline::GeneratedImage;
use crate::{Error, Result};
use ::image::RgbImage;
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

/// What a run came to.
#[derive(Debug, Default)]
pub(crate) struct BatchSummary {
    /// Images that were kept.
    pub kept: usize,
    /// Images that failed.
    pub failed: usize,
    /// Images that were not tried because their model could not be loaded.
    pub unloaded: usize,
    /// Why it could not.
    pub model: Option<String>,
    /// Images that this machine is too small or too broken for. They are not recorded, so that another time they are tried again.
    pub beyond: usize,
}

/// Puts images under their names, and tells the ledger.
pub(crate) struct ManifestSink {
    /// The jobs.
    pub table: JobTable,
    /// Who is told.
    pub ledger: Arc<Mutex<Ledger>>,
    /// What it comes to.
    pub summary: Arc<Mutex<BatchSummary>>,
    /// The names of the run's images.
    pub names: ImageNames,
}

/// An image whose bytes are on the disk.
struct Ready {
    job: Job,
    file: StagedImage,
    record: Record,
    image: RgbImage,
}

impl Sink for ManifestSink {
    fn take(&mut self, finished: Vec<Finished>, events: &EventSender) -> Result<()> {
        let (mut ready, mut failed, mut done) = (Vec::new(), Vec::new(), Vec::new());
        let mut beyond = Vec::new();
        let mut stopped = Ok(());
        for Finished { task, result, seconds } in finished {
            let Some(job) = self.table.take(task.id) else { continue };
            done.push(job.key);
            let mut record = record_of(&job, seconds);
            match result.and_then(|generated| Ok((self.stage(&job, &generated)?, generated.image))) {
                Ok((file, image)) => {
                    self.note(&mut record, &file);
                    ready.push(Ready { job, file, record, image });
                }
                // The model may be there the next time; its lines are not at fault.
                Err(Error::Model(reason)) => {
                    let is_new = self.unloaded(&reason);
                    // To tell may wait for the caller, who may ask for the summary: nothing is locked here.
                    if is_new {
                        events.tell(ImageEvent::Remark(format!("warning: {reason}")));
                    }
                }
                // Nothing more can be written; what is ready may be the last that fits.
                Err(error @ Error::Io { .. }) if error.is_of_machine() => {
                    stopped = Err(error);
                    break;
                }
                Err(error) if error.is_of_machine() => beyond.push((job.request.prompt.clone(), error.to_string())),
                Err(error) => {
                    record.reason = Some(error.to_string());
                    failed.push(record);
                }
            }
        }
        let records: Vec<Record> = ready.iter().map(|r| &r.record).chain(&failed).cloned().collect();
        if !records.is_empty() {
            self.ledger().record(&records)?;
        }
        self.summary().failed += failed.len();
        self.summary().beyond += beyond.len();
        let reasons = failed.into_iter().map(|Record { prompt, reason, .. }| (prompt, reason.unwrap_or_default()));
        for (prompt, reason) in reasons.chain(beyond) {
            events.tell(ImageEvent::Failed { prompt, reason });
        }
        let folders: BTreeSet<PathBuf> = ready.iter().map(|r| folder_of(r.file.path()).to_owned()).collect();
        for image in ready {
            self.publish(image, events)?;
        }
        for folder in folders {
            sync_folder(&folder).map_err(Error::io(&folder))?;
        }
        self.ledger().release(&done)?;
        stopped
    }
}

impl ManifestSink {
    fn ledger(&self) -> std::sync::MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn summary(&self) -> std::sync::MutexGuard<'_, BatchSummary> {
        self.summary.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts an image whose model could not be loaded; tells whether the reason is another than the last one.
    fn unloaded(&self, reason: &str) -> bool {
        let mut summary = self.summary();
        summary.unloaded += 1;
        let is_new = summary.model.as_deref() != Some(reason);
        if is_new {
            summary.model = Some(reason.to_owned());
        }
        is_new
    }

    /// Records an image's file, its path as it is from the manifest.
    fn note(&self, record: &mut Record, file: &StagedImage) {
        let seen = seen_from(folder_of(self.ledger().manifest().path()), file.path());
        record.generated(&seen, file.size(), file.sha256());
    }

    fn stage(&self, job: &Job, generated: &GeneratedImage) -> Result<StagedImage> {
        self.names.stage(job.target.clone(), generated_png(generated, &job.request, &job.generator)?)
    }

    /// Gives the file its name, which is in the record already.
    fn publish(&self, ready: Ready, events: &EventSender) -> Result<()> {
        let Ready { job, mut file, mut record, image } = ready;
        loop {
            let path = file.path().to_owned();
            match file.publish() {
                Ok(None) => {
                    self.summary().kept += 1;
                    events.tell(ImageEvent::Kept { id: job.id, seed: job.seed, path: Some(path), image });
                    return Ok(());
                }
                Ok(Some(renamed)) => {
                    file = renamed;
                    self.note(&mut record, &file);
                    self.ledger().record(std::slice::from_ref(&record))?;
                }
                Err(error) if error.is_of_machine() => return Err(error),
                Err(error) => {
                    let record = Record { reason: Some(error.to_string()), ..record_of(&job, record.seconds) };
                    self.summary().failed += 1;
                    events.tell(ImageEvent::Failed { prompt: job.request.prompt.clone(), reason: error.to_string() });
                    return self.ledger().record(&[record]);
                }
            }
        }
    }
}

/// The record of a job that is not generated yet.
fn record_of(job: &Job, seconds: f64) -> Record {
    Record {
        key: job.key,
        status: Status::Failed,
        reason: None,
        line: job.line,
        path: None,
        size: None,
        sha256: None,
        seed: job.seed,
        prompt: job.request.prompt.clone(),
        model: job.generator.label.to_string(),
        dtype: job.generator.dtype.as_str().to_owned(),
        width: job.request.canvas.width,
        height: job.request.canvas.height,
        steps: job.request.sampling.steps,
        // Milliseconds say enough.
        seconds: (seconds * 1000.0).round() / 1000.0,
    }
}

#[cfg(test)]
mod tests {
    use super::super::engine::Task;
    use super::super::key::Key;
    use super::super::ledger::{JobState, LedgerOptions};
    use super::super::plan::tests::job;
    use super::*;
    use candle_core::{DType, Device, Tensor};
    use std::path::Path;

    fn sink(folder: &Path) -> ManifestSink {
        ManifestSink {
            table: JobTable::default(),
            ledger: Arc::new(Mutex::new(Ledger::open(&folder.join("m.jsonl"), LedgerOptions::default()).unwrap())),
            summary: Arc::default(),
            names: ImageNames::default(),
        }
    }

    /// A job whose file is in a folder, on its way to a sink.
    fn added(sink: &ManifestSink, folder: &Path, id: usize) -> (Job, Task) {
        let mut job = job(id, 0, |draft| draft.seed = Some(crate::settings::Seed::Is(id as u64)));
        job.target.path = folder.join(format!("{id}.png"));
        sink.table.add(job.clone());
        let task = Task { id, model: 0, request: job.request.clone(), seed: job.seed, watch: None };
        (job, task)
    }

    fn generated(task: Task) -> Finished {
        let latents = Tensor::zeros((1, 4, 1, 1), DType::F32, &Device::Cpu).unwrap();
        let image = GeneratedImage { seed: task.seed, image: RgbImage::new(8, 8), latents };
        Finished { task, result: Ok(image), seconds: 1.0 }
    }

    #[test]
    fn an_image_is_claimed_until_it_has_its_name() {
        let folder = tempfile::tempdir().unwrap();
        let mut sink = sink(folder.path());
        let (jobs, tasks): (Vec<Job>, Vec<Task>) = (0..2).map(|id| added(&sink, folder.path(), id)).unzip();
        let keys: Vec<Key> = jobs.iter().map(|job| job.key).collect();
        sink.ledger().claim(&keys).unwrap();
        let (events, heard) = EventSender::unbuffered();
        let mut other = Ledger::open(&folder.path().join("m.jsonl"), LedgerOptions::default()).unwrap();
        let writer = std::thread::spawn(move || sink.take(tasks.into_iter().map(generated).collect(), &events));
        // It waits now for the news of the first to be heard, and the second has no name.
        while !jobs[0].target.path.exists() {
            assert!(!writer.is_finished(), "it ended without a file");
            std::thread::yield_now();
        }
        assert!(!jobs[1].target.path.exists());
        let there = |at: usize| JobState::Generated(jobs[at].target.path.clone());
        assert_eq!(other.claim(&keys).unwrap(), [there(0), JobState::ClaimedElsewhere]);
        assert_eq!(heard.count(), 2);
        writer.join().unwrap().unwrap();
        assert_eq!(other.claim(&keys).unwrap(), [there(0), there(1)]);
    }

    #[test]
    fn what_the_machine_is_too_small_for_is_tried_again() {
        let folder = tempfile::tempdir().unwrap();
        let mut sink = sink(folder.path());
        let (jobs, tasks): (Vec<Job>, Vec<Task>) = (0..4).map(|id| added(&sink, folder.path(), id)).unzip();
        let keys: Vec<Key> = jobs.iter().map(|job| job.key).collect();
        sink.ledger().claim(&keys).unwrap();
        let (events, heard) = EventSender::unbuffered();
        let listener = std::thread::spawn(move || heard.count());
        let failures = [
            Error::Memory("too large".into()),
            Error::Image("not numbers".into()),
            Error::Tensor(candle_core::Error::Cuda("the device is gone".into())),
            // Too many open files.
            Error::io(&jobs[3].target.path)(std::io::Error::from_raw_os_error(24)),
        ];
        let finished = tasks.into_iter().zip(failures).map(|(task, error)| Finished { task, result: Err(error), seconds: 0.0 });
        let stopped = sink.take(finished.collect(), &events).unwrap_err();
        assert!(matches!(stopped, Error::Io { .. }), "every other image would meet the same");
        drop(events);
        assert_eq!(listener.join().unwrap(), 3);
        let mut states = Ledger::open(&folder.path().join("m.jsonl"), LedgerOptions::default()).unwrap().claim(&keys).unwrap();
        assert_eq!(states.remove(1), JobState::Failed("not numbers".into()));
        assert_eq!(states, [JobState::Open, JobState::Open, JobState::Open]);
        // Both are read under one lock: a guard lives until its statement ends, so a second one there would wait for ever.
        let BatchSummary { failed, beyond, .. } = *sink.summary();
        assert_eq!((failed, beyond), (1, 2));
    }
}
