//! `sd-gen bench --quality`: what every way of computing less saves, and what it costs in likeness to the whole computation.

use super::args::{BenchArgs, Size, is_stdout};
use crate::bench::{Subject, psnr, ssim};
use crate::cli::settings::args::GenerateArgs;
use crate::cli::terminal::answer;
use crate::cli::terminal::progress::Progress;
use crate::cli::terminal::show::columns;
use crate::device::{DTypeChoice, open};
use crate::disk::write_whole;
use crate::image::write_png;
use crate::pipeline::{BatchItem, Observer, Pipeline};
use crate::settings::{Draft, LoadDraft, Request, Seed};
use crate::sheet::{Axis, Sheet};
use crate::weights::ModelSource;
use crate::{Error, Result};
use ::image::RgbImage;
use candle_core::{DType, Device};
use clap::Parser;
use serde_json::{Value, json};
use std::path::Path;
use std::time::Instant;

/// What is compared where nothing is asked for. The first is what the others are compared with.
const REDUCTIONS: [&str; 10] = [
    "",
    "--dtype f32",
    "--dtype bf16",
    "--cache spectrum",
    "--cache ucache",
    "--cache deepcache",
    "--guidance-end 0.5",
    "--fast 1",
    "--fast 2",
    "--fast 3",
];

/// What is generated: things that the built-in model knows and any other too.
const PROMPTS: [&str; 4] = ["a red apple", "a yellow star", "a green tree", "a blue fish"];

/// A line of flags.
#[derive(Debug, Parser)]
#[command(name = "--reduction", no_binary_name = true)]
struct ReductionLine {
    #[command(flatten)]
    flags: GenerateArgs,
}

struct Reduction {
    name: String,
    draft: Draft,
}

impl Reduction {
    fn read(line: &str, args: &BenchArgs, size: Size) -> Result<Self> {
        let wrong = |what: &str| Error::Input(format!("--reduction {line:?}: {what}"));
        let words = shlex::split(line).ok_or_else(|| wrong("a quotation mark has no end"))?;
        let parsed = ReductionLine::try_parse_from(words).map_err(|error| {
            let text = error.render().to_string();
            wrong(text.lines().next().unwrap_or_default().trim_start_matches("error: "))
        })?;
        let mut draft = parsed.flags.0;
        if !draft.prompts.is_empty() || draft.seed.is_some() || draft.canvas.width.is_some() {
            return Err(wrong("prompts, seeds and sizes are the same for all; --sizes says the size"));
        }
        let load = LoadDraft { dtype: draft.load.dtype, ..LoadDraft::default() };
        if draft.adapters != Default::default()
            || draft.inputs != Default::default()
            || draft.load != load
            || draft.run != Default::default()
        {
            return Err(wrong("only what changes how one and the same model computes can be compared"));
        }
        draft.seed = Some(Seed::Is(1));
        draft.set_size(size);
        draft.sampling.steps = draft.sampling.steps.or(args.steps);
        Ok(Self { name: if line.is_empty() { "all of it".into() } else { line.to_owned() }, draft })
    }

    fn dtype(&self, device: &Device) -> DType {
        self.draft.load.dtype.unwrap_or(DTypeChoice::Auto).on(device)
    }

    fn requests(&self, model: &dyn ModelSource) -> Result<Vec<Request>> {
        let request = |prompt: &&str| Draft { prompts: vec![(*prompt).to_owned()], ..self.draft.clone() }.resolve(model.spec());
        PROMPTS.iter().map(request).collect()
    }
}

/// What came out of a reduction: an image a prompt, or why there is none.
struct ReducedImages {
    name: String,
    made: Result<Made>,
}

struct Made {
    images: Vec<RgbImage>,
    /// Of one image, the median.
    seconds: f64,
}

