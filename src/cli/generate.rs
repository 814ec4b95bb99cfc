//! `sd-gen --prompt …`: from flags to pictures on the disk.

use super::args::{GenerateArgs, Seed};
use super::output::{Output, PictureName};
use super::progress::Progress;
use super::{listen_for_cancellation, model};
use crate::device::{DTypeChoice, open};
use crate::image::{write_png, write_whole};
use crate::metadata::{KEYWORD, parameters};
use crate::ops::cpu_instructions;
use crate::pipeline::{Conditioning, Observer, Painted, Pipeline};
use crate::request::GenerationRequest;
use crate::weights::Checkpoint;
use crate::{Error, Result};
use candle_core::{DType, Tensor};
use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::io::Write;
use std::path::{Path, PathBuf};

pub(super) fn run(args: GenerateArgs) -> Result<()> {
    // Everything that can be wrong is found before a weight is read.
    if let Some(threads) = args.threads {
        set_threads(threads)?;
    }
    let prompts = args.read_prompts()?;
    let scheduler_config = args.read_scheduler_config()?;
    let output = Output::new(args.output.as_deref(), args.output_dir.as_deref(), args.overwrite)?;
    if let Some(path) = &args.save_latents {
        check_latents_path(path, args.overwrite)?;
    }
    let seed = match args.seed {
        Some(Seed::Is(seed)) => seed,
        // 32 bits, so that it can be typed again and is a seed for every peer too.
        Some(Seed::Random) | None => u64::from(rand::random::<u32>()),
    };
    let (device, remark) = open(args.device)?;
    let checkpoint = model::open(args.model.as_deref(), args.models_dir.as_deref())?;
    let requests: Vec<GenerationRequest> = prompts
        .iter()
        .map(|prompt| args.draft(prompt.clone(), scheduler_config.clone(), seed).resolve(checkpoint.spec()))
        .collect::<Result<_>>()?;
    let pictures = requests.iter().fold(0usize, |sum, request| sum.saturating_add(request.images));
    output.check(pictures)?;
    if let (Some(latents), Some(picture)) = (&args.save_latents, &args.output)
        && args.output_dir.as_deref().unwrap_or(Path::new("")).join(picture) == *latents
    {
        return Err(Error::Input(format!("--save-latents {picture}: is the picture's file too; give another name")));
    }
    listen_for_cancellation()?;

    let mut progress = Progress::new(args.progress, args.quiet);
    if let Some(remark) = remark {
        progress.warn(&remark);
    }
    let dtype = args.dtype.on(&device);
    let vae_dtype = match args.vae_dtype {
        DTypeChoice::Auto if dtype == DType::F16 && checkpoint.spec().vae.force_upcast => {
            progress.say("this model's VAE overflows in f16: it computes in f32 (--vae-dtype changes that)");
            DType::F32
        }
        DTypeChoice::Auto => dtype,
        DTypeChoice::Is(dtype) => dtype,
    };
    if args.verbose {
        let spec = checkpoint.spec();
        progress.say(&format!("{}: {}", checkpoint.name(), spec.family.name()));
        for sentence in &spec.evidence {
            progress.say(&format!("  {sentence}"));
        }
        for request in &requests {
            let (scheduler, GenerationRequest { width, height, steps, guidance_scale, seed, .. }) = (&request.scheduler, request);
            let (sampler, schedule) = (scheduler.sampler()?.name(), scheduler.sigma_schedule()?.name());
            progress.say(&format!("{width}x{height}, {steps} steps of {sampler} ({schedule}), guidance {guidance_scale}, seed {seed}"));
        }
        let chosen = if args.dtype == DTypeChoice::Auto { " (--dtype auto: the fastest that is right here)" } else { "" };
        let instructions = if device.is_cpu() { format!(" with {}", cpu_instructions()?) } else { String::new() };
        let (place, dtype, vae_dtype) = (device.location(), dtype.as_str(), vae_dtype.as_str());
        progress.say(&format!("computing on {place:?}{instructions} in {dtype}{chosen}, VAE in {vae_dtype}"));
    }
    let pipeline = Pipeline::load(&checkpoint, &device, dtype, vae_dtype, &mut progress)?;
    report_unused(&checkpoint, &mut progress);
    if requests.iter().any(|request| request.negative_prompt.is_some() && !request.is_guided()) {
        progress.warn("the negative prompt does nothing without guidance; --guidance-scale above 1 turns it on");
    }
    if args.seed.is_none_or(|seed| seed == Seed::Random) {
        progress.say(&format!("seed {seed}"));
    }

    let model = model::label(&checkpoint);
    let mut writer =
        Writer { output: &output, model: &model, latents: args.save_latents.is_some().then(Vec::new), index: 0, written: HashSet::new() };
    let painted = paint_all(&pipeline, &requests, &mut writer, &mut progress);
    drop(progress);
    // What was finished is kept, however the run ended.
    if let (Some(path), Some(latents)) = (&args.save_latents, writer.latents.filter(|latents| !latents.is_empty())) {
        save_latents(path, &latents, args.overwrite)?;
    }
    painted
}

