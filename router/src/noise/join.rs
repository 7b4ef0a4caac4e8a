//! The handshake with a stranger who holds a join token: Noise XXpsk0, then one sealed answer.
//!
//! The token's secret keys everything from the first byte, so whoever does not hold the token gets no answer at all. The
//! member proves the cluster first: its message carries the cluster's public key and that key's signature over the
//! member's static key and the token's id. Only when the joiner found that the key is the one whose hash stands in its
//! token does it say who it is.
//!
//! ```text
//! hello    header 16                    | index 4 | token id 16 | zero 4 | e 32 | padding 712+16             | MACs 32
//! proof    header 16 (receiver = index) | e 32 | s 32+16 | index 4, cluster key 32, signature 64, rest, +16  | MACs 32
//! request  header 16 (receiver = index) | s 32+16 | Ed25519 key 32, body, +16                                | MACs 32
//! grant    header 16 (receiver = index, counter) | body + tag 16
//! ```
//!
//! The rest says by which admins the signature is the cluster's; what it looks like is the caller's. The padding makes
//! the answer no longer than the question. Index and token id are the prologue. The MACs are those of
//! [`super::mac`], keyed from the token's secret. The cipher is ChaCha20-Poly1305. A datagram that comes twice gets the
//! same answer: the callers keep what these functions return and send it again on a timer.

#![deny(clippy::disallowed_methods)]

use rand_core::CryptoRng;
use snow::HandshakeState;
use weave_model::{Drop, Suite};
use zeroize::Zeroizing;

use super::mac::{self, Checked, MACS, MacKey};
use super::{INVARIANT, MAX_DATAGRAM, Split, builder, read, write};
use crate::keys::{NodeKeys, NodePublic, OpenKey, SealKey, derive};

use crate::wire::{HEADER, Header, TAG, Type};

/// Length of a hello.
pub const HELLO: usize = CLEAR + 32 + PADDING + 16 + MACS;
/// The longest body of a request, in bytes.
pub const MAX_REQUEST: usize = MAX_DATAGRAM - HEADER - 48 - 32 - 16 - MACS;
/// The longest body of a grant, in bytes.
pub const MAX_GRANT: usize = MAX_DATAGRAM - HEADER - TAG;
const CLEAR: usize = HEADER + 24;
const PADDING: usize = 712;
/// The longest rest of a proof, in bytes.
pub const MAX_REST: usize = 584;
const PROOF: usize = HEADER + 32 + 48 + 4 + 32 + 64 + 16 + MACS;
const _: () = assert!(PROOF + MAX_REST <= HELLO && HELLO <= MAX_DATAGRAM);

const PATTERN: &str = "Noise_XXpsk0_25519_ChaChaPoly_BLAKE2s";
const SUITE: Suite = Suite::ChaCha20Poly1305;

/// The part of a token that both sides hold.
#[derive(Clone)]
pub struct Ticket {
    /// The token's id, sent in clear.
    pub id: [u8; 16],
    /// The token's secret.
    pub secret: Zeroizing<[u8; 32]>,
}

impl Ticket {
    /// The key of the MACs on every datagram of this join.
    pub fn mac_key(&self) -> MacKey {
        mac_key(&self.secret)
    }

    /// The key that seals cookies for this join.
    pub fn cookie_key(&self) -> Zeroizing<[u8; 32]> {
        derive(&*self.secret, &[b"weave join cookie"])
    }

    fn psk(&self) -> Zeroizing<[u8; 32]> {
        derive(&*self.secret, &[b"weave join psk"])
    }
}

/// The key of the MACs of whoever joins by the token with this secret.
pub fn mac_key(secret: &[u8; 32]) -> MacKey {
    derive(secret, &[b"weave join mac1"])
}

/// What a hello says in clear.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hello {
    /// The token that the stranger claims to hold.
    pub token: [u8; 16],
    /// The index that the stranger wants to be called by.
    pub index: u32,
}

