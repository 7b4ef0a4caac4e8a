//! The picture of the mesh: each member's own report, put together.
//!
//! Pure: facts in, a [`Topology`] out. An address that several reports name belongs to the container of the member that
//! owns it; a link is told by both ends and shown once; a flow's ends are found by address, and so is the Service that it
//! was sent to: the kernel's table has what was asked for beside who answers.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, SocketAddr};

use ipnet::Ipv4Net;
use weave_model::api::{
    EndKind, Flow, FlowEnd, PeerState, Problem, Report, ReportFlow, ReportLink, ServiceInfo,
    Topology, TopologyContainer, TopologyHost, TopologyLink, TopologyService, Verdict,
};
use weave_model::{ClusterRange, NodeId, NodeName, ServiceName};

use crate::titles;

/// What a picture is made of.
#[derive(Clone, Debug)]
pub struct Facts {
    /// Seconds since the Unix epoch.
    pub at: u64,
    /// Who makes it.
    pub me: NodeId,
    /// How it is.
    pub verdict: Verdict,
    /// The same in one line.
    pub summary: String,
    /// What is not well with it.
    pub problems: Vec<Problem>,
    /// The cluster's addresses; absent outside of a cluster.
    pub range: Option<ClusterRange>,
    /// The Services of the cluster.
    pub services: Vec<ServiceInfo>,
    /// Every member, who makes it included.
    pub members: Vec<Member>,
}

/// A member and what it tells.
#[derive(Clone, Debug)]
pub struct Member {
    /// Its id.
    pub id: NodeId,
    /// Its name.
    pub name: NodeName,
    /// Whether it can be reached.
    pub state: PeerState,
    /// Where it says it can be reached.
    pub endpoints: Vec<SocketAddr>,
    /// The prefixes it gives to its containers.
    pub blocks: Vec<Ipv4Net>,
    /// Its report, or why there is none.
    pub report: Result<Report, String>,
}

/// Puts the picture together.
pub fn picture(facts: Facts) -> Topology {
    let mut members = facts.members;
    members.sort_by(|one, two| (&one.name, one.id).cmp(&(&two.name, two.id)));
    let mut containers: Vec<TopologyContainer> = members.iter().flat_map(containers_of).collect();
    titles::give(&mut containers);
    let ends = Ends::new(&members, &containers, &facts.services, facts.range);
    let flows = reports(&members).flat_map(|(_, report)| &report.flows);
    let flows = flows.map(|flow| ends.flow(flow)).collect();
    Topology {
        at: facts.at,
        node: facts.me,
        verdict: facts.verdict,
        summary: facts.summary,
        problems: facts.problems,
        links: links(&members),
        hosts: members.into_iter().map(host).collect(),
        containers,
        services: facts.services.into_iter().map(service).collect(),
        flows,
    }
}

fn service(info: ServiceInfo) -> TopologyService {
    TopologyService {
        id: service_id(&info.name),
        info,
    }
}

fn service_id(name: &ServiceName) -> String {
    format!("s:{name}")
}

fn reports(members: &[Member]) -> impl Iterator<Item = (NodeId, &Report)> {
    members
        .iter()
        .filter_map(|member| Some((member.id, member.report.as_ref().ok()?)))
}

fn containers_of(member: &Member) -> Vec<TopologyContainer> {
    let told = member.report.iter().flat_map(|report| &report.containers);
    let mut containers: Vec<TopologyContainer> = told
        .map(|one| TopologyContainer {
            id: format!("c:{}/{}/{}", member.id.short(), one.name, one.ifname),
            title: String::new(),
            same_as: None,
            host: member.id,
            name: one.name.clone(),
            ifname: one.ifname.clone(),
            network: one.network.clone(),
            ip: one.ip,
            ip6: one.ip6,
            labels: one.labels.clone(),
            attached_at: one.attached_at,
            alive: one.alive,
            inside: one.inside.clone(),
            runtime: one.runtime.clone(),
        })
        .collect();
    containers.sort_by(|one, two| one.id.cmp(&two.id));
    containers
}

