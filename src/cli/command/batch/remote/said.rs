//! A draft as a server is sent it: settings by their names, files with their content.

use crate::disk::read_bounded;
use crate::settings::{BatchNoise, BatchPlace, Draft, Effect, Parts, Seed, Setting, table};
use crate::{Error, Result};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value as Json, json};
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// Settings of what is loaded that a server lets requests have.
const OF_MODEL: &[&str] = &["model", "dtype", "vae-dtype", "vae-tiling"];
/// Settings that this program has done its part for, or that are said by others.
const DONE_HERE: &[&str] =
    &["size", "images", "seed", "recreate", "dynamic-prompts", "wildcards", "style", "styles-file", "batch-size", "batch-noise"];
/// Settings whose value is a file that is sent along.
const FILES: &[&str] = &["init-image", "mask", "scheduler-config"];
/// Settings that hold such a file behind `image=`.
const STEERING: &[&str] = &["control", "ip-adapter"];
/// What stands for a file until it is sent: its path, and the hash of its content.
const FILE: &str = "file";
const HASH: &str = "sha256";

/// Files that were read to be known, by their paths.
#[derive(Default)]
pub(super) struct KnownFiles(HashMap<PathBuf, String>);

impl KnownFiles {
    /// What stands for a file.
    fn note(&mut self, row: &Setting, path: &str) -> Result<Json> {
        if path == "-" {
            return Err(Error::setting(row.name, " -: give a file, which is sent to the server"));
        }
        let known = Path::new(path);
        if !self.0.contains_key(known) {
            let bytes = read_bounded(known, row.limit).map_err(|error| Error::setting(row.name, format!(" {path}: {error}")))?;
            let hash = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
            self.0.insert(known.to_owned(), hash);
        }
        Ok(json!({ FILE: path, HASH: self.0.get(known) }))
    }
}

/// What a draft says, with its files noted and not yet read.
///
/// # Errors
/// A file cannot be read, or something is said that is the server's.
pub(super) fn said(draft: &Draft, files: &mut KnownFiles) -> Result<Map<String, Json>> {
    let mut said = Map::new();
    let rows = table().iter().filter(|row| !matches!(row.effect, Effect::Run | Effect::File) && !DONE_HERE.contains(&row.name));
    for row in rows {
        let values = (row.access.given)(draft);
        if values.is_empty() {
            continue;
        }
        if row.effect == Effect::Model && !OF_MODEL.contains(&row.name) {
            return Err(Error::setting(row.name, ": is the server's own; leave it out, and give it to `sd-gen serve`"));
        }
        let mut values = values
            .into_iter()
            .map(|value| match row.name {
                name if FILES.contains(&name) => files.note(row, &value),
                name if STEERING.contains(&name) => steering(row, &value, files),
                _ => Ok(Json::String(value)),
            })
            .collect::<Result<Vec<_>>>()?;
        let value = if row.many { values.into() } else { values.remove(0) };
        said.insert(row.name.to_owned(), value);
    }
    Ok(said)
}

fn steering(row: &Setting, value: &str, files: &mut KnownFiles) -> Result<Json> {
    let parts = Parts::read(value).map_err(|what| Error::setting(row.name, format!(" {value}: {what}")))?;
    let mut object = Map::new();
    if let Some(model) = parts.head {
        object.insert("model".into(), model.into());
    }
    for (key, value) in parts.pairs {
        let value = if key == "image" { files.note(row, &value)? } else { value.into() };
        object.insert(key, value);
    }
    Ok(object.into())
}

