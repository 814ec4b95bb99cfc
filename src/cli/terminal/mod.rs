//! What is shown: lines, bars, images, events for programs, and errors.

pub(in crate::cli) mod graphics;
pub(in crate::cli) mod logs;
pub(in crate::cli) mod pace;
pub(in crate::cli) mod preview;
pub(in crate::cli) mod progress;
pub(in crate::cli) mod screen;
pub(in crate::cli) mod show;
pub(in crate::cli) mod watch;

use crate::cli::process;
use crate::{Error, Result};
use std::io::{IsTerminal, Write};

/// From here on Ctrl-C stops the work at its next step. Called once everything was read: until then Ctrl-C ends the program at once.
///
/// # Errors
/// The system does not allow it.
pub(in crate::cli) fn listen_for_cancellation() -> Result<()> {
    process::listen_for_cancellation(|| screen::show(Vec::new()))
}

/// An error as the command line says it: settings have their dashes.
pub(in crate::cli) fn sentence(error: &crate::Error) -> String {
    match error {
        crate::Error::Setting { .. } => show::with_dashes(&format!("--{error}")),
        _ => show::with_dashes(&error.to_string()),
    }
}

/// Says on standard error what went wrong.
pub(in crate::cli) fn report(error: &Error) {
    if screen::is_json() {
        return screen::event(|| serde_json::json!({ "event": "error", "message": sentence(error), "exit_code": error.exit_code() }));
    }
    match error {
        Error::Cancelled => screen::say("cancelled; what was finished is kept"),
        _ => screen::say(&format!("error: {}", sentence(error))),
    }
}

/// A line on standard output, for the next program.
///
/// # Errors
/// It cannot be written; a reader that has gone away is no error.
pub(in crate::cli) fn answer(line: &str) -> Result<()> {
    let mut stdout = std::io::stdout();
    // A program gets the bytes as they are; what a file made part of them cannot steer a terminal.
    let written = if stdout.is_terminal() { writeln!(stdout, "{}", show::harmless(line)) } else { writeln!(stdout, "{line}") };
    match written {
        Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => Err(Error::io("standard output")(e)),
        _ => Ok(()),
    }
}
