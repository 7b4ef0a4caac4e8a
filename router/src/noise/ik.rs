//! The handshake between members: Noise IKpsk2, WireGuard's, in two messages.
//!
//! The initiator knows the responder's static key. Its own stands encrypted in message 1, so an observer learns neither
//! who it is nor what it says. The pre-shared key comes from the cluster's secret and both node ids, and is mixed in
//! last: a thief of static keys alone, or a quantum computer alone, opens nothing.
//!
//! ```text
//! initiation  header 16 (counter = epoch) | index 4 | suite 1 | zero 3 | e 32 | s 32+16 | payload 32+16 | MACs 32
//! response    header 16 (receiver = that index, counter = epoch)       | e 32 | payload 32+16           | MACs 32
//! payload 1   stamp 8 | boot nonce 8 | record version 8 | lanes 1 | zero 7
//! payload 2   index 4 | zero 4 | boot nonce 8 | record version 8 | lanes 1 | zero 7
//! ```
//!
//! The prologue is everything the initiation says in clear (version and type, epoch, index, suite), the cluster's id and
//! the responder's id; the initiator's id would betray it there and is bound by the pre-shared key instead. The cipher
//! stands in the Noise protocol name too. So nothing that both sides act upon can be changed on the way.

#![deny(clippy::disallowed_methods)]

use rand_core::CryptoRng;
use snow::HandshakeState;
use weave_model::{Drop, NodeId, Suite};

use super::mac::MACS;
use super::{INVARIANT, MAX_DATAGRAM, Split, builder, cipher_name, read, write};
use crate::keys::{ClusterSecret, NodeKeys, NodePublic};
use crate::wire::{HEADER, Header, MAX_LANES, Type};

/// What an initiation says in clear.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Opening {
    /// Which cluster secret keys the MACs and the handshake.
    pub epoch: u32,
    /// The index that the initiator wants to be called by.
    pub index: u32,
    /// The cipher of the handshake and of the session.
    pub suite: Suite,
}

/// Bytes of an initiation before the Noise message.
const CLEAR: usize = HEADER + 8;
const PAYLOAD: usize = 32;
/// Length of an initiation, MACs included.
pub const INITIATION: usize = CLEAR + 32 + 48 + PAYLOAD + 16 + MACS;
/// Length of a response, MACs included.
pub const RESPONSE: usize = HEADER + 32 + PAYLOAD + 16 + MACS;
const _: () = assert!(INITIATION <= MAX_DATAGRAM);

impl Opening {
    /// Reads the clear part of an initiation.
    ///
    /// # Errors
    /// [`Drop::BadHandshake`] if it has another length or shape, or names an unknown suite.
    pub fn parse(datagram: &[u8]) -> Result<Self, Drop> {
        let header = Header::parse(datagram)?;
        let ours = header.kind == Type::Initiation && header.lane == 0 && header.receiver == 0;
        if !ours || datagram.len() != INITIATION {
            return Err(Drop::BadHandshake);
        }
        let clear = datagram[HEADER..]
            .first_chunk::<8>()
            .ok_or(Drop::TooShort)?;
        if clear[5..] != [0; 3] {
            return Err(Drop::BadHandshake);
        }
        Ok(Self {
            epoch: u32::try_from(header.counter).map_err(|_| Drop::BadHandshake)?,
            index: u32::from_be_bytes([clear[0], clear[1], clear[2], clear[3]]),
            suite: Suite::from_wire(clear[4]).ok_or(Drop::BadHandshake)?,
        })
    }

    fn to_bytes(self) -> [u8; CLEAR] {
        let mut clear = [0; CLEAR];
        let header = Header {
            kind: Type::Initiation,
            lane: 0,
            receiver: 0,
            counter: u64::from(self.epoch),
        };
        clear[..HEADER].copy_from_slice(&header.to_bytes());
        clear[HEADER..HEADER + 4].copy_from_slice(&self.index.to_be_bytes());
        clear[HEADER + 4] = self.suite.to_wire();
        clear
    }

    fn prologue(self, cluster: &[u8; 32], responder: &NodeId) -> Vec<u8> {
        [&self.to_bytes()[..], cluster, responder.as_bytes()].concat()
    }

    fn pattern(self) -> String {
        format!("Noise_IKpsk2_25519_{}_BLAKE2s", cipher_name(self.suite))
    }
}

/// What a side tells of itself, sealed, in its message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct About {
    /// Its boot nonce: drawn at every start.
    pub boot: u64,
    /// The version of its own signed record.
    pub record: u64,
    /// How many lanes it can serve, 1 to [`MAX_LANES`].
    pub lanes: usize,
}

impl About {
    fn to_bytes(self, first: u64) -> [u8; PAYLOAD] {
        let mut payload = [0; PAYLOAD];
        payload[..8].copy_from_slice(&first.to_be_bytes());
        payload[8..16].copy_from_slice(&self.boot.to_be_bytes());
        payload[16..24].copy_from_slice(&self.record.to_be_bytes());
        payload[24] = self.lanes as u8;
        payload
    }

    fn parse(payload: &[u8]) -> Result<(u64, Self), Drop> {
        let payload: &[u8; PAYLOAD] = payload.try_into().map_err(|_| Drop::BadHandshake)?;
        let word = |at: usize| {
            payload[at..]
                .first_chunk()
                .copied()
                .map_or(0, u64::from_be_bytes)
        };
        let lanes = usize::from(payload[24]);
        if !(1..=MAX_LANES).contains(&lanes) {
            return Err(Drop::BadHandshake);
        }
        Ok((
            word(0),
            Self {
                boot: word(8),
                record: word(16),
                lanes,
            },
        ))
    }
}

