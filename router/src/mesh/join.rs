//! How a stranger with a token becomes a member: both sides of the join, around the handshake of
//! [`crate::noise::join`].
//!
//! The joiner sends its hello to every address in the token until one answers, checks that the answer comes from the
//! cluster that the token names, and only then sends its keys and name to that address until it is admitted or refused.
//! With the proof comes the cluster's range: a host that uses a part of it turns back before anybody has let it in.
//! When an answer stops coming it starts over with a fresh hello: the inviter may have been restarted. The inviter
//! keeps a few open joins; a hello that it has seen gets the same proof again, so a replayed one costs nothing and
//! evicts nobody. Under load it asks for cookies first, and when there are too many open joins, the token that has the
//! most loses its oldest. What an open join needs from the rest of the node (is the token still good, has the use been saved)
//! is asked and answered by the core in between.
//!
//! ```text
//! proof     chain | v4 network 4, prefix 1 | v6 network 16, prefix 1
//! request   format 1 | name, counted | zeros up to 768: the answer is not longer, so it is no use to send it elsewhere
//! admitted  0 | cluster key 32 | v4 network 4, prefix 1 | v6 network 16, prefix 1 | epoch 4 | secret 32
//!             | certificate | inviter's X25519 key 32, Ed25519 key 32
//! refused   code 1 to 255
//! ```

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use ipnet::{Ipv4Net, Ipv6Net};
use rand_core::CryptoRng;
use weave_model::{ClusterRange, Drop, NodeId, NodeName, Token, TokenId};
use zeroize::Zeroizing;

use super::authority::Authority;
use super::cluster::{Certificate, Chain, ClusterPublic};
use super::codec::{Malformed, Reader, Writer};
use super::tokens::{Refusal, Tokens};
use crate::keys::{ClusterSecret, NodeKeys, NodePublic};
use crate::noise::join::{ClusterProof, Hello, Inviter, Joiner, Request, Ticket};
use crate::noise::mac::{self, MacKey};
use crate::session::limits::{Entry, Gate};
use crate::wire::{Header, Type};

/// How long nothing may be heard before a join is given up.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long a request may go unanswered before the joiner starts over.
const START_OVER: Duration = Duration::from_secs(3);
/// The longest that a join may take in all.
const LONGEST: Duration = Duration::from_secs(30);
const FIRST_RETRY: Duration = Duration::from_millis(250);
const LAST_RETRY: Duration = Duration::from_secs(1);
/// How many joins an inviter has open at a time, about 2 KB each, and for how long. So many hosts may join in one moment
/// without pushing one another out; who is pushed out begins anew only after [`START_OVER`].
const MAX_OPEN: usize = 1024;
const OPEN_FOR: Duration = Duration::from_secs(30);

/// Bytes of a request's body.
const REQUEST: usize = 768;

/// What a new member is given.
#[derive(Clone, Debug)]
pub struct Admission {
    /// The cluster's key; its hash is the one in the token.
    pub cluster: ClusterPublic,
    /// The cluster's addresses.
    pub range: ClusterRange,
    /// The secret that members share.
    pub secret: ClusterSecret,
    /// The cluster's word that this node is a member.
    pub certificate: Certificate,
    /// The node that admitted it.
    pub inviter: NodePublic,
}

impl Admission {
    fn encode(&self) -> Zeroizing<Vec<u8>> {
        let mut out = Writer::new();
        out.u8(0).bytes(&self.cluster.0);
        write_range(&self.range, &mut out);
        out.u32(self.secret.epoch).bytes(&self.secret.bytes);
        self.certificate.write(&mut out);
        out.bytes(&self.inviter.dh).bytes(&self.inviter.sign);
        Zeroizing::new(out.0)
    }