/// The image of a number among those of a draft, as a draft of its own, and its seed; as [`Request::each`](crate::settings::Request::each)
/// has them.
///
/// # Errors
/// The second seed is left to chance, which would be another one at each try.
pub(super) fn image(draft: &Draft, number: usize) -> Result<(Draft, u64)> {
    let mut one = draft.clone();
    let images = draft.output.images.unwrap_or(1);
    let varied = draft.sampling.variation_strength.is_some_and(|strength| strength != 0.0);
    let shared = draft.sampling.batch_noise == Some(BatchNoise::Shared) && images > 1;
    let first = match draft.seed {
        Some(Seed::Is(seed)) => seed,
        Some(Seed::Random) | None => 0,
    };
    if shared {
        one.sampling.batch_place = BatchPlace::of(number, images);
    }
    if varied {
        let Some(Seed::Is(seed)) = draft.sampling.variation_seed else {
            return Err(Error::setting("variation-seed", ": give it, so that a server that is asked again makes the same image"));
        };
        one.sampling.variation_seed = Some(Seed::Is(seed.wrapping_add(number as u64)));
    }
    let seed = if varied || shared { first } else { first.wrapping_add(number as u64) };
    Ok((one, seed))
}

/// Settings without the places of their files: what decides the image.
pub(super) fn without_places(said: &Json) -> Json {
    match said {
        Json::Object(object) if object.contains_key(HASH) => json!({ HASH: object.get(HASH) }),
        Json::Object(object) => object.iter().map(|(key, value)| (key.clone(), without_places(value))).collect::<Map<_, _>>().into(),
        Json::Array(items) => items.iter().map(without_places).collect(),
        other => other.clone(),
    }
}

/// Settings with the contents of their files.
///
/// # Errors
/// A file is another than it was, or is not there any more.
pub(super) fn with_contents(said: &Json) -> Result<Json> {
    Ok(match said {
        Json::Object(object) if object.contains_key(HASH) => {
            let path = object.get(FILE).and_then(Json::as_str).unwrap_or_default();
            let bytes = std::fs::read(path).map_err(Error::io(path))?;
            let hash: String = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
            if object.get(HASH) != Some(&Json::from(hash)) {
                return Err(Error::Input(format!("{path}: was changed while the batch ran; start it again")));
            }
            json!({ "data": STANDARD.encode(bytes) })
        }
        Json::Object(object) => {
            let pairs = object.iter().map(|(key, value)| Ok((key.clone(), with_contents(value)?)));
            pairs.collect::<Result<Map<_, _>>>()?.into()
        }
        Json::Array(items) => items.iter().map(with_contents).collect::<Result<Vec<_>>>()?.into(),
        other => other.clone(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_draft_is_said_with_its_files() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.png");
        std::fs::write(&path, b"bytes").unwrap();
        let shown = path.to_str().unwrap();
        let mut draft = Draft::new("a cat");
        draft.set("init-image", [shown]).unwrap();
        draft.set("steps", ["20"]).unwrap();
        draft.set("control", [format!("canny,image={shown},weight=0.5")]).unwrap();
        let mut files = KnownFiles::default();
        let settings = Json::Object(said(&draft, &mut files).unwrap());
        assert_eq!((&settings["steps"], &settings["prompt"]), (&json!("20"), &json!(["a cat"])));
        let sent = with_contents(&settings).unwrap();
        let data = json!({ "data": "Ynl0ZXM=" });
        assert_eq!((&sent["init-image"], &sent["control"][0]["image"], &sent["control"][0]["model"]), (&data, &data, &json!("canny")));
        let known = without_places(&settings).to_string();
        assert!(!known.contains(shown) && known.contains(HASH), "{known}");
        std::fs::write(&path, b"other").unwrap();
        assert!(with_contents(&settings).unwrap_err().to_string().contains("changed"));
        draft.set("device", ["cpu"]).unwrap();
        assert!(said(&draft, &mut files).unwrap_err().to_string().contains("the server's own"));
    }

    #[test]
    fn images_have_the_seeds_of_a_run_here() {
        let mut draft = Draft::new("a cat");
        draft.set("images", ["3"]).unwrap();
        draft.set("seed", ["7"]).unwrap();
        assert_eq!((image(&draft, 0).unwrap().1, image(&draft, 2).unwrap().1), (7, 9));
        draft.set("variation-strength", ["0.5"]).unwrap();
        assert!(image(&draft, 0).is_err());
        draft.set("variation-seed", ["4"]).unwrap();
        let (one, seed) = image(&draft, 2).unwrap();
        assert_eq!((one.sampling.variation_seed, seed), (Some(Seed::Is(6)), 7));
    }
}
