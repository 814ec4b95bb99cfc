//! The queue: every job that is known, in what order images are generated, and who is told.

use super::job::{ImageStatus, JobStatus, ServedImage, ServedJob, now};
use super::journal::JobJournal;
use super::studio::{ResolvedJob, Studio};
use super::{RequestLimits, settings};
use crate::batch::{Task, TaskWatch};
use crate::pipeline::Stage;
use crate::settings::Shape;
use crate::{Error, Result};
use ::image::RgbImage;
use serde_json::Value as Json;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tracing::{info, warn};

/// After so long without work, what is kept for the next image is given back: as long as the allocator keeps it while there is work.
const REST_AFTER: Duration = Duration::from_secs(10);

/// What ended jobs may take, as it is written down. A graph of ComfyUI's is kept with its job.
const HISTORY_BYTES: usize = 64 << 20;

/// An image by its job and its number there.
type ImagePlace = (Arc<str>, usize);

/// Numbers for `/metrics`.
#[derive(Debug, Default, Clone)]
pub(super) struct QueueCounts {
    /// Jobs by how they ended, and all that were accepted or refused.
    pub(super) accepted: u64,
    pub(super) refused: u64,
    pub(super) done: u64,
    pub(super) failed: u64,
    pub(super) cancelled: u64,
    pub(super) images: u64,
    pub(super) seconds: f64,
}

struct QueueState {
    jobs: BTreeMap<Arc<str>, ServedJob>,
    waiting: VecDeque<ImagePlace>,
    /// The engine's tasks by their ids.
    tasks: HashMap<usize, ImagePlace>,
    next_task: usize,
    /// The sum of [`ServedJob::bytes`].
    history: usize,
    counts: QueueCounts,
    /// What is being loaded, and the share that is.
    loading: Option<(String, Option<f64>)>,
    /// The models are to be unloaded.
    unload: bool,
}

/// The queue of a server.
pub(super) struct JobQueue {
    state: Mutex<QueueState>,
    /// There is more to do.
    wake: Condvar,
    stopping: AtomicBool,
    limits: RequestLimits,
    /// Ended jobs that are remembered.
    kept: usize,
    folder: PathBuf,
    journal: JobJournal,
    /// Counts all changes of all jobs.
    pub(super) changed: watch::Sender<u64>,
}

/// Why a job is not taken.
#[derive(Debug)]
pub(super) enum Refusal {
    /// Try again after so many seconds.
    Full(u64),
    /// The sentence says why.
    Wrong(Error),
}

impl JobQueue {
    /// # Errors
    /// The folder cannot be written, or another server has it.
    pub(super) fn open(folder: &Path, limits: RequestLimits, kept: usize) -> Result<Self> {
        let state = QueueState {
            jobs: BTreeMap::new(),
            waiting: VecDeque::new(),
            tasks: HashMap::new(),
            next_task: 0,
            history: 0,
            counts: QueueCounts::default(),
            loading: None,
            unload: false,
        };
        Ok(Self {
            state: Mutex::new(state),
            wake: Condvar::new(),
            stopping: AtomicBool::new(false),
            limits,
            kept,
            folder: folder.to_owned(),
            journal: JobJournal::open(folder)?,
            changed: watch::Sender::new(0),
        })
    }

