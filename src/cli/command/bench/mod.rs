//! `sd-gen bench`: every combination of what was asked for, measured and shown.

mod quality;

use crate::bench::{
    BenchReport, BenchRow, Case, Machine, MeasureSettings, PeakRates, RandomModel, Subject, aligned, check_size, compare, csv, markdown,
    measure, record, reference_image,
};
use crate::cli::model;
use crate::cli::process::set_threads;
use crate::cli::settings::args::NamedValues;
use crate::cli::terminal::answer;
use crate::cli::terminal::listen_for_cancellation;
use crate::cli::terminal::progress::Progress;
use crate::cli::terminal::screen::say;
use crate::device::{DTypeChoice, DeviceChoice, open};
use crate::disk::write_whole;
use crate::family;
use crate::ops::cuda_profile;
use crate::pipeline::Observer;
use crate::settings::{ProgressStyle, Value, parse_size};
use crate::weights::{Checkpoint, ModelSource};
use crate::{Error, Result};
use candle_core::{Device, Tensor};
use clap::Args;
use std::path::{Path, PathBuf};

/// Where `--record` writes, from where the program is started.
const RUNS: &str = "benches/runs";
/// The random models' seed: the same weights in every run.
const WEIGHTS_SEED: u64 = 1;

/// A size as typed, and the model's own where nothing was.
type Size = Option<(usize, usize)>;

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  sd-gen bench                                                        the built-in model
  sd-gen bench --random sd15,sdxl --dtypes f32,bf16 --skip-correctness
  sd-gen bench --models ./sd15.safetensors --sizes 512x512,768x768 --batch-sizes 1,4 --json new.json --baseline old.json
  sd-gen bench --quality --sheet quality.png                          what each reduction saves, and what it costs
  sd-gen bench --quality --reduction '--cache deepcache:5' --reduction '--steps 12' --models sd15

