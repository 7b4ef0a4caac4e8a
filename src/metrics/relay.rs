//! The metrics of the relay of Services: there once a Service needed it.

use weave_proxy::relay::pick::Seen;
use weave_proxy::relay::{Counts, Watch};
use weave_proxy::table::Key;

use super::page::{Page, only};

const LABELS: [&str; 3] = ["service", "port", "endpoint"];

pub(super) fn families(page: &Page, relay: &Watch) {
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
    sessions(page, counts);
    endpoints(page, &relay.endpoints());
}

fn sessions(page: &Page, counts: Counts) {
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

fn endpoints(page: &Page, all: &[(Key, Vec<Seen>)]) {
    type Read = fn(&Seen) -> u64;
    let counters: [(&str, &str, Read); 4] = [
        (
            "weave_relay_picks_total",
            "How often an endpoint was picked.",
            |one| one.counts.picks,
        ),
        (
            "weave_relay_failures_total",
            "How often an endpoint could not be reached, or broke a connection before its first byte.",
            |one| one.counts.failures,
        ),
        (
            "weave_relay_retries_total",
            "How often another endpoint took this one's place for the same connection.",
            |one| one.counts.retries,
        ),
        (
            "weave_relay_ejections_total",
            "How often an endpoint was left out for a while.",
            |one| one.counts.ejections,
        ),
    ];
    let labelled = || {
        all.iter().flat_map(|(key, seen)| {
            let labels = |one: &Seen| {
                let port = format!("{}/{}", key.port, key.protocol);
                [key.service.to_string(), port, one.address.to_string()]
            };
            seen.iter().map(move |one| (labels(one), one))
        })
    };
    for (name, help, read) in counters {
        page.counter(
            name,
            help,
            LABELS,
            labelled().map(|(labels, one)| (labels, read(one))),
        );
    }
    page.gauge(
        "weave_relay_open",
        "Connections that an endpoint has open.",
        LABELS,
        labelled().map(|(labels, one)| (labels, f64::from(one.open))),
    );
    page.gauge(
        "weave_relay_ejected",
        "Whether an endpoint is left out at the moment.",
        LABELS,
        labelled().map(|(labels, one)| (labels, f64::from(u8::from(one.ejected)))),
    );
    page.gauge(
        "weave_relay_latency_seconds",
        "How long an endpoint takes to answer, on average, where it was measured.",
        LABELS,
        labelled().filter_map(|(labels, one)| Some((labels, one.latency?.as_secs_f64()))),
    );
}
