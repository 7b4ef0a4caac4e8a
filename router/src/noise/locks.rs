//! The locks on a node's door: what tells a handshake from junk at the price of one hash.
//!
//! Whatever begins or continues a handshake ends with a *mac1* that only a member or the holder of a token can make
//! (see [`super::mac`]), or it is sealed and names an index that this node drew at random and goes by. The control core
//! knows the keys and the indices; data threads hold a copy of them that never changes, so junk gets no further than
//! the thread that received it and takes nobody's place in a queue. The core checks again: a lock opens nothing, it
//! only keeps out.

#![deny(clippy::disallowed_methods)]

use std::collections::{BTreeMap, BTreeSet};

use weave_model::Drop;

use super::ik::{Opening, RESPONSE};
use super::join::Hello;
use super::mac::{self, MacKey, REPLY};
use crate::wire::{Header, Type};

/// The keys and indices of one moment. Empty, it lets nobody knock.
#[derive(Clone, Default)]
pub struct Locks {
    /// The keys of what members send to this node, by the epoch of the cluster's secret.
    pub epochs: BTreeMap<u32, MacKey>,
    /// The keys of the tokens that this node lets strangers in by, by the token's id.
    pub tokens: BTreeMap<[u8; 16], MacKey>,
    /// The keys of joins under way, by this node's index in them: as the inviter, or as the joiner.
    pub joins: BTreeMap<u32, MacKey>,
    /// The indices that this node goes by: what answers it names one.
    pub indices: BTreeSet<u32>,
}

impl std::fmt::Debug for Locks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Locks")
            .field("indices", &self.indices.len())
            .finish_non_exhaustive()
    }
}

/// How much a datagram that may knock has shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Knock {
    /// Its mac1 is right: a member sent it once, or the holder of a token.
    Keyed,
    /// It names an index of ours and has no mac1 (cookies and grants): whoever saw that index could have sent it.
    Named,
}

impl Locks {
    /// Whether a datagram may wait for the control core.
    ///
    /// # Errors
    /// [`Drop::BadHandshake`] with a wrong shape, length, epoch, token or MAC; [`Drop::UnknownSession`] if it answers
    /// nothing; what [`Header::parse`] says; [`Drop::UnknownType`] for data, which is not a handshake's.
    pub fn knock(&self, datagram: &[u8]) -> Result<Knock, Drop> {
        let header = Header::parse(datagram)?;
        let key = match header.kind {
            Type::Initiation => {
                Opening::parse(datagram)?;
                self.epoch(header)
            }
            Type::Response => {
                self.answers(header, datagram.len() == RESPONSE)?;
                self.epoch(header)
            }
            Type::JoinHello => self.tokens.get(&Hello::parse(datagram)?.token),
            Type::JoinProof | Type::JoinRequest => self.joins.get(&header.receiver),
            Type::Cookie => return self.answers(header, datagram.len() == REPLY),
            Type::JoinGrant => return self.answers(header, true),
            Type::Data => return Err(Drop::UnknownType),
        };
        mac::check(key.ok_or(Drop::BadHandshake)?, datagram)?;
        Ok(Knock::Keyed)
    }

    fn epoch(&self, header: Header) -> Option<&MacKey> {
        self.epochs.get(&u32::try_from(header.counter).ok()?)
    }

    fn answers(&self, header: Header, right_length: bool) -> Result<Knock, Drop> {
        if !right_length {
            return Err(Drop::BadHandshake);
        }
        if !self.indices.contains(&header.receiver) {
            return Err(Drop::UnknownSession);
        }
        Ok(Knock::Named)
    }
}

