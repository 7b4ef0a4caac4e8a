//! The list of all cases, kept in `CASES.md` beside this file: a case that is added, renamed or lost makes it wrong.

use std::fmt::Write;
use std::path::Path;

use crate::mutants::Mutant;

/// What stands before and behind the list.
const HEAD: &str = "\
# The cases of Services

Those that begin with `should` have the names of Kubernetes' own tests ([sig-network], `test/e2e/network`; where one case
here is several there, their protocols or directions are together). Each asserts on traffic, on both engines unless said
otherwise, and must fail on its mutant (`mutants.rs`). Written by the test `the_list_of_cases_is_kept`.

| case | kernel | relay | mutant that fails it |
|---|---|---|---|
";
const TAIL: &str = "
Where the relay has a no: its connections are tracked on both sides by themselves, so there is no translation to miss; and it does
not reach endpoints that have an address of its own host, which only Kubernetes has, so there they have to be the kernel's.
The relay leaves UDP and SCTP to the kernel; SCTP is shown by raw packets, as kernels may have no sockets of it.

Elsewhere: health-check node ports (`tests/health.rs` of the root crate, `healthcheck_node_port_…`), DNS of ExternalName and
headless Services (not there yet), and what is of the API server alone (lifecycles of its objects, collisions and ranges
of node ports, events): there is none here.
";

fn list() -> String {
    let both = [
        crate::services::CASES,
        crate::external::CASES,
        crate::affinity::CASES,
        crate::lifecycle::CASES,
        crate::granular::CASES,
        crate::udp::CASES,
        crate::raw::CASES,
        crate::hostile::CASES,
        crate::keeping::CASES,
    ];
    let mut rows: Vec<(&str, &str, Mutant)> = Vec::new();
    for (case, mutant) in both.into_iter().flatten() {
        rows.push((case, "yes", *mutant));
    }
    let kernel = [
        crate::lifecycle::OF_THE_KERNEL,
        crate::granular::OF_THE_KERNEL,
        crate::raw::OF_THE_KERNEL,
    ];
    for (case, mutant) in kernel.into_iter().flatten() {
        rows.push((case, "no", *mutant));
    }
    let mut text = HEAD.to_owned();
    for (case, relay, mutant) in rows {
        let words = case.replace('_', " ");
        let _ = writeln!(text, "| {words} | yes | {relay} | {mutant:?} |");
    }
    text + TAIL
}

#[test]
fn the_list_of_cases_is_kept() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/kernel/CASES.md");
    let kept = std::fs::read_to_string(&path).unwrap_or_default();
    let list = list();
    if kept != list {
        std::fs::write(&path, &list).unwrap();
    }
    assert!(
        kept == list,
        "CASES.md was wrong and is written anew: look at it and keep it"
    );
}
