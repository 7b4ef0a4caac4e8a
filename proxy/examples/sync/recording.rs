//! Recordings of Services and slices as Kubernetes tells of them: watch events in JSON, one after the other.
//!
//! A cluster is recorded by `kubectl get --raw '/api/v1/services?watch=true'`, and likewise
//! `/apis/discovery.k8s.io/v1/endpointslices`, each into a file, which one ends when there is enough. What `kubectl get -A
//! --watch --output-watch-events -o json` prints is read as well. Fields that no proxy needs are passed over, and so are
//! events of other objects. The engine that a Service asks for, and how it is balanced, are in its annotations.

use std::collections::BTreeMap;
use std::io::Read;
use std::net::IpAddr;
use std::str::FromStr;

use serde_json::{Deserializer, Value};
use weave_model::{
    AddressKind, Affinity, Annotated, BalancerIp, BalancerMode, Endpoint, Protocol, Service,
    ServiceKind, ServiceName, ServicePort, Slice, SlicePort, TrafficPolicy,
};
use weave_proxy::sources::Change;

pub(crate) type Error = Box<dyn std::error::Error + Send + Sync>;

/// What was recorded.
#[derive(Debug, Default)]
pub(crate) struct Recording {
    /// What there was: a watch begins with it, so all up to the first event that is no addition.
    pub(crate) first: Vec<Change>,
    /// What happened then, in order.
    pub(crate) later: Vec<Change>,
    /// What annotations ask for that nobody understands, with their Services, in order.
    pub(crate) refused: Vec<String>,
}

impl Recording {
    /// Reads one more watch.
    pub(crate) fn read(&mut self, from: impl Read) -> Result<(), Error> {
        let mut begun = false;
        for event in Deserializer::from_reader(from).into_iter::<Value>() {
            let event = event?;
            begun |= matches!(event["type"].as_str(), Some("MODIFIED" | "DELETED"));
            let changes = match begun {
                false => &mut self.first,
                true => &mut self.later,
            };
            changes.extend(
                change(&event, &mut self.refused)
                    .map_err(|error| format!("{error}, in {event}"))?,
            );
        }
        Ok(())
    }

    /// What there is at the end.
    pub(crate) fn end(self) -> Vec<Change> {
        let mut all = BTreeMap::new();
        for change in self.first.into_iter().chain(self.later) {
            let (key, there) = match &change {
                Change::Service(service) => ((service.name.clone(), None), true),
                Change::NoService(name) => ((name.clone(), None), false),
                Change::Slice(slice) => ((slice.service.clone(), Some(slice.name.clone())), true),
                Change::NoSlice(service, name) => ((service.clone(), Some(name.clone())), false),
                Change::Facts(_) => continue,
            };
            match there {
                true => all.insert(key, change),
                false => all.remove(&key),
            };
        }
        all.into_values().collect()
    }

    /// The node of the first endpoint that is on one.
    pub(crate) fn node(&self) -> Option<&String> {
        let slices = self.first.iter().filter_map(|change| match change {
            Change::Slice(slice) => Some(slice),
            _ => None,
        });
        let mut endpoints = slices.flat_map(|slice| &slice.endpoints);
        endpoints.find_map(|endpoint| endpoint.node.as_ref())
    }
}

fn change(event: &Value, refused: &mut Vec<String>) -> Result<Option<Change>, Error> {
    let object = &event["object"];
    let gone = match event["type"].as_str() {
        Some("ADDED" | "MODIFIED") => false,
        Some("DELETED") => true,
        _ => return Ok(None),
    };
    Ok(match (object["kind"].as_str(), gone) {
        (Some("Service"), false) => Some(Change::Service(service(object, refused)?)),
        (Some("Service"), true) => {
            let name = name(object, text(&object["metadata"]["name"]))?;
            Some(Change::NoService(name))
        }
        (Some("EndpointSlice"), false) => slice(object)?.map(Change::Slice),
        (Some("EndpointSlice"), true) => {
            slice(object)?.map(|slice| Change::NoSlice(slice.service, slice.name))
        }
        _ => None,
    })
}