    fn read(bytes: &mut Reader<'_>) -> Result<Self, Malformed> {
        let cluster = ClusterPublic(bytes.array()?);
        let range = read_range(bytes)?;
        let secret = ClusterSecret {
            epoch: bytes.u32()?,
            bytes: bytes.array()?,
        };
        let certificate = Certificate::read(bytes)?;
        let inviter = NodePublic {
            dh: bytes.array()?,
            sign: bytes.array()?,
        };
        Ok(Self {
            cluster,
            range,
            secret,
            certificate,
            inviter,
        })
    }
}

/// Appends both networks of a range with their prefix lengths.
pub fn write_range(range: &ClusterRange, out: &mut Writer) {
    out.bytes(&range.v4().network().octets())
        .u8(range.v4().prefix_len());
    out.bytes(&range.v6().network().octets())
        .u8(range.v6().prefix_len());
}

/// Reads what [`write_range`] wrote.
pub fn read_range(bytes: &mut Reader<'_>) -> Result<ClusterRange, Malformed> {
    let v4 = Ipv4Net::new(bytes.array::<4>()?.into(), bytes.u8()?);
    let v6 = Ipv6Net::new(bytes.array::<16>()?.into(), bytes.u8()?);
    let (Ok(v4), Ok(v6)) = (v4, v6) else {
        return Err(bytes.malformed());
    };
    ClusterRange::new(v4, v6).map_err(|_| bytes.malformed())
}

/// How a join ended.
#[derive(Clone, Debug)]
pub enum Outcome {
    /// This node is a member; the inviter answered from this address.
    Admitted(Box<Admission>, SocketAddr),
    /// The inviter said no.
    Refused(Refusal),
    /// Whoever answered belongs to another cluster than the token names. Nothing was told to it.
    WrongCluster(SocketAddr),
    /// The token's addresses are silent.
    NoAnswer,
}

/// The joiner's side.
pub struct Joining {
    token: Token,
    request: Zeroizing<Vec<u8>>,
    noise: Joiner,
    /// The request and where it goes, once a proof was accepted.
    proven: Option<(Vec<u8>, SocketAddr, Instant)>,
    range: Option<ClusterRange>,
    next: Instant,
    wait: Duration,
    heard: Instant,
    started: Instant,
    out: VecDeque<(SocketAddr, Vec<u8>)>,
}

impl std::fmt::Debug for Joining {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Joining")
            .field("token", &self.token)
            .finish_non_exhaustive()
    }
}

impl Joining {
    /// Begins to join.
    pub fn new(
        token: Token,
        keys: &NodeKeys,
        name: &NodeName,
        rng: &mut impl CryptoRng,
        now: Instant,
    ) -> Self {
        let mut request = Writer::new();
        request.u8(1).counted(name.as_str().as_bytes());
        request.0.resize(REQUEST, 0);
        let noise = Joiner::new(keys, ticket(token.id, &token.secret), rng.next_u32(), rng);
        Self {
            token,
            request: Zeroizing::new(request.0),
            noise,
            proven: None,
            range: None,
            next: now,
            wait: FIRST_RETRY,
            heard: now,
            started: now,
            out: VecDeque::new(),
        }
    }

    /// The cluster's addresses, once it has proven itself.
    pub const fn range(&self) -> Option<&ClusterRange> {
        self.range.as_ref()
    }

    /// The token that is being used.
    pub const fn token(&self) -> &Token {
        &self.token
    }

    /// What this side is called by now, and the key of what it is sent.
    pub fn lock(&self) -> (u32, MacKey) {
        self.noise.lock()
    }

    /// Takes a proof, a cookie or a grant; the outcome, if it decides the join.
    ///
    /// # Errors
    /// Why the datagram was dropped.
    pub fn handle_datagram(
        &mut self,
        datagram: &[u8],
        from: SocketAddr,
        now: Instant,
    ) -> Result<Option<Outcome>, Drop> {
        match Header::parse(datagram)?.kind {
            Type::Cookie => {
                self.noise.handle_cookie(datagram)?;
                self.next = now;
                Ok(None)
            }
            Type::JoinProof if self.proven.is_none() => self.handle_proof(datagram, from, now),
            // The cluster was asked at all addresses of the token, and proved itself at another one before.
            Type::JoinProof => Ok(None),
            Type::JoinGrant => {
                let body = Zeroizing::new(self.noise.handle_grant(datagram)?);
                self.outcome(&body, from)
                    .map(Some)
                    .map_err(|_| Drop::BadHandshake)
            }
            _ => Err(Drop::BadHandshake),
        }
    }

