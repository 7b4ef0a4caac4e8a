//! `weavectl targets`, `connect` and `forget`: the addresses at which this node looks for each other member, which of them
//! is in use, and one more or less of them.

use std::net::SocketAddr;

use serde::Serialize;
use weave_model::NodeName;
use weave_model::api::{self, Connections, PeerState, Peers, TargetRequest};

use super::client::{Client, percent_encoded};
use super::print::NO_PEERS;
use super::shown::{Answer, Shown};
use super::table::Table;
use crate::config::{Address, DEFAULT_PORT};

/// All addresses, by member.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Targets {
    targets: Vec<Target>,
}

/// An address of a member.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Target {
    /// Absent while nobody has answered there.
    peer: Option<NodeName>,
    /// Absent for a member that told of no address.
    address: Option<SocketAddr>,
    state: State,
    /// Where the node has it from.
    source: Source,
}

/// What becomes of an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum State {
    /// Packets go there.
    InUse,
    /// There is a session by another address.
    Spare,
    /// It is tried again and again.
    Tried,
    /// It is left alone: the node dials only where it was told to.
    Left,
    /// There is nothing to try: the member has to come to us.
    Awaited,
}

/// Where an address is known from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Source {
    /// The member's own record says so.
    Told,
    /// An operator said so (`connect`), or the token of the join.
    Connect,
    /// Its packets come from there, whatever it says: it is behind address translation, or moved.
    Heard,
}

impl Targets {
    /// Puts together what the node says of its members and of its sessions.
    fn new(peers: &Peers, connections: &Connections, dialled: &api::Targets) -> Self {
        let mut targets = Vec::new();
        let tried = match dialled.discovery {
            true => State::Tried,
            false => State::Left,
        };
        let others = peers
            .peers
            .iter()
            .filter(|peer| peer.state != PeerState::Myself);
        for peer in others {
            let session = connections.connections.iter().find(|one| one.id == peer.id);
            let used = session.and_then(|session| session.endpoint);
            let target = |address, state, source| Target {
                peer: Some(peer.name.clone()),
                address,
                state,
                source,
            };
            let known = |used: &SocketAddr| {
                peer.endpoints.contains(used)
                    || dialled.targets.iter().any(|one| one.address == *used)
            };
            let heard = used.filter(|used| !known(used));
            targets.extend(heard.map(|address| target(Some(address), State::InUse, Source::Heard)));
            let state = |address, idle| match used {
                Some(used) if used == address => State::InUse,
                Some(_) => State::Spare,
                None => idle,
            };
            let of = |one: &&api::Target| one.peer.as_ref().is_some_and(|node| node.id == peer.id);
            let own: Vec<_> = dialled
                .targets
                .iter()
                .filter(of)
                .map(|one| one.address)
                .collect();
            for &address in &own {
                let state = state(address, State::Tried);
                targets.push(target(Some(address), state, Source::Connect));
            }
            for &address in peer.endpoints.iter().filter(|one| !own.contains(one)) {
                targets.push(target(Some(address), state(address, tried), Source::Told));
            }
            if peer.endpoints.is_empty() && own.is_empty() && used.is_none() {
                targets.push(target(None, State::Awaited, Source::Told));
            }
        }
        let open = dialled.targets.iter().filter(|one| one.peer.is_none());
        targets.extend(open.map(|one| Target {
            peer: None,
            address: Some(one.address),
            state: State::Tried,
            source: Source::Connect,
        }));
        Self { targets }
    }

    /// A row for each.
    fn human(&self) -> String {
        if self.targets.is_empty() {
            return NO_PEERS.to_owned();
        }
        let mut table = Table::new(&["PEER", "ADDRESS", "STATE", "KNOWN-FROM"]);
        for Target {
            peer,
            address,
            state,
            source,
        } in &self.targets
        {
            let state = match state {
                State::InUse => "in use",
                State::Spare => "spare",
                State::Tried => "tried",
                State::Left => "left",
                State::Awaited => "awaited",
            };
            let source = match source {
                Source::Told => "its record",
                Source::Connect => "connect",
                Source::Heard => "its packets",
            };
            let address = address.map_or_else(String::new, |address| address.to_string());
            table.row([
                peer.as_ref().map_or_else(String::new, ToString::to_string),
                address,
                state.to_owned(),
                source.to_owned(),
            ]);
        }
        table.render()
    }
}