fn host(member: Member) -> TopologyHost {
    let (report, silent) = match member.report {
        Ok(report) => (Some(report), None),
        Err(why) => (None, Some(why)),
    };
    let problems = report.as_ref().map(|report| report.problems.clone());
    TopologyHost {
        id: member.id,
        name: member.name,
        state: member.state,
        version: report.as_ref().map(|report| report.version.clone()),
        endpoints: member.endpoints,
        blocks: member.blocks,
        exposed: report.as_ref().and_then(|report| report.host),
        silent,
        more_containers: report.as_ref().map_or(0, |report| report.more_containers),
        more_links: report.as_ref().map_or(0, |report| report.more_links),
        problems: problems.unwrap_or_default(),
        inside: report.as_ref().and_then(|report| report.inside.clone()),
        capture: report.map(|report| report.capture),
    }
}

/// Each pair of members that one of them tells of.
fn links(members: &[Member]) -> Vec<TopologyLink> {
    let mut links: BTreeMap<(NodeId, NodeId), TopologyLink> = BTreeMap::new();
    for (id, report) in reports(members) {
        for told in &report.links {
            let pair = (id.min(told.peer), id.max(told.peer));
            links
                .entry(pair)
                .and_modify(|link| merge(link, told))
                .or_insert_with(|| link(id, told));
        }
    }
    links.into_values().collect()
}

fn link(id: NodeId, told: &ReportLink) -> TopologyLink {
    let (a, b) = (id.min(told.peer), id.max(told.peer));
    let mut traffic = told.traffic;
    if a != id {
        std::mem::swap(&mut traffic.sent_bytes, &mut traffic.received_bytes);
        std::mem::swap(&mut traffic.sent_packets, &mut traffic.received_packets);
    }
    TopologyLink {
        id: format!("l:{}-{}", a.short(), b.short()),
        a,
        b,
        state: told.state,
        rtt_us: told.rtt_us,
        loss_permille: told.loss_permille,
        via: told.via.clone(),
        mtu: told.mtu,
        suite: told.suite,
        traffic,
    }
}

/// Adds what the other end tells.
fn merge(link: &mut TopologyLink, told: &ReportLink) {
    if told.state == PeerState::Connected {
        link.state = PeerState::Connected;
    }
    link.rtt_us = link.rtt_us.or(told.rtt_us);
    link.loss_permille = link.loss_permille.max(told.loss_permille);
    link.via = link.via.take().or_else(|| told.via.clone());
    link.suite = link.suite.or(told.suite);
    link.mtu = match (link.mtu, told.mtu) {
        (Some(one), Some(two)) => Some(if two.bytes < one.bytes { two } else { one }),
        (one, two) => one.or(two),
    };
}

/// The addresses at which exactly one member is reached: what several share is that of a NAT between them and the others.
fn underlay(members: &[Member]) -> HashMap<IpAddr, FlowEnd> {
    let mut at: HashMap<IpAddr, BTreeMap<NodeId, &NodeName>> = HashMap::new();
    for member in members {
        for endpoint in &member.endpoints {
            let who = at.entry(endpoint.ip()).or_default();
            who.insert(member.id, &member.name);
        }
    }
    let alone = at.into_iter().filter(|(_, who)| who.len() == 1);
    alone
        .flat_map(|(ip, who)| {
            who.into_iter().map(move |(id, name)| {
                let end = FlowEnd {
                    kind: EndKind::Host,
                    id: id.to_string(),
                    name: name.to_string(),
                    ip,
                };
                (ip, end)
            })
        })
        .collect()
}

/// Who has which address.
struct Ends {
    known: HashMap<IpAddr, FlowEnd>,
    services: HashMap<IpAddr, ServiceName>,
    range: Option<ClusterRange>,
}

