//! What `sd-gen bench` takes.

use crate::bench::{RandomModel, Subject};
use crate::cli::model;
use crate::cli::settings::args::NamedValues;
use crate::device::{DTypeChoice, DeviceChoice};
use crate::family;
use crate::pipeline::SharedModel;
use crate::settings::{MemorySize, ProgressStyle, Value, parse_size};
use crate::weights::Checkpoint;
use crate::{Error, Result};
use clap::Args;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The random models' seed: the same weights in every run.
const WEIGHTS_SEED: u64 = 1;

/// A size as typed, and the model's own where nothing was.
pub(super) type Size = Option<(usize, usize)>;

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
    pub(super) models: Vec<String>,
    /// Full-size models with random weights, no file needed; their "load" is the making of the weights
    #[arg(long, value_name = "FAMILY,…", value_delimiter = ',', value_parser = clap::builder::PossibleValuesParser::new(family::well_known_names()), help_heading = "What to measure")]
    pub(super) random: Vec<String>,
    /// Where models are looked for by name [default: ./models]
    #[arg(long, value_name = "DIR", help_heading = "What to measure")]
    pub(super) models_dir: Option<PathBuf>,
    /// auto, cpu, cuda, cuda:N or metal
    #[arg(
        long,
        visible_alias = "device",
        value_name = "DEVICE,…",
        value_delimiter = ',',
        default_value = "auto",
        help_heading = "What to measure"
    )]
    pub(super) devices: Vec<DeviceChoice>,
    /// auto, f32, f16 or bf16
    #[arg(
        long,
        visible_alias = "dtype",
        value_name = "DTYPE,…",
        value_delimiter = ',',
        default_value = "auto",
        help_heading = "What to measure"
    )]
    pub(super) dtypes: Vec<DTypeChoice>,
    /// Images' sizes [default: the model's own]
    #[arg(long, visible_alias = "size", value_name = "WxH,…", value_delimiter = ',', value_parser = parse_size, help_heading = "What to measure")]
    pub(super) sizes: Vec<(usize, usize)>,
    /// Images generated at once
    #[arg(
        long,
        visible_alias = "batch-size",
        value_name = "N,…",
        value_delimiter = ',',
        default_value = "1",
        help_heading = "What to measure"
    )]
    pub(super) batch_sizes: Vec<usize>,

    /// Steps of the whole image [default: 4; with --quality the model's own]
    #[arg(long, value_name = "N", help_heading = "How to measure")]
    pub(super) steps: Option<usize>,
    /// Compare ways of computing less with the whole computation: seconds, PSNR and SSIM, of four images each
    #[arg(long, help_heading = "How to measure", conflicts_with_all = ["low_memory", "batch_sizes", "dtypes", "warmups", "repeats", "profile", "skip_correctness", "csv", "baseline", "record"])]
    pub(super) quality: bool,
    /// A way of computing less, as flags of an image; repeat for more [default: dtypes, --cache, --guidance-end and --fast]
    #[arg(long = "reduction", value_name = "FLAGS", help_heading = "How to measure", requires = "quality", allow_hyphen_values = true)]
    pub(super) reductions: Vec<String>,
    /// Runs of each phase before those that count
    #[arg(long, value_name = "N", default_value = "1", help_heading = "How to measure")]
    pub(super) warmups: usize,
    /// Runs of each phase that count
    #[arg(long, value_name = "N", default_value = "3", help_heading = "How to measure")]
    pub(super) repeats: usize,
    /// Threads [default: as many as the machine has]
    #[arg(short, long, value_name = "N", help_heading = "How to measure")]
    pub(super) threads: Option<usize>,
    /// The most memory to take, such as 6GB; the rows have it beside the peak
    #[arg(long, value_name = "SIZE", value_parser = MemorySize::parse, help_heading = "How to measure")]
    pub(super) memory: Option<MemorySize>,
    /// Keep only the network at work in memory, and of it what fits, as happens by itself where not all fit
    #[arg(long, help_heading = "How to measure")]
    pub(super) low_memory: bool,
    /// Show where a guided step and a decode go, op by op; takes one more run of each
    #[arg(long, help_heading = "How to measure")]
    pub(super) profile: bool,
    /// Do not generate with the portable reference path to compare with; it is slow and computes in f32
    #[arg(long, help_heading = "How to measure")]
    pub(super) skip_correctness: bool,

    /// Write the results; "-" is standard output, in the place of the table
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    pub(super) json: Option<PathBuf>,
    /// The same as comma-separated values
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    pub(super) csv: Option<PathBuf>,
    /// The same as a Markdown table
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    pub(super) markdown: Option<PathBuf>,
    /// With --quality, the images side by side as a PNG
    #[arg(long, value_name = "FILE", help_heading = "Output", requires = "quality")]
    pub(super) sheet: Option<PathBuf>,
    /// Replace existing files
    #[arg(long, help_heading = "Output")]
    pub(super) overwrite: bool,
    /// Compare with a file that --json wrote; differences within the spread are called noise
    #[arg(long, value_name = "OLD.json", help_heading = "Output")]
    pub(super) baseline: Option<PathBuf>,
    /// Write results, table and plot into a new folder benches/runs/<date>-<machine>
    #[arg(long, help_heading = "Output")]
    pub(super) record: bool,
    /// How progress is shown on standard error
    #[arg(long, default_value = "auto", value_name = "STYLE", help_heading = "Output",
          value_parser = NamedValues { names: vec!["auto", "bar", "json", "none"], parser: ProgressStyle::parse })]
    pub(super) progress: ProgressStyle,
    /// Only errors and results
    #[arg(short, long, help_heading = "Output")]
    pub(in crate::cli) quiet: bool,
}

impl BenchArgs {
    /// The models that are measured.
    pub(super) fn subjects(&self) -> Vec<Subject<'_>> {
        let shared = |checkpoint: Checkpoint| -> SharedModel { Arc::new(checkpoint) };
        let mut subjects: Vec<Subject<'_>> = Vec::new();
        for what in &self.models {
            let open = move || model::open(Some(what), self.models_dir.as_deref()).map(shared);
            subjects.push(Subject { name: what.clone(), open: Box::new(open), made: false });
        }
        for family in &self.random {
            let name = format!("random {family}");
            let open = {
                let name = name.clone();
                move || -> Result<SharedModel> {
                    let spec = family::well_known(family).ok_or_else(|| Error::Input(format!("--random {family}: not known")))?;
                    Ok(Arc::new(RandomModel::new(name.clone(), spec, WEIGHTS_SEED)))
                }
            };
            subjects.push(Subject { name, open: Box::new(open), made: true });
        }
        if subjects.is_empty() {
            let open = move || model::builtin().map(shared);
            subjects.push(Subject { name: model::BUILTIN.to_owned(), open: Box::new(open), made: false });
        }
        subjects
    }
}

/// "-" stands for standard output.
pub(super) fn is_stdout(path: &Path) -> bool {
    path.as_os_str() == "-"
}
