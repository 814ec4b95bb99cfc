//! What lies in a folder of models: which files and folders can be named, without opening them.

use super::folder::is_pickle;
use std::path::{Path, PathBuf};

/// Folders in folders: enough for every way to sort models, and no ring of links is walked for long.
const DEEPEST: usize = 6;
/// More than anybody has; a folder given by mistake must not be walked for ever.
const MOST_ENTRIES: usize = 1_000_000;

/// How a thing in a folder of models holds its weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CatalogKind {
    /// A diffusers folder.
    Folder,
    /// A `.safetensors` file.
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

/// Whether `path` is a diffusers folder.
pub fn is_model_folder(path: &Path) -> bool {
    path.join("model_index.json").is_file() || path.join("unet").is_dir()
}

/// Everything in `folder` and its folders that holds weights, sorted by name; none where there is no such folder.
pub fn find_models(folder: &Path) -> Vec<Found> {
    let mut found = Vec::new();
    let mut left = MOST_ENTRIES;
    walk(folder, "", DEEPEST, &mut left, &mut found);
    found.sort_by(|one, other| one.name.cmp(&other.name).then_with(|| one.path.cmp(&other.path)));
    found
}

fn walk(folder: &Path, before: &str, depth: usize, left: &mut usize, found: &mut Vec<Found>) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        *left = left.saturating_sub(1);
        if *left == 0 {
            return;
        }
        let path = entry.path();
        // Hidden ones are caches, unfinished downloads and version control.
        let Some(name) = entry.file_name().to_str().filter(|name| !name.starts_with('.')).map(str::to_owned) else { continue };
        // Follows links, in contrast to the entry's own.
        let Ok(metadata) = std::fs::metadata(&path) else { continue };
        let named = |name: &str| format!("{before}{name}");
        if metadata.is_dir() {
            if is_model_folder(&path) {
                found.push(Found { name: named(&name), path, holds: CatalogKind::Folder });
            } else if depth > 0 {
                walk(&path, &format!("{before}{name}/"), depth - 1, left, found);
            }
        } else if metadata.is_file()
            && let Some((stem, ending)) = name.rsplit_once('.')
        {
            let holds = match ending.eq_ignore_ascii_case("safetensors") {
                true => CatalogKind::File,
                false if is_pickle(&name) => CatalogKind::Pickle,
                false => continue,
            };
            found.push(Found { name: named(stem), path, holds });
        }
    }
}
