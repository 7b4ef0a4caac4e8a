//! What a relay tells of its connections: that a client's, to a Service, and one of its own, to an endpoint, are one.
//!
//! The kernel's table has both, and neither names the other. So the first is left out, and the second is shown as what the
//! client asked for. What is told is kept for as long as the kernel's table has the connection: TCP's until it was missing
//! from two looks, UDP's for [`SILENT`] longer, since the kernel forgets a silence sooner than the relay does.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use weave_linux::conntrack::{Connection, End};
use weave_model::{Protocol, Relayed};

/// How long a relay may remember who talks by UDP after the kernel's table has forgotten.
const SILENT: Duration = Duration::from_secs(130);

/// A protocol's number, who began a connection, and who was asked.
type Ends = (u8, SocketAddr, SocketAddr);

/// What a connection of the kernel's table is a part of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// It is the whole.
    Whole,
    /// The half between a client and the relay.
    Asked,
    /// The half between the relay and an endpoint: from whom it is, where a relay stands for another, and what was asked for.
    Made {
        /// Whose it is; absent for the host's own.
        client: Option<IpAddr>,
        /// What was asked for.
        front: SocketAddr,
    },
}

/// When something was last seen: in which look, and the time.
#[derive(Clone, Copy, Debug)]
struct Seen {
    look: u64,
    at: Instant,
}

/// Both halves of all that was told, in maps whose memory follows what is in them: a hash table doubles once it has been
/// half full for long enough, and stays so.
#[derive(Debug, Default)]
pub(super) struct Legs {
    asked: BTreeMap<Ends, Seen>,
    made: BTreeMap<Ends, (Part, Seen)>,
}

impl Legs {
    /// Takes what a relay tells; false when there is no room, of which there is for `most`.
    pub(super) fn add(&mut self, one: &Relayed, most: usize, look: u64, at: Instant) -> bool {
        if self.made.len() >= most || self.asked.len() >= most {
            return false;
        }
        let (number, seen) = (one.protocol.number(), Seen { look, at });
        let part = Part::Made {
            client: (!one.is_host).then_some(one.client.ip()),
            front: one.front,
        };
        self.asked.insert((number, one.client, one.front), seen);
        self.made
            .insert((number, one.from, one.endpoint), (part, seen));
        true
    }

    /// What a connection is, which is there now. One that the kernel translated is no relay's, whatever it asked for.
    pub(super) fn see(&mut self, connection: &Connection, look: u64, at: Instant) -> Part {
        if connection.asked != connection.to {
            return Part::Whole;
        }
        let ends = (
            connection.protocol,
            place(connection.from),
            place(connection.to),
        );
        let now = Seen { look, at };
        if let Some((part, seen)) = self.made.get_mut(&ends) {
            *seen = now;
            return *part;
        }
        match self.asked.get_mut(&ends) {
            Some(seen) => {
                *seen = now;
                Part::Asked
            }
            None => Part::Whole,
        }
    }

    /// Ends a look: what is gone is forgotten.
    pub(super) fn finish(&mut self, look: u64, now: Instant) {
        let udp = Protocol::Udp.number();
        let stays = |(number, ..): &Ends, seen: &Seen| {
            let silent = now.saturating_duration_since(seen.at);
            seen.look + 1 >= look || *number == udp && silent < SILENT
        };
        self.asked.retain(|ends, seen| stays(ends, seen));
        self.made.retain(|ends, (_, seen)| stays(ends, seen));
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.asked.is_empty() && self.made.is_empty()
    }
}

const fn place(end: End) -> SocketAddr {
    SocketAddr::new(end.ip, end.port)
}

#[cfg(test)]
mod tests {
    use super::super::{Flows, Whose};
    use super::*;
    use weave_linux::conntrack::Count;
    use weave_model::api::ReportFlow;

    fn at(text: &str) -> SocketAddr {
        text.parse().expect("an address")
    }

    fn connection(id: u32, from: &str, to: &str, bytes: u64) -> Connection {
        let end = |at: SocketAddr| End {
            ip: at.ip(),
            port: at.port(),
        };
        let count = Some(Count { packets: 1, bytes });
        Connection {
            id,
            protocol: 6,
            from: end(at(from)),
            asked: end(at(to)),
            to: end(at(to)),
            seen_from: end(at(from)),
            answered: true,
            assured: true,
            reset: false,
            sent: count,
            received: count,
        }
    }

    fn relayed(client: &str, is_host: bool, front: &str, from: &str, endpoint: &str) -> Relayed {
        Relayed {
            protocol: Protocol::Tcp,
            client: at(client),
            is_host,
            front: at(front),
            from: at(from),
            endpoint: at(endpoint),
        }
    }