    fn handle_proof(
        &mut self,
        datagram: &[u8],
        from: SocketAddr,
        now: Instant,
    ) -> Result<Option<Outcome>, Drop> {
        let (proof, member) = self.noise.handle_proof(datagram)?;
        let cluster = ClusterPublic(proof.cluster);
        let message = ClusterProof::message(&self.token.id.0, &member);
        let mut rest = Reader::new(&proof.rest, "proof");
        let signed = Chain::read(&mut rest)
            .is_ok_and(|chain| chain.verify(&cluster, &message, &proof.signature));
        let range = read_range(&mut rest).ok().filter(|_| rest.is_empty());
        if cluster.id() != self.token.cluster || !signed || range.is_none() {
            return Ok(Some(Outcome::WrongCluster(from)));
        }
        self.range = range;
        let request = self.noise.request(&self.request);
        self.proven = Some((request, from, now));
        (self.heard, self.next, self.wait) = (now, now, FIRST_RETRY);
        Ok(None)
    }

    fn outcome(&self, body: &[u8], from: SocketAddr) -> Result<Outcome, Malformed> {
        let mut reader = Reader::new(body, "grant");
        let code = reader.u8()?;
        if code != 0 {
            return Ok(Outcome::Refused(Refusal::from_wire(code)));
        }
        let admission = Admission::read(&mut reader)?;
        if admission.cluster.id() != self.token.cluster {
            return Ok(Outcome::WrongCluster(from));
        }
        Ok(Outcome::Admitted(Box::new(admission), from))
    }

    /// Sends what is due; the outcome, if time is over.
    pub fn handle_timeout(
        &mut self,
        keys: &NodeKeys,
        rng: &mut impl CryptoRng,
        now: Instant,
    ) -> Option<Outcome> {
        if now >= self.heard + PATIENCE || now >= self.started + LONGEST {
            return Some(Outcome::NoAnswer);
        }
        if now < self.next {
            return None;
        }
        if self
            .proven
            .as_ref()
            .is_some_and(|(_, _, since)| now >= *since + START_OVER)
        {
            let ticket = ticket(self.token.id, &self.token.secret);
            self.noise = Joiner::new(keys, ticket, rng.next_u32(), rng);
            self.proven = None;
            self.wait = FIRST_RETRY;
        }
        match &self.proven {
            Some((request, to, _)) => self.out.push_back((*to, request.clone())),
            None => {
                let hello = self.noise.hello();
                self.out
                    .extend(self.token.addresses.iter().map(|to| (*to, hello.to_vec())));
            }
        }
        self.next = now + self.wait;
        self.wait = (self.wait * 2).min(LAST_RETRY);
        None
    }

    /// When [`Joining::handle_timeout`] has something to do.
    pub fn poll_timeout(&self) -> Instant {
        self.next
            .min(self.heard + PATIENCE)
            .min(self.started + LONGEST)
    }

    /// The next datagram to send.
    pub fn poll_transmit(&mut self) -> Option<(SocketAddr, Vec<u8>)> {
        self.out.pop_front()
    }
}

/// The header of a cookie for whoever sent a hello.
fn cookie_header(hello: Hello) -> Header {
    Header {
        kind: Type::Cookie,
        lane: 0,
        receiver: hello.index,
        counter: 0,
    }
}

fn ticket(id: TokenId, secret: &[u8; 32]) -> Ticket {
    Ticket {
        id: id.0,
        secret: Zeroizing::new(*secret),
    }
}

