//! Handshakes: what a node makes of messages from members and from strangers, and of what they say when they are true.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rand::SeedableRng;
use rand::rngs::StdRng;
use weave_model::{ClusterRange, NodeName, Suite, Token};
use weave_router::keys::{ClusterSecret, NodeKeys};
use weave_router::mesh::authority::Authority;
use weave_router::mesh::cluster::ClusterKey;
use weave_router::mesh::codec::Writer;
use weave_router::mesh::join::{Answer, Host, Inviting, Joining, Outcome, Verdict, write_range};
use weave_router::mesh::tokens::Tokens;
use weave_router::noise::ik::{About, Cluster, INITIATION, Initiator, Opening, RESPONSE};
use weave_router::noise::join::{ClusterProof, Inviter, Joiner, MAX_GRANT, MAX_REQUEST, Ticket};
use weave_router::noise::mac::{self, MACS, REPLY};
use weave_router::session::{SessionConfig, Sessions, Transmit};
use weave_router::time::Now;
use weave_router::wire::{Header, Type};

use super::Input;

const CLUSTER: [u8; 32] = [0xc1; 32];
const HERE: ([u8; 4], u16) = ([192, 0, 2, 1], 6783);
const THERE: ([u8; 4], u16) = ([192, 0, 2, 2], 6783);

fn keys(seed: u8) -> NodeKeys {
    NodeKeys::generate(&mut StdRng::from_seed([seed; 32]))
}

fn secret() -> ClusterSecret {
    ClusterSecret {
        epoch: 3,
        bytes: [7; 32],
    }
}

/// A node that knows one peer, and wants a session with it.
fn node(own: u8, peer: u8, at: ([u8; 4], u16), now: Now) -> (Sessions, Transmit) {
    let config = SessionConfig {
        suites: vec![Suite::ChaCha20Poly1305, Suite::Aes256Gcm],
        preferred: Suite::Aes256Gcm,
        lanes: 2,
        boot: 1,
        record: 1,
        stamp_floor: 0,
    };
    let mut sessions = Sessions::new(Arc::new(keys(own)), config, [own; 32], now);
    sessions.set_cluster(CLUSTER, secret(), None, now);
    let peer = sessions.add_peer(keys(peer).public(), vec![at.into()], now);
    sessions.connect(peer, now);
    let sent = sessions.poll_transmit().expect("an initiation is sent");
    (sessions, sent)
}

fn now() -> Now {
    Now {
        mono: Instant::now(),
        wall: Duration::from_secs(1_800_000_000),
    }
}

/// Fills in the MACs that only a member can make.
fn keyed(content: &[u8], receiver: u8) -> Vec<u8> {
    let mut datagram = content.to_vec();
    mac::append(&secret().mac_key(&keys(receiver).id()), None, &mut datagram);
    datagram
}

/// Junk, junk with a member's MAC, and a true initiation that says anything: no session comes of any, and no answer is
/// longer than its question.
pub(super) fn members(data: &[u8]) {
    let mut input = Input(data);
    let now = now();
    let (mut sessions, own) = node(1, 2, THERE, now);
    let index = Opening::parse(&own.bytes).expect("our own").index;
    let datagram = match input.u8() % 3 {
        0 => input.0.to_vec(),
        1 => {
            // Epoch and index are right, so that what comes behind is looked at.
            let mut content = input.0.to_vec();
            if let (Ok(header), Some(place)) = (Header::parse(&content), content.get_mut(4..16)) {
                let receiver = if header.kind == Type::Initiation {
                    0
                } else {
                    index
                };
                place[..4].copy_from_slice(&receiver.to_be_bytes());
                place[4..].copy_from_slice(&3_u64.to_be_bytes());
            }
            keyed(&content, 1)
        }
        _ => keyed(&initiation(&mut input), 1),
    };
    let result = sessions.handle_datagram(&datagram, SocketAddr::from(THERE), now);
    assert!(result.is_err(), "nobody was asked for a cookie");
    assert!(sessions.poll_event().is_none());
    let answered: usize = std::iter::from_fn(|| sessions.poll_transmit())
        .map(|sent| sent.bytes.len())
        .sum();
    assert!(answered <= datagram.len());
}

/// The peer's own message 1, of which a hostile member may choose what stands in it.
fn initiation(input: &mut Input<'_>) -> Vec<u8> {
    let [one, other] = [1, 2].map(keys);
    let opening = Opening {
        epoch: 3,
        index: input.u32(),
        suite: Suite::ChaCha20Poly1305,
    };
    let about = About {
        boot: input.u64(),
        record: input.u64(),
        lanes: input.u8().into(),
    };
    let cluster = Cluster {
        id: &CLUSTER,
        secret: &secret(),
    };
    let rng = &mut StdRng::from_seed([4; 32]);
    let stamp = input.u64();
    Initiator::start(&other, &one.public(), cluster, opening, stamp, about, rng).1
}

