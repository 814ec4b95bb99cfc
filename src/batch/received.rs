//! Keeps an image whose bytes came from somewhere else, by the same order as the engine's: a whole file, a record, then the name.

use super::image_file::{ImageNames, ImageTarget};
use super::ledger::Ledger;
use super::manifest::{Record, Status};
use crate::disk::{folder_of, seen_from, sync_folder};
use crate::{Error, Result};
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

/// Puts bytes under an image's name and records it; gives the name.
///
/// # Errors
/// The file or the record cannot be written.
pub(crate) fn keep_received(
    ledger: &Mutex<Ledger>,
    names: &ImageNames,
    target: ImageTarget,
    mut record: Record,
    bytes: &[u8],
) -> Result<PathBuf> {
    let ledger = || ledger.lock().unwrap_or_else(PoisonError::into_inner);
    let mut file = names.stage(target, |to| to.write_all(bytes))?;
    loop {
        let seen = seen_from(folder_of(ledger().manifest().path()), file.path());
        record.generated(&seen, file.size(), file.sha256());
        ledger().record(std::slice::from_ref(&record))?;
        let path = file.path().to_owned();
        match file.publish() {
            Ok(None) => {
                sync_folder(folder_of(&path)).map_err(Error::io(&path))?;
                return Ok(path);
            }
            Ok(Some(renamed)) => file = renamed,
            Err(error) => {
                // What is recorded as there is not.
                let failed =
                    Record { status: Status::Failed, reason: Some(error.to_string()), path: None, size: None, sha256: None, ..record };
                if !error.is_of_machine() {
                    ledger().record(&[failed])?;
                }
                return Err(error);
            }
        }
    }
}
