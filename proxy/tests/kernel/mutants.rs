//! Mutants: each breaks one rule, between what is reported and what the engine is given, and a case that is about the rule
//! must fail on it. A case that passes on its mutant shows nothing.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use weave_model::{
    Affinity, Endpoint, EngineChoice, Protocol, Service, ServiceKind, TrafficPolicy,
};
use weave_proxy::facts::{ExternalIps, Facts, Unknown};
use weave_proxy::sources::Change;
use weave_proxy::table::{Entry, Family, Key, Table, Way};

use crate::lab::{B, C, HOST, ip, port, slice_of};

/// What a mutant does wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Mutant {
    /// No Service is served.
    Nobody,
    /// Only the first endpoint is ever picked.
    FirstOnly,
    /// What nobody is behind vanishes instead of being refused.
    Dropped,
    /// Traffic policies are not looked at.
    NoPolicy,
    /// Clients do not keep their endpoint.
    NoAffinity,
    /// Clients keep their endpoint for a day.
    Forever,
    /// Source ranges are not looked at.
    NoRanges,
    /// Only virtual addresses are fronts.
    Inside,
    /// Endpoints that are going are never used.
    NotGoing,
    /// Endpoints that are not ready are used.
    Unready,
    /// Flows of UDP to endpoints that are gone stay.
    KeptFlows,
    /// Containers are taken for strangers, whose source is replaced.
    Masked,
    /// Nobody's source is replaced.
    Unmasked,
    /// Other nodes are shown an address that they find no way to.
    NoOwn,
    /// There is no IPv6.
    V4Only,
    /// There is no UDP.
    NoUdp,
    /// There is no SCTP.
    NoSctp,
    /// Of several ports there is one.
    OnePort,
    /// Services of other proxies and headless ones are served.
    AllOurs,
    /// Services that are only names are served.
    NamesToo,
    /// Addresses that no Service has are refused as ports are.
    Loud,
    /// External addresses are not taken.
    NoExternal,
    /// A Service that is gone stays.
    Forgotten,
    /// Of a Service and of a slice only the first report is heard.
    Deaf,
    /// What an endpoint listens at is taken for a Service.
    Thief,
    /// Nodes cannot be endpoints, in Kubernetes neither.
    NoNodes,
    /// Hints are not looked at.
    NoHints,
    /// Packets that belong to no connection pass.
    Invalid,
    /// Half-closed connections are followed for a second.
    Hasty,
}

thread_local! {
    static NOW: Cell<Option<Mutant>> = const { Cell::new(None) };
}

/// The mutant that this thread's labs are.
pub(crate) fn now() -> Option<Mutant> {
    NOW.get()
}

/// Fails unless the case fails on the mutant. What the case says when it fails is shown, and is right.
pub(crate) fn must_fail(mutant: Mutant, case: fn(EngineChoice)) {
    NOW.set(Some(mutant));
    let ended = catch_unwind(AssertUnwindSafe(|| case(EngineChoice::Kernel)));
    NOW.set(None);
    assert!(ended.is_err(), "the case passes though {mutant:?}");
}

/// How long is waited: a mutant fails by waiting for what never comes.
pub(crate) fn patience(usual: Duration) -> Duration {
    if now().is_some() { usual / 5 } else { usual }
}

