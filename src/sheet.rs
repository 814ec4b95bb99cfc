//! Contact sheets: the images of a sweep side by side with what was varied written beside them, and the table of what made which.
//!
//! The first axis goes down, the second across; the combinations of all others are pages. A single axis fills rows from left to right.

use crate::{Error, Result};
use ::image::{Rgb, RgbImage, imageops};
use noto_sans_mono_bitmap::{FontWeight, RasterHeight, get_raster, get_raster_width};
use std::borrow::Cow;
use std::io::Write;
use std::path::{Path, PathBuf};

/// Pixels of a page's side: what viewers open without trouble.
const LONGEST_SIDE: u32 = 8000;
/// Pixels of an image's longer side on a sheet, for images that are larger.
const LARGEST_IMAGE: u32 = 512;
/// Below this nothing can be told from an image any more, and the sheet goes on on another page.
const SMALLEST_IMAGE: u32 = 64;
/// Pixels between images.
const GAP: u32 = 8;
/// Letters of a label beside a row.
const LONGEST_LABEL: usize = 28;
/// Lines of a label above a column.
const MOST_LINES: usize = 3;

const FONT: RasterHeight = RasterHeight::Size20;
const LINE: u32 = 20;
const LETTER: u32 = get_raster_width(FontWeight::Regular, FONT) as u32;

const PAPER: Rgb<u8> = Rgb([255, 255, 255]);
const INK: Rgb<u8> = Rgb([24, 24, 28]);
const FAINT: Rgb<u8> = Rgb([226, 226, 232]);
const MARK: Rgb<u8> = Rgb([170, 170, 182]);

/// What was varied, and its values as they are to be read.
#[derive(Debug, Clone)]
pub(crate) struct Axis {
    /// The name of the setting.
    pub name: String,
    /// One label a value.
    pub labels: Vec<String>,
}

/// One image's row in the table of what made which.
#[derive(Debug, Clone)]
pub(crate) struct ContactSheet {
    /// The value of each axis.
    pub labels: Vec<String>,
    /// What was asked for.
    pub prompt: String,
    /// The seed of the image itself.
    pub seed: u64,
    /// `None` for an image that was not made.
    pub path: Option<PathBuf>,
}

/// Writes the table of what made which as comma-separated values: every axis, the prompt, the seed and the path.
///
/// # Errors
/// It cannot be written.
pub(crate) fn write_table(axes: &[Axis], images: impl IntoIterator<Item = ContactSheet>, to: &mut dyn Write) -> std::io::Result<()> {
    let mut table = csv::Writer::from_writer(to);
    // A sweep over prompts or seeds has its column already.
    let varied = |name: &str| axes.iter().any(|axis| axis.name == name);
    let (prompt, seed) = (!varied("prompt"), !varied("seed"));
    let names = axes.iter().map(|axis| axis.name.as_str());
    table.write_record(names.chain(prompt.then_some("prompt")).chain(seed.then_some("seed")).chain(["path"]))?;
    for ContactSheet { labels, prompt: text, seed: number, path } in images {
        let (number, path) = (number.to_string(), path.map(|path| path.to_string_lossy().into_owned()).unwrap_or_default());
        let cells = labels.iter().map(String::as_str);
        let cells = cells.chain(prompt.then_some(text.as_str())).chain(seed.then_some(number.as_str())).map(no_formula);
        // The same path, and no formula either.
        let path = if begins_formula(&path) { format!("./{path}") } else { path };
        table.write_record(cells.chain([path.into()]).map(|cell: Cow<'_, str>| cell.into_owned()))?;
    }
    table.flush()
}

/// Whether a spreadsheet would compute a cell, and so might send what it holds elsewhere; a number such as `-1` is none.
///
/// # Source
/// OWASP, "CSV Injection".
fn begins_formula(cell: &str) -> bool {
    cell.starts_with(['=', '+', '-', '@', '\t', '\r']) && cell.parse::<f64>().is_err()
}

/// The cell as a text: the mark before a formula is what spreadsheets know, and hide.
fn no_formula(cell: &str) -> Cow<'_, str> {
    if begins_formula(cell) { format!("'{cell}").into() } else { cell.into() }
}

/// The image of a file, if it is one that a sheet can hold. A manifest may name anything: a pipe would be waited for.
fn read_image(path: &Path) -> Option<RgbImage> {
    if !path.metadata().is_ok_and(|there| there.is_file()) {
        return None;
    }
    Some(::image::ImageReader::open(path).ok()?.with_guessed_format().ok()?.decode().ok()?.to_rgb8())
}

/// A page: where its cells lie on the axes.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Page {
    /// Values of the axes that are pages.
    others: Vec<usize>,
    /// Values of the first axis, from and below.
    down: std::ops::Range<usize>,
    /// Values of the second axis.
    across: std::ops::Range<usize>,
}

