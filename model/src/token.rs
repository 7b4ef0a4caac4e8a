//! The join token: one word that invites a new node into a cluster.
//!
//! It names the cluster by the hash of its key, so that the joiner can tell the right cluster from any other before it
//! says who it is; it carries a random secret that opens the inviter's door; and it says where that door is. Whoever
//! holds it can join until it expires or is used up, so it is shown once and never logged.
//!
//! Text: `weave1.` and, in base64url without padding (RFC 4648 section 5): cluster 32 | id 16 | secret 32 | count 1 |
//! addresses (family 4 or 6, address, port big-endian) | CRC-32 of all before, big-endian. The checksum only tells a
//! token that was cut or mistyped from one that is unknown.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

use data_encoding::{BASE64URL_NOPAD, HEXLOWER};

/// At most this many addresses stand in a token; more would not make it easier to reach.
pub const MAX_TOKEN_ADDRESSES: usize = 8;

const PREFIX: &str = "weave1.";

/// The public name of a token: random, sent in clear, good for nothing without the secret.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TokenId(pub [u8; 16]);

impl fmt::Display for TokenId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&HEXLOWER.encode(&self.0))
    }
}

impl fmt::Debug for TokenId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TokenId({self})")
    }
}

/// A join token, parsed.
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    /// The hash of the cluster's public key.
    pub cluster: [u8; 32],
    /// Which token of the inviter it is.
    pub id: TokenId,
    /// What proves that the joiner was invited: 256 random bits.
    pub secret: [u8; 32],
    /// Where the inviter listens, UDP; 1 to [`MAX_TOKEN_ADDRESSES`], the likeliest first.
    pub addresses: Vec<SocketAddr>,
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Token")
            .field("id", &self.id)
            .field("addresses", &self.addresses)
            .finish_non_exhaustive()
    }
}

/// Why a text is not a join token: the cause, then what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadToken {
    /// It does not start as a token does.
    #[error(
        "this is not a join token: one starts with \"weave1.\"; make one on a member with `weavectl token create`"
    )]
    NotAToken,
    /// It starts like the token of a later version.
    #[error(
        "the token is of version {0}, which this node does not know; install the version that the inviter runs"
    )]
    Version(String),
    /// It has a character that no token has.
    #[error(
        "the token has a wrong character at place {0}; copy it again, whole and without line breaks"
    )]
    Character(usize),
    /// It is cut, or a character was changed.
    #[error("the token is cut or mistyped; copy it again, whole")]
    Damaged,
    /// It says no address.
    #[error(
        "the token names no address to join at; make one with `weaved --advertise ADDRESS` set on the inviter"
    )]
    NoAddress,
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut bytes = Vec::with_capacity(128);
        bytes.extend_from_slice(&self.cluster);
        bytes.extend_from_slice(&self.id.0);
        bytes.extend_from_slice(&self.secret);
        let addresses = &self.addresses[..self.addresses.len().min(MAX_TOKEN_ADDRESSES)];
        bytes.push(addresses.len() as u8);
        for address in addresses {
            match address.ip() {
                IpAddr::V4(ip) => {
                    bytes.push(4);
                    bytes.extend_from_slice(&ip.octets());
                }
                IpAddr::V6(ip) => {
                    bytes.push(6);
                    bytes.extend_from_slice(&ip.octets());
                }
            }
            bytes.extend_from_slice(&address.port().to_be_bytes());
        }
        let check = crc32(&bytes);
        bytes.extend_from_slice(&check.to_be_bytes());
        write!(f, "{PREFIX}{}", BASE64URL_NOPAD.encode(&bytes))
    }
}

impl FromStr for Token {
    type Err = BadToken;

