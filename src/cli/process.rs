//! The process: that it was asked to stop, that it may not fetch, and how many threads it has.

use crate::device::limit_memory;
use crate::settings::{MemorySize, Value};
use crate::{Error, Result};
use std::sync::atomic::{AtomicBool, Ordering};

/// Set by the first Ctrl-C; the work stops at the next step. The second stops the process.
static CANCELLED: AtomicBool = AtomicBool::new(false);

/// Set by `--offline`: whatever the command, nothing is fetched.
pub(in crate::cli) static OFFLINE: AtomicBool = AtomicBool::new(false);

/// More than any machine has processors.
const MOST_THREADS: usize = 1024;

/// From here on Ctrl-C stops the work at its next step, and a second one the process, which calls `clear` before, and waits for it a
/// moment only: whoever holds the screen may be waiting for a reader that never comes.
///
/// # Errors
/// The system does not allow it.
pub(in crate::cli) fn listen_for_cancellation(clear: fn()) -> Result<()> {
    let handler = ctrlc::set_handler(move || {
        if CANCELLED.swap(true, Ordering::SeqCst) {
            let cleared = std::thread::spawn(clear);
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
pub(in crate::cli) fn cancelled() -> bool {
    CANCELLED.load(Ordering::SeqCst)
}

/// Takes no more memory than `--memory` says.
///
/// # Errors
/// The process takes more already.
pub(in crate::cli) fn set_memory(limit: MemorySize) -> Result<()> {
    let taken = limit_memory(limit.0);
    if taken >= limit.0 {
        let (limit, taken) = (limit.typed(), taken / 1_000_000);
        return Err(Error::Input(format!("--memory {limit}: the program alone takes {taken} MB; give more")));
    }
    Ok(())
}

/// Starts as many threads as `--threads` says.
///
/// # Errors
/// The number is out of range, or the system refuses.
pub(in crate::cli) fn set_threads(threads: usize) -> Result<()> {
    if threads == 0 {
        return Err(Error::Input("--threads 0: must be at least 1".into()));
    }
    if threads > MOST_THREADS {
        return Err(Error::Input(format!("--threads {threads}: at most {MOST_THREADS}; more threads than processors do not help")));
    }
    let built = rayon::ThreadPoolBuilder::new().num_threads(threads).build_global();
    built.map_err(|e| Error::Input(format!("--threads {threads}: the threads cannot be started ({e}); give fewer")))
}
