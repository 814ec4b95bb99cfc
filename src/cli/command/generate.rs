//! `sd-gen --prompt …`: from flags to images on the disk.

use crate::batch::{Batch, EventSender, Finished, ImageEvent, ImageNames, Sink, Sizes, Task, generated_png, sizes};
use crate::cli::command::output::{ImageName, NamedBy, Output};
use crate::cli::model::download::DownloadStyle;
use crate::cli::model::{self, AdapterFinder, Opened};
use crate::cli::process::{set_memory, set_threads};
use crate::cli::settings::args::read_prompts;
use crate::cli::settings::recreate::recreated;
use crate::cli::terminal::listen_for_cancellation;
use crate::cli::terminal::progress::Progress;
use crate::cli::terminal::watch::Watch;
use crate::device::open_all;
use crate::disk::{folder_of, write_whole};
use crate::inputs::{InputFile, InputReader, STANDARD_INPUT};
use crate::metadata::GeneratedBy;
use crate::pipeline::{GeneratedImage, Observer};
use crate::settings::{Draft, PreviewStyle, PromptExpander, Request, Seed};
use crate::weights::TinyAutoencoder;
use crate::{Error, Result};
use candle_core::{Device, Tensor};
use std::collections::HashMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use tracing::info;

/// Generates what the flags say; images whose place `./sd-gen.toml` says stay in the folder `confined_to`.
pub(in crate::cli) fn run(draft: Draft, confined_to: Option<PathBuf>) -> Result<()> {
    let (mut draft, understood) = recreated(draft)?;
    if draft.prompts.is_empty() {
        return Err(Error::setting("prompt", ": give one, as in --prompt \"a red apple\"; or --recreate an image"));
    }
    let run = draft.run.decide(&());
    let load = draft.load.decide(&());
    // Everything that can be wrong is found before a weight is read.
    if let Some(threads) = run.threads {
        set_threads(threads)?;
    }
    if let Some(memory) = run.memory {
        set_memory(memory)?;
    }
    let from_input = |file: &InputFile| file.path().as_os_str() == STANDARD_INPUT;
    if draft.prompts.iter().any(|prompt| prompt == "-") && draft.inputs.init_image.as_ref().is_some_and(from_input) {
        return Err(Error::Input("--init-image -: standard input is the prompt already; give a file".into()));
    }
    draft.prompts = read_prompts(&draft.prompts)?;
    let output = Output::new(run.output.as_deref(), run.output_dir.as_deref(), run.overwrite)?.confined(confined_to);
    if output.is_standard() && is_closed(&std::io::stdout()) {
        return Err(Error::Input("--output -: standard output is closed; send it somewhere, such as > image.png".into()));
    }
    if let Some(path) = &run.save_latents {
        check_latents_path(path, run.overwrite)?;
    }
    let is_random = !matches!(draft.seed, Some(Seed::Is(_)));
    let seed = match draft.seed {
        Some(Seed::Is(seed)) => seed,
        // 32 bits, so that it can be typed again and is a seed for every other tool too.
        Some(Seed::Random) | None => u64::from(rand::random::<u32>()),
    };
    let showing = DownloadStyle::of(&draft);
    let (finder, mut files, mut expander) =
        (AdapterFinder::new(&load).downloading(showing), InputReader::default(), PromptExpander::default());
    let mut drafts = Vec::new();
    for prompt in &draft.prompts {
        for draft in expander.expand(&draft, prompt, seed)? {
            for mut draft in draft.each_init_image()? {
                finder.find(&mut draft)?;
                draft.read_files(&mut files)?;
                drafts.push(draft);
            }
        }
    }
    let (devices, remarks) = open_all(load.devices())?;
    let dtype = load.dtype.on(devices.first().unwrap_or(&Device::Cpu));
    let checkpoint = model::open_for(
        load.model.as_deref(),
        load.models_dir.as_ref().map(AsRef::as_ref),
        dtype,
        showing,
        load.beside(draft.adapters.vae.as_ref()),
    )?;
    let model = Opened::new(checkpoint, devices, &load);
    let (mut requests, mut applied) = (Vec::new(), Vec::new());
    for draft in drafts {
        let (request, lines) = model.request(draft, &mut files)?;
        requests.push(request);
        for line in lines {
            if !applied.contains(&line) {
                applied.push(line);
            }
        }
    }
    let images = requests.iter().fold(0usize, |sum, request| sum.saturating_add(request.output.images));
    let generator = model.generator();
    for (index, request) in requests.iter().enumerate() {
        output.checked_target(&ImageName { by: NamedBy::Request(request), model: &generator.label, seed: request.seed, index })?;
    }
    output.check(images)?;
    if let (Some(latents), Some(image)) = (&run.save_latents, &run.output)
        && run.output_dir.as_deref().unwrap_or(Path::new("")).join(image) == *latents
    {
        return Err(Error::Input(format!("--save-latents {image}: is the image's file too; give another name")));
    }
    let tiny = run.taesd.as_ref().map(|path| TinyAutoencoder::open(path.as_ref())).transpose()?;
    listen_for_cancellation()?;

    let mut progress = Progress::new(run.progress, run.quiet);
    if let Some(PreviewStyle(how)) = run.preview {
        progress.preview(how);
    }
    for line in &understood {
        progress.say(line);
    }
    for remark in remarks.into_iter().chain(expander.remarks()) {
        progress.warn(&remark);
    }
    if let Some(remark) = model.remark() {
        progress.say(remark);
    }
    for line in &applied {
        progress.say(line);
    }
    model.describe();
    for request in &requests {
        let (scheduler, canvas, steps) = (&request.scheduler, &request.canvas, request.sampling.steps);
        let (sampler, schedule) = (scheduler.sampler()?.name(), scheduler.sigma_schedule()?.name());
        let (guidance, seed) = (request.guidance.scale, request.seed);
        info!("{}x{}, {steps} steps of {sampler} ({schedule}), guidance {guidance}, seed {seed}", canvas.width, canvas.height);
    }
    if requests.iter().any(|request| request.text.negative_prompt.is_some() && !request.is_guided()) {
        progress.warn("the negative prompt does nothing without guidance; --guidance-scale above 1 turns it on");
    }
    if is_random {
        progress.say(&format!("seed {seed}"));
    }

    let kept = Arc::new(Mutex::new(RunResult::default()));
    let writer =
        Writer { output, generator, latents: run.save_latents.is_some(), index: 0, names: ImageNames::default(), kept: kept.clone() };
    // One model, and flags that all prompts share: any images go together.
    let Some(first) = requests.first() else { return Err(Error::Input("--prompt: give one".into())) };
    let sizes = sizes(&model.footprint(first), images.div_ceil(model.devices()), first.output.batch_size.0);
    let batches = batches(requests.clone(), sizes);
    let models = model::Models::new(model).showing(tiny.filter(|_| progress.previews()));
    let prompt_of = |id: usize| requests.get(id).map(|request| request.prompt.clone()).unwrap_or_default();
    let mut watch = Watch::new(&mut progress, Some(images), &prompt_of);
    let generated = crate::batch::run(|_| batches, models, writer, &mut watch);
    drop(progress);

    let RunResult { latents, failed, last } = std::mem::take(&mut *kept.lock().unwrap_or_else(PoisonError::into_inner));
    // What was finished is kept, however the run ended.
    if let (Some(path), false) = (&run.save_latents, latents.is_empty()) {
        save_latents(path, &latents, run.overwrite)?;
    }
    generated?;
    match (failed, last) {
        (0, _) => Ok(()),
        (_, Some(error)) if images == 1 => Err(error),
        (_, last) => {
            let why = last.map(|error| format!("; the last failed by this: {error}")).unwrap_or_default();
            Err(Error::Image(format!("{failed} of {images} images failed, the others were written{why}")))
        }
    }
}

