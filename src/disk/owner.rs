//! Who writes a temporary file, told by its name. A lock tells it too, but some file systems grant every lock, or grant it on every
//! machine once.

use sha2::{Digest, Sha256};
use std::sync::OnceLock;

/// The process that made a temporary file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Owner {
    /// It is still there.
    Living,
    /// It has ended.
    Dead,
    /// It is another machine's, or of a time before the machine was started.
    Unknown,
}

/// What the random part of a temporary file's name begins with: `MACHINE-PROCESS-`.
pub(crate) fn tag() -> String {
    format!("{}-{}-", machine(), std::process::id())
}

/// The owner by the name that follows the common prefix.
pub(crate) fn owner_of(name: &str) -> Owner {
    let mut parts = name.splitn(3, '-');
    match (parts.next(), parts.next().map(str::parse)) {
        (Some(place), Some(Ok(process))) if place == machine() => is_living(process),
        _ => Owner::Unknown,
    }
}

/// Where the numbers of processes mean what they mean here: the host, since it was started, and the container.
fn machine() -> &'static str {
    static MACHINE: OnceLock<String> = OnceLock::new();
    MACHINE.get_or_init(|| {
        let mut hash = Sha256::new();
        hash.update(std::fs::read("/proc/sys/kernel/random/boot_id").unwrap_or_default());
        hash.update(std::fs::read_link("/proc/self/ns/pid").unwrap_or_default().as_os_str().as_encoded_bytes());
        #[cfg(unix)]
        hash.update(rustix::system::uname().nodename().to_bytes());
        #[cfg(not(unix))]
        hash.update(std::env::var_os("COMPUTERNAME").unwrap_or_default().as_encoded_bytes());
        hash.finalize().iter().take(4).map(|byte| format!("{byte:02x}")).collect()
    })
}

#[cfg(unix)]
fn is_living(process: i32) -> Owner {
    use rustix::process::{Pid, test_kill_process};
    match Pid::from_raw(process).map(test_kill_process) {
        None | Some(Err(rustix::io::Errno::SRCH)) => Owner::Dead,
        // It may be another user's.
        Some(_) => Owner::Living,
    }
}

#[cfg(not(unix))]
fn is_living(process: i32) -> Owner {
    // Locks are kept by the system there, on network drives too.
    if u32::try_from(process) == Ok(std::process::id()) { Owner::Living } else { Owner::Unknown }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_tell_the_living_from_the_dead() {
        let (here, me) = (machine(), std::process::id());
        assert_eq!(owner_of(&format!("{}x7Y.part", tag())), Owner::Living);
        for unknown in ["x7Y.part".to_owned(), format!("0-{me}-x.part"), format!("{here}-x-x.part"), String::new()] {
            assert_eq!(owner_of(&unknown), Owner::Unknown, "{unknown}");
        }
        #[cfg(unix)]
        {
            let mut child = std::process::Command::new("true").spawn().unwrap();
            let name = format!("{here}-{}-x.part", child.id());
            // Until it is waited for, its number is taken.
            assert_eq!(owner_of(&name), Owner::Living);
            child.wait().unwrap();
            assert_eq!(owner_of(&name), Owner::Dead);
            assert_eq!(owner_of(&format!("{here}-{}-x.part", 0)), Owner::Dead);
        }
    }
}