    fn state(&self) -> MutexGuard<'_, QueueState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes up the jobs of an earlier run; those that cannot be resolved any more fail.
    pub(super) fn resume(&self, studio: &dyn Studio, uploads: &super::files::UploadFolder) {
        let (jobs, remarks) = self.journal.read();
        for remark in remarks {
            warn!("{remark}");
        }
        let mut resumed = 0;
        for mut job in jobs {
            if !job.status.has_ended() {
                job.uploads = uploads.again(&Json::Object(job.written.clone()).to_string());
                let resolved = settings::from_written(super::journal::settings_of(&job))
                    .map_err(Error::Input)
                    .and_then(|draft| studio.resolve(draft, &|path| uploads.is_permitted(path)));
                match resolved {
                    Ok(resolved) if resolved.images.len() == job.images.len() => {
                        job.model = resolved.model;
                        for (at, (request, seed)) in resolved.images.into_iter().enumerate() {
                            if let Some(image) = job.images.get_mut(at).filter(|image| image.status == ImageStatus::Waiting) {
                                *image = ServedImage::new(request, seed, &resolved.generator);
                            }
                        }
                        job.generator = Some(resolved.generator);
                        job.status = JobStatus::Queued;
                        resumed += 1;
                    }
                    other => {
                        let why = other.err().map_or("its files changed".to_owned(), |error| error.to_string());
                        warn!("job {}: cannot go on: {why}", job.id);
                        for image in job.images.iter_mut().filter(|image| !image.status.has_ended()) {
                            image.status = ImageStatus::Failed(format!("cannot go on after a restart: {why}"));
                        }
                    }
                }
            }
            let id = job.id.clone();
            let mut state = self.state();
            if job.status.has_ended() {
                job.bytes = JobJournal::text(&job).len();
                job.written = serde_json::Map::new();
                state.history += job.bytes;
            }
            let places = job.images.iter().enumerate().filter(|(_, image)| image.status == ImageStatus::Waiting);
            let places: Vec<ImagePlace> = places.map(|(at, _)| (id.clone(), at)).collect();
            state.waiting.extend(places);
            state.jobs.insert(id.clone(), job);
            self.end_if_over(&mut state, &id);
        }
        uploads.tidy();
        if resumed > 0 {
            info!("{resumed} jobs of an earlier run go on");
        }
    }

    /// Whether there is room for one more job.
    pub(super) fn has_room(&self, images: usize) -> Result<(), Refusal> {
        let mut state = self.state();
        if self.is_stopping() || state.waiting.len() + images > self.limits.queue {
            state.counts.refused += 1;
            let counts = &state.counts;
            let each = if counts.images > 0 { counts.seconds / counts.images as f64 } else { 5.0 };
            return Err(Refusal::Full(((each * state.waiting.len() as f64 / 4.0) as u64).clamp(1, 600)));
        }
        Ok(())
    }

    /// Takes a job, behind the others or before them; it is on the disk when this returns. Gives its id, and how many are before it.
    ///
    /// # Errors
    /// The queue is full, or the disk is.
    pub(super) fn submit(&self, mut job: ServedJob, resolved: ResolvedJob, front: bool) -> Result<(Arc<str>, usize), Refusal> {
        self.has_room(resolved.images.len())?;
        job.model = resolved.model;
        job.images = resolved.images.into_iter().map(|(request, seed)| ServedImage::new(request, seed, &resolved.generator)).collect();
        job.generator = Some(resolved.generator);
        job.remarks.extend(resolved.remarks);
        self.journal.write(&job).map_err(Refusal::Wrong)?;
        let id = job.id.clone();
        let mut state = self.state();
        let position = if front { 0 } else { state.position_of_next() };
        state.counts.accepted += 1;
        let places: Vec<ImagePlace> = (0..job.images.len()).map(|at| (id.clone(), at)).collect();
        match front {
            true => places.into_iter().rev().for_each(|place| state.waiting.push_front(place)),
            false => state.waiting.extend(places),
        }
        state.jobs.insert(id.clone(), job);
        drop(state);
        info!(job = &*id, position, "job accepted");
        self.wake.notify_all();
        self.bump();
        Ok((id, position))
    }

    fn bump(&self) {
        self.changed.send_modify(|count| *count += 1);
    }

    /// Looks at a job.
    pub(super) fn with<T>(&self, id: &str, look: impl FnOnce(&ServedJob, Option<usize>) -> T) -> Option<T> {
        let state = self.state();
        let job = state.jobs.get(id)?;
        Some(look(job, state.position(id)))
    }

    /// Looks at all jobs, the newest first.
    pub(super) fn all<T>(&self, mut look: impl FnMut(&ServedJob, Option<usize>) -> Option<T>) -> Vec<T> {
        let state = self.state();
        let positions = state.positions();
        state.jobs.values().rev().filter_map(|job| look(job, positions.get(&job.id).copied())).collect()
    }

    /// The counts, images that wait, and images at work.
    pub(super) fn counts(&self) -> (QueueCounts, usize, usize) {
        let state = self.state();
        (state.counts.clone(), state.waiting.len(), state.tasks.len())
    }

    /// What is being loaded.
    pub(super) fn loading(&self) -> Option<(String, Option<f64>)> {
        self.state().loading.clone()
    }