pub(super) fn members_seeds() -> Vec<Vec<u8>> {
    let choose = |choice: u8, bytes: &[u8]| [&[choice][..], bytes].concat();
    let (_, sent) = node(2, 1, HERE, now());
    let response = Header {
        kind: Type::Response,
        lane: 0,
        receiver: 9,
        counter: 3,
    };
    let message = |header: Header, len: usize| {
        let mut bytes = header.to_bytes().to_vec();
        bytes.resize(len, 0);
        bytes
    };
    let cookie = Header {
        kind: Type::Cookie,
        ..response
    };
    vec![
        choose(0, &sent.bytes),
        choose(1, &sent.bytes[..INITIATION - MACS]),
        choose(1, &message(response, RESPONSE - MACS)),
        choose(1, &message(cookie, REPLY - MACS)),
        choose(2, &[1; 29]),
        choose(2, &[255; 29]),
    ]
}

/// A cluster's inviter and a stranger who holds its token.
struct Stage {
    inviter: NodeKeys,
    joiner: NodeKeys,
    cluster: ClusterKey,
    tokens: Tokens,
    token: Token,
    rng: StdRng,
    now: Instant,
}

impl Stage {
    fn new() -> Self {
        let mut rng = StdRng::from_seed([3; 32]);
        let cluster = ClusterKey::from_bytes(&[9; 32]);
        let mut tokens = Tokens::default();
        let hour = Duration::from_secs(3600);
        let (id, secret) = tokens.create(hour, 1, 1000 * hour, &mut rng);
        let token = Token {
            cluster: cluster.public().id(),
            id,
            secret: *secret,
            addresses: vec![HERE.into()],
        };
        Self {
            inviter: keys(1),
            joiner: keys(2),
            cluster,
            tokens,
            token,
            rng,
            now: Instant::now(),
        }
    }

    fn inviting(&mut self) -> Inviting {
        Inviting::new(&mut self.rng, self.now)
    }

    fn joining(&mut self) -> (Joining, Vec<u8>) {
        let name: NodeName = "stranger".parse().expect("a name");
        let (token, now) = (self.token.clone(), self.now);
        let mut joining = Joining::new(token, &self.joiner, &name, &mut self.rng, now);
        let hello = self.sent(&mut joining);
        (joining, hello)
    }

    fn sent(&mut self, joining: &mut Joining) -> Vec<u8> {
        joining.handle_timeout(&self.joiner, &mut self.rng, self.now);
        joining.poll_transmit().expect("something is due").1
    }

    fn ticket(&self) -> Ticket {
        Ticket {
            id: self.token.id.0,
            secret: self.token.secret.into(),
        }
    }

    fn hello(&mut self, inviting: &mut Inviting, hello: &[u8]) -> Option<Vec<u8>> {
        let host = Host {
            tokens: &self.tokens,
            keys: &self.inviter,
            authority: Authority::Key(&self.cluster),
            range: range(),
        };
        let from = SocketAddr::from(THERE);
        let answer = inviting.handle_hello(hello, from, host, &mut self.rng, self.now);
        match answer.ok()? {
            Answer::Proof(bytes) | Answer::Cookie(bytes) => Some(bytes),
        }
    }

    /// Fills in the MACs that only the holder of the token can make.
    fn keyed(&self, content: &[u8]) -> Vec<u8> {
        let mut datagram = content.to_vec();
        mac::append(&self.ticket().mac_key(), None, &mut datagram);
        datagram
    }
}

/// Junk at either side of a join, and a true request or grant with any content.
pub(super) fn join(data: &[u8]) {
    let mut input = Input(data);
    let mut stage = Stage::new();
    match input.u8() % 4 {
        0 => at_the_inviter(&mut stage, &mut input),
        1 => at_the_joiner(&mut stage, &mut input),
        2 => true_request(&mut stage, input.0),
        _ => true_grant(&mut stage, input.0),
    }
}

fn at_the_inviter(stage: &mut Stage, input: &mut Input<'_>) {
    let mut inviting = stage.inviting();
    let keyed = input.u8() % 2 == 1;
    let datagram = if keyed {
        stage.keyed(input.0)
    } else {
        input.0.to_vec()
    };
    let answer = stage.hello(&mut inviting, &datagram);
    assert!(answer.is_none_or(|answer| keyed && answer.len() <= datagram.len()));
    assert!(inviting.handle_request(&datagram).is_err());
    assert!(
        keyed || inviting.locks().next().is_none(),
        "no state for a stranger"
    );
}

