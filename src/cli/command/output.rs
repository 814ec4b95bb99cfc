//! Where an image goes: file names from templates, and never over an existing file.

use crate::batch::ImageTarget;
use crate::cli::terminal::show::steers;
use crate::disk::{folder_of, stays_inside};
use crate::settings::{Draft, Request};
use crate::{Error, Result};
use jiff::tz::TimeZone;
use jiff::{Timestamp, Zoned};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// Where images go when nobody says.
const DEFAULT_TEMPLATE: &str = "{prompt:.40}-{seed}.png";

/// What a template may hold.
const FIELDS: &str = "date, time, seed, index, prompt, negative, model, sampler, steps, guidance, width, height";

/// One piece of a template.
#[derive(Debug, Clone, PartialEq, Eq)]
enum TemplatePiece {
    Text(String),
    Field { name: String, most: Option<usize> },
}

/// Decides on a path for every image.
#[derive(Debug)]
pub(in crate::cli) struct Output {
    /// `None` is standard output.
    template: Option<Vec<TemplatePiece>>,
    folder: PathBuf,
    /// The user named one very file, so a taken name is an error and not a reason to count on.
    exact: bool,
    overwrite: bool,
    confined_to: Option<PathBuf>,
}

/// Where a name's words come from.
#[derive(Clone, Copy)]
pub(in crate::cli) enum NamedBy<'a> {
    /// Everything is decided.
    Request(&'a Request),
    /// A server decides what is not said; [`Output::check_said`] keeps that out of names.
    Draft(&'a Draft),
}

/// What distinguishes one image of a request.
pub(in crate::cli) struct ImageName<'a> {
    pub(in crate::cli) by: NamedBy<'a>,
    pub(in crate::cli) model: &'a str,
    pub(in crate::cli) seed: u64,
    pub(in crate::cli) index: usize,
}

impl Output {
    /// Reads `--output` and `--output-dir`.
    ///
    /// # Errors
    /// An unknown field, or a file ending that is not PNG's.
    pub(in crate::cli) fn new(output: Option<&str>, folder: Option<&Path>, overwrite: bool) -> Result<Self> {
        let is_absolute = output.is_some_and(|text| text == "-" || Path::new(text).is_absolute());
        if let (Some(folder), true) = (folder, is_absolute) {
            let (folder, output) = (folder.display(), output.unwrap_or_default());
            return Err(Error::Input(format!("--output-dir {folder} does not go with --output {output}, which says the place itself")));
        }
        let folder = folder.map_or_else(PathBuf::new, Path::to_owned);
        if output == Some("-") {
            return Ok(Self { template: None, folder, exact: true, overwrite, confined_to: None });
        }
        let text = output.unwrap_or(DEFAULT_TEMPLATE);
        let wrong = |what: String| Error::Input(format!("--output {text}: {what}"));
        if text.chars().any(steers) {
            return Err(wrong("holds a control character, which would steer the terminal that shows the path; leave it out".into()));
        }
        if text.ends_with(['/', '\\']) || Path::new(text).is_dir() {
            return Err(wrong("is a folder; name a folder with --output-dir".into()));
        }
        match Path::new(text).extension().and_then(|e| e.to_str()) {
            Some(e) if e.eq_ignore_ascii_case("png") => {}
            _ => return Err(wrong("images are written as PNG; give a name that ends in .png".into())),
        }
        let pieces = parse(text).map_err(wrong)?;
        let exact = pieces.iter().all(|piece| matches!(piece, TemplatePiece::Text(_)));
        Ok(Self { template: Some(pieces), folder, exact, overwrite, confined_to: None })
    }

    /// Images stay in a folder: that of `./sd-gen.toml`, where that says where they go.
    pub(in crate::cli) fn confined(mut self, to: Option<PathBuf>) -> Self {
        self.confined_to = to;
        self
    }

    /// Checks before any work that the images can be written.
    ///
    /// # Errors
    /// One file for several images, a taken name, or a folder that cannot be made.
    pub(in crate::cli) fn check(&self, images: usize) -> Result<()> {
        let Some(template) = &self.template else {
            return match images {
                1 => Ok(()),
                _ => Err(Error::Input(format!("--output -: standard output takes one image, and {images} were asked for"))),
            };
        };
        let fixed: PathBuf = self
            .folder
            .join(template.iter().map_while(|p| if let TemplatePiece::Text(t) = p { Some(t.as_str()) } else { None }).collect::<String>());
        if self.exact {
            if images > 1 {
                return Err(Error::Input(format!(
                    "--output {}: {images} images cannot go into one file; use a template such as \"{{seed}}.png\"",
                    fixed.display()
                )));
            }
            if fixed.symlink_metadata().is_ok() && !self.overwrite {
                return Err(Error::Input(format!("{} exists; give another --output, or --overwrite", fixed.display())));
            }
        }
        let folder =
            if self.exact || !fixed.as_os_str().to_string_lossy().ends_with(['/', '\\']) { fixed.parent() } else { Some(fixed.as_path()) };
        make_folder(folder.filter(|f| !f.as_os_str().is_empty()).unwrap_or(Path::new(".")))
    }

