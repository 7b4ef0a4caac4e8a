//! A node that has nothing to do costs next to nothing.

use std::time::Duration;

use crate::lab::Lab;
use crate::lab::traffic::ping;

/// Two joined nodes with a container each: below 30 MiB of memory, and below 0.5 % of a core over ten seconds.
#[test]
fn memory_and_time_of_an_idle_node() {
    Lab::run(|lab| {
        let [h1, h2] = lab.cluster();
        let [a, b] = [h1.attach("a"), h2.attach("b")];
        ping(&a.ns, b.v4.into(), 56);
        std::thread::sleep(Duration::from_secs(2));
        let pids = [h1.pid(), h2.pid()];
        let before = pids.map(cpu_time);
        std::thread::sleep(Duration::from_secs(10));
        for (pid, before) in pids.into_iter().zip(before) {
            let (used, resident) = (cpu_time(pid) - before, resident_kib(pid));
            println!("idle for 10 s: {used:?} of a core, {resident} KiB");
            assert!(
                used < Duration::from_millis(50),
                "{used:?} of a core in 10 s"
            );
            assert!(resident < 30 << 10, "{resident} KiB");
        }
    });
}

/// The time that all threads of a process have run, from the scheduler's own count.
pub(crate) fn cpu_time(pid: u32) -> Duration {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).expect("the node runs");
    let nanoseconds = threads.map(|thread| {
        let path = thread.expect("a thread is listed").path().join("schedstat");
        let text = std::fs::read_to_string(path).unwrap_or_default();
        let first = text.split(' ').next().unwrap_or_default();
        first.parse::<u64>().unwrap_or_default()
    });
    Duration::from_nanos(nanoseconds.sum())
}

/// The memory of a process that is in RAM, in KiB (`VmRSS`).
pub(crate) fn resident_kib(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("the node runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|rest| rest.trim().strip_suffix(" kB")?.parse().ok())
        .expect("the kernel says how much")
}
