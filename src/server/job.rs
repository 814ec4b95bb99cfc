//! One job: what was asked for, and how far it is.

use super::files::StoredUpload;
use crate::metadata::{GeneratedBy, parameters};
use crate::pipeline::Stage;
use crate::settings::{Request, Shape};
use ::image::RgbImage;
use serde_json::{Map, Value as Json, json};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tokio::sync::watch;

/// How often a forming image is shown, at most.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// Who polls for a look is taken to want the next ones for so long.
const POLLING: Duration = Duration::from_secs(5);

/// Seconds since 1970.
pub(super) fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}

/// Where a job stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum JobStatus {
    Queued,
    Running,
    Done,
    Failed,
    Cancelled,
}

impl JobStatus {
    const NAMES: &[(&str, JobStatus)] = &[
        ("queued", JobStatus::Queued),
        ("running", JobStatus::Running),
        ("done", JobStatus::Done),
        ("failed", JobStatus::Failed),
        ("cancelled", JobStatus::Cancelled),
    ];

    pub(super) fn name(self) -> &'static str {
        Self::NAMES.iter().find(|(_, status)| *status == self).map_or("", |(name, _)| name)
    }

    pub(super) fn from_name(name: &str) -> Option<Self> {
        Self::NAMES.iter().find(|(known, _)| *known == name).map(|(_, status)| *status)
    }

    pub(super) fn has_ended(self) -> bool {
        matches!(self, JobStatus::Done | JobStatus::Failed | JobStatus::Cancelled)
    }
}

/// Where an image stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum ImageStatus {
    Waiting,
    /// The engine has it.
    Taken,
    AtWork,
    Done,
    Failed(String),
    Cancelled,
}

impl ImageStatus {
    pub(super) fn name(&self) -> &'static str {
        match self {
            ImageStatus::Waiting | ImageStatus::Taken => "queued",
            ImageStatus::AtWork => "running",
            ImageStatus::Done => "done",
            ImageStatus::Failed(_) => "failed",
            ImageStatus::Cancelled => "cancelled",
        }
    }

    pub(super) fn has_ended(&self) -> bool {
        matches!(self, ImageStatus::Done | ImageStatus::Failed(_) | ImageStatus::Cancelled)
    }
}

/// One image of a job.
#[derive(Debug)]
pub(super) struct ServedImage {
    pub(super) seed: u64,
    pub(super) width: usize,
    pub(super) height: usize,
    pub(super) status: ImageStatus,
    /// Nothing once it has ended.
    pub(super) request: Option<Arc<Request>>,
    /// What it must have in common with others to be generated with them.
    pub(super) shape: Option<Shape>,
    /// What its metadata says.
    pub(super) infotext: String,
    /// "encode", "denoise" or "decode".
    pub(super) stage: &'static str,
    pub(super) step: usize,
    pub(super) steps: usize,
    /// Nobody wants it any more.
    pub(super) withdrawn: Arc<AtomicBool>,
}

impl ServedImage {
    /// One that waits.
    pub(super) fn new(request: Arc<Request>, seed: u64, generator: &GeneratedBy) -> Self {
        let (width, height) = request.last_size();
        Self {
            seed,
            width,
            height,
            status: ImageStatus::Waiting,
            shape: Some(request.shape()),
            infotext: parameters(&request, seed, generator).unwrap_or_default(),
            stage: "",
            step: 0,
            steps: request.sampling.steps,
            withdrawn: Arc::default(),
            request: Some(request),
        }
    }

    /// The share that is done.
    fn fraction(&self) -> f64 {
        match &self.status {
            ImageStatus::AtWork => self.step as f64 / self.steps.max(1) as f64 * 0.95,
            status if status.has_ended() => 1.0,
            _ => 0.0,
        }
    }

    pub(super) fn hears(&mut self, stage: Stage<'_>) {
        match stage {
            Stage::Load { .. } => {}
            Stage::EncodePrompt => self.stage = "encode",
            Stage::Denoise { step, steps, .. } => (self.stage, self.step, self.steps) = ("denoise", step, steps),
            Stage::Decode { .. } => self.stage = "decode",
        }
    }
}

/// Who wants to see a job's images form.
#[derive(Debug)]
pub(super) struct Onlookers {
    /// Streams that are open.
    pub(super) streams: AtomicUsize,
    /// When somebody asked last, and when a look was taken last, in milliseconds since the program began.
    asked: AtomicU64,
    looked: AtomicU64,
}

static BEGAN: LazyLock<Instant> = LazyLock::new(Instant::now);

fn milliseconds() -> u64 {
    u64::try_from(BEGAN.elapsed().as_millis()).unwrap_or(u64::MAX).saturating_add(1)
}

impl Default for Onlookers {
    fn default() -> Self {
        Self { streams: AtomicUsize::new(0), asked: AtomicU64::new(0), looked: AtomicU64::new(0) }
    }
}

impl Onlookers {
    /// Somebody asks for a look.
    pub(super) fn ask(&self) {
        self.asked.store(milliseconds(), Ordering::Relaxed);
    }