impl Hello {
    /// Reads the clear part of a hello, to find the token. Nothing is authentic yet.
    ///
    /// # Errors
    /// [`Drop::BadHandshake`] if it has another length or shape.
    pub fn parse(datagram: &[u8]) -> Result<Self, Drop> {
        let expected = Header {
            kind: Type::JoinHello,
            lane: 0,
            receiver: 0,
            counter: 0,
        };
        if Header::parse(datagram)? != expected || datagram.len() != HELLO {
            return Err(Drop::BadHandshake);
        }
        let clear = datagram[HEADER..]
            .first_chunk::<24>()
            .ok_or(Drop::TooShort)?;
        let mut token = [0; 16];
        token.copy_from_slice(&clear[4..20]);
        let index = u32::from_be_bytes([clear[0], clear[1], clear[2], clear[3]]);
        let hello = Self { token, index };
        if datagram[..CLEAR] != hello.to_bytes() {
            return Err(Drop::BadHandshake);
        }
        Ok(hello)
    }

    fn to_bytes(self) -> [u8; CLEAR] {
        let mut clear = [0; CLEAR];
        clear[..HEADER].copy_from_slice(&header(Type::JoinHello, 0));
        clear[HEADER..HEADER + 4].copy_from_slice(&self.index.to_be_bytes());
        clear[HEADER + 4..HEADER + 20].copy_from_slice(&self.token);
        clear
    }
}

/// The member's proof that it speaks for the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterProof {
    /// The cluster's Ed25519 public key.
    pub cluster: [u8; 32],
    /// The signature in its name over [`ClusterProof::message`].
    pub signature: [u8; 64],
    /// Why that signature is the cluster's, and what else the caller says; at most [`MAX_REST`] bytes.
    pub rest: Vec<u8>,
}

impl ClusterProof {
    /// What is signed: "weave join v1", the token's id and the member's X25519 key.
    pub fn message(token: &[u8; 16], member: &[u8; 32]) -> Vec<u8> {
        [&b"weave join v1"[..], token, member].concat()
    }
}

/// The stranger's side.
pub struct Joiner {
    state: HandshakeState,
    ticket: Ticket,
    sign: [u8; 32],
    hello: Vec<u8>,
    index: u32,
    receiver: u32,
    /// Opens grants; only with this counter or a higher one.
    grants: Option<(OpenKey, u64)>,
}

impl Joiner {
    /// Begins to join. [`Joiner::hello`] is the datagram to send. `index` is what this side wants to be called by.
    pub fn new(keys: &NodeKeys, ticket: Ticket, index: u32, rng: &mut impl CryptoRng) -> Self {
        let clear = Hello {
            token: ticket.id,
            index,
        }
        .to_bytes();
        let psk = ticket.psk();
        let mut state = builder(PATTERN, rng)
            .local_private_key(keys.dh_secret())
            .and_then(|builder| builder.psk(0, &psk))
            .and_then(|builder| builder.prologue(&clear))
            .and_then(snow::Builder::build_initiator)
            .expect(INVARIANT);
        let mut hello = clear.to_vec();
        write(&mut state, &[0; PADDING], &mut hello);
        mac::append(&ticket.mac_key(), None, &mut hello);
        Self {
            state,
            ticket,
            sign: keys.public().sign,
            hello,
            index,
            receiver: 0,
            grants: None,
        }
    }

    /// What this side is called by, and the key of what it is sent: see [`super::locks::Locks::joins`].
    pub fn lock(&self) -> (u32, MacKey) {
        (self.index, self.ticket.mac_key())
    }

    /// The first datagram.
    pub fn hello(&self) -> &[u8] {
        &self.hello
    }

    /// Takes a cookie; [`Joiner::hello`] carries it from now on and is to be sent again.
    ///
    /// # Errors
    /// [`Drop::BadHandshake`] if it does not answer the hello.
    pub fn handle_cookie(&mut self, datagram: &[u8]) -> Result<(), Drop> {
        let header = Header::parse(datagram)?;
        let mac1 = self.hello[..HELLO - mac::MAC]
            .last_chunk()
            .expect("a hello ends with its MACs");
        let cookie = mac::open_reply(&self.ticket.cookie_key(), mac1, datagram)?;
        if header.kind != Type::Cookie || header.receiver != self.index {
            return Err(Drop::BadHandshake);
        }
        mac::set_cookie(&cookie, &mut self.hello);
        Ok(())
    }

