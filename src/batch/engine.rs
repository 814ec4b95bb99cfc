//! The one loop that generates: three kinds of threads with short queues between them.
//!
//! ```text
//! batches ─▶ prepare: load the model, encode the texts ─▶ generate: denoise, decode ─▶ write: PNG, fsync, record
//! ```
//!
//! While one batch is denoised, the texts of the next are encoded, its model is loaded where there is room for two, and the images of
//! the last are written. The queues are short, so that memory does not grow with the number of images. The caller's thread hears of
//! everything and may stop it.
//!
//! A stopped engine does not wait for a step that is at work: what was generated is written, and the rest is dropped. The threads that
//! are left end at their next step, or with the process.

mod events;
mod task;
#[cfg(test)]
mod tests;

use events::EngineEvent;
pub(crate) use events::{EventSender, ImageEvent, RunObserver};
pub(crate) use task::{Batch, Finished, Load, Sink, Task, TaskWatch};

use super::texts::Texts;
use crate::pipeline::{BatchItem, Conditioning, Estimate, GeneratedImage, Observer, Pipeline, Stage};
use crate::settings::Request;
use crate::{Error, Result};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Batches that are ever on one device at once.
const BATCHES_A_DEVICE: usize = 2;

/// Events that wait to be told. An observer that stands still, such as a pager's reader, holds the run up instead of filling the memory.
const WAITING_EVENTS: usize = 64;

/// Generates batches until there are no more.
///
/// The iterator that `batches` makes is driven by a thread of the engine, at the pace of the generating.
///
/// # Errors
/// The sink's, `observer`'s, or that of `batches`. What was generated until then has been kept.
pub(crate) fn run<I: Iterator<Item = Result<Batch>>>(
    batches: impl FnOnce(EventSender) -> I + Send + 'static,
    models: impl Load + 'static,
    sink: impl Sink + 'static,
    observer: &mut dyn RunObserver,
) -> Result<()> {
    let (events, heard) = sync_channel(WAITING_EVENTS);
    let stop = Arc::new(AtomicBool::new(false));
    let look = Arc::new(AtomicBool::new(false));
    let events = EventSender { events, stop: stop.clone(), look: look.clone() };
    // One prepared batch waits, and one generated batch for each generator.
    let (prepared, to_generate) = sync_channel(1);
    let generators = BATCHES_A_DEVICE * models.most_devices().max(1);
    let (generated, to_write) = sync_channel(generators);
    let to_generate = Arc::new(Mutex::new(to_generate));
    let most = Arc::new(AtomicUsize::new(usize::MAX));

    let spawn = |name: &str, work: Box<dyn FnOnce() -> Result<()> + Send>| {
        let thread = std::thread::Builder::new().name(name.to_owned());
        thread.spawn(work).map_err(|e| Error::Image(format!("no thread can be started to generate with: {e}")))
    };
    let mut workers = Vec::new();
    let preparer = Preparer {
        models,
        loaded: Vec::new(),
        unloadable: None,
        events: events.clone(),
        prepared,
        generated: generated.clone(),
        sequence: 0,
        slots: Vec::new(),
        turn: 0,
    };
    let sender = events.clone();
    workers.push(spawn("prepare", Box::new(move || preparer.work(batches(sender))))?);
    for _ in 0..generators {
        let (to_generate, generated, events, most) = (to_generate.clone(), generated.clone(), events.clone(), most.clone());
        workers.push(spawn("generate", Box::new(move || GenerateStage { to_generate, generated, events, most }.work()))?);
    }
    drop((generated, to_generate));
    let writer = spawn("write", Box::new(move || write(&to_write, sink, &events)))?;

    let heard = listen(heard, &stop, &look, &writer, observer);
    let kept = end_of(writer);
    if heard.is_err() || kept.is_err() {
        stop.store(true, Ordering::Relaxed);
        // The sink's reason says more than that the run was stopped.
        return kept.and(heard);
    }
    workers.into_iter().try_for_each(end_of)
}

