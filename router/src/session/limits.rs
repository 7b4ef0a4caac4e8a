//! How many handshakes a node is willing to pay for, and when it first asks for proof of address.
//!
//! A handshake costs hundreds of microseconds, a datagram that asks for one costs its sender nothing. So the answer to
//! load is a cookie (see [`crate::noise::mac`]): whoever cannot receive at its source address gets no further. Whoever
//! can is limited by that address, and all of them together, so that handshakes never take more than a part of a core.

#![deny(clippy::disallowed_methods)]

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Instant;

use rand_core::CryptoRng;
use weave_model::NodeId;

use crate::noise::mac::{Checked, CookieJar};
use crate::way::Way;
use crate::wire::Header;

/// A rate and how far it may be exceeded for a moment.
#[derive(Clone, Copy, Debug)]
pub struct Rate {
    /// Tokens that come back in a second.
    pub per_second: u32,
    /// Tokens at most.
    pub burst: u32,
}

/// Handshakes before cookies are asked for.
const CALM: Rate = Rate {
    per_second: 128,
    burst: 128,
};
/// Handshakes with a cookie, all sources together, under load.
const PROVEN: Rate = Rate {
    per_second: 1024,
    burst: 1024,
};
/// Handshakes with a cookie from one source, under load (wireguard-go's figures).
const SOURCE: Rate = Rate {
    per_second: 20,
    burst: 5,
};
/// Sources remembered at most. Only who has shown a cookie gets here.
const MAX_SOURCES: usize = 4096;

/// A token bucket.
#[derive(Clone, Copy, Debug)]
pub struct Bucket {
    rate: Rate,
    /// Thousandths of a token.
    level: u64,
    at: Instant,
}

impl Bucket {
    /// A full bucket.
    pub const fn new(rate: Rate, now: Instant) -> Self {
        Self {
            rate,
            level: rate.burst as u64 * 1000,
            at: now,
        }
    }

    fn fill(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.at).as_millis() as u64;
        if passed > 0 {
            self.at = now;
            let full = u64::from(self.rate.burst) * 1000;
            self.level = full.min(
                self.level
                    .saturating_add(passed.saturating_mul(u64::from(self.rate.per_second))),
            );
        }
    }

    /// Takes a token; `false` if there is none.
    pub fn take(&mut self, now: Instant) -> bool {
        self.take_all(1, now)
    }

    /// Takes so many tokens; `false`, and none taken, if there are fewer.
    pub fn take_all(&mut self, count: u64, now: Instant) -> bool {
        self.fill(now);
        let left = count
            .checked_mul(1000)
            .and_then(|count| self.level.checked_sub(count));
        self.level = left.unwrap_or(self.level);
        left.is_some()
    }

    /// Whether there are so many tokens; none is taken.
    pub fn has(&mut self, count: u64, now: Instant) -> bool {
        self.fill(now);
        self.level >= count.saturating_mul(1000)
    }

    fn is_full(&mut self, now: Instant) -> bool {
        self.fill(now);
        self.level == u64::from(self.rate.burst) * 1000
    }
}

/// What to do with a handshake datagram whose `mac1` is right.
#[derive(Debug, PartialEq, Eq)]
pub enum Entry {
    /// Pay for it.
    Pass,
    /// Send this cookie reply back and forget it.
    Prove(Vec<u8>),
    /// Drop it.
    Refuse,
}

/// The door in front of the handshakes that others begin.
pub struct Gate {
    jar: CookieJar,
    calm: Bucket,
    proven: Bucket,
    sources: BTreeMap<Source, Bucket>,
}

impl Gate {
    /// A door with nobody before it.
    pub fn new(rng: &mut impl CryptoRng, now: Instant) -> Self {
        Self {
            jar: CookieJar::new(rng, now),
            calm: Bucket::new(CALM, now),
            proven: Bucket::new(PROVEN, now),
            sources: BTreeMap::new(),
        }
    }

    /// Decides. `key` is this node's cookie key, `reply` the header that a cookie reply would have.
    pub fn admit(
        &mut self,
        checked: &Checked<'_>,
        key: &[u8; 32],
        reply: Header,
        from: Way,
        rng: &mut impl CryptoRng,
        now: Instant,
    ) -> Entry {
        let calm = self.calm.take(now);
        if calm && checked.without_cookie() {
            return Entry::Pass;
        }
        if !self.jar.proves(checked, from, rng, now) {
            return Entry::Prove(self.jar.reply(key, checked, reply, from, rng, now));
        }
        if calm || (self.source(from, now) && self.proven.take(now)) {
            Entry::Pass
        } else {
            Entry::Refuse
        }
    }

    /// A cookie for whoever sent a datagram, load or not. Arguments as for [`Gate::admit`].
    pub fn ask(
        &mut self,
        checked: &Checked<'_>,
        key: &[u8; 32],
        reply: Header,
        from: Way,
        rng: &mut impl CryptoRng,
        now: Instant,
    ) -> Vec<u8> {
        self.jar.reply(key, checked, reply, from, rng, now)
    }

    fn source(&mut self, from: Way, now: Instant) -> bool {
        let from = source(from);
        if self.sources.len() >= MAX_SOURCES && !self.sources.contains_key(&from) {
            self.sources.retain(|_, bucket| !bucket.is_full(now));
            if self.sources.len() >= MAX_SOURCES {
                return false;
            }
        }
        self.sources
            .entry(from)
            .or_insert_with(|| Bucket::new(SOURCE, now))
            .take(now)
    }
}

