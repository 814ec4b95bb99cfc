//! Joins manifests, such as those of shards, into one.

use super::key::Key;
use super::manifest::{Manifest, Record, Status, read_line, without_zeros};
use crate::disk::{folder_of, open_regular, seen_from, write_whole};
use crate::{Error, Result};
use std::collections::HashMap;
use std::io::BufReader;
use std::path::{Path, PathBuf};

/// What a joined manifest holds.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct MergedManifest {
    /// Images in it.
    pub images: usize,
    /// Of them, those that failed everywhere.
    pub failed: usize,
    /// Records that said the same as another.
    pub duplicates: usize,
    /// Images that were generated more than once, with other bytes or under other names; one sentence each.
    pub conflicts: Vec<String>,
}

/// Writes the records of all `manifests`, and of `out` if it exists, into `out`: one an image, by line.
///
/// An image that was generated beats one that failed. Of two that were generated, the one whose file is there is kept, and of two such
/// the first.
///
/// A run that is at work on `out` meanwhile notices that it was replaced, and stops.
///
/// # Errors
/// One of them is missing or no manifest, or `out` cannot be written. `out` is as it was then.
pub(crate) fn merge(out: &Path, manifests: &[PathBuf]) -> Result<MergedManifest> {
    let existing = out.exists().then(|| out.to_owned());
    let all: Vec<&PathBuf> = existing.iter().chain(manifests).collect();
    for path in &all {
        if !path.is_file() {
            return Err(Error::Input(format!("{}: there is no such manifest", path.display())));
        }
        // Opening it tells whether it is one, and cuts off half a record.
        Manifest::open(path)?;
    }
    match &existing {
        // Between reading and replacing it, nobody adds what would be lost. Elsewhere an open file cannot be replaced.
        Some(path) if cfg!(unix) => Manifest::open(path)?.locked(|_| join(out, &all)),
        _ => join(out, &all),
    }
}

fn join(out: &Path, manifests: &[&PathBuf]) -> Result<MergedManifest> {
    let mut merged = MergedManifest::default();
    let mut records: HashMap<Key, Record> = HashMap::new();
    let out_folder = folder_of(out);
    for path in manifests {
        let mut reader = BufReader::new(open_regular(path).map_err(Error::io(*path))?);
        let mut own: HashMap<Key, Record> = HashMap::new();
        let mut line = Vec::new();
        while read_line(&mut reader, &mut line).map_err(Error::io(*path))? > 0 {
            let Ok(mut record) = serde_json::from_slice::<Record>(without_zeros(&line)) else { continue };
            if let Some(seen) = &record.path {
                record.path = Some(seen_from(out_folder, &folder_of(path).join(seen)).to_string_lossy().into_owned());
            }
            // Within one manifest the last word counts.
            own.insert(record.key, record);
        }
        for (key, record) in own {
            match records.remove(&key) {
                None => drop(records.insert(key, record)),
                Some(before) => drop(records.insert(key, merged.better(before, record, out_folder))),
            }
        }
    }
    let mut records: Vec<Record> = records.into_values().collect();
    records.sort_by_key(|record| (record.line, record.key));
    merged.images = records.len();
    merged.failed = records.iter().filter(|record| record.status == Status::Failed).count();
    merged.conflicts.sort();
    write_whole(out, true, |to| {
        for record in &records {
            serde_json::to_writer(&mut *to, record)?;
            to.write_all(b"\n")?;
        }
        Ok(())
    })?;
    Ok(merged)
}

impl MergedManifest {
    fn better(&mut self, before: Record, other: Record, folder: &Path) -> Record {
        match (before.status, other.status) {
            (Status::Failed, Status::Ok) => other,
            (Status::Ok, Status::Failed) => before,
            (Status::Failed, Status::Failed) => {
                self.duplicates += 1;
                before
            }
            (Status::Ok, Status::Ok) if (&before.path, &before.sha256) == (&other.path, &other.sha256) => {
                self.duplicates += 1;
                before
            }
            (Status::Ok, Status::Ok) => {
                let is_there = |record: &Record| record.path.as_ref().is_some_and(|path| folder.join(path).is_file());
                let (kept, left) = if !is_there(&before) && is_there(&other) { (other, before) } else { (before, other) };
                let bytes = if kept.sha256 == left.sha256 { "the same bytes" } else { "other bytes" };
                let path = |record: &Record| record.path.clone().unwrap_or_default();
                self.conflicts.push(format!(
                    "line {} was generated twice: {} is kept, {} has {bytes}",
                    kept.line,
                    path(&kept),
                    path(&left)
                ));
                kept
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::manifest::tests::record;
    use super::*;

    #[test]
    fn shards_are_joined_and_success_beats_failure() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let write = |name: &str, records: &[Record]| {
            std::fs::create_dir_all(path(name).parent().unwrap()).unwrap();
            Manifest::open(&path(name)).unwrap().locked(|manifest| manifest.append(records)).unwrap();
        };
        let mut other = record(4, Status::Ok);
        other.generated(Path::new("b.png"), 8, &[9; 32]);
        write("1.jsonl", &[record(1, Status::Ok), record(2, Status::Failed), record(3, Status::Failed), record(4, Status::Ok)]);
        write("sub/2.jsonl", &[record(2, Status::Ok), record(3, Status::Failed), other]);
        let inputs = [path("1.jsonl"), path("sub/2.jsonl")];
        let merged = merge(&path("all.jsonl"), &inputs).unwrap();
        assert_eq!((merged.images, merged.failed, merged.duplicates, merged.conflicts.len()), (4, 1, 1, 1));
        assert!(merged.conflicts[0].contains("sub/b.png has other bytes"), "{:?}", merged.conflicts);
        let text = std::fs::read_to_string(path("all.jsonl")).unwrap();
        let records: Vec<Record> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(records.iter().map(|r| r.line).collect::<Vec<_>>(), [1, 2, 3, 4]);
        assert_eq!(records[1].path.as_deref(), Some("sub/a.png"));
        // Again: what is there already stays.
        let again = merge(&path("all.jsonl"), &inputs).unwrap();
        assert_eq!((again.images, again.failed), (4, 1));
        assert_eq!(std::fs::read_to_string(path("all.jsonl")).unwrap(), text);
        assert!(merge(&path("all.jsonl"), &[path("missing.jsonl")]).is_err());
    }
}
