//! Mutants: each breaks one rule, between what is reported and what the engine is given, and a case that is about the rule
//! must fail on it. A case that passes on its mutant shows nothing.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use weave_linux::netns::Netns;
use weave_linux::nft::Socket;
use weave_model::{
    AddressKind, Affinity, BalancerMode, Endpoint, EngineChoice, Protocol, Service, ServiceKind,
    TrafficPolicy,
};
use weave_proxy::facts::{ExternalIps, Facts, Unknown};
use weave_proxy::sources::Change;
use weave_proxy::table::{Entry, Family, Front, Key, Table, Target, Way};

use crate::lab::{B, C, FAR, FAR6, HOST, ip, ok, port, slice_of};

/// The beginning of a script that adds a rule for all that the host forwards.
macro_rules! small {
    () => {
        "nft add table inet small
         nft add chain inet small passing '{ type filter hook forward priority 0; }'
         nft add rule inet small passing "
    };
}

/// What a mutant does wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Mutant {
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
    /// Flows of UDP to a Service without endpoints are forgotten.
    Eager,
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
    /// Services of other proxies are served.
    OthersToo,
    /// Headless Services are served.
    HeadlessToo,
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
    /// Endpoints of other nodes are never picked.
    OnlyHere,
    /// The first endpoint is picked more often than the others.
    Weighted,
    /// An endpoint is ready only if it serves and is not going, whatever its slice says.
    OnlyServing,
    /// An address is an endpoint of one port only.
    Once,
    /// Of the slices of a Service only one is heard.
    OneSlice,
    /// What containers send is not picked for.
    NotFromContainers,
    /// What the host itself sends is not picked for.
    NotFromHost,
    /// Packets of more than 1,000 bytes vanish.
    Small,
    /// A new engine makes nothing of what was reported before it.
    Amnesia,
    /// While one set of rules becomes the next, what is new is refused.
    Gap,
    /// Endpoints that have gone are still picked.
    Lingers,
    /// A front that a Service once had stays.
    KeepsFronts,
    /// A port that a Service once had stays.
    KeepsPorts,
    /// Affinity that was switched on stays on.
    StaysSticky,
    /// The first external traffic policy of a Service stays.
    FirstPolicy,
    /// Node ports are taken at every address of the host.
    Everywhere,
    /// At addresses of load balancers clients do not keep their endpoint.
    NoBalancerAffinity,
    /// Flows to addresses of load balancers stay though their endpoint is gone.
    KeptBalancerFlows,
    /// At addresses of load balancers the external traffic policy is not looked at.
    NoBalancerPolicy,
    /// At ports of the node the external traffic policy is not looked at.
    NoNodePortPolicy,
    /// External traffic policy Local holds for containers and the host too.
    LocalInside,
    /// Where policy Local leaves no endpoint, those of other nodes are taken.
    LocalElsewhere,
    /// A load balancer's address is served only together with a port of the node.
    NeedsNodePort,
    /// Loopback addresses are endpoints like all others.
    Believes,
    /// Where one Service has many endpoints, the others have none.
    Crowded,
    /// Addresses that a load balancer keeps to itself are taken.
    NoProxyMode,
    /// There is no IPv4.
    V6Only,
    /// Only the first virtual address of a Service counts.
    FirstFamily,
    /// There is no SCTP over IPv6.
    NoSctp6,
    /// Of UDP, what nobody is behind vanishes instead of being refused.
    DroppedUdp,
    /// Over UDP clients do not keep their endpoint.
    NoAffinityUdp,
    /// Over UDP the external traffic policy is not looked at.
    NoPolicyUdp,
    /// For UDP, endpoints that have gone are still picked.
    LingersUdp,
    /// A front of UDP that a Service once had stays.
    KeepsFrontsUdp,
    /// What an endpoint listens at is taken for a Service of UDP.
    ThiefUdp,
    /// Datagrams of more than 1,000 bytes vanish.
    SmallUdp,
    /// The time that clients keep their endpoint does not begin again with their next connection.
    NoRefresh,
    /// Each change of a Service forgets all its clients.
    Forgets,
    /// There is no UDP over IPv6.
    NoUdp6,
    /// Ports of the node are not taken over IPv6.
    NoNodePorts6,
    /// Over IPv6 clients do not keep their endpoint.
    NoAffinity6,
    /// Over IPv6 the external traffic policy is not looked at.
    NoPolicy6,
    /// Over IPv6 source ranges are not looked at.
    NoRanges6,
    /// Of slices of IPv6 only the first report is heard.
    Deaf6,
    /// Nobody's source is replaced over IPv6.
    Unmasked6,
    /// What containers send over IPv6 is not picked for.
    NotFromContainers6,
    /// What the host itself sends over IPv6 is not picked for.
    NotFromHost6,
    /// Packets of IPv6 of more than 1,000 bytes vanish.
    Small6,
    /// Nothing holds connections while the rules are gone.
    Unheld,
}