    /// Reads the member's proof. The caller checks it **before** it calls [`Joiner::request`]: the key must have the hash
    /// that the token names, and the signature in its name must cover [`ClusterProof::message`] with the returned X25519
    /// key.
    ///
    /// # Errors
    /// [`Drop::BadHandshake`] if it does not answer the hello; the true proof can still come.
    pub fn handle_proof(&mut self, datagram: &[u8]) -> Result<(ClusterProof, [u8; 32]), Drop> {
        let checked = mac::check(&self.ticket.mac_key(), datagram)?;
        let content = expect(&checked, Type::JoinProof, self.index)?;
        if !(PROOF..=PROOF + MAX_REST).contains(&datagram.len()) {
            return Err(Drop::BadHandshake);
        }
        let payload = read(&mut self.state, content)?;
        let (index, rest) = payload.split_first_chunk::<4>().ok_or(Drop::BadHandshake)?;
        let (cluster, rest) = rest.split_first_chunk::<32>().ok_or(Drop::BadHandshake)?;
        let (signature, rest) = rest.split_first_chunk::<64>().ok_or(Drop::BadHandshake)?;
        self.receiver = u32::from_be_bytes(*index);
        let proof = ClusterProof {
            cluster: *cluster,
            signature: *signature,
            rest: rest.to_vec(),
        };
        Ok((proof, remote(&self.state)?))
    }

    /// Says who this node is; returns the datagram to send until a grant comes. `body` is the caller's, at most
    /// [`MAX_REQUEST`] bytes.
    ///
    /// # Panics
    /// Unless [`Joiner::handle_proof`] succeeded just before, or if `body` is too long.
    pub fn request(&mut self, body: &[u8]) -> Vec<u8> {
        assert!(body.len() <= MAX_REQUEST, "a request fits a datagram");
        let mut datagram = header(Type::JoinRequest, self.receiver).to_vec();
        write(&mut self.state, &[&self.sign, body].concat(), &mut datagram);
        mac::append(&self.ticket.mac_key(), None, &mut datagram);
        let key = OpenKey::new(SUITE, &Split::of(&mut self.state).receive);
        self.grants = Some((key, 0));
        datagram
    }

    /// Reads a grant; returns the body that the member gave it. One that is older than another was read is refused.
    ///
    /// # Errors
    /// [`Drop::BadHandshake`] before a request was made, [`Drop::Replay`], else as [`OpenKey::open`].
    pub fn handle_grant(&mut self, datagram: &[u8]) -> Result<Vec<u8>, Drop> {
        let header = Header::parse(datagram)?;
        let (key, next) = self.grants.as_mut().ok_or(Drop::BadHandshake)?;
        if header.kind != Type::JoinGrant || header.receiver != self.index {
            return Err(Drop::BadHandshake);
        }
        if header.counter < *next {
            return Err(Drop::Replay);
        }
        let (clear, sealed) = datagram.split_at(HEADER);
        let mut sealed = sealed.to_vec();
        let body = key.open(header.counter, clear, &mut sealed)?.to_vec();
        *next = header.counter.saturating_add(1);
        Ok(body)
    }
}

/// Who wants to join, as told inside the handshake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// The node's keys. That it holds the X25519 key is proven by the handshake.
    pub public: NodePublic,
    /// What the joiner gave to [`Joiner::request`].
    pub body: Vec<u8>,
}

/// The member's side, one for every hello it answered.
pub struct Inviter {
    state: HandshakeState,
    ticket: Ticket,
    /// The joiner's index.
    receiver: u32,
    index: u32,
    request: Option<(Vec<u8>, Request)>,
    /// Seals grants, the next with this counter.
    grants: Option<(SealKey, u64)>,
}

