//! Parse, run, print the error, exit.

use libmimalloc_sys::{mi_collect, mi_option_set_default, mi_option_t};
use std::ffi::c_long;
use std::process::ExitCode;

/// Every op makes a fresh tensor of activations, and the system clears fresh pages before it gives them. This one keeps what was freed for
/// a while, and gives it back before an allocation fails. `docs/crates.md` has the measurement.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Milliseconds for which freed memory is kept: longer than the ops of a large image take, so that a decode finds it again. One second, as it
/// comes, does not.
const KEPT: c_long = 10_000;

/// The number of the option `purge_delay` in mimalloc's `mimalloc.h`, which the binding has no name for.
const PURGE_DELAY: mi_option_t = 15;

/// Has the allocator keep freed memory, unless the environment says for how long (`MIMALLOC_PURGE_DELAY`).
#[expect(unsafe_code, reason = "the binding of a C function")]
fn keep_freed_memory() {
    // SAFETY: it stores one number, and there is no other thread yet.
    unsafe { mi_option_set_default(PURGE_DELAY, KEPT) }
}

/// Gives back all that is kept. The allocator looks after what it keeps when memory is asked for, and an idle program asks for none.
#[expect(unsafe_code, reason = "the binding of a C function")]
fn give_back_memory() {
    // SAFETY: it may be called by any thread at any time.
    unsafe { mi_collect(true) }
}

fn main() -> ExitCode {
    keep_freed_memory();
    sd_gen::cli::on_release(give_back_memory);
    match sd_gen::cli::run(std::env::args_os()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            sd_gen::cli::report(&error);
            ExitCode::from(error.exit_code())
        }
    }
}
