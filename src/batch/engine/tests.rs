use super::*;
use crate::pipeline::Stage;
use crate::settings::Draft;
use crate::weights::Checkpoint;
use candle_core::{DType, Device};
use std::path::Path;

type Shared<T> = Arc<Mutex<Vec<T>>>;

fn seen<T: Clone>(shared: &Shared<T>) -> Vec<T> {
    shared.lock().unwrap().clone()
}

/// Model 9 is damaged, and for model 8 the machine is too small; all others are the built-in one.
struct TestModels {
    checkpoint: Checkpoint,
    loads: Shared<usize>,
}

impl Load for TestModels {
    fn load(&mut self, model: usize, _: usize, observer: &mut dyn Observer) -> Result<Pipeline> {
        self.loads.lock().unwrap().push(model);
        if model == 9 {
            return Err(Error::Model("it is damaged".into()));
        }
        if model == 8 {
            return Err(Error::Tensor(candle_core::Error::Msg("no memory for 268 MB of weights".into())));
        }
        Pipeline::load(&self.checkpoint, &Device::Cpu, DType::F32, DType::F32, observer)
    }

    fn fits_beside(&self, _: usize) -> bool {
        false
    }
}

struct Collected {
    ids: Shared<(usize, bool)>,
    errors: Shared<String>,
    /// Refuses everything after so many batches.
    room: usize,
}

impl Sink for Collected {
    fn take(&mut self, finished: Vec<Finished>, _: &EventSender) -> Result<()> {
        if self.room == 0 {
            return Err(Error::Image("no room".into()));
        }
        self.room -= 1;
        let of_model = |f: &Finished| f.result.as_ref().err().map(|error| format!("{} {error}", error.exit_code()));
        self.errors.lock().unwrap().extend(finished.iter().filter_map(of_model));
        self.ids.lock().unwrap().extend(finished.iter().map(|f| (f.task.id, f.result.is_ok())));
        Ok(())
    }
}

#[derive(Default)]
struct RecordingObserver {
    encoded: usize,
    /// Wants no more after so many steps.
    patience: Option<usize>,
}

