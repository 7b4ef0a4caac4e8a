//! Whether the relay had a part in what its column says: what the kernel passes in its place shows nothing of it.

use std::cell::Cell;

use weave_model::EngineChoice;
use weave_proxy::relay::Relay;

const NO_SERVICE: &str = "no Service is on the way";
const NOBODY: &str = "nobody is behind what is asked for, and rules refuse it";
const NODE: &str = "an endpoint has an address of the node";
const SCTP: &str = "the relay carries TCP and UDP";

/// The cases that are the kernel's with either engine, and why.
pub(crate) const OF_THE_KERNEL: &[(&str, &str)] = &[
    ("should_function_for_intra_pod_communication", NO_SERVICE),
    ("should_function_for_node_pod_communication", NO_SERVICE),
    (
        "should_be_able_to_reach_pod_on_ipv4_and_ipv6_ip",
        NO_SERVICE,
    ),
    (
        "ports_that_no_service_has_are_refused_and_addresses_that_none_has_are_silent",
        NOBODY,
    ),
    (
        "should_be_rejected_for_evicted_pods_no_endpoints_exist",
        NOBODY,
    ),
    (
        "should_not_be_able_to_connect_to_terminating_and_unready_endpoints_if_publish_not_ready_addresses_is_false",
        NOBODY,
    ),
    (
        "should_respect_internal_traffic_policy_local_pod_to_node",
        NODE,
    ),
    (
        "should_function_for_service_endpoints_using_host_network",
        NODE,
    ),
    (
        "should_create_a_basic_sctp_service_with_pod_and_endpoints",
        SCTP,
    ),
    ("should_function_for_pod_service_sctp", SCTP),
    ("should_function_for_node_service_sctp", SCTP),
    ("should_function_for_endpoint_service_sctp", SCTP),
    (
        "should_function_for_intra_pod_and_node_pod_communication_sctp",
        SCTP,
    ),
    (
        "should_function_for_pod_service_sctp_secondary_ip_family",
        SCTP,
    ),
    (
        "should_function_for_node_service_sctp_secondary_ip_family",
        SCTP,
    ),
    (
        "should_function_for_endpoint_service_sctp_secondary_ip_family",
        SCTP,
    ),
];

thread_local! {
    /// The connections and sessions that relays of this thread's labs took on.
    static CARRIED: Cell<u64> = const { Cell::new(0) };
}

/// Adds what a relay took on, when it ends.
pub(crate) fn add(relay: &Relay) {
    let counts = relay.counts();
    CARRIED.set(CARRIED.get() + counts.accepted + counts.begun);
}

/// Runs a case on the relay, which takes something on in all but those of the kernel.
pub(crate) fn by_the_relay(name: &str, case: fn(EngineChoice)) {
    CARRIED.set(0);
    case(EngineChoice::Relay);
    let carried = CARRIED.get();
    match OF_THE_KERNEL.iter().find(|(one, _)| *one == name) {
        None => assert!(carried > 0, "the relay had no part in it"),
        Some((_, why)) => assert_eq!(carried, 0, "{why}, but the relay took something on"),
    }
}
