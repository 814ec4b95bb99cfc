//! What `sd-gen batch` and `sd-gen merge` take.

use crate::batch::{LedgerOptions, Shard};
use crate::cli::process::cancelled;
use crate::cli::settings::flags::{Flags, Wrong};
use crate::cli::settings::lines::{self, Line, LineError, LineFormat};
use crate::cli::settings::sweep::{Sweep, SweepAxis};
use crate::settings::Draft;
use crate::{Error, Result};
use clap::Args;
use std::path::PathBuf;

/// The manifest's name where nobody gives one.
const MANIFEST: &str = "sd-gen.manifest";

const EXAMPLES: &str = "\
Every image is recorded in the manifest when it is safe on the disk. The same command again generates what is missing, however the last
run ended; two processes on one folder share the work. A line without a seed has one drawn from its prompt, so that it keeps it.

Examples:
  sd-gen batch prompts.txt --output-dir out --steps 20
  sd-gen batch prompts.txt --output-dir out --dry-run            what would be generated, and what it takes
  sd-gen batch prompts.txt --output-dir out --retry-failed
  sd-gen batch prompts.txt --output-dir out --sweep guidance-scale=4,6,8 --sweep sampler=euler,dpm++2m
  sd-gen batch -p \"a cat\" --output-dir out --sweep seed=1..16   no file: one line, which the flags are
  sd-gen batch prompts.txt --output-dir out --shard 3/16         one part of sixteen, the same everywhere
  sd-gen batch prompts.txt --output-dir out --server http://a:7860 --server http://b:7860     no model here; the servers share the file
  sd-gen merge out/sd-gen.manifest.jsonl out/sd-gen.manifest.*-of-16.jsonl";

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(in crate::cli) struct BatchArgs {
    /// The file of prompts; \"-\" is standard input, generated as it comes
    #[arg(value_name = "FILE", required_unless_present = "sweep")]
    pub(super) file: Option<PathBuf>,
    /// Generate every line with each of the values, and of several sweeps every combination; draws a contact sheet: steps=10,20 seed=1..16
    #[arg(long, value_name = "FLAG=VALUES", value_parser = SweepAxis::parse, help_heading = "The batch")]
    pub(super) sweep: Vec<SweepAxis>,
    /// Say what would be generated and what it takes, and generate nothing; of a model that is not here, which weights would be fetched
    #[arg(long, help_heading = "The batch")]
    pub(super) dry_run: bool,
    /// Where every image is recorded [default: sd-gen.manifest.jsonl in the output folder]
    #[arg(long, value_name = "FILE", help_heading = "The batch")]
    pub(super) manifest: Option<PathBuf>,
    /// Try again what failed in earlier runs
    #[arg(long, help_heading = "The batch")]
    pub(super) retry_failed: bool,
    /// Read every image that is there, and generate it again if its bytes are not those that were written
    #[arg(long, help_heading = "The batch")]
    pub(super) verify: bool,
    /// Generate one part of the file: 3/16 is the third of sixteen
    #[arg(long, value_name = "I/N", help_heading = "The batch")]
    pub(super) shard: Option<Shard>,
    /// Let the file's lines write anywhere, and replace files with --overwrite; without it they stay in the output folder
    #[arg(long, help_heading = "The batch")]
    pub(super) allow_outside: bool,
    /// How the file is written [default: by its name, else by its first line]
    #[arg(long, value_enum, value_name = "FORMAT", help_heading = "The batch")]
    pub(super) format: Option<LineFormat>,
    /// The columns of a CSV or TSV file that are settings, such as seed or prompt=Caption; others pass
    #[arg(long, value_name = "NAMES", value_delimiter = ',', help_heading = "The batch")]
    pub(super) columns: Vec<String>,
    /// Send the lines to this `sd-gen serve` instead of loading a model; repeat for more, which share the file
    #[cfg(feature = "hub")]
    #[arg(long, value_name = "URL", help_heading = "The batch")]
    pub(super) server: Vec<String>,
    /// The servers' key; SD_GEN_API_KEY says the same, and no list of processes shows it
    #[cfg(feature = "hub")]
    #[arg(long, value_name = "KEY", requires = "server", help_heading = "The batch")]
    pub(super) api_key: Option<String>,
    #[command(flatten)]
    pub(super) flags: Flags,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct MergeArgs {
    /// The manifest to write; it is one of those that are joined, if it exists
    #[arg(value_name = "OUT")]
    pub(super) out: PathBuf,
    /// Manifests to join
    #[arg(value_name = "IN", required = true)]
    pub(super) manifests: Vec<PathBuf>,
}

impl BatchArgs {
    /// What every line starts from.
    pub(super) fn base(&self) -> Result<Draft> {
        let wrong = |wrong: Vec<Wrong>| Error::Input(wrong.into_iter().map(|wrong| wrong.what).collect::<Vec<_>>().join("\n"));
        self.flags.draft().map_err(wrong)
    }

    /// How often `--verbose` was said, and whether `--quiet` was.
    pub(in crate::cli) fn loudness(&self) -> (u8, bool) {
        self.base().map_or((0, false), |base| crate::cli::settings::args::loudness(&base))
    }

    /// The lines of the file, or the one that the flags are without a file, each with all combinations of the sweeps.
    pub(super) fn lines(&self, sweep: Sweep) -> Result<impl Iterator<Item = Result<Line, LineError>> + use<>> {
        // A line may leave what is swept to the sweep, its prompt above all.
        let base = self.flags.over(&sweep.first());
        let lines = match &self.file {
            Some(file) => lines::read(file, self.format, &self.columns, &base)?,
            None => lines::of_flags(&base),
        };
        Ok(sweep.over(lines))
    }

    pub(super) fn ledger_options(&self) -> LedgerOptions {
        LedgerOptions { retry: self.retry_failed, verify: self.verify, stop: cancelled }
    }

    pub(super) fn manifest_path(&self, base: &Draft) -> PathBuf {
        self.manifest.clone().unwrap_or_else(|| {
            let folder = base.run.output_dir.clone().unwrap_or_default();
            let shard = self.shard.map(|shard| format!(".{}", shard.label())).unwrap_or_default();
            folder.join(format!("{MANIFEST}{shard}.jsonl"))
        })
    }
}