/// The sheets of a sweep.
#[derive(Debug)]
pub(crate) struct Sheet {
    axes: Vec<Axis>,
    /// Pixels of an image on it.
    cell: (u32, u32),
    pages: Vec<Page>,
}

impl Sheet {
    /// Lays out the sheets for images of `size`.
    ///
    /// # Errors
    /// An axis has no values.
    pub(crate) fn new(axes: Vec<Axis>, size: (u32, u32)) -> Result<Self> {
        if axes.is_empty() || axes.iter().any(|axis| axis.labels.is_empty()) {
            return Err(Error::Input("a contact sheet needs something that was varied; give `sweep`".into()));
        }
        let counts: Vec<usize> = axes.iter().map(|axis| axis.labels.len()).collect();
        let most = (LONGEST_SIDE / (SMALLEST_IMAGE + GAP)) as usize - 8;
        let down = counts[0];
        // One axis alone is wrapped into about a square, or a column of pages.
        let across = counts.get(1).copied().unwrap_or_else(|| (1..most).find(|n| n * n >= down).unwrap_or(most));
        let down = if counts.len() == 1 { down.div_ceil(across) } else { down };
        let room = LONGEST_SIDE - LETTER * (LONGEST_LABEL as u32 + 2);
        let side = room / down.max(across).min(most) as u32 - GAP - if counts.len() == 1 { LINE * 2 } else { 0 };
        let side = side.clamp(SMALLEST_IMAGE, LARGEST_IMAGE);
        let mut pages = Vec::new();
        let others: Vec<usize> = counts.iter().skip(2).copied().collect();
        for other in 0..others.iter().product() {
            for from_down in (0..down).step_by(most) {
                for from_across in (0..across).step_by(most) {
                    pages.push(Page {
                        others: digits(other, &others),
                        down: from_down..(from_down + most).min(down),
                        across: from_across..(from_across + most).min(across),
                    });
                }
            }
        }
        Ok(Self { axes, cell: within(size, side), pages })
    }

    /// How many pages there are.
    pub(crate) fn pages(&self) -> usize {
        self.pages.len()
    }