Exit codes: 0 all measured, 1 some combination failed and is a row with its error, 2 bad usage, 130 cancelled.")]
#[allow(rustdoc::invalid_html_tags, reason = "help is for people at a terminal, whose <names> are no tags")]
pub(in crate::cli) struct BenchArgs {
    /// Models: paths, or names in the models folder [default: the built-in one]
    #[arg(short, long, visible_alias = "model", value_name = "WHAT,…", value_delimiter = ',', help_heading = "What to measure")]
    models: Vec<String>,
    /// Full-size models with random weights, no file needed; their "load" is the making of the weights
    #[arg(long, value_name = "FAMILY,…", value_delimiter = ',', value_parser = clap::builder::PossibleValuesParser::new(family::well_known_names()), help_heading = "What to measure")]
    random: Vec<String>,
    /// Where models are looked for by name [default: ./models]
    #[arg(long, value_name = "DIR", help_heading = "What to measure")]
    models_dir: Option<PathBuf>,
    /// auto, cpu, cuda, cuda:N or metal
    #[arg(
        long,
        visible_alias = "device",
        value_name = "DEVICE,…",
        value_delimiter = ',',
        default_value = "auto",
        help_heading = "What to measure"
    )]
    devices: Vec<DeviceChoice>,
    /// auto, f32, f16 or bf16
    #[arg(
        long,
        visible_alias = "dtype",
        value_name = "DTYPE,…",
        value_delimiter = ',',
        default_value = "auto",
        help_heading = "What to measure"
    )]
    dtypes: Vec<DTypeChoice>,
    /// Images' sizes [default: the model's own]
    #[arg(long, visible_alias = "size", value_name = "WxH,…", value_delimiter = ',', value_parser = parse_size, help_heading = "What to measure")]
    sizes: Vec<(usize, usize)>,
    /// Images generated at once
    #[arg(
        long,
        visible_alias = "batch-size",
        value_name = "N,…",
        value_delimiter = ',',
        default_value = "1",
        help_heading = "What to measure"
    )]
    batch_sizes: Vec<usize>,

    /// Steps of the whole image [default: 4; with --quality the model's own]
    #[arg(long, value_name = "N", help_heading = "How to measure")]
    steps: Option<usize>,
    /// Compare ways of computing less with the whole computation: seconds, PSNR and SSIM, of four images each
    #[arg(long, help_heading = "How to measure", conflicts_with_all = ["batch_sizes", "dtypes", "warmups", "repeats", "profile", "skip_correctness", "csv", "baseline", "record"])]
    quality: bool,
    /// A way of computing less, as flags of an image; repeat for more [default: dtypes, --cache, --guidance-end and --fast]
    #[arg(long = "reduction", value_name = "FLAGS", help_heading = "How to measure", requires = "quality", allow_hyphen_values = true)]
    reductions: Vec<String>,
    /// Runs of each phase before those that count
    #[arg(long, value_name = "N", default_value = "1", help_heading = "How to measure")]
    warmups: usize,
    /// Runs of each phase that count
    #[arg(long, value_name = "N", default_value = "3", help_heading = "How to measure")]
    repeats: usize,
    /// Threads [default: as many as the machine has]
    #[arg(short, long, value_name = "N", help_heading = "How to measure")]
    threads: Option<usize>,
    /// Show where a guided step and a decode go, op by op; takes one more run of each
    #[arg(long, help_heading = "How to measure")]
    profile: bool,
    /// Do not generate with the portable reference path to compare with; it is slow and computes in f32
    #[arg(long, help_heading = "How to measure")]
    skip_correctness: bool,

    /// Write the results; "-" is standard output, in the place of the table
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    json: Option<PathBuf>,
    /// The same as comma-separated values
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    csv: Option<PathBuf>,
    /// The same as a Markdown table
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    markdown: Option<PathBuf>,
    /// With --quality, the images side by side as a PNG
    #[arg(long, value_name = "FILE", help_heading = "Output", requires = "quality")]
    sheet: Option<PathBuf>,
    /// Replace existing files
    #[arg(long, help_heading = "Output")]
    overwrite: bool,
    /// Compare with a file that --json wrote; differences within the spread are called noise
    #[arg(long, value_name = "OLD.json", help_heading = "Output")]
    baseline: Option<PathBuf>,
    /// Write results, table and plot into a new folder benches/runs/<date>-<machine>
    #[arg(long, help_heading = "Output")]
    record: bool,
    /// How progress is shown on standard error
    #[arg(long, default_value = "auto", value_name = "STYLE", help_heading = "Output",
          value_parser = NamedValues { names: vec!["auto", "bar", "json", "none"], parser: ProgressStyle::parse })]
    progress: ProgressStyle,
    /// Only errors and results
    #[arg(short, long, help_heading = "Output")]
    pub(in crate::cli) quiet: bool,
}

pub(in crate::cli) fn run(args: &BenchArgs) -> Result<()> {
    // Everything that can be wrong is found before anything is measured.
    if let Some(threads) = args.threads {
        set_threads(threads)?;
    }
    if args.repeats == 0 {
        return Err(Error::Input("--repeats 0: must be at least 1".into()));
    }
    listen_for_cancellation()?;
    let baseline = args.baseline.as_deref().map(BenchReport::read).transpose()?;
    args.check_outputs()?;
    if args.quality {
        return quality::run(args, &mut Progress::new(args.progress, args.quiet));
    }
    let subjects = args.subjects();
    let sizes: Vec<Size> = if args.sizes.is_empty() { vec![None] } else { args.sizes.iter().copied().map(Some).collect() };
    for subject in &subjects {
        args.check(subject, &sizes)?;
    }

    let mut progress = Progress::new(args.progress, args.quiet);
    let mut report = BenchReport {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        date: crate::cli::command::output::local_time(std::time::SystemTime::now()).strftime("%Y-%m-%d %H:%M:%S %:z").to_string(),
        machine: Machine::here(),
        warmups: args.warmups,
        repeats: args.repeats,
        rows: Vec::new(),
    };
    let mut peaks = PeakRates::default();
    let measured = subjects.iter().try_for_each(|subject| args.measure_all(subject, &sizes, &mut report.rows, &mut peaks, &mut progress));
    drop(progress);
    if !report.rows.is_empty() {
        args.write(&report, baseline.as_ref())?;
    }
    measured?;
    match report.rows.iter().filter(|row| row.error.is_some()).count() {
        0 => Ok(()),
        failed => Err(Error::Image(format!("{failed} of {} combinations failed; their rows say why", report.rows.len()))),
    }
}

