//! The two MACs at the end of a handshake datagram, and the cookies that fill the second.
//!
//! WireGuard's construction (Donenfeld, NDSS 2017, section 5.4.4 and 5.4.7) with one change: *mac1* is keyed from the
//! cluster's secret instead of the receiver's public key, so that only members get past it and a stranger who scans the
//! port sees silence.
//!
//! Under load the receiver answers an initiation with a *cookie*, a MAC over the sender's address that it can check
//! without having stored anything. The sender proves that it receives at that address by keying *mac2* with it.
//!
//! ```text
//! handshake datagram:  ... | mac1 16 | mac2 16     mac1 over all before it, mac2 over all before it; zeros without a cookie
//! cookie reply:        header 16 | nonce 16 | sealed cookie 16 + tag 16
//! ```
//!
//! The reply is sealed with ChaCha20-Poly1305 under a key of its own: BLAKE2s, keyed by the cookie key, over the nonce
//! and the mac1 that is answered. So only the sender of that very datagram can use it.

#![deny(clippy::disallowed_methods)]

use std::net::IpAddr;
use std::time::{Duration, Instant};

use blake2::Blake2sMac256;
use blake2::digest::consts::U16;
use blake2::digest::{FixedOutput, KeyInit, Update};
use rand_core::CryptoRng;
use subtle::ConstantTimeEq;
use weave_model::{Drop, Suite};
use zeroize::Zeroizing;

use crate::keys::{OpenKey, SealKey};
use crate::way::Way;
use crate::wire::{HEADER, Header, TAG};

/// Length of a MAC and of a cookie.
pub const MAC: usize = 16;
/// Length of both MACs at the end of a handshake datagram.
pub const MACS: usize = 2 * MAC;
/// How long a cookie is good for: its maker changes the secret this often and honours the one before.
pub const COOKIE_LIFE: Duration = Duration::from_secs(120);
/// Length of a cookie reply.
pub const REPLY: usize = HEADER + NONCE + MAC + TAG;
const NONCE: usize = 16;

/// The key of a mac1.
pub type MacKey = Zeroizing<[u8; 32]>;

/// A cookie, as the sender of an initiation keeps it.
pub type Cookie = [u8; MAC];

/// BLAKE2s with a key of 16 or 32 bytes and 16 bytes of output (RFC 7693).
fn keyed(key: &[u8], parts: &[&[u8]]) -> [u8; MAC] {
    let mut mac =
        blake2::Blake2sMac::<U16>::new_from_slice(key).expect("BLAKE2s takes keys up to 32 bytes");
    for part in parts {
        mac.update(part);
    }
    mac.finalize_fixed().into()
}

/// Ends a datagram with its MACs; `mac2` is zero without a cookie.
pub fn append(key: &[u8; 32], cookie: Option<&Cookie>, datagram: &mut Vec<u8>) {
    let mac1 = keyed(key, &[datagram]);
    datagram.extend_from_slice(&mac1);
    let mac2 = cookie.map_or([0; MAC], |cookie| keyed(cookie, &[datagram]));
    datagram.extend_from_slice(&mac2);
}

/// Writes a `mac2` into a datagram that [`append`] ended.
///
/// # Panics
/// If it is shorter than its MACs.
pub fn set_cookie(cookie: &Cookie, datagram: &mut [u8]) {
    let (before, mac2) = datagram
        .split_last_chunk_mut::<MAC>()
        .expect("the datagram ends with its MACs");
    *mac2 = keyed(cookie, &[before]);
}

/// A datagram whose `mac1` is right, taken apart.
#[derive(Clone, Copy, Debug)]
pub struct Checked<'a> {
    /// All before the MACs.
    pub content: &'a [u8],
    /// The first MAC.
    pub mac1: &'a [u8; MAC],
    mac2: &'a [u8; MAC],
}

/// Checks `mac1`: the one hash that junk costs.
///
/// # Errors
/// [`Drop::TooShort`] without MACs or content, [`Drop::BadHandshake`] with a wrong MAC.
pub fn check<'a>(key: &[u8; 32], datagram: &'a [u8]) -> Result<Checked<'a>, Drop> {
    let (rest, mac2) = datagram.split_last_chunk::<MAC>().ok_or(Drop::TooShort)?;
    let (content, mac1) = rest.split_last_chunk::<MAC>().ok_or(Drop::TooShort)?;
    if content.len() < HEADER {
        return Err(Drop::TooShort);
    }
    if !bool::from(keyed(key, &[content]).ct_eq(mac1)) {
        return Err(Drop::BadHandshake);
    }
    Ok(Checked {
        content,
        mac1,
        mac2,
    })
}

