//! Thousands of images: what each one is, which are there already, in which order the rest is generated, and the engine that generates them.
//!
//! ```text
//! lines → jobs (key) → plan (groups, batches) → claim (ledger) → engine: prepare ▸ generate ▸ write → record (ledger)
//! ```
//!
//! Nothing here reads prompt files or flags, or prints.

mod claims;
mod engine;
mod feed;
mod image_file;
mod key;
mod ledger;
mod manifest;
mod manifest_sink;
mod merge;
mod plan;
mod received;
mod size;
mod texts;

pub(crate) use engine::{Batch, EventSender, Finished, ImageEvent, Load, RunObserver, Sink, Task, TaskWatch, run};
pub(crate) use feed::{JobFeed, JobTable};
pub(crate) use image_file::{ImageNames, ImageTarget, generated_png};
pub(crate) use key::{Key, seed_of};
pub(crate) use ledger::{JobState, Ledger, LedgerOptions};
pub(crate) use manifest::{Manifest, Record, Status};
pub(crate) use manifest_sink::{BatchSummary, ManifestSink};
pub(crate) use merge::merge;
pub(crate) use plan::{Job, Shard, groups};
pub(crate) use received::keep_received;
pub(crate) use size::{Footprint, Sizes, sizes};
