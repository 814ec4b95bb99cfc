//! The contact sheets of a sweep and the table of what made which, written beside the images when the run has ended.

use crate::batch::{Job, Key, Shard};
use crate::cli::command::output::make_folder;
use crate::cli::settings::lines::Line;
use crate::cli::settings::sweep::{self, Sweep};
use crate::cli::terminal::progress::Progress;
use crate::disk::{counted, write_whole};
use crate::image::write_png;
use crate::sheet::{Axis, ContactSheet, Sheet, write_table};
use crate::{Error, Result};
use std::borrow::Cow;
use std::collections::HashMap;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// More pages than anybody looks through.
const MOST_PAGES: usize = 100;
/// The text chunk by which a sheet knows an earlier one, which it may replace.
const KEYWORD: &str = "sd-gen";
const SHEET: &str = "contact sheet";

/// Where every image of a sweep belongs.
#[derive(Default)]
pub(super) struct Sheets {
    sweeps: Arc<[sweep::SweepAxis]>,
    /// The lines of the file: number and prompt.
    lines: Vec<(usize, String)>,
    images: Vec<SheetCell>,
}

struct SheetCell {
    /// Which value of each sweep, which line, and which of the images that both give.
    swept: Vec<usize>,
    line: usize,
    image: usize,
    key: Key,
    prompt: String,
    seed: u64,
    size: (u32, u32),
}

impl Sheets {
    pub(super) fn new(sweep: &Sweep) -> Self {
        Self { sweeps: sweep.axes.clone(), lines: Vec::new(), images: Vec::new() }
    }

    /// Takes in what a line became: those of its images that belong to the shard, and the number of its first image.
    pub(super) fn note(&mut self, line: &Line, first: usize, jobs: &[Job]) {
        if self.sweeps.is_empty() {
            return;
        }
        if self.lines.last().is_none_or(|(number, _)| *number != line.number) {
            self.lines.push((line.number, line.draft.prompts.join(" | ")));
        }
        let index = self.lines.len() - 1;
        self.images.extend(jobs.iter().map(|job| SheetCell {
            swept: line.at.clone(),
            line: index,
            image: job.id - first,
            key: job.key,
            prompt: job.request.prompt.clone(),
            seed: job.seed,
            size: (job.request.canvas.width as u32, job.request.canvas.height as u32),
        }));
    }

    /// Writes sheets and table into a folder.
    ///
    /// # Errors
    /// They cannot be written.
    pub(super) fn write(
        self,
        folder: &Path,
        shard: Option<Shard>,
        path: impl Fn(Key) -> Option<PathBuf>,
        progress: &Progress,
    ) -> Result<()> {
        let Some(first) = self.images.first() else { return Ok(()) };
        make_folder(if folder.as_os_str().is_empty() { Path::new(".") } else { folder })?;
        let names: Vec<&str> = self.sweeps.iter().map(|axis| axis.name.as_str()).collect();
        let part = shard.map(|shard| format!("-{}", shard.label())).unwrap_or_default();
        let stem = format!("sweep-{}{part}", names.join("-"));
        let paths: Vec<Option<PathBuf>> = self.images.iter().map(|image| path(image.key)).collect();

        let swept: Vec<Axis> = self.sweeps.iter().map(|axis| Axis { name: axis.name.clone(), labels: axis.labels.clone() }).collect();
        let made = self.images.iter().zip(&paths).map(|(image, path)| ContactSheet {
            labels: image.swept.iter().zip(&swept).map(|(at, axis)| axis.labels[*at].clone()).collect(),
            prompt: image.prompt.clone(),
            seed: image.seed,
            path: path.clone(),
        });
        let mut table = Vec::new();
        write_table(&swept, made, &mut table).map_err(Error::io(folder.join(&stem)))?;
        let header = table.split(|byte| *byte == b'\n').next().unwrap_or_default().to_vec();
        let name = free_name(folder.join(format!("{stem}.csv")), |path| begins_with(path, &header));
        write_whole(&name, true, |to| to.write_all(&table))?;
        progress.say(&format!("table: {}", name.display()));

        let (axes, order) = self.arranged(swept);
        let size = self.images.iter().fold(first.size, |most, image| (most.0.max(image.size.0), most.1.max(image.size.1)));
        let sheet = Sheet::new(axes, size)?;
        if sheet.pages() > MOST_PAGES {
            progress.say(&format!("no contact sheet: it would have {} pages; the table says what made which", sheet.pages()));
            return Ok(());
        }
        let places: HashMap<Vec<usize>, &PathBuf> =
            self.images.iter().zip(&paths).filter_map(|(image, path)| Some((order(image), path.as_ref()?))).collect();
        for page in 0..sheet.pages() {
            let stem = if sheet.pages() == 1 { stem.clone() } else { format!("{stem}-{:03}", page + 1) };
            let drawn = sheet.draw(page, |at| places.get(at).map(|path| (*path).clone()));
            let name = free_name(folder.join(format!("{stem}.png")), is_sheet);
            write_whole(&name, true, |to| write_png(&drawn, &[(KEYWORD, Cow::from(SHEET))], to))?;
            progress.say(&format!("contact sheet: {}", name.display()));
        }
        Ok(())
    }

    /// The axes of the sheet, and an image's place on them. Lines and images of one request are axes where there are several; beside
    /// a single sweep the lines go down, so that one page shows all of it.
    fn arranged(&self, mut axes: Vec<Axis>) -> (Vec<Axis>, impl Fn(&SheetCell) -> Vec<usize> + use<>) {
        let images = self.images.iter().map(|image| image.image + 1).max().unwrap_or(1);
        let (with_lines, with_images) = (self.lines.len() > 1, images > 1);
        let lines_first = with_lines && axes.len() == 1;
        if with_images {
            axes.push(Axis { name: "image".into(), labels: (1..=images).map(|number| number.to_string()).collect() });
        }
        if with_lines {
            let labels = self.lines.iter().map(|(number, prompt)| format!("{number}: {prompt}")).collect();
            axes.insert(if lines_first { 0 } else { axes.len() }, Axis { name: "line".into(), labels });
        }
        let order = move |image: &SheetCell| {
            let mut at = image.swept.clone();
            at.extend(with_images.then_some(image.image));
            if with_lines {
                at.insert(if lines_first { 0 } else { at.len() }, image.line);
            }
            at
        };
        (axes, order)
    }
}

/// A name that no file has, or one of an earlier run of ours.
fn free_name(path: PathBuf, is_ours: impl Fn(&Path) -> bool) -> PathBuf {
    let mut name = path.clone();
    let mut count = 2;
    while name.symlink_metadata().is_ok() && !(name.is_file() && is_ours(&name)) {
        name = counted(&path, count);
        count += 1;
    }
    name
}

fn begins_with(path: &Path, header: &[u8]) -> bool {
    let mut start = Vec::new();
    let read = std::fs::File::open(path).and_then(|file| file.take(header.len() as u64).read_to_end(&mut start));
    read.is_ok() && start == header
}

fn is_sheet(path: &Path) -> bool {
    let Ok(file) = std::fs::File::open(path) else { return false };
    let Ok(reader) = png::Decoder::new(std::io::BufReader::new(file)).read_info() else { return false };
    reader.info().uncompressed_latin1_text.iter().any(|chunk| chunk.keyword == KEYWORD && chunk.text == SHEET)
}
