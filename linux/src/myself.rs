//! What this process takes of its machine, as `/proc/self` tells (`proc(5)`).

use std::io;
use std::time::Duration;

use procfs::process::{LimitValue, Process};
use procfs::{ProcError, WithCurrentSystemInfo as _};

/// What the process took so far, and holds now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// CPU time of all its threads, in user space and in the kernel.
    pub cpu: Duration,
    /// Bytes of memory that are in RAM.
    pub resident_bytes: u64,
    /// Bytes of addresses that it has claimed.
    pub virtual_bytes: u64,
    /// Descriptors that are open.
    pub descriptors: u64,
    /// How many it may open; absent where there is no limit.
    pub most_descriptors: Option<u64>,
    /// Its threads.
    pub threads: u64,
    /// When it started, since the Unix epoch.
    pub started: Duration,
}

/// What this process takes.
///
/// # Errors
/// When `/proc` cannot be read.
pub fn usage() -> io::Result<Usage> {
    read().map_err(|error| io::Error::other(error.to_string()))
}

fn read() -> Result<Usage, ProcError> {
    let myself = Process::myself()?;
    let stat = myself.stat()?;
    let ticks = procfs::ticks_per_second().max(1);
    let time = |count: u64| Duration::from_millis(count * 1000 / ticks);
    let most_descriptors = match myself.limits()?.max_open_files.soft_limit {
        LimitValue::Value(most) => Some(most),
        LimitValue::Unlimited => None,
    };
    Ok(Usage {
        cpu: time(stat.utime + stat.stime),
        resident_bytes: stat.rss_bytes().get(),
        virtual_bytes: stat.vsize,
        descriptors: myself.fd_count()? as u64,
        most_descriptors,
        threads: stat.num_threads.unsigned_abs(),
        started: Duration::from_secs(procfs::boot_time_secs()?) + time(stat.starttime),
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use std::time::{SystemTime, UNIX_EPOCH};

    use super::*;

    #[test]
    fn this_process_has_started_and_holds_something() {
        let _held = std::fs::File::open("/proc/self/stat").unwrap();
        let usage = usage().unwrap();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        assert!(usage.started <= now + Duration::from_secs(1), "{usage:?}");
        assert!(usage.resident_bytes > 100_000 && usage.virtual_bytes > usage.resident_bytes);
        assert!(usage.descriptors >= 4 && usage.threads >= 1, "{usage:?}");
        assert!(
            usage
                .most_descriptors
                .is_none_or(|most| most >= usage.descriptors)
        );
    }
}