impl BenchArgs {
    fn steps(&self) -> usize {
        self.steps.unwrap_or(4)
    }

    fn subjects(&self) -> Vec<Subject<'_>> {
        let boxed = |checkpoint: Checkpoint| -> Box<dyn ModelSource> { Box::new(checkpoint) };
        let mut subjects: Vec<Subject<'_>> = Vec::new();
        for what in &self.models {
            let open = move || model::open(Some(what), self.models_dir.as_deref()).map(boxed);
            subjects.push(Subject { name: what.clone(), open: Box::new(open), made: false });
        }
        for family in &self.random {
            let name = format!("random {family}");
            let open = {
                let name = name.clone();
                move || -> Result<Box<dyn ModelSource>> {
                    let spec = family::well_known(family).ok_or_else(|| Error::Input(format!("--random {family}: not known")))?;
                    Ok(Box::new(RandomModel::new(name.clone(), spec, WEIGHTS_SEED)))
                }
            };
            subjects.push(Subject { name, open: Box::new(open), made: true });
        }
        if subjects.is_empty() {
            let open = move || model::builtin().map(boxed);
            subjects.push(Subject { name: model::BUILTIN.to_owned(), open: Box::new(open), made: false });
        }
        subjects
    }

    /// Finds what the user can correct; a model that is broken becomes a row.
    fn check(&self, subject: &Subject<'_>, sizes: &[Size]) -> Result<()> {
        let model = match (subject.open)() {
            Err(Error::Model(_)) => return Ok(()),
            opened => opened?,
        };
        for size in sizes {
            for &batch_size in &self.batch_sizes {
                check_size(model.spec(), *size, batch_size, self.steps())?;
            }
        }
        Ok(())
    }

    fn measure_all(
        &self,
        subject: &Subject<'_>,
        sizes: &[Size],
        rows: &mut Vec<BenchRow>,
        peaks: &mut PeakRates,
        progress: &mut Progress,
    ) -> Result<()> {
        let settings = MeasureSettings { steps: self.steps(), warmups: self.warmups, repeats: self.repeats, profile: self.profile };
        let mut references: Vec<(Size, Option<Tensor>)> = Vec::new();
        for &device_choice in &self.devices {
            let device = open(device_choice);
            if let Ok((_, Some(remark))) = &device {
                progress.warn(remark);
            }
            for &dtype_choice in &self.dtypes {
                for &size in sizes {
                    for &batch_size in &self.batch_sizes {
                        let device = match &device {
                            Ok((device, _)) => device,
                            Err(error) => {
                                rows.push(failed(subject, device_choice, dtype_choice, size, batch_size, error));
                                continue;
                            }
                        };
                        if !self.skip_correctness && !references.iter().any(|(of, _)| *of == size) {
                            progress.say(&format!("{}{}: the reference image", subject.name, shown(size)));
                            references.push((size, reference(subject, size, progress)?));
                        }
                        let reference = references.iter().find(|(of, _)| *of == size).and_then(|(_, image)| image.as_ref());
                        let case = Case { device: device.clone(), dtype: dtype_choice.on(device), size, batch_size };
                        progress.say(&format!(
                            "{}{} on {} in {}, batches of {batch_size}",
                            subject.name,
                            shown(size),
                            named(device_choice),
                            case.dtype.as_str()
                        ));
                        rows.push(measure(subject, &case, settings, reference, peaks, progress)?);
                    }
                }
            }
        }
        Ok(())
    }

    /// The results go to standard output once: as a table, or as what a "-" asks for.
    fn check_outputs(&self) -> Result<()> {
        let outputs = [("--json", &self.json), ("--csv", &self.csv), ("--markdown", &self.markdown), ("--sheet", &self.sheet)];
        let outputs: Vec<(&str, &Path)> = outputs.into_iter().filter_map(|(flag, path)| Some((flag, path.as_deref()?))).collect();
        let to_stdout: Vec<&str> = outputs.iter().filter(|(_, path)| is_stdout(path)).map(|(flag, _)| *flag).collect();
        if let [first, second, ..] = to_stdout.as_slice() {
            return Err(Error::Input(format!("{first} - and {second} -: only one can go to standard output; give the other a file")));
        }
        for (flag, path) in outputs.iter().filter(|(_, path)| !is_stdout(path)) {
            let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
            if let Some(folder) = folder.filter(|folder| !folder.is_dir()) {
                return Err(Error::Input(format!("{flag} {}: there is no folder {}", path.display(), folder.display())));
            }
            if path.exists() && !self.overwrite {
                return Err(Error::Input(format!("{flag} {}: the file exists; give another name, or --overwrite", path.display())));
            }
        }
        Ok(())
    }

    fn write(&self, report: &BenchReport, baseline: Option<&BenchReport>) -> Result<()> {
        let mut table = true;
        let mut put = |path: &Option<PathBuf>, text: String| match path {
            None => Ok(()),
            Some(path) if is_stdout(path) => {
                table = false;
                answer(text.trim_end_matches('\n'))
            }
            Some(path) => write_whole(path, self.overwrite, |to| to.write_all(text.as_bytes())),
        };
        put(&self.json, report.to_json()?)?;
        put(&self.csv, csv(report))?;
        put(&self.markdown, markdown(report))?;
        if table {
            answer(aligned(report).trim_end_matches('\n'))?;
        }
        let tell = |line: String| -> Result<()> {
            if table {
                return answer(&line);
            }
            say(&line);
            Ok(())
        };
        if let Some(baseline) = baseline {
            let changes = compare(baseline, report);
            tell(if changes.is_empty() {
                "\nThe baseline has none of these combinations.".into()
            } else {
                "\nAgainst the baseline:".into()
            })?;
            changes.iter().try_for_each(|change| tell(change.line()))?;
        }
        for (kernel, launches, milliseconds) in cuda_profile() {
            tell(format!("{milliseconds:10.2} ms  {launches:7} x {:9.4} ms  {kernel}", milliseconds / launches.max(1) as f64))?;
        }
        if self.record {
            tell(record(report, Path::new(RUNS))?.display().to_string())?;
        }
        Ok(())
    }
}