fn service(object: &Value, refused: &mut Vec<String>) -> Result<Service, Error> {
    let (spec, labels) = (&object["spec"], &object["metadata"]["labels"]);
    let name = name(object, text(&object["metadata"]["name"]))?;
    // The address of a headless one is the word "None".
    let addresses = list(&spec["clusterIPs"]).filter_map(|one| text(one).parse().ok());
    let ports = list(&spec["ports"]).map(|port| {
        Ok(ServicePort {
            name: text(&port["name"]).to_owned(),
            protocol: protocol(port)?,
            port: number(&port["port"]).ok_or("a Service has a port without a number")?,
            node_port: number(&port["nodePort"]),
        })
    });
    let ports = ports.collect::<Result<Vec<_>, Error>>()?;
    let balancer = list(&object["status"]["loadBalancer"]["ingress"]);
    let annotations = &object["metadata"]["annotations"];
    let asked = Annotated::read(|annotation| annotations[annotation].as_str());
    refused.extend(asked.refused.iter().map(|bad| format!("{name}: {bad}")));
    let timeout = &spec["sessionAffinityConfig"]["clientIP"]["timeoutSeconds"];
    Ok(Service {
        kind: match text(&spec["type"]) {
            "NodePort" => ServiceKind::NodePort,
            "LoadBalancer" => ServiceKind::LoadBalancer,
            "ExternalName" => ServiceKind::ExternalName(text(&spec["externalName"]).to_owned()),
            _ => ServiceKind::ClusterIp,
        },
        external_ips: all(&spec["externalIPs"])?,
        balancer: balancer.filter_map(balancer_ip).collect(),
        source_ranges: all(&spec["loadBalancerSourceRanges"])?,
        affinity: match text(&spec["sessionAffinity"]) {
            "ClientIP" => Affinity::ClientIp {
                seconds: number(timeout).unwrap_or(Affinity::DEFAULT_SECONDS),
            },
            _ => Affinity::None,
        },
        internal: policy(&spec["internalTrafficPolicy"]),
        external: policy(&spec["externalTrafficPolicy"]),
        health_port: number::<u16>(&spec["healthCheckNodePort"]).filter(|port| *port != 0),
        other_proxy: labels
            .get("service.kubernetes.io/service-proxy-name")
            .is_some(),
        headless: labels.get("service.kubernetes.io/headless").is_some(),
        engine: asked.engine,
        balance: asked.balance,
        ..Service::new(name, addresses, ports)
    })
}

/// None for one that belongs to no Service.
fn slice(object: &Value) -> Result<Option<Slice>, Error> {
    let metadata = &object["metadata"];
    let Some(service) = metadata["labels"]["kubernetes.io/service-name"].as_str() else {
        return Ok(None);
    };
    let kind = match text(&object["addressType"]) {
        "IPv4" => AddressKind::V4,
        "IPv6" => AddressKind::V6,
        _ => AddressKind::Fqdn,
    };
    let ports = list(&object["ports"]).map(|port| {
        Ok(SlicePort {
            name: text(&port["name"]).to_owned(),
            protocol: protocol(port)?,
            port: number(&port["port"]),
        })
    });
    // Those of the kind FQDN have names, which nobody follows.
    let endpoints = list(&object["endpoints"]).filter_map(endpoint);
    Ok(Some(Slice {
        name: text(&metadata["name"]).to_owned(),
        service: name(object, service)?,
        kind,
        ports: ports.collect::<Result<_, Error>>()?,
        endpoints: endpoints.collect(),
    }))
}

/// Its first address counts, as for every proxy. What is not said of its conditions is as Kubernetes has it: it is ready,
/// and serves if it is.
fn endpoint(object: &Value) -> Option<Endpoint> {
    let says = |condition: &str| object["conditions"][condition].as_bool();
    let ready = says("ready").unwrap_or(true);
    let prefer = |kind: &str| {
        let names = list(&object["hints"][kind]).map(|one| text(&one["name"]).to_owned());
        names.collect()
    };
    let node = object["nodeName"].as_str().map(str::to_owned);
    Some(Endpoint {
        ready,
        serving: says("serving").unwrap_or(ready),
        terminating: says("terminating").unwrap_or(false),
        for_nodes: prefer("forNodes"),
        for_zones: prefer("forZones"),
        ..Endpoint::ready(text(&object["addresses"][0]).parse().ok()?, node)
    })
}