/// Whose handshakes are counted together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Source {
    Host(IpAddr),
    /// A relay, which answers for all that it hands on.
    Relay(NodeId),
}

/// Who is meant by an address: all ports of it, and all that an IPv6 host can call itself, its /64 (RFC 7421).
fn source(from: Way) -> Source {
    match from {
        Way::Relayed { relay, .. } => Source::Relay(relay),
        Way::Direct(from) => Source::Host(match from.ip().to_canonical() {
            IpAddr::V6(ip) => IpAddr::from((u128::from(ip) >> 64 << 64).to_be_bytes()),
            v4 => v4,
        }),
    }
}

#[cfg(test)]
#[allow(
    clippy::disallowed_methods,
    reason = "tests need some instant to begin with"
)]
mod tests {
    use std::net::SocketAddr;
    use std::time::Duration;

    use rand::SeedableRng;
    use rand::rngs::StdRng;

    use super::*;
    use crate::noise::mac::{self, Cookie};
    use crate::wire::Type;

    const KEY: [u8; 32] = [1; 32];
    const REPLY: Header = Header {
        kind: Type::Cookie,
        lane: 0,
        receiver: 1,
        counter: 0,
    };

    fn asked(cookie: Option<&Cookie>) -> Vec<u8> {
        let mut datagram = vec![7; 40];
        mac::append(&KEY, cookie, &mut datagram);
        datagram
    }

    fn source(host: u16) -> SocketAddr {
        let [high, low] = host.to_be_bytes();
        SocketAddr::from(([192, 0, high, low], 6783))
    }

    struct Door(Gate, StdRng);

    impl Door {
        fn knock(&mut self, datagram: &[u8], from: SocketAddr, now: Instant) -> Entry {
            self.0.admit(
                &mac::check(&KEY, datagram).unwrap(),
                &KEY,
                REPLY,
                from.into(),
                &mut self.1,
                now,
            )
        }

        fn cookie(&mut self, from: SocketAddr, now: Instant) -> Cookie {
            let bare = asked(None);
            let Entry::Prove(reply) = self.knock(&bare, from, now) else {
                panic!("not under load")
            };
            assert!(reply.len() <= bare.len());
            mac::open_reply(&KEY, mac::check(&KEY, &bare).unwrap().mac1, &reply).unwrap()
        }
    }

    fn door(now: Instant) -> Door {
        let mut rng = StdRng::from_seed([1; 32]);
        Door(Gate::new(&mut rng, now), rng)
    }

    #[test]
    fn load_asks_for_cookies_and_calm_forgets_them() {
        let now = Instant::now();
        let mut door = door(now);
        for _ in 0..128 {
            assert_eq!(door.knock(&asked(None), source(1), now), Entry::Pass);
        }
        let cookie = door.cookie(source(1), now);
        assert_eq!(
            door.knock(&asked(Some(&cookie)), source(1), now),
            Entry::Pass
        );
        assert!(matches!(
            door.knock(&asked(Some(&cookie)), source(2), now),
            Entry::Prove(_)
        ));
        let later = now + Duration::from_secs(1);
        assert_eq!(door.knock(&asked(None), source(1), later), Entry::Pass);
        assert!(matches!(
            door.knock(&asked(Some(&[9; 16])), source(1), later),
            Entry::Prove(_)
        ));
    }

    #[test]
    fn one_source_does_not_starve_another() {
        let now = Instant::now();
        let mut door = door(now);
        while door.0.calm.take(now) {}
        let greedy = asked(Some(&door.cookie(source(1), now)));
        let passed = (0..100)
            .filter(|_| door.knock(&greedy, source(1), now) == Entry::Pass)
            .count();
        assert_eq!(passed, 5);
        let modest = asked(Some(&door.cookie(source(2), now)));
        assert_eq!(door.knock(&modest, source(2), now), Entry::Pass);
    }

    #[test]
    fn ports_of_one_address_and_addresses_of_one_64_are_one_source() {
        let now = Instant::now();
        let mut door = door(now);
        let mut passed = |text: String| {
            door.0
                .source(text.parse::<SocketAddr>().unwrap().into(), now)
        };
        let ports = (1..100).filter(|port| passed(format!("192.0.2.1:{port}")));
        assert_eq!(ports.count(), 5);
        let addresses = (1..100).filter(|host| passed(format!("[2001:db8::{host}]:6783")));
        assert_eq!(addresses.count(), 5);
        assert!(passed("[2001:db8:0:1::1]:6783".to_owned()));
        assert!(!passed("[::ffff:192.0.2.1]:7".to_owned()));
    }

    #[test]
    fn sources_are_forgotten() {
        let now = Instant::now();
        let mut door = door(now);
        let full = (0..MAX_SOURCES as u16)
            .filter(|&host| door.0.source(source(host).into(), now))
            .count();
        assert_eq!(full, MAX_SOURCES);
        assert!(!door.0.source(source(60_000).into(), now));
        assert!(
            door.0
                .source(source(60_000).into(), now + Duration::from_secs(1))
        );
        assert_eq!(door.0.sources.len(), 1);
    }
}
