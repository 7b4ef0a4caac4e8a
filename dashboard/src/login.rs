//! Who may see the page: codes that open it once, and what a browser shows afterwards.
//!
//! Whoever may open the node's socket gets a code, 128 random bits, good once and for [`CODE_GOOD`]. The browser trades it
//! for a session: when it ends and a keyed hash of that (BLAKE2s, RFC 7693, keyed with a secret of the node). So nothing is
//! kept of a session, and a restart of the node ends none.

use std::time::{Duration, Instant};

use blake2::Blake2sMac256;
use blake2::digest::{FixedOutput as _, KeyInit as _, Update as _};
use data_encoding::BASE64URL_NOPAD;
use subtle::ConstantTimeEq as _;

/// How long a code is good.
pub(crate) const CODE_GOOD: Duration = Duration::from_secs(300);

/// How many seconds a session lasts.
pub(crate) const SESSION_GOOD: u64 = 12 * 3600;

/// The most codes that wait to be used; the oldest makes room.
const MAX_CODES: usize = 64;

/// Codes that were given, and the secret behind sessions.
#[derive(Debug)]
pub(crate) struct Logins {
    key: [u8; 32],
    codes: Vec<([u8; 16], Instant)>,
}

impl Logins {
    /// Logins whose sessions hold as long as the key is the same.
    pub(crate) const fn new(key: [u8; 32]) -> Self {
        Self {
            key,
            codes: Vec::new(),
        }
    }

    /// Makes these random bytes a code.
    pub(crate) fn invite(&mut self, random: [u8; 16], now: Instant) -> String {
        self.codes.retain(|(_, until)| *until > now);
        if self.codes.len() == MAX_CODES {
            self.codes.remove(0);
        }
        self.codes.push((random, now + CODE_GOOD));
        BASE64URL_NOPAD.encode(&random)
    }

    /// Trades a code for a session; `wall` is seconds since the Unix epoch.
    pub(crate) fn redeem(&mut self, code: &str, now: Instant, wall: u64) -> Option<String> {
        let code: [u8; 16] = BASE64URL_NOPAD
            .decode(code.as_bytes())
            .ok()?
            .try_into()
            .ok()?;
        let same = |known: &[u8; 16]| bool::from(known.ct_eq(&code));
        let place = self
            .codes
            .iter()
            .position(|(known, until)| same(known) && *until > now)?;
        self.codes.remove(place);
        Some(self.session(wall + SESSION_GOOD))
    }

    /// Whether what a browser shows is a session that holds.
    pub(crate) fn holds(&self, session: &str, wall: u64) -> bool {
        let Ok(bytes) = BASE64URL_NOPAD.decode(session.as_bytes()) else {
            return false;
        };
        let Some((ends, seal)) = bytes.split_first_chunk::<8>() else {
            return false;
        };
        u64::from_be_bytes(*ends) > wall && bool::from(self.seal(ends).as_slice().ct_eq(seal))
    }

    fn session(&self, ends: u64) -> String {
        let ends = ends.to_be_bytes();
        BASE64URL_NOPAD.encode(&[&ends[..], &self.seal(&ends)].concat())
    }

    fn seal(&self, ends: &[u8; 8]) -> [u8; 32] {
        let mut mac = Blake2sMac256::new(&self.key.into());
        mac.update(b"weave page session");
        mac.update(ends);
        mac.finalize_fixed().into()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    #[test]
    fn a_code_opens_once_and_in_time() {
        let (mut logins, now) = (Logins::new([1; 32]), Instant::now());
        let code = logins.invite([7; 16], now);
        assert_eq!(logins.redeem("AAAAAAAAAAAAAAAAAAAAAA", now, 5), None);
        assert_eq!(logins.redeem("", now, 5), None);
        assert!(logins.redeem(&code, now, 5).is_some());
        assert_eq!(logins.redeem(&code, now, 5), None, "only once");
        let code = logins.invite([8; 16], now);
        assert_eq!(logins.redeem(&code, now + CODE_GOOD, 5), None);
        for n in 0..100 {
            logins.invite([n; 16], now);
        }
        assert_eq!(logins.codes.len(), MAX_CODES);
    }

    #[test]
    fn a_session_outlives_the_node_and_ends_in_time() {
        let (mut logins, now) = (Logins::new([1; 32]), Instant::now());
        let code = logins.invite([7; 16], now);
        let session = logins.redeem(&code, now, 1000).unwrap();
        let restarted = Logins::new([1; 32]);
        assert!(restarted.holds(&session, 1000));
        assert!(!restarted.holds(&session, 1000 + SESSION_GOOD));
        assert!(
            !Logins::new([2; 32]).holds(&session, 1000),
            "another node's"
        );
        let mut longer = BASE64URL_NOPAD.decode(session.as_bytes()).unwrap();
        longer[6] ^= 1;
        for junk in [
            BASE64URL_NOPAD.encode(&longer),
            String::new(),
            "x".into(),
            "AAAA".into(),
        ] {
            assert!(!restarted.holds(&junk, 1000), "{junk}");
        }
    }
}