struct Open {
    /// The hello, without its MACs, and the proof that answered it.
    hello: Vec<u8>,
    proof: Vec<u8>,
    noise: Inviter,
    token: TokenId,
    mac_key: MacKey,
    since: Instant,
    /// What the joiner was told, once it was.
    answer: Option<Zeroizing<Vec<u8>>>,
}

/// A stranger's request, to be decided by the core.
#[derive(Clone, Debug)]
pub struct Asked {
    /// Names the open join; for [`Inviting::answer`].
    pub index: u32,
    /// By which token it came.
    pub token: TokenId,
    /// Who it is.
    pub public: NodePublic,
    /// What it calls itself.
    pub name: NodeName,
}

impl Asked {
    /// Its node id.
    pub fn node(&self) -> NodeId {
        self.public.id()
    }
}

/// Who invites: by which tokens, under which name, for which cluster.
#[derive(Clone, Debug)]
pub struct Host<'a> {
    /// The tokens.
    pub tokens: &'a Tokens,
    /// The node's keys.
    pub keys: &'a NodeKeys,
    /// By what it speaks for the cluster.
    pub authority: Authority<'a>,
    /// The cluster's addresses.
    pub range: ClusterRange,
}

/// What a hello is answered with; neither is longer than it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The cluster's proof.
    Proof(Vec<u8>),
    /// "Prove your address first": nothing was kept of the hello.
    Cookie(Vec<u8>),
}

/// The inviter's side: all open joins.
pub struct Inviting {
    open: VecDeque<Open>,
    gate: Gate,
}

impl std::fmt::Debug for Inviting {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Inviting").field(&self.open.len()).finish()
    }
}

impl Inviting {
    /// No join is open.
    pub fn new(rng: &mut impl CryptoRng, now: Instant) -> Self {
        Self {
            open: VecDeque::new(),
            gate: Gate::new(rng, now),
        }
    }

    /// This node's index in each open join, and the key of what the joiner sends.
    pub fn locks(&self) -> impl Iterator<Item = (u32, &MacKey)> {
        let open = self.open.iter();
        open.map(|open| (open.noise.index(), &open.mac_key))
    }

    /// Answers a hello.
    ///
    /// # Errors
    /// [`Drop::BadHandshake`] for an unknown token or a wrong MAC: a stranger hears nothing. [`Drop::RateLimited`] if
    /// too many come from there.
    pub fn handle_hello(
        &mut self,
        datagram: &[u8],
        from: SocketAddr,
        host: Host<'_>,
        rng: &mut impl CryptoRng,
        now: Instant,
    ) -> Result<Answer, Drop> {
        let hello = Hello::parse(datagram)?;
        let id = TokenId(hello.token);
        let ticket = ticket(id, host.tokens.secret(id).ok_or(Drop::BadHandshake)?);
        let mac_key = ticket.mac_key();
        let checked = mac::check(&mac_key, datagram)?;
        if let Some(open) = self.open.iter().find(|open| open.hello == checked.content) {
            return Ok(Answer::Proof(open.proof.clone()));
        }
        let (cookie_key, reply) = (ticket.cookie_key(), cookie_header(hello));
        match self
            .gate
            .admit(&checked, &cookie_key, reply, from.into(), rng, now)
        {
            Entry::Pass => {}
            Entry::Prove(cookie) => return Ok(Answer::Cookie(cookie)),
            Entry::Refuse => return Err(Drop::RateLimited),
        }
        self.make_room(now);
        let message = ClusterProof::message(&id.0, &host.keys.public().dh);
        let mut rest = Writer::new();
        host.authority.chain().write(&mut rest);
        write_range(&host.range, &mut rest);
        let proof = ClusterProof {
            cluster: host.authority.cluster().0,
            signature: host.authority.sign(&message),
            rest: rest.0,
        };
        let index = self.free_index(rng);
        let (noise, proof) = Inviter::accept(host.keys, ticket, &checked, index, &proof, rng)?;
        self.open.push_back(Open {
            hello: checked.content.to_vec(),
            proof: proof.clone(),
            noise,
            token: id,
            mac_key,
            since: now,
            answer: None,
        });
        Ok(Answer::Proof(proof))
    }

