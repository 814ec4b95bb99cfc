//! The command line: what was typed, and what it means. Together with `main`, the only part that prints.
//!
//! ```text
//! commands (the tree) → command/ (a file each) → model/ → settings/ → terminal/ → process
//! ```

mod command;
mod commands;
#[doc(hidden)]
pub mod fuzz;
mod model;
mod process;
#[cfg(test)]
mod round_trip;
mod settings;
mod terminal;

use crate::{Error, Result};
use clap::{CommandFactory, Parser};
use command::{batch, bench, completions, convert, devices, doctor, generate, inspect, models, preprocess, upscale};
use commands::{Cli, Command};
use process::OFFLINE;
use settings::args::loudness;
use settings::config::{self, Configured};
use std::ffi::OsString;
use std::sync::atomic::Ordering;
use terminal::{logs, screen};

/// Memory that no tensor holds is given back to the system by `give_back`, where it is wanted.
pub fn on_release(give_back: fn()) {
    crate::device::on_release(give_back);
}

/// Says on standard error what went wrong.
pub fn report(error: &Error) {
    terminal::report(error);
}

/// Runs the program.
///
/// # Errors
/// What stopped it; [`Error::exit_code`] is the process's exit code.
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> Result<()> {
    crate::disk::survive_size_limit();
    let arguments: Vec<OsString> = arguments.into_iter().collect();
    // Before they are understood: what cannot be understood must be said to a program as it asked for.
    if asks_for_events(&arguments) {
        screen::speak_json();
    }
    let Configured { arguments, remarks, confined_to } = config::configured(arguments, &Cli::command())?;
    if asks_for_events(&arguments) {
        screen::speak_json();
    }
    let cli = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli,
        Err(wrong) if wrong.use_stderr() && screen::is_json() => {
            return Err(Error::Input(wrong.render().to_string().trim_start_matches("error: ").trim_end().to_owned()));
        }
        // Help and version are answers, not errors; clap prints both kinds in its own way and knows the code.
        Err(answer) => answer.exit(),
    };
    let (verbose, quiet) = match &cli.command {
        None => loudness(&cli.generate.0),
        Some(Command::Batch(args)) => args.loudness(),
        Some(Command::Bench(args)) => (0, args.quiet),
        Some(Command::Upscale(args)) => (0, args.is_quiet()),
        Some(Command::Preprocess(args)) => (0, args.is_quiet()),
        #[cfg(feature = "serve")]
        Some(Command::Serve(args)) => args.loudness(),
        Some(_) => (0, false),
    };
    logs::start(verbose, quiet)?;
    OFFLINE.store(cli.offline, Ordering::Relaxed);
    for remark in &remarks {
        screen::say(remark);
    }
    match cli.command {
        None => generate::run(cli.generate.0, confined_to),
        Some(Command::Batch(args)) => batch::run(*args, confined_to),
        #[cfg(feature = "serve")]
        Some(Command::Serve(args)) => command::serve::run(*args),
        Some(Command::Merge(args)) => batch::merge(&args),
        Some(Command::Convert(args)) => convert::run(&args),
        Some(Command::Bench(args)) => bench::run(&args),
        Some(Command::Upscale(args)) => upscale::run(&args),
        Some(Command::Preprocess(args)) => preprocess::run(&args),
        Some(Command::Inspect(args)) => inspect::run(&args),
        Some(Command::Models(args)) => models::run(&args),
        Some(Command::Devices(args)) => devices::run(&args),
        Some(Command::Doctor(args)) => doctor::run(&args),
        Some(Command::Completions(args)) => completions::run(&args, Cli::command()),
        Some(Command::Man) => completions::manual(Cli::command()),
    }
}

/// Whether `--progress json` is among the arguments.
fn asks_for_events(arguments: &[OsString]) -> bool {
    let mut words = arguments.iter().take_while(|word| *word != "--");
    words.any(|word| word == "--progress=json") || arguments.windows(2).any(|pair| pair[0] == "--progress" && pair[1] == "json")
}
