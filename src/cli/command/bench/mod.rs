//! `sd-gen bench`: every combination of what was asked for, measured and shown.

mod args;
mod quality;

use crate::bench::{
    BenchReport, BenchRow, Case, Machine, MeasureSettings, PeakRates, Subject, aligned, check_size, compare, csv, markdown, measure,
    record, reference_image,
};
use crate::cli::process::{set_memory, set_threads};
use crate::cli::terminal::answer;
use crate::cli::terminal::listen_for_cancellation;
use crate::cli::terminal::progress::Progress;
use crate::cli::terminal::screen::say;
use crate::device::{DTypeChoice, DeviceChoice, open};
use crate::disk::write_whole;
use crate::ops::cuda_profile;
use crate::pipeline::Observer;
use crate::{Error, Result};
pub(in crate::cli) use args::BenchArgs;
use args::{Size, is_stdout};
use candle_core::{Device, Tensor};
use std::path::{Path, PathBuf};

/// Where `--record` writes, from where the program is started.
const RUNS: &str = "benches/runs";

pub(in crate::cli) fn run(args: &BenchArgs) -> Result<()> {
    // Everything that can be wrong is found before anything is measured.
    if let Some(threads) = args.threads {
        set_threads(threads)?;
    }
    if let Some(memory) = args.memory {
        set_memory(memory)?;
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
        let &Self { warmups, repeats, profile, low_memory, .. } = self;
        let settings = MeasureSettings { steps: self.steps(), warmups, repeats, profile, low_memory };
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
