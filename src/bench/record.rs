//! A run kept for later: a folder with the numbers, a table and a plot.

use super::plot::svg;
use super::report::BenchReport;
use super::table::markdown;
use crate::{Error, Result};
use std::path::{Path, PathBuf};

/// Writes `results.json`, `table.md` and `plot.svg` into a new folder `<date>-<machine>` below `runs`, and gives its path.
///
/// A folder of that name is never written into: a number is added.
///
/// # Errors
/// The folder or a file cannot be written.
pub(crate) fn record(report: &BenchReport, runs: &Path) -> Result<PathBuf> {
    let files = [("results.json", report.to_json()?), ("table.md", markdown(report)), ("plot.svg", svg(report)?)];
    std::fs::create_dir_all(runs).map_err(Error::io(runs))?;
    let day = report.date.get(..10).unwrap_or(&report.date);
    let name = format!("{day}-{}", report.machine.slug());
    let mut folder = runs.join(&name);
    for count in 2.. {
        match std::fs::create_dir(&folder) {
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => folder = runs.join(format!("{name}-{count}")),
            made => {
                made.map_err(Error::io(&folder))?;
                break;
            }
        }
    }
    for (name, text) in files {
        let path = folder.join(name);
        std::fs::write(&path, text).map_err(Error::io(&path))?;
    }
    Ok(folder)
}