fn at_the_joiner(stage: &mut Stage, input: &mut Input<'_>) {
    let (mut joining, _) = stage.joining();
    let keyed = input.u8() % 2 == 1;
    let datagram = if keyed {
        stage.keyed(input.0)
    } else {
        input.0.to_vec()
    };
    let outcome = joining.handle_datagram(&datagram, HERE.into(), stage.now);
    // The cluster's own proof may come by chance, out of the corpus; nothing is decided by it yet.
    let goes_on = keyed && matches!(outcome, Ok(None));
    assert!(outcome.is_err() || goes_on, "{outcome:?}");
    assert!(
        joining.poll_transmit().is_none(),
        "it says nothing to whoever that was"
    );
}

/// A holder of the token may ask anything; it is answered with no more than it said.
fn true_request(stage: &mut Stage, body: &[u8]) {
    let mut inviting = stage.inviting();
    let mut joiner = Joiner::new(&stage.joiner, stage.ticket(), 7, &mut stage.rng);
    let proof = stage.hello(&mut inviting, joiner.hello());
    let proof = proof.expect("the hello is right");
    joiner.handle_proof(&proof).expect("the proof is right");
    let request = joiner.request(&body[..body.len().min(MAX_REQUEST)]);
    if let Ok(Verdict::Asked(asked)) = inviting.handle_request(&request) {
        assert_eq!(asked.public, stage.joiner.public());
        assert!(body[5..].starts_with(asked.name.as_str().as_bytes()));
    }
}

/// The holder of the cluster's key may say anything; the joiner believes it only for the cluster of its token.
fn true_grant(stage: &mut Stage, body: &[u8]) {
    let (mut joining, hello) = stage.joining();
    let ticket = stage.ticket();
    let mac_key = ticket.mac_key();
    let checked = mac::check(&mac_key, &hello).expect("our own");
    let (member, key) = (stage.inviter.public().dh, &stage.cluster);
    let proof = ClusterProof {
        cluster: key.public().0,
        signature: key.sign(&ClusterProof::message(&ticket.id, &member)),
        rest: {
            let mut rest = Writer::new();
            rest.u8(0);
            write_range(&range(), &mut rest);
            rest.0
        },
    };
    let rng = &mut stage.rng;
    let inviter = Inviter::accept(&stage.inviter, ticket, &checked, 8, &proof, rng);
    let (mut inviter, proof) = inviter.expect("the hello is right");
    let accepted = joining.handle_datagram(&proof, HERE.into(), stage.now);
    assert!(matches!(accepted, Ok(None)));
    let request = stage.sent(&mut joining);
    inviter
        .handle_request(&request)
        .expect("the request is right");
    let grant = inviter.grant(&body[..body.len().min(MAX_GRANT)]);
    let grant = grant.expect("a request was read");
    match joining.handle_datagram(&grant, HERE.into(), stage.now) {
        Ok(Some(Outcome::Admitted(admission, _))) => {
            assert_eq!(admission.cluster.id(), stage.token.cluster);
        }
        Ok(Some(Outcome::NoAnswer)) | Ok(None) => panic!("a grant decides"),
        Ok(Some(_)) | Err(_) => {}
    }
}

/// The cluster's addresses.
fn range() -> ClusterRange {
    ClusterRange::new(
        "10.32.0.0/12".parse().expect("a net"),
        "fd00::/48".parse().expect("a net"),
    )
    .expect("a range")
}

/// An admission as it stands in a grant.
fn admission(stage: &Stage) -> Vec<u8> {
    let range = range();
    let mut out = Writer::new();
    out.u8(0).bytes(&stage.cluster.public().0);
    write_range(&range, &mut out);
    out.u32(secret().epoch).bytes(&secret().bytes);
    let certificate = Authority::Key(&stage.cluster).certify(stage.joiner.id(), false, 1);
    certificate.write(&mut out);
    let inviter = stage.inviter.public();
    out.bytes(&inviter.dh).bytes(&inviter.sign);
    out.0
}

pub(super) fn join_seeds() -> Vec<Vec<u8>> {
    let choose = |choices: &[u8], bytes: &[u8]| [choices, bytes].concat();
    let mut stage = Stage::new();
    let (mut joining, hello) = stage.joining();
    let mut inviting = stage.inviting();
    let proof = stage.hello(&mut inviting, &hello).expect("it is right");
    let accepted = joining.handle_datagram(&proof, HERE.into(), stage.now);
    accepted.expect("it is right");
    let request = stage.sent(&mut joining);
    let bare = |datagram: &[u8]| datagram[..datagram.len() - MACS].to_vec();
    let mut name = Writer::new();
    name.u8(1).counted(b"stranger");
    vec![
        choose(&[0, 1], &bare(&hello)),
        choose(&[0, 1], &bare(&request)),
        choose(&[1, 1], &bare(&proof)),
        choose(&[1, 0], &request),
        choose(&[2], &name.0),
        choose(&[3], &admission(&stage)),
        choose(&[3], &[2]),
    ]
}
