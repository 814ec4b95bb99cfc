//! Jobs on the disk: a file a job from the moment that it is accepted, so that a server that was killed goes on with its queue.
//!
//! An image of a job is there when its file has its name, which it gets when it is whole. So a job's file need not say how far it is.

use super::job::{ImageStatus, JobStatus, Onlookers, ServedImage, ServedJob};
use crate::disk::{open_own, read_bounded, sync_folder, write_whole};
use crate::{Error, Result};
use serde_json::{Map, Value as Json, json};
use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Bytes of a job's file: requests are bounded by far less.
const LARGEST: u64 = 64 << 20;

/// The folder of the jobs; one server has it.
#[derive(Debug)]
pub(super) struct JobJournal {
    folder: PathBuf,
    _lock: File,
}

impl JobJournal {
    /// Opens the folder, or makes it.
    ///
    /// # Errors
    /// Another server has it, or it cannot be written.
    pub(super) fn open(folder: &Path) -> Result<Self> {
        for part in ["jobs", "images"] {
            let path = folder.join(part);
            std::fs::create_dir_all(&path).map_err(Error::io(&path))?;
            crate::disk::sweep(&path);
        }
        let path = folder.join("server.lock");
        let lock = open_own(&path, File::options().read(true).write(true).create(true)).map_err(Error::io(&path))?;
        match lock.try_lock() {
            Err(TryLockError::WouldBlock) => {
                Err(Error::Input(format!("{}: another server keeps its jobs there; give another `output-dir`", folder.display())))
            }
            // A file system without locks has one server because its owner starts one.
            Ok(()) | Err(TryLockError::Error(_)) => Ok(Self { folder: folder.to_owned(), _lock: lock }),
        }
    }

    fn path(&self, id: &str) -> PathBuf {
        self.folder.join("jobs").join(format!("{id}.json"))
    }

    /// Writes a job down; it survives from here on.
    ///
    /// # Errors
    /// The disk is full or gone.
    pub(super) fn write(&self, job: &ServedJob) -> Result<()> {
        self.keep(&job.id, &Self::text(job))
    }

    /// What is written down of a job.
    pub(super) fn text(job: &ServedJob) -> String {
        let images: Vec<Json> = job
            .images
            .iter()
            .map(|image| {
                let reason = if let ImageStatus::Failed(why) = &image.status { Some(why) } else { None };
                json!({
                    "state": image.status.name(), "seed": image.seed, "width": image.width, "height": image.height,
                    "steps": image.steps, "reason": reason, "parameters": image.infotext,
                })
            })
            .collect();
        json!({
            "version": 1, "id": &*job.id, "origin": job.origin, "created": job.created, "started": job.started, "ended": job.ended,
            "state": job.status.name(), "settings": job.written, "shown": job.settings, "note": job.note, "remarks": job.remarks,
            "images": images,
        })
        .to_string()
    }

    /// See [`Self::write`].
    ///
    /// # Errors
    /// The disk is full or gone.
    pub(super) fn keep(&self, id: &str, text: &str) -> Result<()> {
        let path = self.path(id);
        write_whole(&path, true, |to| to.write_all(text.as_bytes()))?;
        let folder = self.folder.join("jobs");
        sync_folder(&folder).map_err(Error::io(&folder))
    }

    /// Forgets a job; its images stay.
    pub(super) fn remove(&self, id: &str) {
        let _ = std::fs::remove_file(self.path(id));
    }

    /// The jobs of earlier runs in their order, and what is wrong with files that are none.
    pub(super) fn read(&self) -> (Vec<ServedJob>, Vec<String>) {
        let entries = std::fs::read_dir(self.folder.join("jobs")).into_iter().flatten().flatten();
        let mut names: Vec<String> = entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
        names.sort();
        let (mut jobs, mut remarks) = (Vec::new(), Vec::new());
        for id in names.iter().filter_map(|name| name.strip_suffix(".json")).filter(|id| ServedJob::is_id(id)) {
            let path = self.path(id);
            let text = read_bounded(&path, LARGEST).map_err(|error| error.to_string());
            let job = text.and_then(|text| serde_json::from_slice::<Json>(&text).map_err(|error| error.to_string()));
            match job.and_then(|json| self.job(id, &json)) {
                Ok(job) => jobs.push(job),
                Err(what) => remarks.push(format!("{}: is no job and is passed over: {what}", path.display())),
            }
        }
        (jobs, remarks)
    }

    fn job(&self, id: &str, json: &Json) -> Result<ServedJob, String> {
        if json["version"] != 1 {
            return Err("another version wrote it".into());
        }
        let object = |key: &str| json[key].as_object().cloned().unwrap_or_default();
        let status = json["state"].as_str().and_then(JobStatus::from_name).ok_or("it has no state")?;
        let number = |json: &Json| json.as_u64().and_then(|number| usize::try_from(number).ok()).unwrap_or_default();
        let image = |(at, json): (usize, &Json)| {
            let is_there = ServedJob::image_path(&self.folder, id, at).is_file();
            let status = match json["state"].as_str() {
                _ if is_there => ImageStatus::Done,
                Some("done") => ImageStatus::Failed("its file was removed".into()),
                Some("failed") => ImageStatus::Failed(json["reason"].as_str().unwrap_or_default().to_owned()),
                Some("cancelled") => ImageStatus::Cancelled,
                _ => ImageStatus::Waiting,
            };
            ServedImage {
                seed: json["seed"].as_u64().unwrap_or_default(),
                width: number(&json["width"]),
                height: number(&json["height"]),
                status,
                request: None,
                shape: None,
                infotext: json["parameters"].as_str().unwrap_or_default().to_owned(),
                stage: "",
                step: 0,
                steps: number(&json["steps"]),
                withdrawn: Arc::default(),
            }
        };
        Ok(ServedJob {
            id: id.into(),
            origin: json["origin"].as_str().unwrap_or_default().to_owned(),
            created: json["created"].as_f64().unwrap_or_default(),
            started: json["started"].as_f64(),
            ended: json["ended"].as_f64(),
            status,
            settings: object("shown"),
            written: object("settings"),
            note: json["note"].clone(),
            images: json["images"].as_array().map(|all| all.iter().enumerate().map(image).collect()).unwrap_or_default(),
            remarks: json["remarks"]
                .as_array()
                .map(|all| all.iter().filter_map(|r| Some(r.as_str()?.to_owned())).collect())
                .unwrap_or_default(),
            bytes: 0,
            model: 0,
            generator: None,
            uploads: Vec::new(),
            onlookers: Arc::new(Onlookers::default()),
            preview: None,
            previews: 0,
            changed: tokio::sync::watch::Sender::new(0),
        })
    }
}

/// What a job's settings were, to resolve it again.
pub(super) fn settings_of(job: &ServedJob) -> &Map<String, Json> {
    &job.written
}
