//! What the sockets at the ends of TCP connections tell of their flows: round-trip times and segments sent anew.
//!
//! A socket belongs to a connection by both ends, as it calls them itself: who began a connection calls the other end
//! what was asked for, the Service's address; who answers calls it the client's, unless that was translated as well.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};

use weave_linux::sockets::TcpSocket;
use weave_model::api::{Protocol, TcpSeen};

use super::{Flows, Key};

/// The sockets of one end of a flow.
#[derive(Clone, Copy, Debug, Default)]
struct Sum {
    sockets: u32,
    measured: u32,
    rtt_us: u64,
    retransmits: u64,
}

impl Sum {
    fn add(&mut self, socket: &TcpSocket) {
        self.sockets += 1;
        self.measured += u32::from(socket.rtt_us.is_some());
        self.rtt_us += u64::from(socket.rtt_us.unwrap_or_default());
        self.retransmits += u64::from(socket.retransmits);
    }

    fn told(self) -> TcpSeen {
        let mean = self.rtt_us.checked_div(u64::from(self.measured));
        TcpSeen {
            sockets: self.sockets,
            rtt_us: mean.map(|mean| mean as u32),
            retransmits: self.retransmits,
        }
    }
}

impl Flows {
    /// The addresses between which there are TCP connections: whose sockets would tell something.
    pub fn tcp_ends(&self) -> BTreeSet<IpAddr> {
        let tcp = self.known.values().filter(|known| is_tcp(&known.key));
        tcp.flat_map(|known| [known.key.from, known.key.to])
            .collect()
    }

    /// Takes what sockets tell, after the look that found their connections; it holds until the next look.
    pub fn see(&mut self, sockets: &[TcpSocket]) {
        let by_ends: HashMap<(SocketAddr, SocketAddr), &TcpSocket> = sockets
            .iter()
            .map(|socket| ((socket.local, socket.remote), socket))
            .collect();
        let mut sums: BTreeMap<Key, [Sum; 2]> = BTreeMap::new();
        for ((_, port), known) in self.known.iter().filter(|(_, known)| is_tcp(&known.key)) {
            let key = *known.key;
            let from = SocketAddr::new(key.from, *port);
            let to = SocketAddr::new(key.to, key.port);
            let began = by_ends.get(&(from, key.via.unwrap_or(to)));
            // A relay's own socket calls the endpoint by its address.
            let sides = [
                began.or_else(|| by_ends.get(&(from, to))),
                by_ends.get(&(to, from)),
            ];
            for (side, socket) in sides.into_iter().enumerate() {
                if let Some(socket) = socket {
                    sums.entry(key).or_default()[side].add(socket);
                }
            }
        }
        for (key, [began, answers]) in sums {
            let sum = if began.sockets > 0 { began } else { answers };
            if let Some(flow) = self.flows.get_mut(&key) {
                flow.counts.tcp = Some(sum.told());
            }
        }
    }
}

