//! The join tokens that an admin node made: who may still come in by each.
//!
//! A use is counted by the joiner's node id, so a joiner that lost the answer and asks again is let in again and uses
//! nothing up. A token that is expired, used up or revoked is remembered for a day after its time, so that whoever still
//! tries it can be told why it fails and whoever lists tokens sees it; a token that is not known gets no answer at all.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use rand_core::CryptoRng;
use weave_model::{NodeId, TokenId};
use zeroize::Zeroizing;

use super::codec::{Malformed, Reader, Writer};
use crate::noise::join::mac_key;
use crate::noise::mac::MacKey;

/// How long a dead token is remembered.
const REMEMBERED: Duration = Duration::from_secs(24 * 3600);
/// The most tokens that are remembered; the ones that expire first make room.
const MAX_TOKENS: usize = 1000;
const MAX_USES: usize = 10_000;

/// Why a joiner is not let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The token's time is over.
    Expired,
    /// As many nodes as it was made for have joined with it.
    UsedUp,
    /// The inviter cannot save anything just now.
    Unable,
    /// An operator took the token back.
    Revoked,
}

impl Refusal {
    /// The byte on the wire.
    pub const fn to_wire(self) -> u8 {
        match self {
            Self::Expired => 1,
            Self::UsedUp => 2,
            Self::Unable => 3,
            Self::Revoked => 4,
        }
    }

