//! What a sweep made: contact sheets, and the table of what made which.

use crate::batch::{Job, Key, Ledger, Standing};
use crate::cli::lines::Line;
use crate::cli::sweep::Sweep;
use crate::disk::{seen_from, write_whole};
use crate::image::write_png;
use crate::sheet::{Axis, Made, Sheet, write_table};
use crate::{Error, Result};
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

/// One picture of a sweep.
pub(super) struct Cell {
    line: usize,
    /// Which value of each sweep.
    at: Vec<usize>,
    /// Which of the pictures that the line asks for with these values.
    number: usize,
    labels: Vec<String>,
    key: Key,
    seed: u64,
    prompt: String,
    size: (u32, u32),
}

impl Cell {
    /// The pictures of a line with one of a sweep's combinations.
    pub(super) fn of(line: &Line, jobs: &[Job]) -> Vec<Self> {
        let cell = |(number, job): (usize, &Job)| Self {
            line: line.number,
            at: line.at.clone(),
            number,
            labels: line.labels.iter().map(|(_, label)| label.clone()).collect(),
            key: job.key,
            seed: job.seed,
            prompt: job.request.prompt.clone(),
            size: (job.request.width as u32, job.request.height as u32),
        };
        jobs.iter().enumerate().map(cell).collect()
    }
}

/// Writes the sheets and the table into `folder`; gives their paths. They are replaced when the run is repeated.
///
/// # Errors
/// They cannot be written.
pub(super) fn write(cells: &[Cell], sweep: &Sweep, ledger: &Ledger, folder: &Path) -> Result<Vec<PathBuf>> {
    let axes: Vec<Axis> = sweep.axes.iter().map(|axis| Axis { name: axis.name.clone(), labels: axis.labels.clone() }).collect();
    let path_of = |cell: &Cell| match ledger.look(cell.key) {
        Standing::Painted(path) => Some(path),
        _ => None,
    };
    let mut series: BTreeMap<(usize, usize), Vec<&Cell>> = BTreeMap::new();
    for cell in cells {
        series.entry((cell.line, cell.number)).or_default().push(cell);
    }
    let mut written = Vec::new();
    let alone = series.len() == 1;
    for ((line, number), cells) in series {
        let size = cells.iter().fold((1, 1), |(w, h), cell| (w.max(cell.size.0), h.max(cell.size.1)));
        let sheet = Sheet::new(axes.clone(), size)?;
        let paths: HashMap<&[usize], PathBuf> = cells.iter().filter_map(|cell| Some((&*cell.at, path_of(cell)?))).collect();
        for page in 0..sheet.pages() {
            let series = if alone { String::new() } else { format!("-{line}-{}", number + 1) };
            let part = if sheet.pages() == 1 { String::new() } else { format!("-page-{}", page + 1) };
            let path = folder.join(format!("sd-gen.sheet{series}{part}.png"));
            let drawn = sheet.draw(page, |at| paths.get(at).cloned());
            write_whole(&path, true, |to| write_png(&drawn, &[], to).map_err(std::io::Error::other))?;
            written.push(path);
        }
    }
    let path = folder.join("sd-gen.sweep.csv");
    let made = cells.iter().map(|cell| Made {
        labels: cell.labels.clone(),
        prompt: cell.prompt.clone(),
        seed: cell.seed,
        path: path_of(cell).map(|path| seen_from(folder, &path)),
    });
    let mut table = Vec::new();
    write_table(&axes, made, &mut table).map_err(Error::io(&path))?;
    write_whole(&path, true, |to| to.write_all(&table))?;
    written.push(path);
    Ok(written)
}