impl Mutant {
    /// What is reported besides, at the start.
    pub(crate) fn extra(self) -> Vec<Change> {
        if self != Self::Thief {
            return Vec::new();
        }
        let name = "thief".parse().unwrap();
        let all = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp];
        let ports = all.map(|protocol| port(protocol, 8080, None));
        let service = Service {
            external_ips: vec![ip(B)],
            ..Service::new(name, [ip("10.96.0.99")], ports)
        };
        vec![
            Change::Service(service),
            slice_of("thief", [crate::lab::at(C)]),
        ]
    }

    /// A report as it is heard.
    pub(crate) fn hears(self, change: Change, heard: &mut BTreeSet<String>) -> Option<Change> {
        match (self, change) {
            (Self::Deaf, change) => {
                let what = match &change {
                    Change::Service(service) => service.name.to_string(),
                    Change::Slice(slice) => format!("{} {}", slice.service, slice.name),
                    _ => return Some(change),
                };
                heard.insert(what).then_some(change)
            }
            (Self::Forgotten, Change::NoService(_)) => None,
            (Self::AllOurs, Change::Service(service)) => Some(Change::Service(Service {
                other_proxy: false,
                headless: false,
                ..service
            })),
            (Self::NamesToo, Change::Service(service)) => {
                let kind = match service.kind {
                    ServiceKind::ExternalName(_) => ServiceKind::ClusterIp,
                    kind => kind,
                };
                Some(Change::Service(Service { kind, ..service }))
            }
            (Self::NotGoing | Self::Unready | Self::NoHints, Change::Slice(mut slice)) => {
                slice
                    .endpoints
                    .iter_mut()
                    .for_each(|one| self.endpoint(one));
                Some(Change::Slice(slice))
            }
            (_, Change::Facts(mut facts)) => {
                self.facts(&mut facts);
                Some(Change::Facts(facts))
            }
            (_, change) => Some(change),
        }
    }

    fn endpoint(self, endpoint: &mut Endpoint) {
        match self {
            Self::NotGoing => endpoint.serving &= !endpoint.terminating,
            Self::Unready => (endpoint.ready, endpoint.serving) = (true, true),
            _ => {
                endpoint.for_nodes.clear();
                endpoint.for_zones.clear();
            }
        }
    }

    fn facts(self, facts: &mut Facts) {
        match self {
            Self::Masked => facts.containers.clear(),
            Self::NoOwn => facts.own.clear(),
            Self::Loud => facts.unknown = Unknown::Refused,
            Self::NoExternal => facts.external_ips = ExternalIps::Refused,
            Self::NoNodes => drop(facts.no_endpoints.insert(ip(HOST))),
            _ => {}
        }
    }

    /// The table as the engine gets it.
    pub(crate) fn table(self, table: &Table) -> Table {
        let kept = |(key, entry): (&Key, &Arc<Entry>)| {
            let mut entry = Entry::clone(entry);
            self.entry(&mut entry);
            self.keeps(key).then(|| (key.clone(), Arc::new(entry)))
        };
        Table {
            entries: table.entries.iter().filter_map(kept).collect(),
            ..table.clone()
        }
    }

    fn keeps(self, key: &Key) -> bool {
        match self {
            Self::Nobody => false,
            Self::V4Only => key.family == Family::V4,
            Self::NoUdp => key.protocol != Protocol::Udp,
            Self::NoSctp => key.protocol != Protocol::Sctp,
            Self::OnePort => key.port == 80,
            _ => true,
        }
    }

    fn entry(self, entry: &mut Entry) {
        match self {
            Self::FirstOnly => {
                entry.cluster.truncate(1);
                entry.local.truncate(1);
            }
            Self::Dropped => entry.any = true,
            Self::NoPolicy => {
                (entry.internal, entry.external) = (TrafficPolicy::Cluster, TrafficPolicy::Cluster);
            }
            Self::NoAffinity => entry.affinity = Affinity::None,
            Self::Forever if entry.affinity != Affinity::None => {
                entry.affinity = Affinity::ClientIp { seconds: 86_400 };
            }
            Self::NoRanges => entry.source_ranges.clear(),
            Self::Inside => entry.fronts.retain(|(_, way)| *way == Way::Internal),
            Self::KeptFlows => {
                let more = ["10.32.0.2", B, C, crate::lab::FAR, "198.51.100.50"];
                entry.serving.extend(more.map(ip));
            }
            _ => {}
        }
    }

    /// What is done to the rules once they are made.
    pub(crate) fn script(self) -> Option<&'static str> {
        match self {
            Self::Unmasked => Some("nft flush chain inet weave-service mask"),
            Self::Invalid => Some("nft flush chain inet weave-service stray"),
            Self::Hasty => Some("sysctl -qw net.netfilter.nf_conntrack_tcp_timeout_close_wait=1"),
            _ => None,
        }
    }
}