fn balancer_ip(object: &Value) -> Option<BalancerIp> {
    let ip: IpAddr = object["ip"].as_str()?.parse().ok()?;
    let mode = match text(&object["ipMode"]) {
        "Proxy" => BalancerMode::Proxy,
        _ => BalancerMode::Vip,
    };
    Some(BalancerIp { ip, mode })
}

fn name(object: &Value, own: &str) -> Result<ServiceName, Error> {
    let namespace = text(&object["metadata"]["namespace"]);
    Ok(format!("{namespace}/{own}").parse()?)
}

fn policy(value: &Value) -> TrafficPolicy {
    match text(value) {
        "Local" => TrafficPolicy::Local,
        _ => TrafficPolicy::Cluster,
    }
}

fn protocol(port: &Value) -> Result<Protocol, Error> {
    match &port["protocol"] {
        Value::Null => Ok(Protocol::Tcp),
        said => Ok(text(said).parse()?),
    }
}

/// The elements of a list; none if it is absent or `null`, which servers write for an empty one.
fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn all<T: FromStr<Err: Into<Error>>>(value: &Value) -> Result<Vec<T>, Error> {
    let parsed = list(value).map(|one| text(one).parse::<T>().map_err(Into::into));
    parsed.collect()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn number<T: TryFrom<u64>>(value: &Value) -> Option<T> {
    value.as_u64()?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use weave_model::{Balance, Engine};

    use super::*;
    use crate::draw::Drawn;

    fn read(text: &str) -> Recording {
        let mut recording = Recording::default();
        recording.read(text.as_bytes()).expect("it can be read");
        recording
    }

    /// Lines as a server of Kubernetes 1.34 prints them.
    const REAL: &str = r#"
{"type":"ADDED","object":{"kind":"Service","apiVersion":"v1","metadata":{"name":"web","namespace":"shop","uid":"7c0f8b53-5c3e-4a57-9a5a-1f0f6e1c8a10","resourceVersion":"1183","creationTimestamp":"2025-11-03T09:12:44Z","labels":{"app":"web"},"annotations":{"note":"{\"a\": 1}"},"managedFields":[{"manager":"kubectl-create","operation":"Update","apiVersion":"v1","time":"2025-11-03T09:12:44Z","fieldsType":"FieldsV1","fieldsV1":{"f:spec":{"f:ports":{".":{}}}}}]},"spec":{"ports":[{"name":"http","protocol":"TCP","appProtocol":"kubernetes.io/h2c","port":80,"targetPort":"http","nodePort":31380},{"name":"dns","protocol":"UDP","port":53,"targetPort":5353,"nodePort":31053}],"selector":{"app":"web"},"clusterIP":"10.96.12.7","clusterIPs":["10.96.12.7","fd00:10:96::c07"],"type":"LoadBalancer","sessionAffinity":"ClientIP","sessionAffinityConfig":{"clientIP":{"timeoutSeconds":600}},"loadBalancerSourceRanges":["198.51.100.0/24"],"externalTrafficPolicy":"Local","healthCheckNodePort":32107,"ipFamilies":["IPv4","IPv6"],"ipFamilyPolicy":"PreferDualStack","allocateLoadBalancerNodePorts":true,"internalTrafficPolicy":"Cluster","trafficDistribution":"PreferSameZone"},"status":{"loadBalancer":{"ingress":[{"ip":"203.0.113.20","ipMode":"VIP"},{"hostname":"lb.example.net"}]}}}}
{"type":"ADDED","object":{"kind":"Service","apiVersion":"v1","metadata":{"name":"db","namespace":"shop","labels":{"service.kubernetes.io/headless":""}},"spec":{"ports":[{"name":"sql","protocol":"TCP","port":5432,"targetPort":5432}],"clusterIP":"None","clusterIPs":["None"],"type":"ClusterIP","sessionAffinity":"None"},"status":{"loadBalancer":{}}}}
{"type":"ADDED","object":{"kind":"EndpointSlice","apiVersion":"discovery.k8s.io/v1","metadata":{"name":"web-x7k2p","generateName":"web-","namespace":"shop","labels":{"endpointslice.kubernetes.io/managed-by":"endpointslice-controller.k8s.io","kubernetes.io/service-name":"web"},"ownerReferences":[{"apiVersion":"v1","kind":"Service","name":"web","uid":"7c0f8b53-5c3e-4a57-9a5a-1f0f6e1c8a10","controller":true,"blockOwnerDeletion":true}]},"addressType":"IPv4","endpoints":[{"addresses":["10.244.1.5"],"conditions":{"ready":true,"serving":true,"terminating":false},"hints":{"forZones":[{"name":"eu-1a"}]},"targetRef":{"kind":"Pod","namespace":"shop","name":"web-6d9c","uid":"1"},"nodeName":"worker-1","zone":"eu-1a"},{"addresses":["10.244.2.9"],"conditions":{"ready":false,"serving":true,"terminating":true},"nodeName":"worker-2","zone":"eu-1b"},{"addresses":["10.244.2.10"],"conditions":{}}],"ports":[{"name":"http","protocol":"TCP","appProtocol":"kubernetes.io/h2c","port":8080},{"name":"dns","protocol":"UDP","port":5353}]}}
{"type":"BOOKMARK","object":{"kind":"EndpointSlice","apiVersion":"discovery.k8s.io/v1","metadata":{"resourceVersion":"1190","creationTimestamp":null,"annotations":{"k8s.io/initial-events-end":"true"}},"addressType":"","endpoints":null,"ports":null}}
{"type":"MODIFIED","object":{"kind":"EndpointSlice","apiVersion":"discovery.k8s.io/v1","metadata":{"name":"web-x7k2p","namespace":"shop","labels":{"kubernetes.io/service-name":"web"}},"addressType":"IPv4","endpoints":null,"ports":null}}
{"type":"ADDED","object":{"kind":"EndpointSlice","apiVersion":"discovery.k8s.io/v1","metadata":{"name":"by-hand","namespace":"shop"},"addressType":"IPv4","endpoints":[],"ports":[]}}
{"type":"DELETED","object":{"kind":"EndpointSlice","apiVersion":"discovery.k8s.io/v1","metadata":{"name":"web-x7k2p","namespace":"shop","labels":{"kubernetes.io/service-name":"web"}},"addressType":"IPv4","endpoints":null,"ports":null}}
{"type":"DELETED","object":{"kind":"Service","apiVersion":"v1","metadata":{"name":"web","namespace":"shop"},"spec":{}}}
"#;

    #[test]
    fn a_service_and_a_slice_are_read_as_a_server_prints_them() {
        let recording = read(REAL);
        let [
            Change::Service(web),
            Change::Service(db),
            Change::Slice(slice),
        ] = &recording.first[..]
        else {
            panic!("{:?}", recording.first);
        };
        let port = |name: &str, protocol, port, node_port| ServicePort {
            name: name.to_owned(),
            protocol,
            port,
            node_port: Some(node_port),
        };
        let expected = Service {
            kind: ServiceKind::LoadBalancer,
            balancer: vec![BalancerIp {
                ip: "203.0.113.20".parse().expect("an address"),
                mode: BalancerMode::Vip,
            }],
            source_ranges: vec!["198.51.100.0/24".parse().expect("a range")],
            affinity: Affinity::ClientIp { seconds: 600 },
            external: TrafficPolicy::Local,
            health_port: Some(32107),
            ..Service::new(
                "shop/web".parse().expect("a name"),
                ["10.96.12.7", "fd00:10:96::c07"].map(|one| one.parse().expect("an address")),
                [
                    port("http", Protocol::Tcp, 80, 31380),
                    port("dns", Protocol::Udp, 53, 31053),
                ],
            )
        };
        assert_eq!(*web, expected);
        assert!(db.headless && db.addresses.is_empty(), "{db:?}");
        let ports = slice.ports.iter().map(|port| (&*port.name, port.port));
        assert!(ports.eq([("http", Some(8080)), ("dns", Some(5353))]));
        let conditions = slice
            .endpoints
            .iter()
            .map(|one| (one.ready, one.serving, one.terminating));
        assert!(conditions.eq([
            (true, true, false),
            (false, true, true),
            (true, true, false)
        ]));
        assert!(slice.endpoints[0].for_zones.contains("eu-1a"));
        assert_eq!(recording.node().map(String::as_str), Some("worker-1"));
    }

    #[test]
    fn what_happens_behind_the_list_is_a_change_and_the_end_is_what_is_left() {
        let recording = read(REAL);
        let web: ServiceName = "shop/web".parse().expect("a name");
        let [Change::Slice(empty), no_slice, no_service] = &recording.later[..] else {
            panic!("{:?}", recording.later);
        };
        assert!(empty.endpoints.is_empty() && empty.ports.is_empty());
        assert_eq!(
            *no_slice,
            Change::NoSlice(web.clone(), "web-x7k2p".to_owned())
        );
        assert_eq!(*no_service, Change::NoService(web));
        let end = recording.end();
        assert!(
            matches!(&end[..], [Change::Service(left)] if left.name.as_str() == "shop/db"),
            "{end:?}"
        );
    }

    #[test]
    fn what_annotations_ask_for_is_read_and_what_nobody_understands_is_said() {
        let event = |annotations: Value| {
            let metadata = json!({"name": "web", "namespace": "shop", "annotations": annotations});
            json!({"type": "ADDED", "object": {"kind": "Service", "metadata": metadata, "spec": {}}}).to_string()
        };
        let asked = |annotations| {
            let recording = read(&event(annotations));
            let [Change::Service(service)] = &recording.first[..] else {
                panic!("{:?}", recording.first);
            };
            (service.engine, service.balance, recording.refused)
        };
        let both = json!({"weave.works/engine": "relay", "weave.works/balance": "maglev"});
        assert_eq!(
            asked(both),
            (Some(Engine::Relay), Some(Balance::Maglev), vec![])
        );
        assert_eq!(asked(Value::Null), (None, None, vec![]));
        let (engine, balance, refused) =
            asked(json!({"weave.works/engine": "ipvs", "weave.works/balance": "least"}));
        assert_eq!((engine, balance), (None, Some(Balance::Least)));
        assert_eq!(
            refused,
            [
                "shop/web: the annotation weave.works/engine is passed over: \"ipvs\" is not an engine: kernel or relay"
            ]
        );
    }

    #[test]
    fn what_is_no_event_is_said() {
        for odd in [
            r#"{"type":"ADDED","#,
            r#"{"type":"ADDED","object":{"kind":"Service","metadata":{"name":"A B","namespace":"x"}}}"#,
            r#"{"type":"ADDED","object":{"kind":"Service","metadata":{"name":"a","namespace":"x"},"spec":{"ports":[{}]}}}"#,
        ] {
            assert!(Recording::default().read(odd.as_bytes()).is_err(), "{odd}");
        }
    }

    /// The same seed is the same recording, and it is as large as was asked for.
    #[test]
    fn what_is_drawn_is_read() {
        let written = |seed| {
            let mut text = Vec::new();
            let drawn = Drawn::new(10, 5, seed);
            drawn.write(30, &mut text).expect("memory takes it");
            String::from_utf8(text).expect("JSON is text")
        };
        assert_eq!(written(1), written(1));
        assert_ne!(written(1), written(2));
        let recording = read(&written(1));
        assert_eq!((recording.first.len(), recording.later.len()), (20, 30));
        let endpoints = recording.first.iter().map(|change| match change {
            Change::Slice(slice) => slice.endpoints.len(),
            _ => 0,
        });
        assert_eq!(endpoints.sum::<usize>(), 50);
        // Every change is one.
        let mut before = BTreeMap::new();
        for change in recording.first.iter().chain(&recording.later) {
            if let Change::Slice(slice) = change {
                let last = before.insert(&slice.service, slice);
                assert_ne!(last, Some(slice));
            }
        }
    }
}