    /// Whether a look is wanted now; it is then taken.
    pub(super) fn would_look(&self) -> bool {
        let now = milliseconds();
        let asked = self.asked.load(Ordering::Relaxed);
        let polls = asked > 0 && now.saturating_sub(asked) < POLLING.as_millis() as u64;
        let wanted = polls || self.streams.load(Ordering::Relaxed) > 0;
        let looked = self.looked.load(Ordering::Relaxed);
        let is_time = looked == 0 || now.saturating_sub(looked) >= LOOK_EVERY.as_millis() as u64;
        wanted && is_time && self.looked.compare_exchange(looked, now, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }
}

/// A job.
#[derive(Debug)]
pub(super) struct ServedJob {
    /// Sorted by it, jobs are in the order in which they came.
    pub(super) id: Arc<str>,
    /// Whose language it was asked for in: "native", "a1111", "openai" or "comfyui".
    pub(super) origin: String,
    pub(super) created: f64,
    pub(super) started: Option<f64>,
    pub(super) ended: Option<f64>,
    pub(super) status: JobStatus,
    /// What was asked for, for people.
    pub(super) settings: Map<String, Json>,
    /// The same so that it can be resolved again; nothing once it has ended.
    pub(super) written: Map<String, Json>,
    /// Whatever the origin wants to find again.
    pub(super) note: Json,
    pub(super) images: Vec<ServedImage>,
    pub(super) remarks: Vec<String>,
    /// What of it is kept when it has ended, roughly.
    pub(super) bytes: usize,
    pub(super) model: usize,
    pub(super) generator: Option<GeneratedBy>,
    pub(super) uploads: Vec<Arc<StoredUpload>>,
    pub(super) onlookers: Arc<Onlookers>,
    /// What is forming, and which of the images it is.
    pub(super) preview: Option<(usize, Arc<RgbImage>)>,
    /// Counts the previews.
    pub(super) previews: u64,
    /// Counts the changes.
    pub(super) changed: watch::Sender<u64>,
}

impl ServedJob {
    /// A new id: later ones are greater.
    pub(super) fn new_id() -> Arc<str> {
        format!("{:012x}{:08x}", (now() * 1000.0) as u64, rand::random::<u32>()).into()
    }

    /// Whether a text can be an id; anything else is no part of a path.
    pub(super) fn is_id(text: &str) -> bool {
        text.len() == 20 && text.bytes().all(|byte| byte.is_ascii_hexdigit() && !byte.is_ascii_uppercase())
    }

    /// Where its image is kept.
    pub(super) fn image_path(folder: &Path, id: &str, image: usize) -> PathBuf {
        folder.join("images").join(format!("{id}-{image}.png"))
    }

    pub(super) fn change(&mut self) {
        self.changed.send_modify(|count| *count += 1);
    }

    /// Images that are there.
    pub(super) fn done(&self) -> impl Iterator<Item = usize> + '_ {
        self.images.iter().enumerate().filter(|(_, image)| image.status == ImageStatus::Done).map(|(at, _)| at)
    }

    pub(super) fn fraction(&self) -> f64 {
        self.images.iter().map(ServedImage::fraction).sum::<f64>() / self.images.len().max(1) as f64
    }

    /// Why it failed.
    pub(super) fn reason(&self) -> Option<&str> {
        self.images.iter().find_map(|image| if let ImageStatus::Failed(why) = &image.status { Some(why.as_str()) } else { None })
    }

    /// Seconds that are left, by what it took so far.
    pub(super) fn seconds_left(&self) -> Option<f64> {
        let fraction = self.fraction();
        let took = now() - self.started.filter(|_| self.status == JobStatus::Running)?;
        (fraction > 0.02).then(|| (took / fraction * (1.0 - fraction)).max(0.0))
    }

    /// As clients see it; `position` counts the jobs before it.
    pub(super) fn json(&self, position: Option<usize>) -> Json {
        let at_work = self.images.iter().position(|image| image.status == ImageStatus::AtWork);
        let shown = at_work.and_then(|at| self.images.get(at));
        let images: Vec<Json> = self
            .images
            .iter()
            .enumerate()
            .map(|(at, image)| {
                let mut json = json!({
                    "index": at, "state": image.status.name(), "seed": image.seed, "width": image.width, "height": image.height,
                });
                if let (ImageStatus::Done, Some(object)) = (&image.status, json.as_object_mut()) {
                    object.insert("url".into(), format!("/v1/jobs/{}/images/{at}", self.id).into());
                    object.insert("parameters".into(), image.infotext.clone().into());
                }
                if let (ImageStatus::Failed(why), Some(object)) = (&image.status, json.as_object_mut()) {
                    object.insert("reason".into(), why.clone().into());
                }
                json
            })
            .collect();
        json!({
            "id": &*self.id,
            "state": self.status.name(),
            "position": position,
            "origin": self.origin,
            "created": self.created,
            "started": self.started,
            "ended": self.ended,
            "progress": {
                "fraction": (self.fraction() * 1e4).round() / 1e4,
                "image": at_work,
                "stage": shown.map(|image| image.stage),
                "step": shown.map(|image| image.step),
                "steps": shown.map(|image| image.steps),
                "seconds_left": self.seconds_left().map(|left| (left * 10.0).round() / 10.0),
                "previews": self.previews,
            },
            "images": images,
            "settings": self.settings,
            "remarks": self.remarks,
            "error": self.reason(),
        })
    }
}