/// Paints everything; what fails is said and counted, and the rest goes on.
fn paint_all(pipeline: &Pipeline, requests: &[GenerationRequest], writer: &mut Writer<'_>, progress: &mut Progress) -> Result<()> {
    let pictures: usize = requests.iter().map(|request| request.images).sum();
    let mut failed = Failed { pictures: 0, last: None };
    for request in requests {
        let prompt = match pipeline.encode_prompt(request, progress) {
            Ok(prompt) => prompt,
            Err(error) => {
                failed.note(error, request.images, &request.prompt, progress)?;
                continue;
            }
        };
        for seeds in request.batches() {
            // A batch that fails is tried again picture by picture: one bad picture must not cost its neighbours.
            let Err(error) = paint(pipeline, request, &prompt, &seeds, writer, progress) else { continue };
            if seeds.len() == 1 || !matches!(error, Error::Picture(_)) {
                failed.note(error, seeds.len(), &request.prompt, progress)?;
                continue;
            }
            for seed in seeds {
                if let Err(error) = paint(pipeline, request, &prompt, &[seed], writer, progress) {
                    failed.note(error, 1, &request.prompt, progress)?;
                }
            }
        }
    }
    match failed {
        Failed { pictures: 0, .. } => Ok(()),
        Failed { last: Some(error), .. } if pictures == 1 => Err(error),
        Failed { pictures: failed, .. } => Err(Error::Picture(format!("{failed} of {pictures} pictures failed; the others were written"))),
    }
}

struct Failed {
    pictures: usize,
    last: Option<Error>,
}

impl Failed {
    /// Counts failed pictures and says why, or gives back an error that ends the run.
    fn note(&mut self, error: Error, pictures: usize, prompt: &str, progress: &mut Progress) -> Result<()> {
        if matches!(error, Error::Cancelled | Error::Input(_) | Error::Model(_)) {
            return Err(error);
        }
        self.pictures += pictures;
        progress.warn(&format!("\"{}\": {error}", prompt.chars().take(60).collect::<String>()));
        self.last = Some(error);
        Ok(())
    }
}

fn paint(
    pipeline: &Pipeline,
    request: &GenerationRequest,
    prompt: &Conditioning,
    seeds: &[u64],
    writer: &mut Writer<'_>,
    progress: &mut Progress,
) -> Result<()> {
    for painted in pipeline.paint(request, prompt, seeds, progress)? {
        writer.write(painted, request, progress)?;
    }
    Ok(())
}

/// More than any machine has processors.
const MOST_THREADS: usize = 1024;

pub(super) fn set_threads(threads: usize) -> Result<()> {
    if threads == 0 {
        return Err(Error::Input("--threads 0: must be at least 1".into()));
    }
    if threads > MOST_THREADS {
        return Err(Error::Input(format!("--threads {threads}: at most {MOST_THREADS}; more threads than processors do not help")));
    }
    let built = rayon::ThreadPoolBuilder::new().num_threads(threads).build_global();
    built.map_err(|e| Error::Input(format!("--threads {threads}: the threads cannot be started ({e}); give fewer")))
}

fn report_unused(checkpoint: &Checkpoint, progress: &mut Progress) {
    let unused = checkpoint.unknown();
    if let Some(first) = unused.first() {
        let more = if unused.len() > 1 { format!(" and {} more", unused.len() - 1) } else { String::new() };
        progress.warn(&format!("{}: the model does not use {first:?}{more}", checkpoint.name()));
    }
}

/// Puts finished pictures where they belong.
struct Writer<'a> {
    output: &'a Output,
    model: &'a str,
    latents: Option<Vec<Tensor>>,
    index: usize,
    /// What this run wrote: it is never overwritten by the run itself.
    written: HashSet<PathBuf>,
}

impl Writer<'_> {
    fn write(&mut self, painted: Painted, request: &GenerationRequest, progress: &Progress) -> Result<()> {
        let texts = [(KEYWORD, Cow::from(parameters(request, painted.seed, self.model)?))];
        let name = PictureName { request, model: self.model, seed: painted.seed, index: self.index };
        self.index += 1;
        let path = self.output.path(&name)?;
        let written = match path {
            None => {
                let mut bytes = Vec::new();
                write_png(&painted.picture, &texts, &mut bytes).map_err(|e| Error::Picture(format!("the PNG cannot be written: {e}")))?;
                std::io::stdout().write_all(&bytes).map_err(Error::io("standard output"))?;
                None
            }
            Some(path) => Some(self.write_file(path, |to| write_png(&painted.picture, &texts, to).map_err(std::io::Error::other))?),
        };
        if let Some(latents) = &mut self.latents {
            latents.push(painted.latents);
        }
        progress.written(written.as_deref(), painted.seed)
    }

    /// Writes under the first name that is free, if names may be counted.
    fn write_file(&mut self, path: PathBuf, write: impl Fn(&mut dyn Write) -> std::io::Result<()>) -> Result<PathBuf> {
        let mut candidate = path.clone();
        for count in 2.. {
            let ours = self.written.contains(&candidate);
            match write_whole(&candidate, self.output.overwrites() && !ours, &write) {
                Err(Error::Io { source, .. })
                    if source.kind() == std::io::ErrorKind::AlreadyExists && (ours || self.output.may_count()) =>
                {
                    candidate = Output::counted(&path, count);
                }
                written => {
                    written?;
                    self.written.insert(candidate.clone());
                    break;
                }
            }
        }
        Ok(candidate)
    }
}

fn check_latents_path(path: &Path, overwrite: bool) -> Result<()> {
    if path.exists() && !overwrite {
        return Err(Error::Input(format!("--save-latents {}: the file exists; give another name, or --overwrite", path.display())));
    }
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty());
    match folder {
        Some(folder) if !folder.is_dir() => {
            Err(Error::Input(format!("--save-latents {}: there is no folder {}", path.display(), folder.display())))
        }
        _ => Ok(()),
    }
}

fn save_latents(path: &Path, latents: &[Tensor], overwrite: bool) -> Result<()> {
    // Pictures of one run may differ in nothing but their prompt and seed, so they stack.
    let stacked = HashMap::from([("latents".to_owned(), Tensor::cat(latents, 0)?)]);
    let bytes =
        safetensors::serialize(&stacked, None).map_err(|e| Error::Picture(format!("the latents cannot be written as safetensors: {e}")))?;
    write_whole(path, overwrite, |to| to.write_all(&bytes))
}
