//! The metrics of what container runtimes had the node do, and of the addresses that it found.

use super::page::Page;
use crate::node::{ALLOCATE, Runtime, Tallies, Tally};

/// The metrics of one runtime: who asks, and the names and meanings of the counter and the histogram.
struct Names {
    runtime: Runtime,
    total: (&'static str, &'static str),
    took: (&'static str, &'static str),
}

const RUNTIMES: [Names; 2] = [
    Names {
        runtime: Runtime::Cni,
        total: (
            "weave_cni_operations_total",
            "What CNI runtimes and Podman asked for, by how it ended; abandoned is what they did not wait for.",
        ),
        took: (
            "weave_cni_operation_duration_seconds",
            "How long they waited for an answer.",
        ),
    },
    Names {
        runtime: Runtime::Docker,
        total: (
            "weave_docker_operations_total",
            "What Docker asked for, by how it ended; abandoned is what it did not wait for.",
        ),
        took: (
            "weave_docker_operation_duration_seconds",
            "How long Docker waited for an answer.",
        ),
    },
];

/// How addresses were found, for whatever asked.
pub(super) fn allocations(page: &mut Page, tallies: &Tallies) {
    let tally = tallies.get(&(Runtime::Node, ALLOCATE));
    let results = tally.into_iter().flat_map(|tally| &tally.results);
    page.counter(
        "weave_ipam_allocations_total",
        "Addresses that were asked for, by how it ended; the same one again counts too.",
        ["result"],
        results.map(|(result, count)| ([(*result).to_owned()], *count)),
    );
    page.histogram(
        "weave_ipam_allocation_duration_seconds",
        "How long it took to find an address and save that it is taken; longer where members were asked for more.",
        [],
        tally.map(|tally| ([], tally.took)),
    );
}

pub(super) fn families(page: &mut Page, tallies: &Tallies) {
    for names in RUNTIMES {
        let all = || {
            let of_runtime = tallies.iter().filter(|((of, _), _)| *of == names.runtime);
            of_runtime.map(|((_, operation), tally)| (*operation, tally))
        };
        let results = all().flat_map(|(operation, tally): (_, &Tally)| {
            let one = move |(result, count): (&&str, &u64)| {
                ([operation.to_owned(), (*result).to_owned()], *count)
            };
            tally.results.iter().map(one)
        });
        let (name, help) = names.total;
        page.counter(name, help, ["operation", "result"], results);
        let took = all().map(|(operation, tally)| ([operation.to_owned()], tally.took));
        let (name, help) = names.took;
        page.histogram(name, help, ["operation"], took);
    }
}
