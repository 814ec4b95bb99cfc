//! `sd-gen --prompt …`: from flags to pictures on the disk.

use super::args::{GenerateArgs, Seed};
use super::model;
use super::output::{Output, PictureName};
use super::progress::Progress;
use crate::device::{DTypeChoice, dtype_name, open};
use crate::image::{write_png, write_whole};
use crate::metadata::{KEYWORD, parameters};
use crate::pipeline::{Observer, Painted, Pipeline};
use crate::request::GenerationRequest;
use crate::weights::Checkpoint;
use crate::{Error, Result};
use candle_core::{DType, Tensor};
use std::borrow::Cow;
use std::collections::HashMap;
use std::io::Write;
use std::path::{Path, PathBuf};

pub(super) fn run(args: GenerateArgs) -> Result<()> {
    // Everything that can be wrong is found before a weight is read.
    if let Some(threads) = args.threads {
        set_threads(threads)?;
    }
    let prompts = args.read_prompts()?;
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
    let requests = prompts.iter().map(|prompt| args.draft(prompt.clone(), seed)?.resolve(checkpoint.spec())).collect::<Result<Vec<_>>>()?;
    output.check(requests.iter().map(|request| request.images).sum())?;

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
        progress.say(&format!("computing on {:?} in {}, VAE in {}", device.location(), dtype_name(dtype), dtype_name(vae_dtype)));
    }
    let pipeline = Pipeline::load(&checkpoint, &device, dtype, vae_dtype, &mut progress)?;
    report_unused(&checkpoint, &mut progress);
    if args.seed.is_none_or(|seed| seed == Seed::Random) {
        progress.say(&format!("seed {seed}"));
    }

    let model = model::label(&checkpoint);
    let mut writer = Writer { output: &output, model: &model, latents: args.save_latents.is_some().then(Vec::new), index: 0 };
    let painted = paint_all(&pipeline, &requests, &mut writer, &mut progress);
    drop(progress);
    // What was finished is kept, however the run ended.
    if let (Some(path), Some(latents)) = (&args.save_latents, writer.latents.filter(|latents| !latents.is_empty())) {
        save_latents(path, &latents, args.overwrite)?;
    }
    painted
}

fn paint_all(pipeline: &Pipeline, requests: &[GenerationRequest], writer: &mut Writer<'_>, progress: &mut Progress) -> Result<()> {
    let mut failures = 0;
    for request in requests {
        match paint(pipeline, request, writer, progress) {
            // The other prompts may still succeed.
            Err(error @ (Error::Picture(_) | Error::Tensor(_))) if requests.len() > 1 => {
                failures += 1;
                progress.warn(&format!("\"{}\": {error}", request.prompt));
            }
            done => done?,
        }
    }
    match failures {
        0 => Ok(()),
        _ => Err(Error::Picture(format!("{failures} of {} prompts failed; the others' pictures were written", requests.len()))),
    }
}

fn paint(pipeline: &Pipeline, request: &GenerationRequest, writer: &mut Writer<'_>, progress: &mut Progress) -> Result<()> {
    let prompt = pipeline.encode_prompt(request, progress)?;
    for seeds in request.batches() {
        for painted in pipeline.paint(request, &prompt, &seeds, progress)? {
            writer.write(painted, request, progress)?;
        }
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
        progress.written(written.as_deref(), painted.seed);
        if let Some(latents) = &mut self.latents {
            latents.push(painted.latents);
        }
        Ok(())
    }

    /// Writes under the first name that is free, if names may be counted.
    fn write_file(&self, path: PathBuf, write: impl Fn(&mut dyn Write) -> std::io::Result<()>) -> Result<PathBuf> {
        let mut candidate = path.clone();
        for count in 2.. {
            match write_whole(&candidate, self.output.overwrites(), &write) {
                Err(Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::AlreadyExists && self.output.may_count() => {
                    candidate = Output::counted(&path, count);
                }
                other => return other.map(|()| candidate),
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