/// Tells the observer until everything is written. From the moment that it wants no more, the threads are told to stop. What they say
/// when it has returned goes nowhere, and keeps none of them waiting.
fn listen(
    events: Receiver<EngineEvent>,
    stop: &AtomicBool,
    look: &AtomicBool,
    writer: &JoinHandle<Result<()>>,
    observer: &mut dyn RunObserver,
) -> Result<()> {
    let mut ended = Ok(());
    loop {
        // Asked first: what it said before its end is then in the channel.
        let written = writer.is_finished();
        if observer.would_look() {
            look.store(true, Ordering::Relaxed);
        }
        match (events.recv_timeout(Duration::from_millis(20)), &ended) {
            (Ok(event), Ok(())) => ended = event.tell(observer),
            // Images are still being kept; that the observer has had enough is known.
            (Ok(event @ EngineEvent::ImageEvent(_)), Err(_)) => drop(event.tell(observer)),
            (Err(RecvTimeoutError::Timeout), Ok(())) => ended = observer.heartbeat(),
            (Err(RecvTimeoutError::Disconnected), _) => return ended,
            _ => {}
        }
        if ended.is_err() {
            stop.store(true, Ordering::Relaxed);
        }
        if written {
            // Threads that were stopped may go on talking.
            while let Ok(event) = events.try_recv() {
                if ended.is_ok() || matches!(event, EngineEvent::ImageEvent(_)) {
                    ended = ended.and(event.tell(observer));
                }
            }
            return ended;
        }
    }
}

fn end_of(thread: JoinHandle<Result<()>>) -> Result<()> {
    thread.join().unwrap_or_else(|_| Err(Error::Image("a thread of the program failed, which is a defect; please report it".into())))
}

/// A batch whose model is loaded and whose texts are encoded.
struct PreparedBatch {
    sequence: u64,
    pipeline: Arc<Pipeline>,
    tasks: Vec<(Task, Conditioning)>,
    at_once: usize,
    /// The pipeline's device.
    slots: Arc<DeviceSlots>,
}

/// Batches leave in the order of this number, which counts without gaps.
type SequencedImages = (u64, Vec<Finished>);

/// A model on each of its devices, with the texts that were encoded there.
type DevicePipelines = Vec<(Arc<Pipeline>, Texts)>;

struct Preparer<M> {
    models: M,
    /// With the models' numbers, the longest unused first.
    loaded: Vec<(usize, DevicePipelines)>,
    /// The model that could not be loaded last, and why.
    unloadable: Option<(usize, String)>,
    events: EventSender,
    prepared: SyncSender<PreparedBatch>,
    generated: SyncSender<SequencedImages>,
    sequence: u64,
    /// Each device.
    slots: Vec<Arc<DeviceSlots>>,
    /// Counts batches, to deal them out.
    turn: usize,
}

impl<M: Load> Preparer<M> {
    fn work(mut self, batches: impl Iterator<Item = Result<Batch>>) -> Result<()> {
        for batch in batches {
            // A channel without its other end means that the run was stopped, for which somebody else has the reason.
            if self.events.stop.load(Ordering::Relaxed) || self.prepare(batch?).is_err() {
                break;
            }
        }
        Ok(())
    }

