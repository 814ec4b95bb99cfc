//! The command line: what was typed, and what it means. Together with `main`, the only part that prints.

mod args;
mod batch;
mod bench;
mod completions;
mod config;
mod convert;
mod devices;
mod download;
mod flags;
mod generate;
mod graphics;
mod inspect;
mod lines;
mod logs;
mod model;
mod models;
mod output;
mod pace;
mod preview;
mod progress;
mod screen;
mod show;
mod sweep;
mod upscale;
mod watch;

use crate::settings::Draft;
use crate::{Error, Result};
use args::{Cli, Command};
use clap::Parser;
use config::Configured;
use std::ffi::OsString;
use std::io::{IsTerminal, Write};
use std::sync::atomic::{AtomicBool, Ordering};

/// Set by the first Ctrl-C; the work stops at the next step. The second stops the process.
static CANCELLED: AtomicBool = AtomicBool::new(false);

/// Set by `--offline`: whatever the command, nothing is fetched.
static OFFLINE: AtomicBool = AtomicBool::new(false);

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
    let Configured { arguments, remarks, confined_to } = config::configured(arguments)?;
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
        Some(Command::Merge(args)) => batch::merge(&args),
        Some(Command::Convert(args)) => convert::run(&args),
        Some(Command::Bench(args)) => bench::run(&args),
        Some(Command::Upscale(args)) => upscale::run(&args),
        Some(Command::Inspect(args)) => inspect::run(&args),
        Some(Command::Models(args)) => models::run(&args),
        Some(Command::Devices(args)) => devices::run(&args),
        Some(Command::Completions(args)) => completions::run(&args),
        Some(Command::Man) => completions::manual(),
    }
}

/// How often `--verbose` was said, and whether `--quiet` was.
fn loudness(draft: &Draft) -> (u8, bool) {
    (draft.run.verbose.unwrap_or_default().0, draft.run.quiet.unwrap_or_default())
}

/// Whether `--progress json` is among the arguments.
fn asks_for_events(arguments: &[OsString]) -> bool {
    let mut words = arguments.iter().take_while(|word| *word != "--");
    words.any(|word| word == "--progress=json") || arguments.windows(2).any(|pair| pair[0] == "--progress" && pair[1] == "json")
}

/// From here on Ctrl-C stops the work at its next step. Called once everything was read: until then Ctrl-C ends the program at once.
///
/// # Errors
/// The system does not allow it.
fn listen_for_cancellation() -> Result<()> {
    let handler = ctrlc::set_handler(|| {
        if CANCELLED.swap(true, Ordering::SeqCst) {
            // Whoever holds the screen may be waiting for a reader that never comes: that must not keep the process.
            let cleared = std::thread::spawn(|| screen::show(Vec::new()));
            for _ in 0..20 {
                if cleared.is_finished() {
                    break;
                }
                std::thread::sleep(std::time::Duration::from_millis(10));
            }
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
    if screen::is_json() {
        return screen::event(
            || serde_json::json!({ "event": "error", "message": flags::sentence(error), "exit_code": error.exit_code() }),
        );
    }
    match error {
        Error::Cancelled => screen::say("cancelled; what was finished is kept"),
        _ => screen::say(&format!("error: {}", flags::sentence(error))),
    }
}

/// A line on standard output, for the next program.
///
/// # Errors
/// It cannot be written; a reader that has gone away is no error.
fn answer(line: &str) -> Result<()> {
    let mut stdout = std::io::stdout();
    // A program gets the bytes as they are; what a file made part of them cannot steer a terminal.
    let written = if stdout.is_terminal() { writeln!(stdout, "{}", show::harmless(line)) } else { writeln!(stdout, "{line}") };
    match written {
        Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => Err(Error::io("standard output")(e)),
        _ => Ok(()),
    }
}