    fn from_str(text: &str) -> Result<Self, BadToken> {
        let text = text.trim();
        let Some(word) = text.strip_prefix(PREFIX) else {
            return Err(other_version(text));
        };
        let bytes = BASE64URL_NOPAD
            .decode(word.as_bytes())
            .map_err(|error| match error.kind {
                data_encoding::DecodeKind::Symbol => {
                    BadToken::Character(PREFIX.len() + error.position + 1)
                }
                _ => BadToken::Damaged,
            })?;
        let (content, check) = bytes.split_last_chunk::<4>().ok_or(BadToken::Damaged)?;
        if crc32(content) != u32::from_be_bytes(*check) {
            return Err(BadToken::Damaged);
        }
        let mut rest = content;
        let cluster = take(&mut rest)?;
        let id = TokenId(take(&mut rest)?);
        let secret = take(&mut rest)?;
        let [count] = take(&mut rest)?;
        if usize::from(count) > MAX_TOKEN_ADDRESSES {
            return Err(BadToken::Damaged);
        }
        let addresses = (0..count)
            .map(|_| address(&mut rest))
            .collect::<Result<Vec<_>, _>>()?;
        if !rest.is_empty() {
            return Err(BadToken::Damaged);
        }
        if addresses.is_empty() {
            return Err(BadToken::NoAddress);
        }
        Ok(Self {
            cluster,
            id,
            secret,
            addresses,
        })
    }
}

fn other_version(text: &str) -> BadToken {
    let version = text
        .strip_prefix("weave")
        .and_then(|rest| rest.split_once('.'))
        .map(|(version, _)| version);
    match version {
        Some(digits) if !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit()) => {
            BadToken::Version(digits.to_owned())
        }
        _ => BadToken::NotAToken,
    }
}

fn take<const N: usize>(rest: &mut &[u8]) -> Result<[u8; N], BadToken> {
    let (head, tail) = rest.split_first_chunk::<N>().ok_or(BadToken::Damaged)?;
    *rest = tail;
    Ok(*head)
}

fn address(rest: &mut &[u8]) -> Result<SocketAddr, BadToken> {
    let ip = match take::<1>(rest)? {
        [4] => IpAddr::V4(Ipv4Addr::from(take::<4>(rest)?)),
        [6] => IpAddr::V6(Ipv6Addr::from(take::<16>(rest)?)),
        _ => return Err(BadToken::Damaged),
    };
    Ok(SocketAddr::new(ip, u16::from_be_bytes(take(rest)?)))
}

/// CRC-32 as in IEEE 802.3 (reflected, polynomial 0xEDB88320), bit by bit: a token is short.
fn crc32(bytes: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = (crc >> 1) ^ (0xEDB8_8320 & (crc & 1).wrapping_neg());
        }
    }
    !crc
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token() -> Token {
        Token {
            cluster: [7; 32],
            id: TokenId([8; 16]),
            secret: [9; 32],
            addresses: vec![
                "192.0.2.1:6783".parse().unwrap(),
                "[2001:db8::1]:6783".parse().unwrap(),
            ],
        }
    }

    #[test]
    fn checksum_is_the_known_one() {
        assert_eq!(crc32(b"123456789"), 0xCBF4_3926);
    }

    #[test]
    fn text_round_trips() {
        let text = token().to_string();
        assert_eq!(text.parse(), Ok(token()));
        assert_eq!(format!(" {text}\n").parse(), Ok(token()));
        assert!(
            text.bytes()
                .all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b)),
            "one word: {text}"
        );
    }

    #[test]
    fn debug_hides_the_secret() {
        let text = format!("{:?}", token());
        assert!(!text.contains("9, 9"), "{text}");
    }

    #[test]
    fn any_cut_or_changed_character_is_told() {
        let text = token().to_string();
        for cut in PREFIX.len()..text.len() {
            assert_eq!(
                text[..cut].parse::<Token>(),
                Err(BadToken::Damaged),
                "cut at {cut}"
            );
            let mut changed = text.clone().into_bytes();
            changed[cut] = if changed[cut] == b'A' { b'B' } else { b'A' };
            assert!(
                String::from_utf8(changed)
                    .unwrap()
                    .parse::<Token>()
                    .is_err(),
                "changed at {cut}"
            );
        }
        assert_eq!("weave1.ab c".parse::<Token>(), Err(BadToken::Character(10)));
    }

    #[test]
    fn other_words_get_other_causes() {
        assert_eq!("swordfish".parse::<Token>(), Err(BadToken::NotAToken));
        assert_eq!("".parse::<Token>(), Err(BadToken::NotAToken));
        assert_eq!(
            "weave12.abc".parse::<Token>(),
            Err(BadToken::Version("12".to_owned()))
        );
        let nowhere = Token {
            addresses: vec![],
            ..token()
        };
        assert_eq!(
            nowhere.to_string().parse::<Token>(),
            Err(BadToken::NoAddress)
        );
    }
}
