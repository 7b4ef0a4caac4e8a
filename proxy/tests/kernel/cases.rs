//! The list of all cases, kept in `CASES.md` beside this file: a case that is added, renamed or lost makes it wrong.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::path::Path;

use crate::carried::OF_THE_KERNEL;
use crate::mutants::Mutant;

/// What a row says of the relay where the relay has no part in its case.
const BY_THE_KERNEL: &str = "yes, by the kernel";

/// What stands before and behind the list.
const HEAD: &str = "\
# The cases of Services

Those that begin with `should` have the names of Kubernetes' own tests ([sig-network], `test/e2e/network`; where one case
here is several there, their protocols or directions are together). Each asserts on traffic, on both engines unless said
otherwise, and must fail on each of its mutants (`mutants.rs`), which are made of the engine in the kernel. On the relay
one passes only if the relay took on something in it, but for those that say \"by the kernel\" (`carried.rs`). There is
one node; others are a network behind it. Written by the test `the_list_of_cases_is_kept`.

| case | kernel | relay | mutants that fail it |
|---|---|---|---|
";
const TAIL: &str = "
Where the relay has a no: its connections are tracked on both sides by themselves, so there is no translation to miss; and
what UDP it carries ends with the last endpoint, as nothing of it is in connection tracking.
Services with an endpoint that has an address of the node, which only Kubernetes has, are the kernel's whatever they ask for.
The relay leaves SCTP to the kernel; SCTP is shown by raw packets, as kernels may have no sockets of it.

Cases of Kubernetes about Services that have no line of their own:

| there | here |
|---|---|
| should create endpoints for unready pods | the two of publish not ready addresses: who calls endpoints ready writes the slices, and that is none of the proxy's |
| healthcheck node port fails with only terminating endpoints | `tests/health.rs` of the root crate, `healthcheck_node_port_…`, over HTTP, with a running engine; its mutants are GoingCounts and OthersCount |
| health checks of a load balancer: their port while the policy is Local, their interval | the port comes and goes with the policy: the same test; the interval is the balancer's |
| traffic distribution (PreferClose, PreferSameZone, PreferSameNode), topology hints | the cases of the same zone and the same node: a proxy sees none of these words, only the hints that slices have |
| mirroring of Endpoints, slices made for a selector | what a proxy makes of such slices is above; making them is a controller's work, and there is none |
| dual stack: addresses of pods and nodes, families that are not said | what is sent over both families is above; the rest is the API server's |
| service endpoints latency | measured, not tested: from a report to the kernel in `BENCHMARKS.md`; what lies before it is the API server's |
| leading zeros in addresses (CVE-2021-29923) | stricter on purpose: there they are read as decimal; here the command line (`tests/cli.rs` of the root crate) and the API refuse them, so no Service or endpoint can have one |
| connectivity of a pod's lifecycle: pods that terminate, blue and green deployments | that a change of endpoints costs no connection, and that those which terminate still serve, is above; without Services it is the overlay's |
| recreate its iptables rules | `keeping.rs`: rules that are flushed, altered or removed come back |
| DNS of ExternalName, headless and all other Services | absent: there is no DNS |
| load balancers: creating one, its cleanup, its classes | absent: there is no cloud; what reaches a balancer's address at a node is above |
| lifecycles, status and lists of objects; collisions, ranges and release of node ports and addresses; events | absent: they are the API server's, and there is none |
";

/// What Kubernetes' experimental proxy in user space does not pass.
const HARD: [&str; 10] = [
    "should_preserve_source_pod_ip_for_traffic_thru_service_cluster_ip",
    "should_be_rejected_when_no_endpoints_exist",
    "should_be_rejected_for_evicted_pods_no_endpoints_exist",
    "should_be_able_to_switch_session_affinity_for_service_with_type_cluster_ip",
    "should_be_able_to_switch_session_affinity_for_node_port_service",
    "should_have_session_affinity_timeout_work_for_service_with_type_cluster_ip",
    "should_have_session_affinity_timeout_work_for_node_port_service",
    "should_be_able_to_preserve_udp_traffic_when_initial_unready_endpoints_get_ready",
    "should_be_able_to_preserve_udp_traffic_when_server_pod_cycles_for_a_cluster_ip_service",
    "should_be_able_to_preserve_udp_traffic_when_server_pod_cycles_for_a_node_port_service",
];

