//! Parse, run, print the error, exit.

use std::process::ExitCode;

/// Every op makes a fresh tensor of activations, and the system clears fresh pages before it gives them. This one keeps what was freed for
/// a second, and gives it back before an allocation fails. `docs/crates.md` has the measurement.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    match sd_gen::cli::run(std::env::args_os()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            sd_gen::cli::report(&error);
            ExitCode::from(error.exit_code())
        }
    }
}
