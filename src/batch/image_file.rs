//! The file of an image: which name it has, and how it gets there. Everything that generates writes its images through this.
//!
//! The bytes are on the disk under a temporary name first. No image of a run has the name of another, and a file that is there already
//! is only replaced where the user allows it; otherwise the name is counted on: `apple.png`, `apple-2.png`, ….

use crate::disk::{Staged, counted, folder_of, stage};
use crate::image::write_png;
use crate::metadata::{GeneratedBy, KEYWORD, parameters};
use crate::pipeline::GeneratedImage;
use crate::settings::Request;
use crate::{Error, Result};
use std::borrow::Cow;
use std::collections::HashMap;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Where an image is to go, and what it means that its name is taken.
#[derive(Debug, Clone)]
pub(crate) struct ImageTarget {
    /// The file that is wanted.
    pub path: PathBuf,
    /// The user named this very file, so that a taken name is an error and not a reason to count on.
    pub exact: bool,
    /// A file that is no image of this run may be replaced.
    pub overwrite: bool,
    /// No other image of the run has the path.
    planned: bool,
}

impl ImageTarget {
    /// A path that other images of the run may want too.
    pub(crate) fn new(path: impl Into<PathBuf>, exact: bool, overwrite: bool) -> Self {
        Self { path: path.into(), exact, overwrite, planned: false }
    }

    /// No file stands in the way of it.
    pub(crate) fn is_free(&self) -> bool {
        self.admits(&self.path)
    }

    fn admits(&self, path: &Path) -> bool {
        self.overwrite || path.symlink_metadata().is_err()
    }
}

/// The names that the images of a run have or will have, and how many images wanted each.
#[derive(Debug, Clone, Default)]
pub(crate) struct ImageNames(Arc<Mutex<HashMap<PathBuf, usize>>>);

impl ImageNames {
    /// Gives the target a path that no other image of the run has. The disk has no say, so that every run plans the same.
    ///
    /// # Errors
    /// The user gave one file to several images.
    pub(crate) fn plan(&self, target: ImageTarget) -> Result<ImageTarget> {
        let path = self.give(&target, |_| true).ok_or_else(|| {
            let path = target.path.display();
            Error::setting("output", format!("{path}: is the file of an earlier image too; give another name"))
        })?;
        Ok(ImageTarget { path, planned: true, ..target })
    }

    /// Writes an image's bytes, and finds a name that is free.
    ///
    /// # Errors
    /// The folder cannot be written, or the one name that was asked for is taken.
    pub(crate) fn stage(&self, target: ImageTarget, write: impl FnOnce(&mut dyn Write) -> std::io::Result<()>) -> Result<StagedImage> {
        let staged = stage(folder_of(&target.path), write).map_err(Error::io(&target.path))?;
        let path = match target.planned && target.is_free() {
            true => target.path.clone(),
            false => self.free(&target)?,
        };
        Ok(StagedImage { staged, names: self.clone(), target, path })
    }

    fn free(&self, target: &ImageTarget) -> Result<PathBuf> {
        let taken = || Error::Image(format!("{} exists; give another `output`, or `overwrite`", target.path.display()));
        self.give(target, |path| target.admits(path)).ok_or_else(taken)
    }