    pub(super) fn set_loading(&self, loading: Option<(String, Option<f64>)>) {
        let mut state = self.state();
        if state.loading != loading {
            state.loading = loading;
            drop(state);
            self.bump();
        }
    }

    /// Cancels a job; what is there of it stays. Gives how it stands.
    pub(super) fn cancel(&self, id: &str) -> Option<JobStatus> {
        self.cancel_images(id, |_| true)
    }

    /// Cancels the image of a job that is at work, so that the next begins.
    pub(super) fn skip(&self, id: &str) -> Option<JobStatus> {
        self.cancel_images(id, |image| image.status == ImageStatus::AtWork)
    }

    fn cancel_images(&self, id: &str, which: impl Fn(&ServedImage) -> bool) -> Option<JobStatus> {
        let mut state = self.state();
        let job = state.jobs.get_mut(id)?;
        let id = job.id.clone();
        for image in job.images.iter_mut().filter(|image| !image.status.has_ended() && which(image)) {
            image.withdrawn.store(true, Ordering::Relaxed);
            image.status = ImageStatus::Cancelled;
            (image.request, image.shape) = (None, None);
        }
        job.change();
        let gone = |state: &QueueState, (job, at): &ImagePlace| {
            state.jobs.get(job).and_then(|job| job.images.get(*at)).is_none_or(|image| image.status.has_ended())
        };
        let waiting = std::mem::take(&mut state.waiting);
        let waiting = waiting.into_iter().filter(|place| !gone(&state, place)).collect();
        state.waiting = waiting;
        self.end_if_over(&mut state, &id);
        let status = state.jobs.get(&id).map(|job| job.status);
        drop(state);
        self.bump();
        status
    }

    /// The jobs that are at work.
    pub(super) fn running(&self) -> Vec<Arc<str>> {
        let state = self.state();
        state.jobs.values().filter(|job| job.status == JobStatus::Running).map(|job| job.id.clone()).collect()
    }

    /// Forgets a job that has ended.
    pub(super) fn forget(&self, id: &str) -> bool {
        let mut state = self.state();
        let ended = state.jobs.get(id).is_some_and(|job| job.status.has_ended());
        if ended {
            self.drop_ended(&mut state, id);
        }
        ended
    }

    fn drop_ended(&self, state: &mut QueueState, id: &str) {
        if let Some(job) = state.jobs.remove(id) {
            state.history -= job.bytes.min(state.history);
        }
        self.journal.remove(id);
    }

    /// Ends a job whose images have all ended, and forgets the oldest ones.
    fn end_if_over(&self, state: &mut QueueState, id: &str) {
        let Some(job) = state.jobs.get_mut(id) else { return };
        if job.status.has_ended() || !job.images.iter().all(|image| image.status.has_ended()) {
            return;
        }
        let any = |is: fn(&ImageStatus) -> bool| job.images.iter().any(|image| is(&image.status));
        job.status = if any(|status| matches!(status, ImageStatus::Failed(_))) {
            JobStatus::Failed
        } else if any(|status| *status == ImageStatus::Cancelled) {
            JobStatus::Cancelled
        } else {
            JobStatus::Done
        };
        job.ended = Some(now());
        job.preview = None;
        job.uploads.clear();
        job.generator = None;
        match job.status {
            JobStatus::Failed => state.counts.failed += 1,
            JobStatus::Cancelled => state.counts.cancelled += 1,
            _ => state.counts.done += 1,
        }
        info!(job = id, state = job.status.name(), "job ended");
        let text = JobJournal::text(job);
        job.bytes = text.len();
        state.history += job.bytes;
        if let Err(error) = self.journal.keep(id, &text) {
            // It will be seen as unfinished after a restart, and its images are found.
            warn!("{error}");
        }
        // Nobody resolves it again.
        job.written = serde_json::Map::new();
        job.change();
        if state.jobs.len() <= self.kept && state.history <= HISTORY_BYTES {
            return;
        }
        let ended: Vec<Arc<str>> = state.jobs.values().filter(|job| job.status.has_ended()).map(|job| job.id.clone()).collect();
        for (at, old) in ended.iter().enumerate() {
            if ended.len() - at <= self.kept && state.history <= HISTORY_BYTES {
                break;
            }
            self.drop_ended(state, old);
        }
    }

