//! In which order waiting packets go: fair between flows, in order within each.
//!
//! Start-time fair queueing (Goyal, Vin and Cheng, SIGCOMM 1996). Each packet gets a start: where the flow's last one
//! ended, or now, if that is later, on a clock that stands at the start of the packet that went last. The one with the
//! least start goes next. So flows that wait share by bytes, and one that has nothing waiting goes next with what it
//! sends: it waits for one packet, not for the queue.
//!
//! Flows share the places of a table. Those of one place count as one flow, and their packets keep their order too.

#![deny(clippy::disallowed_methods)]

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::net::IpAddr;

use super::inner::{Inner, protocol};

/// Places in the table.
const PLACES: usize = 1024;
/// What a packet costs besides its bytes, in bytes: as much as sealing and sending this many of a longer one.
const PACKET: u64 = 2048;

/// The packets that wait, each known by a number the caller gave it.
#[derive(Debug)]
pub struct Fair {
    /// Start, order of arrival, number.
    waiting: BinaryHeap<Reverse<(u64, u64, usize)>>,
    /// Where the last packet of each place ends.
    ends: Box<[u64]>,
    clock: u64,
    /// The latest of the ends: where the clock goes when nothing waits.
    latest: u64,
    count: u64,
}

impl Default for Fair {
    fn default() -> Self {
        Self {
            waiting: BinaryHeap::new(),
            ends: vec![0; PLACES].into_boxed_slice(),
            clock: 0,
            latest: 0,
            count: 0,
        }
    }
}

impl Fair {
    /// Lets a packet of `len` bytes wait. `flow` is from [`flow`].
    pub fn push(&mut self, flow: u64, len: usize, number: usize) {
        let end = &mut self.ends[(flow >> 32) as usize % PLACES];
        let start = self.clock.max(*end);
        *end = start + len as u64 + PACKET;
        self.latest = self.latest.max(*end);
        self.waiting.push(Reverse((start, self.count, number)));
        self.count += 1;
    }

    /// The packet that goes next.
    pub fn pop(&mut self) -> Option<usize> {
        let Reverse((start, _, number)) = self.waiting.pop()?;
        self.clock = if self.waiting.is_empty() {
            self.latest
        } else {
            start
        };
        Some(number)
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }
}

/// A number for the flow of a packet: addresses, protocol, and ports where there are any.
pub fn flow(inner: &Inner, packet: &[u8]) -> u64 {
    let mut number = u64::from(inner.protocol);
    match (inner.source, inner.destination) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            mix(
                &mut number,
                u64::from(from.to_bits()) << 32 | u64::from(to.to_bits()),
            );
        }
        (from, to) => {
            for address in [from, to] {
                let bits = match address {
                    IpAddr::V4(v4) => v4.to_bits().into(),
                    IpAddr::V6(v6) => v6.to_bits(),
                };
                mix(&mut number, (bits >> 64) as u64);
                mix(&mut number, bits as u64);
            }
        }
    }
    let has_ports = [protocol::TCP, protocol::UDP].contains(&inner.protocol) && !inner.fragment;
    let ports = packet
        .get(inner.transport..)
        .and_then(<[u8]>::first_chunk)
        .filter(|_| has_ports);
    mix(
        &mut number,
        ports.map_or(0, |ports| u32::from_be_bytes(*ports)).into(),
    );
    number
}

/// One round of a multiplicative hash; the factor is the golden ratio's (Knuth, The Art of Computer Programming 6.4).
const fn mix(number: &mut u64, more: u64) {
    *number = (number.rotate_left(23) ^ more).wrapping_mul(0x9e37_79b9_7f4a_7c15);
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;

    use super::super::inner::tests::tcp4;
    use super::*;

    const fn place(number: usize) -> u64 {
        (number as u64) << 32
    }

    /// Packets by their number: flow, length, order within the flow.
    #[derive(Default)]
    struct Run {
        fair: Fair,
        packets: Vec<(usize, usize)>,
        waiting: [VecDeque<usize>; 4],
        /// What went of each flow, its packets' price included.
        went: [u64; 4],
    }

    impl Run {
        fn push(&mut self, number: usize, len: usize) {
            let packet = self.packets.len();
            self.packets.push((number, len));
            self.waiting[number].push_back(packet);
            self.fair.push(place(number), len, packet);
        }

        /// Checks the order within the flow and returns the flow.
        fn pop(&mut self) -> Option<usize> {
            let packet = self.fair.pop()?;
            let (number, len) = self.packets[packet];
            assert_eq!(self.waiting[number].pop_front(), Some(packet));
            self.went[number] += len as u64 + PACKET;
            Some(number)
        }
    }

    #[test]
    fn a_flow_that_has_nothing_waiting_goes_next() {
        let mut run = Run::default();
        for _ in 0..20 {
            run.push(0, 60_000);
        }
        for _ in 0..5 {
            assert_eq!(run.pop(), Some(0));
            run.push(1, 84);
            run.push(0, 60_000);
            // One that starts where the clock stands was there before.
            let next = [run.pop(), run.pop()];
            assert!(next.contains(&Some(1)), "{next:?}");
        }
    }

    #[test]
    fn what_was_sent_while_nobody_waited_is_forgotten() {
        let mut run = Run::default();
        for _ in 0..100 {
            run.push(0, 60_000);
            assert_eq!(run.pop(), Some(0));
        }
        for _ in 0..10 {
            run.push(0, 60_000);
            run.push(1, 60_000);
        }
        let order: Vec<_> = std::iter::from_fn(|| run.pop()).take(6).collect();
        assert_eq!(order, [0, 1, 0, 1, 0, 1]);
    }

    #[test]
    fn ports_tell_flows_apart_and_fragments_have_none() {
        let number = |edit: fn(&mut [u8])| {
            let mut packet = tcp4(100);
            edit(&mut packet);
            flow(&Inner::parse(&packet).unwrap(), &packet)
        };
        let plain = number(|_| ());
        assert_eq!(plain, number(|packet| packet[40] ^= 1), "payload");
        let edits: [fn(&mut [u8]); 4] = [
            |packet| packet[15] ^= 1,
            |packet| packet[19] ^= 1,
            |packet| packet[21] ^= 1,
            |packet| packet[23] ^= 1,
        ];
        for edit in edits {
            assert_ne!(plain, number(edit));
        }
        let fragment = |packet: &mut [u8]| packet[6] = 0x20;
        assert_eq!(number(fragment), {
            number(|packet| {
                packet[6] = 0x20;
                packet[21] ^= 1;
            })
        });
    }

    proptest! {
        /// Whatever comes when: nothing is lost, each flow keeps its order, and two flows that wait all the time get
        /// the same but for one packet of each.
        #[test]
        fn flows_share_and_keep_their_order(
            steps in prop::collection::vec((0..4_usize, 1..60_000_usize, any::<bool>()), 1..300),
        ) {
            let mut run = Run::default();
            let mut since = [0_i64; 16];
            for (number, len, pops) in steps {
                run.push(number, len);
                if pops {
                    run.pop();
                }
                for (pair, since) in since.iter_mut().enumerate() {
                    let (a, b) = (pair / 4, pair % 4);
                    let both = !run.waiting[a].is_empty() && !run.waiting[b].is_empty();
                    let ahead = run.went[a] as i64 - run.went[b] as i64;
                    if !both {
                        *since = ahead;
                    }
                    prop_assert!(ahead - *since <= 2 * (60_000 + PACKET as i64));
                }
            }
            while run.pop().is_some() {}
            prop_assert!(run.waiting.iter().all(VecDeque::is_empty));
        }
    }
}