    /// That a draft says whatever the names hold.
    ///
    /// # Errors
    /// It does not.
    pub(in crate::cli) fn check_said(&self, draft: &Draft) -> Result<()> {
        for piece in self.template.iter().flatten() {
            let TemplatePiece::Field { name, .. } = piece else { continue };
            let setting = match name.as_str() {
                "guidance" => "guidance-scale",
                "sampler" | "steps" | "width" | "height" => name.as_str(),
                _ => continue,
            };
            if crate::settings::find(setting).is_some_and(|row| (row.access.given)(draft).is_empty()) {
                return Err(Error::Input(format!(
                    "--output {{{name}}}: a server decides it where nobody says it; give --{setting}, or another template"
                )));
            }
        }
        Ok(())
    }

    /// The image goes to standard output.
    pub(in crate::cli) fn is_standard(&self) -> bool {
        self.template.is_none()
    }

    /// The file of an image; `None` is standard output.
    pub(in crate::cli) fn target(&self, image: &ImageName<'_>) -> Option<ImageTarget> {
        let name: String = self.template.as_ref()?.iter().map(|piece| fill(piece, image)).collect();
        if self.exact {
            return Some(ImageTarget::new(shortened(self.folder.join(name)), true, self.overwrite));
        }
        // The file's own name is shortened before its ending.
        let (folders, file) = name.split_at(name.rfind('/').map_or(0, |at| at + 1));
        let folders: String = folders.split_terminator('/').map(|part| format!("{}/", short(&usable(part)))).collect();
        Some(ImageTarget::new(shortened(self.folder.join(folders).join(usable(file))), false, self.overwrite))
    }

    /// As [`target`](Self::target), for an image that must be confined.
    ///
    /// # Errors
    /// The finished path leaves the folder.
    pub(in crate::cli) fn checked_target(&self, image: &ImageName<'_>) -> Result<Option<ImageTarget>> {
        let target = self.target(image);
        if let (Some(folder), Some(target)) = (&self.confined_to, &target) {
            check_confined(folder, &target.path)?;
        }
        Ok(target)
    }

    /// The file of an image, whose folder is made; `None` is standard output.
    ///
    /// # Errors
    /// Its folder cannot be made.
    pub(in crate::cli) fn ready_target(&self, image: &ImageName<'_>) -> Result<Option<ImageTarget>> {
        let Some(target) = self.checked_target(image)? else { return Ok(None) };
        let folder = folder_of(&target.path);
        std::fs::create_dir_all(folder).map_err(Error::io(folder))?;
        Ok(Some(target))
    }
}

/// That a path which `./sd-gen.toml` decided on stays in the folder of that file, through no link, now that its template is filled in.
///
/// # Errors
/// It leaves it.
pub(in crate::cli) fn check_confined(folder: &Path, path: &Path) -> Result<()> {
    match stays_inside(folder, folder_of(path)) {
        true => Ok(()),
        false => Err(Error::Input(format!(
            "{}: leaves the folder of ./sd-gen.toml, which says where images go and may have come with a downloaded folder; \
             give --output and --output-dir on the command line",
            path.display()
        ))),
    }
}

/// Makes an output folder, and sees whether it can be written.
///
/// # Errors
/// It cannot.
pub(in crate::cli) fn make_folder(folder: &Path) -> Result<()> {
    let unusable =
        |what, e| Error::Input(format!("the output folder {} cannot be {what}: {e}; give another --output-dir", folder.display()));
    std::fs::create_dir_all(folder).map_err(|e| unusable("made", e))?;
    // Writing is what permissions, read-only disks and strange file systems refuse.
    tempfile::tempfile_in(folder).map(drop).map_err(|e| unusable("written to", e))
}

/// Bytes of a name; common file systems take 255, and a count may be added.
const LONGEST_NAME: usize = 240;

/// A part of a path under a name that Windows does not keep for devices, whatever stands behind its first dot
/// (learn.microsoft.com/windows/win32/fileio/naming-a-file).
fn usable(part: &str) -> String {
    const DEVICES: [&str; 6] = ["con", "prn", "aux", "nul", "conin$", "conout$"];
    let (stem, rest) = part.find('.').map_or((part, ""), |dot| part.split_at(dot));
    let lower = stem.trim_end().to_lowercase();
    let numbered =
        |kind: &str| lower.strip_prefix(kind).is_some_and(|rest| rest.chars().count() == 1 && rest.chars().all(char::is_numeric));
    let is_device = DEVICES.contains(&lower.as_str()) || numbered("com") || numbered("lpt");
    if is_device { format!("{stem}-{rest}") } else { part.to_owned() }
}

