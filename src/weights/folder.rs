//! Where the files of a diffusers folder come from, and which of several weight files is the right one.

use super::file::{Blob, WeightFile};
use super::{model_error, quoted};
use crate::family::{ConfigFiles, MAX_TEXT, names_in, too_long};
use crate::{Result, disk};
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Why a pickle is not read, and what to do.
pub(crate) const PICKLE: &str = "is a pickle, which can run any code when it is read, and is refused; \
                                 use the .safetensors file of the same model, or convert it in a sandbox";

/// Whether a file is called as PyTorch's pickles are.
pub(crate) fn is_pickle(path: impl AsRef<Path>) -> bool {
    let extension = path.as_ref().extension().and_then(|extension| extension.to_str());
    extension.is_some_and(|extension| ["ckpt", "pt", "pth", "bin"].iter().any(|pickle| extension.eq_ignore_ascii_case(pickle)))
}

/// A diffusers folder, wherever it is. Paths inside it are written with `/`.
#[derive(Debug, Clone)]
pub(crate) enum Folder {
    /// On disk.
    Disk(PathBuf),
    /// Compiled into the program, under a name.
    Embedded(String, &'static [(&'static str, &'static [u8])]),
}

impl ConfigFiles for Folder {
    fn shown(&self, path: &str) -> String {
        match self {
            Folder::Disk(root) => root.join(path).display().to_string(),
            Folder::Embedded(name, _) => format!("{name}:{path}"),
        }
    }

    fn names(&self, dir: &str) -> Vec<String> {
        match self {
            Folder::Disk(root) => {
                let entries = std::fs::read_dir(root.join(dir)).into_iter().flatten();
                let mut names: Vec<String> = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect();
                names.sort_unstable();
                names
            }
            Folder::Embedded(_, files) => names_in(dir, files.iter().map(|(path, _)| *path)),
        }
    }

    fn text(&self, path: &str) -> Result<Option<Vec<u8>>> {
        let root = match self {
            Folder::Embedded(_, files) => return Ok(files.iter().find(|(p, _)| *p == path).map(|(_, bytes)| bytes.to_vec())),
            Folder::Disk(root) => root,
        };
        let file = match disk::open_regular(&root.join(path)) {
            Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => return Ok(None),
            other => other,
        };
        let mut text = Vec::new();
        // The length that the file system tells is not always what there is to read.
        let read = file.and_then(|file| {
            let len = file.metadata()?.len();
            file.take(MAX_TEXT + 1).read_to_end(&mut text)?;
            Ok(len.max(text.len() as u64))
        });
        match read {
            Ok(len) if len > MAX_TEXT => Err(too_long(&self.shown(path), len)),
            Ok(_) => Ok(Some(text)),
            Err(e) => Err(model_error(self.shown(path), format!("cannot be read: {e}"))),
        }
    }
}

impl Folder {
    fn weight_file(&self, path: &str) -> Result<Arc<WeightFile>> {
        let blob = match self {
            Folder::Disk(root) => Blob::open(&root.join(path))?,
            Folder::Embedded(_, files) => match files.iter().find(|(p, _)| *p == path) {
                Some((_, bytes)) => Blob::Static(bytes),
                None => return Err(model_error(self.shown(path), "is missing")),
            },
        };
        WeightFile::new(self.shown(path), blob).map(Arc::new)
    }

    /// The weight files of the component in `dir`.
    ///
    /// Full precision is taken where it is there; `prefer` names a variant to take instead, such as `fp16`.
    pub(crate) fn weights(&self, dir: &str, prefer: Option<&str>) -> Result<Vec<Arc<WeightFile>>> {
        let names = self.names(dir);
        let inside = |name: &str| if dir.is_empty() { name.to_owned() } else { format!("{dir}/{name}") };
        let Some(chosen) = choose(&names, prefer) else {
            let dir_shown = self.shown(dir);
            if let Some(pickle) = names.iter().find(|name| is_pickle(name)) {
                return Err(model_error(self.shown(&inside(pickle)), PICKLE));
            }
            return Err(model_error(dir_shown, "has no weights: neither model.safetensors nor diffusion_pytorch_model.safetensors"));
        };
        let path = inside(chosen);
        if !chosen.ends_with(".json") {
            return Ok(vec![self.weight_file(&path)?]);
        }
        let shards = self.shards(&path)?;
        shards.iter().map(|shard| self.weight_file(&inside(shard))).collect()
    }

