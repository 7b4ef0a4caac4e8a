//! The metrics of addresses: this node's, those of each network, and the cluster's.

use weave_model::NetworkName;
use weave_model::api::Status;
use weave_router::core::view::AreaUse;

use super::page::{Page, only};
use crate::node::AddressUse;

pub(super) fn families(page: &mut Page, status: &Status, used: &AddressUse) {
    of_node(page, status);
    of_networks(page, &used.networks);
    page.gauge(
        "weave_ipam_range_addresses",
        "IPv4 addresses of the cluster's range.",
        [],
        only(used.range as f64),
    );
    page.gauge(
        "weave_ipam_unreachable_addresses",
        "IPv4 addresses of the range that members own which cannot be reached: nobody can give them away.",
        [],
        only(used.unreachable as f64),
    );
    page.gauge(
        "weave_ipam_unowned_addresses",
        "IPv4 addresses of the range that no member owns as far as this node knows.",
        [],
        only(used.unowned as f64),
    );
}

fn of_node(page: &mut Page, status: &Status) {
    let (owned, used) = status.cluster.as_ref().map_or((0, 0), |cluster| {
        (cluster.addresses, cluster.addresses_used)
    });
    let states = [
        ("owned", owned),
        ("used", used),
        ("free", owned.saturating_sub(used)),
    ];
    page.gauge(
        "weave_ipam_addresses",
        "IPv4 addresses: those this node owns, and of these used and free ones.",
        ["state"],
        states.map(|(state, count)| ([state.to_owned()], count.into())),
    );
}

fn of_networks(page: &mut Page, networks: &[(NetworkName, AreaUse)]) {
    type Read = fn(&AreaUse) -> u32;
    let gauges: [(&str, &str, Read); 3] = [
        (
            "weave_ipam_network_capacity_addresses",
            "IPv4 addresses of a network that this node can give.",
            |one| one.capacity,
        ),
        (
            "weave_ipam_network_used_addresses",
            "IPv4 addresses of a network that this node has given.",
            |one| one.used,
        ),
        (
            "weave_ipam_network_requests_pending",
            "Whether this node has asked other members for more addresses of a network and waits for them.",
            |one| one.asking.into(),
        ),
    ];
    for (name, help, read) in gauges {
        let values = networks.iter();
        let values = values.map(|(network, one)| ([network.to_string()], read(one).into()));
        page.gauge(name, help, ["network"], values);
    }
}