impl Observer for RecordingObserver {
    fn stage(&mut self, stage: Stage<'_>) -> Result<()> {
        self.encoded += usize::from(stage == Stage::EncodePrompt);
        match (stage, &mut self.patience) {
            (Stage::Denoise { .. }, Some(0)) => Err(Error::Cancelled),
            (Stage::Denoise { .. }, Some(left)) => {
                *left -= 1;
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn warn(&mut self, _: &str) {}
}

impl RunObserver for RecordingObserver {
    fn news(&mut self, _: ImageEvent) -> Result<()> {
        Ok(())
    }

    fn heartbeat(&mut self) -> Result<()> {
        Ok(())
    }
}

struct Outcome {
    ended: Result<()>,
    loads: Vec<usize>,
    ids: Vec<(usize, bool)>,
    errors: Vec<String>,
    ears: RecordingObserver,
}

/// Runs batches of `(model, prompts)`; ids count through.
fn run_all(batches: &[(usize, &[&str])], steps: usize, room: usize, patience: Option<usize>) -> Outcome {
    let checkpoint = Checkpoint::open(&Path::new(env!("CARGO_MANIFEST_DIR")).join("models/emoji")).unwrap();
    let mut id = 0;
    let mut task = |model: usize, prompt: &str| {
        let draft = Draft::new(prompt).with(|d| {
            d.set_size(Some((64, 64)));
            d.sampling.steps = Some(steps);
            d.scheduler.sampler = Some("euler".into());
        });
        id += 1;
        Task { id: id - 1, model, request: Arc::new(draft.resolve(checkpoint.spec()).unwrap()), seed: 1, watch: None }
    };
    let batches: Vec<Result<Batch>> = batches
        .iter()
        .map(|(model, prompts)| Ok(Batch { tasks: prompts.iter().map(|prompt| task(*model, prompt)).collect(), at_once: 2 }))
        .collect();
    let (loads, ids, errors) = (Shared::default(), Shared::default(), Shared::default());
    let models = TestModels { checkpoint, loads: loads.clone() };
    let mut ears = RecordingObserver { patience, ..RecordingObserver::default() };
    let ended = run(move |_| batches.into_iter(), models, Collected { ids: ids.clone(), errors: errors.clone(), room }, &mut ears);
    Outcome { ended, loads: seen(&loads), ids: seen(&ids), errors: seen(&errors), ears }
}

#[test]
fn batches_are_kept_in_order_and_a_model_that_cannot_be_loaded_fails_its_own_alone() {
    let batches: [(usize, &[&str]); 6] = [(0, &["a", "b", "a"]), (0, &["a"]), (9, &["a", "b"]), (9, &["c"]), (8, &["a"]), (1, &["a"])];
    let outcome = run_all(&batches, 1, usize::MAX, None);
    outcome.ended.unwrap();
    let wanted = [true, true, true, true, false, false, false, false, true];
    assert_eq!(outcome.ids, wanted.into_iter().enumerate().collect::<Vec<_>>());
    assert_eq!(outcome.loads, [0, 9, 8, 1], "each is loaded once");
    // Whatever it is: the model is at fault or the machine, and no image.
    let damaged = "3 it is damaged";
    assert_eq!(outcome.errors, [damaged, damaged, damaged, "3 tensor operation failed: no memory for 268 MB of weights"]);
    // Two prompts of the first model, with its empty negative prompt, and one of the other.
    assert_eq!(outcome.ears.encoded, 3);
}

#[test]
fn a_run_that_is_stopped_keeps_what_was_generated() {
    let batches: Vec<(usize, &[&str])> = vec![(0, &["a"]); 30];
    let outcome = run_all(&batches, 2, usize::MAX, Some(12));
    assert!(matches!(outcome.ended, Err(Error::Cancelled)));
    assert!(!outcome.ids.is_empty() && outcome.ids.len() < 30, "{} were kept", outcome.ids.len());
    assert!(outcome.ids.iter().all(|(_, generated)| *generated));
}

#[test]
fn a_sink_that_can_keep_no_more_ends_the_run_with_its_reason() {
    let batches: Vec<(usize, &[&str])> = vec![(0, &["a"]); 30];
    let outcome = run_all(&batches, 1, 3, None);
    assert_eq!(outcome.ended.unwrap_err().to_string(), "no room");
    assert_eq!(outcome.ids.iter().map(|(id, _)| *id).collect::<Vec<_>>(), [0, 1, 2]);
}

#[test]
fn a_batch_that_wants_the_device_alone_has_it_alone() {
    for (taken, at_once, wanted) in [
        (&[][..], 1, true),
        (&[], 2, true),
        (&[1], 1, false),
        // The one that is there needs all of the memory.
        (&[1], 2, false),
        (&[2], 1, false),
        (&[2], 2, true),
        (&[2, 2], 2, false),
    ] {
        assert_eq!(admits(taken, at_once), wanted, "{at_once} beside {taken:?}");
    }
}

#[test]
fn a_generator_that_fails_gives_its_place_back_and_ends_the_run() {
    let (events, _heard) = sync_channel(1);
    let (generated, _to_write) = sync_channel(1);
    let (_prepared, to_generate) = sync_channel(1);
    let stop = Arc::new(AtomicBool::new(false));
    let events = EventSender { events, stop: stop.clone(), look: Arc::default() };
    let generator = GenerateStage { to_generate: Arc::new(Mutex::new(to_generate)), generated, events, most: Arc::default() };
    let room = Arc::new(DeviceSlots::default());
    let entered = room.clone();
    let failed = std::thread::spawn(move || {
        let (_generator, _place) = (generator, entered.enter(1));
        // Without the noise of a panic.
        std::panic::resume_unwind(Box::new("a defect"));
    });
    assert!(failed.join().is_err());
    assert!(stop.load(Ordering::Relaxed));
    assert_eq!(room.enter(1).beside, 1);
}

#[test]
fn only_the_lack_of_memory_makes_batches_smaller() {
    let tensor = |text: &str| Error::Tensor(candle_core::Error::Msg(text.into()));
    for text in [
        "CUDA_ERROR_OUT_OF_MEMORY",
        "DriverError(CUDA_ERROR_OUT_OF_MEMORY, \"out of memory\")",
        "failed to allocate a buffer",
        "cuBLASLt: CUBLAS_STATUS_ALLOC_FAILED",
        "4294967296 numbers are too many for one kernel",
        "no memory for 268 MB of weights",
    ] {
        assert!(tensor(text).is_out_of_memory(), "{text}");
    }
    assert!(!tensor("shape mismatch").is_out_of_memory());
    assert!(!Error::Image("out of memory".into()).is_out_of_memory());
}