fn is_tcp(key: &Key) -> bool {
    matches!(key.protocol, Protocol::Tcp)
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use weave_linux::conntrack::{Connection, End};

    use super::super::Whose;
    use super::*;

    fn end(text: &str) -> End {
        let at: SocketAddr = text.parse().expect("an address");
        End {
            ip: at.ip(),
            port: at.port(),
        }
    }

    fn connection(id: u32, from: &str, asked: &str, to: &str) -> Connection {
        Connection {
            id,
            protocol: 6,
            from: end(from),
            asked: end(asked),
            to: end(to),
            seen_from: end(from),
            answered: true,
            assured: true,
            reset: false,
            sent: None,
            received: None,
        }
    }

    fn socket(local: &str, remote: &str, rtt_us: Option<u32>, retransmits: u32) -> TcpSocket {
        TcpSocket {
            local: local.parse().expect("an address"),
            remote: remote.parse().expect("an address"),
            rtt_us,
            retransmits,
        }
    }

    /// What is told of each flow, by who answers.
    fn told(connections: &[Connection], sockets: &[TcpSocket]) -> Vec<(String, Option<TcpSeen>)> {
        let mut flows = Flows::default();
        flows.begin(Instant::now(), 1);
        for one in connections {
            flows.take(one, |_| Whose::Mine);
        }
        flows.finish();
        flows.see(sockets);
        let all = flows.busiest(9).0.into_iter();
        let mut all: Vec<_> = all
            .map(|flow| (flow.to.to_string(), flow.counts.tcp))
            .collect();
        all.sort_by(|one, two| one.0.cmp(&two.0));
        all
    }

    fn seen(sockets: u32, rtt_us: Option<u32>, retransmits: u64) -> Option<TcpSeen> {
        Some(TcpSeen {
            sockets,
            rtt_us,
            retransmits,
        })
    }

    #[test]
    fn sockets_behind_a_service_go_to_the_endpoint_that_they_have() {
        let connections = [
            connection(1, "10.32.0.2:4001", "10.96.0.9:80", "10.32.0.3:8080"),
            connection(2, "10.32.0.2:4002", "10.96.0.9:80", "10.32.0.4:8080"),
        ];
        let sockets = [
            socket("10.32.0.2:4001", "10.96.0.9:80", Some(100), 1),
            socket("10.32.0.2:4002", "10.96.0.9:80", Some(300), 0),
        ];
        let expected = [
            ("10.32.0.3".to_owned(), seen(1, Some(100), 1)),
            ("10.32.0.4".to_owned(), seen(1, Some(300), 0)),
        ];
        assert_eq!(told(&connections, &sockets), expected);
    }

    #[test]
    fn of_what_a_relay_carries_its_own_socket_tells() {
        let (mut flows, now) = (Flows::default(), Instant::now());
        let at = |text: &str| text.parse().expect("an address");
        let (front, own, endpoint) = ("10.96.0.9:80", "10.32.0.2:10240", "10.32.0.3:8080");
        let told = weave_model::Relayed {
            protocol: weave_model::Protocol::Tcp,
            client: at("10.32.0.2:4001"),
            is_host: false,
            front: at(front),
            from: at(own),
            endpoint: at(endpoint),
        };
        flows.relayed(&told, now);
        flows.begin(now, 1);
        flows.take(&connection(1, own, endpoint, endpoint), |_| Whose::Mine);
        flows.finish();
        let near = socket("10.32.0.2:4001", front, Some(9), 0);
        flows.see(&[near, socket(own, endpoint, Some(70), 1)]);
        let told = flows.busiest(9).0;
        assert_eq!(told[0].via, Some(at(front)));
        assert_eq!(told[0].counts.tcp, seen(1, Some(70), 1));
    }

    #[test]
    fn who_began_it_is_believed_first_and_the_mean_is_of_what_was_measured() {
        let connections = [
            connection(1, "10.32.0.2:4001", "10.32.0.3:80", "10.32.0.3:80"),
            connection(2, "10.32.0.2:4002", "10.32.0.3:80", "10.32.0.3:80"),
            connection(3, "192.0.2.7:4003", "10.32.0.4:80", "10.32.0.4:80"),
            connection(4, "10.32.0.2:4004", "10.32.0.5:80", "10.32.0.5:80"),
        ];
        let sockets = [
            socket("10.32.0.2:4001", "10.32.0.3:80", Some(200), 3),
            socket("10.32.0.2:4002", "10.32.0.3:80", None, 2),
            socket("10.32.0.3:80", "10.32.0.2:4001", Some(900), 7),
            socket("10.32.0.4:80", "192.0.2.7:4003", Some(50), 0),
            socket("10.32.0.2:9999", "10.32.0.5:80", Some(1), 9),
        ];
        let expected = [
            ("10.32.0.3".to_owned(), seen(2, Some(200), 5)),
            ("10.32.0.4".to_owned(), seen(1, Some(50), 0)),
            ("10.32.0.5".to_owned(), None),
        ];
        assert_eq!(told(&connections, &sockets), expected);
    }
}