impl Checked<'_> {
    /// Whether it was sent without a cookie.
    pub fn without_cookie(&self) -> bool {
        self.mac2 == &[0; MAC]
    }
}

/// Makes cookies and knows its own again.
pub struct CookieJar {
    current: Zeroizing<[u8; 32]>,
    previous: Zeroizing<[u8; 32]>,
    made: Instant,
}

impl CookieJar {
    /// A jar with fresh secrets.
    pub fn new(rng: &mut impl CryptoRng, now: Instant) -> Self {
        let mut jar = Self {
            current: Zeroizing::default(),
            previous: Zeroizing::default(),
            made: now,
        };
        rng.fill_bytes(&mut *jar.current);
        rng.fill_bytes(&mut *jar.previous);
        jar
    }

    fn turn(&mut self, rng: &mut impl CryptoRng, now: Instant) {
        if now.saturating_duration_since(self.made) >= COOKIE_LIFE {
            self.previous = std::mem::take(&mut self.current);
            rng.fill_bytes(&mut *self.current);
            self.made = now;
        }
    }

    /// Whether the datagram proves that its sender receives at `from`.
    pub fn proves(
        &mut self,
        checked: &Checked<'_>,
        from: impl Into<Way>,
        rng: &mut impl CryptoRng,
        now: Instant,
    ) -> bool {
        self.turn(rng, now);
        let from = from.into();
        let by = |secret: &[u8; 32]| keyed(&cookie(secret, from), &[checked.content, checked.mac1]);
        bool::from(by(&self.current).ct_eq(checked.mac2) | by(&self.previous).ct_eq(checked.mac2))
    }

    /// The reply that gives the sender of a datagram its cookie. `key` is the maker's cookie key, `header` names the
    /// sender's index as the receiver.
    pub fn reply(
        &mut self,
        key: &[u8; 32],
        checked: &Checked<'_>,
        header: Header,
        from: impl Into<Way>,
        rng: &mut impl CryptoRng,
        now: Instant,
    ) -> Vec<u8> {
        self.turn(rng, now);
        let header = header.to_bytes();
        let mut nonce = [0; NONCE];
        rng.fill_bytes(&mut nonce);
        let mut sealed = cookie(&self.current, from.into());
        let mut tag = [0; TAG];
        let once = SealKey::new(Suite::ChaCha20Poly1305, &once(key, &nonce, checked.mac1));
        once.seal(0, &header, &mut sealed, &[], &mut tag);
        [&header[..], &nonce, &sealed, &tag].concat()
    }
}

/// Opens a cookie reply with the maker's cookie key and the `mac1` of the datagram that it answers.
///
/// # Errors
/// [`Drop::BadHandshake`] if it does not answer that datagram.
pub fn open_reply(key: &[u8; 32], mac1: &[u8; MAC], reply: &[u8]) -> Result<Cookie, Drop> {
    let reply: &[u8; REPLY] = reply.try_into().map_err(|_| Drop::BadHandshake)?;
    let (header, rest) = reply.split_at(HEADER);
    let (nonce, sealed) = rest.split_at(NONCE);
    let mut cookie = [0; MAC];
    let (ciphertext, tag) = sealed.split_at(MAC);
    OpenKey::new(Suite::ChaCha20Poly1305, &once(key, nonce, mac1))
        .open_into(0, header, ciphertext, tag, &mut cookie)
        .map_err(|_| Drop::BadHandshake)?;
    Ok(cookie)
}

fn once(key: &[u8; 32], nonce: &[u8], mac1: &[u8; MAC]) -> Zeroizing<[u8; 32]> {
    let mut mac = Blake2sMac256::new_from_slice(key).expect("BLAKE2s takes keys up to 32 bytes");
    mac.update(nonce);
    mac.update(mac1);
    Zeroizing::new(mac.finalize_fixed().into())
}

fn cookie(secret: &[u8; 32], from: Way) -> Cookie {
    let from = match from {
        Way::Direct(from) => from,
        Way::Relayed { relay, end } => return keyed(secret, &[relay.as_bytes(), end.as_bytes()]),
    };
    let port = from.port().to_be_bytes();
    match from.ip().to_canonical() {
        IpAddr::V4(ip) => keyed(secret, &[&ip.octets(), &port]),
        IpAddr::V6(ip) => keyed(secret, &[&ip.octets(), &port]),
    }
}

#[cfg(test)]
#[allow(
    clippy::disallowed_methods,
    reason = "tests need some instant to begin with"
)]
mod tests;
