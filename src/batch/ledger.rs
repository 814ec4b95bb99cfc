//! What is painted, what is being painted, and what is left: the manifest and the claims together.

use super::claims::Claims;
use super::key::Key;
use super::manifest::{History, Manifest, Record, State};
use crate::Result;
use crate::disk::{folder_of, sha256_of};
use std::path::{Path, PathBuf};

/// Whether a picture is to be painted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Standing {
    /// It is missing; where it was claimed, it is ours now.
    Open,
    /// It is in this file.
    Painted(PathBuf),
    /// It failed, and nobody asked for another try.
    Failed(String),
    /// Another process is painting it.
    Elsewhere,
}

/// The one who knows, for one process.
#[derive(Debug)]
pub struct Ledger {
    manifest: Manifest,
    /// `None` where nothing is painted, or where files cannot be locked.
    claims: Option<Claims>,
    /// A picture is there only if its bytes are those that were recorded.
    verify: bool,
}

impl Ledger {
    /// For a run that paints. With `retry`, what failed so far is tried again; with `verify`, every file's bytes are compared.
    ///
    /// # Errors
    /// The manifest cannot be opened or written, or is no manifest.
    pub fn open(manifest: &Path, retry: bool, verify: bool) -> Result<Self> {
        let mut ledger = Self::read(manifest, retry, verify)?;
        if ledger.manifest.has_locks() {
            ledger.claims = Some(ledger.manifest.locked(|manifest| Claims::open(manifest.path()))?);
        }
        Ok(ledger)
    }

    /// For a look: nothing will be claimed.
    ///
    /// # Errors
    /// The manifest cannot be opened, or is no manifest.
    pub fn read(manifest: &Path, retry: bool, verify: bool) -> Result<Self> {
        let mut manifest = Manifest::open(manifest)?;
        if retry {
            manifest.forgive();
        }
        Ok(Self { manifest, claims: None, verify })
    }

    /// The manifest.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// What pictures of a model in a dtype took.
    pub fn history(&self, model: &str, dtype: &str) -> Option<History> {
        self.manifest.history(model, dtype)
    }

    /// How a picture stands by what was read last; nothing is claimed.
    pub fn look(&self, key: Key) -> Standing {
        standing(&self.manifest, self.verify, key)
    }

    /// How pictures stand now; those that are open are this process's from here on.
    ///
    /// # Errors
    /// The manifest has vanished, or cannot be read or locked.
    pub fn claim(&mut self, keys: &[Key]) -> Result<Vec<Standing>> {
        let (claims, verify) = (&mut self.claims, self.verify);
        self.manifest.locked(|manifest| {
            let others = claims.as_ref().map(Claims::of_others).unwrap_or_default();
            let of = |key: &Key| match standing(manifest, verify, *key) {
                Standing::Open if others.contains(key) => Standing::Elsewhere,
                standing => standing,
            };
            let standings: Vec<Standing> = keys.iter().map(of).collect();
            let open = keys.iter().zip(&standings).filter(|(_, standing)| **standing == Standing::Open).map(|(key, _)| *key);
            if let Some(claims) = claims {
                claims.add(open)?;
            }
            Ok(standings)
        })
    }

    /// Gives back claims on pictures that will not be painted by this process.
    ///
    /// # Errors
    /// As [`Ledger::claim`].
    pub fn release(&mut self, keys: &[Key]) -> Result<()> {
        let claims = &mut self.claims;
        self.manifest.locked(|_| claims.as_mut().map_or(Ok(()), |claims| claims.remove(keys)))
    }

    /// Gives back all claims: nothing will be painted any more.
    pub fn close(&mut self) {
        self.claims = None;
    }

    /// Records how pictures ended, and gives back the claims on them.
    ///
    /// # Errors
    /// The disk is full or the manifest has vanished.
    pub fn record(&mut self, records: &[Record]) -> Result<()> {
        let claims = &mut self.claims;
        self.manifest.locked(|manifest| {
            manifest.append(records)?;
            match claims {
                Some(claims) => claims.remove(records.iter().map(|record| &record.key)),
                None => Ok(()),
            }
        })
    }
}

fn standing(manifest: &Manifest, verify: bool, key: Key) -> Standing {
    let (path, size, sha256) = match manifest.state(key) {
        None => return Standing::Open,
        Some(State::Failed(reason)) => return Standing::Failed(reason.clone()),
        Some(State::Painted { path, size, sha256 }) => (folder_of(manifest.path()).join(path), *size, *sha256),
    };
    let there = match verify {
        true => sha256_of(&path).is_ok_and(|found| found == (size, sha256)),
        // A file got its name when its bytes were on the disk, so only somebody's hand could make them others.
        false => std::fs::metadata(&path).is_ok_and(|file| file.is_file() && file.len() == size),
    };
    if there { Standing::Painted(path) } else { Standing::Open }
}

#[cfg(test)]
mod tests {
    use super::super::manifest::{Status, tests::record};
    use super::*;

    #[test]
    fn two_processes_paint_each_picture_once_and_take_over_from_the_dead() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("m.jsonl");
        let open = || Ledger::open(&path, false, false).unwrap();
        let (mut one, mut two) = (open(), open());
        let records: Vec<Record> = (0..4).map(|n| record(n, Status::Ok)).collect();
        let keys: Vec<Key> = records.iter().map(|record| record.key).collect();
        assert_eq!(one.claim(&keys[..2]).unwrap(), [Standing::Open, Standing::Open]);
        assert_eq!(two.claim(&keys[..3]).unwrap(), [Standing::Elsewhere, Standing::Elsewhere, Standing::Open]);
        std::fs::write(folder.path().join("a.png"), b"7 bytes").unwrap();
        one.record(&records[..1]).unwrap();
        let there = Standing::Painted(folder.path().join("a.png"));
        assert_eq!(two.claim(&keys).unwrap(), [there.clone(), Standing::Elsewhere, Standing::Open, Standing::Open]);
        // The lock of a killed process goes with it, and its file stays.
        drop(one);
        let dead = folder.path().join("m.jsonl.claims/process-dead");
        std::fs::write(&dead, format!("{}\n", keys[1])).unwrap();
        assert_eq!(two.claim(&keys).unwrap(), [there, Standing::Open, Standing::Open, Standing::Open]);
        assert!(!dead.exists());
        drop(two);
        assert!(!folder.path().join("m.jsonl.claims").exists());
    }

    #[test]
    fn a_picture_is_there_if_its_file_is() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("m.jsonl");
        let (painted, failed) = (record(1, Status::Ok), record(2, Status::Failed));
        Ledger::open(&path, false, false).unwrap().record(&[painted.clone(), failed.clone()]).unwrap();
        let look = |retry, verify| {
            let ledger = Ledger::open(&path, retry, verify).unwrap();
            [painted.key, failed.key].map(|key| ledger.look(key))
        };
        let (there, why) = (Standing::Painted(folder.path().join("a.png")), Standing::Failed("why".into()));
        assert_eq!(look(false, false), [Standing::Open, why.clone()]);
        std::fs::write(folder.path().join("a.png"), b"7 bytes").unwrap();
        assert_eq!(look(true, false), [there, Standing::Open]);
        assert_eq!(look(false, true), [Standing::Open, why], "the bytes are others");
    }
}