#[cfg(test)]
mod tests {
    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};
    use zeroize::Zeroizing;

    use super::super::ik::INITIATION;
    use super::super::join::HELLO;
    use super::*;
    use crate::wire::HEADER;

    const KEY: [u8; 32] = [1; 32];

    fn locks() -> Locks {
        let key = || Zeroizing::new(KEY);
        Locks {
            epochs: [(3, key())].into(),
            tokens: [([5; 16], key())].into(),
            joins: [(77, key())].into(),
            indices: [77, 88].into(),
        }
    }

    fn datagram(kind: Type, receiver: u32, counter: u64, len: usize) -> Vec<u8> {
        let header = Header {
            kind,
            lane: 0,
            receiver,
            counter,
        };
        let mut datagram = header.to_bytes().to_vec();
        datagram.resize(len - mac::MACS, 0);
        if kind == Type::Initiation {
            datagram[HEADER + 4] = weave_model::Suite::Aes256Gcm.to_wire();
        }
        if kind == Type::JoinHello {
            datagram[HEADER + 4..HEADER + 20].fill(5);
        }
        mac::append(&KEY, None, &mut datagram);
        datagram
    }

    /// One of each kind that may knock.
    fn welcome() -> Vec<(Vec<u8>, Knock)> {
        use Knock::{Keyed, Named};
        vec![
            (datagram(Type::Initiation, 0, 3, INITIATION), Keyed),
            (datagram(Type::Response, 88, 3, RESPONSE), Keyed),
            (datagram(Type::JoinHello, 0, 0, HELLO), Keyed),
            (datagram(Type::JoinProof, 77, 0, 244), Keyed),
            (datagram(Type::JoinRequest, 77, 0, 300), Keyed),
            (datagram(Type::Cookie, 88, 3, REPLY), Named),
            (datagram(Type::JoinGrant, 77, 0, 292), Named),
        ]
    }

    #[test]
    fn who_holds_a_key_or_answers_may_knock() {
        for (datagram, knock) in welcome() {
            assert_eq!(locks().knock(&datagram), Ok(knock), "{}", datagram[0] & 0xf);
            assert!(Locks::default().knock(&datagram).is_err());
        }
    }

    #[test]
    fn no_bit_that_the_mac_covers_may_be_changed() {
        for (good, knock) in welcome() {
            let covered = match knock {
                Knock::Keyed => good.len() - mac::MAC,
                Knock::Named => 8,
            };
            for bit in 0..covered * 8 {
                let mut bad = good.clone();
                bad[bit / 8] ^= 1 << (bit % 8);
                // The lane of what has no mac1 is left to the core, and a cookie may turn into a grant.
                if knock == Knock::Keyed || bit / 8 >= 2 {
                    assert!(locks().knock(&bad).is_err(), "{} bit {bit}", good[0] & 0xf);
                }
            }
            for length in 0..good.len() {
                let cut = locks().knock(&good[..length]);
                assert!(cut.is_err() || good[0] & 0xf == 8 && length >= HEADER);
            }
        }
    }

    #[test]
    fn another_epoch_token_or_index_is_refused() {
        for (datagram, reason) in [
            (
                datagram(Type::Initiation, 0, 4, INITIATION),
                Drop::BadHandshake,
            ),
            (
                datagram(Type::Initiation, 0, 1 << 32 | 3, INITIATION),
                Drop::BadHandshake,
            ),
            (
                datagram(Type::Response, 89, 3, RESPONSE),
                Drop::UnknownSession,
            ),
            (datagram(Type::JoinRequest, 88, 0, 300), Drop::BadHandshake),
            (datagram(Type::Cookie, 1, 3, REPLY), Drop::UnknownSession),
            (datagram(Type::Data, 88, 0, 100), Drop::UnknownType),
        ] {
            assert_eq!(locks().knock(&datagram), Err(reason), "{datagram:?}");
        }
    }

    #[test]
    fn junk_of_the_right_shape_is_refused() {
        let mut rng = StdRng::seed_from_u64(1);
        for (good, knock) in welcome() {
            for _ in 0..1000 {
                let mut junk = good.clone();
                let start = if knock == Knock::Keyed { HEADER } else { 4 };
                rng.fill_bytes(&mut junk[start..]);
                assert!(locks().knock(&junk).is_err());
            }
        }
    }
}