    /// The refusal that a byte names; a later version's is taken for [`Refusal::Unable`].
    pub const fn from_wire(byte: u8) -> Self {
        match byte {
            1 => Self::Expired,
            2 => Self::UsedUp,
            4 => Self::Revoked,
            _ => Self::Unable,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Invitation {
    secret: Zeroizing<[u8; 32]>,
    /// Made from the secret.
    mac_key: MacKey,
    /// Since the Unix epoch.
    expires: Duration,
    uses: u32,
    joined: BTreeSet<NodeId>,
    revoked: bool,
}

impl Invitation {
    /// Why it lets nobody new in; `None` while it does.
    fn dead(&self, wall: Duration) -> Option<Refusal> {
        if self.revoked {
            Some(Refusal::Revoked)
        } else if wall >= self.expires {
            Some(Refusal::Expired)
        } else if self.joined.len() >= self.uses as usize {
            Some(Refusal::UsedUp)
        } else {
            None
        }
    }
}

/// What is known of one token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenInfo {
    /// Its public name.
    pub id: TokenId,
    /// When its time is over, since the Unix epoch.
    pub expires: Duration,
    /// How many nodes may join with it.
    pub uses: u32,
    /// The nodes that did.
    pub joined: Vec<NodeId>,
    /// Why nobody else can; `None` while somebody can.
    pub dead: Option<Refusal>,
}

/// All tokens of a node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tokens(BTreeMap<TokenId, Invitation>);

impl Tokens {
    /// Makes a token for `uses` joiners until `ttl` after `wall`. It is good once it is saved.
    pub fn create(
        &mut self,
        ttl: Duration,
        uses: u32,
        wall: Duration,
        rng: &mut impl CryptoRng,
    ) -> (TokenId, Zeroizing<[u8; 32]>) {
        self.0
            .retain(|_, invitation| wall < invitation.expires + REMEMBERED);
        if self.0.len() >= MAX_TOKENS {
            let first = self
                .0
                .iter()
                .min_by_key(|(_, invitation)| invitation.expires);
            if let Some(id) = first.map(|(id, _)| *id) {
                self.0.remove(&id);
            }
        }
        let mut id = TokenId([0; 16]);
        let mut secret = Zeroizing::new([0; 32]);
        rng.fill_bytes(&mut id.0);
        rng.fill_bytes(&mut *secret);
        let invitation = Invitation {
            mac_key: mac_key(&secret),
            secret: secret.clone(),
            expires: wall + ttl,
            uses,
            joined: BTreeSet::new(),
            revoked: false,
        };
        self.0.insert(id, invitation);
        (id, secret)
    }

    /// Forgets a token.
    pub fn remove(&mut self, id: TokenId) {
        self.0.remove(&id);
    }

    /// Every token that is remembered, by id.
    pub fn list(&self, wall: Duration) -> Vec<TokenInfo> {
        let info = |(id, invitation): (&TokenId, &Invitation)| TokenInfo {
            id: *id,
            expires: invitation.expires,
            uses: invitation.uses,
            joined: invitation.joined.iter().copied().collect(),
            dead: invitation.dead(wall),
        };
        self.0.iter().map(info).collect()
    }

    /// Takes a token back, or with `false` undoes that. It lets nobody in from now on, not even who was let in before.
    pub fn set_revoked(&mut self, id: TokenId, revoked: bool) {
        if let Some(invitation) = self.0.get_mut(&id) {
            invitation.revoked = revoked;
        }
    }

    /// Lets no token be good after `wall`; what ends earlier ends then.
    pub fn end_by(&mut self, wall: Duration) {
        for invitation in self.0.values_mut() {
            invitation.expires = invitation.expires.min(wall);
        }
    }

    /// The secret of a token that is remembered, dead or not.
    pub fn secret(&self, id: TokenId) -> Option<&[u8; 32]> {
        self.0.get(&id).map(|invitation| &*invitation.secret)
    }

    /// The keys of what strangers who hold a token send, dead tokens included.
    pub fn mac_keys(&self) -> impl Iterator<Item = (TokenId, &MacKey)> {
        self.0
            .iter()
            .map(|(id, invitation)| (*id, &invitation.mac_key))
    }

    /// Lets `node` in: `Ok(true)` if that used the token and must be saved, `Ok(false)` if it was let in before.
    ///
    /// # Errors
    /// Why it is not let in; an unknown token counts as expired.
    pub fn admit(&mut self, id: TokenId, node: NodeId, wall: Duration) -> Result<bool, Refusal> {
        let invitation = self.0.get_mut(&id).ok_or(Refusal::Expired)?;
        match invitation.dead(wall) {
            None | Some(Refusal::UsedUp) if invitation.joined.contains(&node) => Ok(false),
            None => Ok(invitation.joined.insert(node)),
            Some(refusal) => Err(refusal),
        }
    }

    /// Appends all tokens, for the saved state.
    pub fn write(&self, out: &mut Writer) {
        out.u32(self.0.len() as u32);
        for (id, invitation) in &self.0 {
            out.bytes(&id.0)
                .bytes(&*invitation.secret)
                .u64(invitation.expires.as_secs());
            out.u8(u8::from(invitation.revoked));
            out.u32(invitation.uses).u32(invitation.joined.len() as u32);
            invitation.joined.iter().for_each(|node| {
                out.bytes(node.as_bytes());
            });
        }
    }

    /// Reads what was saved.
    pub fn read(bytes: &mut Reader<'_>) -> Result<Self, Malformed> {
        let mut tokens = BTreeMap::new();
        for _ in 0..bytes.u32()? {
            let id = TokenId(bytes.array()?);
            let secret = Zeroizing::new(bytes.array()?);
            let mac_key = mac_key(&secret);
            let expires = Duration::from_secs(bytes.u64()?);
            let revoked = bytes.u8()? != 0;
            let uses = bytes.u32()?;
            let count = bytes.u32()? as usize;
            if count > MAX_USES || tokens.len() > MAX_TOKENS {
                return Err(bytes.malformed());
            }
            let joined = (0..count).map(|_| bytes.array().map(NodeId::from_bytes));
            let joined = joined.collect::<Result<_, _>>()?;
            tokens.insert(
                id,
                Invitation {
                    secret,
                    mac_key,
                    expires,
                    uses,
                    joined,
                    revoked,
                },
            );
        }
        Ok(Self(tokens))
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand::rngs::StdRng;

    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    fn node(n: u8) -> NodeId {
        NodeId::from_bytes([n; 32])
    }

    #[test]
    fn a_token_lets_in_as_many_as_it_says() {
        let mut rng = StdRng::seed_from_u64(1);
        let mut tokens = Tokens::default();
        let start = HOUR * 1000;
        let (id, secret) = tokens.create(HOUR, 2, start, &mut rng);
        assert_eq!(tokens.secret(id), Some(&*secret));
        assert_eq!(tokens.admit(id, node(1), start), Ok(true));
        assert_eq!(tokens.admit(id, node(1), start), Ok(false), "asked again");
        assert_eq!(tokens.admit(id, node(2), start), Ok(true));
        assert_eq!(tokens.admit(id, node(3), start), Err(Refusal::UsedUp));
        assert_eq!(tokens.admit(id, node(1), start), Ok(false));
        assert_eq!(
            tokens.admit(id, node(1), start + HOUR),
            Err(Refusal::Expired)
        );
        let mut bytes = Writer::new();
        tokens.write(&mut bytes);
        assert_eq!(
            Tokens::read(&mut Reader::new(&bytes.0, "tokens")),
            Ok(tokens)
        );
    }

    #[test]
    fn a_token_that_was_taken_back_lets_nobody_in_and_is_still_listed() {
        let mut rng = StdRng::seed_from_u64(1);
        let mut tokens = Tokens::default();
        let start = HOUR * 1000;
        let (id, _) = tokens.create(HOUR, 2, start, &mut rng);
        assert_eq!(tokens.admit(id, node(1), start), Ok(true));
        tokens.set_revoked(id, true);
        for n in 1..=2 {
            assert_eq!(tokens.admit(id, node(n), start), Err(Refusal::Revoked));
        }
        let mut bytes = Writer::new();
        tokens.write(&mut bytes);
        let read = Tokens::read(&mut Reader::new(&bytes.0, "tokens")).unwrap();
        let info = TokenInfo {
            id,
            expires: start + HOUR,
            uses: 2,
            joined: vec![node(1)],
            dead: Some(Refusal::Revoked),
        };
        assert_eq!(read.list(start), [info]);
        let dead = |tokens: &Tokens, wall| tokens.list(wall)[0].dead;
        tokens.set_revoked(id, false);
        assert_eq!(dead(&tokens, start), None);
        assert_eq!(dead(&tokens, start + HOUR), Some(Refusal::Expired));
        assert_eq!(tokens.admit(id, node(2), start), Ok(true));
        assert_eq!(dead(&tokens, start), Some(Refusal::UsedUp));
    }

    #[test]
    fn a_dead_token_is_remembered_for_a_day() {
        let mut rng = StdRng::seed_from_u64(1);
        let mut tokens = Tokens::default();
        let start = HOUR * 1000;
        let (old, _) = tokens.create(HOUR, 1, start, &mut rng);
        let (young, _) = tokens.create(HOUR, 1, start + HOUR * 24, &mut rng);
        assert!(tokens.secret(old).is_some());
        tokens.create(HOUR, 1, start + HOUR * 25, &mut rng);
        assert!(tokens.secret(old).is_none() && tokens.secret(young).is_some());
        assert_eq!(tokens.admit(old, node(1), start), Err(Refusal::Expired));
    }
}
