//! A table of choices that every node fills alike, and that changes little when endpoints come and go.
//!
//! Maglev hashing (Eisenbud and others, NSDI 2016, section 3.4): each endpoint has an order of its own of all places of
//! the table, and they take turns to fill the next that is free. So each gets the same share within a hundredth, and
//! when one goes, the places of the others mostly stay theirs.

use std::net::SocketAddr;

/// Sizes a table may have: primes, at least a hundred times the number of endpoints where there is one.
const SIZES: [usize; 10] = [
    251, 509, 1_021, 2_039, 4_093, 8_191, 16_381, 32_749, 65_521, 131_071,
];

/// The table of one set of endpoints.
#[derive(Clone, Debug, Default)]
pub(super) struct Maglev {
    /// For each place the number of the endpoint.
    places: Vec<u32>,
}

impl Maglev {
    /// The table of endpoints, which must be in the same order everywhere.
    pub(super) fn new(endpoints: &[SocketAddr]) -> Self {
        if endpoints.is_empty() {
            return Self::default();
        }
        let enough = |size: &&usize| **size > 100 * endpoints.len();
        let size = *SIZES.iter().find(enough).unwrap_or(&131_071);
        let mut orders: Vec<Order> = endpoints.iter().map(|one| Order::of(one, size)).collect();
        let mut places = vec![u32::MAX; size];
        let mut free = size;
        loop {
            for (number, order) in orders.iter_mut().enumerate() {
                let place = order
                    .find(|place| places.get(*place) == Some(&u32::MAX))
                    .expect("an order has every place, and one is free");
                places[place] = number as u32;
                free -= 1;
                if free == 0 {
                    return Self { places };
                }
            }
        }
    }

    /// The numbers of endpoints in the order in which this key asks them.
    pub(super) fn of(&self, key: u64) -> impl Iterator<Item = usize> {
        let size = self.places.len();
        let start = (key % size.max(1) as u64) as usize;
        (0..size).map(move |step| self.places[(start + step) % size] as usize)
    }
}

/// The places of a table in one endpoint's order.
struct Order {
    next: usize,
    skip: usize,
    size: usize,
}

impl Order {
    fn of(endpoint: &SocketAddr, size: usize) -> Self {
        let one = hash(0x9ae1_6a3b_2f90_404f, *endpoint);
        let two = hash(0xc3a5_c85c_97cb_3127, *endpoint);
        Self {
            next: (one % size as u64) as usize,
            skip: (two % (size as u64 - 1)) as usize + 1,
            size,
        }
    }
}

impl Iterator for Order {
    type Item = usize;

    fn next(&mut self) -> Option<usize> {
        let now = self.next;
        self.next = (self.next + self.skip) % self.size;
        Some(now)
    }
}

/// A hash of an address and port that is the same on every node.
pub(super) fn hash(seed: u64, of: SocketAddr) -> u64 {
    let address = u128::from(match of.ip() {
        std::net::IpAddr::V4(v4) => v4.to_ipv6_mapped(),
        std::net::IpAddr::V6(v6) => v6,
    });
    let parts = [(address >> 64) as u64, address as u64, of.port().into()];
    parts.into_iter().fold(seed, |hash, part| mix(hash ^ part))
}

/// The finish of SplitMix64: every bit of the result depends on every bit of the number.
pub(super) const fn mix(number: u64) -> u64 {
    let one = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let two = (one ^ (one >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let three = (two ^ (two >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    three ^ (three >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoints(count: u8) -> Vec<SocketAddr> {
        (0..count)
            .map(|n| SocketAddr::from(([10, 32, 0, n], 8080)))
            .collect()
    }

    fn shares(table: &Maglev, count: u8) -> Vec<usize> {
        let mut shares = vec![0; count.into()];
        table
            .places
            .iter()
            .for_each(|number| shares[*number as usize] += 1);
        shares
    }

    #[test]
    fn every_endpoint_gets_the_same_share() {
        for count in [1, 2, 3, 10, 100] {
            let shares = shares(&Maglev::new(&endpoints(count)), count);
            let (least, most) = (shares.iter().min(), shares.iter().max());
            assert!(
                most.zip(least)
                    .is_some_and(|(most, least)| most - least <= 1),
                "{shares:?}"
            );
        }
    }

    #[test]
    fn when_one_goes_the_others_keep_almost_all_of_theirs() {
        let all = endpoints(50);
        let left: Vec<SocketAddr> = all.iter().copied().filter(|one| *one != all[7]).collect();
        let (before, after) = (Maglev::new(&all), Maglev::new(&left));
        assert_eq!(before.places.len(), after.places.len());
        let moved = before
            .places
            .iter()
            .zip(&after.places)
            .filter(|(old, new)| {
                let (old, new) = (all[**old as usize], left[**new as usize]);
                old != all[7] && old != new
            });
        let moved = moved.count() as f64 / before.places.len() as f64;
        assert!(moved < 0.03, "{moved}");
    }

    #[test]
    fn a_key_that_cannot_have_its_endpoint_gets_another_one_each_time_the_same() {
        let table = Maglev::new(&endpoints(3));
        let mut order: Vec<usize> = table.of(77).collect();
        order.dedup();
        let others: Vec<usize> = table.of(77).filter(|one| *one != order[0]).collect();
        assert_eq!(others.first(), order.get(1));
        assert_eq!(Maglev::new(&[]).of(5).next(), None);
    }
}