    fn prepare(&mut self, batch: Batch) -> Result<()> {
        let Batch { tasks, at_once } = batch;
        let (withdrawn, tasks): (Vec<Task>, Vec<Task>) = match tasks.is_empty() {
            true => {
                self.loaded.clear();
                return Ok(());
            }
            false => tasks.into_iter().partition(Task::is_withdrawn),
        };
        if !withdrawn.is_empty() {
            self.pass(withdrawn.into_iter().map(cancelled).collect())?;
        }
        let Some(model) = tasks.first().map(|task| task.model) else { return Ok(()) };
        if let Some(why) = self.load(model)? {
            let failed = |task| Finished { task, result: Err(Error::Model(why.clone())), seconds: 0.0 };
            return self.pass(tasks.into_iter().map(failed).collect());
        }
        let Some((_, everywhere)) = self.loaded.last_mut() else { return Ok(()) };
        let device = self.turn % everywhere.len().max(1);
        self.turn += 1;
        let Some((pipeline, texts)) = everywhere.get_mut(device) else { return Ok(()) };
        let pipeline = pipeline.clone();
        self.slots.resize_with(self.slots.len().max(device + 1), Arc::default);
        let slots = self.slots[device].clone();
        let mut encoded: Vec<(Task, Conditioning)> = Vec::new();
        let mut failed = Vec::new();
        for task in tasks {
            match texts.condition(&pipeline, &task.request, &mut self.events) {
                Ok(conditioning) => encoded.push((task, conditioning)),
                Err(Error::Cancelled) => return Err(Error::Cancelled),
                Err(error) => failed.push(Finished { task, result: Err(error), seconds: 0.0 }),
            }
        }
        if !failed.is_empty() {
            self.pass(failed)?;
        }
        // Prompts of several times the encoder's length make longer contexts, which do not stand beside short ones.
        while let Some(lengths) = encoded.first().map(|(_, conditioning)| conditioning.lengths()) {
            let tasks;
            (tasks, encoded) = encoded.into_iter().partition(|(_, conditioning)| conditioning.lengths() == lengths);
            let sequence = self.next();
            let prepared = PreparedBatch { sequence, pipeline: pipeline.clone(), tasks, at_once, slots: slots.clone() };
            self.prepared.send(prepared).map_err(|_| Error::Cancelled)?;
        }
        Ok(())
    }

    fn next(&mut self) -> u64 {
        let sequence = self.sequence;
        self.sequence += 1;
        sequence
    }

    fn pass(&mut self, failed: Vec<Finished>) -> Result<()> {
        let sequence = self.next();
        self.generated.send((sequence, failed)).map_err(|_| Error::Cancelled)
    }

    /// Makes `model` the loaded one; gives why it cannot be loaded. Whatever that is, it is not the fault of an image.
    ///
    /// # Errors
    /// [`Error::Cancelled`] alone.
    fn load(&mut self, model: usize) -> Result<Option<String>> {
        if let Some(at) = self.loaded.iter().position(|(loaded, _)| *loaded == model) {
            let used = self.loaded.remove(at);
            self.loaded.push(used);
            return Ok(None);
        }
        if let Some((_, why)) = self.unloadable.as_ref().filter(|(unloadable, _)| *unloadable == model) {
            return Ok(Some(why.clone()));
        }
        while !self.loaded.is_empty() {
            let fits = self.models.fits_beside(model);
            if fits && self.loaded.len() < self.models.kept() {
                break;
            }
            let (_, everywhere) = self.loaded.remove(0);
            let waiting: Vec<_> = everywhere.iter().map(|(pipeline, _)| Arc::downgrade(pipeline)).collect();
            drop(everywhere);
            while !fits && waiting.iter().any(|pipeline| pipeline.strong_count() > 0) {
                if self.events.stop.load(Ordering::Relaxed) {
                    return Err(Error::Cancelled);
                }
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        let devices = self.models.devices(model).max(1);
        let on = |device| Ok((Arc::new(self.models.load(model, device, &mut self.events)?), Texts::default()));
        match (0..devices).map(on).collect::<Result<DevicePipelines>>() {
            Ok(everywhere) => {
                self.loaded.push((model, everywhere));
                Ok(None)
            }
            Err(Error::Cancelled) => Err(Error::Cancelled),
            Err(error) => {
                let why = error.to_string();
                self.unloadable = Some((model, why.clone()));
                Ok(Some(why))
            }
        }
    }
}

struct GenerateStage {
    to_generate: Arc<Mutex<Receiver<PreparedBatch>>>,
    generated: SyncSender<SequencedImages>,
    events: EventSender,
    /// Of the images that a device was found to hold at once, the most pixels.
    most: Arc<AtomicUsize>,
}

/// A device: of each batch that is on it, [`Batch::at_once`].
#[derive(Default)]
struct DeviceSlots {
    taken: Mutex<Vec<usize>>,
    fewer: Condvar,
}

/// A batch's place on a device, given back however the generating ends.
struct SlotGuard<'a> {
    slots: &'a DeviceSlots,
    at_once: usize,
    /// Batches that were on the device when this one came, itself included.
    beside: usize,
}

impl DeviceSlots {
    /// Waits until a batch may come that suffers `at_once`.
    fn enter(&self, at_once: usize) -> SlotGuard<'_> {
        let taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let is_full = |taken: &mut Vec<usize>| !admits(taken, at_once);
        let mut taken = self.fewer.wait_while(taken, is_full).unwrap_or_else(PoisonError::into_inner);
        taken.push(at_once);
        SlotGuard { slots: self, at_once, beside: taken.len() }
    }
}