/// Does `weavectl targets`.
pub(super) fn show(client: &Client<'_>, shown: &Shown) -> Answer {
    let (peers, sessions) = (client.get("/peers")?, client.get("/connections")?);
    let targets = Targets::new(&peers, &sessions, &client.get("/targets")?);
    shown.answer(&targets, Targets::human)
}

/// Does `weavectl connect`.
pub(super) fn connect(client: &Client<'_>, shown: &Shown, address: Address) -> Answer {
    let address = address.at(DEFAULT_PORT);
    let all: api::Targets = client.post("/targets", &TargetRequest { address })?;
    shown.answer(&all, |_| {
        format!("this node looks for members at {address}, also after a restart\n")
    })
}

/// Does `weavectl forget`.
pub(super) fn forget(client: &Client<'_>, shown: &Shown, address: Address) -> Answer {
    let address = address.at(DEFAULT_PORT);
    let path = format!("/targets/{}", percent_encoded(&address.to_string()));
    let all: api::Targets = client.delete(&path)?;
    shown.answer(&all, |_| {
        format!("this node looks for members at {address} no longer\n")
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn peer(name: &str, id: u8, state: &str, endpoints: &[&str]) -> Value {
        json!({"name": name, "id": hex(id), "state": state, "endpoints": endpoints, "blocks": []})
    }

    fn hex(id: u8) -> String {
        format!("{id:02x}").repeat(32)
    }

    fn session(id: u8, endpoint: Option<&str>) -> Value {
        let traffic =
            json!({"sent_packets": 0, "sent_bytes": 0, "received_packets": 0, "received_bytes": 0});
        json!({
            "name": "x", "id": hex(id), "state": "connected", "endpoint": endpoint, "lanes": 1, "lane_mtus": [],
            "rekeys": 0, "handshake_retries": 0, "traffic": traffic
        })
    }

    #[test]
    fn each_address_says_what_becomes_of_it() {
        let peers = json!({"peers": [
            peer("me", 1, "myself", &["192.0.2.1:6783"]),
            peer("direct", 2, "connected", &["192.0.2.2:6783", "[2001:db8::2]:6783"]),
            peer("behind", 3, "connected", &["10.0.0.3:6783"]),
            peer("away", 4, "unreachable", &["192.0.2.4:6783"]),
            peer("shy", 5, "unreachable", &[]),
        ]});
        let sessions = json!({"connections": [
            session(2, Some("192.0.2.2:6783")), session(3, Some("198.51.100.3:40000")), session(4, None), session(5, None),
        ]});
        let told = json!({"discovery": true, "targets": [
            {"address": "192.0.2.2:6783", "peer": {"id": hex(2), "name": "direct"}},
            {"address": "192.0.2.9:6783"},
        ]});
        let [peers, sessions, told] = [peers, sessions, told].map(|value| value.to_string());
        let targets = Targets::new(
            &serde_json::from_str(&peers).unwrap(),
            &serde_json::from_str(&sessions).unwrap(),
            &serde_json::from_str(&told).unwrap(),
        );
        let expected = "\
PEER    ADDRESS             STATE    KNOWN-FROM
direct  192.0.2.2:6783      in use   connect
direct  [2001:db8::2]:6783  spare    its record
behind  198.51.100.3:40000  in use   its packets
behind  10.0.0.3:6783       spare    its record
away    192.0.2.4:6783      tried    its record
shy     -                   awaited  its record
-       192.0.2.9:6783      tried    connect
";
        assert_eq!(targets.human(), expected);
    }
}
