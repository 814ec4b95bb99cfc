//! In which order images are generated, and which of them at once.
//!
//! Models come in the order in which the file first names them, within a model the adapters, and within those the images that can be
//! generated at once, so that a model is loaded once, adapters are swapped as seldom as can be, and batches are full. Within such a group equal prompts follow each other, so that they are encoded once.

use super::image_file::ImageTarget;
use super::key::Key;
use crate::adapter::AdapterChoice;
use crate::metadata::GeneratedBy;
use crate::settings::{Request, Shape};
use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::str::FromStr;
use std::sync::Arc;

/// One image with everything decided.
#[derive(Debug, Clone)]
pub(crate) struct Job {
    /// Its number among the images of the file, which counts from 0.
    pub id: usize,
    /// What it is.
    pub key: Key,
    /// The line that asked for it, counted from 1.
    pub line: usize,
    /// Which of the run's models.
    pub model: usize,
    /// What generates it.
    pub generator: GeneratedBy,
    /// What to generate.
    pub request: Arc<Request>,
    /// The seed.
    pub seed: u64,
    /// Its file.
    pub target: ImageTarget,
}

/// Jobs, each with the number of its prompt.
type NumberedJobs = Vec<(usize, Job)>;

/// Jobs in the order in which they are generated, those together that can be generated at once.
pub(crate) fn groups(jobs: Vec<Job>) -> Vec<Vec<Job>> {
    let mut models: Vec<usize> = Vec::new();
    let mut adapters: Vec<AdapterChoice> = Vec::new();
    let mut places: HashMap<(usize, Shape), usize> = HashMap::new();
    let mut prompts: HashMap<(String, Option<String>), usize> = HashMap::new();
    let mut groups: Vec<((usize, usize), NumberedJobs)> = Vec::new();
    for job in jobs {
        if !models.contains(&job.model) {
            models.push(job.model);
        }
        let place = *places.entry((job.model, job.request.shape())).or_insert_with(|| {
            let choice = job.request.adapters.choice();
            let known = adapters.iter().position(|other| *other == choice);
            let number = known.unwrap_or_else(|| {
                adapters.push(choice);
                adapters.len() - 1
            });
            groups.push(((job.model, number), Vec::new()));
            groups.len() - 1
        });
        let count = prompts.len();
        let prompt = *prompts.entry((job.request.prompt.clone(), job.request.text.negative_prompt.clone())).or_insert(count);
        if let Some((_, group)) = groups.get_mut(place) {
            group.push((prompt, job));
        }
    }
    groups.sort_by_key(|((model, adapters), _)| (models.iter().position(|other| other == model), *adapters));
    let in_order = |(_, mut group): ((usize, usize), Vec<(usize, Job)>)| {
        // Stable: images of one prompt stay in the file's order.
        group.sort_by_key(|(prompt, _)| *prompt);
        group.into_iter().map(|(_, job)| job).collect()
    };
    groups.into_iter().map(in_order).collect()
}

/// One part of a file that is generated in several places: `3/16`.
///
/// Image i of the file, in the order of its lines, belongs to part `i mod count`: every part has as much of everything, and
/// neither the machine nor what is generated already has a say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Shard {
    number: usize,
    count: NonZeroUsize,
}

impl Shard {
    /// Whether the image belongs to it.
    pub(crate) fn has(&self, image: usize) -> bool {
        image % self.count == self.number - 1
    }

    /// As a part of a file's name.
    pub(crate) fn label(&self) -> String {
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
pub(super) mod tests {
    use super::*;
    use crate::inputs::InputFile;
    use crate::settings::{Draft, Seed, WeightedFile};
    use candle_core::DType;

    pub(in super::super) fn job(id: usize, model: usize, change: impl FnOnce(&mut Draft)) -> Job {
        let draft = Draft::new("a cat").with(|d| d.seed = Some(Seed::Is(0))).with(change);
        let request = draft.resolve(&crate::family::well_known("sd15").unwrap()).unwrap();
        let generator = GeneratedBy { label: "sd15".into(), dtype: DType::F32, vae_dtype: DType::F32, parts: Vec::new() };
        let key = Key::of(&model.to_string(), &generator, &request, request.seed).unwrap();
        let seed = request.seed;
        let target = ImageTarget::new(format!("{id}.png"), false, false);
        Job { id, key, line: id, model, generator, request: Arc::new(request), seed, target }
    }

    #[test]
    fn models_are_loaded_once_and_prompts_encoded_once() {
        let dog = |d: &mut Draft| d.prompts = vec!["a dog".into()];
        let jobs = vec![
            job(0, 1, |_| ()),
            job(1, 0, |_| ()),
            job(2, 1, dog),
            job(3, 1, |d| d.sampling.steps = Some(3)),
            job(4, 1, |d| d.seed = Some(Seed::Is(2))),
            job(5, 1, |d| d.guidance.scale = Some(3.0)),
            job(6, 1, |d| d.guidance.scale = Some(1.0)),
        ];
        let found: Vec<Vec<usize>> = groups(jobs).iter().map(|group| group.iter().map(|job| job.id).collect()).collect();
        assert_eq!(found, [vec![0, 4, 5, 2], vec![3], vec![6], vec![1]]);
    }

    #[test]
    fn adapters_are_swapped_as_seldom_as_can_be() {
        let lora = |d: &mut Draft| d.adapters.lora = vec![WeightedFile { file: InputFile::of_bytes("a", *b"x"), weights: Vec::new() }];
        let jobs = vec![job(0, 0, lora), job(1, 0, |_| ()), job(2, 0, |d| (lora(d), d.sampling.steps = Some(3)).0), job(3, 0, lora)];
        let found: Vec<Vec<usize>> = groups(jobs).iter().map(|group| group.iter().map(|job| job.id).collect()).collect();
        assert_eq!(found, [vec![0, 3], vec![2], vec![1]]);
    }

    #[test]
    fn shards_are_disjoint_and_together_the_whole() {
        let shards: Vec<Shard> = ["1/3", "2/3", " 3 / 3 "].iter().map(|text| text.parse().unwrap()).collect();
        assert!((0..100).all(|image| shards.iter().filter(|shard| shard.has(image)).count() == 1));
        for bad in ["0/3", "4/3", "1/0", "1", "a/b", "", "-1/3"] {
            assert!(bad.parse::<Shard>().is_err(), "{bad}");
        }
    }
}