    /// The files that an index of shards names, sorted.
    pub(crate) fn shards(&self, path: &str) -> Result<Vec<String>> {
        let index = (self as &dyn ConfigFiles).required_json(path)?;
        let map = index.object("weight_map").ok_or_else(|| index.wrong("weight_map", "is missing or not an object"))?.value();
        let mut shards = Vec::new();
        for (key, file) in map.as_object().into_iter().flatten() {
            let file = file.as_str().ok_or_else(|| index.wrong("weight_map", format!("{} has no file name", quoted(key))))?;
            // A shard lies beside its index: nothing else may be opened because a downloaded file says so.
            if file.is_empty() || file.starts_with('.') || file.contains(['/', '\\', ':', '\0']) || !file.ends_with(".safetensors") {
                return Err(
                    index.wrong("weight_map", format!("{} is not the name of a .safetensors file in the same folder", quoted(file)))
                );
            }
            shards.push(file.to_owned());
        }
        shards.sort_unstable();
        shards.dedup();
        match shards.is_empty() {
            true => Err(index.wrong("weight_map", "names no file")),
            false => Ok(shards),
        }
    }
}

/// The weight file, or the index of shards, to take among the files `names` of a component's folder.
pub(crate) fn choose<'a>(names: &'a [String], prefer: Option<&str>) -> Option<&'a str> {
    let choices = names.iter().filter_map(|name| Some((variant(name)?, name.as_str())));
    // After the variant that was asked for: no variant, then half precision, then any other by its name. Of a whole file
    // and an index of shards of the same variant the whole file comes first.
    let chosen = choices.min_by_key(|(variant, name)| {
        let rank = match variant {
            Some(_) if *variant == prefer => 0,
            None => 1,
            Some("fp16") => 2,
            Some(_) => 3,
        };
        (rank, name.contains(".index."), *name)
    });
    chosen.map(|(_, name)| name)
}

/// For a weight file's name its variant, if it has one: `None` where it is no weight file, `Some(None)` at full precision.
fn variant(name: &str) -> Option<Option<&str>> {
    let rest = ["diffusion_pytorch_model", "model"].iter().find_map(|stem| name.strip_prefix(stem))?;
    let middle = match rest.strip_suffix(".safetensors") {
        Some(middle) => middle,
        // `model.fp16.safetensors.index.json` or `model.safetensors.index.fp16.json`.
        None => match rest.strip_suffix(".safetensors.index.json") {
            Some(middle) => middle,
            None => rest.strip_prefix(".safetensors.index")?.strip_suffix(".json")?,
        },
    };
    match middle {
        "" => Some(None),
        // `-00001-of-00002` is a shard, which its index names.
        _ => middle.strip_prefix('.').filter(|v| !v.is_empty() && !v.contains("-of-")).map(Some),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variants_are_read_off_file_names() {
        let cases = [
            ("model.safetensors", Some(None)),
            ("diffusion_pytorch_model.safetensors", Some(None)),
            ("diffusion_pytorch_model.fp16.safetensors", Some(Some("fp16"))),
            ("diffusion_pytorch_model.non_ema.safetensors", Some(Some("non_ema"))),
            ("model.safetensors.index.json", Some(None)),
            ("model.fp16.safetensors.index.json", Some(Some("fp16"))),
            ("model.safetensors.index.fp16.json", Some(Some("fp16"))),
            ("model-00001-of-00002.safetensors", None),
            ("model.fp16-00001-of-00002.safetensors", None),
            ("config.json", None),
            ("pytorch_model.bin", None),
        ];
        for (name, expected) in cases {
            assert_eq!(variant(name), expected, "{name}");
        }
    }
}