/// The beginning of a folder's name, as long as a name may be.
fn short(part: &str) -> &str {
    &part[..part.floor_char_boundary(LONGEST_NAME)]
}

/// With a file name of at most as many bytes as common file systems take, room for a count included.
fn shortened(path: PathBuf) -> PathBuf {
    const MOST: usize = LONGEST_NAME;
    let stem = path.file_stem().map(|s| s.to_string_lossy().into_owned()).unwrap_or_default();
    if stem.len() <= MOST {
        return path;
    }
    path.with_file_name(format!("{}.png", &stem[..stem.floor_char_boundary(MOST)]))
}

fn parse(text: &str) -> Result<Vec<TemplatePiece>, String> {
    let mut pieces = Vec::new();
    let mut rest = text;
    while let Some(open) = rest.find('{') {
        if open > 0 {
            pieces.push(TemplatePiece::Text(rest[..open].to_owned()));
        }
        let after = &rest[open + 1..];
        let close = after.find('}').ok_or("a \"{\" has no \"}\"")?;
        let (name, most) = after[..close].split_once(":.").map_or((&after[..close], None), |(name, n)| (name, Some(n)));
        let most =
            most.map(|n| n.parse().map_err(|_| format!("{{{}}}: the length after \":.\" is no number", &after[..close]))).transpose()?;
        if !FIELDS.split(", ").any(|field| field == name) {
            return Err(format!("{{{name}}} is not known; there are {FIELDS}"));
        }
        pieces.push(TemplatePiece::Field { name: name.to_owned(), most });
        rest = &after[close + 1..];
    }
    if !rest.is_empty() {
        pieces.push(TemplatePiece::Text(rest.to_owned()));
    }
    Ok(pieces)
}

fn fill(piece: &TemplatePiece, image: &ImageName<'_>) -> String {
    let (name, most) = match piece {
        TemplatePiece::Text(text) => return text.clone(),
        TemplatePiece::Field { name, most } => (name.as_str(), *most),
    };
    let said = |setting: &str, draft: &Draft| {
        crate::settings::find(setting).and_then(|row| (row.access.given)(draft).into_iter().next()).unwrap_or_default()
    };
    let value = match (name, image.by) {
        ("date", _) => local_time(SystemTime::now()).strftime("%Y-%m-%d").to_string(),
        ("time", _) => local_time(SystemTime::now()).strftime("%H%M%S").to_string(),
        ("seed", _) => image.seed.to_string(),
        ("index", _) => image.index.to_string(),
        ("prompt", NamedBy::Request(request)) => request.prompt.clone(),
        ("negative", NamedBy::Request(request)) => request.text.negative_prompt.clone().unwrap_or_default(),
        ("model", _) => image.model.to_owned(),
        ("sampler", NamedBy::Request(request)) => request.scheduler.sampler().map(|s| s.name().to_owned()).unwrap_or_default(),
        ("steps", NamedBy::Request(request)) => request.sampling.steps.to_string(),
        ("guidance", NamedBy::Request(request)) => request.guidance.scale.to_string(),
        ("width", NamedBy::Request(request)) => request.canvas.width.to_string(),
        ("height", NamedBy::Request(request)) => request.canvas.height.to_string(),
        ("negative", NamedBy::Draft(draft)) => said("negative-prompt", draft),
        ("guidance", NamedBy::Draft(draft)) => said("guidance-scale", draft),
        (name, NamedBy::Draft(draft)) => said(name, draft),
        _ => String::new(),
    };
    file_name_part(&value, most.unwrap_or(100))
}

/// A time as the calendar has it, or the last that it knows where a clock is beyond that.
pub(in crate::cli) fn local_time(time: SystemTime) -> Zoned {
    Timestamp::try_from(time).unwrap_or(Timestamp::MAX).to_zoned(TimeZone::system())
}

