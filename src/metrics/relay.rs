//! The metrics of the relay of Services: there once a Service needed it.
//!
//! Endpoints come and go, so they are told together for each port of a Service, and those that have gone stay in the
//! counters; `weavectl service describe` tells them apart. Services are many in some clusters: the ports of the first
//! [`MOST_PORTS`] by name have metrics of their own, and how many have none is told.

use weave_proxy::relay::pick::Sum;
use weave_proxy::relay::{Counts, Watch};
use weave_proxy::table::{Family, Key};

use super::page::{Page, only};

const LABELS: [&str; 3] = ["service", "port", "family"];

/// The most ports of Services, each family by itself, that have metrics of their own.
const MOST_PORTS: usize = 256;

pub(super) fn families(page: &mut Page, relay: &Watch) {
    let counts = relay.counts();
    page.gauge(
        "weave_relay_connections",
        "Connections of services that the relay has open.",
        [],
        only(counts.open as f64),
    );
    page.counter(
        "weave_relay_accepted_total",
        "Connections that the relay has accepted.",
        [],
        only(counts.accepted),
    );
    page.counter(
        "weave_relay_reset_total",
        "Connections that the relay ended with a reset: no endpoint answered, or one of the sides broke.",
        [],
        only(counts.reset),
    );
    page.counter(
        "weave_relay_waits_total",
        "How often connections had to wait because there were as many as there may be.",
        [],
        only(counts.waits),
    );
    page.gauge(
        "weave_relay_kept_bytes",
        "Bytes of connections that wait in the relay's memory for receivers that read too slowly.",
        [],
        only(counts.kept as f64),
    );
    sessions(page, counts);
    ports(page, &relay.groups());
}

fn sessions(page: &mut Page, counts: Counts) {
    page.gauge(
        "weave_relay_sessions",
        "Clients and services between which the relay carries datagrams.",
        [],
        only(counts.sessions as f64),
    );
    page.counter(
        "weave_relay_sessions_total",
        "Sessions of datagrams that began.",
        [],
        only(counts.begun),
    );
    page.counter(
        "weave_relay_sessions_displaced_total",
        "Sessions of datagrams that ended before their time, because there were as many as there may be.",
        [],
        only(counts.displaced),
    );
    page.counter(
        "weave_relay_datagrams_lost_total",
        "Datagrams that came to nothing: no room for a session, no endpoint, or no room in a socket.",
        [],
        only(counts.lost),
    );
}

fn ports(page: &mut Page, all: &[(Key, Sum)]) {
    let left_out = all.len().saturating_sub(MOST_PORTS);
    let all = &all[..all.len() - left_out];
    page.gauge(
        "weave_relay_ports_left_out",
        "Ports of services whose metrics are left out, because there are too many.",
        [],
        only(left_out as f64),
    );
    type Count = fn(&Sum) -> u64;
    let counters: [(&str, &str, Count); 4] = [
        (
            "weave_relay_picks_total",
            "How often an endpoint of the service was picked.",
            |sum| sum.counts.picks,
        ),
        (
            "weave_relay_failures_total",
            "How often one could not be reached, or broke a connection without an answer.",
            |sum| sum.counts.failures,
        ),
        (
            "weave_relay_retries_total",
            "How often another one took its place for the same connection.",
            |sum| sum.counts.retries,
        ),
        (
            "weave_relay_ejections_total",
            "How often one was left out for a while.",
            |sum| sum.counts.ejections,
        ),
    ];
    for (name, help, read) in counters {
        let values = all.iter().map(|(key, sum)| (labels(key), read(sum)));
        page.counter(name, help, LABELS, values);
    }
    states(page, all);
}

fn states(page: &mut Page, all: &[(Key, Sum)]) {
    type Read = fn(&Sum) -> Option<f64>;
    let gauges: [(&str, &str, Read); 5] = [
        (
            "weave_relay_open",
            "Connections that endpoints of the service have open.",
            |sum| Some(sum.open as f64),
        ),
        (
            "weave_relay_endpoints",
            "Endpoints of the service.",
            |sum| Some(sum.listed as f64),
        ),
        (
            "weave_relay_ejected_endpoints",
            "Those that are left out at the moment.",
            |sum| Some(sum.ejected as f64),
        ),
        (
            "weave_relay_latency_seconds",
            "How long an endpoint takes to answer: the mean over those that were measured of their averages.",
            |sum| Some(sum.latency?.as_secs_f64()),
        ),
        (
            "weave_relay_slowest_latency_seconds",
            "The same of the slowest one.",
            |sum| Some(sum.slowest?.as_secs_f64()),
        ),
    ];
    for (name, help, read) in gauges {
        let values = all.iter();
        let values = values.filter_map(|(key, sum)| Some((labels(key), read(sum)?)));
        page.gauge(name, help, LABELS, values);
    }
}

fn labels(key: &Key) -> [String; 3] {
    let family = match key.family {
        Family::V4 => "ipv4",
        Family::V6 => "ipv6",
    };
    let port = format!("{}/{}", key.port, key.protocol);
    [key.service.to_string(), port, family.to_owned()]
}

#[cfg(test)]
mod tests {
    use weave_model::Protocol;

    use super::*;

    #[test]
    fn what_is_too_many_is_left_out_and_counted() {
        let all: Vec<(Key, Sum)> = (0..MOST_PORTS + 44)
            .map(|number| {
                let key = Key {
                    service: format!("s{number:03}").parse().unwrap(),
                    port: 80,
                    protocol: Protocol::Tcp,
                    family: Family::V4,
                };
                (key, Sum::default())
            })
            .collect();
        let mut page = Page::default();
        ports(&mut page, &all);
        let text = page.text();
        let of = |name: &str| text.lines().filter(|line| line.starts_with(name)).count();
        assert_eq!(of("weave_relay_picks_total{"), MOST_PORTS);
        assert!(text.contains("weave_relay_ports_left_out 44\n"), "{text}");
        assert!(
            !text.contains("weave_relay_latency_seconds"),
            "none was measured"
        );
        assert!(
            text.contains("{service=\"s000\",port=\"80/tcp\",family=\"ipv4\"}"),
            "{text}"
        );
    }
}
