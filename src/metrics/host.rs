//! The metrics of the process, by the names that every Prometheus client has for them, and of the host's table of
//! connections.

use weave_linux::conntrack::Load;
use weave_linux::myself::Usage;

use super::page::{Page, only};

pub(super) fn process(page: &mut Page, usage: &Usage) {
    page.seconds_counter(
        "process_cpu_seconds_total",
        "CPU time that weaved took, in user space and in the kernel.",
        [],
        only(usage.cpu.as_secs_f64()),
    );
    page.gauge(
        "process_resident_memory_bytes",
        "Memory of weaved that is in RAM.",
        [],
        only(usage.resident_bytes as f64),
    );
    page.gauge(
        "process_virtual_memory_bytes",
        "Addresses that weaved has claimed.",
        [],
        only(usage.virtual_bytes as f64),
    );
    page.gauge(
        "process_open_fds",
        "Descriptors that weaved has open; each relayed connection of a service takes two.",
        [],
        only(usage.descriptors as f64),
    );
    page.gauge(
        "process_max_fds",
        "Descriptors that weaved may have open.",
        [],
        usage.most_descriptors.map(|most| ([], most as f64)),
    );
    page.gauge(
        "process_threads",
        "Threads of weaved.",
        [],
        only(usage.threads as f64),
    );
    page.gauge(
        "process_start_time_seconds",
        "When the process started, in seconds since the Unix epoch.",
        [],
        only(usage.started.as_secs_f64()),
    );
}

pub(super) fn conntrack(page: &mut Page, load: &Load) {
    page.gauge(
        "weave_conntrack_entries",
        "Connections that the kernel follows on this host.",
        [],
        only(load.entries as f64),
    );
    page.gauge(
        "weave_conntrack_limit_entries",
        "How many connections the kernel can follow; packets of more are dropped.",
        [],
        load.limit.map(|limit| ([], limit as f64)),
    );
    page.counter(
        "weave_conntrack_dropped_total",
        "Packets that the kernel dropped because their connection found no room in its table.",
        [],
        only(load.dropped),
    );
    page.counter(
        "weave_conntrack_evicted_total",
        "Connections that the kernel forgot early to make room for others.",
        [],
        only(load.evicted),
    );
    page.counter(
        "weave_conntrack_insert_failed_total",
        "Connections that the kernel could not follow, most because another one of the same ends was first.",
        [],
        only(load.not_inserted),
    );
}
