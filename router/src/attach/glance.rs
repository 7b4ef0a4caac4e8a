//! What was concluded from the host's routes, kept while nothing hints that it would be another now.
//!
//! Devices and addresses are few and cheap to list. Routes may be a million, a router's whole table, and then take
//! seconds. So a look that comes every few seconds lists them when a device or an address is another than the last time,
//! and otherwise so often that it takes a hundredth of the time: on most hosts in every look.

use std::time::{Duration, Instant};

use weave_linux::netlink::{Address, Link};

/// How many times as long as it took to be drawn a conclusion is kept, and how long at most.
const SHARE: u32 = 100;
/// See [`Glance`].
pub const AGE: Duration = Duration::from_secs(180);

/// The last conclusion, kept for [`AGE`] at most, and what the host was like.
#[derive(Clone, Debug)]
pub struct Glance<T>(Option<Seen<T>>);

#[derive(Clone, Debug)]
struct Seen<T> {
    devices: Vec<Device>,
    addresses: Vec<Address>,
    until: Instant,
    concluded: T,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Device {
    index: u32,
    name: String,
    up: bool,
}

impl<T> Default for Glance<T> {
    fn default() -> Self {
        Self(None)
    }
}

impl<T: Clone> Glance<T> {
    /// What was concluded, unless devices or addresses are others by now, or it is too old.
    pub fn recall(&self, links: &[Link], addresses: &[Address], now: Instant) -> Option<T> {
        let seen = self.0.as_ref()?;
        let same = seen.devices == devices(links) && seen.addresses == addresses;
        (now < seen.until && same).then(|| seen.concluded.clone())
    }

    /// Keeps what was concluded from a list of routes that was asked for after the other two, and `took` so long.
    pub fn keep(
        &mut self,
        (links, addresses): (&[Link], &[Address]),
        concluded: T,
        took: Duration,
        now: Instant,
    ) {
        self.0 = Some(Seen {
            devices: devices(links),
            addresses: addresses.to_vec(),
            until: now + (took * SHARE).min(AGE),
            concluded,
        });
    }
}

fn devices(links: &[Link]) -> Vec<Device> {
    let device = |link: &Link| Device {
        index: link.index,
        name: link.name.clone(),
        up: link.up,
    };
    links.iter().map(device).collect()
}

#[cfg(test)]
mod tests {
    use super::super::overlap;
    use super::*;

    fn link(index: u32, up: bool) -> Link {
        Link {
            up,
            ..overlap::tests::link(index, &format!("eth{index}"))
        }
    }

    fn address(link: u32) -> Address {
        Address::new(link, "192.0.2.1/24".parse().expect("it is one"))
    }

    #[test]
    fn what_was_concluded_holds_until_something_is_another() {
        let now = Instant::now();
        let (links, addresses) = ([link(1, true)], [address(1)]);
        let mut glance = Glance::default();
        assert_eq!(glance.recall(&links, &addresses, now), None);
        let took = Duration::from_secs(9);
        glance.keep((&links, &addresses), "free", took, now);
        let recall = |links: &[Link], addresses: &[Address], after| {
            glance.recall(links, addresses, now + after)
        };
        assert_eq!(recall(&links, &addresses, AGE / 2), Some("free"));
        assert_eq!(recall(&links, &addresses, AGE), None);
        let more = [link(1, true), link(2, true)];
        assert_eq!(recall(&more, &addresses, AGE / 2), None);
        assert_eq!(recall(&[link(1, false)], &addresses, AGE / 2), None);
        assert_eq!(recall(&links, &[address(2)], AGE / 2), None);
    }

    #[test]
    fn what_cost_little_is_not_kept_for_long() {
        let now = Instant::now();
        let mut glance = Glance::default();
        glance.keep((&[], &[]), 1, Duration::from_millis(20), now);
        assert_eq!(
            glance.recall(&[], &[], now + Duration::from_secs(1)),
            Some(1)
        );
        assert_eq!(glance.recall(&[], &[], now + Duration::from_secs(2)), None);
    }
}
