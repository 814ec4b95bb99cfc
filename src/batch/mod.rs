//! Thousands of pictures: what each one is, which are there already, in which order the rest is painted, and the engine that paints them.
//!
//! ```text
//! lines → jobs (key) → plan (groups, batches) → claim (ledger) → engine: prepare ▸ paint ▸ write → record (ledger)
//! ```
//!
//! Nothing here reads prompt files or flags, or prints.

mod claims;
mod engine;
mod feed;
mod keeper;
mod key;
mod ledger;
mod manifest;
mod merge;
mod plan;
mod size;
mod texts;

pub use engine::{Audience, Batch, Finished, Hear, Load, News, Sink, Task, run};
pub use feed::{Book, Feed};
pub use keeper::{Keeper, Tally};
pub use key::{Key, seed_of};
pub use ledger::{Ledger, Standing};
pub use manifest::{History, Manifest, Record, State, Status};
pub use merge::{Merged, merge};
pub use plan::{Job, Shard, groups};
pub use size::{Footprint, Sizes, sizes};