    /// Forgets what is too old and, if that is not enough, one join by the token that has the most: the oldest that was
    /// decided, which is kept only in case the answer gets lost, or else the oldest.
    fn make_room(&mut self, now: Instant) {
        self.open.retain(|open| now < open.since + OPEN_FOR);
        if self.open.len() < MAX_OPEN {
            return;
        }
        let mut counts = BTreeMap::<TokenId, usize>::new();
        for open in &self.open {
            *counts.entry(open.token).or_default() += 1;
        }
        let greedy = counts.into_iter().max_by_key(|(_, count)| *count);
        let greedy = greedy.map(|(token, _)| token);
        let of_greedy = |open: &Open| Some(open.token) == greedy;
        let decided = |open: &Open| of_greedy(open) && open.answer.is_some();
        let oldest = self.open.iter().position(decided);
        let oldest = oldest.or_else(|| self.open.iter().position(of_greedy));
        oldest.map(|oldest| self.open.remove(oldest));
    }

    fn free_index(&self, rng: &mut impl CryptoRng) -> u32 {
        loop {
            let index = rng.next_u32();
            if !self.open.iter().any(|open| open.noise.index() == index) {
                return index;
            }
        }
    }

    /// Reads a request. A join that was decided before gets its answer again, at once.
    ///
    /// # Errors
    /// Why the datagram was dropped.
    pub fn handle_request(&mut self, datagram: &[u8]) -> Result<Verdict, Drop> {
        let index = Header::parse(datagram)?.receiver;
        let mut all = self.open.iter_mut();
        let open = all.find(|open| open.noise.index() == index);
        let open = open.ok_or(Drop::UnknownSession)?;
        let request = open.noise.handle_request(datagram)?;
        let (public, name) = (request.public, read_request(request)?);
        if let Some(answer) = &open.answer {
            return open
                .noise
                .grant(answer)
                .map(Verdict::Again)
                .ok_or(Drop::BadHandshake);
        }
        Ok(Verdict::Asked(Asked {
            index,
            token: open.token,
            public,
            name,
        }))
    }

    /// Decides a join; the datagram that tells the joiner. `None` if it is no longer open.
    pub fn answer(&mut self, index: u32, answer: &Result<Admission, Refusal>) -> Option<Vec<u8>> {
        let mut all = self.open.iter_mut();
        let open = all.find(|open| open.noise.index() == index)?;
        let body = match answer {
            Ok(admission) => admission.encode(),
            Err(refusal) => Zeroizing::new(vec![refusal.to_wire()]),
        };
        let datagram = open.noise.grant(&body);
        if !matches!(answer, Err(Refusal::Unable)) {
            open.answer = Some(body);
        }
        datagram
    }
}

/// What a request leads to.
#[derive(Debug)]
pub enum Verdict {
    /// The core must decide, and then call [`Inviting::answer`].
    Asked(Asked),
    /// It was decided; this datagram tells it again.
    Again(Vec<u8>),
}