/// Whether one more batch suits those that are there, and they suit it.
fn admits(taken: &[usize], at_once: usize) -> bool {
    taken.is_empty() || taken.iter().chain([&at_once]).all(|most| taken.len() < *most)
}

impl Drop for SlotGuard<'_> {
    fn drop(&mut self) {
        let mut taken = self.slots.taken.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(at) = taken.iter().position(|other| *other == self.at_once) {
            taken.swap_remove(at);
        }
        self.slots.fewer.notify_all();
    }
}

impl Drop for GenerateStage {
    fn drop(&mut self) {
        // Its batch is lost, and the writer would wait for it to the end of the run.
        if std::thread::panicking() {
            self.events.stop.store(true, Ordering::Relaxed);
        }
    }
}

impl GenerateStage {
    fn work(&mut self) -> Result<()> {
        loop {
            let next = self.to_generate.lock().unwrap_or_else(PoisonError::into_inner).recv();
            let Ok(PreparedBatch { sequence, pipeline, tasks, at_once, slots }) = next else { return Ok(()) };
            let place = slots.enter(at_once);
            self.events.tell(ImageEvent::Begun { ids: tasks.iter().map(|(task, _)| task.id).collect() });
            let mut finished = Vec::with_capacity(tasks.len());
            let mut rest = tasks.as_slice();
            while !rest.is_empty() {
                let fit = self.most.load(Ordering::Relaxed) / pixels(rest).max(1);
                let (now, later) = rest.split_at(rest.len().min(fit.max(1)));
                if let Err(Error::Cancelled) = self.generate(&pipeline, now, place.beside, &mut finished) {
                    break;
                }
                rest = later;
            }
            drop(place);
            // The last to hold a pipeline frees its memory, so not while the writer is waited for.
            drop((tasks, pipeline));
            if self.generated.send((sequence, finished)).is_err() {
                return Ok(());
            }
        }
    }

