//! Parse, run, print the error, exit.

use std::process::ExitCode;

fn main() -> ExitCode {
    match sd_gen::cli::run(std::env::args_os()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            sd_gen::cli::report(&error);
            ExitCode::from(error.exit_code())
        }
    }
}