fn read_request(request: &Request) -> Result<NodeName, Drop> {
    let mut reader = Reader::new(&request.body, "request");
    let name = reader.u8().and_then(|format| {
        if format == 1 {
            reader.text(63)
        } else {
            Err(reader.malformed())
        }
    });
    name.ok()
        .and_then(|name| name.parse().ok())
        .ok_or(Drop::BadHandshake)
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand::rngs::StdRng;

    use super::super::cluster::ClusterKey;
    use super::*;

    struct Stage {
        rng: StdRng,
        now: Instant,
        inviter: NodeKeys,
        joiner: NodeKeys,
        key: ClusterKey,
        tokens: Tokens,
        inviting: Inviting,
        token: Token,
        /// The inviter is an admin, and does not hold the cluster's key.
        office: Option<Certificate>,
    }

    fn stage() -> Stage {
        let (mut rng, now) = (StdRng::seed_from_u64(7), Instant::now());
        let key = ClusterKey::generate(&mut rng);
        let mut tokens = Tokens::default();
        let hour = Duration::from_secs(3600);
        let (id, secret) = tokens.create(hour, 1, Duration::from_secs(9_000_000), &mut rng);
        let addresses = vec![address(1), address(2)];
        let token = Token {
            cluster: key.public().id(),
            id,
            secret: *secret,
            addresses,
        };
        Stage {
            inviter: NodeKeys::generate(&mut rng),
            joiner: NodeKeys::generate(&mut rng),
            inviting: Inviting::new(&mut rng, now),
            now,
            rng,
            key,
            tokens,
            token,
            office: None,
        }
    }

    fn authority<'a>(
        key: &'a ClusterKey,
        inviter: &'a NodeKeys,
        office: Option<&Certificate>,
    ) -> Authority<'a> {
        office.map_or(Authority::Key(key), |office| {
            Authority::of(None, inviter, office, key.public()).unwrap()
        })
    }

    fn range() -> ClusterRange {
        let v4 = "10.32.0.0/12".parse().unwrap();
        ClusterRange::new(v4, "fd00::/48".parse().unwrap()).unwrap()
    }

    fn address(n: u8) -> SocketAddr {
        SocketAddr::from(([192, 0, 2, n], 6783))
    }

    impl Stage {
        fn joining(&mut self, token: Token) -> Joining {
            let name = "host2".parse().unwrap();
            Joining::new(token, &self.joiner, &name, &mut self.rng, self.now)
        }

        fn sent(&mut self, joining: &mut Joining) -> Vec<(SocketAddr, Vec<u8>)> {
            assert!(
                joining
                    .handle_timeout(&self.joiner, &mut self.rng, self.now)
                    .is_none()
            );
            std::iter::from_fn(|| joining.poll_transmit()).collect()
        }

        fn knock(&mut self, hello: &[u8], from: SocketAddr) -> Result<Answer, Drop> {
            let host = Host {
                tokens: &self.tokens,
                keys: &self.inviter,
                authority: authority(&self.key, &self.inviter, self.office.as_ref()),
                range: range(),
            };
            let (inviting, rng) = (&mut self.inviting, &mut self.rng);
            inviting.handle_hello(hello, from, host, rng, self.now)
        }

        fn hello(&mut self, hello: &[u8]) -> Result<Vec<u8>, Drop> {
            match self.knock(hello, address(9))? {
                Answer::Proof(proof) => Ok(proof),
                Answer::Cookie(_) => panic!("not under load"),
            }
        }

        fn admission(&self) -> Admission {
            Admission {
                cluster: self.key.public(),
                range: range(),
                secret: ClusterSecret {
                    epoch: 3,
                    bytes: [5; 32],
                },
                certificate: authority(&self.key, &self.inviter, self.office.as_ref()).certify(
                    self.joiner.id(),
                    false,
                    1,
                ),
                inviter: self.inviter.public(),
            }
        }

        /// Up to the inviter's question whether this joiner may come in.
        fn asked(&mut self, joining: &mut Joining) -> (Asked, Vec<u8>) {
            let hellos = self.sent(joining);
            assert_eq!(
                hellos.iter().map(|sent| sent.0).collect::<Vec<_>>(),
                self.token.addresses
            );
            let proof = self.hello(&hellos[1].1).unwrap();
            assert!(
                joining
                    .handle_datagram(&proof, address(2), self.now)
                    .unwrap()
                    .is_none()
            );
            let requests = self.sent(joining);
            assert_eq!(requests[0].0, address(2), "to where the proof came from");
            match self.inviting.handle_request(&requests[0].1).unwrap() {
                Verdict::Asked(asked) => (asked, requests[0].1.clone()),
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn a_joiner_is_admitted_and_told_again() {
        admitted_and_told_again(stage());
    }

    #[test]
    fn an_admin_at_the_end_of_the_longest_chain_invites_as_well() {
        let mut stage = stage();
        let mut office =
            Authority::Key(&stage.key).certify(NodeKeys::from_bytes(&[1; 64]).id(), true, 1);
        for n in 2..5 {
            let keys = NodeKeys::from_bytes(&[n - 1; 64]);
            let authority = Authority::of(None, &keys, &office, stage.key.public()).unwrap();
            let next = NodeKeys::from_bytes(&[n; 64]).id();
            let node = if n == 4 { stage.inviter.id() } else { next };
            office = authority.certify(node, true, 1);
        }
        stage.office = Some(office);
        admitted_and_told_again(stage);
    }

    fn admitted_and_told_again(mut stage: Stage) {
        let mut joining = stage.joining(stage.token.clone());
        let (asked, request) = stage.asked(&mut joining);
        assert_eq!(
            (asked.node(), asked.name.as_str()),
            (stage.joiner.id(), "host2")
        );
        let lost = stage
            .inviting
            .answer(asked.index, &Ok(stage.admission()))
            .unwrap();
        let Verdict::Again(grant) = stage.inviting.handle_request(&request).unwrap() else {
            panic!("asked twice")
        };
        assert_ne!(grant, lost, "sealed anew");
        assert!(grant.len() <= request.len(), "{} bytes", grant.len());
        match joining
            .handle_datagram(&grant, address(2), stage.now)
            .unwrap()
        {
            Some(Outcome::Admitted(admission, from)) => {
                assert_eq!(admission.encode(), stage.admission().encode());
                assert_eq!(from, address(2));
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_refusal_is_told() {
        let mut stage = stage();
        let mut joining = stage.joining(stage.token.clone());
        let (asked, _) = stage.asked(&mut joining);
        let no = stage
            .inviting
            .answer(asked.index, &Err(Refusal::UsedUp))
            .unwrap();
        let outcome = joining.handle_datagram(&no, address(2), stage.now).unwrap();
        assert!(matches!(outcome, Some(Outcome::Refused(Refusal::UsedUp))));
    }

    #[test]
    fn another_cluster_learns_nothing() {
        let mut stage = stage();
        let token = Token {
            cluster: [9; 32],
            ..stage.token.clone()
        };
        let mut joining = stage.joining(token);
        let hello = stage.sent(&mut joining).remove(0).1;
        let proof = stage.hello(&hello).unwrap();
        let outcome = joining
            .handle_datagram(&proof, address(1), stage.now)
            .unwrap();
        assert!(matches!(outcome, Some(Outcome::WrongCluster(from)) if from == address(1)));
        assert!(
            joining.poll_transmit().is_none() && joining.proven.is_none(),
            "no request was made"
        );
    }

    #[test]
    fn a_stranger_hears_nothing() {
        let mut stage = stage();
        let unknown = Token {
            id: TokenId([1; 16]),
            ..stage.token.clone()
        };
        let guessed = Token {
            secret: [1; 32],
            ..stage.token.clone()
        };
        for token in [unknown, guessed] {
            let mut joining = stage.joining(token);
            let hello = stage.sent(&mut joining).remove(0).1;
            assert_eq!(stage.hello(&hello), Err(Drop::BadHandshake));
        }
        assert!(stage.inviting.open.is_empty());
    }

    #[test]
    fn a_replayed_hello_costs_nothing() {
        let mut stage = stage();
        let mut joining = stage.joining(stage.token.clone());
        let hello = stage.sent(&mut joining).remove(0).1;
        let proof = stage.hello(&hello).unwrap();
        assert_eq!(stage.hello(&hello), Ok(proof));
        assert_eq!(stage.inviting.open.len(), 1);
    }

    #[test]
    fn under_load_a_joiner_is_asked_for_proof_of_its_address() {
        let mut stage = stage();
        let flood = |stage: &mut Stage| {
            let mut joining = stage.joining(stage.token.clone());
            let hello = stage.sent(&mut joining).remove(0).1;
            let answer = stage.knock(&hello, address(66)).unwrap();
            let len = match &answer {
                Answer::Proof(bytes) | Answer::Cookie(bytes) => bytes.len(),
            };
            assert!(len <= hello.len());
            answer
        };
        let answers: Vec<_> = (0..1000).map(|_| flood(&mut stage)).collect();
        let cookies = answers
            .iter()
            .filter(|answer| matches!(answer, Answer::Cookie(_)));
        assert!((800..900).contains(&cookies.count()));
        let mut joining = stage.joining(stage.token.clone());
        let hello = stage.sent(&mut joining).remove(0).1;
        let Ok(Answer::Cookie(cookie)) = stage.knock(&hello, address(1)) else {
            panic!("not under load")
        };
        let now = stage.now;
        assert!(joining.handle_datagram(&cookie, address(1), now).is_ok());
        let proven = stage.sent(&mut joining).remove(0).1;
        assert!(matches!(
            stage.knock(&proven, address(1)),
            Ok(Answer::Proof(_))
        ));
    }

    #[test]
    fn one_token_does_not_push_out_the_joins_of_another() {
        let mut stage = stage();
        let hour = Duration::from_secs(3600);
        let (id, secret) = (stage.tokens).create(hour, 1, 2500 * hour, &mut stage.rng);
        let other = Token {
            id,
            secret: *secret,
            ..stage.token.clone()
        };
        let mut modest = stage.joining(other);
        let hello = stage.sent(&mut modest).remove(0).1;
        let proof = stage.hello(&hello).unwrap();
        for _ in 0..MAX_OPEN + 100 {
            stage.now += Duration::from_millis(10);
            let mut greedy = stage.joining(stage.token.clone());
            let hello = stage.sent(&mut greedy).remove(0).1;
            stage.hello(&hello).unwrap();
        }
        assert_eq!(stage.inviting.open.len(), MAX_OPEN);
        assert_eq!(stage.hello(&hello), Ok(proof), "it is still open");
    }

    #[test]
    fn who_was_answered_makes_room_for_who_was_not() {
        let mut stage = stage();
        let mut waiting = stage.joining(stage.token.clone());
        let (asked, _) = stage.asked(&mut waiting);
        let mut served = stage.joining(stage.token.clone());
        let (answered, _) = stage.asked(&mut served);
        let refused = stage.inviting.answer(answered.index, &Err(Refusal::UsedUp));
        assert!(refused.is_some());
        while stage.inviting.open.len() < MAX_OPEN {
            stage.now += Duration::from_millis(10);
            let mut joining = stage.joining(stage.token.clone());
            let hello = stage.sent(&mut joining).remove(0).1;
            stage.hello(&hello).unwrap();
        }
        let mut last = stage.joining(stage.token.clone());
        let hello = stage.sent(&mut last).remove(0).1;
        stage.now += Duration::from_millis(10);
        stage.hello(&hello).unwrap();
        let open: Vec<u32> = stage.inviting.locks().map(|(index, _)| index).collect();
        assert!(open.contains(&asked.index) && !open.contains(&answered.index));
    }

    #[test]
    fn silence_ends_and_a_lost_inviter_is_asked_afresh() {
        let mut stage = stage();
        let mut joining = stage.joining(stage.token.clone());
        stage.asked(&mut joining);
        stage.inviting = Inviting::new(&mut stage.rng, stage.now);
        stage.now += START_OVER;
        let hellos = stage.sent(&mut joining);
        assert_eq!(hellos.len(), 2, "a fresh hello to every address");
        assert!(stage.hello(&hellos[0].1).is_ok());
        stage.now += PATIENCE;
        let outcome = joining.handle_timeout(&stage.joiner, &mut stage.rng, stage.now);
        assert!(matches!(outcome, Some(Outcome::NoAnswer)));
    }
}
