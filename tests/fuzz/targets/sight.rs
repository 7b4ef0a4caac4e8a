//! What members tell of themselves for the picture of the mesh.

use weave_dashboard::graph::{self, Facts, Member};
use weave_model::NodeId;
use weave_model::api::{
    Capture, FlowCounts, PeerState, Protocol, Report, ReportContainer, ReportFlow, ReportLink,
    Topology, Traffic, Verdict,
};

/// A report that is read is written as it was, and becomes a picture in which every flow has two ends and every link is
/// there once, whoever says so.
pub(super) fn report(data: &[u8]) {
    let Ok(report) = serde_json::from_slice::<Report>(data) else {
        return;
    };
    let text = serde_json::to_vec(&report).expect("names and numbers are JSON");
    let again: Report = serde_json::from_slice(&text).expect("what is written is read");
    assert_eq!(again, report);
    let (flows, containers) = (report.flows.len(), report.containers.len());
    let topology = picture_of(&report);
    assert_eq!(topology.flows.len(), 2 * flows);
    assert_eq!(topology.containers.len(), 2 * containers);
    let ends = topology
        .flows
        .iter()
        .flat_map(|flow| [&flow.from, &flow.to]);
    assert!(ends.into_iter().all(|end| !end.id.is_empty()));
    let mut links: Vec<_> = topology.links.iter().map(|link| (link.a, link.b)).collect();
    assert!(links.iter().all(|(a, b)| a <= b));
    let before = links.len();
    links.dedup();
    assert_eq!(links.len(), before, "each pair once");
}

/// The picture of two members that tell the same.
pub(super) fn picture_of(report: &Report) -> Topology {
    let member = |byte| Member {
        id: NodeId::from_bytes([byte; 32]),
        name: "a".parse().expect("a name"),
        state: PeerState::Connected,
        endpoints: Vec::new(),
        blocks: Vec::new(),
        report: Ok(report.clone()),
    };
    graph::picture(Facts {
        at: 1,
        me: NodeId::from_bytes([1; 32]),
        verdict: Verdict::Ok,
        summary: String::new(),
        problems: Vec::new(),
        services: Vec::new(),
        range: None,
        members: vec![member(1), member(2)],
    })
}

pub(super) fn report_seeds() -> Vec<Vec<u8>> {
    let report = Report {
        version: "0.1.0".to_owned(),
        containers: vec![ReportContainer {
            name: "web".parse().expect("a name"),
            ifname: "eth0".parse().expect("a name"),
            network: "default".parse().expect("a name"),
            ip: [10, 32, 0, 2].into(),
            ip6: None,
            labels: [(
                "app".parse().expect("a key"),
                "web".parse().expect("a value"),
            )]
            .into(),
            attached_at: 1,
            alive: true,
            inside: None,
            runtime: None,
        }],
        links: vec![ReportLink {
            peer: NodeId::from_bytes([2; 32]),
            state: PeerState::Connected,
            rtt_us: Some(300),
            loss_permille: Some(7),
            via: "host3".parse().ok(),
            mtu: None,
            suite: None,
            traffic: Traffic::default(),
        }],
        flows: vec![ReportFlow {
            from: [10, 32, 0, 2].into(),
            to: [192, 0, 2, 7].into(),
            protocol: Protocol::Tcp,
            port: 80,
            via: "10.96.0.1:80".parse().ok(),
            counts: FlowCounts::default(),
        }],
        capture: Capture::default(),
        ..Report::default()
    };
    let text = serde_json::to_vec(&report).expect("names and numbers are JSON");
    vec![text, b"{}".to_vec()]
}