    /// Draws a page. `image` gives the file for a value of each axis; one that is not there or cannot be read is marked as missing.
    pub(crate) fn draw(&self, page: usize, mut image: impl FnMut(&[usize]) -> Option<PathBuf>) -> RgbImage {
        let Some(page) = self.pages.get(page) else { return RgbImage::new(1, 1) };
        let alone = self.axes.len() == 1;
        let (width, height) = self.cell;
        let letters = (width / LETTER).max(1) as usize;
        let lines_of = |labels: &[String]| labels.iter().map(|label| wrapped(label, letters).len()).max().unwrap_or(1) as u32;
        let label_height = if alone { lines_of(&self.axes[0].labels) * LINE } else { 0 };
        let heading = self.heading(page);
        let columns = page.across.len() as u32;
        let left = if alone {
            GAP
        } else {
            GAP * 2
                + LETTER * self.axes[0].labels.iter().map(|label| shortened(label, LONGEST_LABEL).chars().count()).max().unwrap_or(0) as u32
        };
        let wide = (left + columns * (width + GAP)).max(GAP * 2 + LETTER * 24);
        let heading: Vec<String> = heading.iter().flat_map(|line| wrapped_to(line, ((wide - GAP * 2) / LETTER) as usize, 8)).collect();
        let above = if alone { 0 } else { lines_of(&self.axes[1].labels[page.across.clone()]) * LINE + GAP };
        let top = GAP * 2 + heading.len() as u32 * LINE + above;
        let mut sheet = RgbImage::from_pixel(wide, top + page.down.len() as u32 * (height + label_height + GAP), PAPER);
        for (at, line) in heading.iter().enumerate() {
            write_line(&mut sheet, line, GAP, GAP + at as u32 * LINE);
        }
        if !alone {
            for (at, label) in self.axes[1].labels[page.across.clone()].iter().enumerate() {
                let lines = wrapped(label, letters);
                let x = left + at as u32 * (width + GAP);
                for (line, text) in lines.iter().enumerate() {
                    write_centred(&mut sheet, text, x, width, top - GAP / 2 - (lines.len() - line) as u32 * LINE);
                }
            }
        }
        for (row, down) in page.down.clone().enumerate() {
            let y = top + row as u32 * (height + label_height + GAP);
            if !alone {
                let label = shortened(&self.axes[0].labels[down], LONGEST_LABEL);
                write_line(&mut sheet, &label, GAP, y + (height.saturating_sub(LINE)) / 2);
            }
            for (column, across) in page.across.clone().enumerate() {
                let Some(at) = self.values(page, down, across) else { continue };
                let x = left + column as u32 * (width + GAP);
                put(&mut sheet, image(&at).and_then(|path| read_image(&path)), (x, y), self.cell);
                if alone {
                    for (line, text) in wrapped(&self.axes[0].labels[at[0]], letters).iter().enumerate() {
                        write_centred(&mut sheet, text, x, width, y + height + line as u32 * LINE);
                    }
                }
            }
        }
        sheet
    }

    /// The value of each axis in a cell; `None` in what is left over of the last row of a single axis.
    fn values(&self, page: &Page, down: usize, across: usize) -> Option<Vec<usize>> {
        match self.axes.as_slice() {
            [only] => Some(vec![down * page.across.len() + across]).filter(|at| at[0] < only.labels.len()),
            _ => Some([down, across].into_iter().chain(page.others.iter().copied()).collect()),
        }
    }

    /// What is down, across, and the same on the whole page.
    fn heading(&self, page: &Page) -> Vec<String> {
        let mut lines = match self.axes.as_slice() {
            [down, across, ..] => vec![format!("down: {}, across: {}", down.name, across.name)],
            [only] => vec![only.name.clone()],
            [] => Vec::new(),
        };
        let others = self.axes.iter().skip(2).zip(&page.others);
        lines.extend(others.map(|(axis, value)| format!("{}: {}", axis.name, axis.labels[*value])));
        lines
    }
}

/// The place of a combination on each of the axes, the last one fastest.
fn digits(mut number: usize, counts: &[usize]) -> Vec<usize> {
    let mut digits: Vec<usize> = counts.iter().rev().map(|count| (number % count, number /= count).0).collect();
    digits.reverse();
    digits
}

/// An image's size with no side above `side`, in its own proportions.
fn within((width, height): (u32, u32), side: u32) -> (u32, u32) {
    let longer = width.max(height).max(1);
    let scaled = |length: u32| (u64::from(length) * u64::from(side.min(longer)) / u64::from(longer)).max(1) as u32;
    (scaled(width), scaled(height))
}

/// Puts an image into its cell, or marks the cell as empty.
fn put(sheet: &mut RgbImage, image: Option<RgbImage>, (x, y): (u32, u32), (width, height): (u32, u32)) {
    let Some(image) = image else {
        for (dx, dy) in (0..width).flat_map(|dx| (0..height).map(move |dy| (dx, dy))) {
            let (across, down) = (u64::from(dx) * u64::from(height), u64::from(dy) * u64::from(width));
            let near = u64::from(width.max(height));
            let crossed = across.abs_diff(down) < near || (across + down).abs_diff(u64::from(width) * u64::from(height)) < near;
            sheet.put_pixel(x + dx, y + dy, if crossed { MARK } else { FAINT });
        }
        if width >= LETTER * 8 {
            write_centred(sheet, "missing", x, width, y + height.saturating_sub(LINE) / 2);
        }
        return;
    };
    let scale = (f64::from(width) / f64::from(image.width())).min(f64::from(height) / f64::from(image.height()));
    let size = |length: u32, most: u32| ((f64::from(length) * scale).round() as u32).clamp(1, most);
    let (w, h) = (size(image.width(), width), size(image.height(), height));
    let image = if (w, h) == image.dimensions() { image } else { imageops::resize(&image, w, h, imageops::FilterType::CatmullRom) };
    imageops::replace(sheet, &image, i64::from(x + (width - w) / 2), i64::from(y + (height - h) / 2));
}