    /// The target's path or the first with a count that no image of the run has; `None` where it must be the path itself.
    fn give(&self, target: &ImageTarget, is_free: impl Fn(&Path) -> bool) -> Option<PathBuf> {
        let mut names = self.lock();
        let wanted = names.get(&target.path).copied();
        if wanted.is_none() && is_free(&target.path) {
            names.insert(target.path.clone(), 1);
            return Some(target.path.clone());
        }
        if target.exact {
            return None;
        }
        let mut count = wanted.unwrap_or(1) + 1;
        let mut name = counted(&target.path, count);
        while names.contains_key(&name) || !is_free(&name) {
            count += 1;
            name = counted(&target.path, count);
        }
        names.insert(target.path.clone(), count);
        names.insert(name.clone(), 1);
        Some(name)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<PathBuf, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An image whose bytes are safe on the disk, and which has no name yet.
#[derive(Debug)]
pub(crate) struct StagedImage {
    staged: Staged,
    names: ImageNames,
    target: ImageTarget,
    path: PathBuf,
}

impl StagedImage {
    /// The name that it will have.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Bytes.
    pub(crate) fn size(&self) -> u64 {
        self.staged.size
    }

    /// SHA-256 of the bytes.
    pub(crate) fn sha256(&self) -> &[u8; 32] {
        &self.staged.sha256
    }

    /// Gives the file its name. Where somebody took that a moment ago, the image comes back with the next one that is free.
    ///
    /// # Errors
    /// The name cannot be given, or was the only one that was asked for.
    pub(crate) fn publish(self) -> Result<Option<Self>> {
        let Self { staged, names, target, path } = self;
        match staged.publish(&path, target.overwrite) {
            Ok(()) => Ok(None),
            Err((error, staged)) if error.kind() == ErrorKind::AlreadyExists => {
                let path = names.free(&target)?;
                Ok(Some(Self { staged, names, target, path }))
            }
            Err((error, _)) => Err(Error::io(path)(error)),
        }
    }

    /// As [`publish`](Self::publish), until it has a name, which is given back.
    ///
    /// # Errors
    /// As `publish`.
    pub(crate) fn publish_somewhere(mut self) -> Result<PathBuf> {
        loop {
            let path = self.path.clone();
            match self.publish()? {
                None => return Ok(path),
                Some(renamed) => self = renamed,
            }
        }
    }
}

/// Writes a generated image as PNG, with the text that says what it was made of.
///
/// # Errors
/// The text cannot be made.
pub(crate) fn generated_png(
    generated: &GeneratedImage,
    request: &Request,
    generator: &GeneratedBy,
) -> Result<impl FnOnce(&mut dyn Write) -> std::io::Result<()>> {
    let texts = [(KEYWORD, Cow::from(parameters(request, generated.seed, generator)?))];
    Ok(move |to: &mut dyn Write| write_png(&generated.image, &texts, to))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(names: &ImageNames, target: ImageTarget) -> Result<String> {
        let path = names.stage(target, |to| to.write_all(b"new"))?.publish_somewhere()?;
        assert_eq!(std::fs::read(&path).unwrap(), b"new");
        Ok(path.file_name().unwrap().to_string_lossy().into_owned())
    }

    #[test]
    fn names_are_counted_on_over_files_and_over_the_runs_own_images() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        std::fs::write(path("a.png"), b"old").unwrap();
        std::fs::write(path("a-2.png"), b"old").unwrap();
        let names = ImageNames::default();
        let target = |overwrite| ImageTarget::new(path("a.png"), false, overwrite);
        assert_eq!(written(&names, target(false)).unwrap(), "a-3.png");
        assert_eq!(written(&names, target(false)).unwrap(), "a-4.png");
        assert_eq!(std::fs::read(path("a.png")).unwrap(), b"old");
        let names = ImageNames::default();
        let replaced = [(); 3].map(|()| written(&names, target(true)).unwrap());
        assert_eq!(replaced, ["a.png", "a-2.png", "a-3.png"]);
        let exact = written(&ImageNames::default(), ImageTarget::new(path("a.png"), true, false)).unwrap_err();
        assert!(exact.to_string().contains("exists; give another `output`"), "{exact}");
    }

    #[test]
    fn planned_names_are_the_same_whatever_the_disk_has_and_nobody_else_takes_them() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        std::fs::write(path("a.png"), b"old").unwrap();
        let names = ImageNames::default();
        let plan = |exact| names.plan(ImageTarget::new(path("a.png"), exact, false));
        let (first, second) = (plan(false).unwrap(), plan(false).unwrap());
        assert_eq!([&first.path, &second.path], [&path("a.png"), &path("a-2.png")]);
        assert!(plan(true).unwrap_err().to_string().contains("earlier image"));
        assert_eq!(written(&names, first).unwrap(), "a-3.png");
        assert_eq!(written(&names, second).unwrap(), "a-2.png");
    }

    #[test]
    fn a_name_that_is_taken_at_the_last_moment_is_counted_on() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let staged = ImageNames::default().stage(ImageTarget::new(path("a.png"), false, false), |to| to.write_all(b"new")).unwrap();
        assert_eq!(staged.path(), path("a.png"));
        std::fs::write(path("a.png"), b"of somebody").unwrap();
        let renamed = staged.publish().unwrap().unwrap();
        assert_eq!(renamed.path(), path("a-2.png"));
        assert!(renamed.publish().unwrap().is_none());
        assert_eq!(std::fs::read(path("a.png")).unwrap(), b"of somebody");
    }
}