impl Inviter {
    /// Reads a hello whose `mac1` was checked with the ticket's key and returns the proof to send. `index` is what this
    /// side wants to be called by, `proof` the cluster's word for this node and this token.
    ///
    /// # Errors
    /// [`Drop::BadHandshake`] if it was changed.
    ///
    /// # Panics
    /// If the proof's rest is longer than [`MAX_REST`].
    pub fn accept(
        keys: &NodeKeys,
        ticket: Ticket,
        checked: &Checked<'_>,
        index: u32,
        proof: &ClusterProof,
        rng: &mut impl CryptoRng,
    ) -> Result<(Self, Vec<u8>), Drop> {
        assert!(
            proof.rest.len() <= MAX_REST,
            "a chain and a range fit a proof"
        );
        let (clear, message) = checked
            .content
            .split_at_checked(CLEAR)
            .ok_or(Drop::TooShort)?;
        let psk = ticket.psk();
        let mut state = builder(PATTERN, rng)
            .local_private_key(keys.dh_secret())
            .and_then(|builder| builder.psk(0, &psk))
            .and_then(|builder| builder.prologue(clear))
            .and_then(snow::Builder::build_responder)
            .expect(INVARIANT);
        read(&mut state, message)?;
        let receiver = u32::from_be_bytes([
            clear[HEADER],
            clear[HEADER + 1],
            clear[HEADER + 2],
            clear[HEADER + 3],
        ]);
        let mut datagram = header(Type::JoinProof, receiver).to_vec();
        let index_bytes = index.to_be_bytes();
        let payload = [
            &index_bytes[..],
            &proof.cluster,
            &proof.signature,
            &proof.rest,
        ]
        .concat();
        write(&mut state, &payload, &mut datagram);
        mac::append(&ticket.mac_key(), None, &mut datagram);
        Ok((
            Self {
                state,
                ticket,
                receiver,
                index,
                request: None,
                grants: None,
            },
            datagram,
        ))
    }

    /// The index that the joiner's request carries.
    pub const fn index(&self) -> u32 {
        self.index
    }

    /// Reads a request. The same datagram may come again and reads the same.
    ///
    /// # Errors
    /// [`Drop::BadHandshake`] if it does not answer this side's proof; the true request can still come.
    pub fn handle_request(&mut self, datagram: &[u8]) -> Result<&Request, Drop> {
        let checked = mac::check(&self.ticket.mac_key(), datagram)?;
        let content = expect(&checked, Type::JoinRequest, self.index)?;
        if self.request.is_none() {
            let payload = read(&mut self.state, content)?;
            let (sign, body) = payload
                .split_first_chunk::<32>()
                .ok_or(Drop::BadHandshake)?;
            let public = NodePublic {
                dh: remote(&self.state)?,
                sign: *sign,
            };
            let key = SealKey::new(SUITE, &Split::of(&mut self.state).send);
            self.grants = Some((key, 0));
            self.request = Some((
                datagram.to_vec(),
                Request {
                    public,
                    body: body.to_vec(),
                },
            ));
        }
        match &self.request {
            Some((first, request)) if first == datagram => Ok(request),
            _ => Err(Drop::BadHandshake),
        }
    }

    /// Seals an answer for the joiner; `None` before its request was read. An answer that was lost is sealed anew.
    ///
    /// # Panics
    /// If `body` is longer than [`MAX_GRANT`].
    pub fn grant(&mut self, body: &[u8]) -> Option<Vec<u8>> {
        assert!(body.len() <= MAX_GRANT, "a grant fits a datagram");
        let (key, next) = self.grants.as_mut()?;
        let counter = *next;
        *next += 1;
        let header = Header {
            kind: Type::JoinGrant,
            lane: 0,
            receiver: self.receiver,
            counter,
        }
        .to_bytes();
        let mut datagram = [&header[..], body, &[0; TAG]].concat();
        let (content, tag) = datagram.split_at_mut(HEADER + body.len());
        key.seal(counter, &header, &mut content[HEADER..], &[], tag);
        Some(datagram)
    }
}

fn header(kind: Type, receiver: u32) -> [u8; HEADER] {
    Header {
        kind,
        lane: 0,
        receiver,
        counter: 0,
    }
    .to_bytes()
}

/// The Noise message behind a header that must be exactly this one.
fn expect<'a>(checked: &Checked<'a>, kind: Type, receiver: u32) -> Result<&'a [u8], Drop> {
    let (clear, message) = checked.content.split_at(HEADER);
    if clear == header(kind, receiver) {
        Ok(message)
    } else {
        Err(Drop::BadHandshake)
    }
}

fn remote(state: &HandshakeState) -> Result<[u8; 32], Drop> {
    state
        .get_remote_static()
        .and_then(|key| key.try_into().ok())
        .ok_or(Drop::BadHandshake)
}

#[cfg(test)]
mod tests;