/// A label in lines of so many letters; what does not fit ends with dots.
fn wrapped(label: &str, letters: usize) -> Vec<String> {
    wrapped_to(label, letters, MOST_LINES)
}

fn wrapped_to(label: &str, letters: usize, most: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in label.split_whitespace() {
        let mut word: Vec<char> = word.chars().collect();
        while !word.is_empty() {
            if lines.len() > most {
                break;
            }
            let Some(line) = lines.last_mut() else { break };
            let used = line.chars().count();
            let space = usize::from(used > 0);
            if used + space + word.len() <= letters {
                line.extend(" ".chars().take(space).chain(word.drain(..)));
            } else if used == 0 {
                // A word that is longer than a line is cut.
                line.extend(word.drain(..letters.max(1).min(word.len())));
            } else {
                lines.push(String::new());
            }
        }
    }
    if lines.len() > most {
        lines.truncate(most);
        if let Some(last) = lines.last_mut() {
            *last = shortened(&format!("{last}...."), letters.max(1));
        }
    }
    lines
}

fn shortened(text: &str, letters: usize) -> String {
    if text.chars().count() <= letters {
        return text.to_owned();
    }
    text.chars().take(letters.saturating_sub(3)).chain("...".chars().take(letters)).collect()
}

fn write_centred(sheet: &mut RgbImage, text: &str, x: u32, width: u32, y: u32) {
    let long = text.chars().count() as u32 * LETTER;
    write_line(sheet, text, x + width.saturating_sub(long) / 2, y);
}

