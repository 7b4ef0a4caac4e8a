//! Words that a shell completes: the parser's own, and the names that the node knows just now.
//!
//! The shell runs `weavectl` itself whenever somebody presses Tab, with [`VARIABLE`] set, so that one description of the
//! verbs serves the parser, the help and every shell; each argument that names something says of what. A node that does
//! not answer has no names to offer, and says nothing: who presses Tab reads no errors.

use std::collections::BTreeMap;
use std::env;
use std::path::PathBuf;
use std::time::Duration;

use clap_complete::CompleteEnv;
use clap_complete::engine::{ArgValueCandidates, CompletionCandidate};
use serde::de::DeserializeOwned;
use weave_model::api::{
    Attachments, DEFAULT_SOCKET, Networks, PeerState, Peers, Services, Targets, TokenList,
    TokenState, Topology,
};

use super::client::Client;
use super::failure::{Exit, Failure};

/// Says in which shell's form an answer is wanted.
pub(super) const VARIABLE: &str = "WEAVECTL_COMPLETE";

/// How long a person waits for the node after pressing Tab.
const PATIENCE: Duration = Duration::from_secs(2);

/// How many digits of a token's id stand for it, as `token list` shows them.
const DIGITS: usize = 12;

/// Names, each with what tells it from the others.
type Names = BTreeMap<String, String>;

/// Completes words, if a shell asks for that.
pub(super) fn answer(verbs: fn() -> clap::Command) -> Option<Exit> {
    let here = env::current_dir().ok();
    let shell = CompleteEnv::with_factory(verbs).var(VARIABLE);
    match shell.try_complete(env::args_os(), here.as_deref()) {
        Ok(false) => None,
        Ok(true) => Some(Exit::Ok),
        Err(error) => {
            let fix = format!("unset {VARIABLE}");
            Some(Failure::new(Exit::Usage, error, fix).report())
        }
    }
}

/// The containers of this node.
pub(super) fn containers() -> ArgValueCandidates {
    of("/attachments", |answer: Attachments| {
        let all = answer.attachments.into_iter();
        all.map(|one| (one.name.to_string(), one.ip.addr().to_string()))
            .collect()
    })
}

/// The containers of all nodes.
pub(super) fn containers_anywhere() -> ArgValueCandidates {
    of("/topology", anywhere)
}

/// The containers of all nodes, and the nodes.
pub(super) fn places() -> ArgValueCandidates {
    of("/topology", |topology: Topology| {
        let hosts = topology.hosts.iter();
        let mut all: Names = hosts
            .map(|host| (host.name.to_string(), "a host".to_owned()))
            .collect();
        all.extend(anywhere(topology));
        all
    })
}

fn anywhere(topology: Topology) -> Names {
    let all = topology.containers.into_iter();
    all.map(|one| {
        let name = one.runtime_name().unwrap_or(one.name.as_str());
        (name.to_owned(), one.ip.to_string())
    })
    .collect()
}

/// The other members.
pub(super) fn peers() -> ArgValueCandidates {
    of("/peers", |answer: Peers| {
        let all = answer.peers.into_iter();
        let others = all.filter(|peer| peer.state != PeerState::Myself);
        others
            .map(|peer| (peer.name.to_string(), peer.id.short()))
            .collect()
    })
}

/// The networks.
pub(super) fn networks() -> ArgValueCandidates {
    of("/networks", |answer: Networks| {
        let all = answer.networks.into_iter();
        all.map(|one| (one.name.to_string(), one.range.to_string()))
            .collect()
    })
}

/// The services.
pub(super) fn services() -> ArgValueCandidates {
    of("/services", |answer: Services| {
        let address = |addresses: &[std::net::IpAddr]| {
            let first = addresses.first();
            first.map_or_else(String::new, ToString::to_string)
        };
        let all = answer.services.iter();
        all.map(|one| (one.name.to_string(), address(&one.addresses)))
            .collect()
    })
}

/// The tokens that still let nodes in, by the digits that stand for them.
pub(super) fn tokens() -> ArgValueCandidates {
    of("/tokens", |answer: TokenList| {
        let all = answer.tokens.into_iter();
        let good = all.filter(|token| token.state == TokenState::Good);
        let used = |used: usize, uses| format!("{used} of {uses} used");
        good.map(|token| {
            let digits = token.id.chars().take(DIGITS).collect();
            (digits, used(token.joined.len(), token.uses))
        })
        .collect()
    })
}

/// The addresses at which the node was told to look for members.
pub(super) fn targets() -> ArgValueCandidates {
    of("/targets", |answer: Targets| {
        let all = answer.targets.into_iter();
        let whose = |one: &weave_model::api::Target| {
            let name = one.peer.as_ref().and_then(|peer| peer.name.as_ref());
            name.map_or_else(String::new, ToString::to_string)
        };
        all.map(|one| (one.address.to_string(), whose(&one)))
            .collect()
    })
}

/// What the node answers at a path, as names.
fn of<A: DeserializeOwned + 'static>(
    path: &'static str,
    names: fn(A) -> Names,
) -> ArgValueCandidates {
    ArgValueCandidates::new(move || {
        let socket = socket();
        let client = Client {
            socket: &socket,
            timeout: PATIENCE,
        };
        let known = client.get(path).map_or_else(|_| Names::new(), names);
        let candidate = |(name, told): (String, String)| {
            let told = Some(told).filter(|told| !told.is_empty());
            CompletionCandidate::new(name).help(told.map(Into::into))
        };
        known.into_iter().map(candidate).collect()
    })
}

/// The node's socket, as far as the line that is being written says which; the parser has not read it yet.
fn socket() -> PathBuf {
    let words: Vec<_> = env::args_os().collect();
    let after = words
        .iter()
        .position(|word| word == "--socket")
        .and_then(|at| words.get(at + 1).cloned());
    let together = || {
        let mut words = words.iter().filter_map(|word| word.to_str());
        words.find_map(|word| word.strip_prefix("--socket=").map(Into::into))
    };
    let set = || env::var_os("WEAVE_SOCKET");
    after
        .or_else(together)
        .or_else(set)
        .map_or_else(|| DEFAULT_SOCKET.into(), PathBuf::from)
}
