//! The whole server under requests that nobody should send.
#![cfg(all(feature = "builtin-model", target_os = "linux"))]

use super::studio::ModelStudio;
use crate::server::{Studio, fuzz};
use crate::settings::Draft;
use std::path::Path;
use std::sync::Arc;

/// `SD_GEN_FUZZ_REQUESTS=100000 SD_GEN_FUZZ_SEED=1 cargo test --lib no_request_does_harm -- --nocapture` is a long run of it.
#[test]
#[expect(clippy::print_stderr, reason = "a long run's counts, for the one who runs it")]
fn no_request_does_harm() {
    let of = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let long = of("SD_GEN_FUZZ_REQUESTS");
    let folder = tempfile::tempdir().unwrap();
    let studio = |root: &Path| {
        let base = Draft::default().with(|draft| {
            draft.set("models-dir", [root.join("models").to_string_lossy().into_owned()]).unwrap();
            draft.set("model", ["emoji".to_owned()]).unwrap();
        });
        Arc::new(ModelStudio::new(base, 1).unwrap()) as Arc<dyn Studio>
    };
    let count = long.unwrap_or(1_500) as usize;
    let report = fuzz(folder.path(), (of("SD_GEN_FUZZ_SEED").unwrap_or(17), count, long.is_some()), studio);
    eprintln!("{} images, {} and then {} MiB, {:?}", report.images, report.memory.0, report.memory.1, report.statuses);
    // Some of it is right, and some of it wrong.
    let taken: usize = report.statuses.iter().filter(|(status, _)| (200..300).contains(*status)).map(|(_, count)| count).sum();
    assert!(taken > count / 10 && taken < count * 19 / 20 && report.images > 0, "{report:?}");
}
