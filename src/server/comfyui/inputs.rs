//! Images that clients send before they use them: kept under harmless names, so many and so much of them.

use crate::disk::{read_bounded, write_whole};
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

/// Images that are kept; the oldest go.
const MOST_IMAGES: usize = 1_000;
/// Bytes of all of them.
const MOST_BYTES: u64 = 2 << 30;
/// Bytes of one.
const LARGEST: u64 = 256 << 20;
/// Letters of a name.
const LONGEST_NAME: usize = 120;

/// The folder of images that were sent.
#[derive(Debug)]
pub(in crate::server) struct InputFolder {
    folder: PathBuf,
    /// One writes at a time.
    writing: Mutex<()>,
}

impl InputFolder {
    /// # Errors
    /// The folder cannot be made.
    pub(in crate::server) fn open(folder: PathBuf) -> std::io::Result<Self> {
        std::fs::create_dir_all(&folder)?;
        Ok(Self { folder, writing: Mutex::default() })
    }

    /// Keeps an image under a name that is free, or that may be overwritten; gives the name.
    pub(super) fn keep(&self, name: &str, overwrite: bool, bytes: &[u8]) -> Result<String, String> {
        let ending = match ::image::guess_format(bytes) {
            Ok(format) => format.extensions_str().first().copied().unwrap_or("png"),
            Err(_) => return Err("is no image that can be read; send a PNG, JPEG or WebP".into()),
        };
        if bytes.len() as u64 > LARGEST {
            return Err(format!("is larger than {} MiB", LARGEST >> 20));
        }
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let harmless = harmless(name);
        let (stem, own) = harmless.rsplit_once('.').unwrap_or((&harmless, ending));
        let mut name = format!("{stem}.{own}");
        let mut again = 0;
        while !overwrite && self.folder.join(&name).exists() {
            if std::fs::read(self.folder.join(&name)).is_ok_and(|there| there == bytes) {
                return Ok(name);
            }
            again += 1;
            if again > MOST_IMAGES {
                return Err("has a name that is taken too often; give another".into());
            }
            name = format!("{stem} ({again}).{own}");
        }
        self.make_room(bytes.len() as u64);
        write_whole(&self.folder.join(&name), true, |to| to.write_all(bytes)).map_err(|error| format!("cannot be kept: {error}"))?;
        Ok(name)
    }

    /// The oldest go until there is room for one more.
    fn make_room(&self, bytes: u64) {
        let entries = std::fs::read_dir(&self.folder).into_iter().flatten().flatten();
        let mut files: Vec<(SystemTime, u64, PathBuf)> = entries
            .filter_map(|entry| {
                let about = entry.metadata().ok().filter(std::fs::Metadata::is_file)?;
                Some((about.modified().unwrap_or(SystemTime::UNIX_EPOCH), about.len(), entry.path()))
            })
            .collect();
        files.sort();
        let (mut left, mut all) = (files.len(), files.iter().map(|(_, bytes, _)| *bytes).sum::<u64>());
        for (_, size, path) in files {
            if left < MOST_IMAGES && all.saturating_add(bytes) <= MOST_BYTES {
                break;
            }
            if std::fs::remove_file(path).is_ok() {
                (left, all) = (left - 1, all.saturating_sub(size));
            }
        }
    }

    /// An image by its name.
    pub(super) fn read(&self, name: &str) -> Result<Vec<u8>, String> {
        // A name that had to be made harmless is none of an image here.
        let known = name == harmless(name) && self.folder.join(name).is_file();
        let bytes = known.then(|| read_bounded(&self.folder.join(name), LARGEST).ok()).flatten();
        bytes.ok_or_else(|| format!("Invalid image file: {}; send it to /upload/image first", harmless(name)))
    }

    /// The names of all.
    pub(super) fn list(&self) -> Vec<String> {
        let entries = std::fs::read_dir(&self.folder).into_iter().flatten().flatten();
        let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
        let mut names: Vec<String> = names.filter(|name| *name == harmless(name)).collect();
        names.sort();
        names
    }
}

/// A name that is one file's in a folder, whatever was sent.
fn harmless(name: &str) -> String {
    let last = name.rsplit(['/', '\\']).next().unwrap_or_default();
    let is_kept = |c: &char| c.is_alphanumeric() || " ._-()+,=@".contains(*c);
    let kept: String = last.chars().filter(is_kept).take(LONGEST_NAME).collect();
    // A file whose name begins with a point is hidden, and may be one that is being written.
    let kept = kept.trim_start_matches(['.', ' ', '-']).trim_end_matches(['.', ' ']);
    if kept.is_empty() { "image".to_owned() } else { kept.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_lead_nowhere() {
        for (name, wanted) in [
            ("a.png", "a.png"),
            ("../../etc/passwd", "passwd"),
            ("C:\\x\\b c.jpg", "b c.jpg"),
            ("..", "image"),
            (".hidden.png", "hidden.png"),
            ("-rf", "rf"),
            ("a\0b\n.png", "ab.png"),
            ("", "image"),
            ("ü (1).webp", "ü (1).webp"),
        ] {
            assert_eq!(harmless(name), wanted, "{name:?}");
            assert_eq!(harmless(&harmless(name)), wanted);
        }
    }

    #[test]
    fn an_image_is_kept_once_and_found_again() {
        let folder = tempfile::tempdir().unwrap();
        let inputs = InputFolder::open(folder.path().join("inputs")).unwrap();
        let png = |level: u8| {
            let mut bytes = std::io::Cursor::new(Vec::new());
            ::image::RgbImage::from_pixel(8, 8, ::image::Rgb([level; 3])).write_to(&mut bytes, ::image::ImageFormat::Png).unwrap();
            bytes.into_inner()
        };
        assert_eq!(inputs.keep("../a.png", false, &png(1)).unwrap(), "a.png");
        assert_eq!(inputs.keep("a.png", false, &png(1)).unwrap(), "a.png");
        assert_eq!(inputs.keep("a.png", false, &png(2)).unwrap(), "a (1).png");
        assert_eq!(inputs.keep("a.png", true, &png(3)).unwrap(), "a.png");
        assert_eq!((inputs.read("a.png").unwrap(), inputs.list()), (png(3), vec!["a (1).png".to_owned(), "a.png".to_owned()]));
        assert!(inputs.keep("b.png", false, b"no image").is_err());
        std::fs::write(folder.path().join("secret.png"), png(9)).unwrap();
        for name in ["../secret.png", "/etc/passwd", "absent.png", ""] {
            assert!(inputs.read(name).is_err(), "{name}");
        }
    }
}