    /// From here on nothing is begun.
    pub(super) fn stop(&self) {
        self.stopping.store(true, Ordering::SeqCst);
        self.wake.notify_all();
        self.bump();
        for job in self.state().jobs.values_mut() {
            job.change();
        }
    }

    pub(super) fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::SeqCst)
    }

    /// Has the engine unload its models when it is at leisure.
    pub(super) fn unload(&self) {
        self.state().unload = true;
        self.wake.notify_all();
    }

    /// What the engine is to do next; waits for it.
    pub(super) fn next(self: &Arc<Self>, studio: &dyn Studio, is_stopped: &dyn Fn() -> bool) -> Option<(Vec<Task>, usize)> {
        let mut idle_since = Some(Instant::now());
        loop {
            let mut state = self.state();
            if self.is_stopping() || is_stopped() {
                return None;
            }
            if std::mem::take(&mut state.unload) {
                return Some((Vec::new(), 1));
            }
            let Some((model, request, shape)) = state.first() else {
                if !state.tasks.is_empty() {
                    idle_since = Some(Instant::now());
                } else if idle_since.take_if(|since| since.elapsed() >= REST_AFTER).is_some() {
                    drop(state);
                    studio.rest();
                    continue;
                }
                drop(self.wake.wait_timeout(state, Duration::from_millis(200)).unwrap_or_else(PoisonError::into_inner));
                continue;
            };
            let alike = state.waiting.iter().filter(|place| state.is_like(place, model, &shape)).count();
            drop(state);
            // How much memory is free takes a moment to find out.
            let sizes = studio.sizes(model, &request, alike);
            let mut state = self.state();
            let tasks = state.take(model, &shape, sizes.batch.max(1), |id, at, image| {
                let watch = TaskFollower { queue: self.clone(), place: (id.clone(), at), withdrawn: image.withdrawn.clone() };
                Arc::new(watch) as Arc<dyn TaskWatch>
            });
            if !tasks.is_empty() {
                return Some((tasks, sizes.at_once));
            }
        }
    }

    /// An image of a task, where it is still wanted.
    pub(super) fn place_of(&self, task: usize) -> Option<(ImagePlace, crate::metadata::GeneratedBy)> {
        let state = self.state();
        let place = state.tasks.get(&task)?;
        let job = state.jobs.get(&place.0)?;
        let is_wanted = job.images.get(place.1).is_some_and(|image| !image.status.has_ended());
        Some((place.clone(), job.generator.clone()?)).filter(|_| is_wanted)
    }

    /// A task has ended.
    pub(super) fn ended(&self, task: usize, status: ImageStatus, seconds: f64) {
        let mut state = self.state();
        let Some((id, at)) = state.tasks.remove(&task) else { return };
        if status == ImageStatus::Done {
            state.counts.images += 1;
            state.counts.seconds += seconds;
        }
        if let Some(job) = state.jobs.get_mut(&id) {
            if let Some(image) = job.images.get_mut(at).filter(|image| !image.status.has_ended()) {
                image.status = status;
                (image.request, image.shape) = (None, None);
            }
            job.change();
        }
        self.end_if_over(&mut state, &id);
        drop(state);
        self.bump();
    }

    /// A batch has come to the device.
    pub(super) fn begun(&self, tasks: &[usize]) {
        let mut state = self.state();
        for task in tasks {
            let Some((id, at)) = state.tasks.get(task).cloned() else { continue };
            let Some(job) = state.jobs.get_mut(&id) else { continue };
            if let Some(image) = job.images.get_mut(at).filter(|image| !image.status.has_ended()) {
                image.status = ImageStatus::AtWork;
            }
            if job.status == JobStatus::Queued {
                job.status = JobStatus::Running;
                job.started = Some(now());
            }
            job.change();
        }
        state.loading = None;
        drop(state);
        self.bump();
    }

    /// The engine failed as a whole: what it had at work fails with it.
    pub(super) fn fail_taken(&self, why: &str) {
        let tasks: Vec<usize> = self.state().tasks.keys().copied().collect();
        for task in tasks {
            self.ended(task, ImageStatus::Failed(why.to_owned()), 0.0);
        }
    }

    fn follow(&self, (id, at): &ImagePlace, change: impl FnOnce(&mut ServedJob, usize)) {
        let mut state = self.state();
        if let Some(job) = state.jobs.get_mut(id) {
            change(job, *at);
            job.change();
        }
        drop(state);
        self.bump();
    }

    /// Where images and jobs are kept.
    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }
}