impl Ends {
    fn new(
        members: &[Member],
        containers: &[TopologyContainer],
        services: &[ServiceInfo],
        range: Option<ClusterRange>,
    ) -> Self {
        let mut known = underlay(members);
        for (id, report) in reports(members) {
            let Some(host) = report.host else { continue };
            let name = members.iter().find(|member| member.id == id);
            for ip in [Some(IpAddr::V4(host.ip)), host.ip6.map(IpAddr::V6)]
                .into_iter()
                .flatten()
            {
                let end = FlowEnd {
                    kind: EndKind::Host,
                    id: id.to_string(),
                    name: name.map_or_else(String::new, |member| member.name.to_string()),
                    ip,
                };
                known.insert(ip, end);
            }
        }
        for one in containers {
            for ip in [Some(IpAddr::V4(one.ip)), one.ip6.map(IpAddr::V6)]
                .into_iter()
                .flatten()
            {
                let end = FlowEnd {
                    kind: EndKind::Container,
                    id: one.id.clone(),
                    name: one.title.clone(),
                    ip,
                };
                known.insert(ip, end);
            }
        }
        let services = services.iter().flat_map(|info| {
            let name = |ip: &IpAddr| (*ip, info.name.clone());
            info.addresses.iter().map(name)
        });
        Self {
            known,
            services: services.collect(),
            range,
        }
    }

    fn find(&self, ip: IpAddr) -> FlowEnd {
        if let Some(end) = self.known.get(&ip) {
            return end.clone();
        }
        if let Some(name) = self.services.get(&ip) {
            return FlowEnd {
                kind: EndKind::Service,
                id: service_id(name),
                name: name.to_string(),
                ip,
            };
        }
        let inside = self.range.is_some_and(|range| range.offset(ip).is_some());
        FlowEnd {
            kind: if inside {
                EndKind::Unknown
            } else {
                EndKind::Outside
            },
            id: format!("o:{ip}"),
            name: ip.to_string(),
            ip,
        }
    }