    /// Generates `tasks` at once, and where that fails, fewer at once. There are `beside` batches on the device, this one included.
    ///
    /// # Errors
    /// [`Error::Cancelled`] alone.
    fn generate(&mut self, pipeline: &Pipeline, tasks: &[(Task, Conditioning)], beside: usize, finished: &mut Vec<Finished>) -> Result<()> {
        let batch: Vec<BatchItem<'_>> =
            tasks.iter().map(|(task, prompt)| BatchItem { request: &task.request, prompt, seed: task.seed }).collect();
        let start = Instant::now();
        let mut observer = BatchObserver { tasks, events: &mut self.events };
        let generated = pipeline.generate_batch(&batch, &mut observer);
        // What generators do side by side takes each of them as much longer.
        let seconds = start.elapsed().as_secs_f64() / (beside * tasks.len()) as f64;
        let error = match generated {
            Ok(generated) => {
                let of =
                    |((task, _), generated): (&(Task, _), GeneratedImage)| Finished { task: task.clone(), result: Ok(generated), seconds };
                finished.extend(tasks.iter().zip(generated).map(of));
                return Ok(());
            }
            Err(Error::Cancelled) if !self.events.is_stopped() && tasks.iter().all(|(task, _)| task.is_withdrawn()) => {
                finished.extend(tasks.iter().map(|(task, _)| cancelled(task.clone())));
                return Ok(());
            }
            Err(Error::Cancelled) => return Err(Error::Cancelled),
            Err(error) => error,
        };
        let no_memory = error.is_out_of_memory();
        if let [(task, _)] = tasks {
            let error = match error {
                // It names the numbers.
                Error::Memory(_) => error,
                _ if no_memory => does_not_fit(&task.request),
                error => error,
            };
            finished.push(Finished { task: task.clone(), result: Err(error), seconds });
            return Ok(());
        }
        if no_memory {
            let half = tasks.len() / 2;
            self.most.fetch_min(half * pixels(tasks), Ordering::Relaxed);
            self.events
                .tell(ImageEvent::Remark(format!("{} images at once do not fit into the memory; going on with {half}", tasks.len())));
            return tasks.chunks(half).try_for_each(|tasks| self.generate(pipeline, tasks, beside, finished));
        }
        // One bad image must not cost its neighbours.
        tasks.chunks(1).try_for_each(|task| self.generate(pipeline, task, beside, finished))
    }
}

fn cancelled(task: Task) -> Finished {
    Finished { task, result: Err(Error::Cancelled), seconds: 0.0 }
}

/// Tells those who follow tasks of one batch, and the caller.
struct BatchObserver<'a> {
    tasks: &'a [(Task, Conditioning)],
    events: &'a mut EventSender,
}

impl BatchObserver<'_> {
    fn watches(&self) -> impl Iterator<Item = &Arc<dyn TaskWatch>> {
        self.tasks.iter().filter_map(|(task, _)| task.watch.as_ref())
    }
}

impl Observer for BatchObserver<'_> {
    fn stage(&mut self, stage: Stage<'_>) -> Result<()> {
        if self.tasks.iter().all(|(task, _)| task.is_withdrawn()) {
            return Err(Error::Cancelled);
        }
        self.watches().for_each(|watch| watch.stage(stage));
        self.events.stage(stage)
    }

    fn depth(&mut self, done: usize, all: usize) -> Result<()> {
        self.events.depth(done, all)
    }

    fn warn(&mut self, message: &str) {
        self.events.warn(message);
    }

    fn forming(&mut self, estimate: &Estimate<'_>) {
        if self.watches().any(|watch| watch.would_look())
            && let Ok(images) = estimate()
        {
            for ((task, _), image) in self.tasks.iter().zip(images) {
                if let Some(watch) = &task.watch {
                    watch.formed(image);
                }
            }
        }
        self.events.forming(estimate);
    }
}

/// Pixels of one of the tasks, which agree in size.
fn pixels(tasks: &[(Task, Conditioning)]) -> usize {
    tasks.first().map_or(0, |(task, _)| {
        let (width, height) = task.request.last_size();
        width * height
    })
}

fn does_not_fit(request: &Request) -> Error {
    let (width, height) = request.last_size();
    Error::Memory(format!(
        "one image of {width}x{height} does not fit into the device's memory; \
         try a smaller --size, --dtype f16 or bf16, or --device cpu"
    ))
}

/// Gives the sink what was generated, in order.
fn write(generated: &Receiver<SequencedImages>, mut sink: impl Sink, events: &EventSender) -> Result<()> {
    let mut waiting = BTreeMap::new();
    let mut next = 0;
    loop {
        match generated.recv_timeout(Duration::from_millis(20)) {
            Ok((sequence, finished)) => drop(waiting.insert(sequence, finished)),
            Err(RecvTimeoutError::Timeout) if events.stop.load(Ordering::Relaxed) => break,
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => break,
        }
        while let Some(finished) = waiting.remove(&next) {
            sink.take(finished, events)?;
            next += 1;
        }
    }
    // Of a stopped run, what was generated out of turn.
    waiting.into_values().try_for_each(|finished| sink.take(finished, events))
}