fn list() -> String {
    let both = [
        crate::services::CASES,
        crate::external::CASES,
        crate::balancer::CASES,
        crate::rolling::CASES,
        crate::affinity::CASES,
        crate::lifecycle::CASES,
        crate::granular::CASES,
        crate::slices::CASES,
        crate::dual::CASES,
        crate::udp::CASES,
        crate::raw::CASES,
        crate::hostile::CASES,
        crate::keeping::CASES,
    ];
    let mut rows: Vec<(&str, &str, &[Mutant])> = Vec::new();
    for (case, mutants) in both.into_iter().flatten() {
        let kernels = OF_THE_KERNEL.iter().any(|(one, _)| one == case);
        rows.push((case, if kernels { BY_THE_KERNEL } else { "yes" }, mutants));
    }
    let kernel = [crate::udp::OF_THE_KERNEL, crate::raw::OF_THE_KERNEL];
    for (case, mutants) in kernel.into_iter().flatten() {
        rows.push((case, "no", mutants));
    }
    let passed = rows.iter().filter(|(_, relay, _)| *relay != "no").count();
    let mut text = HEAD.to_owned();
    for (case, relay, mutants) in rows {
        let words = case.replace('_', " ");
        let names: Vec<String> = mutants.iter().map(|one| format!("{one:?}")).collect();
        let names = names.join(", ");
        let _ = writeln!(text, "| {words} | yes | {relay} | {names} |");
    }
    let _ = writeln!(
        text,
        "\nOf the {passed} that pass on the relay, {} are the kernel's whatever is asked for:\n",
        OF_THE_KERNEL.len()
    );
    let whys: BTreeSet<&str> = OF_THE_KERNEL.iter().map(|(_, why)| *why).collect();
    for why in whys {
        let count = OF_THE_KERNEL.iter().filter(|(_, one)| *one == why).count();
        let _ = writeln!(text, "- {count}: {why}.");
    }
    text.push_str(
        "\nOf the tests of Kubernetes, its experimental proxy in user space (kpng, `userspacelin`) passes over ten that concern a\n\
         proxy; both engines pass them:\n\n",
    );
    for case in HARD {
        let _ = writeln!(text, "- {}", case.replace('_', " "));
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
    let rows = list.lines().skip_while(|line| !line.starts_with("|---"));
    let rows: Vec<Vec<&str>> = rows
        .skip(1)
        .take_while(|line| !line.is_empty())
        .map(|line| line.split(" | ").collect())
        .collect();
    for case in HARD.map(|case| case.replace('_', " ")) {
        let row = rows.iter().find(|row| row[0] == format!("| {case}"));
        let relay = row.expect("each is a case")[2];
        assert!(relay.starts_with("yes"), "{case}: {relay}");
    }
    let passed = |engine: usize| {
        let yes = rows.iter().filter(|row| row[engine].starts_with("yes"));
        format!("{} of {}", yes.count(), rows.len())
    };
    let kernels = rows.iter().filter(|row| row[2] == BY_THE_KERNEL).count();
    assert_eq!(kernels, OF_THE_KERNEL.len(), "each of them is a case");
    let counts = format!(
        "| {} | {}, {kernels} of them by the kernel |",
        passed(1),
        passed(2)
    );
    let readme = concat!(env!("CARGO_MANIFEST_DIR"), "/../README.md");
    let readme = std::fs::read_to_string(readme).unwrap();
    assert!(
        readme.contains(&counts),
        "the README has other counts than {counts}"
    );
}