pub(super) fn run(args: &BenchArgs, progress: &mut Progress) -> Result<()> {
    let [choice] = args.devices.as_slice() else {
        return Err(Error::Input("--quality compares on one device; name one".into()));
    };
    let (device, remark) = open(*choice)?;
    if let Some(remark) = remark {
        progress.warn(&remark);
    }
    let size = args.sizes.first().copied();
    let lines: Vec<&str> = match args.reductions.is_empty() {
        true => REDUCTIONS.to_vec(),
        false => std::iter::once("").chain(args.reductions.iter().map(String::as_str)).collect(),
    };
    let reductions: Vec<Reduction> = lines.iter().map(|line| Reduction::read(line, args, size)).collect::<Result<_>>()?;
    for subject in args.subjects() {
        let outcomes = compared(&subject, &reductions, &device, progress)?;
        tell(args, &subject, &outcomes)?;
    }
    Ok(())
}

fn compared(subject: &Subject<'_>, reductions: &[Reduction], device: &Device, progress: &mut Progress) -> Result<Vec<ReducedImages>> {
    let model = (subject.open)()?;
    let mut outcomes: Vec<Option<ReducedImages>> = reductions.iter().map(|_| None).collect();
    let mut dtypes: Vec<DType> = Vec::new();
    for reduction in reductions {
        let dtype = reduction.dtype(device);
        if !dtypes.contains(&dtype) {
            dtypes.push(dtype);
        }
    }
    // A model is loaded once a dtype, and is alone in the memory.
    for dtype in dtypes {
        let pipeline = Pipeline::load(&*model, device, dtype, model.spec().vae.dtype_beside(dtype), progress)?;
        let mut is_warm = false;
        for (reduction, outcome) in reductions.iter().zip(&mut outcomes).filter(|(reduction, _)| reduction.dtype(device) == dtype) {
            progress.say(&format!("{}: {}", subject.name, reduction.name));
            let made = generate(&pipeline, &*model, reduction, &mut is_warm, progress);
            if let Err(Error::Cancelled) = made {
                return Err(Error::Cancelled);
            }
            *outcome = Some(ReducedImages { name: reduction.name.clone(), made });
        }
    }
    Ok(outcomes.into_iter().flatten().collect())
}

fn generate(
    pipeline: &Pipeline,
    model: &dyn ModelSource,
    reduction: &Reduction,
    is_warm: &mut bool,
    progress: &mut Progress,
) -> Result<Made> {
    let (mut images, mut seconds) = (Vec::new(), Vec::new());
    let requests = reduction.requests(model)?;
    // What is made once for a pipeline is no reduction's.
    let begin = if *is_warm { 0 } else { 1 };
    for (at, request) in requests.iter().take(begin).chain(&requests).enumerate() {
        let start = Instant::now();
        let prompt = pipeline.encode_prompt(request, progress)?;
        let seeds: Vec<u64> = request.seeds().collect();
        let image = pipeline.generate_batch(&BatchItem::of_seeds(request, &prompt, &seeds[..1]), progress)?.pop();
        if at >= begin {
            seconds.push(start.elapsed().as_secs_f64());
            images.extend(image.map(|image| image.image));
        }
    }
    *is_warm = true;
    seconds.sort_by(f64::total_cmp);
    Ok(Made { images, seconds: seconds[seconds.len() / 2] })
}

/// A reduction's row: seconds, the share of the whole computation's, and the mean likeness to its images.
struct QualityRow<'a> {
    name: &'a str,
    numbers: Result<(f64, f64, f64, f64), String>,
}

fn rows(outcomes: &[ReducedImages]) -> Vec<QualityRow<'_>> {
    let whole = outcomes.first().and_then(|outcome| outcome.made.as_ref().ok());
    let numbers = |made: &Result<Made>| match (made, whole) {
        (Ok(made), Some(whole)) => {
            let mean = |of: fn(&RgbImage, &RgbImage) -> f64| {
                made.images.iter().zip(&whole.images).map(|(a, b)| of(a, b)).sum::<f64>() / made.images.len() as f64
            };
            Ok((made.seconds, made.seconds / whole.seconds, mean(psnr), mean(ssim)))
        }
        (Err(error), _) => Err(error.to_string()),
        (Ok(_), None) => Err("there is nothing to compare with".into()),
    };
    outcomes.iter().map(|outcome| QualityRow { name: &outcome.name, numbers: numbers(&outcome.made) }).collect()
}