impl QueueState {
    /// Jobs that wait by how many are before them.
    fn positions(&self) -> HashMap<Arc<str>, usize> {
        let mut positions = HashMap::new();
        for (id, _) in &self.waiting {
            let next = positions.len();
            positions.entry(id.clone()).or_insert(next);
        }
        positions.retain(|id, _| self.jobs.get(id).is_some_and(|job| job.status == JobStatus::Queued));
        positions
    }

    fn position(&self, id: &str) -> Option<usize> {
        let queued = self.jobs.get(id).is_some_and(|job| job.status == JobStatus::Queued);
        queued.then(|| self.positions().get(id).copied().unwrap_or(0))
    }

    fn position_of_next(&self) -> usize {
        let mut ids: Vec<&Arc<str>> = self.waiting.iter().map(|(id, _)| id).collect();
        ids.dedup();
        ids.len()
    }

    fn image(&self, (id, at): &ImagePlace) -> Option<(&ServedJob, &ServedImage)> {
        let job = self.jobs.get(id)?;
        Some((job, job.images.get(*at)?))
    }

    fn first(&self) -> Option<(usize, Arc<crate::settings::Request>, Shape)> {
        let (job, image) = self.image(self.waiting.front()?)?;
        Some((job.model, image.request.clone()?, image.shape.clone()?))
    }

    fn is_like(&self, place: &ImagePlace, model: usize, shape: &Shape) -> bool {
        self.image(place).is_some_and(|(job, image)| job.model == model && image.shape.as_ref() == Some(shape))
    }

    /// Takes up to `most` images that go together.
    fn take(
        &mut self,
        model: usize,
        shape: &Shape,
        most: usize,
        watch: impl Fn(&Arc<str>, usize, &ServedImage) -> Arc<dyn TaskWatch>,
    ) -> Vec<Task> {
        let (mut tasks, mut left) = (Vec::new(), VecDeque::new());
        for place in std::mem::take(&mut self.waiting) {
            if tasks.len() >= most || !self.is_like(&place, model, shape) {
                left.push_back(place);
                continue;
            }
            let id = self.next_task;
            let Some(image) = self.jobs.get_mut(&place.0).and_then(|job| job.images.get_mut(place.1)) else { continue };
            let Some(request) = image.request.clone() else { continue };
            image.status = ImageStatus::Taken;
            tasks.push(Task { id, model, request, seed: image.seed, watch: Some(watch(&place.0, place.1, image)) });
            self.next_task += 1;
            self.tasks.insert(id, place);
        }
        self.waiting = left;
        tasks
    }
}

/// Follows one image of a job through the engine.
struct TaskFollower {
    queue: Arc<JobQueue>,
    place: ImagePlace,
    withdrawn: Arc<AtomicBool>,
}

impl std::fmt::Debug for TaskFollower {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "TaskFollower({} {})", self.place.0, self.place.1)
    }
}

impl TaskWatch for TaskFollower {
    fn is_withdrawn(&self) -> bool {
        self.withdrawn.load(Ordering::Relaxed)
    }

    fn stage(&self, stage: Stage<'_>) {
        self.queue.follow(&self.place, |job, at| {
            let Some(image) = job.images.get_mut(at).filter(|image| !image.status.has_ended()) else { return };
            image.status = ImageStatus::AtWork;
            image.hears(stage);
            if job.status == JobStatus::Queued {
                job.status = JobStatus::Running;
                job.started = Some(now());
            }
        });
    }

    fn would_look(&self) -> bool {
        let onlookers = self.queue.with(&self.place.0, |job, _| job.onlookers.clone());
        onlookers.is_some_and(|onlookers| onlookers.would_look())
    }

    fn formed(&self, shown: RgbImage) {
        self.queue.follow(&self.place, |job, at| {
            if job.status == JobStatus::Running {
                job.preview = Some((at, Arc::new(shown)));
                job.previews += 1;
            }
        });
    }
}
