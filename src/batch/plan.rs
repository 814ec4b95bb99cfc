//! In which order pictures are painted, and which of them at once.
//!
//! Models come in the order in which the file first names them, and within a model the pictures that can be painted at once, so that a
//! model is loaded once and batches are full. Within such a group equal prompts follow each other, so that they are encoded once.

use super::engine::Task;
use super::key::Key;
use crate::request::GenerationRequest;
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

/// One picture with everything decided.
#[derive(Debug, Clone)]
pub struct Job {
    /// What it is.
    pub key: Key,
    /// The line that asked for it, counted from 1.
    pub line: usize,
    /// Which of the run's models.
    pub model: usize,
    /// What to paint.
    pub request: Arc<GenerationRequest>,
    /// The seed.
    pub seed: u64,
    /// Its file.
    pub path: PathBuf,
}

/// Pictures that can be painted at once: places in the list of jobs, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    /// Which of the run's models.
    pub model: usize,
    /// Which jobs.
    pub jobs: Vec<usize>,
}

/// Orders jobs; `chosen` says which of them.
pub fn groups(jobs: &[Job], chosen: impl Fn(usize) -> bool) -> Vec<Group> {
    let mut models: Vec<usize> = Vec::new();
    let mut places: HashMap<(usize, [u8; 32]), usize> = HashMap::new();
    let mut groups: Vec<Group> = Vec::new();
    let mut prompts: HashMap<(&str, Option<&str>), usize> = HashMap::new();
    for (i, job) in jobs.iter().enumerate().filter(|(i, _)| chosen(*i)) {
        if !models.contains(&job.model) {
            models.push(job.model);
        }
        let place = *places.entry((job.model, shape(&job.request))).or_insert_with(|| {
            groups.push(Group { model: job.model, jobs: Vec::new() });
            groups.len() - 1
        });
        let count = prompts.len();
        prompts.entry(texts(job)).or_insert(count);
        if let Some(group) = groups.get_mut(place) {
            group.jobs.push(i);
        }
    }
    for group in &mut groups {
        // Stable: pictures of one prompt stay in the file's order.
        group.jobs.sort_by_key(|i| jobs.get(*i).and_then(|job| prompts.get(&texts(job)).copied()));
    }
    groups.sort_by_key(|group| models.iter().position(|model| *model == group.model));
    groups
}

fn texts(job: &Job) -> (&str, Option<&str>) {
    (&job.request.prompt, job.request.negative_prompt.as_deref())
}

/// A hash of [`GenerationRequest::shape`], which holds floats and is therefore none itself.
fn shape(request: &GenerationRequest) -> [u8; 32] {
    Sha256::digest(format!("{:?}", request.shape())).into()
}

/// The tasks of a group, `most` at once.
pub fn batches(jobs: &[Job], group: &Group, most: usize) -> Vec<Vec<Task>> {
    let task = |i: &usize| {
        let job = jobs.get(*i)?;
        Some(Task { id: *i, model: job.model, request: job.request.clone(), seed: job.seed })
    };
    group.jobs.chunks(most.max(1)).map(|chunk| chunk.iter().filter_map(task).collect()).collect()
}

/// One part of a file that is painted in several places: `3/16`.
///
/// Picture i of the file, in the order of its lines, belongs to part `i mod count`: every part has as much of everything, and
/// neither the machine nor what is painted already has a say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shard {
    number: usize,
    count: NonZeroUsize,
}

impl Shard {
    /// Whether the picture belongs to it.
    pub fn has(&self, picture: usize) -> bool {
        picture % self.count == self.number - 1
    }

    /// As a part of a file's name.
    pub fn label(&self) -> String {
        format!("{}-of-{}", self.number, self.count)
    }
}

impl FromStr for Shard {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts = text.split_once('/').and_then(|(number, count)| Some((number.trim().parse().ok()?, count.trim().parse().ok()?)));
        match parts {
            Some((number, count)) if (1..=NonZeroUsize::get(count)).contains(&number) => Ok(Self { number, count }),
            Some((number, count)) => Err(format!("there is no part {number} of {count}; parts are counted from 1")),
            None => Err("give the part and the number of parts like 3/16".into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::key::Painter;
    use super::*;
    use crate::request::RequestDraft;
    use crate::spec::ModelSpec;

    fn job(model: usize, change: impl FnOnce(&mut RequestDraft)) -> Job {
        let mut draft = RequestDraft { prompt: "a cat".into(), ..RequestDraft::default() };
        change(&mut draft);
        let request = draft.resolve(&ModelSpec::well_known("sd15").unwrap()).unwrap();
        let painter = Painter { model: model.to_string(), dtype: "f32", vae_dtype: "f32" };
        let key = Key::of(&painter, &request, draft.seed).unwrap();
        Job { key, line: 1, model, request: Arc::new(request), seed: draft.seed, path: PathBuf::new() }
    }

    #[test]
    fn models_are_loaded_once_and_prompts_encoded_once() {
        let dog = |d: &mut RequestDraft| d.prompt = "a dog".into();
        let jobs = [
            job(1, |_| ()),
            job(0, |_| ()),
            job(1, dog),
            job(1, |d| d.steps = Some(3)),
            job(1, |d| d.seed = 2),
            job(1, |d| d.guidance_scale = Some(3.0)),
            job(1, |d| d.guidance_scale = Some(1.0)),
        ];
        let found: Vec<(usize, Vec<usize>)> = groups(&jobs, |_| true).into_iter().map(|group| (group.model, group.jobs)).collect();
        assert_eq!(found, [(1, vec![0, 4, 5, 2]), (1, vec![3]), (1, vec![6]), (0, vec![1])]);
        let found = groups(&jobs, |i| i != 0);
        assert_eq!(found.iter().map(|group| group.jobs.len()).sum::<usize>(), 6);
        let cut: Vec<usize> = batches(&jobs, &Group { model: 1, jobs: vec![0, 4, 5] }, 2).iter().map(Vec::len).collect();
        assert_eq!(cut, [2, 1]);
    }

    #[test]
    fn shards_are_disjoint_and_together_the_whole() {
        let shards: Vec<Shard> = ["1/3", "2/3", " 3 / 3 "].iter().map(|text| text.parse().unwrap()).collect();
        assert!((0..100).all(|picture| shards.iter().filter(|shard| shard.has(picture)).count() == 1));
        for bad in ["0/3", "4/3", "1/0", "1", "a/b", "", "-1/3"] {
            assert!(bad.parse::<Shard>().is_err(), "{bad}");
        }
    }
}