/// All images of all requests.
fn batches(requests: Vec<Arc<Request>>, sizes: Sizes) -> impl Iterator<Item = Result<Batch>> + Send {
    let mut tasks = requests
        .into_iter()
        .enumerate()
        .flat_map(|(id, request)| request.each().map(move |(request, seed)| Task { id, model: 0, request, seed, watch: None }));
    let next = move || tasks.by_ref().take(sizes.batch).collect::<Vec<Task>>();
    std::iter::repeat_with(next).take_while(|tasks| !tasks.is_empty()).map(move |tasks| Ok(Batch { tasks, at_once: sizes.at_once }))
}

/// What is left of a run when it is over.
#[derive(Default)]
struct RunResult {
    latents: Vec<Tensor>,
    failed: usize,
    last: Option<Error>,
}

/// Puts finished images where they belong.
struct Writer {
    output: Output,
    generator: GeneratedBy,
    latents: bool,
    index: usize,
    names: ImageNames,
    kept: Arc<Mutex<RunResult>>,
}

impl Sink for Writer {
    fn take(&mut self, finished: Vec<Finished>, events: &EventSender) -> Result<()> {
        for Finished { task: Task { id, request, seed, .. }, result, .. } in finished {
            let written = result.and_then(|generated| Ok((self.write(&generated, &request)?, generated)));
            let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
            match written {
                Ok((path, GeneratedImage { image, latents, .. })) => {
                    kept.latents.extend(self.latents.then_some(latents));
                    events.tell(ImageEvent::Kept { id, seed, path, image });
                }
                // These would stop every other image too.
                Err(error @ (Error::Cancelled | Error::Input(_) | Error::Model(_))) => return Err(error),
                Err(error @ Error::Io { .. }) if error.is_of_machine() => return Err(error),
                Err(error) => {
                    kept.failed += 1;
                    events.tell(ImageEvent::Failed { prompt: request.prompt.clone(), reason: error.to_string() });
                    kept.last = Some(error);
                }
            }
        }
        Ok(())
    }
}

