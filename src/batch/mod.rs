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

pub use engine::{Batch, EventSender, Finished, ImageEvent, Load, RunObserver, Sink, Task, TaskWatch, run};
pub use feed::{JobFeed, JobTable};
pub use image_file::{ImageNames, ImageTarget, StagedImage, generated_png};
pub use key::{Key, seed_of};
pub use ledger::{JobState, Ledger, LedgerOptions};
pub use manifest::{History, Manifest, Record, State, Status};
pub use manifest_sink::{BatchSummary, ManifestSink};
pub use merge::{MergedManifest, merge};
pub use plan::{Job, Shard, groups};
pub use received::keep_received;
pub use size::{Footprint, Sizes, sizes};
