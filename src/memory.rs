//! Memory of this process, as the system counts it.

/// Bytes of memory the process holds now; `None` where the system does not tell.
pub fn resident() -> Option<u64> {
    #[cfg(target_os = "linux")]
    {
        from_lines("/proc/self/status", "VmRSS:")
    }
    #[cfg(not(target_os = "linux"))]
    {
        None
    }
}

/// The most bytes the process has held at once since it started, whatever they were for; `None` where the system does
/// not tell.
pub fn peak() -> Option<u64> {
    #[cfg(target_os = "linux")]
    {
        from_lines("/proc/self/status", "VmHWM:")
    }
    #[cfg(all(unix, not(target_os = "linux")))]
    {
        // SAFETY: all zeros is a value of this plain C struct, and getrusage writes into it alone.
        let usage = unsafe {
            let mut usage: libc::rusage = std::mem::zeroed();
            (libc::getrusage(libc::RUSAGE_SELF, &mut usage) == 0).then_some(usage)
        }?;
        // In bytes on Apple's systems, in KiB elsewhere.
        let unit = if cfg!(target_vendor = "apple") { 1 } else { 1024 };
        u64::try_from(usage.ru_maxrss).ok().map(|size| size * unit)
    }
    #[cfg(not(unix))]
    {
        None
    }
}

/// Bytes that programs may still take before the system must swap or end some of them; `None` where the system does
/// not tell.
pub fn available() -> Option<u64> {
    #[cfg(target_os = "linux")]
    {
        from_lines("/proc/meminfo", "MemAvailable:")
    }
    #[cfg(not(target_os = "linux"))]
    {
        None
    }
}

#[cfg(target_os = "linux")]
fn from_lines(file: &str, key: &str) -> Option<u64> {
    let status = std::fs::read_to_string(file).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(key))?;
    let kib: u64 = line.split_whitespace().next()?.parse().ok()?;
    Some(kib * 1024)
}

/// `bytes` for people: `812 kB`, `95 MB`, `1.24 GB`.
///
/// ```
/// use cluescope::memory::readable;
/// assert_eq!([812_000, 95_400_000, 1_240_000_000].map(readable), ["812 kB", "95 MB", "1.24 GB"]);
/// ```
pub fn readable(bytes: u64) -> String {
    match bytes as f64 {
        b if b < 1e6 => format!("{:.0} kB", b / 1e3),
        b if b < 1e9 => format!("{:.0} MB", b / 1e6),
        b => format!("{:.2} GB", b / 1e9),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(unix)]
    fn a_large_allocation_shows() {
        let before = peak().unwrap();
        // Written, or the pages would not be there.
        let block = vec![1u8; 200 << 20];
        assert_eq!(std::hint::black_box(&block)[12_345], 1);
        assert!(peak().unwrap() >= before.max(200 << 20), "{:?}", peak());
        #[cfg(target_os = "linux")]
        assert!(resident().unwrap() >= 200 << 20);
    }
}
