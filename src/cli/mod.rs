//! The command line: what was typed, and what it means. Together with `main`, the only part that prints.

mod args;
mod batch;
mod bench;
mod convert;
mod flags;
mod generate;
mod lines;
mod model;
mod output;
mod progress;
mod watch;

use crate::{Error, Result};
use args::{Cli, Command};
use clap::Parser;
use std::ffi::OsString;
use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};

/// Set by the first Ctrl-C; the work stops at the next step. The second stops the process.
static CANCELLED: AtomicBool = AtomicBool::new(false);

/// Runs the program.
///
/// # Errors
/// What stopped it; [`Error::exit_code`] is the process's exit code.
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> Result<()> {
    let cli = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli,
        // Help and version are answers, not errors; clap prints both kinds in its own way and knows the code.
        Err(answer) => answer.exit(),
    };
    match cli.command {
        None => generate::run(cli.generate),
        Some(Command::Batch(args)) => batch::run(*args),
        Some(Command::Merge(args)) => batch::merge(&args),
        Some(Command::Convert(args)) => convert::run(&args),
        Some(Command::Bench(args)) => bench::run(&args),
    }
}

/// From here on Ctrl-C stops the work at its next step. Called once everything was read: until then Ctrl-C ends the program at once.
///
/// # Errors
/// The system does not allow it.
fn listen_for_cancellation() -> Result<()> {
    let handler = ctrlc::set_handler(|| {
        if CANCELLED.swap(true, Ordering::SeqCst) {
            std::process::exit(i32::from(Error::Cancelled.exit_code()));
        }
    });
    handler.map_err(|e| Error::Input(format!("Ctrl-C cannot be listened to: {e}")))
}

/// Whether the user asked to stop.
fn cancelled() -> bool {
    CANCELLED.load(Ordering::SeqCst)
}

/// Says on standard error what went wrong.
pub fn report(error: &Error) {
    match error {
        Error::Cancelled => say("cancelled; what was finished is kept"),
        _ => say(&format!("error: {error}")),
    }
}

/// A line on standard error, for people.
fn say(line: &str) {
    // Nobody listens any more: that is no reason to lose a picture.
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// A line on standard output, for the next program.
///
/// # Errors
/// It cannot be written; a reader that has gone away is no error.
fn answer(line: &str) -> Result<()> {
    match writeln!(std::io::stdout(), "{line}") {
        Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => Err(Error::io("standard output")(e)),
        _ => Ok(()),
    }
}