/// Text as a part of a file name on every system: no separators, no control characters, not hidden, not too long.
fn file_name_part(text: &str, most: usize) -> String {
    let allowed = |c: char| if steers(c) || "/\\:*?\"<>|".contains(c) { ' ' } else { c };
    let cleaned: String = text.chars().map(allowed).collect();
    let words = cleaned.split_whitespace().collect::<Vec<_>>().join("-");
    // A name may have 255 bytes on common file systems; a letter may take four.
    let mut part = String::new();
    for c in words.trim_matches(['.', '-']).chars().take(most) {
        if part.len() + c.len_utf8() > 180 {
            break;
        }
        part.push(c);
    }
    let part = part.trim_end_matches(['.', '-']);
    if part.is_empty() { "image".to_owned() } else { part.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn templates_are_read() {
        let field = |name: &str, most| TemplatePiece::Field { name: name.into(), most };
        assert_eq!(
            parse("{date}/a-{prompt:.40}.png").unwrap(),
            [field("date", None), TemplatePiece::Text("/a-".into()), field("prompt", Some(40)), TemplatePiece::Text(".png".into())]
        );
        for (bad, word) in [("{sed}.png", "sed"), ("{seed.png", "no \"}\""), ("{seed:.x}.png", "no number")] {
            assert!(parse(bad).unwrap_err().contains(word), "{bad}");
        }
    }

    #[test]
    fn a_clock_beyond_the_calendar_is_no_panic() {
        let far = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(9_000_000_000_000);
        assert!(local_time(far).year() >= 9999);
        assert!(local_time(SystemTime::UNIX_EPOCH).year() < 1972);
    }

    #[test]
    fn prompts_become_harmless_names() {
        for (text, most, wanted) in [
            ("a red apple", 40, "a-red-apple"),
            ("../../etc/passwd", 40, "etc-passwd"),
            ("  .hidden", 40, "hidden"),
            ("", 40, "image"),
            ("con:trol\u{7}*?", 40, "con-trol"),
            ("a red apple", 3, "a-r"),
            ("a red apple", 2, "a"),
        ] {
            assert_eq!(file_name_part(text, most), wanted, "{text:?}");
        }
        assert!(file_name_part(&"🍎".repeat(500), 500).len() <= 180);
    }

    #[test]
    fn every_part_of_a_path_can_be_opened_everywhere() {
        for (part, wanted) in [
            ("con.png", "con-.png"),
            ("AUX", "AUX-"),
            ("lpt1.a.png", "lpt1-.a.png"),
            ("console.png", "console.png"),
            ("com.png", "com.png"),
            ("COM².png", "COM²-.png"),
            ("conin$", "conin$-"),
        ] {
            assert_eq!(usable(part), wanted);
        }
    }

    #[test]
    fn every_part_of_a_path_is_short_enough_to_be_written() {
        let (red, green) = ("赤".repeat(60), "青".repeat(60));
        let spec = crate::family::well_known("sd15").unwrap();
        let request =
            crate::settings::Draft::new(red.as_str()).with(|draft| draft.text.negative_prompt = Some(green)).resolve(&spec).unwrap();
        let image = ImageName { by: NamedBy::Request(&request), model: "m", seed: 5, index: 0 };
        for template in [
            "{prompt}{negative}/x.png",
            "{prompt}{negative}.png/{seed}.png",
            "{prompt}{negative}{prompt}.png",
            "a/{prompt}{negative}/{seed}.png",
        ] {
            let path = Output::new(Some(template), None, false).unwrap().target(&image).unwrap().path;
            let longest = path.components().map(|part| part.as_os_str().len()).max().unwrap();
            assert!(longest <= LONGEST_NAME + ".png".len(), "{template}: {longest}");
            assert_eq!(path.components().count(), template.split('/').count(), "{template}");
            assert!(path.extension().is_some_and(|ending| ending == "png"), "{template}");
        }
        // Folders that a prompt makes are none of Windows' devices either.
        let request = crate::settings::Draft::new("aux").resolve(&spec).unwrap();
        let image = ImageName { by: NamedBy::Request(&request), model: "m", seed: 5, index: 0 };
        let place = |template: &str| Output::new(Some(template), Some(Path::new("out")), false).unwrap().target(&image).unwrap().path;
        assert_eq!(place("{prompt}/{seed}.png"), Path::new("out/aux-/5.png"));
        assert_eq!(place("{prompt}.png"), Path::new("out/aux-.png"));
    }

    #[test]
    fn one_file_takes_one_image() {
        let folder = tempfile::tempdir().unwrap();
        let output = Output::new(Some("a.png"), Some(folder.path()), false).unwrap();
        output.check(1).unwrap();
        assert!(output.check(2).unwrap_err().to_string().contains("one file"));
        std::fs::write(folder.path().join("a.png"), "taken").unwrap();
        assert!(output.check(1).unwrap_err().to_string().contains("--overwrite"));
        Output::new(Some("a.png"), Some(folder.path()), true).unwrap().check(1).unwrap();
        for bad in ["a.jpg", "a", "{nope}.png"] {
            assert_eq!(Output::new(Some(bad), None, false).unwrap_err().exit_code(), 2);
        }
    }
}