/// The reference image; without one the rows have no difference, and the user is told why.
fn reference(subject: &Subject<'_>, size: Size, progress: &mut Progress) -> Result<Option<Tensor>> {
    match reference_image(subject, size, progress) {
        Ok(image) => Ok(Some(image)),
        Err(Error::Cancelled) => Err(Error::Cancelled),
        Err(error) => {
            progress.warn(&format!("{}: no reference image: {error}", subject.name));
            Ok(None)
        }
    }
}

/// The row of a combination whose device is not there.
fn failed(subject: &Subject<'_>, device: DeviceChoice, dtype: DTypeChoice, size: Size, batch_size: usize, error: &Error) -> BenchRow {
    let (width, height) = size.unwrap_or_default();
    let dtype = dtype.on(&Device::Cpu).as_str().to_owned();
    BenchRow {
        model: subject.name.clone(),
        device: named(device),
        dtype,
        width,
        height,
        batch_size,
        error: Some(error.to_string()),
        ..BenchRow::default()
    }
}

fn named(device: DeviceChoice) -> String {
    match device {
        DeviceChoice::Auto => "auto".to_owned(),
        DeviceChoice::Cpu => "cpu".to_owned(),
        DeviceChoice::Cuda(number) => format!("cuda:{number}"),
        DeviceChoice::Metal => "metal".to_owned(),
    }
}

fn shown(size: Size) -> String {
    size.map_or(String::new(), |(width, height)| format!(" {width}x{height}"))
}

fn is_stdout(path: &Path) -> bool {
    path.as_os_str() == "-"
}
