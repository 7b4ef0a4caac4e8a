//! What people call a container: as its runtime does where that is known, else as it was attached.
//!
//! A runtime that asks for an attachment gives an id that nobody knows by heart, so that `web` of Docker is attached as
//! `docker-` and figures, and a pod as those of its sandbox. Where several of one host are called the same, what tells them
//! apart is said as well; of one container on several networks that is the network.

use std::collections::{BTreeMap, BTreeSet};

use weave_model::NodeId;
use weave_model::api::TopologyContainer;

/// Gives each its title, and says of each further attachment of a container which is the first.
pub(crate) fn give(containers: &mut [TopologyContainer]) {
    let mut same: BTreeMap<(NodeId, String), Vec<usize>> = BTreeMap::new();
    let mut firsts: BTreeMap<(NodeId, String), String> = BTreeMap::new();
    for (at, one) in containers.iter_mut().enumerate() {
        one.title = one.runtime_name().unwrap_or(one.name.as_str()).to_owned();
        let first = firsts.entry((one.host, which(one)));
        let first = first.or_insert_with(|| one.id.clone());
        one.same_as = (*first != one.id).then(|| first.clone());
        let called = same.entry((one.host, one.title.clone()));
        called.or_default().push(at);
    }
    for group in same.into_values().filter(|group| group.len() > 1) {
        let apart = DIFFERENCES.into_iter().find(|of| {
            let told: BTreeSet<String> = group.iter().map(|&at| of(&containers[at])).collect();
            told.len() == group.len() && !told.contains("")
        });
        for at in group {
            let one = &mut containers[at];
            let what = apart.map_or_else(|| whole(one), |of| of(one));
            one.title = format!("{} ({what})", one.title);
        }
    }
}

/// What may tell two of the same name apart, what says most first.
const DIFFERENCES: [fn(&TopologyContainer) -> String; 3] = [
    |one| one.namespace().unwrap_or_default().to_owned(),
    |one| one.network.to_string(),
    |one| one.ifname.to_string(),
];

/// No two attachments of a host share both.
fn whole(one: &TopologyContainer) -> String {
    format!("{} {}", one.name, one.ifname)
}

/// Which container of its host it is: Docker attaches one to each network by another name.
fn which(one: &TopologyContainer) -> String {
    one.runtime.as_ref().map_or_else(
        || format!("a:{}", one.name),
        |runtime| format!("r:{}/{}", runtime.runtime, runtime.id),
    )
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use weave_model::api::RuntimeInfo;

    use super::*;

    /// An attachment: its name, interface and network, and the runtime's id and name for it, and its namespace.
    type Told<'a> = (
        &'a str,
        &'a str,
        &'a str,
        Option<(&'a str, &'a str)>,
        &'a str,
    );

    fn container(
        host: u8,
        (name, ifname, network, runtime, namespace): Told<'_>,
    ) -> TopologyContainer {
        TopologyContainer {
            id: format!("c:{host}/{name}/{ifname}"),
            title: String::new(),
            same_as: None,
            host: NodeId::from_bytes([host; 32]),
            name: name.parse().unwrap(),
            ifname: ifname.parse().unwrap(),
            network: network.parse().unwrap(),
            ip: "10.32.0.2".parse().unwrap(),
            ip6: None,
            labels: BTreeMap::new(),
            attached_at: 1,
            alive: true,
            inside: None,
            runtime: runtime.map(|(id, name)| RuntimeInfo {
                runtime: "docker".to_owned(),
                id: id.to_owned(),
                name: name.to_owned(),
                image: String::new(),
                pod: None,
                namespace: (!namespace.is_empty()).then(|| namespace.to_owned()),
                workload: None,
                labels: BTreeMap::new(),
            }),
        }
    }

    fn titles(told: &[(u8, Told<'_>)]) -> Vec<(String, Option<String>)> {
        let mut all: Vec<_> = told
            .iter()
            .map(|&(host, one)| container(host, one))
            .collect();
        give(&mut all);
        all.into_iter()
            .map(|one| (one.title, one.same_as))
            .collect()
    }

    fn alone(title: &str) -> (String, Option<String>) {
        (title.to_owned(), None)
    }

    #[test]
    fn a_container_is_called_as_its_runtime_calls_it() {
        let docker = (
            "docker-2a6600000000",
            "eth0",
            "default",
            Some(("2a", "web")),
            "",
        );
        let by_hand = ("db", "eth0", "default", None, "");
        let nameless = ("9f", "eth0", "default", Some(("9f", "")), "");
        let shown = titles(&[(1, docker), (1, by_hand), (1, nameless), (2, docker)]);
        let expected = ["web", "db", "9f", "web"].map(alone);
        assert_eq!(shown, expected, "the host tells two of them apart");
    }

    #[test]
    fn a_pod_is_called_as_a_pod_by_whoever_says_so() {
        let mut labelled = container(1, ("0f", "eth0", "default", None, ""));
        labelled.labels = [(
            "io.kubernetes.pod.name".parse().unwrap(),
            "web-0".parse().unwrap(),
        )]
        .into();
        let mut of_kubelet = container(
            2,
            ("1f", "eth0", "default", Some(("1f", "k8s_POD_web-1")), ""),
        );
        of_kubelet.runtime.as_mut().unwrap().pod = Some("web-1".to_owned());
        let mut all = [labelled, of_kubelet];
        give(&mut all);
        assert_eq!(all.map(|one| one.title), ["web-0", "web-1"]);
    }

    #[test]
    fn one_container_on_two_networks_is_one_and_both_say_which() {
        let blue = ("docker-aa", "eth0", "blue", Some(("2a", "web")), "");
        let green = ("docker-bb", "eth1", "green", Some(("2a", "web")), "");
        let shown = titles(&[(1, blue), (1, green), (2, green)]);
        let first = Some("c:1/docker-aa/eth0".to_owned());
        let expected = [
            alone("web (blue)"),
            ("web (green)".to_owned(), first),
            alone("web"),
        ];
        assert_eq!(shown, expected);
        let cni = |ifname| ("0f", ifname, "default", None, "");
        let shown = titles(&[(1, cni("eth0")), (1, cni("eth1"))]);
        let first = Some("c:1/0f/eth0".to_owned());
        assert_eq!(shown, [alone("0f (eth0)"), ("0f (eth1)".to_owned(), first)]);
    }

    #[test]
    fn two_of_the_same_name_are_told_apart_by_what_differs() {
        let pod = |name, namespace| (name, "eth0", "default", Some((name, "web-0")), namespace);
        let shown = titles(&[(1, pod("aa", "shop")), (1, pod("bb", "mall"))]);
        assert_eq!(shown, ["web-0 (shop)", "web-0 (mall)"].map(alone));
        let alike = titles(&[(1, pod("aa", "shop")), (1, pod("bb", ""))]);
        let expected = ["web-0 (aa eth0)", "web-0 (bb eth0)"].map(alone);
        assert_eq!(alike, expected, "a pod and no pod");
        let shown = titles(&[(1, pod("aa", "shop")), (1, pod("bb", "shop"))]);
        assert_eq!(shown, ["web-0 (aa eth0)", "web-0 (bb eth0)"].map(alone));
    }
}
