//! The largest memory that the process had, where the system tells.

/// Forgets the peak so far; false where the system cannot.
pub(super) fn reset_peak() -> bool {
    // Linux: "5" resets the peak resident set size, see proc(5).
    cfg!(target_os = "linux") && std::fs::write("/proc/self/clear_refs", "5").is_ok()
}

/// The peak since [`reset_peak`], in bytes.
pub(super) fn peak() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kilobytes: u64 = line.split_whitespace().next()?.parse().ok()?;
    Some(kilobytes * 1024)
}