thread_local! {
    static NOW: Cell<Option<Mutant>> = const { Cell::new(None) };
    /// What the mutant could not be made by.
    static BROKEN: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// The mutant that this thread's labs are.
pub(crate) fn now() -> Option<Mutant> {
    NOW.get()
}

/// Says that a mutant could not be made: then no failure of its case shows anything.
pub(crate) fn is_broken(why: impl Display) {
    BROKEN.set(Some(why.to_string()));
}

/// Fails unless the case fails on the mutant. What the case says when it fails is shown, and is right.
pub(crate) fn must_fail(mutant: Mutant, case: fn(EngineChoice)) {
    NOW.set(Some(mutant));
    let ended = catch_unwind(AssertUnwindSafe(|| case(EngineChoice::Kernel)));
    NOW.set(None);
    let broken = BROKEN.take();
    assert!(broken.is_none(), "{mutant:?} could not be made: {broken:?}");
    assert!(ended.is_err(), "the case passes though {mutant:?}");
}

/// Whoever ever answers in these labs.
fn everybody() -> impl Iterator<Item = IpAddr> {
    let v4 = ["10.32.0.2", B, C, FAR, "198.51.100.50"];
    let v6 = ["fd77::2", "fd77::3", "fd77::4", FAR6];
    v4.into_iter().chain(v6).map(ip)
}

/// How long is waited: a mutant fails by waiting for what never comes.
pub(crate) fn patience(usual: Duration) -> Duration {
    if now().is_some() { usual / 5 } else { usual }
}

impl Mutant {
    /// What is reported besides, at the start.
    pub(crate) fn extra(self) -> Vec<Change> {
        let protocols: &[Protocol] = match self {
            Self::Thief => &[Protocol::Tcp, Protocol::Udp, Protocol::Sctp],
            Self::ThiefUdp => &[Protocol::Udp],
            _ => return Vec::new(),
        };
        let name = "thief".parse().unwrap();
        let ports = protocols.iter().map(|protocol| port(*protocol, 8080, None));
        let service = Service {
            external_ips: vec![ip(B), ip("fd77::3")],
            ..Service::new(name, [ip("10.96.0.99"), ip("fd96::99")], ports)
        };
        vec![
            Change::Service(service),
            slice_of("thief", [crate::lab::at(C)]),
        ]
    }

    /// What the engine does not get.
    pub(crate) fn takes(self, host: &Netns) -> Option<Socket> {
        (self == Self::Unheld).then(|| crate::keeping::nothing_holds(host))
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
            (Self::Deaf6, Change::Slice(slice)) if slice.kind == AddressKind::V6 => heard
                .insert(slice.service.to_string())
                .then_some(Change::Slice(slice)),
            (Self::OneSlice, Change::Slice(slice)) => {
                let first = heard.is_empty() || heard.contains(&slice.name);
                heard.extend(first.then(|| slice.name.clone()));
                first.then_some(Change::Slice(slice))
            }
            (
                Self::FirstFamily | Self::StaysSticky | Self::FirstPolicy | Self::NoProxyMode,
                Change::Service(service),
            ) => Some(Change::Service(self.service(service, heard))),
            (Self::Forgotten, Change::NoService(_)) => None,
            (Self::OthersToo, Change::Service(service)) => Some(Change::Service(Service {
                other_proxy: false,
                ..service
            })),
            (Self::HeadlessToo, Change::Service(service)) => Some(Change::Service(Service {
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
            (
                Self::NotGoing | Self::Unready | Self::NoHints | Self::OnlyServing,
                Change::Slice(mut slice),
            ) => {
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

    /// A Service as it is heard by those who heard of it before.
    fn service(self, mut service: Service, heard: &mut BTreeSet<String>) -> Service {
        match self {
            Self::FirstFamily => service.addresses.truncate(1),
            Self::NoProxyMode => {
                let all = service.balancer.iter_mut();
                all.for_each(|balancer| balancer.mode = BalancerMode::Vip);
            }
            Self::StaysSticky if service.affinity != Affinity::None => {
                heard.insert(service.name.to_string());
            }
            Self::StaysSticky if heard.contains(service.name.as_str()) => {
                service.affinity = Affinity::ClientIp { seconds: 3600 };
            }
            Self::FirstPolicy => {
                let local = format!("{} is local", service.name);
                if heard.insert(service.name.to_string()) {
                    heard.extend((service.external == TrafficPolicy::Local).then_some(local));
                } else if heard.contains(&local) {
                    service.external = TrafficPolicy::Local;
                } else {
                    service.external = TrafficPolicy::Cluster;
                }
            }
            _ => {}
        }
        service
    }

    fn endpoint(self, endpoint: &mut Endpoint) {
        match self {
            Self::NotGoing => endpoint.serving &= !endpoint.terminating,
            Self::Unready => (endpoint.ready, endpoint.serving) = (true, true),
            Self::OnlyServing => endpoint.ready &= endpoint.serving && !endpoint.terminating,
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
            Self::Everywhere => drop(facts.addresses.insert(ip("10.32.0.1"))),
            _ => {}
        }
    }

    /// The table as the engine gets it; what it was given last.
    pub(crate) fn table(self, table: &Table, given: &Table) -> Table {
        let mut entries = BTreeMap::new();
        let mut seen = BTreeSet::new();
        let many = |entry: &Arc<Entry>| entry.cluster.len() > 1000;
        let crowded = self == Self::Crowded && table.entries.values().any(many);
        for (key, entry) in table.entries.iter().filter(|(key, _)| self.keeps(key)) {
            let is_many = many(entry);
            let mut entry = Entry::clone(entry);
            if crowded && !is_many {
                entry.cluster.clear();
            }
            if self != Self::Once {
                self.entry(key, &mut entry);
            } else if let Some(first) = entry.cluster.first()
                && !seen.insert((key.protocol, first.address.ip()))
            {
                entry.cluster.clear();
            }
            if let Some(before) = given.entries.get(key) {
                self.remembers(key, before, &mut entry);
            }
            if let Some(other) = self.splits(&mut entry) {
                let service = format!("{}-outside", key.service).parse().unwrap();
                let key = Key {
                    service,
                    ..key.clone()
                };
                entries.insert(key, Arc::new(other));
            }
            entries.insert(key.clone(), Arc::new(entry));
        }
        if self == Self::KeepsPorts {
            let gone = given.entries.iter();
            let gone = gone.filter(|(key, _)| !table.entries.contains_key(*key));
            entries.extend(gone.map(|(key, entry)| (key.clone(), Arc::clone(entry))));
        }
        Table {
            entries,
            ..table.clone()
        }
    }

    fn keeps(self, key: &Key) -> bool {
        match self {
            Self::V4Only => key.family == Family::V4,
            Self::V6Only => key.family == Family::V6,
            Self::NoUdp => key.protocol != Protocol::Udp,
            Self::NoUdp6 => (key.protocol, key.family) != (Protocol::Udp, Family::V6),
            Self::NoSctp6 => (key.protocol, key.family) != (Protocol::Sctp, Family::V6),
            Self::NoSctp => key.protocol != Protocol::Sctp,
            Self::OnePort => key.port == 80,
            _ => true,
        }
    }

    fn entry(self, key: &Key, entry: &mut Entry) {
        let (v6, udp) = (key.family == Family::V6, key.protocol == Protocol::Udp);
        match self {
            Self::Weighted => {
                let first = entry.cluster.first().copied();
                entry.cluster.extend(first.into_iter().cycle().take(3));
            }
            Self::Believes if !v6 => {
                let address = SocketAddr::from((Ipv4Addr::LOCALHOST, 8080));
                let local = false;
                entry.cluster.push(Target { address, local });
            }
            Self::OnlyHere => entry.cluster.retain(|target| target.local),
            Self::Dropped => entry.any = true,
            Self::DroppedUdp if udp => entry.any = true,
            Self::NoPolicy => {
                (entry.internal, entry.external) = (TrafficPolicy::Cluster, TrafficPolicy::Cluster);
            }
            Self::NoPolicy6 if v6 => entry.external = TrafficPolicy::Cluster,
            Self::NoPolicyUdp if udp => entry.external = TrafficPolicy::Cluster,
            Self::LocalElsewhere if entry.local.is_empty() => {
                entry.local.clone_from(&entry.cluster);
            }
            Self::NoAffinity => entry.affinity = Affinity::None,
            Self::NoAffinity6 if v6 => entry.affinity = Affinity::None,
            Self::NoAffinityUdp if udp => entry.affinity = Affinity::None,
            Self::Forever if entry.affinity != Affinity::None => {
                entry.affinity = Affinity::ClientIp { seconds: 86_400 };
            }
            Self::NoRanges => entry.source_ranges.clear(),
            Self::NoRanges6 if v6 => entry.source_ranges.clear(),
            Self::Inside => entry.fronts.retain(|(_, way)| *way == Way::Internal),
            Self::NoNodePorts6 if v6 => entry.fronts.retain(|(_, way)| *way != Way::NodePort),
            Self::NeedsNodePort if !entry.fronts.iter().any(|(_, way)| *way == Way::NodePort) => {
                entry.fronts.retain(|(_, way)| *way != Way::Balancer);
            }
            Self::KeptFlows => entry.serving.extend(everybody()),
            Self::Eager if entry.serving.is_empty() => drop(entry.serving.insert(ip(HOST))),
            _ => {}
        }
    }

    /// What of the entry before does not go away.
    fn remembers(self, key: &Key, before: &Entry, entry: &mut Entry) {
        let this = match self {
            Self::LingersUdp if key.protocol == Protocol::Udp => Self::Lingers,
            Self::KeepsFrontsUdp if key.protocol == Protocol::Udp => Self::KeepsFronts,
            this => this,
        };
        let more = |targets: &mut Vec<Target>, old: &[Target]| {
            let gone = old.iter().filter(|old| !targets.contains(old)).copied();
            let gone: Vec<Target> = gone.collect();
            targets.extend(gone);
        };
        match this {
            Self::Lingers => {
                more(&mut entry.cluster, &before.cluster);
                more(&mut entry.local, &before.local);
            }
            Self::KeepsFronts => {
                let has = |front: &Front| entry.fronts.iter().any(|(one, _)| one == front);
                let old = before.fronts.iter().filter(|(front, _)| !has(front));
                let old: Vec<_> = old.copied().collect();
                entry.fronts.extend(old);
            }
            _ => {}
        }
    }

    /// Some of the fronts as an entry of their own, that has another rule.
    fn splits(self, entry: &mut Entry) -> Option<Entry> {
        let apart: &[Way] = match self {
            Self::NoBalancerAffinity | Self::KeptBalancerFlows | Self::NoBalancerPolicy => {
                &[Way::Balancer]
            }
            Self::NoNodePortPolicy => &[Way::NodePort],
            Self::LocalInside => &[Way::Balancer, Way::NodePort],
            _ => return None,
        };
        let mut other = entry.clone();
        entry.fronts.retain(|(_, way)| !apart.contains(way));
        other.fronts.retain(|(_, way)| apart.contains(way));
        match self {
            Self::NoBalancerAffinity => other.affinity = Affinity::None,
            Self::KeptBalancerFlows => other.serving.extend(everybody()),
            Self::LocalInside if other.external == TrafficPolicy::Local => {
                other.cluster.clone_from(&other.local);
            }
            Self::NoBalancerPolicy | Self::NoNodePortPolicy => {
                other.external = TrafficPolicy::Cluster;
            }
            _ => {}
        }
        (!other.fronts.is_empty()).then_some(other)
    }

    /// What happens between a report and what the kernel makes of it.
    pub(crate) fn meanwhile(self, host: &Netns) {
        if self == Self::Gap {
            ok(
                host,
                "nft 'table inet gap { chain c { type filter hook forward priority -20; tcp flags syn reject with tcp reset; }; }'
                 sleep 0.2; nft delete table inet gap",
            );
        }
    }

    /// What is done to the rules once they are made.
    pub(crate) fn script(self) -> Option<&'static str> {
        match self {
            Self::Unmasked => Some("nft flush chain inet weave-service mask"),
            Self::Invalid => Some("nft flush chain inet weave-service stray"),
            Self::Hasty => Some("sysctl -qw net.netfilter.nf_conntrack_tcp_timeout_close_wait=1"),
            Self::Unmasked6 => {
                Some("nft insert rule inet weave-service mask meta nfproto ipv6 return")
            }
            Self::NotFromContainers => {
                Some("nft insert rule inet weave-service pick-in iifname 'wv*' return")
            }
            Self::NotFromContainers6 => Some(
                "nft insert rule inet weave-service pick-in iifname 'wv*' meta nfproto ipv6 return",
            ),
            Self::NotFromHost => Some("nft flush chain inet weave-service pick-out"),
            Self::NotFromHost6 => {
                Some("nft insert rule inet weave-service pick-out meta nfproto ipv6 return")
            }
            Self::Small => Some(concat!(small!(), "meta length '>' 1000 drop")),
            Self::Small6 => Some(concat!(
                small!(),
                "meta nfproto ipv6 meta length '>' 1000 drop"
            )),
            Self::SmallUdp => Some(concat!(
                small!(),
                "meta l4proto udp meta length '>' 1000 drop"
            )),
            Self::NoRefresh => Some(
                "nft -a list table inet weave-service | while read -r word set open field of rest; do
                     if [ \"$word\" = chain ]; then chain=$set; fi
                     if [ \"$word\" = update ]; then
                         echo replace rule inet weave-service $chain handle ${rest##* } add $set { $field $of }
                     fi
                 done | nft -f -",
            ),
            Self::Forgets => Some(
                "for who in $(nft list sets inet | grep -o 'who-[0-9a-f-]*'); do
                     nft flush set inet weave-service $who
                 done",
            ),
            _ => None,
        }
    }
}
