//! Parse, run, print the error, exit.

use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: sd_gen::allocator::KeepsLargeBlocks = sd_gen::allocator::KeepsLargeBlocks::new();

fn main() -> ExitCode {
    match sd_gen::cli::run(std::env::args_os()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            sd_gen::cli::report(&error);
            ExitCode::from(error.exit_code())
        }
    }
}