    fn whose(ip: IpAddr) -> Whose {
        match ip.to_string().as_str() {
            "10.32.0.1" | "10.32.0.2" => Whose::Mine,
            "10.40.0.2" => Whose::Members,
            _ => Whose::Outside,
        }
    }

    fn look(flows: &mut Flows, at: Instant, connections: &[Connection]) -> Vec<ReportFlow> {
        flows.begin(at, 1);
        connections.iter().for_each(|one| flows.take(one, whose));
        flows.finish();
        flows.busiest(9).0
    }

    fn ends(flows: &[ReportFlow]) -> Vec<(String, String, Option<SocketAddr>)> {
        let of = |one: &ReportFlow| (one.from.to_string(), one.to.to_string(), one.via);
        flows.iter().map(of).collect()
    }

    #[test]
    fn both_halves_are_one_flow_also_when_they_were_seen_before_they_were_told() {
        let (mut flows, start) = (Flows::default(), Instant::now());
        let halves = [
            connection(1, "10.32.0.2:40000", "10.96.0.9:80", 600),
            connection(2, "10.32.0.2:10240", "10.40.0.2:8080", 500),
        ];
        assert_eq!(look(&mut flows, start, &halves).len(), 2);
        let (front, from) = ("10.96.0.9:80", "10.32.0.2:10240");
        let told = relayed("10.32.0.2:40000", false, front, from, "10.40.0.2:8080");
        flows.relayed(&told, start);
        let expected = [(
            "10.32.0.2".to_owned(),
            "10.40.0.2".to_owned(),
            Some(at(front)),
        )];
        for second in 1..9 {
            let told = look(&mut flows, start + Duration::from_secs(second), &halves);
            assert_eq!(ends(&told), expected);
            let counts = told[0].counts;
            assert_eq!(
                (counts.connections, counts.open, counts.sent_bytes),
                (1, 1, 500)
            );
        }
        for half in halves {
            flows.ended(&half, (start + Duration::from_secs(8), 0), whose);
        }
        for second in 9..12 {
            let told = look(&mut flows, start + Duration::from_secs(second), &[]);
            assert_eq!(ends(&told), expected);
            assert_eq!(told[0].counts.open, 0);
        }
        assert!(flows.legs.is_empty(), "{:?}", flows.legs);
    }

    #[test]
    fn whoever_asked_is_named_though_the_node_speaks_for_him() {
        let (mut flows, start) = (Flows::default(), Instant::now());
        look(&mut flows, start, &[]);
        let (front, endpoint) = ("192.0.2.1:30080", "10.40.0.2:8080");
        for (client, is_host, from) in [
            ("192.0.2.7:5000", false, "10.32.0.1:10240"),
            ("127.0.0.1:5000", true, "10.32.0.1:10241"),
        ] {
            flows.relayed(&relayed(client, is_host, front, from, endpoint), start);
        }
        let made = [
            connection(1, "10.32.0.1:10240", endpoint, 500),
            connection(2, "10.32.0.1:10241", endpoint, 500),
        ];
        let told = ends(&look(&mut flows, start + Duration::from_secs(1), &made));
        let from: Vec<&str> = told.iter().map(|(from, ..)| from.as_str()).collect();
        assert!(from.contains(&"192.0.2.7"), "the client: {from:?}");
        assert!(from.contains(&"10.32.0.1"), "the host itself: {from:?}");
    }

    #[test]
    fn what_the_kernel_translated_is_no_relays() {
        let mut legs = Legs::default();
        let (start, front) = (Instant::now(), "10.96.0.9:80");
        let told = relayed(
            "10.32.0.2:4000",
            false,
            front,
            "10.32.0.2:10240",
            "10.40.0.2:80",
        );
        assert!(legs.add(&told, 1, 1, start));
        assert!(!legs.add(&told, 1, 1, start), "there is no room");
        let mut one = connection(1, "10.32.0.2:4000", front, 1);
        assert_eq!(legs.see(&one, 1, start), Part::Asked);
        one.to.ip = at("10.40.0.2:80").ip();
        assert_eq!(legs.see(&one, 1, start), Part::Whole);
    }

    #[test]
    fn silent_datagrams_are_remembered_as_long_as_the_relay_does() {
        let mut legs = Legs::default();
        let start = Instant::now();
        let mut told = relayed(
            "10.32.0.2:1",
            false,
            "10.96.0.9:53",
            "10.32.0.2:2",
            "10.40.0.2:53",
        );
        told.protocol = Protocol::Udp;
        legs.add(&told, 9, 1, start);
        let mut one = connection(1, "10.32.0.2:2", "10.40.0.2:53", 1);
        one.protocol = Protocol::Udp.number();
        legs.finish(50, start + SILENT / 2);
        assert!(matches!(
            legs.see(&one, 50, start + SILENT / 2),
            Part::Made { .. }
        ));
        legs.finish(99, start + 2 * SILENT);
        assert!(legs.is_empty());
    }
}