    fn flow(&self, told: &ReportFlow) -> Flow {
        let ReportFlow {
            from,
            to,
            protocol,
            port,
            via,
            counts,
        } = *told;
        let asked = via.map_or_else(String::new, |via| format!("@{via}"));
        Flow {
            id: format!("f:{from}>{to}:{}:{port}{asked}", protocol.name()),
            from: self.find(from),
            to: self.find(to),
            protocol,
            port,
            via,
            service: via.and_then(|via| self.services.get(&via.ip()).cloned()),
            counts,
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use weave_model::api::{FlowCounts, Protocol, ReportContainer, Traffic};
    use weave_model::{MtuReason, PathMtu};

    use super::*;

    fn id(byte: u8) -> NodeId {
        NodeId::from_bytes([byte; 32])
    }

    fn member(byte: u8, name: &str, report: Result<Report, String>) -> Member {
        Member {
            id: id(byte),
            name: name.parse().unwrap(),
            state: PeerState::Connected,
            endpoints: Vec::new(),
            blocks: Vec::new(),
            report,
        }
    }

    fn container(name: &str, ip: &str) -> ReportContainer {
        ReportContainer {
            name: name.parse().unwrap(),
            ifname: "eth0".parse().unwrap(),
            network: "default".parse().unwrap(),
            ip: ip.parse().unwrap(),
            ip6: None,
            labels: BTreeMap::new(),
            attached_at: 1,
            alive: true,
            inside: None,
            runtime: None,
        }
    }

    fn flow(from: &str, to: &str) -> ReportFlow {
        ReportFlow {
            from: from.parse().unwrap(),
            to: to.parse().unwrap(),
            protocol: Protocol::Tcp,
            port: 80,
            via: None,
            counts: FlowCounts::default(),
        }
    }

    fn told(peer: u8, state: PeerState, mtu: u16, sent_bytes: u64) -> ReportLink {
        ReportLink {
            peer: id(peer),
            state,
            rtt_us: Some(300),
            loss_permille: Some(u16::from(peer)),
            via: None,
            mtu: Some(PathMtu {
                bytes: mtu,
                reason: MtuReason::Probed,
            }),
            suite: None,
            traffic: Traffic {
                sent_bytes,
                ..Traffic::default()
            },
        }
    }

    fn shown(members: Vec<Member>) -> Topology {
        let range = ClusterRange::new(
            "10.32.0.0/12".parse().unwrap(),
            "fd00::/48".parse().unwrap(),
        );
        picture(Facts {
            at: 7,
            me: id(1),
            verdict: Verdict::Ok,
            summary: String::new(),
            problems: Vec::new(),
            range: range.ok(),
            services: vec![web()],
            members,
        })
    }

    #[test]
    fn ends_are_found_wherever_they_are() {
        let here = Report {
            containers: vec![container("web", "10.32.0.2")],
            flows: vec![
                flow("10.32.0.2", "10.40.0.2"),
                flow("10.32.0.2", "192.0.2.7"),
                flow("10.32.0.2", "10.33.0.9"),
            ],
            ..Report::default()
        };
        let there = Report {
            containers: vec![container("db", "10.40.0.2")],
            ..Report::default()
        };
        let topology = shown(vec![member(1, "b", Ok(here)), member(2, "a", Ok(there))]);
        let ends: Vec<(EndKind, &str)> = topology
            .flows
            .iter()
            .map(|flow| (flow.to.kind, flow.to.name.as_str()))
            .collect();
        let expected = [
            (EndKind::Container, "db"),
            (EndKind::Outside, "192.0.2.7"),
            (EndKind::Unknown, "10.33.0.9"),
        ];
        assert_eq!(ends, expected);
        let names: Vec<&str> = topology
            .hosts
            .iter()
            .map(|host| host.name.as_str())
            .collect();
        assert_eq!(names, ["a", "b"]);
        assert_eq!(topology.containers[0].id, "c:0202020202/db/eth0");
    }

    #[test]
    fn a_flow_names_a_container_as_its_runtime_does() {
        let attached = ReportContainer {
            runtime: Some(weave_model::api::RuntimeInfo {
                runtime: "docker".to_owned(),
                id: "2a66".to_owned(),
                name: "shop".to_owned(),
                image: "shop:1".to_owned(),
                pod: None,
                namespace: None,
                workload: None,
                labels: BTreeMap::new(),
            }),
            ..container("docker-0123456789ab", "10.32.0.2")
        };
        let report = Report {
            containers: vec![attached],
            flows: vec![flow("10.32.0.2", "192.0.2.7")],
            ..Report::default()
        };
        let topology = shown(vec![member(1, "a", Ok(report))]);
        assert_eq!(topology.flows[0].from.name, "shop");
        assert_eq!(topology.flows[0].from.id, topology.containers[0].id);
        let [one] = &topology.containers[..] else {
            panic!("{:?}", topology.containers);
        };
        assert_eq!(
            (one.title.as_str(), one.name.as_str()),
            ("shop", "docker-0123456789ab"),
            "its own name stays"
        );
    }

    #[test]
    fn an_address_at_which_one_member_is_reached_is_that_member() {
        let report = Report {
            containers: vec![container("web", "10.32.0.2")],
            flows: ["192.0.2.1", "192.0.2.2", "192.0.2.9", "10.32.0.2"]
                .map(|to| flow("10.32.0.2", to))
                .to_vec(),
            ..Report::default()
        };
        let at = |byte, name: &str, endpoints: &[&str], report| Member {
            endpoints: endpoints.iter().map(|at| at.parse().unwrap()).collect(),
            ..member(byte, name, report)
        };
        let topology = shown(vec![
            // Two ports of one member are one member; two members behind a NAT are not.
            at(
                1,
                "a",
                &["192.0.2.1:6783", "192.0.2.1:9", "192.0.2.9:1"],
                Ok(report),
            ),
            at(
                2,
                "b",
                &["192.0.2.2:6783", "192.0.2.9:2", "10.32.0.2:1"],
                Err("gone".into()),
            ),
        ]);
        let ends: Vec<(EndKind, &str, &str)> = topology
            .flows
            .iter()
            .map(|flow| (flow.to.kind, flow.to.name.as_str(), flow.to.id.as_str()))
            .collect();
        let (a, b) = (id(1).to_string(), id(2).to_string());
        let expected = [
            (EndKind::Host, "a", a.as_str()),
            (EndKind::Host, "b", b.as_str()),
            (EndKind::Outside, "192.0.2.9", "o:192.0.2.9"),
            (EndKind::Container, "web", "c:0101010101/web/eth0"),
        ];
        assert_eq!(ends, expected);
    }

    fn web() -> ServiceInfo {
        ServiceInfo {
            name: "web".parse().unwrap(),
            addresses: vec!["10.96.0.9".parse().unwrap()],
            spec: weave_model::ServiceSpec::default(),
            node: "a".parse().unwrap(),
            made_at: 1,
            also_made_on: Vec::new(),
            backends: Vec::new(),
            refused: Vec::new(),
            last_resort: false,
        }
    }

    #[test]
    fn a_flow_through_a_service_names_it() {
        let mut through = flow("10.32.0.2", "10.32.0.3");
        through.via = Some("10.96.0.9:80".parse().unwrap());
        let mut elsewhere = flow("10.32.0.2", "10.32.0.3");
        elsewhere.via = Some("192.0.2.1:80".parse().unwrap());
        let report = Report {
            flows: vec![through, elsewhere, flow("10.32.0.2", "10.96.0.9")],
            ..Report::default()
        };
        let topology = shown(vec![member(1, "a", Ok(report))]);
        let names: Vec<Option<&str>> = topology
            .flows
            .iter()
            .map(|flow| flow.service.as_ref().map(ServiceName::as_str))
            .collect();
        assert_eq!(names, [Some("web"), None, None]);
        assert_eq!(topology.services[0].id, "s:web");
        let nobody = &topology.flows[2].to;
        assert_eq!(
            (nobody.kind, nobody.id.as_str()),
            (EndKind::Service, "s:web")
        );
    }

    #[test]
    fn a_link_is_shown_once_with_the_worse_of_both_ends() {
        let one = Report {
            links: vec![told(2, PeerState::Unreachable, 1500, 10)],
            ..Report::default()
        };
        let two = Report {
            links: vec![ReportLink {
                via: "c".parse().ok(),
                ..told(1, PeerState::Connected, 1400, 99)
            }],
            ..Report::default()
        };
        let topology = shown(vec![
            member(1, "a", Ok(one)),
            member(2, "b", Ok(two.clone())),
        ]);
        let [link] = &topology.links[..] else {
            panic!("{:?}", topology.links);
        };
        assert_eq!(
            (link.a, link.b, link.state),
            (id(1), id(2), PeerState::Connected)
        );
        assert_eq!(
            (link.mtu.unwrap().bytes, link.traffic.sent_bytes),
            (1400, 10)
        );
        let via = link.via.as_ref().map(NodeName::as_str);
        assert_eq!((link.loss_permille, via), (Some(2), Some("c")));
        let alone = shown(vec![
            member(1, "a", Err("gone".into())),
            member(2, "b", Ok(two)),
        ]);
        assert_eq!(
            alone.links[0].traffic.received_bytes, 99,
            "as seen from its first end"
        );
    }

    #[test]
    fn a_member_that_tells_nothing_is_shown_with_the_reason() {
        let topology = shown(vec![member(3, "c", Err("no session".into()))]);
        assert_eq!(topology.hosts[0].silent.as_deref(), Some("no session"));
        assert!(topology.containers.is_empty() && topology.hosts[0].capture.is_none());
    }
}
