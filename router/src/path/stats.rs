//! Counters of the data path: each thread adds to its own, readers add them up.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use weave_model::Drop;

/// What one data thread counts. Alone on its cache lines; only its thread writes, so no add is contended.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct Counters {
    /// Packets taken from the kernel or written to it.
    pub packets: AtomicU64,
    /// Bytes of these.
    pub bytes: AtomicU64,
    /// Datagrams sent or received.
    pub datagrams: AtomicU64,
    /// What the kernel took or gave as one: fewer than datagrams where it splits (`UDP_SEGMENT`) or joins (`UDP_GRO`).
    pub batches: AtomicU64,
    /// System calls for these: fewer than batches where one call receives several.
    pub calls: AtomicU64,
    /// Datagrams of other members that were handed on.
    pub handed_on: AtomicU64,
    /// Bytes of these, as they came.
    pub handed_on_bytes: AtomicU64,
    drops: [AtomicU64; Drop::ALL.len()],
}

impl Counters {
    /// Counts a packet of `bytes`.
    pub fn packet(&self, bytes: usize) {
        self.packets.fetch_add(1, Relaxed);
        self.bytes.fetch_add(bytes as u64, Relaxed);
    }

    /// Counts `datagrams` that were received as one; the calls are counted apart.
    pub fn batch(&self, datagrams: usize) {
        self.batches.fetch_add(1, Relaxed);
        self.datagrams.fetch_add(datagrams as u64, Relaxed);
    }

    /// Counts one call that received.
    pub fn received(&self) {
        self.calls.fetch_add(1, Relaxed);
    }

    /// Counts `datagrams` that were sent in so many calls.
    pub fn sent(&self, datagrams: usize, calls: usize) {
        self.datagrams.fetch_add(datagrams as u64, Relaxed);
        self.batches.fetch_add(calls as u64, Relaxed);
        self.calls.fetch_add(calls as u64, Relaxed);
    }

    /// Counts a datagram of `bytes` that was handed on to another member.
    pub fn handed_on(&self, bytes: usize) {
        self.handed_on.fetch_add(1, Relaxed);
        self.handed_on_bytes.fetch_add(bytes as u64, Relaxed);
    }

    /// Counts a drop.
    pub fn dropped(&self, reason: Drop) {
        self.drops[reason as usize].fetch_add(1, Relaxed);
    }

    /// Adds this thread's counts to a sum.
    pub fn add_to(&self, sum: &mut Sum) {
        sum.packets += self.packets.load(Relaxed);
        sum.bytes += self.bytes.load(Relaxed);
        sum.datagrams += self.datagrams.load(Relaxed);
        sum.batches += self.batches.load(Relaxed);
        sum.calls += self.calls.load(Relaxed);
        sum.handed_on += self.handed_on.load(Relaxed);
        sum.handed_on_bytes += self.handed_on_bytes.load(Relaxed);
        for (total, drops) in sum.drops.iter_mut().zip(&self.drops) {
            *total += drops.load(Relaxed);
        }
    }
}

/// The counts of several threads, added up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sum {
    /// Packets of containers.
    pub packets: u64,
    /// Bytes of these.
    pub bytes: u64,
    /// Datagrams between nodes.
    pub datagrams: u64,
    /// What the kernel took or gave as one.
    pub batches: u64,
    /// System calls for these.
    pub calls: u64,
    /// Datagrams of other members that were handed on.
    pub handed_on: u64,
    /// Bytes of these.
    pub handed_on_bytes: u64,
    /// Drops, in the order of [`Drop::ALL`].
    pub drops: [u64; Drop::ALL.len()],
}

impl Sum {
    /// The reasons that occurred, with their counts.
    pub fn drops(&self) -> impl Iterator<Item = (Drop, u64)> + '_ {
        Drop::ALL
            .into_iter()
            .zip(self.drops)
            .filter(|(_, count)| *count > 0)
    }
}

/// What was exchanged with one member. Written by several threads, once per batch.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct PeerCounters {
    /// Bytes of containers' packets sent to it.
    pub sent_bytes: AtomicU64,
    /// Bytes of containers' packets received from it.
    pub received_bytes: AtomicU64,
    /// Packets sent to it.
    pub sent_packets: AtomicU64,
    /// Packets received from it.
    pub received_packets: AtomicU64,
    /// How often new keys took the place of keys in use. Written by the control thread, as the next one.
    pub rekeys: AtomicU64,
    /// How often a handshake was begun again because nothing came of the one before.
    pub retries: AtomicU64,
    /// How often a handshake came to an end as it should: at first, and for every rekey.
    pub handshakes: AtomicU64,
}

impl PeerCounters {
    /// Counts a packet sent.
    pub fn sent(&self, bytes: usize) {
        self.sent_packets.fetch_add(1, Relaxed);
        self.sent_bytes.fetch_add(bytes as u64, Relaxed);
    }

    /// Packets and bytes sent, then received.
    pub fn read(&self) -> (u64, u64, u64, u64) {
        let read = |counter: &AtomicU64| counter.load(Relaxed);
        (
            read(&self.sent_packets),
            read(&self.sent_bytes),
            read(&self.received_packets),
            read(&self.received_bytes),
        )
    }

    /// Counts a packet received.
    pub fn received(&self, bytes: usize) {
        self.received_packets.fetch_add(1, Relaxed);
        self.received_bytes.fetch_add(bytes as u64, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_add_up() {
        let threads = [Counters::default(), Counters::default()];
        threads[0].packet(10);
        threads[1].packet(5);
        threads[1].dropped(Drop::Replay);
        threads[0].sent(7, 2);
        threads[1].batch(5);
        threads[1].batch(4);
        threads[1].received();
        let mut sum = Sum::default();
        threads.iter().for_each(|thread| thread.add_to(&mut sum));
        assert_eq!((sum.packets, sum.bytes, sum.datagrams), (2, 15, 16));
        assert_eq!((sum.batches, sum.calls), (4, 3));
        assert_eq!(sum.drops().collect::<Vec<_>>(), [(Drop::Replay, 1)]);
    }
}
