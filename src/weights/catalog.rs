//! What lies in a folder of models: which files and folders can be named, without opening them.

use super::folder::is_pickle;
use std::collections::{HashSet, VecDeque};
use std::fs::Metadata;
use std::path::{Path, PathBuf};

/// Folders in folders: enough for every way to sort models.
const DEEPEST: usize = 6;
/// More than anybody has; a folder given by mistake must not be walked for ever.
const MOST_ENTRIES: usize = 1_000_000;

/// How a thing in a folder of models holds its weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CatalogKind {
    /// A diffusers folder.
    Folder,
    /// A `.safetensors` or `.gguf` file.
    File,
    /// A file in a form that is not opened.
    Pickle,
}

/// Something that can be named.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// The path inside the folder, with `/` and without ending.
    pub name: String,
    /// Where it is.
    pub path: PathBuf,
    /// What it is from outside.
    pub holds: CatalogKind,
}

/// What was found, where a network's own folder (`config.json` beside one file of weights, as the hub has ControlNets and autoencoders) has
/// the name of the folder and not that of the file in it.
pub fn with_network_folders(found: Vec<Found>) -> Vec<Found> {
    let mut seen = HashSet::new();
    let folded = |one: Found| {
        let usual = one.path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("diffusion_pytorch_model"));
        let folder = one.path.parent().filter(|folder| usual && folder.join("config.json").is_file());
        match (folder, one.name.rsplit_once('/')) {
            (Some(folder), Some((name, _))) => Found { name: name.to_owned(), path: folder.to_owned(), holds: CatalogKind::Folder },
            _ => one,
        }
    };
    found.into_iter().map(folded).filter(|one| seen.insert(one.path.clone())).collect()
}

/// Whether `path` is a diffusers folder.
pub fn is_model_folder(path: &Path) -> bool {
    path.join("model_index.json").is_file() || path.join("unet").is_dir()
}

/// Everything in `folder` and its folders that holds weights, sorted by name; none where there is no such folder.
///
/// Links are followed. A folder that several names lead to is looked into once, under the shortest: a link to a folder above
/// itself adds nothing.
pub fn find_models(folder: &Path) -> Vec<Found> {
    let mut found = Vec::new();
    let mut left = MOST_ENTRIES;
    let mut seen = HashSet::new();
    if let Ok(metadata) = std::fs::metadata(folder) {
        seen.insert(identity(folder, &metadata));
    }
    let mut folders = VecDeque::from([(folder.to_owned(), String::new(), DEEPEST)]);
    while let Some((folder, before, depth)) = folders.pop_front() {
        let mut below = Vec::new();
        for entry in std::fs::read_dir(&folder).into_iter().flatten().flatten() {
            left -= 1;
            if left == 0 {
                break;
            }
            // Hidden ones are caches, unfinished downloads and version control.
            let Some(name) = entry.file_name().to_str().filter(|name| !name.starts_with('.')).map(str::to_owned) else { continue };
            let path = entry.path();
            // Follows links, in contrast to the entry's own.
            let Ok(metadata) = std::fs::metadata(&path) else { continue };
            if metadata.is_dir() {
                if is_model_folder(&path) {
                    found.push(Found { name: format!("{before}{name}"), path, holds: CatalogKind::Folder });
                } else if depth > 0 {
                    let is_link = entry.file_type().is_ok_and(|kind| kind.is_symlink());
                    below.push((is_link, format!("{before}{name}/"), path, metadata));
                }
            } else if metadata.is_file()
                && let Some((stem, ending)) = name.rsplit_once('.')
            {
                let holds = match ["safetensors", "gguf"].iter().any(|known| ending.eq_ignore_ascii_case(known)) {
                    true => CatalogKind::File,
                    false if is_pickle(&name) => CatalogKind::Pickle,
                    false => continue,
                };
                found.push(Found { name: format!("{before}{stem}"), path, holds });
            }
        }
        if left == 0 {
            break;
        }
        // Of several names of one folder its own comes before those of links, and the order is always the same.
        below.sort_by(|(one_is_link, one, ..), (other_is_link, other, ..)| (one_is_link, one).cmp(&(other_is_link, other)));
        let unseen = below.into_iter().filter(|(_, _, path, metadata)| seen.insert(identity(path, metadata)));
        folders.extend(unseen.map(|(_, name, path, _)| (path, name, depth - 1)).collect::<Vec<_>>());
    }
    found.sort_by(|one, other| one.name.cmp(&other.name).then_with(|| one.path.cmp(&other.path)));
    found
}

/// What tells a folder from all others, whatever it is called: its device and its number there.
#[cfg(unix)]
fn identity(_: &Path, metadata: &Metadata) -> (u64, u64) {
    use std::os::unix::fs::MetadataExt;
    (metadata.dev(), metadata.ino())
}

/// What tells a folder from all others, whatever it is called: its path without links.
#[cfg(not(unix))]
fn identity(path: &Path, _: &Metadata) -> PathBuf {
    path.canonicalize().unwrap_or_else(|_| path.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        find_models(folder).into_iter().map(|found| found.name).collect()
    }

    #[test]
    fn models_are_found_in_folders_and_not_in_hidden_ones() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["b.safetensors", "a.ckpt", "text.txt", "d/e/c.SAFETENSORS", ".hidden/x.safetensors", "f/model_index.json"] {
            let path = folder.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "").unwrap();
        }
        assert_eq!(names(folder.path()), ["a", "b", "d/e/c", "f"]);
        assert!(names(&folder.path().join("none")).is_empty());
    }

    #[cfg(unix)]
    #[test]
    fn links_to_folders_above_add_no_names_and_no_time() {
        use std::os::unix::fs::symlink;
        let folder = tempfile::tempdir().unwrap();
        let (models, elsewhere) = (folder.path().join("models"), folder.path().join("elsewhere"));
        std::fs::create_dir_all(models.join("sub")).unwrap();
        std::fs::create_dir_all(&elsewhere).unwrap();
        for path in [models.join("one.safetensors"), models.join("sub/two.safetensors"), elsewhere.join("three.safetensors")] {
            std::fs::write(path, "").unwrap();
        }
        // Ten names for every folder on every level: a walk of all of them would take 10^7 looks.
        for i in 0..10 {
            symlink(".", models.join(format!("loop{i}"))).unwrap();
            symlink("..", models.join(format!("sub/up{i}"))).unwrap();
        }
        symlink("sub", models.join("also-sub")).unwrap();
        symlink(&elsewhere, models.join("linked")).unwrap();
        symlink("one.safetensors", models.join("other.safetensors")).unwrap();
        assert_eq!(names(&models), ["linked/three", "one", "other", "sub/two"]);
    }
}