impl Writer {
    /// The file; `None` is standard output.
    fn write(&mut self, generated: &GeneratedImage, request: &Request) -> Result<Option<PathBuf>> {
        let png = generated_png(generated, request, &self.generator)?;
        let name = ImageName { by: NamedBy::Request(request), model: &self.generator.label, seed: generated.seed, index: self.index };
        self.index += 1;
        let Some(target) = self.output.ready_target(&name)? else {
            let mut bytes = Vec::new();
            png(&mut bytes).map_err(Error::io("the PNG"))?;
            let mut stdout = std::io::stdout().lock();
            stdout.write_all(&bytes).and_then(|()| stdout.flush()).map_err(Error::io("standard output"))?;
            return Ok(None);
        };
        self.names.stage(target, png)?.publish_somewhere().map(Some)
    }
}

/// Whether an output was closed when the program began. The standard library then puts a device in its place that swallows everything,
/// open for reading too, as nobody opens it who wants to throw something away.
#[cfg(unix)]
fn is_closed(output: &impl std::os::fd::AsFd) -> bool {
    use rustix::fs::{FileType, OFlags, fcntl_getfl, fstat, stat};
    let (Ok(output_is), Ok(null), Ok(flags)) = (fstat(output), stat("/dev/null"), fcntl_getfl(output)) else { return false };
    FileType::from_raw_mode(output_is.st_mode) == FileType::CharacterDevice
        && output_is.st_rdev == null.st_rdev
        && flags.contains(OFlags::RDWR)
}

#[cfg(not(unix))]
fn is_closed<T>(_: &T) -> bool {
    false
}

fn check_latents_path(path: &Path, overwrite: bool) -> Result<()> {
    if path.exists() && !overwrite {
        return Err(Error::Input(format!("--save-latents {}: the file exists; give another name, or --overwrite", path.display())));
    }
    let folder = folder_of(path);
    if !folder.is_dir() {
        return Err(Error::Input(format!("--save-latents {}: there is no folder {}", path.display(), folder.display())));
    }
    Ok(())
}

fn save_latents(path: &Path, latents: &[Tensor], overwrite: bool) -> Result<()> {
    // Images of one run may differ in nothing but their prompt and seed, so they stack.
    let stacked = HashMap::from([("latents".to_owned(), Tensor::cat(latents, 0)?)]);
    let bytes =
        safetensors::serialize(&stacked, None).map_err(|e| Error::Image(format!("the latents cannot be written as safetensors: {e}")))?;
    write_whole(path, overwrite, |to| to.write_all(&bytes))
}