fn cells(row: &QualityRow<'_>) -> Vec<String> {
    let name = row.name.to_owned();
    match &row.numbers {
        Ok((seconds, share, psnr, ssim)) => {
            let psnr = if psnr.is_infinite() { "the same".into() } else { format!("{psnr:.1}") };
            vec![name, format!("{seconds:.2}"), format!("{share:.2}"), psnr, format!("{ssim:.3}")]
        }
        Err(error) => vec![name, error.clone()],
    }
}

const HEADING: [&str; 5] = ["what is left out", "s an image", "of all", "PSNR, dB", "SSIM"];

fn tell(args: &BenchArgs, subject: &Subject<'_>, outcomes: &[ReducedImages]) -> Result<()> {
    let rows = rows(outcomes);
    let mut is_told = false;
    if let Some(path) = &args.json {
        let row = |row: &QualityRow<'_>| match &row.numbers {
            Ok((seconds, share, psnr, ssim)) => {
                // JSON has no infinity: null says that the images are the same.
                json!({ "reduction": row.name, "seconds": seconds, "share": share, "psnr": psnr, "ssim": ssim })
            }
            Err(error) => json!({ "reduction": row.name, "error": error }),
        };
        let text = format!("{:#}\n", json!({ "model": subject.name, "rows": rows.iter().map(row).collect::<Vec<Value>>() }));
        put(args, path, &text, &mut is_told)?;
    }
    if let Some(path) = &args.markdown {
        let line = |cells: Vec<String>| format!("| {} |\n", cells.join(" | "));
        let text = line(HEADING.map(str::to_owned).to_vec())
            + "|---|---|---|---|---|\n"
            + &rows.iter().map(|row| line(cells(row))).collect::<String>();
        put(args, path, &text, &mut is_told)?;
    }
    if !is_told {
        let all: Vec<Vec<String>> = std::iter::once(HEADING.map(str::to_owned).to_vec()).chain(rows.iter().map(cells)).collect();
        answer(&format!("{}\n\n{}", subject.name, columns(&all).trim_end()))?;
    }
    args.sheet.as_ref().map_or(Ok(()), |path| draw(args, path, outcomes))
}

fn put(args: &BenchArgs, path: &Path, text: &str, is_told: &mut bool) -> Result<()> {
    if is_stdout(path) {
        *is_told = true;
        return answer(text.trim_end());
    }
    write_whole(path, args.overwrite, |to| to.write_all(text.as_bytes()))
}

/// The images side by side, a reduction a row.
fn draw(args: &BenchArgs, path: &Path, outcomes: &[ReducedImages]) -> Result<()> {
    let folder = tempfile::tempdir().map_err(Error::io(path))?;
    let file = |at: &[usize]| folder.path().join(format!("{}-{}.png", at[0], at[1]));
    let mut size = None;
    for (down, outcome) in outcomes.iter().enumerate() {
        for (across, image) in outcome.made.iter().flat_map(|made| &made.images).enumerate() {
            size = Some(image.dimensions());
            write_whole(&file(&[down, across]), true, |to| write_png(image, &[], to))?;
        }
    }
    let Some(size) = size else { return Ok(()) };
    let axes = vec![
        Axis { name: "what is left out".into(), labels: outcomes.iter().map(|outcome| outcome.name.clone()).collect() },
        Axis { name: "prompt".into(), labels: PROMPTS.map(str::to_owned).to_vec() },
    ];
    let drawn = Sheet::new(axes, size)?.draw(0, |at| Some(file(at)).filter(|path| path.is_file()));
    write_whole(path, args.overwrite, |to| write_png(&drawn, &[], to))?;
    answer(&path.display().to_string())
}
