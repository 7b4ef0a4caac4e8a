//! Which endpoint a client had last, for Services that keep clients at theirs.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

/// The most clients that are remembered; beyond that new ones are picked for each time.
const MOST: usize = 65_535;

/// How often at most it is looked for clients whose time is over, which means a look at all of them.
const SWEEP: Duration = Duration::from_secs(1);

/// The clients of one port of a Service.
#[derive(Clone, Debug, Default)]
pub(super) struct Sticky {
    clients: HashMap<IpAddr, (SocketAddr, Instant)>,
    swept: Option<Instant>,
}

impl Sticky {
    /// Where a client was, unless its time is over.
    pub(super) fn of(&self, client: IpAddr, now: Instant) -> Option<SocketAddr> {
        let (endpoint, until) = self.clients.get(&client)?;
        (now < *until).then_some(*endpoint)
    }

    /// Remembers it, or starts its time again.
    pub(super) fn keep(
        &mut self,
        client: IpAddr,
        endpoint: SocketAddr,
        time: Duration,
        now: Instant,
    ) {
        if self.clients.len() >= MOST && !self.clients.contains_key(&client) {
            if self.swept.is_some_and(|at| now < at + SWEEP) {
                return;
            }
            self.swept = Some(now);
            self.clients.retain(|_, (_, until)| now < *until);
            if self.clients.len() >= MOST {
                return;
            }
        }
        self.clients.insert(client, (endpoint, now + time));
    }

    /// Forgets everybody.
    pub(super) fn clear(&mut self) {
        self.clients.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_is_forgotten_when_its_time_is_over_and_room_is_bounded() {
        let (now, time) = (Instant::now(), Duration::from_secs(10));
        let (one, two) = (
            SocketAddr::from(([10, 0, 0, 1], 1)),
            SocketAddr::from(([10, 0, 0, 2], 1)),
        );
        let client = |n: u32| IpAddr::from(n.to_be_bytes());
        let mut sticky = Sticky::default();
        sticky.keep(client(1), one, time, now);
        assert_eq!(sticky.of(client(1), now + time / 2), Some(one));
        assert_eq!(sticky.of(client(1), now + time), None);
        for n in 2..=70_000 {
            sticky.keep(client(n), two, time, now);
        }
        assert_eq!(sticky.clients.len(), MOST);
        assert_eq!(sticky.of(client(1), now), Some(one), "who is in stays in");
        sticky.keep(client(80_000), one, time, now + time);
        assert_eq!(
            sticky.clients.len(),
            1,
            "those whose time is over make room"
        );
    }
}
