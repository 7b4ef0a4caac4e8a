//! The metrics of Services, whichever engine serves them, and of how the kernel is kept to them.

use weave_model::Engine;
use weave_model::api::{BackendState, Services};
use weave_proxy::driver::{Progress, Syncs};
use weave_proxy::table::Table;

use super::page::{Page, only};

pub(super) fn families(page: &mut Page, services: &Services, table: &Table) {
    page.gauge(
        "weave_services",
        "Services of the cluster.",
        [],
        only(services.services.len() as f64),
    );
    let served = |engine| {
        let entries = table.entries.values();
        entries.filter(|entry| entry.engine == engine).count() as f64
    };
    let engines = [("kernel", Engine::Kernel), ("relay", Engine::Relay)];
    page.gauge(
        "weave_service_ports",
        "Ports of services that this node serves, each counted once in either family, by what serves them.",
        ["engine"],
        engines.map(|(name, engine)| ([name.to_owned()], served(engine))),
    );
    let backends = || services.services.iter().flat_map(|one| &one.backends);
    let in_state = |state| backends().filter(|one| one.state == state).count() as f64;
    let states = [
        ("ready", BackendState::Ready),
        ("failing", BackendState::Failing),
        ("unchecked", BackendState::Unchecked),
        ("unreachable", BackendState::Unreachable),
        ("refused", BackendState::Refused),
    ];
    page.gauge(
        "weave_service_endpoints",
        "Endpoints of all services, by how they are.",
        ["state"],
        states.map(|(name, state)| ([name.to_owned()], in_state(state))),
    );
    let is_served = |one: &&weave_model::api::ServiceInfo| {
        one.backends
            .iter()
            .any(|one| one.state == BackendState::Ready)
    };
    let without = services.services.iter().filter(|one| !is_served(one));
    page.gauge(
        "weave_services_without_endpoints",
        "Services of which no endpoint is ready.",
        [],
        only(without.count() as f64),
    );
}

pub(super) fn syncs(page: &mut Page, syncs: &Syncs, progress: &Progress) {
    page.histogram(
        "weave_service_sync_duration_seconds",
        "How long it took from a change of services or endpoints until the kernel had it.",
        [],
        only(syncs.took),
    );
    let results = [
        ("changed", syncs.changed),
        ("remade", syncs.remade),
        ("failed", syncs.failed),
    ];
    page.counter(
        "weave_service_syncs_total",
        "How often the kernel's rules of services were changed, made anew as a whole, or could not be made.",
        ["result"],
        results.map(|(result, count)| ([result.to_owned()], count)),
    );
    let last = progress.updated.and_then(|at| {
        let since = at.duration_since(std::time::UNIX_EPOCH).ok()?;
        Some(([], since.as_secs_f64()))
    });
    page.gauge(
        "weave_service_last_sync_timestamp_seconds",
        "When the kernel was last brought to what services are, in seconds since the Unix epoch.",
        [],
        last,
    );
    page.gauge(
        "weave_service_sync_late",
        "Whether a change has waited for the kernel for more than a minute.",
        [],
        only(f64::from(u8::from(!progress.healthy))),
    );
}
