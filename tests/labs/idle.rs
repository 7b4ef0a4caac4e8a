//! A node that has nothing to do costs next to nothing.

use std::time::Duration;

use crate::lab::Lab;
use crate::lab::traffic::ping;

/// How long it is looked at.
const WHILE: Duration = Duration::from_secs(10);
/// How often its threads may run meanwhile: 60 times a second. How long they take for that is a matter of the machine, cold
/// caches most of all, and told in figures (`BENCHMARKS.md`).
const RUNS: u64 = 600;
/// What they may take at most, wherever it is: 2 % of a core.
const TIME: Duration = Duration::from_millis(200);

/// Two joined nodes with a container each: below 30 MiB of memory, and hardly ever awake.
#[test]
fn memory_and_time_of_an_idle_node() {
    Lab::run(|lab| {
        let [h1, h2] = lab.cluster();
        let [a, b] = [h1.attach("a"), h2.attach("b")];
        ping(&a.ns, b.v4.into(), 56);
        std::thread::sleep(Duration::from_secs(2));
        let pids = [h1.pid(), h2.pid()];
        let before = pids.map(|pid| (cpu_time(pid), runs(pid)));
        std::thread::sleep(WHILE);
        for (pid, (time, ran)) in pids.into_iter().zip(before) {
            let (time, ran) = (cpu_time(pid) - time, runs(pid) - ran);
            let resident = resident_kib(pid);
            println!("idle for {WHILE:?}: ran {ran} times, {time:?} of a core, {resident} KiB");
            assert!(ran < RUNS, "ran {ran} times in {WHILE:?}");
            assert!(time < TIME, "{time:?} of a core in {WHILE:?}");
            assert!(resident < 30 << 10, "{resident} KiB");
        }
    });
}

/// The time that all threads of a process have run, from the scheduler's own count.
pub(crate) fn cpu_time(pid: u32) -> Duration {
    Duration::from_nanos(scheduled(pid, 0))
}

/// How often they have.
fn runs(pid: u32) -> u64 {
    scheduled(pid, 2)
}

/// A number of what the scheduler counts of a thread (`/proc/PID/task/TID/schedstat`), for all threads of a process.
fn scheduled(pid: u32, place: usize) -> u64 {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).expect("the node runs");
    let of_thread = |thread: std::io::Result<std::fs::DirEntry>| {
        let path = thread.expect("a thread is listed").path().join("schedstat");
        let text = std::fs::read_to_string(path).unwrap_or_default();
        let number = text.split_whitespace().nth(place);
        number.and_then(|number| number.parse::<u64>().ok())
    };
    threads.filter_map(of_thread).sum()
}

/// The memory of a process that is in RAM, in KiB (`VmRSS`).
pub(crate) fn resident_kib(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("the node runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|rest| rest.trim().strip_suffix(" kB")?.parse().ok())
        .expect("the kernel says how much")
}
