//! Which endpoint a client had last, for Services that keep clients at theirs.

use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

/// The most clients that are remembered; beyond that new ones are picked for each time.
const MOST: usize = 65_535;

/// How many are looked at for one that is remembered, whether their time is over.
const LOOKS: usize = 4;

/// The clients of one port of a Service.
#[derive(Clone, Debug, Default)]
pub(super) struct Sticky {
    clients: HashMap<IpAddr, (SocketAddr, Instant)>,
    /// Each client once, with a time that is not after its end. The first is looked at first: all have the same time.
    looks: VecDeque<(Instant, IpAddr)>,
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
        self.forget(LOOKS, now);
        let until = now + time;
        if let Some(known) = self.clients.get_mut(&client) {
            *known = (endpoint, until);
        } else if self.clients.len() < MOST {
            self.clients.insert(client, (endpoint, until));
            self.looks.push_back((until, client));
        }
    }

    /// Forgets those whose time is over, of so many.
    pub(super) fn forget(&mut self, most: usize, now: Instant) {
        for _ in 0..most {
            let Some((_, client)) = self.looks.front().copied().filter(|(when, _)| *when <= now)
            else {
                break;
            };
            self.looks.pop_front();
            match self.clients.get(&client) {
                Some((_, until)) if now < *until => self.looks.push_back((*until, client)),
                _ => drop(self.clients.remove(&client)),
            }
        }
        if self.looks.len() * 4 < self.looks.capacity() {
            self.looks.shrink_to(self.looks.len() * 2);
            self.clients.shrink_to(self.clients.len() * 2);
        }
    }

    /// Forgets everybody.
    pub(super) fn clear(&mut self) {
        *self = Self::default();
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
        assert_eq!(sticky.of(client(80_000), now + time), Some(one));
    }

    #[test]
    fn the_memory_of_those_whose_time_is_over_is_given_back_a_few_at_a_time() {
        let (now, time) = (Instant::now(), Duration::from_secs(10));
        let to = SocketAddr::from(([10, 0, 0, 1], 1));
        let client = |n: u32| IpAddr::from(n.to_be_bytes());
        let mut sticky = Sticky::default();
        (0..40_000).for_each(|n| sticky.keep(client(n), to, time, now));
        let (later, room) = (now + time / 2, sticky.clients.capacity());
        (0..100).for_each(|n| sticky.keep(client(n), to, time, later));
        for n in 0..10_100 {
            sticky.keep(client(n % 100), to, time, now + time);
        }
        assert_eq!(sticky.clients.len(), 100, "who comes again stays");
        assert_eq!(sticky.looks.len(), 100, "each is looked at once");
        assert!(sticky.clients.capacity() * 10 < room);
        // Nobody comes any more.
        sticky.forget(60, now + 2 * time);
        assert_eq!(sticky.clients.len(), 40);
        sticky.forget(usize::MAX, now + 2 * time);
        assert!(sticky.clients.is_empty() && sticky.looks.is_empty());
    }
}
