//! The most memory that this process has held.

/// The most memory that the process ever held, or since [`forget_peak`], where the system says it.
pub(super) fn peak_bytes() -> Option<u64> {
    status_bytes("VmHWM:")
}

/// Lets [`peak_bytes`] start anew, and says what the process holds now.
pub(super) fn forget_peak() -> Option<u64> {
    std::fs::write("/proc/self/clear_refs", "5").ok()?;
    status_bytes("VmRSS:")
}

fn status_bytes(field: &str) -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with(field))?;
    let kilobytes: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kilobytes * 1024)
}
