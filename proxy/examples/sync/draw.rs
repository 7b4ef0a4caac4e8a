//! A recording of a cluster that never was, drawn from a seed: the same seed is the same recording.
//!
//! Services and their slices in any order, as a watch begins, and then changes, each of one endpoint that goes, comes
//! back or is not ready any more.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::net::Ipv4Addr;

use serde_json::{Value, json};

/// What is drawn.
pub(crate) struct Drawn {
    services: u32,
    endpoints: u32,
    state: u64,
    /// The endpoint of a Service that is not ready or not there.
    absent: BTreeMap<u32, (u32, bool)>,
}

impl Drawn {
    pub(crate) const fn new(services: u32, endpoints: u32, seed: u64) -> Self {
        Self {
            services,
            endpoints,
            state: seed,
            absent: BTreeMap::new(),
        }
    }

    /// Writes the events, one a line.
    pub(crate) fn write(mut self, changes: u32, to: &mut impl Write) -> io::Result<()> {
        let mut all: Vec<u32> = (0..2 * self.services).collect();
        for last in (1..all.len()).rev() {
            let other = self.draw(last as u32 + 1) as usize;
            all.swap(last, other);
        }
        for one in all {
            let object = match one % 2 {
                0 => service(one / 2),
                _ => self.slice(one / 2),
            };
            writeln!(to, "{}", json!({ "type": "ADDED", "object": object }))?;
        }
        for _ in 0..changes {
            let object = self.change();
            writeln!(to, "{}", json!({ "type": "MODIFIED", "object": object }))?;
        }
        to.flush()
    }

    /// The next number below `below` (splitmix64).
    fn draw(&mut self, below: u32) -> u32 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.state;
        mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ mixed >> 31) % u64::from(below.max(1))) as u32
    }

    /// One endpoint comes back, or goes, or is not ready any more.
    fn change(&mut self) -> Value {
        let number = self.draw(self.services);
        if self.absent.remove(&number).is_none() {
            let without = (self.draw(self.endpoints), self.draw(2) == 0);
            self.absent.insert(number, without);
        }
        self.slice(number)
    }

    /// A Service's endpoints, every tenth on the first node; one of them may be left out, or not be ready.
    fn slice(&self, number: u32) -> Value {
        let without = self.absent.get(&number).copied();
        let endpoint = |place| {
            let address = Ipv4Addr::from(0x0a00_0000 + number * self.endpoints + place + 1);
            let ready = without != Some((place, true));
            json!({
                "addresses": [address],
                "conditions": { "ready": ready, "serving": ready, "terminating": false },
                "nodeName": if place % 10 == 0 { "n1" } else { "n2" },
            })
        };
        let there = (0..self.endpoints).filter(|place| without != Some((*place, false)));
        json!({
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {
                "name": format!("s{number}-one"),
                "namespace": "default",
                "labels": { "kubernetes.io/service-name": format!("s{number}") },
            },
            "addressType": "IPv4",
            "endpoints": there.map(endpoint).collect::<Vec<_>>(),
            "ports": [{ "name": "", "protocol": "TCP", "port": 8080 }],
        })
    }
}

fn service(number: u32) -> Value {
    let address = Ipv4Addr::from(0xac10_0000 + number);
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": { "name": format!("s{number}"), "namespace": "default" },
        "spec": {
            "type": "ClusterIP",
            "clusterIP": address,
            "clusterIPs": [address],
            "ports": [{ "protocol": "TCP", "port": 80, "targetPort": 8080 }],
        },
    })
}