/// Writes text with its upper left corner at a place; what is not on the sheet is cut off.
fn write_line(sheet: &mut RgbImage, text: &str, x: u32, y: u32) {
    for (at, c) in text.chars().enumerate() {
        let glyph = get_raster(c, FontWeight::Regular, FONT).or_else(|| get_raster('\u{fffd}', FontWeight::Regular, FONT));
        let Some(glyph) = glyph else { continue };
        for (dy, row) in glyph.rows().enumerate() {
            for (dx, &strength) in row.iter().enumerate() {
                let Some(pixel) = sheet.get_pixel_mut_checked(x + at as u32 * LETTER + dx as u32, y + dy as u32) else { continue };
                let mixed = |paper: u8, ink: u8| {
                    ((u32::from(paper) * u32::from(255 - strength) + u32::from(ink) * u32::from(strength)) / 255) as u8
                };
                *pixel = Rgb([0, 1, 2].map(|i| mixed(pixel.0[i], INK.0[i])));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn axis(name: &str, labels: &[&str]) -> Axis {
        Axis { name: name.into(), labels: labels.iter().map(|label| (*label).to_owned()).collect() }
    }

    fn numbers(name: &str, count: usize) -> Axis {
        Axis { name: name.into(), labels: (1..=count).map(|n| n.to_string()).collect() }
    }

    #[test]
    fn every_combination_has_one_place() {
        for counts in [vec![1], vec![7], vec![16], vec![2, 3], vec![3, 2, 2], vec![1, 1, 2, 3], vec![300], vec![2, 250], vec![130, 2]] {
            let axes = counts.iter().map(|count| numbers("steps", *count)).collect();
            let sheet = Sheet::new(axes, (96, 64)).unwrap();
            let mut seen = Vec::new();
            for page in 0..sheet.pages() {
                let drawn = sheet.draw(page, |at| {
                    seen.push(at.to_vec());
                    None
                });
                assert!(drawn.width() <= LONGEST_SIDE && drawn.height() <= LONGEST_SIDE, "{counts:?}: {:?}", drawn.dimensions());
            }
            seen.sort();
            let all: Vec<Vec<usize>> = (0..counts.iter().product()).map(|n| digits(n, &counts)).collect();
            assert_eq!(seen, all, "{counts:?}");
        }
        assert!(Sheet::new(vec![], (8, 8)).is_err());
    }

    #[test]
    fn a_single_axis_of_several_pages_shows_each_value_once() {
        let sheet = Sheet::new(vec![numbers("seed", 30_000)], (64, 64)).unwrap();
        assert!(sheet.pages() > 1);
        let cells = |page: &Page| {
            page.down.clone().flat_map({
                let page = page.clone();
                move |down| page.across.clone().map(move |across| (down, across))
            })
        };
        let seen = sheet.pages.iter().flat_map(|page| cells(page).filter_map(|(down, across)| sheet.values(page, down, across)));
        let seen: Vec<usize> = seen.map(|at| at[0]).collect();
        assert_eq!(seen, (0..30_000).collect::<Vec<_>>());
    }

    #[test]
    fn images_stand_where_their_values_are_and_missing_ones_are_marked() {
        let folder = tempfile::tempdir().unwrap();
        let colours = [[200, 0, 0], [0, 200, 0], [0, 0, 200]];
        for (at, colour) in colours.iter().enumerate() {
            RgbImage::from_pixel(128, 128, Rgb(*colour)).save(folder.path().join(format!("{at}.png"))).unwrap();
        }
        std::fs::write(folder.path().join("3.png"), "no image").unwrap();
        let axes = vec![axis("sampler", &["euler", "dpm++2m"]), axis("guidance-scale", &["4", "7.5"])];
        let sheet = Sheet::new(axes, (128, 128)).unwrap();
        let drawn = sheet.draw(0, |at| Some(folder.path().join(format!("{}.png", at[0] * 2 + at[1]))));
        let (width, height) = drawn.dimensions();
        let corner = |right: u32, up: u32| drawn.get_pixel(width - GAP - 10 - right * 136, height - GAP - 10 - up * 136).0;
        assert_eq!([corner(1, 1), corner(0, 1), corner(1, 0)], colours);
        assert_ne!(corner(0, 0), PAPER.0);
        assert!(!colours.contains(&corner(0, 0)));
    }

    #[test]
    fn labels_are_wrapped_and_cut() {
        assert_eq!(wrapped("DPM++ 2M Karras", 9), ["DPM++ 2M", "Karras"]);
        assert_eq!(wrapped("abcdefghij", 4), ["abcd", "efgh", "ij"]);
        assert_eq!(wrapped("a b c d e f g h", 3), ["a b", "c d", "..."]);
        assert_eq!(wrapped("", 5), [""]);
        assert_eq!(shortened("abcdef", 5), "ab...");
    }

    #[test]
    fn the_table_says_what_made_which() {
        let axes = [axis("sampler", &["euler"]), axis("seed", &["5"])];
        let made = ContactSheet {
            labels: vec!["euler".into(), "5".into()],
            prompt: "a cat, \"red\"".into(),
            seed: 5,
            path: Some("a/b.png".into()),
        };
        let missing = ContactSheet { path: None, ..made.clone() };
        let mut table = Vec::new();
        write_table(&axes, [made.clone(), missing], &mut table).unwrap();
        let lines = "sampler,seed,prompt,path\neuler,5,\"a cat, \"\"red\"\"\",a/b.png\neuler,5,\"a cat, \"\"red\"\"\",\n";
        assert_eq!(String::from_utf8(table).unwrap(), lines);
        let formula = ContactSheet {
            labels: vec!["=cmd|' /C calc'!A0".into(), "-5".into()],
            prompt: "@SUM(A1)".into(),
            seed: 5,
            path: Some("=a.png".into()),
        };
        let mut table = Vec::new();
        write_table(&axes, [formula], &mut table).unwrap();
        assert_eq!(String::from_utf8(table).unwrap(), "sampler,seed,prompt,path\n'=cmd|' /C calc'!A0,-5,'@SUM(A1),./=a.png\n");
        let mut table = Vec::new();
        write_table(&axes[..1], [ContactSheet { labels: vec!["euler".into()], ..made }], &mut table).unwrap();
        assert_eq!(String::from_utf8(table).unwrap(), "sampler,prompt,seed,path\neuler,\"a cat, \"\"red\"\"\",5,a/b.png\n");
    }
}