/// What members share: which cluster, and its secret of one epoch.
#[derive(Clone, Copy, Debug)]
pub struct Cluster<'a> {
    /// The cluster's id.
    pub id: &'a [u8; 32],
    /// The secret of the epoch that the handshake names.
    pub secret: &'a ClusterSecret,
}

/// The initiator, after message 1.
pub struct Initiator {
    state: HandshakeState,
    opening: Opening,
}

impl Initiator {
    /// Begins a handshake. Returns the datagram without its MACs.
    ///
    /// `stamp` must be higher than in every initiation sent to that peer before: nanoseconds since the Unix epoch, as a
    /// rule.
    pub fn start(
        keys: &NodeKeys,
        peer: &NodePublic,
        cluster: Cluster<'_>,
        opening: Opening,
        stamp: u64,
        about: About,
        rng: &mut impl CryptoRng,
    ) -> (Self, Vec<u8>) {
        let responder = peer.id();
        let psk = cluster.secret.psk(&keys.id(), &responder);
        let prologue = opening.prologue(cluster.id, &responder);
        let mut state = builder(&opening.pattern(), rng)
            .local_private_key(keys.dh_secret())
            .and_then(|builder| builder.remote_public_key(&peer.dh))
            .and_then(|builder| builder.psk(2, &psk))
            .and_then(|builder| builder.prologue(&prologue))
            .and_then(snow::Builder::build_initiator)
            .expect(INVARIANT);
        let mut datagram = opening.to_bytes().to_vec();
        write(&mut state, &about.to_bytes(stamp), &mut datagram);
        (Self { state, opening }, datagram)
    }

    /// What message 1 said in clear.
    pub const fn opening(&self) -> Opening {
        self.opening
    }

    /// Reads a response whose `mac1` was checked (`content` is all before the MACs). On success the handshake is over
    /// and [`Initiator::split`] may be called; on error nothing changed, and the true response can still come.
    ///
    /// Returns the responder's index and what it tells of itself.
    ///
    /// # Errors
    /// [`Drop::BadHandshake`] if it does not answer this initiation.
    pub fn finish(&mut self, content: &[u8]) -> Result<(u32, About), Drop> {
        let header = Header::parse(content)?;
        let expected = Header {
            kind: Type::Response,
            lane: 0,
            receiver: self.opening.index,
            counter: u64::from(self.opening.epoch),
        };
        if header != expected || content.len() != RESPONSE - MACS {
            return Err(Drop::BadHandshake);
        }
        let (first, about) = About::parse(&read(&mut self.state, &content[HEADER..])?)?;
        Ok(((first >> 32) as u32, about))
    }

    /// The session's keys.
    ///
    /// # Panics
    /// Before [`Initiator::finish`] succeeded.
    pub fn split(mut self) -> Split {
        assert!(self.state.is_handshake_finished(), "the response was read");
        Split::of(&mut self.state)
    }
}

/// The responder, after message 1 was read.
pub struct Responder {
    state: HandshakeState,
    opening: Opening,
    /// The initiator's static key, authentic.
    pub initiator: [u8; 32],
    /// The initiation's stamp.
    pub stamp: u64,
    /// What the initiator tells of itself.
    pub about: About,
}

impl Responder {
    /// Reads an initiation whose `mac1` was checked (`content` is all before the MACs, `opening` its clear part).
    ///
    /// # Errors
    /// [`Drop::BadHandshake`] if it was not made for this node, cluster and epoch, or was changed.
    pub fn read(
        keys: &NodeKeys,
        cluster: &[u8; 32],
        opening: Opening,
        content: &[u8],
        rng: &mut impl CryptoRng,
    ) -> Result<Self, Drop> {
        let prologue = opening.prologue(cluster, &keys.id());
        let mut state = builder(&opening.pattern(), rng)
            .local_private_key(keys.dh_secret())
            .and_then(|builder| builder.prologue(&prologue))
            .and_then(snow::Builder::build_responder)
            .expect(INVARIANT);
        let payload = read(&mut state, content.get(CLEAR..).ok_or(Drop::TooShort)?)?;
        let (stamp, about) = About::parse(&payload)?;
        let initiator = state
            .get_remote_static()
            .and_then(|key| key.try_into().ok())
            .ok_or(Drop::BadHandshake)?;
        Ok(Self {
            state,
            opening,
            initiator,
            stamp,
            about,
        })
    }

    /// Answers, once the static key proved to be `initiator`'s. Returns the datagram without its MACs and the keys.
    ///
    /// `index` is what this side wants to be called by.
    pub fn answer(
        mut self,
        keys: &NodeKeys,
        initiator: &NodeId,
        secret: &ClusterSecret,
        index: u32,
        about: About,
    ) -> (Vec<u8>, Split) {
        self.state
            .set_psk(2, &*secret.psk(initiator, &keys.id()))
            .expect(INVARIANT);
        let header = Header {
            kind: Type::Response,
            lane: 0,
            receiver: self.opening.index,
            counter: u64::from(self.opening.epoch),
        };
        let mut datagram = header.to_bytes().to_vec();
        write(
            &mut self.state,
            &about.to_bytes(u64::from(index) << 32),
            &mut datagram,
        );
        (datagram, Split::of(&mut self.state))
    }
}

#[cfg(test)]
mod tests;
